"""The configurations of a model repository's models: one source for all three backends of the networks."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf.text_encoding import CEscape

from components.serve.release import GRIDBOX_VERSION, TRITON_RELEASE
from components.serve.task import Model, Network, ServedTask, Step, Tensor

Backend = Literal["tensorrt", "onnxruntime", "python"]
# As the model was trained, or how else images are fitted into its input.
Preprocessing = Literal["model", "letterbox", "stretch", "crop"]
Message = Mapping[str, Any]

MODEL_FILES: Mapping[Backend, str] = {
    "tensorrt": "model.plan",
    "onnxruntime": "model.onnx",
    "python": "model.onnx",
}
VERSION = "1"
# Where a Python-backend model finds the network: in its own folder, for Triton brings each folder from S3 alone.
NETWORK_FILE = f"{VERSION}/{MODEL_FILES['python']}"
# The ensemble's parameter that tells which version answers.
DIGEST_PARAMETER = "gridbox_digest"
SMALLEST_PREFERRED_BATCH = 8
BATCH_MICROSECONDS = 100
# Requests that may wait for a model, and for how long: what comes on top is refused at once, so that memory stays
# bounded and no client waits for an answer that it has long given up.
QUEUE_LENGTH = 128
QUEUE_SECONDS = 10
# Default number of cores of a serving pod: the limit of the manifests and of `deploy_cpu_limit`.
CPU_LIMIT = 4


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    """How a model shall be served.

    Attributes:
        backend: What runs the network: `tensorrt` a plan on a GPU, `onnxruntime` Triton's own backend on a CPU,
            `python` ONNX Runtime inside the Python backend, where only that exists (the local server); there the
            ensemble is one model that does all three steps.
        preprocessing: How images are fitted into the network's input, where not as the model says; see `InputSpec`.
        triton_release: Release of the Triton image that shall serve it, for example 26.07.
        max_batch_size: Images in a request, and in one run of the network; 0: the plan's largest on a GPU, 8 on a CPU,
            where large batches gain nothing.
        instances: Copies of the network, for `python` of the whole ensemble; 0 for 2 on a GPU and 1 on a CPU.
        threads: Threads of one copy on a CPU. 0: the copies share four cores, a pod's limit by default, in Triton's own
            backend, which would count the node's cores; in `python` each has all that the process may use.
        workers: Processes that decode, and as many that cluster; for `python` only what is asked of these models alone.
        max_image_pixels: Larger images are refused before they are decoded.
        gridbox_version: Of the code that the models before and after the network need in the image.
        min_score: What scores less is left out, unless a request asks otherwise; None for the model's operating point.
    """

    backend: Backend = "onnxruntime"
    preprocessing: Preprocessing = "model"
    triton_release: str = TRITON_RELEASE
    max_batch_size: int = 0
    instances: int = 0
    threads: int = 0
    workers: int = 1
    max_image_pixels: int = 40_000_000
    gridbox_version: str = GRIDBOX_VERSION
    min_score: float | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether the network runs on a GPU."""
        return self.backend == "tensorrt"

    @property
    def batch(self) -> int:
        """The maximum batch size; on a GPU without a plan, that of plans as they are built by default."""
        return self.max_batch_size or (32 if self.is_gpu else 8)

    @property
    def copies(self) -> int:
        """How many copies of the network there are."""
        return self.instances or (2 if self.is_gpu else 1)

    @property
    def preferred_batches(self) -> list[int]:
        """The batches that a GPU waits for, and has warmed up: 8, 16 and so on, and the largest one."""
        doubled = itertools.takewhile(
            lambda size: size < self.batch, (SMALLEST_PREFERRED_BATCH << power for power in itertools.count())
        )
        return [*doubled, self.batch]


def threads_within(cpu_limit: str, copies: int = 1) -> int:
    """Returns how many threads each copy of a network gets in a pod.

    ONNX Runtime would count the node's cores, and the kernel would stop a pod that uses more than its limit.

    Args:
        cpu_limit: The pod's limit, a quantity of Kubernetes: "4", "2.5" or "3500m".
        copies: Copies of the network in the pod.
    """
    cores = float(cpu_limit[:-1]) / 1000 if cpu_limit.endswith("m") else float(cpu_limit)
    return max(1, int(cores / copies))


class Word(str):
    """A value of an enumeration; protobuf text has it without quotes."""


def configurations(task: ServedTask, settings: RepositorySettings) -> dict[str, str]:
    """Returns the text of `config.pbtxt` for each of a task's models, the ensemble last."""
    models = {name: _network(network, settings) for name, network in task.networks.items()}
    models |= {name: _step(step, settings) for name, step in task.steps.items()}
    models[task.ensemble] = _ensemble(task, settings)
    common = {"max_batch_size": settings.batch}
    return {name: to_text({"name": name, **common, **model}) for name, model in models.items()}


