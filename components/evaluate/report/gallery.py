"""The report's gallery: each model's detections beside what is there, worst images first."""

import base64
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape

import cv2
import numpy as np

from components.evaluate.pictures import Reader
from components.formats.images import Image
from components.measure.average_precision import Measured
from components.measure.boxes import Floats, iou
from components.measure.dataset import Integers
from components.measure.matching import FALSE_POSITIVE, TRUE_POSITIVE

WORST, SPREAD = 16, 8
# A gallery of 24 such pictures takes one to two megabytes.
_THUMBNAIL_WIDTH, _JPEG_QUALITY = 720, 76


@dataclass(frozen=True, slots=True)
class Gallery:
    """The pictures of a report.

    Attributes:
        html: The figures.
        shown: How many.
        of: From how many images they were chosen.
    """

    html: str
    shown: int
    of: int


@dataclass(frozen=True, slots=True)
class _Mark:
    """One box of a picture: how it is drawn, and what it says."""

    box: Floats
    kind: str
    text: str


_WORDS = {"hit": "found", "false": "false positive", "ignored": "not counted", "missed": "missed"}
# Errors are drawn last, on top.
_ORDER = ("ignored", "hit", "missed", "false")


def make_gallery(models: Sequence[Measured], available: Collection[str], read: Reader) -> Gallery:
    """Chooses images, worst first by F1 (with several models, its mean), and draws truth and detections of each.

    Each model's detections are shown from the score at which its F1 over all images is best.

    Args:
        models: Whose detections to show.
        available: The images at hand.
        read: Reads them.
    """
    names = models[0].images
    thresholds = [model.best_thresholds() for model in models]
    counts = [model.counts_by_image(chosen) for model, chosen in zip(models, thresholds, strict=True)]
    at_hand = [index for index, name in enumerate(names) if name in available]
    order = choose([names[index] for index in at_hand], [array[at_hand] for array in counts])
    chosen = [at_hand[place] for place in order]
    pictures = dict(read([names[index] for index in chosen]))
    figures = []
    for number, index in enumerate(chosen):
        there = truth_marks(models, thresholds, index)
        objects = sum(mark.kind != "ignored" for mark in there)
        panes = [("Ground truth", f"{objects:,} {models[0].noun[: -1 if objects == 1 else None]}", there)]
        for model, at, of_model in zip(models, thresholds, counts, strict=True):
            title, counted = ("Detections", _f1_text(of_model[index])) if len(models) == 1 else (model.name, "")
            panes.append((title, counted + _counted(of_model[index]), detection_marks(model, at, index)))
        figures.append(_figure(number, names[index], pictures[names[index]], panes))
    return Gallery("\n".join(figures), len(figures), len(at_hand))


def choose(names: Sequence[str], counts: Sequence[Integers]) -> list[int]:
    """Returns the indices of the worst images, then of some spread evenly over the rest.

    Args:
        names: [I].
        counts: For each model, [I, 3] found, false, missed.
    """
    ranks = np.mean([f1(array) for array in counts], axis=0) if names else []
    errors = np.sum([array[:, 1:] for array in counts], axis=(0, 2))
    ranked = sorted(range(len(names)), key=lambda index: (ranks[index], -errors[index], names[index]))
    rest = ranked[WORST:]
    spread = np.linspace(0, len(rest) - 1, min(SPREAD, len(rest))).round().astype(int)
    return ranked[:WORST] + [rest[index] for index in spread]


def f1(counts: Integers) -> Floats:
    """Returns [I] the F1 of counts [I, 3] found, false, missed; 1 where nothing was there and nothing was found."""
    everything = 2 * counts[:, 0] + counts[:, 1] + counts[:, 2]
    return np.where(everything > 0, 2 * counts[:, 0] / np.maximum(everything, 1), 1.0)


