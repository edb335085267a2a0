"""Deployment against a stub of the Kubernetes API: what is applied, what is waited for, and how failures read."""

import contextlib
import functools
import json
import threading
import time
from dataclasses import replace

import kube_stub
import pytest
import yaml
from manifest_rules import check_schema
from test_serve_kserve import GPU_SERVICE, service
from typer import Typer

from components import program, step
from components.serve import deploy_commands
from components.serve import host as host_module
from components.serve.cluster import Cluster
from components.serve.deploy import (
    DEPLOY_CLUSTER_RULES,
    DEPLOY_RULES,
    Gate,
    Rollout,
    deploy_kserve,
    endpoint,
    promote,
    roll_back,
)
from components.serve.fit import fitted
from components.serve.gate import Score
from components.serve.kserve import Mode, Protocol, Resources
from components.serve.release import GRIDBOX_VERSION, TENSORRT_VERSION, TRITON_RELEASE
from components.serve.rollout import FORMER
from components.step import StageError, UserError, write_json, write_manifest

QUICK = Rollout(timeout=5, interval=0.001)
CANARY = Rollout(percent=10, timeout=5, interval=0.001)
DATA = "e" * 64


@pytest.fixture
def kube(tmp_path, monkeypatch):
    with kube_stub.Kube() as stub:
        monkeypatch.setenv("KUBECONFIG", str(stub.kubeconfig(tmp_path / "kubeconfig")))
        yield stub


def model(run, value=0.8, **changes):
    """A service of a run with a URI of its own."""
    uri = f"s3://models/facenet/versions/{run}/repository/"
    return service(**{"storage_uri": uri, "run_id": run, "score": value, "data_digest": DATA, **changes})


def candidate(of):
    return Score("the new model", of.score, of.data_digest)


def put_up(run, rollout=QUICK, gate=None, value=0.8, **changes):
    of = model(run, value, **changes)
    return deploy_kserve(Cluster(), of, candidate(of), gate or Gate(), rollout)


def measured(value, data=DATA):
    return Score("the endpoint", value, data)


def settle(run, value=0.8, rollout=QUICK, gate=None):
    return promote(Cluster(), "facenet", "face", run, measured(value), gate or Gate(), rollout)


def served(kube):
    """The run of the predictor, of the canary, and the percentage."""
    spec = kube.service()["spec"]
    canary = spec.get("canary", [{}])[0].get("predictor", {}).get("annotations", {}).get("gridbox/run-id")
    return spec["predictor"]["annotations"].get("gridbox/run-id"), canary, spec["predictor"].get("canaryTrafficPercent")


# --- The ordinary way ------------------------------------------------------------------------------------------------


def test_first_deployment_applies_runtime_and_service_and_waits(kube):
    deployed = put_up("run-1")
    assert deployed.url == "http://facenet-predictor.face.svc.cluster.local"
    assert deployed.external_url == "http://facenet-face.example.com"
    assert [document["kind"] for document in kube.applied] == ["ServingRuntime", "InferenceService"]
    assert kube.service()["spec"]["predictor"]["model"]["runtime"] == kube.runtimes()[0]["metadata"]["name"]
    assert not any(call.force for call in kube.calls)


def test_second_deployment_replaces_the_model_and_remembers_the_former(kube):
    put_up("run-1")
    put_up("run-2")
    predictor = kube.service()["spec"]["predictor"]
    assert predictor["model"]["storageUri"].endswith("run-2/repository/")
    former = json.loads(predictor["annotations"][FORMER])
    assert former["predictor"]["model"]["storageUri"].endswith("run-1/repository/")
    put_up("run-3")
    assert (
        FORMER not in json.loads(kube.service()["spec"]["predictor"]["annotations"][FORMER])["predictor"]["annotations"]
    )


def test_retry_of_the_same_run_changes_nothing(kube):
    put_up("run-1")
    put_up("run-2")
    before = kube.service()
    put_up("run-2")
    after = kube.service()
    assert after["spec"] == before["spec"]
    assert after["metadata"]["generation"] == before["metadata"]["generation"]


def test_stale_status_of_the_former_generation_is_not_taken_for_readiness(kube):
    put_up("run-1")
    looks = []

    def slow(document, look):
        looks.append(document["metadata"]["generation"])
        return kube_stub.ready_status(document, look, delay=6)

    kube.controller = slow
    put_up("run-2")  # at first the status is that of run-1: Ready, of the generation before
    assert looks.count(2) == 6


