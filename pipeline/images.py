"""Which images a compiled pipeline names: ours and NVIDIA's by tag, or your mirror's, best by digest."""

from dataclasses import dataclass

from components.images import OPEN_ENGINE, OPEN_ENGINE_GPU, TAO_TOOLKIT
from components.serve.release import TRITON_IMAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The table `[images]` of `gridbox.toml`.

    Attributes:
        open: The open engine, on CPUs.
        open_gpu: The open engine with CUDA.
        triton: Triton with our pre- and post-processing: what builds plans and serves.
        tao: NVIDIA's TAO Toolkit with TensorFlow 1.
    """

    open: str = OPEN_ENGINE
    open_gpu: str = OPEN_ENGINE_GPU
    triton: str = TRITON_IMAGE
    tao: str = TAO_TOOLKIT

    def standing_for(self, image: str) -> str:
        """Returns what stands for one of the images that components name."""
        return {OPEN_ENGINE: self.open, TRITON_IMAGE: self.triton}[image]


def repository(image: str) -> str:
    """Returns an image's name without tag and digest."""
    image = image.partition("@")[0]
    head, separator, tag = image.rpartition(":")
    return head if separator and "/" not in tag else image
