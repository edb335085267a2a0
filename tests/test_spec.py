import contextlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor
from hypothesis import given
from hypothesis import strategies as st

from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.prototext import MapKey, display, locate, read
from components.detectnet_v2.spec import load_dataset_export, load_experiment, load_inference
from components.step import UserError

ROOT = Path(__file__).resolve().parent.parent

# The values of TAO's facenet training spec of release 4.0, with its float dbscan_min_samples.
FACENET_TAO_4_0 = """\
random_seed: 42
dataset_config {
  data_sources { tfrecords_path: "/data/tfrecords/kitti_train-*" image_directory_path: "/data/training" }
  image_extension: "png"
  target_class_mapping { key: "face" value: "face" }
  validation_data_source { tfrecords_path: "/data/tfrecords/kitti_val-*" image_directory_path: "/data/validation" }
}
augmentation_config {
  preprocessing {
    output_image_width: 736
    output_image_height: 416
    output_image_channel: 3
    min_bbox_width: 1.0
    min_bbox_height: 1.0
  }
  spatial_augmentation {
    hflip_probability: 0.5
    zoom_min: 0.7
    zoom_max: 1.8
    translate_max_x: 12.0
    translate_max_y: 12.0
  }
  color_augmentation { hue_rotation_max: 25.0 saturation_shift_max: 0.2 contrast_scale_max: 0.1 contrast_center: 0.5 }
}
postprocessing_config {
  target_class_config {
    key: "face"
    value {
      clustering_config {
        clustering_algorithm: DBSCAN
        coverage_threshold: 0.004
        dbscan_eps: 0.15
        dbscan_min_samples: 0.03
        dbscan_confidence_threshold: 0.9
        minimum_bounding_box_height: 4
      }
    }
  }
}
model_config {
  arch: "resnet"
  num_layers: 18
  load_graph: true
  use_batch_norm: true
  objective_set {
    bbox { scale: 35.0 offset: 0.5 }
    cov { }
  }
  training_precision { backend_floatx: FLOAT32 }
}
evaluation_config {
  validation_period_during_training: 10
  first_validation_epoch: 1
  minimum_detection_ground_truth_overlap { key: "face" value: 0.5 }
  evaluation_box_config {
    key: "face"
    value { minimum_height: 4 maximum_height: 9999 minimum_width: 4 maximum_width: 9999 }
  }
  average_precision_mode: INTEGRATE
}
cost_function_config {
  target_classes {
    name: "face"
    class_weight: 1.0
    coverage_foreground_weight: 0.05
    objectives { name: "cov" initial_weight: 1.0 weight_target: 1.0 }
    objectives { name: "bbox" initial_weight: 10.0 weight_target: 10.0 }
  }
  enable_autoweighting: true
  max_objective_weight: 0.9999
  min_objective_weight: 0.0001
}
training_config {
  batch_size_per_gpu: 32
  num_epochs: 100
  learning_rate {
    soft_start_annealing_schedule {
      min_learning_rate: 5e-06
      max_learning_rate: 5e-04
      soft_start: 0.1
      annealing: 0.7
    }
  }
  regularizer { type: L1 weight: 3e-09 }
  optimizer { adam { epsilon: 1e-08 beta1: 0.9 beta2: 0.999 } }
  cost_scaling { enabled: false initial_exponent: 20.0 increment: 0.005 decrement: 1.0 }
  checkpoint_interval: 10
}
bbox_rasterizer_config {
  target_class_config {
    key: "face"
    value { cov_center_x: 0.5 cov_center_y: 0.5 cov_radius_x: 1.0 cov_radius_y: 1.0 bbox_min_radius: 1.0 }
  }
  deadzone_radius: 0.67
}
"""

INFERENCE = """\
inferencer_config {
  target_classes: "face"
  image_width: 736
  image_height: 416
  image_channels: 3
  batch_size: 16
  tlt_config { model: "model.safetensors" }
}
bbox_handler_config {
  kitti_dump: true
  overlay_linewidth: 2
  classwise_bbox_handler_config {
    key: "face"
    value {
      confidence_model: "aggregate_cov"
      output_map: "face"
      bbox_color { R: 0 G: 255 B: 0 }
      clustering_config {
        clustering_algorithm: DBSCAN
        coverage_threshold: 0.005
        dbscan_eps: 0.3
        dbscan_min_samples: 1
      }
    }
  }
}
"""

