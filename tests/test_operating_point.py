"""The score at which F1 is best: chosen by training's last validation, kept with the weights it is of, and exported."""

import json
import shutil

import pytest
from discs import detectnet_v2, edit, experiment_spec

from components.decode.description import operating_point
from components.vision.checkpoint import load_network


@pytest.fixture(scope="module")
def spec(tmp_path_factory, kitti, records):
    file = experiment_spec(tmp_path_factory.mktemp("spec"), kitti, records)
    # A dozen epochs tell where a disc is, not yet how large.
    return edit(
        file, ('ground_truth_overlap { key: "face" value: 0.5', 'ground_truth_overlap { key: "face" value: 0.05')
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, spec):
    """The results directory of a training."""
    results = tmp_path_factory.mktemp("trained")
    assert train(spec, results) == 0
    return results


def train(spec, results, *options):
    return detectnet_v2("train", "-e", spec, "-r", results, "-n", "face", "--width", 0.25, *options)


def stored(results):
    return load_network(results / "weights" / "face.safetensors").config.operating_point


def test_it_is_where_f1_is_best_on_the_validation_images(trained, spec, tmp_path):
    model = trained / "weights" / "face.safetensors"
    assert detectnet_v2("evaluate", "-e", spec, "-m", model, "-r", tmp_path / "scored") == 0
    figures = json.loads((tmp_path / "scored" / "metrics.json").read_text())
    best = figures["best_f1"]["face"]
    assert best["recall"] > 0
    assert stored(trained)["face"] == pytest.approx(best["threshold"], rel=1e-4)


def test_a_training_that_was_killed_after_its_last_validation_still_knows_it(trained, spec, tmp_path):
    results = shutil.copytree(trained, tmp_path / "killed")
    shutil.rmtree(results / "weights")  # the last thing that a training writes
    assert train(spec, results) == 0
    assert stored(results) == stored(trained)


def test_other_detections_or_other_weights_have_another_one(trained, spec, tmp_path):
    def exported(name, model, *options):
        assert detectnet_v2("export", "-m", model, "-o", tmp_path / name / "model.onnx", *options) == 0
        return operating_point(json.loads((tmp_path / name / "model.json").read_text()))

    model = trained / "weights" / "face.safetensors"
    assert exported("own clusters", model, "-e", spec) == stored(trained)
    other = tmp_path / "other.txt"
    other.write_text(spec.read_text())
    edit(other, (r"nms_iou_threshold: [\d.]+", "nms_iou_threshold: 0.2"))
    assert exported("other clusters", model, "-e", other) == {}
    pruned = tmp_path / "pruned.safetensors"
    assert detectnet_v2("prune", "-m", model, "-o", pruned, "-pth", 0.1) == 0
    assert load_network(pruned).config.operating_point == {}


def test_detections_of_tao5s_defects_choose_none(spec, tmp_path):
    assert train(spec, tmp_path / "results", "--compat", "tao5") == 0
    assert stored(tmp_path / "results") == {}
