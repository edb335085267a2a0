"""DetectNet_v2's losses and the weighting of its objectives (TAO 5.0, `cost_function/*`, `objectives/*`).

Beside TAO's stand two of the open engine: a focal loss of the coverage, and an overlap loss of the boxes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from components.detectnet_v2.batches import BatchTensors

OBJECTIVES = ("cov", "bbox")
_EPSILON = 1e-5
_SMALLEST = 1e-12  # that a logarithm is taken of
_ORDINARY_CELLS = 9  # of an object whose cells weigh as much as empty ones, whatever the balance


@dataclass(frozen=True, slots=True)
class ClassCost:
    """One class's entry of `cost_function_config`.

    Attributes:
        class_weight: Relative weight of the class.
        foreground_weight: Weight of cells whose coverage exceeds one half; the others weigh 1 minus this. 0 to 1.
        initial_weights: Of the objectives cov and bbox.
        weight_targets: Shares of the total cost that auto-weighting steers the objectives to.
    """

    class_weight: float
    foreground_weight: float
    initial_weights: tuple[float, float]
    weight_targets: tuple[float, float]


def coverage_cost(predicted: Tensor, target: Tensor, foreground_weight: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean weighted cross entropy of each class [C].

    Args:
        predicted: [N, C, h, w] coverage, 0..1.
        target: [N, C, h, w] coverage.
        foreground_weight: [C].
        mask: [N, 1, h, w] or [N, C, h, w]: a factor for each cell's cost.
    """
    entropy = -(target * torch.log(predicted + _EPSILON) + (1 - target) * torch.log(1 - predicted + _EPSILON))
    foreground = foreground_weight[:, None, None]
    weight = torch.where(target > 0.5, foreground, 1 - foreground)
    return (entropy * weight * mask).mean((0, 2, 3))


