"""The Argo workflow behind a run: which pod ran which stage, and why a pod failed.

Kubeflow's API names neither (kubeflow/pipelines#14007). The workflow does, and its pods carry the same names.
"""

import re
from dataclasses import dataclass

from pipeline.kubeflow.connection import Document

# The template in which a stage's own container runs; one with retries has its own.
EXECUTOR = re.compile(r"(retry-)?system-container-impl$")
NODE_NAME = "workflows.argoproj.io/node-name"
POD_NAME_FORMAT = "workflows.argoproj.io/pod-name-format"
RUN_LABEL = "pipeline/runid"
_ATTEMPT = re.compile(r"\(\d+\)")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of a stage.

    Attributes:
        task: The task's name in the pipeline.
        pod: The pod's name.
        phase: In Argo's or Kubernetes' words: Pending, Running, Succeeded, Failed, Error, Skipped, …
        message: Why it is so; often empty.
        started: ISO 8601, for the order.
    """

    task: str
    pod: str
    phase: str
    message: str
    started: str

    @property
    def has_failed(self) -> bool:
        """Whether this try failed."""
        return self.phase in ("Failed", "Error")


def attempts(workflow: Document) -> list[Attempt]:
    """Returns the tries of all stages of a workflow, oldest first; what came from the cache has none."""
    metadata = workflow.get("metadata") or {}
    is_plain = (metadata.get("annotations") or {}).get(POD_NAME_FORMAT) == "v1"
    found = []
    for node in ((workflow.get("status") or {}).get("nodes") or {}).values():
        template = str(node.get("templateName") or (node.get("templateRef") or {}).get("template") or "")
        if node.get("type") != "Pod" or not EXECUTOR.search(template) or not (task := task_of(str(node["name"]))):
            continue
        node_id = str(node["id"])
        name, _, digest = node_id.rpartition("-")
        message = " ".join(str(node.get("message") or "").split())
        pod = node_id if is_plain else f"{name}-{template}-{digest}"
        found.append(Attempt(task, pod, str(node.get("phase", "")), message, str(node.get("startedAt") or "")))
    return sorted(found, key=lambda attempt: attempt.started)


def task_of(node_name: str) -> str:
    """Returns the task of a node: `run-x7.root.train.executor(1)` is a try of `train`; empty for other nodes."""
    *parents, last = _ATTEMPT.sub("", node_name).split(".")
    return parents[-1] if last == "executor" and parents else ""
