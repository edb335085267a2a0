"""`gridbox compare`: two models or more on the same images, with intervals and paired tests."""

from typing import Annotated

import typer

from components.evaluate import measuring_options as options
from components.evaluate.rules import Protocol, Rules
from components.step import UserError

app = typer.Typer(name="compare", add_completion=False)


@app.command()
def compare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]A [NAME=]B …",
            help="Predictions, models (checkpoint, artifact, ONNX) or endpoints (http://…, grpc://…); the first is "
            "what the others are compared with.",
            show_default=False,
        ),
    ],
    truth: options.Truth,
    protocol: options.ProtocolOption = Protocol.ap50,
    images: options.Images = None,
    at_hand: options.AtHand = False,
    split: options.SplitName = None,
    json: options.Json = False,
    strict: options.Strict = False,
    report: options.ReportFile = None,
    markdown: options.MarkdownFile = None,
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
    """Compare models on the same images: scores with intervals, paired differences with p-values, one report.

    gridbox compare old=runs/a/export new=runs/b/export --truth runs/a/kitti/kitti --report compared.html
    """
    from components.evaluate.measuring import ImageChoice, Serving, Source, run
    from components.measure.uncertainty import Resampling

    if len(sources) < 2:
        raise UserError("give two models or more to compare; one is measured by gridbox evaluate")
    least, *more = options.parse_heights(min_height)
    bands = options.parse_bands(height_bands)
    rules = Rules(protocol, iou, least, mode.value, bands, tuple(more), options.parse_input(input_size))
    measurement, pictures = run(
        [Source.parse(text) for text in sources],
        truth,
        ImageChoice(images, options.split_of(truth, split), at_hand),
        rules,
        strict,
        Resampling(confidence, replicates),
        Serving(endpoint_model, endpoint_host, certificates, in_flight, timeout),
    )
    options.deliver(measurement, pictures, json, report, markdown)
