"""Validation of specs by the rules of NVIDIA TAO 5.

Source of the ranges and required fields: TAO 5.0, `cv/detectnet_v2/spec_handler/constants.py`. Fields that this engine
does not honour are in `spec_fields.py`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from google.protobuf.message import Message

from components.detectnet_v2 import prototext, spec_fields, spec_pb2
from components.detectnet_v2.prototext import FieldPath
from components.detectnet_v2.spec_fields import (
    CLUSTERING,
    COSINE,
    EARLY_STOPPING,
    HANDLERS,
    RANDOM_CROP,
    SOFT_START,
    STRIDE,
    Fault,
)

TAO_ARCHITECTURES = (
    "resnet",
    "vgg",
    "darknet",
    "mobilenet_v1",
    "mobilenet_v2",
    "squeezenet",
    "googlenet",
    "efficientnet_b0",
)
STRIDES = (STRIDE, 8)
RESNET_DEPTHS = (10, 18, 34, 50)


@dataclass(frozen=True, slots=True)
class _Range:
    """Numbers from `low` to `high`; `above` and `below` leave out the bound itself."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        over = value > self.low if self.above else value >= self.low
        return over and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if not self.above and not self.below and self.high < math.inf:
            return f"from {self.low:g} to {self.high:g}"
        parts = [f"{'more than' if self.above else 'at least'} {self.low:g}"]
        if self.high < math.inf:
            parts.append(f"{'less than' if self.below else 'at most'} {self.high:g}")
        return " and ".join(parts)


_SHARE = _Range(0, 1)
_BELOW_ONE = _Range(0, 1, below=True)
_POSITIVE = _Range(0, above=True)
_NOT_NEGATIVE = _Range(0)
_AT_LEAST_ONE = _Range(1)

# (block, names, range). Paths leave out the entries of maps and repeated fields.
_Ranges = tuple[tuple[str, str, _Range], ...]


def _clustering_ranges(block: str, sums: _Range) -> _Ranges:
    """Returns the ranges of a clustering; `sums` is the range of thresholds for sums of coverage."""
    return (
        (block, "coverage_threshold dbscan_eps nms_iou_threshold nms_confidence_threshold", _SHARE),
        (block, "dbscan_min_samples dbscan_confidence_threshold", sums),
        (block, "minimum_bounding_box_height", _NOT_NEGATIVE),
    )


