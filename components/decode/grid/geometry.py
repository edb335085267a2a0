"""The grid that a grid-box detector predicts on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STRIDE = 16


@dataclass(frozen=True, slots=True)
class GridGeometry:
    """Where the grid's cells lie in the network's input, and how box edges are scaled.

    Attributes:
        width: Network input width, pixels, a multiple of `stride`.
        height: Network input height, pixels, a multiple of `stride`.
        stride: Pixels per cell.
        scale: Pixels per unit of the bbox output (`objective_set.bbox.scale`).
        offset: Pixels from a cell's top-left corner to its reference point (`objective_set.bbox.offset`).
    """

    width: int
    height: int
    stride: int = STRIDE
    scale: float = 35.0
    offset: float = 0.5

    def __post_init__(self) -> None:
        if self.width % self.stride or self.height % self.stride:
            raise ValueError(f"input {self.width}x{self.height} is not divisible by {self.stride}")

    @property
    def columns(self) -> int:
        """Cells in a row."""
        return self.width // self.stride

    @property
    def rows(self) -> int:
        """Cells in a column."""
        return self.height // self.stride

    def reference_points(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns x [columns] and y [rows] in pixels of the points that box edges are measured from.

        DetectNet_v2 measures from the cell's top-left corner plus `offset`, not from the cell's centre.
        """
        return (
            np.arange(self.columns, dtype=np.float32) * self.stride + np.float32(self.offset),
            np.arange(self.rows, dtype=np.float32) * self.stride + np.float32(self.offset),
        )
