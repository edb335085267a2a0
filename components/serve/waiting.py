"""Waits until KServe serves what was applied, and says why when it does not."""

import time
from collections.abc import Mapping
from typing import Any

from components.serve.cluster import INFERENCE_SERVICE, Cluster, Unavailable
from components.serve.kserve import Document
from components.serve.rollout import Live
from components.step import StageError

_FAILED = ("InvalidSpec", "BlockedByFailedLoad")


def wait(cluster: Cluster, applied: Document, timeout: float, interval: float) -> Document:
    """Waits until KServe has seen this generation of an InferenceService and everything in it is ready.

    Args:
        cluster: Where it is.
        applied: The object as it was after it was applied.
        timeout: Seconds it may take.
        interval: Seconds between two looks.

    Returns:
        The object as it is now.

    Raises:
        StageError: It cannot become ready, or does not in time; the text has the reason or every condition.
    """
    metadata = applied["metadata"]
    name, namespace, generation = metadata["name"], metadata["namespace"], metadata["generation"]
    where = f"inferenceservices/{name} in {namespace}"
    deadline, current, trouble = time.monotonic() + timeout, applied, ""
    while True:
        try:
            found = cluster.get(INFERENCE_SERVICE, name, namespace)
            if found is None:
                raise StageError(f"{where}: somebody has deleted it")
            current, trouble = found, ""
        except Unavailable as error:  # an API server may be away for a while
            trouble = f"\n  {error}"
        if current.get("status", {}).get("observedGeneration", 0) >= generation:
            _refuse_failed(current, where)
            if _is_ready(current):
                return current
        if time.monotonic() >= deadline:
            raise StageError(f"{where}: not ready after {timeout:g} s{trouble}{_conditions(current, generation)}")
        time.sleep(interval)


def _refuse_failed(document: Mapping[str, Any], where: str) -> None:
    status = document.get("status", {})
    for part in (status, *status.get("canaryStatuses", [])):
        model = part.get("modelStatus", {})
        if model.get("transitionStatus") in _FAILED:
            info = model.get("lastFailureInfo", {})
            reason, message = info.get("reason", "no reason given"), " ".join(info.get("message", "").split())
            who = f"{where}, canary {part['name']}" if "name" in part else where
            raise StageError(f"{who}: {model['transitionStatus']}: {reason}{': ' if message else ''}{message}")


def _is_ready(document: Mapping[str, Any]) -> bool:
    status = document["status"]
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions", []))
    canaries = {each["predictor"]["name"] for each in document["spec"].get("canary", [])}
    return ready and canaries <= {each["name"] for each in status.get("canaryStatuses", []) if each.get("ready")}


def _conditions(document: Mapping[str, Any], generation: int) -> str:
    status = document.get("status", {})
    lines = [f"observed generation {status.get('observedGeneration', 'none')}, wanted {generation}"]
    for each in status.get("conditions", []):
        told = " ".join(f"{each.get('reason', '')} {each.get('message', '')}".split())
        lines.append(f"{each['type']}: {each['status']} {told}".rstrip())
    for each in status.get("canaryStatuses", []):
        lines.append(f"canary {each['name']}: {'ready' if each.get('ready') else 'not ready'}")
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