_EXPERIMENT_RANGES: _Ranges = (
    ("dataset_config.data_sources", "source_weight", _POSITIVE),
    ("dataset_config.validation_data_source", "source_weight", _POSITIVE),
    ("augmentation_config.preprocessing", "output_image_width output_image_height", _AT_LEAST_ONE),
    ("augmentation_config.preprocessing", "min_bbox_width min_bbox_height scale_width scale_height", _NOT_NEGATIVE),
    (
        "augmentation_config.spatial_augmentation",
        "hflip_probability vflip_probability rotate_probability",
        _SHARE,
    ),
    ("augmentation_config.spatial_augmentation", "zoom_min zoom_max", _POSITIVE),
    (
        "augmentation_config.spatial_augmentation",
        "translate_max_x translate_max_y rotate_rad_max",
        _NOT_NEGATIVE,
    ),
    (
        "augmentation_config.color_augmentation",
        "color_shift_stddev saturation_shift_max contrast_scale_max contrast_center",
        _SHARE,
    ),
    ("augmentation_config.color_augmentation", "hue_rotation_max", _Range(0, 360)),
    *_clustering_ranges(CLUSTERING, _SHARE),  # TAO's limit in training specs alone
    ("postprocessing_config.target_class_config.confidence_config", "confidence_threshold", _SHARE),
    ("model_config", "dropout_rate", _BELOW_ONE),
    ("model_config", "freeze_blocks", _Range(0, 4)),
    ("model_config.objective_set.bbox", "scale", _POSITIVE),
    ("model_config.objective_set.bbox", "offset", _NOT_NEGATIVE),
    ("evaluation_config", "validation_period_during_training first_validation_epoch", _AT_LEAST_ONE),
    ("evaluation_config", "minimum_detection_ground_truth_overlap", _SHARE),
    ("evaluation_config.evaluation_box_config", "minimum_height minimum_width", _NOT_NEGATIVE),
    ("evaluation_config.evaluation_box_config", "maximum_height maximum_width", _POSITIVE),
    ("cost_function_config", "max_objective_weight min_objective_weight", _SHARE),
    ("cost_function_config.target_classes", "class_weight", _NOT_NEGATIVE),
    ("cost_function_config.target_classes", "coverage_foreground_weight", _Range(0, 1, above=True, below=True)),
    ("cost_function_config.target_classes.objectives", "initial_weight weight_target", _NOT_NEGATIVE),
    ("training_config", "batch_size_per_gpu num_epochs", _AT_LEAST_ONE),
    (SOFT_START, "min_learning_rate max_learning_rate", _POSITIVE),
    (SOFT_START, "soft_start annealing", _BELOW_ONE),
    (EARLY_STOPPING, "min_learning_rate max_learning_rate", _POSITIVE),
    (EARLY_STOPPING, "patience_steps", _AT_LEAST_ONE),
    (COSINE, "min_learning_rate max_learning_rate", _POSITIVE),
    (COSINE, "warm_up", _BELOW_ONE),
    ("training_config.regularizer", "weight", _NOT_NEGATIVE),
    ("training_config.optimizer.adam", "epsilon", _POSITIVE),
    ("training_config.optimizer.adam", "beta1 beta2", _Range(0, 1, above=True, below=True)),
    ("training_config.cost_scaling", "initial_exponent increment decrement", _POSITIVE),
    ("training_config.visualizer.target_class_config", "coverage_threshold", _SHARE),
    ("bbox_rasterizer_config.target_class_config", "cov_center_x cov_center_y", _SHARE),
    ("bbox_rasterizer_config.target_class_config", "cov_radius_x cov_radius_y bbox_min_radius", _Range(0, 1, True)),
    ("bbox_rasterizer_config", "deadzone_radius", _SHARE),
    ("open_engine", "ema_decay", _BELOW_ONE),
    ("open_engine", "object_balance", _SHARE),
    ("open_engine.teacher", "weight", _Range(0, 1, above=True)),
    (RANDOM_CROP, "zoom_min zoom_max", _POSITIVE),
    (RANDOM_CROP, "object_probability hflip_probability rotate_probability min_visible_share", _SHARE),
    (RANDOM_CROP, "view_share view_epochs mosaic_probability copy_paste_probability", _SHARE),
    (RANDOM_CROP, "blur_probability jpeg_probability grey_probability", _SHARE),
    (RANDOM_CROP, "rotate_rad_max min_object_height", _NOT_NEGATIVE),
)
_INFERENCE_RANGES: _Ranges = (
    ("inferencer_config", "batch_size", _AT_LEAST_ONE),
    ("inferencer_config", "image_width image_height gpu_index", _NOT_NEGATIVE),
    ("bbox_handler_config", "overlay_linewidth", _NOT_NEGATIVE),
    *_clustering_ranges(f"{HANDLERS}.clustering_config", _NOT_NEGATIVE),
    (f"{HANDLERS}.bbox_color", "R G B", _Range(0, 255)),
)
_EXPORT_RANGES: _Ranges = (
    ("kitti_config", "val_split", _Range(0, 100, below=True)),
    ("sample_modifier_config", "minimum_target_class_imbalance", _NOT_NEGATIVE),
)

_EXPERIMENT_REQUIRED = (
    "model_config.objective_set.bbox",
    "model_config.objective_set.cov",
    "model_config.arch",
    "training_config.learning_rate.learning_rate",
    "training_config.regularizer",
    "training_config.optimizer.adam",
    "training_config.cost_scaling",
    "evaluation_config.minimum_detection_ground_truth_overlap",
    "evaluation_config.evaluation_box_config",
    "cost_function_config.target_classes.name",
    "cost_function_config.target_classes.objectives.name",
    "augmentation_config.preprocessing",
    "bbox_rasterizer_config.target_class_config",
    "postprocessing_config.target_class_config.clustering_config",
    "dataset_config.data_sources.tfrecords_path",
    "dataset_config.data_sources.image_directory_path",
    "dataset_config.target_class_mapping",
    "dataset_config.image_extension",
    "open_engine?.teacher?.model_file",
)
_INFERENCE_REQUIRED = (
    "inferencer_config.model_config_type",
    "inferencer_config.tlt_config?.model",
    "inferencer_config.target_classes",
    f"{HANDLERS}.clustering_config",
)
_EXPORT_REQUIRED = (
    "convert_config_type",
    "kitti_config?.root_directory_path",
    "kitti_config?.image_dir_name",
    "kitti_config?.label_dir_name",
    "coco_config?.root_directory_path",
    "coco_config?.img_dir_names",
    "coco_config?.annotation_files",
)


