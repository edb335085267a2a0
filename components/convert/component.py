# ruff: noqa: ARG001 - the arguments of a container component declare its interface; the program gets them by name
"""How Kubeflow sees the conversion to INT8."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.images import OPEN_ENGINE


@dsl.container_component  # type: ignore[untyped-decorator]
def int8(
    exported: Input[Model],
    kitti: Input[Dataset],
    calibration_images: int,
    max_points_lost: float,
    min_face_height: int,
    quantized: Output[Model],
    metrics: Output[Metrics],
) -> dsl.ContainerSpec:
    """Quantises an exported model to INT8, and fails when that loses too much average precision.

    Args:
        exported: The exported model.
        kitti: The KITTI set: training images to calibrate on, validation images to measure on.
        calibration_images: Training images on which the ranges of activations are measured.
        max_points_lost: Points (hundredths) of average precision that may be lost.
        min_face_height: Smallest face that counts in it, in pixels of the network's input.
        quantized: The INT8 model, an exported model like the input.
        metrics: Average precision and file size before and after, and the points lost.
    """
    return dsl.ContainerSpec(
        image=OPEN_ENGINE,
        command=["gridbox"],
        args=["convert", "int8", "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )
