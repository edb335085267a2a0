"""Stage results by what they were made from: code, parameters and the content of inputs; not paths, times or tags."""

import ast
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import components
from components.step import MANIFEST, artifact_path, publish, sha256

CODE = Path(components.__file__).parent
# Packages that a stage's numbers depend on.
PACKAGES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "opencv-python-headless",
    "protobuf",
    "safetensors",
    "torch",
)
_REMOTE = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_ENTRY = "entry.json"


@dataclass(frozen=True, slots=True)
class Key:
    """What a stage's results are kept under.

    Attributes:
        digest: Of everything the results depend on.
        is_pure: False for a stage with a remote URI among its parameters of which no version is known: what lies there
            may change, so it always runs (and its results serve only to resume the very run).
    """

    digest: str
    is_pure: bool


def stage_key(
    argv: list[str],
    environment: Mapping[str, str],
    executor_input: Mapping[str, Any],
    run_name: str,
    threads: int,
    code: Path = CODE,
) -> Key:
    """Returns the key of a stage.

    Args:
        argv: The stage's command, without the executor input.
        environment: Variables that the pipeline sets for it.
        executor_input: Its parameters, inputs and outputs.
        run_name: Name of the run; counts only for a stage that is not pure.
        threads: Threads that training uses: sums of floats depend on their number.
        code: The folder of the installed `components`.
    """
    inputs, outputs = executor_input.get("inputs") or {}, executor_input["outputs"]
    parameters = inputs.get("parameterValues") or {}
    is_remote = any(isinstance(value, str) and _REMOTE.match(value) for value in parameters.values())
    is_pure = bool(parameters.get("version")) or not is_remote
    # Where an input lies differs from run to run; a command may name it, as the stages of TAO their program.
    named = {
        str(artifact_path(listed["artifacts"][0])): name for name, listed in (inputs.get("artifacts") or {}).items()
    }
    argv = [named.get(word, word) for word in argv]
    family = next((word for word in argv if word.isidentifier() and (code / word).is_dir()), "")
    material = {
        "command": argv,
        "environment": dict(environment),
        "code": code_digest(code, family),
        "python": platform.python_version(),
        "packages": package_versions(),
        "parameters": {name: _content_of(name, value) for name, value in parameters.items()},
        "inputs": {
            name: [content_digest(artifact_path(artifact)) for artifact in listed["artifacts"]]
            for name, listed in (inputs.get("artifacts") or {}).items()
        },
        "outputs": sorted([*(outputs.get("artifacts") or {}), *(outputs.get("parameters") or {})]),
        "threads": threads if "train" in argv else None,
        "run": None if is_pure else run_name,
    }
    text = json.dumps(material, sort_keys=True)
    return Key(hashlib.sha256(text.encode()).hexdigest()[:32], is_pure)


def _content_of(name: str, value: object) -> object:
    """The digest of the content where a parameter names a local path, else the value."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str) or not value or _REMOTE.match(value):
        return value
    if value.startswith("/") or name == "uri" or name.endswith("_uri"):
        with contextlib.suppress(OSError):  # too long for a path, for example
            if Path(value).exists():
                return content_digest(Path(value))
    return value


def content_digest(path: Path) -> str:
    """Returns a digest of an artifact (by its manifest), or of a file or folder (by names and content)."""
    if (path / MANIFEST).is_file():
        return sha256(path / MANIFEST)
    if path.is_file():
        return sha256(path)
    return _digest((file.relative_to(path).as_posix(), file) for file in path.rglob("*"))


def _digest(files: Iterable[tuple[str, Path]]) -> str:
    listing = {name: sha256(file) for name, file in files if file.is_file()}
    return hashlib.sha256(json.dumps(listing, sort_keys=True).encode()).hexdigest()


@cache
def package_versions() -> dict[str, str]:
    """Returns the installed versions of the packages that matter."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def code_digest(code: Path, family: str) -> str:
    """Returns a digest of the code a family runs: its own folder and, by its imports, the rooms below it.

    `component.py` is left out: it declares a stage to Kubeflow and is not run by it.
    """
    rooms = imported_rooms(code, family)
    files = {file for room in rooms for file in _sources(code, room)}
    # Serving asks the family of a model how it is served, and finds it by name.
    waiting = set(code.glob("*/served.py")) if "serve" in rooms else set()
    while waiting:
        files |= waiting
        waiting = {
            own for file in waiting for name in _imports(file) if (own := _file(code, name)).parent == file.parent
        }
        waiting -= files
    return _digest((file.relative_to(code).as_posix(), file) for file in files)


