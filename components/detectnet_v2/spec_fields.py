"""Fields of TAO's schema that this engine refuses, and fields that have no effect.

Every field not named below is honoured; `tests/test_spec_fields.py` checks the list against the schema.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from components.detectnet_v2.prototext import FieldPath, MapKey

STRIDE = 16
"""Pixels of network input per cell of the output grid, in both directions."""
NMS_IOU = 0.3
"""`nms_iou_threshold` where it is not set."""
SOFT_START = "training_config.learning_rate.soft_start_annealing_schedule"
EARLY_STOPPING = "training_config.learning_rate.early_stopping_annealing_schedule"
COSINE = "training_config.learning_rate.cosine_annealing_schedule"
RANDOM_CROP = "open_engine.random_crop"
CLUSTERING = "postprocessing_config.target_class_config.clustering_config"
HANDLERS = "bbox_handler_config.classwise_bbox_handler_config"


@dataclass(frozen=True, slots=True)
class Fault:
    """A field and a message about it. In `text`, `{is}` becomes "is <the value as written>" or "is not set"."""

    path: FieldPath
    text: str

    @classmethod
    def at(cls, path: str, text: str) -> "Fault":
        """Takes a path of field names joined by dots."""
        return cls(tuple(path.split(".")), text)


@dataclass(frozen=True, slots=True)
class Refused:
    """A field that this engine does not follow, unless it has one of the `harmless` values.

    Attributes:
        path: Names of fields joined by dots, without the entries of maps and repeated fields.
        advice: Why, and what to do instead.
        harmless: Values for which the engine does what is asked.
    """

    path: str
    advice: str
    harmless: tuple[object, ...] = (0, "", False)


@dataclass(frozen=True, slots=True)
class WithoutEffect:
    """A field that is accepted because it would change no result."""

    path: str
    reason: str


# ---- Refused ---------------------------------------------------------------------------------------------------------

_LAST_LAYER = "the heads read the backbone's last layer; leave it empty"
_COLOUR = "the networks read three channels, and grey images are read as three equal ones; set 3"
_MASK = "a mask covers all classes and both objectives, and finds its regions by source_class_label_filter; remove it"
_MASKS = "loss_mask_label_filter.objective_label_filter_configs"
REFUSED_IN_EXPERIMENT = (
    Refused("model_config.activation.activation_type", "the networks use relu", ("", "relu")),
    Refused("model_config.activation.activation_parameters", "relu takes none; remove them", ()),
    Refused("model_config.objective_set.bbox.input", _LAST_LAYER),
    Refused("model_config.objective_set.cov.input", _LAST_LAYER),
    Refused(
        "model_config.training_precision.backend_floatx",
        "weights are kept in FLOAT32; set FLOAT32 and train with --use_amp for half-precision arithmetic",
    ),
    Refused(
        "training_config.enable_qat",
        "quantise after training: set it false, `detectnet_v2 export`, then `gridbox convert int8`",
    ),
    Refused(
        "evaluation_config.early_stopping_patience_steps",
        "TAO 5 reads it nowhere either; use training_config.learning_rate's early_stopping_annealing_schedule",
    ),
    Refused("augmentation_config.preprocessing.output_image_channel", _COLOUR, (3,)),
    Refused(
        "postprocessing_config.target_class_config.confidence_config.confidence_model_filename",
        "confidence comes from the coverage; remove it",
    ),
    Refused(f"{_MASKS}.target_class_names", _MASK, ()),
    Refused(f"{_MASKS}.objective_names", _MASK, ()),
    Refused(f"{_MASKS}.label_filter.bbox_dimensions_label_filter", _MASK),
    Refused(f"{_MASKS}.label_filter.bbox_crop_label_filter", _MASK),
    Refused("dataset_export_config", "convert first, with `detectnet_v2 dataset_convert`; remove the block"),
)
REFUSED_IN_INFERENCE = (
    Refused(
        "inferencer_config.tensorrt_config",
        "give the model file or the exported ONNX model in tlt_config { model: … }",
    ),
    Refused("inferencer_config.image_channels", _COLOUR, (3,)),
    Refused("inferencer_config.stride", f"the networks have a stride of {STRIDE}", (STRIDE,)),
    Refused(
        f"{HANDLERS}.confidence_model",
        "use aggregate_cov or mean_cov",
        ("", "aggregate_cov", "mean_cov"),  # an empty one has its own message
    ),
)
REFUSED_IN_EXPORT = (
    Refused("kitti_config.point_clouds_dir", "the detector reads images only; remove it"),
    Refused("kitti_config.calibrations_dir", "the detector reads images only; remove it"),
)

# ---- Without effect --------------------------------------------------------------------------------------------------

_NO_WANDB = "Weights & Biases is not connected"
_NO_CLEARML = "ClearML is not connected"
_CLEARML_FIELDS = ("project", "task", "tags", "reuse_last_task_id", "continue_last_task", "deferred_init")
_WANDB_FIELDS = ("enabled", "key", "project", "entity", "reinit", "name", "tags", "wandb_dir", "notes", "mode")
_NEIGHBORHOOD = "DBSCAN takes its neighbourhood from dbscan_eps"
_CONFIDENCE = "the confidence is the coverage's, and its thresholds stand in clustering_config"
_NODES = "the model file knows its inputs and outputs"
WITHOUT_EFFECT_IN_EXPERIMENT = (
    WithoutEffect(f"{CLUSTERING}.neighborhood_size", _NEIGHBORHOOD),
    WithoutEffect("postprocessing_config.target_class_config.confidence_config.confidence_threshold", _CONFIDENCE),
    WithoutEffect("postprocessing_config.target_class_config.confidence_config.normalization_mode", _CONFIDENCE),
    *(WithoutEffect(f"training_config.visualizer.wandb_config.{name}", _NO_WANDB) for name in _WANDB_FIELDS),
    *(WithoutEffect(f"training_config.visualizer.clearml_config.{name}", _NO_CLEARML) for name in _CLEARML_FIELDS),
)
WITHOUT_EFFECT_IN_INFERENCE = (
    WithoutEffect("inferencer_config.input_nodes", _NODES),
    WithoutEffect("inferencer_config.output_nodes", _NODES),
    WithoutEffect("inferencer_config.gpu_index", "the first visible device is used; choose it by CUDA_VISIBLE_DEVICES"),
    WithoutEffect(f"{HANDLERS}.clustering_config.neighborhood_size", _NEIGHBORHOOD),
    *(WithoutEffect(f"bbox_handler_config.wandb_config.{name}", _NO_WANDB) for name in _WANDB_FIELDS),
)
WITHOUT_EFFECT_IN_EXPORT = (
    WithoutEffect(
        "image_directory_path", "records name images by their folder and file name; experiments say where these lie"
    ),
    WithoutEffect(
        "target_class_mapping", "records keep the labels' own classes; experiments map them in their dataset_config"
    ),
)


# ---- Finding them in a message ---------------------------------------------------------------------------------------


def refusals(message: Message, fields: Sequence[Refused]) -> Iterator[Fault]:
    """Finds fields that are set and not honoured."""
    for field in fields:
        for path, value in values(message, field.path):
            if isinstance(value, Message):
                yield Fault(path, f"is not honoured by this engine: {field.advice}")
            elif value not in field.harmless:
                yield Fault(path, f"{{is}}, which this engine does not honour: {field.advice}")


def effectless(message: Message, fields: Sequence[WithoutEffect]) -> Iterator[Fault]:
    """Finds fields that are set and have no effect. Their values are not shown: they may be secrets."""
    for field in fields:
        for path, value in values(message, field.path):
            if value:
                yield Fault(path, f"has no effect: {field.reason}")


def values(message: Message, path: str) -> Iterator[tuple[FieldPath, Any]]:
    """Yields path and value of a field in every instance of its block; a block that is not set has no instance.

    Args:
        message: Where the path starts.
        path: Names of fields joined by dots, without the entries of maps and repeated fields.
    """
    return expand(message, path.split("."))


def expand(message: Message, names: Sequence[str], path: FieldPath = ()) -> Iterator[tuple[FieldPath, Any]]:
    """As `values`, for a path in parts, with `path` in front of the paths found."""
    if not names:
        yield path, message
        return
    name, rest = names[0], names[1:]
    field = message.DESCRIPTOR.fields_by_name[name]
    value = getattr(message, name)
    instances: list[tuple[FieldPath, Any]]
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        instances = [((*path, name, MapKey(key)), value[key]) for key in sorted(value)]
    elif field.is_repeated:
        instances = [((*path, name, index), element) for index, element in enumerate(value)]
    else:
        present = field.message_type is None or message.HasField(name)
        instances = [((*path, name), value)] if present else []
    for instance_path, instance in instances:
        if isinstance(instance, Message):
            yield from expand(instance, rest, instance_path)
        else:
            yield instance_path, instance
