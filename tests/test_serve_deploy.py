"""Deployment against a stub of the Kubernetes API: what is applied, what is waited for, and how failures read."""

import contextlib
import functools
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import kube_stub
import pytest
import yaml
from deployments import (
    CANARY,
    DATA,
    QUICK,
    candidate,
    judge,
    ledger,
    measured,
    model,
    promoted,
    put_up,
    scored,
    served,
    stub_cluster,
)
from manifest_rules import check_schema
from square_detector import write_detector
from test_serve_kserve import GPU_SERVICE, service
from typer import Typer

from components import program, step
from components.decode.description import at_operating_point, operating_point
from components.serve import deploy_commands
from components.serve import host as host_module
from components.serve.access import DEPLOY_CLUSTER_RULES, DEPLOY_RULES
from components.serve.cluster import Cluster
from components.serve.deploy import (
    Gate,
    Rollout,
    deploy_kserve,
    endpoint,
    promote,
    roll_back,
)
from components.serve.fit import fitted
from components.serve.kserve import Mode, Protocol, Resources
from components.serve.ledger import State
from components.serve.pods import troubles
from components.serve.published import publish_repository, read_published
from components.serve.rehearsal import rehearse
from components.serve.release import GRIDBOX_VERSION, TENSORRT_VERSION, TRITON_RELEASE
from components.step import StageError, UserError, write_json, write_manifest


@pytest.fixture
def kube(tmp_path, monkeypatch):
    with stub_cluster(tmp_path, monkeypatch) as stub:
        yield stub


# --- The ordinary way ------------------------------------------------------------------------------------------------


def test_first_deployment_applies_runtime_and_service_and_waits(kube):
    deployed = put_up("run-1")
    assert deployed.url == "http://facenet-predictor.face.svc.cluster.local"
    assert deployed.external_url == "http://facenet-face.example.com"
    assert [document["kind"] for document in kube.applied] == [
        "ServingRuntime",
        "ConfigMap",
        "InferenceService",
    ]
    assert kube.service()["spec"]["predictor"]["model"]["runtime"] == kube.runtimes()[0]["metadata"]["name"]
    assert not any(call.force for call in kube.calls)


def test_second_deployment_replaces_the_model_and_the_ledger_remembers_the_former(kube):
    put_up("run-1")
    judge("run-1")
    put_up("run-2")
    assert kube.service()["spec"]["predictor"]["model"]["storageUri"].endswith("run-2/repository/")
    assert [(entry.run, entry.state) for entry in ledger().entries] == [
        ("run-1", State.promoted),
        ("run-2", State.trial),
    ]
    assert ledger().entries[1].before == ledger().entries[0].uri


def test_annotations_say_only_what_never_changes_so_that_pods_are_not_restarted_for_bookkeeping(kube):
    put_up("run-1")
    pods = kube.kserve.pods("face", "facenet")
    judge("run-1")
    assert kube.kserve.pods("face", "facenet") == pods
    assert set(kube.service()["spec"]["predictor"]["annotations"]) == {
        "gridbox/run-id", "gridbox/model-digest", "gridbox/score", "gridbox/data-digest", "gridbox/revision",
    }  # fmt: skip


def test_retry_of_the_same_run_changes_nothing(kube):
    put_up("run-1")
    put_up("run-2")
    before = kube.service()
    put_up("run-2")
    after = kube.service()
    assert after["spec"] == before["spec"]
    assert after["metadata"]["generation"] == before["metadata"]["generation"]


def test_ready_of_the_former_pods_is_not_taken_for_readiness_of_the_new_ones(kube):
    put_up("run-1")
    seen = []

    def watched(document, looks):
        status = kube.kserve.look(document, looks)
        seen.append((status["conditions"][1]["status"], len(kube.kserve.pods("face", "facenet"))))
        return status

    kube.kserve.delay, kube.controller = 6, watched
    put_up("run-2")
    assert {ready for ready, _ in seen} == {"True"}  # all the while
    assert [pods for _, pods in seen] == [1] * 6 + [2, 2, 1]  # both, the former told to end, then the new one alone


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
    judge("run-1", 0.85)
    applied = len(kube.applied)
    with pytest.raises(StageError, match=r"what is served is better by 5\.00 points"):
        put_up("run-2", value=0.80)
    assert len(kube.applied) == applied
    put_up("run-2", value=0.80, gate=Gate(points=5))
    assert served(kube)[0] == "run-2"