@pytest.mark.usefixtures("kube")
def test_same_uri_again_is_refused_because_nothing_would_be_rolled_out():
    put_up("run-1")
    with pytest.raises(UserError, match=r"is served already.*publish the model anew"):
        put_up("run-2", storage_uri="s3://models/facenet/versions/run-1/repository/")


@pytest.mark.usefixtures("kube")
def test_mode_of_what_is_live_cannot_be_changed():
    put_up("run-1")
    with pytest.raises(UserError, match=r"runs in mode Standard, which cannot become Knative"):
        put_up("run-2", mode=Mode.knative)


# --- The gate --------------------------------------------------------------------------------------------------------


def test_better_champion_of_the_cluster_is_kept_and_nothing_is_applied(kube):
    put_up("run-1", value=0.85)
    applied = len(kube.applied)
    with pytest.raises(StageError, match=r"what is served is better by 5\.00 points"):
        put_up("run-2", value=0.80)
    assert len(kube.applied) == applied
    put_up("run-2", value=0.80, gate=Gate(points=5))
    assert served(kube)[0] == "run-2"


def test_champion_deployed_by_others_is_not_comparable(kube):
    put_up("run-1")
    annotations = ("spec", "predictor", "annotations")
    kube.edit("kubectl-edit", {annotations: {"gridbox/run-id": "by-hand"}})
    with pytest.raises(StageError, match="run by-hand has no score"):
        put_up("run-2")
    put_up("run-2", gate=Gate(accept_incomparable=True), rollout=replace(QUICK, force=True))


@pytest.mark.usefixtures("kube")
def test_given_champion_counts_instead_of_the_annotations():
    put_up("run-1", value=0.2)
    with pytest.raises(StageError, match=r"the champion 0\.9000 on the same images"):
        put_up("run-2", gate=Gate(champion=Score("the champion", 0.9, DATA)))


# --- Canaries --------------------------------------------------------------------------------------------------------


def test_knative_canary_gets_its_share_and_an_address_of_its_own(kube):
    put_up("run-1", mode=Mode.knative)
    deployed = put_up("run-2", CANARY, mode=Mode.knative)
    assert (deployed.percent, deployed.url) == (10, "http://latest-facenet-predictor.face.svc.cluster.local")
    assert served(kube) == ("run-2", None, 10)
    check_schema(kube.applied[-1])
    promoted = settle("run-2")
    assert served(kube) == ("run-2", None, None)
    assert promoted.url == "http://facenet-predictor.face.svc.cluster.local"
    assert "run-1/" in kube.service()["spec"]["predictor"]["annotations"][FORMER]


def test_rejected_knative_canary_loses_all_traffic_before_the_percentage_goes(kube):
    put_up("run-1", mode=Mode.knative)
    put_up("run-2", CANARY, mode=Mode.knative)
    applied = len(kube.applied)
    with pytest.raises(StageError, match=r"(?s)better by 10.00 points.*rolled back to run run-1"):
        settle("run-2", 0.70)
    steps = [document["spec"]["predictor"] for document in kube.applied[applied:]]
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
    settle("run-2")
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
    put_up("run-1")
    before = kube.service()["spec"]
    put_up("run-2", CANARY)
    with pytest.raises(StageError, match="rolled back to run run-1"):
        settle("run-2", 0.1)
    assert kube.service()["spec"] == before


def test_standard_canary_is_refused_by_name_where_the_definition_lacks_it(kube):
    put_up("run-1")
    kube.canaries = False
    applied = len(kube.applied)
    with pytest.raises(UserError, match=r"spec\.canary \(KServe 0\.20\).*would drop, giving all traffic"):
        put_up("run-2", CANARY)
    assert len(kube.applied) == applied


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
def test_canary_of_another_run_blocks_until_it_is_settled():
    put_up("run-1")
    put_up("run-2", CANARY)
    with pytest.raises(UserError, match="a canary of run run-2 is on trial; promote it or roll it back first"):
        put_up("run-3")
    settle("run-2")
    put_up("run-3")


@pytest.mark.parametrize("percent", [-1, 100])
def test_canary_percentage_has_bounds(percent):
    with pytest.raises(UserError, match="from 1 to 99, or 0"):
        Rollout(percent=percent)


