"""Scoring a network on labelled images by the spec's evaluation settings."""

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from components.decode.grid.clustering import detect, detect_like_tao5
from components.decode.grid.decoder import GridDecoder
from components.detectnet_v2 import experiment, sources, spec_pb2
from components.detectnet_v2.dataset import LabelledImages
from components.detectnet_v2.decoding import grid_decoder
from components.detectnet_v2.validation import CostMeter, Order, scored_by_tao5
from components.measure import tao
from components.measure.average_precision import AveragePrecision, Objects
from components.measure.curve import AveragePrecisionMode
from components.measure.dataset import ANY_CLASS
from components.measure.matching import BoxSizes
from components.measure.metric import AVERAGE_PRECISION
from components.measure.summary import summarise
from components.measure.uncertainty import MeanOutcomes, Resampling
from components.step import UserError, write_json
from components.vision.data.annotations import Annotations
from components.vision.predictor import Predictor, load_predictor
from components.vision.scoring import Inference
from components.vision.status import StatusLog

_MODES: Mapping[int, AveragePrecisionMode] = {
    spec_pb2.EvaluationConfig.SAMPLE: "sample",
    spec_pb2.EvaluationConfig.INTEGRATE: "integrate",
}


def evaluate_model(
    spec: spec_pb2.Experiment, model: Path, results: Path | None, *, use_training_set: bool = False, tao5: bool = False
) -> None:
    """Scores a model on the spec's validation images; prints the figures.

    Args:
        spec: The experiment spec.
        model: A checkpoint or an ONNX file.
        results: Where `metrics.json` and `status.json` are written; None for nowhere.
        use_training_set: Score on the training images.
        tao5: Reproduce TAO 5's defects.

    Raises:
        UserError: The model does not belong to the spec, or there is nothing to score.
    """
    begin = time.monotonic()
    status = StatusLog(results) if results else None
    if status:
        status.write("STARTED", "Starting DetectNet_v2 Evaluation")
    predictor = load_predictor(model, experiment.class_names(spec))
    decoder = replace(_decoder(model, predictor, spec), clustering=experiment.clustering(spec, tao5=tao5))
    if use_training_set:
        data = sources.training_images(spec, tao5=tao5, augmented=False)
    else:
        data = sources.validation_images(spec, tao5=tao5)
    weights = experiment.objectives(spec)  # as a training starts with; TAO's evaluate has no others either
    batch_size = spec.training_config.batch_size_per_gpu
    order = scored_by_tao5(len(data.pixels), batch_size) if tao5 else None
    meter = CostMeter(predictor, sources.batch_maker(spec, data, tao5=tao5), weights, order)
    figures = evaluate(
        meter,
        data,
        spec.evaluation_config,
        decoder,
        batch_size=batch_size,
        tao5=tao5,
        order=order,
        resampling=Resampling(),
    )
    figures["validation_cost"] = meter.cost
    print_evaluation(figures, meter.cost)
    if results and status:
        figures["parameters"], figures["file_bytes"] = predictor.parameters, predictor.file_bytes
        figures["seconds"] = time.monotonic() - begin
        write_json(results / "metrics.json", figures)
        status.write("RUNNING", "Evaluation metrics generated.", **evaluation_status(figures, meter.cost))
        status.write("SUCCESS", "Evaluation finished successfully.")


def _decoder(model: Path, predictor: Predictor, spec: spec_pb2.Experiment) -> GridDecoder:
    """Returns the model's decoder, unless the model does not belong to the spec."""
    decoder = grid_decoder(predictor.decoder, model)
    ours, theirs = decoder.geometry, experiment.geometry(spec)
    mend = "use the spec it was trained with"
    if (ours.width, ours.height) != (theirs.width, theirs.height):
        size = f"made for {ours.width}x{ours.height}, the spec says {theirs.width}x{theirs.height}"
        raise UserError(f"{model}: {size}; {mend}")
    if ours != theirs:
        here, there = (
            f"{each.stride} pixels a cell, box scale {each.scale:g} and offset {each.offset:g}"
            for each in (ours, theirs)
        )
        raise UserError(f"{model}: its grid has {here}, the spec's {there}; {mend}")
    if decoder.class_names != (names := experiment.class_names(spec)):
        classes = f"{', '.join(decoder.class_names)}, the spec's are {', '.join(names)}"
        raise UserError(f"{model}: its classes are {classes}; {mend}")
    return decoder


