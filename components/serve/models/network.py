"""The network itself where Triton has no backend for it: ONNX Runtime inside the Python backend."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from components.serve.models import tensors


class TritonPythonModel:
    """Runs `model.onnx` on the joined batch of all requests that are waiting."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Loads the network. Parameters: `input` and `outputs`, its tensors' names, and `threads`, 0 for all cores."""
        parameters = tensors.parameters(args)
        self._input: str = parameters["input"]
        self._outputs: list[str] = parameters["outputs"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = parameters["threads"]
        # Threads that spin while they wait would take the cores from decoding and clustering.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        file = Path(args["model_repository"], args["model_version"], "model.onnx")
        self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Takes [N, 3, H, W] and gives the network's outputs for each request."""
        batches = [tensors.read(request, self._input) for request in requests]
        outputs = self._session.run(self._outputs, {self._input: tensors.joined(batches)})
        ends = np.cumsum([len(batch) for batch in batches])
        return [
            tensors.respond(
                {name: output[end - len(batch) : end] for name, output in zip(self._outputs, outputs, strict=True)}
            )
            for batch, end in zip(batches, ends, strict=True)
        ]
