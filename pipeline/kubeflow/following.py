"""Following a run to its end: every change of its stages, a word when nothing moves, and how it ended."""

import re
import time
from collections.abc import Callable, Iterator, Mapping

from components.step import StageError, UserError
from pipeline.kubeflow import logs
from pipeline.kubeflow.api import ENDED, Run
from pipeline.kubeflow.connection import Unavailable
from pipeline.kubeflow.session import SYSTEM_NAMESPACE, Session
from pipeline.kubeflow.workflow import RUN_LABEL, Attempt, StageState
from pipeline.progress import duration

# Seconds between two looks at a run; the pause grows while nothing happens.
SHORTEST_PAUSE, LONGEST_PAUSE = 2.0, 10.0
_WORDS = {"SUCCEEDED": "done", "CANCELED": "cancelled", "CANCELING": "cancelling"}
_STAGE_ENDED = ENDED | {"CACHED"}
_EXIT = re.compile(r"main: Error \((exit code \d+)\)")
Say = Callable[[str], None]


class Follower:
    """Says what happens in one run."""

    def __init__(self, session: Session, stages: Mapping[str, str], say: Say) -> None:
        """Prepares to follow.

        Args:
            session: Where the run is.
            stages: By their path, the names of its stages.
            say: Told each line.
        """
        self._session, self._stages, self._say = session, stages, say
        self._sources = session.sources()
        self._patience = session.configuration.settings.patience
        self._shown: dict[str, StageState] = {}

    def follow(self, run: Run) -> Run:
        """Says every change of a run's stages until it has ended.

        Returns:
            The run as it ended.

        Raises:
            Unavailable: Kubeflow does not answer, and has not for as long as the setting `patience` says.
        """
        pause, moved, wait = SHORTEST_PAUSE, time.monotonic(), self._patience
        while True:
            if self._show(run):
                pause, moved, wait = SHORTEST_PAUSE, time.monotonic(), self._patience
            if run.state in ENDED:
                self._say_untold(run)
                return run
            if time.monotonic() - moved >= wait:
                for line in self._standstill(run, time.monotonic() - moved):
                    self._say(line)
                wait *= 2  # a long training is no news every few minutes
            time.sleep(pause)
            pause = min(pause * 1.3, LONGEST_PAUSE)
            run = self._next(run)

    def conclude(self, run: Run) -> None:
        """Raises when a run has not ended well, and says why as far as that is known.

        Raises:
            StageError: It failed, was cancelled, or ended in a way that this program does not know.
        """
        if run.state in ("SUCCEEDED", "SKIPPED"):
            return
        why = run.error or (self._sources.message() if run.state == "FAILED" else "")
        lines = [f"run {run.name} ({run.id}): {word(run.state)}" + (f": {why}" if why else "")]
        if run.state == "FAILED":
            lines += [f"  {line}" for line in self._failures(run)]
            lines.append(f"  its logs: gridbox logs {run.id}")
        raise StageError("\n".join(lines))

    def _next(self, run: Run) -> Run:
        """Asks for the run, again and again while the server is down."""
        given_up = time.monotonic() + self._patience
        is_said = False
        while True:
            try:
                return self._session.api.run(run.id)
            except Unavailable as error:
                if time.monotonic() >= given_up:
                    raise
                if not is_said:
                    self._say(f"{error}; asked again for {duration(self._patience)}")
                is_said = True
                time.sleep(LONGEST_PAUSE)

    def _show(self, run: Run) -> bool:
        """Says what has changed; returns whether anything has."""
        states = self._sources.states(run, self._stages)
        changed = {
            path: state
            for path, state in states.items()
            if path in self._stages and state.state != self._shown.get(path, StageState("")).state
        }
        skipped = [path for path, state in changed.items() if state.state == "SKIPPED"]
        for path, state in changed.items():
            self._shown[path] = state
            if state.state != "SKIPPED":
                self._say(f"{self._count(state)} {self._stages[path]}: {_described(state)}")
        if skipped:
            names = ", ".join(self._stages[path] for path in self._stages if path in skipped)
            self._say(f"{self._count(StageState('SKIPPED'))} skipped: {names}")
        return bool(changed)

    def _count(self, state: StageState) -> str:
        ended = sum(each.state in _STAGE_ENDED for each in self._shown.values())
        return f"[{ended + (state.state not in _STAGE_ENDED):>2}/{len(self._stages)}]"

    def _say_untold(self, run: Run) -> None:
        """Reports stages whose end is unknown: Kubeflow's details do not change, and no other source answers."""
        has_begun = self._shown or run.state == "SUCCEEDED"
        is_told = self._shown and all(state.state in _STAGE_ENDED for state in self._shown.values())
        if has_begun and not is_told:
            untold = [
                name
                for path, name in self._stages.items()
                if self._shown.get(path, StageState("")).state not in _STAGE_ENDED
            ]
            self._say(f"Kubeflow gives no details any more of {', '.join(untold)}; the run itself: {word(run.state)}")

    def _standstill(self, run: Run, seconds: float) -> Iterator[str]:
        """Says what there is to look at when no stage has changed for long."""
        going_on = [path for path, state in self._shown.items() if state.state not in _STAGE_ENDED]
        last = going_on or list(self._shown)[-1:]
        shown = [f"{self._stages[path]} ({word(self._shown[path].state)})" for path in last]
        names = ", ".join(shown) or "none has begun"
        namespace = self._session.pod_namespace
        try:
            pods = self._sources.pods(run)
        except UserError as error:
            yield f"no stage has changed for {duration(seconds)}: {names}"
            look = f"kubectl -n {namespace} get pods -l {RUN_LABEL}={run.id}"
            yield f"  its pods are not seen from here ({error}): {look}"
        else:
            alive = [pod for pod in pods if pod.phase in ("Pending", "Running")]
            if any(pod.phase == "Running" for pod in alive):
                yield f"still at it after {duration(seconds)}: {names}; {_listed(alive)}"
                return
            yield f"no stage has changed for {duration(seconds)}: {names}"
            latest = [pod for pod in pods if pod.task in last][-3:] or pods[-3:]
            yield f"  {_listed(alive or latest) or 'no pod of the run is there'}"
            if alive:
                yield f"  see why it waits: kubectl -n {namespace} describe pod {alive[-1].pod}"
                return
        yield (
            "  where no pod runs, Argo does not go on; it says why in the workflow controller's log: "
            f"kubectl -n {SYSTEM_NAMESPACE} logs deploy/workflow-controller"
        )

    def _failures(self, run: Run) -> Iterator[str]:
        """Yields a line for each stage, or its driver, that failed: with the last line of its own."""
        try:
            attempts = self._sources.attempts(run)
        except UserError:
            attempts = []
        latest = {(attempt.task, attempt.is_driver): attempt for attempt in attempts}
        failed = [path for path, state in self._shown.items() if state.state == "FAILED"]
        for path in failed:
            attempt = latest.get((path, False))
            yield f"{self._stages[path]}: failed{self._why(run, attempt, self._shown[path].message)}"
        drivers = [each for each in latest.values() if each.is_driver and each.has_failed]
        for driver in drivers:
            name = self._stages.get(driver.task) or driver.task
            yield f"{name}: its driver, which prepares the stage, failed{self._why(run, driver, '')}"
        if not attempts:
            known = [f"{path.rpartition('.')[2]}-driver" for path in self._stages]
            for task in run.tasks:
                if task.state == "FAILED" and task.name in (*known, "root-driver"):
                    yield f"{task.name.removesuffix('-driver')}: its driver, which prepares the stage, failed"

    def _why(self, run: Run, attempt: Attempt | None, message: str) -> str:
        if attempt is None:
            return f": {message}" if message else ""
        said = logs.last_line(self._session, run, attempt)
        message = attempt.message or message
        if not said:
            return f": {message}" if message else ""
        code = _EXIT.fullmatch(message)
        return f": {said}" + (f" ({code[1] if code else message})" if message else "")


def word(state: str) -> str:
    """Returns a state as people say it."""
    return _WORDS.get(state, state.lower())


def _described(state: StageState) -> str:
    took = f" in {duration(state.seconds)}" if state.state == "SUCCEEDED" and state.seconds is not None else ""
    return f"{word(state.state)}{took}" + (f": {state.message}" if state.message else "")


def _listed(pods: list[Attempt]) -> str:
    return ", ".join(f"pod {pod.pod}: {pod.phase}{f' ({pod.message})' if pod.message else ''}" for pod in pods)
