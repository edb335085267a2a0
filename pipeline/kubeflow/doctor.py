"""Looks, before hours of training, whether Kubeflow and the cluster have what a pipeline needs."""

import contextlib
import json
import os
import re
import socket
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import yaml

from components.images import OPEN_ENGINE, OPEN_ENGINE_GPU
from components.serve.release import TRITON_IMAGE
from components.step import StageError, UserError
from pipeline.images import repository
from pipeline.kubeflow import installation, needs
from pipeline.kubeflow.api import Kubeflow, Server
from pipeline.kubeflow.cluster import Cluster
from pipeline.kubeflow.connection import Connection, Document
from pipeline.kubeflow.findings import Finding, attempted
from pipeline.kubeflow.session import SYSTEM_NAMESPACE
from pipeline.package import Package
from pipeline.placement import IMAGE_USER
from pipeline.settings import Configuration

# The repositories of the images that the project's own names lead to.
DEFAULT_IMAGES = frozenset(map(repository, (OPEN_ENGINE, OPEN_ENGINE_GPU, TRITON_IMAGE)))
_ENDPOINT = "AWS_ENDPOINT_URL"
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
    yield from attempted("store", _store_from_here, configuration)
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
    yield from installation.examine(case.server, cluster)
    yield from attempted("images", _images, cluster, case.package)
    for name, secret in sorted(needs.secrets(case.package, case.values).items()):
        yield from attempted(f"secret {name}", _secret, cluster, namespace, name, secret)
    for name in sorted(needs.volumes(case.package, case.values)):
        yield from attempted(f"volume claim {name}", _volume, cluster, namespace, name)
    yield from attempted("artifact store", _artifact_store, cluster, namespace)
    yield from pools(cluster, needs.pools(case.package, case.values))
    if case.values.get("deploy_target") == "kserve":
        yield from attempted("KServe's own pods", kserve_pods, cluster, str(case.values.get("deploy_namespace")))


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


def _secret(cluster: Cluster, namespace: str, name: str, secret: needs.Secret) -> Finding:
    subject = f"secret {name}"
    if cluster.find(f"api/v1/namespaces/{namespace}/secrets/{name}"):
        return Finding(subject, "pass", f"is in {namespace}")
    if secret.is_optional:
        return Finding(subject, "skipped", f"is not in {namespace}; the stages can do without")
    create = f"kubectl -n {namespace} create secret"
    mend = f"{create} generic {name} --from-env-file=FILE"
    if secret.is_for_images:
        mend = f"docker login, then {create} docker-registry {name} --from-file=$HOME/.docker/config.json"
    return Finding(subject, "fail", f"is not in {namespace}", mend)


def _volume(cluster: Cluster, namespace: str, name: str) -> Finding:
    subject = f"volume claim {name}"
    found = cluster.get(f"api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}")
    if not found:
        return Finding(subject, "fail", f"is not in {namespace}", "create it, or name another one with --set")
    phase = str((found.get("status") or {}).get("phase", ""))
    if phase == "Lost" or found["metadata"].get("deletionTimestamp"):
        return Finding(subject, "fail", f"is being deleted, or its volume is lost ({phase})", "create it again")
    waits = ", and gets its volume with its first pod" if phase == "Pending" else ""
    text = f"is in {namespace}{waits}; the pre-flight stage tries whether user {IMAGE_USER} can write to it"
    return Finding(subject, "pass", text)


def _images(cluster: Cluster, package: Package) -> Finding:
    """Images of default names are in no registry; a node may hold them nevertheless."""
    # One may also be a word of a stage's command: that of the served Triton.
    text = json.dumps(package.spec["deploymentSpec"])
    unpushed = sorted(
        {found for name in DEFAULT_IMAGES for found in re.findall(rf"{re.escape(name)}[:@][\w.:-]+", text)}
    )
    if not unpushed:
        return Finding("images", "pass", "none has a default name, which nobody has pushed")
    nodes = cluster.listed("api/v1/nodes")
    held = [{name for image in _listed(node, "images") for name in image.get("names") or []} for node in nodes]
    absent = [image for image in unpushed if not all(image in names for names in held)]
    if held and not absent:
        return Finding("images", "pass", f"{', '.join(unpushed)}: nobody has pushed it, but each node holds it")
    mend = "make images push REGISTRY=… builds and pushes them and writes [images] of gridbox.toml"
    return Finding("images", "fail", f"nobody has pushed {', '.join(absent or unpushed)}", mend)


