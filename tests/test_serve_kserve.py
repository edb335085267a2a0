"""The documents handed to KServe: its definitions' schemas, closed to unknown fields, and its webhooks' rules."""

import copy
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from kserve_webhook import refuse, violations
from manifest_rules import check_restricted, check_schema, kubernetes_schemas

from components.measure.metric import AVERAGE_PRECISION, Score
from components.serve.kserve import (
    GPU,
    MODE,
    Mode,
    Protocol,
    Resources,
    Service,
    check,
    inference_service,
    runtime_name,
    serving_runtime,
)
from components.serve.rehearsal import pod
from components.serve.release import TRITON_IMAGE, TRITON_RELEASE
from components.step import UserError


def service(**changes):
    given = {
        "name": "facenet",
        "namespace": "face",
        "storage_uri": "s3://models/facenet/versions/1/repository",
        "run_id": "run-1",
        "model_digest": "d" * 64,
        "model_name": "facenet_ensemble",
        "score": 0.8125,
        "data_digest": "e" * 64,
        **changes,
    }
    if isinstance(given["score"], float):
        given["score"] = Score(AVERAGE_PRECISION, given["score"])
    return Service(**given)


GPU_SERVICE = {
    "resources": Resources(gpus=1, memory_limit="8Gi", shared_memory="2Gi"),
    "node_selector": {"nvidia.com/gpu.product": "NVIDIA-A10"},
    "tolerations": ({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},),
}
VARIANTS = [
    {"mode": mode, "protocol": protocol, **hardware, "maximum_replicas": replicas}
    for mode in Mode
    for protocol in Protocol
    for hardware in ({}, GPU_SERVICE)
    for replicas in (1, 3)
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_passes_the_strict_schema_and_the_webhooks(variant):
    document = inference_service(service(**variant))
    check_schema(document)
    assert list(violations(document)) == []
    check_schema(serving_runtime(service(**variant)))


def test_strict_schema_finds_a_typo_that_the_api_server_would_drop():
    document = inference_service(service())
    document["spec"]["predictor"]["model"]["storageURI"] = "s3://models/x/"
    with pytest.raises(AssertionError, match="storageURI"):
        check_schema(document)


def test_runtime_names_the_release_and_is_as_restricted_as_pods_may_be():
    runtime = serving_runtime(service())
    container = runtime["spec"]["containers"][0]
    assert f":{TRITON_RELEASE}-" in container["image"]
    assert container["name"] == "kserve-container"
    assert "--model-repository=/mnt/models" in container["args"]
    assert inference_service(service())["spec"]["predictor"]["model"]["runtime"] == runtime["metadata"]["name"]
    check_restricted("ServingRuntime", runtime["spec"])


def test_another_release_is_another_runtime_so_that_what_is_served_keeps_its_own():
    images = [
        TRITON_IMAGE,
        TRITON_IMAGE + ".1",
        "ghcr.io/gridbox/nope:1",
        "ghcr.io/gridbox/triton:1",
        "localhost:5000/triton:1",
        "localhost:5000/triton",
        f"ghcr.io/gridbox/triton@sha256:{'a' * 64}",
        f"ghcr.io/gridbox/triton:25.09-0.1.0@sha256:{'a' * 64}",
        f"ghcr.io/gridbox/triton:{'long.' * 25}",
    ]
    names = [runtime_name(image) for image in images]
    assert len(set(names)) == len(images)
    assert all(re.fullmatch(r"gridbox-triton-[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) for name in names)
    assert max(map(len, names)) <= 63
    assert runtime_name("ghcr.io/gridbox/triton:25.09-0.1.0").startswith("gridbox-triton-25-09-0-1-0-")


def test_pods_are_found_by_the_labels_that_service_policies_and_monitoring_select():
    base = Path(__file__).parent.parent / "manifests/components/kserve/serving-runtime.yaml"
    (manifest,) = yaml.safe_load_all(base.read_text(encoding="utf-8"))
    assert serving_runtime(service())["spec"]["labels"] == manifest["spec"]["labels"]


def test_no_request_is_lost_while_a_pod_ends():
    predictor = inference_service(service())["spec"]["predictor"]
    assert predictor["model"]["lifecycle"] == {"preStop": {"sleep": {"seconds": 10}}}
    assert predictor["terminationGracePeriodSeconds"] == 60
    knative = inference_service(service(mode=Mode.knative))["spec"]["predictor"]  # drains pods itself
    assert not {"lifecycle"} & set(knative["model"])
    assert not {"terminationGracePeriodSeconds", "securityContext"} & set(knative)


def test_knative_waits_as_long_as_the_probe():
    knative = inference_service(service(mode=Mode.knative))["spec"]["predictor"]
    probe = knative["model"]["readinessProbe"]
    deadline = int(knative["annotations"]["serving.knative.dev/progress-deadline"].removesuffix("s"))
    assert deadline > probe["failureThreshold"] * probe["periodSeconds"]


def test_pod_that_kserve_will_make_is_restricted_but_for_what_kserve_adds():
    made = pod(service())
    check_restricted("Pod", made["spec"])
    assert made["spec"]["securityContext"]["fsGroup"] == 1000
    for release in ("1.33", "1.36"):
        assert kubernetes_schemas()(made, release, strict=True) == release


def test_revision_is_that_of_the_predictor_whatever_it_is_about():
    def revision(**changes):
        return inference_service(service(**changes))["spec"]["predictor"]["annotations"]["gridbox/revision"]

    assert revision() == revision()
    others = {revision(run_id="2"), revision(resources=Resources(cpu="2")), revision(image="other:1"), revision()}
    assert len(others) == 4


@pytest.mark.parametrize("uri", ["s3://models/a/repository", "s3://models/a/repository/", "s3://models/a/repository//"])
def test_storage_uri_ends_with_one_slash_so_that_no_sibling_matches(uri):
    assert inference_service(service(storage_uri=uri))["spec"]["predictor"]["model"]["storageUri"].endswith("y/")


def test_predictor_tells_run_digest_score_and_data():
    annotations = inference_service(service(repository_digest="f" * 64))["spec"]["predictor"]["annotations"]
    assert annotations.pop("gridbox/revision")
    assert annotations == {
        "gridbox/repository-digest": "f" * 64,
        "gridbox/run-id": "run-1",
        "gridbox/model-digest": "d" * 64,
        "gridbox/score": "0.8125",
        "gridbox/data-digest": "e" * 64,
    }
    assert "gridbox/score" not in inference_service(service(score=None))["spec"]["predictor"]["annotations"]


def test_gpu_stands_in_requests_and_limits_and_cpu_service_has_none():
    with_gpu = inference_service(service(**GPU_SERVICE))["spec"]["predictor"]
    assert with_gpu["model"]["resources"]["requests"][GPU] == with_gpu["model"]["resources"]["limits"][GPU] == "1"
    assert with_gpu["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-A10"}
    without = inference_service(service())["spec"]["predictor"]
    assert GPU not in without["model"]["resources"]["limits"]
    assert "tolerations" not in without


def test_shared_memory_is_mounted_at_the_asked_size():
    predictor = inference_service(service(resources=Resources(shared_memory="3Gi")))["spec"]["predictor"]
    assert predictor["volumes"] == [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "3Gi"}}]
    assert predictor["model"]["volumeMounts"] == [{"name": "shm", "mountPath": "/dev/shm"}]


@pytest.mark.parametrize(
    ("mode", "protocol", "ports"),
    [
        (Mode.knative, Protocol.http, [("http1", 8080)]),
        (Mode.knative, Protocol.grpc, [("h2c", 9000)]),
        (Mode.standard, Protocol.http, [("http1", 8080), ("grpc", 9000)]),
        (Mode.standard, Protocol.grpc, [("grpc", 9000), ("http1", 8080)]),
    ],
)
def test_first_port_speaks_the_protocol_and_knative_has_no_second(mode, protocol, ports):
    model = inference_service(service(mode=mode, protocol=protocol))["spec"]["predictor"]["model"]
    assert [(port["name"], port["containerPort"]) for port in model["ports"]] == ports
    probed = model["readinessProbe"].get("httpGet", model["readinessProbe"].get("tcpSocket"))["port"]
    assert probed in [port for _, port in ports]


def test_autoscaling_fits_the_mode():
    standard = inference_service(service(maximum_replicas=3))
    assert standard["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "hpa"
    assert inference_service(service())["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "none"
    knative = inference_service(service(mode=Mode.knative, minimum_replicas=0))
    assert knative["spec"]["predictor"]["scaleMetric"] == "concurrency"
    with pytest.raises(UserError, match="minReplicas 0 needs mode Knative"):
        inference_service(service(minimum_replicas=0))


def changed(path, value, mode=Mode.standard):
    document = copy.deepcopy(inference_service(service(mode=mode)))
    place = document
    for part in path[:-1]:
        place = place.setdefault(part, {})
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return document


PREDICTOR = ("spec", "predictor")
CANARY = {"model": {"modelFormat": {"name": "triton"}, "storageUri": "s3://m/2/"}}
REFUSED = [
    (("metadata", "name"), "1net", "from a letter on"),
    (("metadata", "name"), "face_net", "from a letter on"),
    (("metadata", "name"), "facenet-", "from a letter on"),
    (("metadata", "annotations", MODE), "Serverless", "must be Standard or Knative"),
    (("metadata", "annotations", MODE), None, "must be Standard or Knative"),
    (("metadata", "annotations", "serving.kserve.io/autoscalerClass"), "kpa", "hpa, keda, external, none"),
    ((*PREDICTOR, "triton"), {}, "exactly one implementation"),
    ((*PREDICTOR, "model"), None, "exactly one implementation, model, not none"),
    ((*PREDICTOR, "model", "modelFormat"), None, "modelFormat.name is missing"),
    ((*PREDICTOR, "model", "storageUri"), "s3://models/facenet", "must end with '/'"),
    ((*PREDICTOR, "storageUris"), [{"uri": "s3://m/"}], "storageUris excludes"),
    ((*PREDICTOR, "model", "env"), [{"name": "PYTHONPATH", "value": "/x"}], "must not set PYTHONPATH"),
    ((*PREDICTOR, "initContainers"), [{"name": "i", "env": [{"name": "PYTHONPATH"}]}], "must not set PYTHONPATH"),
    ((*PREDICTOR, "model", "name"), "kserve-container", "model.name must not be set"),
    ((*PREDICTOR, "minReplicas"), 5, "minReplicas 5 is more than maxReplicas 1"),
    ((*PREDICTOR, "maxReplicas"), -1, "must not be negative"),
    ((*PREDICTOR, "scaleMetric"), "rps", "must be cpu or memory in mode Standard"),
    ((*PREDICTOR, "scaleTarget"), 0, "out of range"),
    ((*PREDICTOR, "logger"), {"mode": "some"}, "logger.mode"),
    ((*PREDICTOR, "canaryTrafficPercent"), 10, "for mode Knative only"),
    (("spec", "canary"), [{"trafficPercent": 10, "predictor": CANARY}], "a name of its own"),
    (
        ("spec", "canary"),
        [{"trafficPercent": 60, "predictor": {**CANARY, "name": each}} for each in ("a", "b")],
        "adds up to more than 100",
    ),
    (
        ("spec", "canary"),
        [{"trafficPercent": 9, "predictor": {**CANARY, "name": "a", "maxReplicas": 3}}],
        "no scaling of its own",
    ),
    (
        ("spec", "canary"),
        [{"trafficPercent": 9, "predictor": {**CANARY, "name": "a", "minReplicas": 3}}],
        "more than that of spec.predictor",
    ),
]
REFUSED_BY_KNATIVE = [
    ((*PREDICTOR, "model", "ports"), [{"containerPort": 8080}, {"containerPort": 9000}], "takes exactly one"),
    ((*PREDICTOR, "deploymentStrategy"), {"type": "Recreate"}, "for mode Standard only"),
    ((*PREDICTOR, "canaryTrafficPercent"), 101, "from 0 to 100"),
    ((*PREDICTOR, "scaleMetric"), "cpu", "must be concurrency or rps"),
    (("spec", "canary"), [{"trafficPercent": 9, "predictor": {**CANARY, "name": "a"}}], "for mode Standard only"),
]


@pytest.mark.parametrize(
    ("mode", "path", "value", "said"),
    [(Mode.standard, *case) for case in REFUSED] + [(Mode.knative, *case) for case in REFUSED_BY_KNATIVE],
)
def test_what_a_webhook_refuses_is_one_line_before_anything_is_sent(mode, path, value, said):
    with pytest.raises(UserError, match=said) as refusal:
        refuse(changed(path, value, mode))
    assert "\n" not in str(refusal.value)
    assert "InferenceService" in str(refusal.value)


def test_mode_cannot_be_changed():
    live = inference_service(service(mode=Mode.knative))
    with pytest.raises(UserError, match="runs in mode Knative, which cannot become Standard"):
        check(inference_service(service()), live)
    legacy = {**live, "metadata": {"name": "facenet", "namespace": "face"}, "status": {"deploymentMode": "Serverless"}}
    with pytest.raises(UserError, match="mode Serverless"):
        check(inference_service(service()), legacy)


def test_predictor_is_renamed_only_with_its_model():
    live = inference_service(service())
    renamed = copy.deepcopy(live)
    renamed["spec"]["predictor"]["name"] = "v2"
    with pytest.raises(UserError, match="only together with the model"):
        check(renamed, live)
    renamed["spec"]["predictor"]["model"]["storageUri"] = "s3://models/other/"
    check(renamed, live)


@given(name=st.text("abz019-_.A", min_size=0, max_size=6))
def test_names_are_those_of_the_webhooks_expression(name):
    letters, inner = "abz", "abz019-"
    allowed = bool(name) and name[0] in letters and all(each in inner for each in name) and name[-1] != "-"
    broken = list(violations(changed(("metadata", "name"), name)))
    assert (not broken) == allowed