# --- Promotion and roll-back -----------------------------------------------------------------------------------------


def test_plain_deployment_that_scores_badly_at_its_endpoint_is_undone(kube):
    put_up("run-1")
    put_up("run-2")
    with pytest.raises(
        StageError, match=r"(?s)the quality gate refuses: the endpoint scores 0.5.*rolled back to run run-1"
    ):
        settle("run-2", 0.5)
    assert served(kube)[0] == "run-1"
    assert FORMER not in kube.service()["spec"]["predictor"]["annotations"]


def test_endpoint_without_a_score_is_not_promoted(kube):
    put_up("run-1")
    put_up("run-2", CANARY)
    with pytest.raises(StageError, match=r"no score \(None\)"):
        settle("run-2", None)
    assert served(kube) == ("run-1", None, None)


def test_promotion_of_a_plain_deployment_applies_nothing(kube):
    put_up("run-1")
    applied = len(kube.applied)
    assert settle("run-1").url == "http://facenet-predictor.face.svc.cluster.local"
    assert len(kube.applied) == applied


def test_run_that_was_replaced_is_neither_promoted_nor_rolled_back(kube):
    put_up("run-1")
    put_up("run-2")
    put_up("run-3")
    with pytest.raises(UserError, match="run run-3 was deployed since; run-2 is not served"):
        settle("run-2", 0.1)
    assert "nothing to roll back" in roll_back(Cluster(), "facenet", "face", "run-2", QUICK)
    assert served(kube)[0] == "run-3"


@pytest.mark.usefixtures("kube")
def test_first_deployment_has_nothing_to_go_back_to():
    put_up("run-1")
    with pytest.raises(UserError, match="nothing was served before run run-1; it is left as it is"):
        roll_back(Cluster(), "facenet", "face", "run-1", QUICK)


@pytest.mark.usefixtures("kube")
def test_person_may_roll_back_without_naming_the_run():
    put_up("run-1")
    put_up("run-2")
    assert "rolled back to run run-1" in roll_back(Cluster(), "facenet", "face", "", QUICK)
    with pytest.raises(UserError, match="there is none; deploy it first"):
        roll_back(Cluster(), "other", "face", "", QUICK)


# --- Waiting ---------------------------------------------------------------------------------------------------------


def failing(transition, reason, message, canary=False):
    """A controller that reports a failure of the second generation as soon as it has seen it."""

    def controller(document, looks):
        status = kube_stub.ready_status(document, looks)
        predictors = [
            document["spec"]["predictor"],
            *(each["predictor"] for each in document["spec"].get("canary", [])),
        ]
        if looks < 2 or not any("run-2" in each["model"]["storageUri"] for each in predictors):
            return status
        failure = {"transitionStatus": transition, "lastFailureInfo": {"reason": reason, "message": message}}
        if canary:
            status["canaryStatuses"] = [
                {**each, "ready": False, "modelStatus": failure} for each in status["canaryStatuses"]
            ]
            return status
        return {**status, "modelStatus": failure, "conditions": [{"type": "Ready", "status": "False"}]}

    return controller


@pytest.mark.parametrize(
    ("transition", "reason"),
    [("InvalidSpec", "NoSupportingRuntime"), ("BlockedByFailedLoad", "ModelLoadFailed")],
)
def test_failed_load_ends_at_once_with_the_reason_and_the_former_model_is_served_again(kube, transition, reason):
    put_up("run-1")
    kube.controller = failing(transition, reason, "plan was built for\nanother GPU")
    started = time.monotonic()
    with pytest.raises(StageError) as failure:
        put_up("run-2", replace(QUICK, timeout=60))
    assert time.monotonic() - started < 5
    lines = str(failure.value).splitlines()
    assert lines[0].endswith(f"{transition}: {reason}: plan was built for another GPU")
    assert lines[1].strip() == "inferenceservices/facenet in face: rolled back to run run-1"
    assert served(kube)[0] == "run-1"


def test_first_model_that_fails_is_left_for_diagnosis(kube):
    kube.controller = failing("InvalidSpec", "RuntimeNotRecognized", "Waiting for runtime")
    with pytest.raises(StageError, match=r"(?s)RuntimeNotRecognized.*not rolled back: .*nothing was served before"):
        put_up("run-2")


