"""The command line of TAO's `detectnet_v2`: every task's options, with their types, choices and defaults.

TAO parses twice: its entry point with a parser that knows all tasks, then the task's own program, to which the entry
point hands the values as words of a shell command.
"""

import argparse
import shlex
from collections.abc import Callable, Sequence

_COMMON = ("num_processes", "gpus", "gpu_index", "use_amp", "log_file", "mpirun_arg", "multi_node")
_MULTI_GPU_TASKS = ("train",)


def parse(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Parses the command line as TAO's entry point does.

    Returns:
        The task, and the words that the entry point hands to the task's program.

    Raises:
        SystemExit: With code 2, after argparse's message: an option is unknown, missing, or of the wrong type.
        AssertionError: The common options contradict each other.
    """
    common = _common_options()
    parser = argparse.ArgumentParser("detectnet_v2", parents=[common], description="Transfer Learning Toolkit")
    tasks = parser.add_subparsers(title="tasks", dest="task", required=True)
    for name, declare in TASKS.items():
        declare(tasks.add_parser(name, parents=[common]))
    options = vars(parser.parse_args(argv))
    task = str(options.pop("task"))
    _check_common(task, options)
    # Joined by blanks and split by a shell: a blank in a path makes two words of it.
    words = [f"--{name} {value}" for name, value in ((n, _spelt(v)) for n, v in options.items()) if value is not None]
    return task, shlex.split(" ".join(words))


def parse_task(task: str, words: Sequence[str]) -> argparse.Namespace:
    """Parses the words as the task's own program does.

    Raises:
        SystemExit: With code 2, as in `parse`.
    """
    parser = argparse.ArgumentParser(task)
    TASKS[task](parser)
    # TAO's export passes over what it does not know.
    return parser.parse_known_args(words)[0] if task == "export" else parser.parse_args(words)


def _spelt(value: object) -> str | None:
    """How the entry point spells a value; None where it leaves the option out."""
    if value is None or value is False or value == "":
        return None
    if value is True:
        return ""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _common_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--num_processes", "-np", type=int, default=-1)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--gpu_index", type=int, nargs="+")
    parser.add_argument("--use_amp", action="store_true")
    parser.add_argument("--log_file")
    parser.add_argument("--mpirun-arg", default="")
    parser.add_argument("--multi-node", action="store_true")
    return parser


def _check_common(task: str, options: dict[str, object]) -> None:
    given = {name: options.pop(name) for name in _COMMON}
    gpus, indices, processes = int(str(given["gpus"])), given["gpu_index"], int(str(given["num_processes"]))
    assert gpus > 0, "At least 1 GPU required to run any task."
    if gpus > 1:
        assert task in _MULTI_GPU_TASKS, f"Please use only 1 GPU for the task {task}."
    if processes > 1:
        assert gpus > 1, "Number of GPUs must be > 1 for data parallelized training(np > 1)."
    if given["use_amp"]:
        assert task == "train", "AMP is currently supported only for training."
    if isinstance(indices, list):
        assert len(set(indices)) == gpus, f"{gpus} GPUs, but the GPU indices {indices}"


def _dataset_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", "--dataset_export_spec", required=True)
    parser.add_argument("-o", "--output_filename", required=True)
    parser.add_argument("-f", "--validation_fold", type=int)
    parser.add_argument("-r", "--results_dir")
    parser.add_argument("-v", "--verbose", action="store_true")


def _train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-e", "--experiment_spec_file")
    parser.add_argument("-r", "--results_dir")
    parser.add_argument("-n", "--model_name", default="model")
    parser.add_argument("-k", "--key", default="")
    parser.add_argument("--enable_determinism", action="store_true")
    parser.add_argument("-v", "--verbose", action="store_true")


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-e", "--experiment_spec", required=True)
    parser.add_argument("-m", "--model_path", required=True)
    parser.add_argument("-r", "--results_dir")
    parser.add_argument("--use_training_set", action="store_true")
    parser.add_argument("-k", "--key", default="")
    parser.add_argument("-f", "--framework", choices=("tlt", "tensorrt"), default="tlt")
    # Of TAO Deploy; read and without effect.
    parser.add_argument("-i", "--image_dir")
    parser.add_argument("-l", "--label_dir")
    parser.add_argument("-b", "--batch_size", type=int, default=1)
    parser.add_argument("-v", "--verbose", action="store_true")


def _prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-o", "--output_file", required=True)
    parser.add_argument("--results_dir")
    parser.add_argument("-k", "--key", default="")
    # No choices: TAO looks at these two later, in `run_pruning`.
    parser.add_argument("-n", "--normalizer", default="max")
    parser.add_argument("-eq", "--equalization_criterion", default="union")
    parser.add_argument("-pg", "--pruning_granularity", type=int, default=8)
    parser.add_argument("-pth", "--pruning_threshold", type=float, default=0.1)
    parser.add_argument("-nf", "--min_num_filters", type=int, default=16)
    parser.add_argument("-el", "--excluded_layers", nargs="*", default=[])
    parser.add_argument("-v", "--verbose", action="store_true")


def _inference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-e", "--experiment_spec", required=True)
    parser.add_argument("-i", "--image_dir", required=True)
    parser.add_argument("-r", "--results_dir", required=True)
    parser.add_argument("-k", "--key", default="")
    parser.add_argument("-b", "--batch_size", type=int)
    parser.add_argument("-m", "--model_path")
    parser.add_argument("-v", "--verbosity", action="store_true")


def _export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-k", "--key", default="")
    parser.add_argument("-o", "--output_file")
    parser.add_argument("-e", "--experiment_spec")
    parser.add_argument("--gen_ds_config", action="store_true")
    parser.add_argument("--cal_json_file", default="")
    parser.add_argument("--static_batch_size", type=int, default=-1)
    parser.add_argument("--target_opset", type=int, default=12)
    parser.add_argument("--results_dir")
    parser.add_argument("-v", "--verbose", action="store_true")
    # Of the releases that built engines here; still parsed.
    parser.add_argument("--data_type", choices=("fp32", "fp16", "int8"), default="fp32")
    parser.add_argument("-s", "--strict_type_constraints", action="store_true")
    parser.add_argument("--force_ptq", action="store_true")
    parser.add_argument("--cal_data_file", default="")
    parser.add_argument("--cal_image_dir", default="")
    parser.add_argument("--cal_cache_file", default="./cal.bin")
    parser.add_argument("--engine_file")
    parser.add_argument("--onnx_route", default="keras2onnx")
    for name, default in (("batches", 10), ("batch_size", 16), ("max_workspace_size", 2 << 30)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("min_batch_size", "opt_batch_size", "max_batch_size"):
        parser.add_argument(f"--{name}", type=int, default=1)


TASKS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "dataset_convert": _dataset_convert,
    "train": _train,
    "evaluate": _evaluate,
    "prune": _prune,
    "inference": _inference,
    "export": _export,
}
