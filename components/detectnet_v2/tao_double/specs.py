"""Reads specs by the schema and the rules of TAO 5.0's own validator.

The rules are written down here once more, apart from the open engine's (`spec_rules.py`): what that one takes and TAO
refuses is what a double is there to find.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from components.detectnet_v2 import spec_pb2

# Blocks that must be there, by the block they stand in ("" is the file).
_REQUIRED_EXPERIMENT: dict[str, str] = {
    "": "model_config training_config evaluation_config cost_function_config augmentation_config "
    "bbox_rasterizer_config postprocessing_config dataset_config",
    "augmentation_config": "preprocessing",
    "bbox_rasterizer_config": "target_class_config",
    "training_config": "learning_rate regularizer optimizer cost_scaling",
    "optimizer": "adam",
    "evaluation_config": "minimum_detection_ground_truth_overlap evaluation_box_config",
    "cost_function_config": "target_classes",
    "target_classes": "objectives",
    "postprocessing_config": "target_class_config",
    "dataset_config": "data_sources target_class_mapping",
    "model_config": "objective_set",
    "objective_set": "bbox cov",
}
_REQUIRED_INFERENCE = {
    "": "inferencer_config bbox_handler_config",
    "bbox_handler_config": "classwise_bbox_handler_config",
}

_ARCHITECTURES = (
    "resnet",
    "vgg",
    "darknet",
    "mobilenet_v1",
    "mobilenet_v2",
    "squeezenet",
    "googlenet",
    "efficientnet_b0",
)
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "!=": operator.ne,
    "in": lambda value, limit: value in limit,
    "%": lambda value, limit: value % limit == 0,
}
# What a field's value must be, wherever a field of this name stands, and whether it is written or not.
_Rule = tuple[str, Any]
_SHARE: tuple[_Rule, ...] = ((">=", 0), ("<=", 1.0))
_POSITIVE: tuple[_Rule, ...] = ((">", 0),)
_NOT_NEGATIVE: tuple[_Rule, ...] = ((">=", 0),)
_BELOW_ONE: tuple[_Rule, ...] = ((">=", 0), ("<", 1.0))
_WRITTEN: tuple[_Rule, ...] = (("!=", ""),)
_CHANNELS: tuple[_Rule, ...] = (("in", (1, 3)),)


def _by_name(*rules: tuple[str, tuple[_Rule, ...]]) -> dict[str, tuple[_Rule, ...]]:
    return {name: rule for names, rule in rules for name in names.split()}


_RULES_EXPERIMENT = _by_name(
    ("arch", (("!=", ""), ("in", _ARCHITECTURES))),
    ("tfrecords_path image_directory_path name", _WRITTEN),
    ("output_image_width output_image_height", (*_POSITIVE, ("%", 16))),
    ("scale batch_size_per_gpu num_epochs min_learning_rate max_learning_rate", _POSITIVE),
    ("validation_period_during_training first_validation_epoch maximum_height maximum_width", _POSITIVE),
    ("initial_exponent increment decrement epsilon beta1 beta2", _POSITIVE),
    ("soft_start annealing", _BELOW_ONE),
    ("cov_center_x cov_center_y cov_radius_x cov_radius_y bbox_min_radius deadzone_radius", _SHARE),
    ("coverage_threshold confidence_threshold nms_iou_threshold nms_confidence_threshold dbscan_eps", _SHARE),
    ("dbscan_min_samples neighborhood_size dbscan_confidence_threshold", _SHARE),
    ("hflip_probability vflip_probability color_shift_stddev saturation_shift_max", _SHARE),
    ("contrast_scale_max contrast_center", _SHARE),
    ("num_layers offset minimum_height minimum_width weight minimum_bounding_box_height", _NOT_NEGATIVE),
    ("min_bbox_width min_bbox_height zoom_min zoom_max translate_max_x translate_max_y", _NOT_NEGATIVE),
    ("hue_rotation_max class_weight coverage_foreground_weight initial_weight weight_target", _NOT_NEGATIVE),
)
_RULES_INFERENCE = _by_name(
    ("batch_size image_height image_width", _POSITIVE),
    ("image_channels", _CHANNELS),
    ("calibration_cache", _WRITTEN),
    ("coverage_threshold", _SHARE),
    ("minimum_bounding_box_height", _NOT_NEGATIVE),
)


def load_experiment(path: str | None) -> Any:  # noqa: ANN401 - a message class that is built at run time
    """Loads the spec of train, evaluate and export; see `_load`."""
    return _load(path, "Experiment", _REQUIRED_EXPERIMENT, _RULES_EXPERIMENT)


def load_inference(path: str | None) -> Any:  # noqa: ANN401
    """Loads the spec of inference; see `_load`."""
    return _load(path, "Inference", _REQUIRED_INFERENCE, _RULES_INFERENCE)


def load_dataset_export(path: str) -> Any:  # noqa: ANN401
    """Loads the spec of dataset_convert, which TAO does not validate; see `_load`."""
    return _load(path, "DatasetExportConfig", {}, {})


def _load(path: str | None, kind: str, required: Mapping[str, str], rules: Mapping[str, tuple[_Rule, ...]]) -> Any:  # noqa: ANN401
    """Loads a spec.

    Raises:
        OSError: The file is missing.
        text_format.ParseError: It is no text of the schema: a field is unknown or its value of another type.
        SystemExit: With code 1, after a line that names it: a block is missing or a value out of range.
    """
    assert path, "spec_path has to be defined, if merge_from_default is disabled"
    if not Path(path).is_file():
        raise OSError(f"Specfile not found at: {path}")
    message = _schema(kind)()
    text_format.Merge(Path(path).read_text(encoding="utf-8"), message)
    for fault in _faults(message, required.get("", ""), required, rules):
        print(f"Spec file validation failed.\n{fault}", flush=True)
        raise SystemExit(1)
    return message


def _schema(kind: str) -> type[Message]:
    """Returns a message class of TAO 5.0's schema: ours, but that `dbscan_min_samples` is a whole number there."""
    file = descriptor_pb2.FileDescriptorProto()
    spec_pb2.DESCRIPTOR.CopyToProto(file)
    clustering = next(message for message in file.message_type if message.name == "ClusteringConfig")
    next(
        field for field in clustering.field if field.name == "dbscan_min_samples"
    ).type = descriptor_pb2.FieldDescriptorProto.TYPE_INT32
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{kind}"))


