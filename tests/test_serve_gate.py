"""The quality gate: when a model may replace the one that is served."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.serve.gate import (
    Score,
    champion_score,
    data_digest,
    judge,
    read_score,
    score_document,
    score_of_predictor,
)
from components.step import UserError, write_json, write_manifest

SETTINGS = {
    "data_digest": "a" * 64,
    "split": "validation",
    "min_face_height": 4.0,
    "iou_threshold": 0.5,
    "height_bands": ["12-16"],
    "ignore_regions": True,
}


def score(value, data="same", model="the new model"):
    return Score(model, value, data)


def champion(value, data="same"):
    return Score("the model of run 7", value, data)


def test_champion_that_is_better_by_more_than_the_margin_is_not_replaced():
    verdict = judge(score(0.80), champion(0.82), points=1)
    assert not verdict.accepted
    assert "better by 2.00 points, at most 1 are allowed" in verdict.reason
    assert "run 7" in verdict.reason


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 10_000))
def test_margin_is_exact_in_hundredths_of_points(candidate, served, points):
    verdict = judge(score(candidate / 10_000), champion(served / 10_000), points / 100)
    assert verdict.accepted == (served - candidate <= points)


def test_first_model_needs_a_score_but_no_champion():
    assert judge(score(0.1), None, 1).accepted
    assert "nothing is served yet" in judge(score(0.1), None, 1).reason


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -0.1, 1.5])
@pytest.mark.parametrize("served", [None, champion(0.1)])
def test_model_without_a_meaningful_score_is_refused_whatever_is_accepted(value, served):
    verdict = judge(score(value), served, 100, accept_incomparable=True)
    assert not verdict.accepted
    assert f"no score ({value})" in verdict.reason


@pytest.mark.parametrize(
    ("candidate", "served", "said"),
    [
        (score(0.9), champion(None), "run 7 has no score (None)"),
        (score(0.9), champion(math.nan), "run 7 has no score (nan)"),
        (score(0.9, "other"), champion(0.1), "on other images, or by other rules"),
        (score(0.9, ""), champion(0.1), "the score of the new model does not say on which images"),
        (score(0.9), champion(0.1, ""), "the score of the model of run 7 does not say on which images"),
    ],
)
def test_scores_of_different_images_are_not_compared_and_the_way_out_is_told(candidate, served, said):
    verdict = judge(candidate, served, 1)
    assert not verdict.accepted
    assert said in verdict.reason
    assert "gridbox evaluate score --endpoint" in verdict.reason
    accepted = judge(candidate, served, 1, accept_incomparable=True)
    assert accepted.accepted
    assert said in accepted.reason


def evaluation(folder, value=0.75, settings=SETTINGS, models=None):
    folder.mkdir()
    write_json(folder / "metrics.json", {"models": models or {}})
    write_manifest(folder, "evaluation", {"mean_average_precision": value}, settings)
    return folder


def test_score_is_read_from_an_evaluation_with_the_digest_of_its_images_and_rules(tmp_path):
    read = read_score(evaluation(tmp_path / "evaluation"))
    assert (read.value, read.data) == (0.75, data_digest(SETTINGS))
    assert read_score(evaluation(tmp_path / "empty", None)).value is None


def test_one_of_several_models_is_read_by_name(tmp_path):
    models = {"exported": {"mean_average_precision": 0.8}, "quantized": {"mean_average_precision": None}}
    folder = evaluation(tmp_path / "evaluation", models=models)
    assert read_score(folder, "exported").value == 0.8
    assert read_score(folder, "quantized").value is None
    with pytest.raises(UserError, match="no model 'served' was scored here, but exported, quantized"):
        read_score(folder, "served")


@pytest.mark.parametrize(
    ("name", "value"),
    [("data_digest", "b" * 64), ("split", "training"), ("min_face_height", 12.0), ("iou_threshold", 0.75)],
)
def test_other_images_or_rules_have_another_digest(name, value):
    assert data_digest({**SETTINGS, name: value}) != data_digest(SETTINGS)


def test_how_figures_are_shown_does_not_count():
    assert data_digest({**SETTINGS, "height_bands": []}) == data_digest(SETTINGS)
    assert data_digest({**SETTINGS, "data_digest": ""}) == ""
    assert data_digest({}) == ""


def test_score_of_a_deployed_predictor_is_in_its_annotations():
    annotations = {"gridbox/run-id": "7", "gridbox/score": "0.8125", "gridbox/data-digest": "abc"}
    assert score_of_predictor({"annotations": annotations}) == Score("the model of run 7", 0.8125, "abc")
    assert not score_of_predictor({"annotations": {**annotations, "gridbox/score": "nan"}}).is_number
    foreign = score_of_predictor({"model": {}})
    assert (foreign.model, foreign.is_number) == ("the model of run (unknown)", False)


def test_champion_comes_from_an_evaluation_or_a_score_file_or_a_uri(tmp_path):
    folder = evaluation(tmp_path / "evaluation")
    assert champion_score(str(folder)).value == 0.75
    kept = tmp_path / "deployment"
    kept.mkdir()
    write_json(kept / "score.json", score_document(score(0.5, "abc")))
    for location in (kept, kept / "score.json", (kept / "score.json").as_uri()):
        assert champion_score(str(location)) == Score("the champion", 0.5, "abc")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not readable JSON"),
        ("[]", "a JSON object is needed"),
        ("{}", "mean_average_precision is missing"),
        ('{"mean_average_precision": "high"}', "no number"),
    ],
)
def test_damaged_score_file_is_one_line(tmp_path, text, said):
    (tmp_path / "score.json").write_text(text)
    with pytest.raises(UserError, match=said) as refusal:
        champion_score(str(tmp_path / "score.json"))
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match=r"neither an evaluation nor a score\.json"):
        champion_score(str(tmp_path / "missing"))


def test_score_that_is_no_number_is_kept_as_none():
    assert json.dumps(score_document(score(math.nan)), allow_nan=False)
    assert score_document(score(math.nan))["mean_average_precision"] is None
