"""The report's drawings as inline SVG and HTML. Colours, type and what happens at a pointer come from the page.

A chart is followed by its points as JSON, from which the page's script reads the values under the pointer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from components.evaluate.latency import Latency
from components.evaluate.report.breakdown import Bar
from components.measure.boxes import Floats
from components.measure.curve import PrecisionRecall
from components.measure.uncertainty import Interval
from components.measure.wider import WiderOutcomes

# Points of a line: more than a screen can show.
_POINTS = 400
_LEFT, _TOP, _BOTTOM, _RIGHT = 52, 16, 62, 16
_WIDTH, _HEIGHT = 560, 400
_WHISKERS_WIDTH = 960
# A number of this many pixels fits above a bar.
_ROOM_FOR_VALUE = 27.0
SCORE = "score"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart.

    Attributes:
        name: What it shows.
        color: Number of its colour.
        x: [K] ascending, in the axis' unit.
        y: [K] 0 to 1.
        columns: By name, [K] what is told at the pointer.
        marked: Index of the point with a dot, and what it says; None without.
    """

    name: str
    color: int
    x: Floats
    y: Floats
    columns: Mapping[str, Floats]
    marked: tuple[int, str] | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over one axis that begins at 0; the vertical one runs from 0 to 1."""

    title: str
    lines: Sequence[Line]
    x_axis: str = "Recall"
    y_axis: str = "Precision"
    x_end: float = 1.0
    ticks: Sequence[float] = field(default=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0))


def precision_recall_line(name: str, color: int, curve: PrecisionRecall) -> Line | None:
    """Returns the interpolated precision over recall, the best F1 marked; None where nothing was found or is there."""
    if not curve.objects or not len(curve.scores):
        return None
    at = curve.thresholds()
    recall, precision = curve.recall[at], curve.precision[at]
    best, marked = curve.best_f1(), None
    if best is not None:
        marked = (
            int(np.searchsorted(at, best)),
            (
                f"{name}: best F1 {curve.f1()[best]:.3f} at score {curve.scores[best]:.3g}, "
                f"precision {curve.precision[best]:.3f}, recall {curve.recall[best]:.3f}"
            ),
        )
    columns = {"recall": recall, "precision": precision, SCORE: curve.scores[at]}
    return _thinned(Line(name, color, recall, _envelope(precision), columns, marked))


def official_line(name: str, color: int, score: WiderOutcomes) -> Line | None:
    """Returns the curve of the official protocol of WIDER FACE; None where nothing was found or is there."""
    precision, recall = score.curve()
    if not len(score.step) or not score.faces.sum():
        return None
    columns = {"recall": recall, "precision": precision, SCORE: score.thresholds()}
    return _thinned(Line(name, color, recall, _envelope(precision), columns))


def _envelope(precision: Floats) -> Floats:
    """Returns the best precision here or further on."""
    return np.maximum.accumulate(precision[::-1])[::-1]


def _thinned(line: Line) -> Line:
    """Keeps some points, evenly spread along the drawn line, its ends and the marked one."""
    x = line.x / max(float(line.x[-1]), 1e-9)
    way = np.cumsum(np.hypot(np.diff(x, prepend=x[0]), np.diff(line.y, prepend=line.y[0])))
    chosen = np.minimum(np.searchsorted(way, np.linspace(0, way[-1], _POINTS)), len(x) - 1)
    places = np.union1d(chosen, [0, len(x) - 1])
    marked = None
    if line.marked:
        places = np.union1d(places, [line.marked[0]])
        marked = int(np.searchsorted(places, line.marked[0])), line.marked[1]
    columns = {name: values[places] for name, values in line.columns.items()}
    return Line(line.name, line.color, line.x[places], line.y[places], columns, marked)


def latency_chart(latencies: Sequence[tuple[str, int, Latency]]) -> Chart:
    """Returns the share of images that were done within each time, for each model's name and colour."""
    lines = []
    for name, color, latency in latencies:
        times = np.array(latency.seconds) * 1e3
        share = np.arange(1, len(times) + 1) / len(times)
        line = Line(name, color, times, share, {"ms": times, "share of images": share})
        lines.append(_thinned(line))
    longest = max(float(line.x[-1]) for line in lines)
    step = _round_step(longest / 6)
    end = float(step * np.ceil(longest / step - 1e-9))
    ticks = np.arange(0, end + step / 2, step)
    return Chart("Share of images done within a time", lines, "Milliseconds", "Share of images", end, ticks.tolist())


