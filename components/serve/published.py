"""Publishes a model repository for deployment, and says in a small artifact where it is and what it needs."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components import publication
from components.decode.description import OPERATING_POINT, at_operating_point, operating_point
from components.formats.reading import read_json
from components.progress import Download
from components.step import MANIFEST, UserError, publish, read_manifest, write_manifest
from components.store import redacted
from components.vision.predictor import MODEL_FILE

KIND, EXPORTED_KIND = "published_repository", "exported_model"
METRICS_FILE = "metrics.json"
REPOSITORY_KIND, REPOSITORY_FOLDER = "model_repository", "repository"
# A value in a model's configuration that leads out of its own folder.
_OUTWARD = re.compile(r'"((?:[^"\s\\]*/)?\.\./[^"\s\\]*)')


@dataclass(frozen=True, slots=True)
class Published:
    """A published model repository.

    Attributes:
        base: Below which it was published.
        storage_uri: The folder of the model folders; ends with "/".
        version: Of the publication.
        digest: Of its content.
        settings: Of the model repository's manifest.
    """

    base: str
    storage_uri: str
    version: str
    digest: str
    settings: Mapping[str, Any]


def shown_from(exported: Path, evaluation: Path, model: str, folder: Path) -> Path:
    """Returns an exported model that says from which score on its objects are shown.

    TAO's program does not say it: then it is where F1 was best in an evaluation. The report of a workflow took it from
    the validation images; of any other evaluation it is that of the images that were scored.

    Args:
        exported: The exported model.
        evaluation: An evaluation of it.
        model: Which of the evaluated models it is; empty: the last one.
        folder: Where a copy may stand.

    Raises:
        UserError: The evaluation cannot be read.
    """
    if not (exported / MODEL_FILE).is_file() or not (exported / MANIFEST).is_file():
        return exported
    manifest = read_manifest(exported, EXPORTED_KIND)
    figures = read_json(evaluation / METRICS_FILE)
    figures = figures.get("models", {}).get(model, figures) if model else figures
    best = figures.get(OPERATING_POINT) or {
        name: point["threshold"] for name, point in (figures.get("best_f1") or {}).items() if point
    }
    if operating_point(manifest["settings"]) or not best:
        return exported
    shutil.copytree(exported, folder)
    write_manifest(folder, EXPORTED_KIND, manifest["counts"], at_operating_point(manifest["settings"], best))
    return folder


def publish_repository(repository: Path, base: str, output: Path) -> Published:
    """Publishes a model-repository artifact as a new version below `base`, and writes where it is.

    The version is not the served one before it is promoted.

    Raises:
        UserError: It is no model repository, Triton could not load it from there, or the store refuses or cannot be
            reached.
    """
    settings = read_manifest(repository, REPOSITORY_KIND)["settings"]
    _check_paths(repository / REPOSITORY_FOLDER, base)
    with Download(f"publishing the model repository to {redacted(base)}") as moved:
        done = publication.publish(repository, base, serve=False, report=moved.report)
    published = Published(_absolute(base), f"{done.uri}{REPOSITORY_FOLDER}/", done.version, done.digest, settings)
    with publish(output) as scratch:
        scratch.mkdir()
        counts = {"objects": done.objects, "bytes": done.bytes, "storage_uri": published.storage_uri}
        own = {name: getattr(published, name) for name in ("base", "storage_uri", "version", "digest")}
        write_manifest(scratch, KIND, counts, {**own, "repository": settings}, shown=("storage_uri", "bytes"))
    return published


def _check_paths(repository: Path, base: str) -> None:
    """Refuses models that reach for one another's files: from S3, Triton brings each into a folder of its own."""
    if urlsplit(base).scheme in ("", "file"):
        return
    for file in sorted(repository.glob("*/config.pbtxt")):
        for found in _OUTWARD.finditer(file.read_text(encoding="utf-8")):
            raise UserError(
                f"{file.parent.name}: its configuration names {found[1]}, outside its own folder, which Triton does not"
                " find when it loads models from an object store; build it again with this release"
            )


def skip(output: Path) -> None:
    """Writes that nothing was published, for a run that has nowhere to publish to."""
    with publish(output) as scratch:
        scratch.mkdir()
        write_manifest(scratch, KIND, {"skipped": True}, {})


def _absolute(base: str) -> str:
    return base if "://" in base else str(Path(base).expanduser().absolute())


def fetch_repository(published: Published, destination: Path) -> None:
    """Brings a published model repository into a new folder, every file verified.

    Raises:
        UserError: It is gone or damaged, or the store cannot be reached.
    """
    with Download(f"fetching {redacted(published.storage_uri)}") as moved:
        found = publication.fetch_published(published.base, destination, published.version, report=moved.report)
    if found.digest != published.digest:
        raise UserError(f"{redacted(published.storage_uri)}: not what was published; publish the model anew")


def read_published(path: Path) -> Published | None:
    """Reads the artifact that `publish_repository` wrote; None where `skip` did.

    Raises:
        UserError: It is another one.
    """
    manifest = read_manifest(path, KIND)
    if manifest["counts"].get("skipped"):
        return None
    settings = manifest["settings"]
    names = ("base", "storage_uri", "version", "digest", "repository")
    return Published(*(settings[name] for name in names))
