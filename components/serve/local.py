"""What the server on this machine is given; it knows the Python backend only."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from components.serve.config import RepositorySettings
from components.serve.repository import KIND, REPOSITORY, build_repository
from components.step import MANIFEST, UserError, read_manifest
from components.vision.predictor import MODEL_FILE
from components.vision.threads import available_cores

# Where `gridbox run` puts its runs, and in a run's folder the link to the model it ended with.
RUNS = Path("runs")
MODEL_LINK = "model"


def find_model(path: Path = RUNS) -> Path:
    """Returns the model that a path means.

    Args:
        path: A model repository or exported model (artifacts), an ONNX file, a run's folder, or the folder of all runs,
            of which the newest with a model counts. A run's model is its newest model repository, else its exported
            model.

    Raises:
        UserError: There is none.
    """
    if path.is_file() or (path / MANIFEST).is_file() or (path / MODEL_FILE).is_file():
        return path
    if path.is_dir():
        for run in [path, *_newest_first(entry for entry in path.iterdir() if entry.is_dir())]:
            if model := _model_of(run):
                return model
    what = "no run here has a model" if path.is_dir() else "there is nothing here"
    raise UserError(f"{path}: {what}; name a run's folder or an exported model, or make one: gridbox run facedetect")


def _model_of(run: Path) -> Path | None:
    """Returns the model of a run; its artifacts lie below its stages' folders."""
    manifests = run.glob(f"*/*/{MANIFEST}")
    repositories = [file.parent for file in manifests if json.loads(file.read_text("utf-8")).get("kind") == KIND]
    if repositories:
        return _newest_first(repositories)[0]
    return run / MODEL_LINK if (run / MODEL_LINK / MODEL_FILE).is_file() else None


def _newest_first(folders: Iterable[Path]) -> list[Path]:
    return sorted(folders, key=lambda folder: folder.stat().st_mtime_ns, reverse=True)


# Of the ensemble; each holds the network in memory.
MOST_INSTANCES = 4


def local_settings(threads: int = 0, min_score: float | None = None) -> RepositorySettings:
    """Returns settings for this machine; 0 threads are those of the cores that may be used.

    Copies of the ensemble decode and cluster side by side; the network of one at a time has all cores.
    """
    cores = available_cores()
    instances = min(cores, MOST_INSTANCES)
    return RepositorySettings(backend="python", instances=instances, threads=threads or cores, min_score=min_score)


def local_repository(model: Path, folder: Path, settings: RepositorySettings) -> Path:
    """Returns what Triton is given to serve a model here, laid out for the Python backend where it is not yet.

    Args:
        model: What `components.serve.repository.build_repository` takes.
        folder: Where to lay it out, if need be.
        settings: How; what a model repository says of its images holds.

    Raises:
        UserError: The model cannot be used.
    """
    if (model / REPOSITORY).is_dir():
        own = read_manifest(model, KIND)["settings"]
        shown = settings.min_score if settings.min_score is not None else own.get("min_score")
        if own["backend"] == settings.backend and shown == own.get("min_score"):
            return model / REPOSITORY
        kept = ("preprocessing", "max_batch_size", "max_image_pixels")
        settings = replace(settings, min_score=shown, **{name: own[name] for name in kept})
    build_repository(model, folder, settings)
    return folder / REPOSITORY
