"""What each protocol makes of predictions: its figures."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from components.evaluate.detectors import Detected
from components.evaluate.rules import AREA, FROM_HEIGHT, Protocol, Rules
from components.measure import coco, tao, wider
from components.measure.average_precision import Measured
from components.measure.dataset import Predictions, Truth
from components.measure.matching import BoxSizes, HeightBand
from components.measure.uncertainty import CurveOutcomes, MeanOutcomes, Outcomes
from components.step import UserError


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a protocol, 0 to 1; None where nothing was to be found.

    Attributes:
        value: The number.
        outcomes: What to resample for its interval, where the protocol's number can be taken again.
    """

    value: float | None
    outcomes: Outcomes | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What one model scored.

    Attributes:
        measured: Its detections, matched at the rules' IoU.
        figures: The protocol's numbers by name, the most telling one first.
        detected: What it found, and what is known of it besides.
        official: By subset, what the official protocol of WIDER FACE counted.
    """

    measured: Measured
    figures: Mapping[str, Figure]
    detected: Detected
    official: Mapping[str, wider.WiderOutcomes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.measured.name


def measure(name: str, truth: Truth, found: Detected | Predictions, rules: Rules) -> Result:
    """Measures one model.

    Args:
        name: What it is called.
        truth: The ground truth.
        found: What it found, in the truth's pixels.
        rules: How to measure.

    Raises:
        UserError: The truth does not have what the protocol needs.
    """
    if not truth.class_names:
        raise UserError("the truth names no class; there is nothing to measure")
    detected = Detected(found) if isinstance(found, Predictions) else found
    predictions = detected.predictions
    measured = Measured.of(name, truth, predictions, rules.sizes, rules.iou)
    if rules.protocol is Protocol.wider:
        if missing := [subset for subset in wider.SUBSETS if subset not in truth.subsets]:
            raise UserError(
                f"--protocol wider: the truth does not say which faces are {', '.join(missing)}; give the folder of "
                "the official .mat files as --truth, or take --protocol ap50"
            )
        official = wider.score(truth, predictions)
        return Result(measured, {kind: _of(outcomes) for kind, outcomes in official.items()}, detected, official)
    if rules.protocol is Protocol.coco:
        return Result(measured, {**_coco(truth, predictions), AREA: _map(measured, rules)}, detected)
    if rules.protocol is Protocol.tao:
        return Result(measured, {**_tao(measured, rules), AREA: _map(measured, rules)}, detected)
    classes = {
        f"ap_{kind}": _of_class(measured, kind, rules) for kind in measured.matchings if len(measured.matchings) > 1
    }
    higher = {f"{FROM_HEIGHT}{height:g}": _map(measured.at(HeightBand(height)), rules) for height in rules.more_heights}
    return Result(measured, {"map": _map(measured, rules), **higher, **classes}, detected)


def _of(outcomes: Outcomes) -> Figure:
    value = outcomes.value()
    return Figure(None) if math.isnan(value) else Figure(value, outcomes)


def _of_class(measured: Measured, kind: str, rules: Rules) -> Figure:
    matcher, matching = measured.matchers[kind], measured.matchings[kind]
    if rules.mode == "integrate":
        return _of(CurveOutcomes.of(matcher, matching))
    value = matching.curve().average_precision(rules.mode)
    return Figure(None if math.isnan(value) else value)


def _map(measured: Measured, rules: Rules) -> Figure:
    """Returns the mean over the classes that have objects."""
    of_classes = [_of_class(measured, kind, rules) for kind in measured.matchings]
    values = [figure.value for figure in of_classes if figure.value is not None]
    outcomes = [figure.outcomes for figure in of_classes if figure.outcomes is not None]
    return Figure(math.fsum(values) / len(values) if values else None, MeanOutcomes(outcomes) if outcomes else None)


def _coco(truth: Truth, predictions: Predictions) -> dict[str, Figure]:
    found = coco.evaluate(truth, predictions)
    figures = {"ap": found.by_range["all"], "ap50": found.at_half_by_range["all"], "ap75": found.at_three_quarters}
    figures |= {f"ap_{name}": value for name, value in found.by_range.items() if name != "all"}
    figures["ap50_larger_than_64"] = found.at_half_by_range["larger_than_64"]
    return {name: Figure(value) for name, value in figures.items()}


def _tao(measured: Measured, rules: Rules) -> dict[str, Figure]:
    """Returns TAO's numbers; a class without objects counts as 0 in its mean, as there."""
    sizes = BoxSizes(minimum_height=rules.min_height)
    values = {
        kind: tao.average_precision(matcher.boxes, sizes, rules.iou, rules.mode)
        for kind, matcher in measured.matchers.items()
    }
    figures = {"map": Figure(math.fsum(values.values()) / len(values))}
    if len(values) > 1:
        figures |= {f"ap_{kind}": Figure(value) for kind, value in values.items()}
    return figures
