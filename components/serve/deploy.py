"""Deploys a published model repository: to KServe, as a file for kubectl, or to a Triton on this machine."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components.serve import marks
from components.serve.answering import PAUSE, question, verify
from components.serve.canaries import check_canaries
from components.serve.cluster import INFERENCE_SERVICE, SERVING_RUNTIME, Changed, Cluster
from components.serve.gate import ScoredModel, Verdict, judge, score_of_predictor, write_score
from components.serve.host import ask
from components.serve.kept_evidence import find_evidence, keep_evidence
from components.serve.kserve import (
    Document,
    Mode,
    Protocol,
    Service,
    inference_service,
    serving_runtime,
)
from components.serve.ledger import Best, Entry, Ledger, State, read_ledger, write_ledger
from components.serve.release import TRITON_RELEASE
from components.serve.rollout import Live, challenge, promoted, replaced, returned, rolled_back
from components.serve.waiting import address, look, wait
from components.step import StageError, UserError, publish, read_manifest, write_manifest

KIND = "deployment"
MANIFEST_FILE = "manifest.yaml"
# Attempts of a deployment when the object is changed concurrently.
_ATTEMPTS = 5


class Target(StrEnum):
    """Where to deploy."""

    manifest = "manifest"
    kserve = "kserve"
    local = "local"


@dataclass(frozen=True, slots=True)
class Gate:
    """What the quality gate asks for.

    Attributes:
        points: Points (hundredths) of the score that the served model may be better.
        accept_incomparable: Lets a model pass that was not scored on the same images as the served one.
        champion: The served model's score, where it is not to be read from the cluster.
    """

    points: float = 1.0
    accept_incomparable: bool = False
    champion: ScoredModel | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """How to bring a model into the cluster.

    Attributes:
        percent: Traffic to the new model until it is promoted, 1 to 99; 0 for all at once.
        force: Takes over fields that other field managers own.
        timeout: Seconds until the service must be ready.
        interval: Seconds between two looks at it.
        gateway: Ingress gateway (host:port) for clients that cannot resolve the service's name.
    """

    percent: int = 0
    force: bool = False
    timeout: float = 900.0
    interval: float = 5.0
    gateway: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.percent <= 99:
            raise UserError(f"canary percentage {self.percent}: must be from 1 to 99, or 0 for no canary")


@dataclass(frozen=True, slots=True)
class Deployed:
    """What is served after a deployment.

    Attributes:
        url: The new model's address inside the cluster; empty where nothing serves yet.
        external_url: The service's address from outside.
        percent: Traffic to the new model.
        verdict: Why it was let pass.
        proof: How it is known that the new model answers.
    """

    url: str
    external_url: str
    percent: int
    verdict: str
    proof: str = ""


# --- Targets ---------------------------------------------------------------------------------------------------------


def write_deployment(
    output: Path, service: Service, target: Target, deployed: Deployed, candidate: ScoredModel, gateway: str = ""
) -> None:
    """Writes the deployment artifact: what was deployed, where it answers, and its score for later comparisons."""
    connect, host = endpoint(deployed.url, service.protocol, gateway)
    digest = service.repository_digest
    if target is Target.local:
        # The server of a run is its own, and lays the model out again for its back end.
        connect, host, digest = deployed.url, "", ""
    if target is Target.manifest:  # it is applied by hand
        keep_evidence(service.storage_uri, candidate)
    with publish(output) as scratch:
        scratch.mkdir()
        text = manifest_text(service)
        (scratch / MANIFEST_FILE).write_text(text, encoding="utf-8")
        write_score(scratch, candidate)
        write_manifest(
            scratch,
            KIND,
            {
                "target": target.value,
                "name": service.name,
                "namespace": service.namespace,
                "run_id": service.run_id,
                "model_digest": service.model_digest,
                "storage_uri": service.storage_uri,
                "url": deployed.url,
                "external_url": deployed.external_url,
                "canary_percent": deployed.percent,
                "gate": deployed.verdict,
            },
            {
                "triton_release": TRITON_RELEASE,
                "mode": service.mode.value,
                # What a client connects to, and what it must find there.
                "endpoint": connect,
                "gateway_host": host,
                "model_name": service.model_name,
                "repository_digest": digest,
            },
            shown=("target", "url", "canary_percent", "gate"),
        )


def skip_deployment(output: Path) -> None:
    """Writes that nothing was deployed, because nothing was published."""
    with publish(output) as scratch:
        scratch.mkdir()
        write_manifest(scratch, KIND, {"skipped": True, "target": Target.manifest.value}, {})


def manifest_text(service: Service) -> str:
    """Returns the ServingRuntime and the InferenceService as YAML for `kubectl apply --server-side -f`."""
    import yaml

    text = yaml.safe_dump_all([serving_runtime(service), inference_service(service)], sort_keys=False, width=120)
    if urlsplit(service.storage_uri).scheme == "file":
        return (
            "# The model lies in a folder of the machine that published it, which no cluster can read: publish it to\n"
            f"# an object store instead (deploy_base), or bring it there and change storageUri.\n{text}"
        )
    return text


def deploy_manifest(candidate: ScoredModel, gate: Gate) -> Deployed:
    """Judges the model; applying its manifest deploys it.

    Raises:
        StageError: The gate refuses the model.
    """
    verdict = _passed(judge(candidate, gate.champion, gate.points, gate.accept_incomparable))
    return Deployed("", "", 0, verdict.reason)


def deploy_local(repository: Path, candidate: ScoredModel, gate: Gate, protocol: Protocol) -> Deployed:
    """Judges the model and has the run that this stage belongs to serve it on this machine.

    Args:
        repository: The model-repository artifact.
        candidate: Its score.
        gate: See `Gate`.
        protocol: Which of the server's endpoints to name.

    Raises:
        UserError: There is no such run.
        StageError: The gate refuses the model, or the server does not start.
    """
    verdict = _passed(judge(candidate, gate.champion, gate.points, gate.accept_incomparable))
    served = ask(repository)
    url = served.grpc if protocol is Protocol.grpc else served.http
    return Deployed(url, url, 0, verdict.reason)


def deploy_kserve(cluster: Cluster, service: Service, candidate: ScoredModel, gate: Gate, rollout: Rollout) -> Deployed:
    """Deploys to KServe and waits until the new model answers; goes back to what was served when it does not.

    Raises:
        UserError: The cluster does not let us, or cannot do what is asked.
        StageError: The gate refuses the model, or it does not become ready.
    """
    new = inference_service(service)
    for attempt in range(1, _ATTEMPTS + 1):
        live, ledger = _live(cluster, service.name, service.namespace), _ledger(cluster, service)
        champion = _champion(live, ledger, service, gate, candidate)
        verdict = _passed(judge(candidate, champion, gate.points, gate.accept_incomparable, ledger.best))
        if live and rollout.percent and service.mode is Mode.standard:
            check_canaries(cluster)
        document, noted = challenge(new, live, ledger, service.run_id, rollout.percent)
        if attempt == 1:
            look(cluster, new)  # who may not watch it learns that before anything is changed
            keep_evidence(service.storage_uri, candidate)
            marks.hold(f"{service.namespace}.{service.name}", (entry.uri for entry in noted.entries))
            cluster.apply(SERVING_RUNTIME, serving_runtime(service), rollout.force)
        try:
            write_ledger(cluster, service.name, service.namespace, noted)
            applied = cluster.apply(INFERENCE_SERVICE, document, rollout.force)
            break
        except Changed as error:
            if attempt == _ATTEMPTS:
                raise StageError(f"{error} (tried {attempt} times; is something else deploying there?)") from error
    try:
        ready = wait(cluster, applied, rollout.timeout, rollout.interval)
        pause = min(PAUSE, rollout.interval)
        proof = verify(question(address(ready), service, rollout.gateway), service.repository_digest, pause)
    except StageError as error:
        raise StageError(f"{error}\n  {_went_back(cluster, service, rollout)}") from error
    percent = rollout.percent if Live(ready).canary is not None else 0
    if rollout.percent and not percent:
        print(f"{service.name}: nothing was served before, so the new model gets all traffic at once")
    return Deployed(address(ready), str(ready.get("status", {}).get("url", "")), percent, verdict.reason, proof)


def _ledger(cluster: Cluster, service: Service) -> Ledger:
    return read_ledger(cluster, service.name, service.namespace)


def _champion(
    live: Live | None, ledger: Ledger, service: Service, gate: Gate, candidate: ScoredModel
) -> ScoredModel | None:
    """Returns the score of what is to be replaced, with the evidence that the candidate's can be paired with."""
    former = replaced(live, ledger, service.run_id)
    served = {former.uri if former else "", live.uri if live and live.run_id != service.run_id else ""}
    if service.storage_uri.rstrip("/") + "/" in served:
        raise UserError(
            f"{service.storage_uri} is served already, and KServe rolls nothing out for the same URI; publish the "
            "model anew"
        )
    if former and live and live.uri != former.uri and live.run_id != service.run_id:
        print(f"{live.name}: run {live.run_id} was never judged at its endpoint; run {former.run} is the champion")
    return gate.champion or _score_of(former, candidate)


