"""A report as one self-contained HTML file: no links, nothing loaded from anywhere, light and dark."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template

from components.evaluate.report.figures import (
    bar_rows,
    bars_svg,
    chart_svg,
    embedded,
    latency_chart,
    legend,
    rounded,
    whiskers_svg,
)
from components.evaluate.report.page import Intervals, Page, Table

_SYNTHETIC = (
    '<p class="banner"><strong>The images are synthetic.</strong> A program drew them and their labels. The figures '
    "show that the workflow works; they say nothing about photographs.</p>"
)
_GALLERY_LEGEND = (
    '<ul class="legend"><li><i class="box hit"></i>found</li><li><i class="box missed"></i>missed</li>'
    '<li><i class="box false"></i>false positive</li><li><i class="box ignored"></i>not counted</li></ul>'
)
_COUNT_COLUMNS = ("Model", "Found", "False positives", "Missed", "Precision", "Recall", "F1")
# So many bars stand in one column.
_ONE_COLUMN = 14


def render(page: Page) -> str:
    """Returns a report as HTML."""
    folder = files(__package__)
    template = Template(folder.joinpath("page.html").read_text(encoding="utf-8"))
    sections = [
        *[_section(table.title, _table(table), table.text) for table in page.scores],
        *[_intervals(intervals) for intervals in page.intervals],
        _charts(page),
        _counts(page),
        _breakdowns(page),
        _latency(page),
        _section(page.stages.title, _table(page.stages), page.stages.text) if page.stages else "",
        _gallery(page),
        _list("Remarkable about the input", page.findings),
        _list("How this was measured", page.method),
    ]
    return template.substitute(
        title=escape(page.title),
        style=folder.joinpath("page.css").read_text(encoding="utf-8"),
        subtitle=escape(page.subtitle),
        banner=_SYNTHETIC if page.synthetic else "",
        headline="\n".join(f"<div><dt>{escape(dt)}</dt><dd>{escape(dd)}</dd></div>" for dt, dd in page.headline),
        body="\n".join(filter(None, sections)),
    )


def _section(title: str, content: str, text: str = "") -> str:
    said = f'<p class="soft">{escape(text)}</p>' if text else ""
    return f"<section><h2>{escape(title)}</h2>{said}{content}</section>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.head)
    rows = []
    for number, row in enumerate(table.rows):
        cells = [f"<td>{escape(cell)}</td>" for cell in row]
        if len(row) < len(table.head):
            cells[-1] = f'<td class="none" colspan="{len(table.head) - len(row) + 1}">{escape(row[-1])}</td>'
        final = ' class="final"' if table.emphasised and number == len(table.rows) - 1 else ""
        rows.append(f"<tr{final}>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _intervals(intervals: Intervals) -> str:
    drawn = whiskers_svg(intervals.whiskers, intervals.axis, intervals.from_zero)
    return _section(intervals.title, f'<div class="scroll">{drawn}</div>', intervals.text)


def _charts(page: Page) -> str:
    parts = []
    for chart in page.charts:
        names = legend([(line.name, line.color) for line in chart.lines])
        parts.append(_section(chart.title, names + chart_svg(chart)))
    title, models = f"{page.measure} by height", _model_legend(page)
    parts.append(_section(title, models + bars_svg(page.heights, page.models, page.noun, page.height_axis)))
    return f'<div class="charts">{"".join(parts)}</div>'


def _model_legend(page: Page) -> str:
    return legend([(name, number) for number, name in enumerate(page.models)])


def _counts(page: Page) -> str:
    """The table that the slider changes; as it stands, it is at the best F1 of the last model."""
    counts = page.counts
    start, shown = int(counts.best[-1]), counts.shown()
    rows = []
    for number, name in enumerate(page.models):
        found, false = int(counts.found[number, start]), int(counts.false[number, start])
        values = _count_cells(found, false, counts.objects)
        cells = "".join(f'<td data-cell="{what}">{value}</td>' for what, value in values)
        rows.append(f'<tr data-model="{number}"><td><i class="m{number}"></i>{escape(name)}</td>{cells}</tr>')
    data = {
        "thresholds": rounded(counts.thresholds),
        "shown": shown,
        "found": counts.found.tolist(),
        "false": counts.false.tolist(),
        "objects": counts.objects,
    }
    head = "".join(f"<th>{name}</th>" for name in _COUNT_COLUMNS)
    content = (
        '<div class="slider"><label for="threshold">Threshold</label>'
        f'<input type="range" id="threshold" min="0" max="{len(counts.thresholds) - 1}" value="{start}">'
        f'<output id="chosen">{shown[start]}</output></div>'
        f'<div class="scroll"><table class="counts-table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{embedded(data, 'counts')}"
    )
    text = (
        f"What stands if only detections of at least this score are kept, of {counts.objects:,} {page.noun}. It begins "
        f"at the best F1 of {page.models[-1]}."
    )
    return _section("Counts at a threshold", content, text)


def _count_cells(found: int, false: int, objects: int) -> list[tuple[str, str]]:
    kept = found + false
    return [
        ("found", f"{found:,}"),
        ("false", f"{false:,}"),
        ("missed", f"{objects - found:,}"),
        ("precision", f"{found / kept:.3f}" if kept else "–"),
        ("recall", f"{found / objects:.3f}" if objects else "–"),
        ("f1", f"{2 * found / (kept + objects):.3f}" if kept + objects else "–"),
    ]


def _breakdowns(page: Page) -> str:
    parts = []
    if page.attributes:
        tables = "".join(
            f"<section><h3>{escape(name.capitalize())}</h3>{bar_rows(bars, page.models, page.noun)}</section>"
            for name, bars in page.attributes.items()
        )
        text = (
            f"Each bar demands only {page.noun} of that kind, and punishes every false positive, wherever it lies. At "
            f"the right the number of {page.noun}."
        )
        parts.append(
            _section(f"{page.measure} by attribute", _model_legend(page) + f'<div class="tiles">{tables}</div>', text)
        )
    if page.events:
        kind = "columns" if len(page.events) > _ONE_COLUMN else ""
        rows = bar_rows(page.events, page.models, page.noun)
        by = ", by the mean of the models" if len(page.models) > 1 else ""
        text = f"Best first{by}; at the right the number of {page.noun}."
        content = _model_legend(page) + f'<div class="{kind}">{rows}</div>'
        parts.append(_section(f"{page.measure} by event", content, text))
    return "".join(parts)


def _latency(page: Page) -> str:
    if not page.latencies:
        return ""
    chart = latency_chart(page.latencies)
    percentiles = list(page.latencies[0][2].milliseconds())
    rows = [[name, *(f"{value:.1f} ms" for value in t.milliseconds().values())] for name, _, t in page.latencies]
    table = _table(Table("", ["Share of images done within", *percentiles], rows))
    said = " ".join(
        f"{name}: {len(t.seconds):,} images, {t.in_flight} under way at once, {t.throughput:.1f} images per second."
        for name, _, t in page.latencies
    )
    drawn = legend([(name, color) for name, color, _ in page.latencies]) + chart_svg(chart)
    return _section("Latency", f'<div class="charts"><div>{drawn}</div><div>{table}</div></div>', said)


def _gallery(page: Page) -> str:
    if page.gallery is None:
        return ""
    return (
        f"<section><h2>Gallery</h2><p>{escape(page.gallery_text)}</p>{_GALLERY_LEGEND}"
        f'<div class="gallery">{page.gallery.html}</div></section>'
    )


def _list(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<section><h2>{escape(title)}</h2><ul class="method">{items}</ul></section>'
