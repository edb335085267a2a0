"""What the installation of Kubeflow Pipelines does with pipelines, logs, the cache and failed stages."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from pipeline.kubeflow.api import Server
from pipeline.kubeflow.cluster import Cluster
from pipeline.kubeflow.connection import Document
from pipeline.kubeflow.findings import Finding, attempted
from pipeline.kubeflow.session import SYSTEM_NAMESPACE

_DEFINITION = "pipelines.pipelines.kubeflow.org"
# From this release on, a pipeline itself can say that a failed program is tried again (`set_retry(policy=)`).
_POLICY_RELEASE = (2, 18)


def examine(server: Server, cluster: Cluster) -> Iterator[Finding]:
    """Yields what there is to know; none of it is a failure, since each kind of installation works."""
    yield from attempted("pipelines are kept", _kept, server, cluster)
    yield from attempted("logs of stages", _logs, cluster)
    yield from attempted("cache", _cache, cluster)
    yield from attempted("further attempts", _retries, server, cluster)


def _kept(server: Server, cluster: Cluster) -> Finding:
    subject = "pipelines are kept"
    path = f"apis/apiextensions.k8s.io/v1/customresourcedefinitions/{_DEFINITION}"
    has_definitions = cluster.find(path) is not None
    kind = server.pipeline_store or ("kubernetes" if has_definitions else "database")
    if kind == "kubernetes":
        text = "as custom resources: gridbox upload and kubectl apply --server-side (compile --kubernetes) both work"
        return Finding(subject, "pass", text)
    where = "which this API server does not read" if has_definitions else f"there is no {_DEFINITION}"
    return Finding(subject, "pass", f"in the database: gridbox upload works, kubectl apply does not ({where})")


def _logs(cluster: Cluster) -> Finding:
    if _environment(cluster).get("PUBLISH_LOGS", "true").lower() == "true":
        return Finding("logs of stages", "pass", "are kept as artifacts (executor-logs)")
    return Finding("logs of stages", "pass", "go with the pods, an hour after the run's end (PUBLISH_LOGS is off)")


def _cache(cluster: Cluster) -> Finding:
    if _environment(cluster).get("CACHEENABLED", "true").lower() == "true":
        return Finding("cache", "pass", "is on: a stage with the same inputs is not run again (submit --no-cache)")
    return Finding("cache", "pass", "is off for the whole installation: each run computes everything anew")


def _retries(server: Server, cluster: Cluster) -> Finding:
    """The defaults of the workflow controller are merged into Kubeflow's own retry template, which has no policy."""
    found = cluster.get(f"api/v1/namespaces/{SYSTEM_NAMESPACE}/configmaps/workflow-controller-configmap")
    data = (found or {}).get("data") or {}
    strategy = _at(_yaml(data.get("workflowDefaults")), "spec", "templateDefaults", "retryStrategy")
    policy = str(_at(strategy, "retryPolicy") or "")
    release = tuple(int(part) for part in re.findall(r"\d+", server.version)[:2])
    if policy in ("OnError", "OnTransientError"):
        text = f"only for pods that vanished: a stage whose program fails is tried once (retryPolicy {policy})"
        mend = (
            ""
            if release >= _POLICY_RELEASE
            else f"set retryPolicy: Always in {SYSTEM_NAMESPACE}'s ConfigMap "
            + ("workflow-controller-configmap, workflowDefaults, where failed stages shall be tried again")
        )
        return Finding("further attempts", "pass", text, mend)
    return Finding("further attempts", "pass", f"as the stages say (retryPolicy {policy or 'of Kubeflow'})")


def _environment(cluster: Cluster) -> dict[str, str]:
    """Returns the plain variables of the API server."""
    found = cluster.get(f"apis/apps/v1/namespaces/{SYSTEM_NAMESPACE}/deployments/ml-pipeline") or {}
    containers: list[Document] = _at(found, "spec", "template", "spec", "containers") or []
    return {str(each["name"]): str(each.get("value", "")) for one in containers for each in one.get("env") or []}


def _yaml(text: object) -> Any:  # noqa: ANN401 - from outside
    try:
        return yaml.safe_load(str(text or ""))
    except yaml.YAMLError:
        return None


def _at(document: object, *keys: str) -> Any:  # noqa: ANN401 - from outside
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document