def test_champion_deployed_by_others_is_not_comparable(kube):
    put_up("run-1")
    annotations, uri = ("spec", "predictor", "annotations"), ("spec", "predictor", "model", "storageUri")
    kube.edit("kubectl-edit", {annotations: {"gridbox/run-id": "by-hand"}, uri: "s3://by/hand/"})
    with pytest.raises(StageError, match="run by-hand has no score"):
        put_up("run-2")
    put_up("run-2", gate=Gate(accept_incomparable=True), rollout=replace(QUICK, force=True))


@pytest.mark.usefixtures("kube")
def test_given_champion_counts_instead_of_the_annotations():
    put_up("run-1", value=0.2)
    judge("run-1", 0.2)
    with pytest.raises(StageError, match=r"the champion 0\.9000 on the same images"):
        put_up("run-2", gate=Gate(champion=scored("the champion", 0.9, DATA)))


# --- Waiting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fate", "said"),
    [
        ("image", r"kserve-container: ErrImagePull: the image cannot be pulled: .*triton:stub.*not found"),
        ("registry", r"kserve-container: ImagePullBackOff: the image cannot be pulled: .*i/o timeout"),
        ("crash", r"kserve-container: CrashLoopBackOff: exit code 1: no GPU"),
        ("memory", r"kserve-container: CrashLoopBackOff: exit code 137 \(OOMKilled\): it needs more memory"),
        ("load", r"storage-initializer: CrashLoopBackOff: exit code 1: No model found in s3"),
        ("pod-security", r'FailedCreate: pods .* is forbidden: violates PodSecurity "restricted:latest"'),
        ("quota", r"FailedCreate: pods .* exceeded quota: small"),
    ],
)
def test_new_pods_that_cannot_serve_end_the_wait_at_once_and_the_former_model_is_served_again(kube, fate, said):
    put_up("run-1")
    kube.kserve.fates["run-2"] = fate
    started = time.monotonic()
    with pytest.raises(StageError, match=said) as failure:
        put_up("run-2", replace(QUICK, timeout=60))
    assert time.monotonic() - started < 5
    first, second = str(failure.value).splitlines()
    assert first.startswith("inferenceservices/facenet in face: ")
    assert second.strip() == "inferenceservices/facenet in face: rolled back to run run-1"
    assert served(kube)[0] == "run-1"


def test_roll_back_finds_the_former_pods_that_still_run(kube):
    put_up("run-1")
    (before,) = kube.kserve.pods("face", "facenet")
    kube.kserve.fates["run-2"] = "image"
    with pytest.raises(StageError, match="rolled back to run run-1"):
        put_up("run-2")
    assert kube.kserve.pods("face", "facenet") == [before]


def test_failed_load_of_a_former_pod_is_not_taken_for_that_of_the_new_model(kube):
    kube.kserve.fates["run-1"] = "load"
    with pytest.raises(StageError, match="No model found in s3"):
        put_up("run-1")
    put_up("run-2")


def test_new_pods_that_only_take_long_are_waited_for_and_told_at_the_end(kube):
    put_up("run-1")
    kube.kserve.fates["run-2"] = "slow"
    with pytest.raises(StageError, match=r"(?s)not ready after 0\.2 s.*PredictorReady: True.*rolled back to run run-1"):
        put_up("run-2", replace(QUICK, timeout=0.2))


def test_first_model_that_fails_is_left_for_diagnosis(kube):
    kube.kserve.fates["run-2"] = "crash"
    with pytest.raises(StageError, match=r"(?s)no GPU\n.*nothing was served before run run-2; it is left as it is"):
        put_up("run-2")


