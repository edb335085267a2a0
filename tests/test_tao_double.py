import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import discs
import h5py
import numpy as np
import onnxruntime
import pytest
import test_tao_stages
from google.protobuf import text_format
from typer.main import get_command

from components import step
from components.detectnet_v2 import commands, tao_double
from components.detectnet_v2.stage import PLACEHOLDERS, SPEC_FILE, SPLITS
from components.detectnet_v2.tao_double import arguments, faults, models, specs
from components.detectnet_v2.tao_double.__main__ import main
from components.detectnet_v2.transfer import load_pretrained
from components.tao.call import TAO_KEY, call
from components.tao.rendering import render, template_text
from components.tao.tasks import run_task
from components.tao.workplace import CHECKPOINTS, STAGE_DIR
from components.vision.checkpoint import load_network

TASKS = sorted(arguments.TASKS)
# A complete command line of each task.
WHOLE = {
    "dataset_convert": ["-d", "spec", "-o", "out"],
    "train": ["-e", "spec", "-r", "results"],
    "evaluate": ["-e", "spec", "-m", "model"],
    "prune": ["-m", "model", "-o", "out"],
    "inference": ["-e", "spec", "-i", "images", "-r", "results"],
    "export": ["-m", "model"],
}
SIZE = {"image_width": discs.WIDTH, "image_height": discs.HEIGHT}
EXPERIMENT = {**SIZE, "epochs": 4, "batch_size": 4, "learning_rate": 5e-4, "seed": 7}
# Eight images make two steps an epoch, at which TAO can log twice.
FEW_POINTS = "training_config { visualizer { scalar_logging_frequency: 1 }"


def spec(name):
    return template_text(f"facedetect/{name}").replace("training_config {", FEW_POINTS)


def flags(values):
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


# --- Options ---------------------------------------------------------------------------------------------------------


def actions(task):
    parser = argparse.ArgumentParser(add_help=False)
    arguments.TASKS[task](parser)
    return parser._actions


@pytest.mark.parametrize("task", TASKS)
def test_whole_command_line_reaches_the_task_with_its_defaults(task):
    parsed, words = arguments.parse([task, *WHOLE[task]])
    assert parsed == task
    options = vars(arguments.parse_task(task, words))
    for action in actions(task):
        assert options[action.dest] == action.default or action.option_strings[0] in WHOLE[task]


@pytest.mark.parametrize(
    ("task", "option"), [(t, a.option_strings[0]) for t in TASKS for a in actions(t) if a.required]
)
def test_missing_option_is_named_and_ends_with_2(task, option, capsys):
    given = WHOLE[task]
    at = given.index(option)
    with pytest.raises(SystemExit, match="2"):
        main([task, *given[:at], *given[at + 2 :]])
    assert f"detectnet_v2 {task}: error: the following arguments are required: {option}" in capsys.readouterr().err


def own_options(task):
    """What the open engine has beyond TAO, by its help."""
    command = get_command(commands.app).commands[task]
    return [p.opts[0] for p in command.params if "Not in TAO" in (getattr(p, "help", None) or "")]


def test_open_engine_says_which_options_are_its_own():
    assert {"--width", "--threads", "--compile", "--compat"} <= set(own_options("train"))
    assert "--target-ratio" in own_options("prune")


