"""The namespace in which models are served: made as the documents say, out of a copy of the manifests."""

import base64
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
# What docs/kubeflow.md has a user apply before the pipeline deploys.
OVERLAY = "pipeline-target"
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


def copy_manifests(folder, env):
    """Copies the manifests beside the overlays to come, with the keys in them; the folder is readable by us alone."""
    folder.chmod(0o700)
    shutil.copytree(ROOT / "manifests", folder / "manifests")
    (folder / "manifests/base/s3.env").write_text(env, encoding="utf-8")


def overlay(folder, name, namespace, runs_namespace="", account="", endpoint=""):
    """Writes an overlay of a user's own over one of ours, with the namespace changed; returns its folder.

    Roles of the whole cluster get names of their own: those of an installation that is there must stay as they are.
    """
    own = folder / name.replace("/", "-")
    own.mkdir()
    subject = {"kind": "ServiceAccount", "name": account, "namespace": runs_namespace}
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": namespace,
        "resources": [f"../manifests/overlays/{name}"],
    }
    patches = []
    if account:
        role = f"{DEPLOY_ROLE}-{namespace}"
        patches += [
            _patch("ClusterRole", DEPLOY_ROLE, [_replace("/metadata/name", role)], rename=True),
            _patch(
                "ClusterRoleBinding", DEPLOY_ROLE,
                [_replace("/metadata/name", role), _replace("/roleRef/name", role), _replace("/subjects", [subject])],
                rename=True,
            ),
            _patch("RoleBinding", DEPLOY_ROLE, [_replace("/subjects", [subject])]),
        ]  # fmt: skip
    if endpoint:
        scheme, _, host = endpoint.partition("://")
        told = {"s3-endpoint": host, "s3-usehttps": str(int(scheme == "https"))}
        annotations = [(f"/metadata/annotations/serving.kserve.io~1{name}", value) for name, value in told.items()]
        patches.append(_patch("Secret", "", [_replace(path, value) for path, value in annotations]))
    (own / "kustomization.yaml").write_text(yaml.safe_dump(kustomization | {"patches": patches}), encoding="utf-8")
    return own


def _replace(path, value):
    return {"op": "replace", "path": path, "value": value}


def _patch(kind, name, operations, rename=False):
    target = {"kind": kind, **({"name": name} if name else {})}
    return {"target": target, "patch": json.dumps(operations), "options": {"allowNameChange": rename}}
