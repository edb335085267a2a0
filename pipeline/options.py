"""What is chosen when a pipeline is compiled, because it decides which stages there are; all else is a parameter."""

from dataclasses import dataclass
from enum import StrEnum


class Serving(StrEnum):
    """What the deployed model runs on: ONNX Runtime on CPUs, or a TensorRT plan on GPUs."""

    cpu = "cpu"
    gpu = "gpu"


@dataclass(frozen=True, slots=True)
class Options:
    """How to compile a pipeline.

    Attributes:
        serving: What the deployed model runs on.
    """

    serving: Serving = Serving.cpu
