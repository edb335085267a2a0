"""`gridbox serve tensorrt`, `publish`, `deploy`, `status`, `promote`, `rollback` and `conclude`."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from components.serve.config import Backend
from components.serve.deploy import Target
from components.serve.kserve import Mode, Protocol
from components.serve.release import TRITON_IMAGE
from components.step import StageError, UserError

if TYPE_CHECKING:
    from components.serve.deploy import Deployed, Gate, Rollout
    from components.serve.gate import ScoredModel
    from components.serve.kserve import Service


Name = Annotated[str, typer.Option("--name", help="Name of the InferenceService; by default that of the served model.")]
Namespace = Annotated[str, typer.Option("--namespace", help="Its namespace.")]
RunId = Annotated[str, typer.Option("--run-id", help="The run that deploys; by default, the published version.")]
Context = Annotated[str, typer.Option("--context", help="Context of the kubeconfig; by default the current one.")]
Force = Annotated[bool, typer.Option("--force/--no-force", help="Take over fields that other field managers own.")]
Timeout = Annotated[float, typer.Option("--timeout", min=1, help="Seconds until the service must be ready.")]
MaxPointsLost = Annotated[
    float,
    typer.Option(
        "--max-points-lost", min=0, max=100, help="Points (hundredths) of the score by which the served may be better."
    ),
]
AcceptIncomparable = Annotated[
    bool,
    typer.Option(
        "--accept-incomparable/--no-accept-incomparable",
        help="Let a model pass whose score and the served one's cannot be compared.",
    ),
]
Champion = Annotated[
    str,
    typer.Option("--champion", help="Score of the served model: an evaluation, or score.json as a path or URI."),
]


def tensorrt(context: typer.Context) -> None:
    """Build a TensorRT plan with trtexec; runs in the image of the Triton release, on a GPU of the serving pool."""
    from components.serve.tensorrt import main

    main(["build", *context.args])


def publish(
    exported: Annotated[
        Path, typer.Option("--exported", help="Exported model, or a model repository, which is laid out again.")
    ],
    published: Annotated[Path, typer.Option("--published", help="Artifact to write: where it is and what it needs.")],
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "--evaluation",
            help="Evaluation of the model: says from which score on objects are shown, where the model does not.",
        ),
    ] = None,
    scored_model: Annotated[
        str, typer.Option("--scored-model", help="Which model of the evaluation; by default its last one.")
    ] = "",
    plan: Annotated[
        Path | None, typer.Option("--plan", help="Its TensorRT plan; the backend is then tensorrt.")
    ] = None,
    backend: Annotated[
        Backend, typer.Option("--backend", help="What runs the network in Triton; tensorrt needs a plan.")
    ] = "onnxruntime",
    cpu_limit: Annotated[
        str, typer.Option("--cpu-limit", help="Cores that a serving pod may use: threads of the network on CPUs.")
    ] = "4",
    base: Annotated[
        str, typer.Option("--base", help="Where versions lie: a path, file:///folder or s3://bucket/prefix.")
    ] = "",
) -> None:
    """Build a Triton model repository and publish it as a new version; promotion makes it the served one."""
    from components.serve.config import RepositorySettings, threads_within
    from components.serve.published import publish_repository, shown_from, skip
    from components.serve.repository import build_repository

    if not base:
        skip(published)
        print("skipped: there is nowhere to publish to; give --base (deploy_base), for example s3://models/faces")
        return
    settings = RepositorySettings("tensorrt" if plan else backend, threads=threads_within(cpu_limit))
    with tempfile.TemporaryDirectory(prefix="gridbox-publish-") as folder:
        if evaluation:
            exported = shown_from(exported, evaluation, scored_model, Path(folder, "exported"))
        build_repository(exported, Path(folder, "model"), settings, plan)
        done = publish_repository(Path(folder, "model"), base, published)
    print(f"{done.storage_uri}: sha256 {done.digest[:16]}…")


def deploy(
    published: Annotated[Path, typer.Option("--published", help="The published model repository (serve publish).")],
    evaluation: Annotated[Path, typer.Option("--evaluation", help="Evaluation of the model.")],
    deployment: Annotated[Path, typer.Option("--deployment", help="Artifact to write.")],
    scored_model: Annotated[
        str, typer.Option("--scored-model", help="Which model of the evaluation; by default its last one.")
    ] = "",
    target: Annotated[
        Target, typer.Option("--target", help="Where to: KServe, a file for kubectl, a local Triton.")
    ] = (Target.manifest),
    name: Name = "",
    namespace: Namespace = "gridbox",
    run_id: RunId = "",
    mode: Annotated[Mode, typer.Option("--mode", help="How KServe runs it; cannot be changed later.")] = Mode.standard,
    protocol: Annotated[Protocol, typer.Option("--protocol", help="What its port 80 speaks: HTTP (v2) or gRPC.")] = (
        Protocol.http
    ),
    gpus: Annotated[int, typer.Option("--gpus", min=0, help="NVIDIA GPUs of a pod; 0: CPU.")] = 0,
    cpu: Annotated[str, typer.Option("--cpu", help="Cores a pod requests.")] = "1",
    cpu_limit: Annotated[str, typer.Option("--cpu-limit", help="Cores a pod may use.")] = "4",
    memory: Annotated[str, typer.Option("--memory", help="Memory a pod requests.")] = "2Gi",
    memory_limit: Annotated[str, typer.Option("--memory-limit", help="Memory a pod may use.")] = "4Gi",
    shared_memory: Annotated[str, typer.Option("--shared-memory", help="Size of /dev/shm.")] = "1Gi",
    minimum_replicas: Annotated[int, typer.Option("--minimum-replicas", min=0, help="Pods at least.")] = 1,
    maximum_replicas: Annotated[int, typer.Option("--maximum-replicas", min=1, help="Pods at most.")] = 1,
    node_selector: Annotated[str, typer.Option("--node-selector", help="JSON object: labels of the nodes.")] = "{}",
    tolerations: Annotated[str, typer.Option("--tolerations", help="JSON list of tolerations.")] = "[]",
    service_account: Annotated[
        str, typer.Option("--service-account", help="Account of the pods, whose secrets fetch the model.")
    ] = "gridbox-serving",
    image: Annotated[str, typer.Option("--image", help="The Triton image.")] = TRITON_IMAGE,
    canary_percent: Annotated[
        int, typer.Option("--canary-percent", min=0, max=99, help="Traffic until promoted; 0: all at once.")
    ] = 0,
    force: Force = False,
    timeout: Timeout = 900.0,
    max_points_lost: MaxPointsLost = 1.0,
    accept_incomparable: AcceptIncomparable = False,
    champion: Champion = "",
    gateway: Annotated[
        str, typer.Option("--gateway", help="Ingress gateway (host:port) for clients that cannot resolve the service.")
    ] = "",
    context: Context = "",
) -> None:
    """Deploy a published model repository, if the quality gate lets it pass.

    Target manifest writes YAML for kubectl apply; kserve applies it, waits, and goes back if it does not get ready.
    """
    from components.measure.metric import AVERAGE_PRECISION
    from components.serve import deploy as program
    from components.serve.families import family
    from components.serve.fit import fitted
    from components.serve.gate import read_score
    from components.serve.kserve import Resources, Service, inference_service
    from components.serve.kubernetes import gateway_problems
    from components.serve.published import fetch_repository, read_published
    from components.serve.task import ensemble_of

    source = read_published(published)
    if source is None:
        _deploy_nothing(target, deployment)
        return
    candidate = read_score(evaluation, scored_model)
    if candidate.score.metric != (metric := source.settings.get("metric", AVERAGE_PRECISION)):
        raise UserError(f"{evaluation}: a score of {candidate.score.metric}; what is deployed is judged by {metric}")
    service = Service(
        name=_named(name),
        namespace=namespace,
        storage_uri=source.storage_uri,
        run_id=run_id or source.version,
        model_digest=source.digest,
        repository_digest=str(source.settings.get("repository_digest", "")),
        model_name=ensemble_of(str(source.settings.get("model_name") or family().PREFIX)),
        score=candidate.score if candidate.is_number else None,
        data_digest=candidate.data,
        mode=mode,
        protocol=protocol,
        resources=Resources(
            gpus=gpus,
            cpu=cpu,
            cpu_limit=cpu_limit,
            memory=memory,
            memory_limit=memory_limit,
            shared_memory=shared_memory,
        ),
        minimum_replicas=minimum_replicas,
        maximum_replicas=maximum_replicas,
        node_selector=_json_object(node_selector),
        tolerations=tuple(_json_list(tolerations)),
        service_account=service_account,
        image=image,
    )
    gate = _gate(max_points_lost, accept_incomparable, champion)
    if problem := next(gateway_problems(gateway), ""):
        raise UserError(f"--gateway: {problem}")
    rollout = program.Rollout(canary_percent, force, timeout, gateway=gateway)
    inference_service(service)  # refuses what cannot be deployed before anything is started
    if target is Target.local:
        with tempfile.TemporaryDirectory(prefix="gridbox-deploy-") as folder:
            fetch_repository(source, Path(folder, "model"))
            deployed = program.deploy_local(Path(folder, "model"), candidate, gate, protocol)
    else:
        service = fitted(service, source.settings)
        deployed = _deploy(target, service, candidate, gate, rollout, context)
    program.write_deployment(deployment, service, target, deployed, candidate, gateway)
    _say(target, deployment, deployed)


def _deploy_nothing(target: Target, deployment: Path) -> None:
    from components.serve import deploy as program

    if target is not Target.manifest:
        raise UserError(f"target {target}: nothing was published; give --base (deploy_base) to gridbox serve publish")
    program.skip_deployment(deployment)
    print("skipped: nothing was published, so there is nothing to deploy")


def _deploy(
    target: Target, service: "Service", candidate: "ScoredModel", gate: "Gate", rollout: "Rollout", context: str
) -> "Deployed":
    from components.serve import deploy as program

    if target is Target.kserve:
        from components.serve.cluster import Cluster

        return program.deploy_kserve(Cluster(context), service, candidate, gate, rollout)
    if rollout.percent:
        raise UserError(
            "a canary needs to know what is served: deploy with --target kserve (deploy_target kserve), or without "
            "--canary-percent"
        )
    return program.deploy_manifest(candidate, gate)


def promote(
    deployment: Annotated[Path, typer.Option("--deployment", help="The deployment.")],
    evaluation: Annotated[
        Path | None, typer.Option("--evaluation", help="Evaluation of its endpoint; without, it is promoted unjudged.")
    ] = None,
    force: Force = False,
    timeout: Timeout = 900.0,
    max_points_lost: MaxPointsLost = 1.0,
    accept_incomparable: AcceptIncomparable = False,
    champion: Champion = "",
    context: Context = "",
) -> None:
    """Give a deployed model all traffic if its endpoint scores well enough; otherwise serve the former one again."""
    from components.serve import deploy as program
    from components.serve.cluster import Cluster
    from components.serve.gate import read_score

    told = program.read_deployment(deployment)
    if told["target"] == Target.manifest:
        print(f"Target {told['target']}: there is nothing to promote")
        return
    measured = read_score(evaluation) if evaluation else None
    gate = _gate(max_points_lost, accept_incomparable, champion)
    if told["target"] == Target.local:
        print(f"Promoted: {program.promote_local(told['storage_uri'], measured, gate)}")
        return
    rollout = program.Rollout(0, force, timeout)
    done = program.promote(Cluster(context), told["name"], told["namespace"], told["run_id"], measured, gate, rollout)
    print(f"Promoted: {done.verdict}. {done.url}")


def status(name: Name = "", namespace: Namespace = "gridbox", context: Context = "") -> None:
    """Show what is live: version, run, trial or promoted, score, pods, canary, and what a roll-back can serve."""
    from components.serve.cluster import Cluster
    from components.serve.standing import standing

    for line in standing(Cluster(context), _named(name), namespace):
        print(line)


def rollback(
    name: Name = "",
    namespace: Namespace = "gridbox",
    run_id: Annotated[str, typer.Option("--run-id", help="Only if this run is what was deployed last.")] = "",
    to: Annotated[
        str, typer.Option("--to", help="Serve this version, or this run's, of those that status shows.")
    ] = "",
    force: Force = False,
    timeout: Timeout = 900.0,
    context: Context = "",
) -> None:
    """Serve again what was served before the last deployment, or an earlier version."""
    from components.serve import deploy as program
    from components.serve.cluster import Cluster

    if to and run_id:
        raise UserError("--to and --run-id: give one of them")
    cluster, rollout = Cluster(context), program.Rollout(0, force, timeout)
    service = _named(name)
    if to:
        print(program.roll_back_to(cluster, service, namespace, to, rollout))
    else:
        print(program.roll_back(cluster, service, namespace, run_id, rollout))


def conclude(
    summary: Annotated[Path, typer.Option("--summary", help="Markdown file to write: how the run ended.")],
    status: Annotated[str, typer.Option("--status", help="Kubeflow's final status of the run (JSON).")],
    target: Annotated[Target, typer.Option("--target", help="Where it deployed.")] = Target.kserve,
    name: Name = "",
    namespace: Namespace = "gridbox",
    run_id: Annotated[str, typer.Option("--run-id", help="The run.")] = "",
    force: Force = False,
    timeout: Timeout = 900.0,
    context: Context = "",
) -> None:
    """End a run: write how it ended, and if it failed, serve again what was served before its trial."""
    from components.serve.conclusion import has_failed, write_summary

    told, undone = _json_object(status), "nothing to roll back"
    try:
        if has_failed(told) and target is Target.kserve:
            from components.serve import deploy as program
            from components.serve.cluster import Cluster

            rollout = program.Rollout(0, force, timeout)
            undone = program.undo_trial(Cluster(context), _named(name), namespace, run_id, rollout)
    except (UserError, StageError) as error:
        undone = f"not rolled back: {error}"
        raise
    finally:
        write_summary(summary, run_id, told, undone)
        print(f"{told.get('state', 'unknown')}: {undone}")


def mount(app: typer.Typer) -> None:
    """Adds the commands to an application."""
    # Its options are parsed by the program itself, which runs where typer is not installed.
    forwarded = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command("tensorrt", context_settings=forwarded, add_help_option=False)(tensorrt)
    for command in (publish, deploy, status, promote, rollback, conclude):
        app.command(command.__name__)(command)


def _gate(points: float, accept_incomparable: bool, champion: str) -> "Gate":
    from components.serve.deploy import Gate
    from components.serve.gate import champion_score

    return Gate(points, accept_incomparable, champion_score(champion) if champion else None)


def _named(name: str) -> str:
    from components.serve.families import family

    return name or family().PREFIX


def _json_object(text: str) -> dict[str, Any]:
    value = _json(text)
    if not isinstance(value, dict):
        raise UserError(f"{text}: a JSON object is needed")
    return value


def _json_list(text: str) -> list[dict[str, Any]]:
    value = _json(text)
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise UserError(f"{text}: a JSON list of objects is needed")
    return value


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{text}: not JSON: {error}") from error


def _say(target: Target, deployment: Path, deployed: "Deployed") -> None:
    print(f"Quality gate: {deployed.verdict}")
    if target is Target.manifest:
        print(f"Nothing was deployed; do it with: kubectl apply --server-side -f {deployment / 'manifest.yaml'}")
    else:
        share = f", {deployed.percent}% of the traffic until it is promoted" if deployed.percent else ""
        print(f"Serving at {deployed.url}{share}" + (f"; {deployed.proof}" if deployed.proof else ""))
