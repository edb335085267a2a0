"""Holds the processes of one stage. Started by the runner as `python -I -S supervisor.py command …`.

Its standard input is a lifeline from the runner: the byte `T` asks the stage to end, and when the pipe closes (the
runner ended, even by SIGKILL) everything below is killed at once. As their subreaper it finds processes that left the
stage's group. It inherits the run's lock, which therefore is free only when nothing of the run is alive any more.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main(command: list[str]) -> int:
    """Runs a command until it ends or the lifeline breaks; returns its exit code (128 + n after signal n)."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            # If this process itself is killed.
            preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
        )
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr)
        return 127
    _wait(child)
    code = child.poll()
    _kill(child.pid)
    code = child.wait() if code is None else code
    _end_descendants()
    return code if code >= 0 else 128 - code


def _wait(child: "subprocess.Popen[bytes]") -> None:
    """Returns when the child has ended or the lifeline is broken."""
    lifeline = sys.stdin.fileno()
    ended = os.pidfd_open(child.pid)
    poll = select.poll()
    poll.register(lifeline, select.POLLIN | select.POLLHUP)
    poll.register(ended, select.POLLIN)
    while True:
        events = [descriptor for descriptor, _ in poll.poll()]
        if ended in events:
            return
        if not os.read(lifeline, 1):
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _end_descendants() -> None:
    """Kills and reaps every process below; orphans come to this process as they lose their parents."""
    while True:
        for child in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            parent = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found.append(int(stat.parent.name))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
