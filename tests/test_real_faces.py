"""Accuracy on real faces, guarded: the quick half; the long one is in test_end_to_end.py."""

import json
import re

import pytest
from discs import detectnet_v2, write_spec

from components.tao.workplace import unpack
from components.widerface.convert import Conversion, convert

IMAGES, SMALLEST = 40, 20


@pytest.fixture(scope="module")
def faces(real_data, tmp_path_factory):
    """Forty real images at their own resolution, and the records of them."""
    root = tmp_path_factory.mktemp("faces")
    convert(
        real_data / "wider_face", root / "kitti",
        Conversion(resolution="source", max_images=IMAGES, validation_share=0),
    )  # fmt: skip
    images = unpack(root / "kitti", "training", root / "images")
    spec = write_spec(root, "convert", root=images, image_extension="jpg")
    assert detectnet_v2("dataset_convert", "-d", spec, "-o", root / "records/kitti") == 0
    return images, root / "records"


def test_forty_real_images_begin_to_be_learnt_within_two_minutes(faces, tmp_path):
    images, records = faces
    spec = write_spec(
        tmp_path, "train", training_records=records, validation_records=records, images_training=images,
        images_validation=images, image_width=480, image_height=272, image_extension="jpg", epochs=120, batch_size=5,
        learning_rate=0.012, minimum_learning_rate=0.00012, seed=1, minimum_height=SMALLEST,
    )  # fmt: skip
    text = re.sub(r"pretrained_model_file: .*\n", "", spec.read_text())
    text = re.sub(r" *view_epochs: .*\n", "", text)  # whole inputs, of the last quarter, take more than two minutes
    spec.write_text(re.sub(r"validation_period_during_training: \d+", "validation_period_during_training: 120", text))
    assert detectnet_v2("train", "-e", spec, "-r", tmp_path / "r", "--width", 0.25) == 0
    assert detectnet_v2("evaluate", "-e", spec, "-m", tmp_path / "r/weights", "-r", tmp_path / "e") == 0
    figures = json.loads((tmp_path / "e/metrics.json").read_text())
    assert figures["objects"] > 80
    assert figures["mean_average_precision"] >= 0.15  # seen: 0.32; without a step in the right direction, 0