def test_failed_canary_is_named_and_taken_away(kube):
    put_up("run-1")
    kube.controller = failing("BlockedByFailedLoad", "ModelLoadFailed", "no such file", canary=True)
    with pytest.raises(
        StageError, match=r"(?s), canary v[0-9a-f]{8}: BlockedByFailedLoad: ModelLoadFailed: no such file"
    ):
        put_up("run-2", CANARY)
    assert served(kube) == ("run-1", None, None)


def test_timeout_tells_every_condition(kube):
    kube.controller = lambda document, _looks: {
        "observedGeneration": document["metadata"]["generation"],
        "conditions": [
            {
                "type": "PredictorReady",
                "status": "Unknown",
                "reason": "Deploying",
                "message": "0/1 nodes\nare available",
            },
            {"type": "Ready", "status": "False"},
        ],
        "modelStatus": {"transitionStatus": "InProgress"},
    }
    with pytest.raises(StageError) as failure:
        put_up("run-1", replace(QUICK, timeout=0.05))
    lines = [line.strip() for line in str(failure.value).splitlines()]
    assert lines[:4] == [
        "inferenceservices/facenet in face: not ready after 0.05 s",
        "observed generation 1, wanted 1",
        "PredictorReady: Unknown Deploying 0/1 nodes are available",
        "Ready: False",
    ]


def test_controller_that_is_away_is_told_by_the_generation(kube):
    kube.controller = lambda _document, _looks: {}
    with pytest.raises(StageError, match="observed generation none, wanted 1"):
        put_up("run-1", replace(QUICK, timeout=0.02))


def test_api_server_that_is_away_for_a_while_is_waited_for(kube):
    kube.before_apply += [lambda _stub: None, lambda stub: (stub.fail("get", 500), stub.fail("get", times=2))]
    put_up("run-1")
    assert all(fault.times == 0 for fault in kube.faults)


# --- Conflicts -------------------------------------------------------------------------------------------------------

REPLICAS = ("spec", "predictor", "minReplicas")
STORAGE = ("spec", "predictor", "model", "storageUri")


def test_conflict_names_owners_and_fields_and_force_takes_them_over(kube):
    put_up("run-1", maximum_replicas=3)
    kube.edit("kubectl-edit", {REPLICAS: 2})
    kube.edit("argocd", {STORAGE: "s3://else/where/"})
    with pytest.raises(UserError) as conflict:
        put_up("run-2", maximum_replicas=3)
    assert str(conflict.value) == (
        "inferenceservices/facenet in face: argocd owns .spec.predictor.model.storageUri; kubectl-edit owns "
        ".spec.predictor.minReplicas; have them given up there, or take them over with --force (deploy_force)"
    )
    put_up("run-2", replace(QUICK, force=True), maximum_replicas=3)
    assert kube.service()["spec"]["predictor"]["minReplicas"] == 1
    assert kube.service()["spec"]["predictor"]["model"]["storageUri"].endswith("run-2/repository/")


def test_fields_of_others_that_we_do_not_set_stay(kube):
    put_up("run-1")
    kube.edit("team", {("spec", "predictor", "priorityClassName"): "high", ("metadata", "labels", "cost"): "42"})
    put_up("run-2")
    assert kube.service()["spec"]["predictor"]["priorityClassName"] == "high"
    assert kube.service()["metadata"]["labels"]["cost"] == "42"


def test_deployment_that_comes_in_between_is_judged_anew(kube):
    put_up("run-1", value=0.5)

    def other(stub):
        stub.edit("gridbox", {("spec", "predictor", "annotations", "gridbox/score"): "0.95"})

    kube.before_apply += [lambda _stub: None, other]  # before the runtime, before the service
    with pytest.raises(StageError, match=r"better by 15\.00 points"):
        put_up("run-2", value=0.8)


def test_endless_changes_by_others_end_in_one_line(kube):
    put_up("run-1")
    kube.fail("patch", 409, 'Operation cannot be fulfilled on inferenceservices "facenet": has been modified', times=99)
    with pytest.raises(StageError, match="tried 5 times; is something else deploying there") as failure:
        put_up("run-2")
    assert "\n" not in str(failure.value)


# --- Failures of the cluster -----------------------------------------------------------------------------------------


def one_line(kind, said, work):
    with pytest.raises(kind, match=said) as failure:
        work()
    assert "\n" not in str(failure.value)
    assert "Traceback" not in str(failure.value)


