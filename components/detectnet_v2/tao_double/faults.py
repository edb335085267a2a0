"""What goes wrong on demand: `GRIDBOX_DOUBLE_FAIL=train:out-of-memory`; several by commas, `*` for any task."""

import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable

VARIABLE = "GRIDBOX_DOUBLE_FAIL"
NO_GPU = "no-gpu"


class ResourceExhaustedError(Exception):
    """TensorFlow's error for a GPU out of memory, the only one that TAO puts in words of its own."""


class DataLossError(Exception):
    """TensorFlow's error for a record file that is none."""


class WorkerKilled(BaseException):
    """The task's own process was killed (as a rule by the kernel, for memory) while the entry point lives on."""


class Silence(BaseException):
    """The task ends well without having written anything."""


def strike(task: str) -> None:
    """Does what the environment asks for, in the middle of a task's work.

    Raises:
        ValueError: It asks for an unknown fault.
    """
    fault = asked_for(task)
    if fault and fault != NO_GPU:
        FAULTS[fault]()


def asked_for(task: str) -> str:
    """Returns the fault that the environment asks for, or an empty text.

    Raises:
        ValueError: It asks for an unknown one.
    """
    for wish in filter(None, os.environ.get(VARIABLE, "").split(",")):
        wanted, _, fault = wish.strip().partition(":")
        if fault not in FAULTS:
            raise ValueError(f"{VARIABLE}={wish}: write TASK:FAULT with one of {', '.join(sorted(FAULTS))}")
        if wanted in (task, "*"):
            return fault
    return ""


def _raise(error: BaseException) -> Callable[[], None]:
    def strike() -> None:
        raise error

    return strike


def _hang() -> None:
    child = subprocess.Popen(["sleep", "600"])
    print("pids", os.getpid(), child.pid, flush=True)
    time.sleep(600)


_OUT_OF_MEMORY = "OOM when allocating tensor with shape[32,64,208,368] and type float on GPU:0 by allocator GPU_0_bfc"
FAULTS: dict[str, Callable[[], None]] = {
    "out-of-memory": _raise(ResourceExhaustedError(_OUT_OF_MEMORY)),
    "corrupted-record": _raise(DataLossError("corrupted record at 0")),
    "disk-full": _raise(OSError(errno.ENOSPC, "No space left on device")),
    "error": _raise(RuntimeError("cuDNN launch failure : input shape ([32,64,208,368])")),
    # How TAO reports a model that the key does not open: it leaves by sys.exit.
    "wrong-key": _raise(
        SystemExit("Invalid decryption. Unable to open file. The key used to load the model is incorrect.")
    ),
    "worker-killed": _raise(WorkerKilled()),
    "silence": _raise(Silence()),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "bus-error": lambda: os.kill(os.getpid(), signal.SIGBUS),
    "hang": _hang,
    NO_GPU: lambda: None,  # before any task: see `__main__`
}
