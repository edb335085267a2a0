"""The whole ensemble in one process, for the Python backend.

Between models an image's pixels are copied three times and four processes wake each other. On a GPU that buys full
batches; where the network, too, runs in Python on the same cores, it costs a fifth of the throughput and buys nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.serve.models import tensors
from components.serve.models.network import Network
from components.serve.models.postprocess import Postprocess
from components.serve.models.preprocess import Preprocess
from components.vision.inputs import PIXELS


class Ensemble(tensors.Step):
    """Encoded images to boxes: the three steps, joined as `components.serve.config` joins them in Triton's ensemble."""

    def __init__(self, parameters: Mapping[str, Any], folder: Path) -> None:
        """Takes the parameters of all three."""
        # As decoders name them.
        self._outputs = [name.removesuffix(":0") for name in parameters["outputs"]]
        self._preprocess = Preprocess(parameters, folder)
        self._network = Network(parameters, folder)
        self._postprocess = Postprocess(parameters, folder)

    def __call__(self, inputs: tensors.Arrays, asked: tensors.Asked) -> tensors.Arrays:
        """Takes `input_image_data`; gives the ensemble's outputs."""
        prepared = self._preprocess(inputs, asked)
        outputs = dict(zip(self._outputs, self._network.run(prepared[PIXELS]), strict=True))
        found = self._postprocess({**prepared, **outputs}, asked)
        return {**found, **{name: prepared[name] for name in ("true_image_size", "image_error")}}


class TritonPythonModel(tensors.Model):
    """The ensemble for Triton."""

    step = Ensemble
