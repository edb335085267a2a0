"""Every field of TAO's schema is honoured, refused by name, or without effect for a reason: one of the three."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from components.detectnet_v2 import spec_fields, spec_pb2

ROOT = Path(__file__).resolve().parent.parent

# By block, the fields that change what the engine does.
HONOURED = {
    "Experiment": {
        "": "random_seed",
        "dataset_config": "image_extension target_class_mapping validation_fold dataloader_mode sampling_mode",
        "dataset_config.data_sources": "tfrecords_path image_directory_path source_weight",
        "dataset_config.validation_data_source": "tfrecords_path image_directory_path source_weight",
        "augmentation_config.preprocessing": "output_image_width output_image_height output_image_min output_image_max "
        "enable_auto_resize crop_left crop_top crop_right crop_bottom min_bbox_width min_bbox_height scale_width "
        "scale_height",
        "augmentation_config.spatial_augmentation": "hflip_probability vflip_probability zoom_min zoom_max "
        "translate_max_x translate_max_y rotate_rad_max rotate_probability",
        "augmentation_config.color_augmentation": "color_shift_stddev hue_rotation_max saturation_shift_max "
        "contrast_scale_max contrast_center",
        "postprocessing_config.target_class_config.clustering_config": "coverage_threshold minimum_bounding_box_height "
        "clustering_algorithm dbscan_eps dbscan_min_samples dbscan_confidence_threshold nms_iou_threshold "
        "nms_confidence_threshold",
        "model_config": "pretrained_model_file freeze_pretrained_layers num_layers use_pooling use_batch_norm "
        "dropout_rate freeze_bn freeze_blocks arch load_graph all_projections allow_loaded_model_modification",
        "model_config.objective_set.bbox": "scale offset",
        "evaluation_config": "validation_period_during_training first_validation_epoch "
        "minimum_detection_ground_truth_overlap average_precision_mode",
        "evaluation_config.evaluation_box_config": "minimum_height maximum_height minimum_width maximum_width",
        "cost_function_config": "enable_autoweighting max_objective_weight min_objective_weight",
        "cost_function_config.target_classes": "name class_weight coverage_foreground_weight",
        "cost_function_config.target_classes.objectives": "name initial_weight weight_target",
        "training_config": "batch_size_per_gpu num_epochs checkpoint_interval",
        "training_config.learning_rate.soft_start_annealing_schedule": "min_learning_rate max_learning_rate soft_start "
        "annealing",
        "training_config.learning_rate.early_stopping_annealing_schedule": "min_learning_rate max_learning_rate "
        "soft_start_epochs annealing_epochs patience_steps",
        "training_config.learning_rate.cosine_annealing_schedule": "min_learning_rate max_learning_rate warm_up",
        "open_engine": "fit resampling grid_stride box_loss coverage_loss ema_decay object_balance",
        "open_engine.random_crop": "view_share view_epochs zoom_min zoom_max object_probability hflip_probability "
        "rotate_rad_max rotate_probability min_object_height min_visible_share mosaic_probability "
        "copy_paste_probability blur_probability jpeg_probability grey_probability",
        "open_engine.teacher": "model_file weight",
        "training_config.regularizer": "type weight",
        "training_config.optimizer.adam": "epsilon beta1 beta2",
        "training_config.cost_scaling": "enabled initial_exponent increment decrement",
        "training_config.visualizer": "enabled num_images scalar_logging_frequency infrequent_logging_frequency",
        "training_config.visualizer.target_class_config": "coverage_threshold",
        "bbox_rasterizer_config": "deadzone_radius",
        "bbox_rasterizer_config.target_class_config": "cov_center_x cov_center_y cov_radius_x cov_radius_y "
        "bbox_min_radius",
        "loss_mask_label_filter": "mask_multiplier preserve_ground_truth",
        "loss_mask_label_filter.objective_label_filter_configs.label_filter.source_class_label_filter": ""
        "source_class_names",
    },
    "Inference": {
        "inferencer_config": "batch_size image_height image_width target_classes",
        "inferencer_config.tlt_config": "model",
        "bbox_handler_config": "kitti_dump disable_overlay overlay_linewidth postproc_classes",
        "bbox_handler_config.classwise_bbox_handler_config": "output_map",
        "bbox_handler_config.classwise_bbox_handler_config.bbox_color": "R G B",
        "bbox_handler_config.classwise_bbox_handler_config.clustering_config": "coverage_threshold "
        "minimum_bounding_box_height clustering_algorithm dbscan_eps dbscan_min_samples dbscan_confidence_threshold "
        "nms_iou_threshold nms_confidence_threshold",
    },
    "DatasetExportConfig": {
        "kitti_config": "root_directory_path image_dir_name label_dir_name kitti_sequence_to_frames_file "
        "image_extension num_partitions num_shards partition_mode val_split",
        "coco_config": "root_directory_path img_dir_names annotation_files num_partitions num_shards",
        "sample_modifier_config": "filter_samples_containing_only dominant_target_classes "
        "minimum_target_class_imbalance num_duplicates max_training_samples source_to_target_class_mapping",
    },
}
REFUSED = {
    "Experiment": spec_fields.REFUSED_IN_EXPERIMENT,
    "Inference": spec_fields.REFUSED_IN_INFERENCE,
    "DatasetExportConfig": spec_fields.REFUSED_IN_EXPORT,
}
WITHOUT_EFFECT = {
    "Experiment": spec_fields.WITHOUT_EFFECT_IN_EXPERIMENT,
    "Inference": spec_fields.WITHOUT_EFFECT_IN_INFERENCE,
    "DatasetExportConfig": spec_fields.WITHOUT_EFFECT_IN_EXPORT,
}
KINDS = sorted(HONOURED)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _leaves(message: Descriptor, whole: set[str], path: str = "") -> Iterator[str]:
    """Yields the paths of all fields that hold values; a block in `whole` counts as one."""
    for field in message.fields:
        here = f"{path}.{field.name}".lstrip(".")
        inner = field.message_type
        if _is_map(field):
            inner = inner.fields_by_name["value"].message_type
        if inner is None or here in whole:
            yield here
        else:
            yield from _leaves(inner, whole, here)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_honoured_or_refused_or_without_effect(kind: str):
    honoured = [f"{block}.{name}".lstrip(".") for block, names in HONOURED[kind].items() for name in names.split()]
    refused = [field.path for field in REFUSED[kind]]
    idle = [field.path for field in WITHOUT_EFFECT[kind]]
    described = [*honoured, *refused, *idle]
    assert len(described) == len(set(described)), "a field stands in two lists"
    walked = _leaves(getattr(spec_pb2, kind).DESCRIPTOR, set(refused))
    assert sorted(walked) == sorted(described)


@pytest.mark.parametrize("kind", KINDS)
def test_every_honoured_field_is_read_by_the_engine(kind: str):
    folder = ROOT / "components/detectnet_v2"
    sources = [file for file in folder.glob("*.py") if not file.name.startswith(("spec", "prototext"))]
    code = "\n".join(file.read_text() for file in sources)
    names = {name for names in HONOURED[kind].values() for name in names.split()}
    # The loader itself reads the one (all but one architecture are refused); the others' names are put together.
    elsewhere = {"arch", "image_width", "image_height"}
    assert {name for name in names - elsewhere if not re.search(rf"\.{name}\b", code)} == set()


def _set(message: Message, path: str, harmless: tuple[object, ...] = ()) -> None:
    """Sets the field at a path, in new entries of the maps and lists on the way, to a value that is not harmless."""
    name, _, rest = path.partition(".")
    field = message.DESCRIPTOR.fields_by_name[name]
    if rest:
        value = getattr(message, name)
        if _is_map(field):
            value = value["face"]
        elif field.is_repeated:
            value = value.add()
        else:
            value.SetInParent()
        _set(value, rest, harmless)
    elif field.message_type is not None and not _is_map(field):
        value = getattr(message, name)
        value.add() if field.is_repeated else value.SetInParent()
    elif _is_map(field):
        getattr(message, name)["face"] = 2 if field.message_type.fields_by_name["value"].type == 2 else "other"
    else:
        text = field.type == FieldDescriptor.TYPE_STRING
        wanted = next(value for value in (("other",) if text else (1, 2)) if value not in harmless)
        if field.is_repeated:
            getattr(message, name).append(wanted)
        else:
            setattr(message, name, wanted)


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind in KINDS for field in REFUSED[kind]], ids=lambda value: str(value)[:60]
)
def test_refused_field_is_named_with_what_to_do_instead(kind: str, field: spec_fields.Refused):
    message = getattr(spec_pb2, kind)()
    assert list(spec_fields.refusals(message, [field])) == []
    _set(message, field.path, field.harmless)
    (fault,) = spec_fields.refusals(message, [field])
    assert [part for part in fault.path if part in field.path.split(".")] == field.path.split(".")
    assert fault.text.endswith(field.advice)


@pytest.mark.parametrize(
    ("kind", "field"),
    [(kind, field) for kind in KINDS for field in WITHOUT_EFFECT[kind]],
    ids=lambda value: str(value)[:60],
)
def test_field_without_effect_is_named_with_the_reason_and_without_its_value(
    kind: str, field: spec_fields.WithoutEffect
):
    message = getattr(spec_pb2, kind)()
    assert list(spec_fields.effectless(message, [field])) == []
    _set(message, field.path)
    (fault,) = spec_fields.effectless(message, [field])
    assert fault.text == f"has no effect: {field.reason}"


def test_relu_and_three_channels_are_no_wish_for_anything_else():
    message = spec_pb2.Experiment()
    message.model_config.activation.activation_type = "relu"
    message.augmentation_config.preprocessing.output_image_channel = 3
    message.training_config.visualizer.wandb_config.enabled = False
    assert list(spec_fields.refusals(message, spec_fields.REFUSED_IN_EXPERIMENT)) == []
