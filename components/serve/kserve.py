"""What is handed to KServe, as plain documents, and the rules of its webhooks, checked before anything is sent.

KServe's typed models accept wrong types and its custom resource definition drops unknown fields without a word, so
documents are plain dictionaries here; tests hold them against the definition, closed to unknown fields.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from components.measure.metric import AVERAGE_PRECISION, Score
from components.serve import kubernetes
from components.serve.release import LIVENESS_COMMAND, SERVER_ARGUMENTS, TRITON_IMAGE
from components.step import UserError

Document = dict[str, Any]

GROUP = "serving.kserve.io"
SERVICE_VERSION, RUNTIME_VERSION = f"{GROUP}/v1beta1", f"{GROUP}/v1alpha1"
MODE, AUTOSCALER = f"{GROUP}/deploymentMode", f"{GROUP}/autoscalerClass"
# Gives the newest revision an address of its own in Knative, so that a canary can be scored.
TAG_ROUTING = f"{GROUP}/enable-tag-routing"
# Our annotations stand at the predictor, since a canary and what it competes with are two predictors of one service.
# KServe copies annotations, wherever they stand, to the pods (v0.20: `buildPredictorResources`): they may only say what
# never changes for this predictor. What changes with time is in the ledger.
RUN, DIGEST, SCORE, DATA = "gridbox/run-id", "gridbox/model-digest", "gridbox/score", "gridbox/data-digest"
# Of what metric the score is; without it, of mean average precision.
METRIC = "gridbox/metric"
REPOSITORY = "gridbox/repository-digest"
# A digest of the predictor itself: pods that have it were made of exactly this predictor.
REVISION = "gridbox/revision"
# What KServe writes to the pods of a predictor: where its model lies, and whose they are.
SOURCE = "internal.serving.kserve.io/storage-initializer-sourceuri"
SERVICE_LABEL = f"{GROUP}/inferenceservice"
# By these, Service, network policies and monitoring in `manifests/` find the pods.
POD_LABELS = {
    "app.kubernetes.io/name": "gridbox-serving",
    "app.kubernetes.io/instance": "gridbox",
    "app.kubernetes.io/component": "triton",
    "app.kubernetes.io/part-of": "gridbox",
}
LABELS = {"app.kubernetes.io/part-of": "gridbox"}
# For the container that fetches the model, too: Pod Security `restricted` asks for it.
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "fsGroup": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}
GPU, GPU_PRODUCT = "nvidia.com/gpu", "nvidia.com/gpu.product"
SCALING = ("minReplicas", "maxReplicas", "scaleMetric", "scaleMetricType", "scaleTarget", "autoScaling")
# What KServe calls the container of a runtime that serves the model.
CONTAINER = "kserve-container"
HTTP_PORT, GRPC_PORT, METRICS_PORT = 8080, 9000, 8002


class Mode(StrEnum):
    """How KServe runs a service: as a plain Deployment, or through Knative. It cannot be changed later."""

    standard = "Standard"
    knative = "Knative"


class Protocol(StrEnum):
    """What the service's port speaks: the open inference protocol over HTTP or over gRPC."""

    http = "v2"
    grpc = "grpc-v2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a pod gets, in Kubernetes' quantities.

    Attributes:
        gpus: NVIDIA GPUs; 0 serves on the CPU.
        cpu: Requested cores.
        cpu_limit: Cores at most.
        memory: Requested memory.
        memory_limit: Memory at most.
        shared_memory: Size of /dev/shm, where Python models and Triton exchange tensors; counts as memory.
    """

    gpus: int = 0
    cpu: str = "1"
    cpu_limit: str = "4"
    memory: str = "2Gi"
    memory_limit: str = "4Gi"
    shared_memory: str = "1Gi"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A model to serve, and where and how.

    Attributes:
        name: Of the InferenceService.
        namespace: Where it lives.
        storage_uri: The folder of the model folders, new for every run: KServe rolls nothing out for a URI it serves.
        run_id: The run that made the model.
        model_digest: Of the published model repository.
        repository_digest: What the served ensemble says of itself, or empty for a repository of an older release.
        model_name: The model that clients ask for: the ensemble.
        score: Its score, or None where it was not measured.
        data_digest: Of the images and the rules of that measurement, or empty.
        mode: See `Mode`.
        protocol: See `Protocol`.
        resources: See `Resources`.
        minimum_replicas: Pods at least; 0 (Knative only) stops the last one when there are no requests.
        maximum_replicas: Pods at most.
        node_selector: Labels of the nodes to run on.
        tolerations: Taints of nodes that its pods tolerate.
        service_account: Whose secrets fetch the model.
        image: The Triton image.
    """

    name: str
    namespace: str
    storage_uri: str
    run_id: str
    model_digest: str
    repository_digest: str = ""
    model_name: str = ""
    score: Score | None = None
    data_digest: str = ""
    mode: Mode = Mode.standard
    protocol: Protocol = Protocol.http
    resources: Resources = field(default_factory=Resources)
    minimum_replicas: int = 1
    maximum_replicas: int = 1
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    service_account: str = "gridbox-serving"
    image: str = TRITON_IMAGE


