"""Reads TAO's `status.json`: JSON lines."""

import contextlib
import datetime
import json
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

STATUS_FILE = "status.json"


def status_lines(file: Path) -> Iterator[Dict[str, Any]]:
    """Yields the records of a `status.json`; none where there is no such file."""
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        with contextlib.suppress(ValueError):  # a line cut off by a kill
            yield json.loads(line)


def status_seconds(file: Path) -> Optional[float]:
    """Returns how long the work of a `status.json` took, or None when it does not say.

    A resumed training has several starts; what passed between the end of an attempt and the next start is left out.
    """
    total, begin, last = 0.0, None, None
    for record in status_lines(file):
        now = datetime.datetime.strptime(record["date"] + " " + record["time"], "%m/%d/%Y %H:%M:%S")
        if record["status"] == "STARTED":
            total += (last - begin).total_seconds() if begin and last else 0.0
            begin = now
        last = now
    return total + (last - begin).total_seconds() if begin and last else None


def read_status(file: Path) -> Dict[str, Any]:
    """Returns the last loss and performance figures of a `status.json` (JSON lines, as TAO writes it).

    Keys have underscores for spaces; `mean_average_precision` is a fraction here (TAO writes percent) and `parameters`
    a number (TAO writes `param_count` in millions). TAO's `size` is left out: the file's own size is exact.
    """
    figures: Dict[str, Any] = {}
    for record in status_lines(file):
        for section in ("graphical", "kpi"):
            for key, value in (record.get(section) or {}).items():
                figures[key.replace(" ", "_")] = value
    numbers = {key: value for key, value in figures.items() if isinstance(value, (int, float)) and key != "size"}
    if "mean_average_precision" in numbers:
        numbers["mean_average_precision"] /= 100.0
    if "param_count" in numbers:
        numbers["parameters"] = round(numbers.pop("param_count") * 1e6)
    return numbers
