"""TAO's `status.json`: one JSON line per event, read by gridbox, by Kubeflow's metrics and by TAO's own tools."""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

Status = Literal["STARTED", "RUNNING", "SUCCESS", "FAILURE", "SKIPPED"]


class StatusLog:
    """Appends status lines to `<results>/status.json`. A resumed run goes on in the same file."""

    def __init__(self, results: Path) -> None:
        """Creates the results directory if need be."""
        results.mkdir(parents=True, exist_ok=True)
        self._file = results / "status.json"

    def write(self, status: Status, message: str, **fields: Mapping[str, Any] | float | int | str | None) -> None:
        """Appends one line.

        Args:
            status: TAO's status word.
            message: What happened, for a person.
            fields: TAO's further keys: epoch (0-based), max_epoch, time_per_epoch, eta, graphical, kpi, categorical.
        """
        now = datetime.now()
        line = {
            "date": now.strftime("%-m/%-d/%Y"),
            "time": now.strftime("%-H:%-M:%-S"),
            "status": status,
            "verbosity": "ERROR" if status == "FAILURE" else "INFO",
            "message": message,
            **{key: value for key, value in fields.items() if value is not None},
        }
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
