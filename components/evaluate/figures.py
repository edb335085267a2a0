"""The report's drawings as inline SVG. Colours and type come from the page's style sheet."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from components.measure.curve import PrecisionRecall

# Points of a curve that are drawn: more than a screen can show.
_CURVE_POINTS = 600
_LEFT, _TOP, _BOTTOM, _RIGHT = 52, 16, 62, 16


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: a label, the number of objects behind it, and a value from 0 to 1 for each model (None: nothing)."""

    label: str
    objects: int
    values: Sequence[float | None]


def precision_recall_svg(curves: Sequence[tuple[str, PrecisionRecall]], width: int = 560, height: int = 410) -> str:
    """Draws precision over recall for each model, with the point of the best F1 marked on each curve."""
    plot = _Plot(width, height)
    parts = [plot.open("Precision over recall"), *plot.grid(), *plot.recall_axis()]
    for index, (name, curve) in enumerate(curves):
        if not curve.objects or not len(curve.scores):
            continue
        recall = np.concatenate([[0.0], curve.recall, curve.recall[-1:]])
        envelope = np.concatenate([curve.envelope()[:1], curve.envelope(), [0.0]])
        kept = np.flatnonzero(np.append(True, (np.diff(recall) != 0) | (np.diff(envelope) != 0)))
        kept = kept[np.unique(np.linspace(0, len(kept) - 1, _CURVE_POINTS).astype(int))]
        points = " ".join(f"{plot.x(recall[i]):.1f},{plot.y(envelope[i]):.1f}" for i in kept)
        parts.append(f'<polyline class="line m{index}" points="{points}"><title>{escape(name)}</title></polyline>')
        best = curve.best_f1()
        if best is not None:
            x, y = plot.x(curve.recall[best]), plot.y(curve.precision[best])
            text = (
                f"{name}: best F1 {curve.f1()[best]:.3f} at score {curve.scores[best]:.3g}, "
                f"precision {curve.precision[best]:.3f}, recall {curve.recall[best]:.3f}"
            )
            parts.append(f'<circle class="dot m{index}" cx="{x:.1f}" cy="{y:.1f}" r="4.5">')
            parts.append(f"<title>{escape(text)}</title></circle>")
    return "".join([*parts, "</svg>"])


def bars_svg(bars: Sequence[Bar], names: Sequence[str], noun: str, width: int = 560, height: int = 410) -> str:
    """Draws average precision by height band, the models side by side in each band."""
    plot = _Plot(width, height)
    parts = [plot.open("Average precision by object height"), *plot.grid()]
    slot = plot.width / max(len(bars), 1)
    thickness = min(34.0, slot * 0.72 / max(len(names), 1))
    for position, bar in enumerate(bars):
        center = _LEFT + (position + 0.5) * slot
        for index, value in enumerate(bar.values):
            x = center + (index - len(bar.values) / 2) * thickness
            parts.append(_bar(plot, x, thickness, index, value, f"{names[index]}, {bar.label} pixels"))
        base = height - _BOTTOM
        parts.append(f'<text class="tick" x="{center:.1f}" y="{base + 18}" text-anchor="middle">{escape(bar.label)}')
        parts.append(f'</text><text class="tick faint" x="{center:.1f}" y="{base + 34}" text-anchor="middle">')
        parts.append(f"{bar.objects:,} {noun}</text>")
    parts.append(plot.horizontal_label("Height in the network’s input, pixels"))
    return "".join([*parts, "</svg>"])


def latency_svg(seconds: Sequence[float], width: int = 560, height: int = 300) -> str:
    """Draws the share of requests that were done within each time; `seconds` are ascending."""
    plot = _Plot(width, height)
    times = np.array(seconds) * 1e3
    step = _round_step(times[-1] / 6)
    last = step * np.ceil(times[-1] / step)
    parts = [plot.open("Share of images done within a time"), *plot.grid()]
    parts += plot.column_axis([(tick / last, f"{tick:g}") for tick in np.arange(0, last + step / 2, step)])
    chosen = np.unique(np.linspace(0, len(times) - 1, _CURVE_POINTS).astype(int))
    points = " ".join(f"{plot.x(times[i] / last):.1f},{plot.y((i + 1) / len(times)):.1f}" for i in chosen)
    parts.append(f'<polyline class="line m1" points="{points}"><title>{len(times):,} images</title></polyline>')
    parts += [plot.vertical_label("Share of images"), plot.horizontal_label("Milliseconds")]
    return "".join([*parts, "</svg>"])


def _round_step(least: float) -> float:
    """Returns the least of …, 1, 2, 5, 10, 20, … that is not below `least`."""
    magnitude = 10.0 ** np.floor(np.log10(least))
    return float(next(magnitude * digit for digit in (1, 2, 5, 10) if magnitude * digit >= least * (1 - 1e-9)))


def _bar(plot: "_Plot", x: float, thickness: float, index: int, value: float | None, title: str) -> str:
    middle = x + thickness / 2
    if value is None:
        return f'<text class="tick faint" x="{middle:.1f}" y="{plot.y(0) - 6:.1f}" text-anchor="middle">–</text>'
    top = plot.y(value)
    return (
        f'<rect class="bar m{index}" x="{x + 1:.1f}" y="{top:.1f}" width="{thickness - 2:.1f}" '
        f'height="{plot.y(0) - top:.1f}" rx="2"><title>{escape(title)}: {value:.4f}</title></rect>'
        f'<text class="value" x="{middle:.1f}" y="{top - 5:.1f}" text-anchor="middle">{value:.2f}</text>'
    )


class _Plot:
    """A plotting area whose vertical axis runs from 0 to 1."""

    def __init__(self, width: int, height: int) -> None:
        self._outer = width, height
        self.width, self.height = width - _LEFT - _RIGHT, height - _TOP - _BOTTOM

    def x(self, value: float) -> float:
        return _LEFT + value * self.width

    def y(self, value: float) -> float:
        return _TOP + (1 - value) * self.height

    def open(self, title: str) -> str:
        width, height = self._outer
        return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'

    def grid(self) -> list[str]:
        """Horizontal lines with the vertical axis' labels."""
        parts = []
        for tick in range(0, 11, 2):
            y = self.y(tick / 10)
            kind = "axis" if tick == 0 else "grid"
            parts.append(f'<line class="{kind}" x1="{_LEFT}" x2="{_LEFT + self.width}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick / 10:.1f}</text>')
        return parts

    def recall_axis(self) -> list[str]:
        """Vertical lines, the labels of both axes."""
        ticks = [(tick / 10, f"{tick / 10:.1f}") for tick in range(0, 11, 2)]
        return [*self.column_axis(ticks), self.vertical_label("Precision"), self.horizontal_label("Recall")]

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

    def horizontal_label(self, text: str) -> str:
        """The name of the horizontal axis."""
        x, y = _LEFT + self.width / 2, self._outer[1] - 6
        return f'<text class="label" x="{x:.1f}" y="{y}" text-anchor="middle">{escape(text)}</text>'
