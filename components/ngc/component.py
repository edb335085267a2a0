# ruff: noqa: ARG001 - the arguments of a container component declare its interface; the program gets them by name
"""How Kubeflow sees NGC."""

from kfp import dsl
from kfp.dsl import Model, Output

from components.images import OPEN_ENGINE


@dsl.container_component  # type: ignore[untyped-decorator]
def download(source: str, file: str, sha256: str, model: Output[Model]) -> dsl.ContainerSpec:
    """Downloads a model of NVIDIA's registry NGC, whose licence the user thereby accepts.

    The key is taken from the environment variable `NGC_API_KEY`, to be filled from a secret; without it NGC is asked as
    a guest.

    Args:
        source: The model as org/team/model:version, for example nvidia/tao/pretrained_detectnet_v2:resnet18.
        file: The model file, where the version has several; empty for the only one.
        sha256: SHA-256 that the file must have, hexadecimal; empty for what NGC says.
        model: The model artifact, as that of other pretrained weights; the metadata hold source and SHA-256.
    """
    return dsl.ContainerSpec(
        image=OPEN_ENGINE,
        command=["gridbox", "ngc", "download"],
        args=["--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )
