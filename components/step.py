"""The contract between a program and Kubeflow. Python 3.8, standard library only: it runs inside NVIDIA's image."""

import argparse
import collections
import contextlib
import datetime
import errno
import hashlib
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any, Callable, Collection, Dict, Iterator, List, Mapping, NoReturn, Optional, Sequence, Set, Tuple

MANIFEST = "manifest.json"
LAYOUT_VERSION = 1
# Kubeflow copies an artifact's metadata into every stage that reads it, six times over.
MOST_SHOWN = 4


class UserError(Exception):
    """A mistake the user can mend. The text is one line: what is wrong, where, and how to mend it (exit code 2)."""


@contextlib.contextmanager
def publish(path: Path) -> Iterator[Path]:
    """Gives a scratch path beside `path` and renames it to `path` when the block succeeds.

    The block may create a file or a directory there. When the block fails, nothing is left behind and whatever
    stood at `path` before is untouched. A file replaces a file only, a directory only what `check_target` lets go.

    Args:
        path: Where the finished file or directory shall stand. Its parent is created.

    Yields:
        The scratch path, on the same file system, which does not exist yet.

    Raises:
        UserError: Something that is not ours stands at `path`: at once where that is sure, else after the block.
    """
    # A folder may be a link to a larger disk: what it leads to is replaced, not the link.
    path = Path(path).resolve() if Path(path).is_dir() else Path(path).absolute()
    if path.is_dir() and not _named(path)[0]:
        check_target(path, "")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex[:8]}.partial")
    former = path.with_name(f".{path.name}.former")
    _restore(path, former)
    try:
        yield scratch
        check_target(path, _named(scratch)[0] if scratch.is_dir() else None)
        if scratch.is_dir() and path.is_dir():
            if former.is_dir() and foreign_entry(former) is None:
                shutil.rmtree(str(former))
            try:
                path.rename(former)
                scratch.rename(path)
            except BaseException:
                _restore(path, former)
                raise
            former.rename(scratch)
        else:
            scratch.replace(path)
    finally:
        if scratch.is_dir():
            shutil.rmtree(str(scratch), ignore_errors=True)
        elif scratch.exists():
            scratch.unlink()


def _restore(path: Path, former: Path) -> None:
    """Puts a former result back where a publish has ended between its renames."""
    if not path.exists() and former.is_dir() and foreign_entry(former) is None:
        former.rename(path)


def check_target(path: Path, kind: Optional[str]) -> None:
    """Refuses to replace what is not ours.

    Args:
        path: Where something is to be written.
        kind: The kind of the artifact to be written there, empty for a folder without a manifest; None for a file.

    Raises:
        UserError: A file shall take the place of a folder or of a device, or a folder that of a file, of the folder
            in which this program runs, or of a folder with anything in it but an artifact of its own kind.
    """
    path = Path(path)
    if not path.is_dir():
        if path.exists() and (kind is not None or not path.is_file()):
            wanted = "regular file" if kind is None else "folder"
            raise UserError(f"{path}: not a {wanted}, so it stays; name another place")
        return
    if kind is None:
        raise UserError(f"{path}: a folder, and a file is to be written; name the file")
    if path.samefile(Path()):
        raise UserError(f"{path}: the folder in which this runs cannot be replaced; name a new one")
    found = foreign_entry(path, kind)
    if found is not None:
        raise UserError(f"{path}: holds {found}, which would be lost; name another place")


def _named(directory: Path) -> Tuple[str, Set[str]]:
    """Returns the kind that an artifact's manifest says, and the files that it names; nothing where there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        return str(manifest["kind"]), {MANIFEST, *manifest["files"]}
    return "", set()


def foreign_entry(directory: Path, kind: Optional[str] = None) -> Optional[str]:
    """Names something in a folder that is no part of an artifact of this kind, or of any; None where there is none."""
    found, own = _named(directory)
    kind = found if kind is None else kind
    for path in sorted(directory.rglob("*") if kind and found == kind else directory.iterdir()):
        name = path.relative_to(directory).as_posix()
        # Whoever serves a model leaves compiled Python beside its code.
        is_part = name in own or path.parent.name == "__pycache__" or (path.is_dir() and not path.is_symlink())
        if not kind or found != kind or not is_part:
            return name
    return None


@contextlib.contextmanager
def publish_files(folder: Path) -> Iterator[Path]:
    """Gives a scratch folder beside `folder`, whose files go into `folder` when the block succeeds.

    They replace files of their own names; whatever else lies there stays. When the block fails, nothing has changed.

    Args:
        folder: Where the files shall stand. It is created.

    Yields:
        The scratch folder, on the same file system, empty.

    Raises:
        UserError: A folder or a device has the name of one of the files.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: not a folder, so it stays; name another place")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=str(folder.parent), prefix=".", suffix=".partial") as scratch:
        yield Path(scratch)
        files = sorted(Path(scratch).iterdir())
        for file in files:
            check_target(folder / file.name, None)
        folder.mkdir(exist_ok=True)
        for file in files:
            file.replace(folder / file.name)
        others = len(list(folder.iterdir())) - len(files)
        if files and others:
            print(f"{folder}: {others} files of other names are left as they were", flush=True)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a JSON file, beside it first. The same content gives the same bytes; NaN is a programming error."""
    with publish(path) as scratch:
        scratch.write_text(json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(
    directory: Path,
    kind: str,
    counts: Mapping[str, Any],
    settings: Mapping[str, Any],
    logs: Sequence[str] = (),
    shown: Optional[Sequence[str]] = None,
) -> None:
    """Writes `manifest.json` into an artifact directory: what it is, what made it, and the SHA-256 of its files.

    Args:
        directory: The finished artifact, before it is renamed into place.
        kind: The artifact's kind, for example `kitti_set`, `records`, `model`, `exported_model`, `evaluation`.
        counts: Numbers (or short strings) that summarise the content.
        settings: What the content depends on besides the input artifacts. No paths, no times, no secrets.
        logs: Relative paths whose content holds times; they are named in the manifest without a checksum, so that
            equal content gives an equal manifest.
        shown: Names of the counts that become the artifact's metadata in Kubeflow, at most `MOST_SHOWN`; by default
            the first ones.
    """
    shown = list(counts)[:MOST_SHOWN] if shown is None else [name for name in shown if name in counts]
    if len(shown) > MOST_SHOWN:
        raise ValueError(f"an artifact shows at most {MOST_SHOWN} counts, not {len(shown)}")
    files = {}  # type: Dict[str, Any]
    for file in sorted(p for p in directory.rglob("*") if p.is_file() and p != directory / MANIFEST):
        name = file.relative_to(directory).as_posix()
        files[name] = None if name in logs else sha256(file)
    manifest = {
        "kind": kind,
        "layout": LAYOUT_VERSION,
        "counts": dict(counts),
        "shown": shown,
        "settings": dict(settings),
        "files": files,
    }
    write_json(directory / MANIFEST, manifest)


def read_manifest(directory: Path, kind: str) -> Dict[str, Any]:
    """Reads an artifact's manifest and checks that it is of the wanted kind.

    Raises:
        UserError: There is no manifest, it cannot be read, or it is of another kind or layout version.
    """
    file = Path(directory) / MANIFEST
    if not file.is_file():
        raise UserError(f"{directory}: no {kind} artifact here ({MANIFEST} is missing)")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        found, layout = manifest["kind"], manifest["layout"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a readable manifest: {error}") from error
    if found != kind:
        raise UserError(f"{directory}: this is a {found} artifact, a {kind} is needed")
    if layout != LAYOUT_VERSION:
        raise UserError(f"{directory}: layout {layout}, this release reads {LAYOUT_VERSION}")
    return dict(manifest)


# --- Kubeflow's executor input is another spelling of the flags a person types ---------------------------------------


class StageError(Exception):
    """A stage's program failed. The text says which and why, on as many lines as it takes (exit code 1)."""


