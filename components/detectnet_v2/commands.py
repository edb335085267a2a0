"""The program `detectnet_v2`: NVIDIA TAO's command line in front of the open engine.

Options have TAO's names. Those that TAO lacks say so in their help.
"""

import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from components import program
from components.step import UserError, publish, weights_file

app = typer.Typer(
    name="detectnet_v2",
    help="Train, prune, evaluate and export grid-box detectors, with the command line of NVIDIA TAO. Every task takes "
    "TAO's --gpus, --gpu_index, --num_processes, --use_amp, --log_file, --launch_cuda_blocking and --mpirun-arg, too.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

SPEC_COPY = "experiment_spec.txt"
ModelFile = Annotated[Path, typer.Option("-m", "--model", help="Model file, or a results directory's weights folder.")]
Key = Annotated[
    str, typer.Option("-k", "--key", help="Ignored: this engine's files are not encrypted. Accepted as TAO does.")
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Accepted as TAO does; the output is the same.")]


def _without_effect(*names: str) -> Any:  # noqa: ANN401 - an option of any type
    """Returns an option of TAO's that is accepted, see `_warn_of_idle`."""
    return typer.Option(*names, hidden=True)


def _several(*names: str) -> type[TyperCommand]:
    """Returns a command class in which, as in TAO, several values may follow one option."""

    class Several(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's own copy of click
            spread: list[str] = []
            follows = False
            for word in args:
                is_value = follows and not word.startswith("-")
                spread += [names[0], word] if is_value and spread[-1] not in names else [word]
                follows = is_value or word in names
            return super().parse_args(ctx, spread)

    return Several


def _named(path: Path | None) -> Path | None:
    if path is not None and path.name in ("", ".."):
        raise UserError(f"-o {path}: this names a folder; name a file in it, too")
    return path


def main() -> None:
    """Entry point of the program."""
    from components.detectnet_v2.launch import run_common_options

    sys.exit(program.run(app, sys.argv[1:], "detectnet_v2", run_common_options))


@app.command("dataset_convert")
def dataset_convert(
    spec_file: Annotated[Path, typer.Option("-d", "--dataset_export_spec", help="Conversion spec, protobuf text.")],
    output: Annotated[
        Path, typer.Option("-o", "--output_filename", callback=_named, help="Prefix of the record files.")
    ],
    validation_fold: Annotated[
        int | None, typer.Option("-f", "--validation_fold", min=0, help="Fold that sample modifiers leave alone.")
    ] = None,
    results: Annotated[Path | None, typer.Option("-r", "--results_dir", help="Where status.json is written.")] = None,
    verbose: Verbose = False,
) -> None:
    """Convert KITTI or COCO labels to TFRecord files."""
    from components.detectnet_v2.dataset_convert import convert
    from components.vision.status import StatusLog

    status = StatusLog(results or output.parent)
    status.write("STARTED", "Starting tfrecords conversion")
    converted = convert(spec_file, output, validation_fold)
    categorical = {"num_objects": dict(converted.objects)}
    status.write("SUCCESS", "Conversion finished successfully", categorical=categorical)


Compat = Annotated[
    Literal["none", "tao5"],
    typer.Option("--compat", help="Not in TAO: tao5 reproduces the defects of TAO 5, listed in docs/compatibility.md."),
]


@app.command("train", cls=_several("--gpu_index"))
def train(
    context: typer.Context,
    spec_file: Annotated[
        Path | None,
        typer.Option("-e", "--experiment_spec_file", help="Spec file, protobuf text; a training resumed has its own."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            "-r", "--results_dir", help="A training found there is resumed; a new folder of ~/experiments if unset."
        ),
    ] = None,
    key: Key = "",
    name: Annotated[str, typer.Option("-n", "--model_name", help="Base name of the trained model.")] = "model",
    enable_determinism: Annotated[
        bool, typer.Option("--enable_determinism", help="Deterministic kernels on a GPU; on a CPU training always is.")
    ] = False,
    gpus: Annotated[int, typer.Option("--gpus", "-np", "--num_processes", min=1, help="GPUs of this machine.")] = 1,
    gpu_index: Annotated[
        list[int] | None, typer.Option("--gpu_index", min=0, help="Which GPUs; several may follow.")
    ] = None,
    use_amp: Annotated[
        bool, typer.Option("--use_amp", help="Mixed precision: bfloat16 where the GPU has it, otherwise float16.")
    ] = False,
    log_file: Annotated[str, typer.Option("--log_file", help="File for what is otherwise printed.")] = "",
    multi_node: Annotated[
        bool, typer.Option("--multi-node", help="Refused: start the command by torchrun on every machine instead.")
    ] = False,
    launch_cuda_blocking: Annotated[
        bool, typer.Option("--launch_cuda_blocking", help="Wait for every kernel; to find the one that fails.")
    ] = False,
    mpirun_arg: Annotated[str | None, _without_effect("--mpirun-arg")] = None,
    compat: Compat = "none",
    compile_network: Annotated[
        bool, typer.Option("--compile", help="Not in TAO: torch.compile; pays on GPUs, after a minute or two.")
    ] = False,
    width: Annotated[
        float,
        typer.Option(
            "--width", min=0.05, max=2.0, help="Not in TAO: scales all channels; narrow networks suit CPUs. 0.05 to 2."
        ),
    ] = 1.0,
    threads: Annotated[
        int, typer.Option("--threads", min=0, help="Not in TAO: CPU threads; 0 takes all available cores.")
    ] = 0,
    verbose: Verbose = False,
) -> None:
    """Train a detector; an interrupted training resumes at the step where it stopped.

    On several machines: torchrun --nnodes N … --no-python detectnet_v2 train …, with one results directory for all.
    """
    from components.detectnet_v2 import launch
    from components.detectnet_v2.spec import load_experiment

    if launch_cuda_blocking:
        launch.block_launches()
    _warn_of_idle(context, "processes are started by torchrun")
    if multi_node:
        raise UserError("--multi-node: use torchrun --nnodes N … --no-python detectnet_v2 train … on each machine")
    if log_file:
        launch.log_to(log_file)
    spec = load_experiment(spec_file or _spec_of(results))
    if results is None:
        if launch.is_launched():
            raise UserError("-r: several processes need one results directory; name it")
        results = Path.home() / "experiments" / time.strftime("detectnet_v2_%Y%m%d_%H%M%S")
        print(f"Results: {results}", flush=True)
    if not launch.is_launched():
        _warn(spec.warnings)
        launch.choose_gpus(gpus, gpu_index or ())
        if gpus > 1:
            launch.relaunch(gpus, [*sys.argv[1:], "-r", str(results)])
    if launch.is_first():
        results.mkdir(parents=True, exist_ok=True)
        with publish(results / SPEC_COPY) as scratch:
            scratch.write_text(spec.text, encoding="utf-8")
    from components.detectnet_v2.train import TrainOptions
    from components.detectnet_v2.train import train as run

    options = TrainOptions(
        results=results,
        name=name,
        width=width,
        threads=threads,
        deterministic=enable_determinism,
        mixed_precision=use_amp,
        compiled=compile_network,
        tao5=compat == "tao5",
    )
    run(spec.message, options)


def _spec_of(results: Path | None) -> Path:
    """Returns the spec of an existing training; a new one has none."""
    if results is None or not (results / SPEC_COPY).is_file():
        raise UserError("-e: name the experiment spec; there is no training here to go on with (TAO trains an example)")
    return results / SPEC_COPY


@app.command("evaluate")
def evaluate(
    context: typer.Context,
    spec_file: Annotated[
        Path, typer.Option("-e", "--experiment_spec", "--experiment_spec_file", help="Spec file, protobuf text.")
    ],
    model: Annotated[
        Path, typer.Option("-m", "--model_path", "--model", help="Model file, ONNX file, or a model's folder.")
    ],
    key: Key = "",
    framework: Annotated[
        Literal["tlt", "tensorrt"],
        typer.Option("-f", "--framework", help="tlt: a checkpoint or an ONNX file; tensorrt is refused, see ONNX."),
    ] = "tlt",
    use_training_set: Annotated[
        bool, typer.Option("--use_training_set", help="Score on the training images instead of the validation ones.")
    ] = False,
    results: Annotated[
        Path | None, typer.Option("-r", "--results_dir", help="Where status.json and metrics.json are written.")
    ] = None,
    compat: Compat = "none",
    image_dir: Annotated[str | None, _without_effect("-i", "--image_dir")] = None,
    label_dir: Annotated[str | None, _without_effect("-l", "--label_dir")] = None,
    batch_size: Annotated[int | None, _without_effect("-b", "--batch_size")] = None,
    verbose: Verbose = False,
) -> None:
    """Score a checkpoint or an exported ONNX model on the spec's validation images.

    -i, -l and -b are accepted as TAO does, without effect: images, labels and batch size come from the spec.
    """
    from components.detectnet_v2.evaluation import evaluate_model
    from components.detectnet_v2.spec import load_experiment

    if framework == "tensorrt":
        raise UserError("-f tensorrt: TensorRT engines are not run here; give the ONNX file the engine was built from")
    _warn_of_idle(context, "the spec says what to score on")
    spec = load_experiment(spec_file)
    _warn(spec.warnings)
    tao5 = compat == "tao5"
    evaluate_model(spec.message, model, results, use_training_set=use_training_set, tao5=tao5)


@app.command("prune", cls=_several("-el", "--excluded_layers"))
def prune(
    model: ModelFile,
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output_file", callback=_named, help="The pruned model: .safetensors (added if missing) or .hdf5."
        ),
    ],
    key: Key = "",
    normalizer: Annotated[Literal["max", "L2"], typer.Option("-n", "--normalizer", help="Of the norms.")] = "max",
    equalization: Annotated[
        Literal["union", "intersection", "arithmetic_mean", "geometric_mean"],
        typer.Option("-eq", "--equalization_criterion", help="Where channels meet in an addition."),
    ] = "union",
    granularity: Annotated[
        int, typer.Option("-pg", "--pruning_granularity", min=1, help="Channel counts are multiples of this.")
    ] = 8,
    threshold: Annotated[
        float, typer.Option("-pth", "--pruning_threshold", min=0, help="Channels with at most this norm go.")
    ] = 0.1,
    minimum_filters: Annotated[
        int, typer.Option("-nf", "--min_num_filters", min=1, help="No layer keeps fewer channels.")
    ] = 16,
    excluded_layers: Annotated[
        list[str] | None, typer.Option("-el", "--excluded_layers", help="Layers left whole; several may follow.")
    ] = None,
    target_ratio: Annotated[
        float | None,
        typer.Option(
            "--target-ratio",
            min=0.01,
            max=1.0,
            help="Not in TAO: finds the threshold that leaves at most this share of the parameters.",
        ),
    ] = None,
    results: Annotated[Path | None, typer.Option("--results_dir", "-r", help="Where status.json is written.")] = None,
    verbose: Verbose = False,
) -> None:
    """Remove the channels of a model that matter least; retrain the result with load_graph: true."""
    from components.detectnet_v2.prune import prune_model
    from components.vision.pruning import PruneSettings

    settings = PruneSettings(
        threshold, granularity, minimum_filters, normalizer, equalization, tuple(excluded_layers or ())
    )
    prune_model(model, output, settings, target_ratio, results)


@app.command("inference")
def inference(
    spec_file: Annotated[
        Path, typer.Option("-e", "--experiment_spec", "--experiment_spec_file", help="Inference spec, protobuf text.")
    ],
    source: Annotated[
        Path, typer.Option("-i", "--image_dir", "--inference_input", help="An image, a folder of images, or a video.")
    ],
    results: Annotated[
        Path, typer.Option("-r", "--results_dir", "-o", "--inference_output", help="Where overlays and labels go.")
    ],
    key: Key = "",
    batch_size: Annotated[int, typer.Option("-b", "--batch_size", min=0, help="0 takes the spec's.")] = 0,
    model: Annotated[
        Path | None, typer.Option("-m", "--model_path", "--model", help="Replaces the spec's model; may be ONNX.")
    ] = None,
    compat: Compat = "none",
    verbose: Annotated[
        bool, typer.Option("-v", "--verbosity", "--verbose", help="Accepted as TAO does; the output is the same.")
    ] = False,
) -> None:
    """Draw detections on images or a video and write them as KITTI labels of 16 columns.

    Images that cannot be read are left out, counted and named; the exit code is then 1. A video becomes an MP4 file
    and one label file a frame.
    """
    from components.detectnet_v2.inference import infer
    from components.detectnet_v2.spec import load_inference

    spec = load_inference(spec_file)
    _warn(spec.warnings)
    done = infer(spec.message, source, results, model, batch_size, tao5=compat == "tao5")
    rate = done.images / done.seconds
    print(f"{done.detections} detections in {done.images} images, {rate:.1f} images a second: {results}")


@app.command("export")
def export(
    context: typer.Context,
    model: ModelFile,
    output: Annotated[
        Path | None, typer.Option("-o", "--output_file", callback=_named, help="ONNX file; beside the model if unset.")
    ] = None,
    key: Key = "",
    spec_file: Annotated[
        Path | None, typer.Option("-e", "--experiment_spec", help="Its postprocessing settings go with the model.")
    ] = None,
    gen_ds_config: Annotated[
        bool, typer.Option("--gen_ds_config", help="Write nvinfer_config.txt for DeepStream; labels.txt always is.")
    ] = False,
    target_opset: Annotated[
        int, typer.Option("--target_opset", help="ONNX operator set, 11 to 26; for gridbox convert int8 at least 13.")
    ] = 13,
    static_batch_size: Annotated[
        int, typer.Option("--static_batch_size", help="A fixed batch size; -1 for a dynamic one.")
    ] = -1,
    tensor_suffix: Annotated[
        bool, typer.Option("--tensor-suffix", help="Not in TAO: tensor names end in :0, as in TAO 5's ONNX files.")
    ] = False,
    data_type: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option("--data_type", help="Of the engine that DeepStream builds; int8: use gridbox convert int8."),
    ] = "fp32",
    cal_cache_file: Annotated[
        Path | None,
        typer.Option("--cal_cache_file", help="TensorRT's calibration cache, to go with the model; never written."),
    ] = None,
    engine_file: Annotated[
        str, typer.Option("--engine_file", help="Refused: engines are built where they run, for example by trtexec.")
    ] = "",
    results: Annotated[Path | None, typer.Option("--results_dir", "-r", help="Where status.json is written.")] = None,
    cal_json_file: Annotated[str | None, _without_effect("--cal_json_file")] = None,
    cal_data_file: Annotated[str | None, _without_effect("--cal_data_file")] = None,
    cal_image_dir: Annotated[str | None, _without_effect("--cal_image_dir")] = None,
    batches: Annotated[int | None, _without_effect("--batches")] = None,
    batch_size: Annotated[int | None, _without_effect("--batch_size")] = None,
    min_batch_size: Annotated[int | None, _without_effect("--min_batch_size")] = None,
    opt_batch_size: Annotated[int | None, _without_effect("--opt_batch_size")] = None,
    max_batch_size: Annotated[int | None, _without_effect("--max_batch_size")] = None,
    max_workspace_size: Annotated[int | None, _without_effect("--max_workspace_size")] = None,
    strict_type_constraints: Annotated[bool, _without_effect("-s", "--strict_type_constraints")] = False,
    force_ptq: Annotated[bool, _without_effect("--force_ptq")] = False,
    onnx_route: Annotated[str | None, _without_effect("--onnx_route")] = None,
    verbose: Verbose = False,
) -> None:
    """Write a model as ONNX with TAO's tensor names, checked against PyTorch.

    TAO's options for building engines are accepted without effect, and named when they are given: --cal_json_file,
    --cal_data_file, --cal_image_dir, --batches, --batch_size, --min_batch_size, --opt_batch_size, --max_batch_size,
    --max_workspace_size, -s, --force_ptq, --onnx_route.
    """
    from components.detectnet_v2.export import ExportOptions, export_model
    from components.detectnet_v2.spec import load_experiment

    if data_type == "int8":
        raise UserError("--data_type int8: export in fp32, then quantise the ONNX file with 'gridbox convert int8'")
    if engine_file:
        raise UserError("--engine_file: engines are built where they run; give the ONNX file to trtexec or DeepStream")
    _warn_of_idle(context, "no engine is built here")
    message = load_experiment(spec_file).message if spec_file else None
    target = output or weights_file(model).with_suffix(".onnx")
    options = ExportOptions(
        opset=target_opset,
        static_batch=static_batch_size,
        tensor_suffix=tensor_suffix,
        deepstream=gen_ds_config,
        precision=data_type,
        calibration_cache=cal_cache_file,
        results=results,
    )
    export_model(weights_file(model), target, message, options)


