"""The jobs of a workflow: scoring one model, scoring a served one, and the final report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from components.decode.description import OPERATING_POINT, upgraded
from components.evaluate.detectors import Detected, detect_here, detect_there
from components.evaluate.difference import Difference, compare
from components.evaluate.evaluation import (
    EVALUATION_KIND,
    METRICS_FILE,
    REPORT_FILE,
    Evaluated,
    flat_metrics,
    write_evaluation,
)
from components.evaluate.inputs import Findings, read_labelled
from components.evaluate.pictures import Pictures
from components.evaluate.protocols import measure
from components.evaluate.report.html import render
from components.evaluate.report.markdown import render_markdown
from components.evaluate.report.workflow_page import DataSet, Serving, workflow_page
from components.evaluate.rules import Rules
from components.evaluate.stages import StageRow, earlier_row, measured_row, points_lost
from components.formats.reading import entry, read_json
from components.measure.dataset import Truth
from components.measure.uncertainty import Resampling
from components.step import MANIFEST, StageError, UserError, check_target, publish, sha256, write_json, write_manifest
from components.vision.endpoint import Endpoint
from components.vision.inputs import InputSpec
from components.vision.predictor import Predictor, load_predictor
from components.vision.scoring import BATCH_SIZE


@dataclass(frozen=True, slots=True)
class Source:
    """Which labelled images to score on: a KITTI set or a WIDER FACE folder, the split, and what counts there.

    Attributes:
        kitti: The KITTI set.
        wider: The WIDER FACE folder.
        split: `training`, `validation` or `test`.
        ignore_regions: Whether nothing counts inside ignore regions.
        batch_size: Images that the network sees at once.
    """

    kitti: Path | None
    wider: Path | None
    split: str
    ignore_regions: bool = True
    batch_size: int = BATCH_SIZE

    @property
    def folder(self) -> Path:
        """Where they are.

        Raises:
            UserError: Not exactly one of the two is given.
        """
        given = [*filter(None, (self.kitti, self.wider))]
        if len(given) != 1:
            raise UserError("give the labelled images with one of --kitti and --wider")
        return given[0]

    @property
    def digest(self) -> str:
        """SHA-256 of the set's manifest, which names every file; empty for a folder without one."""
        manifest = self.kitti / MANIFEST if self.kitti else None
        return sha256(manifest) if manifest and manifest.is_file() else ""

    def describe(self) -> DataSet:
        """Returns what the report says about the images."""
        kind = "KITTI set" if self.kitti else "WIDER FACE folder"
        manifest = _manifest(self.folder)
        synthetic = any(bool(manifest.get(part, {}).get("synthetic")) for part in ("counts", "settings"))
        return DataSet(f"{self.split} split of a {kind}", synthetic, self.ignore_regions, self.has_chosen)

    @property
    def has_chosen(self) -> bool:
        """Whether the model, or something about it, was chosen by the very images that it is scored on."""
        return self.kitti is not None and self.split != "test"

    def require_height(self, height: float, spec: InputSpec) -> None:
        """Refuses figures of faces lower than those that the set has: it ignores these as if they were not there.

        Args:
            height: The lowest face that counts, pixels of the network's input.
            spec: What the network takes.

        Raises:
            UserError: The set ignores faces of this height.
        """
        if self.kitti is None or not self.ignore_regions:
            return
        made = _manifest(self.kitti).get("settings", {})
        if made.get("small_faces") != "ignore" or not made.get("min_face_height"):
            return
        least = made["min_face_height"] * spec.placement(made["width"], made["height"]).scale[1]
        if height < least:
            raise UserError(
                f"{self.kitti}: faces lower than {least:g} pixels are ignored in this set, so figures from {height:g} "
                f"pixels on would be of others; give at least {math.ceil(least)} (--min-face-height, "
                "eval_min_face_height), or convert the set with a lower --min-face-height"
            )


def _manifest(folder: Path) -> dict[str, Any]:
    """Returns a data set's manifest; empty where it has none."""
    file = folder / MANIFEST
    return dict(entry(read_json(file), str(file)).fields) if file.is_file() else {}


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


