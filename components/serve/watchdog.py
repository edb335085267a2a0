"""Ends Triton with its models' processes once the command that started them is gone, however it ended.

Runs as a process of its own, on the standard library alone: `watchdog.py GROUP PREFIX`, its standard input a pipe whose
other end the command holds; what they leave in shared memory under the prefix goes, too. The kernel tells Triton of its
parent's death, but the models' processes do not learn of it, and wait for ever when Triton ends while it starts them.
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

GRACE_SECONDS = 10.0


def main() -> None:
    """Waits for the end of the pipe, then for the process group, then kills it."""
    sys.stdin.buffer.read()
    group, deadline = int(sys.argv[1]), time.monotonic() + GRACE_SECONDS
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.1)
        os.killpg(group, signal.SIGKILL)
    for region in Path("/dev/shm").glob(f"{sys.argv[2]}*"):
        region.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
