"""The program `detectnet_v2` on a small set of drawn discs, from labels to an exported model."""

import json
import os
import re

import cv2
import h5py
import numpy as np
import pytest
import torch
from discs import HEIGHT, WIDTH, detectnet_v2, experiment_spec, write_spec
from networks import small_network

from components.formats.kitti import parse_labels
from components.vision.checkpoint import load_network, load_tensors, save_network
from components.vision.predictor import load_predictor
from components.vision.training import TrainingState


@pytest.fixture(scope="module")
def trained(kitti, records, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    spec = experiment_spec(folder, kitti, records)
    assert detectnet_v2("train", "-e", spec, "-r", folder / "results", "-n", "discs", "--width", 0.125) == 0
    return folder / "results", spec


def test_training_leaves_taos_results_and_a_falling_loss(trained):
    results, _ = trained
    assert (results / "weights/discs.safetensors").is_file()
    assert (results / "experiment_spec.txt").is_file()
    lines = [json.loads(line) for line in (results / "status.json").read_text().splitlines()]
    assert [lines[0]["status"], lines[-1]["status"]] == ["STARTED", "SUCCESS"]
    losses = [line["graphical"]["loss"] for line in lines if "graphical" in line]
    assert len(losses) == 12
    assert losses[-1] < losses[0]


def test_an_interrupted_training_ends_with_the_very_same_weights(trained, kitti, records, tmp_path, monkeypatch):
    reference, _ = trained
    spec = experiment_spec(tmp_path, kitti, records)
    arguments = ("train", "-e", spec, "-r", tmp_path / "results", "-n", "discs", "--width", 0.125)
    save = TrainingState.save

    def interrupted(state, results):
        if state.epoch == 2:
            raise KeyboardInterrupt
        save(state, results)

    monkeypatch.setattr(TrainingState, "save", interrupted)
    assert detectnet_v2(*arguments) == 130
    assert not (tmp_path / "results/weights").exists()
    monkeypatch.undo()
    assert detectnet_v2(*arguments) == 0
    ours, _ = load_tensors(tmp_path / "results/weights/discs.safetensors")
    theirs, _ = load_tensors(reference / "weights/discs.safetensors")
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_a_results_directory_of_another_training_is_refused(trained, kitti, records, tmp_path, capsys):
    results, _ = trained
    spec = experiment_spec(tmp_path, kitti, records, epochs=5)
    assert detectnet_v2("train", "-e", spec, "-r", results, "-n", "discs", "--width", 0.125) == 2
    assert "other settings" in capsys.readouterr().err


def test_a_training_needs_no_names_of_spec_and_results_where_it_can_know_them(
    kitti, records, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "0")
    spec = experiment_spec(tmp_path, kitti, records, epochs=1)
    assert detectnet_v2("train", "-e", spec, "--width", 0.125, "--launch_cuda_blocking", "--mpirun-arg", "-x A") == 0
    said = capsys.readouterr()
    assert "without effect, processes are started by torchrun: --mpirun-arg" in said.err
    assert os.environ["CUDA_LAUNCH_BLOCKING"] == "1"
    (results,) = (tmp_path / "experiments").iterdir()
    assert re.fullmatch(r"detectnet_v2_\d{8}_\d{6}", results.name)
    assert f"Results: {results}\n" in said.out
    before = (results / "weights/model.safetensors").read_bytes()
    assert detectnet_v2("train", "-r", results, "--width", 0.125) == 0
    assert (results / "weights/model.safetensors").read_bytes() == before


def test_calibration_batches_stand_where_tao_reads_them(kitti, records, tmp_path, capsys):
    spec = experiment_spec(tmp_path, kitti, records, batch_size=3)
    file = tmp_path / "calibration.tensor"
    assert detectnet_v2("calibration_tensorfile", "-e", spec, "-o", file, "--use_validation_set") == 0
    assert "1 batches of 3 images" in capsys.readouterr().out  # of four, whole ones only
    with h5py.File(file) as stored:
        assert (stored.attrs["count"], tuple(stored.attrs["shape"])) == (1, (3, 3, HEIGHT, WIDTH))
        assert list(stored) == ["_tensorfile_array_key__0"]
        batch = stored["_tensorfile_array_key__0/_tensorfile_array_key_"][()]
    first = cv2.imread(str(kitti / "validation/images/000.png"))[..., ::-1].transpose(2, 0, 1) / 255
    assert batch.dtype == np.float32
    np.testing.assert_allclose(batch[0], first, atol=1e-6)
    assert detectnet_v2("calibration_tensorfile", "-e", spec, "-o", file) == 2
    assert "exists already" in capsys.readouterr().err
    assert detectnet_v2("calibration_tensorfile", "-e", spec, "-o", tmp_path / "more", "-m", 99) == 2
    assert "ask for 1 to" in capsys.readouterr().err


def test_the_workflow_prunes_retrains_exports_and_scores_alike(trained, kitti, records, tmp_path, capsys):
    results, spec = trained
    model = results / "weights/discs.safetensors"
    pruned = tmp_path / "pruned.safetensors"
    options = ("-nf", 4, "-pg", 4, "--target-ratio", 0.6, "--results_dir", tmp_path / "prune")
    assert detectnet_v2("prune", "-m", model, "-o", pruned, *options) == 0
    ratio = float(re.search(r"Pruning ratio .*: ([\d.]+)", capsys.readouterr().out).group(1))
    assert ratio <= 0.6
    respec = experiment_spec(tmp_path, kitti, records, "retrain", pruned, epochs=1)
    assert detectnet_v2("train", "-e", respec, "-r", tmp_path / "retrain") == 0
    retrained = tmp_path / "retrain/weights/model.safetensors"
    assert load_network(retrained).config.backbone == load_network(pruned).config.backbone

    exported = tmp_path / "exported"
    assert detectnet_v2("export", "-m", model, "-o", exported / "model.onnx", "-e", spec) == 0
    assert (exported / "labels.txt").read_text() == "face\n"
    description = json.loads((exported / "model.json").read_text())
    assert description["class_names"] == ["face"]
    assert description["parameters"] == load_predictor(model).parameters
    scores = []
    for name, file in (("torch", model), ("onnx", exported / "model.onnx")):
        assert detectnet_v2("evaluate", "-e", spec, "-m", file, "-r", tmp_path / name) == 0
        scores.append(json.loads((tmp_path / name / "metrics.json").read_text())["mean_average_precision"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


@pytest.mark.parametrize("words", [("-el", "conv1", "block_1a_conv_1"), ("-el", "conv1", "-el", "block_1a_conv_1")])
def test_several_layers_may_follow_one_option(trained, tmp_path, words):
    model = trained[0] / "weights/discs.safetensors"
    before = load_network(model).config.backbone.channels
    options = ("-pth", 2, "-nf", 4, "-pg", 4, *words, "--results_dir", tmp_path / "r")
    assert detectnet_v2("prune", "-m", model, "-o", tmp_path / "pruned", *options) == 0
    after = load_network(tmp_path / "pruned.safetensors").config.backbone.channels
    assert after["conv1"] == before["conv1"]
    assert after["block_1a_conv_1"] == before["block_1a_conv_1"]
    assert after["block_4a_conv_1"] == 4


def test_inference_writes_overlays_and_labels_in_the_images_own_pixels(kitti, tmp_path):
    network = small_network(width=0.125)
    network.expect(0.5, 0.5)
    save_network(tmp_path / "net.safetensors", network)
    source = tmp_path / "images"
    source.mkdir()
    image = cv2.imread(str(kitti / "validation/images/000.png"))
    cv2.imwrite(str(source / "plain.png"), image)
    cv2.imwrite(str(source / "double.png"), image.repeat(2, axis=0).repeat(2, axis=1))
    spec = write_spec(tmp_path, "inference", image_width=WIDTH, image_height=HEIGHT, batch_size=2,
                      model=tmp_path / "net.safetensors")  # fmt: skip
    thresholds = r"(coverage_threshold|nms_confidence_threshold|minimum_bounding_box_height): [\d.]+"
    spec.write_text(re.sub(thresholds, r"\1: 0", spec.read_text()))
    assert detectnet_v2("inference", "-e", spec, "-i", source, "-r", tmp_path / "out") == 0
    assert cv2.imread(str(tmp_path / "out/images_annotated/double.png")).shape == (HEIGHT * 2, WIDTH * 2, 3)
    plain, double = (
        parse_labels((tmp_path / f"out/labels/{name}.txt").read_text(), name) for name in ("plain", "double")
    )
    assert len(plain) == len(double) > 0
    for one, other in zip(plain, double, strict=True):
        assert one.score == other.score is not None
        np.testing.assert_allclose(np.array(one.box) * 2, other.box, atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train",), "-e: name the experiment spec"),
        (("evaluate",), "Missing option"),
        (("calibration_tensorfile", "-e", "nowhere.txt", "-o", "x"), "nowhere.txt"),
        (("train", "-e", "nowhere.txt", "-r", "r"), "nowhere.txt"),
        (("prune", "-m", "model.tlt", "-o", "p"), "encrypted by TAO"),
        (("prune", "-m", "m", "-o", "p", "-n", "L7"), "L7"),
        (("evaluate", "-m", "model.etlt", "-e", "nowhere.txt"), "nowhere.txt"),
        (("paint",), "paint"),
    ],
)
def test_a_mistake_costs_one_line_and_exit_code_2(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert detectnet_v2(*arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1


def test_every_task_explains_itself(capsys):
    tasks = "dataset_convert train evaluate prune inference export calibration_tensorfile pretrained"
    for task in tasks.split():
        assert detectnet_v2(task, "--help") == 0
        assert "Usage: detectnet_v2" in capsys.readouterr().out
