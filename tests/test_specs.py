"""The spec templates: complete, known placeholders only, accepted by the engine's own schema, and TAO's values."""

import pytest

from components.detectnet_v2 import spec
from components.detectnet_v2.stage import PLACEHOLDERS, render_spec
from components.tao.rendering import FAMILIES, placeholders, render, template_text

SPECS = FAMILIES / "detectnet_v2/specs"
NAMES = sorted(path.relative_to(SPECS).with_suffix("").as_posix() for path in SPECS.rglob("*.txt"))
KINDS = {"train": "experiment", "retrain": "experiment", "convert": "convert", "inference": "inference"}
LOADERS = {
    "experiment": spec.load_experiment,
    "convert": spec.load_dataset_export,
    "inference": spec.load_inference,
}
VALUES = {
    "image_width": 736,
    "image_height": 416,
    "epochs": 100,
    "batch_size": 32,
    "learning_rate": 5e-4,
    "minimum_learning_rate": 5e-6,
    "seed": 42,
    "minimum_height": 4,
}


def load(tmp_path, name):
    kind = KINDS[name.partition("/")[2]]
    values = {key: VALUES.get(key, f"/data/{key}") for key in PLACEHOLDERS[kind]}
    file = tmp_path / "spec.txt"
    file.write_text(render(template_text(name), values))
    return LOADERS[kind](file)


def test_every_profile_has_all_four_specs():
    folders = ("facedetect", "facedetect-cpu", "facedetect-open")
    assert set(NAMES) == {f"{folder}/{name}" for folder in folders for name in KINDS}


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("train")])
def test_only_specs_that_nvidias_program_never_sees_name_what_it_refuses(tmp_path, name):
    assert load(tmp_path, name).message.HasField("open_engine") is not name.startswith("facedetect/")


@pytest.mark.parametrize("name", NAMES)
def test_spec_passes_the_engines_own_checks_without_a_warning(tmp_path, name):
    assert load(tmp_path, name).warnings == ()


@pytest.mark.parametrize("name", NAMES)
def test_spec_fits_a_parameter(name):
    assert len(template_text(name).encode()) < 16 * 1024


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("train")])
def test_every_named_value_of_an_experiment_is_used(name):
    known = set(PLACEHOLDERS["experiment"])
    assert placeholders(template_text(name)) == known


def test_train_has_taos_values(tmp_path):
    message = load(tmp_path, "facedetect/train").message
    size = message.augmentation_config.preprocessing
    assert (size.output_image_width, size.output_image_height) == (736, 416)
    assert message.random_seed == 42
    assert (message.model_config.arch, message.model_config.num_layers) == ("resnet", 18)
    clustering = message.postprocessing_config.target_class_config["face"].clustering_config
    assert clustering.dbscan_min_samples == 0  # each cell counts
    assert clustering.coverage_threshold == pytest.approx(0.004)
    ramp = message.training_config.learning_rate.soft_start_annealing_schedule
    assert (ramp.min_learning_rate, ramp.max_learning_rate) == pytest.approx((5e-6, 5e-4))
    assert message.training_config.regularizer.weight == pytest.approx(3e-9)
    assert not message.HasField("loss_mask_label_filter")


def test_retrain_loads_the_pruned_graph_without_regulariser(tmp_path):
    for name in ("facedetect/retrain", "facedetect-cpu/retrain"):
        message = load(tmp_path, name).message
        assert message.model_config.load_graph
        assert message.model_config.pretrained_model_file == "/data/pretrained_model"
        assert message.training_config.regularizer.type == 0  # NO_REG


def test_cpu_spec_masks_ignored_regions(tmp_path):
    mask = load(tmp_path, "facedetect-cpu/train").message.loss_mask_label_filter
    (entry,) = mask.objective_label_filter_configs
    assert entry.label_filter.source_class_label_filter.source_class_names == ["dontcare"]
    assert mask.mask_multiplier == 0


def test_spec_without_pretrained_weights_passes_too(tmp_path):
    values = {key: VALUES.get(key, "x") for key in PLACEHOLDERS["experiment"]}
    for name in (name for name in NAMES if name.endswith("train")):
        file = tmp_path / "spec.txt"
        file.write_text(render_spec(template_text(name), {**values, "pretrained_model": ""}))
        message = spec.load_experiment(file).message
        assert not message.model_config.pretrained_model_file
        assert not message.model_config.load_graph
