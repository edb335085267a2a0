"""What becomes of a deployment after it serves: canaries, promotion, roll-back, the ledger and the store's pointer."""

import json

import pytest
from deployments import CANARY, QUICK, judge, ledger, measured, promoted, put_up, served, stub_cluster
from manifest_rules import check_schema
from test_serve_kserve import GPU_SERVICE

from components import publication
from components.serve import marks
from components.serve.cluster import Cluster
from components.serve.deploy import Gate, Rollout, promote_local, roll_back, roll_back_to, undo_trial
from components.serve.kserve import Mode, Resources
from components.serve.ledger import KEPT
from components.serve.standing import standing
from components.step import StageError, UserError


@pytest.fixture
def kube(tmp_path, monkeypatch):
    with stub_cluster(tmp_path, monkeypatch) as stub:
        yield stub


# --- Canaries --------------------------------------------------------------------------------------------------------


def test_knative_canary_gets_its_share_and_an_address_of_its_own(kube):
    put_up("run-1", mode=Mode.knative)
    deployed = put_up("run-2", CANARY, mode=Mode.knative)
    assert (deployed.percent, deployed.url) == (10, "http://latest-facenet-predictor.face.svc.cluster.local")
    assert served(kube) == ("run-2", None, 10)
    check_schema(kube.applied[-1])
    promoted = judge("run-2")
    assert served(kube) == ("run-2", None, None)
    assert promoted.url == "http://facenet-predictor.face.svc.cluster.local"
    assert ledger().entries[-1].before.endswith("run-1/repository/")


def test_rejected_knative_canary_loses_all_traffic_before_the_percentage_goes(kube):
    promoted("run-1", mode=Mode.knative)
    put_up("run-2", CANARY, mode=Mode.knative)
    applied = len(kube.applied)
    with pytest.raises(StageError, match=r"(?s)better by 10.00 points.*rolled back to run run-1"):
        judge("run-2", 0.70)
    changes = [document for document in kube.applied[applied:] if document["kind"] == "InferenceService"]
    steps = [document["spec"]["predictor"] for document in changes]
    # Without the percentage, Knative would send everything to the newest revision that is ready: the rejected one.
    assert [step.get("canaryTrafficPercent") for step in steps] == [0, None]
    assert all("run-1/" in step["model"]["storageUri"] for step in steps)
    assert served(kube) == ("run-1", None, None)


def test_standard_canary_stands_beside_the_untouched_predictor(kube):
    put_up("run-0")
    put_up("run-1")  # remembers run-0, and goes on doing so
    before = kube.service()["spec"]["predictor"]
    deployed = put_up("run-2", CANARY)
    check_schema(kube.applied[-1])
    spec = kube.service()["spec"]
    assert spec["predictor"] == before  # its pods go on
    canary = spec["canary"][0]
    assert canary["trafficPercent"] == 10
    assert deployed.url == f"http://facenet-{canary['predictor']['name']}-predictor.face.svc.cluster.local"
    assert served(kube) == ("run-1", "run-2", None)
    put_up("run-2", CANARY)  # a retry
    assert kube.service()["spec"] == spec


def test_promoted_standard_canary_keeps_its_name_and_pods(kube):
    put_up("run-1", maximum_replicas=3)
    put_up("run-2", CANARY)
    canary = kube.service()["spec"]["canary"][0]["predictor"]
    judge("run-2")
    spec = kube.service()["spec"]
    assert "canary" not in spec
    assert spec["predictor"]["name"] == canary["name"]
    assert spec["predictor"]["annotations"] == canary["annotations"]
    assert spec["predictor"]["maxReplicas"] == 3
    assert "name" not in spec["predictor"]["model"]
    put_up("run-3")
    assert kube.service()["spec"]["predictor"]["name"] == canary["name"]  # another name would replace all pods at once
    put_up("run-4", CANARY)
    assert kube.service()["spec"]["canary"][0]["predictor"]["name"] != canary["name"]


