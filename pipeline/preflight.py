"""`gridbox preflight`: the first stage of a pipeline, which fails in seconds for what would fail after hours."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from components.step import UserError

if TYPE_CHECKING:
    from pipeline.kubeflow.findings import Finding

app = typer.Typer(name="preflight", add_completion=False, rich_markup_mode=None)
# The smallest of the three archives: where it is, the others are.
ARCHIVE = "wider_face_split.zip"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is going to need.

    Attributes:
        data_uri: Its data; empty where they are drawn.
        pretrained_uri: Its pretrained weights, or empty.
        deploy_base: Where it publishes; empty where it does not.
        deploy_target: Where it deploys.
        deploy_namespace: The namespace of the InferenceService.
        gpu_type: The resource by which GPUs are counted.
        gpu_count: GPUs of a stage.
        gpu_node_selector: Labels of their nodes.
        gpu_tolerations: Taints that are put up with.
    """

    data_uri: str
    pretrained_uri: str
    deploy_base: str
    deploy_target: str
    deploy_namespace: str
    gpu_type: str
    gpu_count: int
    gpu_node_selector: Mapping[str, str]
    gpu_tolerations: tuple[dict[str, Any], ...]


@app.command()
def preflight(
    data_uri: Annotated[str, typer.Option(help="Where the data set is; empty: it will be drawn.")] = "",
    pretrained_uri: Annotated[str, typer.Option(help="Where the pretrained weights are; empty: there are none.")] = "",
    deploy_base: Annotated[str, typer.Option(help="Where the model will be published; empty: it will not.")] = "",
    deploy_target: Annotated[str, typer.Option(help="Where it will be deployed.")] = "manifest",
    deploy_namespace: Annotated[str, typer.Option(help="The namespace of the InferenceService.")] = "gridbox",
    gpu_type: Annotated[str, typer.Option(help="The resource by which the cluster counts GPUs.")] = "nvidia.com/gpu",
    gpu_count: Annotated[int, typer.Option(min=0, help="GPUs of a stage.")] = 0,
    gpu_node_selector: Annotated[str, typer.Option(help="JSON object: labels of their nodes.")] = "{}",
    gpu_tolerations: Annotated[str, typer.Option(help="JSON list: taints that are put up with.")] = "[]",
) -> None:
    """Look whether data, store, permissions and GPUs are there, before hours of training; exit code 2 where not."""
    plan = Plan(
        data_uri,
        pretrained_uri,
        deploy_base,
        deploy_target,
        deploy_namespace,
        gpu_type,
        gpu_count,
        json.loads(gpu_node_selector),
        tuple(json.loads(gpu_tolerations)),
    )
    failed = []
    for finding in examine(plan):
        print(f"{finding.state:<8} {finding.subject}: {finding.text}", flush=True)
        if finding.state == "fail":
            failed.append(f"{finding.subject}: {finding.text}" + (f"; {finding.mend}" if finding.mend else ""))
    if failed:
        raise UserError(" | ".join(failed))


def examine(plan: Plan) -> Iterator["Finding"]:
    """Yields a finding after each check."""
    from pipeline.kubeflow.doctor import store
    from pipeline.kubeflow.findings import attempted

    yield from attempted("data", _readable, "data", plan.data_uri, ARCHIVE)
    yield from attempted("pretrained weights", _readable, "pretrained weights", plan.pretrained_uri, "")
    if plan.deploy_base:
        yield from attempted("store", store, plan.deploy_base)
    else:
        yield _without_store(plan.deploy_target)
    if plan.deploy_target == "kserve":
        yield from attempted("rights to deploy", _rights, plan.deploy_namespace)
    yield from _gpus(plan)


def _readable(subject: str, uri: str, archive: str) -> "Finding":
    from components.store import Patience, join, look, shown
    from pipeline.kubeflow.findings import Finding

    if not uri:
        return Finding(subject, "skipped", "none are given: a synthetic set is drawn" if archive else "none are given")
    scheme = urlsplit(uri).scheme
    if scheme == "ngc":
        from components.ngc.download import look as look_in_ngc

        look_in_ngc(uri)
        return Finding(subject, "pass", f"{uri} is there")
    if archive and scheme in ("http", "https"):
        uri = join(uri, archive)
    elif archive and scheme == "s3" and not uri.endswith("/"):
        uri += "/"
    look(uri, Patience(attempts=2, pause=0.5, timeout=15))
    return Finding(subject, "pass", f"{shown(uri)} can be read")


def _without_store(target: str) -> "Finding":
    from pipeline.kubeflow.findings import Finding

    if target == "manifest":
        return Finding("store", "skipped", "deploy_base is empty: the model is trained and scored, but not published")
    mend = "set deploy_base, for example s3://models/facenet"
    return Finding("store", "fail", f"deploy_target {target} needs a place to publish to", mend)


def _rights(namespace: str) -> "Finding":
    from components.serve.deploy import DEPLOY_RULES
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
        mend = "kubectl apply -k manifests/base, or bind the role gridbox-deploy to the service account of the run"
        return Finding("rights to deploy", "fail", f"this run may not {', '.join(lacking)} in {namespace}", mend)
    return Finding("rights to deploy", "pass", f"in {namespace}")


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
