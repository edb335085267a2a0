"""`gridbox preflight`: the first stage of a pipeline, which fails in seconds for what would fail after hours."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from components.step import UserError
from components.tao.workplace import CHECKPOINTS

if TYPE_CHECKING:
    from components.serve.kserve import Service
    from pipeline.kubeflow.findings import Finding

DATA, WEIGHTS = "data", "pretrained weights"

app = typer.Typer(name="preflight", add_completion=False, rich_markup_mode=None)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is going to need.

    Attributes:
        data_uri: Its data; empty where they are drawn.
        pretrained_uri: Its pretrained weights, or empty.
        deploy_base: Where it publishes; empty where it does not.
        deploy_target: Where it deploys.
        deploy_name: Name of the InferenceService.
        deploy_namespace: Its namespace.
        deploy_canary_percent: Traffic to a new version until it is scored; 0: all at once.
        deployment: The rest of the service and of its pods, by the names of `Service` and `Resources`.
        gpu_type: The resource by which GPUs are counted.
        gpu_count: GPUs of a stage.
        gpu_node_selector: Labels of their nodes.
        gpu_tolerations: Tolerations of those stages.
        data_files: What a web server holds of the data; empty for WIDER FACE's archives.
    """

    data_uri: str
    pretrained_uri: str
    deploy_base: str
    deploy_target: str
    deploy_name: str
    deploy_namespace: str
    deploy_canary_percent: int
    deployment: Mapping[str, Any]
    gpu_type: str
    gpu_count: int
    gpu_node_selector: Mapping[str, str]
    gpu_tolerations: tuple[dict[str, Any], ...]
    data_files: tuple[str, ...]


@app.command()
def preflight(
    data_uri: Annotated[str, typer.Option(help="Where the data set is; empty: it will be drawn.")] = "",
    pretrained_uri: Annotated[str, typer.Option(help="Where the pretrained weights are; empty: there are none.")] = "",
    deploy_base: Annotated[str, typer.Option(help="Where the model will be published; empty: it will not.")] = "",
    deploy_target: Annotated[str, typer.Option(help="Where it will be deployed.")] = "manifest",
    deploy_name: Annotated[str, typer.Option(help="Name of the InferenceService.")] = "facenet",
    deploy_namespace: Annotated[str, typer.Option(help="Its namespace.")] = "gridbox",
    deploy_canary_percent: Annotated[int, typer.Option(min=0, max=99, help="Traffic until scored; 0: all.")] = 0,
    deployment: Annotated[
        str, typer.Option(help="JSON object: mode, image, cpu, memory and the like of the service and its pods.")
    ] = "{}",
    gpu_type: Annotated[str, typer.Option(help="The resource by which the cluster counts GPUs.")] = "nvidia.com/gpu",
    gpu_count: Annotated[int, typer.Option(min=0, help="GPUs of a stage.")] = 0,
    gpu_node_selector: Annotated[str, typer.Option(help="JSON object: labels of their nodes.")] = "{}",
    gpu_tolerations: Annotated[str, typer.Option(help="JSON list: tolerations of those stages.")] = "[]",
    data_files: Annotated[
        str,
        typer.Option(help="What a web server holds of the data, separated by spaces; empty: WIDER FACE's archives."),
    ] = "",
    data_version: Annotated[Path | None, typer.Option(help="File for the version of remote data.")] = None,
    pretrained_version: Annotated[Path | None, typer.Option(help="File for that of remote weights.")] = None,
) -> None:
    """Look whether data, store, volumes, permissions and GPUs are there, before hours of training; else exit code 2.

    What has not changed where it lies need not be brought again: the stages that bring it are told its version.
    """
    plan = Plan(
        data_uri,
        pretrained_uri,
        deploy_base,
        deploy_target,
        deploy_name,
        deploy_namespace,
        deploy_canary_percent,
        json.loads(deployment),
        gpu_type,
        gpu_count,
        json.loads(gpu_node_selector),
        tuple(json.loads(gpu_tolerations)),
        tuple(data_files.split()),
    )
    failed = []
    versions: dict[str, str] = {}
    for finding in examine(plan, versions):
        print(f"{finding.state:<8} {finding.subject}: {finding.text}", flush=True)
        if finding.state == "fail":
            failed.append(f"{finding.subject}: {finding.text}" + (f"; {finding.mend}" if finding.mend else ""))
    if failed:
        raise UserError(" | ".join(failed))
    for file, subject in ((data_version, DATA), (pretrained_version, WEIGHTS)):
        if file is not None:
            file.write_text(versions.get(subject, ""), encoding="utf-8")


def examine(plan: Plan, versions: dict[str, str]) -> Iterator["Finding"]:
    """Yields a finding after each check; `versions` gets, by subject, those of what is remote."""
    from pipeline.kubeflow.doctor import store
    from pipeline.kubeflow.findings import attempted

    yield from attempted(DATA, _readable, DATA, plan.data_uri, _places(plan), versions)
    yield from attempted(WEIGHTS, _readable, WEIGHTS, plan.pretrained_uri, [plan.pretrained_uri], versions)
    if folder := os.environ.get(CHECKPOINTS):
        yield from attempted("checkpoints", _writable, Path(folder))
    if plan.deploy_base:
        yield from attempted("store", store, plan.deploy_base)
    else:
        yield _without_store(plan.deploy_target)
    if plan.deploy_target == "kserve":
        yield from attempted("rights to deploy", _rights, plan.deploy_namespace)
        yield from attempted("deployment", _deployment, plan)
    yield from _gpus(plan)


