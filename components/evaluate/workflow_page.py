"""The report of the workflow's own scoring: of a model, of an endpoint beside its model, or of the final two models."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from components.evaluate.breakdown import by_event, by_height
from components.evaluate.difference import TOLERANCE, Difference
from components.evaluate.evaluation import Evaluated, Protocol
from components.evaluate.figures import Chart, precision_recall_line
from components.evaluate.gallery import SPREAD, WORST, Reader, make_gallery
from components.evaluate.latency import Latency
from components.evaluate.measured import Measured, counts_over_thresholds
from components.evaluate.page import NONE, Page, Table, duration, ratio, size
from components.evaluate.stages import StageRow, has_gaps, points_lost
from components.formats.images import Image
from components.vision.scoring import ImageSource

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


def workflow_page(
    models: Sequence[Evaluated],
    rows: Sequence[StageRow],
    images: ImageSource,
    data: DataSet,
    protocol: Protocol,
    serving: Serving | None = None,
) -> Page:
    """Returns the report.

    Args:
        models: What was scored on `images`; the last one gives the headline and the gallery.
        rows: The table of stages.
        images: The data set, walked through once more for the gallery's pictures.
        data: What the data set is.
        protocol: How it was scored.
        serving: Where the last model is a served one, how it did that.
    """
    final, measured = models[-1], [Measured.of_evaluated(model) for model in models]
    noun = measured[-1].noun
    measure = f"{'AP' if len(final.matchings) == 1 else 'mAP'}@{protocol.iou_threshold:g}"
    gallery = make_gallery(measured[-1:], set(final.scored.ids), _reader(images))
    return Page(
        title=f"{'Face' if noun == 'faces' else 'Object'} detection report",
        subtitle=(
            f"{len(final.scored.ids):,} images ({data.name}), {final.metrics['objects']:,} {noun} at least "
            f"{protocol.min_height:g} pixels high in the network’s input"
        ),
        synthetic=data.synthetic,
        headline=_headline(models, measure),
        models=[model.name for model in models],
        noun=noun,
        measure=measure,
        counts=counts_over_thresholds(measured),
        heights=by_height(measured, protocol.bands),
        height_axis="Height in the network’s input, pixels",
        method=_method(final, protocol, rows, noun, serving),
        charts=[class_curves(measured)],
        events=by_event(measured),
        stages=_stages(rows, measure),
        latencies=[(serving.name, len(models) - 1, serving.latency)] if serving else [],
        gallery=gallery,
        gallery_text=gallery_text(measured[-1:], gallery.shown, gallery.of),
    )


def class_curves(models: Sequence[Measured]) -> Chart:
    """Returns the chart of precision and recall: a line for each model and class."""
    curves = [
        (model.name if len(model.matchings) == 1 else f"{model.name}, {kind}", curve)
        for model in models
        for kind, curve in model.curves().items()
    ]
    lines = [precision_recall_line(name, number % 6, curve) for number, (name, curve) in enumerate(curves)]
    return Chart("Precision and recall", [line for line in lines if line])


def _reader(images: ImageSource) -> Reader:
    def read(wanted: Collection[str]) -> Iterator[tuple[str, Image]]:
        missing = set(wanted)
        for image in images if missing else ():
            if image.id in missing:
                yield image.id, image.pixels[..., ::-1]
                missing.discard(image.id)
                if not missing:
                    return

    return read


def _headline(models: Sequence[Evaluated], measure: str) -> list[tuple[str, str]]:
    final = models[-1]
    entries = [(f"{measure}, {final.name} model", ratio(final.average_precision))]
    entries += [(f"{model.name} model", ratio(model.average_precision)) for model in models[:-1]]
    if len(models) > 1:
        lost = points_lost(models[-2].average_precision, final.average_precision)
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
        ratio(row.average_precision),
        NONE if row.parameters is None else f"{row.parameters:,}",
        NONE if row.file_bytes is None else size(row.file_bytes),
        NONE if row.seconds is None else duration(row.seconds),
    ]


def gallery_text(models: Sequence[Measured], shown: int, of: int) -> str:
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


def _method(
    final: Evaluated, protocol: Protocol, rows: Sequence[StageRow], noun: str, serving: Serving | None
) -> list[str]:
    lines = [
        f"A detection is right when its intersection over union with one of the {noun}, not found by a better "
        f"detection, is at least {protocol.iou_threshold:g}; every further detection of it is wrong.",
        "Average precision is the area under the interpolated precision-recall curve over all its points: "
        "1 is perfect. The dots mark each model’s best F1, the rings the chosen threshold.",
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
