"""The Helm chart renders what the kustomization of the same stack does, and refuses values that mean nothing."""

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from manifest_rules import ROOT, Document, check_restricted, check_schema, documents, kustomize, pods, without_helm

from components.serve.release import SERVER_ARGUMENTS

CHART = ROOT / "charts/gridbox-serving"
helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed")
GPU = yaml.safe_load((CHART / "values-gpu.yaml").read_text(encoding="utf-8"))
EVERYTHING = {
    "store": {"enabled": True, "storageClassName": "fast"},
    "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
    "ingress": {"enabled": True, "className": "nginx", "tlsSecretName": "tls", "annotations": {"a": "b"}},
    "image": {"pullSecrets": ["registry"], "pullPolicy": "Always"},
    "extraArgs": ["--log-verbose=1"],
}


# As the manifests' settings have it; the chart refuses the placeholder.
MODEL = "faces/detector/versions/v/repository"


def given(values: Document | None = None) -> Document:
    """Returns values with the one that has no default."""
    return {**(values or {}), "model": {"prefix": MODEL, **(values or {}).get("model", {})}}


def render(values: Document | None = None, name: str = "gridbox") -> list[Document]:
    """Renders the chart's manifests, without its notes and tests."""
    with helm.Chart.load(CHART) as chart:
        files = chart.render(given(values), name=name, namespace="gridbox")
    wanted = [text for file, text in sorted(files.items()) if not file.endswith("NOTES.txt") and "/tests/" not in file]
    return [document for text in wanted for document in documents(text)]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout") / "manifests"
    shutil.copytree(ROOT / "manifests", folder)
    shutil.copy(folder / "base/s3.env.example", folder / "base/s3.env")
    settings = folder / "settings/settings.yaml"
    document = yaml.safe_load(settings.read_text())
    document["data"]["model"] = MODEL
    settings.write_text(yaml.safe_dump(document))
    return folder


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("extras", [(), ("store",), ("monitoring",), ("store", "monitoring")])
def test_chart_equals_the_kustomization(device: str, extras: tuple[str, ...], checkout: Path) -> None:
    own = checkout.parent / "-".join((device, *extras))
    shutil.copytree(checkout, own / "manifests")
    if "store" in extras:
        settings = own / "manifests/settings/settings.yaml"
        document = yaml.safe_load(settings.read_text())
        document["data"]["store"] = "http://gridbox-store:8333"
        settings.write_text(yaml.safe_dump(document))
    kustomization = {
        "resources": [f"manifests/overlays/triton-standalone/{device}"],
        "components": [f"manifests/components/{extra}" for extra in extras],
    }
    (own / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    # A release does not own its namespace and the keys in it, and nobody deploys to KServe from here.
    beside = {"Namespace", "Secret", "Role", "RoleBinding"}
    beside_names = {"default-deny", "gridbox-deploy"}
    expected = {
        (d["kind"], d["metadata"]["name"]): d
        for d in kustomize(own)
        if d["kind"] not in beside and d["metadata"]["name"] not in beside_names
    }
    values: dict[str, Any] = copy.deepcopy(GPU) if device == "gpu" else {}
    values |= {extra: {"enabled": True} for extra in extras}
    if "monitoring" in extras:
        values["monitoring"]["labels"] = {"release": "prometheus"}
    found = {(d["kind"], d["metadata"]["name"]): without_helm(d) for d in render(values)}
    assert found.keys() == expected.keys()
    for key, document in expected.items():
        assert _ordered(found[key]) == _ordered(document), key


def _ordered(document: Document) -> Document:
    """kustomize puts a variable that was patched before the others."""
    for _, pod in pods([document]):
        for container in pod["containers"]:
            container.get("env", []).sort(key=lambda variable: variable["name"])
    return document


def test_names_and_selectors_follow_the_release() -> None:
    for document in render(EVERYTHING, name="other"):
        assert document["metadata"]["name"].startswith("other-")
        assert document["metadata"]["labels"]["app.kubernetes.io/instance"] == "other"
        assert "gridbox-triton" not in json.dumps(document)
        assert "gridbox-store" not in json.dumps(document)


@pytest.mark.parametrize("values", [{}, GPU, EVERYTHING, {"autoscaling": {"enabled": False}}])
def test_whatever_is_switched_on_passes_every_kubernetes_release(values: Document) -> None:
    with helm.Chart.load(CHART) as chart:
        test_pod = chart.render(given(values), name="gridbox", namespace="gridbox")[
            "gridbox-serving/templates/tests/ready.yaml"
        ]
    rendered = [*render(values), *documents(test_pod)]
    for document in rendered:
        check_schema(document)
    for where, pod in pods(rendered):
        check_restricted(where, pod)


def test_without_autoscaling_the_deployment_says_how_many() -> None:
    rendered = render({"autoscaling": {"enabled": False}, "replicas": 3})
    assert [d["spec"]["replicas"] for d in rendered if d["kind"] == "Deployment"] == [3]
    assert not [d for d in rendered if d["kind"] == "HorizontalPodAutoscaler"]


def test_with_a_single_gpu_a_pod_makes_way_for_the_next() -> None:
    rendered = render({**GPU, "strategy": "Recreate", "autoscaling": {"enabled": False}, "replicas": 1})
    assert [d["spec"]["strategy"] for d in rendered if d["kind"] == "Deployment"] == [{"type": "Recreate"}]


def test_options_reach_the_pod() -> None:
    (pod,) = [
        pod for where, pod in pods(render({**EVERYTHING, "exitTimeoutSeconds": 90})) if where.startswith("Deploy")
    ]
    (container,) = pod["containers"]
    assert tuple(container["args"][: len(SERVER_ARGUMENTS) - 1]) == SERVER_ARGUMENTS[:-1]
    assert "--exit-timeout-secs=90" in container["args"]
    assert container["args"][-1] == "--log-verbose=1"
    assert pod["terminationGracePeriodSeconds"] == 120
    assert container["imagePullPolicy"] == "Always"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]


