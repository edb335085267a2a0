"""The quality gate: whether a model may replace the one that is served, judged by their scores on the same images.

Where the outcomes behind both scores are known, a paired test over the images finds the model better, worse by more
than the margin, or neither for certain. Neither, and where no outcomes are known, the plain margin judges, and the
verdict says so. What is no improvement may not fall by more than the margin below the best that was ever promoted
either: otherwise many small losses would add up.
"""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components import store
from components.measure.evidence import FILE as EVIDENCE_FILE
from components.measure.evidence import Evidence, read_evidence, write_evidence
from components.measure.metric import AVERAGE_PRECISION, Score
from components.measure.uncertainty import paired_difference
from components.serve.kserve import DATA, METRIC, RUN, SCORE
from components.serve.ledger import Best
from components.step import MANIFEST, UserError, read_manifest, sha256, write_json

SCORE_FILE = "score.json"
# What a score depends on besides the model; the rest of an evaluation's settings says how results are shown.
_RULES = ("data_digest", "split", "min_face_height", "iou_threshold", "ignore_regions")
_METRICS_FILE = "metrics.json"
# By how much a score may differ from the one that its evidence gives: sums in another order.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class ScoredModel:
    """What a model scored, and on what.

    Attributes:
        model: What messages call it.
        score: Its score; a value of None or NaN is none.
        data: Digest of the images and of the rules by which they were scored, or empty if it is not recorded.
        evidence: What each image contributed to it, where that was kept.
    """

    model: str
    score: Score
    data: str
    evidence: Evidence | None = field(default=None, repr=False)

    @property
    def value(self) -> float | None:
        """The score's value."""
        return self.score.value

    @property
    def is_number(self) -> bool:
        """Whether there is a score that means something."""
        return self.score.is_number


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model may take over, and why."""

    accepted: bool
    reason: str


def judge(
    candidate: ScoredModel,
    champion: ScoredModel | None,
    points: float,
    accept_incomparable: bool = False,
    best: Best | None = None,
) -> Verdict:
    """Judges whether `candidate` may replace `champion`.

    Args:
        candidate: The new model's score.
        champion: That of the one that is served; None where none is.
        points: Points (hundredths) of the score that the champion may be better.
        accept_incomparable: Lets the candidate pass where the two were not scored on the same images.
        best: The best score that was ever promoted; it counts where it is of the same images.

    Returns:
        The verdict; a candidate without a score is never accepted.
    """
    if not candidate.is_number:
        return Verdict(False, f"{candidate.model} has no score ({candidate.value}); evaluate it before it is deployed")
    if champion is None:
        return Verdict(True, f"{candidate.model} scores {candidate.value:.4f}, and nothing is served that was promoted")
    incomparable = _incomparable(candidate, champion)
    if incomparable:
        mend = (
            "score what is served on these images (gridbox evaluate score --endpoint …) and give that evaluation as "
            "champion, or accept incomparable scores"
        )
        return Verdict(
            accept_incomparable, f"not comparable: {incomparable}" + ("" if accept_incomparable else f"; {mend}")
        )
    if candidate.evidence and champion.evidence:
        verdict = _judge_pair(candidate, champion, candidate.evidence, champion.evidence, points)
    else:
        without = " and ".join(scored.model for scored in (candidate, champion) if not scored.evidence)
        how = f"judged by the plain margin, since no {EVIDENCE_FILE} of {without} is at hand"
        verdict = _judge_margin(candidate, champion, points, _scores(candidate, champion), how)
    return _judge_floor(verdict, candidate, champion, points, best)


def _judge_pair(
    candidate: ScoredModel, champion: ScoredModel, first: Evidence, second: Evidence, points: float
) -> Verdict:
    """Judges by where the whole interval of the difference lies; undecided, by the plain margin."""
    pair = (first.outcomes, second.outcomes)
    difference = paired_difference(*(reversed(pair) if candidate.score.scale.lower_is_better else pair))
    interval = difference.interval
    low, value, high = (100 * edge for edge in (interval.low, interval.value, interval.high))
    scores = (
        f"{_scores(candidate, champion)}, {value:+.2f} points ({interval.confidence:.0%} interval {low:+.2f} to "
        f"{high:+.2f}, p = {difference.p_value:.3f}, paired over {first.outcomes.images:,} images)"
    )
    if low > 0:
        return Verdict(True, f"{scores}: better for certain")
    if high < -points - 1e-9:
        return Verdict(False, f"{scores}: for certain worse by more than the {points:g} points that are allowed")
    how = "judged by the plain margin, since the images do not decide"
    return _judge_margin(candidate, champion, points, scores, how)


def _judge_margin(candidate: ScoredModel, champion: ScoredModel, points: float, scores: str, how: str) -> Verdict:
    lead = champion.score.points_above(candidate.score)
    if lead > points + 1e-9:  # exactly the margin is allowed, whatever a float makes of it
        better = f"what is served is better by {lead:.2f} points, at most {points:g} are allowed"
        return Verdict(False, f"{scores}: {better} ({how})")
    return Verdict(True, f"{scores} ({how})")


def _judge_floor(
    verdict: Verdict, candidate: ScoredModel, champion: ScoredModel, points: float, best: Best | None
) -> Verdict:
    """Refuses what is below what is served, and too far below the best."""
    if not verdict.accepted or best is None or (best.data, best.metric) != (candidate.data, candidate.score.metric):
        return verdict
    lead = best.score.points_above(candidate.score)
    if candidate.score.points_above(champion.score) >= 0:
        return verdict
    if lead <= points + 1e-9:
        return verdict
    return Verdict(
        False,
        f"{candidate.model} scores {candidate.value:.4f}, below what is served, and {lead:.2f} points below the best"
        f" that was ever promoted ({best.value:.4f}, run {best.run}), at most {points:g} are allowed",
    )


def _scores(candidate: ScoredModel, champion: ScoredModel) -> str:
    return f"{candidate.model} scores {candidate.value:.4f}, {champion.model} {champion.value:.4f} on the same images"


def _incomparable(candidate: ScoredModel, champion: ScoredModel) -> str:
    if not champion.is_number:
        return f"{champion.model} has no score ({champion.value})"
    if candidate.score.metric != champion.score.metric:
        return (
            f"{candidate.model} was scored by {candidate.score.metric}, {champion.model} by {champion.score.metric}, "
            "and only scores of one metric can be compared"
        )
    if not candidate.data or not champion.data:
        nameless = candidate.model if not candidate.data else champion.model
        return f"the score of {nameless} does not say on which images"
    if candidate.data != champion.data:
        return f"{candidate.model} was scored on other images, or by other rules, than {champion.model}"
    first, second = candidate.evidence, champion.evidence
    if first and second and (first.digest, first.outcomes.images) != (second.digest, second.outcomes.images):
        return f"the evidence of {candidate.model} is about other images, or other rules, than that of {champion.model}"
    return ""


def score_of_predictor(predictor: Mapping[str, Any]) -> ScoredModel:
    """Returns the score that stands at a predictor of a deployed InferenceService."""
    annotations = predictor.get("annotations", {})
    try:
        value = float(annotations[SCORE])
    except (KeyError, ValueError):
        value = None
    score = Score(annotations.get(METRIC, AVERAGE_PRECISION), value)
    return ScoredModel(f"the model of run {annotations.get(RUN, '(unknown)')}", score, annotations.get(DATA, ""))


def read_score(evaluation: Path, model: str = "") -> ScoredModel:
    """Reads a score from an evaluation artifact, with its evidence where the artifact has it.

    Args:
        evaluation: The artifact, of a model or of an endpoint.
        model: Which of its models; empty for the last one, whose score is the evaluation's.

    Raises:
        UserError: It is no evaluation, has no such model, or its evidence is damaged or another score's.
    """
    manifest = read_manifest(evaluation, "evaluation")
    figures = manifest["counts"]
    metric = str(figures.get("metric", AVERAGE_PRECISION))
    if model:
        models = _json(evaluation / _METRICS_FILE).get("models", {})
        if model not in models:
            known = ", ".join(sorted(models)) or "none"
            raise UserError(f"{evaluation}: no model {model!r} was scored here, but {known}; name one of them")
        figures = models[model]
    score = _score({metric: None, **figures, "metric": metric}, str(evaluation))
    return with_evidence(
        ScoredModel(model or "the new model", score, data_digest(manifest["settings"])),
        evaluation / EVIDENCE_FILE,
        model,
    )


def with_evidence(scored: ScoredModel, file: Path, model: str = "") -> ScoredModel:
    """Adds the evidence from a file; none where there is no such file, or no score.

    Raises:
        UserError: It is damaged, or that of another score.
    """
    if not scored.is_number or not file.is_file():
        return scored
    evidence = read_evidence(file, model)
    found = evidence.outcomes.value()
    if scored.value is None or not abs(found - scored.value) <= _ROUNDING:
        raise UserError(f"{file}: evidence of a score of {found:.4f}, not {scored.value}; evaluate the model again")
    return replace(scored, evidence=evidence)


def data_digest(settings: Mapping[str, Any]) -> str:
    """Returns the digest of the images and rules in an evaluation's settings; empty where the images are not named."""
    if not settings.get("data_digest"):
        return ""
    rules = {name: settings.get(name) for name in _RULES}
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def champion_score(location: str) -> ScoredModel:
    """Reads the champion's score from where a deployment or an evaluation was kept, with its evidence if it is there.

    Args:
        location: An evaluation artifact, or the `score.json` of a deployment: a path, file://, https:// or s3:// URI.

    Raises:
        UserError: It cannot be read.
    """
    if urlsplit(location).scheme not in ("", "file"):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / SCORE_FILE
            store.fetch(location, file)
            if digest := _evidence_digest(_json(file)):
                parts = urlsplit(location)
                beside = parts._replace(path=f"{parts.path.rpartition('/')[0]}/{EVIDENCE_FILE}")
                store.fetch(beside.geturl(), file.with_name(EVIDENCE_FILE), digest)
            return _score_file(file, location)
    path = store.local_path(location)
    if (path / SCORE_FILE).is_file():
        path = path / SCORE_FILE
    if (path / MANIFEST).is_file():
        return replace(read_score(path), model="the champion")
    if not path.is_file():
        raise UserError(f"{location}: neither an evaluation nor a {SCORE_FILE} is here; name one")
    return _score_file(path, location)