def _readable(subject: str, uri: str, places: list[str], versions: dict[str, str]) -> "Finding":
    from components.store import RetryPolicy, probe, redacted
    from pipeline.kubeflow.findings import Finding

    if not uri:
        none = "none are given: a synthetic set is drawn" if subject == DATA else "none are given"
        return Finding(subject, "skipped", none)
    if urlsplit(uri).scheme == "ngc":  # where a version never changes
        from components.ngc.download import probe as probe_ngc

        probe_ngc(uri)
        return Finding(subject, "pass", f"{uri} is there")
    tags = [probe(place, RetryPolicy(attempts=2, pause=0.5, timeout=15)) for place in places]
    said = f"{redacted(uri)} can be read"
    if urlsplit(uri).scheme in ("", "file"):
        return Finding(subject, "pass", said)
    if not all(tags):
        said += "; its server does not tell versions, so it is fetched in every run"
    version = repr(tags) if all(tags) else uuid.uuid4().hex
    versions[subject] = hashlib.sha256(version.encode()).hexdigest()[:16]
    return Finding(subject, "pass", said)


def _places(plan: Plan) -> list[str]:
    """Returns what a data set's URI stands for: on a web server its files, in a store all that lies below."""
    from components.formats.wider import ARCHIVES
    from components.store import join

    uri, scheme = plan.data_uri, urlsplit(plan.data_uri).scheme
    if scheme in ("http", "https"):
        return [join(uri, file) for file in plan.data_files or ARCHIVES]
    return [uri if scheme != "s3" or uri.endswith("/") else f"{uri}/"]


def _writable(folder: Path) -> "Finding":
    """Writes as the stages' user where training keeps its checkpoints: Kubeflow gives a claim no group (`fsGroup`)."""
    from pipeline.kubeflow.findings import Finding

    file = folder / f".gridbox-preflight-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"gridbox preflight")
        file.unlink()
    except OSError as error:
        user = os.getuid()
        mend = (
            f"give the claim's root to that user once, from a pod that mounts it as root: chown {user} {folder.parent}"
        )
        return Finding("checkpoints", "fail", f"user {user} cannot write to {folder}: {error.strerror}", mend)
    return Finding("checkpoints", "pass", f"{folder} can be written")


def _without_store(target: str) -> "Finding":
    from pipeline.kubeflow.findings import Finding

    if target == "manifest":
        return Finding("store", "skipped", "deploy_base is empty: the model is trained and scored, but not published")
    mend = "set deploy_base, for example s3://models/facenet"
    return Finding("store", "fail", f"deploy_target {target} needs a place to publish to", mend)


def _rights(namespace: str) -> "Finding":
    from components.serve.access import DEPLOY_RULES
    from pipeline.kubeflow.cluster import Cluster
    from pipeline.kubeflow.findings import Finding

    cluster = Cluster()
    asked = [
        (verb, resource, group)
        for rule in DEPLOY_RULES
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]
    lacking = [f"{verb} {name}" for verb, name, group in asked if not cluster.allows(namespace, verb, name, group)]
    if lacking:
        mend = "apply the overlay for the pipeline's deployment (docs/kubeflow.md), which binds the role gridbox-deploy"
        return Finding("rights to deploy", "fail", f"this run may not {', '.join(lacking)} in {namespace}", mend)
    return Finding("rights to deploy", "pass", f"in {namespace}")


def _deployment(plan: Plan) -> "Finding":
    """Has the cluster check service and pod without keeping them, and a canary's preconditions."""
    from components.serve.canaries import check_canaries
    from components.serve.cluster import Cluster
    from components.serve.kserve import Mode
    from components.serve.rehearsal import rehearse
    from pipeline.kubeflow.findings import Finding

    cluster, service = Cluster(), _service(plan)
    rehearse(cluster, service)
    if plan.deploy_canary_percent and service.mode is Mode.standard:
        check_canaries(cluster)
    return Finding("deployment", "pass", f"{service.namespace} would take {service.name} and its pod")


def _service(plan: Plan) -> "Service":
    """Returns the service that will be deployed, of a model that does not exist yet."""
    from components.serve.kserve import Mode, Protocol, Resources, Service

    given = dict(plan.deployment)
    resources = Resources(**{each.name: given.pop(each.name) for each in fields(Resources) if each.name in given})
    kinds = {"mode": Mode, "protocol": Protocol, "tolerations": tuple}
    return Service(
        name=plan.deploy_name,
        namespace=plan.deploy_namespace,
        storage_uri=f"{plan.deploy_base.rstrip('/')}/preflight",
        run_id="preflight",
        model_digest="0" * 64,
        resources=resources,
        **{name: kinds.get(name, lambda value: value)(value) for name, value in given.items()},
    )


def _gpus(plan: Plan) -> Iterator["Finding"]:
    from pipeline.kubeflow.cluster import Cluster
    from pipeline.kubeflow.doctor import pools
    from pipeline.kubeflow.findings import Finding
    from pipeline.kubeflow.needs import Pool

    if not plan.gpu_count:
        return
    if not os.environ.get("KUBERNETES_SERVICE_HOST"):
        yield Finding("nodes", "skipped", "not in a cluster: stages take what this machine has")
        return
    wanted = Pool(plan.gpu_type, plan.gpu_count, plan.gpu_node_selector, plan.gpu_tolerations)
    yield from pools(Cluster(), {"training": wanted})