def _score_of(entry: Entry | None, candidate: ScoredModel) -> ScoredModel | None:
    """Returns the score of a deployment that was judged; a trial's counts for nothing."""
    if entry is None or entry.state is not State.promoted:
        return None
    scored = score_of_predictor(entry.predictor)
    return find_evidence(entry.uri, scored) if candidate.evidence else scored


def _passed(verdict: Verdict) -> Verdict:
    if not verdict.accepted:
        raise StageError(f"the quality gate refuses: {verdict.reason}")
    return verdict


# --- After the endpoint has been scored ------------------------------------------------------------------------------


def promote(
    cluster: Cluster, name: str, namespace: str, run_id: str, measured: ScoredModel | None, gate: Gate, rollout: Rollout
) -> Deployed:
    """Gives the deployed model all traffic if its endpoint's score passes the gate; otherwise goes back.

    Args:
        cluster: Where it is deployed.
        name: Of the InferenceService.
        namespace: Of the InferenceService.
        run_id: The run that deployed it; empty for whichever did.
        measured: What its endpoint scored; None promotes without a judgement, as a person may.
        gate: See `Gate`; the champion's score is read from the cluster where it is not given.
        rollout: How to apply and how long to wait.

    Raises:
        UserError: Another run was deployed since, or the cluster does not let us.
        StageError: The gate refuses and the former model is served again, or the model does not get ready.
    """
    verdict = Verdict(True, "promoted without a judgement")
    live, ledger = _existing(cluster, name, namespace), read_ledger(cluster, name, namespace)
    live.require(run_id)
    entry = live.entry(ledger)
    if measured is not None:
        champion = gate.champion or _score_of(ledger.judged(ledger.find(entry.before)), measured)
        verdict = judge(measured, champion, gate.points, gate.accept_incomparable, ledger.best)
    if not verdict.accepted:
        back = undo_trial(cluster, name, namespace, live.run_id, rollout)
        raise StageError(f"the quality gate refuses: {verdict.reason}\n  {back}")
    ready = _change(cluster, name, namespace, lambda live: promoted(live, run_id), rollout)
    document = ready or _existing(cluster, name, namespace).document
    best = None
    if measured is not None and measured.is_number and measured.value is not None:
        best = Best(measured.value, measured.data, live.run_id, measured.score.metric)
    predictor = Live(document).predictor
    _note(cluster, name, namespace, lambda ledger: ledger.promoted(predictor, best))
    marks.point_at(Live(document).uri)
    status = document.get("status", {})
    address = status.get("address", {}).get("url", "")
    return Deployed(str(address), str(status.get("url", "")), 0, verdict.reason)