def runtime_name(image: str) -> str:
    """Returns the name of the runtime of an image: another image is another runtime and leaves what is served alone.

    It shows the tag, and tells repositories and digests apart by a hash; at most 63 characters.
    """
    tag = image.partition("@")[0].rpartition("/")[2].partition(":")[2]
    shown = re.sub(r"[^a-z0-9]+", "-", tag.lower()).strip("-")[:38].strip("-")
    return "-".join(part for part in ("gridbox-triton", shown, hashlib.sha256(image.encode()).hexdigest()[:8]) if part)


def serving_runtime(service: Service) -> Document:
    """Returns the ServingRuntime: Triton of our release, in place of the one of 2023 that KServe brings."""
    container = {
        "name": CONTAINER,
        "image": service.image,
        "args": [
            *SERVER_ARGUMENTS,
            "--model-repository=/mnt/models",
            f"--http-port={HTTP_PORT}",
            f"--grpc-port={GRPC_PORT}",
            f"--metrics-port={METRICS_PORT}",
        ],
        "livenessProbe": {
            "exec": {"command": list(LIVENESS_COMMAND)},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
        "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"cpu": "4", "memory": "4Gi"}},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        # Why it ended is then told by the pod's status, without the right to read logs.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    return {
        "apiVersion": RUNTIME_VERSION,
        "kind": "ServingRuntime",
        "metadata": {"name": runtime_name(service.image), "namespace": service.namespace, "labels": dict(LABELS)},
        "spec": {
            "supportedModelFormats": [{"name": "triton", "version": "2", "autoSelect": False}],
            "protocolVersions": [protocol.value for protocol in Protocol],
            "multiModel": False,
            "labels": dict(POD_LABELS),
            "annotations": {"prometheus.kserve.io/port": str(METRICS_PORT), "prometheus.kserve.io/path": "/metrics"},
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}],
        },
    }


def inference_service(service: Service) -> Document:
    """Returns the InferenceService.

    Raises:
        UserError: A webhook of KServe would refuse it.
    """
    annotations: dict[str, str] = {MODE: service.mode.value}
    if service.mode is Mode.knative:
        annotations[TAG_ROUTING] = "true"
    else:
        annotations[AUTOSCALER] = "hpa" if service.maximum_replicas > service.minimum_replicas else "none"
    document = {
        "apiVersion": SERVICE_VERSION,
        "kind": "InferenceService",
        "metadata": {
            "name": service.name,
            "namespace": service.namespace,
            "labels": dict(LABELS),
            "annotations": annotations,
        },
        "spec": {"predictor": _predictor(service)},
    }
    check(document)
    return document


def _predictor(service: Service) -> Document:
    provenance = {RUN: service.run_id, DIGEST: service.model_digest}
    if service.repository_digest:
        provenance[REPOSITORY] = service.repository_digest
    if service.score is not None:
        provenance |= {SCORE: repr(service.score.value), DATA: service.data_digest}
        if service.score.metric != AVERAGE_PRECISION:
            provenance[METRIC] = service.score.metric
    predictor: Document = {
        "annotations": provenance,
        "serviceAccountName": service.service_account,
        "minReplicas": service.minimum_replicas,
        "maxReplicas": service.maximum_replicas,
        **_scaling(service),
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": service.resources.shared_memory}}],
        "model": _model(service),
    }
    if service.mode is Mode.knative:
        # Its own 600 s would end a slow pull and load of a model that the readiness probe still waits for.
        provenance["serving.knative.dev/progress-deadline"] = "1200s"
    if service.mode is Mode.standard:  # Knative has its own way to drain pods, and refuses these fields
        predictor["terminationGracePeriodSeconds"] = 60
        predictor["securityContext"] = dict(POD_SECURITY)
        # For a moment after a pod is told to end, nodes still send requests to it.
        predictor["model"]["lifecycle"] = {"preStop": {"sleep": {"seconds": 10}}}
    if service.node_selector:
        predictor["nodeSelector"] = dict(service.node_selector)
    if service.tolerations:
        predictor["tolerations"] = [dict(toleration) for toleration in service.tolerations]
    text = json.dumps(predictor, sort_keys=True)
    predictor["annotations"][REVISION] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return predictor


