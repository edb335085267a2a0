"""Several processes that train one network, one per GPU, as torchrun starts them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
# The other processes wait while the first one validates.
_TIMEOUT = timedelta(hours=3)


@dataclass(frozen=True, slots=True)
class Group:
    """This process among those that train together.

    Attributes:
        rank: 0 for the one that prints, validates and writes files.
        size: Number of processes.
        local_rank: Among the processes of this machine; the index of its GPU.
        local_size: Number of processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def device(self) -> torch.device:
        """The GPU of this process, or the CPU."""
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    def mean(self, value: Tensor) -> Tensor:
        """Returns the mean of `value` over all processes."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.size

    def gathered(self, value: T) -> list[T]:
        """Returns what each process passed, by rank."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def from_first(self, *values: float) -> list[float]:
        """Returns the values that the first process passed."""
        if self.size == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return [float(value) for value in shared]


@contextmanager
def joined() -> Iterator[Group]:
    """Joins the processes that torchrun has started; alone without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group()
        return
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    group = Group(int(os.environ["RANK"]), size, local_rank, local_size)
    if torch.cuda.is_available():
        torch.cuda.set_device(group.device)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)
    try:
        yield group
    finally:
        dist.destroy_process_group()
