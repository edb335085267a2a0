"""The report of predictions that were measured: of one model, or of several side by side."""

from collections.abc import Sequence
from typing import Any

from components.evaluate.measuring import Difference, Measurement
from components.evaluate.pictures import Pictures
from components.evaluate.protocols import Result
from components.evaluate.report.breakdown import by_attribute
from components.evaluate.report.figures import Chart, Whisker, official_line, points
from components.evaluate.report.page import NONE, Intervals, Page, Table, page_of, size, subject
from components.evaluate.rules import MAIN, Protocol, Rules, label
from components.measure.matching import LENIENCE
from components.measure.uncertainty import Interval
from components.measure.wider import SUBSETS
from components.vision.inputs import InputSpec

_PROTOCOLS = {
    Protocol.wider: "the official protocol of WIDER FACE",
    Protocol.coco: "COCO’s protocol (faster-coco-eval)",
    Protocol.tao: "TAO’s average precision, its defects included",
    Protocol.ap50: "average precision, the area under the whole curve",
}


def measuring_page(measurement: Measurement, pictures: Pictures) -> Page:
    """Returns the report; pictures of the images that are at hand are in it."""
    results, rules = measurement.results, measurement.rules
    models = [result.measured for result in results]
    noun = models[0].noun
    own: dict[str, Any] = {}
    if rules.protocol is Protocol.wider:
        own["charts"] = _official_charts(results)
    return page_of(
        models,
        rules,
        models,
        pictures.available,
        pictures.fitted(InputSpec(*rules.input)) if rules.input else pictures.decoded,
        title=subject(noun) + ("" if len(models) == 1 else ", models compared"),
        subtitle=(
            f"{len(measurement.truth.images):,} images, {models[0].objects():,} {noun}"
            f"{_detections(results)}, measured by {_PROTOCOLS[rules.protocol]}"
        ),
        synthetic=False,
        headline=_headline(measurement),
        height_axis=f"Height in {'x'.join(map(str, rules.input or ())) or 'the image'}, pixels",
        method=_method(measurement, noun),
        scores=_scores(measurement),
        intervals=_intervals(measurement),
        attributes=by_attribute(models),
        latencies=[
            (result.name, number, result.detected.latency)
            for number, result in enumerate(results)
            if result.detected.latency
        ],
        findings=measurement.finding_lines(),
        **own,
    )


def _detections(results: Sequence[Result]) -> str:
    """Of one model; those of several stand in their table."""
    if len(results) > 1:
        return ""
    return f", {len(results[0].detected.predictions.scores):,} detections of {results[0].name}"


def percent(value: float | None) -> str:
    """Returns for example `90.70 %`."""
    return NONE if value is None else f"{100 * value:.2f} %"


def _percent(value: float | None, interval: Interval | None) -> str:
    """Returns for example `90.70 % [88.12, 92.95]`."""
    return percent(value) + (f" [{100 * interval.low:.2f}, {100 * interval.high:.2f}]" if interval else "")


def _headline(measurement: Measurement) -> list[tuple[str, str]]:
    rules, results = measurement.rules, measurement.results
    main = MAIN[rules.protocol]
    if len(results) == 1:
        figures = dict(results[0].figures)
        order = [main, *(name for name in figures if name != main)][:6]
        name = results[0].name
        return [
            (label(figure, rules), _percent(figures[figure].value, measurement.intervals.get((name, figure))))
            for figure in order
        ]
    entries = [
        (
            f"points {label(d.figure, rules)}, {d.model} − {d.baseline} (p = {d.paired.p_value:.3f})",
            points(d.paired.interval.value, signed=True),
        )
        for d in measurement.differences
        if len(results) == 2 and d.figure == _telling(rules)
    ]
    return entries + [
        (
            f"{label(main, rules)}, {result.name}",
            _percent(result.figures[main].value, measurement.intervals.get((result.name, main))),
        )
        for result in results
    ]


def _telling(rules: Rules) -> str:
    """Returns the figure whose difference stands in the headline."""
    return MAIN[rules.protocol] if rules.protocol in (Protocol.wider, Protocol.ap50) else "ap_area"


