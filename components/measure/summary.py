"""The numbers of an evaluation, as plain values for JSON."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from components.measure.curve import AveragePrecisionMode, PrecisionRecall
from components.measure.matching import ANY_HEIGHT, DEFAULT_BANDS, HeightBand, Matcher, Sizes


def summarise(
    matchers: Mapping[str, Matcher],
    overall: Sizes | Mapping[str, Sizes] = ANY_HEIGHT,
    bands: Sequence[HeightBand] = DEFAULT_BANDS,
    mode: AveragePrecisionMode = "integrate",
) -> dict[str, Any]:
    """Returns mean average precision, average precision by class and by height, and the best operating point.

    Args:
        matchers: By class name, the data set's detections and ground truths of that class.
        overall: The sizes of the objects that count in the headline figures, for all classes or by class name.
        bands: Heights to break the figures down by.
        mode: How a curve becomes an average precision.

    Returns:
        `mean_average_precision` (mean over the classes that have objects), `average_precision` by class,
        `average_precision_by_height` (a list in the order of `bands`), `objects`, `detections` (neutral ones
        excluded), and `best_f1` by class. Average precisions are 0 to 1, or None where nothing was to be found.
    """
    sizes = overall if isinstance(overall, Mapping) else dict.fromkeys(matchers, overall)
    curves = {name: matcher.match(sizes[name]).curve() for name, matcher in matchers.items()}
    return {
        "mean_average_precision": mean_average_precision(list(curves.values()), mode),
        "average_precision": {name: _or_none(curve.average_precision(mode)) for name, curve in curves.items()},
        "average_precision_by_height": [_band(matchers, band, mode) for band in bands],
        "minimum_height": min(limits.minimum_height for limits in sizes.values()),
        "objects": sum(curve.objects for curve in curves.values()),
        "detections": sum(len(curve.scores) for curve in curves.values()),
        "best_f1": {name: _operating_point(curve) for name, curve in curves.items()},
    }


def operating_point(figures: Mapping[str, Any]) -> dict[str, float]:
    """Returns by class the score at which F1 is best, of what `summarise` returned; not of classes without objects."""
    return {name: best["threshold"] for name, best in figures["best_f1"].items() if best}


def mean_average_precision(curves: Sequence[PrecisionRecall], mode: AveragePrecisionMode = "integrate") -> float | None:
    """Returns the mean, 0 to 1, over the curves that have objects; None when none has."""
    values = [curve.average_precision(mode) for curve in curves if curve.objects]
    return math.fsum(values) / len(values) if values else None


def _band(matchers: Mapping[str, Matcher], band: HeightBand, mode: AveragePrecisionMode) -> dict[str, Any]:
    curves = [matcher.match(band).curve() for matcher in matchers.values()]
    return {
        "band": band.name,
        "objects": sum(curve.objects for curve in curves),
        "average_precision": mean_average_precision(curves, mode),
    }


def _operating_point(curve: PrecisionRecall) -> dict[str, float] | None:
    best = curve.best_f1()
    if best is None:
        return None
    return {
        "f1": float(curve.f1()[best]),
        "precision": float(curve.precision[best]),
        "recall": float(curve.recall[best]),
        "threshold": float(curve.scores[best]),
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