def evaluate(
    predictor: Predictor,
    data: LabelledImages,
    config: spec_pb2.EvaluationConfig,
    decoder: GridDecoder,
    *,
    batch_size: int = 16,
    tao5: bool = False,
    order: Order | None = None,
    resampling: Resampling | None = None,
) -> dict[str, Any]:
    """Detects in all images and matches detections to labels.

    Objects outside the sizes of the spec's `evaluation_box_config`, and regions that the spec masks, are neither
    demanded nor punished.

    Args:
        predictor: The network.
        data: Labelled images of the predictor's input size.
        config: The spec's `evaluation_config`.
        decoder: The clustering that is to be scored.
        batch_size: Images that the network sees at once.
        tao5: Let NMS and the average precisions be TAO 5's (see `detect_like_tao5` and `components.measure.tao`). The
            other figures stay the right ones for what is detected so.
        order: The numbers of the images that are scored; None for all.
        resampling: How to draw the interval of the mean average precision; None, and for TAO's figure, for none.

    Returns:
        The figures of `components.measure.summary.summarise`, and: `images`, `average_precision_mode`, `compat`,
        `milliseconds_per_image` of network and clustering (mean), and `median_inference_seconds`, an image's share of
        a batch's time in the network (median of the batches). With an interval, also `metric`, `low` and `high`.

    Raises:
        UserError: There are no images.
    """
    numbers = range(len(data.pixels)) if order is None else order.tolist()
    if not len(numbers):
        raise UserError("no images to score: the chosen split is empty; check the data set and the split's name")
    inference = Inference(predictor, batch_size, replace(decoder, detector=detect_like_tao5 if tao5 else detect))
    overlaps = config.minimum_detection_ground_truth_overlap
    sizes = {name: box_sizes(config.evaluation_box_config[name]) for name in decoder.class_names}
    metric = AveragePrecision(decoder.class_names, sizes, overlaps)
    for place, (number, found) in enumerate(inference.stream((number, data.pixels[number]) for number in numbers)):
        metric.add(str(place), _objects(data.objects[number]), found)  # an image may come several times
    measured, mode = metric.measured(), _MODES[config.average_precision_mode]
    figures = summarise(measured.matchers, sizes, mode=mode)
    if resampling and not tao5 and mode == "integrate" and figures["objects"]:
        interval = resampling.interval(MeanOutcomes([*measured.outcomes().values()]))
        figures |= {"metric": AVERAGE_PRECISION, "low": interval.low, "high": interval.high}
    if tao5:
        precisions = {
            name: tao.average_precision(matcher.boxes, sizes[name], overlaps[name], mode)
            for name, matcher in measured.matchers.items()
        }
        mean = statistics.fmean(precisions.values())
        figures |= {"average_precision": precisions, AVERAGE_PRECISION: mean}
    return figures | {
        "images": len(numbers),
        "average_precision_mode": mode,
        "compat": "tao5" if tao5 else "none",
        "milliseconds_per_image": 1000 * inference.seconds / len(numbers),
        "median_inference_seconds": statistics.median(inference.network_seconds),
    }


def box_sizes(config: spec_pb2.EvaluationConfig.EvaluationBoxConfig) -> BoxSizes:
    """Returns the sizes that count; a maximum that is not set is none."""
    return BoxSizes(
        config.minimum_width,
        config.maximum_width or math.inf,
        config.minimum_height,
        config.maximum_height or math.inf,
    )


def _objects(annotations: Annotations) -> Objects:
    # Whether a masked label is one object or a region of several is not kept: a detection is excused by either.
    count = len(annotations.masked)
    boxes = np.concatenate([annotations.boxes, annotations.masked, annotations.masked])
    classes = np.concatenate([annotations.class_ids, np.full(2 * count, ANY_CLASS)])
    return Objects(boxes, classes, classes == ANY_CLASS, np.arange(len(boxes)) >= len(boxes) - count)


def print_evaluation(figures: Mapping[str, Any], validation_cost: float | None = None) -> None:
    """Prints an evaluation in TAO's words; what could not be measured, for want of objects, shows as `nan`."""
    scores = {name: _percent(value) for name, value in sorted(figures["average_precision"].items())}
    print()
    if validation_cost is not None:
        print(f"Validation cost: {validation_cost:f}")
    print(f"Mean average_precision (in %): {_percent(figures[AVERAGE_PRECISION]):0.4f}")
    if "low" in figures:
        low, high = _percent(figures["low"]), _percent(figures["high"])
        print(f"95 % interval, had other images been drawn: {low:0.2f} to {high:0.2f}")
    print()
    rows = [(name, str(value)) for name, value in scores.items()]
    print(_table(("class name", "average precision (in %)"), rows))
    print(f"\nMedian Inference Time: {figures['median_inference_seconds']:f}", flush=True)


def evaluation_status(figures: Mapping[str, Any], validation_cost: float | None = None) -> dict[str, Any]:
    """Returns the fields of TAO's status record of an evaluation, for `StatusLog.write`; percent, like TAO's.

    What could not be measured is left out; TAO's own records count it as 0, and so does `--compat tao5`.
    """
    mean = figures[AVERAGE_PRECISION]
    cost = {} if validation_cost is None else {"validation cost": round(validation_cost, 8)}
    precisions = {name: round(100 * x, 4) for name, x in figures["average_precision"].items() if x is not None}
    return {
        "kpi": {**cost, "mean average precision": round(100 * (mean or 0.0), 4)},
        "categorical": {"average_precision": precisions},
    }


def _table(header: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    """Draws centred cells between rules, as the Python package `tabulate` does in its format `pretty`."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(2)]
    rule = "+".join(["", *("-" * (width + 2) for width in widths), ""])

    def line(row: tuple[str, str]) -> str:
        return "|".join(["", *(f" {cell:^{width}} " for cell, width in zip(row, widths, strict=True)), ""])

    return "\n".join([rule, line(header), rule, *(line(row) for row in rows), rule])


def _percent(value: float | None) -> float:
    return math.nan if value is None else 100 * value
