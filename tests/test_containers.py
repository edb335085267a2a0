"""The image of the stages: built without a network, and the whole workflow run in it (`make test-containers`).

kfp's DockerRunner runs the very file that `gridbox run` runs, in containers as a cluster's policies want them: another
user than root, a root file system that cannot be written to, no capabilities, no network.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker_daemon
import pytest
from kfp import components, local
from kfp.local import docker_task_handler, executor_input_utils
from manifest_rules import ROOT

from components.images import OPEN_ENGINE, OPEN_ENGINE_GPU
from components.step import MANIFEST
from pipeline.compiled import load
from pipeline.local import in_kubeflows_words

pytestmark = pytest.mark.containers

GRIDBOX = Path(sys.executable).with_name("gridbox")
STAND_IN = "gridbox.test/python:3.11"
USER = 10001
RESTRICTED = {
    "read_only": True,
    "tmpfs": {"/tmp": ""},
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "network_mode": "none",
}
# What these write is the same wherever the same versions of the same packages run, to the last bit.
DETERMINISTIC = {"raw_faces", "kitti_set", "records", "model", "exported_model", "annotated"}


@pytest.fixture(scope="module")
def client():
    with contextlib.ExitStack() as stack:
        try:
            client = stack.enter_context(docker_daemon.running())
        except docker_daemon.NoDaemonError as error:
            pytest.skip(str(error))
        docker_daemon.import_stand_in(ROOT / "build/containers/base.tar", STAND_IN)
        yield client


@pytest.fixture(scope="module")
def image(client):
    """The target `cpu`, under the names that compiled pipelines have for the open engine."""
    assert (ROOT / "build/wheelhouse/cpu").is_dir(), "`make test-containers` fills the wheelhouse first"
    settings = [f"BASE_IMAGE={STAND_IN}", "PIP_NO_INDEX=1"]
    options = ["--network", "none", *(word for setting in settings for word in ("--build-arg", setting))]
    command = [ROOT / "containers/build.sh", "cpu", "--", *options]
    built = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHON": sys.executable})
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    image = client.images.get(OPEN_ENGINE)
    image.tag(OPEN_ENGINE_GPU)  # its stages run without a GPU, too, and its packages are gigabytes
    image.reload()
    return image


@dataclass
class Ran:
    """A container that has ended."""

    command: list[str]
    code: int
    log: str


def run_container(client, image, command, volumes, **arguments):
    container = client.containers.run(image, command, detach=True, volumes=volumes, **arguments)
    try:
        code = container.wait()["StatusCode"]
        return Ran(command, code, container.logs().decode())
    finally:
        container.remove(force=True)


def run_through_docker(file, root, arguments):
    """Runs a compiled pipeline with kfp's DockerRunner; returns what ran, and whether it succeeded."""
    ran = []

    # kfp's own loses exit codes: it lets Docker remove the container while it still waits for it, and then says 0.
    def run_docker_container(client, image, command, volumes, **arguments):
        ran.append(run_container(client, image, command, volumes, **arguments))
        return ran[-1].code

    original = executor_input_utils.construct_executor_input

    def construct_executor_input(component_spec, arguments, task_root, block_input_artifact):
        told = {name: in_kubeflows_words(value) for name, value in arguments.items()}
        return original(component_spec, told, task_root, block_input_artifact)

    root.mkdir()
    os.chown(root, USER, USER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docker_task_handler, "run_docker_container", run_docker_container)
        patch.setattr(executor_input_utils, "construct_executor_input", construct_executor_input)
        local.init(runner=local.DockerRunner(**RESTRICTED), pipeline_root=str(root), raise_on_error=True)
        walk = components.load_component_from_file(str(file))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of settings that mean nothing here
                walk(**arguments, deploy_base=str(root / "published"))
        except RuntimeError:
            return ran, False
    return ran, True


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    file = tmp_path_factory.mktemp("compiled") / "facedetect.yaml"
    subprocess.run([GRIDBOX, "compile", "facedetect", "--profile", "micro", "-o", file], check=True)
    return file


@pytest.fixture(scope="module")
def in_docker(image, compiled, tmp_path_factory):
    """The folder of a whole run through Docker, and its containers."""
    assert {OPEN_ENGINE, OPEN_ENGINE_GPU} <= set(image.tags)
    root = tmp_path_factory.mktemp("docker") / "root"
    ran, succeeded = run_through_docker(compiled, root, {})
    assert succeeded, ran[-1].log
    return root, ran


