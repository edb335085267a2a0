"""What a training loop asks of whatever is trained."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from torch import Tensor

from components.vision.cost_scaling import CostScaling
from components.vision.network import Network
from components.vision.optimizer import Optimizer
from components.vision.schedule import Schedule
from components.vision.training import Resumable

Targets = TypeVar("Targets")


@dataclass(frozen=True, slots=True)
class Step:
    """A step that has been made.

    Attributes:
        number: Counted from 0 over the whole training.
        rate: Its learning rate.
        inputs: What the network saw.
        losses: What `Task.losses` returned, the mean over all processes.
        scaling: The cost scaling, if any.
        ends_epoch: Whether it was its epoch's last one.
    """

    number: int
    rate: float
    inputs: Tensor
    losses: Tensor
    scaling: CostScaling | None
    ends_epoch: bool


@dataclass(frozen=True, slots=True)
class Validation:
    """How a network did on the validation images.

    Attributes:
        cost: The lower, the better; the schedule listens to it.
        status: Further fields of the epoch's line in `status.json`.
    """

    cost: float
    status: Mapping[str, Any] = field(default_factory=dict)


class Task(ABC, Generic[Targets]):
    """A network, what it is shown, and what is wanted of it.

    Attributes:
        network: On the device of this process.
        optimizer: Any optimiser of `torch.optim`, or one like them; the schedule sets its learning rate.
        schedule: The learning rates.
        steps: Steps of an epoch.
        epochs: Of the whole training.
        seed: Of the network's own draws (dropout), which depend on it and on the step alone.
        checkpoint_interval: Epochs between two copies of the network beside the final one; 0 for none.
        data: What it is trained on, for a person.
        if_diverged: What helps when the loss leaves the numbers, for a person.
        settings: What the training depends on; a checkpoint of other settings is refused.
        parts: What has a memory beside network, optimiser and schedule.
    """

    network: Network
    optimizer: Optimizer
    schedule: Schedule
    steps: int
    epochs: int
    seed: int = 0
    checkpoint_interval: int = 0
    data: str = ""
    if_diverged: str = "lower the learning rate"
    settings: Mapping[str, Any] = MappingProxyType({})
    parts: Mapping[str, Resumable] = MappingProxyType({})

    @abstractmethod
    def batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, Targets]]:
        """Yields inputs and targets of an epoch's steps from `first_step` on (both counted from 0), on the device."""

    @abstractmethod
    def losses(self, outputs: Any, targets: Targets) -> Tensor:  # noqa: ANN401 - whatever the network returns
        """Returns a batch's losses, in any shape."""

    def total(self, losses: Tensor) -> Tensor:
        """Returns what is minimised, []: a weighted sum of the losses."""
        return losses.sum()

    def regularise(self) -> Tensor | float:
        """Adds the regulariser's gradients to those of the parameters; returns its cost."""
        return 0.0

    def scaling(self, is_float16: bool) -> CostScaling | None:
        """Returns the cost scaling, without which 16 bits would lose the small gradients; None for none."""
        return CostScaling(exponent=16.0, increment=0.005, decrement=1.0) if is_float16 else None

    def begin(self, step: int) -> None:
        """Is called before the first step, or after a resume before the next one, `step`."""

    def stepped(self, step: Step) -> None:
        """Is called after each step."""

    def is_validated(self, epochs: int) -> bool:  # noqa: ARG002 - for those that are
        """Returns whether the network is validated after so many epochs; every process says the same."""
        return False

    def validate(self, network: Network, epochs: int) -> Validation:
        """Validates the network, or its average, after so many epochs; the first process alone is asked."""
        raise NotImplementedError

    def end_epoch(self) -> None:
        """Is called after each epoch, and after its validation."""

    def describe(self, network: Network) -> None:
        """Writes into a network what is known of it besides its weights, before it is saved."""

    def close(self) -> None:
        """Is called at the end of the training."""
