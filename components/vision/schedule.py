"""Learning rates over the steps of a training: as TAO's specs describe them, and a cosine."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class Schedule(Protocol):
    """A learning rate that changes from step to step, and may listen to the validation cost."""

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 0 over the whole training."""
        ...

    def validated(self, epoch: int, step: int, cost: float) -> bool:
        """Takes note of the validation cost after `epoch` epochs (`step` steps); returns whether training goes on."""
        ...

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint must hold, as plain values."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""
        ...


class _Fixed:
    """A schedule that depends on the step alone."""

    __slots__ = ()

    def validated(self, epoch: int, step: int, cost: float) -> bool:  # noqa: ARG002 - it does not listen
        """Goes on."""
        return True

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


@dataclass(frozen=True, slots=True)
class CosineAnnealing(_Fixed):
    """Linear ramp up, then half a cosine down (Loshchilov and Hutter, 2017, without restarts).

    Attributes:
        minimum: Learning rate at the end; the ramp begins at 0, its first step is above that.
        maximum: Learning rate at the end of the ramp.
        warm_up: Progress at which the ramp ends, 0 to 1.
        total_steps: Steps of the whole training.
    """

    minimum: float
    maximum: float
    warm_up: float
    total_steps: int

    def rate(self, step: int) -> float:
        """See `Schedule`."""
        ramp = self.warm_up * self.total_steps
        if step + 1 < ramp:
            return self.maximum * (step + 1) / ramp
        progress = (step - ramp) / (self.total_steps - ramp)
        return self.minimum + (self.maximum - self.minimum) * (1 + math.cos(math.pi * max(0.0, progress))) / 2


@dataclass(frozen=True, slots=True)
class SoftStartAnnealing(_Fixed):
    """Log-linear ramp up, plateau, log-linear ramp down (`soft_start_annealing_schedule`).

    Attributes:
        minimum: Learning rate at both ends.
        maximum: Learning rate of the plateau.
        soft_start: Progress at which the ramp up ends, 0 to 1.
        annealing: Progress at which the ramp down begins, 0 to 1.
        total_steps: Steps of the whole training.
    """

    minimum: float
    maximum: float
    soft_start: float
    annealing: float
    total_steps: int

    def rate(self, step: int) -> float:
        """See `Schedule`."""
        progress = step / self.total_steps
        if progress < self.soft_start:
            height = progress / self.soft_start
        elif progress > self.annealing:
            height = (1 - progress) / (1 - self.annealing)
        else:
            height = 1.0
        return _between(self.minimum, self.maximum, height)


@dataclass
class EarlyStoppingAnnealing:
    """Ramp up, hold until the validation cost stalls, ramp down, hold until it stalls again, stop.

    `early_stopping_annealing_schedule` (TAO 5.0, `tfhooks/early_stopping_hook.py`). The cost has stalled when its
    lowest value lies `patience` epochs or more in the past.

    Attributes:
        minimum: Learning rate at both ends.
        maximum: Learning rate between the ramps.
        soft_start_steps: Steps of the ramp up; 0 starts at the maximum.
        annealing_steps: Steps of the ramp down; 0 holds the maximum.
        patience: In epochs.
    """

    minimum: float
    maximum: float
    soft_start_steps: int
    annealing_steps: int
    patience: int
    annealing: bool = False
    phase_start: int = 0
    best_cost: float = math.inf
    best_epoch: int = 0

    def rate(self, step: int) -> float:
        """See `Schedule`."""
        in_phase = step - self.phase_start
        if self.annealing:
            height = max(0.0, 1 - in_phase / self.annealing_steps) if self.annealing_steps else 1.0
        else:
            height = min(1.0, in_phase / self.soft_start_steps) if self.soft_start_steps else 1.0
        return _between(self.minimum, self.maximum, height)

    def validated(self, epoch: int, step: int, cost: float) -> bool:
        """See `Schedule`."""
        if cost < self.best_cost:
            self.best_cost, self.best_epoch = cost, epoch
        elif epoch - self.best_epoch >= self.patience:
            if not self.annealing:
                self.annealing, self.phase_start = True, step
                self.best_cost, self.best_epoch = cost, epoch
            elif step - self.phase_start > self.annealing_steps:
                return False
        return True

    def state(self) -> dict[str, Any]:
        """See `Schedule`."""
        return {
            "annealing": self.annealing,
            "phase_start": self.phase_start,
            "best_cost": None if math.isinf(self.best_cost) else self.best_cost,
            "best_epoch": self.best_epoch,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `Schedule`."""
        self.annealing, self.phase_start = state["annealing"], state["phase_start"]
        self.best_cost = math.inf if state["best_cost"] is None else state["best_cost"]
        self.best_epoch = state["best_epoch"]


def _between(minimum: float, maximum: float, height: float) -> float:
    """Interpolates on a logarithmic scale; `height` is 0 to 1."""
    return math.exp(math.log(minimum) + height * (math.log(maximum) - math.log(minimum)))