@pytest.mark.parametrize(("task", "option"), [(t, o) for t in TASKS for o in own_options(t)])
def test_options_of_the_open_engine_alone_are_refused_as_tao_does(task, option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([task, *WHOLE[task], option, "1"])
    assert capsys.readouterr().err.endswith(f"detectnet_v2: error: unrecognized arguments: {option} 1\n")


@pytest.mark.parametrize("task", TASKS)
def test_open_engine_takes_every_option_of_taos(task):
    command = get_command(commands.app).commands[task]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {name for action in actions(task) for name in action.option_strings} - known == set()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["export", "-m", "x", "--target_opset", "twelve"], "argument --target_opset: invalid int value: 'twelve'"),
        (["export", "-m", "x", "--data_type", "fp8"], "argument --data_type: invalid choice: 'fp8'"),
        (["evaluate", "-e", "x", "-m", "x", "-f", "onnx"], "argument -f/--framework: invalid choice: 'onnx'"),
        (["dataset_convert", "-d", "x", "-o", "x", "-k", "a"], "unrecognized arguments: -k a"),
        (["prune", "-m", "x", "-o", "x", "-r", "x"], "unrecognized arguments: -r x"),
        (["calibrate"], "invalid choice: 'calibrate'"),
    ],
)
def test_wrong_value_or_option_is_argparses_message(words, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "--gpus", "2"], "Please use only 1 GPU for the task evaluate"),
        (["prune", "--use_amp"], "AMP is currently supported only for training"),
        (["train", "-np", "2"], "Number of GPUs must be > 1"),
        (["train", "--gpu_index", "0", "1"], "GPU indices"),
    ],
)
def test_common_options_that_contradict_each_other_fail(words, said):
    with pytest.raises(AssertionError, match=said):
        main([words[0], *WHOLE[words[0]], *words[1:]])


def test_blank_in_a_path_breaks_the_command_line_as_it_does_taos(capsys):
    assert main(["prune", "-m", "my model", "-o", "x"]) == 255
    captured = capsys.readouterr()
    assert "prune: error: unrecognized arguments: model" in captured.err
    assert captured.out.endswith("Execution status: FAIL\n")


# --- Specs -----------------------------------------------------------------------------------------------------------

FIXED = dict.fromkeys((name for kind in PLACEHOLDERS.values() for name in kind), "x") | {
    **EXPERIMENT,
    "minimum_learning_rate": 5e-6,
    "minimum_height": 4,
}
LOADERS = {
    "train": specs.load_experiment,
    "retrain": specs.load_experiment,
    "inference": specs.load_inference,
    "convert": specs.load_dataset_export,
}


def written(tmp_path, text):
    file = tmp_path / "spec.txt"
    file.write_text(render(text, FIXED))
    return str(file)


@pytest.mark.parametrize("folder", ["facedetect", "facedetect-cpu"])
@pytest.mark.parametrize("name", sorted(LOADERS))
def test_every_spec_of_the_pipeline_is_one_of_tao_5(tmp_path, folder, name):
    LOADERS[name](written(tmp_path, template_text(f"{folder}/{name}")))


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("train", "random_seed", "random_sead", 'has no field named "random_sead"'),
        ("train", "dbscan_min_samples: 0", "dbscan_min_samples: 0.03", "Couldn't parse integer"),
        ("train", "use_batch_norm: true", "use_batch_norm: yes", "Couldn't parse|Expected|invalid"),
        ("inference", "kitti_dump: true", "kitti_dumps: true", "has no field named"),
        ("convert", "num_shards: 10", "num_shards: -1", "Couldn't parse|out of range|Expected"),
    ],
)
def test_text_that_is_not_of_taos_schema_is_a_parse_error(tmp_path, name, old, new, said):
    text = template_text(f"facedetect/{name}")
    assert old in text
    with pytest.raises(text_format.ParseError, match=said):
        LOADERS[name](written(tmp_path, text.replace(old, new)))


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("train", 'arch: "resnet"', 'arch: "alexnet"', "arch should in"),
        ("train", "output_image_width: ${image_width}", "output_image_width: 100", "output_image_width should % 16"),
        ("train", "first_validation_epoch: 1", "first_validation_epoch: 0", "first_validation_epoch should > 0"),
        ("train", "num_epochs: ${epochs}", "", "num_epochs should > 0. Wrong value: 0"),
        ("train", "deadzone_radius: 0.67", "deadzone_radius: 1.5", "deadzone_radius should <= 1.0"),
        ("train", "cov {}", "", "cov should be set in experiment spec file"),
        ("train", "adam {", "# {", "adam should be set in experiment spec file"),
        (
            "train",
            "minimum_detection_ground_truth_overlap",
            "#",
            "minimum_detection_ground_truth_overlap should be set",
        ),
        ("inference", "image_channels: 3", "image_channels: 4", r"image_channels should in \(1, 3\)"),
        ("inference", "batch_size: ${batch_size}", "", "batch_size should > 0"),
    ],
)
def test_validator_refuses_what_taos_does(tmp_path, capsys, name, old, new, said):
    text = template_text(f"facedetect/{name}")
    assert old in text
    if new.startswith("#"):  # the whole block goes
        text = re.sub(re.escape(old.rstrip(" {")) + r" \{[^{}]*\}", "", text)
    else:
        text = text.replace(old, new)
    with pytest.raises(SystemExit, match="1"):
        LOADERS[name](written(tmp_path, text))
    printed = capsys.readouterr().out
    assert printed.startswith("Spec file validation failed.\n")
    assert re.search(said, printed)