def promote_local(storage_uri: str, measured: ScoredModel | None, gate: Gate) -> str:
    """Makes what this machine serves the promoted version of its store, if its endpoint's score passes the gate.

    Returns:
        Why it passed.

    Raises:
        StageError: The gate refuses.
    """
    verdict = Verdict(True, "promoted without a judgement")
    if measured is not None:
        verdict = _passed(judge(measured, gate.champion, gate.points, gate.accept_incomparable))
    marks.point_at(storage_uri)
    return verdict.reason


def undo_trial(cluster: Cluster, name: str, namespace: str, run_id: str, rollout: Rollout) -> str:
    """Goes back to what was served before a run, if it is the latest deployment and was not promoted.

    Returns:
        What was done, in one line.

    Raises:
        UserError: The cluster does not let us.
        StageError: What was served before does not become ready.
    """
    live = _live(cluster, name, namespace)
    if live is None or live.run_id != run_id:
        return f"inferenceservices/{name} in {namespace}: run {run_id or '(unknown)'} is not what is deployed"
    ledger = read_ledger(cluster, name, namespace)
    entry = live.entry(ledger)
    if entry.state is State.promoted:
        return f"{live.name}: run {run_id or '(unknown)'} was promoted and stays"
    if live.canary is None and ledger.find(entry.before) is None:
        return f"{live.name}: nothing was served before run {run_id or '(unknown)'}; it is left as it is"
    return roll_back(cluster, name, namespace, run_id, rollout)


