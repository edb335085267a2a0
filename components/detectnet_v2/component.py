# ruff: noqa: ARG001 - the arguments of a container component declare its interface; the program gets them by name
"""How Kubeflow sees DetectNet_v2: one container component a task of TAO's program, the same for both engines.

A stage runs `stage.py` in a folder that `pretrained_weights` writes once, as an artifact (`components.tao.program`), so
that NVIDIA's unmodified image runs it as well as ours.
"""

from typing import Any

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.images import OPEN_ENGINE


def _task(name: str, program: Any) -> dsl.ContainerSpec:  # noqa: ANN401 - kfp's placeholder of an artifact
    return dsl.ContainerSpec(
        image=OPEN_ENGINE,
        # Without byte code, which would lie in the artifact and make it another one.
        command=["python3", "-B"],
        args=[
            program.path,
            "detectnet_v2",
            name,
            "--executor-input",
            dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )


@dsl.container_component  # type: ignore[untyped-decorator]
def pretrained_weights(uri: str, version: str, model: Output[Model], program: Output[Artifact]) -> dsl.ContainerSpec:
    """Brings pretrained weights in, or the word that there are none; and the program that makes a stage of TAO's.

    Args:
        uri: Where the weights are: a file of the chosen engine, an https:// or s3:// URI, ngc://org/team/model:version,
            or empty for none.
        version: What changes with what lies there, so that unchanged weights are not brought again; or empty.
        model: The weights as a model artifact; `present` in its metadata says whether there are any.
        program: The stages' code and our spec templates, as Python runs a folder.
    """
    return dsl.ContainerSpec(
        image=OPEN_ENGINE,
        command=["gridbox"],
        args=["detectnet_v2", "pretrained", "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )


@dsl.container_component  # type: ignore[untyped-decorator]
def dataset_convert(
    program: Input[Artifact], kitti: Input[Dataset], spec: str, records: Output[Dataset]
) -> dsl.ContainerSpec:
    """Writes the labels of every split as TFRecords.

    Args:
        program: The program of the stage.
        kitti: The KITTI set.
        spec: Name or text of the dataset-conversion spec, with `${root}` where a split's folder goes.
        records: `training/`, `validation/` and `test/` with TFRecords named as TAO names them.
    """
    return _task("dataset_convert", program)


@dsl.container_component  # type: ignore[untyped-decorator]
def train(
    program: Input[Artifact],
    kitti: Input[Dataset],
    records: Input[Dataset],
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
        program: The program of the stage.
        kitti: The KITTI set whose images the records name.
        records: TFRecords of every split.
        pretrained: The model to start from; an artifact without a model starts from random weights.
        spec: Name or text of the experiment spec, with `${…}` for paths and for the parameters below.
        image_width: Width of the network's input in pixels, divisible by 16.
        image_height: Height of the network's input in pixels, divisible by 16.
        epochs: Passes over the training images.
        batch_size: Images a step (and GPU).
        learning_rate: The schedule's highest rate; the lowest is a hundredth of it.
        seed: Seed of weights, order and augmentation.
        name: Base name of the model file.
        width: Scales the network's channels; below 1 for narrow nets (open engine only, 1 leaves the flag out).
        threads: CPU threads, 0 for all cores (open engine only, 0 leaves the flag out).
        model: TAO's results directory: the spec, the status log and the weights. Later stages take the spec from here.
        metrics: Loss, average precision, size and time.
    """
    return _task("train", program)


@dsl.container_component  # type: ignore[untyped-decorator]
def evaluate(
    program: Input[Artifact],
    kitti: Input[Dataset],
    records: Input[Dataset],
    pretrained: Input[Model],
    trained: Input[Model],
    pruned: Input[Model],
    retrained: Input[Model],
    spec: str,
    batch_size: int,
    minimum_height: int,
    evaluations: Output[Artifact],
    annotated: Output[Artifact],
    metrics: Output[Metrics],
) -> dsl.ContainerSpec:
    """Scores the four models on the test split, and draws what the last one finds there.

    Args:
        program: The program of the stage.
        kitti: The KITTI set whose images the records name.
        records: TFRecords of every split.
        pretrained: The model that training started from, scored by the spec of the trained one; skipped if absent.
        trained: The trained model.
        pruned: The pruned model.
        retrained: The retrained model.
        spec: Name or text of the inference spec, with `${model}` where the model file goes.
        batch_size: Images a step of the inference.
        minimum_height: Lowest object that counts, pixels of the network's input.
        evaluations: A folder a model with `metrics.json`, and `status.json` where it was scored.
        annotated: The retrained model's `images_annotated/` and `labels/`.
        metrics: Average precision, parameters and size of each.
    """
    return _task("evaluate", program)


@dsl.container_component  # type: ignore[untyped-decorator]
def prune(
    program: Input[Artifact],
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
        program: The program of the stage.
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
    return _task("prune", program)


@dsl.container_component  # type: ignore[untyped-decorator]
def export(program: Input[Artifact], model: Input[Model], opset: int, exported: Output[Model]) -> dsl.ContainerSpec:
    """Exports a model to ONNX with TAO's tensor names.

    Args:
        program: The program of the stage.
        model: The model, with the spec that it was trained with.
        opset: ONNX operator set; 0 for the engine's own choice.
        exported: `model.onnx` and `labels.txt`.
    """
    return _task("export", program)