def test_unknown_credentials_are_one_line(kube):
    kube.token = "another"
    one_line(UserError, r"does not know these credentials \(401\)", lambda: put_up("run-1"))


@pytest.mark.parametrize(
    ("resource", "verb"),
    [(rule["resources"][0], verb) for rule in DEPLOY_RULES for verb in rule["verbs"]],
)
def test_missing_rule_is_named_as_a_role_needs_it(kube, resource, verb):
    kube.rules = [
        {**rule, "verbs": [each for each in rule["verbs"] if (rule["resources"][0], each) != (resource, verb)]}
        for rule in DEPLOY_RULES
    ]
    rule = json.dumps({"apiGroups": ["serving.kserve.io"], "resources": [resource], "verbs": [verb]})
    with pytest.raises(UserError) as refusal:
        put_up("run-1")
    assert str(refusal.value).endswith(f"not allowed (403); the account lacks the rule {rule}")


def test_missing_cluster_rule_is_named(kube):
    put_up("run-1")
    kube.rules = DEPLOY_RULES
    one_line(UserError, r'the rule \{"apiGroups": \["apiextensions.k8s.io"\]', lambda: put_up("run-2", CANARY))


def test_cluster_without_kserve_is_told(kube):
    kube.groups.discard("serving.kserve.io")
    one_line(
        UserError,
        r"knows no inferenceservices of serving.kserve.io/v1beta1 \(404\); install KServe",
        lambda: put_up("1"),
    )


@pytest.mark.usefixtures("kube")
def test_missing_namespace_is_told():
    one_line(UserError, "there is no namespace nowhere; create it", lambda: put_up("run-1", namespace="nowhere"))


def test_admission_webhook_is_quoted_and_not_taken_for_a_missing_rule(kube):
    kube.admission = lambda _old, _new: "quota of\nGPUs exceeded"
    one_line(UserError, "the cluster refuses it: admission webhook .* quota of GPUs exceeded", lambda: put_up("run-1"))


@pytest.mark.parametrize("verb", ["get", "patch"])
def test_failing_api_server_is_one_line(kube, verb):
    kube.fail(verb, 500, times=99)
    one_line(StageError, "the API server fails: 500 etcdserver: request timed out", lambda: put_up("run-1"))


def test_unreachable_api_server_is_one_line(kube, tmp_path, monkeypatch):
    kube.fail("get", times=99)
    one_line(StageError, r"the API server http://127.0.0.1:\d+ cannot be reached", lambda: put_up("run-1"))
    kube.url = "http://127.0.0.1:9"
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig(tmp_path / "other")))
    one_line(StageError, "cannot be reached .*refused", lambda: put_up("run-1"))


def test_missing_or_damaged_cluster_configuration_is_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    one_line(UserError, "no cluster: .*set KUBECONFIG, run in a pod", Cluster)
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    one_line(UserError, "no cluster: .*set KUBECONFIG, run in a pod", Cluster)


@pytest.mark.usefixtures("kube")
def test_unknown_context_is_one_line():
    one_line(UserError, "no cluster: .*nowhere", lambda: Cluster("nowhere"))


# --- Access rules ----------------------------------------------------------------------------------------------------


def every_path():
    """Takes every way through the component."""
    for mode in Mode:
        name = mode.value.lower()
        for run, rollout in (("run-1", QUICK), ("run-2", QUICK), ("run-3", CANARY)):
            put_up(run, rollout, mode=mode, name=name)
        promote(Cluster(), name, "face", "run-3", measured(0.8), Gate(), QUICK)
        put_up("run-4", CANARY, mode=mode, name=name)
        roll_back(Cluster(), name, "face", "run-4", QUICK)


def test_access_rules_are_exactly_the_calls_that_are_made(kube):
    every_path()
    stated = {
        (rule["apiGroups"][0], rule["resources"][0]): set(rule["verbs"])
        for rule in (*DEPLOY_RULES, *DEPLOY_CLUSTER_RULES)
    }
    assert kube_stub.rules_of(kube.calls) == stated
    definitions = {call.name for call in kube.calls if call.resource == "customresourcedefinitions"}
    assert [sorted(definitions)] == [rule["resourceNames"] for rule in DEPLOY_CLUSTER_RULES]


