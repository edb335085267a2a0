"""The description of a model beside its weights, in one layout.

A description is the `settings` of an exported model's manifest, the JSON beside a bare ONNX file, or the parameters of
a model in Triton. Among its keys are `class_names`; `tensors`, what the graph calls its tensors, by role; `input`, the
fields of an `InputSpec`; and `decoder`, a `kind` and what that kind needs, and perhaps the model's `operating_point`.
"""

from collections.abc import Mapping
from typing import Any

OPERATING_POINT = "operating_point"
# What is said of a grid detector where a description has no `decoder`.
_FORMER = ("geometry", "clustering", OPERATING_POINT)


def upgraded(description: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a description with `input` and `decoder`.

    Where there were grid detectors alone, their `geometry`, `clustering` and `preprocessing` stood in their place. So
    it is in former exports, in what is said of TAO's own, and in the configurations that facenet's clients read.
    """
    if "decoder" in description:
        # In Triton `input` is the name of a tensor.
        return {**description, "input": description.get("input_spec", description.get("input"))}
    former = {name: description[name] for name in _FORMER if name in description}
    size = {name: value for name, value in former.get("geometry", {}).items() if name in ("width", "height")}
    fitting = {
        field: description[name]
        for field, name in (("fit", "preprocessing"), ("resampling", "resampling"))
        if name in description
    }
    rest = {name: value for name, value in description.items() if name not in (*former, "preprocessing", "resampling")}
    return {**rest, "input": {**size, **fitting}, "decoder": {"kind": "grid", **former}}


def operating_point(description: Mapping[str, Any]) -> dict[str, float]:
    """Returns by class the score from which on detections are shown; empty where the description does not say it."""
    return dict(upgraded(description)["decoder"].get(OPERATING_POINT, {}))


def at_operating_point(description: Mapping[str, Any], scores: Mapping[str, float]) -> dict[str, Any]:
    """Returns a description with this operating point in place of its own; without one where `scores` is empty."""
    own = "decoder" in description
    place = dict(description["decoder"] if own else description)
    place.pop(OPERATING_POINT, None)
    if scores:
        place[OPERATING_POINT] = dict(scores)
    return {**description, "decoder": place} if own else place
