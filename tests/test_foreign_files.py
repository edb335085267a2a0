"""What is not ours survives every command: targets that hold a person's files are refused, or shared with them."""

import ast
import contextlib
import errno
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import discs
import pytest
import square_detector
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import small_network
from square_detector import random_samples, sample, write_detector

from components import program, step
from components.detectnet_v2 import stage
from components.detectnet_v2.commands import app as detectnet
from components.publication import publish as publish_to_store
from components.serve import tensorrt
from components.serve.deploy import skip_deployment
from components.step import UserError, check_target, publish, publish_files, write_json, write_manifest
from components.tao.tasks import run_task
from components.vision.checkpoint import save_network
from components.widerface.synthesize import synthesize
from pipeline import cli
from pipeline.package import write_resources

ROOT = Path(step.__file__).parent.parent


def gridbox(*words):
    """Runs the program in this process; returns its exit code."""
    words = [str(word) for word in words]
    if words[0] == "detectnet_v2":
        return program.run(detectnet, words[1:], "detectnet_v2")
    if words[0] in cli.FAMILIES:
        return program.run(importlib.import_module(cli.FAMILIES[words[0]]).app, words[1:], f"gridbox {words[0]}")
    return program.run(cli.app, words, "gridbox")


def put_foreign(folder):
    """A person's files; returns the folder."""
    (folder / "notes").mkdir(parents=True, exist_ok=True)
    for file, content in ((folder / "family.jpg", b"\xff\xd8 a picture"), (folder / "notes/diary.txt", b"dear diary")):
        file.write_bytes(content)
        file.chmod(0o640)
        os.utime(file, (1_000_000_000, 1_000_000_000))
    return folder