def _out_of_range(message: Message, ranges: _Ranges) -> Iterator[Fault]:
    for block, names, allowed in ranges:
        for name in names.split():
            for path, value in spec_fields.values(message, f"{block}.{name}"):
                if value not in allowed:
                    yield Fault(path, f"{{is}}; it must be {allowed}")


def _missing(message: Message, path: str) -> Iterator[Fault]:
    """Yields the first absent field on a path; a name with a question mark may be absent."""
    instances: list[tuple[FieldPath, Any]] = [((), message)]
    for step in path.split("."):
        name = step.rstrip("?")
        following: list[tuple[FieldPath, Any]] = []
        for above, block in instances:
            if name in block.DESCRIPTOR.oneofs_by_name:
                if block.WhichOneof(name) is None:
                    members = " or ".join(f.name for f in block.DESCRIPTOR.oneofs_by_name[name].fields)
                    yield Fault(above, f"needs {members}")
                continue
            found = [
                (p, v)
                for p, v in spec_fields.expand(block, [name], above)
                if isinstance(v, Message) or v not in ("", 0)
            ]
            if not found and not step.endswith("?"):
                yield Fault((*above, name), "is missing; it is required")
            following += found
        instances = following


def not_finite(message: Message, path: FieldPath = ()) -> Iterator[Fault]:
    """Finds numbers that are infinite or not a number; 1e99 is infinite in a 32-bit field."""
    for field, _ in message.ListFields():
        for below, value in spec_fields.expand(message, [field.name], path):
            if isinstance(value, Message):
                yield from not_finite(value, below)
            elif isinstance(value, float) and not math.isfinite(value):
                yield Fault(below, "{is}; it must be a finite number")


def _divisible(message: Message, *paths: str) -> Iterator[Fault]:
    for name in paths:
        for path, value in spec_fields.values(message, name):
            if value % STRIDE:
                nearest = max(STRIDE, round(value / STRIDE) * STRIDE)
                yield Fault(path, f"{{is}}; it must be divisible by {STRIDE}, for example {nearest}")


# ---- The experiment --------------------------------------------------------------------------------------------------


def check_experiment(spec: spec_pb2.Experiment) -> Iterator[Fault]:
    """Finds what train and evaluate cannot use."""
    for path in _EXPERIMENT_REQUIRED:
        yield from _missing(spec, path)
    yield from _out_of_range(spec, _EXPERIMENT_RANGES)
    size = "augmentation_config.preprocessing.output_image"
    yield from _divisible(spec, f"{size}_width", f"{size}_height")
    yield from spec_fields.refusals(spec, spec_fields.REFUSED_IN_EXPERIMENT)
    yield from _check_preprocessing(spec)
    yield from _check_model(spec.model_config)
    if spec.open_engine.grid_stride not in (0, *STRIDES):
        strides = " or ".join(map(str, STRIDES))
        yield Fault.at("open_engine.grid_stride", f"{{is}}; the networks have a grid of {strides} pixels")
    if spec.open_engine.object_balance and not spec.open_engine.coverage_loss:
        yield Fault.at("open_engine.object_balance", "needs coverage_loss: QUALITY_FOCAL; TAO's loss does not know it")
    yield from _check_order(spec)
    yield from _check_epochs(spec)
    yield from _check_classes(spec)
    yield from _check_sources(spec.dataset_config)


def _check_preprocessing(spec: spec_pb2.Experiment) -> Iterator[Fault]:
    size = spec.augmentation_config.preprocessing
    block = "augmentation_config.preprocessing"
    if size.output_image_max and not size.output_image_min:
        yield Fault.at(f"{block}.output_image_max", "{is}, which limits what output_image_min asks for; set that too")
    if not any((size.crop_left, size.crop_top, size.crop_right, size.crop_bottom)):
        return
    for low, high, wanted in (
        ("crop_left", "crop_right", size.output_image_width),
        ("crop_top", "crop_bottom", size.output_image_height),
    ):
        length = getattr(size, high) - getattr(size, low)
        if length <= 0:
            yield Fault.at(f"{block}.{high}", f"{{is}}; it must be more than {low} ({getattr(size, low)})")
        elif length != wanted and spec.dataset_config.dataloader_mode == spec_pb2.DatasetConfig.MULTISOURCE:
            text = f"{{is}}, {length} pixels from {low}; the crop must be of the output's size, {wanted}"
            yield Fault.at(f"{block}.{high}", text)


