"""The kustomizations render to what Kubernetes and KServe take, and to pods that may do no more than they must."""

import base64
import copy
import itertools
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
import yaml
from kserve_webhook import violations
from manifest_rules import (
    ROOT,
    Document,
    check_restricted,
    check_schema,
    group,
    kustomize,
    only,
    pods,
)

from components.serve import access, config, kserve
from components.serve.release import LIVENESS_COMMAND, SERVER_ARGUMENTS, TRITON_IMAGE, TRITON_RELEASE

MANIFESTS = ROOT / "manifests"
STACKS = ("kserve-standard", "kserve-knative-canary", "triton-standalone")
OVERLAYS = [f"{stack}/{device}" for stack in STACKS for device in ("cpu", "gpu")]
KSERVE = [name for name in OVERLAYS if name.startswith("kserve")]
# For the pipeline's deployment: what its pods need, and no pod.
PIPELINE = "pipeline-kserve"
EVERY = [*OVERLAYS, PIPELINE]
EXTRAS = ("monitoring", "store")
# What an overlay is chosen for; everything else it shares with the others.
SERVED = ("InferenceService", "Deployment")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the manifests with the file that everybody makes for himself."""
    folder = tmp_path_factory.mktemp("checkout") / "manifests"
    shutil.copytree(MANIFESTS, folder, ignore=shutil.ignore_patterns("s3.env"))
    shutil.copy(folder / "base/s3.env.example", folder / "base/s3.env")
    return folder


@pytest.fixture(scope="module")
def rendered(checkout: Path) -> dict[str, list[Document]]:
    """Every overlay as it is, and, under "<name>+", with the components that no overlay includes."""
    found = {name: kustomize(checkout / "overlays" / name) for name in EVERY}
    return found | {name + "+": kustomize(own_overlay(checkout, name, *EXTRAS)) for name in EVERY}


def own_overlay(checkout: Path, name: str, *components: str) -> Path:
    """Writes what a user would, to add components to an overlay, and returns its folder."""
    own = checkout.parent / "own" / "-".join((name.replace("/", "-"), *components))
    own.mkdir(parents=True)
    added = [f"../../manifests/components/{component}" for component in components]
    kustomization = {"resources": [f"../../manifests/overlays/{name}"], "components": added}
    (own / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return own


def with_settings(checkout: Path, folder: Path, **changes: str) -> Path:
    """Copies the manifests with other settings."""
    shutil.copytree(checkout, folder)
    file = folder / "settings/settings.yaml"
    document = yaml.safe_load(file.read_text())
    document["data"] |= {name.replace("_", "-"): value for name, value in changes.items()}
    file.write_text(yaml.safe_dump(document))
    return folder


@pytest.mark.parametrize("name", [*EVERY, *(name + "+" for name in EVERY)])
def test_every_document_passes_kubernetes_and_kserve(name: str, rendered: dict[str, list[Document]]) -> None:
    for document in rendered[name]:
        check_schema(document)
        assert document["metadata"].get("namespace", "gridbox") == "gridbox"


@pytest.mark.parametrize("name", KSERVE)
def test_kserve_gets_what_the_deployment_step_would_send(name: str, rendered: dict[str, list[Document]]) -> None:
    """So that neither undoes what the other has applied; provenance and the percentage of a canary aside."""
    found = copy.deepcopy(rendered[name])
    gpu = kserve.Resources(gpus=1, memory="4Gi", memory_limit="8Gi")
    service = kserve.Service(
        name="facenet",
        namespace="gridbox",
        storage_uri=only(found, "InferenceService")["spec"]["predictor"]["model"]["storageUri"],
        run_id="",
        model_digest="",
        mode=kserve.Mode.knative if "knative" in name else kserve.Mode.standard,
        resources=gpu if name.endswith("gpu") else kserve.Resources(),
        maximum_replicas=4,
        node_selector={"nvidia.com/gpu.present": "true"} if name.endswith("gpu") else {},
        tolerations=({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},) * name.endswith("gpu"),
    )
    applied, sent = only(found, "InferenceService"), kserve.inference_service(service)
    assert list(violations(applied)) == []
    del sent["spec"]["predictor"]["annotations"]
    assert applied["spec"]["predictor"].pop("canaryTrafficPercent", 0) == (10 if "canary" in name else 0)
    assert applied == sent
    assert only(found, "ServingRuntime") == kserve.serving_runtime(service)


def test_overlays_applied_in_any_order_undo_nothing_of_one_another(rendered: dict[str, list[Document]]) -> None:
    shared = 0
    for one, other in itertools.combinations(EVERY, 2):
        objects = {identity(document): document for document in rendered[one]}
        for document in rendered[other]:
            if identity(document) in objects and document["kind"] not in SERVED:
                assert objects[identity(document)] == document, f"{one} and {other}"
                shared += 1
    assert shared > 100


def identity(document: Document) -> tuple[str, str, str]:
    metadata = document["metadata"]
    return document["kind"], metadata["name"], metadata.get("namespace", "")


def test_the_pipelines_overlay_is_what_its_pods_need_and_serves_nothing(rendered: dict[str, list[Document]]) -> None:
    served = {"InferenceService", "ServingRuntime"}
    needed = {identity(document) for document in rendered["kserve-standard/cpu"] if document["kind"] not in served}
    assert {identity(document) for document in rendered[PIPELINE]} == needed


SETTINGS = {
    "model": "faces/detector/versions/v/repository",
    "store": "https://s3.example:9443",
    "store_https": "1",
    "store_region": "eu-central-1",
    "pod_security": "baseline",
    "pipeline_account": "default-editor",
    "pipeline_namespace": "team-a",
    "prometheus_release": "metrics",
}


def test_one_file_holds_every_setting(checkout: Path, tmp_path: Path) -> None:
    changed = with_settings(checkout, tmp_path / "manifests", **SETTINGS)
    given = yaml.safe_load((changed / "settings/settings.yaml").read_text())["data"]
    assert set(given) == {name.replace("_", "-") for name in SETTINGS}
    for name in EVERY:
        found = kustomize(own_overlay(changed, name, "monitoring"))
        text = yaml.safe_dump_all(found)
        assert "from-the-settings" not in text
        assert "gridbox-settings" not in text, "it is no object of the cluster"
        assert only(found, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "baseline"
        assert only(found, "Secret")["metadata"]["annotations"] == {
            "serving.kserve.io/s3-endpoint": "s3.example:9443",
            "serving.kserve.io/s3-usehttps": "1",
            "serving.kserve.io/s3-region": "eu-central-1",
        }
        for binding in (document for document in found if document["kind"].endswith("RoleBinding")):
            assert (binding["subjects"][1]["name"], binding["subjects"][1]["namespace"]) == ("default-editor", "team-a")
        for service in (document for document in found if document["kind"] == "InferenceService"):
            assert service["spec"]["predictor"]["model"]["storageUri"] == f"s3://{SETTINGS['model']}/"
        for deployment in (document for document in found if document["kind"] == "Deployment"):
            environment = {
                variable["name"]: variable["value"]
                for variable in deployment["spec"]["template"]["spec"]["containers"][0]["env"]
            }
            assert environment["MODEL_STORE"] == "s3://https://s3.example:9443"
            assert environment["MODEL_PREFIX"] == SETTINGS["model"]
            assert environment["AWS_DEFAULT_REGION"] == "eu-central-1"
        for watched in (document for document in found if group(document) == "monitoring.coreos.com"):
            assert watched["metadata"]["labels"]["release"] == "metrics"


def test_placeholders_name_no_bucket_that_could_be() -> None:
    model = yaml.safe_load((MANIFESTS / "settings/settings.yaml").read_text())["data"]["model"]
    values = yaml.safe_load((ROOT / "charts/gridbox-serving/values.yaml").read_text())["model"]["prefix"]
    assert values == model
    assert model.partition("/")[0].isupper(), "buckets are written in lower case"


def test_the_checks_find_what_an_api_server_would_drop_or_refuse(rendered: dict[str, list[Document]]) -> None:
    service = only(rendered["kserve-standard/gpu"], "InferenceService")
    for path, value in [
        ("spec.predictor.model.storageURI", "s3://x/"),
        ("spec.predictor.minReplicas", "two"),
        ("spec.predictor.nodeSelector", {"a": 1}),
        ("spec.predictor.model.resources", {"limits": {"memory": ["4Gi"]}}),
    ]:
        with pytest.raises(AssertionError):
            check_schema(_with(service, path, value))
    deployment = only(rendered["triton-standalone/gpu"], "Deployment")
    with pytest.raises(Exception, match="containres"):
        check_schema(_with(deployment, "spec.template.spec.containres", []))
    for path, value in [
        ("spec.predictor.minReplicas", 9),
        ("spec.predictor.triton", {}),
        ("spec.predictor.model.env", [{"name": "PYTHONPATH", "value": "/x"}]),
        ("spec.predictor.model.storageUri", "s3://models/facenet"),
    ]:
        assert list(violations(_with(service, path, value))), path


def _with(document: Document, path: str, value: object) -> Document:
    changed = copy.deepcopy(document)
    *parents, leaf = path.split(".")
    place = changed
    for parent in parents:
        place = place[parent]
    place[leaf] = value
    return changed


def test_readme_names_the_custom_resources_of_each_overlay(rendered: dict[str, list[Document]]) -> None:
    lines = (MANIFESTS / "README.md").read_text(encoding="utf-8").splitlines()
    for name in EVERY:
        (line,) = [line for line in lines if line.startswith(f"| `{name}` |")]
        named = set(re.findall(r"`([a-z]+\.[a-z.]+)`", line))
        core = {"", "apps", "autoscaling", "policy", "rbac.authorization.k8s.io", "networking.k8s.io"}
        custom = {f"{d['kind'].lower()}s.{group(d)}" for d in rendered[name] if group(d) not in core}
        assert named == custom, name
        assert ("none" in line) == (not custom)


def test_the_deploy_account_may_do_exactly_what_the_deployment_does(rendered: dict[str, list[Document]]) -> None:
    for name in EVERY:
        for kind, rules in (("", access.DEPLOY_RULES), ("Cluster", access.DEPLOY_CLUSTER_RULES)):
            assert _calls(only(rendered[name], f"{kind}Role")["rules"]) == _calls(rules)
            binding = only(rendered[name], f"{kind}RoleBinding")
            assert binding["roleRef"] == {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": f"{kind}Role",
                "name": "gridbox-deploy",
            }
            assert [(account["name"], account["namespace"]) for account in binding["subjects"]] == [
                ("gridbox-deploy", "gridbox"),
                ("pipeline-runner", "kubeflow"),
            ]


def _calls(rules: Iterable[Mapping[str, list[str]]]) -> set[tuple[str, ...]]:
    return {
        (*call, *rule.get("resourceNames", []))
        for rule in rules
        for call in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])
    }


@pytest.mark.parametrize("name", [name + "+" for name in OVERLAYS])
def test_pods_may_do_no_more_than_they_must(name: str, rendered: dict[str, list[Document]]) -> None:
    found = dict(pods(rendered[name]))
    assert len(found) == 2  # Triton and the store for trials
    for where, pod in found.items():
        check_restricted(where, pod)
    for account in (d for d in rendered[name] if d["kind"] == "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    denied = only(rendered[name], "NetworkPolicy", "default-deny")["spec"]
    assert denied == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_pods_of_kserve_may_run_in_the_namespace(rendered: dict[str, list[Document]]) -> None:
    """Pod Security `restricted`, as Kubernetes judges the pod of KServe: with a container of its own in front."""
    patch = yaml.safe_load((MANIFESTS / "cluster/storage-initializer.yaml").read_text())
    initializer = patch["spec"]["container"]["securityContext"]
    for name in EVERY:
        labels = only(rendered[name], "Namespace")["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for name in KSERVE:
        pod = only(rendered[name], "InferenceService")["spec"]["predictor"].get("securityContext", {})
        (server,) = only(rendered[name], "ServingRuntime")["spec"]["containers"]
        for container in (server["securityContext"], initializer):
            effective = {**pod, **container}
            assert effective["runAsNonRoot"] is True
            assert effective["allowPrivilegeEscalation"] is False
            assert effective["capabilities"] == {"drop": ["ALL"]}
            assert effective["seccompProfile"] == {"type": "RuntimeDefault"}


def test_servers_start_as_the_release_says(rendered: dict[str, list[Document]]) -> None:
    for name in OVERLAYS:
        ((_, pod),) = pods(rendered[name])
        (triton,) = pod["containers"]
        assert tuple(triton["args"][: len(SERVER_ARGUMENTS)]) == SERVER_ARGUMENTS
        assert tuple(triton["livenessProbe"]["exec"]["command"]) == LIVENESS_COMMAND
        assert triton["resources"]["limits"]["cpu"] == str(config.CPU_LIMIT)


@pytest.mark.parametrize("name", OVERLAYS)
def test_triton_is_probed_has_shared_memory_and_time_to_end(name: str, rendered: dict[str, list[Document]]) -> None:
    ((_, pod),) = pods(rendered[name])
    (triton,) = pod["containers"]
    services = [d["spec"]["predictor"] for d in rendered[name] if d["kind"] == "InferenceService"]
    spec, container = (services[0], services[0]["model"]) if services else (pod, triton)
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    (shared,) = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
    assert {v["name"]: v["emptyDir"].get("medium") for v in spec["volumes"]}[shared] == "Memory"
    (timeout,) = [int(arg.split("=")[1]) for arg in triton["args"] if arg.startswith("--exit-timeout-secs=")]
    if "knative" not in name:  # which takes neither, and drains pods in its own way
        assert container["lifecycle"]["preStop"]["sleep"]["seconds"] >= 10
        assert spec["terminationGracePeriodSeconds"] > timeout + container["lifecycle"]["preStop"]["sleep"]["seconds"]


@pytest.mark.parametrize("name", [name + "+" for name in OVERLAYS])
def test_selectors_find_pods(name: str, rendered: dict[str, list[Document]]) -> None:
    found = rendered[name]
    labelled = [
        d["spec"]["template"]["metadata"]["labels"] for d in found if d["kind"] in ("Deployment", "StatefulSet")
    ]
    # KServe adds the second one.
    service = {"serving.kserve.io/inferenceservice": "facenet"}
    labelled += [d["spec"]["labels"] | service for d in found if d["kind"] == "ServingRuntime"]
    for document in found:
        spec = document.get("spec", {})
        if document["kind"] == "Service":
            selector = spec["selector"]
        elif document["kind"] == "NetworkPolicy":
            selector = spec["podSelector"].get("matchLabels", {})
            for expression in spec["podSelector"].get("matchExpressions", []):
                assert any(expression["key"] in labels for labels in labelled)
        elif document["kind"] in ("PodDisruptionBudget", "Deployment", "StatefulSet"):
            selector = spec["selector"]["matchLabels"]
        else:
            continue
        assert any(selector.items() <= labels.items() for labels in labelled), document["metadata"]["name"]
    metrics = only(found, "Service", "gridbox-triton-metrics")
    monitor = only(found, "ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= metrics["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] == metrics["spec"]["ports"][0]["name"]
    others = [d for d in found if d["kind"] == "Service" and d is not metrics]
    assert not [d for d in others if monitor["selector"]["matchLabels"].items() <= d["metadata"]["labels"].items()]


def test_policies_open_the_ports_that_triton_listens_on(rendered: dict[str, list[Document]]) -> None:
    for name in OVERLAYS:
        policy = only(rendered[name], "NetworkPolicy", "gridbox-kserve" if name in KSERVE else "gridbox-triton")["spec"]
        opened = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
        ((_, pod),) = pods(rendered[name])
        options = dict(arg[2:].split("=") for arg in pod["containers"][0]["args"] if "-port=" in arg)
        assert opened == {int(options.get("http-port", 8000)), int(options.get("grpc-port", 8001))}
        if "knative" in name:
            proxy = only(rendered[name], "NetworkPolicy", "gridbox-knative")["spec"]
            assert {port["port"] for rule in proxy["ingress"] for port in rule["ports"]} == {8012, 8013, 8112, 9090}


def test_with_a_single_gpu_a_pod_makes_way_for_the_next(checkout: Path) -> None:
    for name in ("triton-standalone/gpu", "kserve-standard/gpu", "kserve-knative-canary/gpu"):
        found = kustomize(own_overlay(checkout, name, "single-gpu"))
        for document in found:
            check_schema(document)
            spec = document.get("spec", {})
            if document["kind"] == "Deployment":
                assert spec["strategy"] == {"type": "Recreate"}
            elif document["kind"] == "HorizontalPodAutoscaler":
                assert (spec["minReplicas"], spec["maxReplicas"]) == (1, 1)
            elif document["kind"] == "InferenceService":
                strategy = None if "knative" in name else {"type": "Recreate"}
                assert spec["predictor"].get("deploymentStrategy") == strategy
                assert list(violations(document)) == []


def test_autoscaler_and_budget_hold_the_deployment(rendered: dict[str, list[Document]]) -> None:
    for name in ("triton-standalone/cpu", "triton-standalone/gpu"):
        deployment = only(rendered[name], "Deployment")
        scaler = only(rendered[name], "HorizontalPodAutoscaler")["spec"]
        assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
        assert "replicas" not in deployment["spec"]  # applying again would undo the autoscaler
        assert scaler["minReplicas"] > only(rendered[name], "PodDisruptionBudget")["spec"]["maxUnavailable"]


def test_gpu_overlays_ask_for_a_gpu_and_its_nodes_and_cpu_overlays_for_none(
    rendered: dict[str, list[Document]],
) -> None:
    for name in OVERLAYS:
        services = [d["spec"]["predictor"] for d in rendered[name] if d["kind"] == "InferenceService"]
        pod = services[0] if services else only(rendered[name], "Deployment")["spec"]["template"]["spec"]
        container = pod["model"] if services else pod["containers"][0]
        limits = container.get("resources", {}).get("limits", {})
        if name.endswith("gpu"):
            assert limits["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"] == "1"
            assert pod["nodeSelector"]
            assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
        else:
            assert "nvidia.com/gpu" not in limits
            assert not {"nodeSelector", "tolerations"} & set(pod)


def test_knative_gets_no_field_it_refuses(rendered: dict[str, list[Document]]) -> None:
    """Knative's PodSpecMask lacks these, and the context of the pod is behind a feature flag."""
    refused = {"securityContext", "terminationGracePeriodSeconds", "automountServiceAccountToken"}
    for name in ("kserve-knative-canary/cpu", "kserve-knative-canary/gpu"):
        assert not refused & set(only(rendered[name], "InferenceService")["spec"]["predictor"])
        (container,) = only(rendered[name], "ServingRuntime")["spec"]["containers"]
        assert not {"lifecycle", "startupProbe"} & set(container)
        assert only(rendered[name], "InferenceService")["spec"]["predictor"]["canaryTrafficPercent"] == 10


