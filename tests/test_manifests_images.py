"""Dockerfile, Compose file and notebook: what they copy, call and import exists, and nothing in them is a secret."""

import fnmatch
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
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
from components.serve.commands import app as serve_app
from components.serve.release import TRITON_IMAGE, TRITON_RELEASE
from components.vision import endpoint

NOTEBOOK = ROOT / "notebooks/face_detection.ipynb"


class ComposeLoader(yaml.SafeLoader):
    """Reads Compose's own tags, which say how files are merged, as what they stand before."""


ComposeLoader.add_constructor("!override", lambda loader, node: loader.construct_sequence(node, deep=True))
ComposeLoader.add_constructor("!reset", lambda loader, node: loader.construct_sequence(node, deep=True))


def compose(name: str) -> dict[str, Any]:
    return dict(yaml.load((ROOT / name).read_text(encoding="utf-8"), ComposeLoader))


def stages() -> dict[str, list[tuple[str, str]]]:
    """Returns the instructions of each stage of the Dockerfile."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert not text.startswith("# syntax"), "the first line would pull a frontend from a registry"
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    found: dict[str, list[tuple[str, str]]] = {"": []}
    stage = ""
    for line in filter(None, map(str.strip, joined.splitlines())):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, stage = rest.partition(" AS ")
            assert re.fullmatch(r"\$\{(BASE|TRITON)\}", base), "base images are arguments"
            found[stage] = []
        found[stage].append((instruction, rest.strip()))
    return found


def sources(stage: str) -> Iterator[tuple[str, str]]:
    """Yields source and destination of every COPY of a stage."""
    for instruction, rest in stages()[stage]:
        if instruction == "COPY":
            *copied, destination = [word for word in shlex.split(rest) if not word.startswith("--")]
            for source in copied:
                yield source, destination


@pytest.mark.parametrize("stage", ["cpu", "triton", "client"])
def test_images_copy_what_exists_and_run_as_nobody_in_particular(stage: str) -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source, _ in sources(stage):
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in allowed, f"{source} is left out by .dockerignore"
    instructions = stages()[stage]
    users = [rest for instruction, rest in instructions if instruction == "USER"]
    assert users
    assert int(users[-1]) > 0
    assert not [rest for instruction, rest in instructions if instruction == "ADD"]
    labels = " ".join(rest for instruction, rest in instructions if instruction == "LABEL")
    assert "org.opencontainers.image.source" in labels
    for instruction, rest in instructions:
        assert not re.search(r"(?i)secret|password|token=|api_key", rest) or instruction == "CMD", rest


def test_docker_sees_no_more_than_it_copies() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert next(line for line in lines if line and not line.startswith("#")) == "*"
    for secret in (".env", "manifests/base/s3.env", ".git/config"):
        assert not any(fnmatch.fnmatch(secret, line[1:] + "*") for line in lines if line.startswith("!"))


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
        if file.name not in ("__init__.py", "network.py")  # network: only where Triton has no ONNX Runtime
    ]
    assert "components.serve.models.postprocess" in modules
    program = f"""
import importlib, sys, types
sys.path[:] = [{str(triton_image)!r}] + [path for path in sys.path if path != {str(ROOT)!r}]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__name__", "")]
sys.modules["triton_python_backend_utils"] = types.ModuleType("triton_python_backend_utils")
for absent in ("torch", "onnxruntime", "onnx", "kfp", "typer", "rich", "scipy", "sklearn", "google_crc32c", "minio"):
    sys.modules[absent] = None
for module in {modules!r}:
    assert importlib.import_module(module).__file__.startswith({str(triton_image)!r}), module
"""
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_triton_image_s_code_runs_on_its_python(triton_image: Path) -> None:
    """Triton 24.10 has Python 3.10, later releases 3.12."""
    vermin = Path(sys.executable).with_name("vermin")
    if not vermin.is_file():
        pytest.skip("vermin is not installed")
    command = [str(vermin), "--quiet", "--no-tips", "--target=3.10-", "--violations", str(triton_image)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout


def test_triton_image_keeps_numpy_below_2() -> None:
    (install,) = [rest for _, rest in stages()["triton"] if "pip install" in rest]
    assert re.search(r"numpy==1\.", install), "its Python backend reads wrong inputs with NumPy 2, without an error"


def test_compose_names_the_images_and_targets_that_there_are() -> None:
    services = compose("docker-compose.yaml")["services"]
    assert list(services) == ["triton-model-builder", "triton-server", "triton-client"]
    assert services["triton-model-builder"]["image"] == images.OPEN_ENGINE
    assert services["triton-server"]["image"] == TRITON_IMAGE
    assert services["triton-server"]["build"]["args"]["TRITON"].endswith(f":{TRITON_RELEASE}-py3}}")
    for service in services.values():
        assert service["build"]["target"] in stages()


def test_compose_is_for_this_machine_only() -> None:
    for name, service in compose("docker-compose.yaml")["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] is (name != "triton-client")


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
