"""The jobs: scoring one model, scoring a served one, and the workflow's final report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.evaluate.difference import Difference, compare
from components.evaluate.evaluation import (
    EVALUATION_KIND,
    METRICS_FILE,
    REPORT_FILE,
    Evaluated,
    Protocol,
    evaluate,
    flat_metrics,
    write_evaluation,
)
from components.evaluate.report import render
from components.evaluate.report_markdown import render_markdown
from components.evaluate.served import evaluate_endpoint, network_input_of
from components.evaluate.stages import StageRow, earlier_row, measured_row, points_lost, row_of
from components.evaluate.wider import WiderImages
from components.evaluate.workflow_page import DataSet, Serving, workflow_page
from components.step import MANIFEST, StageError, UserError, check_target, publish, sha256, write_json, write_manifest
from components.vision.endpoint import Endpoint
from components.vision.inputs import InputSpec
from components.vision.predictor import Predictor, load_predictor
from components.vision.scoring import ImageSource, KittiImages

# How an endpoint says that it fits images into the network's input as scoring does.
LETTERBOX = "letterbox"


@dataclass(frozen=True, slots=True)
class Source:
    """Which labelled images to score on: a KITTI set or a WIDER FACE folder, and the split of it."""

    kitti: Path | None
    wider: Path | None
    split: str

    def open(self, spec: InputSpec, classes: Sequence[str], ignore_regions: bool) -> ImageSource:
        """Opens the images at the size of a network's input, with the classes it knows.

        Raises:
            UserError: Not exactly one of the two is given, or it cannot be read.
        """
        if self.kitti is not None and self.wider is None:
            return KittiImages(self.kitti, self.split, spec, classes, ignore_regions)
        if self.wider is not None and self.kitti is None:
            return WiderImages(self.wider, self.split, spec, classes, ignore_regions)
        raise UserError("give the labelled images with one of --kitti and --wider")

    @property
    def digest(self) -> str:
        """SHA-256 of the set's manifest, which names every file; empty for a folder without one."""
        manifest = self.kitti / MANIFEST if self.kitti else None
        return sha256(manifest) if manifest and manifest.is_file() else ""

    def describe(self) -> DataSet:
        """Returns what the report says about the images."""
        kind, folder = ("KITTI set", self.kitti) if self.kitti else ("WIDER FACE folder", self.wider)
        assert folder is not None
        return DataSet(f"{self.split} split of a {kind}", _is_synthetic(folder))


def _is_synthetic(folder: Path) -> bool:
    """Tells whether a data set's manifest says that a program drew it; sets without a manifest say nothing."""
    file = folder / MANIFEST
    if not file.is_file():
        return False
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        return any(bool(manifest.get(part, {}).get("synthetic")) for part in ("counts", "settings"))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file}: not a readable manifest: {error}") from error


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where the results go: the artifact, and optionally flat JSON for Kubeflow's Metrics and copies of the report."""

    evaluation: Path
    metrics: Path | None
    report: Path | None
    markdown: Path | None = None

    def __post_init__(self) -> None:
        """Refuses places where something else stands, before hours of scoring.

        Raises:
            UserError: There is such a one.
        """
        check_target(self.evaluation, EVALUATION_KIND)
        for file in filter(None, (self.metrics, self.report, self.markdown)):
            check_target(file, None)


def score_model(model: Path, source: Source, protocol: Protocol, outputs: Outputs) -> Evaluated:
    """Scores one model and writes its evaluation.

    Args:
        model: A checkpoint, a model artifact, an exported-model artifact or its ONNX file.
        source: The labelled images.
        protocol: How to score.
        outputs: Where the results go.
    """
    predictor = load_predictor(model)
    images = source.open(predictor.input, predictor.decoder.class_names, protocol.ignore_regions)
    result = evaluate("scored", predictor, images, protocol)
    _write([result], [measured_row(result, model)], images, source, protocol, outputs, {})
    return result


def score_endpoint(
    endpoint: Endpoint, model: Path | None, source: Source, protocol: Protocol, outputs: Outputs, differing: float
) -> tuple[list[Evaluated], Difference | None]:
    """Scores a served detector, holds it against the model it was made from where that is given, and writes both.

    Args:
        endpoint: The served detector.
        model: See `score_model`.
        source: The labelled images, sent as they are stored.
        protocol: How to score.
        outputs: Where the results go.
        differing: Share of the images, 0 to 1, in which endpoint and model may find different boxes.

    Returns:
        The results, the endpoint's last, and how far it agrees with the model.

    Raises:
        UserError: Endpoint and model do not belong together, or an input cannot be read.
        StageError: The endpoint fails; or it differs from the model in too many images, and all is written.
    """
    predictor = load_predictor(model) if model else None
    spec = predictor.input if predictor else network_input_of(endpoint)
    if predictor:
        _refuse_stranger(endpoint, model, predictor)
    images = source.open(spec, endpoint.class_names, protocol.ignore_regions)
    served = evaluate_endpoint(endpoint, images, protocol)
    results, rows, extra, difference = [served.evaluated], [row_of(served.evaluated)], {}, None
    if predictor and model:
        here = evaluate("in-process", predictor, images, protocol)
        results, rows = [here, *results], [measured_row(here, model), *rows]
        difference = compare(here.scored, served.evaluated.scored, served.scales)
        extra = {"differing_images": len(difference.differing), "largest_edge_difference": difference.edge}
    _write(results, rows, images, source, protocol, outputs, extra, Serving(str(endpoint), served.latency, difference))
    if difference and difference.share > differing:
        raise StageError(
            f"{endpoint}: its boxes differ from those of {model} in {len(difference.differing)} of {difference.images} "
            f"images, first in {difference.differing[0]}; at most {differing:.2%} may (all is in {outputs.evaluation})"
        )
    return results, difference


