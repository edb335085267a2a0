"""`gridbox detect`: boxes from a Triton endpoint, drawn into files or shown in a window."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from components.step import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from components.vision.endpoint import Endpoint

app = typer.Typer(name="detect", add_completion=False)

# Where `gridbox serve` listens.
LOCAL_URLS = ("grpc://localhost:8001", "http://localhost:8000")


@app.command("detect")
def detect(
    source: Annotated[
        str, typer.Argument(metavar="IMAGE|FOLDER|VIDEO|0", help="An image, a folder of images, a video, or a camera.")
    ],
    url: Annotated[
        str,
        typer.Option(
            "--url",
            help="Triton server: host:port (HTTP), http://…, https://…, grpc://… or grpcs://…  "
            "Without it, localhost:8001 by gRPC, then localhost:8000 by HTTP.",
        ),
    ] = "",
    model: Annotated[str, typer.Option("--model", help="The ensemble that takes encoded images.")] = "",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder of results; by default one beside the source.")
    ] = None,
    labels: Annotated[
        Literal["none", "kitti", "json"],
        typer.Option("--labels", help="Write detections, too, as KITTI or JSON lines."),
    ] = "none",
    show: Annotated[
        bool, typer.Option("--show", help="Show a window; files are then written only with --output. q ends it.")
    ] = False,
    min_score: Annotated[
        float | None,
        typer.Option(
            "--min-score",
            help="Leave out detections with a lower score; 0 shows everything. By default, the operating point of the "
            "model.",
            show_default=False,
        ),
    ] = None,
    in_flight: Annotated[int, typer.Option("--in-flight", min=1, help="Images under way at once.")] = 4,
    shared_memory: Annotated[
        bool, typer.Option("--shared-memory", help="Hand images over in shared memory, to a server on this machine.")
    ] = False,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds an image may take.")] = 60.0,
    host: Annotated[str, typer.Option("--host", help="Host name to ask a gateway for, as Knative's need it.")] = "",
    certificates: Annotated[
        Path | None, typer.Option("--certificates", help="PEM file of the authorities to trust, for https and grpcs.")
    ] = None,
) -> None:
    """Detect faces through a Triton server, started with `gridbox serve` or elsewhere, and draw boxes.

    gridbox detect photos/ --labels kitti

    gridbox detect 0 --show --url grpc://triton.example:8001
    """
    from components.serve.detect import Window, default_output
    from components.serve.detect import detect as run
    from components.serve.families import default_ensemble
    from components.vision.endpoint import Endpoint
    from components.vision.sinks import check_apart
    from components.vision.sources import open_source

    images = open_source(source)
    window = Window("gridbox detect", wait_for_key=images.rate is None) if show else None
    folder = output or (None if show and labels == "none" else default_output(source, images))

    if folder and images.rate is None:
        check_apart(Path(source), folder)

    def connect(url: str) -> Endpoint:
        return Endpoint(
            url,
            model or default_ensemble(),
            shared_memory=shared_memory,
            timeout=timeout,
            in_flight=in_flight,
            host=host,
            certificates=certificates,
            min_score=min_score,
        )

    with connect(url) if url else _local(connect) as endpoint:
        overlays = output is not None or not show
        done = run(endpoint, images, folder, labels, window, overlays)
        shown = endpoint.shown_from
    where = f": {folder}" if folder else ""
    noun = "images" if images.rate is None else "frames"
    rate = done.images / max(done.seconds, 1e-9)
    print(f"{done.images} {noun}, {done.detections} detections, {rate:.1f} {noun}/s{where}")
    if min_score is None and shown:
        scores = ", ".join(
            f"{score:.3g}" if len(shown) == 1 else f"{name} {score:.3g}" for name, score in shown.items()
        )
        print(f"shown from a score of {scores} on, where the model's F1 was best; --min-score 0 shows everything")


def _local(connect: "Callable[[str], Endpoint]") -> "Endpoint":
    """Connects to the server that `gridbox serve` starts."""
    from components.vision.endpoint_connection import NoServerError

    for url in LOCAL_URLS:
        try:
            return connect(url)
        except NoServerError:
            pass
    raise UserError(f"no Triton at {' or '.join(LOCAL_URLS)}; start one with `gridbox serve`, or name one with --url")