def roll_back(cluster: Cluster, name: str, namespace: str, run_id: str, rollout: Rollout) -> str:
    """Goes back to what was served before a run, if that run is what was deployed last.

    Args:
        cluster: Where it is deployed.
        name: Of the InferenceService.
        namespace: Of the InferenceService.
        run_id: The run; empty for whichever was deployed last.
        rollout: How to apply and how long to wait.

    Returns:
        What was done, in one line.

    Raises:
        UserError: Nothing is known of what was served before, or the cluster does not let us.
        StageError: What was served before does not become ready.
    """
    where = f"inferenceservices/{name} in {namespace}"
    live = _live(cluster, name, namespace)
    if run_id and live is None:
        return f"{where}: there is none; run {run_id} deployed nothing"
    ledger = read_ledger(cluster, name, namespace)
    done = _change(cluster, name, namespace, lambda live: rolled_back(live, ledger, run_id), rollout)
    if done is None:
        return f"{where}: run {run_id} is not what is deployed; nothing to roll back"
    assert live is not None
    undone = live.entry(ledger)
    if undone.state is State.trial:
        _note(cluster, name, namespace, lambda ledger: ledger.without(undone.uri))
    return f"{where}: rolled back to run {_went_back_to(cluster, done, undone.state, rollout)}"


def roll_back_to(cluster: Cluster, name: str, namespace: str, version: str, rollout: Rollout) -> str:
    """Serves an earlier deployment again, named by its version or its run.

    Returns:
        What was done, in one line.

    Raises:
        UserError: It is not known, a canary is on trial, or the cluster does not let us.
        StageError: It does not become ready.
    """
    ledger = read_ledger(cluster, name, namespace)
    done = _change(cluster, name, namespace, lambda live: returned(live, ledger, version), rollout)
    where = f"inferenceservices/{name} in {namespace}"
    if done is None:
        return f"{where}: {version} is served already"
    return f"{where}: rolled back to run {_went_back_to(cluster, done, State.promoted, rollout)}"


def _went_back_to(cluster: Cluster, done: Document, undone: State, rollout: Rollout) -> str:
    """Drops the percentage that a Knative canary's roll-back needs; returns the run that is served now."""
    name, namespace, restored = done["metadata"]["name"], done["metadata"]["namespace"], Live(done).run_id
    _change(cluster, name, namespace, lambda live: promoted(live, restored), rollout)
    if undone is State.promoted:  # the store named what is no longer served
        marks.point_at(Live(done).uri)
    return restored or "(unknown)"


def _went_back(cluster: Cluster, service: Service, rollout: Rollout) -> str:
    try:
        return undo_trial(cluster, service.name, service.namespace, service.run_id, rollout)
    except (UserError, StageError) as error:
        return f"not rolled back: {error}"


def _change(
    cluster: Cluster, name: str, namespace: str, work_out: Callable[[Live], Document | None], rollout: Rollout
) -> Document | None:
    """Applies what `work_out` makes of the live object and waits; None where there is nothing to apply."""
    for attempt in range(1, _ATTEMPTS + 1):
        document = work_out(_existing(cluster, name, namespace))
        if document is None:
            return None
        try:
            applied = cluster.apply(INFERENCE_SERVICE, document, rollout.force)
            return wait(cluster, applied, rollout.timeout, rollout.interval)
        except Changed as error:
            if attempt == _ATTEMPTS:
                raise StageError(f"{error} (tried {attempt} times; is something else deploying there?)") from error
    raise AssertionError("unreachable")


def _note(cluster: Cluster, name: str, namespace: str, work_out: Callable[[Ledger], Ledger]) -> None:
    """Changes the ledger, and retries after a concurrent change."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            write_ledger(cluster, name, namespace, work_out(read_ledger(cluster, name, namespace)))
            return
        except Changed:
            if attempt == _ATTEMPTS:
                raise


def _live(cluster: Cluster, name: str, namespace: str) -> Live | None:
    found = cluster.get(INFERENCE_SERVICE, name, namespace)
    return Live(found) if found else None


def _existing(cluster: Cluster, name: str, namespace: str) -> Live:
    live = _live(cluster, name, namespace)
    if live is None:
        raise UserError(f"inferenceservices/{name} in {namespace}: there is none; deploy it first")
    return live


def endpoint(url: str, protocol: Protocol, gateway: str = "") -> tuple[str, str]:
    """Returns what a client connects to, and the host name it must ask for there (empty: that of the URL).

    Args:
        url: The service's address.
        protocol: What it speaks.
        gateway: Host and port of an ingress gateway, for clients that cannot resolve the service's name.
    """
    if not url:
        return "", ""
    parts = urlsplit(url)
    scheme = parts.scheme
    if protocol is Protocol.grpc:
        scheme = "grpcs" if parts.scheme == "https" else "grpc"
    port, path = parts.port or (443 if parts.scheme == "https" else 80), parts.path.rstrip("/")
    if gateway:
        return f"{scheme}://{gateway}{path}", str(parts.hostname)
    return f"{scheme}://{parts.hostname}:{port}{path}", ""


def read_deployment(path: Path) -> dict[str, Any]:
    """Returns what a deployment artifact says of itself.

    Raises:
        UserError: It is none.
    """
    return dict(read_manifest(path, KIND)["counts"])
