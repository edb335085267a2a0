"""The quality gate: when a model may replace the one that is served."""

import json
import math

import kube_stub
import numpy as np
import pytest
from deployments import scored
from flat_sets import ImageBoxes, matcher_of
from hypothesis import given
from hypothesis import strategies as st
from test_serve_kserve import service

from components import store
from components.measure.evidence import FILE, Evidence, digest_of, read_evidence, write_evidence
from components.measure.metric import AVERAGE_PRECISION, SCALES, Scale, Score
from components.measure.uncertainty import CurveOutcomes, RatioOutcomes
from components.objects import open_objects
from components.serve.cluster import Cluster
from components.serve.deploy import Gate, Rollout, deploy_kserve, promote
from components.serve.gate import (
    ScoredModel,
    champion_score,
    data_digest,
    judge,
    read_score,
    score_of_predictor,
    write_score,
)
from components.serve.kept_evidence import find_evidence, keep_evidence
from components.serve.kserve import inference_service
from components.serve.ledger import Best, Ledger
from components.step import StageError, UserError, write_json, write_manifest

SETTINGS = {
    "data_digest": "a" * 64,
    "split": "validation",
    "min_face_height": 4.0,
    "iou_threshold": 0.5,
    "height_bands": ["12-16"],
    "ignore_regions": True,
}


def score(value, data="same", model="the new model"):
    return scored(model, value, data)


def champion(value, data="same"):
    return scored("the model of run 7", value, data)


def test_champion_that_is_better_by_more_than_the_margin_is_not_replaced():
    verdict = judge(score(0.80), champion(0.82), points=1)
    assert not verdict.accepted
    assert "better by 2.00 points, at most 1 are allowed" in verdict.reason
    assert "run 7" in verdict.reason
    assert f"judged by the plain margin, since no {FILE} of the new model and the model of run 7 is at hand" in (
        verdict.reason
    )


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 10_000))
def test_margin_is_exact_in_hundredths_of_points(candidate, served, points):
    verdict = judge(score(candidate / 10_000), champion(served / 10_000), points / 100)
    assert verdict.accepted == (served - candidate <= points)


def test_first_model_needs_a_score_but_no_champion():
    assert judge(score(0.1), None, 1).accepted
    assert "nothing is served that was promoted" in judge(score(0.1), None, 1).reason


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


def test_scores_of_different_metrics_are_not_compared_even_of_the_same_images():
    other = ScoredModel("the model of run 7", Score("keypoint_similarity", 0.5), "same")
    verdict = judge(score(0.9), other, 1)
    assert not verdict.accepted
    assert "by mean_average_precision, the model of run 7 by keypoint_similarity, and only scores of one metric" in (
        verdict.reason
    )
    assert judge(score(0.5), champion(0.5), 0, best=Best(0.9, "same", "1", "keypoint_similarity")).accepted


def test_of_an_error_the_lower_value_is_the_better_one(monkeypatch):
    monkeypatch.setitem(SCALES, "error", Scale("error", 10.0, lower_is_better=True))
    low, high = (ScoredModel("a model", Score("error", value), "same") for value in (1.2, 1.3))
    assert high.is_number
    assert judge(low, high, 0).accepted
    assert "better by 10.00 points, at most 1 are allowed" in judge(high, low, 1).reason
    assert (
        Ledger().promoted({}, Best(1.2, "same", "1", "error")).promoted({}, Best(1.3, "same", "2", "error")).best.run
        == "1"
    )
    rows = [RatioOutcomes(np.full(50, value), np.ones(50, int)) for value in (0.1, 0.2)]
    pair = [ScoredModel("m", Score("error", r.value()), "same", Evidence("d", {"face": r})) for r in rows]
    assert "better for certain" in judge(pair[0], pair[1], 0).reason
    assert "for certain worse" in judge(pair[1], pair[0], 1).reason


def test_score_of_another_metric_survives_a_deployment_and_a_file_of_an_older_release_still_counts(tmp_path):
    ratio = RatioOutcomes(np.array([1.0, 0.0, 1.0, 1.0]), np.ones(4, int))
    kept = ScoredModel("m", Score("accuracy", 0.75, 0.5, 1.0, 4), "abc", Evidence("d", {"cat": ratio}))
    write_score(tmp_path, kept)
    read = champion_score(str(tmp_path))
    assert (read.score, read.data) == (kept.score, "abc")
    assert read.evidence.outcomes.value() == 0.75
    of = service(score=kept.score)
    assert score_of_predictor(inference_service(of)["spec"]["predictor"]).score == Score("accuracy", 0.75)
    (tmp_path / "score.json").write_text('{"mean_average_precision": 0.5, "data_digest": "abc"}')
    assert champion_score(str(tmp_path)).score == Score(AVERAGE_PRECISION, 0.5)


