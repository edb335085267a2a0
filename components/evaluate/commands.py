"""`gridbox evaluate`: score a detector, and write the workflow's final report."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.step import UserError

if TYPE_CHECKING:
    from components.evaluate.difference import Difference
    from components.evaluate.evaluation import Evaluated, Protocol

app = typer.Typer(name="evaluate", help="Score detectors and write the report.", no_args_is_help=True)


class Split(StrEnum):
    """A split of a data set; `train` and `val` are WIDER FACE's words for the same."""

    training = "training"
    validation = "validation"
    train = "train"
    val = "val"

    @property
    def canonical(self) -> str:
        """`training` or `validation`."""
        return {"train": "training", "val": "validation"}.get(self.value, self.value)


KittiSet = Annotated[Path | None, typer.Option("--kitti", help="KITTI set: an artifact, or TAO's folders.")]
SplitName = Annotated[Split, typer.Option("--split", help="Which images to score.")]
Evaluation = Annotated[Path, typer.Option("--evaluation", help="Evaluation artifact to write.")]
Metrics = Annotated[Path | None, typer.Option("--metrics", help="Flat JSON of numbers to write.")]
Report = Annotated[Path | None, typer.Option("--report", help="A further copy of report.html to write.")]
MinHeight = Annotated[
    float, typer.Option("--min-face-height", min=0, help="Smallest face that counts, pixels of the network's input.")
]
Iou = Annotated[float, typer.Option("--iou", min=0.01, max=1.0, help="Smallest intersection over union of a match.")]
Bands = Annotated[
    str, typer.Option("--height-bands", help="Heights to break the figures down by, for example 16-24,24-40,40+.")
]
IgnoreRegions = Annotated[
    bool,
    typer.Option(
        "--ignore-regions/--no-ignore-regions",
        help="Whether nothing counts inside dontcare labels (faces flagged invalid, with --wider), or they are faces.",
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images that the network sees at once.")]
StageEvaluation = Annotated[Path | None, typer.Option(help="Evaluation artifact of that stage, for the table.")]

EndpointUrl = Annotated[
    str,
    typer.Option("--endpoint", help="Triton server: host:port (HTTP), http://…, https://…, grpc://… or grpcs://…"),
]
EndpointHost = Annotated[
    str, typer.Option("--endpoint-host", help="Host name to ask a gateway for, as Knative's need it.")
]

DEFAULT_BANDS = "12-16,16-24,24-40,40-80,80+"


@app.command("score")
def score(
    evaluation: Evaluation,
    model: Annotated[
        Path | None, typer.Option("--model", help="Checkpoint, model artifact, exported model or ONNX file.")
    ] = None,
    endpoint: EndpointUrl = "",
    kitti: KittiSet = None,
    wider: Annotated[Path | None, typer.Option("--wider", help="WIDER FACE folder in its official layout.")] = None,
    split: SplitName = Split.validation,
    metrics: Metrics = None,
    report: Report = None,
    min_face_height: MinHeight = 12.0,
    iou: Iou = 0.5,
    height_bands: Bands = DEFAULT_BANDS,
    ignore_regions: IgnoreRegions = True,
    batch_size: BatchSize = 16,
    endpoint_model: Annotated[
        str, typer.Option("--endpoint-model", help="The ensemble that takes encoded images.")
    ] = "facenet_ensemble",
    endpoint_host: EndpointHost = "",
    certificates: Annotated[
        Path | None, typer.Option("--certificates", help="PEM file of the authorities to trust, for https and grpcs.")
    ] = None,
    in_flight: Annotated[int, typer.Option("--in-flight", min=1, help="Images under way to the endpoint at once.")] = 4,
    shared_memory: Annotated[
        bool, typer.Option("--shared-memory", help="Hand images to an endpoint on this machine in shared memory.")
    ] = False,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds an image may take there.")] = 60.0,
    differing_images: Annotated[
        float,
        typer.Option(
            "--differing-images", min=0, max=1, help="Share of images in which endpoint and model may differ."
        ),
    ] = 0.01,
) -> None:
    """Score a model, a Triton endpoint, or both, on labelled images: average precision, by height, and a report.

    With an endpoint, the report also says how long it takes; with both, whether they find the same boxes.
    """
    from components.evaluate.program import Outputs, Source, score_endpoint, score_model

    protocol = _protocol(min_face_height, iou, height_bands, ignore_regions, batch_size)
    source = Source(kitti, wider, split.canonical)
    outputs = Outputs(evaluation, metrics, report)
    if endpoint:
        from components.vision.endpoint import Endpoint

        with Endpoint(
            endpoint,
            endpoint_model,
            shared_memory=shared_memory,
            timeout=timeout,
            in_flight=in_flight,
            host=endpoint_host,
            certificates=certificates,
        ) as served:
            results, difference = score_endpoint(served, model, source, protocol, outputs, differing_images)
        for result in results:
            _print(result)
        if difference:
            _print_difference(difference)
    elif model:
        _print(score_model(model, source, protocol, outputs))
    else:
        raise UserError("give what to score: --model, --endpoint, or both")
    print(f"Report: {evaluation / 'report.html'}")


@app.command("endpoint")
def endpoint(
    evaluation: Evaluation,
    kitti: KittiSet,
    model: Annotated[Path, typer.Option("--model", help="The exported model that is served.")],
    endpoint: EndpointUrl = "",
    endpoint_host: EndpointHost = "",
    metrics: Metrics = None,
    report: Report = None,
    min_face_height: MinHeight = 12.0,
) -> None:
    """Score what a deployment serves, and hold it against its model; without an endpoint, say that nothing is served.

    This is the workflow's own step; for everything else there is `gridbox evaluate score --endpoint`.
    """
    from components.evaluate.program import Outputs, skip_endpoint

    if not endpoint:
        skip_endpoint(Outputs(evaluation, metrics, report))
        print("skipped: the deployment serves nothing yet (target manifest), so there is no endpoint to score")
        return
    score(
        evaluation,
        model=model,
        endpoint=endpoint,
        endpoint_host=endpoint_host,
        kitti=kitti,
        metrics=metrics,
        report=report,
        min_face_height=min_face_height,
    )


@app.command("report")
def report(
    exported: Annotated[Path, typer.Option("--exported", help="The exported model.")],
    quantized: Annotated[Path, typer.Option("--quantized", help="The quantised model.")],
    evaluation: Evaluation,
    kitti: KittiSet = None,
    wider: Annotated[Path | None, typer.Option("--wider", help="WIDER FACE folder in its official layout.")] = None,
    split: SplitName = Split.validation,
    pretrained_evaluation: StageEvaluation = None,
    trained_evaluation: StageEvaluation = None,
    pruned_evaluation: StageEvaluation = None,
    retrained_evaluation: StageEvaluation = None,
    metrics: Metrics = None,
    report: Report = None,
    min_face_height: MinHeight = 12.0,
    iou: Iou = 0.5,
    height_bands: Bands = DEFAULT_BANDS,
    ignore_regions: IgnoreRegions = True,
    batch_size: BatchSize = 16,
) -> None:
    """Score the exported and the quantised model and write the workflow's final report."""
    from components.evaluate.program import Outputs, Source, final_report

    protocol = _protocol(min_face_height, iou, height_bands, ignore_regions, batch_size)
    earlier = {
        "Pretrained": pretrained_evaluation,
        "Trained": trained_evaluation,
        "Pruned": pruned_evaluation,
        "Retrained": retrained_evaluation,
    }
    for name in [name for name, path in earlier.items() if path is None]:
        print(f"{name}: no evaluation given, its row of the table stays empty")
    source = Source(kitti, wider, split.canonical)
    for result in final_report(exported, quantized, earlier, source, protocol, Outputs(evaluation, metrics, report)):
        _print(result)
    print(f"Report: {evaluation / 'report.html'}")


def _protocol(min_height: float, iou: float, bands: str, ignore_regions: bool, batch_size: int) -> "Protocol":
    from components.evaluate.evaluation import Protocol
    from components.measure.matching import HeightBand

    try:
        parsed = tuple(HeightBand.parse(band) for band in bands.split(","))
    except ValueError as error:
        raise UserError(f"--height-bands {bands!r}: {error}; write for example 16-24,24-40,40+") from error
    return Protocol(min_height, iou, parsed, ignore_regions, batch_size)


def _print(result: "Evaluated") -> None:
    def ratio(value: float | None) -> str:
        return "none to find" if value is None else f"{value:.4f}"

    figures = result.metrics
    print(
        f"{result.name}: AP@{figures['iou_threshold']:g} {ratio(result.average_precision)} over {figures['objects']} "
        f"objects at least {figures['minimum_height']:g} pixels high in {figures['images']} images, "
        f"{figures['images_per_second']:.1f} images/s"
    )
    bands = figures["average_precision_by_height"]
    print("  by height: " + ", ".join(f"{band['band']}: {ratio(band['average_precision'])}" for band in bands))
    if "latency_milliseconds" in figures:
        times = ", ".join(f"{name} {value:.1f} ms" for name, value in figures["latency_milliseconds"].items())
        print(f"  latency with {figures['latency_in_flight']} images under way: {times}")
    for what, count in figures["skipped_labels"].items():
        if count:
            print(f"  left out: {count} {what}")


def _print_difference(difference: "Difference") -> None:
    same = difference.images - len(difference.differing)
    print(
        f"Endpoint and model find the same boxes in {same} of {difference.images} images; edges are off by at most "
        f"{difference.edge:.3f} pixel, scores by {difference.score:.2g}"
    )
    if difference.differing:
        print(f"  different: {', '.join(difference.differing)}")
