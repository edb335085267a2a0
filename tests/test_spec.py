import contextlib
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spec_texts import CONVERSION, FACENET_TAO_4_0, INFERENCE

from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.prototext import MapKey, display, locate, read
from components.detectnet_v2.spec import load_dataset_export, load_experiment, load_inference
from components.detectnet_v2.visualizer import scalar_logs_per_epoch
from components.step import UserError

ROOT = Path(__file__).resolve().parent.parent


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


# ---- Specs that load -------------------------------------------------------------------------------------------------


def test_tao_4_0_facenet_spec_loads_with_one_warning_about_its_float_min_samples(tmp_path: Path):
    spec = _load(tmp_path, FACENET_TAO_4_0)
    (warning,) = spec.warnings
    line = _line_of("dbscan_min_samples", FACENET_TAO_4_0)
    assert warning.startswith(f"{spec.path}:{line}: ")
    assert "dbscan_min_samples is 0.03" in warning
    assert "taken as written; TAO 5 evaluates with at least 1" in warning
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
    text = _edited("  checkpoint_interval: 10\n", "  visualizer { enabled: true }\n", text)
    text = _edited("zoom_min: 0.7\n    zoom_max: 1.8", "rotate_rad_max: 0.1", text)
    spec = _load(tmp_path, text).message
    assert spec.model_config.num_layers == 18
    assert spec.training_config.checkpoint_interval == 10
    assert spec.training_config.visualizer.num_images == 3
    assert spec.training_config.visualizer.infrequent_logging_frequency == 1
    assert spec.training_config.visualizer.scalar_logging_frequency == 0  # depends on the steps of an epoch
    assert spec.dataset_config.data_sources[0].source_weight == 1
    assert spec.dataset_config.validation_data_source.source_weight == 1
    spatial = spec.augmentation_config.spatial_augmentation
    assert (spatial.zoom_min, spatial.zoom_max, spatial.rotate_probability) == (1, 1, 1)
    clustering = spec.postprocessing_config.target_class_config["face"].clustering_config
    assert clustering.nms_confidence_threshold == 0  # the default of 0.1 is that of inference


def test_inference_spec_gets_the_defaults_of_tao(tmp_path: Path):
    spec = _load(tmp_path, INFERENCE, load_inference)
    clustering = spec.message.bbox_handler_config.classwise_bbox_handler_config["face"].clustering_config
    assert spec.message.inferencer_config.stride == 16
    assert clustering.nms_iou_threshold == pytest.approx(0.3)
    assert clustering.nms_confidence_threshold == pytest.approx(0.1)
    assert spec.warnings == ()


def test_inference_spec_without_sizes_leaves_them_to_the_model_and_says_so(tmp_path: Path):
    text = re.sub(r"  (image_width|image_height|image_channels|batch_size): \d+\n", "", INFERENCE)
    spec = _load(tmp_path, text, load_inference)
    config = spec.message.inferencer_config
    assert (config.image_width, config.image_height, config.image_channels, config.batch_size) == (0, 0, 3, 1)
    assert [re.search(r"\.(\w+) is not set: ([^;]+);", warning).groups() for warning in spec.warnings] == [
        ("image_width", "the model has its own"),
        ("image_height", "the model has its own"),
        ("image_channels", "3"),
        ("batch_size", "1"),
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("num_layers: 18", "num_layers: 50 all_projections: true use_pooling: true dropout_rate: 0.1 freeze_bn: true"),
        ("load_graph: true", 'pretrained_model_file: "m.hdf5" freeze_pretrained_layers: true freeze_blocks: [0, 1, 2]'),
        ("clustering_algorithm: DBSCAN", "clustering_algorithm: HYBRID"),
        ("enabled: false initial_exponent", "enabled: true initial_exponent"),
        ("average_precision_mode: INTEGRATE", "average_precision_mode: SAMPLE"),
        ("  checkpoint_interval: 10", "  visualizer { enabled: true num_images: 4 scalar_logging_frequency: 5 }"),
        ("image_directory_path", "source_weight: 0.5 image_directory_path"),
        ('image_extension: "png"', 'image_extension: "png" dataloader_mode: DEFAULT sampling_mode: UNIFORM'),
        ('image_extension: "png"', 'image_extension: "png" dataloader_mode: LEGACY sampling_mode: PROPORTIONAL'),
        ("output_image_channel: 3", "enable_auto_resize: true output_image_min: 416 output_image_max: 736"),
        ("output_image_channel: 3", "crop_left: 8 crop_right: 744 crop_top: 0 crop_bottom: 416 scale_width: 1.5"),
        ("hflip_probability: 0.5", "vflip_probability: 0.5 rotate_rad_max: 0.1 rotate_probability: 0.5"),
    ],
)
def test_setting_of_tao_is_accepted(old: str, new: str, tmp_path: Path):
    _load(tmp_path, _edited(old, new))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("load_graph: true", "use_pooling: true", "strides 1, 2, 2, 1"),
        ("load_graph: true", "freeze_pretrained_layers: true", "pretrained_model_file is not set"),
        ("load_graph: true", "freeze_blocks: 0", "pretrained_model_file is not set: these blocks keep their random"),
        ("random_seed: 42", "random_seed: 7 random_seed: 42", "random_seed is given twice, first on line 1; the last"),
        ("hflip_probability: 0.5", "vflip_probability: 0.5", "TAO 5 ignores it"),
        ("hflip_probability: 0.5", "rotate_rad_max: 0.1", "TAO 5 reads it as degrees"),
        ("  checkpoint_interval: 10", '  visualizer { wandb_config { key: "abc123" } }', "holds a secret"),
    ],
)
def test_setting_that_works_otherwise_than_thought_is_warned_of(old: str, new: str, expected: str, tmp_path: Path):
    text = _edited(old, new, _edited("min_samples: 0.03", "min_samples: 1"))
    spec = _load(tmp_path, text)
    (warning,) = spec.warnings
    assert expected in warning
    assert f":{_line_of(new.strip(), text)}: " in warning
    assert "abc123" not in warning


