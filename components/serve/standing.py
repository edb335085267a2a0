"""What is live: `gridbox serve status`."""

from collections.abc import Iterator

from components.measure.metric import AVERAGE_PRECISION
from components.serve.cluster import INFERENCE_SERVICE, Cluster
from components.serve.gate import score_of_predictor
from components.serve.kserve import DIGEST
from components.serve.ledger import Entry, Ledger, read_ledger, uri_of
from components.serve.marks import place_of
from components.serve.rollout import Live
from components.serve.waiting import View, look
from components.step import UserError


def standing(cluster: Cluster, name: str, namespace: str) -> Iterator[str]:
    """Yields what is served, on trial and kept, one line each.

    Raises:
        UserError: There is no such service, or the cluster does not allow to look.
        StageError: The API server fails.
    """
    found = cluster.get(INFERENCE_SERVICE, name, namespace)
    if found is None:
        raise UserError(f"inferenceservices/{name} in {namespace}: there is none; deploy it first")
    live, ledger, view = Live(found), read_ledger(cluster, name, namespace), look(cluster, found)
    latest = live.entry(ledger)
    yield f"{live.name}, mode {live.mode}, {found.get('status', {}).get('url', 'no address yet')}"
    if live.canary is None:
        yield f"served   {_line(latest)}"
    else:
        stable = ledger.find(uri_of(live.predictor)) or ledger.find(latest.before)
        yield f"served   {_line(stable) if stable else uri_of(live.predictor)}"
        percent = (found["spec"].get("canary") or [{}])[0].get("trafficPercent")
        yield f"canary   {_line(latest)}, {percent or live.predictor.get('canaryTrafficPercent', 0)}% of the traffic"
    yield f"rollout  {'finished' if view.is_ready else 'not finished'}"
    yield from _pods(view)
    yield from _history(ledger, latest)


def _line(entry: Entry) -> str:
    annotations, place = entry.predictor.get("annotations", {}), place_of(entry.uri)
    score = score_of_predictor(entry.predictor).score
    told = [
        place.version if place else entry.uri,
        f"run {entry.run or '(unknown)'}",
        entry.state.value,
        "without a score" if score.value is None else f"scores {score.value:.4f}{_of(score.metric)}",
        f"digest {annotations.get(DIGEST, '(unknown)')[:12]}",
    ]
    return ", ".join(told)


def _pods(view: View) -> Iterator[str]:
    former = view.former_pods
    for pod in view.pods:
        metadata, status = pod["metadata"], pod.get("status", {})
        restarts = sum(each.get("restartCount", 0) for each in status.get("containerStatuses") or [])
        kind = ", of a former version" if metadata["name"] in former else ""
        yield f"pod      {metadata['name']}: {status.get('phase', 'Unknown')}, {restarts} restarts{kind}"
    for trouble in view.troubles():
        yield f"trouble  {trouble.text}"


def _history(ledger: Ledger, latest: Entry) -> Iterator[str]:
    for entry in reversed(ledger.entries):
        if entry.uri != latest.uri:
            yield f"kept     {_line(entry)}" + (" (a roll-back serves it)" if entry.uri == latest.before else "")
    if ledger.best:
        yield f"best     {ledger.best.value:.4f}{_of(ledger.best.metric)}, run {ledger.best.run}"


def _of(metric: str) -> str:
    """Names a metric, but for the one that scores have always been of."""
    return "" if metric == AVERAGE_PRECISION else f" {metric}"