def _check_model(model: spec_pb2.ModelConfig) -> Iterator[Fault]:
    arch = "model_config.arch"
    depths = f"{', '.join(str(depth) for depth in RESNET_DEPTHS[:-1])} or {RESNET_DEPTHS[-1]}"
    if model.arch and model.arch not in TAO_ARCHITECTURES:
        yield Fault.at(arch, f"{{is}}; {prototext.nearest(model.arch, TAO_ARCHITECTURES)}")
    elif model.arch and model.arch != "resnet":
        advice = f'use arch: "resnet" with num_layers: {depths}'
        yield Fault.at(arch, f"{{is}}, which this engine does not train; {advice}")
    elif model.arch and model.num_layers not in RESNET_DEPTHS:
        yield Fault.at("model_config.num_layers", f"{{is}}; this engine trains {depths}")
    for index, block in enumerate(model.freeze_blocks):
        if block % 1:
            yield Fault(("model_config", "freeze_blocks", index), "{is}; blocks have whole numbers")


def _check_order(spec: spec_pb2.Experiment) -> Iterator[Fault]:
    """Checks pairs of fields of which one bounds the other."""
    spatial = "augmentation_config.spatial_augmentation"
    boxes = "evaluation_config.evaluation_box_config"
    for block, low, high in (
        (spatial, "zoom_min", "zoom_max"),
        (boxes, "minimum_height", "maximum_height"),
        (boxes, "minimum_width", "maximum_width"),
        ("cost_function_config", "min_objective_weight", "max_objective_weight"),
        (SOFT_START, "min_learning_rate", "max_learning_rate"),
        (SOFT_START, "soft_start", "annealing"),
        (COSINE, "min_learning_rate", "max_learning_rate"),
        (RANDOM_CROP, "zoom_min", "zoom_max"),
        (EARLY_STOPPING, "min_learning_rate", "max_learning_rate"),
    ):
        for path, message in spec_fields.values(spec, block):
            bound = getattr(message, high)
            if getattr(message, low) > bound:
                yield Fault((*path, low), f"{{is}}, more than {high} ({bound:g})")


def _check_epochs(spec: spec_pb2.Experiment) -> Iterator[Fault]:
    """Checks settings in epochs against the length of the training, and whether validation data are there."""
    evaluation, training = spec.evaluation_config, spec.training_config
    period, epochs = evaluation.validation_period_during_training, training.num_epochs
    patience = [(path, schedule.patience_steps) for path, schedule in spec_fields.values(spec, EARLY_STOPPING)]
    for path, steps in patience:
        if not period <= steps <= epochs:
            text = f"{{is}}; it must be from validation_period_during_training ({period}) to num_epochs ({epochs})"
            yield Fault((*path, "patience_steps"), text)
    if spec.dataset_config.WhichOneof("dataset_split_type") is None:
        for path, _ in patience:
            text = "stops by the validation cost: dataset_config needs validation_data_source or validation_fold"
            yield Fault(path, text)
    visualizer = training.visualizer
    if visualizer.enabled and visualizer.infrequent_logging_frequency > epochs:
        field = "training_config.visualizer.infrequent_logging_frequency"
        yield Fault.at(field, f"{{is}}, in epochs, more than num_epochs ({epochs})")


_PER_CLASS = (
    "bbox_rasterizer_config.target_class_config",
    "postprocessing_config.target_class_config",
    "evaluation_config.minimum_detection_ground_truth_overlap",
    "evaluation_config.evaluation_box_config",
)


def _check_classes(spec: spec_pb2.Experiment) -> Iterator[Fault]:
    """Checks that every per-class block has every target class, and that each class has the two objectives."""
    classes, mapping = spec.cost_function_config.target_classes, spec.dataset_config.target_class_mapping
    per_class = {path: attrgetter(path)(spec) for path in _PER_CLASS}
    seen: set[str] = set()
    for index, target in enumerate(classes):
        path: FieldPath = ("cost_function_config", "target_classes", index)
        if target.name in seen:
            yield Fault((*path, "name"), f"'{target.name}' names two target classes")
        seen.add(target.name)
        for block, entries in per_class.items():
            if entries and target.name and target.name not in entries:
                yield Fault.at(block, f"has no entry for the target class '{target.name}'")
        if mapping and target.name not in mapping.values():
            yield Fault.at("dataset_config.target_class_mapping", f"maps no label to the target class '{target.name}'")
        objectives = [objective.name for objective in target.objectives]
        if objectives and sorted(objectives) != ["bbox", "cov"]:
            text = f"are {', '.join(objectives)}; exactly one 'cov' and one 'bbox' are needed"
            yield Fault((*path, "objectives"), text)
        for field in ("initial_weight", "weight_target"):
            if target.objectives and not sum(getattr(objective, field) for objective in target.objectives) > 0:
                yield Fault((*path, "objectives"), f"have no {field} above 0")
    if classes and not sum(target.class_weight for target in classes) > 0:
        yield Fault(("cost_function_config", "target_classes", 0, "class_weight"), "{is}; no class has a weight")