def test_rejected_standard_canary_vanishes(kube):
    promoted("run-1")
    before = kube.service()["spec"]
    put_up("run-2", CANARY)
    with pytest.raises(StageError, match="rolled back to run run-1"):
        judge("run-2", 0.1)
    assert kube.service()["spec"] == before


def test_standard_canary_is_refused_by_name_where_the_definition_lacks_it(kube):
    put_up("run-1")
    kube.canaries = False
    applied = len(kube.applied)
    with pytest.raises(UserError, match=r"spec\.canary \(KServe 0\.20\).*would drop, giving all traffic"):
        put_up("run-2", CANARY)
    assert len(kube.applied) == applied


@pytest.mark.parametrize(
    ("gateway_api", "said"),
    [
        (False, r"configmaps/inferenceservice-config in kserve: enableGatewayApi is off, .* gets no traffic"),
        (None, r"configmaps/inferenceservice-config in kserve: there is none"),
    ],
)
def test_standard_canary_is_refused_where_it_would_get_no_traffic(kube, gateway_api, said):
    put_up("run-1")
    kube.gateway_api = gateway_api
    with pytest.raises(UserError, match=said):
        put_up("run-2", CANARY)
    assert served(kube) == ("run-1", None, None)
    put_up("run-2")  # all at once


@pytest.mark.usefixtures("kube")
def test_standard_canary_that_would_inherit_a_gpu_is_refused():
    put_up("run-1", **GPU_SERVICE)
    with pytest.raises(UserError, match="inherits nodeSelector of what is served"):
        put_up("run-2", CANARY)
    with pytest.raises(UserError, match=r"inherits model\.resources"):
        put_up("run-2", CANARY, **{**GPU_SERVICE, "resources": Resources()})


def test_first_deployment_is_no_canary_even_when_asked(kube, capsys):
    deployed = put_up("run-1", CANARY)
    assert deployed.percent == 0
    assert served(kube) == ("run-1", None, None)
    assert "nothing was served before" in capsys.readouterr().out


@pytest.mark.usefixtures("kube")
def test_canary_of_another_run_blocks_until_it_is_judged():
    put_up("run-1")
    put_up("run-2", CANARY)
    with pytest.raises(UserError, match="a canary of run run-2 is on trial; promote it or roll it back first"):
        put_up("run-3")
    judge("run-2")
    put_up("run-3")


@pytest.mark.parametrize("percent", [-1, 100])
def test_canary_percentage_has_bounds(percent):
    with pytest.raises(UserError, match="from 1 to 99, or 0"):
        Rollout(percent=percent)


# --- Promotion and roll-back -----------------------------------------------------------------------------------------


def test_plain_deployment_that_scores_badly_at_its_endpoint_is_undone(kube):
    promoted("run-1")
    put_up("run-2")
    with pytest.raises(
        StageError, match=r"(?s)the quality gate refuses: the endpoint scores 0.5.*rolled back to run run-1"
    ):
        judge("run-2", 0.5)
    assert served(kube)[0] == "run-1"
    assert [entry.run for entry in ledger().entries] == ["run-1"]


def test_endpoint_without_a_score_is_not_promoted(kube):
    put_up("run-1")
    put_up("run-2", CANARY)
    with pytest.raises(StageError, match=r"no score \(None\)"):
        judge("run-2", None)
    assert served(kube) == ("run-1", None, None)


def test_promotion_of_a_plain_deployment_is_noted_in_the_ledger_alone(kube):
    put_up("run-1")
    applied = len(kube.applied)
    assert judge("run-1").url == "http://facenet-predictor.face.svc.cluster.local"
    assert [document["kind"] for document in kube.applied[applied:]] == ["ConfigMap"]


def test_run_that_was_replaced_is_neither_promoted_nor_rolled_back(kube):
    put_up("run-1")
    put_up("run-2")
    put_up("run-3")
    with pytest.raises(UserError, match="run run-3 was deployed since; run-2 is not served"):
        judge("run-2", 0.1)
    assert "nothing to roll back" in roll_back(Cluster(), "facenet", "face", "run-2", QUICK)
    assert served(kube)[0] == "run-3"


