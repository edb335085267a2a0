"""The report of the workflow's own scoring: of a model, of an endpoint beside its model, or of the final two models."""

from collections.abc import Sequence
from dataclasses import dataclass

from components.evaluate.difference import TOLERANCE, Difference
from components.evaluate.evaluation import Evaluated
from components.evaluate.pictures import Pictures
from components.evaluate.report.page import (
    NONE,
    Page,
    Table,
    duration,
    measure_of,
    page_of,
    size,
    subject,
    with_interval,
)
from components.evaluate.rules import Rules
from components.evaluate.stages import StageRow, points_lost
from components.measure.matching import LENIENCE
from components.vision.inputs import InputSpec

_NAMED = 10  # of the images in which an endpoint differs


@dataclass(frozen=True, slots=True)
class DataSet:
    """What the report says about the data.

    Attributes:
        name: What it is, for example `validation split of a KITTI set`.
        synthetic: Whether a program drew the images.
        ignore_regions: Whether nothing counts inside ignore regions.
        has_chosen: Whether the model, or something about it, was chosen by these very images.
    """

    name: str
    synthetic: bool
    ignore_regions: bool
    has_chosen: bool = False


@dataclass(frozen=True, slots=True)
class Serving:
    """What the report says about a served detector.

    Attributes:
        name: Where it is.
        difference: How far it agrees with the model that was scored here; None without one.
    """

    name: str
    difference: Difference | None


def workflow_page(
    models: Sequence[Evaluated],
    rows: Sequence[StageRow],
    pictures: Pictures,
    spec: InputSpec,
    data: DataSet,
    rules: Rules,
    serving: Serving | None = None,
) -> Page:
    """Returns the report.

    Args:
        models: What was scored; the last one gives the headline and the gallery.
        rows: The table of stages.
        pictures: The images.
        spec: How they are shown: as they lie in the network's input.
        data: What the data set is, and what counts there.
        rules: How it was scored.
        serving: Where the last model is a served one, how it did that.
    """
    final, measured = models[-1], [model.result.measured for model in models]
    latency = final.result.detected.latency
    noun, measure = measured[-1].noun, measure_of(measured[-1], rules)
    return page_of(
        measured,
        rules,
        measured[-1:],
        pictures.available,
        pictures.fitted(spec),
        title=f"{subject(noun)} report",
        subtitle=(
            f"{len(measured[-1].images):,} images ({data.name}), {final.metrics['objects']:,} {noun} at least "
            f"{rules.min_height:g} pixels high in the network’s input"
        ),
        synthetic=data.synthetic,
        headline=_headline(models, measure),
        height_axis="Height in the network’s input, pixels",
        method=_method(models, data, rules, rows, noun, serving),
        stages=_stages(rows, measure),
        latencies=[(serving.name, len(models) - 1, latency)] if serving and latency else [],
    )


def _headline(models: Sequence[Evaluated], measure: str) -> list[tuple[str, str]]:
    final = models[-1]
    entries = [(f"{measure}, {final.name} model", with_interval(final.score))]
    entries += [(f"{model.name} model", with_interval(model.score)) for model in models[:-1]]
    if len(models) > 1:
        lost = points_lost(models[-2].score, final.score)
        if lost is not None:
            word = "lost" if lost >= 0 else "gained"
            entries.append((f"points {word} from {models[-2].name}", f"{abs(lost):.2f}"))
    if final.metrics["file_bytes"] is not None:
        entries.append(("file size", size(final.metrics["file_bytes"])))
    here = "here" if "latency_milliseconds" not in final.metrics else "through the endpoint"
    entries.append((f"images per second {here}", f"{final.metrics['images_per_second']:,.0f}"))
    return entries


def _stages(rows: Sequence[StageRow], measure: str) -> Table:
    return Table(
        "From stage to stage",
        ["Stage", measure, "Parameters", "File size", "Time"],
        [_stage_cells(row) for row in rows],
        emphasised=True,
    )


def _stage_cells(row: StageRow) -> list[str]:
    if row.note:
        return [row.name, row.note]
    return [
        row.name,
        with_interval(row.score),
        NONE if row.parameters is None else f"{row.parameters:,}",
        NONE if row.file_bytes is None else size(row.file_bytes),
        NONE if row.seconds is None else duration(row.seconds),
    ]


def _method(
    models: Sequence[Evaluated],
    data: DataSet,
    rules: Rules,
    rows: Sequence[StageRow],
    noun: str,
    serving: Serving | None,
) -> list[str]:
    final = models[-1]
    lines = [
        f"A detection is right when its intersection over union with one of the {noun}, not found by a better "
        f"detection, is at least {rules.iou:g}; every further detection of it is wrong.",
        "Average precision is the area under the interpolated precision-recall curve over all its points: "
        "1 is perfect. The dots mark each model’s best F1, the rings the chosen threshold.",
        f"Only {noun} at least {rules.min_height:g} pixels high in the network’s input count in the headline, only "
        f"those of the given heights in the bars. Smaller ones are neither demanded nor punished.",
        f"A detection that overlaps an ignored one of the {noun} by {LENIENCE * rules.iou:g} or more, or lies to half "
        "in an ignored region, is neither right nor wrong."
        if data.ignore_regions
        else "Ignore regions were switched off: what they mark had to be found like everything else.",
        "Time is what it took to make the model of that stage, by its status log.",
    ]
    if data.has_chosen:
        lines.append(
            "The images that tell here also chose: when training ended, the score from which on detections are shown, "
            "or whether INT8 is good enough. That favours the model; a set with a test split tells without favour."
        )
    if any(score.low is not None for score in (*(model.score for model in models), *(row.score for row in rows))):
        lines.append(
            "In brackets stands where a figure lies with a confidence of 95 %, had other images of the kind been drawn "
            "(bootstrap over the images; Efron, 1979)."
        )
    if final.metrics["skipped_labels"]:
        skipped = ", ".join(f"{count:,} {what}" for what, count in final.metrics["skipped_labels"].items() if count)
        lines += [f"Left out: {skipped}."] if skipped else []
    if serving:
        lines += _serving_method(serving)
    if any(row.note for row in rows):
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
