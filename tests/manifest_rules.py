"""What manifests and charts are held against: Kubernetes' schemas, KServe's, and the rules of a restricted pod."""

import copy
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
RELEASES = ("1.33", "1.34", "1.35", "1.36")
CUSTOM_GROUPS = ("serving.kserve.io", "monitoring.coreos.com")
Document = dict[str, Any]


def kustomize(folder: Path) -> list[Document]:
    """Renders a kustomization as `kubectl apply -k` does."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed (its `kustomize` renders offline)")
    command = ["kubectl", "kustomize", str(folder)]
    rendered = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert rendered.returncode == 0, rendered.stderr
    return documents(rendered.stdout)


def documents(text: str) -> list[Document]:
    """Returns the YAML documents of a text, without empty ones."""
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def group(document: Mapping[str, Any]) -> str:
    """Returns the API group, empty for the core."""
    return str(document["apiVersion"]).rpartition("/")[0]


def only(found: list[Document], kind: str, name: str = "") -> Document:
    """Returns the one document of a kind (and name)."""
    matching = [d for d in found if d["kind"] == kind and (not name or d["metadata"]["name"] == name)]
    assert len(matching) == 1, f"{len(matching)} {kind} {name}"
    return matching[0]


def check_schema(document: Document) -> None:
    """Holds a document against the strict schema of every Kubernetes release, or that of its CRD."""
    if group(document) == "serving.kserve.io":
        errors = list(crd_validator(document["kind"].lower() + "s").iter_errors(document))
        assert not errors, f"{document['kind']}: {errors[0].json_path}: {errors[0].message}"
    elif group(document) not in CUSTOM_GROUPS:
        validate = kubernetes_schemas()
        for release in RELEASES:
            assert validate(document, release, strict=True) == release


@functools.cache
def kubernetes_schemas() -> Any:
    """Returns `kubernetes_validate.validate`, which reads 2 MB of JSON anew for every document unless it is cached."""
    package = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    package.utils.schema_contents = functools.cache(package.utils.schema_contents)
    return package.utils.validate


@functools.cache
def crd_validator(plural: str) -> Any:
    """Returns a validator of KServe's CRD that also finds the typos which an API server would silently drop."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    folder = Path(os.environ.get("GRIDBOX_SCHEMAS", ROOT.parent / "shared" / "schemas"))
    file = folder / f"serving.kserve.io_{plural}.yaml"
    if not file.is_file():
        pytest.skip(f"no CRD at {file} (set GRIDBOX_SCHEMAS to a folder with KServe's config/crd/full)")
    definition = yaml.load(file.read_text(encoding="utf-8"), yaml.CSafeLoader)
    schema = definition["spec"]["versions"][-1]["schema"]["openAPIV3Schema"]
    return jsonschema.Draft7Validator(_strict(schema))


def _strict(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    strict = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if "properties" in strict:
        strict["properties"] = {name: _strict(value) for name, value in strict["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in strict:
            strict[key] = _strict(strict[key])
    if "metadata" in strict.get("properties", {}):
        strict["properties"]["metadata"] = {"type": "object"}
    open_ended = "additionalProperties" in strict or schema.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in strict and not open_ended:
        strict["additionalProperties"] = False
    if strict.pop("nullable", False) and "type" in strict:
        strict["type"] = [strict["type"], "null"]
    return strict


def pods(found: list[Document]) -> Iterator[tuple[str, Document]]:
    """Yields every pod specification of a rendering and what it is in."""
    for document in found:
        where = f"{document['kind']} {document['metadata']['name']}"
        if document["kind"] in ("Deployment", "StatefulSet"):
            yield where, document["spec"]["template"]["spec"]
        elif document["kind"] in ("Pod", "ServingRuntime"):
            yield where, document["spec"]


def check_restricted(where: str, pod: Document) -> None:
    """Kubernetes' Pod Security Standard "restricted", a read-only root and bounds on everything."""
    above = pod.get("securityContext", {})
    for container in pod["containers"]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, where
        assert security["readOnlyRootFilesystem"] is True, where
        assert security["capabilities"] == {"drop": ["ALL"]}, where
        assert {**above, **security}["runAsNonRoot"] is True, where
        assert {**above, **security}["runAsUser"] > 0, where
        assert {**above, **security}["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert {"cpu", "memory"} <= set(container["resources"]["requests"]), where
        assert {"cpu", "memory"} <= set(container["resources"]["limits"]), where
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        bounded = {volume["name"] for volume in pod.get("volumes", []) if "sizeLimit" in volume.get("emptyDir", {})}
        assert mounted <= bounded | {"data"}, where
    assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), where
    assert not any("hostPath" in volume for volume in pod.get("volumes", [])), where


def without_helm(document: Document) -> Document:
    """Returns a copy without the labels that are Helm's own."""
    bare = copy.deepcopy(document)
    labels = bare["metadata"]["labels"]
    for name in ("app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart"):
        labels.pop(name, None)
    return bare