@pytest.fixture(scope="module")
def as_processes(compiled, tmp_path_factory):
    """The folder of the same file's run as plain processes."""
    runs = tmp_path_factory.mktemp("runs")
    command = [GRIDBOX, "run", compiled, "--runs", runs, "--name", "processes"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs / "processes"


def figures(document: object, prefix: str = "") -> dict[str, Any]:
    """Returns the figures of a JSON document by their path, without those that measure time."""
    if not isinstance(document, dict):
        return {} if "second" in prefix else {prefix: document}
    found: dict[str, Any] = {}
    for name, value in document.items():
        found |= figures(value, f"{prefix}/{name}")
    return found


def stage_folders(compiled, root):
    """By the name that a stage has here, where DockerRunner has put its outputs."""
    (run,) = [folder for folder in root.iterdir() if folder.name.startswith("facedetect-")]
    stages = load(compiled).stages
    return {stage: run / component.removeprefix("comp-") for component, stage in stages.items()}


def test_same_compiled_file_gives_the_same_figures_in_containers_and_as_processes(compiled, in_docker, as_processes):
    compared = set()
    for stage, folder in stage_folders(compiled, in_docker[0]).items():
        for file in sorted(path for path in (as_processes / stage).rglob("metrics*") if path.is_file()):
            name = file.relative_to(as_processes / stage)
            expected = figures(json.loads(file.read_text()))
            assert figures(json.loads((folder / name).read_text())) == expected, f"{stage}/{name}"
            compared |= {(stage, name.as_posix(), figure) for figure in expected}
    assert len(compared) > 100
    assert any("mean_average_precision" in figure for *_, figure in compared)


def test_same_compiled_file_gives_the_same_bits_in_containers_and_as_processes(compiled, in_docker, as_processes):
    kinds = set()
    for stage, folder in stage_folders(compiled, in_docker[0]).items():
        for file in sorted((as_processes / stage).glob(f"*/{MANIFEST}")):
            manifest = json.loads(file.read_text())
            if manifest["kind"] in DETERMINISTIC:
                other = json.loads((folder / file.parent.name / MANIFEST).read_text())
                assert other["files"] == manifest["files"], f"{stage}/{file.parent.name}"
                kinds.add(manifest["kind"])
    assert kinds == DETERMINISTIC


def test_every_stage_ran_in_a_container_and_its_artifacts_belong_to_its_user(compiled, in_docker):
    root, ran = in_docker
    stages = stage_folders(compiled, root)
    assert len(ran) == len(stages)
    assert {container.code for container in ran} == {0}
    for folder in stages.values():
        assert (folder / "executor_output.json").is_file()
    for path in root.rglob("*"):
        status = path.lstat()
        assert status.st_uid == USER, path
        assert status.st_mode & 0o444 == 0o444, f"{path}: the one who uploads it cannot read it"


@pytest.mark.usefixtures("image")
def test_exit_code_of_a_failing_stage_arrives_and_nothing_follows(compiled, tmp_path):
    ran, succeeded = run_through_docker(compiled, tmp_path / "root", {"data_uri": "/no/such/folder"})
    assert not succeeded
    (failed,) = ran  # the exit handler is that of the deployment alone
    assert failed.code == 2
    assert "/no/such/folder" in failed.log


@pytest.mark.usefixtures("image")
def test_exit_codes_arrive_from_containers_that_end_at_once(client):
    for code in [7, 0, 143] * 4:
        command = ["python3", "-c", f"raise SystemExit({code})"]
        assert run_container(client, OPEN_ENGINE, command, {}, **RESTRICTED).code == code


def test_image_says_what_it_is_and_leaves_the_command_to_kubeflow(image):
    settings = image.attrs["Config"]
    assert not settings.get("Entrypoint")
    assert settings["User"] == str(USER)
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in settings["Labels"].items()}
    assert labels["base.name"] == STAND_IN
    assert labels["version"] == OPEN_ENGINE.rpartition(":")[2]
    assert re.fullmatch(r"([0-9a-f]{40}(-modified)?)?", labels["revision"])
    assert labels["licenses"] == "Apache-2.0"
    assert "PIP_" not in "".join(settings["Env"]), "pip's settings are the build's alone"


PROBE = """
import os, pathlib, tempfile
import cv2, h5py, kubernetes, numpy, onnx, onnxruntime, onnxscript, safetensors, torch, tritonclient.grpc, yaml
import components.detectnet_v2.commands, components.serve.deploy, components.vision.training
assert os.getuid() == 12345 and os.getcwd() == "/tmp" and pathlib.Path.home() == pathlib.Path("/tmp")
tempfile.TemporaryFile().close()
(pathlib.Path.home() / ".cache").mkdir(exist_ok=True)
for place in ("/opt/x", "/home/x", os.path.dirname(components.__file__) + "/x"):
    try:
        open(place, "w")
    except OSError:
        continue
    raise SystemExit(place + " can be written")
"""


@pytest.mark.usefixtures("image")
def test_image_serves_any_user_and_has_what_every_stage_imports(client):
    probe = run_container(client, OPEN_ENGINE, ["python3", "-c", PROBE], {}, user="12345:0", **RESTRICTED)
    assert probe.code == 0, probe.log
    absent = run_container(client, OPEN_ENGINE, ["python3", "-c", "import kfp"], {}, **RESTRICTED)
    assert "No module named 'kfp'" in absent.log
    for command in (["gridbox", "--help"], ["detectnet_v2", "--help"], ["gridbox", "serve", "--help"]):
        asked = run_container(client, OPEN_ENGINE, command, {}, user="12345:0", **RESTRICTED)
        assert asked.code == 0, asked.log