def test_one_place_names_the_triton_release(rendered: dict[str, list[Document]]) -> None:
    images = {pod["containers"][0]["image"] for name in OVERLAYS for _, pod in pods(rendered[name])}
    release = yaml.safe_load((MANIFESTS / "components/release/kustomization.yaml").read_text())["images"][0]
    assert images == {f"{release['newName']}:{release['newTag']}"}
    values = yaml.safe_load((ROOT / "charts/gridbox-serving/values.yaml").read_text())["image"]
    chart = yaml.safe_load((ROOT / "charts/gridbox-serving/Chart.yaml").read_text())
    assert (values["repository"], values["tag"]) == (release["newName"], release["newTag"])
    assert chart["appVersion"] == release["newTag"]
    assert images == {TRITON_IMAGE}
    (base,) = re.findall(r"^ARG TRITON_IMAGE=.*:(\S+)-py3$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert base == TRITON_RELEASE


def test_monitoring_and_the_trial_store_are_in_no_overlay(rendered: dict[str, list[Document]]) -> None:
    for name in EVERY:
        assert not [d for d in rendered[name] if group(d) == "monitoring.coreos.com" or d["kind"] == "StatefulSet"]
        assert only(rendered[name + "+"], "Service", "gridbox-store")["spec"]["ports"][0]["port"] == 8333


# Served by Triton 2.51 (and, by its source, 2.71) at :8002/metrics; these alerts need no other.
METRICS = {
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_queue_duration_us",
    "nv_inference_pending_request_count",
}


def test_alerts_are_of_the_operator_s_form_and_use_metrics_that_triton_has(rendered: dict[str, list[Document]]) -> None:
    """The operator's CRDs are not at hand: this is all of the form that our documents use."""
    found = rendered["triton-standalone/cpu+"]
    monitor, rules = only(found, "ServiceMonitor"), only(found, "PrometheusRule")
    assert {monitor["apiVersion"], rules["apiVersion"]} == {"monitoring.coreos.com/v1"}
    assert set(monitor["spec"]) == {"selector", "endpoints"}
    assert all(set(endpoint) == {"port", "path", "interval"} for endpoint in monitor["spec"]["endpoints"])
    used = set()
    for alert in (rule for one in rules["spec"]["groups"] for rule in one["rules"]):
        assert set(alert) == {"alert", "expr", "for", "labels", "annotations"}
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert set(alert["annotations"]) == {"summary", "description"}
        assert alert["expr"].count("(") == alert["expr"].count(")")
        used |= set(re.findall(r"nv_\w+", alert["expr"]))
        assert alert["expr"].count('{service="gridbox-triton-metrics"}') == len(re.findall(r"nv_\w+", alert["expr"]))
    assert used == METRICS


def test_the_store_s_keys_come_from_a_file_that_git_ignores(
    checkout: Path, rendered: dict[str, list[Document]]
) -> None:
    secret = only(rendered["triton-standalone/cpu"], "Secret")
    assert {key: base64.b64decode(value) for key, value in secret["data"].items()} == {
        "AWS_ACCESS_KEY_ID": b"replace-me",
        "AWS_SECRET_ACCESS_KEY": b"replace-me",
    }
    assert "/s3.env" in (MANIFESTS / "base/.gitignore").read_text(encoding="utf-8").splitlines()
    (checkout / "base/s3.env").rename(checkout / "base/away")
    command = ["kubectl", "kustomize", str(checkout / "overlays/triton-standalone/cpu")]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    (checkout / "base/away").rename(checkout / "base/s3.env")
    assert failed.returncode != 0
    assert "s3.env" in failed.stderr