@app.command("calibration_tensorfile")
def calibration_tensorfile(
    spec_file: Annotated[Path, typer.Option("-e", "--experiment_spec_file", help="Spec file, protobuf text.")],
    output: Annotated[Path, typer.Option("-o", "--output_path", callback=_named, help="The file; it must not exist.")],
    max_batches: Annotated[int, typer.Option("-m", "--max_batches", help="-1 for all whole batches.")] = -1,
    use_validation_set: Annotated[
        bool, typer.Option("--use_validation_set", help="Take the validation images, not the training ones.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Write images for NVIDIA's INT8 calibration, TAO's --cal_data_file; gridbox convert int8 needs none."""
    from components.detectnet_v2.calibration_tensorfile import write_tensorfile
    from components.detectnet_v2.spec import load_experiment

    spec = load_experiment(spec_file)
    _warn(spec.warnings)
    count = write_tensorfile(spec.message, output, max_batches, validation=use_validation_set)
    print(f"{count} batches of {spec.message.training_config.batch_size_per_gpu} images: {output}")


@app.command("pretrained")
def pretrained(
    model: Annotated[Path, typer.Option("--model", help="Model artifact to write.")],
    uri: Annotated[
        str,
        typer.Option(
            "--uri",
            help="A file, file://, https:// or s3:// URI, or ngc://org/team/model:version[/file] in NVIDIA's registry; "
            "none if unset.",
        ),
    ] = "",
    version: Annotated[str, typer.Option("--version", help="Version of what lies there, for the manifest.")] = "",
    program: Annotated[
        Path | None,
        typer.Option("--program", help="Folder to write: the program that makes a stage of NVIDIA's, and our specs."),
    ] = None,
) -> None:
    """Not in TAO: import pretrained weights into the pipeline, or record that there are none."""
    from components.ngc.download import NGC, content_of, download_uri
    from components.step import write_manifest
    from components.store import fetch
    from components.tao.program import write_program

    if program is not None:
        write_program("detectnet_v2", program)
    if uri.startswith(NGC):
        download_uri(uri, model)
        return
    with publish(model) as scratch:
        weights = scratch / "weights"
        weights.mkdir(parents=True)
        counts: dict[str, Any] = {"present": bool(uri)}
        if uri:
            file = weights / uri.rsplit("/", 1)[-1]
            fetch(uri, file)
            # Unusable weights fail here rather than in the training.
            counts |= {"file_bytes": file.stat().st_size, **content_of(file)}
        else:
            print("No pretrained weights: training starts from random ones")
        write_manifest(scratch, "model", counts, {"version": version} if version else {})


def _warn(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)


def _warn_of_idle(context: typer.Context, why: str) -> None:
    """Names the hidden options that were given: they are accepted as TAO does, and change nothing here."""
    given = [option for option in context.command.params if context.params.get(option.name or "") not in (None, False)]
    if idle := [option.opts[0] for option in given if getattr(option, "hidden", False)]:
        _warn((f"without effect, {why}: {', '.join(idle)}",))


spec_app = typer.Typer(name="spec", help="Not in TAO: what a spec file says.")
app.add_typer(spec_app)


@spec_app.command("check")
def spec_check(
    file: Annotated[Path, typer.Argument(help="An experiment, inference or conversion spec, protobuf text.")],
) -> None:
    """Explain a spec in words, or list all that is wrong with it (exit code 2); needs no data and no model."""
    from components.detectnet_v2.spec import review
    from components.detectnet_v2.spec_words import describe

    found = review(file)
    for line, problem in found.problems:
        print(f"{file}:{line}: {problem}", file=sys.stderr)
    if found.problems:
        rest = "" if found.is_complete else "; values are checked once the text itself is right"
        count = f"{len(found.problems)} problem{'s' if len(found.problems) > 1 else ''}"
        raise UserError(f"{file}: {count} in this {found.kind.name} spec{rest}")
    print(describe(found), end="")