def detection_marks(model: Measured, thresholds: dict[str, float], image: int) -> list[_Mark]:
    """Returns a mark for each detection of an image. Leaving out low scores changes no match of a higher one."""
    marks = []
    for name, matching in model.matchings.items():
        matcher = model.matchers[name]
        here = matcher.detections_of(image)
        for row in np.flatnonzero(matching.scores[here] >= thresholds[name]) + here.start:
            box, score = matcher.boxes.detections[row], matching.scores[row]
            kind = {TRUE_POSITIVE: "hit", FALSE_POSITIVE: "false"}.get(int(matching.outcome[row]), "ignored")
            shared = matcher.boxes.truths[[matching.matched[row]]]
            overlap = f", IoU {iou(box[None], shared).item():.2f}" if kind == "hit" else ""
            marks.append(_Mark(box, kind, f"{name}, score {score:.3f}, {_WORDS[kind]}{overlap}"))
    return marks


def truth_marks(models: Sequence[Measured], thresholds: Sequence[dict[str, float]], image: int) -> list[_Mark]:
    """Returns a mark for each object and region of an image: an object is missed where no model finds it."""
    marks = []
    for name in models[0].matchers:
        here = models[0].matchers[name].truths_of(image)
        found_by = np.zeros(here.stop - here.start, np.int64)
        for model, at in zip(models, thresholds, strict=True):
            matching = model.matchings[name]
            hits = matching.matched[(matching.outcome == TRUE_POSITIVE) & (matching.scores >= at[name])]
            found_by += np.isin(np.arange(here.start, here.stop), hits)
        boxes, counted = models[0].matchers[name].boxes.truths[here], models[0].matchings[name].counted[here]
        for box, count, counts in zip(boxes, found_by.tolist(), counted.tolist(), strict=True):
            kind = "ignored" if not counts else "hit" if count else "missed"
            by = f" by {count} of {len(models)} models" if kind == "hit" and len(models) > 1 else ""
            size = f"{box[2] - box[0]:.0f}×{box[3] - box[1]:.0f} pixels"
            marks.append(_Mark(box, kind, f"{name}, {size}, {_WORDS[kind]}{by}"))
    return marks


def _f1_text(counts: Integers) -> str:
    return f"F1 {f1(counts[None]).item():.2f}: "


def _counted(counts: Integers) -> str:
    found, false, missed = counts.tolist()
    errors = [f'<span class="missed">{missed} missed</span>'] * bool(missed)
    errors += [f'<span class="false">{false} false</span>'] * bool(false)
    return ", ".join([f"{found} found", *errors])


def _figure(number: int, name: str, picture: Image, panes: Sequence[tuple[str, str, Sequence[_Mark]]]) -> str:
    height, width = picture.shape[:2]
    drawn = []
    for place, (title, counts, marks) in enumerate(panes):
        image = f'<use href="#i{number}"/>'
        if place == 0:
            data = _jpeg(picture)
            image = f'<image id="i{number}" width="{width}" height="{height}" href="data:image/jpeg;base64,{data}"/>'
        svg = _svg(image, marks, width, height, f"{title}: {name}")
        head = f'<b>{escape(title)}</b> <span class="counts">{counts}</span>'
        drawn.append(f'<div class="pane"><div class="pane-title">{head}</div>{svg}</div>')
    caption = f'<figcaption><span class="name">{escape(name)}</span></figcaption>'
    return f'<figure>{caption}<div class="panes">{"".join(drawn)}</div></figure>'


def _svg(image: str, marks: Sequence[_Mark], width: int, height: int, title: str) -> str:
    boxes = "".join(
        f'<rect class="{mark.kind}" data-tip="{escape(mark.text)}" x="{mark.box[0]:.1f}" y="{mark.box[1]:.1f}" '
        f'width="{max(mark.box[2] - mark.box[0], 0):.1f}" height="{max(mark.box[3] - mark.box[1], 0):.1f}"/>'
        for mark in sorted(marks, key=lambda mark: _ORDER.index(mark.kind))
    )
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{image}{boxes}</svg>'


def _jpeg(picture: Image) -> str:
    height, width = picture.shape[:2]
    shown = min(width, _THUMBNAIL_WIDTH)
    small = cv2.resize(picture, (shown, max(1, round(height * shown / width))), interpolation=cv2.INTER_AREA)
    _, content = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return base64.b64encode(content.tobytes()).decode()
