"""The network's outputs to objects in pixels of the images as they were sent."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from components.decode.decoder import load_decoder
from components.decode.description import operating_point, upgraded
from components.decode.instances import Placement
from components.serve.models import tensors

# Stands for the number of detections in an image that could not be read.
UNREADABLE = -1
# A parameter of requests, and of the model's configuration.
MIN_SCORE = "min_score"


class Postprocess(tensors.Step):
    """Decodes each image's outputs, as evaluation does, and maps the boxes back.

    They are not cut to the image: a box may reach into the letterbox's border, as it does in evaluation. What scores
    less than the request's parameter `min_score` is left out; where it has none, than the repository's, and where that
    has none either, than the model's operating point.
    """

    def __init__(self, parameters: Mapping[str, Any], folder: Path) -> None:  # noqa: ARG002
        """Takes the parameters `class_names` and `decoder`, or what stood in its place; see `upgraded`.

        `min_score` may be there, too.
        """
        self._decoder = load_decoder(upgraded(parameters))
        known, names = operating_point(parameters), self._decoder.class_names
        least = [parameters.get(MIN_SCORE, known.get(name, -np.inf)) for name in names]
        self._least = np.array(least, np.float64)  # [C]

    def __call__(self, inputs: tensors.Arrays, asked: tensors.Asked) -> tensors.Arrays:
        """Takes the network's outputs, `placement` and `true_image_size`; gives objects and their number."""
        least = self._asked(asked[MIN_SCORE]) if MIN_SCORE in asked else self._least
        found = [
            instances[instances.scores >= least[instances.classes]].to_source(
                Placement(tuple(placement[:2]), tuple(placement[2:]))
            )
            for instances, placement in zip(self._decoder(inputs), inputs["placement"], strict=True)
        ]
        sizes = inputs["true_image_size"]
        counts = [len(each) if size[0] else UNREADABLE for each, size in zip(found, sizes, strict=True)]
        # All images of a request share one length; at least one row, for DLPack knows no empty tensors.
        padded = np.zeros((len(found), max(1, *counts), 6), np.float32)
        for each, count, target in zip(found, counts, padded, strict=True):
            target[: max(0, count)] = np.column_stack([each.rows(), each.classes])[: max(0, count)]
        return {
            "true_boxes": padded[..., :4],
            "true_proba": padded[..., 4:5],
            "true_class": padded[..., 5:].astype(np.int32),
            "num_detections": np.array(counts, np.int32)[:, None],
        }

    def _asked(self, text: object) -> tensors.Array:
        try:
            score = float(str(text))
        except ValueError:
            score = math.nan
        if math.isnan(score):
            raise tensors.RefusedError(f"{MIN_SCORE} {text!r}: give a number, for example 0.3; 0 shows everything")
        return np.full_like(self._least, score)


class TritonPythonModel(tensors.Model):
    """The step for Triton."""

    step = Postprocess
