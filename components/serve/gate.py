"""The quality gate: whether a model may replace the one that is served, judged by their scores on the same images."""

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components import store
from components.serve.kserve import DATA, RUN, SCORE
from components.step import MANIFEST, UserError, read_manifest

SCORE_FILE = "score.json"
# What a score depends on besides the model; the rest of an evaluation's settings says how results are shown.
_RULES = ("data_digest", "split", "min_face_height", "iou_threshold", "ignore_regions")
_METRICS_FILE = "metrics.json"


@dataclass(frozen=True, slots=True)
class Score:
    """What a model scored, and on what.

    Attributes:
        model: What messages call it.
        value: Mean average precision at IoU 0.5, 0 to 1; None where there is none, and NaN is none.
        data: Digest of the images and of the rules by which they were scored, or empty where nobody wrote it down.
    """

    model: str
    value: float | None
    data: str

    @property
    def is_number(self) -> bool:
        """Whether there is a score that means something."""
        return self.value is not None and math.isfinite(self.value) and 0 <= self.value <= 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model may take over, and why."""

    accepted: bool
    reason: str


def judge(candidate: Score, champion: Score | None, points: float, accept_incomparable: bool = False) -> Verdict:
    """Judges whether `candidate` may replace `champion`.

    Args:
        candidate: The new model's score.
        champion: That of the one that is served; None where none is.
        points: Points (hundredths) of average precision that the champion may be better.
        accept_incomparable: Lets the candidate pass where the two were not scored on the same images.

    Returns:
        The verdict; a candidate without a score is never accepted.
    """
    if not candidate.is_number:
        return Verdict(False, f"{candidate.model} has no score ({candidate.value}); evaluate it before it is deployed")
    if champion is None:
        return Verdict(True, f"{candidate.model} scores {candidate.value:.4f}, and nothing is served yet")
    incomparable = _incomparable(candidate, champion)
    if incomparable:
        mend = (
            "score what is served on these images (gridbox evaluate score --endpoint …) and give that evaluation as "
            "champion, or accept incomparable scores"
        )
        return Verdict(
            accept_incomparable, f"not comparable: {incomparable}" + ("" if accept_incomparable else f"; {mend}")
        )
    assert candidate.value is not None
    assert champion.value is not None
    lead = 100 * (champion.value - candidate.value)
    scores = f"{candidate.model} scores {candidate.value:.4f}, {champion.model} {champion.value:.4f} on the same images"
    if lead > points + 1e-9:  # exactly the margin is allowed, whatever a float makes of it
        return Verdict(
            False, f"{scores}: what is served is better by {lead:.2f} points, at most {points:g} are allowed"
        )
    return Verdict(True, scores)


def _incomparable(candidate: Score, champion: Score) -> str:
    if not champion.is_number:
        return f"{champion.model} has no score ({champion.value})"
    if not candidate.data or not champion.data:
        nameless = candidate.model if not candidate.data else champion.model
        return f"the score of {nameless} does not say on which images"
    if candidate.data != champion.data:
        return f"{candidate.model} was scored on other images, or by other rules, than {champion.model}"
    return ""


def score_of_predictor(predictor: Mapping[str, Any]) -> Score:
    """Returns the score that stands at a predictor of a deployed InferenceService."""
    annotations = predictor.get("annotations", {})
    try:
        value = float(annotations[SCORE])
    except (KeyError, ValueError):
        value = None
    return Score(f"the model of run {annotations.get(RUN, '(unknown)')}", value, annotations.get(DATA, ""))


def read_score(evaluation: Path, model: str = "") -> Score:
    """Reads a score from an evaluation artifact.

    Args:
        evaluation: The artifact, of a model or of an endpoint.
        model: Which of its models; empty for the last one, whose score is the evaluation's.

    Raises:
        UserError: It is no evaluation, or has no such model.
    """
    manifest = read_manifest(evaluation, "evaluation")
    value = manifest["counts"].get("mean_average_precision")
    if model:
        models = _json(evaluation / _METRICS_FILE).get("models", {})
        if model not in models:
            known = ", ".join(sorted(models)) or "none"
            raise UserError(f"{evaluation}: no model {model!r} was scored here, but {known}; name one of them")
        value = models[model].get("mean_average_precision")
    return Score(model or "the new model", None if value is None else float(value), data_digest(manifest["settings"]))


def data_digest(settings: Mapping[str, Any]) -> str:
    """Returns the digest of the images and rules in an evaluation's settings; empty where the images are not named."""
    if not settings.get("data_digest"):
        return ""
    rules = {name: settings.get(name) for name in _RULES}
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def champion_score(location: str) -> Score:
    """Reads the champion's score from where a deployment or an evaluation was kept.

    Args:
        location: An evaluation artifact, or the `score.json` of a deployment: a path, file://, https:// or s3:// URI.

    Raises:
        UserError: It cannot be read.
    """
    if urlsplit(location).scheme not in ("", "file"):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / SCORE_FILE
            store.fetch(location, file)
            return _score_file(file, location)
    path = store.local_path(location)
    if (path / SCORE_FILE).is_file():
        path = path / SCORE_FILE
    if (path / MANIFEST).is_file():
        score = read_score(path)
        return Score("the champion", score.value, score.data)
    if not path.is_file():
        raise UserError(f"{location}: neither an evaluation nor a {SCORE_FILE} is here; name one")
    return _score_file(path, location)


def _score_file(file: Path, location: str) -> Score:
    document = _json(file)
    value = document.get("mean_average_precision")
    if "mean_average_precision" not in document or not (value is None or isinstance(value, int | float)):
        raise UserError(f"{store.shown(location)}: mean_average_precision is missing or no number; give a {SCORE_FILE}")
    return Score("the champion", None if value is None else float(value), str(document.get("data_digest") or ""))


def score_document(score: Score) -> dict[str, Any]:
    """Returns what `champion_score` reads."""
    return {"mean_average_precision": score.value if score.is_number else None, "data_digest": score.data}


def _json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable JSON: {error}") from error
    if not isinstance(document, dict):
        raise UserError(f"{file}: a JSON object is needed")
    return document