@dataclass(frozen=True, slots=True)
class Scoring:
    """Labelled images and the rules by which models are scored on them, in pixels of the network's input.

    Attributes:
        source: Where the images come from.
        rules: How models are scored.
        spec: What the network takes.
        truth: The ground truth, in pixels of the stored images.
        skipped: By what was left out of the truth, how often.
        pictures: The images.
        resampling: How to draw intervals; None for no intervals.
    """

    source: Source
    rules: Rules
    spec: InputSpec
    truth: Truth
    skipped: Mapping[str, int]
    pictures: Pictures
    resampling: Resampling | None = None

    @classmethod
    def open(
        cls,
        source: Source,
        rules: Rules,
        spec: InputSpec,
        class_names: Sequence[str],
        resampling: Resampling | None = None,
    ) -> Self:
        """Reads what a network with this input and these classes can find.

        Raises:
            UserError: It cannot be read.
        """
        source.require_height(rules.min_height, spec)
        folder, is_wider = source.folder, source.wider is not None
        truth, skipped = read_labelled(
            folder, source.split, class_names, wider=is_wider, ignore_regions=source.ignore_regions
        )
        return cls(source, rules, spec, truth, skipped, Pictures(truth, folder, source.split), resampling)

    def model(self, name: str, predictor: Predictor) -> Evaluated:
        """Scores a model in this process."""
        batch_size = self.source.batch_size
        found = detect_here(predictor, name, self.pictures, self.truth, Findings(), batch_size, stored_pixels=False)
        return self._evaluated(name, found)

    def endpoint(self, endpoint: Endpoint) -> Evaluated:
        """Scores a served detector.

        Its boxes come back in pixels of the stored images. They are mapped into the network's input as the labels are,
        so that heights, and with them what counts, are those of a model in this process.
        """
        found = detect_there(endpoint, "endpoint", self.pictures, self.truth, Findings(), self.spec)
        return self._evaluated("endpoint", found)

    def _evaluated(self, name: str, detected: Detected) -> Evaluated:
        assert detected.placements is not None
        truth = self.truth.placed(detected.placements.scales, detected.placements.offsets)
        result = measure(name, truth, detected, self.rules)
        return Evaluated.of(result, self.rules, self.skipped, self.resampling)

    def write(
        self,
        models: Sequence[Evaluated],
        rows: Sequence[StageRow],
        outputs: Outputs,
        extra: Mapping[str, float],
        serving: Serving | None = None,
    ) -> None:
        """Writes the evaluation of models, and the copies of its report that are asked for."""
        source, rules, data = self.source, self.rules, self.source.describe()
        page = workflow_page(models, rows, self.pictures, self.spec, data, rules, serving)
        html = render(page)
        settings: dict[str, Any] = {
            "split": source.split,
            "min_face_height": rules.min_height,
            "iou_threshold": rules.iou,
            "height_bands": [band.name for band in rules.bands],
            "ignore_regions": source.ignore_regions,
            # Only scores on the same images can be compared.
            "data_digest": source.digest,
        }
        write_evaluation(outputs.evaluation, models, html, {"synthetic": data.synthetic, **extra}, settings)
        _write_copies(outputs, html, render_markdown(page), {**flat_metrics(models), **extra})


def score_model(
    model: Path, source: Source, rules: Rules, outputs: Outputs, resampling: Resampling | None = None
) -> Evaluated:
    """Scores one model and writes its evaluation.

    Args:
        model: A checkpoint, a model artifact, an exported-model artifact or its ONNX file.
        source: The labelled images.
        rules: How to score.
        outputs: Where the results go.
        resampling: How to draw intervals; None for no intervals.
    """
    predictor = load_predictor(model)
    scoring = Scoring.open(source, rules, predictor.input, predictor.decoder.class_names, resampling)
    result = scoring.model("scored", predictor)
    scoring.write([result], [measured_row(result, model)], outputs, {})
    return result


def score_endpoint(
    endpoint: Endpoint,
    model: Path | None,
    source: Source,
    rules: Rules,
    outputs: Outputs,
    differing: float,
    resampling: Resampling | None = None,
) -> tuple[list[Evaluated], Difference | None]:
    """Scores a served detector, holds it against the model it was made from where that is given, and writes both.

    Args:
        endpoint: The served detector.
        model: See `score_model`.
        source: The labelled images, sent as they are stored.
        rules: How to score.
        outputs: Where the results go.
        differing: Share of the images, 0 to 1, in which endpoint and model may find different boxes.
        resampling: See `score_model`.

    Returns:
        The results, the endpoint's last, and how far it agrees with the model.

    Raises:
        UserError: Endpoint and model do not belong together, or an input cannot be read.
        StageError: The endpoint fails; or it differs from the model in too many images, and all is written.
    """
    predictor = load_predictor(model) if model else None
    if predictor:
        _refuse_another(endpoint, model, predictor)
    spec = predictor.input if predictor else input_of(endpoint)
    scoring = Scoring.open(source, rules, spec, endpoint.class_names, resampling)
    served = scoring.endpoint(endpoint)
    results, rows, extra, difference = [served], [measured_row(served, None)], {}, None
    if predictor and model:
        here = scoring.model("in-process", predictor)
        results, rows = [here, *results], [measured_row(here, model), *rows]
        difference = difference_of(here, served)
        extra = {"differing_images": len(difference.differing), "largest_edge_difference": difference.edge}
    scoring.write(results, rows, outputs, extra, Serving(str(endpoint), difference))
    if difference and difference.share > differing:
        raise StageError(
            f"{endpoint}: its boxes differ from those of {model} in {len(difference.differing)} of {difference.images} "
            f"images, first in {difference.differing[0]}; at most {differing:.2%} may (all is in {outputs.evaluation})"
        )
    return results, difference


