"""Builds a Triton model repository from an exported model: the network, what surrounds it, and the ensemble."""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from components.decode.description import upgraded
from components.serve import models
from components.serve.config import MODEL_FILES, VERSION, RepositorySettings, configurations, digest_parameter
from components.serve.families import DEFAULT, family, family_of
from components.serve.task import ServedTask
from components.serve.tensorrt import KIND as PLAN_KIND
from components.serve.tensorrt import PLAN_FILE
from components.step import MANIFEST, UserError, publish, read_manifest, sha256, write_json, write_manifest
from components.vision.predictor import MODEL_FILE, description_file

KIND = "model_repository"
# In the artifact: what Triton is given.
REPOSITORY = "repository"
CONFIG_FILE = "config.pbtxt"
PLACEHOLDER_FILE = "placeholder.txt"
PLACEHOLDER = "Triton wants a version folder of an ensemble, too, and KServe's storage initializer skips empty files.\n"


def build_repository(exported: Path, output: Path, settings: RepositorySettings, plan: Path | None = None) -> None:
    """Writes a model-repository artifact.

    The digest of its files stands in the manifest's settings (`repository_digest`) and in the ensemble's configuration,
    which a server shows: so a client can tell which version answers.

    Args:
        exported: An exported-model artifact, an ONNX file, or a model-repository artifact that holds one: its model is
            laid out again.
        output: The artifact to write; `repository/` in it is what Triton is given.
        settings: How the model shall be served.
        plan: For the backend `tensorrt`, the model's plan (artifact).

    Raises:
        UserError: The model cannot be used, its batch size is fixed, or the plan is missing or does not fit.
    """
    if (plan is not None) != settings.is_gpu:
        need = "needs a plan; build one: gridbox serve tensorrt" if settings.is_gpu else "takes no plan; use tensorrt"
        raise UserError(f"backend {settings.backend}: it {need}")
    file = onnx_file(exported)
    name = family_of(file)
    task = family(name).served(file, settings)
    description = {**task.description, **({} if name == DEFAULT else {"family": name})}
    bound_to: dict[str, Any] = {}
    if plan:
        settings, bound_to = _fitted_to_plan(plan, description, settings)
    with publish(output) as scratch:
        repository = scratch / REPOSITORY
        _write_models(repository, task, settings, plan)
        if plan is None:
            # With it the network is an exported model like any other.
            for network in task.networks:
                write_json(description_file(repository / network / VERSION / MODEL_FILE), description)
        digest = _digest(repository)
        with (repository / task.ensemble / CONFIG_FILE).open("a", encoding="utf-8") as config:
            config.write(digest_parameter(digest))
        counts = {
            "backend": settings.backend,
            "classes": len(description["class_names"]),
            "parameters": description["parameters"],
        }
        taken = {**upgraded(description)["input"]}
        if settings.preprocessing != "model":
            taken["fit"] = settings.preprocessing
        served = {
            **asdict(settings),
            "preprocessing": taken.get("fit", settings.preprocessing),
            "max_batch_size": settings.batch,
            "repository_digest": digest,
        }
        write_manifest(
            scratch,
            KIND,
            counts,
            {"model_name": task.prefix, "metric": task.metric, **description, "input": taken, **served, **bound_to},
        )


def _digest(repository: Path) -> str:
    """Returns the SHA-256 over the paths and SHA-256 of a repository's files."""
    found = hashlib.sha256()
    for file in sorted(path for path in repository.rglob("*") if path.is_file()):
        found.update(f"{file.relative_to(repository).as_posix()} {sha256(file)}\n".encode())
    return found.hexdigest()


def _fitted_to_plan(
    plan: Path, description: Mapping[str, Any], settings: RepositorySettings
) -> tuple[RepositorySettings, dict[str, Any]]:
    """Returns the settings with the plan's largest batch, where none is given, and what the plan is bound to.

    Raises:
        UserError: It is another model's, another Triton release's, or cannot take the batches.
    """
    found = read_manifest(plan, PLAN_KIND)["settings"]
    theirs, ours = (_network_of(each) for each in (found, description))
    for name in theirs:
        if not _agree(theirs[name], ours[name]):
            raise UserError(f"{plan}: its {name} are not the model's; build the plan of this model")
    if found["triton_release"] != settings.triton_release:
        made, wanted = found["triton_release"], settings.triton_release
        raise UserError(f"{plan}: built in Triton {made}, to be served in {wanted}; build it in that release's image")
    largest = max(found["batches"])
    if settings.max_batch_size > largest:
        raise UserError(
            f"{plan}: it takes batches up to {largest}, not {settings.batch}; give --max-batch-size {largest}"
        )
    fitted = replace(settings, max_batch_size=settings.max_batch_size or largest)
    return fitted, {name: found[name] for name in ("gpu", "compute_capability", "tensorrt_version", "precision")}


def _network_of(description: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a plan has to share with the model that it is served as."""
    whole = upgraded(description)
    geometry = {**whole["input"], **whole["decoder"].get("geometry", {})}
    return {"class_names": whole.get("class_names"), "geometry": geometry, "tensors": whole.get("tensors")}


def _agree(one: object, other: object) -> bool:
    """Tells whether two descriptions say the same wherever both say something: TAO's say less than ours."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return all(_agree(one[name], other[name]) for name in one.keys() & other.keys())
    return one == other


def onnx_file(model: Path) -> Path:
    """Returns the ONNX file of an exported model (artifact or file) or of a model repository.

    Raises:
        UserError: There is none.
    """
    if model.is_file() and model.suffix == ".onnx":
        return model
    if (model / MODEL_FILE).is_file():
        return model / MODEL_FILE
    if not (model / MANIFEST).is_file():
        raise UserError(f"{model}: no exported model here ({MODEL_FILE} is missing); make one: detectnet_v2 export")
    settings = read_manifest(model, KIND)["settings"]
    file = model / REPOSITORY / str(settings["model_name"]) / VERSION / MODEL_FILE
    if not file.is_file():
        backend = settings["backend"]
        raise UserError(f"{model}: this repository for {backend} holds no {MODEL_FILE}; give the exported model")
    return file


def _write_models(repository: Path, task: ServedTask, settings: RepositorySettings, plan: Path | None) -> None:
    sources = {name: step.name for name, step in task.steps.items()}
    if settings.backend == "python":
        sources |= {**dict.fromkeys(task.networks, "network"), task.ensemble: "ensemble"}
    for name, text in configurations(task, settings).items():
        (repository / name / VERSION).mkdir(parents=True)
        (repository / name / CONFIG_FILE).write_text(text, encoding="utf-8")
    for name, source in sources.items():
        shutil.copyfile(Path(models.__path__[0], f"{source}.py"), repository / name / VERSION / "model.py")
    for name, network in task.networks.items():
        file = plan / PLAN_FILE if plan else network.file
        shutil.copyfile(file, repository / name / VERSION / MODEL_FILES[settings.backend])
        if settings.backend == "python":
            shutil.copyfile(file, repository / task.ensemble / VERSION / MODEL_FILE)
    if task.ensemble not in sources:
        (repository / task.ensemble / VERSION / PLACEHOLDER_FILE).write_text(PLACEHOLDER, encoding="utf-8")
