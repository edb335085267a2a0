"""The contract between a program and Kubeflow. Python 3.8, standard library only: it runs inside NVIDIA's image."""

import contextlib
import hashlib
import json
import shutil
import uuid
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Sequence

MANIFEST = "manifest.json"
LAYOUT_VERSION = 1


class UserError(Exception):
    """A mistake the user can mend. The text is one line: what is wrong, where, and how to mend it (exit code 2)."""


@contextlib.contextmanager
def publish(path: Path) -> Iterator[Path]:
    """Gives a scratch path beside `path` and renames it to `path` when the block succeeds.

    The block may create a file or a directory there. When the block fails, nothing is left behind and whatever
    stood at `path` before is untouched.

    Args:
        path: Where the finished file or directory shall stand. Its parent is created.

    Yields:
        The scratch path, on the same file system, which does not exist yet.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield scratch
        if path.is_dir() and not path.is_symlink():
            former = scratch.with_suffix(".former")
            path.rename(former)
            scratch.rename(path)
            shutil.rmtree(str(former), ignore_errors=True)
        else:
            scratch.replace(path)
    finally:
        if scratch.is_dir():
            shutil.rmtree(str(scratch), ignore_errors=True)
        elif scratch.exists():
            scratch.unlink()


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
) -> None:
    """Writes `manifest.json` into an artifact directory: what it is, what made it, and the SHA-256 of its files.

    Args:
        directory: The finished artifact, before it is renamed into place.
        kind: The artifact's kind, for example `kitti_set`, `records`, `model`, `exported_model`, `evaluation`.
        counts: Numbers (or short strings) that summarise the content. They become the artifact's metadata in Kubeflow.
        settings: What the content depends on besides the input artifacts. No paths, no times, no secrets.
        logs: Relative paths whose content holds times; they are named in the manifest without a checksum, so that
            equal content gives an equal manifest.
    """
    files = {}  # type: Dict[str, Any]
    for file in sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST):
        name = file.relative_to(directory).as_posix()
        files[name] = None if name in logs else sha256(file)
    manifest = {
        "kind": kind,
        "layout": LAYOUT_VERSION,
        "counts": dict(counts),
        "settings": dict(settings),
        "files": files,
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