CONVERSION = """\
kitti_config {
  root_directory_path: "/data/training"
  image_dir_name: "images"
  label_dir_name: "labels"
  partition_mode: "random"
  num_partitions: 2
  val_split: 10
  num_shards: 10
}
image_directory_path: "/data/training"
"""

# Every message of the schema as TAO writes it: field names by type; "map" and "repeated" are kept apart by a prefix.
SCHEMA = {
    "AdamOptimizerConfig": "float epsilon beta1 beta2",
    "AugmentationConfig": "message preprocessing spatial_augmentation color_augmentation",
    "AugmentationConfig.Preprocessing": "uint32 output_image_width output_image_height output_image_min "
    "output_image_max; bool enable_auto_resize; uint32 output_image_channel crop_left crop_top crop_right crop_bottom; "
    "float min_bbox_width min_bbox_height scale_width scale_height",
    "AugmentationConfig.SpatialAugmentation": "float hflip_probability vflip_probability zoom_min zoom_max "
    "translate_max_x translate_max_y rotate_rad_max rotate_probability",
    "AugmentationConfig.ColorAugmentation": "float color_shift_stddev hue_rotation_max saturation_shift_max "
    "contrast_scale_max contrast_center",
    "BboxRasterizerConfig": "map target_class_config; float deadzone_radius",
    "BboxRasterizerConfig.TargetClassConfig": "float cov_center_x cov_center_y cov_radius_x cov_radius_y "
    "bbox_min_radius",
    "COCOConfig": "string root_directory_path; repeated img_dir_names annotation_files num_shards; "
    "uint32 num_partitions",
    "CostFunctionConfig": "repeated target_classes; bool enable_autoweighting; float max_objective_weight "
    "min_objective_weight",
    "CostFunctionConfig.TargetClass": "string name; float class_weight coverage_foreground_weight; repeated objectives",
    "CostFunctionConfig.Objective": "string name; float initial_weight weight_target",
    "CostScalingConfig": "bool enabled; double initial_exponent increment decrement",
    "DatasetConfig": "repeated data_sources; string image_extension; map target_class_mapping; uint32 validation_fold; "
    "message validation_data_source; enum dataloader_mode sampling_mode",
    "DataSource": "string tfrecords_path image_directory_path; float source_weight",
    "DatasetExportConfig": "message coco_config kitti_config sample_modifier_config; string image_directory_path; "
    "map target_class_mapping",
    "DatasetExportConfig.SampleModifierConfig": "repeated filter_samples_containing_only dominant_target_classes; "
    "map minimum_target_class_imbalance source_to_target_class_mapping; uint32 num_duplicates max_training_samples",
    "KITTIConfig": "string root_directory_path image_dir_name label_dir_name point_clouds_dir calibrations_dir "
    "kitti_sequence_to_frames_file image_extension partition_mode; uint32 num_partitions num_shards; float val_split",
    "EarlyStoppingAnnealingScheduleConfig": "float min_learning_rate max_learning_rate; uint32 soft_start_epochs "
    "annealing_epochs patience_steps",
    "EvaluationConfig": "uint32 validation_period_during_training first_validation_epoch "
    "early_stopping_patience_steps; map minimum_detection_ground_truth_overlap evaluation_box_config; "
    "enum average_precision_mode",
    "EvaluationConfig.EvaluationBoxConfig": "int32 minimum_height maximum_height minimum_width maximum_width",
    "Experiment": "uint32 random_seed; message dataset_config augmentation_config postprocessing_config model_config "
    "evaluation_config cost_function_config training_config bbox_rasterizer_config loss_mask_label_filter; "
    "repeated dataset_export_config",
    "Inference": "message inferencer_config bbox_handler_config",
    "BboxHandlerConfig": "bool kitti_dump disable_overlay; int32 overlay_linewidth; map classwise_bbox_handler_config; "
    "repeated postproc_classes; message wandb_config",
    "BboxHandlerConfig.ClasswiseBboxHandlerConfig": "message clustering_config bbox_color; "
    "string confidence_model output_map",
    "BboxHandlerConfig.BboxColor": "int32 R G B",
    "InferencerConfig": "message tlt_config tensorrt_config; repeated input_nodes output_nodes target_classes; "
    "int32 batch_size image_height image_width image_channels gpu_index stride",
    "TLTConfig": "string model",
    "TensorRTConfig": "enum parser backend_data_type; string caffemodel prototxt uff_model etlt_model trt_engine; "
    "bool save_engine; message calibrator_config",
    "CalibratorConfig": "string calibration_cache calibration_tensorfile; int32 n_batches",
    "LabelFilter": "message bbox_dimensions_label_filter bbox_crop_label_filter source_class_label_filter",
    "BboxDimensionsLabelFilter": "float min_width min_height max_width max_height",
    "BboxCropLabelFilter": "float crop_left crop_right crop_top crop_bottom",
    "SourceClassLabelFilter": "repeated source_class_names",
    "ObjectiveLabelFilter": "repeated objective_label_filter_configs; float mask_multiplier; "
    "bool preserve_ground_truth",
    "ObjectiveLabelFilter.ObjectiveLabelFilterConfig": "message label_filter; repeated target_class_names "
    "objective_names",
    "LearningRateConfig": "message soft_start_annealing_schedule early_stopping_annealing_schedule",
    "SoftStartAnnealingScheduleConfig": "float min_learning_rate max_learning_rate soft_start annealing",
    "ModelConfig": "string pretrained_model_file arch; bool freeze_pretrained_layers allow_loaded_model_modification "
    "use_pooling use_batch_norm freeze_bn load_graph all_projections; int32 num_layers; float dropout_rate; "
    "message activation objective_set training_precision; repeated freeze_blocks",
    "ModelConfig.Activation": "string activation_type; map activation_parameters",
    "ModelConfig.ObjectiveSet": "message bbox cov",
    "ModelConfig.BboxObjective": "string input; float scale offset",
    "ModelConfig.CovObjective": "string input",
    "ModelConfig.TrainingPrecision": "enum backend_floatx",
    "OptimizerConfig": "message adam",
    "RegularizerConfig": "enum type; float weight",
    "PostProcessingConfig": "map target_class_config",
    "PostProcessingConfig.TargetClassConfig": "message clustering_config confidence_config",
    # dbscan_min_samples: int32 in TAO 5, float here, for the specs of 3.x and 4.0.
    "ClusteringConfig": "float coverage_threshold dbscan_eps dbscan_min_samples dbscan_confidence_threshold "
    "nms_iou_threshold nms_confidence_threshold; int32 minimum_bounding_box_height neighborhood_size; "
    "enum clustering_algorithm",
    "ConfidenceConfig": "float confidence_threshold; string confidence_model_filename normalization_mode",
    "TrainingConfig": "uint32 batch_size_per_gpu num_epochs checkpoint_interval; message learning_rate regularizer "
    "optimizer cost_scaling visualizer; bool enable_qat",
    "VisualizerConfig": "bool enabled; uint32 num_images scalar_logging_frequency infrequent_logging_frequency; "
    "map target_class_config; message wandb_config clearml_config",
    "VisualizerConfig.TargetClassConfig": "float coverage_threshold",
    "WandBConfig": "bool enabled reinit; string key project entity name wandb_dir notes; repeated tags; enum mode",
    "ClearMLConfig": "string project task; repeated tags; bool reuse_last_task_id continue_last_task deferred_init",
}
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
    "DatasetConfig": {"dataset_split_type"},
    "DatasetExportConfig": {"convert_config_type"},
    "InferencerConfig": {"model_config_type"},
    "LabelFilter": {"label_filter_params"},
    "LearningRateConfig": {"learning_rate"},
    "OptimizerConfig": {"optimizer"},
}
TYPES = {1: "double", 2: "float", 5: "int32", 8: "bool", 9: "string", 11: "message", 13: "uint32", 14: "enum"}


