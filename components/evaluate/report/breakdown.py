"""Average precision by height, by event and by attribute."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from components.measure.average_precision import Measured
from components.measure.curve import PrecisionRecall
from components.measure.dataset import Booleans
from components.measure.matching import NEUTRAL, TRUE_POSITIVE, HeightBand, Matcher, Matching
from components.measure.summary import mean_average_precision

# What an attribute's values mean.
_WIDER_WORDS = {
    "blur": ("clear", "normal", "heavy"),
    "expression": ("typical", "exaggerated"),
    "illumination": ("normal", "extreme"),
    "occlusion": ("none", "partial", "heavy"),
    "pose": ("typical", "atypical"),
}
_KITTI_WORDS = {"occlusion": ("visible", "partly occluded", "largely occluded", "unknown")}
_MOST_VALUES = 6


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: a label, the number of objects behind it, and a value from 0 to 1 for each model (None: nothing)."""

    label: str
    objects: int
    values: Sequence[float | None]


def by_height(models: Sequence[Measured], bands: Sequence[HeightBand]) -> list[Bar]:
    """Returns a bar for each band; boxes of other heights neither count nor are punished."""
    return [
        _bar(band.name, [[matcher.match(band) for matcher in model.matchers.values()] for model in models])
        for band in bands
    ]


def by_event(models: Sequence[Measured]) -> list[Bar]:
    """Returns a bar for each folder of images with objects, best first by the mean of the models; none for one folder.

    Images are matched each for itself, so that those of an event score as if they were all.
    """
    events = np.array([name.rpartition("/")[0] for name in models[0].images], np.str_)
    names, event_of_image = np.unique(events, return_inverse=True)
    if len(names) < 2:
        return []
    bars = []
    for number, name in enumerate(names.tolist()):
        chosen = event_of_image == number
        results = [[_curve_of(m.matchers[k], m.matchings[k], chosen) for k in m.matchings] for m in models]
        objects = sum(curve.objects for curve in results[0])
        if objects:
            bars.append(Bar(_event(name), objects, [mean_average_precision(curves) for curves in results]))
    return sorted(bars, key=lambda bar: -sum(value or 0.0 for value in bar.values))


def _event(folder: str) -> str:
    """Returns `Cheering` of WIDER FACE's `50--Cheering`."""
    number, _, name = folder.partition("--")
    return (name if number.isdigit() and name else folder).replace("--", " ").replace("_", " ")


def by_attribute(models: Sequence[Measured]) -> dict[str, list[Bar]]:
    """Returns bars for each value of each attribute that tells objects apart.

    Detections have no attributes: whatever is false is punished in each bar, and what finds an object with another
    value is neutral.
    """
    first = models[0]
    names = list(dict.fromkeys(name for attributes in first.attributes.values() for name in attributes))
    tables = {}
    for name in names:
        values = [first.attributes[kind][name][matching.counted] for kind, matching in first.matchings.items()]
        present = np.unique(np.concatenate(values)).tolist()
        if 2 <= len(present) <= _MOST_VALUES:
            words = _WIDER_WORDS if "blur" in names else _KITTI_WORDS
            tables[name] = [
                _bar(_word(words.get(name, ()), value), [_with(model, name, value) for model in models])
                for value in present
            ]
    return tables


def _with(model: Measured, attribute: str, value: int) -> list[Matching]:
    return [
        matcher.match_objects(model.matchings[kind].counted & (model.attributes[kind][attribute] == value))
        for kind, matcher in model.matchers.items()
    ]


def _word(words: Sequence[str], value: int) -> str:
    return words[value] if 0 <= value < len(words) else str(value)


def _bar(label: str, results: Sequence[Sequence[Matching]]) -> Bar:
    """Makes a bar of each model's matchings, class by class."""
    curves = [[matching.curve() for matching in matchings] for matchings in results]
    return Bar(label, sum(curve.objects for curve in curves[0]), [mean_average_precision(of) for of in curves])


def _curve_of(matcher: Matcher, matching: Matching, images: Booleans) -> PrecisionRecall:
    """Returns the curve of some of the images, chosen by `images` [I]."""
    boxes = matcher.boxes
    kept = np.repeat(images, np.diff(boxes.detection_offsets)) & (matching.outcome != NEUTRAL)
    order = matching.order[kept[matching.order]]
    objects = matching.counted & np.repeat(images, np.diff(boxes.truth_offsets))
    return PrecisionRecall(
        np.cumsum(matching.outcome[order] == TRUE_POSITIVE), matching.scores[order], int(objects.sum())
    )
