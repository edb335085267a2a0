"""The Argo Workflow behind a run: its size, which stages ran, and when a stage ended."""

import json
from datetime import datetime
from urllib.parse import quote

from pipeline.kubeflow.workflow import attempts, task_of

# Beyond it Argo compresses the status, and Kubeflow's API has no details of tasks any more.
BUDGET = 1 << 20


def find(kubectl, namespace, run_id):
    """Returns the Workflow of a run, or None."""
    selector = quote(f"pipeline/runid={run_id}", safe="")
    path = f"/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflows?labelSelector={selector}"
    items = (kubectl.get(path) or {}).get("items") or []
    return items[0] if items else None


def size(workflow):
    """Returns the bytes of specification and status together."""
    assert "compressedNodes" not in workflow.get("status", {}), "Argo has compressed the status: it is beyond 1 MiB"
    parts = {name: workflow.get(name) for name in ("spec", "status")}
    return len(json.dumps(parts, separators=(",", ":"), ensure_ascii=False).encode())


def ran(workflow):
    """Returns the tasks that a pod of their own has run, each once."""
    idle = ("Skipped", "Omitted")
    return list(dict.fromkeys(each.task for each in attempts(workflow) if each.phase not in idle))


def ended(workflow, task):
    """Returns when the last pod of a task ended, in seconds since 1970."""
    times = [
        node["finishedAt"]
        for node in workflow["status"]["nodes"].values()
        if node["type"] == "Pod" and task_of(node["name"]) == task and node.get("finishedAt")
    ]
    return datetime.fromisoformat(max(times)).timestamp()
