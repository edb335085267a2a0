"""The evaluation artifact: figures, detections, evidence and the report of one model or several."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.evaluate.protocols import Result
from components.evaluate.rules import Rules
from components.measure.evidence import FILE as EVIDENCE_FILE
from components.measure.evidence import Evidence, digest_of, write_evidence
from components.measure.matching import FALSE_POSITIVE, NEUTRAL, TRUE_POSITIVE
from components.measure.metric import Score
from components.measure.summary import summarise
from components.measure.uncertainty import CurveOutcomes, MeanOutcomes, RatioOutcomes, Resampling
from components.step import publish, write_json, write_manifest

OUTCOMES = {TRUE_POSITIVE: "true_positive", FALSE_POSITIVE: "false_positive", NEUTRAL: "neutral"}
# Settings of an evaluation that change no score.
_SHOWN_ONLY = ("height_bands",)
EVALUATION_KIND = "evaluation"
METRICS_FILE, DETECTIONS_FILE, REPORT_FILE = "metrics.json", "detections.jsonl", "report.html"


@dataclass(frozen=True)
class Scored:
    """What a model of any kind scored.

    Attributes:
        name: What the model is called, for example `quantized`.
        metrics: Its numbers, plain values for JSON: its score (`Score.written`), `images`, `objects`, and others.
        images: Their names.
        outcomes: By class, what each image contributed to the score.
    """

    name: str
    metrics: Mapping[str, Any]
    images: Sequence[str]
    outcomes: Mapping[str, CurveOutcomes | RatioOutcomes]

    @property
    def score(self) -> Score:
        """Its score."""
        return Score.read(self.metrics)


@dataclass(frozen=True)
class Evaluated(Scored):
    """What a detector scored.

    Attributes:
        result: What it found, in pixels of the network's input.
    """

    result: Result

    @classmethod
    def of(
        cls, result: Result, rules: Rules, skipped: Mapping[str, int], resampling: Resampling | None = None
    ) -> "Evaluated":
        """Takes a result's numbers.

        Args:
            result: The result.
            rules: How it was measured.
            skipped: What was left out of the truth, and how often.
            resampling: How to draw the score's interval; None for none.
        """
        measured, detected, score = result.measured, result.detected, result.measured.score()
        outcomes = measured.outcomes()
        if resampling and score.is_number:
            interval = resampling.interval(MeanOutcomes([*outcomes.values()]))
            score = replace(score, low=interval.low, high=interval.high)
        metrics = {
            **score.written(),
            **summarise(measured.matchers, rules.sizes, rules.bands),
            "iou_threshold": rules.iou,
            "images": len(measured.images),
            "seconds": detected.seconds,
            "skipped_labels": dict(skipped),
            "parameters": detected.parameters,
            "file_bytes": detected.file_bytes,
            "images_per_second": detected.images_per_second,
        }
        if latency := detected.latency:
            metrics |= {
                "latency_milliseconds": latency.milliseconds(),
                "latency_requests": len(latency.seconds),
                "latency_in_flight": latency.in_flight,
            }
        return cls(result.name, metrics, measured.images, outcomes, result)


def write_evaluation(
    output: Path, models: Sequence[Scored], report: str, counts: Mapping[str, Any], settings: Mapping[str, Any]
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
        (scratch / REPORT_FILE).write_text(report, encoding="utf-8")
        with (scratch / DETECTIONS_FILE).open("w", encoding="utf-8") as stream:
            for line in _detection_lines(models):
                stream.write(json.dumps(line) + "\n")
        write_evidence(scratch / EVIDENCE_FILE, {model.name: evidence_of(model, settings) for model in models})
        names = ("metric", final.score.metric, "low", "high", "images", "objects")
        summary = {name: final.metrics[name] for name in names if name in final.metrics}
        # Times stand in the metrics and in the report.
        write_manifest(scratch, EVALUATION_KIND, {**summary, **counts}, settings, logs=(METRICS_FILE, REPORT_FILE))


def evidence_of(model: Scored, settings: Mapping[str, Any]) -> Evidence:
    """Returns what each image contributed to a model's score, for a paired test against another model later."""
    rules = {name: value for name, value in settings.items() if name not in _SHOWN_ONLY}
    return Evidence(digest_of(model.images, {**rules, "classes": sorted(model.outcomes)}), model.outcomes)


def _detection_lines(models: Sequence[Scored]) -> Iterator[dict[str, Any]]:
    """Yields, for each detector and image, what was found and what was missed, boxes in network-input pixels."""
    for model in (model for model in models if isinstance(model, Evaluated)):
        measured = model.result.measured
        for index, image in enumerate(measured.images):
            found, missed = [], []
            for name, matching in measured.matchings.items():
                matcher = measured.matchers[name]
                here, there = matcher.detections_of(index), matcher.truths_of(index)
                rows = zip(matcher.boxes.detections[here], matching.scores[here], matching.outcome[here], strict=True)
                found += [
                    {"class": name, "box": _rounded(box), "score": round(score, 6), "outcome": OUTCOMES[outcome]}
                    for box, score, outcome in ((box.tolist(), float(score), int(what)) for box, score, what in rows)
                ]
                lost = matcher.boxes.truths[there][matching.counted[there] & ~matching.found[there]]
                missed += [{"class": name, "box": _rounded(box)} for box in lost.tolist()]
            yield {"model": model.name, "image": image, "detections": found, "missed": missed}


def _rounded(box: Sequence[float]) -> list[float]:
    return [round(edge, 2) for edge in box]


def flat_metrics(models: Sequence[Scored]) -> dict[str, float]:
    """Returns the numbers for Kubeflow's Metrics: flat, finite, figures that do not exist left out.

    The last model's figures carry plain names, the others are prefixed with their own.
    """
    numbers: dict[str, float | None] = {}
    for model in models:
        prefix = "" if model is models[-1] else f"{model.name}_"
        for name in (model.score.metric, "images_per_second", "parameters", "file_bytes"):
            numbers[prefix + name] = model.metrics.get(name)
        for end in ("low", "high"):
            numbers[f"{prefix}{model.score.metric}_{end}"] = model.metrics.get(end)
        for band in model.metrics.get("average_precision_by_height", ()):
            numbers[f"{prefix}average_precision_height_{band['band']}"] = band["average_precision"]
        for percentile, value in model.metrics.get("latency_milliseconds", {}).items():
            numbers[f"{prefix}latency_{percentile}_milliseconds"] = value
    for name in ("images", "objects"):
        numbers[name] = models[-1].metrics[name]
    return {name: value for name, value in numbers.items() if value is not None}