def _scores(measurement: Measurement) -> list[Table]:
    rules, results = measurement.rules, measurement.results
    names = list(results[0].figures)
    detected = [result.detected for result in results]
    known = [found.parameters is not None or found.images_per_second is not None for found in detected]
    if len(results) == 1 and not any(known):
        return []  # the headline says it all
    rows, head = [], ["Model", *(label(name, rules) for name in names), "Detections"]
    if any(known):
        head += ["Parameters", "File size", "Images per second"]
    for result, found in zip(results, detected, strict=True):
        values = (
            _percent(result.figures[name].value, measurement.intervals.get((result.name, name))) for name in names
        )
        row = [result.name, *values, f"{len(found.predictions.scores):,}"]
        if any(known):
            row += [
                NONE if found.parameters is None else f"{found.parameters:,}",
                NONE if found.file_bytes is None else size(found.file_bytes),
                NONE if found.images_per_second is None else f"{found.images_per_second:.1f}",
            ]
        rows.append(row)
    return [Table("Scores", head, rows)]


def _intervals(measurement: Measurement) -> list[Intervals]:
    if not measurement.intervals:
        return []
    rules, several = measurement.rules, len(measurement.results) > 1
    colors = {result.name: number for number, result in enumerate(measurement.results)}
    ordered = sorted(measurement.intervals, key=lambda key: [*measurement.results[0].figures].index(key[1]))
    whiskers = [
        Whisker(
            f"{label(name, rules)}, {model}" if several else label(name, rules),
            colors[model],
            measurement.intervals[model, name],
        )
        for model, name in ordered
    ]
    confidence = f"{whiskers[0].interval.confidence:.0%}"
    drawn = f"{whiskers[0].interval.replicates:,}"
    text = f"Where each score lies with a confidence of {confidence}, had other images of the kind been drawn."
    found = [Intervals("Scores and their intervals", "Points (hundredths)", text, whiskers)]
    if measurement.differences:
        pairs = [
            Whisker(_pair(d, rules), colors[d.model], d.paired.interval, d.paired.p_value)
            for d in measurement.differences
        ]
        text = (
            f"On the same images, drawn {drawn} times. Where an interval keeps clear of 0, chance is hardly "
            "the reason; p says how often chance alone would make a difference as large."
        )
        found.append(Intervals("Differences", "Points (hundredths)", text, pairs, from_zero=True))
    return found


def _pair(difference: Difference, rules: Rules) -> str:
    return f"{label(difference.figure, rules)}, {difference.model} − {difference.baseline}"


def _official_charts(results: Sequence[Result]) -> list[Chart]:
    charts = []
    for subset in SUBSETS:
        lines = [official_line(result.name, number, result.official[subset]) for number, result in enumerate(results)]
        charts.append(Chart(f"{subset.capitalize()}: precision and recall", [line for line in lines if line]))
    return charts


def _method(measurement: Measurement, noun: str) -> list[str]:
    rules = measurement.rules
    lines = []
    if rules.protocol is Protocol.wider:
        lines.append(
            "Easy, Medium and Hard follow the official protocol: stretched scores, whole pixels, 1,000 thresholds. "
            f"All else counts all {noun} that the annotators did not discard, at IoU 0.5, with the area under the "
            "whole curve."
        )
    elif rules.protocol is Protocol.coco:
        lines.append(
            "COCO’s figures keep the 100 best detections of an image and 101 recalls; “whole area” and all drawings "
            "keep all detections, at IoU 0.5."
        )
    elif rules.protocol is Protocol.tao:
        lines.append("TAO’s figure has its program’s defects; “whole area” and all drawings are without them.")
    lines.append(
        f"A detection is right when its intersection over union with one of the {noun}, not found by a better "
        f"detection, is at least {rules.iou:g}; every further detection of it is wrong. One that overlaps an ignored "
        f"one of the {noun} by {LENIENCE * rules.iou:g} or more, or lies to half in an ignored region, is neither."
    )
    if measurement.intervals:
        lines.append(
            "Intervals and p-values come from the bootstrap over images (Efron, 1979): images are drawn with "
            "replacement, for all models the same ones."
        )
    lines.append("The dots mark the best F1 of each curve, the rings the chosen threshold.")
    return lines