def test_validator_takes_what_tao_trains_and_the_open_engine_does_not(tmp_path):
    text = template_text("facedetect/train").replace('arch: "resnet"', 'arch: "vgg"')
    assert specs.load_experiment(written(tmp_path, text)).model_config.arch == "vgg"


# --- Every stage, through the wrapper that runs in NVIDIA's image -----------------------------------------------------


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return tao_double.install(tmp_path_factory.mktemp("programs")).parent


@pytest.fixture
def on_path(programs, monkeypatch):
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    for name in (STAGE_DIR, CHECKPOINTS, TAO_KEY, faults.VARIABLE):
        monkeypatch.delenv(name, raising=False)


def stage(task, **values):
    return step.run(["detectnet_v2", task, *flags(values)], run_task)


@pytest.fixture(scope="module")
def results(tmp_path_factory, programs):
    """The artifacts of all TAO stages in the pipeline's order, each made from those before it."""
    root = tmp_path_factory.mktemp("stages")
    kitti = discs.write_kitti(root / "kitti")
    (root / "absent").mkdir()
    step.write_manifest(root / "absent", "model", {"present": False}, {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        patch.delenv(TAO_KEY, raising=False)
        sets = {"kitti": kitti, "records": root / "records"}
        assert stage("dataset_convert", kitti=kitti, spec=spec("convert"), records=root / "records") == 0
        # What the open engine alone has stands at its neutral value.
        neutral = {"width": 1.0, "threads": 0}
        assert stage("train", **sets, **EXPERIMENT, **neutral, spec=spec("train"), name="face",
                     pretrained=root / "absent", model=root / "model", metrics=root / "train.json") == 0  # fmt: skip
        assert stage("prune", model=root / "model", normalizer="max", equalization="union", granularity=8,
                     threshold=0.99, minimum_filters=16, target_ratio=0.0, excluded_layers="conv1",
                     pruned=root / "pruned", metrics=root / "prune.json") == 0  # fmt: skip
        assert stage("train", **sets, **EXPERIMENT, **neutral, spec=spec("retrain"), name="face_pruned",
                     pretrained=root / "pruned", model=root / "retrained",
                     metrics=root / "retrain.json") == 0  # fmt: skip
        assert stage("evaluate", **sets, pretrained=root / "absent", trained=root / "model", pruned=root / "pruned",
                     retrained=root / "retrained", spec=spec("inference"), batch_size=4, minimum_height=4,
                     evaluations=root / "evaluations", annotated=root / "annotated",
                     metrics=root / "evaluate.json") == 0  # fmt: skip
        assert stage("export", model=root / "retrained", opset=0, exported=root / "exported") == 0
    return SimpleNamespace(root=root, kitti=kitti, sets=sets)


def test_records_have_taos_names(results):
    for split in SPLITS[:2]:
        names = [path.name for path in (results.root / "records" / split).glob("kitti-fold-*")]
        assert names
        assert all(re.fullmatch(r"kitti-fold-00\d-of-002-shard-0000\d-of-00010", name) for name in names)


def test_trained_model_is_a_keras_file_without_gridboxs_own_words(results):
    file = results.root / "model/weights/face.hdf5"
    with h5py.File(file) as stored:
        assert set(stored.attrs) == {"keras_version", "backend", "model_config", "double"}
        assert stored["model_weights/output_cov/output_cov/kernel:0"].shape[-1] == 1
    network = load_network(file)
    assert network.config.class_names == ("class_0",)
    assert (network.config.geometry.width, network.config.geometry.height) == (discs.WIDTH, discs.HEIGHT)
    assert network.config.backbone.depth == 18


def test_status_log_has_taos_keys(results):
    lines = [json.loads(line) for line in (results.root / "model/status.json").read_text().splitlines()]
    assert [line["status"] for line in (lines[0], lines[-1])] == ["STARTED", "SUCCESS"]
    assert all({"date", "time", "status", "verbosity", "message"} <= set(line) for line in lines)
    epochs = [line for line in lines if "epoch" in line]
    assert [line["epoch"] for line in epochs] == [0, 1, 2, 3]
    assert all({"max_epoch", "time_per_epoch", "eta", "graphical"} <= set(line) for line in epochs)
    (saved,) = [line["kpi"] for line in lines if line["message"] == "Model saved."]
    assert set(saved) == {"size", "param_count", "double"}


def test_figures_are_marked_as_those_of_a_double(results):
    for name in ("train", "prune", "retrain"):
        figures = json.loads((results.root / f"{name}.json").read_text())
        assert figures["double"] == 1, name
    assert json.loads((results.root / "evaluate.json").read_text())["mean_average_precision"] == 0.5
    for name in ("trained", "pruned", "retrained"):
        assert step.read_manifest(results.root / "evaluations" / name, "evaluation")["counts"]["double"] == 1


def test_pruning_removes_channels_and_retraining_keeps_the_pruned_graph(results):
    ratio = json.loads((results.root / "prune.json").read_text())["pruning_ratio"]
    assert 0.1 < ratio < 0.9
    kept = load_network(results.root / "retrained/weights/face_pruned.hdf5").config.backbone.channels
    assert kept == load_network(results.root / "pruned/weights/face_pruned.hdf5").config.backbone.channels
    assert kept["conv1"] == 8  # excluded
    assert kept["block_4a_conv_1"] == 16


def test_inference_leaves_an_image_and_16_columns_for_each_image(results):
    images = sorted(path.name for path in (results.kitti / "validation/images").iterdir())
    annotated = results.root / "annotated"
    assert sorted(path.name for path in (annotated / "images_annotated").iterdir()) == images
    for name in images:
        (line,) = (annotated / "labels" / name).with_suffix(".txt").read_text().splitlines()
        assert line.split()[0] == "face"
        assert len(line.split()) == 16


def test_exported_model_has_taos_tensors_and_grid(results):
    manifest = step.read_manifest(results.root / "exported", "exported_model")
    assert manifest["settings"]["tensors"]["coverage"] == "output_cov/Sigmoid:0"
    assert {"labels.txt", "nvinfer_config.txt"} <= set(manifest["files"])
    session = onnxruntime.InferenceSession(results.root / "exported/model.onnx")
    images = np.zeros((2, 3, discs.HEIGHT, discs.WIDTH), np.float32)
    bbox, coverage = session.run(["output_bbox/BiasAdd:0", "output_cov/Sigmoid:0"], {"input_1:0": images})
    assert bbox.shape == (2, 4, discs.HEIGHT // 16, discs.WIDTH // 16)
    assert coverage.shape == (2, 1, discs.HEIGHT // 16, discs.WIDTH // 16)


@pytest.mark.usefixtures("on_path")
def test_same_spec_and_data_give_the_same_artifacts_but_for_their_logs(results, tmp_path):
    assert stage("export", model=results.root / "retrained", opset=0, exported=tmp_path / "exported") == 0
    assert (tmp_path / "exported/manifest.json").read_text() == (results.root / "exported/manifest.json").read_text()


# --- Failures: one clear line each ------------------------------------------------------------------------------------


class Attempts:
    """Stages that are to fail, on artifacts that are sound."""

    def __init__(self, results, folder):
        self.results, self.folder = results, folder

    def train(self, text=None, pretrained=None, **others):
        values = {**self.results.sets, **EXPERIMENT, "width": 1.0, "threads": 0, "name": "face", **others}
        given = pretrained or self.results.root / "absent"
        out = {"model": self.folder / "out/model", "metrics": self.folder / "out/metrics"}
        return stage("train", **values, spec=text or spec("train"), pretrained=given, **out)

    def evaluate(self, **models):
        return stage("evaluate", **self.of_evaluate(**models))

    def of_evaluate(self, **models):
        root, out = self.results.root, self.folder / "out"
        given = {"pretrained": root / "absent", "trained": root / "model", "pruned": root / "pruned"}
        given |= {"retrained": root / "retrained", **models}
        values = {"spec": spec("inference"), "batch_size": 4, "minimum_height": 4}
        written = {name: out / name for name in ("evaluations", "annotated", "metrics")}
        return {**self.results.sets, **given, **values, **written}

    def prune(self, model=None, **others):
        values = {"normalizer": "max", "equalization": "union", "granularity": 8, "threshold": 0.99}
        values |= {"minimum_filters": 16, "target_ratio": 0.0, **others}
        out = {"pruned": self.folder / "out/pruned", "metrics": self.folder / "out/metrics"}
        return stage("prune", model=model or self.results.root / "model", **values, **out)


@pytest.fixture
def attempt(results, on_path, tmp_path):  # noqa: ARG001 - the environment of its stages
    return Attempts(results, tmp_path)


def assert_one_line(captured, said):
    """The stage says what is wrong in the one line that it adds to the program's log."""
    assert captured.err.count("\n") == 1, captured.err
    assert re.search(said, captured.err), captured.err
    assert "Telemetry" not in captured.err


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("out-of-memory", 1, r"evaluate failed \(exit code 255\): the GPU's memory is full; lower the batch size"),
        ("no-gpu", 1, "no GPU is visible; the stage needs one"),
        ("disk-full", 1, "the disk is full; give the stage a larger scratch volume"),
        ("killed", 1, r"failed \(signal 9\): it was killed, as a rule for memory; raise the memory limit"),
        ("worker-killed", 1, r"\(exit code 255\): its worker ended without a word, as a rule for memory"),
        ("bus-error", 1, r"failed \(signal 7\): a bus error, as a rule for a /dev/shm that is too small"),
        ("corrupted-record", 2, r"tfrecords_path catches holds no records; narrow it"),
        ("wrong-key", 1, "Evaluation was interrupted"),
        ("silence", 1, "ended well but reported no average precision"),
    ],
)
def test_known_failure_is_one_clear_line_and_leaves_nothing(attempt, monkeypatch, capfd, fault, code, said):
    monkeypatch.setenv(faults.VARIABLE, f"evaluate:{fault}")
    assert attempt.evaluate() == code
    captured = capfd.readouterr()
    if fault == "wrong-key":  # TAO's evaluate swallows its cause; what is left is shown with the last lines
        assert said in captured.err.splitlines()[0]
    else:
        assert_one_line(captured, said)
    assert list(attempt.folder.glob("out/*")) == []


def test_failure_that_is_not_known_comes_with_its_cause_and_the_last_lines(attempt, monkeypatch, capfd):
    monkeypatch.setenv(faults.VARIABLE, "evaluate:error")
    assert attempt.evaluate() == 1
    said = capfd.readouterr().err
    assert said.startswith(
        "gridbox: detectnet_v2 evaluate failed (exit code 255): cuDNN launch failure : input shape ([32,64,208,368]); "
        "its last lines:\n"
    )
    assert "Traceback (most recent call last):" in said


def test_fault_of_another_task_changes_nothing_and_an_unknown_one_is_named(monkeypatch):
    monkeypatch.setenv(faults.VARIABLE, "train:out-of-memory, prune:killed")
    faults.strike("evaluate")
    monkeypatch.setenv(faults.VARIABLE, "train:oops")
    with pytest.raises(ValueError, match=r"train:oops: write TASK:FAULT with one of .*out-of-memory"):
        faults.strike("train")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("random_seed", "random_sead", r'TAO 5.0\'s schema, at line:column \d+:1 : .*no field named "random_sead"'),
        ("dbscan_min_samples: 0", "dbscan_min_samples: 0.03", r"line \d+: dbscan_min_samples is a whole number since"),
        ('arch: "resnet"', 'arch: "alexnet"', "TAO's validator refuses the spec: .*arch should in"),
        ("scalar_logging_frequency: 1", "", r"an epoch has only 2 steps, TAO logs at 10; write visualizer \{ scalar"),
    ],
)
def test_mistake_in_a_spec_is_one_line_and_exit_code_2(attempt, capfd, old, new, said):
    assert old in spec("train")
    assert attempt.train(spec("train").replace(old, new)) == 2
    captured = capfd.readouterr()
    assert_one_line(captured, said)
    assert captured.err.startswith("gridbox: detectnet_v2 train: ")
    assert list(attempt.folder.glob("out/*")) == []


