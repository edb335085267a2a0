"""Looks, before hours of training, whether Kubeflow and the cluster have what a pipeline needs."""

import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import yaml

from components.step import StageError, UserError
from pipeline.kubeflow import needs
from pipeline.kubeflow.api import Kubeflow, Server
from pipeline.kubeflow.cluster import Cluster, Forbidden
from pipeline.kubeflow.connection import Connection, Document
from pipeline.kubeflow.package import Package
from pipeline.settings import Configuration

State = Literal["pass", "fail", "skipped"]
# Where an installation for one user runs everything.
SYSTEM_NAMESPACE = "kubeflow"
GROUP = "pipelines.kubeflow.org"
# What `submit`, `schedule`, `upload`, `cancel` and `list` do where Kubeflow keeps users apart.
PIPELINE_RULES = (
    ("create", "runs"),
    ("list", "runs"),
    ("terminate", "runs"),
    ("create", "jobs"),
    ("create", "pipelines"),
    ("create", "experiments"),
)
LOG_RULES = (("list", "pods"), ("get", "pods/log"))
ROLE = "ask an administrator for the role kubeflow-edit in this namespace"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        subject: What was looked at.
        state: How it is.
        text: What was seen.
        mend: What to do about it; empty where there is nothing to do.
    """

    subject: str
    state: State
    text: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Examination:
    """What is examined, once it is known."""

    configuration: Configuration
    package: Package
    arguments: Mapping[str, Any]
    server: Server
    namespace: str

    @property
    def values(self) -> dict[str, Any]:
        """Every parameter's value in the run to come."""
        return needs.values(self.package, self.arguments)


def examine(configuration: Configuration, package: Package, arguments: Mapping[str, Any]) -> Iterator[Finding]:
    """Yields a finding after each check; what depends on something that failed is skipped and named."""
    yield from attempted("store", store, configuration.settings.store)
    try:
        credential = configuration.credential()
        api = Kubeflow(Connection(configuration), configuration.settings.namespace)
        server = api.server()
    except (UserError, StageError) as error:
        yield Finding("pipelines API", "fail", str(error), "see gridbox config for what is set, and where")
        for subject in ("release", "namespace"):
            yield Finding(subject, "skipped", "the API does not answer")
        server = Server("", False, False)
    else:
        token = f"with the token of {credential.origin}" if credential else "without a token"
        via = "its UI" if server.is_ui else "its API server"
        yield Finding("pipelines API", "pass", f"{configuration.endpoint()} answers through {via}, {token}")
        yield _release(server, package)
        yield from attempted("namespace", _namespace, api, server)
    namespace = configuration.settings.namespace or SYSTEM_NAMESPACE
    yield from _cluster_checks(Examination(configuration, package, arguments, server, namespace))


def _cluster_checks(case: Examination) -> Iterator[Finding]:
    namespace = case.namespace
    try:
        cluster = Cluster(case.configuration.settings.context)
        allowed = {rule: cluster.allows(namespace, *rule) for rule in LOG_RULES}
    except (UserError, StageError) as error:
        yield Finding("kubernetes", "skipped", str(error), "secrets, volumes, nodes and rights were not looked at")
        return
    yield Finding("kubernetes", "pass", f"{cluster.host} answers")
    yield _rights("rights on pods", allowed, "gridbox logs then depends on the Pipelines API alone")
    if case.server.is_shared:
        yield from attempted("rights on runs", _run_rights, cluster, namespace)
    for name, is_optional in sorted(needs.secrets(case.package, case.values).items()):
        yield from attempted(f"secret {name}", _secret, cluster, namespace, name, is_optional)
    for name in sorted(needs.volumes(case.package, case.values)):
        yield from attempted(f"volume claim {name}", _volume, cluster, namespace, name)
    yield from attempted("artifact store", _artifact_store, cluster, namespace)
    yield from pools(cluster, needs.pools(case.package, case.values))


def attempted(subject: str, check: Callable[..., Finding], *arguments: object) -> Iterator[Finding]:
    """Makes a check; a right that is missing for looking is no failure of what is looked at."""
    try:
        yield check(*arguments)
    except Forbidden as error:
        yield Finding(subject, "skipped", str(error))
    except (UserError, StageError) as error:
        yield Finding(subject, "fail", str(error))


def _release(server: Server, package: Package) -> Finding:
    wanted = needs.features(package)
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", server.version)
    if not found:
        return Finding("release", "skipped", "the server does not say which release it is")
    release = tuple(int(part or 0) for part in found.groups())
    lacking = [
        f"{feature.name} ({'fails in' if feature.is_broken else 'from'} {'.'.join(map(str, feature.release))})"
        for feature in wanted
        if (release == feature.release if feature.is_broken else release < feature.release)
    ]
    if lacking:
        text = f"Kubeflow Pipelines {server.version} lacks what {package.name} uses: {'; '.join(lacking)}"
        return Finding("release", "fail", text, "upgrade the server, or compile for it (gridbox compile --backend)")
    return Finding("release", "pass", f"Kubeflow Pipelines {server.version} has all that {package.name} uses")


def _namespace(api: Kubeflow, server: Server) -> Finding:
    if server.is_shared and not api.namespace:
        mend = "set namespace in gridbox.toml, GRIDBOX_NAMESPACE or --namespace"
        return Finding("namespace", "fail", "this Kubeflow has several users, and no namespace is set", mend)
    api.runs(1)
    where = f"the runs in {api.namespace}" if api.namespace else "the runs"
    return Finding("namespace", "pass", f"{where} can be listed")


