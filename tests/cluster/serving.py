"""The namespace in which models are served: made as the documents say, out of a copy of the manifests."""

import base64
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
# What docs/kubeflow.md has a user apply before the pipeline deploys.
OVERLAY = "pipeline-kserve"
DEPLOY_ROLE = "gridbox-deploy"
MARK = {"gridbox-test": "true"}


@dataclass(frozen=True)
class Service:
    """The served model as the cluster tells it: an InferenceService."""

    document: dict

    @property
    def storage_uri(self):
        """The version that serves."""
        return self.document["spec"]["predictor"]["model"]["storageUri"]

    @property
    def canaries(self):
        """Whatever is on trial beside it."""
        return self.document["spec"].get("canary") or []

    @property
    def url(self):
        """Where it answers inside the cluster."""
        return self.document["status"]["address"]["url"]


def service(kubectl, namespace, name):
    """Returns the InferenceService, or None."""
    path = f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices/{name}"
    found = kubectl.get(path)
    return Service(found) if found else None


def keys(kubectl, namespace, secret):
    """Returns the store's keys as lines for s3.env, out of the secret of the runs."""
    found = kubectl.get(f"/api/v1/namespaces/{namespace}/secrets/{secret}")
    assert found, f"secret {secret} is not in {namespace}; make it: docs/kubeflow.md, 4"
    values = {name: base64.b64decode(value).decode() for name, value in found["data"].items()}
    return "".join(f"{name}={values[name]}\n" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))


def copy_manifests(folder, env, settings):
    """Copies the manifests beside the overlays to come, with the store's keys and this cluster's settings in them."""
    folder.chmod(0o700)
    shutil.copytree(ROOT / "manifests", folder / "manifests")
    (folder / "manifests/base/s3.env").write_text(env, encoding="utf-8")
    file = folder / "manifests/settings/settings.yaml"
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert settings.keys() <= document["data"].keys(), f"{file} has no {settings.keys() - document['data'].keys()}"
    document["data"] |= settings
    file.write_text(yaml.safe_dump(document), encoding="utf-8")


def overlay(folder, name, namespace):
    """Writes an overlay of a user's own over one of ours, in another namespace; returns its folder.

    Roles of the whole cluster get names of their own: those of an installation that is there must stay as they are.
    """
    own = folder / name.replace("/", "-")
    own.mkdir(exist_ok=True)
    role = [{"op": "replace", "path": "/metadata/name", "value": f"{DEPLOY_ROLE}-{namespace}"}]
    bound = [*role, {"op": "replace", "path": "/roleRef/name", "value": f"{DEPLOY_ROLE}-{namespace}"}]
    patches = {"ClusterRole": role, "ClusterRoleBinding": bound}
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": namespace,
        "resources": [f"../manifests/overlays/{name}"],
        "patches": [
            {
                "target": {"kind": kind, "name": DEPLOY_ROLE},
                "patch": json.dumps(patch),
                "options": {"allowNameChange": True},
            }
            for kind, patch in patches.items()
        ],
    }
    (own / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    return own


def pod_security(kubectl):
    """Returns the strictest level under which this KServe's own container may start (manifests/README.md)."""
    found = kubectl.get("/apis/serving.kserve.io/v1alpha1/clusterstoragecontainers/default")
    container = ((found or {}).get("spec") or {}).get("container") or {}
    return "restricted" if container.get("securityContext") else "baseline"
