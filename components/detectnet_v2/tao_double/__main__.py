"""The double's entry point: `python -m components.detectnet_v2.tao_double train …`, or as installed, `detectnet_v2`."""

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.detectnet_v2.tao_double import arguments, faults
from components.vision.status import Status, StatusLog

BANNER = (
    "gridbox's double of NVIDIA TAO 5.0: options, specs and files are checked, nothing is learnt, figures are made up"
)
OUT_OF_MEMORY = (
    "Ran out of GPU memory, please lower the batch size, use a smaller input resolution, or use a smaller backbone."
)
# What TAO's process returns after `sys.exit(-1)`.
FAILED = 255


def main(argv: Sequence[str]) -> int:
    """Runs one task; returns the exit code of TAO's entry point.

    Raises:
        SystemExit: With code 2: the command line is wrong.
    """
    print(BANNER, flush=True)
    task, words = arguments.parse(argv)
    if faults.asked_for(task) == faults.NO_GPU:
        raise FileNotFoundError(2, "No such file or directory", "nvidia-smi")
    passed = _run_program(task, words)
    # TAO says so after failures, too.
    print("Telemetry data couldn't be sent, but the command ran successfully.")
    print(f"Execution status: {'PASS' if passed else 'FAIL'}", flush=True)
    return 0 if passed else FAILED


def _run_program(task: str, words: Sequence[str]) -> bool:
    """Does what the task's own program does; returns whether its process ends with 0."""
    try:
        options = arguments.parse_task(task, words)
    except SystemExit:
        return False
    from components.detectnet_v2.tao_double import tasks  # takes half a second, which a wrong option need not

    status = _Status(getattr(options, "results_dir", None))
    try:
        tasks.TASKS[task](options, status)
    except faults.Silence:
        return True
    except faults.WorkerKilled:
        return False
    except SystemExit as end:
        # TAO 5.0 takes every sys.exit within a task, its own validator's too, for an interruption, and ends well.
        error = {"Error": str(end.code)} if task == "train" else {}
        status.write("FAILURE", f"{tasks.NAMES[task]} was interrupted", **error)
        return True
    except faults.ResourceExhaustedError:
        print(f"[TAO Toolkit] [ERROR] __main__: {OUT_OF_MEMORY}", flush=True)
        status.write("FAILURE", OUT_OF_MEMORY)
        return False
    except Exception as error:
        status.write("FAILURE", str(error))
        traceback.print_exc()
        return False
    status.write("SUCCESS", f"{tasks.NAMES[task]} finished successfully.")
    return True


class _Status:
    """The status log, where a results directory is named."""

    def __init__(self, results: str | None) -> None:
        self._log = StatusLog(Path(results)) if results else None

    def write(self, status: Status, message: str, **fields: Any) -> None:  # noqa: ANN401 - TAO's further keys
        if fields.get("kpi"):
            fields["kpi"] = {**fields["kpi"], "double": 1}
        if self._log:
            self._log.write(status, message, **fields)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
