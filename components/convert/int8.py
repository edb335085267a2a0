"""Converts an exported model to INT8 and refuses when that costs too much accuracy."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from components.convert.quantize import Runtime, quantize
from components.decode.description import OPERATING_POINT, at_operating_point
from components.evaluate.program import Scoring, Source
from components.evaluate.rules import Protocol, Rules
from components.formats.kitti import Sample, read_split
from components.measure.metric import Score
from components.measure.summary import operating_point
from components.measure.uncertainty import Interval, MeanOutcomes, Outcomes, Resampling
from components.step import MANIFEST, StageError, UserError, check_target, publish, read_manifest, write_manifest
from components.tao.status import STATUS_FILE
from components.vision.inputs import Image, InputSpec
from components.vision.predictor import MODEL_FILE, Predictor, load_predictor
from components.vision.scoring import network_input
from components.vision.status import StatusLog

KIND = "exported_model"
_SEED = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """How good a model is.

    Attributes:
        score: Its score.
        outcomes: What each image contributed to it, where that is known: then what is lost has an interval.
        operating_point: By class, the score from which on its detections are to be shown; empty for other tasks.
    """

    score: Score
    outcomes: Outcomes | None = None
    operating_point: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Gate:
    """What a conversion may cost.

    Attributes:
        measure: Scores a model on images that chose nothing but models and thresholds.
        title: What people call that score, with what it is measured at.
        max_points_lost: Points (hundredths) of it that may be lost. The loss on these images is judged, since they are
            as many as there are; its interval says how sure that is.
        resampling: How the interval is drawn; None for none.
    """

    measure: Callable[[Predictor], Measured]
    title: str
    max_points_lost: float
    resampling: Resampling | None = field(default_factory=Resampling)

    def lost(self, before: Measured, after: Measured) -> Interval | None:
        """Returns the interval of the points (hundredths) that are lost, paired over the images."""
        if self.resampling is None or before.outcomes is None or after.outcomes is None:
            return None
        pair = before.outcomes, after.outcomes
        found = self.resampling.difference(*(reversed(pair) if before.score.scale.lower_is_better else pair)).interval
        return replace(found, value=100 * found.value, low=100 * found.low, high=100 * found.high)

    def verdict(self, interval: Interval | None) -> str:
        """Says how sure it is whether more is lost than allowed; empty where nothing is known of it."""
        if interval is None:
            return ""
        around = f" ({interval.confidence:.0%} interval {interval.low:.2f} to {interval.high:.2f}"
        if interval.low > self.max_points_lost:
            return f"{around}: more than the {self.max_points_lost:g} that are allowed, for certain)"
        if interval.high <= self.max_points_lost:
            return f"{around}: at most the {self.max_points_lost:g} that are allowed, for certain)"
        return f"{around}: whether more than the {self.max_points_lost:g} that are allowed, these images do not decide)"


@dataclass(frozen=True, slots=True)
class Converted:
    """What came of it.

    Attributes:
        before: The score of the exported model.
        after: The score of the INT8 model.
        bytes_before: Size of the exported model's file.
        bytes_after: Size of the INT8 model's file.
        calibration_images: Images calibrated on.
        lost: Interval of the points that are lost, where it is known.
        verdict: How sure it is whether more is lost than allowed; empty where it is not known.
    """

    before: Score
    after: Score
    bytes_before: int
    bytes_after: int
    calibration_images: int
    lost: Interval | None = None
    verdict: str = ""

    @property
    def points_lost(self) -> float:
        """Points (hundredths) of the score; negative when it became better."""
        return self.before.points_above(self.after)

    def metrics(self) -> dict[str, float | None]:
        """Returns flat numbers for Kubeflow's Metrics."""
        name = self.before.metric.removeprefix("mean_")
        interval = {"points_lost_low": self.lost.low, "points_lost_high": self.lost.high} if self.lost else {}
        return {
            f"{name}_before": self.before.value,
            f"{name}_after": self.after.value,
            "points_lost": self.points_lost,
            **interval,
            "file_bytes_before": self.bytes_before,
            "file_bytes_after": self.bytes_after,
            "calibration_images": self.calibration_images,
        }


