"""The contract between a program and Kubeflow. Python 3.8, standard library only: it runs inside NVIDIA's image."""

import argparse
import contextlib
import errno
import hashlib
import json
import math
import re
import shutil
import signal
import sys
import tempfile
import threading
import uuid
from pathlib import Path
from typing import Any, Callable, Collection, Dict, Iterator, List, Mapping, NoReturn, Optional, Sequence, Set, Tuple

MANIFEST = "manifest.json"
LAYOUT_VERSION = 1
# Kubeflow copies an artifact's metadata into every stage that reads it, six times over.
MOST_SHOWN = 4


class UserError(Exception):
    """A mistake of the user. The text is one line: what is wrong, where, and how to fix it (exit code 2)."""


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


def check_output(path: Path) -> None:
    """Refuses early, before hours of work, what `check_target` would refuse of any artifact's kind."""
    check_target(path, _named(path)[0] if path.is_dir() else None)


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
        # Serving a model creates compiled Python files beside its code.
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
    files: Dict[str, Any] = {}
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


# --- Model artifacts -------------------------------------------------------------------------------------------------

WEIGHTS = (".safetensors", ".hdf5", ".h5", ".pth", ".pt", ".tlt")


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
        outputs[kind] = {name: each for name, each in (outputs.get(kind) or {}).items() if flag(name) in flags}
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
    flags: List[str] = []
    for name, value in sorted((inputs.get("parameterValues") or {}).items()):
        if not name.startswith(NOT_OURS):
            flags += parameter_flag(name, value)
    for name, artifact in _artifacts(inputs):
        path = artifact_path(artifact)
        if not path.exists():
            raise UserError(f"input {name}: {path} does not exist; run the stage that makes it again")
        flags.append(f"{flag(name)}={path}")
    written = [(name, artifact_path(artifact)) for name, artifact in _artifacts(outputs)]
    written += [(name, Path(each["outputFile"])) for name, each in sorted((outputs.get("parameters") or {}).items())]
    for name, path in written:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags.append(f"{flag(name)}={path}")
    return flags


def flag(name: str) -> str:
    """Returns the flag of an input, a parameter or an output by its name."""
    return "--" + name.replace("_", "-")


def parameter_flag(name: str, value: object) -> List[str]:
    """Spells a parameter as flags of a person; see `flags_from_executor_input`."""
    if value is None or value == "":
        return []
    if isinstance(value, bool):
        return [flag(name) if value else flag("no_" + name)]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    # One word, so that a value that begins with "-" is not taken for a flag.
    return [f"{flag(name)}={json.dumps(value, sort_keys=True) if isinstance(value, (list, dict)) else value}"]


def write_executor_output(executor_input: Mapping[str, Any]) -> None:
    """Writes `outputs.outputFile`: for every output artifact its name, URI and metadata.

    Metadata are the counts that a directory's manifest shows, the numbers of a Metrics file, the content of a
    ClassificationMetrics file. Kubeflow refuses null and JSON has no NaN: both are left out.

    Raises:
        StageError: The program ended well but an output is missing.
    """
    outputs = executor_input["outputs"]
    artifacts: Dict[str, Any] = {}
    for name, artifact in _artifacts(outputs):
        path = artifact_path(artifact)
        if not path.exists():
            raise StageError(f"output {name}: the stage ended well but wrote nothing to {path}")
        entry = {key: artifact[key] for key in ("name", "uri", "customPath") if key in artifact}
        entry["metadata"] = sanitised(_metadata(path, (artifact.get("type") or {}).get("schemaTitle", "")))
        artifacts.setdefault(name, {"artifacts": []})["artifacts"].append(entry)
    with publish(Path(outputs["outputFile"])) as scratch:
        scratch.write_text(json.dumps({"artifacts": artifacts}, sort_keys=True, allow_nan=False), encoding="utf-8")


def _metadata(path: Path, schema: str) -> Dict[str, Any]:
    if (path / MANIFEST).is_file():
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        return {name: manifest["counts"][name] for name in manifest.get("shown", [])}
    if schema == "system.Metrics" and path.is_file():
        return dict(numbers(json.loads(path.read_text(encoding="utf-8"))))
    if schema == "system.ClassificationMetrics" and path.is_file():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    return {}


def numbers(document: Mapping[str, Any], prefix: str = "") -> Iterator[Tuple[str, Any]]:
    """Yields the numbers of a document, nested ones as `outer/inner`."""
    for key, value in document.items():
        if isinstance(value, dict):
            yield from numbers(value, prefix + key + "/")
        elif isinstance(value, (bool, int, float)):
            yield prefix + key, value


def sanitised(value: object) -> Any:  # noqa: ANN401 - JSON in, JSON out
    """Returns a document without its nulls and what is no finite number."""
    if isinstance(value, dict):
        cleaned = {key: sanitised(item) for key, item in value.items()}
        return {key: item for key, item in cleaned.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [item for item in map(sanitised, value) if item is not None]
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
