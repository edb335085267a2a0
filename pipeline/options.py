"""What is chosen when a pipeline is compiled: it decides stages, images or placement. All else is a parameter."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from components.step import UserError
from pipeline.images import Images
from pipeline.placement import IMAGE_USER, Access, Placement, Pool, Pools, Stage, place


class Serving(StrEnum):
    """What the deployed model runs on: ONNX Runtime on CPUs, or a TensorRT plan on GPUs."""

    cpu = "cpu"
    gpu = "gpu"


class Engine(StrEnum):
    """Whose program a TAO stage calls: ours in our image, or NVIDIA's in NVIDIA's."""

    open = "open"
    tao = "tao"


class Backend(StrEnum):
    """The oldest release of Kubeflow Pipelines that shall run the file."""

    v2_15 = "2.15"
    v2_16 = "2.16"


# The stages that have an engine, each with the stages whose models it reads.
ENGINE_STAGES: Mapping[str, tuple[str, ...]] = {
    "records": (),
    "train": (),
    "prune": ("train",),
    "retrain": ("prune",),
    "evaluate": ("train", "prune", "retrain"),
    "export": ("retrain",),
}
# Parameters that NVIDIA's program does not know, with the value at which they say nothing, by stage.
OPEN_ONLY: Mapping[str, tuple[str, float]] = {
    "train_width": ("train", 1.0),
    "train_threads": ("train", 0),
    "prune_target_ratio": ("prune", 0.0),
}


@dataclass(frozen=True, slots=True)
class Options:
    """How to compile a pipeline.

    Attributes:
        serving: What the deployed model runs on.
        engines: By stage, whose program it calls; ours where nothing is said.
        backend: The oldest Kubeflow Pipelines that shall run the file.
        placement: What the cluster offers.
        images: What the stages run in.
    """

    serving: Serving = Serving.cpu
    engines: Mapping[str, Engine] = field(default_factory=dict)
    backend: Backend = Backend.v2_16
    placement: Placement = field(default_factory=Placement)
    images: Images = field(default_factory=Images)

    def engine(self, stage: str) -> Engine:
        """Returns whose program a stage calls."""
        return self.engines.get(stage, Engine.open)

    def put(self, task: Any, name: str, stage: Stage, pools: Pools) -> Any:  # noqa: ANN401 - kfp ships no types
        """Names a task, gives it its engine's image, and places it; returns the task."""
        task.set_display_name(name)
        is_tao = bool(stage.engine) and self.engine(stage.engine) is Engine.tao
        if is_tao:
            # TensorFlow 1 in NVIDIA's image wants a GPU for whatever has to do with a network.
            pool = Pool.cpu if stage.engine == "records" else Pool.gpu
            stage = replace(stage, pool=pool, access=(*stage.access, Access.tao_key))
            task.set_container_image(self.images.tao)
        elif stage.pool is Pool.gpu:
            task.set_container_image(self.images.open_gpu)
        else:
            task.set_container_image(self.images.standing_for(task.container_spec.image))
        is_ours = not is_tao and stage.pool is not Pool.serving  # Triton's image has a user of its own
        has_contexts = self.backend is not Backend.v2_15
        place(
            task,
            name,
            stage,
            pools,
            self.placement,
            as_user=IMAGE_USER if is_ours and has_contexts else None,
            pull_secret=self.placement.ngc_pull_secret if is_tao else self.placement.image_pull_secret,
        )
        return task

    def check(self, values: Mapping[str, object]) -> None:
        """Holds parameter values against the engines.

        Raises:
            UserError: A stage of NVIDIA's program is given what only the open engine knows.
        """
        for name, (stage, neutral) in OPEN_ONLY.items():
            if self.engine(stage) is Engine.tao and values.get(name, neutral) != neutral:
                raise UserError(
                    f"parameter {name}={values[name]}: NVIDIA's program does not know it; leave it at {neutral} "
                    f"(profile tao or tao-micro), or take the open engine for {stage}"
                )


def parse_engines(text: str) -> dict[str, Engine]:
    """Reads `open`, `tao`, or one of them followed by exceptions: `tao,evaluate=open,export=open`.

    Raises:
        UserError: An engine or a stage is unknown, or NVIDIA's program would have to read a model of ours.
    """
    first, *exceptions = text.split(",")
    engines = dict.fromkeys(ENGINE_STAGES, _engine(first))
    for exception in exceptions:
        stage, _, name = exception.partition("=")
        if stage not in ENGINE_STAGES:
            raise UserError(f"--engine {exception}: no such stage; there are {', '.join(ENGINE_STAGES)}")
        engines[stage] = _engine(name)
    pairs = [(stage, source) for stage, sources in ENGINE_STAGES.items() for source in sources]
    for stage, source in pairs:
        if engines[stage] is Engine.tao and engines[source] is Engine.open:
            raise UserError(
                f"--engine {text}: NVIDIA's {stage} cannot read the .safetensors that our {source} writes; "
                f"take the open engine for {stage}, too"
            )
    return engines


def _engine(name: str) -> Engine:
    try:
        return Engine(name)
    except ValueError as error:
        raise UserError(f"--engine {name or 'STAGE='}: must be {' or '.join(Engine)}") from error
