"""The parameters of the face-detection workflow that are its own, and its profiles."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from components.detectnet_v2.stage import PLACEHOLDERS
from components.step import UserError
from components.tao.rendering import render, template_text
from pipeline.parameters import Parameter, bound, of_run
from pipeline.ranges import BatchSize, Epochs, Images, LearningRate, PictureSize, Points, Seed, Share, Threads

SPEC_BYTES = 16 * 1024


def _check_spec(kind: str, text: str) -> str:
    """Refuses a spec template that is too long for a parameter or has a placeholder that nothing fills."""
    if len(text.encode()) > SPEC_BYTES:
        raise ValueError(f"a spec may have {SPEC_BYTES} bytes, this one has {len(text.encode())}")
    try:
        render(template_text(text), dict.fromkeys(PLACEHOLDERS[kind], 1))
    except UserError as error:
        raise ValueError(str(error)) from error
    return text


RecordsSpec = Annotated[str, AfterValidator(partial(_check_spec, "convert"))]
ExperimentSpec = Annotated[str, AfterValidator(partial(_check_spec, "experiment"))]
InferenceSpec = Annotated[str, AfterValidator(partial(_check_spec, "inference"))]
Policy = Literal["ignore", "keep"]
InputSize = Annotated[int, Field(ge=64, le=4096, multiple_of=16)]
Height = Annotated[int, Field(ge=0, le=4096)]
Filters = Annotated[int, Field(ge=1, le=512)]

# A spec of ours goes by its name, as facedetect/train; its text would stand several times in the Workflow.
# Those of a run are a person's: what one changes between two runs. The others describe data, network, server and
# cluster, and are bound when the pipeline is compiled (`--set`).
PARAMETERS: dict[str, Parameter] = {
    "data_uri": of_run(
        str, "", "WIDER FACE in its official layout: a folder, or an https:// or s3:// URI; empty: a synthetic set."
    ),
    "data_training_images": of_run(
        Images, 800, "Pictures to draw for training and validation where data_uri is empty."
    ),
    "data_test_images": of_run(Images, 200, "Pictures to draw for testing where data_uri is empty."),
    "data_seed": bound(Seed, 1, "Seed of the drawn pictures."),
    "data_picture_width": bound(PictureSize, 640, "Width of the drawn pictures in pixels."),
    "data_picture_height": bound(PictureSize, 384, "Height of the drawn pictures in pixels."),
    "data_width": bound(InputSize, 736, "Width of the network's input in pixels, divisible by 16."),
    "data_height": bound(InputSize, 416, "Height of the network's input in pixels, divisible by 16."),
    "data_resolution": bound(
        Literal["input", "source"],
        "input",
        "`input`: PNGs letterboxed to the network's input, as TAO's program needs them; `source`: JPEGs at their own "
        "size, for specs with open_engine (open engine only).",
        is_open_only=True,
    ),
    "data_longest_side": bound(
        Annotated[int, Field(ge=64, le=8192)],
        1024,
        "Longest side in pixels of an image at resolution `source`; larger ones are shrunk.",
    ),
    "data_grayscale": bound(bool, False, "Whether colour becomes grey, in three equal channels."),
    "data_min_face_height": bound(
        Height,
        8,
        "Faces lower than this in the network's input, in pixels, are small; 0: none is. At resolution `source` none "
        "is: the spec and the evaluation say what is small.",
    ),
    "data_small_faces": bound(
        Policy, "ignore", "`ignore` or `keep`: whether small faces become regions in which nothing counts."
    ),
    "data_invalid_faces": bound(
        Policy, "ignore", "`ignore` or `keep`: the same for faces that the annotators flagged invalid."
    ),
    "data_occluded_faces": bound(Policy, "keep", "`ignore` or `keep`: the same for heavily occluded faces."),
    "data_max_images": of_run(
        Annotated[int, Field(ge=0)], 0, "At most so many images of each split, evenly spaced; 0: all."
    ),
    "data_validation_share": bound(
        Annotated[float, Field(ge=0, le=0.5)],
        0.1,
        "Share of the training images by which models, thresholds and INT8 are chosen; the source's validation images "
        "tell how good the result is. 0: they do both.",
    ),
    "data_split_seed": bound(Seed, 1, "Seed of the draw of these images."),
    "records_spec": bound(RecordsSpec, "facedetect/convert", "Name or text of the dataset-conversion spec."),
    "pretrained_uri": of_run(
        str,
        "",
        "Weights to start from: a file, an https:// or s3:// URI, or ngc://org/team/model:version in NVIDIA's "
        "registry; empty for random weights.",
    ),
    "train_spec": bound(ExperimentSpec, "facedetect/train", "Name or text of the experiment spec for training."),
    "train_epochs": of_run(Epochs, 100, "Passes over the training images."),
    "train_batch_size": of_run(BatchSize, 32, "Images a step."),
    "train_learning_rate": of_run(LearningRate, 5e-4, "Highest learning rate; the lowest is a hundredth of it."),
    "train_seed": bound(Seed, 42, "Seed of weights, order and augmentation."),
    "train_width": bound(
        Annotated[float, Field(ge=0.05, le=2)],
        1.0,
        "Scales the network's channels (open engine only; 1 is TAO's network).",
        is_open_only=True,
    ),
    "train_threads": bound(
        Threads, 0, "CPU threads of training and retraining (open engine only; 0: all cores).", is_open_only=True
    ),
    "prune_threshold": of_run(Share, 5.2e-6, "A filter stays when its normalised norm is above this."),
    "prune_target_ratio": of_run(
        Share, 0.0, "Share of parameters to keep at most (open engine; 0: by prune_threshold).", is_open_only=True
    ),
    "prune_granularity": bound(Filters, 8, "Filters are kept in multiples of this."),
    "prune_minimum_filters": bound(Filters, 16, "A layer keeps at least so many filters."),
    "prune_normalizer": bound(Literal["max", "L2"], "max", "`max` or `L2`: what a layer's norms are divided by."),
    "prune_equalization": bound(
        Literal["union", "intersection", "arithmetic_mean", "geometric_mean"],
        "union",
        "`union`, `intersection`, `arithmetic_mean` or `geometric_mean`: how layers that are added together "
        "agree on their filters.",
    ),
    "prune_excluded_layers": bound(str, "", "Layers to leave whole, separated by spaces."),
    "retrain_spec": bound(ExperimentSpec, "facedetect/retrain", "Name or text of the experiment spec for retraining."),
    "retrain_epochs": of_run(Epochs, 50, "Passes over the training images in retraining."),
    "retrain_batch_size": bound(BatchSize, 32, "Images a step in retraining."),
    "retrain_learning_rate": of_run(LearningRate, 5e-4, "Highest learning rate of retraining."),
    "retrain_seed": bound(Seed, 42, "Seed of retraining."),
    "inference_spec": bound(InferenceSpec, "facedetect/inference", "Name or text of the inference spec."),
    "inference_batch_size": bound(BatchSize, 16, "Images a step in inference."),
    "export_opset": bound(
        Annotated[int, Field(ge=0, le=30)],
        13,
        "ONNX operator set; 13 is the lowest that INT8 can do with; 0: the engine's own choice.",
    ),
    "int8_calibration_images": bound(Images, 200, "Training images on which the ranges of activations are measured."),
    "int8_max_points_lost": of_run(
        Points, 2.0, "Points of average precision (hundredths) the INT8 model may lose at most."
    ),
    "eval_min_face_height": of_run(
        Height,
        8,
        "Lowest face that counts in every evaluation, pixels of the network's input; not below data_min_face_height "
        "where lower ones are ignored.",
    ),
}


def check(values: Mapping[str, Any]) -> None:
    """Refuses evaluations of faces that the data set does not hold.

    Raises:
        UserError: The lowest face that counts is below those that become ignored regions.
    """
    held = values["data_min_face_height"] if values["data_resolution"] == "input" else 0
    if values["data_small_faces"] == "ignore" and values["eval_min_face_height"] < held:
        raise UserError(
            f"parameter eval_min_face_height={values['eval_min_face_height']}: the set ignores faces below {held} "
            f"pixels (data_min_face_height), so nothing would be known of them; give at least {held}, or lower "
            "data_min_face_height, too"
        )


def _specs(folder: str) -> dict[str, str]:
    return {
        "records_spec": f"{folder}/convert",
        "train_spec": f"{folder}/train",
        "retrain_spec": f"{folder}/retrain",
        "inference_spec": f"{folder}/inference",
    }


# The values of NVIDIA TAO: what the pipeline itself has as defaults.
TAO: dict[str, Any] = {}

# What the open engine does beyond TAO, on a GPU.
OPEN: dict[str, Any] = {
    **_specs("facedetect-open"),
    "data_resolution": "source",
}

# A synthetic set and a narrow network: minutes on two cores. Every drawn face counts, however small or hidden.
CPU: dict[str, Any] = {
    **_specs("facedetect-cpu"),
    "pool_gpu_count": "0",
    "data_resolution": "source",
    "data_training_images": 704,  # with the validation images
    "data_test_images": 160,
    "data_width": 320,
    "data_height": 192,
    "data_min_face_height": 0,
    "data_small_faces": "keep",
    "data_invalid_faces": "keep",
    "train_width": 0.25,
    "train_epochs": 36,
    "train_batch_size": 8,
    "train_learning_rate": 0.006,
    "prune_target_ratio": 0.5,
    "prune_minimum_filters": 16,
    "retrain_epochs": 8,
    "retrain_batch_size": 8,
    "retrain_learning_rate": 0.006,
    "inference_batch_size": 8,
    "eval_min_face_height": 12,
}

# Real faces are smaller and more varied: a larger input, and up to 40 minutes of training on two cores.
CPU_REAL: dict[str, Any] = {
    **CPU,
    "data_width": 480,
    "data_height": 272,
    "data_invalid_faces": "ignore",
    "data_validation_share": 0.05,
    "train_epochs": 150,
    "retrain_epochs": 16,
    "retrain_learning_rate": 0.005,
    "eval_min_face_height": 20,
}

# Shows in seconds that everything hangs together; learns nothing worth having.
MICRO: dict[str, Any] = {
    **CPU,
    "data_training_images": 32,
    "data_validation_share": 0.25,
    "data_test_images": 8,
    "data_width": 128,
    "data_height": 96,
    "train_epochs": 2,
    "train_batch_size": 4,
    "retrain_epochs": 2,
    "retrain_batch_size": 4,
}

# The same small data with TAO's values, none of which is the open engine's alone.
TAO_MICRO: dict[str, Any] = {
    **{name: value for name, value in MICRO.items() if name.partition("_")[0] in ("data", "eval")},
    "data_resolution": "input",
    "data_training_images": 64,  # TAO wants at least ten steps in an epoch
    "train_epochs": 2,
    "train_batch_size": 4,
    "retrain_epochs": 2,
    "retrain_batch_size": 4,
    "inference_batch_size": 4,
}

PROFILES: Mapping[str, dict[str, Any]] = {
    "tao": TAO,
    "open": OPEN,
    "cpu": CPU,
    "cpu-real": CPU_REAL,
    "micro": MICRO,
    "tao-micro": TAO_MICRO,
}