def test_how_figures_are_shown_does_not_count():
    assert data_digest({**SETTINGS, "height_bands": []}) == data_digest(SETTINGS)
    assert data_digest({**SETTINGS, "data_digest": ""}) == ""
    assert data_digest({}) == ""


def test_score_of_a_deployed_predictor_is_in_its_annotations():
    annotations = {"gridbox/run-id": "7", "gridbox/score": "0.8125", "gridbox/data-digest": "abc"}
    assert score_of_predictor({"annotations": annotations}) == scored("the model of run 7", 0.8125, "abc")
    assert not score_of_predictor({"annotations": {**annotations, "gridbox/score": "nan"}}).is_number
    foreign = score_of_predictor({"model": {}})
    assert (foreign.model, foreign.is_number) == ("the model of run (unknown)", False)


def test_champion_comes_from_an_evaluation_or_a_score_file_or_a_uri(tmp_path):
    folder = evaluation(tmp_path / "evaluation")
    assert champion_score(str(folder)).value == 0.75
    kept = tmp_path / "deployment"
    kept.mkdir()
    write_score(kept, score(0.5, "abc"))
    for location in (kept, kept / "score.json", (kept / "score.json").as_uri()):
        assert champion_score(str(location)) == scored("the champion", 0.5, "abc")


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


def test_score_that_is_no_number_is_kept_as_none(tmp_path):
    write_score(tmp_path, score(math.nan))
    assert json.loads((tmp_path / "score.json").read_text())["mean_average_precision"] is None
    assert not (tmp_path / FILE).exists()


# --- Evidence and the paired test ------------------------------------------------------------------------------------


def curve_score(found, images=200, seed=0):
    """One face in each image, found with this probability by a detection of random score."""
    random = np.random.default_rng(seed)
    box = np.array([[10.0, 10, 30, 30]])
    rows = []
    for hit in random.random(images) < found:
        shifted = box + (0 if hit else 100)
        rows.append(ImageBoxes(np.column_stack([shifted, random.random((1, 1))]), box))
    matcher = matcher_of(rows)
    return CurveOutcomes.of(matcher, matcher.match())


def with_evidence(found, model="the new model", digest="images and rules", **more):
    kept = Evidence(digest, {"face": curve_score(found, **more)})
    return scored(model, kept.outcomes.value(), "same", kept)


def test_model_that_is_worse_for_certain_is_refused_with_the_interval():
    verdict = judge(with_evidence(0.6), with_evidence(0.9, "the model of run 7"), points=1)
    assert not verdict.accepted
    assert "95% interval -" in verdict.reason
    assert "p = 0.002, paired over 200 images" in verdict.reason
    assert "for certain worse by more than the 1 points that are allowed" in verdict.reason
    assert "plain margin" not in verdict.reason


def test_model_that_is_better_for_certain_is_accepted_whatever_the_floor():
    best = Best(0.99, "same", "1")
    verdict = judge(with_evidence(0.9), with_evidence(0.6, "the model of run 7"), points=0, best=best)
    assert verdict.accepted
    assert "better for certain" in verdict.reason


def test_where_the_images_do_not_decide_the_plain_margin_does_as_without_evidence():
    candidate, served = with_evidence(0.86, images=40, seed=1), with_evidence(0.9, "run 7", images=40, seed=2)
    lead = 100 * (served.value - candidate.value)
    assert lead > 1
    verdict = judge(candidate, served, points=1)
    assert not verdict.accepted
    assert "judged by the plain margin, since the images do not decide" in verdict.reason
    assert judge(candidate, served, points=lead + 0.01).accepted
    assert not judge(score(candidate.value), champion(served.value), points=1).accepted


