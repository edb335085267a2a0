"""Imports a model of NGC as the artifact of a pretrained model."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.ngc.registry import KEY, ModelVersion, Registry, RemoteFile
from components.step import WEIGHTS, UserError, check_target, publish, sha256, write_manifest
from components.store import RETRY, RetryPolicy
from components.tao.call import TAO_KEY

# Scheme of a URI of NGC.
NGC = "ngc://"
# TAO's encrypted models.
ENCRYPTED = ".tlt"
NOTICE = "NOTICE.txt"
# The layer that tells one of TAO's detectors from a backbone.
_HEAD = "output_cov"
_LICENCE = re.compile(r"licen[cs]e|eula|notice|terms", re.IGNORECASE)


def download(
    source: str, output: Path, file: str = "", checksum: str = "", retry: RetryPolicy = RETRY
) -> dict[str, Any]:
    """Writes a model artifact that holds one model file of NGC, its licence files, and a notice.

    An interrupted download resumes, also in a later call: until the artifact is complete, its parts are kept in a
    hidden folder beside it.

    Args:
        source: `org/team/model:version`.
        output: The artifact.
        file: Path of the model file in the version; empty if there is only one.
        checksum: The expected SHA-256, hexadecimal; empty for the one that NGC names.
        retry: Attempts, pauses and timeouts.

    Returns:
        The counts of the artifact's manifest.

    Raises:
        UserError: NGC refuses the file, it is not the expected one, or it is no model.
    """
    check_target(output, "model")
    version = ModelVersion.parse(source)
    registry = Registry(version, retry)
    notice = (
        f"{version} is NVIDIA's. Its licence is at {version.page}; by downloading it you accept it, also for the "
        "models that are trained from it."
    )
    print(notice, flush=True)
    print("asking NGC " + ("as a guest" if registry.is_guest else f"with the key in {KEY}"), flush=True)
    listed = registry.files()
    chosen = choose(listed, file, version)
    licences = [other for other in listed if other != chosen and _LICENCE.search(Path(other.path).name)]
    left = [other.path for other in listed if other != chosen and other not in licences]
    if left:
        print(f"{len(left)} other files of the version are left there: {', '.join(left)}", flush=True)
    parts = output.with_name(f".{output.name}.download")
    weights = parts / Path(chosen.path).name
    for licence in licences:
        registry.fetch(licence, parts / "licence" / licence.path)
    registry.fetch(chosen, weights, checksum)
    counts: dict[str, Any] = {
        "present": True,
        "source": str(version),
        "file_bytes": weights.stat().st_size,
        "sha256": sha256(weights),
        **content_of(weights),
    }
    if not chosen.sha256 and not checksum:
        print("NGC names no SHA-256 for this file; that of what came is recorded", flush=True)
    with publish(output) as scratch:
        (scratch / "weights").mkdir(parents=True)
        shutil.copyfile(weights, scratch / "weights" / weights.name)
        if licences:
            shutil.copytree(parts / "licence", scratch / "licence")
        text = f"{notice}\n\nfile: {chosen.path}\nSHA-256: {counts['sha256']}\n"
        (scratch / NOTICE).write_text(text, encoding="utf-8")
        write_manifest(
            scratch, "model", counts, {"source": str(version), "file": chosen.path}, shown=("present", "file_bytes")
        )
    shutil.rmtree(parts)
    return counts


def download_uri(uri: str, output: Path) -> dict[str, Any]:
    """Does `download` for `ngc://org/team/model:version[/file]`."""
    source, file = _parsed(uri)
    return download(source, output, file)


def probe(uri: str) -> None:
    """Checks that such a URI names a model file, without a download.

    Raises:
        UserError: It does not, or NGC refuses access.
    """
    source, file = _parsed(uri)
    version = ModelVersion.parse(source)
    choose(Registry(version).files(), file, version)


def _parsed(uri: str) -> tuple[str, str]:
    """Returns org/team/model:version, and the file or nothing."""
    model, _, rest = uri.removeprefix(NGC).partition(":")
    version, _, file = rest.partition("/")
    return f"{model}:{version}", file


def choose(listed: Sequence[RemoteFile], file: str, version: ModelVersion) -> RemoteFile:
    """Returns the model file among a version's files.

    Raises:
        UserError: None or several have the suffix of a model, or none is the named one.
    """
    names = ", ".join(entry.path for entry in listed) or "none"
    if file:
        found = [entry for entry in listed if entry.path == file]
        if not found:
            raise UserError(f"{version}: has no file {file}; there are {names}")
        if Path(file).suffix not in WEIGHTS:
            raise UserError(f"{version}: {file} is no model to start from ({', '.join(WEIGHTS)})")
        return found[0]
    found = [entry for entry in listed if Path(entry.path).suffix in WEIGHTS]
    if not found:
        raise UserError(f"{version}: has no model to start from ({', '.join(WEIGHTS)}); its files are {names}")
    if len(found) > 1:
        raise UserError(f"{version}: has several models, name one as file: {', '.join(e.path for e in found)}")
    return found[0]


def content_of(weights: Path) -> dict[str, bool]:
    """Returns whether a model is encrypted, and if not, whether it is a detector or only a backbone.

    Raises:
        UserError: It cannot be read.
    """
    if weights.suffix == ENCRYPTED:
        print(f"the model is encrypted: NVIDIA's program alone reads it, with its key in {TAO_KEY}", flush=True)
        return {"encrypted": True}
    from components.vision.pretrained import read_weights

    tensors = read_weights(weights, [_HEAD]).tensors
    return {"encrypted": False, "detector": f"{_HEAD}.weight" in tensors}
