"""Shows a run: a live table on a terminal, plain lines elsewhere, and the final table."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

State = Literal["waiting", "running", "done", "cached", "failed"]
TAIL_BYTES = 4096
# On a terminal that is none, a stage's note is printed when it changes, but not more often than this.
PLAIN_SECONDS = 10.0
# Longer ones, a digest or a sentence, would fill the table.
SHORT_TEXT = 32
_HEADLINES = (
    ("mean_average_precision", "AP"),
    ("loss", "loss"),
    ("pruning_ratio", "kept"),
    ("average_precision_after", "AP"),
    ("points_lost", "points lost"),
)
_COLOURS = {"waiting": "dim", "running": "yellow", "done": "green", "cached": "cyan", "failed": "red"}


@dataclass(slots=True)
class StageLine:
    """What is shown of one stage."""

    name: str
    state: State = "waiting"
    started: float = 0.0
    seconds: float = 0.0
    note: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    def elapsed(self) -> float:
        """Returns the seconds the stage has taken so far or took."""
        return time.monotonic() - self.started if self.state == "running" else self.seconds


class Progress:
    """The stages of a run and how far they are. Leaving the context prints the final table."""

    def __init__(self, stages: Sequence[str], console: Console) -> None:
        self.lines = {name: StageLine(name) for name in stages}
        self._console = console
        self._live = Live(
            get_renderable=self._table,
            console=console,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._is_live = console.is_terminal
        self._printed = time.monotonic()

    def __enter__(self) -> Self:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            self._live.stop()
        self._console.print(self._table())

    def start(self, stage: str) -> None:
        """Says that a stage has begun."""
        line = self.lines[stage]
        line.state, line.started, line.note = "running", time.monotonic(), ""
        self._print(line, "running")
        self._printed = time.monotonic()

    def note(self, stage: str, note: str) -> None:
        """Shows what a running stage is doing."""
        line = self.lines[stage]
        if not note or note == line.note:
            return
        line.note = note
        if not self._is_live and time.monotonic() - self._printed > PLAIN_SECONDS:
            self._printed = time.monotonic()
            self._print(line, note)

    def finish(self, stage: str, state: State, seconds: float, figures: Mapping[str, Any]) -> None:
        """Says how a stage ended."""
        line = self.lines[stage]
        line.state, line.seconds, line.figures = state, seconds, dict(figures)
        line.note = headline(figures)
        took = "" if state == "cached" else f" in {duration(seconds)}"
        self._print(line, f"{state}{took}{'  ' if line.note else ''}{line.note}")

    def _print(self, line: StageLine, text: str) -> None:
        if not self._is_live:
            ended = sum(other.state not in ("waiting", "running") for other in self.lines.values())
            number = ended + (line.state == "running")
            self._console.print(
                f"[{number:>2}/{len(self.lines)}] {line.name}: {text}", markup=False, highlight=False, soft_wrap=True
            )

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        table.add_column("stage", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("time", justify="right", no_wrap=True)
        table.add_column("figures", overflow="fold")
        for line in self.lines.values():
            took = duration(line.elapsed()) if line.state in ("running", "done", "failed") else ""
            state = f"[{_COLOURS[line.state]}]{line.state}[/]"
            table.add_row(escape(line.name), state, took, escape(line.note))
        return table


def duration(seconds: float) -> str:
    """Returns a duration as people read it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def headline(figures: Mapping[str, Any]) -> str:
    """Returns the figures of a stage that matter most, in one line."""
    if figures.get("skipped"):
        return "skipped"
    parts = []
    for name, label in _HEADLINES:
        if isinstance(figures.get(name), (int, float)):
            parts.append(f"{label} {figures[name]:.4g}")
    if isinstance(figures.get("parameters"), (int, float)):
        parts.append(f"{figures['parameters']:,.0f} parameters")
    if isinstance(figures.get("file_bytes"), (int, float)):
        parts.append(f"{figures['file_bytes'] / 1e6:.2f} MB")
    if not parts:
        counts = [(name, value) for name, value in figures.items() if _is_short(value) and name != "seconds"]
        parts = [f"{name.replace('_', ' ')} {_count(value)}" for name, value in counts][:4]
    return "  ".join(parts)


def _is_short(value: object) -> bool:
    return bool(value) and (isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= SHORT_TEXT))


def _count(value: float | str) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def current_note(work: Path, log: Path) -> str:
    """Returns what a stage is doing: epoch, loss and time left from its status log, else its last line of output."""
    return _training_note(work) or _last_line(log)


def _training_note(work: Path) -> str:
    for status in (work / "results" / "status.json", *sorted(work.glob("*/status.json"))):
        for line in reversed(_tail(status).splitlines()):
            try:
                record = json.loads(line)
                epoch, epochs, loss = record["epoch"] + 1, record["max_epoch"], record["graphical"]["loss"]
            except (ValueError, KeyError, TypeError):
                continue
            return f"epoch {epoch}/{epochs}  loss {loss:.5g}  ETA {record.get('eta', '?')}"
    return ""


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    return "".join(character for character in lines[-1] if character.isprintable())[:100] if lines else ""


def _tail(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - TAIL_BYTES))
            return stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