def test_failure_that_tao_ends_with_0_is_noticed(attempt, capfd, tmp_path):
    # TAO 5.0 takes the exit of its own validator for an interruption.
    model = shutil.copytree(attempt.results.root / "model", tmp_path / "model")
    text = (model / SPEC_FILE).read_text()
    (model / SPEC_FILE).write_text(text.replace('arch: "resnet"', 'arch: "alexnet"'))
    assert attempt.evaluate(trained=model) == 2
    captured = capfd.readouterr()
    assert "Execution status: PASS" in captured.out
    assert_one_line(captured, "TAO's validator refuses the spec")


@pytest.mark.parametrize(
    ("task", "given", "flag"),
    [
        ("train", {"width": 0.5}, "--width"),
        ("train", {"threads": 2}, "--threads"),
        ("prune", {"target_ratio": 0.5}, "--target-ratio"),
    ],
)
def test_parameter_of_the_open_engine_alone_is_refused_by_name(attempt, capfd, task, given, flag):
    assert getattr(attempt, task)(**given) == 2
    assert_one_line(capfd.readouterr(), f"detectnet_v2 {task}: only the open engine has {flag}; with NVIDIA's, leave ")


def test_training_that_was_killed_goes_on_from_its_checkpoint(attempt, monkeypatch, capfd, tmp_path):
    monkeypatch.setenv(STAGE_DIR, str(tmp_path / "stage"))
    monkeypatch.setenv(faults.VARIABLE, "train:killed")
    often = spec("retrain").replace("checkpoint_interval: 10", "checkpoint_interval: 1")
    pruned = attempt.results.root / "pruned"
    assert attempt.train(often, pruned) == 1
    checkpoints = {path.name for path in (tmp_path / "stage/results").glob("*.ckzip")}
    assert checkpoints == {f"model.epoch-{epoch}.ckzip" for epoch in (1, 2, 3)}
    # It ends before it has written: what the log says last is of the attempt before.
    monkeypatch.setenv(faults.VARIABLE, "train:no-gpu")
    assert attempt.train(often, pruned) == 1
    monkeypatch.delenv(faults.VARIABLE)
    capfd.readouterr()
    assert attempt.train(often, pruned) == 0
    said = capfd.readouterr().out
    assert "Restoring from" in said
    assert "Epoch 3/4" in said
    assert "Epoch 2/4" not in said