def imported_rooms(code: Path, family: str) -> set[str]:
    """Returns the family and every room that its code imports, directly or not."""
    rooms: set[str] = set()
    waiting = {"step", *([family] if family else [])}
    while waiting:
        room = waiting.pop()
        rooms.add(room)
        waiting |= {name.split(".")[1] for file in _sources(code, room) for name in _imports(file)} - rooms
    return rooms


def _sources(code: Path, room: str) -> list[Path]:
    if (code / f"{room}.py").is_file():
        return [code / f"{room}.py"]
    return [
        file
        for file in (code / room).rglob("*")
        if file.is_file() and file.name != "component.py" and file.parent.name != "__pycache__"
    ]


def _imports(file: Path) -> frozenset[str]:
    """Returns the modules of `components` that a source file imports, at its top or inside a function."""
    return _imports_of(file.read_bytes()) if file.suffix == ".py" else frozenset()


@cache
def _imports_of(source: bytes) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(name for name in names if name.startswith("components."))


def _file(code: Path, module: str) -> Path:
    return code.joinpath(*module.split(".")[1:]).with_suffix(".py")


class Store:
    """Finished results on disk, hard-linked from and to the runs that made and use them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def keep(self, key: Key, executor_input: Mapping[str, Any], seconds: float) -> None:
        """Keeps the outputs of a stage that has succeeded."""
        entry = self.root / key.digest
        if (entry / _ENTRY).is_file():  # one that could not be used; losing it costs time only
            shutil.rmtree(entry)
        with publish(entry) as scratch:
            scratch.mkdir()
            for name, output in outputs_of(executor_input):
                if output.exists():
                    _link(output, scratch / "outputs" / name)
            files = {
                file.relative_to(scratch).as_posix(): _stamp(file)
                for file in sorted(scratch.rglob("*"))
                if file.is_file()
            }
            (scratch / _ENTRY).write_text(json.dumps({"seconds": seconds, "files": files}), encoding="utf-8")

    def restore(self, key: Key, executor_input: Mapping[str, Any]) -> float | None:
        """Puts kept outputs where the stage would have written them.

        Returns:
            The seconds the stage once took, or None where nothing (or nothing whole) is kept.
        """
        entry = self.root / key.digest
        try:
            kept = json.loads((entry / _ENTRY).read_text(encoding="utf-8"))
            if any(_stamp(entry / name) != stamp for name, stamp in kept["files"].items()):
                return None
        except (OSError, ValueError, KeyError):
            return None
        for name, output in outputs_of(executor_input):
            if (entry / "outputs" / name).exists():
                _link(entry / "outputs" / name, output)
        return float(kept["seconds"])


def _stamp(file: Path) -> list[int]:
    """Size and time of change: who edits a result edits the kept file, too, for they are one by their hard link."""
    return [file.stat().st_size, file.stat().st_mtime_ns]


def outputs_of(executor_input: Mapping[str, Any]) -> list[tuple[str, Path]]:
    """Returns the names and places of a stage's output artifacts and parameters."""
    outputs = executor_input["outputs"]
    artifacts = {name: artifact_path(listed["artifacts"][0]) for name, listed in outputs.get("artifacts", {}).items()}
    parameters = {name: Path(output["outputFile"]) for name, output in outputs.get("parameters", {}).items()}
    return [*artifacts.items(), *parameters.items()]


def _link(source: Path, target: Path) -> None:
    """Copies a file or folder by hard links, by content where the file system has none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_file)
    else:
        _link_file(source, target)


def _link_file(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
