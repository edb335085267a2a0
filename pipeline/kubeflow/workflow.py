"""The Argo workflow behind a run: how far its stages are, which pod ran which, and why a pod failed.

Kubeflow's API tells less: no pods, no paths, and nothing more at all once Argo has compressed the status of a large
workflow (kubeflow/pipelines#14007, `report_server.go` of 2.17). The workflow itself holds it all, compressed or not,
and its pods carry the same names.
"""

import base64
import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline.package import SEPARATOR

Document = dict[str, Any]

# The templates in which a stage's own container runs; one with retries has its own.
EXECUTOR = re.compile(r"(retry-)?system-container-impl$")
DRIVER = re.compile(r"system-(container|dag)-driver$")
NODE_NAME = "workflows.argoproj.io/node-name"
POD_NAME_FORMAT = "workflows.argoproj.io/pod-name-format"
RUN_LABEL = "pipeline/runid"
# What a stage's state is called, by the phase of its node; the words are those of Kubeflow's API, and CACHED.
STATES = {
    "Pending": "PENDING",
    "Running": "RUNNING",
    "Succeeded": "SUCCEEDED",
    "Skipped": "SKIPPED",
    "Omitted": "SKIPPED",
    "Failed": "FAILED",
    "Error": "FAILED",
}
_ATTEMPT = re.compile(r"\(\d+\)")
# Around the tasks of an exit handler stands a node of Argo's: `exit-handler-1.onExit`.
_ON_EXIT = re.compile(r"[^.]+\.onExit\.")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a stage, or of its driver, which prepares it.

    Attributes:
        task: The task's path in the pipeline.
        pod: The pod's name.
        phase: In Argo's or Kubernetes' words: Pending, Running, Succeeded, Failed, Error, Skipped, …
        message: Why it is so; often empty.
        started: ISO 8601, for the order.
        is_driver: Whether it is the driver's.
    """

    task: str
    pod: str
    phase: str
    message: str
    started: str
    is_driver: bool = False

    @property
    def has_failed(self) -> bool:
        """Whether this try failed."""
        return self.phase in ("Failed", "Error")


@dataclass(frozen=True, slots=True)
class StageState:
    """How far a stage is: `state` in the words of Kubeflow's API, and CACHED where an earlier result stands for it."""

    state: str
    seconds: float | None = None
    message: str = ""


def nodes(workflow: Document) -> list[Document]:
    """Returns the nodes of a workflow, oldest first; Argo compresses them when they outgrow 1 MiB."""
    status = workflow.get("status") or {}
    found = status.get("nodes")
    if not found and (packed := status.get("compressedNodes")):
        try:
            found = json.loads(gzip.decompress(base64.b64decode(packed)))
        except (OSError, EOFError, ValueError):
            return []
    return sorted((found or {}).values(), key=lambda node: str(node.get("startedAt") or ""))


def is_compressed(workflow: Document) -> bool:
    """Whether the status has outgrown 1 MiB, so that Kubeflow's own details of the run stand still."""
    return "compressedNodes" in (workflow.get("status") or {})


def states(workflow: Document) -> dict[str, StageState]:
    """Returns how far each stage is that has begun, by its path."""
    found: dict[str, StageState] = {}
    cached: set[str] = set()
    for node in nodes(workflow):
        name, phase = str(node["name"]), str(node.get("phase", ""))
        if node.get("type") == "Skipped" and phase == "Skipped" and (path := task_of(name)):
            cached.add(path)  # the driver has found the result of an earlier run
        # A stage with tries has a node for all of them, and one each; the former comes first by its name.
        elif re.search(r"system-container-executor$", _template(node)) and not name.endswith(")"):
            state = StageState(STATES.get(phase, phase.upper()), _seconds(node), _message(node))
            found[_path(name)] = state
    return {
        path: StageState("CACHED") if path in cached and each.state == "SUCCEEDED" else each
        for path, each in found.items()
    }


def attempts(workflow: Document) -> list[Attempt]:
    """Returns the tries of all stages and drivers, oldest first; what came from the cache has drivers alone."""
    metadata = workflow.get("metadata") or {}
    is_plain = (metadata.get("annotations") or {}).get(POD_NAME_FORMAT) == "v1"
    found = []
    for node in nodes(workflow):
        template, name = _template(node), str(node["name"])
        is_driver = DRIVER.search(template) is not None
        if node.get("type") != "Pod" or not (is_driver or EXECUTOR.search(template)):
            continue
        if not (task := driven_by(name) if is_driver else task_of(name)):
            continue
        node_id = str(node["id"])
        prefix, _, digest = node_id.rpartition("-")
        pod = node_id if is_plain else f"{prefix}-{template}-{digest}"
        phase, started = str(node.get("phase", "")), str(node.get("startedAt") or "")
        found.append(Attempt(task, pod, phase, _message(node), started, is_driver))
    return found


def attempt_of(pod: Document) -> Attempt | None:
    """Returns the try that a pod of Kubernetes is, or None where it is no pod of a run."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    name = str((metadata.get("annotations") or {}).get(NODE_NAME, ""))
    task, driven = task_of(name), driven_by(name)
    if not (task or driven):
        return None
    started = str(status.get("startTime") or metadata.get("creationTimestamp") or "")
    message = str(status.get("message") or "") or _waiting(status)
    phase = str(status.get("phase", ""))
    return Attempt(task or driven, str(metadata["name"]), phase, message, started, is_driver=not task)


def paths(workflow: Document) -> dict[str, str]:
    """Returns the stages of a workflow whose pipeline is gone: by their path, the key of the task."""
    return {path: path.rpartition(SEPARATOR)[2] for path in states(workflow)}


def task_of(node_name: str) -> str:
    """Returns the task of an executor's node: `run-x7.root.learn.train.executor(1)` is a try of `learn.train`."""
    path, _, last = _path(node_name).rpartition(SEPARATOR)
    return path if last == "executor" else ""


def driven_by(node_name: str) -> str:
    """Returns the task whose driver a node is: `run-x7.root.learn.train-driver(0)` prepares `learn.train`."""
    path = _path(node_name)
    return path.removesuffix("-driver") if path.endswith("-driver") else ""


def _path(node_name: str) -> str:
    """Returns the keys of the tasks from the root down; the workflow's own name and `root` are left out."""
    return _ON_EXIT.sub("", _ATTEMPT.sub("", node_name)).partition(".")[2].removeprefix("root.")


def _template(node: Document) -> str:
    return str(node.get("templateName") or (node.get("templateRef") or {}).get("template") or "")


def _message(node: Document) -> str:
    return " ".join(str(node.get("message") or "").split())


def _seconds(node: Document) -> float | None:
    try:
        start, end = (datetime.fromisoformat(str(node[key])) for key in ("startedAt", "finishedAt"))
    except (KeyError, ValueError):
        return None
    return (end - start).total_seconds()


def _waiting(status: Document) -> str:
    """Returns why a pod's containers do not start: ErrImagePull and the like."""
    return next(_reasons(status), "")


def _reasons(status: Document) -> Iterator[str]:
    for container in status.get("containerStatuses") or []:
        if reason := ((container.get("state") or {}).get("waiting") or {}).get("reason"):
            yield str(reason)
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield " ".join(str(condition.get("message") or condition.get("reason") or "").split())