def test_many_small_losses_do_not_add_up_beyond_the_best_that_was_promoted():
    best, served, accepted = None, 0.80, []
    for run in range(5):
        value = served - 0.008
        verdict = judge(score(value), champion(served), points=1, best=best)
        accepted.append(verdict.accepted)
        if verdict.accepted:
            best, served = Best(max(value, best.value if best else 0.80), "same", str(run)), value
    assert accepted == [True, False, False, False, False]
    assert "1.60 points below the best that was ever promoted (0.8000, run 0), at most 1 are allowed" in verdict.reason
    assert judge(score(served), champion(served), points=1, best=best).accepted  # no worse than what is served
    assert judge(score(value), champion(served), points=1, best=Best(0.9, "other images", "0")).accepted


def test_the_margin_moves_the_paired_test():
    pair = with_evidence(0.6), with_evidence(0.9)
    assert not judge(*pair, points=5).accepted
    assert judge(*pair, points=60).accepted


@pytest.mark.parametrize("other", [{"digest": "other images"}, {"images": 150}])
def test_evidence_of_other_images_is_not_paired(other):
    verdict = judge(with_evidence(0.9), with_evidence(0.5, "run 7", **other), points=1)
    assert not verdict.accepted
    assert "not comparable: the evidence of the new model is about other images, or other rules" in verdict.reason
    assert judge(with_evidence(0.9), with_evidence(0.5, "run 7", **other), 1, accept_incomparable=True).accepted


@pytest.mark.parametrize(("first", "second", "named"), [(True, False, "run 7"), (False, True, "the new model")])
def test_without_evidence_on_one_side_the_plain_margin_judges_and_says_whose_is_missing(first, second, named):
    sides = [
        with_evidence(0.9, model) if has else scored(model, 0.9, "same")
        for has, model in ((first, "the new model"), (second, "run 7"))
    ]
    assert f"since no {FILE} of {named} is at hand" in judge(*sides, points=100).reason


def test_evidence_is_read_from_an_evaluation_and_kept_with_a_deployment(tmp_path):
    scores = {"exported": with_evidence(0.9), "quantized": with_evidence(0.7, seed=3)}
    models = {name: {"mean_average_precision": score.value} for name, score in scores.items()}
    folder = evaluation(tmp_path / "evaluation", scores["quantized"].value, models=models)
    write_evidence(folder / FILE, {name: score.evidence for name, score in scores.items()})
    assert read_score(folder).evidence.outcomes.value() == pytest.approx(scores["quantized"].value, abs=1e-12)
    chosen = read_score(folder, "exported")
    assert chosen.evidence.outcomes.value() == pytest.approx(scores["exported"].value, abs=1e-12)

    kept = tmp_path / "deployment"
    kept.mkdir()
    write_score(kept, chosen)
    for location in (kept, (kept / "score.json").as_uri()):
        served = champion_score(str(location))
        assert "paired over 200 images" in judge(read_score(folder), served, 1).reason
    (kept / FILE).unlink()
    with pytest.raises(UserError, match=f"the {FILE} it names is not beside it"):
        champion_score(str(kept))


def test_evidence_of_another_score_is_refused(tmp_path):
    folder = evaluation(tmp_path / "evaluation", 0.75)
    write_evidence(folder / FILE, {"scored": with_evidence(0.5).evidence})
    with pytest.raises(UserError, match=r"evidence of a score of 0\.\d+, not 0.75"):
        read_score(folder)


def test_the_file_of_evidence_is_the_same_for_the_same_content(tmp_path):
    for name in ("one", "two"):
        write_evidence(tmp_path / name, {"a": with_evidence(0.5).evidence})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert digest_of(["a", "b"], {"iou": 0.5}) != digest_of(["b", "a"], {"iou": 0.5})


def broken(**changes):
    arrays = {name: getattr(curve_score(0.5), name) for name in CurveOutcomes.__dataclass_fields__} | changes
    return Evidence("digest", {"face": CurveOutcomes(**arrays)})


@pytest.mark.parametrize(
    "evidence",
    [
        broken(image=np.full(200, 200, np.int32)),
        broken(image=np.full(200, -1, np.int32)),
        broken(steps=np.array([0, 500])),
        broken(right_steps=np.array([1])),
        broken(objects=np.full(200, -1)),
        broken(objects=np.ones((2, 100), np.int64)),
        broken(objects=np.full(200, 0.5)),
        Evidence("digest", {}),
    ],
)
def test_evidence_that_points_anywhere_is_refused_in_one_line(tmp_path, evidence):
    write_evidence(tmp_path / FILE, {"a": evidence})
    with pytest.raises(UserError, match="damaged evidence of a score") as refusal:
        read_evidence(tmp_path / FILE)
    assert "\n" not in str(refusal.value)


