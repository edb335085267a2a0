"""Runs one stage as a group of processes that cannot outlive the runner."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline import supervisor

GRACE_SECONDS = 10.0
POLL_SECONDS = 0.2


def run(
    argv: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    log: Path,
    lock: int,
    while_running: Callable[[], None],
) -> int:
    """Runs a command to its end.

    Args:
        argv: The command.
        environment: Its whole environment.
        folder: Its working directory.
        log: File for its output; overwritten.
        lock: Descriptor of the run's lock, kept by the stage's supervisor until everything of it has ended.
        while_running: Called a few times a second.

    Returns:
        The exit code, 128 + n when signal n ended it.

    Raises:
        KeyboardInterrupt, SystemExit: Whatever interrupts the runner; the stage has ended then.
    """
    read_end, write_end = os.pipe()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", supervisor.__file__, *argv],
            stdin=read_end,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=dict(environment),
            pass_fds=(lock,),
            start_new_session=True,
        )
    os.close(read_end)
    try:
        while not _ended(process, POLL_SECONDS):
            while_running()
        return int(process.returncode)
    except BaseException:
        _end(process, write_end)
        raise
    finally:
        os.close(write_end)
        while not _ended(process, POLL_SECONDS):
            pass


def _ended(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Waits for a process; says whether it has ended.

    Not `Popen.wait`: a Ctrl-C between two of its lines leaves its lock taken, and the next call waits for ever.
    """
    deadline = time.monotonic() + seconds
    while process.returncode is None:
        try:
            pid, status = os.waitpid(process.pid, os.WNOHANG)
        except ChildProcessError:  # reaped already, by a call that was interrupted
            pid, status = process.pid, 0
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
        elif time.monotonic() >= deadline:
            return False
        else:
            time.sleep(0.02)
    return True


def _end(process: "subprocess.Popen[bytes]", lifeline: int) -> None:
    """Asks the stage to end and gives it time to; closing the lifeline afterwards kills what is left."""
    with contextlib.suppress(BrokenPipeError):
        os.write(lifeline, b"T")
    patience = time.monotonic() + GRACE_SECONDS
    # A second Ctrl-C cuts the wait short.
    with contextlib.suppress(KeyboardInterrupt):
        _ended(process, patience - time.monotonic())
