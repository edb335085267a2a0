"""Tries a deployment without doing it: what the cluster would refuse after training is known before."""

from components.serve.cluster import INFERENCE_SERVICE, POD, SERVING_RUNTIME, Cluster, Kind
from components.serve.kserve import (
    POD_LABELS,
    SERVICE_LABEL,
    SOURCE,
    Document,
    Mode,
    Service,
    inference_service,
    serving_runtime,
)
from components.step import UserError

NAME = "gridbox-rehearsal"
# What a model of an InferenceService shares with a container.
_CONTAINER_FIELDS = ("resources", "ports", "readinessProbe", "lifecycle")
_POD_FIELDS = ("serviceAccountName", "securityContext", "nodeSelector", "tolerations", "terminationGracePeriodSeconds")


def rehearse(cluster: Cluster, service: Service) -> None:
    """Has the cluster check runtime, InferenceService and the pod that KServe would make of them; nothing is kept.

    Args:
        cluster: Where it shall be deployed.
        service: What shall be deployed; its model need not exist.

    Raises:
        UserError: The cluster would refuse one of them: Pod Security, a quota, a missing service account or definition,
            a missing right.
        StageError: The API server fails.
    """
    runtime, document = serving_runtime(service), inference_service(service)
    tried: list[tuple[Kind, Document]] = [(SERVING_RUNTIME, runtime), (INFERENCE_SERVICE, document)]
    if service.mode is Mode.standard:  # Knative's pods are Knative's own
        tried.append((POD, pod(service)))
    for kind, each in tried:
        try:
            cluster.rehearse(kind, {**each, "metadata": {**each["metadata"], "name": NAME}})
        except UserError as error:
            raise UserError(f"{service.namespace}: {service.name} could not be deployed: {error}") from error


def pod(service: Service) -> Document:
    """Returns the pod that KServe would make, but for the container that fetches the model.

    By its label and annotation KServe's webhook puts that container in, by dry run, too (v0.20, `pod-mutator`).
    """
    runtime, document = serving_runtime(service)["spec"], inference_service(service)
    predictor, container = document["spec"]["predictor"], dict(runtime["containers"][0])
    model = predictor["model"]
    container |= {name: model[name] for name in _CONTAINER_FIELDS if name in model}
    container["volumeMounts"] = [*container["volumeMounts"], *model["volumeMounts"]]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": NAME,
            "namespace": service.namespace,
            "labels": {**POD_LABELS, SERVICE_LABEL: service.name},
            "annotations": {**predictor["annotations"], SOURCE: model["storageUri"]},
        },
        "spec": {
            **{name: predictor[name] for name in _POD_FIELDS if name in predictor},
            "containers": [container],
            "volumes": [*runtime["volumes"], *predictor["volumes"]],
        },
    }