def test_failure_of_an_earlier_attempt_does_not_count_against_a_later_one(attempt, monkeypatch, capfd, tmp_path):
    monkeypatch.setenv(STAGE_DIR, str(tmp_path / "stage"))
    (tmp_path / "stage/results").mkdir(parents=True)
    failure = {"date": "1/1/2026", "time": "0:0:0", "status": "FAILURE", "message": "Ran out of GPU memory"}
    (tmp_path / "stage/results/status.json").write_text(json.dumps(failure) + "\n")
    monkeypatch.setenv(faults.VARIABLE, "train:no-gpu")  # which ends before it writes
    assert attempt.train() == 1
    assert_one_line(capfd.readouterr(), "no GPU is visible")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_double_that_hangs_ends_with_the_stage(attempt, number):
    program = test_tao_stages.travelling_program(attempt.folder)
    argv = [sys.executable, program, "detectnet_v2", "evaluate", *flags(attempt.of_evaluate())]
    environment = {**os.environ, faults.VARIABLE: "evaluate:hang"}
    running = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment)
    line = next(line for line in running.stdout if line.startswith("pids"))
    running.send_signal(number)
    assert running.wait(10) == 128 + number
    assert not any(test_tao_stages.is_alive(int(word)) for word in line.split()[1:])


