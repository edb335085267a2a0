"""Boxes to grid targets: DetectNet_v2's coverage ellipses and edge distances (TAO 5.0, `bbox_rasterizer.py`)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.grid.geometry import GridGeometry

# Coverage is the share of a 4 x 4 supersample of each cell.
_SAMPLES = 4
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
        deadzone_radius: 0 (the deadzone equals the full ellipse) to 1 (it equals the coverage ellipse).
    """
    classes, rows, columns = len(shapes), geometry.rows, geometry.columns
    coverage = np.zeros((classes, rows, columns), np.float32)
    norm = np.zeros_like(coverage)
    bbox = np.zeros((classes, 4, rows, columns), np.float32)
    points_x, points_y = geometry.reference_points()
    for index in np.argsort(boxes[:, 3], kind="stable"):
        box, class_id = boxes[index], int(class_ids[index])
        ellipse = _Ellipse.of(box / geometry.stride, shapes[class_id], deadzone_radius)
        x0, x1 = _cell_range(ellipse.cx, max(ellipse.rx, ellipse.deadzone_rx), columns)
        y0, y1 = _cell_range(ellipse.cy, max(ellipse.ry, ellipse.deadzone_ry), rows)
        if x0 >= x1 or y0 >= y1:
            continue
        share = _share_inside(ellipse.cx, ellipse.cy, ellipse.rx, ellipse.ry, x0, x1, y0, y1)
        if ellipse.has_deadzone:
            deadzone = _share_inside(ellipse.cx, ellipse.cy, ellipse.deadzone_rx, ellipse.deadzone_ry, x0, x1, y0, y1)
        else:
            deadzone = share
        window = np.s_[y0:y1, x0:x1]
        current = coverage[class_id][window]
        erased = (deadzone >= current) & (deadzone > 0)
        current[erased] = 0
        norm[class_id][window][erased] = 0
        bbox[class_id][:, y0:y1, x0:x1][:, erased] = 0
        written = (share >= current) & (share > 0)
        current[written] = share[written]
        norm[class_id][window][written] = share[written] * ellipse.inverse_area
        edges = np.empty((4, y1 - y0, x1 - x0), np.float32)
        edges[0] = points_x[x0:x1] - box[0]
        edges[1] = (points_y[y0:y1] - box[1])[:, None]
        edges[2] = box[2] - points_x[x0:x1]
        edges[3] = (box[3] - points_y[y0:y1])[:, None]
        bbox[class_id][:, y0:y1, x0:x1][:, written] = edges[:, written] / np.float32(geometry.scale)
    return Targets(coverage, norm, bbox)


@dataclass(frozen=True, slots=True)
class _Ellipse:
    """Coverage and deadzone ellipse of one box, in cells."""

    cx: float
    cy: float
    rx: float
    ry: float
    deadzone_rx: float
    deadzone_ry: float

    @classmethod
    def of(cls, box: NDArray[np.float32], shape: CoverageShape, deadzone_radius: float) -> "_Ellipse":
        x1, y1, x2, y2 = (float(edge) for edge in box)
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
        return cls(
            cx,
            cy,
            rx,
            ry,
            max((1 - deadzone_radius) * rx + deadzone_radius * full_rx, rx),
            max((1 - deadzone_radius) * ry + deadzone_radius * full_ry, ry),
        )

    @property
    def inverse_area(self) -> float:
        return 1.0 / max(4 * self.rx * self.ry, 1.0)

    @property
    def has_deadzone(self) -> bool:
        return self.deadzone_rx > self.rx or self.deadzone_ry > self.ry


def _cell_range(center: float, radius: float, cells: int) -> tuple[int, int]:
    """Returns the half-open range of cells that [center - radius, center + radius] touches, inside the grid."""
    return max(0, int(np.floor(center - radius))), min(cells, int(np.ceil(center + radius)))


def _share_inside(
    cx: float, cy: float, rx: float, ry: float, x0: int, x1: int, y0: int, y1: int
) -> NDArray[np.float32]:
    """Returns [y1 - y0, x1 - x0]: the share of each cell's 4 x 4 sample points strictly inside the ellipse."""
    x = x0 + (np.arange((x1 - x0) * _SAMPLES) + 0.5) / _SAMPLES
    y = y0 + (np.arange((y1 - y0) * _SAMPLES) + 0.5) / _SAMPLES
    inside = ((x - cx) / rx) ** 2 + (((y - cy) / ry) ** 2)[:, None] < 1
    share: NDArray[np.float32] = inside.reshape(y1 - y0, _SAMPLES, x1 - x0, _SAMPLES).mean((1, 3), dtype=np.float32)
    return share