# How kfp calls pipeline parameters that it hands to a task for its placement only.
NOT_OURS = ("pipelinechannel--", "accelerator_")
# Where Kubeflow's launcher shows the content of an object store to a container.
MOUNTS = {"minio": "/minio", "s3": "/s3", "gs": "/gcs", "file": ""}


def artifact_path(artifact: Mapping[str, Any]) -> Path:
    """Returns where an artifact of the executor input lies in this container: its custom path, or that of its URI.

    Raises:
        UserError: The URI is missing or of an unknown scheme.
    """
    uri = artifact.get("customPath") or artifact.get("uri") or ""
    scheme, separator, rest = uri.partition("://")
    if uri and not separator:
        return Path(uri)
    if scheme not in MOUNTS or not rest:
        known = ", ".join(f"{known}://" for known in MOUNTS)
        raise UserError(f"artifact {artifact.get('name', '?')}: cannot read the URI {uri!r}; use {known} or a path")
    return Path(MOUNTS[scheme] + "/" + rest.lstrip("/"))


def _artifacts(side: Mapping[str, Any]) -> Iterator[Tuple[str, Mapping[str, Any]]]:
    for name, listed in sorted((side.get("artifacts") or {}).items()):
        for artifact in listed.get("artifacts") or []:
            yield name, artifact


def parse_executor_input(text: str) -> Dict[str, Any]:
    """Parses the JSON that Kubeflow puts in place of the executor-input placeholder.

    Raises:
        UserError: It is no JSON object, or lacks `outputs.outputFile`.
    """
    try:
        document = json.loads(text)
        if not document["outputs"]["outputFile"]:
            raise KeyError("outputFile")
    except ValueError as error:
        raise UserError(f"--executor-input: not JSON ({error}); pass Kubeflow's executor input as it is") from error
    except (KeyError, TypeError) as error:
        raise UserError("--executor-input: outputs.outputFile is missing; pass Kubeflow's executor input") from error
    return dict(document)


def without_undeclared_outputs(executor_input: Mapping[str, Any], flags: Collection[str]) -> Dict[str, Any]:
    """Returns an executor input without the outputs that the stage does not have.

    Kubeflow's driver adds outputs of its own to every stage: `executor-logs` since 2.15, which the launcher fills.

    Args:
        executor_input: What the driver made.
        flags: The flags that the program takes, as `--metrics`.
    """
    outputs = dict(executor_input["outputs"])
    for kind in ("artifacts", "parameters"):
        outputs[kind] = {name: each for name, each in (outputs.get(kind) or {}).items() if _flag(name) in flags}
    return dict(executor_input, outputs=outputs)


def flags_from_executor_input(executor_input: Mapping[str, Any]) -> List[str]:
    """Spells an executor input as the flags of a person, and creates the parents of every output.

    A parameter `min_face_height: 8.0` becomes `--min-face-height=8` (protojson writes whole numbers as floats too), a
    boolean `--grayscale` or `--no-grayscale`, a list or mapping JSON; an empty string or null counts as absent. An
    artifact becomes `--name=PATH`, an output parameter `--name=FILE`.

    Raises:
        UserError: An input artifact does not exist.
    """
    inputs, outputs = executor_input.get("inputs") or {}, executor_input["outputs"]
    flags = []  # type: List[str]
    for name, value in sorted((inputs.get("parameterValues") or {}).items()):
        if not name.startswith(NOT_OURS):
            flags += parameter_flag(name, value)
    for name, artifact in _artifacts(inputs):
        path = artifact_path(artifact)
        if not path.exists():
            raise UserError(f"input {name}: {path} does not exist; run the stage that makes it again")
        flags.append(f"{_flag(name)}={path}")
    written = [(name, artifact_path(artifact)) for name, artifact in _artifacts(outputs)]
    written += [(name, Path(each["outputFile"])) for name, each in sorted((outputs.get("parameters") or {}).items())]
    for name, path in written:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags.append(f"{_flag(name)}={path}")
    return flags


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def parameter_flag(name: str, value: object) -> List[str]:
    """Spells a parameter as flags of a person; see `flags_from_executor_input`."""
    if value is None or value == "":
        return []
    if isinstance(value, bool):
        return [_flag(name) if value else _flag("no_" + name)]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    # One word, so that a value that begins with "-" is not taken for a flag.
    return [f"{_flag(name)}={json.dumps(value, sort_keys=True) if isinstance(value, (list, dict)) else value}"]


def write_executor_output(executor_input: Mapping[str, Any]) -> None:
    """Writes `outputs.outputFile`: for every output artifact its name, URI and metadata.

    Metadata are the counts that a directory's manifest shows, the numbers of a Metrics file, the content of a
    ClassificationMetrics file. Kubeflow refuses null and JSON has no NaN: both are left out.

    Raises:
        StageError: The program ended well but an output is missing.
    """
    outputs = executor_input["outputs"]
    artifacts = {}  # type: Dict[str, Any]
    for name, artifact in _artifacts(outputs):
        path = artifact_path(artifact)
        if not path.exists():
            raise StageError(f"output {name}: the stage ended well but wrote nothing to {path}")
        entry = {key: artifact[key] for key in ("name", "uri", "customPath") if key in artifact}
        entry["metadata"] = _sanitised(_metadata(path, (artifact.get("type") or {}).get("schemaTitle", "")))
        artifacts.setdefault(name, {"artifacts": []})["artifacts"].append(entry)
    with publish(Path(outputs["outputFile"])) as scratch:
        scratch.write_text(json.dumps({"artifacts": artifacts}, sort_keys=True, allow_nan=False), encoding="utf-8")