# --- Encrypted models ------------------------------------------------------------------------------------------------


@pytest.fixture
def encrypted(results, tmp_path):
    folder = tmp_path / "encrypted"
    (folder / "weights").mkdir(parents=True)
    models.encrypt(results.root / "model/weights/face.hdf5", folder / "weights/model.tlt", "canary-4711")
    step.write_manifest(folder, "model", {"present": True}, {})
    return folder


def test_key_from_the_environment_opens_an_encrypted_model_and_is_never_printed(attempt, encrypted, monkeypatch, capfd):
    monkeypatch.setenv(TAO_KEY, "canary-4711")
    assert attempt.evaluate(pretrained=encrypted) == 0
    captured = capfd.readouterr()
    assert "canary" not in captured.out + captured.err
    for file in (path for path in (attempt.folder / "out").rglob("*") if path.is_file()):
        assert b"canary" not in file.read_bytes(), file


def test_pruning_an_encrypted_model_names_a_plain_file_as_tao_writes_no_other(attempt, encrypted, monkeypatch, capfd):
    monkeypatch.setenv(TAO_KEY, "canary-4711")
    monkeypatch.setenv(faults.VARIABLE, "prune:silence")
    assert attempt.prune(model=encrypted) == 1
    captured = capfd.readouterr()
    assert "/weights/model_pruned.hdf5 " in captured.out
    assert_one_line(captured, "ended well but left no weights")