def _check_sources(data: spec_pb2.DatasetConfig) -> Iterator[Fault]:
    if data.image_extension.startswith("."):
        mended = data.image_extension.lstrip(".")
        yield Fault.at("dataset_config.image_extension", f'{{is}}; write "{mended}"')
    if data.HasField("validation_data_source"):
        for name in ("tfrecords_path", "image_directory_path"):
            if not getattr(data.validation_data_source, name):
                yield Fault.at(f"dataset_config.validation_data_source.{name}", "is missing; it is required")


# ---- Inference -------------------------------------------------------------------------------------------------------


def check_inference(spec: spec_pb2.Inference) -> Iterator[Fault]:
    """Finds what inference cannot use."""
    for required in _INFERENCE_REQUIRED:
        yield from _missing(spec, required)
    yield from _out_of_range(spec, _INFERENCE_RANGES)
    yield from _divisible(spec, "inferencer_config.image_width", "inferencer_config.image_height")
    yield from spec_fields.refusals(spec, spec_fields.REFUSED_IN_INFERENCE)
    handlers = spec.bbox_handler_config.classwise_bbox_handler_config
    for path, handler in spec_fields.values(spec, HANDLERS):
        is_nms = handler.clustering_config.clustering_algorithm == spec_pb2.ClusteringConfig.NMS
        if not (handler.confidence_model or is_nms):
            yield Fault((*path, "confidence_model"), "is missing; it is required, except for NMS")
    targets, shown = spec.inferencer_config.target_classes, spec.bbox_handler_config.postproc_classes
    for index, name in enumerate(shown):
        if targets and name not in targets:
            place = ("bbox_handler_config", "postproc_classes", index)
            yield Fault(place, f"{{is}}; the target_classes are {', '.join(targets)}")
    for name in shown or targets:
        if handlers and name not in handlers and "default" not in handlers:
            yield Fault.at(HANDLERS, f"has neither an entry for the target class '{name}' nor one for 'default'")


# ---- Dataset conversion ----------------------------------------------------------------------------------------------


def check_export(spec: spec_pb2.DatasetExportConfig) -> Iterator[Fault]:
    """Finds what dataset_convert cannot use."""
    for required in _EXPORT_REQUIRED:
        yield from _missing(spec, required)
    yield from _out_of_range(spec, _EXPORT_RANGES)
    yield from spec_fields.refusals(spec, spec_fields.REFUSED_IN_EXPORT)
    if spec.HasField("kitti_config"):
        yield from _check_kitti(spec.kitti_config)
    if spec.HasField("coco_config"):
        yield from _check_coco(spec.coco_config)


def _check_kitti(kitti: spec_pb2.KITTIConfig) -> Iterator[Fault]:
    modes = ("random", "sequence")
    if kitti.partition_mode not in modes:
        yield Fault.at("kitti_config.partition_mode", f"{{is}}; {prototext.nearest(kitti.partition_mode, modes)}")
    if kitti.partition_mode == "random" and kitti.num_partitions != 2:
        text = "{is}; partition_mode random makes exactly 2 (fold 0 for validation, fold 1 for training)"
        yield Fault.at("kitti_config.num_partitions", text)
    if kitti.partition_mode == "sequence" and not kitti.kitti_sequence_to_frames_file:
        yield Fault.at("kitti_config.kitti_sequence_to_frames_file", "is missing; partition_mode sequence needs it")
    if not kitti.image_extension.startswith("."):
        yield Fault.at("kitti_config.image_extension", f'{{is}}; write ".{kitti.image_extension}", with the dot')


def _check_coco(coco: spec_pb2.COCOConfig) -> Iterator[Fault]:
    folders, files = len(coco.img_dir_names), len(coco.annotation_files)
    if folders and files and not folders == files == coco.num_partitions:
        text = f"{{is}}; it must equal the number of img_dir_names ({folders}) and of annotation_files ({files})"
        yield Fault.at("coco_config.num_partitions", text)
    if len(coco.num_shards) not in (1, coco.num_partitions):
        text = f"has {len(coco.num_shards)} values; give one for all partitions or one for each"
        yield Fault.at("coco_config.num_shards", text)
