"""The two commands a user has, `gridbox` and `kubectl`, and a run of a workflow that is watched from the side."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

GRIDBOX = Path(sys.executable).with_name("gridbox")
# The user's own settings; width and colour must not depend on where the suite is started.
_ENVIRONMENT = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    command: tuple
    code: int
    out: str
    err: str
    seconds: float

    @property
    def text(self):
        """All that it said."""
        return self.out + self.err

    def ok(self):
        """Returns itself, where it ended well."""
        assert self.code == 0, f"{' '.join(self.command)}: exit code {self.code}\n{self.text}"
        return self


def run(*command, stdin=None, timeout=120.0, cwd=None):
    """Runs a command to its end."""
    words = tuple(map(str, command))
    start = time.monotonic()
    try:
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, timeout=timeout, cwd=cwd, env=os.environ | _ENVIRONMENT
        )
    except subprocess.TimeoutExpired as error:
        said = "".join(part.decode(errors="replace") for part in (error.stdout, error.stderr) if part)
        raise AssertionError(f"{' '.join(words)}: not done after {timeout:g} s\n{said}") from None
    return Ran(words, done.returncode, done.stdout, done.stderr, time.monotonic() - start)


def gridbox(*words, timeout=120.0, cwd=None):
    """Runs `gridbox` as a user does."""
    return run(GRIDBOX, *words, timeout=timeout, cwd=cwd)


class Kubectl:
    """`kubectl` in one context; raw paths, since a stub answers those, too."""

    def __init__(self, context=""):
        self._command = ("kubectl", *(("--context", context) if context else ()))

    def __call__(self, *words, stdin=None, timeout=120.0):
        return run(*self._command, *words, stdin=stdin, timeout=timeout)

    def get(self, path):
        """Returns an object of the API server, or None where there is none."""
        got = self("get", "--raw", path)
        if got.code and "NotFound" in got.err:
            return None
        return json.loads(got.ok().out)

    def apply(self, *documents):
        """Applies documents."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        self("apply", "--server-side", "-f", "-", stdin=json.dumps(listed)).ok()

    def wait_for(self, what, condition, seconds):
        """Waits until a condition gives something that is true, and returns it."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
            time.sleep(1)
        return found


_RUN = re.compile(r"^run (\S+): ([0-9a-f-]{36})$")


@dataclass
class Followed:
    """A run that `gridbox submit` started and followed.

    Attributes:
        command: What was called.
        lines: What it said, each with the seconds since its start.
        samples: Whatever `look` returned, look by look.
        code: How it ended.
        seconds: How long it took.
    """

    command: tuple
    lines: list = field(default_factory=list)
    samples: list = field(default_factory=list)
    code: int | None = None
    seconds: float = 0.0

    @property
    def text(self):
        """All that it said."""
        return "\n".join(line for _, line in self.lines)

    @property
    def run_id(self):
        """The run's id, as soon as it is known."""
        return next((found[2] for _, line in self.lines if (found := _RUN.match(line))), "")


def follow(*words, look, timeout, until=None, cwd=None):
    """Runs `gridbox WORDS` and looks at the run from the side every two seconds.

    Args:
        words: Of the command.
        look: Called with what is known of the run so far; what it returns is kept.
        timeout: Seconds that it may take.
        until: Ends the following (not the run) when it returns true.
        cwd: Where the command runs.
    """
    followed = Followed(("gridbox", *map(str, words)))
    start = time.monotonic()
    process = subprocess.Popen(
        [str(GRIDBOX), *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd,
        env=os.environ | _ENVIRONMENT | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip

    def read():
        for line in process.stdout:
            followed.lines.append((time.monotonic() - start, line.rstrip("\n")))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while process.poll() is None:
            assert time.monotonic() - start < timeout, f"{followed.command}: not done after {timeout:g} s"
            if followed.run_id and (sample := look(followed)) is not None:
                followed.samples.append(sample)
            if until and until(followed):
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
    finally:
        if process.poll() is None:
            process.terminate()
        followed.code = process.wait()
        reader.join(10)
        followed.seconds = time.monotonic() - start
    return followed
