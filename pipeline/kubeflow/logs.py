"""The logs of a run's stages: from the Pipelines API while it knows the pods, else from Kubernetes.

Neither keeps logs for ever: Kubeflow 2.17 removes a run's pods an hour after its end, and then the API answers from its
archive only where the installation keeps one (`executor-logs`, `main.log` in its bucket).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from components.step import StageError, UserError
from pipeline.kubeflow.workflow import Attempt, StageState

if TYPE_CHECKING:
    from pipeline.kubeflow.api import Run
    from pipeline.kubeflow.session import Session

# What Kubeflow's launcher and driver write (Go's glog), and what Argo's executor writes beside them.
_LAUNCHER = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ \S+\.go:\d+\] ")
_ARGO = re.compile(r'time="?\d{4}-\d\d-\d\dT\S+ level=\w+ msg=.* argo=true|Error: exit status \d+$')


def chosen(states: Mapping[str, StageState], stages: Mapping[str, str], stage: str) -> list[str]:
    """Returns the stages whose logs are wanted: the named one, else those that failed, else all that have begun.

    Raises:
        UserError: There is no such stage.
    """
    if stage:
        named = [path for path, shown in stages.items() if stage in (path, shown)]
        if not named:
            raise UserError(f"{stage}: the run has no such stage; there are {', '.join(sorted(stages.values()))}")
        return named
    begun = [path for path in states if path in stages]
    return [path for path in begun if states[path].state == "FAILED"] or begun


def text(session: "Session", run: "Run", attempt: Attempt) -> Iterator[str]:
    """Yields a try's lines, from the API or else from Kubernetes.

    Raises:
        UserError: Neither has them.
        StageError: The API's answer ended early.
    """
    lines = session.api.log(session.server, run.id, attempt.pod)
    try:
        first = next(lines, None)
    except (UserError, StageError) as error:
        yield from _from_cluster(session, attempt, error)
        return
    if first is not None:
        yield first
        yield from lines


def own(lines: Iterable[str]) -> Iterator[str]:
    """Yields the lines that a stage's program wrote; Kubeflow's launcher and Argo's executor write between them."""
    is_inside = False  # of a JSON object that the launcher writes over several lines
    for line in lines:
        if is_inside:
            is_inside = line != "}"
        elif _LAUNCHER.match(line):
            is_inside = line.endswith("{")
        elif not _ARGO.match(line):
            yield line


def last_line(session: "Session", run: "Run", attempt: Attempt) -> str:
    """Returns the last line of a stage's program, or the last error of a driver; empty if it is not known."""
    try:
        lines = list(text(session, run, attempt))
    except (UserError, StageError):
        return ""
    if attempt.is_driver:
        errors = [line for line in lines if _LAUNCHER.match(line) and line[0] in "EF"]
        lines = [_LAUNCHER.sub("", line) for line in errors] or lines
    else:
        lines = list(own(lines))
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _from_cluster(session: "Session", attempt: Attempt, refused: Exception) -> Iterator[str]:
    try:
        yield from session.cluster().log(session.pod_namespace, attempt.pod, follow=False)
    except UserError as error:
        raise UserError(f"pod {attempt.pod}: no log: {refused}; nor from Kubernetes: {error}") from error
