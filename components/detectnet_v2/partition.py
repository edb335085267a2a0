"""The input of `dataset_convert`: images with labels, divided into partitions (folds)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from components.detectnet_v2.records import Frame

Skipped = dict[str, list[int]]
"""Objects without area: the place of the label, and the integer parts of x1, y1, x2, y2."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A part of the data that becomes one fold.

    Attributes:
        keys: Images, in the order in which they are written.
        shards: Number of record files; 0 for one whose name has no shard part.
        read: Reads the labels of the image with a key. Safe to call from several threads.
    """

    keys: list[str]
    shards: int
    read: Callable[[str], tuple[Frame, Skipped]]


def has_area(box: Sequence[float]) -> bool:
    """Returns whether a box x1, y1, x2, y2 has an area after truncation to integers, as TAO requires."""
    x1, y1, x2, y2 = (int(value) for value in box)
    return x1 < x2 and y1 < y2
