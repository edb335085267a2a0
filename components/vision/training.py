"""What every training loop needs: progress lines, checkpoints that can be resumed, exact to the epoch."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from components.step import UserError
from components.vision.checkpoint import SUFFIX, load_tensors, save_tensors
from components.vision.optimizer import Adam

RESUME_FILE = f"resume{SUFFIX}"


@dataclass
class TrainingState:
    """Everything that a later step depends on, at the end of an epoch.

    Attributes:
        network: The trained network.
        optimizer: Its optimiser.
        extra: Further tensors of the loop, updated in place or replaced by it (objective weights).
        epoch: Finished epochs.
        settings: What the training depends on; a checkpoint of other settings is refused.
    """

    network: nn.Module
    optimizer: Adam
    extra: dict[str, Tensor]
    epoch: int
    settings: Mapping[str, Any]

    def save(self, results: Path) -> None:
        """Writes the state; the former one stays until this one is complete."""
        tensors = {f"network/{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"optimizer/{name}": value for name, value in self.optimizer.state().items()}
        tensors |= {f"extra/{name}": value for name, value in self.extra.items()}
        header = {"epoch": self.epoch, "steps": self.optimizer.step_count, "settings": self._fingerprint()}
        save_tensors(results / RESUME_FILE, tensors, header)

    def resume(self, results: Path) -> bool:
        """Restores the state that `save` left in a results directory, if any; says whether it did.

        Raises:
            UserError: The directory holds a training with other settings.
        """
        file = results / RESUME_FILE
        if not file.is_file():
            return False
        tensors, header = load_tensors(file)
        if header["settings"] != self._fingerprint():
            raise UserError(
                f"{results}: holds a training with other settings (spec, data or width); "
                "name an empty results directory, or delete this one to start afresh"
            )
        self.epoch = header["epoch"]
        self.network.load_state_dict(_under("network/", tensors))
        self.optimizer.load(_under("optimizer/", tensors), header["steps"])
        self.extra.update(_under("extra/", tensors))
        return True

    def _fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


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