def _messages(descriptor: Descriptor, prefix: str = "") -> dict[str, Descriptor]:
    name = f"{prefix}{descriptor.name}"
    found = {name: descriptor}
    for nested in descriptor.nested_types:
        if not nested.GetOptions().map_entry:
            found |= _messages(nested, f"{name}.")
    return found


ALL_MESSAGES = {
    name: message
    for top in spec_pb2.DESCRIPTOR.message_types_by_name.values()
    for name, message in _messages(top).items()
}


def _refusal(tmp_path: Path, text: str, load=load_experiment) -> str:
    file = tmp_path / "train.txt"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load(file)
    return str(caught.value).replace(str(file), "train.txt")


def _load(tmp_path: Path, text: str, load=load_experiment):
    file = tmp_path / "train.txt"
    file.write_text(text)
    return load(file)


def _edited(old: str, new: str, text: str = FACENET_TAO_4_0) -> str:
    assert text.count(old) >= 1, old
    return text.replace(old, new, 1)


def _line_of(part: str, text: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), start=1) if part in line)


# ---- The schema ------------------------------------------------------------------------------------------------------


def test_schema_has_every_message_and_field_of_tao_and_no_other():
    def described(message: Descriptor) -> dict[str, str]:
        kinds = {}
        for field in message.fields:
            is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
            kinds[field.name] = "map" if is_map else "repeated" if field.is_repeated else TYPES[field.type]
        return kinds

    expected = {
        name: {field: group.split()[0] for group in fields.split(";") for field in group.split()[1:]}
        for name, fields in SCHEMA.items()
    }
    assert {name: described(message) for name, message in ALL_MESSAGES.items()} == expected


