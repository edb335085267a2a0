"""Grid predictions to boxes (TAO 5.0, `postprocessor/postprocessing.py`)."""

import numpy as np
from numpy.typing import NDArray

from components.decode.grid.geometry import GridGeometry


def decode(bbox: NDArray[np.float32], geometry: GridGeometry) -> NDArray[np.float32]:
    """Turns predicted edge distances into boxes clipped to the network's input.

    Args:
        bbox: [4, rows, columns], one class's bbox output: left, top, right and bottom distance over the scale.
        geometry: The grid the network predicts on.

    Returns:
        [rows, columns, 4] x1, y1, x2, y2 in pixels, with 0 <= x1 <= x2 <= width and 0 <= y1 <= y2 <= height.
    """
    return clip(decode_unclipped(bbox, geometry), geometry)


def decode_unclipped(bbox: NDArray[np.float32], geometry: GridGeometry) -> NDArray[np.float32]:
    """As `decode`, with boxes that may reach beyond the input. Edges that cross meet instead, which TAO's do not."""
    x, y = geometry.reference_points()
    boxes = np.empty((*bbox.shape[1:], 4), np.float32)
    boxes[..., 0] = x - geometry.scale * bbox[0]
    boxes[..., 1] = y[:, None] - geometry.scale * bbox[1]
    boxes[..., 2] = np.maximum(x + geometry.scale * bbox[2], boxes[..., 0])
    boxes[..., 3] = np.maximum(y[:, None] + geometry.scale * bbox[3], boxes[..., 1])
    return boxes


def clip(boxes: NDArray[np.float32], geometry: GridGeometry) -> NDArray[np.float32]:
    """Clips boxes [..., 4] to the network's input."""
    return np.clip(boxes, 0, np.array([geometry.width, geometry.height] * 2, np.float32))
