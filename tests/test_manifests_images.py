"""Dockerfile, Compose file and notebook: what they copy, call and import exists, and nothing in them is a secret."""

import fnmatch
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer
import yaml
from manifest_rules import ROOT

from components import images
from components.detectnet_v2.commands import app as detectnet_app
from components.serve import kserve
from components.serve.commands import app as serve_app
from components.serve.release import GRIDBOX_VERSION, SERVER_ARGUMENTS, TRITON_IMAGE, TRITON_RELEASE
from components.step import StageError, UserError
from components.vision import endpoint

NOTEBOOK = ROOT / "notebooks/face_detection.ipynb"


class ComposeLoader(yaml.SafeLoader):
    """Reads Compose's own tags, which say how files are merged, as what they stand before."""


ComposeLoader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node, deep=True))
ComposeLoader.add_constructor("!reset", lambda loader, node: loader.construct_sequence(node, deep=True))


def compose(name: str) -> dict[str, Any]:
    return dict(yaml.load((ROOT / name).read_text(encoding="utf-8"), ComposeLoader))


def dockerfile() -> str:
    """Returns the Dockerfile without comments, an instruction a line."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert not text.startswith("# syntax"), "the first line would pull a frontend from a registry"
    return re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))


def stages() -> dict[str, list[tuple[str, str]]]:
    """Returns the instructions of each stage of the Dockerfile, after those of the stage that it is based on."""
    found: dict[str, list[tuple[str, str]]] = {"": [], "scratch": []}
    stage = ""
    for line in filter(None, map(str.strip, dockerfile().splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, stage = rest.partition(" AS ")
            assert base in found or base in ("${BASE_IMAGE}", "${TRITON_IMAGE}"), "base images are arguments"
            found[stage] = [*found.get(base, [])]
        found[stage].append((instruction, rest.strip()))
    return found


def sources(stage: str) -> Iterator[tuple[str, str]]:
    """Yields source and destination of every COPY of a stage."""
    for instruction, rest in stages()[stage]:
        if instruction == "COPY":
            *copied, destination = [word for word in shlex.split(rest) if not word.startswith("--")]
            for source in copied:
                yield source, destination


def commands(stage: str, instruction: str) -> list[str]:
    return [rest for found, rest in stages()[stage] if found == instruction]


TARGETS = ("cpu", "gpu", "client", "triton")


@pytest.mark.parametrize("stage", TARGETS)
def test_images_run_as_nobody_in_particular_and_write_to_tmp_alone(stage: str) -> None:
    assert int(commands(stage, "USER")[-1]) > 0
    assert "HOME=/tmp" in " ".join(commands(stage, "ENV"))
    assert not commands(stage, "ENTRYPOINT"), "Kubeflow gives the whole command; an entry point would stand before it"
    assert not commands(stage, "VOLUME")


@pytest.mark.parametrize("stage", TARGETS)
def test_images_say_what_they_are_and_hold_no_secret(stage: str) -> None:
    labels = " ".join(commands(stage, "LABEL"))
    for name in ("title", "description", "source", "licenses", "base.name"):
        assert f"org.opencontainers.image.{name}=" in labels
    for instruction, rest in stages()[stage]:
        assert instruction != "ADD"
        assert not re.search(r"(?i)secret|password|token=|api_key", rest) or instruction == "CMD", rest


def test_no_image_pulls_or_downloads_beside_pip() -> None:
    for stage, instructions in stages().items():
        for instruction, rest in instructions:
            assert instruction != "RUN" or not re.search(r"curl|wget|apt-get|git clone", rest), stage


@pytest.mark.parametrize("stage", TARGETS)
def test_images_install_from_the_wheelhouse_of_their_own_where_there_is_one(stage: str) -> None:
    installs = [rest for rest in commands(stage, "RUN") if "pip install" in rest]
    assert installs
    for install in installs:
        assert f"--find-links /requirements/{stage} " in install
        assert "from=requirements,target=/requirements" in install
    assert any(word.startswith("PIP_NO_INDEX") for word in commands(stage, "ARG"))


def test_images_of_the_engine_differ_in_nothing_but_pytorch() -> None:
    wheelhouse = load_script("containers/wheelhouse.py")
    assert [*wheelhouse.requirements("cpu")] == [*wheelhouse.requirements("gpu")]
    assert "torch.version.cuda" in " ".join(commands("gpu", "RUN"))
    assert "TORCH_INDEX=https://download.pytorch.org/whl/cpu" in commands("cpu", "ARG")
    assert '--index-url "${TORCH_INDEX}" --no-deps' in " ".join(commands("cpu", "RUN"))
    assert "TORCH_INDEX" not in " ".join(commands("gpu", "RUN"))


def test_wheelhouse_holds_what_the_dockerfile_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    wheelhouse = load_script("containers/wheelhouse.py")
    wanted = {target: [*wheelhouse.requirements(target)] for target in TARGETS}
    names = {target: {re.split(r"[\[<>=]", word)[0] for word in words} for target, words in wanted.items()}
    assert {"setuptools", "typer", "torch", "onnxruntime", "tritonclient", "kubernetes", "PyYAML"} <= names["cpu"]
    assert {"setuptools", "tritonclient", "jupyterlab"} <= names["client"]
    assert "torch" not in names["client"]
    assert "kfp" not in set().union(*names.values())
    assert names["triton"] == {"numpy", "opencv-python-headless", "onnx"}
    with pytest.raises(ValueError, match="tpu: the Dockerfile has no such target"):
        [*wheelhouse.requirements("tpu")]

    called: list[list[str]] = []
    monkeypatch.setattr(wheelhouse.subprocess, "run", lambda command, **_: called.append(command))
    monkeypatch.setattr(wheelhouse, "extra_index", lambda _: [])
    for target in ("gpu", "triton"):
        assert wheelhouse.gather(target) == ROOT / "build/wheelhouse" / target
    engine, triton = called
    assert engine[-len(wanted["gpu"]) :] == wanted["gpu"]
    assert str(ROOT / "requirements.lock") in engine
    assert str(ROOT / "requirements.lock") in triton
    assert triton[triton.index("--python-version") + 1] == "3.12"


def load_script(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_release_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == GRIDBOX_VERSION
    for image in (images.OPEN_ENGINE, images.OPEN_ENGINE_GPU, TRITON_IMAGE):
        assert GRIDBOX_VERSION in image.rpartition(":")[2]


def test_base_images_are_named_once_with_tag_and_at_most_one_digest() -> None:
    bases = dict(rest.split("=", 1) for rest in commands("", "ARG"))
    assert set(bases) == {"BASE_IMAGE", "TRITON_IMAGE"}
    for image in bases.values():
        assert re.fullmatch(r"[a-z0-9./-]+:[A-Za-z0-9.-]+(@sha256:[0-9a-f]{64})?", image), image
    assert bases["TRITON_IMAGE"].partition("@")[0] == f"nvcr.io/nvidia/tritonserver:{TRITON_RELEASE}-py3"
    others = [ROOT / "docker-compose.yaml", ROOT / "docker-compose.gpu.yaml", *(ROOT / "containers").iterdir()]
    for file in filter(Path.is_file, others):
        assert "tritonserver:" not in file.read_text(encoding="utf-8"), file
        assert "python:3" not in file.read_text(encoding="utf-8"), file


@pytest.fixture
def fake_docker(tmp_path: Path) -> dict[str, str]:
    """An environment with a Docker client that notes how it is called and cannot build `triton`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "docker"
    program.write_text('#!/bin/sh\necho "$DOCKER_BUILDKIT $*" >> "$CALLS"\ncase "$*" in *triton*) exit 1;; esac\n')
    program.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "CALLS": str(tmp_path / "calls"), "PYTHON": sys.executable}