def _round_step(least: float) -> float:
    """Returns the least of …, 1, 2, 5, 10, 20, … that is not below `least`."""
    magnitude = 10.0 ** np.floor(np.log10(least))
    return float(next(magnitude * digit for digit in (1, 2, 5, 10) if magnitude * digit >= least * (1 - 1e-9)))


def chart_svg(chart: Chart) -> str:
    """Draws a chart, with what the page's script needs to tell values at the pointer."""
    plot = _Plot(_WIDTH, _HEIGHT)
    ticks = [(tick / chart.x_end, f"{tick:g}" if chart.x_end > 1 else f"{tick:.1f}") for tick in chart.ticks]
    axes = [*plot.column_axis(ticks), plot.vertical_label(chart.y_axis), plot.horizontal_label(chart.x_axis)]
    parts = [plot.open(chart.title, "chart"), *plot.grid(), *axes]
    points = []
    for line in chart.lines:
        x = [round(plot.x(value / chart.x_end), 1) for value in line.x]
        y = [round(plot.y(value), 1) for value in line.y]
        drawn = [*zip([x[0], *x, x[-1]], [y[0], *y, y[-1]], strict=True)]
        if chart.y_axis == "Precision":  # from no recall at all, and down to the axis
            drawn[0], drawn[-1] = (round(plot.x(0), 1), y[0]), (x[-1], round(plot.y(0), 1))
        path = " ".join(f"{a:g},{b:g}" for a, b in drawn)
        parts.append(
            f'<polyline class="line m{line.color}" points="{path}"><title>{escape(line.name)}</title></polyline>'
        )
        if line.marked:
            index, text = line.marked
            parts.append(f'<circle class="dot m{line.color}" cx="{x[index]:g}" cy="{y[index]:g}" r="4.5">')
            parts.append(f"<title>{escape(text)}</title></circle>")
        told = [rounded(values) for values in line.columns.values()]
        points.append({"name": line.name, "color": line.color, "points": [*zip(x, y, *told, strict=True)]})
    top, base = plot.y(1), plot.y(0)
    parts.append(f'<line class="guide" y1="{top:g}" y2="{base:g}"/>')
    parts += [f'<circle class="hover m{line.color}" r="5"/>' for line in chart.lines]
    parts += [f'<circle class="chosen m{line.color}" r="6.5"/>' for line in chart.lines]
    columns = list(chart.lines[0].columns) if chart.lines else []
    return "".join([*parts, "</svg>", embedded({"columns": columns, "lines": points})])


def embedded(document: Mapping[str, Any], name: str = "") -> str:
    """Returns a script element that holds data; nothing in it can end the element."""
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    mark = f' id="{name}"' if name else ""
    return f'<script type="application/json"{mark}>{text}</script>'


def rounded(values: Floats) -> list[float]:
    """Returns values for the page's data; six digits tell scores apart that lie close to 1."""
    return [float(f"{value:.6g}") for value in values.tolist()]


def legend(entries: Sequence[tuple[str, int]]) -> str:
    """Returns the names beside their colours; nothing where there is but one."""
    if len(entries) < 2:
        return ""
    rows = "".join(f'<li><i class="m{color}"></i>{escape(name)}</li>' for name, color in entries)
    return f'<ul class="legend">{rows}</ul>'


