"""The server of a run: a stage that deploys to this machine asks for it, and it ends with the run."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from components.serve.host import HOST_FOLDER, Served, attend
from components.step import UserError

if TYPE_CHECKING:
    from components.serve.server import LocalServer


class RunServer:
    """Serves a model for the stages of a run, as `gridbox serve` does. Use it as a context: its end ends the server.

    Attributes:
        server: The server, once a stage has asked for it.
    """

    def __init__(self, log: Path) -> None:
        """Takes the file for what the server prints; nothing is started yet."""
        self.server: LocalServer | None = None
        self._log = log
        self._held = ExitStack()
        self._folder = Path()

    def __enter__(self) -> Self:
        self._folder = Path(self._held.enter_context(tempfile.TemporaryDirectory(prefix="gridbox-run-")))
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    @property
    def environment(self) -> dict[str, str]:
        """What lets a stage ask for the server."""
        return {HOST_FOLDER: str(self._folder)}

    def attend(self) -> None:
        """Starts the server if a stage waits for it. The thread that calls it must live as long as the server."""
        attend(self._folder, self._serve)

    def serve_on(self, run: Path) -> None:
        """Serves until Ctrl-C.

        Args:
            run: The run's folder, to be named.

        Raises:
            UserError: No stage has asked for a server.
            StageError: The server failed and could not be mended.
        """
        from components.serve.commands import introduce

        if self.server is None:
            raise UserError("nothing was deployed to this machine; deploy_target must be local")
        try:
            introduce(self.server, run)
            self.server.wait()
        except KeyboardInterrupt:
            print("stopping")

    def _serve(self, model: Path) -> Served:
        from components.serve.local import local_repository, local_settings
        from components.serve.server import LocalServer

        if self.server is not None:
            self.server.stop()
        repository = local_repository(model, Path(tempfile.mkdtemp(dir=self._folder)) / "local", local_settings())
        self.server = self._held.enter_context(LocalServer(repository, self._log))
        return Served(self.server.http_url, self.server.grpc_url)
