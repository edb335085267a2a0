"""Waits until the cluster serves what was applied, and says why when it does not.

An InferenceService's own word is not enough: its `Ready` stays True and its `observedGeneration` moves on while the
former pods serve and the new ones cannot start (KServe v0.20, `PropagateRawStatus`). So the child is asked: the
Deployment that KServe makes of the predictor (mode Standard), or Knative's Service, and the pods. They belong to what
was applied when they carry its annotations.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from components.serve.cluster import DEPLOYMENT, INFERENCE_SERVICE, KNATIVE_SERVICE, POD, Cluster, Kind, Unavailable
from components.serve.kserve import SERVICE_LABEL, SOURCE, Document, Mode
from components.serve.ledger import uri_of
from components.serve.pods import WHILE, Trouble, troubles
from components.serve.rollout import Live
from components.step import StageError

# What the API server may say once and take back: as many looks in a row make it certain.
_LOOKS = 3
# Seconds that former pods, told to end, may still answer; more than their grace period.
_LINGER = 90.0


@dataclass(frozen=True, slots=True)
class View:
    """What the cluster says of a deployment at one moment.

    Attributes:
        service: The InferenceService.
        child: The Deployment or Knative's Service; None where KServe has made none yet.
        pods: All pods of the InferenceService.
    """

    service: Mapping[str, Any]
    child: Mapping[str, Any] | None
    pods: tuple[Mapping[str, Any], ...]

    @property
    def live(self) -> Live:
        """The InferenceService, as deployments see it."""
        return Live(self.service)

    @property
    def is_ready(self) -> bool:
        """Whether the rollout of exactly this predictor is finished."""
        if not self._is_ours(self._template):
            return False
        assert self.child is not None
        conditions = _conditions(self.service)
        if self.live.mode == Mode.knative:
            return _is_rolled_out_by_knative(self.child) and _is_true(conditions, "Ready")
        if not _is_rolled_out(self.child):
            return False
        if not self.service["spec"].get("canary"):
            return _is_true(conditions, "Ready")
        ready = {each["name"] for each in self.service["status"].get("canaryStatuses", []) if each.get("ready")}
        return self.live.latest["name"] in ready and _is_true(conditions, "CanaryPredictorReady")

    @property
    def former_pods(self) -> tuple[str, ...]:
        """Names of the pods that this predictor replaces and that have not ended."""
        if self.live.canary is not None or self.live.mode == Mode.knative:  # they go on, or get no requests any more
            return ()
        return tuple(pod["metadata"]["name"] for pod in self.pods if not self._is_ours(pod) and not _has_ended(pod))

    def troubles(self) -> Iterator[Trouble]:
        """Yields what keeps it from becoming ready."""
        model = self.service.get("status", {}).get("modelStatus", {})
        # KServe looks at any one of the pods, so a failed load may be that of a former pod: ours are looked at below.
        if model.get("transitionStatus") == "InvalidSpec":
            info = model.get("lastFailureInfo", {})
            yield Trouble("InvalidSpec", f"InvalidSpec: {_told(info)}", _LOOKS)
        if self.child is not None and self._is_ours(self._template):
            yield from _child_troubles(self.child)
        for pod in self.pods:
            if self._is_ours(pod) and not pod["metadata"].get("deletionTimestamp"):
                yield from troubles(pod)

    @property
    def _template(self) -> Mapping[str, Any]:
        return self.child["spec"]["template"] if self.child else {}

    def _is_ours(self, made: Mapping[str, Any]) -> bool:
        """Whether a pod, or a template of pods, was made of the latest predictor as it stands now."""
        predictor = self.live.latest
        wanted = {**predictor.get("annotations", {}), SOURCE: uri_of(predictor)}
        found = (made.get("metadata") or {}).get("annotations") or {}
        return all(found.get(name) == value for name, value in wanted.items())


def look(cluster: Cluster, service: Mapping[str, Any]) -> View:
    """Asks for the child and the pods of an InferenceService.

    Raises:
        UserError: The cluster does not allow it.
        StageError: The API server fails.
    """
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    kind, child = _child(service)
    found = cluster.get(kind, child, namespace)
    return View(service, found, tuple(cluster.listed(POD, namespace, {SERVICE_LABEL: name})))


def _child(service: Mapping[str, Any]) -> tuple[Kind, str]:
    """Returns what KServe makes of the latest predictor, and its name (v0.20, `PredictorServiceName`)."""
    name, live = service["metadata"]["name"], Live(service)
    if live.mode == Mode.knative:
        return KNATIVE_SERVICE, f"{name}-predictor"
    return DEPLOYMENT, "-".join(part for part in (name, live.latest.get("name", ""), "predictor") if part)


def wait(cluster: Cluster, applied: Document, timeout: float, interval: float) -> Document:
    """Waits until the pods of what was applied serve, and those that they replace are gone.

    Args:
        cluster: Where it is.
        applied: The InferenceService as it was after it was applied.
        timeout: Seconds it may take.
        interval: Seconds between two looks.

    Returns:
        The InferenceService as it is now.

    Raises:
        StageError: It cannot become ready, or does not in time; the text has the reason or every condition.
    """
    metadata = applied["metadata"]
    name, namespace = metadata["name"], metadata["namespace"]
    where = f"inferenceservices/{name} in {namespace}"
    deadline, view, away, ready_at = time.monotonic() + timeout, View(applied, None, ()), "", 0.0
    seen: Counter[str] = Counter()
    while True:
        try:
            found = cluster.get(INFERENCE_SERVICE, name, namespace)
            if found is None:
                raise StageError(f"{where}: somebody has deleted it")
            view, away = look(cluster, found), ""
        except Unavailable as error:  # an API server may be away for a while
            away = f"\n  {error}"
        else:
            _refuse_another(view, applied, where)
            if view.is_ready:
                ready_at = ready_at or time.monotonic()
                if not view.former_pods:
                    return dict(view.service)
                if time.monotonic() - ready_at >= _LINGER:
                    print(f"warning: {where}: {', '.join(view.former_pods)}: told to end, and may answer still")
                    return dict(view.service)
            else:
                seen = _refuse_certain(view, seen, where)
        if time.monotonic() >= max(deadline, ready_at and ready_at + _LINGER):
            raise StageError(f"{where}: not ready after {timeout:g} s{away}{_everything(view)}")
        time.sleep(interval)


def _refuse_another(view: View, applied: Document, where: str) -> None:
    ours, found = Live(applied), view.live
    if ours.uri != found.uri:
        raise StageError(
            f"{where}: run {found.run_id or '(unknown)'} was deployed meanwhile, in the place of {ours.run_id}"
        )


def _refuse_certain(view: View, seen: Counter[str], where: str) -> Counter[str]:
    """Ends the wait for what is certain, and counts how often in a row the rest was seen."""
    now: Counter[str] = Counter()
    for trouble in view.troubles():
        now[trouble.about] = seen[trouble.about] + 1
        if now[trouble.about] >= trouble.looks > 0:
            raise StageError(f"{where}: {trouble.text}")
    return now


def _child_troubles(child: Mapping[str, Any]) -> Iterator[Trouble]:
    if child.get("status", {}).get("observedGeneration", 0) < child["metadata"].get("generation", 0):
        return
    conditions = _conditions(child)
    for name, bad in (("ReplicaFailure", "True"), ("Progressing", "False"), ("ConfigurationsReady", "False")):
        found = conditions.get(name, {})
        if found.get("status") == bad:
            # A quota may have room again when former pods have ended.
            yield Trouble(name, _told(found), WHILE if "exceeded quota" in found.get("message", "") else 1)


def _is_rolled_out(deployment: Mapping[str, Any]) -> bool:
    """As `kubectl rollout status` decides it."""
    status, wanted = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
    counts = [status.get(name, 0) for name in ("updatedReplicas", "replicas", "availableReplicas")]
    is_seen = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    return bool(is_seen and counts[0] >= max(wanted, 1) and len(set(counts)) == 1)


def _is_rolled_out_by_knative(service: Mapping[str, Any]) -> bool:
    status = service.get("status", {})
    latest = status.get("latestReadyRevisionName")
    is_seen = status.get("observedGeneration", 0) >= service["metadata"]["generation"]
    return bool(is_seen and latest and latest == status.get("latestCreatedRevisionName"))


def _has_ended(pod: Mapping[str, Any]) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def _conditions(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {each["type"]: each for each in (document.get("status") or {}).get("conditions") or []}


def _is_true(conditions: Mapping[str, Mapping[str, Any]], name: str) -> bool:
    return conditions.get(name, {}).get("status") == "True"


def _told(condition: Mapping[str, Any]) -> str:
    reason, message = condition.get("reason") or "no reason given", " ".join(condition.get("message", "").split())
    return f"{reason}: {message}" if message else str(reason)


def _everything(view: View) -> str:
    """Returns all that the cluster says, one line each."""
    kind = _child(view.service)[0].kind
    lines = [] if view.child else [f"KServe has made no {kind} of it yet"]
    for name, each in _conditions(view.service).items():
        told = " ".join(f"{each.get('reason', '')} {each.get('message', '')}".split())
        lines.append(f"{name}: {each['status']} {told}".rstrip())
    for each in view.service.get("status", {}).get("canaryStatuses", []):
        lines.append(f"canary {each['name']}: {'ready' if each.get('ready') else 'not ready'}")
    lines += [trouble.text for trouble in view.troubles()]
    return "".join(f"\n  {line}" for line in lines)


def address(document: Mapping[str, Any]) -> str:
    """Returns where the latest model answers inside the cluster: a canary has an address of its own, to be scored at.

    Raises:
        StageError: The canary has none.
    """
    metadata, status, spec = document["metadata"], document["status"], document["spec"]
    name, namespace = metadata["name"], metadata["namespace"]
    if spec.get("canary"):
        return f"http://{name}-{spec['canary'][0]['predictor']['name']}-predictor.{namespace}.svc.cluster.local"
    if Live(document).canary is None:
        return str(status.get("address", {}).get("url", ""))
    for traffic in status.get("components", {}).get("predictor", {}).get("traffic", []):
        if traffic.get("latestRevision") and traffic.get("url"):
            return str(traffic["url"])
    raise StageError(
        f"inferenceservices/{name} in {namespace}: the canary has no address of its own, so it cannot "
        "be scored; KServe did not heed serving.kserve.io/enable-tag-routing"
    )
