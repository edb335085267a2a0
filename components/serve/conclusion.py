"""The last stage's word on a run, whichever way it ended."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.step import UserError, publish

# The words of Kubeflow's metadata store for how a task ended (ml_metadata: `Execution.State`), as the driver of
# Kubeflow Pipelines 2.17 hands them to an exit handler.
FAILED, DONE = ("FAILED", "CANCELED"), ("COMPLETE", "CACHED")


def has_failed(status: Mapping[str, Any]) -> bool:
    """Returns whether a run ended so that its deployment is to be undone.

    Raises:
        UserError: The state is unknown; then nothing may be undone.
    """
    state = status.get("state")
    if state not in (*FAILED, *DONE):
        raise UserError(f"--status: state {state!r} is none of {', '.join((*DONE, *FAILED))}; nothing was undone")
    return state in FAILED


def write_summary(path: Path, run_id: str, status: Mapping[str, Any], undone: str) -> None:
    """Writes how a run ended as Markdown, which Kubeflow shows.

    Args:
        path: The file.
        run_id: The run.
        status: Kubeflow's final status: `state`, and where it failed `error` with a `message`.
        undone: What became of its deployment.
    """
    error = status.get("error") or {}
    rows = {
        "run": run_id or "(unknown)",
        "state": str(status.get("state", "unknown")),
        "why": str(error.get("message") or "") if isinstance(error, Mapping) else str(error),
        "deployment": undone,
    }
    lines = [f"| {name} | {_cell(text)} |" for name, text in rows.items() if text]
    with publish(path) as scratch:
        scratch.write_text("\n".join(["# How the run ended", "", "| | |", "|---|---|", *lines, ""]), encoding="utf-8")


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