def test_account_with_exactly_these_rules_gets_everywhere(kube):
    kube.rules = (*DEPLOY_RULES, *DEPLOY_CLUSTER_RULES)
    every_path()


# --- What the target must fit ----------------------------------------------------------------------------------------

PLAN = {
    "backend": "tensorrt",
    "gpu": "NVIDIA A10",
    "tensorrt_version": TENSORRT_VERSION + ".18",
    "triton_release": TRITON_RELEASE,
    "gridbox_version": GRIDBOX_VERSION,
}


def test_plan_runs_on_the_gpu_it_was_built_on_and_selects_it_by_itself():
    assert fitted(service(**GPU_SERVICE), PLAN) == service(**GPU_SERVICE)
    chosen = fitted(service(resources=Resources(gpus=1), node_selector={"pool": "serving"}), PLAN)
    assert chosen.node_selector == {"pool": "serving", "nvidia.com/gpu.product": "NVIDIA-A10"}
    shared = service(resources=Resources(gpus=1), node_selector={"nvidia.com/gpu.product": "NVIDIA-A10-SHARED"})
    assert fitted(shared, PLAN) == shared


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gpu": "Tesla T4"}, "built on Tesla T4, the target's nodes have NVIDIA-A10"),
        ({"gpu": ""}, "GPU is not recorded"),
        ({"tensorrt_version": "8.6.1"}, f"TensorRT 8.6.1, Triton {TRITON_RELEASE} has {TENSORRT_VERSION}"),
        ({"tensorrt_version": ""}, r"TensorRT \(not recorded\)"),
        ({"triton_release": "23.05"}, f"made for Triton 23.05, this release serves with {TRITON_RELEASE}"),
        ({"gridbox_version": "0.0.9"}, f"made by gridbox 0.0.9, .* has the code of {GRIDBOX_VERSION}"),
    ],
)
def test_plan_for_another_target_is_refused_by_name(changes, said):
    with pytest.raises(UserError, match=said):
        fitted(service(**GPU_SERVICE), {**PLAN, **changes})


def test_plan_without_a_gpu_to_run_on_is_refused():
    with pytest.raises(UserError, match="the plan needs a GPU"):
        fitted(service(), PLAN)


def test_cpu_repository_needs_the_release_only():
    cpu = {"backend": "onnxruntime", "triton_release": TRITON_RELEASE, "gridbox_version": GRIDBOX_VERSION}
    assert fitted(service(), cpu) == service()
    with pytest.raises(UserError, match=r"made for Triton 23\.05"):
        fitted(service(), {**cpu, "triton_release": "23.05"})


@pytest.mark.parametrize(
    ("url", "protocol", "gateway", "told"),
    [
        ("http://f.face.svc.cluster.local", Protocol.http, "", ("http://f.face.svc.cluster.local:80", "")),
        ("https://f.example.com", Protocol.grpc, "", ("grpcs://f.example.com:443", "")),
        ("http://f.example.com", Protocol.grpc, "istio:80", ("grpc://istio:80", "f.example.com")),
        ("", Protocol.http, "istio:80", ("", "")),
    ],
)
def test_endpoint_is_what_a_client_connects_to(url, protocol, gateway, told):
    assert endpoint(url, protocol, gateway) == told


# --- The commands ----------------------------------------------------------------------------------------------------

APP = Typer()
deploy_commands.mount(APP)


def call(*words):
    return program.run(APP, [str(word) for word in words], "gridbox serve")


@pytest.fixture
def inputs(tmp_path):
    """A published repository and an evaluation."""
    repository = tmp_path / "repository"
    (repository / "repository" / "facenet" / "1").mkdir(parents=True)
    (repository / "repository" / "facenet" / "config.pbtxt").write_text('name: "facenet"\n')
    (repository / "repository" / "facenet" / "1" / "model.onnx").write_text("model")
    settings = {
        "model_name": "facenet",
        "backend": "onnxruntime",
        "triton_release": TRITON_RELEASE,
        "gridbox_version": GRIDBOX_VERSION,
    }
    write_manifest(repository, "model_repository", {}, settings)
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    write_json(evaluation / "metrics.json", {"models": {}})
    write_manifest(
        evaluation, "evaluation", {"mean_average_precision": 0.8}, {"data_digest": "abc", "split": "validation"}
    )
    publish = ["--repository", repository, "--base", tmp_path / "store", "--published", tmp_path / "published"]
    assert call("publish", *publish) == 0
    return tmp_path