def state(folder, names=None):
    """By name, what is in each file, who may do what with it, and when it was written."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    found = {
        file.relative_to(folder).as_posix(): (file.read_bytes(), file.stat().st_mode, file.stat().st_mtime_ns)
        for file in files
    }
    return {name: found[name] for name in names} if names else found


@pytest.fixture(scope="module")
def start(tmp_path_factory, kitti, records):
    """What the commands start from."""
    root = tmp_path_factory.mktemp("given")
    synthesize(root / "wider", 2, 1, 1, 160, 96, 1)
    squares = [sample("one", [(1, 1)], [square_detector.face(1, 1)])]
    square_detector.write_kitti(root / "squares", random_samples(2, "t", seed=1), squares)
    write_detector(root / "exported")
    save_network(root / "net.safetensors", small_network(width=0.125))
    images = root / "photos"
    images.mkdir()
    (images / "one.png").write_bytes(squares[0].image)
    inference = discs.write_spec(
        root, "inference", image_width=96, image_height=64, batch_size=1, model=root / "exported/model.onnx"
    )
    convert = discs.write_spec(root, "convert", root=kitti / "training")
    train = discs.edit(discs.experiment_spec(root, kitti, records, epochs=1), ("grid_stride: 8", "grid_stride: 16"))
    predictions = root / "predictions"
    predictions.mkdir()
    (predictions / "one.txt").write_text("face 0 0 0 16 16 32 32 0 0 0 0 0 0 0 0.9\n")
    for command in ("score", "report"):
        assert gridbox(*evaluations(root)[command], root / command) == 0
    publishing = ["serve", "publish", "--exported", root / "exported", "--published"]
    assert gridbox(*publishing, root / "unpublished") == 0
    assert gridbox(*publishing, root / "served", "--base", root / "models") == 0
    deploying = ["serve", "deploy", "--published", root / "served", "--evaluation", root / "score", "--deployment"]
    assert gridbox(*deploying, root / "deployment") == 0
    publish_to_store(root / "exported", str(root / "store"))
    return SimpleNamespace(
        root=root, wider=root / "wider", squares=root / "squares", exported=root / "exported", images=images,
        network=root / "net.safetensors", inference=inference, convert=convert, train=train, kitti=kitti,
        predictions=predictions,
    )  # fmt: skip


def evaluations(root):
    scored = ["--kitti", root / "squares"]
    exported = ["--exported", root / "exported", "--quantized", root / "exported"]
    return {
        "score": ["evaluate", "score", "--model", root / "exported", *scored, "--evaluation"],
        "report": ["evaluate", "report", *exported, *scored, "--evaluation"],
    }


def folders(f):
    """By name, the commands that write a folder of their own; its path comes last."""
    scratch = f.root / "elsewhere"
    return {
        **evaluations(f.root),
        "widerface convert": ["widerface", "convert", "--dataset", f.wider, "--kitti"],
        "widerface acquire": ["widerface", "acquire", "--uri", f.wider, "--dataset"],
        "widerface synthesize": [
            *("widerface", "synthesize", "--training-images", 1, "--validation-images", 1),
            *("--image-width", 160, "--image-height", 96, "--output"),
        ],
        "serve build": ["serve", "build", "--exported", f.exported, "--repository"],
        "serve publish": ["serve", "publish", "--exported", f.exported, "--base", scratch / "base", "--published"],
        "serve deploy": [
            *("serve", "deploy", "--published", f.root / "served", "--evaluation", f.root / "score", "--deployment"),
        ],
        "serve deploy nothing": [
            *("serve", "deploy", "--published", f.root / "unpublished", "--evaluation", f.root / "score"),
            "--deployment",
        ],
        "evaluate endpoint": [
            *("evaluate", "endpoint", "--kitti", f.squares, "--model", f.exported),
            *("--deployment", f.root / "deployment", "--evaluation"),
        ],
        "serve publish nowhere": ["serve", "publish", "--exported", f.exported, "--published"],
        "convert int8": ["convert", "int8", "--exported", f.exported, "--kitti", f.squares, "--quantized"],
        "pretrained model": ["detectnet_v2", "pretrained", "--model"],
        "pretrained program": ["detectnet_v2", "pretrained", "--model", scratch / "none", "--program"],
    }


FOLDERS = tuple(folders(SimpleNamespace(**dict.fromkeys(("wider", "exported", "squares"), ""), root=Path())))


def files(f):
    """By name, the commands that write a file; its path comes last."""
    measured = ["--truth", f.squares, "--protocol", "ap50"]
    compared = ["compare", f"old={f.predictions}", f"new={f.predictions}", *measured, "--replicates", 100]
    scored = [*evaluations(f.root)["score"], f.root / "elsewhere" / "evaluation"]
    return {
        "compile": ["compile", "facedetect", "-o"],
        "evaluate --report": ["evaluate", "--predictions", f.predictions, *measured, "--report"],
        "evaluate --markdown": ["evaluate", "--predictions", f.predictions, *measured, "--markdown"],
        "evaluate score --metrics": [*scored, "--metrics"],
        "evaluate score --report": [*scored, "--report"],
        "compare --report": [*compared, "--report"],
        "compare --markdown": [*compared, "--markdown"],
        "prune": ["detectnet_v2", "prune", "-m", f.network, "-r", f.root / "elsewhere", "-o"],
        "serve conclude": ["serve", "conclude", "--status", '{"state": "COMPLETE"}', "--summary"],
    }


FILES = tuple(files(SimpleNamespace(squares="", predictions="", network="", root=Path())))


def sharing(f):
    """By name, the commands that write into a folder which is not theirs alone; its path comes last."""
    return {
        "dataset_convert": ["detectnet_v2", "dataset_convert", "-d", f.convert, "-o", "kitti", "-r"],
        "train": ["detectnet_v2", "train", "-e", f.train, "-r"],
        "evaluate": ["detectnet_v2", "evaluate", "-e", f.train, "-m", f.network, "-r"],
        "prune": ["detectnet_v2", "prune", "-m", f.network, "-pth", "0.1", "-o", "pruned.safetensors", "-r"],
        "export": ["detectnet_v2", "export", "-m", f.network, "--gen_ds_config", "-o", "model.onnx", "-r"],
        "inference": ["detectnet_v2", "inference", "-e", f.inference, "-i", f.images, "-r"],
    }


SHARING = tuple(sharing(SimpleNamespace(**dict.fromkeys(("convert", "train", "network", "inference", "images"), ""))))


# --- Folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_not_ours_is_refused_and_stays_as_it_was(start, tmp_path, capsys, name):
    target = put_foreign(tmp_path / "holiday")
    before = state(tmp_path)
    assert gridbox(*folders(start)[name], target) == 2
    assert state(tmp_path) == before
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{target}: holds family.jpg, which would be lost; name another place" in error


@pytest.mark.parametrize("name", FOLDERS)
def test_a_result_replaces_its_like_unless_a_person_has_put_something_beside_it(start, tmp_path, capsys, name):
    command, target = folders(start)[name], tmp_path / "result"
    target.mkdir()
    assert gridbox(*command, target) == 0, "an empty folder"
    put_foreign(target)
    before = state(tmp_path)
    assert gridbox(*command, target) == 2
    assert state(tmp_path) == before
    assert "holds family.jpg" in capsys.readouterr().err
    (target / "family.jpg").unlink()
    shutil.rmtree(target / "notes")
    (tmp_path / "link").symlink_to(target)
    assert gridbox(*command, tmp_path / "link") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "result"]


def test_a_result_of_another_kind_is_not_replaced(start, tmp_path, capsys):
    target = shutil.copytree(start.squares, tmp_path / "squares")
    before = state(tmp_path)
    assert gridbox(*folders(start)["serve build"], target) == 2
    assert state(tmp_path) == before
    assert "which would be lost" in capsys.readouterr().err


@pytest.mark.parametrize("manifest", ["", "[]", '{"kind": "model"}', '{"kind": "a", "files": 3}', '{"files": {}}'])
def test_a_manifest_of_somebody_elses_is_no_leave_to_replace(tmp_path, manifest):
    (tmp_path / "app").mkdir()
    (tmp_path / "app/manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=r"holds manifest\.json"):
        skip_deployment(tmp_path / "app")


def test_a_folder_takes_the_place_of_no_file(start, tmp_path, capsys):
    (tmp_path / "letter").write_text("dear")
    assert gridbox(*folders(start)["serve build"], tmp_path / "letter") == 2
    assert (tmp_path / "letter").read_text() == "dear"
    assert "not a folder" in capsys.readouterr().err


def test_store_fetch_brings_nothing_into_a_folder_that_is_there(start, tmp_path, capsys):
    before = state(put_foreign(tmp_path / "holiday"))
    assert gridbox("store", "fetch", start.root / "store", tmp_path / "holiday") == 2
    assert state(tmp_path / "holiday") == before
    assert "exists already" in capsys.readouterr().err


def test_a_plan_takes_the_place_of_no_folder(start, tmp_path, capsys):
    trtexec = tmp_path / "trtexec"
    trtexec.write_text("#!/bin/sh\nexit 1\n")
    trtexec.chmod(0o755)
    target = put_foreign(tmp_path / "holiday")
    before = state(target)
    words = ["build", "--exported", start.exported, "--plan", target, "--trtexec", trtexec]
    assert step.run([str(word) for word in words], tensorrt.main) == 2
    assert state(target) == before
    assert "holds family.jpg" in capsys.readouterr().err


def test_a_download_of_ngc_is_refused_before_ngc_is_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NGC_ENDPOINT", "http://127.0.0.1:9")
    before = state(put_foreign(tmp_path / "holiday"))
    assert gridbox("ngc", "download", "--source", "nvidia/tao/a:b", "--model", tmp_path / "holiday") == 2
    assert state(tmp_path / "holiday") == before
    assert "holds family.jpg" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["pruned", "metrics"])
def test_a_stage_of_taos_looks_at_its_outputs_before_its_work(tmp_path, monkeypatch, capsys, output):
    monkeypatch.setattr(stage, "_tao", pytest.fail)
    (tmp_path / "model").mkdir()
    put_foreign(tmp_path / output)
    before = state(tmp_path)
    paths = {"model": tmp_path / "model", "pruned": tmp_path / "pruned", "metrics": tmp_path / "metrics"}
    numbers = dict.fromkeys(stage.PRUNE_VALUES, 1)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in {**paths, **numbers}.items()]
    assert step.run(["detectnet_v2", "prune", *flags], run_task) == 2
    assert state(tmp_path) == before
    assert f"{tmp_path / output}: holds family.jpg" in capsys.readouterr().err


# --- Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_file_takes_the_place_of_no_folder(start, tmp_path, capsys, name):
    target = put_foreign(tmp_path / "model.safetensors")
    before = state(tmp_path)
    assert gridbox(*files(start)[name], target) == 2
    assert state(tmp_path) == before
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{target}: " in error
    assert gridbox(*files(start)[name], tmp_path / "new.safetensors") == 0, "the command is right but for its target"


def test_a_compiled_pipelines_resources_take_the_place_of_no_folder(tmp_path):
    target = put_foreign(tmp_path / "holiday")
    before = state(target)
    with pytest.raises((UserError, OSError)):
        write_resources(target)
    assert state(target) == before


def test_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        write_json(tmp_path / "pipe", {})
    assert (tmp_path / "pipe").is_fifo()


# --- Folders that are shared -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHARING)
def test_results_beside_a_persons_files_leave_these_alone(start, tmp_path, monkeypatch, name):
    target = put_foreign(tmp_path / "holiday")
    for own in ("labels", "images_annotated", "weights"):
        put_foreign(target / own)
    before = state(target)
    monkeypatch.chdir(target)  # prefixes and model files are named relative to it
    assert gridbox(*sharing(start)[name], target) == 0
    assert state(target, before) == before
    assert (target / "status.json").is_file()
    assert gridbox(*sharing(start)[name], target) in (0, 2), "export names a file that is there already"
    assert state(target, before) == before


def test_inference_replaces_labels_of_the_same_name_only(start, tmp_path, capsys):
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "one.txt").write_text("of an earlier inference")
    (labels / "two.txt").write_text("of an image that is not in this one")
    assert gridbox(*sharing(start)["inference"], tmp_path) == 0
    assert (labels / "one.txt").read_text().startswith("face ")
    assert (labels / "two.txt").read_text() == "of an image that is not in this one"
    assert f"{labels}: 1 files of other names are left as they were" in capsys.readouterr().out


def test_inference_does_not_write_over_the_labels_of_its_images(start, tmp_path, capsys):
    shutil.copytree(start.images, tmp_path / "set/images")
    put_foreign(tmp_path / "set/labels")
    (tmp_path / "set/labels/one.txt").write_text("face 0 0 0 1 2 3 4 0 0 0 0 0 0 0\n")
    before = state(tmp_path)
    command = ["detectnet_v2", "inference", "-e", start.inference, "-r", tmp_path / "set", "-i"]
    assert gridbox(*command, tmp_path / "set/images") == 2
    assert state(tmp_path) == before
    assert "would take the place of images or labels" in capsys.readouterr().err


def test_a_conversion_removes_only_its_own_former_shards(start, tmp_path):
    names = ("kitti-fold-000-of-009-shard-00000-of-00001", "kitti-fold-notes", "kitti.txt", "kitti_warning.json")
    for name in names:
        (tmp_path / name).write_text(name)
    (tmp_path / "kitti-fold-001-of-009").mkdir()
    words = ["detectnet_v2", "dataset_convert", "-d", start.convert, "-o", tmp_path / "kitti"]
    assert gridbox(*words) == 0
    assert not (tmp_path / names[0]).exists()
    assert [(tmp_path / name).read_text() for name in names[1:3]] == list(names[1:3])
    assert (tmp_path / "kitti-fold-001-of-009").is_dir()


def test_detect_leaves_what_lies_beside_its_results(tmp_path):
    put_foreign(tmp_path / "labels")
    before = state(tmp_path)
    with publish_files(tmp_path / "labels") as scratch:
        (scratch / "one.txt").write_text("face")
    assert state(tmp_path, before) == before
    assert (tmp_path / "labels/one.txt").read_text() == "face"
    writer = contextlib.ExitStack()
    scratch = writer.enter_context(publish_files(tmp_path / "labels"))
    for name in ("another.txt", "notes"):
        (scratch / name).write_text("face")
    with pytest.raises(UserError, match="a folder, and a file"):
        writer.close()
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == ["family.jpg", "notes", "one.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]


# --- Places where nothing can stand ----------------------------------------------------------------------------------

PLACES = {
    "parent is a file": "letter/below/result",
    "here": ".",
    "above": "..",
    "the root": "/",
    "proc": "/proc/self/result/model",
    "overlong": "x" * 300,
    "empty": "",
}
OTHERS = (
    *("run --runs", "store fetch", "dataset_convert -o", "export -o", "serve --log", "train --log_file"),
    *("widerface fetch", "calibration_tensorfile -o"),
)


# Some may write into any folder that there is, and an empty name of a log is none.
ANYWHERE, NOWHERE = (*SHARING, "run --runs"), ("parent is a file", "proc", "overlong")
PLACED = [
    (name, place)
    for name in (*FOLDERS, *FILES, *SHARING, *OTHERS)
    for place in (NOWHERE if name in ANYWHERE else PLACES)
    if (name, place) != ("train --log_file", "empty")
]


@pytest.mark.parametrize(("name", "place"), PLACED)
def test_a_place_where_nothing_can_stand_costs_one_line(start, tmp_path, monkeypatch, capsys, name, place):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("letter").write_text("dear")
    others = {
        "run --runs": ["run", "facedetect", "--profile", "micro", "--set", "train_epochs=nonsense", "--runs"],
        "store fetch": ["store", "fetch", start.root / "store"],
        "dataset_convert -o": ["detectnet_v2", "dataset_convert", "-d", start.convert, "-o"],
        "export -o": ["detectnet_v2", "export", "-m", start.network, "-o"],
        "serve --log": ["serve", start.exported, "--log"],
        "train --log_file": ["detectnet_v2", "train", "-e", start.train, "-r", start.root / "logged", "--log_file"],
        "widerface fetch": ["widerface", "fetch", "--source", start.root / "nothing", "--output"],
        "calibration_tensorfile -o": ["detectnet_v2", "calibration_tensorfile", "-e", start.train, "-o"],
    }
    commands = {**folders(start), **files(start), **sharing(start), **others}
    capsys.readouterr()
    assert gridbox(*commands[name], PLACES[place]) in (1, 2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(("gridbox", "detectnet_v2"))
    assert "nonsense" not in error, "the place comes first"
    assert {path.name for path in Path().iterdir()} - {"status.json"} == {"letter"}
    assert Path("letter").read_text() == "dear"


# --- Runs on this machine --------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path):
    from test_local_runner import Bench

    return Bench(tmp_path)


def test_a_run_takes_no_folder_of_a_persons(bench):
    put_foreign(bench.runs / "r")
    before = state(bench.runs)
    with pytest.raises(UserError, match="holds files that no run made; give --name another"):
        bench.run()
    assert state(bench.runs) == before


@pytest.mark.parametrize("place", ["notes.txt", "make/notes.txt", "make/numbers/notes.txt", "logs/notes.txt"])
def test_a_run_again_removes_nothing_that_no_run_made(bench, place):
    bench.run()
    bench.run()
    (bench.runs / "r/logs").mkdir(exist_ok=True)
    (bench.runs / "r" / place).write_text("mine")
    before = state(bench.runs, set(state(bench.runs)) - {"r/.lock"})
    with pytest.raises(UserError, match=rf"{place}: no run made this"):
        bench.run()
    assert state(bench.runs, before) == before
    (bench.runs / "r" / place).unlink()
    bench.run(size=2)
    assert json.loads((bench.runs / "r/make/numbers/numbers.json").read_text()) == [0, 1]


# --- publish ---------------------------------------------------------------------------------------------------------


def write_model(folder, text):
    with publish(folder) as scratch:
        scratch.mkdir()
        (scratch / "weights").write_text(text)
        write_manifest(scratch, "model", {}, {})


def test_a_failure_between_the_renames_leaves_the_former_folder(tmp_path, monkeypatch):
    write_model(tmp_path / "model", "one")
    really = Path.rename

    def rename(path, target):
        if path.suffix == ".partial":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return really(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output"):
        write_model(tmp_path / "model", "two")
    assert (tmp_path / "model/weights").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


KILLED = """
import os, signal, sys
from pathlib import Path
from test_foreign_files import write_model
count, really = 0, Path.rename
def rename(path, target):
    global count
    count += 1
    if count == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return really(path, target)
