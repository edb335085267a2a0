"""What is chosen when a pipeline is compiled: it decides stages, images or placement. All else is a parameter."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from components.step import UserError
from pipeline.catalogue import PipelineDefinition
from pipeline.images import Images
from pipeline.placement import Placement, Stage


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


@dataclass(frozen=True, slots=True)
class Engines:
    """Whose program the stages of TAO call: one of the engines, with exceptions.

    Attributes:
        text: As a person wrote it.
        default: The engine of all stages but the exceptions.
        exceptions: By stage.
    """

    text: str = Engine.open.value
    default: Engine = Engine.open
    exceptions: Mapping[str, Engine] = field(default_factory=dict)

    def of(self, stage: str) -> Engine:
        """Returns whose program a stage calls."""
        return self.exceptions.get(stage, self.default)

    def check(self, stages: Mapping[str, Stage]) -> None:
        """Holds the engines against the stages of a workflow.

        Raises:
            UserError: A stage is unknown, or NVIDIA's program would have to read a model of ours.
        """
        known = {name: stage.tao for name, stage in stages.items() if stage.tao}
        for stage, engine in self.exceptions.items():
            if stage not in known:
                raise UserError(f"--engine {stage}={engine}: no such stage; there are {', '.join(known)}")
        for stage, tao in known.items():
            for source in tao.reads:
                if self.of(stage) is Engine.tao and self.of(source) is Engine.open:
                    raise UserError(
                        f"--engine {self.text}: NVIDIA's {stage} cannot read the .safetensors that our {source} "
                        f"writes; take the open engine for {stage}, too"
                    )


@dataclass(frozen=True, slots=True)
class Options:
    """How to compile a pipeline.

    Attributes:
        serving: What the deployed model runs on.
        engines: Whose program the stages of TAO call.
        backend: The oldest Kubeflow Pipelines that shall run the file.
        placement: What the cluster offers.
        images: What the stages run in.
    """

    serving: Serving = Serving.cpu
    engines: Engines = field(default_factory=Engines)
    backend: Backend = Backend.v2_16
    placement: Placement = field(default_factory=Placement)
    images: Images = field(default_factory=Images)

    def check(self, definition: PipelineDefinition, values: Mapping[str, object]) -> None:
        """Holds engines and parameter values against a workflow.

        Raises:
            UserError: A stage of NVIDIA's program is given what only the open engine knows.
        """
        self.engines.check(definition.stages)
        for name, parameter in definition.parameters.items():
            stage, neutral = name.partition("_")[0], parameter.default
            is_told = parameter.is_open_only and values.get(name, neutral) != neutral
            if is_told and self.engines.of(stage) is Engine.tao:
                fitting = [key for key, each in definition.profiles.items() if each.get(name, neutral) == neutral]
                way_out = f", or take the open engine for {stage}" if definition.stages[stage].tao else ""
                raise UserError(
                    f"parameter {name}={values[name]}: NVIDIA's program does not know it; leave it at {neutral} "
                    f"(profile {' or '.join(fitting)}){way_out}"
                )


def parse_engines(text: str) -> Engines:
    """Reads `open`, `tao`, or one of them followed by exceptions: `tao,evaluate=open,export=open`.

    Raises:
        UserError: An engine is unknown.
    """
    first, *exceptions = text.split(",")
    pairs = (exception.partition("=") for exception in exceptions)
    return Engines(text, _engine(first), {stage: _engine(name) for stage, _, name in pairs})


def _engine(name: str) -> Engine:
    try:
        return Engine(name)
    except ValueError as error:
        raise UserError(f"--engine {name or 'STAGE='}: must be {' or '.join(Engine)}") from error