def bars_svg(bars: Sequence[Bar], names: Sequence[str], noun: str, x_axis: str) -> str:
    """Draws average precision by height band, the models side by side in each band."""
    plot = _Plot(_WIDTH, _HEIGHT)
    parts = [plot.open("Average precision by height"), *plot.grid(), plot.vertical_label("Average precision")]
    slot = plot.width / max(len(bars), 1)
    thickness = min(44.0, slot * 0.76 / max(len(names), 1))
    for position, bar in enumerate(bars):
        center = _LEFT + (position + 0.5) * slot
        for index, value in enumerate(bar.values):
            x = center + (index - len(bar.values) / 2) * thickness
            told = _tip(names[index], bar, f"{bar.label} pixels", value, noun)
            parts.append(_bar(plot, x, thickness, index, value, told))
        base = _HEIGHT - _BOTTOM
        parts.append(f'<text class="tick" x="{center:.1f}" y="{base + 18}" text-anchor="middle">{escape(bar.label)}')
        parts.append(f'</text><text class="tick faint" x="{center:.1f}" y="{base + 34}" text-anchor="middle">')
        parts.append(f"{bar.objects:,}{f' {noun}' if slot > 90 else ''}</text>")
    unit = "" if not bars or slot > 90 else f"; below: number of {noun}"
    parts.append(plot.horizontal_label(x_axis + unit, 56))
    return "".join([*parts, "</svg>"])


def _bar(plot: "_Plot", x: float, thickness: float, index: int, value: float | None, tip: str) -> str:
    middle = x + thickness / 2
    if value is None:
        return f'<text class="tick faint" x="{middle:.1f}" y="{plot.y(0) - 6:.1f}" text-anchor="middle">–</text>'
    top, shown = plot.y(value), ""
    if thickness >= _ROOM_FOR_VALUE:
        shown = f'<text class="value" x="{middle:.1f}" y="{top - 5:.1f}" text-anchor="middle">{value:.2f}</text>'
    return (
        f'<rect class="bar m{index}" data-tip="{tip}" x="{x + 1:.1f}" y="{top:.1f}" width="{thickness - 2:.1f}" '
        f'height="{plot.y(0) - top:.1f}" rx="2"/>{shown}'
    )


def _tip(name: str, bar: Bar, label: str, value: float | None, noun: str) -> str:
    told = "nothing to find" if value is None else f"{value:.4f}"
    return escape(f"{name}\n{label}: AP {told}\n{bar.objects:,} {noun}")


def bar_rows(bars: Sequence[Bar], names: Sequence[str], noun: str) -> str:
    """Returns horizontal bars as HTML, for any number of them and long labels."""
    rows = []
    for bar in bars:
        lines = []
        for index, value in enumerate(bar.values):
            width = 0.0 if value is None else 100 * value
            shown = "–" if value is None else f"{value:.3f}"
            tip = _tip(names[index], bar, bar.label, value, noun)
            fill = f'<i class="m{index}" style="width:{width:.1f}%"></i>'
            lines.append(f'<span class="track" data-tip="{tip}"><span class="rail">{fill}</span><b>{shown}</b></span>')
        label = f'<span class="row-name">{escape(bar.label)}</span>'
        rows.append(
            f'<div class="row">{label}<span>{"".join(lines)}</span><span class="row-count">{bar.objects:,}</span></div>'
        )
    return f'<div class="rows">{"".join(rows)}</div>'


@dataclass(frozen=True, slots=True)
class Whisker:
    """A value with its interval, in points (hundredths): what it is of, and the number of its colour."""

    label: str
    color: int
    interval: Interval
    p_value: float | None = None