def difference_of(here: Evaluated, served: Evaluated) -> Difference:
    """Compares what a model found here with what it found where it is served, in pixels of the stored images."""
    one, other = here.result.detected, served.result.detected
    assert other.placements is not None
    scales = other.placements.scales[:, 0].tolist()
    return compare(here.result.measured.images, one.predictions, other.predictions, scales)


def input_of(endpoint: Endpoint) -> InputSpec:
    """Returns what the network behind an endpoint takes.

    Raises:
        UserError: The endpoint does not say it.
    """
    if endpoint.network_size is None:
        raise UserError(f"{endpoint}: none of its models says the size of the network's input; give --model, too")
    described = upgraded(endpoint.parameters)["input"] or {}
    return InputSpec.from_json({**described, **dict(zip(("width", "height"), endpoint.network_size, strict=True))})


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
    """Writes the evaluation of a deployment that serves nothing: it says so instead of figures."""
    said = "The model was not deployed but written as a manifest, so there is no endpoint to score."
    html = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Not scored</title><p>{said}</p></html>\n'
    with publish(outputs.evaluation) as scratch:
        scratch.mkdir()
        (scratch / REPORT_FILE).write_text(html, encoding="utf-8")
        write_json(scratch / METRICS_FILE, {"skipped": True})
        write_manifest(scratch, EVALUATION_KIND, {"skipped": True}, {})
    _write_copies(outputs, html, f"# Not scored\n\n{said}\n", {"skipped": True})


def _refuse_another(endpoint: Endpoint, model: Path | None, predictor: Predictor) -> None:
    size = predictor.input.width, predictor.input.height
    if (endpoint.network_size or size, endpoint.class_names) != (size, predictor.decoder.class_names):
        raise UserError(f"{model}: its input size or classes are not those behind {endpoint}; give the served model")
    here, there = predictor.input, input_of(endpoint) if endpoint.network_size else predictor.input
    if (here.fit, here.resampling) != (there.fit, there.resampling):
        ways = f"{there.fit} ({there.resampling}), {model} by {here.fit} ({here.resampling})"
        raise UserError(f"{endpoint}: fits images by {ways}: leave out --model")


def final_report(
    exported: Path,
    quantized: Path,
    earlier: Mapping[str, Path | None],
    source: Source,
    rules: Rules,
    outputs: Outputs,
    resampling: Resampling | None = None,
) -> tuple[Evaluated, Evaluated]:
    """Scores the exported and the quantised model, and writes the workflow's final evaluation.

    Args:
        exported: The exported model.
        quantized: The quantised model.
        earlier: By stage name, in the table's order, the evaluation of that stage or None.
        source: The labelled images.
        rules: How to score.
        outputs: Where the results go.
        resampling: See `score_model`.

    Raises:
        UserError: An input cannot be read, or the two models do not belong together.
    """
    rows = [earlier_row(name, evaluation) for name, evaluation in earlier.items()]
    predictors = load_predictor(exported), load_predictor(quantized)
    kinds = [(predictor.input, predictor.decoder.class_names) for predictor in predictors]
    if kinds[0] != kinds[1]:
        raise UserError(f"{quantized}: its input size or classes differ from those of {exported}; quantise that model")
    scoring = Scoring.open(source, rules, *kinds[0], resampling)
    before, after = (
        replace(scored, metrics={**scored.metrics, OPERATING_POINT: point}) if point else scored
        for scored, point in (
            (scoring.model("exported", predictors[0]), _chosen(predictors[0]) or _chosen_before(quantized)),
            (scoring.model("quantized", predictors[1]), _chosen(predictors[1])),
        )
    )
    rows += [measured_row(before, exported), measured_row(after, quantized)]
    lost = points_lost(before.score, after.score)
    scoring.write([before, after], rows, outputs, {} if lost is None else {"quantization_points_lost": lost})
    return before, after


def _chosen(predictor: Predictor) -> dict[str, float]:
    """Returns by class from which score on a model's detections are shown; empty where it does not say it."""
    return dict(predictor.decoder.settings().get(OPERATING_POINT, {}))


def _chosen_before(quantized: Path) -> dict[str, float]:
    """Returns the operating point of the model that was quantised, which the conversion found."""
    made = _manifest(quantized).get("settings", {}).get("quantization", {}) if quantized.is_dir() else {}
    return dict(made.get(OPERATING_POINT, {}))


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
