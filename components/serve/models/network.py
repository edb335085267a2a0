"""The network itself where Triton has no backend for it: ONNX Runtime inside the Python backend."""

import contextlib
import fcntl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnxruntime

from components.serve.models import tensors
from components.vision.threads import available_cores


class Network(tensors.Step):
    """Pixels [N, 3, H, W] to the network's outputs."""

    def __init__(self, parameters: Mapping[str, Any], folder: Path) -> None:
        """Loads the network.

        Args:
            parameters: `file`, the network's, seen from the folder; `input` and `outputs`, its tensors' names;
                `threads`, 0 for all cores.
            folder: The model's.
        """
        self._input: str = parameters["input"]
        self._outputs: list[str] = parameters["outputs"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = parameters["threads"]
        # Threads that spin while they wait would take the cores from decoding and clustering.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        file = folder / parameters["file"]
        self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        # The processes that run this network take turns where two of them would fight for the cores.
        cores = available_cores()
        self._turns = file.open("rb") if 2 * (parameters["threads"] or cores) > cores else None

    def run(self, pixels: tensors.Array) -> list[tensors.Array]:
        """Returns the outputs in the order of the parameter `outputs`."""
        with self._turn():
            return list(self._session.run(self._outputs, {self._input: pixels}))

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        if self._turns is None:
            yield
            return
        fcntl.flock(self._turns, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._turns, fcntl.LOCK_UN)

    def __call__(self, inputs: tensors.Arrays, asked: tensors.Asked) -> tensors.Arrays:  # noqa: ARG002
        """Returns the outputs by name."""
        return dict(zip(self._outputs, self.run(inputs[self._input]), strict=True))


class TritonPythonModel(tensors.Model):
    """The network for Triton."""

    step = Network
