"""A report as Markdown, for Kubeflow and wherever there is no room for a page: its figures without the drawings."""

from collections.abc import Sequence

from components.evaluate.report.breakdown import Bar
from components.evaluate.report.figures import whisker_text
from components.evaluate.report.page import Page, Table, counted_rows, ratio


def render_markdown(page: Page) -> str:
    """Returns a report as Markdown."""
    parts = [f"# {_plain(page.title)}", _plain(page.subtitle)]
    if page.synthetic:
        parts.append("**The images are synthetic.** The figures show that the workflow works, no more.")
    parts.append("\n".join(f"- {_plain(name)}: **{_plain(value)}**" for name, value in page.headline))
    parts += [part for table in page.scores for part in _section(table)]
    for intervals in page.intervals:
        rows = [[w.label, whisker_text(w, intervals.from_zero)] for w in intervals.whiskers]
        parts += _section(Table(intervals.title, ["", intervals.axis], rows, intervals.text))
    counts = [
        [name, threshold, f"{found:,}", f"{false:,}", f"{missed:,}"]
        for name, threshold, found, false, missed in counted_rows(page)
    ]
    parts += _section(Table("Counts at the best F1", ["Model", "Threshold", "Found", "False", "Missed"], counts))
    parts += _bars(page, "height", page.heights)
    for name, bars in page.attributes.items():
        parts += _bars(page, name, bars)
    parts += _bars(page, "event", page.events)
    if page.latencies:
        percentiles = list(page.latencies[0][2].milliseconds())
        times = [[n, *(f"{v:.1f} ms" for v in t.milliseconds().values())] for n, _, t in page.latencies]
        parts += _section(Table("Latency", ["Model", *percentiles], times))
    if page.stages:
        parts += _section(page.stages)
    for title, lines in (("Remarkable about the input", page.findings), ("How this was measured", page.method)):
        if lines:
            parts += [f"## {title}", "\n".join(f"- {_plain(line)}" for line in lines)]
    return "\n\n".join(parts) + "\n"


def _bars(page: Page, what: str, bars: Sequence[Bar]) -> list[str]:
    if not bars:
        return []
    rows = [[bar.label, f"{bar.objects:,}", *(ratio(value) for value in bar.values)] for bar in bars]
    return _section(Table(f"{page.measure} by {what}", [what.capitalize(), page.noun.capitalize(), *page.models], rows))


def _section(table: Table) -> list[str]:
    lines = [_row(table.head), _row(["---"] + ["---:"] * (len(table.head) - 1))]
    lines += [_row([*row, *[""] * (len(table.head) - len(row))]) for row in table.rows]
    return [f"## {_plain(table.title)}", *[_plain(table.text)] * bool(table.text), "\n".join(lines)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """Escapes what would be Markdown or HTML; names of models and images come from outside."""
    for character in "\\`*_[]<>|#":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
