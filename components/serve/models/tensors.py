"""Between Triton and a Python-backend model: requests one by one, their tensors by DLPack in both directions.

`pb_utils` can convert through NumPy's C interface, too. The backend of the local server was built for NumPy 1; with
NumPy 2 that conversion reads wrong inputs and writes empty outputs, and says nothing. DLPack is right with either, so
it is the only way here, and the models come here for every tensor.
"""

import ctypes
import json
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
from numpy.typing import NDArray

from components.vision.threads import available_cores

# Name of a capsule whose content has been taken over.
_TAKEN = b"used_dltensor"
_set_name = ctypes.pythonapi.PyCapsule_SetName
_set_name.argtypes = [ctypes.py_object, ctypes.c_char_p]

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Asked = Mapping[str, Any]


class RefusedError(Exception):
    """A request that cannot be answered; the text is what its sender reads."""


class Step(ABC):
    """What a model does, in arrays; a call takes a request's inputs and gives its outputs, both by name.

    A request may have parameters of its own, `asked`; Triton hands those of an ensemble to all of its models.
    """

    @abstractmethod
    def __init__(self, parameters: Mapping[str, Any], folder: Path) -> None:
        """Takes the parameters of the model's configuration, and its folder."""

    @abstractmethod
    def __call__(self, inputs: Arrays, asked: Asked) -> Arrays:
        """Returns outputs, each with at least one element; the inputs must not be kept or changed.

        Several threads call at once.

        Raises:
            RefusedError: The request cannot be answered.
        """


class Model:
    """What Triton wants `TritonPythonModel` to be: a step that answers requests.

    One that fails does so alone, whichever it was batched with.
    """

    step: ClassVar[type[Step]]

    def initialize(self, args: Mapping[str, str]) -> None:
        """Makes the step; its parameters are JSON."""
        config = json.loads(args["model_config"])
        given = {name: json.loads(value["string_value"]) for name, value in config["parameters"].items()}
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._answer = self.step(given, Path(args["model_repository"]))
        # Decoding an image leaves Python's lock to others: one process alone would keep a GPU waiting.
        self._pool = ThreadPoolExecutor(available_cores())

    def execute(self, requests: list[Any]) -> list[Any]:
        """Returns a response to each request."""
        if len(requests) == 1:
            return [self._respond(requests[0])]
        return list(self._pool.map(self._respond, requests))

    def finalize(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()

    def _respond(self, request: Any) -> Any:  # noqa: ANN401 - the backend has no types
        try:
            asked = json.loads(request.parameters() or "{}")
            outputs = self._answer({name: _read(request, name) for name in self._inputs}, asked)
            return pb_utils.InferenceResponse([_tensor(name, array) for name, array in outputs.items()])
        except RefusedError as error:
            return _error(str(error))
        except Exception as error:
            pb_utils.Logger.log_error(traceback.format_exc())
            return _error(f"{type(error).__name__}: {error}")


def _read(request: Any, name: str) -> Array:  # noqa: ANN401
    return np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name))


def _tensor(name: str, array: Array) -> Any:  # noqa: ANN401
    if not array.size:
        raise ValueError(f"output {name} is empty, and DLPack knows no empty tensors")
    capsule = np.ascontiguousarray(array).__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    # The backend gives the capsule a wrong name, and NumPy would complain of it in the log, for every tensor.
    _set_name(capsule, _TAKEN)
    return tensor


def _error(text: str) -> Any:  # noqa: ANN401
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text))
