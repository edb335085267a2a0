"""Maps a function over many items in parallel processes: results in order, bounded memory, no orphaned processes."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from components.step import StageError
from components.vision.threads import available_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

# Finished results kept per worker: enough to compensate for slow items, few enough for the memory.
WAITING_PER_WORKER = 4
# Starting a worker takes about as long as this many images.
WORTH_A_WORKER = 32


def ordered_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int = 0,
    prepare: Callable[..., None] | None = None,
    arguments: tuple[object, ...] = (),
) -> Generator[Result, None, None]:
    """Yields `function(item)` for every item, in the order of the items.

    Close the generator (`contextlib.closing`) if the loop over it may end early: that ends the workers.

    Args:
        function: A function of a module (it is sent to the workers by name).
        items: Sent to the workers shortly ahead of the results.
        workers: Number of processes; 0 means one for every core this process may use, but fewer for few items. 1 works
            in this process.
        prepare: Called once in each worker with `arguments` before its first item.
        arguments: See `prepare`.

    Raises:
        StageError: A worker was killed.
    """
    workers = workers or min(available_cores(), 1 + len(items) // WORTH_A_WORKER)
    if workers == 1:
        if prepare:
            prepare(*arguments)
        yield from map(function, items)
        return
    # A fresh interpreter each: forking a process in which OpenCV already runs threads can deadlock.
    executor = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(prepare, arguments)
    )
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            with _interrupts_wait():
                pending.append(executor.submit(function, item))
            if len(pending) > WAITING_PER_WORKER * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise StageError("a worker process was killed, perhaps for lack of memory; try again") from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Blocks Ctrl-C while workers start: they inherit the mask, so that only this process handles it."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _start_worker(prepare: Callable[..., None] | None, arguments: tuple[object, ...]) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if prepare:
        prepare(*arguments)


def _die_with_parent() -> None:
    """Ends this worker when its parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
