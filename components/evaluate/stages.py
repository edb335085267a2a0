"""The rows of the report's table: what the earlier stages' evaluations say, and what this one measured."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.evaluate.evaluation import METRICS_FILE, Evaluated
from components.measure.metric import AVERAGE_PRECISION, Score
from components.step import UserError
from components.tao.status import STATUS_FILE, status_seconds

UNKNOWN = Score(AVERAGE_PRECISION, None)


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage of the table.

    Attributes:
        name: For example `Pruned`.
        score: Its score, whose value may be None.
        parameters: Number of weights, or None.
        file_bytes: Size of the model file, or None.
        seconds: Time it took to make the model, or None.
        note: What a reader has to know, for example that the stage was skipped.
    """

    name: str
    score: Score = UNKNOWN
    parameters: int | None = None
    file_bytes: int | None = None
    seconds: float | None = None
    note: str = ""


def earlier_row(name: str, evaluation: Path | None) -> StageRow:
    """Reads the row of a stage from its evaluation artifact; without one the row says so.

    Raises:
        UserError: The evaluation is there, but cannot be read.
    """
    if evaluation is None:
        return StageRow(name, note="no evaluation given")
    file = evaluation / METRICS_FILE
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
        row = _row(name, metrics)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; give the directory that 'detectnet_v2 evaluate' wrote") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not the metrics of an evaluation: {error}") from error
    return StageRow(name, note="skipped") if metrics.get("skipped") else row


def measured_row(model: Evaluated, path: Path | None) -> StageRow:
    """Returns the row of a model that this evaluation scored; its status log stands in the artifact at `path`, if any.

    Of the model behind an endpoint nothing more is known.
    """
    seconds = status_seconds(path / STATUS_FILE) if path else None
    return _row(model.name.capitalize(), {**model.metrics, "model_seconds": seconds})


def _row(name: str, metrics: Mapping[str, Any]) -> StageRow:
    metric = metrics.get("metric", AVERAGE_PRECISION)
    score, parameters = Score.read({metric: None, **metrics}), metrics.get("parameters")
    size, seconds = metrics.get("file_bytes"), metrics.get("model_seconds")
    return StageRow(
        name,
        score,
        None if parameters is None else int(parameters),
        None if size is None else int(size),
        None if seconds is None else float(seconds),
    )


def points_lost(before: Score, after: Score) -> float | None:
    """Returns by how many points (hundredths) a score fell; negative when it rose, None if unknown."""
    return before.points_above(after) if before.is_number and after.is_number else None