def require_version(endpoint: Endpoint, digest: str) -> None:
    """Refuses an endpoint behind which another version of the model repository answers than the one to be scored.

    Args:
        endpoint: The served detector.
        digest: What its configuration must hold as `gridbox_digest`; empty: any will do.

    Raises:
        StageError: Another version answers, or one that does not say which it is.
    """
    found = endpoint.parameters.get("gridbox_digest", "")
    if digest and found != digest:
        said = f"version {found[:16]}…" if found else "a version that does not say which it is"
        raise StageError(f"{endpoint}: {said} answers, not {digest[:16]}…; it is not scored in its place")


def skip_endpoint(outputs: Outputs) -> None:
    """Writes the evaluation of a deployment that serves nothing: it says so in the place of every figure."""
    said = "The model was not deployed but written as a manifest, so there is no endpoint to score."
    html = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Not scored</title><p>{said}</p></html>\n'
    with publish(outputs.evaluation) as scratch:
        scratch.mkdir()
        (scratch / REPORT_FILE).write_text(html, encoding="utf-8")
        write_json(scratch / METRICS_FILE, {"skipped": True})
        write_manifest(scratch, EVALUATION_KIND, {"skipped": True}, {})
    _write_copies(outputs, html, f"# Not scored\n\n{said}\n", {"skipped": True})


def _refuse_stranger(endpoint: Endpoint, model: Path | None, predictor: Predictor) -> None:
    size = predictor.input.width, predictor.input.height
    if (endpoint.network_size or size, endpoint.class_names) != (size, predictor.decoder.class_names):
        raise UserError(f"{model}: its input size or classes are not those behind {endpoint}; give the served model")
    fitting = endpoint.parameters.get("preprocessing", LETTERBOX)
    if fitting != LETTERBOX:
        raise UserError(f"{endpoint}: fits images by {fitting}, scoring here by {LETTERBOX}: leave out --model")


def final_report(
    exported: Path,
    quantized: Path,
    earlier: Mapping[str, Path | None],
    source: Source,
    protocol: Protocol,
    outputs: Outputs,
) -> tuple[Evaluated, Evaluated]:
    """Scores the exported and the quantised model, and writes the workflow's final evaluation.

    Args:
        exported: The exported model.
        quantized: The quantised model.
        earlier: By stage name, in the table's order, the evaluation of that stage or None.
        source: The labelled images.
        protocol: How to score.
        outputs: Where the results go.

    Raises:
        UserError: An input cannot be read, or the two models do not belong together.
    """
    rows = [earlier_row(name, evaluation) for name, evaluation in earlier.items()]
    predictors = load_predictor(exported), load_predictor(quantized)
    kinds = [(predictor.input, predictor.decoder.class_names) for predictor in predictors]
    if kinds[0] != kinds[1]:
        raise UserError(f"{quantized}: its input size or classes differ from those of {exported}; quantise that model")
    images = source.open(*kinds[0], protocol.ignore_regions)
    before = evaluate("exported", predictors[0], images, protocol)
    after = evaluate("quantized", predictors[1], images, protocol)
    rows += [measured_row(before, exported), measured_row(after, quantized)]
    lost = points_lost(before.average_precision, after.average_precision)
    extra = {} if lost is None else {"quantization_points_lost": lost}
    _write([before, after], rows, images, source, protocol, outputs, extra)
    return before, after


def _write(
    models: Sequence[Evaluated],
    rows: Sequence[StageRow],
    images: ImageSource,
    source: Source,
    protocol: Protocol,
    outputs: Outputs,
    extra: Mapping[str, float],
    serving: Serving | None = None,
) -> None:
    data = source.describe()
    page = workflow_page(models, rows, images, data, protocol, serving)
    html = render(page)
    settings: dict[str, Any] = {
        "split": source.split,
        "min_face_height": protocol.min_height,
        "iou_threshold": protocol.iou_threshold,
        "height_bands": [band.name for band in protocol.bands],
        "ignore_regions": protocol.ignore_regions,
        # Only scores on the same images can be compared.
        "data_digest": source.digest,
    }
    write_evaluation(outputs.evaluation, models, html, {"synthetic": data.synthetic, **extra}, settings)
    _write_copies(outputs, html, render_markdown(page), {**flat_metrics(models), **extra})


def _write_copies(outputs: Outputs, html: str, markdown: str, figures: Mapping[str, float]) -> None:
    for file, text in ((outputs.report, html), (outputs.markdown, markdown)):
        if file is not None:
            write_text(file, text)
    if outputs.metrics is not None:
        write_json(outputs.metrics, figures)


def write_text(file: Path, text: str) -> None:
    """Writes a text file, beside it first."""
    with publish(file) as scratch:
        scratch.write_text(text, encoding="utf-8")