def words(inputs, *more):
    given = ["--published", inputs / "published", "--evaluation", inputs / "evaluation"]
    return ["deploy", *given, "--deployment", inputs / "deployment", "--namespace", "face", *more]


def test_manifest_is_the_default_and_kubectl_could_apply_it(inputs, capsys):
    assert call(*words(inputs)) == 0
    runtime, isvc = yaml.safe_load_all((inputs / "deployment" / "manifest.yaml").read_text())
    check_schema(runtime)
    check_schema(isvc)
    assert isvc["spec"]["predictor"]["model"]["storageUri"].endswith("/repository/")
    assert "which no cluster can read" in (inputs / "deployment" / "manifest.yaml").read_text()
    assert "kubectl apply --server-side -f" in capsys.readouterr().out
    assert step.read_manifest(inputs / "deployment", "deployment")["counts"]["target"] == "manifest"
    assert call("promote", "--deployment", inputs / "deployment") == 0


def test_manifest_cannot_be_a_canary(inputs, capsys):
    assert call(*words(inputs, "--canary-percent", 10)) == 2
    assert "a canary needs to know what is served" in capsys.readouterr().err
    assert not (inputs / "deployment").exists()


def test_without_a_place_to_publish_to_nothing_is_published_or_deployed_and_it_is_said(inputs, capsys):
    assert call("publish", "--repository", inputs / "repository", "--published", inputs / "published") == 0
    assert call(*words(inputs, "--endpoint", inputs / "endpoint")) == 0
    assert capsys.readouterr().out.count("skipped") == 2
    assert (inputs / "endpoint").read_text() == ""
    assert step.read_manifest(inputs / "deployment", "deployment")["counts"]["skipped"] is True
    assert call("promote", "--deployment", inputs / "deployment") == 0
    assert call(*words(inputs, "--target", "kserve")) == 2
    assert "nothing was published; give --base" in capsys.readouterr().err


def test_gate_holds_for_the_manifest_too(inputs, capsys):
    write_json(inputs / "score.json", {"mean_average_precision": 0.95, "data_digest": "?"})
    assert call(*words(inputs, "--champion", inputs / "score.json")) == 1
    assert "not comparable" in capsys.readouterr().err
    assert call(*words(inputs, "--champion", inputs / "score.json", "--accept-incomparable")) == 0


def test_executor_input_of_kubeflow_deploys_and_promotes(inputs, kube):
    def artifact(name):
        return {"artifacts": [{"name": name, "uri": str(inputs / name)}]}

    def stage(task, parameters, artifacts, outputs=(), files=()):
        given = {
            "inputs": {"parameterValues": parameters, "artifacts": {name: artifact(name) for name in artifacts}},
            "outputs": {
                "outputFile": str(inputs / "out" / "output.json"),
                "artifacts": {name: artifact(name) for name in outputs},
                "parameters": {name: {"outputFile": str(inputs / "out" / name)} for name in files},
            },
        }
        return call(task, "--executor-input", json.dumps(given))

    parameters = {
        "target": "kserve", "name": "facenet", "namespace": "face", "run_id": "run-9", "mode": "Standard",
        "protocol": "v2",
        "gpus": 0.0, "minimum_replicas": 1.0, "maximum_replicas": 2.0, "node_selector": {"pool": "serving"},
        "tolerations": [{"key": "a", "operator": "Exists"}], "canary_percent": 0.0, "force": False, "timeout": 5.0,
        "max_points_lost": 1.0, "accept_incomparable": False, "champion": "", "gateway": "", "scored_model": "",
    }  # fmt: skip
    inputs_of = ("published", "evaluation")
    kube.controller = lambda document, looks: kube_stub.ready_status(document, looks, delay=1)
    assert stage("deploy", parameters, inputs_of, ["deployment"], ["endpoint", "gateway_host"]) == 0
    assert (inputs / "out" / "endpoint").read_text() == "http://facenet-predictor.face.svc.cluster.local:80"
    assert (inputs / "out" / "gateway_host").read_text() == ""
    predictor = kube.service()["spec"]["predictor"]
    assert predictor["nodeSelector"] == {"pool": "serving"}
    assert predictor["tolerations"] == [{"key": "a", "operator": "Exists"}]
    written = json.loads((inputs / "out" / "output.json").read_text())["artifacts"]["deployment"]["artifacts"][0]
    assert written["metadata"]["url"] == "http://facenet-predictor.face.svc.cluster.local"
    assert written["metadata"]["run_id"] == "run-9"
    judged = {"force": False, "timeout": 5.0, "max_points_lost": 1.0, "accept_incomparable": False, "champion": ""}
    assert stage("promote", judged, ("deployment", "evaluation")) == 0
    undo = {
        "name": "facenet",
        "namespace": "face",
        "run_id": "run-9",
        "target": "kserve",
        "force": False,
        "timeout": 5.0,
    }
    conclude = functools.partial(stage, "conclude", artifacts=(), outputs=["summary"])
    failed = {"state": "FAILED", "error": {"code": 9, "message": "the endpoint|differs"}}
    assert conclude({**undo, "status": {"state": "SUCCEEDED"}}) == 0
    assert "| deployment | nothing to roll back |" in (inputs / "summary").read_text()
    assert conclude({**undo, "status": failed}) == 2  # nothing was served before
    assert conclude({**undo, "run_id": "run-8", "status": failed}) == 0
    summary = (inputs / "summary").read_text()
    assert "| why | the endpoint\\|differs |" in summary
    assert "run run-8 is not what is deployed" in summary
    assert conclude({**undo, "name": "other", "status": failed}) == 0
    assert "there is none; run run-9 deployed nothing" in (inputs / "summary").read_text()
    assert conclude({**undo, "target": "local", "status": failed}) == 0