def test_refused_spec_ends_the_wait_with_kserves_reason(kube):
    failure = {"reason": "RuntimeNotRecognized", "message": "Waiting for\nruntime"}
    kube.controller = lambda *_: {"modelStatus": {"transitionStatus": "InvalidSpec", "lastFailureInfo": failure}}
    with pytest.raises(StageError, match=r"InvalidSpec: RuntimeNotRecognized: Waiting for runtime\n"):
        put_up("run-1")


def test_failed_canary_is_told_and_taken_away(kube):
    put_up("run-1")
    kube.kserve.fates["run-2"] = "load"
    with pytest.raises(StageError, match=r"facenet-v[0-9a-f]{8}-predictor-\d+, storage-initializer: CrashLoop"):
        put_up("run-2", CANARY)
    assert served(kube) == ("run-1", None, None)


def test_unschedulable_pod_is_no_failure_but_told_at_the_end(kube):
    pod = {"metadata": {"name": "p"}, "status": {"conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes\nare available"}
    ]}}  # fmt: skip
    assert [(trouble.text, trouble.looks) for trouble in troubles(pod)] == [
        ("p: Unschedulable: 0/1 nodes are available", 0)
    ]
    kube.controller = lambda *_: {
        "conditions": [{"type": "Ready", "status": "Unknown", "reason": "New", "message": "a\nb"}]
    }
    with pytest.raises(StageError) as failure:
        put_up("run-1", replace(QUICK, timeout=0.05))
    assert [line.strip() for line in str(failure.value).splitlines()][:3] == [
        "inferenceservices/facenet in face: not ready after 0.05 s",
        "KServe has made no Deployment of it yet",
        "Ready: Unknown New a b",
    ]


def test_run_that_is_replaced_while_it_waits_says_so(kube):
    def controller(document, looks):
        if looks == 3:
            kube.edit("gridbox", {STORAGE: "s3://models/facenet/versions/run-9/repository/"})
        return kube.kserve.look(document, 1)

    kube.controller = controller
    with pytest.raises(StageError, match="was deployed meanwhile, in the place of run-1"):
        put_up("run-1")


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


@pytest.mark.usefixtures("kube")
def test_deployment_that_comes_in_between_is_judged_anew():
    promoted("run-1", value=0.5)

    class Overtaken(Cluster):
        def apply(self, kind, document, force=False):
            if not ledger().find(model("run-3").storage_uri):
                promoted("run-3", value=0.95)
            return super().apply(kind, document, force)

    of = model("run-2", 0.8)
    with pytest.raises(StageError, match=r"better by 15\.00 points"):
        deploy_kserve(Overtaken(), of, candidate(of), Gate(), QUICK)


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
    (group,) = next(rule["apiGroups"] for rule in DEPLOY_RULES if rule["resources"][0] == resource)
    rule = json.dumps({"apiGroups": [group], "resources": [resource], "verbs": [verb]})

    def whole():
        rehearse(Cluster(), model("run-1"))
        put_up("run-1", mode=Mode.knative if resource == "services" else Mode.standard)

    with pytest.raises(UserError) as refusal:
        whole()
    assert str(refusal.value).endswith(f"not allowed (403); the account lacks the rule {rule}")
    assert "InferenceService" not in [document["kind"] for document in kube.applied]


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
    rehearse(Cluster(), model("run-0"))
    for mode in Mode:
        name = mode.value.lower()
        for run, rollout in (("run-1", QUICK), ("run-2", QUICK), ("run-3", CANARY)):
            put_up(run, rollout, mode=mode, name=name)
        promote(Cluster(), name, "face", "run-3", measured(0.8), Gate(), QUICK)
        put_up("run-4", CANARY, mode=mode, name=name)
        roll_back(Cluster(), name, "face", "run-4", QUICK)