def whiskers_svg(whiskers: Sequence[Whisker], x_axis: str, from_zero: bool) -> str:
    """Draws values with their intervals below each other.

    Args:
        whiskers: From top to bottom.
        x_axis: What the axis says.
        from_zero: Whether the axis shows 0, as for differences, with a line there.
    """
    labels = [whisker.label if len(whisker.label) <= 44 else whisker.label[:43] + "…" for whisker in whiskers]
    texts = [whisker_text(whisker, from_zero) for whisker in whiskers]
    # Pixels that a character takes at most, on average, at the sizes of the style sheet.
    left = max(90, 24 + 7.7 * max(map(len, labels)))
    right, row = _WHISKERS_WIDTH - 20 - 7.2 * max(map(len, texts)), 30
    base = len(whiskers) * row + 12
    edges = [100 * edge for w in whiskers for edge in (w.interval.low, w.interval.high)] + [0.0] * from_zero
    step = _round_step(max(max(edges) - min(edges), 0.1) / 6)
    low = float(step * np.floor(min(edges) / step))
    high = max(float(step * np.ceil(max(edges) / step)), low + step)  # all may be the same, as 100 %

    def x(value: float) -> float:
        return round(left + (value - low) / (high - low) * (right - left), 1)

    height = base + 50
    parts = [
        f'<svg class="whiskers" viewBox="0 0 {_WHISKERS_WIDTH} {height}" role="img" aria-label="{escape(x_axis)}">'
    ]
    for tick in np.arange(low, high + step / 2, step).tolist():
        is_zero = abs(tick) < step / 2
        kind, shown = "axis" if from_zero and is_zero else "grid", f"{tick:+g}" if from_zero else f"{tick:g}"
        parts.append(f'<line class="{kind}" x1="{x(tick):g}" x2="{x(tick):g}" y1="6" y2="{base}"/>')
        parts.append(_text("tick", x(tick), base + 18, "0" if is_zero else shown.replace("-", "−")))
    for number, (whisker, shown, told) in enumerate(zip(whiskers, labels, texts, strict=True)):
        y, interval = number * row + 24, whisker.interval
        ends = f'x1="{x(100 * interval.low):g}" x2="{x(100 * interval.high):g}" y1="{y}" y2="{y}"'
        tip = escape(f"{whisker.label}: {told}")
        parts.append(_text("label", left - 14, y + 4.5, shown, "end"))
        parts.append(f'<g class="whisker m{whisker.color}" data-tip="{tip}"><line {ends}/>')
        parts.append(f'<circle cx="{x(100 * interval.value):g}" cy="{y}" r="5.5"/></g>')
        parts.append(_text("value", right + 14, y + 4.5, told, "start"))
    parts.append(_text("label", (left + right) / 2, height - 8, x_axis))
    return "".join([*parts, "</svg>"])


def _text(kind: str, x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def whisker_text(whisker: Whisker, signed: bool) -> str:
    """Returns a value, its interval and its p-value in words, in points."""
    i = whisker.interval
    value, low, high = (points(edge, signed) for edge in (i.value, i.low, i.high))
    told = f"{value} ({low} to {high})"
    return told if whisker.p_value is None else f"{told}, p = {whisker.p_value:.3f}"


def points(value: float, signed: bool) -> str:
    """Returns hundredths of a value from 0 to 1, for example `−1.59`."""
    return f"{100 * value:{'+' if signed else ''}.2f}".replace("-", "−")


class _Plot:
    """A plotting area whose vertical axis runs from 0 to 1."""

    def __init__(self, width: int, height: int) -> None:
        self._outer = width, height
        self.width, self.height = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM

    def x(self, value: float) -> float:
        return _LEFT + value * self.width

    def y(self, value: float) -> float:
        return _TOP + (1 - value) * self.height

    def open(self, title: str, kind: str = "") -> str:
        width, height = self._outer
        return f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'

    def grid(self) -> list[str]:
        """Horizontal lines with the vertical axis' labels."""
        parts = []
        for tick in range(0, 11, 2):
            y = self.y(tick / 10)
            kind = "axis" if tick == 0 else "grid"
            parts.append(f'<line class="{kind}" x1="{_LEFT}" x2="{_LEFT + self.width}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick / 10:.1f}</text>')
        return parts

    def column_axis(self, ticks: Sequence[tuple[float, str]]) -> list[str]:
        """Vertical lines at these places, 0 to 1, with their labels."""
        base = _TOP + self.height
        parts = []
        for value, label in ticks:
            x = self.x(value)
            kind = "axis" if value == 0 else "grid"
            parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{base}"/>')
            parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 18}" text-anchor="middle">{label}</text>')
        return parts

    def vertical_label(self, text: str) -> str:
        """The name of the vertical axis."""
        place = f"translate(14 {_TOP + self.height / 2:.1f}) rotate(-90)"
        return f'<text class="label" text-anchor="middle" transform="{place}">{escape(text)}</text>'

    def horizontal_label(self, text: str, below: int = 40) -> str:
        """The name of the horizontal axis, so many pixels below it."""
        return _text("label", _LEFT + self.width / 2, _TOP + self.height + below, text)
