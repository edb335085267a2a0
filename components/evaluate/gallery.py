"""The report's gallery: detections beside ground truth, worst images first."""

import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape

import cv2
import numpy as np

from components.evaluate.evaluation import Evaluated
from components.measure.boxes import Floats, iou
from components.measure.matching import FALSE_POSITIVE, TRUE_POSITIVE
from components.vision.predictor import Images
from components.vision.scoring import ImageSource

WORST, SPREAD = 16, 8
# A gallery of 24 such pictures takes one to two megabytes.
_THUMBNAIL_WIDTH, _JPEG_QUALITY = 720, 76


@dataclass(frozen=True, slots=True)
class Mark:
    """One box of a picture: x1, y1, x2, y2 in network-input pixels, how it is drawn, and its hover text."""

    box: tuple[float, float, float, float]
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of the gallery: its id and the marks of its ground truth and of its detections."""

    id: str
    truth: list[Mark]
    found: list[Mark]

    @property
    def right(self) -> int:
        """Objects found."""
        return sum(mark.kind == "hit" for mark in self.found)

    @property
    def wrong(self) -> int:
        """False positives."""
        return sum(mark.kind == "false" for mark in self.found)

    @property
    def missed(self) -> int:
        """Objects not found."""
        return sum(mark.kind == "missed" for mark in self.truth)

    @property
    def f1(self) -> float:
        """How well the image came out, 0 to 1; 1 where there was nothing to find and nothing was found."""
        everything = 2 * self.right + self.wrong + self.missed
        return 2 * self.right / everything if everything else 1.0


def describe_images(model: Evaluated) -> list[Picture]:
    """Returns every image with its marks, at each class's threshold of the best F1."""
    best = {name: model.metrics["best_f1"][name] for name in model.matchings}
    thresholds = {name: float(point["threshold"]) if point else 0.0 for name, point in best.items()}
    pictures = []
    for index, image in enumerate(model.scored.ids):
        picture = Picture(image, [], [])
        for name, threshold in thresholds.items():
            _mark(picture, model, name, index, threshold)
        pictures.append(picture)
    return pictures


def _mark(picture: Picture, model: Evaluated, name: str, index: int, threshold: float) -> None:
    """Adds the marks of one class. Leaving out low scores changes no match of a higher one."""
    matching, matcher = model.matchings[name], model.scored.matchers[name]
    boxes = model.scored.boxes[name][index]
    truths = np.concatenate([boxes.truths, boxes.regions])
    counted = matching.counted[matcher.truths_of(index)]
    outcome = matching.outcome[matcher.detections_of(index)]
    matched = matching.matched[matcher.detections_of(index)] - matcher.truths_of(index).start
    kept = np.flatnonzero(boxes.detections[:, 4] >= threshold)

    for row in kept:
        kind = {TRUE_POSITIVE: "hit", FALSE_POSITIVE: "false"}.get(int(outcome[row]), "ignored")
        box, score = boxes.detections[row, :4].astype(np.float64), boxes.detections[row, 4]
        overlap = f", IoU {iou(box, truths[matched[row]]).item():.2f}" if kind == "hit" else ""
        picture.found.append(Mark(_edges(box), kind, f"{name}, score {score:.3f}, {_WORDS[kind]}{overlap}"))
    hits = set(matched[kept][outcome[kept] == TRUE_POSITIVE].tolist())
    for position, box in enumerate(truths):
        kind = "ignored" if not counted[position] else "hit" if position in hits else "missed"
        size = f"{box[2] - box[0]:.0f}×{box[3] - box[1]:.0f} pixels"
        picture.truth.append(Mark(_edges(box), kind, f"{name}, {size}, {_WORDS[kind]}"))


_WORDS = {"hit": "found", "false": "false positive", "ignored": "not counted", "missed": "missed"}


def _edges(box: Floats) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(edge) for edge in box)
    return x1, y1, x2, y2


def choose(pictures: Sequence[Picture]) -> list[Picture]:
    """Returns the worst images, then some spread evenly over the rest; worst first by F1, then by number of errors."""
    ranked = sorted(pictures, key=lambda picture: (picture.f1, -(picture.wrong + picture.missed), picture.id))
    rest = ranked[WORST:]
    spread = np.linspace(0, len(rest) - 1, min(SPREAD, len(rest))).round().astype(int)
    return ranked[:WORST] + [rest[index] for index in spread]


def thumbnails(images: ImageSource, wanted: Collection[str]) -> dict[str, tuple[str, int, int]]:
    """Returns, for each wanted image, a small JPEG in base64 and the full width and height in pixels."""
    pictures = {}
    for image in images:
        if image.id in wanted:
            height, width = image.pixels.shape[:2]
            pictures[image.id] = _jpeg(image.pixels), width, height
            if len(pictures) == len(wanted):
                break
    return pictures


def _jpeg(pixels: Images) -> str:
    height, width = pixels.shape[:2]
    shown = min(width, _THUMBNAIL_WIDTH)
    small = cv2.resize(pixels, (shown, round(height * shown / width)), interpolation=cv2.INTER_AREA)
    _, content = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return base64.b64encode(content.tobytes()).decode()


def gallery_html(pictures: Sequence[Picture], images: ImageSource) -> str:
    """Returns the figures of the gallery: for each image its ground truth beside its detections."""
    small = thumbnails(images, {picture.id for picture in pictures})
    return "\n".join(_figure(number, picture, *small[picture.id]) for number, picture in enumerate(pictures))


def _figure(number: int, picture: Picture, jpeg: str, width: int, height: int) -> str:
    errors = []
    if picture.missed:
        errors.append(f'<span class="missed">{picture.missed} missed</span>')
    if picture.wrong:
        errors.append(f'<span class="false">{picture.wrong} false</span>')
    counts = ", ".join([f"{picture.right} found", *errors])
    image = f'<image id="i{number}" width="{width}" height="{height}" href="data:image/jpeg;base64,{jpeg}"/>'
    truth = _pane(image, picture.truth, width, height, "Ground truth")
    found = _pane(f'<use href="#i{number}"/>', picture.found, width, height, "Detections")
    return (
        f'<figure><figcaption><span class="name">{escape(picture.id)}</span> '
        f'<span class="counts">F1 {picture.f1:.2f}: {counts}</span></figcaption>'
        f'<div class="pair">{truth}{found}</div></figure>'
    )


def _pane(image: str, marks: Sequence[Mark], width: int, height: int, title: str) -> str:
    # Errors are drawn last, on top.
    ordered = sorted(marks, key=lambda mark: ("ignored", "hit", "missed", "false").index(mark.kind))
    boxes = "".join(
        f'<rect class="{mark.kind}" x="{mark.box[0]:.1f}" y="{mark.box[1]:.1f}" '
        f'width="{max(mark.box[2] - mark.box[0], 0):.1f}" height="{max(mark.box[3] - mark.box[1], 0):.1f}">'
        f"<title>{escape(mark.text)}</title></rect>"
        for mark in ordered
    )
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">{image}{boxes}</svg>'
