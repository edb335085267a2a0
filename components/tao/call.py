"""Runs TAO's program: its output is streamed, signals go on to it, none of its processes stays."""

import collections
import contextlib
import os
import shlex
import signal
import subprocess
import threading
from pathlib import Path
from typing import Callable, List, Sequence

from components.step import UserError
from components.tao.failures import Failure, judge
from components.tao.status import STATUS_FILE, status_lines

TAO_KEY = "TAO_KEY"
GRACE_SECONDS = 20.0
SEARCHED_LINES = 400  # the last ones, for the cause of a failure


def call_task(
    network: str,
    task: str,
    arguments: Sequence[object],
    results: Path,
    failures: Sequence[Failure] = (),
    has_key: bool = True,
) -> None:
    """Calls `<network> <task>`. The key of encrypted models comes from the environment and is never printed.

    Args:
        network: The program, for example `detectnet_v2`.
        task: Its task.
        arguments: The task's options.
        results: Where the program writes its status log.
        failures: What this network's program says of its failures, searched before what all say.
        has_key: Whether the task opens a model, and so takes `-k`.

    Raises:
        UserError: As `call`; or the key is not safe.
        StageError: As `call`.
    """
    argv = [network, task, *map(str, arguments)]
    print("$ " + " ".join(argv), flush=True)
    key = os.environ.get(TAO_KEY, "") if has_key else ""
    if key != "" and shlex.quote(key) != key:
        raise UserError(
            TAO_KEY + ": NVIDIA's program hands the key to a shell; use letters, digits and @%+=:,./-_ only"
        )
    log = results / STATUS_FILE
    earlier = len(list(status_lines(log)))

    def reported() -> str:
        last = list(status_lines(log))[earlier:][-1:]
        return " ".join(str(r.get(k, "")) for r in last if r.get("status") == "FAILURE" for k in ("message", "Error"))

    call(argv + (["-k", key] if key else []), reported, key, failures)


def call(
    argv: List[str], reported: Callable[[], str] = str, secret: str = "", failures: Sequence[Failure] = ()
) -> None:
    """Runs a program, streams its output, and leaves none of its processes behind.

    SIGTERM and SIGINT go on to the program's process group, which gets `GRACE_SECONDS` to end.

    Args:
        argv: The command line.
        reported: Asked when the program has ended: the failure that it reports elsewhere than by its exit code.
        secret: A word of the command line that is not to be printed.
        failures: As `judge` takes them.

    Raises:
        UserError: The program is not installed, or failed by a mistake of the user.
        StageError: It failed; the text says why in one line where that is known, else it has the last lines printed.
        SystemExit: A signal ended it.
    """
    received: List[int] = []
    children: List[subprocess.Popen[str]] = []
    tail: collections.deque[str] = collections.deque(maxlen=SEARCHED_LINES)

    def forward(signum: int, _frame: object) -> None:
        received.append(signum)
        for child in children:
            _signal_group(child.pid, signum)
            killer = threading.Timer(GRACE_SECONDS, _signal_group, (child.pid, signal.SIGKILL))
            killer.daemon = True
            killer.start()

    def reap(child: "subprocess.Popen[str]") -> None:
        # What the program left running would hold the pipe open for ever.
        child.wait()
        _signal_group(child.pid, signal.SIGKILL)

    former = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        child = _start(argv)
        children.append(child)
        for signum in received:  # those that came while it started
            _signal_group(child.pid, signum)
        reaper = threading.Thread(target=reap, args=(child,), daemon=True)
        reaper.start()
        assert child.stdout is not None
        for line in child.stdout:
            line = line.replace(secret, "***") if secret else line
            tail.append(line.rstrip())
            print(line, end="", flush=True)
        reaper.join()
    finally:
        for child in children:
            _signal_group(child.pid, signal.SIGKILL)
        for number, handler in former.items():
            signal.signal(number, handler)
    if received:
        raise SystemExit(128 + received[0])
    judge(" ".join(argv[:2]), child.returncode, list(tail), reported(), failures)


def _start(argv: List[str]) -> "subprocess.Popen[str]":
    try:
        return subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        )
    except FileNotFoundError as error:
        raise UserError(f"{argv[0]} is not on PATH; use the image of gridbox or NVIDIA's TAO image") from error


def _signal_group(group: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signum)