def test_schema_has_the_enums_and_oneofs_of_tao():
    enums = {
        f"{name}.{enum.name}": " ".join(value.name for value in sorted(enum.values, key=lambda value: value.number))
        for name, message in ALL_MESSAGES.items()
        for enum in message.enum_types
    }
    assert enums == ENUMS
    oneofs = {name: {oneof.name for oneof in message.oneofs} for name, message in ALL_MESSAGES.items()}
    assert {name: names for name, names in oneofs.items() if names} == ONEOFS


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


# ---- Specs that load -------------------------------------------------------------------------------------------------


def test_tao_4_0_facenet_spec_loads_with_one_warning_about_its_float_min_samples(tmp_path: Path):
    spec = _load(tmp_path, FACENET_TAO_4_0)
    (warning,) = spec.warnings
    line = _line_of("dbscan_min_samples", FACENET_TAO_4_0)
    assert warning.startswith(f"{spec.path}:{line}: ")
    assert "dbscan_min_samples is 0.03" in warning
    assert "taken as 1" in warning
    clustering = spec.message.postprocessing_config.target_class_config["face"].clustering_config
    assert clustering.dbscan_min_samples == pytest.approx(0.03)
    assert spec.message.random_seed == 42
    assert spec.message.training_config.learning_rate.soft_start_annealing_schedule.max_learning_rate == pytest.approx(
        5e-4
    )
    assert spec.message.evaluation_config.average_precision_mode == spec_pb2.EvaluationConfig.INTEGRATE
    assert spec.text == FACENET_TAO_4_0


@pytest.mark.parametrize("value", ["1", "0", "1.0"])
def test_tao_5_spec_with_whole_min_samples_loads_without_a_warning(value: str, tmp_path: Path):
    assert _load(tmp_path, _edited("min_samples: 0.03", f"min_samples: {value}")).warnings == ()


def test_unset_fields_get_the_defaults_of_tao(tmp_path: Path):
    text = _edited("  num_layers: 18\n", "")
    text = _edited("  checkpoint_interval: 10\n", "", text)
    text = _edited("zoom_min: 0.7\n    zoom_max: 1.8", "", text)
    spec = _load(tmp_path, text).message
    assert spec.model_config.num_layers == 18
    assert spec.training_config.checkpoint_interval == 10
    assert spec.dataset_config.data_sources[0].source_weight == 1
    spatial = spec.augmentation_config.spatial_augmentation
    assert (spatial.zoom_min, spatial.zoom_max) == (1, 1)


def test_inference_spec_gets_the_defaults_of_tao(tmp_path: Path):
    spec = _load(tmp_path, INFERENCE, load_inference)
    clustering = spec.message.bbox_handler_config.classwise_bbox_handler_config["face"].clustering_config
    assert spec.message.inferencer_config.stride == 16
    assert clustering.nms_iou_threshold == pytest.approx(0.3)
    assert clustering.nms_confidence_threshold == pytest.approx(0.1)
    assert spec.warnings == ()


def test_conversion_spec_gets_the_png_extension(tmp_path: Path):
    spec = _load(tmp_path, CONVERSION, load_dataset_export)
    assert spec.message.kitti_config.image_extension == ".png"


def test_variable_in_a_comment_is_no_mistake(tmp_path: Path):
    _load(tmp_path, "# ${nothing} to fill in here\n" + FACENET_TAO_4_0)


def test_other_spellings_of_protobuf_text_are_read(tmp_path: Path):
    text = _edited("random_seed: 42", "\ufeffrandom_seed: 0x2A;")
    text = _edited('arch: "resnet"', "arch: 'res' \"net\",", text)
    text = _edited("training_precision {", "freeze_blocks: [0, 1] training_precision: <", text)
    text = _edited("FLOAT32 }", "0 >", text)
    spec = _load(tmp_path, text).message
    assert (spec.random_seed, spec.model_config.arch) == (42, "resnet")
    assert list(spec.model_config.freeze_blocks) == [0, 1]