def _scaling(service: Service) -> Document:
    if service.mode is Mode.knative:
        return {"scaleMetric": "concurrency", "scaleTarget": 8}
    if service.maximum_replicas > service.minimum_replicas:
        return {"scaleMetric": "cpu", "scaleTarget": 70}
    return {}


def _model(service: Service) -> Document:
    resources = service.resources
    requests = {"cpu": resources.cpu, "memory": resources.memory}
    limits = {"cpu": resources.cpu_limit, "memory": resources.memory_limit}
    if resources.gpus:
        requests[GPU] = limits[GPU] = str(resources.gpus)
    ports = _ports(service)
    return {
        "modelFormat": {"name": "triton", "version": "2"},
        "runtime": runtime_name(service.image),
        "protocolVersion": service.protocol.value,
        "storageUri": service.storage_uri.rstrip("/") + "/",
        "resources": {"requests": requests, "limits": limits},
        "ports": ports,
        # Loading a plan and warming up take minutes on a cold node.
        "readinessProbe": {**_probe(ports), "periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": 120},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }


def _ports(service: Service) -> list[Document]:
    """Returns the ports. Knative takes one; in Standard mode the first becomes port 80, the other keeps its number."""
    http = {"name": "http1", "containerPort": HTTP_PORT, "protocol": "TCP"}
    if service.mode is Mode.knative:
        grpc = {"name": "h2c", "containerPort": GRPC_PORT, "protocol": "TCP"}
        return [grpc if service.protocol is Protocol.grpc else http]
    grpc = {"name": "grpc", "containerPort": GRPC_PORT, "protocol": "TCP"}
    return [grpc, http] if service.protocol is Protocol.grpc else [http, grpc]


def _probe(ports: list[Document]) -> Document:
    if any(port["containerPort"] == HTTP_PORT for port in ports):
        return {"httpGet": {"path": "/v2/health/ready", "port": HTTP_PORT}}
    return {"tcpSocket": {"port": GRPC_PORT}}  # Triton opens its ports when all models are loaded


# --- What Kubernetes or KServe would refuse --------------------------------------------------------------------------


def check(document: Mapping[str, Any], live: Mapping[str, Any] | None = None) -> None:
    """Refuses what somebody asked for and the cluster would refuse.

    All else is as KServe's webhooks want it whatever is asked for; the tests hold the documents against their rules.

    Args:
        document: The InferenceService to be applied.
        live: The one in the cluster that it changes, if any.

    Raises:
        UserError: One line that names every rule that is broken.
    """
    broken = [*problems(document), *(forbidden_changes(document, live) if live else ())]
    if broken:
        name = document.get("metadata", {}).get("name", "?")
        raise UserError(f"InferenceService {name}: not deployable: {'; '.join(broken)}")


def problems(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is wrong with the names, the placing and the replicas of an InferenceService."""
    metadata, predictor = document.get("metadata", {}), document.get("spec", {}).get("predictor", {})
    yield from kubernetes.service_name_problems(metadata.get("name", ""))
    yield from kubernetes.namespace_problems(metadata.get("namespace", ""))
    yield from kubernetes.account_problems(predictor.get("serviceAccountName", "default"))
    yield from kubernetes.selector_problems(predictor.get("nodeSelector", {}))
    yield from kubernetes.toleration_problems(predictor.get("tolerations", ()))
    low, high = predictor.get("minReplicas", 1), predictor.get("maxReplicas", 0)
    if high and low > high:
        yield f"spec.predictor.minReplicas {low} is more than maxReplicas {high}"
    if low == 0 and metadata.get("annotations", {}).get(MODE) == Mode.standard:
        yield "spec.predictor.minReplicas 0 needs mode Knative"


def forbidden_changes(document: Mapping[str, Any], live: Mapping[str, Any]) -> Iterator[str]:
    """Yields what may not be changed from what is live."""
    annotations = live.get("metadata", {}).get("annotations", {})
    before = annotations.get(MODE) or live.get("status", {}).get("deploymentMode", "")
    after = document["metadata"]["annotations"][MODE]
    if before and before != after:
        yield f"it runs in mode {before}, which cannot become {after} (delete it first, or take another name)"
    old, new = live.get("spec", {}).get("predictor", {}), document["spec"]["predictor"]
    if old.get("name", "") != new.get("name", "") and old.get("model") == new.get("model"):
        yield "spec.predictor.name may change only together with the model"