def test_build_goes_on_after_an_image_that_cannot_be_built_and_names_it(fake_docker: dict[str, str]) -> None:
    command = [str(ROOT / "containers/build.sh"), "triton", "cpu", "gpu", "client", "--", "--network", "none"]
    done = subprocess.run(command, capture_output=True, text=True, env=fake_docker, timeout=60)
    assert done.returncode == 1
    assert done.stderr.strip() == "could not be built: triton"
    _, *calls = Path(fake_docker["CALLS"]).read_text().splitlines()
    tags = [re.search(r"--target (\S+) --tag (\S+) ", call).groups() for call in calls]  # type: ignore[union-attr]
    assert dict(tags) == {
        "triton": TRITON_IMAGE,
        "cpu": images.OPEN_ENGINE,
        "gpu": images.OPEN_ENGINE_GPU,
        "client": compose("docker-compose.yaml")["services"]["triton-client"]["image"],
    }
    for call in calls:
        assert call.startswith("1 build ")
        assert call.endswith("--network none .")
        assert re.search(r"image\.revision=[0-9a-f]{40}", call) or not (ROOT / ".git").exists()


REGISTRY = "registry.example:5000/team"
DIGEST = f"sha256:{'ab' * 32}"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """`containers/push.py` in a folder of its own, with a Docker client that pushes all but what `REFUSED` names."""
    program = tmp_path / "bin/docker"
    program.parent.mkdir()
    refuse = 'case "$*" in push*"$REFUSED"|buildx*) exit 1;; esac'
    program.write_text(f'#!/bin/sh\n{refuse}\necho "$2" >> "$CALLS"\necho "0.1.0: digest: {DIGEST} size: 9"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("REFUSED", "nothing")
    monkeypatch.chdir(tmp_path)
    push = load_script("containers/push.py")
    shutil.copy(push.RELEASE, tmp_path / "release.yaml")
    monkeypatch.setattr(push, "RELEASE", tmp_path / "release.yaml")
    return push


def test_pushed_images_are_named_by_digest_in_settings_and_manifests(
    registry: types.ModuleType, tmp_path: Path
) -> None:
    settings = tmp_path / "gridbox.toml"
    settings.write_text(
        '# mine\nengine = "open"\n\n[images]\ntao = "mirror/tao:1"  # kept\nopen = "old"\n[placement]\nretries = 2\n'
    )
    registry.main([REGISTRY, *TARGETS])
    assert (tmp_path / "calls").read_text().split() == [
        f"{REGISTRY}/gridbox:0.1.0",
        f"{REGISTRY}/gridbox:0.1.0-gpu",
        f"{REGISTRY}/client:0.1.0",
        f"{REGISTRY}/{TRITON_IMAGE.rpartition('/')[2]}",
    ]
    named = {"open": "gridbox", "open_gpu": "gridbox", "triton": "triton"}
    assert tomllib.loads(settings.read_text()) == {
        "engine": "open",
        "images": {"tao": "mirror/tao:1", **{key: f"{REGISTRY}/{name}@{DIGEST}" for key, name in named.items()}},
        "placement": {"retries": 2},
    }
    assert "# mine" in settings.read_text()
    assert "# kept" in settings.read_text()
    release = yaml.safe_load((tmp_path / "release.yaml").read_text())
    assert release["images"] == [{"name": "triton", "newName": f"{REGISTRY}/triton", "digest": DIGEST}]
    runtime = kserve.runtime_name(f"{REGISTRY}/triton@{DIGEST}")
    assert [yaml.safe_load(patch["patch"])[0]["value"] for patch in release["patches"]] == [runtime, runtime]
    text = settings.read_text()
    registry.main([REGISTRY, *TARGETS])
    assert settings.read_text() == text
    assert {file.name for file in tmp_path.iterdir()} == {"bin", "calls", "gridbox.toml", "release.yaml"}


def test_settings_are_made_where_there_are_none(registry: types.ModuleType, tmp_path: Path) -> None:
    registry.main([REGISTRY, "cpu"])
    settings = tomllib.loads((tmp_path / "gridbox.toml").read_text())
    assert settings == {"images": {"open": f"{REGISTRY}/gridbox@{DIGEST}"}}


def test_nothing_is_written_when_an_image_cannot_be_pushed(
    registry: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFUSED", "0.1.0-gpu")
    with pytest.raises(
        StageError, match=r"gridbox:0\.1\.0-gpu: docker push failed; .* docker login registry\.example:5000"
    ):
        registry.main([REGISTRY, *TARGETS])
    assert not (tmp_path / "gridbox.toml").exists()


@pytest.mark.parametrize("text", ['images = {open = "mine"}\n', "[images\n", '[images]\nopen = """a"""\n'])
def test_settings_that_would_be_damaged_are_left_alone(registry: types.ModuleType, tmp_path: Path, text: str) -> None:
    (tmp_path / "gridbox.toml").write_text(text)
    before = (tmp_path / "release.yaml").read_text()
    with pytest.raises(UserError, match=r"(?s)gridbox.toml: .*by hand:\nopen = "):
        registry.main([REGISTRY, "cpu", "triton"])
    assert (tmp_path / "gridbox.toml").read_text() == text
    assert (tmp_path / "release.yaml").read_text() == before


def test_a_registry_has_to_be_named(registry: types.ModuleType) -> None:
    with pytest.raises(UserError, match="make images push REGISTRY="):
        registry.main(["", "cpu"])


def test_build_refuses_a_target_that_there_is_not(fake_docker: dict[str, str]) -> None:
    command = [str(ROOT / "containers/build.sh"), "tpu"]
    done = subprocess.run(command, capture_output=True, text=True, env=fake_docker, timeout=60)
    assert done.returncode == 2
    assert "tpu: no such target; there are cpu, gpu, triton and client" in done.stderr


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a file from Docker: the last line that matches it or a folder above it decides."""
    decided = False
    parents = [path, *map(str, Path(path).parents)]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        inner = pattern.removeprefix("**/")
        tried = [part for name in parents for part in (Path(name).name if pattern != inner else name,)]
        if line and not line.startswith("#") and any(fnmatch.fnmatchcase(each, inner) for each in tried):
            decided = not line.startswith("!")
    return decided


def test_docker_sees_all_that_it_copies_and_no_more() -> None:
    for stage in stages():
        for source, _ in sources(stage):
            if source == "build/wheelhouse*":
                source = "build/wheelhouse/cpu/torch-2.whl"
            else:
                assert (ROOT / source).exists(), source
                if (ROOT / source).is_dir():
                    source += "/some.ipynb"
            assert not ignored(source), f"{source} is left out by .dockerignore"
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert next(line for line in lines if line and not line.startswith("#")) == "*"
    secrets = (
        ".env",
        "manifests/base/s3.env",
        ".git/config",
        "components/.env",
        "notebooks/.ipynb_checkpoints/a.ipynb",
    )
    others = ("build/containers/base.tar", "runs/x", ".venv/x", "tests/x.py", "components/__pycache__/a.pyc")
    for path in (*secrets, *others, "notebooks/images/a.jpg", "build/wheelhouse/.cpu", "Makefile"):
        assert ignored(path), path


@pytest.fixture(scope="module")
def triton_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of our code in the Triton image."""
    folder = tmp_path_factory.mktemp("opt")
    for source, destination in sources("triton"):
        target = folder / destination / (Path(source).name if destination.endswith("/") else "")
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, folder / destination, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, target)
    return folder


def test_triton_image_holds_all_that_the_models_import(triton_image: Path) -> None:
    modules = [
        ".".join(file.relative_to(triton_image).with_suffix("").parts)
        for file in sorted(triton_image.rglob("*.py"))
        if file.name not in ("__init__.py", "network.py", "ensemble.py")  # where Triton has no ONNX Runtime itself
    ]
    assert "components.serve.models.postprocess" in modules
    program = f"""
import importlib, sys, types
sys.path[:] = [{str(triton_image)!r}] + [path for path in sys.path if path != {str(ROOT)!r}]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__name__", "").lower()]
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
for absent in ("torch", "onnxruntime", "kfp", "typer", "rich", "scipy", "sklearn", "google_crc32c", "minio"):
    sys.modules[absent] = None
for module in {modules!r}:
    assert importlib.import_module(module).__file__.startswith({str(triton_image)!r}), module
"""
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_triton_image_s_code_runs_on_its_python(triton_image: Path) -> None:
    """Triton has Python 3.12, the local server 3.11."""
    vermin = Path(sys.executable).with_name("vermin")
    if not vermin.is_file():
        pytest.skip("vermin is not installed")
    command = [str(vermin), "--quiet", "--no-tips", "--target=3.11-", "--violations", str(triton_image)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("stage", TARGETS)
def test_one_lock_holds_the_versions_of_all_images(stage: str) -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pinned = set(re.findall(r"^([^#=\s]+)==\S+$", lock, re.MULTILINE))
    wheelhouse = load_script("containers/wheelhouse.py")
    names = {re.split(r"[\[<>=]", word)[0] for word in wheelhouse.requirements(stage)}
    assert names - {"setuptools"} <= pinned
    for install in " && ".join(commands(stage, "RUN")).split("&&"):
        if "pip install" in install and "--no-deps --force-reinstall /code" not in install:
            assert "--constraint /requirements/requirements.lock" in install
            assert "==" not in install
            assert "extra-index-url" not in install, "any index could then offer any package"


def test_compose_names_the_images_and_targets_that_there_are() -> None:
    services = compose("docker-compose.yaml")["services"]
    assert list(services) == ["triton-model-builder", "triton-server", "triton-client"]
    assert services["triton-model-builder"]["image"] == images.OPEN_ENGINE
    assert services["triton-server"]["image"] == TRITON_IMAGE
    for service in services.values():
        assert service["build"]["target"] in TARGETS
        # Named without a value: from the environment or .env, otherwise the Dockerfile's own.
        assert set(service["build"]["args"]) < {rest.partition("=")[0] for rest in commands("", "ARG")}


def test_compose_starts_the_server_when_its_repository_is_there() -> None:
    after = {"condition": "service_completed_successfully"}
    services, gpu = (compose(name)["services"] for name in ("docker-compose.yaml", "docker-compose.gpu.yaml"))
    assert services["triton-server"]["depends_on"] == {"triton-model-builder": after}
    assert gpu["triton-model-builder"]["depends_on"] == {"triton-model-converter": after}
    assert gpu["triton-model-converter"]["depends_on"] == [], "else it would wait for the builder, which waits for it"


def test_whichever_image_first_mounts_the_volume_its_owner_is_the_one_who_writes() -> None:
    for stage in TARGETS:
        assert "install --directory --owner=10001 /models" in " ".join(commands(stage, "RUN"))
    converter = compose("docker-compose.gpu.yaml")["services"]["triton-model-converter"]
    assert converter["user"] == commands("cpu", "USER")[-1] == "10001"


def test_compose_server_starts_as_the_release_says() -> None:
    command = compose("docker-compose.yaml")["services"]["triton-server"]["command"]
    assert tuple(word.replace("$$", "$") for word in command[: len(SERVER_ARGUMENTS)]) == SERVER_ARGUMENTS


def test_compose_is_for_this_machine_only() -> None:
    for name, service in compose("docker-compose.yaml")["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] is True, name
        assert service["tmpfs"] == ["/tmp"], name


def test_env_example_has_every_setting_and_no_token() -> None:
    text = "".join((ROOT / name).read_text() for name in ("docker-compose.yaml", "docker-compose.gpu.yaml"))
    used = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", text))
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    given = dict(re.findall(r"^([A-Z_]+)=(.*)$", example, re.MULTILINE))
    assert set(given) == used
    assert given["JUPYTER_TOKEN"] == ""
    for name, default in re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", text):
        assert given[name] == default, name
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "/.env" in ignored


@pytest.mark.parametrize("name", ["docker-compose.yaml", "docker-compose.gpu.yaml"])
def test_compose_calls_commands_that_there_are(name: str) -> None:
    script = compose(name)["services"]["triton-model-builder"]["command"][-1]
    called = 0
    for line in script.splitlines():
        words = shlex.split(line.replace("$$", "$"))
        app = {"detectnet_v2": detectnet_app, "gridbox": serve_app}.get(words[0])
        assert words[0] != "gridbox" or words[1] == "serve"
        if app is None:
            assert words[0] == "rm"
            continue
        task, *arguments = words[2:] if words[0] == "gridbox" else words[1:]
        command = typer.main.get_command(app).commands[task]  # type: ignore[attr-defined]
        command.make_context(task, arguments, resilient_parsing=False)  # refuses an unknown or missing option
        called += 1
    assert called


def test_compose_converter_is_a_program_that_there_is(tmp_path: Path) -> None:
    command = compose("docker-compose.gpu.yaml")["services"]["triton-model-converter"]["command"]
    replaced = [str(tmp_path / word.lstrip("/")) if word.startswith("/") else word for word in command[1:]]
    done = subprocess.run([sys.executable, *replaced], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "no exported_model artifact here" in done.stderr) == (2, True), done.stderr


def test_notebook_is_valid_and_clean() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    identities = [cell["id"] for cell in notebook["cells"]]
    assert len(identities) == len(set(identities))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    if importlib.util.find_spec("nbformat"):
        import nbformat

        nbformat.validate(notebook)


class FakeEndpoint:
    """Finds one face in everything but in images that are cut off."""

    def __init__(self, url: str) -> None:
        assert url == "grpc://localhost:8001"
        self.class_names = ("face",)

    def __enter__(self) -> "FakeEndpoint":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def detect(self, contents: list[bytes]) -> list[dict[str, np.ndarray]]:
        return [{"face": np.array([[4, 5, 30, 40, 0.9]], np.float32)} for _ in contents]

    def stream(self, numbered: Iterator[tuple[Path, bytes]]) -> Iterator[tuple[Path, endpoint.Answer]]:
        for key, content in numbered:
            if content.endswith(b"\xff\xd9"):
                yield key, endpoint.Answer(self.detect([content])[0])
            else:
                yield key, endpoint.Answer(error="cut off")


def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), 200, np.uint8))[1].tobytes()
    (tmp_path / "images/a.jpg").write_bytes(jpeg)
    (tmp_path / "images/b.jpg").write_bytes(jpeg[:-20])
    shown: list[bytes] = []
    display = types.ModuleType("IPython.display")
    display.Image = lambda content, **_: content  # type: ignore[attr-defined]
    display.display = shown.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    for method in ("detect", "stream", "__enter__", "__exit__"):
        assert hasattr(endpoint.Endpoint, method)
    monkeypatch.setattr(endpoint, "Endpoint", FakeEndpoint)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), namespace)  # noqa: S102
    said = capsys.readouterr().out
    assert "2 images in" in said
    assert "a.jpg: 1 face" in said
    assert "b.jpg: cut off" in said
    assert "1 faces in 1 images" in said
    drawn = cv2.imdecode(np.frombuffer(shown[0], np.uint8), cv2.IMREAD_COLOR)
    assert drawn.shape == (48, 64, 3)
    assert np.ptp(drawn) > 100  # the box stands out