def test_upper_case_class_in_the_mapping_is_warned_of(tmp_path: Path):
    text = _edited('{ key: "face" value: "face" }', '{ key: "Face" value: "face" }')
    warnings = " ".join(_load(tmp_path, text).warnings)
    assert ':5: dataset_config.target_class_mapping["Face"] is read as "face"' in warnings


def test_spec_without_validation_data_is_warned_of(tmp_path: Path):
    line = next(line for line in FACENET_TAO_4_0.splitlines() if "validation_data_source" in line)
    warnings = " ".join(_load(tmp_path, _edited(line, "")).warnings)
    assert "neither validation_fold nor validation_data_source" in warnings


# ---- Specs that do not load ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("num_epochs: 100", "num_epoch: 100", "training_config has no field 'num_epoch'; did you mean 'num_epochs'?"),
        ("load_graph: true", "Load_Graph: true", "no field 'Load_Graph'; did you mean 'load_graph'?"),
        ("cost_function_config {", "cost_function {", "Experiment has no field 'cost_function'; did you mean"),
        ("load_graph: true", "num_epochs: 3", "model_config has no field 'num_epochs'; it belongs in training_config"),
        ("clustering_algorithm: DBSCAN", "clustering_algorithm: DBSCN", "not DBSCN; did you mean DBSCAN?"),
        ("clustering_algorithm: DBSCAN", "clustering_algorithm: 7", "must be DBSCAN, NMS or HYBRID, not 7"),
        ("load_graph: true", "load_graph: ture", "must be true or false, not ture; did you mean true?"),
        ("load_graph: true", 'load_graph: "true"', 'must be true or false, not "true"; did you mean true?'),
        ('image_extension: "png"', "image_extension: png", "must be a text in quotes, not png"),
        ("random_seed: 42", "random_seed: -1", "random_seed must be a whole number of at least 0, not -1"),
        ("num_layers: 18", "num_layers: 18.5", "model_config.num_layers must be a whole number, not 18.5"),
        ("dbscan_eps: 0.15", "dbscan_eps: 0,15", "a field's name is expected"),
        ("dbscan_eps: 0.15", "dbscan_eps: small", "must be a number, not small"),
        ("random_seed: 42", "random_seed: 42 random_seed: 43", "random_seed is given twice, first on line 1"),
        ("validation_data_source {", "validation_fold: 0 validation_data_source {", "exclude each other; keep one"),
        ("load_graph: true", "load_graph { }", "model_config.load_graph takes a value, not a block"),
        (
            "adam { epsilon: 1e-08 beta1: 0.9 beta2: 0.999 }",
            "adam: 3",
            "training_config.optimizer.adam is a block: write adam { … }, not 3",
        ),
        ('arch: "resnet"', 'arch: "resnet', 'a text starts with " and does not end on its line'),
        ('arch: "resnet"', 'arch "resnet"', "a ':' or a block is expected after arch"),
        ('arch: "resnet"', "arch:", "arch has no value"),
        ('image_directory_path: "/data/training"', 'image_directory_path: "${data}"', "${data} is not filled in"),
        ("num_epochs: 100", "num_epochs: ${epochs}", "${epochs} is not filled in"),
        ('{ key: "face" value: 0.5 }', "{ value: 0.5 }", "needs a key"),
    ],
)
def test_mistake_in_the_text_is_refused_with_its_line(old: str, new: str, expected: str, tmp_path: Path):
    text = _edited(old, new)
    message = _refusal(tmp_path, text)
    assert expected in message
    assert int(message.split(":")[1]) == _line_of(new, text)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("output_image_width: 736", "output_image_width: 730", "is 730; it must be divisible by 16, for example 736"),
        ("output_image_height: 416", "output_image_height: 0", "is 0; it must be at least 1"),
        ("output_image_channel: 3", "output_image_channel: 2", "is 2, which this engine does not honour"),
        ("hflip_probability: 0.5", "hflip_probability: 1.5", "hflip_probability is 1.5; it must be from 0 to 1"),
        ("zoom_min: 0.7", "zoom_min: 2", "zoom_min is 2, more than zoom_max (1.8)"),
        ("zoom_min: 0.7", "zoom_min: -0.7", "it must be more than 0"),
        ("coverage_threshold: 0.004", "coverage_threshold: -0.1", "must be from 0 to 1"),
        ("dbscan_eps: 0.15", "dbscan_eps: 1.01", "dbscan_eps is 1.01; it must be from 0 to 1"),
        ("dbscan_min_samples: 0.03", "dbscan_min_samples: 4", "dbscan_min_samples is 4; it must be from 0 to 1"),
        ("dbscan_min_samples: 0.03", "dbscan_min_samples: nan", "must be a finite number"),
        ("confidence_threshold: 0.9", "confidence_threshold: 9", "it must be from 0 to 1"),
        ("box_height: 4", "box_height: -4", "it must be at least 0"),
        ("clustering_algorithm: DBSCAN", "clustering_algorithm: HYBRID", "DBSCAN and NMS only"),
        ('arch: "resnet"', 'arch: "vgg"', 'use arch: "resnet" with num_layers: 10 or 18'),
        ('arch: "resnet"', 'arch: "resnt"', "did you mean 'resnet'?"),
        ("num_layers: 18", "num_layers: 101", "num_layers is 101; this engine trains 10 or 18"),
        ("load_graph: true", "use_pooling: true", "use_pooling is true, which this engine does not honour"),
        ("load_graph: true", "freeze_blocks: 5", "freeze_blocks[0] is 5; it must be from 0 to 4"),
        ("load_graph: true", "freeze_blocks: 1.5", "freeze_blocks[0] is 1.5; blocks have whole numbers"),
        ("scale: 35.0", "scale: 0", "objective_set.bbox.scale is 0; it must be more than 0"),
        ("offset: 0.5", "offset: -1", "it must be at least 0"),
        ("FLOAT32", "FLOAT16", "is FLOAT16, which this engine does not honour"),
        ("during_training: 10", "during_training: 0", "it must be at least 1"),
        ("first_validation_epoch: 1", "first_validation_epoch: 0", "first_validation_epoch is 0"),
        ('key: "face" value: 0.5', 'key: "face" value: 1.5', '["face"] is 1.5; it must be from 0 to 1'),
        ('key: "face" value: 0.5', 'key: "fase" value: 0.5', "has no entry for the target class 'face'"),
        ("minimum_height: 4", "minimum_height: 99999", "more than maximum_height (9999)"),
        ("class_weight: 1.0", "class_weight: 0", "no class has a weight"),
        ("coverage_foreground_weight: 0.05", "coverage_foreground_weight: 1", "more than 0 and less than 1"),
        ('objectives { name: "bbox"', 'objectives { name: "box"', "are cov, box; exactly one 'cov' and one 'bbox'"),
        ("max_objective_weight: 0.9999", "max_objective_weight: 2", "it must be from 0 to 1"),
        ("batch_size_per_gpu: 32", "batch_size_per_gpu: 0", "batch_size_per_gpu is 0; it must be at least 1"),
        ("  num_epochs: 100", "  enable_qat: false", "training_config.num_epochs is not set; it must be at least 1"),
        ("min_learning_rate: 5e-06", "min_learning_rate: 0", "min_learning_rate is 0; it must be more than 0"),
        ("min_learning_rate: 5e-06", "min_learning_rate: 1", "min_learning_rate is 1, more than max_learning_rate"),
        ("soft_start: 0.1", "soft_start: 0.8", "soft_start is 0.8, more than annealing (0.7)"),
        ("annealing: 0.7", "annealing: 1", "annealing is 1; it must be at least 0 and less than 1"),
        ("weight: 3e-09", "weight: -1", "regularizer.weight is -1; it must be at least 0"),
        ("epsilon: 1e-08", "epsilon: 0", "adam.epsilon is 0; it must be more than 0"),
        ("epsilon: 1e-08", "epsilon: 1e99", "adam.epsilon is 1e99; it must be a finite number"),
        ("initial_exponent: 20.0", "initial_exponent: 0", "it must be more than 0"),
        ("  checkpoint_interval: 10", "  enable_qat: true", "enable_qat is true, which this engine does not honour"),
        ("cov_radius_x: 1.0", "cov_radius_x: 1.1", '["face"].cov_radius_x is 1.1; it must be from 0 to 1'),
        ("deadzone_radius: 0.67", "deadzone_radius: 67", "deadzone_radius is 67; it must be from 0 to 1"),
        ('image_extension: "png"', 'image_extension: ".png"', 'image_extension is ".png"; write "png"'),
        ('key: "face" value: "face"', 'key: "face" value: "head"', "maps no label to the target class 'face'"),
        ("regularizer { type: L1 weight: 3e-09 }", "enable_qat: false", "training_config.regularizer is missing"),
        ("cov { }", "", "model_config.objective_set.cov is missing; it is required"),
        ("adam { epsilon: 1e-08 beta1: 0.9 beta2: 0.999 }", "", "training_config.optimizer.adam is missing"),
        ('tfrecords_path: "/data/tfrecords/kitti_train-*"', "source_weight: 1", "tfrecords_path is missing"),
        ('tfrecords_path: "/data/tfrecords/kitti_val-*"', "source_weight: 1", "tfrecords_path is missing"),
        ("image_directory_path", "source_weight: 2 image_directory_path", "all sources weigh the same"),
    ],
)
def test_value_that_cannot_work_is_refused_with_its_line(old: str, new: str, expected: str, tmp_path: Path):
    text = _edited(old, new)
    message = _refusal(tmp_path, text)
    assert expected in message
    if "is missing" not in expected and "not set" not in expected and "no entry" not in expected:
        near = _line_of(new, text)
        assert abs(int(message.split(":")[1]) - near) <= 3, message


