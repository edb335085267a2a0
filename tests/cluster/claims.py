"""A claim for checkpoints, and pods that change whose its volume is, as an administrator does."""

import contextlib

import pytest

from cluster.bench import LABELS


def _is_default(storage_class):
    annotations = storage_class["metadata"].get("annotations") or {}
    return annotations.get("storageclass.kubernetes.io/is-default-class") == "true"


@contextlib.contextmanager
def claim(place, name):
    """Makes a claim for a while; yields a function that gives its volume an owner and a mode."""
    kubectl, namespace, wanted = place.kubectl, place.runs, place.settings.storage_class
    classes = kubectl.get("/apis/storage.k8s.io/v1/storageclasses")["items"]
    if not wanted and not any(map(_is_default, classes)):
        pytest.skip("no default storage class; name one: TEST_CLUSTER_STORAGE_CLASS")
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    metadata = {"name": name, "namespace": namespace, "labels": LABELS}
    kubectl.apply({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata,
        "spec": spec | ({"storageClassName": wanted} if wanted else {}),
    })  # fmt: skip

    def owned_by(owner, mode):
        command = f"chown {owner} /claim && chmod {mode} /claim"
        container = {
            "name": "owner", "image": place.configuration.images.open, "command": ["sh", "-ec", command],
            "securityContext": {"runAsUser": 0}, "volumeMounts": [{"name": "claim", "mountPath": "/claim"}],
        }  # fmt: skip
        volumes = [{"name": "claim", "persistentVolumeClaim": {"claimName": name}}]
        kubectl.apply({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {"restartPolicy": "Never", "containers": [container], "volumes": volumes},
        })  # fmt: skip
        done = ("pod/" + name, "--for=jsonpath={.status.phase}=Succeeded", f"--timeout={place.seconds(120):g}s")
        try:
            kubectl("-n", namespace, "wait", *done, timeout=place.seconds(150)).ok()
        finally:
            kubectl("-n", namespace, "delete", f"pod/{name}", "--ignore-not-found")

    try:
        yield owned_by
    finally:
        # A claim stays as long as a pod names it, even one that has ended.
        users = [f"pod/{pod['metadata']['name']}" for pod in _pods(kubectl, namespace, name)]
        kubectl("-n", namespace, "delete", f"persistentvolumeclaim/{name}", *users, "--ignore-not-found", timeout=180)


def _pods(kubectl, namespace, name):
    """Yields the pods that mount a claim."""
    for pod in kubectl.get(f"/api/v1/namespaces/{namespace}/pods")["items"]:
        claims = (volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["spec"].get("volumes", []))
        if name in claims:
            yield pod
