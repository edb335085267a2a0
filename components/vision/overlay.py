"""Drawing detections on images."""

from dataclasses import dataclass
from pathlib import Path

import cv2

from components.formats.images import Image
from components.formats.kitti import Label
from components.step import UserError

# What TAO calls the folders of an inference's results.
OVERLAYS, LABELS = "images_annotated", "labels"


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


def spare_source(source: Path, results: Path) -> None:
    """Refuses a results directory in which results would take the place of the source's images or of their labels.

    Raises:
        UserError: It is such a one.
    """
    images = source.resolve() if source.is_dir() else source.resolve().parent
    beside = images.parent if (images.parent / LABELS).is_dir() else None
    if results.resolve() == beside or (results / OVERLAYS).resolve() == images:
        raise UserError(f"{results}: results would take the place of images or labels of {source}; name another folder")


def draw(image: Image, found: list[Found], line_width: int) -> None:
    """Draws boxes and scores on an image [H, W, 3] BGR; lines are `line_width` pixels wide, the text grows with H."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, max(0.35, image.shape[0] / 1200)
    for entry in found:
        x1, y1, x2, y2 = (round(edge) for edge in entry.label.box)
        colour, text = entry.drawing.colour, f"{entry.label.score:.2f}"
        cv2.rectangle(image, (x1, y1), (x2, y2), colour, line_width, cv2.LINE_AA)
        (width, height), below = cv2.getTextSize(text, font, scale, 1)
        bottom = max(y1, height + below)
        cv2.rectangle(image, (x1, bottom - height - below), (x1 + width, bottom), colour, cv2.FILLED)
        cv2.putText(image, text, (x1, bottom - below // 2 - 1), font, scale, _readable_on(colour), 1, cv2.LINE_AA)


def _readable_on(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Returns black or white, whichever stands out."""
    blue, green, red = colour
    return (0, 0, 0) if 0.114 * blue + 0.587 * green + 0.299 * red > 128 else (255, 255, 255)
