"""Tensors between Triton and a Python-backend model: by DLPack, in both directions.

`pb_utils` can convert through NumPy's C interface, too. The backend of the local server was built for NumPy 1; with
NumPy 2 that conversion reads wrong inputs and writes empty outputs, and says nothing. DLPack is right with either, so
it is the only way here, and the models come here for every tensor.
"""

import ctypes
import json
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
from numpy.typing import NDArray

# What a capsule is called whose content somebody has taken over.
_TAKEN = b"used_dltensor"
_set_name = ctypes.pythonapi.PyCapsule_SetName
_set_name.argtypes = [ctypes.py_object, ctypes.c_char_p]

Array = NDArray[Any]
Arrays = Mapping[str, Array]


class RefusedError(Exception):
    """A request that cannot be answered; the text is what its sender reads."""


def parameters(arguments: Mapping[str, str]) -> dict[str, Any]:
    """Returns the parameters of a model's configuration, which are JSON, from what `initialize` gets."""
    given = json.loads(arguments["model_config"])["parameters"]
    return {name: json.loads(value["string_value"]) for name, value in given.items()}


def read(request: Any, name: str) -> Array:  # noqa: ANN401 - the backend has no types
    """Returns an input of a request; it must not be kept or changed."""
    return np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name))


def respond(outputs: Arrays) -> Any:  # noqa: ANN401
    """Returns the response to a request. DLPack knows no empty tensors: each output must have an element."""
    return pb_utils.InferenceResponse([_tensor(name, array) for name, array in outputs.items()])


def _tensor(name: str, array: Array) -> Any:  # noqa: ANN401
    if not array.size:
        raise ValueError(f"output {name} is empty")
    capsule = np.ascontiguousarray(array).__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    # The backend gives the capsule a wrong name, and NumPy would complain of it in the log, for every tensor.
    _set_name(capsule, _TAKEN)
    return tensor


def respond_each(requests: Iterable[Any], answer: Callable[[Any], Arrays]) -> list[Any]:
    """Answers requests one by one: one that fails does so alone, whichever it was batched with."""
    return [_respond_alone(request, answer) for request in requests]


def _respond_alone(request: Any, answer: Callable[[Any], Arrays]) -> Any:  # noqa: ANN401
    try:
        return respond(answer(request))
    except RefusedError as error:
        return _error(str(error))
    except Exception as error:
        pb_utils.Logger.log_error(traceback.format_exc())
        return _error(f"{type(error).__name__}: {error}")


def _error(text: str) -> Any:  # noqa: ANN401
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text))


def joined(arrays: Sequence[Array]) -> Array:
    """Returns arrays one after the other along the first axis; a single one is not copied."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
