"""`gridbox evaluate`: measure predictions, score a detector, and write the workflow's final report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from components.evaluate import measuring_options as options
from components.evaluate.rules import Protocol, Rules
from components.step import UserError, read_manifest
from components.tao.tasks import MODELS

if TYPE_CHECKING:
    from components.evaluate.difference import Difference
    from components.evaluate.evaluation import Evaluated
    from components.evaluate.program import Source

# What `gridbox evaluate` with options and without a word is.
_MEASURE = "measure"


class Commands(TyperGroup):
    """`gridbox evaluate --predictions …` is `gridbox evaluate measure --predictions …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's own copy of click
        """See the base class."""
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = [_MEASURE, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="evaluate",
    cls=Commands,
    help="Measure predictions (gridbox evaluate --predictions DIR --truth DIR --protocol wider: see measure), score "
    "detectors, and write the workflow's report.",
    no_args_is_help=True,
)


KittiSet = Annotated[Path | None, typer.Option("--kitti", help="KITTI set: an artifact, or TAO's folders.")]
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
Intervals = Annotated[
    bool,
    typer.Option(
        "--intervals/--no-intervals",
        help="Whether to say how far the scores could be others, had other images been drawn: 1,000 draws.",
    ),
]
EndpointUrl = Annotated[
    str,
    typer.Option("--endpoint", help="Triton server: host:port (HTTP), http://…, https://…, grpc://… or grpcs://…"),
]

DEFAULT_BANDS = "12-16,16-24,24-40,40-80,80+"


@app.command(_MEASURE)
def measure(
    truth: options.Truth,
    protocol: options.ProtocolOption = Protocol.ap50,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            help="WIDER FACE's text files, detections.jsonl, KITTI labels with scores, or COCO's.",
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="Checkpoint, model artifact, exported model or ONNX file to run.")
    ] = None,
    endpoint: EndpointUrl = "",
    name: Annotated[
        str, typer.Option("--name", help="What to call the model; which one's, where detections.jsonl holds several.")
    ] = "",
    images: options.Images = None,
    at_hand: options.AtHand = False,
    split: options.SplitName = None,
    json: options.Json = False,
    strict: options.Strict = False,
    report: options.ReportFile = None,
    markdown: options.MarkdownFile = None,
    intervals: Intervals = True,
    iou: options.MatchIou = 0.5,
    min_height: options.MinHeight = "0",
    input_size: options.InputSize = "",
    mode: options.Mode = options.CurveMode.integrate,
    height_bands: options.PixelBands = options.PIXEL_BANDS,
    confidence: options.Confidence = 0.95,
    replicates: options.Replicates = 1000,
    endpoint_model: options.EndpointModel = "",
    endpoint_host: options.EndpointHost = "",
    certificates: options.Certificates = None,
    in_flight: options.InFlight = 4,
    timeout: options.Timeout = 60.0,
) -> None:
    """Measure predictions, a model or an endpoint by a protocol. It is what gridbox evaluate does without a word.

    gridbox evaluate --predictions DIR --truth DIR --protocol wider --report report.html
    """
    from components.evaluate.measuring import ImageChoice, Serving, Source, run
    from components.measure.uncertainty import Resampling

    given = [*filter(None, (predictions, model, endpoint))]
    if len(given) != 1:
        raise UserError("give what to measure with one of --predictions, --model and --endpoint")
    least, *more = options.parse_heights(min_height)
    bands = options.parse_bands(height_bands)
    kind = "predictions" if predictions else "model" if model else "endpoint"
    measurement, pictures = run(
        [Source.of(str(given[0]), name, kind)],
        truth,
        ImageChoice(images, options.split_of(truth, split), at_hand),
        Rules(protocol, iou, least, mode.value, bands, tuple(more), options.parse_input(input_size)),
        strict,
        Resampling(confidence, replicates) if intervals else None,
        Serving(endpoint_model, endpoint_host, certificates, in_flight, timeout),
    )
    options.deliver(measurement, pictures, json, report, markdown)


@app.command("score")
def score(
    evaluation: Evaluation,
    model: Annotated[
        Path | None, typer.Option("--model", help="Checkpoint, model artifact, exported model or ONNX file.")
    ] = None,
    endpoint: EndpointUrl = "",
    kitti: KittiSet = None,
    wider: Annotated[Path | None, typer.Option("--wider", help="WIDER FACE folder in its official layout.")] = None,
    split: options.SplitName = None,
    metrics: Metrics = None,
    report: Report = None,
    markdown: options.MarkdownFile = None,
    min_face_height: MinHeight = 12.0,
    iou: Iou = 0.5,
    height_bands: Bands = DEFAULT_BANDS,
    ignore_regions: IgnoreRegions = True,
    batch_size: BatchSize = 16,
    intervals: Intervals = True,
    endpoint_model: options.EndpointModel = "",
    endpoint_host: options.EndpointHost = "",
    certificates: options.Certificates = None,
    in_flight: options.InFlight = 4,
    shared_memory: Annotated[
        bool, typer.Option("--shared-memory", help="Hand images to an endpoint on this machine in shared memory.")
    ] = False,
    timeout: options.Timeout = 60.0,
    differing_images: Annotated[
        float,
        typer.Option(
            "--differing-images", min=0, max=1, help="Share of images in which endpoint and model may differ."
        ),
    ] = 0.01,
    version: Annotated[
        str, typer.Option("--version", help="Digest of the model repository that must answer; any, if unset.")
    ] = "",
) -> None:
    """Score a model, a Triton endpoint, or both, on labelled images: average precision, by height, and a report.

    With an endpoint, the report also says how long it takes; with both, whether they find the same boxes.
    """
    from components.evaluate.program import Outputs, require_version, score_endpoint, score_model
    from components.measure.uncertainty import Resampling

    rules = _rules(min_face_height, iou, height_bands)
    resampling = Resampling() if intervals else None
    source = _source(kitti, wider, split, ignore_regions, batch_size)
    outputs = Outputs(evaluation, metrics, report, markdown)
    if endpoint:
        from components.evaluate.measuring import Serving

        serving = Serving(endpoint_model, endpoint_host, certificates, in_flight, timeout)
        with serving.connect(endpoint, shared_memory=shared_memory) as served:
            require_version(served, version)
            results, difference = score_endpoint(served, model, source, rules, outputs, differing_images, resampling)
        for result in results:
            _print(result)
        if difference:
            _print_difference(difference)
    elif model:
        _print(score_model(model, source, rules, outputs, resampling))
    else:
        raise UserError("give what to score: --model, --endpoint, or both")
    _tell(source, evaluation)


@app.command("endpoint")
def endpoint(
    evaluation: Evaluation,
    kitti: KittiSet,
    model: Annotated[Path, typer.Option("--model", help="The exported model that is served.")],
    deployment: Annotated[Path, typer.Option("--deployment", help="The deployment: where it answers, and which one.")],
    metrics: Metrics = None,
    report: Report = None,
    markdown: options.MarkdownFile = None,
    min_face_height: MinHeight = 12.0,
    intervals: Intervals = True,
) -> None:
    """Score what a deployment serves, and hold it against its model; without an endpoint, say that nothing is served.

    This is the workflow's own step; for everything else there is `gridbox evaluate score --endpoint`.
    """
    from components.evaluate.program import Outputs, skip_endpoint

    told = read_manifest(deployment, "deployment")["settings"]
    if not told.get("endpoint"):
        skip_endpoint(Outputs(evaluation, metrics, report, markdown))
        print("skipped: the deployment serves nothing yet (target manifest), so there is no endpoint to score")
        return
    score(
        evaluation,
        model=model,
        endpoint=told["endpoint"],
        endpoint_model=told.get("model_name", ""),
        endpoint_host=told.get("gateway_host", ""),
        version=told.get("repository_digest", ""),
        kitti=kitti,
        metrics=metrics,
        report=report,
        markdown=markdown,
        min_face_height=min_face_height,
        intervals=intervals,
    )


@app.command("report")
def report(
    exported: Annotated[Path, typer.Option("--exported", help="The exported model.")],
    quantized: Annotated[Path, typer.Option("--quantized", help="The quantised model.")],
    evaluation: Evaluation,
    kitti: KittiSet = None,
    wider: Annotated[Path | None, typer.Option("--wider", help="WIDER FACE folder in its official layout.")] = None,
    split: options.SplitName = None,
    evaluations: Annotated[
        Path | None,
        typer.Option("--evaluations", help="Those of the models before, for the table: a folder a model."),
    ] = None,
    metrics: Metrics = None,
    report: Report = None,
    markdown: options.MarkdownFile = None,
    min_face_height: MinHeight = 12.0,
    iou: Iou = 0.5,
    height_bands: Bands = DEFAULT_BANDS,
    ignore_regions: IgnoreRegions = True,
    batch_size: BatchSize = 16,
    intervals: Intervals = True,
) -> None:
    """Score the exported and the quantised model and write the workflow's final report."""
    from components.evaluate.program import Outputs, final_report
    from components.measure.uncertainty import Resampling

    rules = _rules(min_face_height, iou, height_bands)
    earlier = {name.capitalize(): evaluations / name if evaluations else None for name in MODELS}
    if evaluations is None:
        print("no earlier evaluations given: their rows of the table stay empty")
    source = _source(kitti, wider, split, ignore_regions, batch_size)
    outputs = Outputs(evaluation, metrics, report, markdown)
    resampling = Resampling() if intervals else None
    for result in final_report(exported, quantized, earlier, source, rules, outputs, resampling):
        _print(result)
    _tell(source, evaluation)


def _source(
    kitti: Path | None, wider: Path | None, split: options.Split | None, ignore_regions: bool, batch_size: int
) -> "Source":
    from components.evaluate.program import Source

    given = [*filter(None, (kitti, wider))]
    if len(given) != 1:
        raise UserError("give the labelled images with one of --kitti and --wider")
    return Source(kitti, wider, options.split_of(given[0], split), ignore_regions, batch_size)


def _tell(source: "Source", evaluation: Path) -> None:
    if source.has_chosen:
        print(f"Scored on the {source.split} split, whose images also chose: a test split tells without favour")
    print(f"Report: {evaluation / 'report.html'}")


def _rules(min_height: float, iou: float, bands: str) -> Rules:
    return Rules(Protocol.ap50, iou, min_height, bands=options.parse_bands(bands))


def _print(result: "Evaluated") -> None:
    def ratio(value: float | None) -> str:
        return "none to find" if value is None else f"{value:.4f}"

    score = result.score
    around = "" if score.low is None or score.high is None else f" [{score.low:.4f}, {score.high:.4f}]"
    figures, title = result.metrics, f"{result.score.scale.title}@{result.metrics['iou_threshold']:g}"
    print(
        f"{result.name}: {title} {ratio(score.value)}{around} over {figures['objects']} objects at least "
        f"{figures['minimum_height']:g} pixels high in {figures['images']} images, "
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
