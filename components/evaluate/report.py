"""The report: one self-contained HTML file without scripts or links."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template

from components.evaluate.difference import TOLERANCE, Difference
from components.evaluate.evaluation import Evaluated, Protocol
from components.evaluate.figures import Bar, bars_svg, latency_svg, precision_recall_svg
from components.evaluate.gallery import WORST, choose, describe_images, gallery_html
from components.evaluate.latency import Latency
from components.evaluate.stages import StageRow, has_gaps, points_lost
from components.vision.scoring import ImageSource

_NONE = "–"
_NAMED = 10  # of the images in which an endpoint differs


@dataclass(frozen=True, slots=True)
class DataSet:
    """What the report says about the data.

    Attributes:
        name: What it is, for example `validation split of a KITTI set`.
        synthetic: Whether a program drew the images.
    """

    name: str
    synthetic: bool


@dataclass(frozen=True, slots=True)
class Serving:
    """What the report says about a served detector.

    Attributes:
        name: Where it is.
        latency: How long it took.
        difference: How far it agrees with the model that was scored here; None without one.
    """

    name: str
    latency: Latency
    difference: Difference | None


def render(
    models: Sequence[Evaluated],
    rows: Sequence[StageRow],
    images: ImageSource,
    data: DataSet,
    protocol: Protocol,
    serving: Serving | None = None,
) -> str:
    """Returns the report as HTML.

    Args:
        models: What was scored on `images`; the last one gives the headline and the gallery.
        rows: The table of stages.
        images: The data set, walked through once more for the gallery's pictures.
        data: What the data set is.
        protocol: How it was scored.
        serving: Where the last model is a served one, how it did that.
    """
    final = models[-1]
    noun = "faces" if list(final.matchings) == ["face"] else "objects"
    measure = f"{'AP' if len(final.matchings) == 1 else 'mAP'}@{protocol.iou_threshold:g}"
    curves = [(_curve_name(model, name), m.curve()) for model in models for name, m in model.matchings.items()]
    pictures = choose(describe_images(final))
    page = Template(files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    return page.substitute(
        title=f"{'Face' if noun == 'faces' else 'Object'} detection report",
        subtitle=escape(
            f"{len(final.scored.ids):,} images ({data.name}), {final.metrics['objects']:,} {noun} at least "
            f"{protocol.min_height:g} pixels high in the network’s input"
        ),
        banner=_SYNTHETIC if data.synthetic else "",
        headline="\n".join(f"<div><dt>{dt}</dt><dd>{dd}</dd></div>" for dt, dd in _headline(models, measure)),
        legend=_legend([model.name for model in models]),
        curve=precision_recall_svg(curves),
        bars=bars_svg(_bars(models), [model.name for model in models], noun),
        measure=measure,
        serving=_serving_section(serving) if serving else "",
        stages="\n".join(_stage_row(row, is_final=row is rows[-1]) for row in rows),
        gallery_text=escape(_gallery_text(final, len(pictures))),
        gallery=gallery_html(pictures, images),
        method="\n".join(f"<li>{escape(line)}</li>" for line in _method(final, protocol, rows, noun, serving)),
    )


_SYNTHETIC = (
    '<p class="banner"><strong>The images are synthetic.</strong> A program drew them and their labels. The figures '
    "show that the workflow works; they say nothing about photographs.</p>"
)


def _curve_name(model: Evaluated, class_name: str) -> str:
    return model.name if len(model.matchings) == 1 else f"{model.name}, {class_name}"


def _headline(models: Sequence[Evaluated], measure: str) -> list[tuple[str, str]]:
    final = models[-1]
    entries = [(f"{measure}, {escape(final.name)} model", _ratio(final.average_precision))]
    entries += [(f"{escape(model.name)} model", _ratio(model.average_precision)) for model in models[:-1]]
    if len(models) > 1:
        lost = points_lost(models[-2].average_precision, final.average_precision)
        if lost is not None:
            word = "lost" if lost >= 0 else "gained"
            entries.append((f"points {word} from {escape(models[-2].name)}", f"{abs(lost):.2f}"))
    if final.metrics["file_bytes"] is not None:
        entries.append(("file size", _size(final.metrics["file_bytes"])))
    here = "here" if "latency_milliseconds" not in final.metrics else "through the endpoint"
    entries.append((f"images per second {here}", f"{final.metrics['images_per_second']:.0f}"))
    return entries


def _serving_section(serving: Serving) -> str:
    latency = serving.latency
    heads = "".join(f"<th>{name}</th>" for name in latency.milliseconds())
    cells = "".join(f"<td>{value:.1f} ms</td>" for value in latency.milliseconds().values())
    return (
        f'<section><h2>Latency</h2><p class="soft">{escape(serving.name)}: {len(latency.seconds)} images, '
        f"{latency.in_flight} under way at once, {latency.throughput:.1f} images per second.</p>"
        f'<div class="charts"><section>{latency_svg(latency.seconds)}</section><section class="scroll"><table>'
        f"<thead><tr><th>Share of images done within</th>{heads}</tr></thead>"
        f'<tbody><tr class="final"><td>Time</td>{cells}</tr></tbody></table></section></div></section>'
    )


def _legend(names: Sequence[str]) -> str:
    return "".join(f'<li><i class="m{index}"></i>{escape(name)}</li>' for index, name in enumerate(names))


def _bars(models: Sequence[Evaluated]) -> list[Bar]:
    by_model = [model.metrics["average_precision_by_height"] for model in models]
    return [
        Bar(bands[0]["band"], bands[0]["objects"], [band["average_precision"] for band in bands])
        for bands in zip(*by_model, strict=True)
    ]


def _stage_row(row: StageRow, is_final: bool) -> str:
    if row.note:
        return f'<tr><td>{escape(row.name)}</td><td class="none" colspan="4">{escape(row.note)}</td></tr>'
    cells = (
        _ratio(row.average_precision),
        _NONE if row.parameters is None else f"{row.parameters:,}",
        _NONE if row.file_bytes is None else _size(row.file_bytes),
        _NONE if row.seconds is None else _duration(row.seconds),
    )
    marks = "".join(f"<td>{cell}</td>" for cell in cells)
    opening = '<tr class="final">' if is_final else "<tr>"
    return f"{opening}<td>{escape(row.name)}</td>{marks}</tr>"


def _gallery_text(final: Evaluated, shown: int) -> str:
    thresholds = [point["threshold"] for point in final.metrics["best_f1"].values() if point]
    at = " and ".join(f"{threshold:.3g}" for threshold in thresholds) or "0"
    if shown <= WORST:
        order = f"All {shown} images, worst first"
    else:
        order = f"The {WORST} worst images, then {shown - WORST} spread evenly over the rest"
    return (
        f"{order}. Detections of the {final.name} model with a score of at least {at}, where its F1 over all images is "
        "best; images are ranked by their own F1 at that score, equal ones by the number of errors. Point at a box to "
        "read its score."
    )


def _method(
    final: Evaluated, protocol: Protocol, rows: Sequence[StageRow], noun: str, serving: Serving | None
) -> list[str]:
    lines = [
        f"A detection is right when its intersection over union with one of the {noun}, not found by a better "
        f"detection, is at least {protocol.iou_threshold:g}; every further detection of it is wrong.",
        "Average precision is the area under the interpolated precision-recall curve over all its points: "
        "1 is perfect. The dots mark each model’s best F1.",
        f"Only {noun} at least {protocol.min_height:g} pixels high in the network’s input count in the headline, only "
        f"those of the given heights in the bars. Smaller ones are neither demanded nor punished.",
        "Inside ignore regions nothing counts."
        if protocol.ignore_regions
        else "Ignore regions were switched off: what they mark had to be found like everything else.",
        "Time is what it took to make the model of that stage, by its status log.",
    ]
    if final.metrics["skipped_labels"]:
        skipped = ", ".join(f"{count:,} {what}" for what, count in final.metrics["skipped_labels"].items() if count)
        lines += [f"Left out: {skipped}."] if skipped else []
    if serving:
        lines += _serving_method(serving)
    if has_gaps(rows):
        lines.append("Stages without figures were skipped, or their evaluation was not given to this report.")
    return lines


def _serving_method(serving: Serving) -> list[str]:
    lines = [
        "The endpoint was sent the images as they are stored. Its boxes were mapped into the network’s input, as the "
        "labels are. Latency is the time from sending an encoded image to having its boxes, measured afterwards with "
        "images at hand."
    ]
    if difference := serving.difference:
        verdict = f"in all {difference.images:,} images"
        if names := difference.differing:
            more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
            verdict = f"in all but {len(names):,} of {difference.images:,} images ({', '.join(names[:_NAMED])}{more})"
        lines.append(
            f"Endpoint and model find the same boxes, each edge within {TOLERANCE:g} pixel of the stored image, "
            f"{verdict}. Of boxes that belong together, edges are off by at most {difference.edge:.3f} pixel and "
            f"scores by {difference.score:.2g}."
        )
    return lines


def _ratio(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3f}"


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