def test_access_rules_are_exactly_the_calls_that_are_made(kube):
    every_path()
    stated = {}
    for rule in (*DEPLOY_RULES, *DEPLOY_CLUSTER_RULES):
        stated.setdefault((rule["apiGroups"][0], rule["resources"][0]), set()).update(rule["verbs"])
    assert kube_stub.rules_of(kube.calls) == stated
    for rule in DEPLOY_CLUSTER_RULES:
        names = {call.name for call in kube.calls if call.resource == rule["resources"][0]}
        assert set(rule["resourceNames"]) == {name for name in names if not name.startswith("gridbox-")}


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
        ({"gridbox_version": "0.0.9"}, r"made by gridbox 0\.0\.9, the image that serves has the code of"),
        ({"triton_release": "23.05"}, f"made for Triton 23.05, this release serves with {TRITON_RELEASE}"),
    ],
)
def test_plan_for_another_target_is_refused_by_name(changes, said):
    with pytest.raises(UserError, match=said):
        fitted(service(**GPU_SERVICE), {**PLAN, **changes})


def test_plan_without_a_gpu_to_run_on_is_refused():
    with pytest.raises(UserError, match="the plan needs a GPU"):
        fitted(service(), PLAN)


def test_cpu_repository_needs_the_releases_only():
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
        "backend": "onnxruntime",
        "triton_release": TRITON_RELEASE,
        "gridbox_version": GRIDBOX_VERSION,
        "repository_digest": "f" * 64,
    }
    write_manifest(repository, "model_repository", {}, settings)
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    write_json(evaluation / "metrics.json", {"models": {}})
    write_manifest(
        evaluation, "evaluation", {"mean_average_precision": 0.8}, {"data_digest": "abc", "split": "validation"}
    )
    publish_repository(repository, str(tmp_path / "store"), tmp_path / "published")
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
    assert call("publish", "--exported", inputs / "repository", "--published", inputs / "published") == 0
    assert call(*words(inputs)) == 0
    assert capsys.readouterr().out.count("skipped") == 2
    assert step.read_manifest(inputs / "deployment", "deployment")["counts"]["skipped"] is True
    assert call("promote", "--deployment", inputs / "deployment") == 0
    assert call(*words(inputs, "--target", "kserve")) == 2
    assert "nothing was published; give --base" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("own", "figures", "expected"),
    [
        ({}, {"models": {"exported": {"operating_point": {"face": 0.3}}, "quantized": {}}}, {"face": 0.3}),
        ({}, {"models": {"exported": {"best_f1": {"face": {"threshold": 0.4}, "hat": None}}}}, {"face": 0.4}),
        ({}, {"models": {"exported": {}}, "best_f1": {"face": None}}, {}),
        ({"face": 0.9}, {"models": {"exported": {"operating_point": {"face": 0.3}}}}, {"face": 0.9}),
    ],
)
def test_a_model_that_says_no_operating_point_is_published_with_that_of_its_evaluation(
    tmp_path, own, figures, expected
):
    model = write_detector(tmp_path / "exported")
    settings = step.read_manifest(model, "exported_model")["settings"]
    step.write_manifest(model, "exported_model", {}, at_operating_point(settings, own))
    (tmp_path / "evaluation").mkdir()
    write_json(tmp_path / "evaluation" / "metrics.json", figures)
    words = ["--exported", model, "--evaluation", tmp_path / "evaluation", "--scored-model", "exported"]
    assert call("publish", *words, "--published", tmp_path / "published", "--base", tmp_path / "store") == 0
    published = read_published(tmp_path / "published")
    assert operating_point(published.settings) == expected
    configured = Path(published.storage_uri.removeprefix("file://"), "facenet_ensemble", "config.pbtxt").read_text()
    assert ("operating_point" in configured) is bool(expected)
    assert operating_point(step.read_manifest(model, "exported_model")["settings"]) == own  # is left as it was


def test_gate_holds_for_the_manifest_too(inputs, capsys):
    write_json(inputs / "score.json", {"mean_average_precision": 0.95, "data_digest": "?"})
    assert call(*words(inputs, "--champion", inputs / "score.json")) == 1
    assert "not comparable" in capsys.readouterr().err
    assert call(*words(inputs, "--champion", inputs / "score.json", "--accept-incomparable")) == 0