def test_rotation_in_radians_is_not_warned_of_where_tao_reads_radians_too(tmp_path: Path):
    text = _edited("hflip_probability: 0.5", "rotate_rad_max: 0.1", _edited("min_samples: 0.03", "min_samples: 1"))
    text = _edited('image_extension: "png"', 'image_extension: "png" dataloader_mode: DEFAULT', text)
    assert _load(tmp_path, text).warnings == ()


EARLY = """early_stopping_annealing_schedule {
      min_learning_rate: 5e-06 max_learning_rate: 5e-04 soft_start_epochs: 2 annealing_epochs: 3 patience_steps: 10
    }"""


def _with_early_stopping(text: str = FACENET_TAO_4_0) -> str:
    return re.sub(r"soft_start_annealing_schedule \{[^}]*\}", EARLY, text)


def test_early_stopping_schedule_waits_for_a_validation_and_no_longer_than_the_training(tmp_path: Path):
    _load(tmp_path, _with_early_stopping())
    for patience in (9, 101):
        text = _edited("patience_steps: 10", f"patience_steps: {patience}", _with_early_stopping())
        expected = "it must be from validation_period_during_training (10) to num_epochs (100)"
        assert expected in _refusal(tmp_path, text)


def test_early_stopping_without_validation_data_is_refused(tmp_path: Path):
    without = re.sub(r"  validation_data_source .*\n", "", FACENET_TAO_4_0)
    refusal = _refusal(tmp_path, _with_early_stopping(without))
    assert "needs validation_data_source or validation_fold" in refusal


@pytest.mark.parametrize(
    ("written", "steps", "expected"), [(0, 10, 10), (0, 500, 10), (0, 3, 3), (3, 3, 3), (50, 500, 50)]
)
def test_scalars_are_logged_as_often_as_asked_for_and_the_default_fits_the_epoch(
    written: int, steps: int, expected: int
):
    config = spec_pb2.VisualizerConfig(scalar_logging_frequency=written)
    logs, warning = scalar_logs_per_epoch(config, steps)
    assert logs == expected
    assert ("instead of 10 times" in warning) == (written == 0 and steps < 10)


