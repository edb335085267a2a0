"""What a training loop is made of: a state that can be resumed at any step, signals that wait for it, and a clock."""

import hashlib
import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from torch import Tensor, nn

from components.step import StageError, UserError
from components.vision.checkpoint import SUFFIX, load_tensors, save_tensors
from components.vision.optimizer import Optimizer, flattened, restore

RESUME_FILE = f"resume{SUFFIX}"
# Of the file; one of another layout counts as a training with other settings.
_LAYOUT = 2


class Resumable(Protocol):
    """A part of a training loop with a memory of its own."""

    def state(self) -> dict[str, Any]:
        """Returns its memory as plain values for JSON."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores what `state` returned."""
        ...


@dataclass
class TrainingState:
    """Everything that a later step depends on.

    Attributes:
        modules: The trained network, and averages of it, by name.
        optimizer: The network's optimiser.
        parts: Further parts of the loop by name (objective weights, schedule, cost scaling).
        settings: What the training depends on; a checkpoint of other settings is refused.
        if_diverged: What helps when the weights leave the numbers, for a person.
        epoch: Finished epochs.
        step: Finished steps of the current epoch.
        loss_sum: Sum of those steps' losses.
        finished: Whether training has ended before its last epoch.
    """

    modules: Mapping[str, nn.Module]
    optimizer: Optimizer
    parts: Mapping[str, Resumable]
    settings: Mapping[str, Any]
    if_diverged: str = "lower the learning rate"
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    finished: bool = False
    _saved_at: float = field(default_factory=time.monotonic, init=False)

    def save(self, results: Path) -> None:
        """Writes the state; the former one stays until this one is complete.

        Raises:
            StageError: A weight is no number; the former state stays.
        """
        tensors = {f"optimizer/{name}": value for name, value in flattened(self.optimizer).items()}
        for prefix, module in self.modules.items():
            tensors |= {f"{prefix}/{name}": value for name, value in module.state_dict().items()}
        if lost := [name for name, value in tensors.items() if not value.isfinite().all()]:
            raise StageError(f"{lost[0]} left the numbers; what was saved before is kept; {self.if_diverged}")
        header = {
            "progress": [self.epoch, self.step, self.loss_sum, self.finished],
            "parts": {name: part.state() for name, part in self.parts.items()},
            "settings": self._fingerprint(),
        }
        save_tensors(results / RESUME_FILE, tensors, header)
        self._saved_at = time.monotonic()

    @property
    def seconds_since_save(self) -> float:
        """Time since the last save (or since the beginning): what a kill would cost now."""
        return time.monotonic() - self._saved_at

    def resume(self, results: Path) -> bool:
        """Restores the state that `save` left in a results directory, if any; says whether it did.

        Raises:
            UserError: The directory holds a training with other settings.
        """
        file = results / RESUME_FILE
        if not file.is_file():
            return False
        tensors, header = load_tensors(file)
        if header["settings"] != self._fingerprint() or set(header.get("parts", ())) != set(self.parts):
            raise UserError(
                f"{results}: holds a training with other settings (spec, data, options or release); "
                "name an empty results directory, or delete this one to start afresh"
            )
        self.epoch, self.step, self.loss_sum, self.finished = header["progress"]
        for prefix, module in self.modules.items():
            module.load_state_dict(_under(f"{prefix}/", tensors))
        restore(self.optimizer, _under("optimizer/", tensors))
        for name, part in self.parts.items():
            part.restore(header["parts"][name])
        return True

    def end_epoch(self) -> float:
        """Goes on to the next epoch; returns the sum of the losses of the one that has ended."""
        loss_sum, self.loss_sum = self.loss_sum, 0.0
        self.epoch, self.step = self.epoch + 1, 0
        return loss_sum

    def _fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([_LAYOUT, self.settings], sort_keys=True).encode()).hexdigest()


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


class StopRequest:
    """Whether someone asked this process to stop (Ctrl-C, SIGTERM), to be looked at between two steps."""

    signal_number = 0

    def raise_if_made(self) -> None:
        """Ends the process as the signal would have, once everything is in place."""
        if self.signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal_number:
            raise SystemExit(128 + self.signal_number)


@contextmanager
def stop_between_steps() -> Iterator[StopRequest]:
    """Lets the step at work end before a first SIGTERM or Ctrl-C takes effect; a second one takes effect at once."""
    request = StopRequest()
    former: dict[int, Any] = {}

    def note(number: int, _frame: FrameType | None) -> None:
        request.signal_number = number
        for each, handler in former.items():
            signal.signal(each, handler)

    if threading.current_thread() is threading.main_thread():
        numbers = (signal.SIGTERM, signal.SIGINT)
        former = {each: signal.getsignal(each) for each in numbers if signal.getsignal(each) != signal.SIG_IGN}
    for number in former:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class EpochClock:
    """Measures epochs and foretells the end."""

    def __init__(self, first_epoch: int, epochs: int) -> None:
        self._begin = self._lap = time.monotonic()
        self._first, self._epochs = first_epoch, epochs

    def lap(self, finished: int) -> tuple[str, str]:
        """Returns the time of the epoch that just ended and the time that the remaining ones will take (h:mm:ss)."""
        now = time.monotonic()
        taken, self._lap = now - self._lap, now
        mean = (now - self._begin) / (finished - self._first)
        return _clock(taken), _clock(mean * (self._epochs - finished))


def _clock(seconds: float) -> str:
    # Tenths keep the epochs of small networks from all reading zero.
    whole = timedelta(seconds=int(seconds))
    return f"{whole}.{int(seconds * 10) % 10}"
