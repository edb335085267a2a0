"""`gridbox serve`: a detector behind Triton on this machine, and the model repositories for Triton elsewhere."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from components.serve import deploy_commands
from components.serve.config import Backend, Preprocessing

if TYPE_CHECKING:
    from components.serve.server import LocalServer

MinScore = Annotated[
    float | None,
    typer.Option(
        "--min-score",
        help="Leave out what scores less, unless a request asks otherwise (its parameter min_score); by default, than "
        "the model's operating point.",
        show_default=False,
    ),
]
# What `gridbox serve` without a word is, and with a word that is no command.
DEFAULT_COMMAND = "start"


class Commands(TyperGroup):
    """Takes what is no command for the run to serve: `gridbox serve runs/first` is `gridbox serve start runs/first`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's own copy of click
        """See the base class."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = [DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="serve",
    cls=Commands,
    help="A detector behind Triton on this machine: gridbox serve [RUN]; and repositories for Triton elsewhere.",
    add_completion=False,
)


@app.command(DEFAULT_COMMAND)
def start(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN]",
            help="A run's folder, an exported model or a model repository; by default the newest run in runs/.",
            show_default=False,
        ),
    ] = None,
    http_port: Annotated[int, typer.Option("--http-port", min=0, max=65535, help="0 is any free port.")] = 8000,
    grpc_port: Annotated[int, typer.Option("--grpc-port", min=0, max=65535, help="0 is any free port.")] = 8001,
    metrics_port: Annotated[int, typer.Option("--metrics-port", min=0, max=65535, help="0 is any free port.")] = 8002,
    threads: Annotated[int, typer.Option("--threads", min=0, help="Threads of the network; 0 for all cores.")] = 0,
    min_score: MinScore = None,
    log: Annotated[
        Path | None, typer.Option("--log", help="File for what Triton prints; by default one in the cache folder.")
    ] = None,
) -> None:
    """Serve a detector with Triton on this machine, for this machine only, until Ctrl-C.

    gridbox serve runs/facedetect-cpu
    """
    from components.serve.local import RUNS, find_model, local_repository, local_settings
    from components.serve.server import LocalServer, Ports

    model = find_model(run or RUNS)
    ports = Ports(http_port, grpc_port, metrics_port)
    with tempfile.TemporaryDirectory(prefix="gridbox-repository-") as folder:
        repository = local_repository(model, Path(folder, "local"), local_settings(threads, min_score))
        with LocalServer(repository, log or _log_file(http_port), ports, say=_say) as server:
            try:
                introduce(server, model)
                server.wait()
            except KeyboardInterrupt:
                typer.echo("stopping")


def _log_file(port: int) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "gridbox" / f"serve-{port or os.getpid()}.log"


def _say(what: str) -> None:
    typer.echo(f"warning: {what}", err=True)


def introduce(server: "LocalServer", model: Path) -> None:
    """Says where a server answers, and what to do with it."""
    from components.serve.server import Ports

    own_port = "" if server.ports == Ports() else f" --url {server.grpc_url}"
    typer.echo(
        f"{model}: served as {server.ensemble}\n"
        f"  HTTP     {server.http_url}\n"
        f"  gRPC     {server.grpc_url}\n"
        f"  metrics  {server.metrics_url}\n"
        f"  log      {server.log}\n"
        f"try:  gridbox detect photo.jpg{own_port}\n"
        "Ctrl-C ends it."
    )


@app.command("build")
def build(
    exported: Annotated[Path, typer.Option("--exported", help="Exported model: a directory with model.onnx.")],
    repository: Annotated[Path, typer.Option("--repository", help="Model-repository artifact to write.")],
    backend: Annotated[
        Backend,
        typer.Option(
            "--backend",
            help="What runs the network: onnxruntime (CPU, in NVIDIA's image), tensorrt (GPU), or python (CPU, the "
            "local server's only one).",
        ),
    ] = "onnxruntime",
    preprocessing: Annotated[
        Preprocessing,
        typer.Option(
            "--preprocessing", help="How images are fitted into the network's input; 'model': as it was trained."
        ),
    ] = "model",
    triton_release: Annotated[
        str, typer.Option("--triton-release", help="Release of the Triton image that shall serve it; ours by default.")
    ] = "",
    max_batch_size: Annotated[
        int, typer.Option("--max-batch-size", min=0, help="Images in one request; 0 for 32 on a GPU, 8 on a CPU.")
    ] = 0,
    instances: Annotated[
        int, typer.Option("--instances", min=0, help="Copies of the network; 0 for 2 on a GPU, 1 on a CPU.")
    ] = 0,
    threads: Annotated[
        int, typer.Option("--threads", min=0, help="Threads of a copy on a CPU; 0 for all cores of the machine.")
    ] = 0,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Processes that decode, and as many that cluster.")
    ] = 1,
    max_image_pixels: Annotated[
        int, typer.Option("--max-image-pixels", min=1, help="Larger images are refused before they are decoded.")
    ] = 40_000_000,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", help="For tensorrt: the model's plan (artifact), of gridbox serve tensorrt."),
    ] = None,
    min_score: MinScore = None,
) -> None:
    """Write a Triton model repository: the network, what decodes before it and clusters after it, and the ensemble."""
    from components.serve.config import RepositorySettings
    from components.serve.release import TRITON_RELEASE
    from components.serve.repository import build_repository

    settings = RepositorySettings(
        backend,
        preprocessing,
        triton_release or TRITON_RELEASE,
        max_batch_size,
        instances,
        threads,
        workers,
        max_image_pixels,
        min_score=min_score,
    )
    build_repository(exported, repository, settings, plan)
    typer.echo(f"{repository}: a Triton model repository for the backend {backend}")


deploy_commands.mount(app)
