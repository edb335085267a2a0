"""Named sets of parameter values for the pipelines."""

from collections.abc import Mapping
from typing import Any

from components.step import UserError


def _specs(folder: str) -> dict[str, str]:
    return {
        "records_spec": f"{folder}/convert",
        "train_spec": f"{folder}/train",
        "retrain_spec": f"{folder}/retrain",
        "inference_spec": f"{folder}/inference",
    }


# The values of NVIDIA TAO: what the pipeline itself has as defaults.
TAO: dict[str, Any] = {}

# A synthetic set and a narrow network: minutes on two cores. Every drawn face counts, however small or hidden.
CPU: dict[str, Any] = {
    **_specs("facedetect-cpu"),
    "pool_gpu_count": "0",
    "data_training_images": 640,
    "data_validation_images": 160,
    "data_width": 320,
    "data_height": 192,
    "data_min_face_height": 0,
    "data_small_faces": "keep",
    "data_invalid_faces": "keep",
    "train_width": 0.25,
    "train_epochs": 22,
    "train_batch_size": 8,
    "train_learning_rate": 0.012,
    "prune_target_ratio": 0.5,
    "prune_minimum_filters": 16,
    "retrain_epochs": 14,
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
    "data_min_face_height": 8,
    "data_small_faces": "ignore",
    "data_invalid_faces": "ignore",
    "train_epochs": 80,
    "retrain_epochs": 25,
    "eval_min_face_height": 20,
}

# Shows in seconds that everything hangs together; learns nothing worth having.
MICRO: dict[str, Any] = {
    **CPU,
    "data_training_images": 24,
    "data_validation_images": 8,
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
    "data_training_images": 48,  # TAO wants at least ten steps in an epoch
    "train_epochs": 2,
    "train_batch_size": 4,
    "retrain_epochs": 2,
    "retrain_batch_size": 4,
    "inference_batch_size": 4,
}

PROFILES: Mapping[str, dict[str, Any]] = {
    "tao": TAO,
    "cpu": CPU,
    "cpu-real": CPU_REAL,
    "micro": MICRO,
    "tao-micro": TAO_MICRO,
}


def profile(name: str) -> dict[str, Any]:
    """Returns a profile's values.

    Raises:
        UserError: There is no profile of this name.
    """
    if name not in PROFILES:
        raise UserError(f"--profile {name}: no such profile; there are {', '.join(PROFILES)}")
    return PROFILES[name]