@pytest.mark.usefixtures("kube")
def test_first_deployment_has_nothing_to_go_back_to():
    put_up("run-1")
    assert "nothing was served before run run-1; it is left" in undo_trial(Cluster(), "facenet", "face", "run-1", QUICK)
    with pytest.raises(UserError, match="nothing was served before run run-1; it is left as it is"):
        roll_back(Cluster(), "facenet", "face", "run-1", QUICK)


@pytest.mark.usefixtures("kube")
def test_person_may_roll_back_without_naming_the_run():
    put_up("run-1")
    put_up("run-2")
    assert "rolled back to run run-1" in roll_back(Cluster(), "facenet", "face", "", QUICK)
    with pytest.raises(UserError, match="there is none; deploy it first"):
        roll_back(Cluster(), "other", "face", "", QUICK)


# --- The ledger ------------------------------------------------------------------------------------------------------


def test_run_that_nobody_judged_is_not_the_champion_and_not_what_a_failure_goes_back_to(kube, capsys):
    promoted("run-1", value=0.8)
    put_up("run-2", value=0.99, gate=Gate(points=100))  # and its endpoint is never scored
    put_up("run-3", value=0.8)  # compared with run 1
    assert "run run-2 was never judged at its endpoint; run run-1 is the champion" in capsys.readouterr().out
    with pytest.raises(StageError, match="rolled back to run run-1"):
        judge("run-3", 0.1)
    assert served(kube)[0] == "run-1"


def test_promoted_model_is_not_undone_by_its_run_but_by_a_person(kube):
    promoted("run-1")
    promoted("run-2")
    assert "run run-2 was promoted and stays" in undo_trial(Cluster(), "facenet", "face", "run-2", QUICK)
    with pytest.raises(StageError, match=r"(?s)gate refuses.*run run-2 was promoted and stays"):
        judge("run-2", 0.1)
    assert served(kube)[0] == "run-2"
    assert "rolled back to run run-1" in roll_back(Cluster(), "facenet", "face", "run-2", QUICK)


def test_trial_is_undone_by_its_run(kube):
    promoted("run-1")
    put_up("run-2")
    assert "rolled back to run run-1" in undo_trial(Cluster(), "facenet", "face", "run-2", QUICK)
    assert [entry.run for entry in ledger().entries] == ["run-1"]
    assert served(kube)[0] == "run-1"


def test_canary_that_was_promoted_is_gone_back_to_as_it_served(kube):
    promoted("run-1")
    promoted("run-2", CANARY)
    name = kube.service()["spec"]["predictor"]["name"]
    promoted("run-3")
    roll_back(Cluster(), "facenet", "face", "", QUICK)
    assert served(kube)[0] == "run-2"
    assert kube.service()["spec"]["predictor"]["name"] == name


def test_person_may_go_back_to_any_version_that_is_kept(kube):
    for run in ("run-1", "run-2", "run-3"):
        promoted(run)
    assert "rolled back to run run-1" in roll_back_to(Cluster(), "facenet", "face", "run-1", QUICK)
    assert served(kube)[0] == "run-1"
    assert "run-1 is served already" in roll_back_to(Cluster(), "facenet", "face", "run-1", QUICK)
    assert "rolled back to run run-3" in roll_back_to(Cluster(), "facenet", "face", "run-3", QUICK)
    with pytest.raises(UserError, match=r"no deployment of run-9 is known; known are s3://.*run-1/.*run-3/"):
        roll_back_to(Cluster(), "facenet", "face", "run-9", QUICK)
    put_up("run-4", CANARY)
    with pytest.raises(UserError, match="a canary of run run-4 is on trial; roll it back first"):
        roll_back_to(Cluster(), "facenet", "face", "run-1", QUICK)


@pytest.mark.usefixtures("kube")
def test_ledger_stays_small():
    for number in range(KEPT + 3):
        promoted(f"run-{number}")
        put_up(f"trial-{number}")
    runs = [entry.run for entry in ledger().entries]
    assert runs == [*(f"run-{number}" for number in range(4, KEPT + 3)), f"trial-{KEPT + 2}"]


