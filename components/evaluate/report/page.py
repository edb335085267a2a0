"""What stands in a report, whatever it is shown as: `html` and `markdown`."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from components.evaluate.latency import Latency
from components.evaluate.pictures import Reader
from components.evaluate.report.breakdown import Bar, by_event, by_height
from components.evaluate.report.counts import Counts, counts_over_thresholds
from components.evaluate.report.figures import Chart, Whisker, precision_recall_line
from components.evaluate.report.gallery import SPREAD, WORST, Gallery, make_gallery
from components.evaluate.rules import Rules
from components.measure.average_precision import Measured
from components.measure.metric import Score

NONE = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of text. A row with fewer cells than the head ends in a note.

    Attributes:
        title: Its heading.
        head: Names of the columns.
        rows: Cells.
        text: What a reader has to know.
        emphasised: Whether the last row is the one that matters.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: str = ""
    emphasised: bool = False


@dataclass(frozen=True, slots=True)
class Intervals:
    """Values with their intervals, to be drawn below each other."""

    title: str
    axis: str
    text: str
    whiskers: Sequence[Whisker]
    from_zero: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """A report.

    Attributes:
        title: Its heading.
        subtitle: What was scored on.
        synthetic: Whether a program drew the images.
        headline: Words and figures, the most important one first.
        models: Names, in the order of the colours.
        noun: What the objects are called.
        measure: Name of the average precision of the breakdowns.
        counts: What is found at which threshold.
        heights: Average precision by height.
        height_axis: What height means.
        method: Sentences on how it was measured.
        scores: Tables of figures.
        intervals: Figures with their intervals.
        charts: Curves.
        events: Average precision by event.
        attributes: Average precision by attribute and value.
        stages: The workflow's stages.
        latencies: By model's name, with its colour.
        gallery: The pictures; None where no image is at hand.
        gallery_text: What a reader has to know of them.
        findings: What was remarkable about the input.
    """

    title: str
    subtitle: str
    synthetic: bool
    headline: Sequence[tuple[str, str]]
    models: Sequence[str]
    noun: str
    measure: str
    counts: Counts
    heights: Sequence[Bar]
    height_axis: str
    method: Sequence[str]
    scores: Sequence[Table] = ()
    intervals: Sequence[Intervals] = ()
    charts: Sequence[Chart] = ()
    events: Sequence[Bar] = ()
    attributes: Mapping[str, Sequence[Bar]] = field(default_factory=dict)
    stages: Table | None = None
    latencies: Sequence[tuple[str, int, Latency]] = ()
    gallery: Gallery | None = None
    gallery_text: str = ""
    findings: Sequence[str] = ()


def page_of(
    models: Sequence[Measured],
    rules: Rules,
    shown: Sequence[Measured],
    available: Collection[str],
    read: Reader,
    **own: Any,  # noqa: ANN401 - attributes of a page
) -> Page:
    """Returns a report with what all have in common: curves, counts, figures by height and event, and the gallery.

    Args:
        models: Whose figures to show.
        rules: How they were measured.
        shown: Whose detections to draw in the gallery.
        available: The images at hand.
        read: Reads them.
        own: What else stands in it, or stands there otherwise; see `Page`.
    """
    gallery = make_gallery(shown, available, read) if available else None
    common = {
        "models": [model.name for model in models],
        "noun": models[0].noun,
        "measure": measure_of(models[0], rules),
        "counts": counts_over_thresholds(models),
        "heights": by_height(models, rules.bands),
        "charts": [class_curves(models)],
        "events": by_event(models),
        "gallery": gallery,
        "gallery_text": _gallery_text(shown, gallery.shown, gallery.of) if gallery else "",
    }
    return Page(**{**common, **own})


def measure_of(model: Measured, rules: Rules) -> str:
    """Returns the name of the average precision, for example `AP@0.5`."""
    return f"{'AP' if len(model.matchings) == 1 else 'mAP'}@{rules.iou:g}"


def subject(noun: str) -> str:
    """Returns what a report's title begins with."""
    return "Face detection" if noun == "faces" else "Object detection"


def class_curves(models: Sequence[Measured]) -> Chart:
    """Returns the chart of precision and recall: a line for each model and class."""
    curves = [
        (model.name if len(model.matchings) == 1 else f"{model.name}, {kind}", curve)
        for model in models
        for kind, curve in model.curves().items()
    ]
    lines = [precision_recall_line(name, number % 6, curve) for number, (name, curve) in enumerate(curves)]
    return Chart("Precision and recall", [line for line in lines if line])


def ratio(value: float | None) -> str:
    """Returns for example `0.907`."""
    return NONE if value is None else f"{value:.3f}"


def with_interval(score: Score) -> str:
    """Returns for example `0.907 [0.881, 0.930]`."""
    around = "" if score.low is None or score.high is None else f" [{score.low:.3f}, {score.high:.3f}]"
    return ratio(score.value) + around


def size(count: float) -> str:
    """Returns for example `1.5 MB`."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def duration(seconds: float) -> str:
    """Returns for example `1 min 15 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def counted_rows(page: Page) -> list[tuple[str, str, int, int, int]]:
    """Returns for each model its name, the threshold of its best F1, and what is found, false and missed there."""
    counts, rows = page.counts, []
    for number, name in enumerate(page.models):
        best = int(counts.best[number])
        found, false = int(counts.found[number, best]), int(counts.false[number, best])
        rows.append((name, counts.shown()[best], found, false, counts.objects - found))
    return rows


def _gallery_text(models: Sequence[Measured], shown: int, of: int) -> str:
    """Returns what a reader of the gallery has to know."""
    if shown <= WORST:
        order = f"All {shown} images, worst first"
    else:
        order = f"The {WORST} worst of {of:,} images, then {min(SPREAD, shown - WORST)} spread evenly over the rest"
    scores = [f"{at:.3g}" for model in models for at in model.best_thresholds().values() if at > float("-inf")]
    at = " and ".join(filter(None, [", ".join(scores[:-1]), *scores[-1:]])) or "0"
    whose = f"the {models[0].name} model" if len(models) == 1 else "each model"
    ranked = "their own F1" if len(models) == 1 else "the mean of the models’ F1"
    return (
        f"{order}. Detections of {whose} with a score of at least {at}, where its F1 over all images is best; images "
        f"are ranked by {ranked} at that score, equal ones by the number of errors. Point at a box to read its score; "
        "click a picture to enlarge it."
    )