@pytest.mark.parametrize(
    "block",
    [
        "model_config",
        "training_config",
        "evaluation_config",
        "cost_function_config",
        "augmentation_config",
        "bbox_rasterizer_config",
        "postprocessing_config",
        "dataset_config",
    ],
)
def test_required_block_that_is_absent_is_named(block: str, tmp_path: Path):
    text = re.sub(rf"(?ms)^{block} {{.*?^}}\n", "", FACENET_TAO_4_0)
    assert text != FACENET_TAO_4_0
    assert f"train.txt:1: {block} is missing; it is required" in _refusal(tmp_path, text)


def test_several_mistakes_are_counted_and_the_first_is_named(tmp_path: Path):
    text = _edited("num_epochs", "num_epoch", _edited("random_seed", "random_sead", _edited("0.67", "big")))
    message = _refusal(tmp_path, text)
    assert message.startswith("train.txt:1: Experiment has no field 'random_sead'")
    assert message.endswith("(and 2 more)")


def test_wrong_entry_of_several_is_the_one_whose_line_is_named(tmp_path: Path):
    second = '  target_class_config {\n    key: "dog"\n    value { cov_center_x: 7 }\n  }\n  deadzone_radius: 0.67'
    text = _edited("  deadzone_radius: 0.67", second)
    message = _refusal(tmp_path, text)
    assert message.startswith(f"train.txt:{_line_of('cov_center_x: 7', text)}: ")
    assert 'target_class_config["dog"].cov_center_x is 7' in message


