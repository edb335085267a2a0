"""Which images each step of an epoch shows, and batches made ahead of their use.

Every random draw depends on (seed, epoch, step, position in the joined batch of all processes) alone, so that a resumed
training sees the very same batches, and several processes together see those of a single one.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
_ORDER, _IMAGE = range(2)  # what a stream of random numbers is for


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """The images of an epoch's steps.

    Attributes:
        source_ids: [N], which data source each image comes from.
        batch_size: Images of a batch.
        seed: Of all draws.
        rank: Of this process.
        world_size: Number of processes that train together.
        uniform_sources: Draw each image's data source with equal probability; otherwise every image is taken once an
            epoch.
    """

    source_ids: NDArray[np.int64]
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    uniform_sources: bool = False

    @property
    def steps(self) -> int:
        """Batches in an epoch; the last one is filled up from the epoch's beginning."""
        return -(-len(self.source_ids) // (self.batch_size * self.world_size))

    def own(self, epoch: int) -> NDArray[np.int64]:
        """Returns the images [steps, batch size] of this process's steps."""
        return self.joined(epoch).reshape(self.steps, self.world_size, self.batch_size)[:, self.rank]

    def joined(self, epoch: int) -> NDArray[np.int64]:
        """Draws the images of all steps and processes of an epoch."""
        random = self._stream(_ORDER, epoch)
        total = self.steps * self.world_size * self.batch_size
        if not self.uniform_sources:
            return np.resize(random.permutation(len(self.source_ids)), total)
        sources = np.unique(self.source_ids)
        chosen = random.integers(len(sources), size=total)
        order = np.empty(total, np.int64)
        for number, source in enumerate(sources):
            own = random.permutation(np.flatnonzero(self.source_ids == source))
            places = np.flatnonzero(chosen == number)
            order[places] = np.resize(own, len(places))
        return order

    def random(self, epoch: int, step: int, position: int) -> np.random.Generator:
        """Returns what draws for the image at a position of this process's batch."""
        return self._stream(_IMAGE, epoch, step, self.rank * self.batch_size + position)

    def _stream(self, *key: int) -> np.random.Generator:
        # Spawn keys, for NumPy fills short seeds up with zeros: (7, 0) and (7, 0, 0, 0) would be one stream.
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))


def made_ahead(make: Callable[[int], T], steps: range, workers: int) -> Iterator[T]:
    """Yields `make(step)` of each step in order, made ahead by as many threads."""
    waiting = iter(steps)
    with ThreadPoolExecutor(workers) as pool:
        upcoming = deque(pool.submit(make, step) for step in islice(waiting, workers))
        try:
            while upcoming:
                made = upcoming.popleft().result()
                upcoming.extend(pool.submit(make, step) for step in islice(waiting, 1))
                yield made
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
