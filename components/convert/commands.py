"""`gridbox convert`: exported models in other precisions."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from components.step import write_json

app = typer.Typer(name="convert", help="Exported models in other precisions.", no_args_is_help=True)


@app.callback()
def convert() -> None:
    """Exported models in other precisions."""


@app.command("int8")
def int8(
    exported: Annotated[Path, typer.Option("--exported", help="Exported model: a directory with model.onnx.")],
    kitti: Annotated[
        Path, typer.Option("--kitti", help="KITTI set: calibrates on its training images, measures on validation.")
    ],
    quantized: Annotated[Path, typer.Option("--quantized", help="Exported-model artifact to write.")],
    metrics: Annotated[Path | None, typer.Option("--metrics", help="Flat JSON of numbers to write.")] = None,
    max_points_lost: Annotated[
        float,
        typer.Option("--max-points-lost", min=0, max=100, help="Points of average precision that may be lost."),
    ] = 2.0,
    calibration_images: Annotated[
        int, typer.Option("--calibration-images", min=1, help="Training images to measure ranges on.")
    ] = 100,
    min_face_height: Annotated[
        float,
        typer.Option("--min-face-height", min=0, help="Smallest face that counts, pixels of the network's input."),
    ] = 12.0,
    runtime: Annotated[
        Literal["onnxruntime", "tensorrt"],
        typer.Option(
            "--runtime",
            help="What the INT8 numbers are laid out for: onnxruntime (unsigned activations, fast on x86) or tensorrt "
            "(symmetric ones, the only ones it takes).",
        ),
    ] = "onnxruntime",
    intervals: Annotated[
        bool,
        typer.Option(
            "--intervals/--no-intervals", help="Whether to say how sure it is that no more is lost than allowed."
        ),
    ] = True,
) -> None:
    """Quantise an exported model to INT8; refuse (exit code 1) when it loses too much average precision."""
    from components.convert.int8 import Gate, average_precision, draw_images
    from components.convert.int8 import convert as run
    from components.convert.quantize import Runtime
    from components.measure.uncertainty import Resampling

    gate = Gate(
        lambda predictor: average_precision(predictor, kitti, min_face_height),
        "AP@0.5",
        max_points_lost,
        Resampling() if intervals else None,
    )
    drawn = partial(draw_images, kitti, calibration_images)
    result = run(exported, quantized, Runtime(runtime), drawn, gate)
    if metrics is not None:
        write_json(metrics, result.metrics())
    if result.calibration_images < calibration_images:
        print(f"The set has only {result.calibration_images} training images; calibrated on all of them")
    change = f"lost {result.points_lost:.2f}" if result.points_lost >= 0 else f"gained {-result.points_lost:.2f}"
    print(
        f"INT8 {change} points of {gate.title}{result.verdict}: {result.before.value:.4f} before, "
        f"{result.after.value:.4f} after; {result.bytes_before:,} bytes before, {result.bytes_after:,} after"
    )
