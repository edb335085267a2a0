"""Scores one or several models on one data set, and writes the evaluation artifact."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.measure.evidence import FILE as EVIDENCE_FILE
from components.measure.evidence import Evidence, digest_of, write_evidence
from components.measure.matching import FALSE_POSITIVE, NEUTRAL, TRUE_POSITIVE, HeightBand, Matching
from components.measure.metric import AVERAGE_PRECISION
from components.measure.summary import summarise
from components.measure.uncertainty import CurveOutcomes
from components.progress import track
from components.step import publish, write_json, write_manifest
from components.vision.predictor import Predictor
from components.vision.scoring import ImageSource, Scored, score

OUTCOMES = {TRUE_POSITIVE: "true_positive", FALSE_POSITIVE: "false_positive", NEUTRAL: "neutral"}
# Settings of an evaluation that change no score.
_SHOWN_ONLY = ("height_bands",)
EVALUATION_KIND = "evaluation"
METRICS_FILE, DETECTIONS_FILE, REPORT_FILE = "metrics.json", "detections.jsonl", "report.html"


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a data set is scored.

    Attributes:
        min_height: Smallest object that counts in the headline figures, pixels of the network's input.
        iou_threshold: Smallest IoU of a match.
        bands: Heights by which the figures are broken down.
        ignore_regions: Whether nothing counts inside ignore regions.
        batch_size: Images that the network sees at once.
    """

    min_height: float
    iou_threshold: float
    bands: tuple[HeightBand, ...]
    ignore_regions: bool
    batch_size: int

    @property
    def headline(self) -> HeightBand:
        """The heights that count in the headline figures."""
        return HeightBand(self.min_height)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One model's results on the data set.

    Attributes:
        name: What the model is called, for example `quantized`.
        scored: Everything it found.
        matchings: By class name, its matching in the headline band.
        metrics: Its numbers, plain values for JSON.
    """

    name: str
    scored: Scored
    matchings: Mapping[str, Matching]
    metrics: Mapping[str, Any]

    @property
    def average_precision(self) -> float | None:
        """Mean average precision, 0 to 1; None when nothing was to be found."""
        value = self.metrics["mean_average_precision"]
        return None if value is None else float(value)


def evaluate(name: str, predictor: Predictor, images: ImageSource, protocol: Protocol) -> Evaluated:
    """Runs `predictor` over `images` and measures it."""
    shown = track(images, len(images), f"scoring {name}")
    scored = score(predictor, shown, protocol.iou_threshold, protocol.batch_size)
    figures = {
        "parameters": predictor.parameters,
        "file_bytes": predictor.file_bytes,
        "images_per_second": len(scored.ids) / scored.seconds,
    }
    return summarised(name, scored, images, protocol, figures)


def summarised(
    name: str, scored: Scored, images: ImageSource, protocol: Protocol, figures: Mapping[str, Any]
) -> Evaluated:
    """Measures what was found in `images`; `figures` are those that only whoever ran the model knows."""
    metrics = {
        "metric": AVERAGE_PRECISION,
        **summarise(scored.matchers, protocol.headline, protocol.bands),
        "iou_threshold": protocol.iou_threshold,
        "images": len(scored.ids),
        "seconds": scored.seconds,
        "skipped_labels": dict(images.skipped),
        **figures,
    }
    matchings = {name: matcher.match(protocol.headline) for name, matcher in scored.matchers.items()}
    return Evaluated(name, scored, matchings, metrics)


def write_evaluation(
    output: Path, models: Sequence[Evaluated], report: str, counts: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Writes the evaluation artifact: `metrics.json`, `detections.jsonl`, `score_evidence.npz`, `report.html`.

    Args:
        output: The artifact directory to make.
        models: What was scored; the last one is the one whose figures stand in the artifact's summary.
        report: The report, HTML.
        counts: Further entries of the manifest's counts.
        settings: The manifest's settings.
    """
    final = models[-1]
    metrics = {
        **final.metrics,
        "model": final.name,
        "models": {model.name: dict(model.metrics) for model in models},
    }
    with publish(output) as scratch:
        scratch.mkdir()
        write_json(scratch / METRICS_FILE, metrics)
        _write_text(scratch / REPORT_FILE, report)
        with (scratch / DETECTIONS_FILE).open("w", encoding="utf-8") as stream:
            for line in _detection_lines(models):
                stream.write(json.dumps(line) + "\n")
        write_evidence(scratch / EVIDENCE_FILE, {model.name: evidence_of(model, settings) for model in models})
        summary = {name: final.metrics[name] for name in ("metric", "mean_average_precision", "images", "objects")}
        # Times stand in the metrics and in the report.
        write_manifest(scratch, EVALUATION_KIND, {**summary, **counts}, settings, logs=(METRICS_FILE, REPORT_FILE))


def evidence_of(model: Evaluated, settings: Mapping[str, Any]) -> Evidence:
    """Returns what each image contributed to a model's score, for a paired test against another model later."""
    rules = {name: value for name, value in settings.items() if name not in _SHOWN_ONLY}
    classes = {name: CurveOutcomes.of(model.scored.matchers[name], m) for name, m in model.matchings.items()}
    return Evidence(digest_of(model.scored.ids, {**rules, "classes": sorted(classes)}), classes)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _detection_lines(models: Sequence[Evaluated]) -> Iterator[dict[str, Any]]:
    """Yields, for each model and image, what was found and what was missed, boxes in network-input pixels."""
    for model in models:
        for index, image in enumerate(model.scored.ids):
            found, missed = [], []
            for name, matching in model.matchings.items():
                matcher, boxes = model.scored.matchers[name], model.scored.boxes[name][index]
                for row, outcome in zip(boxes.detections, matching.outcome[matcher.detections_of(index)], strict=True):
                    entry = {"class": name, "box": _rounded(row[:4]), "score": round(float(row[4]), 6)}
                    found.append({**entry, "outcome": OUTCOMES[int(outcome)]})
                truths = matcher.truths_of(index)
                lost = (matching.counted[truths] & ~matching.found[truths])[: len(boxes.truths)]
                missed += [{"class": name, "box": _rounded(box)} for box in boxes.truths[lost]]
            yield {"model": model.name, "image": image, "detections": found, "missed": missed}


def _rounded(box: np.ndarray[tuple[int, ...], np.dtype[np.floating[Any]]]) -> list[float]:
    return [round(float(edge), 2) for edge in box]


def flat_metrics(models: Sequence[Evaluated]) -> dict[str, float]:
    """Returns the numbers for Kubeflow's Metrics: flat, finite, figures that do not exist left out.

    The last model's figures carry plain names, the others are prefixed with their own.
    """
    numbers: dict[str, float | None] = {}
    for model in models:
        prefix = "" if model is models[-1] else f"{model.name}_"
        for name in ("mean_average_precision", "images_per_second", "parameters", "file_bytes"):
            numbers[prefix + name] = model.metrics[name]
        for band in model.metrics["average_precision_by_height"]:
            numbers[f"{prefix}average_precision_height_{band['band']}"] = band["average_precision"]
        for percentile, value in model.metrics.get("latency_milliseconds", {}).items():
            numbers[f"{prefix}latency_{percentile}_milliseconds"] = value
    for name in ("images", "objects"):
        numbers[name] = models[-1].metrics[name]
    return {name: value for name, value in numbers.items() if value is not None}
