"""Starting runs and following them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from components.step import StageError
from pipeline.kubeflow.api import ENDED, Kubeflow, Run, Version
from pipeline.kubeflow.connection import Document, Refused
from pipeline.kubeflow.package import Package
from pipeline.kubeflow.workflow import attempts
from pipeline.progress import duration

# Seconds between two looks at a run; the pause grows while nothing happens.
SHORTEST_PAUSE, LONGEST_PAUSE = 2.0, 10.0
_WORDS = {"SUCCEEDED": "done", "CANCELED": "cancelled", "CANCELING": "cancelling"}
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What a run or a schedule shall do.

    Attributes:
        name: How it is called in Kubeflow.
        package: The pipeline.
        version: Its uploaded version; None sends the pipeline along.
        arguments: Values of parameters that differ from the pipeline's defaults.
        experiment_id: Where it belongs.
        service_account: What its stages run as; empty for the installation's own.
    """

    name: str
    package: Package
    version: Version | None
    arguments: Mapping[str, Any]
    experiment_id: str
    service_account: str = ""

    def body(self) -> Document:
        """Returns the object to post."""
        body: Document = {
            "display_name": self.name,
            "experiment_id": self.experiment_id,
            "runtime_config": {"parameters": dict(self.arguments)},
        }
        if self.version:
            reference = {"pipeline_id": self.version.pipeline_id, "pipeline_version_id": self.version.id}
            body["pipeline_version_reference"] = reference
        else:
            body["pipeline_spec"] = self.package.document()
        return body | ({"service_account": self.service_account} if self.service_account else {})


def upload(api: Kubeflow, package: Package) -> tuple[Version, bool]:
    """Uploads a pipeline as a new version, unless this very content is there already.

    Returns:
        The version, and whether it is new.
    """
    pipeline = api.pipeline(package.name)
    if pipeline is None:
        described = str(package.spec["pipelineInfo"].get("description", ""))
        pipeline = api.create_pipeline(package.name, described)
    if known := api.version(pipeline, package.version_name):
        return known, False
    try:
        return api.upload_version(pipeline, package), True
    except Refused as error:
        # Somebody has uploaded the same content since it was looked for.
        known = api.version(pipeline, package.version_name) if error.status == 409 else None
        if known is None:
            raise
        return known, False


def follow(api: Kubeflow, run: Run, stages: Mapping[str, str], say: Say) -> Run:
    """Says every change of a run's stages until it has ended.

    Args:
        api: Where it runs.
        run: The run.
        stages: By the task's name, the stage's; other nodes of the run are Kubeflow's own.
        say: Told each line.

    Returns:
        The run as it ended.
    """
    shown: dict[str, str] = {}
    pause = SHORTEST_PAUSE
    while True:
        changes = _changes(run, stages, shown)
        for line in changes:
            say(line)
        if run.state in ENDED:
            return run
        pause = SHORTEST_PAUSE if changes else min(pause * 1.3, LONGEST_PAUSE)
        time.sleep(pause)
        run = api.run(run.id)


def _changes(run: Run, stages: Mapping[str, str], shown: dict[str, str]) -> list[str]:
    lines = []
    for task in run.tasks:
        if task.name not in stages or not task.state or shown.get(task.name) == task.state:
            continue
        shown[task.name] = task.state
        ended = sum(state in ENDED for state in shown.values())
        number = ended + (task.state not in ENDED)
        took = f" in {duration(task.seconds)}" if task.state == "SUCCEEDED" and task.seconds is not None else ""
        why = f": {task.error}" if task.error else ""
        lines.append(f"[{number:>2}/{len(stages)}] {stages[task.name]}: {word(task.state)}{took}{why}")
    return lines


def word(state: str) -> str:
    """Returns a state as people say it."""
    return _WORDS.get(state, state.lower())


def conclude(api: Kubeflow, run: Run, stages: Mapping[str, str]) -> None:
    """Raises when a run has not ended well, and says why as far as that is known.

    Raises:
        StageError: It failed or was cancelled.
    """
    if run.state in ("SUCCEEDED", "SKIPPED"):
        return
    lines = [f"run {run.name} ({run.id}): {word(run.state)}" + (f": {run.error}" if run.error else "")]
    if run.state == "FAILED":
        workflow = api.workflow(run.id)
        latest = {attempt.task: attempt for attempt in attempts(workflow or {})}
        failed = [task.name for task in run.tasks if task.state == "FAILED" and task.name in stages]
        for name in dict.fromkeys(failed):
            why = latest[name].message if name in latest else ""
            lines.append(f"  {stages[name]}: failed{': ' + why if why else ''}")
        lines.append(f"  its logs: gridbox logs {run.id}")
    raise StageError("\n".join(lines))
