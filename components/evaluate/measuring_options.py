"""The options that `gridbox evaluate` and `gridbox compare` share, and what becomes of them."""

import json
import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.evaluate.rules import Protocol
from components.step import UserError, check_target

if TYPE_CHECKING:
    from components.evaluate.measuring import Measurement
    from components.evaluate.pictures import Pictures
    from components.measure.matching import HeightBand


class Split(StrEnum):
    """A split of a data set; `train` and `val` are WIDER FACE's words for the first two."""

    training = "training"
    validation = "validation"
    test = "test"
    train = "train"
    val = "val"


def split_of(source: Path, split: Split | None) -> str:
    """Returns the split to measure on: the one asked for, else the one that tells how good a model is.

    In a KITTI set that is `test`, where it has that. WIDER FACE's own folder has `training` and `validation`, and its
    validation images choose nothing but what is said to be chosen by them.
    """
    from components.formats.kitti import telling_split

    if split is None:
        return telling_split(source)
    return {"train": "training", "val": "validation"}.get(split.value, split.value)


class CurveMode(StrEnum):
    """See `components.measure.curve.AveragePrecisionMode`."""

    integrate = "integrate"
    sample = "sample"


Truth = Annotated[
    Path,
    typer.Option(
        "--truth",
        help="KITTI set, WIDER FACE folder or *_bbx_gt.txt, folder of its .mat files, or COCO's .json.",
    ),
]
ProtocolOption = Annotated[
    Protocol,
    typer.Option(
        "--protocol",
        help="wider: Easy, Medium and Hard; coco: AP@[.50:.95] and by size; tao: TAO's own AP; ap50: area at --iou.",
    ),
]
Images = Annotated[
    Path | None, typer.Option("--images", help="Folder of the images, where they are not in --truth's folder.")
]
AtHand = Annotated[
    bool, typer.Option("--at-hand", help="Only the images that are there count; the truth of the others does not.")
]
SplitName = Annotated[
    Split | None,
    typer.Option(
        "--split",
        help="Which images to score; by default test, by which nothing is chosen, else validation.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on standard output.")]
Strict = Annotated[bool, typer.Option("--strict", help="Fail on faults of the input instead of leaving them out.")]


def _checked(file: Path | None) -> Path | None:
    if file is not None:
        check_target(file, None)
    return file


ReportFile = Annotated[
    Path | None, typer.Option("--report", callback=_checked, help="The report to write: one HTML file.")
]
MarkdownFile = Annotated[
    Path | None, typer.Option("--markdown", callback=_checked, help="The report's figures as Markdown to write.")
]
MatchIou = Annotated[
    float, typer.Option("--iou", min=0.01, max=1.0, help="Smallest intersection over union of a match.")
]
MinHeight = Annotated[
    str,
    typer.Option(
        "--min-height",
        help="tao, ap50: smallest object that counts, pixels of the truth (or of --input); for ap50 also several, "
        "rising: 0,20,40. The first one is the headline's.",
    ),
]
InputSize = Annotated[
    str, typer.Option("--input", help="ap50: take heights as they are in a network's input of this size: 480x272.")
]
Mode = Annotated[CurveMode, typer.Option("--mode", help="tao, ap50: area under the curve, or mean at 11 recalls.")]
PixelBands = Annotated[
    str, typer.Option("--height-bands", help="Heights, pixels of the truth, to break the report down by.")
]
Confidence = Annotated[
    float, typer.Option("--confidence", min=0.5, max=0.999, help="Share of the draws inside an interval.")
]
Replicates = Annotated[int, typer.Option("--replicates", min=100, help="Draws of an interval.")]
EndpointModel = Annotated[
    str, typer.Option("--endpoint-model", help="The ensemble that takes encoded images; by default that of detectors.")
]
EndpointHost = Annotated[
    str, typer.Option("--endpoint-host", help="Host name to ask a gateway for, as Knative's need it.")
]
Certificates = Annotated[
    Path | None, typer.Option("--certificates", help="PEM file of the authorities to trust, for https and grpcs.")
]
InFlight = Annotated[int, typer.Option("--in-flight", min=1, help="Images under way to the endpoint at once.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds an image may take there.")]

PIXEL_BANDS = "0-16,16-32,32-64,64-128,128+"


def parse_input(text: str) -> tuple[int, int] | None:
    """Reads `480x272`; None where nothing is given.

    Raises:
        UserError: It is something else.
    """
    if not text:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UserError(f"--input {text!r}: give width and height in pixels, for example 480x272")
    return int(width), int(height)


def parse_heights(text: str) -> tuple[float, ...]:
    """Reads `0,20,40`.

    Raises:
        UserError: These are no rising heights of at least 0.
    """
    try:
        heights = tuple(float(height) for height in text.split(","))
    except ValueError:
        heights = ()
    rising = all(low < high < math.inf for low, high in zip((-1.0, *heights), heights, strict=False))
    if not heights or not rising or heights[0] < 0:
        raise UserError(f"--min-height {text!r}: give one height in pixels, or several that rise, for example 0,20,40")
    return heights


def parse_bands(text: str) -> tuple["HeightBand", ...]:
    """Reads `16-24,24-40,40+`.

    Raises:
        UserError: It is something else.
    """
    from components.measure.matching import HeightBand

    try:
        return tuple(HeightBand.parse(band) for band in text.split(","))
    except ValueError as error:
        raise UserError(f"--height-bands {text!r}: {error}; write for example 16-24,24-40,40+") from error


def deliver(
    measurement: "Measurement", pictures: "Pictures", as_json: bool, report: Path | None, markdown: Path | None
) -> None:
    """Writes the reports, says on standard error what was remarkable, and prints the figures."""
    from components.evaluate.program import write_text
    from components.evaluate.report.html import render
    from components.evaluate.report.markdown import render_markdown
    from components.evaluate.report.measuring_page import measuring_page

    for line in measurement.finding_lines():
        print(line, file=sys.stderr)
    if report or markdown:
        page = measuring_page(measurement, pictures if report else pictures.nowhere())
        for file, renderer in ((report, render), (markdown, render_markdown)):
            if file is not None:
                write_text(file, renderer(page))
    if as_json:
        print(json.dumps(measurement.document(), allow_nan=False))
        return
    _print(measurement)
    for file in filter(None, (report, markdown)):
        print(f"Report: {file}")


def _print(measurement: "Measurement") -> None:
    from components.evaluate.report.measuring_page import percent
    from components.evaluate.rules import label

    images, rules = len(measurement.truth.images), measurement.rules
    widest = max(len(label(name, rules)) for name in measurement.results[0].figures)
    for result in measurement.results:
        objects = f"{result.measured.objects():,} {result.measured.noun}"
        print(f"{result.name}: {len(result.detected.predictions.scores):,} detections, {objects} in {images:,} images")
        for name, figure in result.figures.items():
            interval = measurement.intervals.get((result.name, name))
            around = f"  [{100 * interval.low:.2f}, {100 * interval.high:.2f}]" if interval else ""
            print(f"  {label(name, rules):{widest}} {percent(figure.value):>9}{around}")
    for difference in measurement.differences:
        interval = difference.paired.interval
        print(
            f"{label(difference.figure, rules)}: {difference.model} − {difference.baseline} = "
            f"{100 * interval.value:+.2f} points ({100 * interval.low:+.2f} to {100 * interval.high:+.2f}), "
            f"p = {difference.paired.p_value:.3f}"
        )