def convert(
    exported: Path, output: Path, runtime: Runtime, calibration: Callable[[InputSpec], Sequence[Image]], gate: Gate
) -> Converted:
    """Writes the INT8 version of an exported model, unless it loses too much.

    Args:
        exported: The exported-model artifact.
        output: The exported-model artifact to write.
        runtime: What the activations are laid out for.
        calibration: Gives images, as `InputSpec.place` does, on which the ranges of activations are measured.
        gate: What may be lost.

    Raises:
        UserError: An input cannot be read, or there is nothing to measure or to calibrate on.
        StageError: The INT8 model loses more than allowed; nothing is written.
    """
    check_target(output, KIND)
    settings = read_manifest(exported, KIND)["settings"]
    predictor = load_predictor(exported)
    before = gate.measure(predictor)
    images = calibration(predictor.input)
    with publish(output) as scratch:
        shutil.copytree(exported, scratch, ignore=shutil.ignore_patterns(MODEL_FILE, MANIFEST, STATUS_FILE))
        status = StatusLog(scratch)
        status.write("STARTED", "Starting INT8 conversion")
        float_heads = quantize(exported / MODEL_FILE, scratch / MODEL_FILE, images, predictor.input, runtime)
        quantized = {
            "precision": "int8",
            "runtime": runtime.value,
            "float_nodes": float_heads,
            "calibration_images": len(images),
            # That of the exported model, which may have none of its own: TAO's have none.
            **({OPERATING_POINT: dict(before.operating_point)} if before.operating_point else {}),
        }
        settings = {**settings, "quantization": quantized}
        _write_manifest(scratch, {}, settings)
        converted = load_predictor(scratch)
        after = gate.measure(converted)
        lost = gate.lost(before, after)
        sizes = predictor.file_bytes, converted.file_bytes, len(images)
        result = Converted(before.score, after.score, *sizes, lost, gate.verdict(lost))
        if result.points_lost > gate.max_points_lost:
            raise StageError(
                f"{exported}: INT8 loses {result.points_lost:.2f} points of {gate.title} (from "
                f"{result.before.value:.4f} to {result.after.value:.4f}), at most {gate.max_points_lost:g} are "
                f"allowed{result.verdict}; nothing was written. Calibrate on more images (--calibration-images), allow "
                "more (--max-points-lost), or deploy the exported model as it is"
            )
        status.write("SUCCESS", "INT8 conversion finished successfully")
        _write_manifest(scratch, result.metrics(), at_operating_point(settings, after.operating_point))
    return result


def _write_manifest(directory: Path, counts: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    shown = tuple(name for name in counts if name.endswith("_after") or name == "points_lost")
    write_manifest(directory, KIND, counts, settings, logs=(STATUS_FILE,), shown=shown)


def average_precision(predictor: Predictor, kitti: Path, min_height: float) -> Measured:
    """Scores a detector on the validation images of a KITTI set, and finds the score at which its F1 is best there.

    Args:
        predictor: The detector.
        kitti: The set.
        min_height: Smallest object that counts, pixels of the network's input.

    Raises:
        UserError: There is nothing to be found.
    """
    source, rules = Source(kitti, None, "validation"), Rules(Protocol.ap50, min_height=min_height)
    scoring = Scoring.open(source, rules, predictor.input, predictor.decoder.class_names)
    found = scoring.model("", predictor)
    if found.score.value is None:
        raise UserError(
            f"{kitti}: no labelled object at least {min_height:g} pixels high in the validation split, so nothing can "
            "be measured; lower --min-face-height or give another set"
        )
    return Measured(found.score, MeanOutcomes([*found.outcomes.values()]), operating_point(found.metrics))


def draw_images(kitti: Path, wanted: int, spec: InputSpec) -> list[Image]:
    """Draws training images at random, the same ones every time, so that no event or scene dominates.

    Reservoir sampling (Vitter, 1985, algorithm R): one pass, and never more than `wanted` encoded images in memory.

    Args:
        kitti: The set.
        wanted: How many; all of them when the set has fewer.
        spec: What the network takes.

    Returns:
        Images as `InputSpec.place` gives them.

    Raises:
        UserError: There are no training images, or one is broken.
    """
    random = np.random.default_rng(_SEED)
    reservoir: list[Sample] = []
    for index, sample in enumerate(read_split(kitti, "training")):
        if index < wanted:
            reservoir.append(sample)
        elif (position := int(random.integers(index + 1))) < wanted:
            reservoir[position] = sample
    if not reservoir:
        raise UserError(f"{kitti}: the training split is empty, so there is nothing to calibrate on")
    return [network_input(sample.image, f"{kitti}: {sample.file_name}", spec)[0] for sample in reservoir]