def _score_file(file: Path, location: str) -> ScoredModel:
    document = _json(file)
    score = _score(document, f"{store.redacted(location)}: not a {SCORE_FILE}")
    scored = ScoredModel("the champion", score, str(document.get("data_digest") or ""))
    digest, evidence = _evidence_digest(document), file.with_name(EVIDENCE_FILE)
    if not digest:
        return scored
    if not evidence.is_file() or sha256(evidence) != digest:
        raise UserError(f"{store.redacted(location)}: the {EVIDENCE_FILE} it names is not beside it; keep both")
    return with_evidence(scored, evidence)


def _score(document: Mapping[str, Any], place: str) -> Score:
    try:
        return Score.read(document)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from error


def _evidence_digest(document: Mapping[str, Any]) -> str:
    return str(document.get("evidence_sha256") or "")


def write_score(folder: Path, scored: ScoredModel) -> None:
    """Writes what `champion_score` reads: `score.json` and, beside it, the evidence, which it names by its digest."""
    document = {**scored.score.written(), "data_digest": scored.data}
    if scored.evidence:
        write_evidence(folder / EVIDENCE_FILE, {scored.model: scored.evidence})
        document["evidence_sha256"] = sha256(folder / EVIDENCE_FILE)
    write_json(folder / SCORE_FILE, document)


def _json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable JSON: {error}") from error
    if not isinstance(document, dict):
        raise UserError(f"{file}: a JSON object is needed")
    return document
