"""What stands in a report, whatever it is shown as: `report` makes HTML of it, `report_markdown` Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from components.evaluate.breakdown import Bar
from components.evaluate.figures import Chart, Whisker
from components.evaluate.gallery import Gallery
from components.evaluate.latency import Latency
from components.evaluate.measured import Counts

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


def ratio(value: float | None) -> str:
    """Returns for example `0.907`."""
    return NONE if value is None else f"{value:.3f}"


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
