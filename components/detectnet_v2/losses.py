"""DetectNet_v2's losses and the weighting of its objectives (TAO 5.0, `cost_function/*`, `objectives/*`)."""

from dataclasses import dataclass

import torch
from torch import Tensor

OBJECTIVES = ("cov", "bbox")
_EPSILON = 1e-5


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


class ObjectiveWeights:
    """The objectives' weights, re-balanced after each epoch when auto-weighting is enabled.

    After an epoch, weight = target share / summed cost, normalised to sum 1 and then limited (without normalising
    again), so that a cheap objective gains what an expensive one loses.
    """

    def __init__(self, classes: list[ClassCost], auto: bool, minimum: float, maximum: float) -> None:
        initial = torch.tensor([cost.initial_weights for cost in classes], dtype=torch.float64)
        class_weights = torch.tensor([cost.class_weight for cost in classes], dtype=torch.float64)
        self._targets = torch.tensor([cost.weight_targets for cost in classes], dtype=torch.float64)
        self._class_weights = class_weights / class_weights.sum()
        self._auto, self._minimum, self._maximum = auto, minimum, maximum
        self.foreground = torch.tensor([cost.foreground_weight for cost in classes])
        # [C, 2]: weight of each class's objectives. This is all that a checkpoint must hold (between epochs).
        self.weights = initial / initial.sum(1, keepdim=True)
        self._sums = torch.zeros_like(self.weights)

    def total(self, coverage: Tensor, bbox: Tensor) -> Tensor:
        """Returns the weighted sum of the costs [C] of both objectives and takes note of them."""
        costs = torch.stack([coverage, bbox], dim=1)
        self._sums += costs.detach().cpu().double()
        return (costs * (self._class_weights[:, None] * self.weights).to(costs)).sum()

    def end_epoch(self) -> None:
        """Re-balances the weights from the epoch's summed costs."""
        if self._auto:
            raw = torch.where(self._sums > 0, self._targets / self._sums, 0.0)
            total = raw.sum(1, keepdim=True)
            balanced = (raw / total).clamp(min=self._minimum).clamp(max=self._maximum)
            self.weights = torch.where(total > 0, balanced, self.weights)
        self._sums.zero_()