def _faults(
    message: Message, wanted: str, required: Mapping[str, str], rules: Mapping[str, tuple[_Rule, ...]]
) -> Iterator[str]:
    """Finds what TAO's validator refuses, in the order of the schema's fields."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            for single in value if field.is_repeated else [value]:
                yield from _value_faults(field.name, single, rules.get(field.name, ()))
            continue
        is_there = len(value) > 0 if field.is_repeated else message.HasField(field.name)
        if field.name in wanted.split() and not is_there:
            yield f"{field.name} should be set in experiment spec file."
        if is_there:
            for block in _blocks(field, value):
                yield from _faults(block, required.get(field.name, ""), required, rules)


def _blocks(field: Any, value: Any) -> list[Message]:  # noqa: ANN401 - its classes share no stub; a message, list or map
    if not field.is_repeated:
        return [value]
    if field.message_type.GetOptions().map_entry:
        return [block for block in value.values() if isinstance(block, Message)]
    return list(value)


def _value_faults(name: str, value: Any, rules: tuple[_Rule, ...]) -> Iterator[str]:  # noqa: ANN401 - any scalar
    for comparison, limit in rules:
        if not _COMPARISONS[comparison](value, limit):
            rule = "be set." if limit == "" else f"{comparison} {limit}. Wrong value: {value}"
            yield f"Experiment Spec Setting Error: {name} should {rule}"
