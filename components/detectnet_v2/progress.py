"""How far a long job is: a bar on a terminal, otherwise a line now and then."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track as bar

Item = TypeVar("Item")
_SECONDS_BETWEEN_LINES = 10.0


def track(items: Iterable[Item], total: int, unit: str) -> Iterator[Item]:
    """Yields the items and shows on standard error how many have been seen and at what rate.

    Args:
        items: What is worked on.
        total: How many there will be, or 0 where nobody knows.
        unit: What they are, for example `images`.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        yield from bar(items, unit, total=total or None, console=console)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            of = f" of {total}" if total else ""
            print(f"{done}{of} {unit}, {done / (now - start):.1f} a second", file=sys.stderr, flush=True)
