"""Boxes to grid targets: DetectNet_v2's coverage ellipses and edge distances (TAO 5.0, `bbox_rasterizer.py`)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.decode.grid.geometry import GridGeometry

# Coverage is the share of a 4 x 4 supersample of each cell.
_SAMPLES = 4
_SAMPLE_OFFSETS = (np.arange(_SAMPLES) + 0.5) / _SAMPLES
# TAO's floor for an ellipse's half axes, in cells.
_SMALLEST_RADIUS = 0.1


@dataclass(frozen=True, slots=True)
class CoverageShape:
    """How one class's boxes become coverage ellipses (a `bbox_rasterizer_config.target_class_config` entry).

    Attributes:
        center_x: Ellipse centre as a share of the box's width, 0 to 1.
        center_y: Ellipse centre as a share of the box's height, 0 to 1.
        radius_x: Half axis as a share of the distance from the centre to the farther box edge, 0 to 1.
        radius_y: The same, vertically.
        min_radius: Smallest half axis, in cells; smaller ellipses grow with their aspect ratio kept.
    """

    center_x: float = 0.5
    center_y: float = 0.5
    radius_x: float = 1.0
    radius_y: float = 1.0
    min_radius: float = 1.0


@dataclass(frozen=True, slots=True)
class Targets:
    """Training targets of one image.

    Attributes:
        coverage: [C, rows, columns], the share of each cell that an object's ellipse covers, 0 to 1.
        coverage_norm: [C, rows, columns], coverage divided by the ellipse's bounding area in cells (at least 1).
        bbox: [C, 4, rows, columns], distances from the reference point to left, top, right and bottom edge,
            divided by the geometry's scale. Zero where no object is.
    """

    coverage: NDArray[np.float32]
    coverage_norm: NDArray[np.float32]
    bbox: NDArray[np.float32]


def encode(
    boxes: NDArray[np.float32],
    class_ids: NDArray[np.int64],
    shapes: Sequence[CoverageShape],
    geometry: GridGeometry,
    deadzone_radius: float = 0.67,
) -> Targets:
    """Rasterises the boxes of one image into grid targets.

    Boxes are drawn by ascending lower edge, so that the object closer to the camera lies on top. An object's
    deadzone (between its coverage ellipse and its full ellipse) erases what lies below it.

    Args:
        boxes: [K, 4] x1, y1, x2, y2 in pixels of the network's input; they may leave the image.
        class_ids: [K] index into `shapes`.
        shapes: One coverage shape for each of the C classes.
        geometry: The grid.
        deadzone_radius: 0 (the deadzone equals the coverage ellipse) to 1 (it equals the full ellipse).
    """
    # Sample points covered in each cell, and the box that covers them (without meaning where there are none).
    covered = np.zeros((len(shapes), geometry.rows, geometry.columns), np.uint8)
    owner = np.zeros(covered.shape, np.intp)
    inverse_area = np.zeros(len(boxes), np.float32)
    for index in np.argsort(boxes[:, 3], kind="stable").tolist():
        ellipse, deadzone = _ellipses(boxes[index] / geometry.stride, shapes[class_ids[index]], deadzone_radius)
        inverse_area[index] = 1.0 / max(4 * ellipse.rx * ellipse.ry, 1.0)
        rows = _touched(deadzone.cy, deadzone.ry, geometry.rows)
        columns = _touched(deadzone.cx, deadzone.rx, geometry.columns)
        inside = ellipse.samples_inside(rows, columns)
        erased = inside if deadzone == ellipse else deadzone.samples_inside(rows, columns)
        below = covered[class_ids[index], rows, columns]
        # The deadzone holds the ellipse: a cell that it does not erase is not written either. Where both miss an
        # empty cell, nothing is written over nothing.
        won = erased >= below
        np.copyto(below, inside, where=won)
        np.copyto(owner[class_ids[index], rows, columns], index, where=won)

    coverage = covered.astype(np.float32) / np.float32(_SAMPLES**2)
    norm = np.zeros(covered.shape, np.float32)
    bbox = np.zeros((len(shapes), 4, geometry.rows, geometry.columns), np.float32)
    class_id, row, column = cells = np.nonzero(covered)
    norm[cells] = coverage[cells] * inverse_area[owner[cells]]
    points_x, points_y = geometry.reference_points()
    x, y = points_x[column], points_y[row]
    x1, y1, x2, y2 = boxes[owner[cells]].T
    bbox[class_id, :, row, column] = np.stack([x - x1, y - y1, x2 - x, y2 - y], axis=1) / np.float32(geometry.scale)
    return Targets(coverage, norm, bbox)


@dataclass(frozen=True, slots=True)
class _Ellipse:
    """An upright ellipse: centre and half axes, in cells."""

    cx: float
    cy: float
    rx: float
    ry: float

    def samples_inside(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        """Returns how many of each cell's 4 x 4 sample points lie strictly inside."""
        x = np.arange(columns.start, columns.stop) + _SAMPLE_OFFSETS[:, None]
        y = np.arange(rows.start, rows.stop) + _SAMPLE_OFFSETS[:, None]
        x, y = ((x - self.cx) / self.rx) ** 2, ((y - self.cy) / self.ry) ** 2
        inside = x[:, None, None, :] + y[:, :, None] < 1
        count: NDArray[np.uint8] = inside.view(np.uint8).sum((0, 1), np.uint8)
        return count


def _ellipses(box: NDArray[np.float32], shape: CoverageShape, deadzone_radius: float) -> tuple[_Ellipse, _Ellipse]:
    """Returns the coverage ellipse and the deadzone, which holds it, of a box [4] in cells."""
    x1, y1, x2, y2 = box.tolist()
    cx = x1 + shape.center_x * (x2 - x1)
    cy = y1 + shape.center_y * (y2 - y1)
    full_rx = cx - x1 if shape.center_x < 0.5 else x2 - cx
    full_ry = cy - y1 if shape.center_y < 0.5 else y2 - cy
    rx = max(shape.radius_x * full_rx, _SMALLEST_RADIUS)
    ry = max(shape.radius_y * full_ry, _SMALLEST_RADIUS)
    if rx < shape.min_radius:
        rx, ry = shape.min_radius, shape.min_radius * ry / rx
    if ry < shape.min_radius:
        rx, ry = shape.min_radius * rx / ry, shape.min_radius
    deadzone_rx = max((1 - deadzone_radius) * rx + deadzone_radius * full_rx, rx)
    deadzone_ry = max((1 - deadzone_radius) * ry + deadzone_radius * full_ry, ry)
    return _Ellipse(cx, cy, rx, ry), _Ellipse(cx, cy, deadzone_rx, deadzone_ry)


def _touched(center: float, radius: float, cells: int) -> slice:
    """Returns the range of cells that [center - radius, center + radius] touches, inside the grid."""
    start = min(max(math.floor(center - radius), 0), cells)
    return slice(start, max(min(math.ceil(center + radius), cells), start))
