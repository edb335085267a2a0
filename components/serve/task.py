"""What a task is to Triton: its networks, the steps around them, and the contract that its clients rely on.

A family of models describes its own in `components/<family>/served.py`; see `components.serve.families`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.step import UserError
from components.vision import endpoint
from components.vision.inputs import PIXELS
from components.vision.predictor import TENSOR_SUFFIX


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a model's configuration; without the dimension of the batch.

    Attributes:
        name: Its name.
        kind: Its type without `TYPE_`, for example FP32.
        dims: Its dimensions; -1 for any.
        ragged: Whether requests of different lengths may share a batch.
        format: The order of its dimensions where clients ask for it, for example `FORMAT_NCHW`.
    """

    name: str
    kind: str
    dims: Sequence[int]
    ragged: bool = False
    format: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model of a repository.

    Attributes:
        name: What follows the task's prefix, for example `preprocess`; empty for the network that the task is about.
        inputs: What it takes.
        outputs: What it gives.
        wires: By tensor, what the ensemble calls it, where that is not its own name.
    """

    name: str = ""
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    wires: Mapping[str, str] = field(default_factory=dict)

    def wired(self, tensors: Sequence[Tensor]) -> dict[str, str]:
        """Returns by tensor what the ensemble calls it."""
        return {tensor.name: self.wires.get(tensor.name, tensor.name) for tensor in tensors}


@dataclass(frozen=True, slots=True, kw_only=True)
class Network(Model):
    """A network: an ONNX file, or the plan that was built of it."""

    file: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Model):
    """What happens before or after a network, in Python: `components/serve/models/<name>.py`.

    Attributes:
        parameters: What it needs to know, values for JSON.
    """

    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Contract:
    """What clients send and get."""

    request: Sequence[Tensor]
    answer: Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class ServedTask:
    """A task as it is served.

    Attributes:
        prefix: With it begin the names of all its models.
        models: Networks and steps, in the order in which an image passes through them.
        contract: Of the ensemble.
        metric: What it is scored by; see `components.measure.metric`.
        parameters: What clients read from the ensemble's configuration, values for JSON.
        description: Of the exported model, as its manifest has it; with it the network is a model like any other.
    """

    prefix: str
    models: Sequence[Model]
    contract: Contract
    metric: str
    parameters: Mapping[str, Any]
    description: Mapping[str, Any]

    @property
    def networks(self) -> dict[str, Network]:
        """By name, the networks."""
        return {self.name_of(model): model for model in self.models if isinstance(model, Network)}

    @property
    def steps(self) -> dict[str, Step]:
        """By name, the steps."""
        return {self.name_of(model): model for model in self.models if isinstance(model, Step)}

    @property
    def ensemble(self) -> str:
        """The name of the model that does everything."""
        return ensemble_of(self.prefix)

    def name_of(self, model: Model) -> str:
        """Returns the name of one of the models."""
        return f"{self.prefix}_{model.name}" if model.name else self.prefix


def ensemble_of(prefix: str) -> str:
    """Returns the name of a task's ensemble."""
    return f"{prefix}_ensemble"


IMAGE = Tensor(endpoint.INPUT, "UINT8", [-1])
IMAGE_SIZE, IMAGE_ERROR = Tensor(endpoint.SIZE, "INT64", [3]), Tensor("image_error", "UINT8", [-1])
PLACEMENT = Tensor("placement", "FP64", [4])
DETECTIONS = (
    Tensor(endpoint.BOXES, "FP32", [-1, 4]),
    Tensor(endpoint.SCORES, "FP32", [-1, 1]),
    Tensor(endpoint.CLASSES, "INT32", [-1, 1]),
    Tensor(endpoint.COUNT, "INT32", [1]),
)
# Encoded images in, boxes in their own pixels out.
DETECTION = Contract([IMAGE], [*DETECTIONS, IMAGE_SIZE, IMAGE_ERROR])


def image_step(shape: Sequence[int], parameters: Mapping[str, Any]) -> Step:
    """Returns the step that decodes images and fits them into a network's input.

    Args:
        shape: Of the network's input, which the ensemble calls `pixels`.
        parameters: See `components.serve.models.preprocess`.
    """
    # Encoded images have as many bytes as they have: requests of different lengths share a batch.
    encoded = Tensor(IMAGE.name, IMAGE.kind, IMAGE.dims, ragged=True)
    pixels = Tensor(PIXELS, "FP32", list(shape))
    outputs = [pixels, PLACEMENT, IMAGE_SIZE, IMAGE_ERROR]
    return Step(
        name="preprocess", inputs=[encoded], outputs=outputs, wires={pixels.name: "pixels"}, parameters=parameters
    )


def found_from(min_score: float | None) -> dict[str, float]:
    """Returns the parameter of a step `postprocess` that says from which score on objects are shown, if it is set."""
    return {} if min_score is None else {endpoint.MIN_SCORE: min_score}


def tensor_names(file: Path, wanted: Mapping[str, str]) -> dict[str, str]:
    """Returns what a graph calls tensors, which may have `:0` behind their names.

    Args:
        file: The ONNX file.
        wanted: By a word of ours, the name without a suffix; the first one is an input.

    Raises:
        UserError: It has others, or its batch size is fixed.
    """
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    found = {value.name.removesuffix(TENSOR_SUFFIX): value for value in [*inputs, *graph.output]}
    for name in wanted.values():
        if name not in found:
            raise UserError(f"{file}: no tensor {name!r}; it has {', '.join(value.name for value in found.values())}")
    batch = found[next(iter(wanted.values()))].type.tensor_type.shape.dim[0].dim_value
    if batch:
        raise UserError(f"{file}: its batch size is fixed to {batch}; export it without --batch_size for serving")
    return {word: found[name].name for word, name in wanted.items()}