def _metadata(path: Path, schema: str) -> Dict[str, Any]:
    if (path / MANIFEST).is_file():
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        return {name: manifest["counts"][name] for name in manifest.get("shown", [])}
    if schema == "system.Metrics" and path.is_file():
        return dict(_numbers(json.loads(path.read_text(encoding="utf-8"))))
    if schema == "system.ClassificationMetrics" and path.is_file():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    return {}


def _numbers(document: Mapping[str, Any], prefix: str = "") -> Iterator[Tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _numbers(value, prefix + key + "/")
        elif isinstance(value, (bool, int, float)):
            yield prefix + key, value


def _sanitised(value: object) -> Any:  # noqa: ANN401 - JSON in, JSON out
    if isinstance(value, dict):
        cleaned = {key: _sanitised(item) for key, item in value.items()}
        return {key: item for key, item in cleaned.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [item for item in map(_sanitised, value) if item is not None]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# What is no mistake in a path: a full or broken disk, or rights that are missing there.
FAILED_PLACES = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE)


def run(
    argv: Sequence[str],
    program: Callable[[List[str]], Any],
    name: str = "gridbox",
    flags_of: Optional[Callable[[List[str]], Collection[str]]] = None,
) -> int:
    """Runs a program as a stage or for a person, and turns what went wrong into one line and an exit code.

    Args:
        argv: The command line without the program's own name. With `--executor-input JSON` in it, that is translated
            to plain flags first and the executor output is written after success.
        program: Takes the plain command line; returns an exit code or None, or raises SystemExit.
        name: What the program is called in messages.
        flags_of: Returns the flags that the program takes after the words before `--executor-input`; outputs that are
            none of them are left alone.

    Returns:
        0, 1 for a failed stage, 2 for a mistake of the user, 130 after Ctrl-C, 143 after SIGTERM.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end_tidily)
    try:
        arguments, executor_input = list(argv), None
        if "--executor-input" in arguments:
            at = arguments.index("--executor-input")
            executor_input = parse_executor_input("".join(arguments[at + 1 : at + 2]))
            if flags_of is not None:
                executor_input = without_undeclared_outputs(executor_input, flags_of(arguments[:at]))
            arguments[at : at + 2] = flags_from_executor_input(executor_input)
        code = _exit_code(program, arguments)
        if code == 0 and executor_input is not None:
            write_executor_output(executor_input)
        return code
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except StageError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None and error.errno not in FAILED_PLACES:
            raise
        # Of a file that was to be renamed into place, its place.
        place = re.sub(r"\.([^/]+)\.[0-9a-f]{8}\.partial\b", r"\1", str(error.filename or "a file"))
        has_failed = error.errno in FAILED_PLACES
        print(f"{name}: {place}: {error.strerror}{'' if has_failed else '; give another path'}", file=sys.stderr)
        return 1 if has_failed else 2
    except KeyboardInterrupt:
        return 130


def _end_tidily(signum: int, _frame: object) -> None:
    """Ends through `finally` blocks, which remove what is half-written."""
    raise SystemExit(128 + signum)


def _exit_code(program: Callable[[List[str]], Any], arguments: List[str]) -> int:
    try:
        code = program(arguments)
    except SystemExit as end:
        code = end.code
    if isinstance(code, str):
        raise StageError(code)
    return int(code or 0)


class OneLineParser(argparse.ArgumentParser):
    """A parser of flags that says a mistake in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """See the base class.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{self.prog}: {message}")


# --- TAO stages: the same command in NVIDIA's unmodified image and in ours -------------------------------------------

STAGE_DIR = "GRIDBOX_STAGE_DIR"
# In a cluster: a mounted volume's folder of the stage, and the run, so that a retry on another node finds its work.
CHECKPOINTS, RUN_ID = "GRIDBOX_CHECKPOINTS", "GRIDBOX_RUN_ID"
TAO_KEY = "TAO_KEY"
TAIL_LINES = 40  # are shown of a failure that is not known; causes are looked for in more
SEARCHED_LINES = 400
GRACE_SECONDS = 20.0
WEIGHTS = (".safetensors", ".hdf5", ".h5", ".pth", ".pt", ".tlt")

# What may stand as ${…} in each kind of spec.
CONVERT_VALUES = ("root",)
EXPERIMENT_PATHS = (
    "training_records",
    "validation_records",
    "images_training",
    "images_validation",
    "pretrained_model",
)
EXPERIMENT_VALUES = ("image_width", "image_height", "epochs", "batch_size", "learning_rate", "seed")
# Lowest object that counts, pixels. Only evaluate has a parameter for it: training's own validation need not be trained
# anew for another one.
MINIMUM_HEIGHT, TAO_MINIMUM_HEIGHT = "minimum_height", 4
# Derived: a hundredth of learning_rate, as in TAO's face-detection spec.
MINIMUM_LEARNING_RATE = "minimum_learning_rate"
IMAGE_SIZE = ("image_width", "image_height")
PLACEHOLDERS = {
    "convert": CONVERT_VALUES,
    "experiment": (*EXPERIMENT_PATHS, *EXPERIMENT_VALUES, MINIMUM_LEARNING_RATE, MINIMUM_HEIGHT),
    "inference": ("model", *IMAGE_SIZE, "batch_size"),
}
SPLITS = ("training", "validation")
# The models that the workflow makes, in their order.
MODELS = ("pretrained", "trained", "pruned", "retrained")
# A model artifact's spec: filled, but for the paths and the lowest object that counts.
SPEC_FILE = "experiment_spec.txt"
# The spec templates that come with this program, beside it.
SPECS = Path(__file__).resolve().parent / "specs"
_TEMPLATE_NAME = re.compile(r"[a-z0-9-]+/[a-z0-9-]+")
_PLACEHOLDER = re.compile(r"\$\{([^}\n]*)\}")


def template_text(template: str) -> str:
    """Returns a spec template: the text itself, or that of a template of ours by its name, as `facedetect/train`.

    Raises:
        UserError: There is no template of this name.
    """
    if not _TEMPLATE_NAME.fullmatch(template):
        return template
    file = SPECS / (template + ".txt")
    if not file.is_file():
        known = ", ".join(sorted(file.relative_to(SPECS).with_suffix("").as_posix() for file in SPECS.glob("*/*.txt")))
        raise UserError(f"spec {template}: there is no such template; there are {known or 'none here'}")
    return file.read_text(encoding="utf-8")


def placeholders(template: str) -> Set[str]:
    """Returns the names that stand as `${name}` in a spec template."""
    return set(_PLACEHOLDER.findall(template))


def render(template: str, values: Mapping[str, Any], what: str = "spec") -> str:
    """Fills the `${name}` of a spec template. Values are escaped for a quoted string of protobuf text.

    Raises:
        UserError: A placeholder has no value, or is not closed.
    """
    for name in sorted(placeholders(template) - set(values)):
        raise UserError(what + ": ${" + name + "} has no value; known are " + ", ".join(sorted(values)))
    if "${" in _PLACEHOLDER.sub("", template):
        raise UserError(what + ": a ${ is not closed by } on its line")
    return _PLACEHOLDER.sub(lambda match: _escaped(values[match.group(1)]), template)


def _escaped(value: object) -> str:
    return str(value).replace("\\", "\\\\").replace('"', '\\"')


def unpack(kitti_set: Path, split: str, target: Path) -> Path:
    """Lays out one split of a KITTI set as TAO's folders `images/` and `labels/`.

    Args:
        kitti_set: A KITTI-set artifact with tar shards, or a folder that is laid out already (then it is used as it
            stands and nothing is copied).
        split: `training` or `validation`.
        target: Where to unpack; `images` and `labels` are created in `target/<split>`.

    Returns:
        The folder that holds `images/` and `labels/`.

    Raises:
        UserError: Neither shards nor folders are there, or a shard is damaged or has an unsafe member.
    """
    source, folder = kitti_set / split, target / split
    shards = sorted(source.glob("shard-*.tar"))
    if not shards:
        if (source / "images").is_dir():
            return source
        raise UserError(f"{source}: no KITTI set here (neither shard-*.tar nor images/ and labels/)")
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for shard in shards:
        try:
            with tarfile.open(str(shard), "r:") as tar:
                for member in tar:
                    _unpack_member(tar, member, shard, folder)
        except tarfile.TarError as error:
            raise UserError(f"{shard}: not a readable tar shard: {error}") from error
    return folder


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: Path, folder: Path) -> None:
    parts = member.name.split("/")
    if not member.isfile() or len(parts) != 2 or parts[0] not in ("images", "labels") or parts[1] in ("", ".", ".."):
        raise UserError(f"{shard}: member {member.name!r} is refused; a set holds plain files images/* and labels/*")
    content = tar.extractfile(member)
    assert content is not None
    with (folder / parts[0] / parts[1]).open("xb") as file:
        shutil.copyfileobj(content, file)


def call(argv: List[str], reported: Callable[[], str] = str, secret: str = "") -> None:
    """Runs a program, streams its output, and leaves none of its processes behind.

    SIGTERM and SIGINT go on to the program's process group, which gets `GRACE_SECONDS` to end.

    Args:
        argv: The command line.
        reported: Asked when the program has ended: the failure that it reports elsewhere than by its exit code.
        secret: A word of the command line that is not to be printed.

    Raises:
        UserError: The program is not installed, or failed by a mistake that the user can mend.
        StageError: It failed; the text says why in one line where that is known, else it has the last lines printed.
        SystemExit: A signal ended it.
    """
    received = []  # type: List[int]
    children = []  # type: List[subprocess.Popen[str]]
    tail = collections.deque(maxlen=SEARCHED_LINES)  # type: collections.deque[str]

    def forward(signum: int, _frame: object) -> None:
        received.append(signum)
        for child in children:
            _signal_group(child.pid, signum)
            killer = threading.Timer(GRACE_SECONDS, _signal_group, (child.pid, signal.SIGKILL))
            killer.daemon = True
            killer.start()

    def reap(child: "subprocess.Popen[str]") -> None:
        # What the program left running would hold the pipe open for ever.
        child.wait()
        _signal_group(child.pid, signal.SIGKILL)

    former = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        child = _start(argv)
        children.append(child)
        for signum in received:  # those that came while it started
            _signal_group(child.pid, signum)
        reaper = threading.Thread(target=reap, args=(child,), daemon=True)
        reaper.start()
        assert child.stdout is not None
        for line in child.stdout:
            line = line.replace(secret, "***") if secret else line
            tail.append(line.rstrip())
            print(line, end="", flush=True)
        reaper.join()
    finally:
        for child in children:
            _signal_group(child.pid, signal.SIGKILL)
        for number, handler in former.items():
            signal.signal(number, handler)
    if received:
        raise SystemExit(128 + received[0])
    _judge(" ".join(argv[:2]), child.returncode, list(tail), reported())


def _start(argv: List[str]) -> "subprocess.Popen[str]":
    try:
        return subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        )
    except FileNotFoundError as error:
        raise UserError(f"{argv[0]} is not on PATH; use the image of gridbox or NVIDIA's TAO image") from error


def _signal_group(group: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signum)


_OPEN_ENGINE_ONLY = "(--width|--threads|--target-ratio)"
_MEMORY = "raise the memory limit of its container"
# What a failed program has printed and what to say of it: (pattern, whether the user can mend it, text); a group of the
# pattern takes the place of %s. The first that is found counts. Sources: TAO 5.0's scripts and its users' reports.
FAILURES = (
    (
        "unrecognized arguments: " + _OPEN_ENGINE_ONLY,
        True,
        "only the open engine has %s; with NVIDIA's, leave width at 1, threads and target_ratio at 0",
    ),
    (
        # As argparse says it.
        r": error: ((?:unrecognized arguments|the following arguments are required|argument )[^\n]*)",
        True,
        "it refuses its command line (%s); options are those of TAO 5.0, and a path may hold no blank",
    ),
    (
        r"(\d+):\d+ :.*dbscan_min_samples.*Couldn't parse integer",
        True,
        "the spec's line %s: dbscan_min_samples is a whole number since TAO 5.0; write 1",
    ),
    (r"ParseError: (\d+:\d+ : .*)", True, "the spec is not of TAO 5.0's schema, at line:column %s"),
    (r"Spec file validation failed\.\s+(.+)", True, "TAO's validator refuses the spec: %s"),
    (
        "Invalid decryption|zipfile extracted was corrupt|check your key",
        True,
        "the model cannot be decrypted; the environment variable TAO_KEY must hold its key (NGC's page names it)",
    ),
    (
        r"Number of logging points \d+ must be <= than the number of steps per epoch (\d+)",
        True,
        "an epoch has only %s steps, TAO logs at 10; write visualizer { scalar_logging_frequency: 1 } into the spec's "
        "training_config, lower the batch size, or give more images",
    ),
    (
        "corrupted record at|DataLossError",
        True,
        "a file that the spec's tfrecords_path catches holds no records; narrow it to the shards (/kitti-fold-*)",
    ),
    (
        "Ran out of GPU memory|ResourceExhaustedError|OOM when allocating|CUDA out of memory",
        False,
        "the GPU's memory is full; lower the batch size or the network's input size",
    ),
    (
        "No such file or directory: 'nvidia-smi'|Checking for valid GPU ids",
        False,
        "no GPU is visible; the stage needs one (nvidia.com/gpu: 1), on a node of a GPU pool",
    ),
    ("No space left on device", False, "the disk is full; give the stage a larger scratch volume"),
)  # type: Tuple[Tuple[str, bool, str], ...]
SIGNALS = {
    signal.SIGKILL: "it was killed, as a rule for memory; " + _MEMORY,
    signal.SIGBUS: "a bus error, as a rule for a /dev/shm that is too small; mount a larger one",
}


# Words of a log by which something else than a kill for memory, which leaves none, is to be suspected.
_SAYS_WHY = re.compile(r"(?i)traceback|error|exception|failed|invalid|refused|cannot|could not")


def _judge(what: str, code: int, tail: List[str], reported: str) -> None:
    """Raises what a program's end asks for, if it failed."""
    # NVIDIA's program ends with 0 after some failures, which it prints or only writes to its status log.
    said_so = any("Execution status: FAIL" in line for line in tail)
    if code == 0 and not reported and not said_so:
        return
    ended = "exit code " + str(code) if code >= 0 else "signal " + str(-code)
    text = "\n".join([*tail, reported])
    for pattern, is_mistake, said in FAILURES:
        found = re.search(pattern, text)
        if found:
            advice = said % found.groups() if found.groups() else said
            raise UserError(what + ": " + advice) if is_mistake else StageError(f"{what} failed ({ended}): {advice}")
    if -code in SIGNALS:
        raise StageError(f"{what} failed ({ended}): {SIGNALS[signal.Signals(-code)]}")
    printed = [line for line in tail if line.strip()]
    if code == 2:
        raise UserError(printed[-1] if printed else what + " refused its input")
    if said_so and not reported and not _SAYS_WHY.search("\n".join(tail[-TAIL_LINES:])):
        raise StageError(f"{what} failed ({ended}): its worker ended without a word, as a rule for memory; {_MEMORY}")
    why = ": " + " ".join(reported.split()) if reported else ""
    lines = "\n".join("  " + line for line in tail[-TAIL_LINES:])
    raise StageError(f"{what} failed ({ended}){why}; its last lines:\n{lines}")


class Workplace:
    """The folder in which a TAO stage works.

    Attributes:
        scratch: Emptied at every start.
        results: The program's results directory. Where it is kept it outlives an interrupted attempt, so that training
            resumes from its checkpoints.
    """

    def __init__(self, scratch: Path, results: Path, keep_results: bool) -> None:
        self.scratch, self.results = scratch, results
        for folder in [scratch] if keep_results else [scratch, results]:
            shutil.rmtree(str(folder), ignore_errors=True)
        scratch.mkdir(parents=True)
        results.mkdir(parents=True, exist_ok=True)

    def part(self, name: str) -> "Workplace":
        """Returns a workplace of its own for one of several calls of the program."""
        return Workplace(self.scratch / name, self.results / name, keep_results=False)

    def write_spec(self, template: str, values: Mapping[str, Any]) -> Path:
        """Renders a template into the scratch folder, without the lines of an absent pretrained model."""
        unused = sorted(name for name in values if name in EXPERIMENT_VALUES and name not in placeholders(template))
        if unused:
            print(f"note: the spec has fixed values for {', '.join(unused)}; the parameters of these names do nothing")
        file = self.scratch / "spec.txt"
        file.write_text(render_spec(template, values), encoding="utf-8")
        return file


def render_spec(template: str, values: Mapping[str, Any]) -> str:
    """Fills a spec template; where `pretrained_model` is empty, the lines that speak of it go."""
    text = render(template, values)
    if values.get("pretrained_model", "unused"):
        return text
    # Without a file there is no graph to load either.
    return re.sub(r'(?m)^\s*(pretrained_model_file\s*:\s*""|load_graph\s*:\s*true)\s*\n', "", text)


@contextlib.contextmanager
def workplace(keep_results: bool = False) -> Iterator[Workplace]:
    """Gives a stage its folder: `GRIDBOX_STAGE_DIR` where set, else a temporary one that is removed.

    Results to be kept go below `GRIDBOX_CHECKPOINTS` where that is set, by run, and go when the stage has ended well.
    """
    kept, checkpoints = os.environ.get(STAGE_DIR), os.environ.get(CHECKPOINTS)
    if kept:
        yield Workplace(Path(kept, "scratch"), Path(kept, "results"), keep_results)
        return
    with tempfile.TemporaryDirectory(prefix="gridbox-") as temporary:
        if checkpoints and keep_results:
            run_id = os.environ.get(RUN_ID)
            if not run_id:
                raise UserError(f"{CHECKPOINTS}: set {RUN_ID}, too, so that no two runs share {checkpoints}")
            results = Path(checkpoints, run_id, "results")
            yield Workplace(Path(temporary, "scratch"), results, keep_results)
            shutil.rmtree(str(results), ignore_errors=True)
            with contextlib.suppress(OSError):  # it holds something else, which is not ours
                results.parent.rmdir()
        else:
            yield Workplace(Path(temporary, "scratch"), Path(temporary, "results"), keep_results)


def weights_file(model: Path) -> Path:
    """Returns the one model file of a model artifact or of its `weights` folder; a path that is no folder, as it is.

    Raises:
        UserError: There is none in the folder, or more than one.
    """
    if not model.is_dir():
        return model
    folder = model / "weights" if (model / "weights").is_dir() else model
    found = sorted(file for file in folder.iterdir() if file.suffix in WEIGHTS)
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UserError(f"{folder}: exactly one model file is needed ({', '.join(WEIGHTS)}), found {names}")
    return found[0]


def is_present(model: Path) -> bool:
    """Returns whether a model artifact holds a model; the artifact of an absent pretrained model does not."""
    return model.is_file() or bool(read_manifest(model, "model")["counts"].get("present", True))


def is_detector(model: Path) -> bool:
    """Returns whether a model artifact holds a model that can be scored; a backbone to start from cannot."""
    return is_present(model) and (
        model.is_file() or read_manifest(model, "model")["counts"].get("detector") is not False
    )


STATUS_FILE = "status.json"


def _status_lines(file: Path) -> Iterator[Dict[str, Any]]:
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        with contextlib.suppress(ValueError):  # a line cut off by a kill
            yield json.loads(line)


def status_seconds(file: Path) -> Optional[float]:
    """Returns how long the work of a `status.json` took, or None when it does not say.

    A resumed training has several starts; what passed between the end of an attempt and the next start is left out.
    """
    total, begin, last = 0.0, None, None
    for record in _status_lines(file):
        now = datetime.datetime.strptime(record["date"] + " " + record["time"], "%m/%d/%Y %H:%M:%S")
        if record["status"] == "STARTED":
            total += (last - begin).total_seconds() if begin and last else 0.0
            begin = now
        last = now
    return total + (last - begin).total_seconds() if begin and last else None


def read_status(file: Path) -> Dict[str, Any]:
    """Returns the last loss and performance figures of a `status.json` (JSON lines, as TAO writes it).

    Keys have underscores for spaces; `mean_average_precision` is a fraction here (TAO writes percent) and `parameters`
    a number (TAO writes `param_count` in millions). TAO's `size` is left out: the file's own size is exact.
    """
    figures = {}  # type: Dict[str, Any]
    for record in _status_lines(file):
        for section in ("graphical", "kpi"):
            for key, value in (record.get(section) or {}).items():
                figures[key.replace(" ", "_")] = value
    numbers = {key: value for key, value in figures.items() if isinstance(value, (int, float)) and key != "size"}
    if "mean_average_precision" in numbers:
        numbers["mean_average_precision"] /= 100.0
    if "param_count" in numbers:
        numbers["parameters"] = round(numbers.pop("param_count") * 1e6)
    return numbers


def _tao(place: Workplace, task: str, *arguments: object) -> None:
    """Calls `detectnet_v2 <task>`. The key of encrypted models comes from the environment and is never printed."""
    argv = ["detectnet_v2", task, *map(str, arguments)]
    print("$ " + " ".join(argv), flush=True)
    key = os.environ.get(TAO_KEY, "") if task != "dataset_convert" else ""  # which opens no model, and has no -k
    if key != "" and shlex.quote(key) != key:
        raise UserError(
            TAO_KEY + ": NVIDIA's program hands the key to a shell; use letters, digits and @%+=:,./-_ only"
        )
    log = place.results / STATUS_FILE
    earlier = len(list(_status_lines(log)))

    def reported() -> str:
        last = list(_status_lines(log))[earlier:][-1:]
        return " ".join(str(r.get(k, "")) for r in last if r.get("status") == "FAILURE" for k in ("message", "Error"))

    call(argv + (["-k", key] if key else []), reported, key)


def _copy(results: Path, target: Path, names: Sequence[str], required: Sequence[str] = ()) -> None:
    for name in names:
        source = results / name
        if source.is_dir() and any(source.iterdir()):
            shutil.copytree(str(source), str(target / name))
        elif source.is_file():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(str(source), str(target / name))
        elif name in required:
            raise StageError(f"the program ended well but left no {name} in its results directory")
    target.mkdir(parents=True, exist_ok=True)


def _records_values(options: argparse.Namespace) -> Dict[str, Any]:
    return {f"{split}_records": options.records / split for split in SPLITS}


def _symbolic(values: Mapping[str, Any]) -> Dict[str, Any]:
    """The same values with what another stage fills anew left as `${name}`: equal on every machine."""
    kept = [name for name in EXPERIMENT_PATHS if values[name]] + [MINIMUM_HEIGHT]
    return dict(values, **{name: "${" + name + "}" for name in kept})


def _kept_spec(model: Path, values: Mapping[str, Any]) -> str:
    """Returns the spec that a model was trained with, for a stage that trains nothing."""
    file = model / SPEC_FILE
    if not file.is_file():
        raise UserError(f"{file}: the model's spec is missing; give the model artifact as train or prune wrote it")
    filled = dict.fromkeys(EXPERIMENT_PATHS, "unused")  # type: Dict[str, Any]
    filled.update({"pretrained_model": "", MINIMUM_HEIGHT: TAO_MINIMUM_HEIGHT})
    filled.update(values)
    return render_spec(file.read_text(encoding="utf-8"), filled)


def _image_size(spec: str) -> Dict[str, int]:
    """Returns the network's input size that an experiment spec says."""
    told = _only(parse_spec(spec), "augmentation_config", "preprocessing")
    try:
        return {name: int(told["output_" + name][0]) for name in IMAGE_SIZE}
    except (KeyError, ValueError):
        raise UserError("spec: augmentation_config.preprocessing says no output_image_width and _height") from None


def _settings(options: argparse.Namespace, *names: str) -> Dict[str, Any]:
    return {name: getattr(options, name) for name in names}


def _dataset_convert(options: argparse.Namespace) -> None:
    with workplace() as place, publish(options.records) as scratch:
        counts = {"shards": 0, "bytes": 0}
        for split in SPLITS:
            part = place.part(split)
            spec = part.write_spec(template_text(options.spec), {"root": unpack(options.kitti, split, part.scratch)})
            _tao(part, "dataset_convert", "-d", spec, "-o", part.results / "kitti")
            shards = sorted(path.name for path in part.results.glob("kitti-fold-*"))
            if not shards:
                raise StageError(f"detectnet_v2 dataset_convert ended well but wrote no records of {split}")
            _copy(part.results, scratch / split, (*shards, "kitti_warning.json"))
            counts["shards"] += len(shards)
            counts["bytes"] += sum((scratch / split / shard).stat().st_size for shard in shards)
        write_manifest(scratch, "records", counts, _settings(options, "spec"))


def _train(options: argparse.Namespace) -> None:
    started = time.monotonic()
    with workplace(keep_results=True) as place:
        values = dict(
            _settings(options, *EXPERIMENT_VALUES),
            **_records_values(options),
            minimum_learning_rate=float(options.learning_rate) / 100,
            minimum_height=TAO_MINIMUM_HEIGHT,
            images_training=unpack(options.kitti, "training", place.scratch),
            images_validation=unpack(options.kitti, "validation", place.scratch),
            pretrained_model=weights_file(options.pretrained) if is_present(options.pretrained) else "",
        )
        chosen = template = template_text(options.spec)
        if is_present(options.pretrained) and not is_detector(options.pretrained):
            # A backbone has no heads whose graph could be taken over.
            template = re.sub(r"(?m)^\s*load_graph\s*:\s*true\s*\n", "", template)
        spec = place.write_spec(template, values)
        extra = [] if float(options.width) == 1.0 else ["--width", options.width]
        extra += [] if int(options.threads) == 0 else ["--threads", options.threads]
        _tao(place, "train", "-e", spec, "-r", place.results, "-n", options.name, *extra)
        figures = dict(read_status(place.results / STATUS_FILE), seconds=time.monotonic() - started)
        with publish(options.model) as scratch:
            _copy(place.results, scratch, (STATUS_FILE, "weights"), required=("weights",))
            kept = render_spec(chosen, _symbolic(values))
            (scratch / SPEC_FILE).write_text(kept, encoding="utf-8")
            figures["file_bytes"] = weights_file(scratch).stat().st_size
            _write_model_manifest(scratch, _settings(options, *EXPERIMENT_VALUES, "name", "width"))
        write_json(options.metrics, _sanitised(figures))


def _write_model_manifest(model: Path, settings: Mapping[str, Any]) -> None:
    counts = {"present": True, "file_bytes": weights_file(model).stat().st_size}
    write_manifest(model, "model", counts, settings, logs=(STATUS_FILE,))


def _evaluate(options: argparse.Namespace) -> None:
    """Scores the four models, and draws what the last one finds.

    The pretrained one has no spec of its own and is scored by that of the training.
    """
    metrics = {}  # type: Dict[str, Any]
    with workplace() as place, publish(options.evaluations) as scratch:
        images = unpack(options.kitti, "validation", place.scratch)
        for name in MODELS:
            artifact = getattr(options, name)
            if is_detector(artifact):
                part = place.part(name)
                owner = options.trained if name == "pretrained" else artifact
                values = {MINIMUM_HEIGHT: options.minimum_height, "images_validation": images}
                (part.scratch / "spec.txt").write_text(
                    _kept_spec(owner, dict(values, **_records_values(options))), encoding="utf-8"
                )
                figures = _evaluate_model(part, weights_file(artifact))
                _copy(part.results, scratch / name, (STATUS_FILE,))
                told = ("mean_average_precision", "parameters", "file_bytes")
                metrics.update({f"{name}/{key}": figures[key] for key in told if key in figures})
            else:
                print(f"{name}: skipped, there is no such model, or a backbone alone, which detects nothing yet")
                figures = {"skipped": True}
                (scratch / name).mkdir(parents=True)
            write_json(scratch / name / "metrics.json", _sanitised(figures))
            counts = {key: value for key, value in _numbers(figures) if "seconds" not in key}
            write_manifest(scratch / name, "evaluation", _sanitised(counts), {}, logs=(STATUS_FILE,))
        logs = [f"{name}/{STATUS_FILE}" for name in MODELS]
        precisions = {name: f"{name}/mean_average_precision" for name in MODELS}
        counts = {name: metrics[key] for name, key in precisions.items() if key in metrics}
        write_manifest(scratch, "evaluations", counts, {}, logs=logs)
        _inference(place.part("inference"), options, images / "images")
    metrics["mean_average_precision"] = counts["retrained"]
    write_json(options.metrics, _sanitised(metrics))


def _evaluate_model(place: "Workplace", model: Path) -> Dict[str, Any]:
    """Scores one model by the spec in its workplace; returns its figures."""
    started = time.monotonic()
    _tao(place, "evaluate", "-e", place.scratch / "spec.txt", "-m", model, "-r", place.results)
    own = place.results / "metrics.json"
    if own.is_file():
        figures = dict(json.loads(own.read_text(encoding="utf-8")))
    else:
        figures = dict(read_status(place.results / STATUS_FILE), seconds=time.monotonic() - started)
        figures["file_bytes"] = model.stat().st_size
    if "mean_average_precision" not in figures:
        raise StageError("the program ended well but reported no average precision")
    figures["model_seconds"] = status_seconds(model.parent.parent / STATUS_FILE)
    return figures


def _prune(options: argparse.Namespace) -> None:
    started = time.monotonic()
    with workplace() as place:
        source = weights_file(options.model)
        # NVIDIA's program writes no encrypted files any more.
        suffix = ".hdf5" if source.suffix == ".tlt" else source.suffix
        target = place.results / "weights" / (source.stem + "_pruned" + suffix)
        target.parent.mkdir()
        arguments = ["-m", source, "-o", target, "-n", options.normalizer, "-eq", options.equalization]
        arguments += ["-pg", options.granularity, "-pth", options.threshold, "-nf", options.minimum_filters]
        arguments += ["-el", *options.excluded_layers.split()] if options.excluded_layers.split() else []
        arguments += ["--target-ratio", options.target_ratio] if float(options.target_ratio) else []
        _tao(place, "prune", *arguments, "--results_dir", place.results)
        figures = dict(read_status(place.results / STATUS_FILE), seconds=time.monotonic() - started)
        with publish(options.pruned) as scratch:
            _copy(place.results, scratch, (STATUS_FILE, "weights"), required=("weights",))
            _copy(options.model, scratch, (SPEC_FILE,))
            figures["file_bytes"] = weights_file(scratch).stat().st_size
            _write_model_manifest(scratch, _settings(options, *PRUNE_VALUES))
        write_json(options.metrics, _sanitised(figures))


def _inference(place: "Workplace", options: argparse.Namespace, images: Path) -> None:
    """Draws the retrained model's detections on the validation images."""
    model = weights_file(options.retrained)
    size = _image_size(_kept_spec(options.retrained, {}))
    spec = place.write_spec(template_text(options.spec), dict(size, batch_size=options.batch_size, model=model))
    _tao(place, "inference", "-e", spec, "-i", images, "-r", place.results, "-m", model)
    with publish(options.annotated) as scratch:
        _copy(place.results, scratch, (STATUS_FILE, "images_annotated", "labels"), required=("labels",))
        labels = [file.read_text(encoding="utf-8") for file in (scratch / "labels").glob("*.txt")]
        counts = {"images": len(labels), "detections": sum(len(text.splitlines()) for text in labels)}
        write_manifest(scratch, "annotated", counts, {}, logs=(STATUS_FILE,))


def _export(options: argparse.Namespace) -> None:
    with workplace() as place:
        text = _kept_spec(options.model, {})
        spec = place.scratch / "spec.txt"
        spec.write_text(text, encoding="utf-8")
        target = place.results / "model.onnx"
        arguments = ["-m", weights_file(options.model), "-o", target, "-e", spec, "--gen_ds_config"]
        arguments += ["--target_opset", options.opset] if int(options.opset) else []
        _tao(place, "export", *arguments, "--results_dir", place.results)
        with publish(options.exported) as scratch:
            names = ("model.onnx", "labels.txt", "nvinfer_config.txt", STATUS_FILE)
            _copy(place.results, scratch, names, required=("model.onnx", "labels.txt"))
            counts = {"file_bytes": (scratch / "model.onnx").stat().st_size}
            write_manifest(scratch, "exported_model", counts, _description(place.results, text), logs=(STATUS_FILE,))


def _description(results: Path, text: str) -> Dict[str, Any]:
    """What a reader of the exported model needs: as the open engine describes it, else what TAO's files tell."""
    own = results / "model.json"
    if own.is_file():
        return dict(json.loads(own.read_text(encoding="utf-8")))
    onnx = (results / "model.onnx").read_bytes()
    stems = {"input": "input_1", "coverage": "output_cov/Sigmoid", "bbox": "output_bbox/BiasAdd"}
    spec = parse_spec(text)
    box, size = _only(spec, "model_config", "objective_set", "bbox"), _image_size(text)
    return {
        # TAO's ONNX route adds `:0` to the names of inputs and outputs.
        "tensors": {role: stem + ":0" if (stem + ":0").encode() in onnx else stem for role, stem in stems.items()},
        "geometry": dict(
            {name: float(box[name][0]) for name in ("scale", "offset") if name in box},
            width=size["image_width"],
            height=size["image_height"],
        ),
        "class_names": (results / "labels.txt").read_text(encoding="utf-8").split(),
        "clustering": _clustering(_only(spec, "postprocessing_config").get("target_class_config", [])),
    }


def _clustering(classes: Sequence[Any]) -> Dict[str, Any]:
    """What the open engine's export says of `clustering_config`, by class; a field that is not set is left out."""
    fields = {"minimum_bounding_box_height": "minimum_height", "clustering_algorithm": "algorithm"}
    described = {}
    for entry in classes:
        given = {name: values[-1] for name, values in _only(entry, "value", "clustering_config").items()}
        algorithm = str(given.pop("clustering_algorithm", "DBSCAN"))
        settings = {fields.get(name, name): float(value) for name, value in given.items()}  # type: Dict[str, Any]
        settings["algorithm"] = {"0": "dbscan", "1": "nms", "2": "hybrid"}.get(algorithm, algorithm.lower())
        if "minimum_height" in settings:
            settings["minimum_height"] = int(settings["minimum_height"])
        described[entry["key"][-1]] = settings
    return described


def _only(message: Mapping[str, Any], *path: str) -> Dict[str, Any]:
    """The message at a path of fields; empty where there is none."""
    for name in path:
        message = (message.get(name) or [{}])[-1]
    return dict(message)


_SPEC_TOKEN = re.compile(r"""#[^\n]*|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[{}:;,]|[^\s{}:;,#"']+""")


def parse_spec(text: str) -> Dict[str, List[Any]]:
    """Reads protobuf text without a schema, as far as TAO's specs use it: by field name, its values in their order.

    A value is a text, or for a message such a dictionary.

    Raises:
        UserError: A brace is missing or stands alone.
    """
    tokens = collections.deque(token for token in _SPEC_TOKEN.findall(text) if token[0] not in "#:;,")
    message = {}  # type: Dict[str, List[Any]]
    around = []  # type: List[Dict[str, List[Any]]]
    while tokens:
        name = tokens.popleft()
        if name == "}" and around:
            message = around.pop()
        elif name in "{}" or not tokens:
            raise UserError("spec: the braces do not match; `detectnet_v2 spec check` names the line")
        elif tokens[0] == "{":
            tokens.popleft()
            around.append(message)
            inner = {}  # type: Dict[str, List[Any]]
            message.setdefault(name, []).append(inner)
            message = inner
        else:
            value = tokens.popleft()
            message.setdefault(name, []).append(value[1:-1] if value[0] in "\"'" else value)
    if around:
        raise UserError("spec: the braces do not match; `detectnet_v2 spec check` names the line")
    return message


PRUNE_VALUES = (
    "normalizer",
    "equalization",
    "granularity",
    "threshold",
    "minimum_filters",
    "excluded_layers",
    "target_ratio",
)
# The parameters that are no numbers.
TEXTS = ("spec", "name", "normalizer", "equalization", "excluded_layers")
# Task: program, input artifacts, parameters, outputs. Names are those of the components.
TASKS = {
    "dataset_convert": (_dataset_convert, ("kitti",), ("spec",), ("records",)),
    "train": (
        _train,
        ("kitti", "records", "pretrained"),
        ("spec", *EXPERIMENT_VALUES, "name", "width", "threads"),
        ("model", "metrics"),
    ),
    "evaluate": (
        _evaluate,
        ("kitti", "records", *MODELS),
        ("spec", "batch_size", MINIMUM_HEIGHT),
        ("evaluations", "annotated", "metrics"),
    ),
    "prune": (_prune, ("model",), PRUNE_VALUES, ("pruned", "metrics")),
    "export": (_export, ("model",), ("opset",), ("exported",)),
}  # type: Dict[str, Tuple[Callable[[argparse.Namespace], None], Tuple[str, ...], Tuple[str, ...], Tuple[str, ...]]]


def tao_stage(argv: List[str]) -> None:
    """Runs `detectnet_v2 <task> --flag value …`; flags are the component's inputs, parameters and outputs."""
    if len(argv) < 2 or argv[0] != "detectnet_v2" or argv[1] not in TASKS:
        raise UserError(f"say detectnet_v2 and one of {', '.join(TASKS)}, then the flags of the stage")
    options = parse_tao_flags(argv[1], argv[2:])
    for name in TASKS[argv[1]][1]:
        if not getattr(options, name).exists():
            raise UserError(f"input {name}: {getattr(options, name)} does not exist")
    for name in TASKS[argv[1]][3]:  # now, and not after hours
        path = getattr(options, name)
        check_target(path, _named(path)[0] if path.is_dir() else None)
    TASKS[argv[1]][0](options)


def tao_flags(words: List[str]) -> Set[str]:
    """Returns the flags that a TAO stage takes, after the words `detectnet_v2 <task>`."""
    if len(words) < 2 or words[1] not in TASKS:
        return set()
    _, inputs, parameters, outputs = TASKS[words[1]]
    return {_flag(name) for name in (*inputs, *parameters, *outputs)}


def number(text: str) -> str:
    """Returns the text of a number as it is; a ValueError tells argparse of any other."""
    float(text)
    return text


def parse_tao_flags(task: str, flags: List[str]) -> argparse.Namespace:
    """Parses the flags of a TAO stage: its inputs and outputs as paths, its parameters as the text they are."""
    _, inputs, parameters, outputs = TASKS[task]
    parser = OneLineParser(prog="detectnet_v2 " + task, allow_abbrev=False)
    for name in (*inputs, *outputs):
        parser.add_argument(_flag(name), type=Path, required=True)
    for name in parameters:
        # An empty string counts as absent on the way here, and layers to exclude may well be none.
        kind = str if name in TEXTS else number  # type: Callable[[str], str]
        parser.add_argument(_flag(name), required=name != "excluded_layers", default="", type=kind)
    # Where this very file lies; the stage's command runs it.
    parser.add_argument("--program", help=argparse.SUPPRESS)
    return parser.parse_args(flags)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], tao_stage, flags_of=tao_flags))