def test_map_key_given_twice_is_refused(tmp_path: Path):
    entry = '  target_class_mapping { key: "face" value: "face" }\n'
    message = _refusal(tmp_path, _edited(entry, entry + entry))
    assert message.startswith('train.txt:6: dataset_config.target_class_mapping["face"] is given twice')


def test_unclosed_block_is_refused_with_the_line_on_which_it_opens(tmp_path: Path):
    text = FACENET_TAO_4_0.removesuffix("}\n")
    line = _line_of("bbox_rasterizer_config", text)
    assert f"the block opened on line {line} is not closed" in _refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("image_width: 736", "image_width: 730", "image_width is 730; it must be divisible by 16"),
        ("  batch_size: 16\n", "", "inferencer_config.batch_size is not set; it must be at least 1"),
        ('  target_classes: "face"\n', "", "inferencer_config.target_classes is missing; it is required"),
        ('tlt_config { model: "model.safetensors" }', "", "needs tlt_config or tensorrt_config"),
        ('tlt_config { model: "model.safetensors" }', "tensorrt_config { }", "give the exported ONNX model"),
        ("image_channels: 3", "image_channels: 1", "the nets read colour; set 3"),
        ("image_channels: 3", "stride: 8 image_channels: 3", "the nets have a stride of 16"),
        ('"aggregate_cov"', '"mlp"', 'confidence_model is "mlp", which this engine does not honour'),
        ('output_map: "face"', "", "output_map is missing"),
        ("G: 255", "G: 256", "bbox_color.G is 256; it must be from 0 to 255"),
        ('key: "face"', 'key: "dog"', "neither an entry for the target class 'face' nor one for 'default'"),
    ],
)
def test_mistake_in_an_inference_spec_is_refused(old: str, new: str, expected: str, tmp_path: Path):
    assert expected in _refusal(tmp_path, _edited(old, new, INFERENCE), load_inference)


