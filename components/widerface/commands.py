"""`gridbox widerface`: imports, draws and converts face-detection data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    name="widerface",
    help="Import, draw and convert face-detection data in the layout of WIDER FACE.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


Policy = Literal["ignore", "keep"]
TrainingImages = Annotated[int, typer.Option(min=1, help="Pictures to draw for training, 1 or more.")]
ValidationImages = Annotated[int, typer.Option(min=1, help="Pictures to draw for validation, 1 or more.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the drawn pictures, 0 or more; equal seeds, equal bytes.")]
ImageWidth = Annotated[int, typer.Option(min=96, help="Width of the drawn pictures in pixels, 96 or more.")]
ImageHeight = Annotated[int, typer.Option(min=96, help="Height of the drawn pictures in pixels, 96 or more.")]


@app.command("acquire")
def acquire(
    dataset: Annotated[Path, typer.Option(help="Folder to make: the three official archives and a manifest.")],
    uri: Annotated[
        str,
        typer.Option(
            help="Where the data set is: a folder (path or file://) in the official layout or with the official "
            "archives, or an https:// or s3:// location under which the archives lie. Left out: a synthetic set is "
            "drawn. S3 is reached through AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
            "AWS_SESSION_TOKEN and AWS_REGION."
        ),
    ] = "",
    version: Annotated[str, typer.Option(help="Version of what lies there, for the manifest.")] = "",
    training_images: TrainingImages = 800,
    validation_images: ValidationImages = 200,
    seed: Seed = 1,
    image_width: ImageWidth = 640,
    image_height: ImageHeight = 384,
) -> None:
    """Import a data set, or draw a synthetic one: the pipeline's first stage."""
    from components.widerface.acquire import acquire as run

    _summary(run(uri, dataset, training_images, validation_images, seed, image_width, image_height, version=version))


@app.command("convert")
def convert(
    dataset: Annotated[
        Path, typer.Option(help="Folder in the official layout, or one that holds the official archives.")
    ],
    kitti: Annotated[Path, typer.Option(help="Folder to make: the KITTI set, rejected.jsonl and a manifest.")],
    resolution: Annotated[
        Literal["input", "source"],
        typer.Option(
            help="'input': PNGs letterboxed to one network's input (--width, --height), as TAO's program needs them. "
            "'source': JPEGs at their own size up to --longest-side, for specs with open_engine."
        ),
    ] = "input",
    width: Annotated[int, typer.Option(help="Width of the network's input in pixels, a multiple of 16.")] = 736,
    height: Annotated[int, typer.Option(help="Height of the network's input in pixels, a multiple of 16.")] = 416,
    longest_side: Annotated[
        int, typer.Option(min=64, help="Longest side of a stored image in pixels, where the resolution is 'source'.")
    ] = 1024,
    resampling: Annotated[
        Literal["area", "cubic"],
        typer.Option(help="How images are shrunk: 'area' averages; 'cubic', NVIDIA's reference converter's, aliases."),
    ] = "area",
    grayscale: Annotated[
        bool, typer.Option("--grayscale/--no-grayscale", help="Turn colour into grey, in three equal channels.")
    ] = False,
    min_face_height: Annotated[
        int,
        typer.Option(
            min=0,
            help="Faces lower than this many pixels in the network's input are small; 0: none is. At resolution "
            "'source' none is: the spec and the evaluation say what is small.",
        ),
    ] = 8,
    small_faces: Annotated[
        Policy, typer.Option(help="Small faces: 'ignore' makes them regions in which nothing counts.")
    ] = "ignore",
    invalid_faces: Annotated[
        Policy, typer.Option(help="Faces flagged invalid by the annotators: 'ignore' as for small faces.")
    ] = "ignore",
    occluded_faces: Annotated[
        Policy, typer.Option(help="Heavily occluded faces (occlusion 2): 'ignore' as for small faces.")
    ] = "keep",
    max_images: Annotated[
        int, typer.Option(min=0, help="At most so many images of each split, evenly spaced; 0: all.")
    ] = 0,
    validation_share: Annotated[
        float,
        typer.Option(
            min=0,
            max=0.5,
            help="Share of the training images that is drawn as the split 'validation', by which one chooses; the "
            "source's validation images are then 'test', by which one tells. 0: no draw, and no test.",
        ),
    ] = 0.1,
    split_seed: Annotated[int, typer.Option(min=0, help="Seed of that draw, 0 or more.")] = 1,
) -> None:
    """Convert WIDER FACE to a KITTI set of three splits: training, validation and test.

    Nothing is dropped silently: rejected.jsonl names every image and box that was left out and why.
    """
    from components.widerface.convert import Conversion
    from components.widerface.convert import convert as run

    conversion = Conversion(
        resolution=resolution,
        width=width,
        height=height,
        longest_side=longest_side,
        resampling=resampling,
        grayscale=grayscale,
        min_face_height=min_face_height,
        small_faces=small_faces,
        invalid_faces=invalid_faces,
        occluded_faces=occluded_faces,
        max_images=max_images,
        validation_share=validation_share,
        split_seed=split_seed,
    )
    _summary(run(dataset, kitti, conversion))


@app.command("synthesize")
def synthesize(
    output: Annotated[Path, typer.Option(help="Folder to make, in the official layout.")],
    training_images: TrainingImages = 800,
    validation_images: ValidationImages = 200,
    seed: Seed = 1,
    image_width: ImageWidth = 640,
    image_height: ImageHeight = 384,
) -> None:
    """Draw a labelled set of people in the layout of WIDER FACE. It is synthetic: no real face is in it."""
    from components.widerface.synthesize import synthesize as run

    _summary(run(output, training_images, validation_images, seed, image_width, image_height))


@app.command("fetch")
def fetch(
    output: Annotated[Path, typer.Option(help="Folder for the three archives; those that are there are kept.")],
    source: Annotated[
        list[str],
        typer.Option(
            envvar="GRIDBOX_WIDER_SOURCES",
            help="Location under which the archives lie: a path, https:// or s3://. Repeat it for mirrors, which are "
            "tried in turn.",
        ),
    ],
    checksums: Annotated[
        Path | None, typer.Option(help="List of SHA-256 checksums as sha256sum writes it; unlisted files go unchecked.")
    ] = None,
) -> None:
    """Download the official archives of WIDER FACE; an interrupted download resumes."""
    from components.widerface.fetch import fetch_archives, read_checksums

    fetch_archives(source, output, read_checksums(checksums) if checksums else None)


def _summary(counts: Mapping[str, object]) -> None:
    """Prints the counts of a stage, one a line."""
    for name, count in counts.items():
        print(f"{name.replace('_', ' ')}: {count}")