def bbox_cost(predicted: Tensor, target: Tensor, coverage_norm: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean absolute error of each class [C], weighted by the normalised coverage.

    Args:
        predicted: [N, 4C, h, w].
        target: [N, C, 4, h, w].
        coverage_norm: [N, C, h, w].
        mask: As in `coverage_cost`.
    """
    error = (predicted.reshape(target.shape) - target).abs()
    return torch.mean(error * (coverage_norm * mask)[:, :, None], dim=(0, 2, 3, 4))


def focal_cost(predicted: Tensor, target: Tensor, mask: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Returns the quality focal loss of each class [C], a unit of coverage: |t - p|^2 times the cross entropy.

    Empty cells that are known to be empty, nearly all of an image, count for nothing so, and what is learned of an
    object does not depend on how many others there are (Li et al., 2020, Generalized Focal Loss, equation 2; the factor
    is taken for a constant here).

    Args:
        predicted: [N, C, h, w] coverage, 0..1.
        target: [N, C, h, w] coverage.
        mask: As in `coverage_cost`.
        weight: A further factor of each cell's cost, of which the units know nothing.
    """
    # Written out: torch's refuses what is no number by an exception, on a GPU one that the process does not survive.
    present, absent = (share.clamp(min=_SMALLEST).log() for share in (predicted, 1 - predicted))
    entropy = -(target * present + (1 - target) * absent)
    factor = (target - predicted.detach()).square()
    return (entropy * factor * mask * weight).sum((0, 2, 3)) / _amount(target * mask)


def object_weights(coverage: Tensor, coverage_norm: Tensor, balance: float) -> Tensor:
    """Returns factors [N, C, h, w] of the cells' cost, by which large objects do not drown small ones.

    An object of n cells has n chances to be learned of; its cells weigh (n / 9) ^ -balance. Cells of none, and those of
    which it is not known how many share the object (a teacher's), weigh 1.

    Args:
        coverage: [N, C, h, w].
        coverage_norm: [N, C, h, w], the same divided by n; see `encode`.
        balance: 0, where all cells weigh 1, to 1, where all objects weigh as much.
    """
    cells = coverage / coverage_norm.clamp(min=_SMALLEST)
    return torch.where(cells > 1, (cells / _ORDINARY_CELLS) ** -balance, 1.0)


def overlap_cost(predicted: Tensor, target: Tensor, coverage_norm: Tensor, mask: Tensor) -> Tensor:
    """Returns 1 - GIoU and the absolute error of each class [C], the mean over its objects' cells.

    GIoU is the IoU less the share of the smallest box around both that neither fills (Rezatofighi et al., 2019). Unlike
    a distance, it is as strict with small objects as with large ones; but a predicted box without area, inside the
    object, has no gradient: the distance leads it out of there.

    Args:
        predicted: [N, 4C, h, w].
        target: [N, C, 4, h, w].
        coverage_norm: [N, C, h, w].
        mask: As in `coverage_cost`.
    """
    predicted, weight = predicted.reshape(target.shape), coverage_norm * mask
    loss = 1 - generalised_iou(predicted, target, dim=2) + (predicted - target).abs().mean(2)
    return (loss * weight).sum((0, 2, 3)) / _amount(weight)


def generalised_iou(one: Tensor, other: Tensor, dim: int) -> Tensor:
    """Returns the GIoU, above -1 to 1, of boxes given by their distances from common points.

    Args:
        one: Distances to the left, top, right and bottom edge along `dim`, in any unit. Edges that cross leave no area.
        other: The same.
        dim: The dimension of length 4, which the result lacks.
    """
    inner, outer = torch.minimum(one, other), torch.maximum(one, other)

    def area(edges: Tensor) -> Tensor:
        left, top, right, bottom = edges.unbind(dim)
        return (left + right).clamp(min=0) * (top + bottom).clamp(min=0)

    shared, hull = area(inner), area(outer).clamp(min=_EPSILON**2)
    union = (area(one) + area(other) - shared).clamp(min=_EPSILON**2)
    return shared / union - (hull - union) / hull


def _amount(weight: Tensor) -> Tensor:
    """Returns the sum of each class's weights [C], at least an object's in every image, or few would count too much."""
    return weight.sum((0, 2, 3)).clamp(min=len(weight))


class Objectives:
    """What the two objectives, coverage and box, cost, and their weights.

    The weights are re-balanced after each epoch when auto-weighting is enabled: weight = target share / summed cost,
    normalised to sum 1 and then limited (without normalising again), so that a cheap objective gains what an expensive
    one loses.

    Attributes:
        weights: [C, 2], of each class's objectives.
    """

    def __init__(
        self,
        classes: Sequence[ClassCost],
        auto: bool,
        minimum: float,
        maximum: float,
        device: str | torch.device = "cpu",
        *,
        focal: bool = False,
        balance: float = 0.0,
        overlap: bool = False,
    ) -> None:
        """Takes the weights of the beginning.

        Args:
            classes: Each class's part of the cost.
            auto: Whether the weights are re-balanced.
            minimum: Of a weight that was re-balanced.
            maximum: Of a weight that was re-balanced.
            device: Of the training.
            focal: Whether the coverage's cost is `focal_cost`, not TAO's `coverage_cost`.
            balance: Of the focal cost; see `object_weights`.
            overlap: Whether the box's cost is `overlap_cost`, not TAO's `bbox_cost`.
        """

        def rows(values: list[Any]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64, device=device)

        initial = rows([cost.initial_weights for cost in classes])
        class_weights = rows([cost.class_weight for cost in classes])
        self._targets = rows([cost.weight_targets for cost in classes])
        self._class_weights = class_weights / class_weights.sum()
        self._auto, self._minimum, self._maximum = auto, minimum, maximum
        self._foreground = torch.tensor([cost.foreground_weight for cost in classes], device=device)
        self._is_focal, self._balance, self._box_cost = focal, balance, overlap_cost if overlap else bbox_cost
        self.weights = initial / initial.sum(1, keepdim=True)
        self._sums = torch.zeros_like(self.weights)

    def costs(self, outputs: tuple[Tensor, Tensor], targets: BatchTensors) -> Tensor:
        """Returns the costs [C, 2] of each class's objectives.

        Args:
            outputs: Coverage and bbox, as the network returns them.
            targets: What they should be.
        """
        coverage, bbox = outputs
        if self._is_focal:
            weight = object_weights(targets.coverage, targets.coverage_norm, self._balance) if self._balance else 1.0
            of_coverage = focal_cost(coverage, targets.coverage, targets.mask, weight)
        else:
            foreground = self._foreground.to(coverage.device)
            of_coverage = coverage_cost(coverage, targets.coverage, foreground, targets.mask)
        return torch.stack(
            [of_coverage, self._box_cost(bbox, targets.bbox, targets.coverage_norm, targets.mask)], dim=1
        )

    def total(self, costs: Tensor) -> Tensor:
        """Returns the weighted sum of the costs [C, 2] of each class's objectives."""
        return (costs * (self._class_weights[:, None] * self.weights).to(costs)).sum()

    def note(self, costs: Tensor) -> None:
        """Adds a step's costs [C, 2], those of all processes averaged, to the epoch's."""
        self._sums += costs

    def end_epoch(self) -> None:
        """Re-balances the weights from the epoch's summed costs."""
        if self._auto:
            raw = torch.where(self._sums > 0, self._targets / self._sums, 0.0)
            total = raw.sum(1, keepdim=True)
            balanced = (raw / total).clamp(min=self._minimum).clamp(max=self._maximum)
            self.weights.copy_(torch.where(total > 0, balanced, self.weights))
        self._sums.zero_()

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint must hold."""
        return {"weights": self.weights.tolist(), "sums": self._sums.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""
        for name, values in (("weights", self.weights), ("sums", self._sums)):
            values.copy_(torch.tensor(state[name], dtype=torch.float64))


@dataclass(frozen=True)
class WeightPenalty:
    """The regulariser: weight * sum |w| (L1) or weight * sum w^2 (L2) over kernels and biases, not batch norms.

    Attributes:
        kind: Which one, or `none`.
        weight: At least 0.
        parameters: The regularised ones.
    """

    kind: Literal["none", "L1", "L2"]
    weight: float
    parameters: list[Tensor]

    @torch.no_grad()
    def add_gradients(self) -> Tensor | float:
        """Adds the penalty's gradients to those of the loss; returns the penalty."""
        if self.kind == "none" or not self.weight or not self.parameters:
            return 0.0
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if self.kind == "L1":
            torch._foreach_add_(gradients, torch._foreach_sign(self.parameters), alpha=self.weight)
            return self.weight * torch.stack(torch._foreach_norm(self.parameters, 1)).sum()
        torch._foreach_add_(gradients, self.parameters, alpha=2 * self.weight)
        return self.weight * torch.stack(torch._foreach_norm(self.parameters, 2)).square().sum()