def test_damaged_ledger_is_one_line(kube):
    put_up("run-1")
    (key,) = [key for key in kube._stored if key[1] == "configmaps"]
    for data in ({}, {"deployments.json": "{"}, {"deployments.json": json.dumps({"deployments": [{}], "best": None})}):
        kube._stored[key].document["data"] = data
        with pytest.raises(
            UserError, match=r"configmaps/gridbox-facenet in face: not written by gridbox .*; delete it"
        ):
            put_up("run-2")


def test_status_tells_what_is_live_on_trial_and_kept(kube):
    promoted("run-1")
    put_up("run-2", CANARY)
    lines = list(standing(Cluster(), "facenet", "face"))
    assert lines[0] == "inferenceservices/facenet in face, mode Standard, http://facenet-face.example.com"
    digest = "d" * 12
    assert lines[1:4] == [
        f"served   run-1, run run-1, promoted, scores 0.8000, digest {digest}",
        f"canary   run-2, run run-2, trial, scores 0.8000, digest {digest}, 10% of the traffic",
        "rollout  finished",
    ]
    assert [line.partition("-predictor-")[0] for line in lines[4:6]] == [
        "pod      facenet",
        f"pod      facenet-{kube.service()['spec']['canary'][0]['predictor']['name']}",
    ]
    assert lines[6:] == [
        f"kept     run-1, run run-1, promoted, scores 0.8000, digest {digest} (a roll-back serves it)",
        "best     0.8000, run run-1",
    ]
    with pytest.raises(UserError, match="there is none; deploy it first"):
        list(standing(Cluster(), "other", "face"))


# --- The store -------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    """A base, and what publishes a model there and returns its storage URI."""
    source = tmp_path / "source"
    source.mkdir()

    def published(text):
        (source / "model").write_text(text)
        return publication.publish(source, str(tmp_path / "store"), serve=False).uri + "repository/"

    return published


def resolved(uri):
    return publication.resolve(marks.place_of(uri).base).uri + "repository/"


@pytest.mark.usefixtures("kube")
def test_only_promotion_moves_the_pointer_and_a_persons_roll_back_takes_it_along(store):
    first, second = store("1"), store("2")
    put_up("run-1", storage_uri=first)
    with pytest.raises(UserError, match="nothing is published here"):
        resolved(first)
    judge("run-1")
    assert resolved(first) == first
    put_up("run-2", storage_uri=second)
    assert resolved(first) == first
    judge("run-2")
    assert resolved(first) == second
    roll_back(Cluster(), "facenet", "face", "", QUICK)
    assert resolved(first) == first


@pytest.mark.usefixtures("kube")
def test_prune_spares_what_is_live_on_trial_and_can_be_served_again(store):
    uris = [store(str(number)) for number in range(6)]
    for number in (1, 2):
        put_up(f"run-{number}", storage_uri=uris[number])
        judge(f"run-{number}")
    put_up("run-3", CANARY, storage_uri=uris[3])
    base = marks.place_of(uris[0]).base
    pruned = publication.prune(base, keep=1, young=publication.timedelta())
    assert pruned.versions == tuple(marks.place_of(uris[number]).version for number in (0, 4))


def test_unreachable_store_costs_a_warning_and_not_the_promotion(kube, capsys, monkeypatch):
    def refused(*_):
        raise UserError("the store cannot be reached")

    monkeypatch.setattr(publication, "hold", refused)
    monkeypatch.setattr(publication, "point", refused)
    promoted("run-1")
    assert served(kube)[0] == "run-1"
    told = capsys.readouterr().err
    assert "gridbox store prune may remove what face.facenet serves" in told
    assert "still names another version than run-1" in told


def test_local_model_is_promoted_by_the_pointer_alone_if_the_gate_lets_it(store):
    uri = store("1")
    with pytest.raises(StageError, match="no score"):
        promote_local(uri, measured(None), Gate())
    with pytest.raises(UserError, match="nothing is published here"):
        resolved(uri)
    assert "scores 0.8000" in promote_local(uri, measured(0.8), Gate())
    assert resolved(uri) == uri
