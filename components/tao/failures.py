"""What a failed program of TAO's has printed, and what to say of it in one line."""

import re
import signal
from typing import List, Sequence, Tuple

from components.step import StageError, UserError

TAIL_LINES = 40  # are shown of a failure that is not known; causes are looked for in more
_MEMORY = "raise the memory limit of its container"
# What a failed program prints, and our message: (pattern, whether it is a mistake of the user, text); a group of the
# pattern takes the place of %s. The first that is found counts.
Failure = Tuple[str, bool, str]
# Of every network's program. Sources: TAO 5.0's scripts and its users' reports.
FAILURES: Tuple[Failure, ...] = (
    (
        # As argparse says it.
        r": error: ((?:unrecognized arguments|the following arguments are required|argument )[^\n]*)",
        True,
        "it refuses its command line (%s); options are those of TAO 5.0, and a path may hold no blank",
    ),
    (r"ParseError: (\d+:\d+ : .*)", True, "the spec is not of TAO 5.0's schema, at line:column %s"),
    (r"Spec file validation failed\.\s+(.+)", True, "TAO's validator refuses the spec: %s"),
    (
        "Invalid decryption|zipfile extracted was corrupt|check your key",
        True,
        "the model cannot be decrypted; the environment variable TAO_KEY must hold its key (NGC's page names it)",
    ),
    (
        "Ran out of GPU memory|ResourceExhaustedError|OOM when allocating|CUDA out of memory",
        False,
        "the GPU's memory is full; lower the batch size or the network's input size",
    ),
    (
        "No such file or directory: 'nvidia-smi'|Checking for valid GPU ids",
        False,
        "no GPU is visible; the stage needs one (nvidia.com/gpu: 1), on a node of a GPU pool",
    ),
    ("No space left on device", False, "the disk is full; give the stage a larger scratch volume"),
)
SIGNALS = {
    signal.SIGKILL: "it was killed, as a rule for memory; " + _MEMORY,
    signal.SIGBUS: "a bus error, as a rule for a /dev/shm that is too small; mount a larger one",
}
# Words of a log by which something else than a kill for memory, which leaves none, is to be suspected.
_SAYS_WHY = re.compile(r"(?i)traceback|error|exception|failed|invalid|refused|cannot|could not")


def judge(what: str, code: int, tail: List[str], reported: str, failures: Sequence[Failure] = ()) -> None:
    """Raises what a program's end asks for, if it failed.

    Args:
        what: The program and its task.
        code: Its exit code.
        tail: The last lines that it printed.
        reported: The failure that its status log tells.
        failures: Those of the network alone, searched before those of every network.

    Raises:
        UserError: It failed by a mistake of the user.
        StageError: It failed otherwise.
    """
    # NVIDIA's program ends with 0 after some failures, which it prints or only writes to its status log.
    said_so = any("Execution status: FAIL" in line for line in tail)
    if code == 0 and not reported and not said_so:
        return
    ended = "exit code " + str(code) if code >= 0 else "signal " + str(-code)
    text = "\n".join([*tail, reported])
    for pattern, is_mistake, said in (*failures, *FAILURES):
        found = re.search(pattern, text)
        if found:
            advice = said % found.groups() if found.groups() else said
            raise UserError(what + ": " + advice) if is_mistake else StageError(f"{what} failed ({ended}): {advice}")
    if -code in SIGNALS:
        raise StageError(f"{what} failed ({ended}): {SIGNALS[signal.Signals(-code)]}")
    printed = [line for line in tail if line.strip()]
    if code == 2:
        raise UserError(printed[-1] if printed else what + " refused its input")
    if said_so and not reported and not _SAYS_WHY.search("\n".join(tail[-TAIL_LINES:])):
        raise StageError(f"{what} failed ({ended}): its worker ended without a word, as a rule for memory; {_MEMORY}")
    why = ": " + " ".join(reported.split()) if reported else ""
    lines = "\n".join("  " + line for line in tail[-TAIL_LINES:])
    raise StageError(f"{what} failed ({ended}){why}; its last lines:\n{lines}")
