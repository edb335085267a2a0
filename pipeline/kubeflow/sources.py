"""The sources that tell the progress of a run's stages and their pods."""

import time
from collections.abc import Callable, Iterable, Mapping

from components.step import UserError
from pipeline.kubeflow import workflow as argo
from pipeline.kubeflow.api import ENDED, Kubeflow, Run, Task
from pipeline.kubeflow.cluster import Cluster
from pipeline.kubeflow.connection import Document, Refused, Unavailable
from pipeline.kubeflow.workflow import RUN_LABEL, Attempt, StageState
from pipeline.package import SEPARATOR

OpenCluster = Callable[[], Cluster]
# A workflow weighs up to a megabyte: it is fetched when the run's own details have changed, and else as seldom as this.
SECONDS = 30.0


class Sources:
    """The sources for one run: its Argo workflow by Kubeflow's older API or from Kubernetes, else details and pods.

    The details come last: they have no paths, so that stages of one name in two sub-pipelines are told apart by their
    order alone, and they stand still for ever once Argo has compressed the workflow's status.
    """

    def __init__(self, api: Kubeflow, open_cluster: OpenCluster, namespace: str) -> None:
        """Prepares the sources; nothing is asked yet.

        Args:
            api: Where the run is.
            open_cluster: Returns the Kubernetes beneath.
            namespace: Of the run's pods.
        """
        self._api, self._open_cluster, self._namespace = api, open_cluster, namespace
        self._has_older_api = self._has_workflows = self._has_pods = True
        self._workflow: Document | None = None
        self._tasks: tuple[Task, ...] = ()
        self._asked = float("-inf")

    def states(self, run: Run, stages: Mapping[str, str]) -> dict[str, StageState]:
        """Returns how far each stage is that has begun, by its path."""
        is_due = time.monotonic() - self._asked >= SECONDS or run.tasks != self._tasks or run.state in ENDED
        if is_due or argo.is_compressed(self._workflow or {}):
            self._workflow = self.workflow(run) or self._workflow
            self._tasks, self._asked = run.tasks, time.monotonic()
        return argo.states(self._workflow or {}) or of_details(run.tasks, stages) | self._states_of_pods(run)

    def stages(self, run: Run) -> dict[str, str]:
        """Returns the stages that have begun, of a run whose pipeline is gone: by their path, their name."""
        if found := argo.paths(self.workflow(run) or {}):
            return found
        names = {task.name for task in run.tasks} - {"root"}
        return {name: name for name in sorted(names) if f"{name}-driver" in names}

    def message(self) -> str:
        """Returns why the workflow as a whole ended as it did; mostly empty."""
        return " ".join(str(((self._workflow or {}).get("status") or {}).get("message") or "").split())

    def workflow(self, run: Run) -> Document | None:
        """Returns the Argo workflow behind a run, or None if no source has it."""
        if self._has_older_api:
            try:
                return self._api.workflow(run.id)
            except Refused:
                self._has_older_api = False
            except Unavailable:
                return None
        if self._has_workflows:
            path = f"apis/argoproj.io/v1alpha1/namespaces/{self._namespace}/workflows"
            try:
                found = self._open_cluster().listed(path, f"{RUN_LABEL}={run.id}")
            except UserError:
                self._has_workflows = False
            else:
                return found[0] if found else None
        return None

    def pods(self, run: Run) -> list[Attempt]:
        """Returns the pods of a run as Kubernetes has them now, oldest first.

        Raises:
            UserError: Kubernetes does not tell.
        """
        pods = self._open_cluster().listed(f"api/v1/namespaces/{self._namespace}/pods", f"{RUN_LABEL}={run.id}")
        return sorted(filter(None, map(argo.attempt_of, pods)), key=lambda attempt: attempt.started)

    def _states_of_pods(self, run: Run) -> dict[str, StageState]:
        """Returns how far the stages are that have a pod: all but those from the cache."""
        if not self._has_pods:
            return {}
        try:
            pods = self.pods(run)
        except UserError:
            self._has_pods = False
            return {}
        return {
            pod.task: StageState(argo.STATES.get(pod.phase, pod.phase.upper())) for pod in pods if not pod.is_driver
        }

    def attempts(self, run: Run) -> list[Attempt]:
        """Returns the tries of all stages and drivers, oldest first.

        Raises:
            UserError: Neither the API nor Kubernetes tells.
        """
        if found := argo.attempts(self.workflow(run) or {}):
            return found
        try:
            return self.pods(run)
        except UserError as error:
            raise UserError(f"run {run.id}: the API does not say which pods ran it, and {error}") from error


def of_details(tasks: Iterable[Task], stages: Mapping[str, str]) -> dict[str, StageState]:
    """Returns how far each stage is by the details of a run, which name the last part of its path alone.

    Where several stages have the same, they are taken in the order in which they began.
    """
    found: dict[str, StageState] = {}
    for task in sorted(tasks, key=lambda task: task.started.timestamp() if task.started else float("inf")):
        of_name = [path for path in stages if path.rpartition(SEPARATOR)[2] == task.name and path not in found]
        if of_name and task.state:
            found[of_name[0]] = StageState(task.state, task.seconds, task.error)
    return found
