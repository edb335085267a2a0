"""Cost scaling: keeps small gradients above the smallest number that 16 bits can hold."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class CostScaling:
    """The cost is multiplied by 2^exponent before the backward pass (TAO 5.0, `training/train_op_generator.py`).

    Attributes:
        exponent: Grows by `increment` with every step whose gradients are finite.
        increment: At least 0.
        decrement: Subtracted from the exponent after a step with an overflow, whose gradients are replaced by zeros.
        overflows: How many steps that were.
    """

    exponent: float
    increment: float
    decrement: float
    overflows: int = 0

    @property
    def factor(self) -> float:
        """What the cost is multiplied by."""
        return float(2.0**self.exponent)

    def update(self, finite: bool) -> None:
        """Takes note of whether a step's gradients were finite."""
        self.exponent += self.increment if finite else -self.decrement
        self.overflows += not finite

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint must hold."""
        return {"exponent": self.exponent, "overflows": self.overflows}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""
        self.exponent, self.overflows = state["exponent"], state["overflows"]