@pytest.mark.parametrize("values", [{}, GPU, EVERYTHING])
def test_chart_lints(values: Document) -> None:
    report = helm.lint(CHART, given(values), strict=True)
    assert report["errors"] == []
    assert [m["error"] for m in report["messages"] if m["severity"] > 1] == []


@pytest.mark.parametrize(
    "values",
    [
        {"modle": {}},
        {"model": {"prefix": "BUCKET/PREFIX/versions/VERSION/repository"}},
        {"model": {"prefix": "gridbox/facenet/"}},
        {"strategy": "recreate"},
        {"model": {"endpoint": "seaweedfs:9000"}},
        {"model": {"accessKey": "AKIA"}},
        {"autoscaling": {"minReplicas": 0}},
        {"autoscaling": {"targetCPUUtilization": "70"}},
        {"resources": {"limits": {"memory": "4 GB"}}},
        {"service": {"type": "clusterip"}},
        {"gpu": {"count": 0}},
        {"extraArgs": ["log-verbose=1"]},
    ],
)
def test_values_that_mean_nothing_are_refused(values: Document) -> None:
    with helm.Chart.load(CHART) as chart, pytest.raises(helm.HelmError):
        chart.validate_schema(given(values))


def test_notes_tell_what_to_do_next() -> None:
    with helm.Chart.load(CHART) as chart:
        notes = chart.render(given(EVERYTHING), name="other", namespace="faces")["gridbox-serving/templates/NOTES.txt"]
    assert "kubectl -n faces create secret generic gridbox-s3 --from-env-file" in notes
    assert "helm -n faces test other" in notes
    assert "https://facenet.example.com/v2" in notes
    assert "trials" in notes


def documented() -> list[tuple[str, str, str]]:
    """Returns key, default and meaning of every value, read from `values.yaml` and the comments above each."""
    found, path, comment = [], [], []  # type: ignore[var-annotated]
    lines = (CHART / "values.yaml").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        text = line.strip()
        if text.startswith("#"):
            comment.append(text[1:].strip())
            continue
        match = re.fullmatch(r"( *)([A-Za-z]+):(?: (.*))?", line)
        if match is None:
            continue  # a blank line, or the inside of a mapping that is one value
        indent, key, value = len(match[1]) // 2, match[2], match[3]
        path[indent:] = [key]
        if value is None and comment:  # documented as a whole: its default is the mapping below
            below = lines[number + 1].strip()
            value = "{" + below.replace('"', "") + "}"
        if value is not None:
            found.append((".".join(path), value, " ".join(comment)))
        comment = []
    return found


def test_every_value_is_documented_and_in_the_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    keys = {key for key, _, _ in documented()}
    for key, _, meaning in documented():
        assert meaning.endswith("."), key
    assert keys == set(_leaves(yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))))
    for key in keys:
        place = schema
        for part in key.split("."):
            place = place["properties"][part]


def _leaves(values: Document, prefix: str = "") -> list[str]:
    free = ("clientNamespaceLabels",)  # a mapping whose keys are the user's
    found = []
    for key, value in values.items():
        nested = isinstance(value, dict) and value and key not in free
        found += _leaves(value, f"{prefix}{key}.") if nested else [prefix + key]
    return found


def test_readme_lists_every_value() -> None:
    rows = [f"| `{key}` | `{default}` | {meaning} |" for key, default, meaning in documented()]
    table = "\n".join(["| value | default | meaning |", "|---|---|---|", *rows])
    assert table in (CHART / "README.md").read_text(encoding="utf-8"), f"the table in README.md should be:\n{table}"
