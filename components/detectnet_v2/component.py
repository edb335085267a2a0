# ruff: noqa: ARG001 - the arguments of a container component declare its interface; the program gets them by name
"""How Kubeflow sees DetectNet_v2: one container component a task of TAO's program, the same for both engines.

The command is the source of `step.py` itself, so that NVIDIA's unmodified image runs it as well as ours.
"""

import inspect

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components import step
from components.images import OPEN_ENGINE

SOURCE = inspect.getsource(step)


def _task(name: str) -> dsl.ContainerSpec:
    return dsl.ContainerSpec(
        image=OPEN_ENGINE,
        command=["python3", "-c", SOURCE],
        args=["detectnet_v2", name, "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )


@dsl.container_component  # type: ignore[untyped-decorator]
def pretrained_weights(uri: str, model: Output[Model]) -> dsl.ContainerSpec:
    """Brings pretrained weights in, or the word that there are none.

    Args:
        uri: Where the weights are: a file of the chosen engine, an https:// or s3:// URI, ngc://org/team/model:version,
            or empty for none.
        model: The weights as a model artifact; `present` in its metadata says whether there are any.
    """
    return dsl.ContainerSpec(
        image=OPEN_ENGINE,
        command=["gridbox"],
        args=["detectnet_v2", "pretrained", "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )


@dsl.container_component  # type: ignore[untyped-decorator]
def dataset_convert(kitti: Input[Dataset], split: str, spec: str, records: Output[Dataset]) -> dsl.ContainerSpec:
    """Writes the labels of one split as TFRecords.

    Args:
        kitti: The KITTI set.
        split: `training` or `validation`.
        spec: Text of the dataset-conversion spec, with `${root}` where the split's folder goes.
        records: The TFRecords, named as TAO names them.
    """
    return _task("dataset_convert")


@dsl.container_component  # type: ignore[untyped-decorator]
def train(
    kitti: Input[Dataset],
    training_records: Input[Dataset],
    validation_records: Input[Dataset],
    pretrained: Input[Model],
    spec: str,
    image_width: int,
    image_height: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    name: str,
    width: float,
    threads: int,
    model: Output[Model],
    metrics: Output[Metrics],
) -> dsl.ContainerSpec:
    """Trains a detector; with a pruned model as `pretrained` and a spec that loads its graph, retrains it.

    Args:
        kitti: The KITTI set whose images the records name.
        training_records: TFRecords of the training split.
        validation_records: TFRecords of the validation split.
        pretrained: The model to start from; an artifact without a model starts from random weights.
        spec: Text of the experiment spec, with `${…}` for paths and for the parameters below.
        image_width: Width of the network's input in pixels, divisible by 16.
        image_height: Height of the network's input in pixels, divisible by 16.
        epochs: Passes over the training images.
        batch_size: Images a step (and GPU).
        learning_rate: The schedule's highest rate; the lowest is a hundredth of it.
        seed: Seed of weights, order and augmentation.
        name: Base name of the model file.
        width: Scales the network's channels; below 1 for narrow nets (open engine only, 1 leaves the flag out).
        threads: CPU threads, 0 for all cores (open engine only, 0 leaves the flag out).
        model: TAO's results directory: the spec, the status log and the weights.
        metrics: Loss, average precision, size and time.
    """
    return _task("train")


@dsl.container_component  # type: ignore[untyped-decorator]
def evaluate(
    kitti: Input[Dataset],
    training_records: Input[Dataset],
    validation_records: Input[Dataset],
    model: Input[Model],
    spec: str,
    image_width: int,
    image_height: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    minimum_height: int,
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
) -> dsl.ContainerSpec:
    """Scores a model on the validation split; skips a pretrained model that is not there.

    Args:
        kitti: The KITTI set whose images the records name.
        training_records: TFRecords of the training split, which the spec names too.
        validation_records: TFRecords of the validation split.
        model: The model to score.
        spec: Text of the experiment spec the model was trained with.
        image_width: Width of the network's input in pixels.
        image_height: Height of the network's input in pixels.
        epochs: As in training (the spec needs it).
        batch_size: Images a step.
        learning_rate: As in training (the spec needs it).
        seed: As in training (the spec needs it).
        minimum_height: Lowest object that counts, pixels of the network's input.
        evaluation: `metrics.json` and, from the open engine, `detections.jsonl`.
        metrics: Average precision and what else `metrics.json` has.
    """
    return _task("evaluate")


@dsl.container_component  # type: ignore[untyped-decorator]
def prune(
    model: Input[Model],
    threshold: float,
    granularity: int,
    minimum_filters: int,
    normalizer: str,
    equalization: str,
    excluded_layers: str,
    target_ratio: float,
    pruned: Output[Model],
    metrics: Output[Metrics],
) -> dsl.ContainerSpec:
    """Removes the channels whose kernels have small norms.

    Args:
        model: The trained model.
        threshold: A filter stays when its normalised norm is above this.
        granularity: Filters are kept in multiples of this number.
        minimum_filters: A layer keeps at least this many filters.
        normalizer: `max` or `L2`: what a layer's norms are divided by.
        equalization: `union`, `intersection`, `arithmetic_mean` or `geometric_mean`: how layers that are added
            together agree on their filters.
        excluded_layers: Names of layers to leave whole, separated by spaces.
        target_ratio: Share of the parameters to keep at most, found by lowering or raising the threshold (open engine
            only, 0 leaves the flag out).
        pruned: The smaller model, to be retrained.
        metrics: Pruning ratio, parameters and size.
    """
    return _task("prune")


@dsl.container_component  # type: ignore[untyped-decorator]
def inference(
    kitti: Input[Dataset],
    model: Input[Model],
    spec: str,
    image_width: int,
    image_height: int,
    batch_size: int,
    annotated: Output[Artifact],
) -> dsl.ContainerSpec:
    """Draws a model's detections on the validation images and writes them as KITTI labels.

    Args:
        kitti: The KITTI set.
        model: The model.
        spec: Text of the inference spec, with `${model}` where the model file goes.
        image_width: Width of the network's input in pixels.
        image_height: Height of the network's input in pixels.
        batch_size: Images a step.
        annotated: `images_annotated/` and `labels/`.
    """
    return _task("inference")


@dsl.container_component  # type: ignore[untyped-decorator]
def export(
    model: Input[Model],
    spec: str,
    image_width: int,
    image_height: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    opset: int,
    exported: Output[Model],
) -> dsl.ContainerSpec:
    """Exports a model to ONNX with TAO's tensor names.

    Args:
        model: The model.
        spec: Text of the experiment spec the model was trained with.
        image_width: Width of the network's input in pixels.
        image_height: Height of the network's input in pixels.
        epochs: As in training (the spec needs it).
        batch_size: As in training (the spec needs it).
        learning_rate: As in training (the spec needs it).
        seed: As in training (the spec needs it).
        opset: ONNX operator set; 0 for the engine's own choice.
        exported: `model.onnx` and `labels.txt`.
    """
    return _task("export")