def _rights(subject: str, allowed: Mapping[tuple[str, str], bool], mend: str) -> Finding:
    lacking = [" ".join(rule) for rule, is_allowed in allowed.items() if not is_allowed]
    if lacking:
        return Finding(subject, "fail", f"you may not {', '.join(lacking)}", mend)
    return Finding(subject, "pass", f"you may {', '.join(' '.join(rule) for rule in allowed)}")


def _run_rights(cluster: Cluster, namespace: str) -> Finding:
    allowed = {(verb, f"{name}.{GROUP}"): cluster.allows(namespace, verb, name, GROUP) for verb, name in PIPELINE_RULES}
    return _rights("rights on runs", allowed, ROLE)


def _secret(cluster: Cluster, namespace: str, name: str, is_optional: bool) -> Finding:
    subject = f"secret {name}"
    if cluster.find(f"api/v1/namespaces/{namespace}/secrets/{name}"):
        return Finding(subject, "pass", f"is in {namespace}")
    if is_optional:
        return Finding(subject, "skipped", f"is not in {namespace}; the stages can do without")
    mend = f"kubectl -n {namespace} create secret generic {name} --from-env-file=FILE"
    return Finding(subject, "fail", f"is not in {namespace}", mend)


def _volume(cluster: Cluster, namespace: str, name: str) -> Finding:
    if cluster.find(f"api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"):
        return Finding(f"volume claim {name}", "pass", f"is in {namespace}")
    return Finding(
        f"volume claim {name}", "fail", f"is not in {namespace}", "create it, or name another one with --set"
    )


def _artifact_store(cluster: Cluster, namespace: str) -> Finding:
    """An s3:// root without providers takes keys from the environment of the pods, which is rarely meant."""
    found = cluster.get(f"api/v1/namespaces/{namespace}/configmaps/kfp-launcher")
    data = (found or {}).get("data") or {}
    root = str(data.get("defaultPipelineRoot") or "the installation's own")
    try:
        providers = yaml.safe_load(str(data.get("providers") or "")) or {}
    except yaml.YAMLError:
        return Finding("artifact store", "fail", "kfp-launcher: providers is no YAML", "mend that ConfigMap")
    if root.startswith("s3://") and not (isinstance(providers, dict) and providers.get("s3")):
        mend = "add providers.s3 (endpoint, region, credentials) to the ConfigMap kfp-launcher"
        return Finding("artifact store", "fail", f"{root} has no credentials of its own", mend)
    return Finding("artifact store", "pass", f"artifacts go to {root}")


def pools(cluster: Cluster, wanted: Mapping[str, needs.Pool]) -> Iterator[Finding]:
    """Looks for nodes on which the stages could run."""
    if not wanted:
        yield Finding("nodes", "skipped", "no stage asks for an accelerator")
        return
    try:
        nodes = cluster.listed("api/v1/nodes")
    except UserError as error:
        yield Finding("nodes", "skipped", str(error))
        return
    for pool in {repr(pool): pool for pool in wanted.values()}.values():
        stages = ", ".join(name for name, each in wanted.items() if each == pool)
        labels = ", ".join(f"{key}={value}" for key, value in pool.selector.items())
        text = f"{pool.count} {pool.resource}" + (f" with {labels}" if labels else "") + f" for {stages}"
        why_not = [_why_not(node, pool) for node in nodes]
        fitting = why_not.count("")
        if fitting:
            yield Finding("nodes", "pass", f"{fitting} of {len(nodes)} nodes have {text}")
            continue
        counted = "; ".join(f"{why_not.count(why)} {why}" for why in dict.fromkeys(why_not))
        mend = "change the selector or tolerations (--set), or the pool; one that scales from zero is empty until asked"
        yield Finding("nodes", "fail", f"none of {len(nodes)} nodes has {text}: {counted}", mend)


def _why_not(node: Document, pool: needs.Pool) -> str:
    """Returns why a pod of the pool cannot run on a node, or nothing where it can."""
    labels = node["metadata"].get("labels") or {}
    spec = node.get("spec") or {}
    allocatable = str(((node.get("status") or {}).get("allocatable") or {}).get(pool.resource, "0"))
    if any(labels.get(key) != str(value) for key, value in pool.selector.items()):
        return "without the labels"
    if not allocatable.isdigit() or int(allocatable) < pool.count:
        return f"without {pool.count} {pool.resource}"
    if spec.get("unschedulable"):
        return "cordoned"
    for taint in spec.get("taints") or []:
        if taint["effect"] != "PreferNoSchedule" and not any(_tolerates(each, taint) for each in pool.tolerations):
            return f"tainted {taint['key']}"
    return ""


def _tolerates(toleration: Document, taint: Document) -> bool:
    """The rules of https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/."""
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return toleration.get("key") == taint["key"] and (toleration.get("value") or "") == (taint.get("value") or "")


def store(base: str) -> Finding:
    """Writes, reads and removes an object below a base."""
    from components.objects import Entry, open_objects
    from components.store import Interrupted, Patience, shown

    if not base:
        return Finding("store", "skipped", "no store is set", "set store to s3://bucket/prefix to have it tried")
    objects = open_objects(base, Patience(attempts=2, pause=0.5, timeout=10))
    name = f".gridbox-doctor-{uuid.uuid4().hex}"
    content = b"gridbox doctor"
    try:
        objects.write(name, content)
        found = objects.read(name)
        objects.remove(Entry(name, len(content), datetime.now(UTC)))
    except (Interrupted, OSError) as error:
        raise UserError(f"{shown(base)}: {error}") from error
    if found is None or found[0] != content:
        return Finding("store", "fail", f"{shown(base)}: does not give back what was written", "check the store")
    return Finding("store", "pass", f"{shown(base)} can be written, read and removed from")