def test_executor_input_of_kubeflow_deploys_promotes_and_concludes(inputs, kube, monkeypatch):
    def artifact(name):
        return {"artifacts": [{"name": name, "uri": str(inputs / name)}]}

    def stage(task, parameters, artifacts, outputs=()):
        given = {
            "inputs": {"parameterValues": parameters, "artifacts": {name: artifact(name) for name in artifacts}},
            "outputs": {
                "outputFile": str(inputs / "out" / "output.json"),
                "artifacts": {name: artifact(name) for name in outputs},
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
    monkeypatch.setattr(Rollout.__init__, "__defaults__", (0, False, 900.0, 0.001, ""))
    assert stage("deploy", parameters, inputs_of, ["deployment"]) == 0
    settings = step.read_manifest(inputs / "deployment", "deployment")["settings"]
    assert settings["endpoint"] == "http://facenet-predictor.face.svc.cluster.local:80"
    assert settings["gateway_host"] == ""
    assert settings["repository_digest"] == "f" * 64  # what scoring will look for
    assert settings["model_name"] == "facenet_ensemble"
    predictor = kube.service()["spec"]["predictor"]
    assert predictor["nodeSelector"] == {"pool": "serving"}
    assert predictor["tolerations"] == [{"key": "a", "operator": "Exists"}]
    written = json.loads((inputs / "out" / "output.json").read_text())["artifacts"]["deployment"]["artifacts"][0]
    assert written["metadata"]["url"] == "http://facenet-predictor.face.svc.cluster.local"
    assert written["metadata"]["canary_percent"] == 0
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

    def concluded(state, **changes):
        status = {"state": state, "error": {"code": 9, "message": "the endpoint|differs"}}
        code = conclude({**undo, "status": status, **changes})
        return code, (inputs / "summary").read_text()

    # The words of MLMD, which the driver of Kubeflow Pipelines 2.17 uses.
    for state in ("COMPLETE", "CACHED"):
        code, summary = concluded(state)
        assert (code, "| deployment | nothing to roll back |" in summary) == (0, True)
    for state in ("FAILED", "CANCELED"):
        code, summary = concluded(state)
        assert (code, "run run-9 was promoted and stays" in summary) == (0, True)
    code, summary = concluded("FAILED", run_id="run-8")
    assert (code, "run run-8 is not what is deployed" in summary) == (0, True)
    assert "| why | the endpoint\\|differs |" in summary
    code, summary = concluded("FAILED", name="other")
    assert (code, "run run-9 is not what is deployed" in summary) == (0, True)
    code, summary = concluded("FAILED", run_id="")
    assert (code, "run (unknown) is not what is deployed" in summary) == (0, True)
    assert concluded("FAILED", target="local")[0] == 0
    applied = len(kube.applied)
    code, summary = concluded("SUCCEEDED")
    assert (code, "state 'SUCCEEDED' is none of COMPLETE, CACHED, FAILED, CANCELED" in summary) == (2, True)
    assert len(kube.applied) == applied
    put_up("run-10", gate=Gate(accept_incomparable=True))
    code, summary = concluded("CANCELED", run_id="run-10")
    assert (code, "rolled back to run run-9" in summary) == (0, True)


def test_local_target_is_served_by_whoever_runs_the_stage(inputs, monkeypatch, capsys):
    given = ["--target", "local"]

    def told():
        return step.read_manifest(inputs / "deployment", "deployment")["settings"]["endpoint"]

    assert call(*words(inputs, *given)) == 2
    assert "serves within a run on this machine (gridbox run)" in capsys.readouterr().err
    with host(inputs / "host", monkeypatch, host_module.Served("http://a", "grpc://b")) as asked:
        assert call(*words(inputs, *given)) == 0
        assert told() == "http://a"
        assert call(*words(inputs, *given, "--protocol", "grpc-v2")) == 0
        assert told() == "grpc://b"
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