def test_local_target_is_served_by_whoever_runs_the_stage(inputs, monkeypatch, capsys):
    given = ["--target", "local", "--endpoint", inputs / "endpoint"]
    assert call(*words(inputs, *given)) == 2
    assert "serves within a run on this machine (gridbox run)" in capsys.readouterr().err
    with host(inputs / "host", monkeypatch, host_module.Served("http://a", "grpc://b")) as asked:
        assert call(*words(inputs, *given)) == 0
        assert (inputs / "endpoint").read_text() == "http://a"
        assert call(*words(inputs, *given, "--protocol", "grpc-v2")) == 0
        assert (inputs / "endpoint").read_text() == "grpc://b"
    assert asked == [(inputs / "repository/manifest.json").read_text()] * 2  # the very model, from the store


def test_local_target_refuses_what_was_damaged_in_the_store(inputs, monkeypatch, capsys):
    network = next((inputs / "store").rglob("model.onnx"))
    network.chmod(0o644)
    network.write_text("other")
    with host(inputs / "host", monkeypatch, host_module.Served("http://a", "grpc://b")) as asked:
        assert call(*words(inputs, "--target", "local")) == 2
    assert "model.onnx" in capsys.readouterr().err
    assert not asked


def test_local_server_that_does_not_start_fails_the_stage_with_its_reason(inputs, monkeypatch, capsys):
    with host(inputs / "host", monkeypatch, StageError("it ended at once")):
        assert call(*words(inputs, "--target", "local")) == 1
    assert "it ended at once" in capsys.readouterr().err
    assert not (inputs / "deployment").exists()


@contextlib.contextmanager
def host(folder, monkeypatch, answer):
    """Runs stages as `gridbox run` does, and answers each that asks for a server."""
    folder.mkdir()
    monkeypatch.setenv(host_module.HOST_FOLDER, str(folder))
    asked, ended = [], threading.Event()

    def serve(repository):
        asked.append((repository / "manifest.json").read_text())
        if isinstance(answer, Exception):
            raise answer
        return answer

    def listen():
        while not ended.wait(0.01):
            host_module.attend(folder, serve)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield asked
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--node-selector", "pool=serving"], "not JSON"),
        (["--node-selector", "[]"], "a JSON object is needed"),
        (["--tolerations", '["a"]'], "a JSON list of objects is needed"),
        (["--name", "Face"], "lower-case letters"),
        (["--minimum-replicas", "3"], "minReplicas 3 is more than maxReplicas 1"),
        (["--scored-model", "best"], "no model 'best' was scored here"),
    ],
)
def test_mistakes_of_the_user_are_one_line_and_nothing_is_written(inputs, capsys, flags, said):
    assert call(*words(inputs, *flags)) == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told.strip().splitlines()) == 1
    assert not (inputs / "deployment").exists()