def _listed(node: Document, key: str) -> list[Document]:
    return list((node.get("status") or {}).get(key) or [])


def kserve_pods(cluster: Cluster, namespace: str) -> Finding:
    """Looks whether a namespace's Pod Security lets KServe's storage-initializer in, which the cluster describes."""
    subject = "KServe's own pods"
    found = cluster.get(f"api/v1/namespaces/{namespace}")
    if not found:
        return Finding(subject, "fail", f"there is no namespace {namespace}", "see docs/kubeflow.md, deploying")
    level = (found["metadata"].get("labels") or {}).get("pod-security.kubernetes.io/enforce", "privileged")
    if level != "restricted":
        return Finding(subject, "pass", f"may start in {namespace} (Pod Security {level})")
    containers = cluster.listed("apis/serving.kserve.io/v1alpha1/clusterstoragecontainers")
    context = next(
        (
            (each["spec"].get("container") or {}).get("securityContext") or {}
            for each in containers
            if each["metadata"]["name"] == "default"
        ),
        {},
    )
    lacking = [
        name
        for name, is_set in (
            ("allowPrivilegeEscalation: false", context.get("allowPrivilegeEscalation") is False),
            ("capabilities.drop: [ALL]", "ALL" in ((context.get("capabilities") or {}).get("drop") or [])),
        )
        if not is_set
    ]
    if lacking:
        text = f"{namespace} is restricted, and ClusterStorageContainer default has no {' and no '.join(lacking)}"
        mend = "have an administrator add that to its container's securityContext (docs/kubeflow.md), once a cluster"
        return Finding(subject, "fail", text, mend)
    return Finding(subject, "pass", f"may start in {namespace} (Pod Security restricted)")


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


# One of them says that there is a key.
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SHARED_CREDENTIALS_FILE")


def _store_from_here(configuration: Configuration) -> Finding:
    """Tries the store as this machine reaches it; an address inside the cluster is none of this machine's."""
    base = configuration.settings.store
    given = configuration.settings.store_endpoint or os.environ.get(_ENDPOINT)
    endpoint = given or configuration.placement.store_endpoint
    host = urlsplit(endpoint).hostname or ""
    if base.startswith("s3://") and host and not _is_known(host):
        text = f"{base} cannot be tried from here: {host} is no name of this network; the pre-flight stage tries it"
        return Finding("store", "skipped", text, "set store_endpoint to the store's URL as this machine reaches it")
    if base.startswith("s3://") and not any(map(os.environ.get, _KEYS)):
        text = f"{base} cannot be tried from here without a key; the pre-flight stage tries it with the secret's"
        return Finding("store", "skipped", text, f"set {_KEYS[0]} and AWS_SECRET_ACCESS_KEY to have it tried")
    with _endpoint(endpoint):
        return store(base)


@contextlib.contextmanager
def _endpoint(url: str) -> Iterator[None]:
    """Lets the store's client, which asks the environment alone, find a URL there."""
    former = os.environ.get(_ENDPOINT)
    if url:
        os.environ[_ENDPOINT] = url
    try:
        yield
    finally:
        if former is None:
            os.environ.pop(_ENDPOINT, None)
        else:
            os.environ[_ENDPOINT] = former


def _is_known(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def store(base: str) -> Finding:
    """Writes, reads and removes an object below a base."""
    from components.objects import Entry, open_objects
    from components.store import RetryPolicy, TransientError, redacted

    if not base:
        return Finding("store", "skipped", "no store is set", "set store to s3://bucket/prefix to have it tried")
    objects = open_objects(base, RetryPolicy(attempts=2, pause=0.5, timeout=10))
    name = f".gridbox-doctor-{uuid.uuid4().hex}"
    content = b"gridbox doctor"
    try:
        objects.write(name, content)
        found = objects.read(name)
        objects.remove(Entry(name, len(content), datetime.now(UTC)))
    except (TransientError, OSError) as error:
        is_perhaps_full = base.startswith("s3://") and "cannot be reached" not in str(error)
        room = (
            "; so does a store without free room: Kubeflow's own SeaweedFS holds 8 volumes" if is_perhaps_full else ""
        )
        raise UserError(f"{redacted(base)}: {error}{room}") from error
    if found is None or found[0] != content:
        return Finding("store", "fail", f"{redacted(base)}: does not give back what was written", "check the store")
    return Finding("store", "pass", f"{redacted(base)} can be written, read and removed from")
