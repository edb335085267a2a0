"""The schema against TAO's messages, written down here as TAO's reference lists them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from components.detectnet_v2 import spec_pb2

ROOT = Path(__file__).resolve().parent.parent

# By message: type and names of its fields. One type differs: TAO 5 has `int32 dbscan_min_samples`; the float reads the
# specs of 3.x and 4.0 too.
TAO = {
    "AdamOptimizerConfig": "float epsilon, beta1, beta2",
    "AugmentationConfig": "AugmentationConfig.Preprocessing preprocessing; "
    "AugmentationConfig.SpatialAugmentation spatial_augmentation; "
    "AugmentationConfig.ColorAugmentation color_augmentation",
    "AugmentationConfig.Preprocessing": "uint32 output_image_width, output_image_height, output_image_min, "
    "output_image_max; bool enable_auto_resize; uint32 output_image_channel, crop_left, crop_top, crop_right, "
    "crop_bottom; float min_bbox_width, min_bbox_height, scale_width, scale_height",
    "AugmentationConfig.SpatialAugmentation": "float hflip_probability, vflip_probability, zoom_min, zoom_max, "
    "translate_max_x, translate_max_y, rotate_rad_max, rotate_probability",
    "AugmentationConfig.ColorAugmentation": "float color_shift_stddev, hue_rotation_max, saturation_shift_max, "
    "contrast_scale_max, contrast_center",
    "BboxRasterizerConfig": "map<string,BboxRasterizerConfig.TargetClassConfig> target_class_config; "
    "float deadzone_radius",
    "BboxRasterizerConfig.TargetClassConfig": "float cov_center_x, cov_center_y, cov_radius_x, cov_radius_y, "
    "bbox_min_radius",
    "COCOConfig": "string root_directory_path; repeated string img_dir_names, annotation_files; "
    "uint32 num_partitions; repeated uint32 num_shards",
    "CostFunctionConfig": "repeated CostFunctionConfig.TargetClass target_classes; bool enable_autoweighting; "
    "float max_objective_weight, min_objective_weight",
    "CostFunctionConfig.TargetClass": "string name; float class_weight, coverage_foreground_weight; "
    "repeated CostFunctionConfig.Objective objectives",
    "CostFunctionConfig.Objective": "string name; float initial_weight, weight_target",
    "CostScalingConfig": "bool enabled; double initial_exponent, increment, decrement",
    "DatasetConfig": "repeated DataSource data_sources; string image_extension; "
    "map<string,string> target_class_mapping; uint32 validation_fold; DataSource validation_data_source; "
    "DatasetConfig.DATALOADER_MODE dataloader_mode; DatasetConfig.SAMPLING_MODE sampling_mode",
    "DataSource": "string tfrecords_path, image_directory_path; float source_weight",
    "DatasetExportConfig": "COCOConfig coco_config; KITTIConfig kitti_config; "
    "DatasetExportConfig.SampleModifierConfig sample_modifier_config; string image_directory_path; "
    "map<string,string> target_class_mapping",
    "DatasetExportConfig.SampleModifierConfig": "repeated string filter_samples_containing_only, "
    "dominant_target_classes; map<string,float> minimum_target_class_imbalance; "
    "uint32 num_duplicates, max_training_samples; map<string,string> source_to_target_class_mapping",
    "KITTIConfig": "string root_directory_path, image_dir_name, label_dir_name, point_clouds_dir, calibrations_dir, "
    "kitti_sequence_to_frames_file, image_extension; uint32 num_partitions, num_shards; string partition_mode; "
    "float val_split",
    "EarlyStoppingAnnealingScheduleConfig": "float min_learning_rate, max_learning_rate; "
    "uint32 soft_start_epochs, annealing_epochs, patience_steps",
    "EvaluationConfig": "uint32 validation_period_during_training, first_validation_epoch, "
    "early_stopping_patience_steps; map<string,float> minimum_detection_ground_truth_overlap; "
    "map<string,EvaluationConfig.EvaluationBoxConfig> evaluation_box_config; "
    "EvaluationConfig.AP_MODE average_precision_mode",
    "EvaluationConfig.EvaluationBoxConfig": "int32 minimum_height, maximum_height, minimum_width, maximum_width",
    "Experiment": "uint32 random_seed; DatasetConfig dataset_config; AugmentationConfig augmentation_config; "
    "PostProcessingConfig postprocessing_config; ModelConfig model_config; EvaluationConfig evaluation_config; "
    "CostFunctionConfig cost_function_config; TrainingConfig training_config; "
    "BboxRasterizerConfig bbox_rasterizer_config; ObjectiveLabelFilter loss_mask_label_filter; "
    "repeated DatasetExportConfig dataset_export_config",
    "Inference": "InferencerConfig inferencer_config; BboxHandlerConfig bbox_handler_config",
    "BboxHandlerConfig": "bool kitti_dump, disable_overlay; int32 overlay_linewidth; "
    "map<string,BboxHandlerConfig.ClasswiseBboxHandlerConfig> classwise_bbox_handler_config; "
    "repeated string postproc_classes; WandBConfig wandb_config",
    "BboxHandlerConfig.ClasswiseBboxHandlerConfig": "ClusteringConfig clustering_config; "
    "string confidence_model, output_map; BboxHandlerConfig.BboxColor bbox_color",
    "BboxHandlerConfig.BboxColor": "int32 R, G, B",
    "InferencerConfig": "TLTConfig tlt_config; TensorRTConfig tensorrt_config; "
    "repeated string input_nodes, output_nodes; "
    "int32 batch_size, image_height, image_width, image_channels, gpu_index; repeated string target_classes; "
    "int32 stride",
    "TLTConfig": "string model",
    "TensorRTConfig": "TensorRTConfig.Parser parser; string caffemodel, prototxt, uff_model, etlt_model; "
    "TensorRTConfig.BackendDataType backend_data_type; bool save_engine; string trt_engine; "
    "CalibratorConfig calibrator_config",
    "CalibratorConfig": "string calibration_cache, calibration_tensorfile; int32 n_batches",
    "LabelFilter": "BboxDimensionsLabelFilter bbox_dimensions_label_filter; "
    "BboxCropLabelFilter bbox_crop_label_filter; SourceClassLabelFilter source_class_label_filter",
    "BboxDimensionsLabelFilter": "float min_width, min_height, max_width, max_height",
    "BboxCropLabelFilter": "float crop_left, crop_right, crop_top, crop_bottom",
    "SourceClassLabelFilter": "repeated string source_class_names",
    "ObjectiveLabelFilter": "repeated ObjectiveLabelFilter.ObjectiveLabelFilterConfig objective_label_filter_configs; "
    "float mask_multiplier; bool preserve_ground_truth",
    "ObjectiveLabelFilter.ObjectiveLabelFilterConfig": "LabelFilter label_filter; "
    "repeated string target_class_names, objective_names",
    "LearningRateConfig": "SoftStartAnnealingScheduleConfig soft_start_annealing_schedule; "
    "EarlyStoppingAnnealingScheduleConfig early_stopping_annealing_schedule",
    "SoftStartAnnealingScheduleConfig": "float min_learning_rate, max_learning_rate, soft_start, annealing",
    "ModelConfig": "string pretrained_model_file; bool freeze_pretrained_layers, allow_loaded_model_modification; "
    "int32 num_layers; bool use_pooling, use_batch_norm; float dropout_rate; ModelConfig.Activation activation; "
    "ModelConfig.ObjectiveSet objective_set; ModelConfig.TrainingPrecision training_precision; bool freeze_bn; "
    "repeated float freeze_blocks; string arch; bool load_graph, all_projections",
    "ModelConfig.Activation": "string activation_type; map<string,float> activation_parameters",
    "ModelConfig.ObjectiveSet": "ModelConfig.BboxObjective bbox; ModelConfig.CovObjective cov",
    "ModelConfig.BboxObjective": "string input; float scale, offset",
    "ModelConfig.CovObjective": "string input",
    "ModelConfig.TrainingPrecision": "ModelConfig.TrainingPrecision.BackendFloatx backend_floatx",
    "OptimizerConfig": "AdamOptimizerConfig adam",
    "RegularizerConfig": "RegularizerConfig.RegularizationType type; float weight",
    "PostProcessingConfig": "map<string,PostProcessingConfig.TargetClassConfig> target_class_config",
    "PostProcessingConfig.TargetClassConfig": "ClusteringConfig clustering_config; ConfidenceConfig confidence_config",
    "ClusteringConfig": "float coverage_threshold; int32 minimum_bounding_box_height; "
    "ClusteringConfig.ClusteringAlgorithm clustering_algorithm; float dbscan_eps, dbscan_min_samples; "
    "int32 neighborhood_size; float dbscan_confidence_threshold, nms_iou_threshold, nms_confidence_threshold",
    "ConfidenceConfig": "float confidence_threshold; string confidence_model_filename, normalization_mode",
    "TrainingConfig": "uint32 batch_size_per_gpu, num_epochs; LearningRateConfig learning_rate; "
    "RegularizerConfig regularizer; OptimizerConfig optimizer; CostScalingConfig cost_scaling; "
    "uint32 checkpoint_interval; bool enable_qat; VisualizerConfig visualizer",
    "VisualizerConfig": "bool enabled; uint32 num_images, scalar_logging_frequency, infrequent_logging_frequency; "
    "map<string,VisualizerConfig.TargetClassConfig> target_class_config; WandBConfig wandb_config; "
    "ClearMLConfig clearml_config",
    "VisualizerConfig.TargetClassConfig": "float coverage_threshold",
    "WandBConfig": "bool enabled; string key, project, entity; bool reinit; string name; repeated string tags; "
    "string wandb_dir, notes; WandBConfig.MODE mode",
    "ClearMLConfig": "string project, task; repeated string tags; "
    "bool reuse_last_task_id, continue_last_task, deferred_init",
}
# By enum: names in the order of their numbers, from 0.
ENUMS = {
    "DatasetConfig.DATALOADER_MODE": "MULTISOURCE LEGACY DEFAULT",
    "DatasetConfig.SAMPLING_MODE": "USER_DEFINED PROPORTIONAL UNIFORM",
    "EvaluationConfig.AP_MODE": "SAMPLE INTEGRATE",
    "TensorRTConfig.Parser": "ETLT UFF CAFFE",
    "TensorRTConfig.BackendDataType": "FP32 FP16 INT8",
    "ModelConfig.TrainingPrecision.BackendFloatx": "FLOAT32 FLOAT16 INVALID",
    "RegularizerConfig.RegularizationType": "NO_REG L1 L2",
    "ClusteringConfig.ClusteringAlgorithm": "DBSCAN NMS HYBRID",
    "WandBConfig.MODE": "ONLINE OFFLINE DISABLED",
}
ONEOFS = {
    "DatasetConfig": {"dataset_split_type": "validation_fold validation_data_source"},
    "DatasetExportConfig": {"convert_config_type": "coco_config kitti_config"},
    "InferencerConfig": {"model_config_type": "tlt_config tensorrt_config"},
    "LabelFilter": {
        "label_filter_params": "bbox_dimensions_label_filter bbox_crop_label_filter source_class_label_filter"
    },
    "LearningRateConfig": {"learning_rate": "soft_start_annealing_schedule early_stopping_annealing_schedule"},
    "OptimizerConfig": {"optimizer": "adam"},
}
# What this engine has beyond TAO's: messages, and where they stand.
OWN = ("OpenEngineConfig", "CosineAnnealingScheduleConfig")
OWN_FIELDS = {("Experiment", "open_engine"), ("LearningRateConfig", "cosine_annealing_schedule")}
SCALARS = {1: "double", 2: "float", 5: "int32", 8: "bool", 9: "string", 13: "uint32"}
PACKAGE = f"{spec_pb2.DESCRIPTOR.package}."


def messages_of(descriptor: Descriptor) -> dict[str, Descriptor]:
    found = {descriptor.full_name.removeprefix(PACKAGE): descriptor}
    for nested in descriptor.nested_types:
        if not nested.GetOptions().map_entry:
            found |= messages_of(nested)
    return found


MESSAGES = {
    name: message
    for top in spec_pb2.DESCRIPTOR.message_types_by_name.values()
    for name, message in messages_of(top).items()
    if not name.startswith(OWN)
}


def type_of(field: FieldDescriptor) -> str:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (type_of(field.message_type.fields_by_name[name]) for name in ("key", "value"))
        return f"map<{key},{value}>"
    named = field.message_type or field.enum_type
    name = named.full_name.removeprefix(PACKAGE) if named else SCALARS[field.type]
    return f"repeated {name}" if field.is_repeated else name


def test_schema_has_every_message_and_field_of_tao_and_no_other():
    expected = {}
    for message, groups in TAO.items():
        fields = expected[message] = {}
        for group in groups.split("; "):
            kind, names = re.fullmatch(r"((?:repeated )?\S+) (.+)", group).groups()
            fields.update(dict.fromkeys(names.split(", "), kind))
    found = {
        name: {f.name: type_of(f) for f in message.fields if (name, f.name) not in OWN_FIELDS}
        for name, message in MESSAGES.items()
    }
    assert found == expected


def test_schema_has_the_enums_and_oneofs_of_tao():
    enums = {
        enum.full_name.removeprefix(PACKAGE): {value.number: value.name for value in enum.values}
        for message in MESSAGES.values()
        for enum in message.enum_types
    }
    assert enums == {name: dict(enumerate(values.split())) for name, values in ENUMS.items()}
    oneofs = {
        name: {
            oneof.name: " ".join(field.name for field in oneof.fields if (name, field.name) not in OWN_FIELDS)
            for oneof in message.oneofs
        }
        for name, message in MESSAGES.items()
        if message.oneofs
    }
    # A field of which it is known whether it is set stands in a oneof of its own.
    assert oneofs.pop("ClusteringConfig") == {"_dbscan_min_samples": "dbscan_min_samples"}
    assert oneofs == ONEOFS


@pytest.mark.parametrize("proto", ["components/detectnet_v2/spec.proto", "components/formats/example.proto"])
def test_generated_modules_are_those_of_the_schema(proto: str, tmp_path: Path):
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed; nothing to generate with")
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    subprocess.run([*command, proto], cwd=ROOT, check=True)
    stem = proto.removesuffix(".proto")
    for suffix in ("_pb2.py", "_pb2.pyi"):
        fresh, kept = (tmp_path / f"{stem}{suffix}").read_text(), (ROOT / f"{stem}{suffix}").read_text()
        # Another release of protoc stamps another version; the schema is what must agree.
        assert _without_versions(fresh) == _without_versions(kept), f"{stem}{suffix} is stale: generate it again"


def _without_versions(generated: str) -> str:
    return re.sub(r"(?m)^(# Protobuf Python Version.*|    \d+,)$", "", generated)
