"""Drawing detections on images."""

from dataclasses import dataclass

import cv2

from components.formats.images import Image
from components.formats.kitti import Label


@dataclass(frozen=True, slots=True)
class Drawing:
    """How one class's detections are written and drawn.

    Attributes:
        output_name: Class name in the label files.
        colour: BGR, 0..255.
    """

    output_name: str
    colour: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Found:
    """A detection in an image, in the image's own pixels, and how it is drawn."""

    label: Label
    drawing: Drawing


def draw(image: Image, found: list[Found], line_width: int) -> None:
    """Draws boxes and scores on an image [H, W, 3] BGR; lines are `line_width` pixels wide."""
    for entry in found:
        x1, y1, x2, y2 = (round(edge) for edge in entry.label.box)
        colour = entry.drawing.colour
        cv2.rectangle(image, (x1, y1), (x2, y2), colour, line_width, cv2.LINE_AA)
        text, place = f"{entry.label.score:.2f}", (x1, max(y1 - 3, 9))
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.35, colour, 1, cv2.LINE_AA)