Path.rename = rename
write_model(Path(sys.argv[1]), "two")
"""


@pytest.mark.parametrize(("rename", "left"), [(1, "one"), (2, "one"), (3, "two")])
def test_a_kill_at_any_rename_costs_neither_the_former_folder_nor_the_new_one(tmp_path, rename, left):
    write_model(tmp_path / "model", "one")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "model", str(rename)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(ZeroDivisionError), publish(tmp_path / "model"):
        raise ZeroDivisionError  # the next one has begun: it has put things right
    assert (tmp_path / "model/weights").read_text() == left
    write_model(tmp_path / "model", "three")
    assert (tmp_path / "model/weights").read_text() == "three"
    assert not (tmp_path / ".model.former").exists()


def test_a_persons_folder_of_that_name_is_no_former_result(tmp_path):
    put_foreign(tmp_path / ".model.former")
    before = state(tmp_path)
    write_model(tmp_path / "model", "one")
    assert state(tmp_path, before) == before
    with pytest.raises(OSError, match="not empty"):
        write_model(tmp_path / "model", "two")
    assert (tmp_path / "model/weights").read_text() == "one"
    assert state(tmp_path, before) == before


NAMES = st.sampled_from(["weights", "notes.txt", "a/weights", "a/b/notes.txt", ".hidden", "a/manifest.json"])
MANIFESTS = st.one_of(
    st.none(),
    st.binary(max_size=8),
    st.builds(
        lambda kind, named: json.dumps({"kind": kind, "layout": 1, "files": named}).encode(),
        st.sampled_from(["model", "records", "", None]),
        st.one_of(st.dictionaries(NAMES, st.none()), st.lists(NAMES), st.none(), st.integers()),
    ),
)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.sets(NAMES), manifest=MANIFESTS, writes_file=st.booleans())
def test_whatever_lies_at_a_target_is_ours_or_stays(tmp_path, names, manifest, writes_file):
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        target = Path(folder, "model")
        contents = {name: name.encode() for name in names}
        contents |= {} if manifest is None else {"manifest.json": manifest}
        for name, content in contents.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)
        before = state(Path(folder))
        try:
            if writes_file:
                write_json(target, {})
            else:
                write_model(target, "new")
        except UserError:
            assert state(Path(folder)) == before
            return
        assert (target if writes_file else target / "manifest.json").is_file()
        if contents:  # then all of it was a model of ours
            document = json.loads(contents["manifest.json"])
            assert (writes_file, document["kind"]) == (False, "model")
            assert names <= set(document["files"])


def test_compiled_python_beside_a_models_code_hinders_nothing(tmp_path):
    write_model(tmp_path / "model", "one")
    (tmp_path / "model/__pycache__").mkdir()
    (tmp_path / "model/__pycache__/model.cpython-312.pyc").write_bytes(b"")
    check_target(tmp_path / "model", "model")


# --- The walk --------------------------------------------------------------------------------------------------------

# Every module that publishes, and the commands or tests above that show what becomes of foreign files there.
WALK = {
    "components/detectnet_v2/calibration_tensorfile.py": "refuses any file that is there, as TAO does",
    "components/convert/commands.py": "evaluate score --metrics",
    "components/convert/int8.py": "convert int8",
    "components/detectnet_v2/commands.py": "pretrained program",
    "components/detectnet_v2/evaluation.py": "evaluate",
    "components/detectnet_v2/export.py": "export",
    "components/detectnet_v2/inference.py": "inference",
    "components/evaluate/evaluation.py": "score",
    "components/evaluate/measuring_options.py": "compare --report",
    "components/evaluate/program.py": "evaluate --report",
    "components/formats/tfrecord.py": "dataset_convert",
    "components/ngc/download.py": test_a_download_of_ngc_is_refused_before_ngc_is_asked,
    "components/publication_commands.py": "to a store, below a name that is new",
    "components/publication.py": test_store_fetch_brings_nothing_into_a_folder_that_is_there,
    "components/serve/conclusion.py": "serve conclude",
    "components/serve/deploy.py": "serve deploy",
    "components/vision/sinks.py": test_detect_leaves_what_lies_beside_its_results,
    "components/serve/gate.py": "serve deploy",
    "components/serve/host.py": "a folder of the run's own, in the temporary folder",
    "components/serve/published.py": "serve publish",
    "components/serve/repository.py": "serve build",
    "components/serve/tensorrt.py": test_a_plan_takes_the_place_of_no_folder,
    "components/step.py": "every one of these; what Kubeflow's executor reads",
    "components/tao/program.py": "pretrained program",
    "components/detectnet_v2/stage.py": test_a_stage_of_taos_looks_at_its_outputs_before_its_work,
    "components/store.py": test_store_fetch_brings_nothing_into_a_folder_that_is_there,
    "components/vision/checkpoint.py": "prune",
    "components/vision/keras_weights.py": "prune",
    "components/vision/onnx_export.py": "export",
    "components/widerface/acquire.py": "widerface acquire",
    "components/widerface/convert.py": "widerface convert",
    "components/widerface/synthesize.py": "widerface synthesize",
    "pipeline/cache.py": test_a_run_again_removes_nothing_that_no_run_made,
    "pipeline/cli.py": test_a_run_takes_no_folder_of_a_persons,
    "pipeline/compiling.py": "compile",
    "pipeline/package.py": test_a_compiled_pipelines_resources_take_the_place_of_no_folder,
}


def test_every_module_that_publishes_is_walked():
    found = set()
    for file in (*(ROOT / "components").rglob("*.py"), *(ROOT / "pipeline").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_bytes())):
            called = getattr(node, "func", None)
            name = getattr(called, "id", getattr(called, "attr", ""))
            if name in ("publish", "publish_files", "write_json", "write_text") and not is_method(called):
                found.add(file.relative_to(ROOT).as_posix())
    assert found == set(WALK)


def is_method(called):
    """Whether it is `Path.write_text`."""
    return isinstance(called, ast.Attribute) and called.attr == "write_text"