def _network(network: Network, settings: RepositorySettings) -> Message:
    if settings.backend == "python":
        runtime = {"backend": "python", "parameters": _parameters(**_runtime(network, settings))}
    elif settings.backend == "onnxruntime":
        runtime = {
            "platform": "onnxruntime_onnx",
            "parameters": _parameters(
                intra_op_thread_count=settings.threads or threads_within(str(CPU_LIMIT), settings.copies)
            ),
        }
    else:
        runtime = {"platform": "tensorrt_plan"}
    # In Python the copies are the ensemble's; this one answers those who ask the network alone.
    count = 1 if settings.backend == "python" else settings.copies
    return {
        **runtime,
        "default_model_filename": "model.py" if settings.backend == "python" else MODEL_FILES[settings.backend],
        **_tensors(network.inputs, network.outputs),
        "instance_group": [{"count": count, "kind": Word("KIND_GPU" if settings.is_gpu else "KIND_CPU")}],
        **_batching(settings),
        "model_warmup": [_warmup(network.inputs, size) for size in _warmup_batches(settings)],
    }


def _step(step: Step, settings: RepositorySettings) -> Message:
    return {
        **_python(settings.workers),
        **_batching(settings),
        **_tensors(step.inputs, step.outputs),
        "parameters": _parameters(**step.parameters),
    }


def _ensemble(task: ServedTask, settings: RepositorySettings) -> Message:
    parameters = dict(task.parameters)
    if settings.backend == "python":
        for step in task.steps.values():
            parameters |= step.parameters
        for network in task.networks.values():
            parameters |= _runtime(network, settings)
        runtime = _python(settings.copies)
    else:
        steps = [_scheduled(task.name_of(model), model) for model in task.models]
        runtime = {"platform": "ensemble", "ensemble_scheduling": {"step": steps}}
    return {
        **runtime,
        **_tensors(task.contract.request, task.contract.answer),
        "parameters": _parameters(**parameters),
    }


def _python(processes: int) -> dict[str, Any]:
    return {"backend": "python", "instance_group": [{"count": processes, "kind": Word("KIND_CPU")}]}


def _batching(settings: RepositorySettings) -> Message:
    """On a GPU a request waits a little for others. On a CPU they are not joined.

    There a batch takes as long as its images one by one, and the step after it waits for the last of them: the batcher
    prefers one request, and is here for the bounds of its queue alone.
    """
    queue = {
        "timeout_action": Word("REJECT"),
        "default_timeout_microseconds": QUEUE_SECONDS * 1_000_000,
        "allow_timeout_override": True,
        "max_queue_size": QUEUE_LENGTH,
    }
    joined = {"preferred_batch_size": [1], "max_queue_delay_microseconds": 0}
    if settings.is_gpu:
        joined = {
            "preferred_batch_size": settings.preferred_batches,
            "max_queue_delay_microseconds": BATCH_MICROSECONDS,
        }
    return {"dynamic_batching": {**joined, "default_queue_policy": queue}}


def _runtime(network: Network, settings: RepositorySettings) -> dict[str, Any]:
    outputs = [tensor.name for tensor in network.outputs]
    return {"file": NETWORK_FILE, "input": network.inputs[0].name, "outputs": outputs, "threads": settings.threads}


def digest_parameter(digest: str) -> str:
    """Returns the text that adds a repository's digest to the configuration of its ensemble."""
    return to_text({"parameters": _parameters(**{DIGEST_PARAMETER: digest})})


def _parameters(**values: object) -> Sequence[Message]:
    """Returns parameters as JSON; a number is one for ONNX Runtime's backend, too."""
    return [{"key": key, "value": {"string_value": json.dumps(value)}} for key, value in values.items()]


def _tensors(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Message:
    return {"input": [_tensor(tensor) for tensor in inputs], "output": [_tensor(tensor) for tensor in outputs]}


def _tensor(tensor: Tensor) -> Message:
    message: dict[str, Any] = {
        "name": tensor.name,
        "data_type": Word(f"TYPE_{tensor.kind}"),
        "dims": list(tensor.dims),
    }
    if tensor.format:
        message["format"] = Word(tensor.format)
    return {**message, "allow_ragged_batch": True} if tensor.ragged else message


def _scheduled(name: str, model: Model) -> Message:
    def pairs(tensors: Sequence[Tensor]) -> list[Message]:
        return [{"key": key, "value": value} for key, value in model.wired(tensors).items()]

    return {
        "model_name": name,
        "model_version": -1,
        "input_map": pairs(model.inputs),
        "output_map": pairs(model.outputs),
    }


def _warmup_batches(settings: RepositorySettings) -> list[int]:
    """TensorRT and ONNX Runtime are slow in the first run of a batch size; on a GPU all that matter are run."""
    return sorted({1, *(settings.preferred_batches if settings.is_gpu else [])})


def _warmup(inputs: Sequence[Tensor], batch: int) -> Message:
    zeros = [
        {
            "key": tensor.name,
            "value": {"data_type": Word(f"TYPE_{tensor.kind}"), "dims": list(tensor.dims), "zero_data": True},
        }
        for tensor in inputs
    ]
    return {"name": f"batch of {batch}", "batch_size": batch, "inputs": zeros}


def to_text(message: Message, indent: str = "") -> str:
    """Returns a message as protobuf text; a list stands for a repeated field."""
    lines = []
    for name, value in message.items():
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, Mapping):
                lines.append(f"{indent}{name} {{\n{to_text(item, indent + '  ')}{indent}}}\n")
            else:
                lines.append(f"{indent}{name}: {_scalar(item)}\n")
    return "".join(lines)


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and not isinstance(value, Word):
        return f'"{CEscape(value.encode(), as_utf8=True)}"'
    return str(value)
