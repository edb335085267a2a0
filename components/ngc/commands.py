"""`gridbox ngc`: models of NVIDIA's registry."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="ngc",
    help="Bring models of NVIDIA's registry NGC into a pipeline.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback()
def ngc() -> None:
    """Bring models of NVIDIA's registry NGC into a pipeline."""


@app.command("download")
def download(
    source: Annotated[
        str, typer.Option(help="org/team/model:version, as nvidia/tao/pretrained_detectnet_v2:resnet18.")
    ],
    model: Annotated[Path, typer.Option(help="Model artifact to write; a broken-off download beside it is resumed.")],
    file: Annotated[str, typer.Option(help="The model file, where a version has several.")] = "",
    sha256: Annotated[str, typer.Option(help="SHA-256 that the file must have; by default what NGC says.")] = "",
) -> None:
    """Download a model. Its licence is NVIDIA's: read it first, by downloading you accept it.

    The key of your NGC account is taken from the environment variable NGC_API_KEY; most of TAO's models are given to
    guests, too. Encrypted models (.tlt) serve NVIDIA's program, which takes their key from TAO_KEY.
    """
    from components.ngc.download import download as run

    for name, count in run(source, model, file, sha256).items():
        print(f"{name.replace('_', ' ')}: {count}")
