"""The engine learns: a dozen synthetic images by heart."""

import json
import re
import shutil
import time

import pytest
from discs import detectnet_v2, write_spec

from components.tao.workplace import unpack
from components.widerface.convert import Conversion, convert
from components.widerface.synthesize import synthesize

IMAGES, WIDTH, HEIGHT, SMALLEST = 12, 320, 192, 24


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """The images with the most faces of at least 24 pixels; smaller ones are regions in which nothing counts."""
    root = tmp_path_factory.mktemp("faces")
    synthesize(root / "raw", 60, 1, seed=5, width=2 * WIDTH, height=2 * HEIGHT)
    conversion = Conversion(
        width=WIDTH, height=HEIGHT, grayscale=False, min_face_height=SMALLEST, small_faces="ignore",
        invalid_faces="keep", occluded_faces="keep", max_images=0,
    )  # fmt: skip
    convert(root / "raw", root / "kitti", conversion)
    everything = unpack(root / "kitti", "training", root / "all")
    counts = {file: file.read_text().count("face ") for file in sorted((everything / "labels").iterdir())}
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    for label in sorted(counts, key=counts.__getitem__, reverse=True)[:IMAGES]:
        shutil.copy(label, root / "labels")
        shutil.copy(everything / "images" / f"{label.stem}.png", root / "images")
    spec = write_spec(root, "convert", root=root)
    assert detectnet_v2("dataset_convert", "-d", spec, "-o", root / "records/kitti") == 0
    return root


def learn(faces, folder, epochs):
    """Trains by TAO's recipe, not augmented; returns the losses, the metrics on the same images and the time."""
    spec = write_spec(
        folder, "train", training_records=faces / "records", validation_records=faces / "records",
        images_training=faces, images_validation=faces, image_width=WIDTH, image_height=HEIGHT, epochs=epochs,
        batch_size=6, learning_rate=0.012, minimum_learning_rate=0.00012, seed=1, minimum_height=SMALLEST,
    )  # fmt: skip
    text = re.sub(r"pretrained_model_file: .*\n", "", spec.read_text())
    for old, new in (
        (r"  color_augmentation \{.*?\n  \}\n", ""),
        (r"open_engine \{.*?\n\}\n", ""),
        (r"cosine_annealing_schedule", "soft_start_annealing_schedule"),
        (r"warm_up: 0.02", "soft_start: 0.05 annealing: 0.5"),
        (r'name: "bbox" initial_weight: 1.0', 'name: "bbox" initial_weight: 150.0'),
    ):
        text, found = re.subn(old, new, text, flags=re.DOTALL)
        assert found == 1, old
    spec.write_text(text)
    begin = time.monotonic()
    assert detectnet_v2("train", "-e", spec, "-r", folder / "r", "--width", 0.25) == 0
    seconds = time.monotonic() - begin
    assert detectnet_v2("evaluate", "-e", spec, "-m", folder / "r/weights", "-r", folder / "e") == 0
    lines = [json.loads(line) for line in (folder / "r/status.json").read_text().splitlines()]
    losses = [line["graphical"]["loss"] for line in lines if "graphical" in line]
    return losses, json.loads((folder / "e/metrics.json").read_text()), seconds


def test_the_loss_falls_within_seconds(faces, tmp_path):
    losses, metrics, _ = learn(faces, tmp_path, epochs=60)
    assert losses[-1] < 0.35 * losses[0]
    assert metrics["mean_average_precision"] > 0.3


@pytest.mark.long
def test_a_dozen_images_are_learnt_by_heart_within_two_minutes(faces, tmp_path):
    _, metrics, seconds = learn(faces, tmp_path, epochs=200)
    assert metrics["objects"] >= 40
    assert metrics["mean_average_precision"] >= 0.99
    assert seconds < 120
