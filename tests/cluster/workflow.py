"""The Argo Workflow behind a run: its size, which stages ran, and when a stage ended."""

import json
from datetime import datetime
from urllib.parse import quote

from pipeline.kubeflow.workflow import SEPARATOR, is_compressed, nodes, states, task_of

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
    assert not is_compressed(workflow), "Argo has compressed the status: it is beyond 1 MiB"
    parts = {name: workflow.get(name) for name in ("spec", "status")}
    return len(json.dumps(parts, separators=(",", ":"), ensure_ascii=False).encode())


def computed(workflow):
    """Returns the keys of the tasks that did not take their result from the cache."""
    return {_key(path) for path, state in states(workflow).items() if state.state != "CACHED"}


def ended(workflow, key):
    """Returns when the last pod of a task ended, in seconds since 1970."""
    pods = [node for node in nodes(workflow) if node["type"] == "Pod" and _key(task_of(node["name"])) == key]
    return max(datetime.fromisoformat(pod["finishedAt"]).timestamp() for pod in pods)


def _key(path):
    return path.rpartition(SEPARATOR)[2]
