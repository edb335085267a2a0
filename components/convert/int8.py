"""Converts an exported model to INT8 and refuses when that costs too much accuracy."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.convert.quantize import Runtime, quantize
from components.evaluate.program import Scoring, Source
from components.evaluate.rules import Protocol, Rules
from components.formats.kitti import Sample, read_split
from components.step import MANIFEST, StageError, UserError, check_target, publish, read_manifest, write_manifest
from components.tao.status import STATUS_FILE
from components.vision.inputs import Image, InputSpec
from components.vision.predictor import MODEL_FILE, Predictor, load_predictor
from components.vision.scoring import network_input
from components.vision.status import StatusLog

KIND = "exported_model"
_SEED = 0


@dataclass(frozen=True, slots=True)
class Conversion:
    """How to convert.

    Attributes:
        calibration_images: Training images on which the ranges of activations are measured.
        max_points_lost: Points (hundredths) of average precision at IoU 0.5 that may be lost.
        min_face_height: Smallest object that counts in it, pixels of the network's input.
        runtime: What the activations are laid out for.
    """

    calibration_images: int
    max_points_lost: float
    min_face_height: float
    runtime: Runtime


@dataclass(frozen=True, slots=True)
class Converted:
    """What came of it: average precision before and after (0 to 1), file sizes, and images calibrated on."""

    before: float
    after: float
    bytes_before: int
    bytes_after: int
    calibration_images: int

    @property
    def points_lost(self) -> float:
        """Points (hundredths) of average precision; negative when it rose."""
        return 100 * (self.before - self.after)

    def metrics(self) -> dict[str, float]:
        """Returns flat numbers for Kubeflow's Metrics."""
        return {
            "average_precision_before": self.before,
            "average_precision_after": self.after,
            "points_lost": self.points_lost,
            "file_bytes_before": self.bytes_before,
            "file_bytes_after": self.bytes_after,
            "calibration_images": self.calibration_images,
        }


def convert(exported: Path, kitti: Path, conversion: Conversion, output: Path) -> Converted:
    """Writes the INT8 version of an exported model, unless it loses too much.

    Args:
        exported: The exported-model artifact.
        kitti: The KITTI set: training images to calibrate on, validation images to measure on.
        conversion: The settings.
        output: The exported-model artifact to write.

    Raises:
        UserError: An input cannot be read, or there is nothing to measure or to calibrate on.
        StageError: The INT8 model loses more than allowed; nothing is written.
    """
    check_target(output, KIND)
    settings = read_manifest(exported, KIND)["settings"]
    predictor = load_predictor(exported)
    before = _average_precision(predictor, kitti, conversion.min_face_height)
    images = calibration_images(kitti, conversion.calibration_images, predictor.input)
    with publish(output) as scratch:
        shutil.copytree(exported, scratch, ignore=shutil.ignore_patterns(MODEL_FILE, MANIFEST, STATUS_FILE))
        status = StatusLog(scratch)
        status.write("STARTED", "Starting INT8 conversion")
        float_heads = quantize(exported / MODEL_FILE, scratch / MODEL_FILE, images, predictor.input, conversion.runtime)
        quantized = {
            "precision": "int8",
            "runtime": conversion.runtime.value,
            "float_nodes": float_heads,
            "calibration_images": len(images),
        }
        _write_manifest(scratch, {}, {**settings, "quantization": quantized})
        converted = load_predictor(scratch)
        after = _average_precision(converted, kitti, conversion.min_face_height)
        result = Converted(before, after, predictor.file_bytes, converted.file_bytes, len(images))
        if result.points_lost > conversion.max_points_lost:
            raise StageError(
                f"{exported}: INT8 loses {result.points_lost:.2f} points of AP@0.5 (from {before:.4f} to {after:.4f}), "
                f"at most {conversion.max_points_lost:g} are allowed; nothing was written. Calibrate on more images "
                "(--calibration-images), allow more (--max-points-lost), or deploy the exported model as it is"
            )
        status.write("SUCCESS", "INT8 conversion finished successfully")
        _write_manifest(scratch, result.metrics(), {**settings, "quantization": quantized})
    return result


def _write_manifest(directory: Path, counts: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    shown = ("average_precision_after", "points_lost", "file_bytes_after")
    write_manifest(directory, KIND, counts, settings, logs=(STATUS_FILE,), shown=shown)


def _average_precision(predictor: Predictor, kitti: Path, min_height: float) -> float:
    scoring = Scoring.open(
        Source(kitti, None, "validation"),
        Rules(Protocol.ap50, min_height=min_height),
        predictor.input,
        predictor.decoder.class_names,
    )
    score = scoring.model("", predictor).score
    if score.value is None:
        raise UserError(
            f"{kitti}: no labelled object at least {min_height:g} pixels high in the validation split, so nothing can "
            "be measured; lower --min-face-height or give another set"
        )
    return score.value


def calibration_images(kitti: Path, wanted: int, spec: InputSpec) -> list[Image]:
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
