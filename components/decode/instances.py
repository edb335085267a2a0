"""What a network finds in an image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Placement:
    """How an image lies in a network's input: scaled, then moved.

    Attributes:
        scale: Pixels of the input per pixel of the image, in x and y.
        offset: The image's left upper corner in the input.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)

    def to_input(self, points: Floats) -> NDArray[np.float64]:
        """Maps points [..., 2], or boxes [..., 4], of the image to the input."""
        times = points.shape[-1] // 2
        return np.asarray(points * np.tile(self.scale, times) + np.tile(self.offset, times), np.float64)

    def to_source(self, points: Floats) -> NDArray[np.float64]:
        """Maps points [..., 2], or boxes [..., 4], of the input to the image."""
        times = points.shape[-1] // 2
        return np.asarray((points - np.tile(self.offset, times)) / np.tile(self.scale, times), np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Instances:
    """The objects that were found in one image, best first.

    Attributes:
        boxes: [n, 4] x1, y1, x2, y2 in pixels.
        scores: [n].
        classes: [n] index into the decoder's `class_names`.
        points: [n, k, 2] x, y in pixels; None from decoders that find none.
        visibility: [n, k] of the points, 0 to 1.
    """

    boxes: Floats
    scores: Floats
    classes: NDArray[np.int64]
    points: Floats | None = None
    visibility: Floats | None = None

    @classmethod
    def ranked(cls, rows: Sequence[Floats]) -> Self:
        """Joins the detections of all classes, for each [n, 5] of box and score, best first."""
        joined = np.concatenate([np.zeros((0, 5), np.float32), *rows])
        classes = np.repeat(np.arange(len(rows)), [len(found) for found in rows])
        order = np.argsort(-joined[:, 4], kind="stable")
        return cls(joined[order, :4], joined[order, 4], classes[order])

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: slice | NDArray[np.bool_] | NDArray[np.int64]) -> Self:
        """Returns some of the objects."""
        points = None if self.points is None else self.points[chosen]
        visibility = None if self.visibility is None else self.visibility[chosen]
        return replace(
            self,
            boxes=self.boxes[chosen],
            scores=self.scores[chosen],
            classes=self.classes[chosen],
            points=points,
            visibility=visibility,
        )

    def select(self, class_id: int) -> Self:
        """Returns the objects of one class."""
        return self[self.classes == class_id]

    def to_source(self, placement: Placement) -> Self:
        """Returns the objects in pixels of the image that lies in the network's input so."""
        points = None if self.points is None else placement.to_source(self.points)
        return replace(self, boxes=placement.to_source(self.boxes), points=points)

    def rows(self) -> Floats:
        """Returns boxes and scores as [n, 5]."""
        return np.column_stack([self.boxes, self.scores])
