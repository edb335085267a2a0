"""One training step: forward pass, losses, backward pass, regulariser, update."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from components.detectnet_v2.dataset import BatchTensors
from components.detectnet_v2.losses import ObjectiveWeights, WeightPenalty, bbox_cost, coverage_cost
from components.step import StageError
from components.vision.cost_scaling import CostScaling
from components.vision.distributed import Group
from components.vision.gridnet import GridNet
from components.vision.optimizer import Adam

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass
class Trainer:
    """Trains a network batch by batch, alone or with other processes.

    Attributes:
        network: In training mode, on the group's device.
        weights: Of the objectives.
        optimizer: Of the network's trained parameters.
        penalty: The regulariser.
        scaling: Cost scaling; None for none.
        precision: Of the forward and backward pass; losses, weights and updates are always in float32.
        group: The processes that train together; each sees its own part of the joined batch.
        compiled: Whether the network runs through `torch.compile`.
    """

    network: GridNet
    weights: ObjectiveWeights
    optimizer: Adam
    penalty: WeightPenalty
    scaling: CostScaling | None = None
    precision: Precision = "float32"
    group: Group = field(default_factory=Group)
    compiled: bool = False

    def __post_init__(self) -> None:
        self.device = next(self.network.parameters()).device
        self.costs = torch.zeros_like(self.weights.weights)
        self._forward: nn.Module = self.network
        if self.group.size > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            self._forward = DistributedDataParallel(self.network, device_ids=devices)
        if self.compiled:
            self._forward = torch.compile(self._forward)  # type: ignore[assignment]

    def step(self, batch: BatchTensors, rate: float) -> Tensor:
        """Trains one batch.

        Args:
            batch: Images and targets, on the network's device.
            rate: Learning rate of this step.

        Returns:
            The loss, [] on the device, over the joined batch of all processes. `costs` [C, 2] then holds the costs of
            each class's objectives. Neither is looked at here, so that a GPU need not be waited for.
        """
        costs = self._costs(batch)
        for parameter in self.optimizer.parameters:
            parameter.grad = None
        factor = self.scaling.factor if self.scaling else 1.0
        (self.weights.total(costs) * factor).backward()  # type: ignore[no-untyped-call]
        penalty: Tensor | float = 0.0
        if self.scaling is None or self._unscale(self.scaling):
            penalty = self.penalty.add_gradients()
        self.optimizer.step(rate)
        with torch.no_grad():
            self.costs = self.group.mean(costs.detach().double())
            self.weights.note(self.costs)
            return self.weights.total(self.costs) + penalty

    def _costs(self, batch: BatchTensors) -> Tensor:
        mixed = self.precision != "float32"
        kind = torch.float16 if self.precision == "float16" else torch.bfloat16
        with torch.autocast(self.device.type, kind, enabled=mixed):
            coverage, bbox = self._forward(batch.images)
        foreground = self.weights.foreground
        return torch.stack(
            [
                coverage_cost(coverage, batch.coverage, foreground, batch.mask),
                bbox_cost(bbox, batch.bbox, batch.coverage_norm, batch.mask),
            ],
            dim=1,
        )

    def _unscale(self, scaling: CostScaling) -> bool:
        """Divides the gradients by the cost's factor; zeros them if one overflowed, and says whether none did.

        The gradients are those of all processes averaged, so that all decide alike.
        """
        gradients = [parameter.grad for parameter in self.optimizer.parameters if parameter.grad is not None]
        torch._foreach_div_(gradients, scaling.factor)
        finite = bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all())
        scaling.update(finite)
        if not finite:
            torch._foreach_zero_(gradients)
        return finite


def require_finite(loss: float) -> None:
    """Raises StageError if the loss has left the numbers."""
    if not math.isfinite(loss):
        raise StageError(f"the loss became {loss}; lower training_config.learning_rate's max_learning_rate")
