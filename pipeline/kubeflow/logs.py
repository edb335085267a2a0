"""The logs of a run's stages: from the Pipelines API while it knows the pods, else from Kubernetes.

Neither keeps logs for ever: Kubeflow 2.17 removes a run's pods an hour after its end, and then the API answers from its
archive only where the installation keeps one (`executor-logs`, `main.log` in its bucket).
"""

from collections.abc import Callable, Iterator, Mapping

from components.step import StageError, UserError
from pipeline.kubeflow.api import Kubeflow, Run, Server
from pipeline.kubeflow.cluster import Cluster
from pipeline.kubeflow.connection import Document
from pipeline.kubeflow.workflow import NODE_NAME, RUN_LABEL, Attempt, attempts, task_of

OpenCluster = Callable[[], Cluster]


def chosen(run: Run, stages: Mapping[str, str], stage: str) -> list[str]:
    """Returns the tasks whose logs are wanted: the named one, else those that failed, else all that have begun.

    Raises:
        UserError: There is no such stage.
    """
    if stage:
        named = [task for task, shown in stages.items() if stage in (task, shown)]
        if not named:
            raise UserError(f"{stage}: the run has no such stage; there are {', '.join(sorted(stages.values()))}")
        return named
    begun = [task for task in run.tasks if task.name in stages]
    failed = [task.name for task in begun if task.state == "FAILED"]
    return list(dict.fromkeys(failed or [task.name for task in begun]))


def tries(api: Kubeflow, run: Run, open_cluster: OpenCluster, namespace: str) -> list[Attempt]:
    """Returns the tries of all stages, oldest first.

    Raises:
        UserError: Neither the API nor Kubernetes tells.
    """
    if (workflow := api.workflow(run.id)) and (found := attempts(workflow)):
        return found
    try:
        pods = open_cluster().listed(f"api/v1/namespaces/{namespace}/pods", f"{RUN_LABEL}={run.id}")
    except UserError as error:
        raise UserError(f"run {run.id}: the API does not say which pods ran it, and {error}") from error
    found = [attempt for pod in pods if (attempt := _attempt(pod))]
    return sorted(found, key=lambda attempt: attempt.started)


def text(
    api: Kubeflow, server: Server, run: Run, attempt: Attempt, open_cluster: OpenCluster, namespace: str
) -> Iterator[str]:
    """Yields a try's lines, from the API or else from Kubernetes.

    Raises:
        UserError: Neither has them.
        StageError: The API's answer broke off.
    """
    lines = api.log(server, run.id, attempt.pod)
    try:
        first = next(lines, None)
    except (UserError, StageError) as error:
        yield from _from_cluster(attempt, open_cluster, namespace, error)
        return
    if first is not None:
        yield first
        yield from lines


def _from_cluster(attempt: Attempt, open_cluster: OpenCluster, namespace: str, refused: Exception) -> Iterator[str]:
    try:
        yield from open_cluster().log(namespace, attempt.pod, follow=False)
    except UserError as error:
        raise UserError(f"pod {attempt.pod}: no log: {refused}; nor from Kubernetes: {error}") from error


def _attempt(pod: Document) -> Attempt | None:
    metadata, status = pod["metadata"], pod.get("status") or {}
    if not (task := task_of((metadata.get("annotations") or {}).get(NODE_NAME, ""))):
        return None
    started = str(status.get("startTime") or metadata.get("creationTimestamp") or "")
    return Attempt(task, str(metadata["name"]), str(status.get("phase", "")), str(status.get("message") or ""), started)
