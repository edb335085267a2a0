# ruff: noqa: ARG001 - the arguments of a container component declare its interface; the program gets them by name
"""How Kubeflow sees the data stages."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Output

from components.images import OPEN_ENGINE


def _task(name: str) -> dsl.ContainerSpec:
    return dsl.ContainerSpec(
        image=OPEN_ENGINE,
        command=["gridbox", "widerface", name],
        args=["--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )


@dsl.container_component  # type: ignore[untyped-decorator]
def acquire(
    uri: str,
    version: str,
    training_images: int,
    validation_images: int,
    seed: int,
    image_width: int,
    image_height: int,
    dataset: Output[Dataset],
) -> dsl.ContainerSpec:
    """Brings a face-detection set in, or draws a synthetic one.

    Args:
        uri: A path, or a file://, https:// or s3:// location of WIDER FACE in its official layout; empty for a
            synthetic set.
        version: What changes with what lies there, so that an unchanged set is not brought again; or empty.
        training_images: Pictures to draw for training where `uri` is empty, 1 or more.
        validation_images: Pictures to draw for validation where `uri` is empty, 1 or more.
        seed: Seed of the drawn pictures, 0 or more.
        image_width: Width of the drawn pictures in pixels, 96 or more.
        image_height: Height of the drawn pictures in pixels, 96 or more.
        dataset: The three official archives; `synthetic` in the metadata says whether the set was drawn.
    """
    return _task("acquire")


@dsl.container_component  # type: ignore[untyped-decorator]
def convert(
    dataset: Input[Dataset],
    resolution: str,
    width: int,
    height: int,
    longest_side: int,
    grayscale: bool,
    min_face_height: int,
    small_faces: str,
    invalid_faces: str,
    occluded_faces: str,
    max_images: int,
    validation_share: float,
    split_seed: int,
    kitti: Output[Dataset],
) -> dsl.ContainerSpec:
    """Converts WIDER FACE to a KITTI set of three splits.

    Args:
        dataset: The three official archives.
        resolution: `input`: PNGs letterboxed to the network's input; `source`: JPEGs at their own size.
        width: Width of the network's input in pixels, a multiple of 16.
        height: Height of the network's input in pixels, a multiple of 16.
        longest_side: Longest side of a stored image in pixels, where the resolution is `source`.
        grayscale: Whether colour becomes grey, in three equal channels.
        min_face_height: Faces lower than this in the network's input, in pixels, are small; 0 means that none is.
        small_faces: `ignore` or `keep`: whether small faces become regions in which nothing counts.
        invalid_faces: `ignore` or `keep`: the same for faces that the annotators flagged invalid.
        occluded_faces: `ignore` or `keep`: the same for heavily occluded faces.
        max_images: At most so many images of each split, evenly spaced; 0 means all.
        validation_share: Share of the training images that is drawn as validation; 0 to 0.5.
        split_seed: Seed of that draw, 0 or more.
        kitti: The KITTI set; what was rejected stands in its `rejected.jsonl`, its counts are the metadata.
    """
    return _task("convert")
