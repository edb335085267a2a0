"""Whether a model repository can be served where it shall be: a TensorRT plan is bound to GPU, TensorRT and release."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from components.serve.kserve import GPU_PRODUCT, Service
from components.serve.release import GRIDBOX_VERSION, TENSORRT_VERSION, TRITON_RELEASE
from components.step import UserError


def fitted(service: Service, repository: Mapping[str, Any]) -> Service:
    """Holds the target against what a model repository was made for, and completes the target.

    Args:
        service: The target.
        repository: The settings of the model repository's manifest.

    Returns:
        The target; a TensorRT plan's GPU is added to the node selector where that names none.

    Raises:
        UserError: The repository was made by another release of gridbox, or for another of Triton, TensorRT or GPU.
    """
    backend, release = repository.get("backend", ""), repository.get("triton_release", "")
    if release != TRITON_RELEASE:
        raise UserError(
            f"the model repository was made for Triton {release or '(not recorded)'}, this release serves with "
            f"{TRITON_RELEASE}; build the repository again"
        )
    maker = repository.get("gridbox_version", "")
    if maker != GRIDBOX_VERSION:
        raise UserError(
            f"the model repository was made by gridbox {maker or '(not recorded)'}, the image that serves has the code "
            f"of {GRIDBOX_VERSION}; build the repository again"
        )
    if backend != "tensorrt":
        return service
    gpu, version = repository.get("gpu", ""), repository.get("tensorrt_version", "")
    if version.partition(".")[0] != TENSORRT_VERSION:
        raise UserError(
            f"the plan was built with TensorRT {version or '(not recorded)'}, Triton {TRITON_RELEASE} has "
            f"{TENSORRT_VERSION}; build the plan in the image of that release"
        )
    if not gpu:
        raise UserError("the plan's GPU is not recorded; build the plan again with `gridbox serve tensorrt`")
    if not service.resources.gpus:
        raise UserError(
            f"the plan needs a GPU ({gpu}), the target has none; ask for one (deploy_gpus 1) or use ONNX Runtime"
        )
    product = service.node_selector.get(GPU_PRODUCT)
    if product is None:
        return replace(service, node_selector={**service.node_selector, GPU_PRODUCT: gpu_label(gpu)})
    if gpu_label(product.removesuffix("-SHARED")).lower() != gpu_label(gpu).lower():
        raise UserError(
            f"the plan was built on {gpu}, the target's nodes have {product}; build it there, or select {gpu}"
        )
    return service


def gpu_label(name: str) -> str:
    """Returns a GPU's name as NVIDIA's feature discovery labels nodes with it."""
    return "-".join(name.split())