def test_inference_spec_may_configure_all_classes_as_default(tmp_path: Path):
    _load(tmp_path, _edited('key: "face"', 'key: "default"', INFERENCE), load_inference)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"random"', '"randon"', "partition_mode is \"randon\"; did you mean 'random'?"),
        ("num_partitions: 2", "num_partitions: 3", "num_partitions is 3; partition_mode random makes exactly 2"),
        ("val_split: 10", "val_split: 100", "val_split is 100; it must be at least 0 and less than 100"),
        ('"random"', '"sequence"', "kitti_sequence_to_frames_file is missing"),
        ("  num_shards: 10", '  image_extension: "png"', 'image_extension is "png"; write ".png"'),
        ('  image_dir_name: "images"\n', "", "kitti_config.image_dir_name is missing"),
        ("kitti_config {", "kittyconfig {", "has no field 'kittyconfig'; did you mean 'kitti_config'?"),
        ("  num_shards: 10", '  calibrations_dir: "calib"', "the detector reads images only"),
        ("kitti_config {", "coco_config { } kitti_config {", "exclude each other"),
        (
            "image_directory_path",
            "sample_modifier_config { num_duplicates: 2 } image_directory_path",
            "sample_modifier_config.num_duplicates is 2, which this engine does not honour",
        ),
        (
            "image_directory_path",
            'sample_modifier_config { dominant_target_classes: "car" } image_directory_path',
            'dominant_target_classes[0] is "car", which this engine does not honour',
        ),
    ],
)
def test_mistake_in_a_conversion_spec_is_refused(old: str, new: str, expected: str, tmp_path: Path):
    assert expected in _refusal(tmp_path, _edited(old, new, CONVERSION), load_dataset_export)


def test_empty_conversion_spec_says_what_it_needs(tmp_path: Path):
    assert "needs coco_config or kitti_config" in _refusal(tmp_path, "", load_dataset_export)


def test_file_that_is_no_text_is_refused(tmp_path: Path):
    file = tmp_path / "train.txt"
    file.write_bytes(b"random_seed: 4\xff2")
    with pytest.raises(UserError, match="no UTF-8 text"):
        load_experiment(file)
    with pytest.raises(UserError, match="cannot be read"):
        load_experiment(tmp_path / "none.txt")
    with pytest.raises(UserError, match="cannot be read"):
        load_experiment(tmp_path)


# ---- Properties ------------------------------------------------------------------------------------------------------

NAMES = [(match.start(), match.group()) for match in re.finditer(r"(?<![\w\"/])[a-z_]\w{3,}(?=:| \{)", FACENET_TAO_4_0)]
KNOWN = {field.name for message in ALL_MESSAGES.values() for field in message.fields}


@given(st.sampled_from(NAMES), st.data())
def test_every_misspelt_field_is_refused_on_its_line_with_the_right_name(name: tuple[int, str], data: st.DataObject):
    start, spelling = name
    position = data.draw(st.integers(1, len(spelling) - 1))
    letter = data.draw(st.sampled_from(["", "x", "_"]))
    wrong = spelling[:position] + letter + spelling[position + 1 :]
    if wrong in KNOWN:
        return
    text = FACENET_TAO_4_0[:start] + wrong + FACENET_TAO_4_0[start + len(spelling) :]
    message = _refusal_of(text)
    assert f":{text[:start].count(chr(10)) + 1}: " in message
    assert f"no field '{wrong}'; did you mean '" in message


def _refusal_of(text: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return _refusal(Path(folder), text)


@given(st.text(alphabet="{}<>[]:;,\"'#\\ \n$ab1-.é", max_size=40))
def test_no_text_brings_forth_anything_but_a_user_error(text: str):
    assert _refusal_of(text).startswith("train.txt:")


@given(st.integers(0, len(FACENET_TAO_4_0) - 1), st.characters(codec="utf-8"))
def test_no_changed_letter_brings_forth_anything_but_a_user_error(position: int, letter: str):
    text = FACENET_TAO_4_0[:position] + letter + FACENET_TAO_4_0[position + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "train.txt"
        file.write_text(text, encoding="utf-8", newline="")
        with contextlib.suppress(UserError):
            load_experiment(file)


def test_fields_are_found_by_their_paths():
    tree = read('a { b: 1 }\na {\n b: 2\n}\nm { key: "k" value: 3 }\nm { key: "l"\n value { b: 4 } }')
    assert locate(tree, ("a", 1, "b")) == (3, "2")
    assert locate(tree, ("m", MapKey("k"))) == (5, "3")
    assert locate(tree, ("m", MapKey("l"), "b")) == (7, "4")
    assert locate(tree, ("m", MapKey("l"), "c")) == (7, None)
    assert locate(tree, ("m", MapKey("none"), "b"))[1] is None
    assert display(("a", 1, "m", MapKey("l"), "b")) == 'a[1].m["l"].b'