def test_more_scalar_logs_than_steps_are_refused_where_they_were_asked_for():
    with pytest.raises(
        UserError, match="scalar_logging_frequency is 11, but an epoch has 6 steps; set it to 6 or less"
    ):
        scalar_logs_per_epoch(spec_pb2.VisualizerConfig(scalar_logging_frequency=11), 6)


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
        ("cov { }", "cov { } cov { }", "model_config.objective_set.cov is given twice, first on line 47; keep one"),
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
        ('arch: "resnet"', 'arch: "vgg"', 'use arch: "resnet" with num_layers: 10, 18, 34 or 50'),
        ('arch: "resnet"', 'arch: "resnt"', "did you mean 'resnet'?"),
        ('arch: "resnet"', 'arch: "squeezenet"', 'is "squeezenet", which this engine does not train'),
        ("num_layers: 18", "num_layers: 101", "num_layers is 101; this engine trains 10, 18, 34 or 50"),
        ("load_graph: true", "freeze_blocks: 5", "freeze_blocks[0] is 5; it must be from 0 to 4"),
        ("load_graph: true", "freeze_blocks: nan", "freeze_blocks[0] is nan; it must be a finite number"),
        ("load_graph: true", "dropout_rate: 1", "dropout_rate is 1; it must be at least 0 and less than 1"),
        ("output_image_channel: 3", "output_image_max: 800", "output_image_max is 800, which limits what"),
        (
            "output_image_channel: 3",
            "crop_left: 8 crop_right: 8 crop_bottom: 416",
            "crop_right is 8; it must be more than crop_left (8)",
        ),
        ("output_image_channel: 3", "crop_right: 640 crop_bottom: 416", "640 pixels from crop_left; the crop must be"),
        ("output_image_channel: 3", "scale_width: -1", "scale_width is -1; it must be at least 0"),
        ("load_graph: true", "freeze_blocks: 1.5", "freeze_blocks[0] is 1.5; blocks have whole numbers"),
        ("scale: 35.0", "scale: 0", "objective_set.bbox.scale is 0; it must be more than 0"),
        ("offset: 0.5", "offset: -1", "it must be at least 0"),
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
        ("  checkpoint_interval: 10", "  enable_qat: true", "then `gridbox convert int8`"),
        ("FLOAT32", "FLOAT16", "train with --use_amp"),
        (
            "  checkpoint_interval: 10",
            "  visualizer { enabled: true infrequent_logging_frequency: 101 }",
            "infrequent_logging_frequency is 101, in epochs, more than num_epochs (100)",
        ),
        ("cov_radius_x: 1.0", "cov_radius_x: 1.1", '["face"].cov_radius_x is 1.1; it must be more than 0 and at most'),
        ("cov_radius_x: 1.0", "cov_radius_x: 0", '["face"].cov_radius_x is 0; it must be more than 0'),
        ("cov_radius_y: 1.0", "cov_radius_y: 0", '["face"].cov_radius_y is 0; it must be more than 0'),
        ("bbox_min_radius: 1.0", "bbox_min_radius: 0.0", '["face"].bbox_min_radius is 0.0; it must be more than 0'),
        ("cov_radius_x: 1.0 ", "", '["face"].cov_radius_x is not set; it must be more than 0'),
        ("cov_radius_y: 1.0 ", "", '["face"].cov_radius_y is not set; it must be more than 0'),
        ("bbox_min_radius: 1.0", "", '["face"].bbox_min_radius is not set; it must be more than 0'),
        ("deadzone_radius: 0.67", "deadzone_radius: 67", "deadzone_radius is 67; it must be from 0 to 1"),
        ('image_extension: "png"', 'image_extension: ".png"', 'image_extension is ".png"; write "png"'),
        ('key: "face" value: "face"', 'key: "face" value: "head"', "maps no label to the target class 'face'"),
        ("regularizer { type: L1 weight: 3e-09 }", "enable_qat: false", "training_config.regularizer is missing"),
        ("cov { }", "", "model_config.objective_set.cov is missing; it is required"),
        ("adam { epsilon: 1e-08 beta1: 0.9 beta2: 0.999 }", "", "training_config.optimizer.adam is missing"),
        ('tfrecords_path: "/data/tfrecords/kitti_train-*"', "source_weight: 1", "tfrecords_path is missing"),
        ('tfrecords_path: "/data/tfrecords/kitti_val-*"', "source_weight: 1", "tfrecords_path is missing"),
        (
            "image_directory_path",
            "source_weight: -2 image_directory_path",
            "source_weight is -2; it must be more than 0",
        ),
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
        ("  batch_size: 16\n", "  batch_size: -1\n", "inferencer_config.batch_size is -1; it must be at least 1"),
        ('  target_classes: "face"\n', "", "inferencer_config.target_classes is missing; it is required"),
        ('tlt_config { model: "model.safetensors" }', "", "needs tlt_config or tensorrt_config"),
        ('tlt_config { model: "model.safetensors" }', "tensorrt_config { }", "exported ONNX model in tlt_config"),
        ("image_channels: 3", "image_channels: 1", "the networks read three channels"),
        ("image_channels: 3", "stride: 8 image_channels: 3", "the networks have a stride of 16"),
        ('"aggregate_cov"', '"mlp"', 'confidence_model is "mlp", which this engine does not honour'),
        ('confidence_model: "aggregate_cov"', "", "confidence_model is missing; it is required, except for NMS"),
        ("dbscan_min_samples: 1", "dbscan_min_samples: -1", "dbscan_min_samples is -1; it must be at least 0"),
        ("G: 255", "G: 256", "bbox_color.G is 256; it must be from 0 to 255"),
        ("kitti_dump: true", 'postproc_classes: "dog"', 'postproc_classes[0] is "dog"; the target_classes are face'),
        ('key: "face"', 'key: "dog"', "neither an entry for the target class 'face' nor one for 'default'"),
    ],
)
def test_mistake_in_an_inference_spec_is_refused(old: str, new: str, expected: str, tmp_path: Path):
    assert expected in _refusal(tmp_path, _edited(old, new, INFERENCE), load_inference)


def test_classes_that_are_not_shown_need_no_handler(tmp_path: Path):
    text = _edited('target_classes: "face"', 'target_classes: "face" target_classes: "plate"', INFERENCE)
    assert "for the target class 'plate'" in _refusal(tmp_path, text, load_inference)
    _load(tmp_path, _edited("kitti_dump: true", 'postproc_classes: "face"', text), load_inference)


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
            'sample_modifier_config { minimum_target_class_imbalance { key: "car" value: -1 } } image_directory_path',
            'minimum_target_class_imbalance["car"] is -1; it must be at least 0',
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
KNOWN = set(re.findall(r"\b\w+(?= = \d+;)", (ROOT / "components/detectnet_v2/spec.proto").read_text()))


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