def test_file_that_is_no_evidence_is_refused(tmp_path):
    write_evidence(tmp_path / FILE, {"a": with_evidence(0.5).evidence})
    whole = (tmp_path / FILE).read_bytes()
    with pytest.raises(UserError, match="no evidence of b"):
        read_evidence(tmp_path / FILE, "b")
    np.savez(tmp_path / "pickled.npz", header=np.array([{}], dtype=object))
    np.savez(tmp_path / "foreign.npz", other=np.zeros(3))
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("pickled", "foreign", "cut", "text", "missing"):
        with pytest.raises(UserError, match="damaged evidence of a score"):
            read_evidence(tmp_path / f"{name}.npz")


def test_evidence_of_a_remote_champion_is_fetched_from_beside_its_score(tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    kept.mkdir()
    write_score(kept, with_evidence(0.9))
    asked = []

    def fetch(uri, destination, *_):
        asked.append(uri)
        destination.write_bytes((kept / uri.rpartition("/")[2]).read_bytes())

    monkeypatch.setattr(store, "fetch", fetch)
    served = champion_score("s3://runs/7/deployment/score.json")
    assert asked == ["s3://runs/7/deployment/score.json", f"s3://runs/7/deployment/{FILE}"]
    assert served.evidence.outcomes.value() == pytest.approx(served.value)


VERSION = "versions/20260101T000000Z-abcdef12/repository/"


def test_evidence_is_kept_beside_the_published_version_and_found_again(tmp_path, capsys):
    uri, deployed = f"{tmp_path.as_uri()}/{VERSION}", with_evidence(0.9)
    plain = scored(deployed.model, deployed.value, "same")
    assert find_evidence(uri, plain) == plain
    keep_evidence(uri, plain)
    assert not [*tmp_path.rglob("*.npz")]
    keep_evidence(uri, deployed)
    found = find_evidence(uri, plain)
    assert found.evidence.digest == deployed.evidence.digest
    assert not judge(with_evidence(0.6), found, 1).accepted
    assert find_evidence("s3://a/folder/of/somebody/else", plain) == plain  # nobody is asked
    assert not capsys.readouterr().err


def test_store_that_refuses_evidence_costs_a_warning_and_not_the_deployment(tmp_path, capsys):
    (tmp_path / "evidence").write_text("a file in the place of the folder")
    keep_evidence(f"{tmp_path.as_uri()}/{VERSION}", with_evidence(0.9))
    assert "was not kept, and the next gate goes by the plain margin" in capsys.readouterr().err
    (tmp_path / "evidence").unlink()
    keep_evidence(f"{tmp_path.as_uri()}/{VERSION}", with_evidence(0.9))
    other = champion(0.123, "same")
    assert find_evidence(f"{tmp_path.as_uri()}/{VERSION}", other) == other
    assert "evidence of a score of 0." in capsys.readouterr().err


def test_the_cluster_s_own_champion_is_paired_with_what_was_kept_of_it(tmp_path, monkeypatch):
    for module in ("serve.kept_evidence", "publication"):
        monkeypatch.setattr(
            f"components.{module}.open_objects", lambda _, patience: open_objects(str(tmp_path / "s3"), patience)
        )
    with kube_stub.Kube() as stub:
        monkeypatch.setenv("KUBECONFIG", str(stub.kubeconfig(tmp_path / "kubeconfig")))

        def put_up(run, new):
            uri = f"s3://models/facenet/versions/{run}/repository/"
            of = service(storage_uri=uri, run_id=run, score=new.value, data_digest=new.data)
            return deploy_kserve(Cluster(), of, new, Gate(), Rollout(timeout=5, interval=0.01))

        assert "nothing is served that was promoted" in put_up("run-1", with_evidence(0.9)).verdict
        promote(Cluster(), "facenet", "face", "run-1", with_evidence(0.9), Gate(), Rollout(interval=0.01))
        with pytest.raises(StageError, match="for certain worse by more than the 1 points"):
            put_up("run-2", with_evidence(0.6, seed=5))
        assert "paired over 200 images" in put_up("run-3", with_evidence(0.95, seed=5)).verdict
