"""The program `detectnet_v2`: NVIDIA TAO's command line in front of the open engine.

Options have TAO's names. Those that TAO lacks say so in their help.
"""

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from components import program
from components.step import UserError, publish, weights_file, write_json

app = typer.Typer(
    name="detectnet_v2",
    help="Train, prune, evaluate and export grid-box detectors, with the command line of NVIDIA TAO.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

SpecFile = Annotated[Path, typer.Option("-e", "--experiment_spec_file", help="Spec file, protobuf text.")]
ModelFile = Annotated[Path, typer.Option("-m", "--model", help="Model file, or a results directory's weights folder.")]
Key = Annotated[
    str, typer.Option("-k", "--key", help="Ignored: this engine's files are not encrypted. Accepted as TAO does.")
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Accepted as TAO does; the output is the same.")]


class Normalizer(StrEnum):
    """How norms are normalised before they are compared with the threshold."""

    max = "max"
    L2 = "L2"


class Equalization(StrEnum):
    """How the norms of channels that meet in an addition are merged."""

    union = "union"
    intersection = "intersection"
    arithmetic_mean = "arithmetic_mean"
    geometric_mean = "geometric_mean"


def main() -> None:
    """Entry point of the program."""
    sys.exit(program.run(app, sys.argv[1:], "detectnet_v2"))


@app.command("dataset_convert")
def dataset_convert(
    spec_file: Annotated[Path, typer.Option("-d", "--dataset_export_spec", help="Conversion spec, protobuf text.")],
    output: Annotated[Path, typer.Option("-o", "--output_filename", help="Prefix of the record files.")],
    validation_fold: Annotated[
        int | None, typer.Option("-f", "--validation_fold", min=0, help="Fold that sample modifiers leave alone.")
    ] = None,
    results: Annotated[Path | None, typer.Option("-r", "--results_dir", help="Where status.json is written.")] = None,
    verbose: Verbose = False,
) -> None:
    """Convert KITTI labels to TFRecord files."""
    from components.detectnet_v2.dataset_convert import convert
    from components.vision.status import StatusLog

    status = StatusLog(results or output.parent)
    status.write("STARTED", "Starting tfrecords conversion")
    converted = convert(spec_file, output, validation_fold)
    categorical = {"num_objects": dict(converted.objects)}
    status.write("SUCCESS", "Conversion finished successfully", categorical=categorical)


@app.command("train")
def train(
    spec_file: SpecFile,
    results: Annotated[
        Path, typer.Option("-r", "--results_dir", help="Results directory; a training found there is resumed.")
    ],
    key: Key = "",
    name: Annotated[str, typer.Option("-n", "--model_name", help="Base name of the trained model.")] = "model",
    enable_determinism: Annotated[
        bool, typer.Option("--enable_determinism", help="Deterministic kernels on a GPU; on a CPU training always is.")
    ] = False,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="Number of GPUs; this release trains on one.")] = 1,
    width: Annotated[
        float,
        typer.Option(
            "--width", min=0.05, max=2.0, help="Not in TAO: scales all channels; narrow networks suit CPUs. 0.05 to 2."
        ),
    ] = 1.0,
    threads: Annotated[
        int, typer.Option("--threads", min=0, help="Not in TAO: CPU threads; 0 takes all available cores.")
    ] = 0,
    verbose: Verbose = False,
) -> None:
    """Train a detector; a training that was interrupted goes on where its last epoch ended."""
    from components.detectnet_v2.spec import load_experiment
    from components.detectnet_v2.train import TrainOptions
    from components.detectnet_v2.train import train as run

    if gpus != 1:
        raise UserError(f"--gpus {gpus}: this release trains on one device; leave the option out")
    spec = load_experiment(spec_file)
    _warn(spec.warnings)
    results.mkdir(parents=True, exist_ok=True)
    with publish(results / "experiment_spec.txt") as scratch:
        scratch.write_text(spec.text, encoding="utf-8")
    run(spec.message, TrainOptions(results, name, width, threads, enable_determinism))


