"""The job of `gridbox evaluate` and `gridbox compare`: gathers predictions, measures them, and pairs the models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from components.evaluate.detectors import Detected, detect_here, detect_there
from components.evaluate.inputs import Findings, models_in, read_predictions, read_truth
from components.evaluate.pictures import Pictures
from components.evaluate.protocols import Result, measure
from components.evaluate.rules import Rules
from components.measure.dataset import Truth
from components.measure.uncertainty import Interval, PairedDifference, Resampling
from components.serve.families import default_ensemble
from components.step import UserError
from components.vision.endpoint import Endpoint
from components.vision.inputs import InputSpec
from components.vision.predictor import MODEL_FILE, load_predictor

_URL_SCHEMES = ("http", "https", "grpc", "grpcs")
_MODEL_SUFFIXES = (".onnx", ".safetensors", ".hdf5", ".h5", ".pt", ".pth")
_WEIGHTS = "weights"  # in a model artifact
# As many colours has a report.
MOST_MODELS = 6


@dataclass(frozen=True, slots=True)
class Source:
    """Where predictions come from.

    Attributes:
        name: What the model is called.
        kind: `predictions`, `model` or `endpoint`.
        place: A path, or a URL.
        model: Which model's, where a file holds several.
    """

    name: str
    kind: str
    place: str
    model: str = ""

    @classmethod
    def parse(cls, text: str) -> "Source":
        """Reads `[NAME=]PLACE`; see `of`."""
        name, equals, place = text.partition("=")
        if not equals or "/" in name or ":" in name:
            name, place = "", text
        return cls.of(place, name)

    @classmethod
    def of(cls, place: str, name: str = "", kind: str = "") -> "Source":
        """Tells by what is there whether it is predictions, a model or an endpoint, where the kind is not given.

        Raises:
            UserError: A file holds the detections of several models, and the name is none of theirs.
        """
        scheme, found, address = place.partition("://")
        if kind == "endpoint" or (found and scheme in _URL_SCHEMES and not kind):
            return cls(name or address or place, "endpoint", place)
        path = Path(place)
        several = models_in(path) if kind != "model" else []
        if len(several) > 1 or name in several:
            if name not in several:
                raise UserError(f"{place}: holds the detections of {', '.join(several)}; name one of them")
            return cls(name, "predictions", place, name)
        folder = (path / MODEL_FILE).is_file() or (path / _WEIGHTS).is_dir()
        is_model = path.suffix in _MODEL_SUFFIXES or (folder and not several)
        return cls(name or _stem(path), kind or ("model" if is_model else "predictions"), place)


def _stem(path: Path) -> str:
    return path.stem if path.suffix else path.resolve().name


@dataclass(frozen=True, slots=True)
class Serving:
    """How an endpoint is called: the ensemble, if not the default one, the gateway's host name, trusted authorities."""

    model: str = ""
    host: str = ""
    certificates: Path | None = None
    in_flight: int = 4
    timeout: float = 60.0

    def connect(self, url: str, *, shared_memory: bool = False) -> Endpoint:
        """Connects to the endpoint at a URL.

        Raises:
            UserError: Nothing listens there, or the model is unknown or another kind.
            StageError: The server fails.
        """
        return Endpoint(
            url,
            self.model or default_ensemble(),
            shared_memory=shared_memory,
            timeout=self.timeout,
            in_flight=self.in_flight,
            host=self.host,
            certificates=self.certificates,
            min_score=0.0,  # a curve needs everything
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """How much higher a model scores than the first one."""

    model: str
    baseline: str
    figure: str
    paired: PairedDifference


@dataclass(frozen=True, slots=True)
class Measurement:
    """Everything that was measured.

    Attributes:
        truth: The ground truth.
        rules: How it was measured.
        results: Of each model.
        findings: By `truth` or the model's name, what was remarkable.
        intervals: By model and figure.
        differences: Of each model but the first to the first.
    """

    truth: Truth
    rules: Rules
    results: Sequence[Result]
    findings: Mapping[str, Findings]
    intervals: Mapping[tuple[str, str], Interval] = field(default_factory=dict)
    differences: Sequence[Difference] = ()

    def finding_lines(self) -> list[str]:
        """Returns a line for each finding, with whose it is."""
        return [f"{whose}: {line}" for whose, findings in self.findings.items() for line in findings.lines()]

    def document(self) -> dict[str, Any]:
        """Returns everything as plain values for JSON."""
        models = [self._of_model(result) for result in self.results]
        document: dict[str, Any] = {
            "protocol": self.rules.protocol.value,
            "images": len(self.truth.images),
            "objects": self.results[0].measured.objects(),
            "findings": {
                whose: {"faults": dict(findings.faults), "notes": dict(findings.notes)}
                for whose, findings in self.findings.items()
            },
        }
        if len(models) == 1:
            return {**document, **models[0]}
        differences = [
            {
                "model": difference.model,
                "baseline": difference.baseline,
                "figure": difference.figure,
                **_interval(difference.paired.interval),
                "p_value": difference.paired.p_value,
            }
            for difference in self.differences
        ]
        return {**document, "models": models, "differences": differences}

    def _of_model(self, result: Result) -> dict[str, Any]:
        detected = result.detected
        intervals = {figure: _interval(i) for (model, figure), i in self.intervals.items() if model == result.name}
        known = {
            "parameters": detected.parameters,
            "file_bytes": detected.file_bytes,
            "images_per_second": detected.images_per_second,
            "latency_milliseconds": detected.latency.milliseconds() if detected.latency else None,
            "intervals": intervals or None,
        }
        return {
            "name": result.name,
            "detections": len(detected.predictions.scores),
            "figures": {name: figure.value for name, figure in result.figures.items()},
            **{name: value for name, value in known.items() if value is not None},
        }


def _interval(interval: Interval) -> dict[str, float | int]:
    return {
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "confidence": interval.confidence,
        "replicates": interval.replicates,
    }


@dataclass(frozen=True, slots=True)
class ImageChoice:
    """Which images count.

    Attributes:
        folder: Where they are, if not with the truth.
        split: `training`, `validation` or `test`, where there are several.
        at_hand: Whether only those count that are there: the truth and the predictions of the others do not.
    """

    folder: Path | None = None
    split: str = "validation"
    at_hand: bool = False


def run(
    sources: Sequence[Source],
    truth_source: Path,
    images: ImageChoice,
    rules: Rules,
    strict: bool,
    resampling: Resampling | None = None,
    serving: Serving | None = None,
) -> tuple[Measurement, Pictures]:
    """Measures one model or several on the same truth.

    Args:
        sources: The models, each with a name of its own.
        truth_source: The ground truth; see `components.evaluate.inputs`.
        images: Which images.
        rules: How to measure.
        strict: Whether faults of the input end it.
        resampling: How to draw intervals; None for no intervals.
        serving: How endpoints are called.

    Raises:
        UserError: An input cannot be read or used, or has faults and none is allowed.
        StageError: An endpoint fails.
    """
    names = [source.name for source in sources]
    if len(set(names)) != len(names) or len(names) > MOST_MODELS:
        raise UserError(f"{', '.join(names)}: at most {MOST_MODELS} models, each with another name (NAME=PATH)")
    findings = {"truth": Findings(strict)}
    truth = read_truth(truth_source, findings["truth"], images.split)
    pictures = Pictures(truth, images.folder or (truth_source if truth_source.is_dir() else None), images.split)
    left_out: list[str] = []
    if images.at_hand:
        if not pictures.available:
            raise UserError("--at-hand: none of the truth's images is there; name their folder with --images")
        left_out = [name for name in truth.images if name not in pictures.available]
        truth = truth.of_images(np.array([name in pictures.available for name in truth.images], bool))
    placements = None if rules.input is None else pictures.placements(truth.images, InputSpec(*rules.input))
    placed = truth.placed(placements.scales, placements.offsets) if placements else truth
    results = []
    for source in sources:
        findings[source.name] = Findings(strict)
        found = _detect(source, truth, pictures, findings[source.name], serving or Serving(), left_out)
        if placements:
            predictions = found.predictions.placed(placements.scales, placements.offsets)
            found = replace(found, predictions=predictions)
        results.append(measure(source.name, placed, found, rules))
    measurement = Measurement(placed, rules, results, findings)
    return (_resampled(measurement, resampling) if resampling else measurement), pictures


def _detect(
    source: Source, truth: Truth, pictures: Pictures, findings: Findings, serving: Serving, left_out: Sequence[str]
) -> Detected:
    if source.kind == "model":
        return detect_here(load_predictor(Path(source.place)), source.name, pictures, truth, findings)
    if source.kind == "endpoint":
        with serving.connect(source.place) as endpoint:
            return detect_there(endpoint, source.name, pictures, truth, findings)
    return Detected(read_predictions(Path(source.place), truth, findings, source.model, left_out))


def _resampled(measurement: Measurement, resampling: Resampling) -> Measurement:
    """Adds intervals of all figures that can be drawn again, and the differences to the first model."""
    intervals, differences = {}, []
    first = measurement.results[0]
    for result in measurement.results:
        for name, figure in result.figures.items():
            if figure.outcomes is None:
                continue
            intervals[result.name, name] = resampling.interval(figure.outcomes)
            other = first.figures[name].outcomes
            if result is not first and other is not None:
                paired = resampling.difference(figure.outcomes, other)
                differences.append(Difference(result.name, first.name, name, paired))
    return replace(measurement, intervals=intervals, differences=differences)