@pytest.mark.parametrize("key", ["", "another"])
def test_wrong_key_is_one_clear_line(attempt, encrypted, monkeypatch, capfd, key):
    monkeypatch.setenv(TAO_KEY, key)
    assert attempt.train(pretrained=encrypted) == 2
    captured = capfd.readouterr()
    assert_one_line(captured, "the model cannot be decrypted; the environment variable TAO_KEY must hold its key")
    assert "Execution status: PASS" in captured.out  # as TAO ends it


@pytest.mark.usefixtures("on_path")
def test_conversion_gets_no_key_which_it_would_print(results, monkeypatch, capfd, tmp_path):
    monkeypatch.setenv(TAO_KEY, "canary-4711")
    assert stage("dataset_convert", kitti=results.kitti, spec=spec("convert"), records=tmp_path / "records") == 0
    captured = capfd.readouterr()
    assert "canary" not in captured.out + captured.err


def test_key_that_a_shell_would_change_is_refused_unprinted(attempt, monkeypatch, capfd):
    monkeypatch.setenv(TAO_KEY, "canary 4711")
    assert attempt.evaluate() == 2
    captured = capfd.readouterr()
    assert_one_line(captured, "TAO_KEY: NVIDIA's program hands the key to a shell")
    assert "canary" not in captured.out + captured.err


def test_program_that_prints_the_key_is_silenced(capfd):
    with pytest.raises(step.StageError) as caught:
        call(["sh", "-c", 'echo the key is "$1"; exit 1', "sh", "canary-4711"], secret="canary-4711")
    captured = capfd.readouterr()
    assert "the key is ***" in captured.out
    assert "canary" not in captured.out + captured.err + str(caught.value)


def test_backbone_for_training_need_not_be_a_detector_but_what_is_scored_must(attempt, results, tmp_path, capfd):
    folder = tmp_path / "backbone"
    (folder / "weights").mkdir(parents=True)
    shutil.copyfile(results.root / "model/weights/face.hdf5", folder / "weights/resnet18.hdf5")
    with h5py.File(folder / "weights/resnet18.hdf5", "r+") as file:
        for head in ("output_cov", "output_bbox"):
            del file["model_weights"][head]
        layers = [name for name in file["model_weights"].attrs["layer_names"] if not name.startswith(b"output")]
        file["model_weights"].attrs["layer_names"] = np.array(layers)
    step.write_manifest(folder, "model", {"present": True}, {})
    assert load_pretrained(folder).weights.tensors
    assert attempt.evaluate(pretrained=folder) == 1
    assert "the model has no output_cov and output_bbox" in capfd.readouterr().err