@app.command("evaluate")
def evaluate(
    spec_file: SpecFile,
    model: ModelFile,
    key: Key = "",
    use_training_set: Annotated[
        bool, typer.Option("--use_training_set", help="Score on the training images instead of the validation ones.")
    ] = False,
    results: Annotated[
        Path | None, typer.Option("-r", "--results_dir", help="Where status.json and metrics.json are written.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Score a model file or an exported ONNX model on the spec's validation images."""
    from components.detectnet_v2 import evaluation, experiment
    from components.detectnet_v2.spec import load_experiment
    from components.vision.predictor import load_predictor
    from components.vision.status import StatusLog

    begin = time.monotonic()
    spec = load_experiment(spec_file)
    _warn(spec.warnings)
    predictor = load_predictor(model)
    if predictor.geometry != experiment.geometry(spec.message):
        ours, theirs = predictor.geometry, experiment.geometry(spec.message)
        raise UserError(
            f"{model}: made for {ours.width}x{ours.height}, the spec says {theirs.width}x{theirs.height}; "
            "use the spec it was trained with"
        )
    predictor.clustering = experiment.clustering(spec.message)
    images = experiment.training_images if use_training_set else experiment.validation_images
    figures = evaluation.evaluate(predictor, images(spec.message), spec.message.evaluation_config)
    evaluation.print_evaluation(figures)
    if results:
        figures["parameters"], figures["file_bytes"] = predictor.parameters, predictor.file_bytes
        figures["seconds"] = time.monotonic() - begin
        write_json(results / "metrics.json", figures)
        percent = {name: 100 * value for name, value in figures["average_precision"].items() if value is not None}
        kpi = {"mean average precision": 100 * (figures["mean_average_precision"] or 0.0)}
        categorical = {"average_precision": percent, "num_objects": figures["objects"]}
        StatusLog(results).write("SUCCESS", "Evaluation metrics generated", kpi=kpi, categorical=categorical)


class _SeveralLayers(TyperCommand):
    """TAO lets several names follow one `-el`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's own copy of click
        spread: list[str] = []
        follows = False
        for word in args:
            is_layer = follows and not word.startswith("-")
            spread += ["-el", word] if is_layer and spread[-1] not in ("-el", "--excluded_layers") else [word]
            follows = is_layer or word in ("-el", "--excluded_layers")
        return super().parse_args(ctx, spread)


@app.command("prune", cls=_SeveralLayers)
def prune(
    model: ModelFile,
    output: Annotated[Path, typer.Option("-o", "--output_file", help="The pruned model.")],
    key: Key = "",
    normalizer: Annotated[Normalizer, typer.Option("-n", "--normalizer", help="Of the norms.")] = Normalizer.max,
    equalization: Annotated[
        Equalization, typer.Option("-eq", "--equalization_criterion", help="Where channels meet in an addition.")
    ] = Equalization.union,
    granularity: Annotated[
        int, typer.Option("-pg", "--pruning_granularity", min=1, help="Channel counts are multiples of this.")
    ] = 8,
    threshold: Annotated[
        float, typer.Option("-pth", "--pruning_threshold", min=0, help="Channels with at most this norm go.")
    ] = 0.1,
    minimum_filters: Annotated[
        int, typer.Option("-nf", "--min_num_filters", min=1, help="No layer keeps fewer channels.")
    ] = 16,
    excluded_layers: Annotated[
        list[str] | None, typer.Option("-el", "--excluded_layers", help="Layers left whole; several may follow.")
    ] = None,
    target_ratio: Annotated[
        float | None,
        typer.Option(
            "--target-ratio",
            min=0.01,
            max=1.0,
            help="Not in TAO: finds the threshold that leaves at most this share of the parameters.",
        ),
    ] = None,
    results: Annotated[Path | None, typer.Option("--results_dir", "-r", help="Where status.json is written.")] = None,
    verbose: Verbose = False,
) -> None:
    """Remove the channels of a model that matter least; retrain the result with load_graph: true."""
    from components.detectnet_v2.prune import prune_model
    from components.vision.pruning import PruneSettings

    settings = PruneSettings(
        threshold, granularity, minimum_filters, normalizer.value, equalization.value, tuple(excluded_layers or ())
    )
    prune_model(model, output, settings, target_ratio, results)


@app.command("inference")
def inference(
    spec_file: SpecFile,
    source: Annotated[Path, typer.Option("-i", "--inference_input", help="An image, or a folder of images.")],
    results: Annotated[Path, typer.Option("-r", "-o", "--results_dir", help="Where overlays and labels are written.")],
    key: Key = "",
    batch_size: Annotated[int, typer.Option("-b", "--batch_size", min=0, help="0 takes the spec's.")] = 0,
    model: Annotated[Path | None, typer.Option("-m", "--model", help="Replaces the spec's model.")] = None,
    verbose: Verbose = False,
) -> None:
    """Draw detections on images and write them as KITTI labels of 16 columns."""
    from components.detectnet_v2.inference import infer
    from components.detectnet_v2.spec import load_inference

    spec = load_inference(spec_file)
    _warn(spec.warnings)
    images, detections = infer(spec.message, source, results, model, batch_size)
    print(f"{detections} detections in {images} images: {results}")


@app.command("export")
def export(
    model: ModelFile,
    output: Annotated[
        Path | None, typer.Option("-o", "--output_file", help="ONNX file; beside the model if unset.")
    ] = None,
    key: Key = "",
    spec_file: Annotated[
        Path | None, typer.Option("-e", "--experiment_spec", help="Its postprocessing settings go with the model.")
    ] = None,
    gen_ds_config: Annotated[
        bool, typer.Option("--gen_ds_config", help="Accepted as TAO does; labels.txt is always written.")
    ] = False,
    target_opset: Annotated[int, typer.Option("--target_opset", min=13, help="ONNX operator set.")] = 18,
    static_batch_size: Annotated[
        int, typer.Option("--static_batch_size", help="A fixed batch size; -1 for a dynamic one.")
    ] = -1,
    results: Annotated[Path | None, typer.Option("--results_dir", "-r", help="Where status.json is written.")] = None,
    verbose: Verbose = False,
) -> None:
    """Write a model as ONNX with TAO's tensor names, checked against PyTorch."""
    from components.detectnet_v2.export import export_model
    from components.detectnet_v2.spec import load_experiment

    message = load_experiment(spec_file).message if spec_file else None
    target = output or weights_file(model).with_suffix(".onnx")
    export_model(weights_file(model), target, message, target_opset, static_batch_size, results)


@app.command("pretrained")
def pretrained(
    model: Annotated[Path, typer.Option("--model", help="Model artifact to write.")],
    uri: Annotated[str, typer.Option("--uri", help="A file, file://, https:// or s3:// URI; none if unset.")] = "",
) -> None:
    """Not in TAO: bring pretrained weights into the pipeline, or say that there are none."""
    from components.step import write_manifest
    from components.store import fetch

    with publish(model) as scratch:
        weights = scratch / "weights"
        weights.mkdir(parents=True)
        counts: dict[str, Any] = {"present": bool(uri)}
        if uri:
            from components.vision.checkpoint import load_network

            file = weights / uri.rsplit("/", 1)[-1]
            fetch(uri, file)
            load_network(file)  # refuses what cannot be used, here rather than in the training
            counts["file_bytes"] = file.stat().st_size
        else:
            print("No pretrained weights: training starts from random ones")
        write_manifest(scratch, "model", counts, {})


def _warn(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
