"""A stage asks its runner to serve a model on this machine: its own processes end with it, a server must not."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from components.step import StageError, UserError, write_json

# Names the folder through which a stage and its host talk; if it is not set, there is no host.
HOST_FOLDER = "GRIDBOX_HOST"
POLL_SECONDS = 0.1
_REQUEST, _ANSWER = "request.json", "answer.json"


@dataclass(frozen=True, slots=True)
class Served:
    """Where a model is served on this machine.

    Attributes:
        http: URL of the HTTP endpoint.
        grpc: URL of the gRPC endpoint.
    """

    http: str
    grpc: str


def ask(repository: Path) -> Served:
    """Asks for a server and waits until it is ready.

    Args:
        repository: The model-repository artifact to serve.

    Raises:
        UserError: No host serves models for stages here.
        StageError: The server did not start.
    """
    if HOST_FOLDER not in os.environ:
        raise UserError("target local serves within a run on this machine (gridbox run); by hand: gridbox serve RUN")
    folder = Path(os.environ[HOST_FOLDER])
    (folder / _ANSWER).unlink(missing_ok=True)
    write_json(folder / _REQUEST, {"repository": str(repository)})
    while not (folder / _ANSWER).is_file():
        time.sleep(POLL_SECONDS)
    answer = json.loads((folder / _ANSWER).read_text(encoding="utf-8"))
    if "error" in answer:
        raise StageError(answer["error"])
    return Served(**answer)


def attend(folder: Path, serve: Callable[[Path], Served]) -> None:
    """Answers a stage that has asked, if one has; the host calls it now and then.

    Args:
        folder: What the stage finds in its environment.
        serve: Serves a model-repository artifact; its UserError or StageError reaches the stage.
    """
    request = folder / _REQUEST
    if not request.is_file():
        return
    repository = Path(json.loads(request.read_text(encoding="utf-8"))["repository"])
    request.unlink()
    try:
        served = serve(repository)
    except (UserError, StageError) as error:
        write_json(folder / _ANSWER, {"error": str(error)})
    else:
        write_json(folder / _ANSWER, {"http": served.http, "grpc": served.grpc})
