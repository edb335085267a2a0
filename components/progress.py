"""Progress on standard error: a bar on a terminal, otherwise a plain line about once a second."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 1.0


def track(items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
    """Yields the items and shows how many of `total` have been seen, at what rate, and the time left.

    Args:
        items: Usually an iterator that does the work.
        total: Number of items, or 0 if it is not known.
        description: For example `converting training`.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from _plain_lines(items, total, description)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        yield from progress.track(items, total=total or None, description=description)


def _plain_lines(items: Iterable[Item], total: int, description: str) -> Iterator[Item]:
    start, last = time.monotonic(), float("-inf")
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or done == total:
            last = now
            rate = done / max(now - start, 1e-9)
            end = f"/{total}, {rate:.0f}/s, {max(total - done, 0) / rate:.0f} s left" if total else f", {rate:.0f}/s"
            print(f"{description}: {done}{end}", file=sys.stderr, flush=True)


class Download:
    """Shows the progress of a download; use it as a context and pass on `report`."""

    def __init__(self, description: str) -> None:
        """Takes what is shown before the numbers."""
        self._description = description
        self._last = time.monotonic()
        self._progress: Progress | None = None
        console = Console(stderr=True)
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._progress = Progress(*columns, console=console)
            self._task = self._progress.add_task(description, total=None)

    def __enter__(self) -> Self:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    def report(self, done: int, total: int | None) -> None:
        """Takes the bytes received, and their total if it is known."""
        if self._progress:
            self._progress.update(self._task, completed=done, total=total)
            return
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES or done == total:
            self._last = now
            of = f" of {total / 1e6:.1f}" if total is not None else ""
            print(f"{self._description}: {done / 1e6:.1f}{of} MB", file=sys.stderr, flush=True)
