"""One image is the same input wherever a model looks at one: in training, scoring, inference, calibration, serving."""

import importlib
import json
import sys
import types
from dataclasses import asdict

import cv2
import numpy as np
import pytest
from discs import write_spec
from exif import turned
from square_detector import HEIGHT, WIDTH, write_detector

from components.convert.int8 import draw_images
from components.decode.grid.geometry import GridGeometry
from components.detectnet_v2 import inference, spec
from components.detectnet_v2.dataset import LabelledImages, LabelMapping
from components.detectnet_v2.framing import Fitting
from components.detectnet_v2.records import Frame
from components.evaluate.inputs import Findings, read_truth
from components.evaluate.pictures import Pictures
from components.formats.images import decode, resize, upright_size
from components.formats.kitti import Sample, ShardWriter
from components.formats.wider import Face, WiderImage
from components.vision.inputs import PIXELS, InputSpec
from components.vision.predictor import load_predictor
from components.vision.scoring import network_input
from components.widerface.convert import Conversion, convert_image

SIZES = {"much larger": (401, 283), "smaller": (50, 41), "wide": (300, 40), "tall": (31, 200), "the input's": (96, 64)}
SPECS = [
    InputSpec(WIDTH, HEIGHT, fit=fit, resampling=resampling)
    for fit in ("letterbox", "stretch", "crop")
    for resampling in ("area", "cubic")
]


def checkerboard(width, height):
    """Pixels black and white by turns: nothing of this can be seen once it is smaller."""
    board = np.indices((height, width)).sum(axis=0) % 2 * 255
    return np.repeat(board[..., None], 3, axis=2).astype(np.uint8)


def photograph(size, orientation):
    coarse = np.random.default_rng(sum(size)).integers(0, 256, (9, 13, 3), np.uint8)
    image = cv2.add(cv2.resize(coarse, size), checkerboard(*size) // 8)
    content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
    return turned(content, orientation) if orientation else content


def trained(content, taken, folder):
    """The network's input in training, without augmentation, and in its validation."""
    (folder / "a.jpg").write_bytes(content)
    frame = Frame("a", *upright_size(content), [], np.zeros((0, 4), np.float32))
    mapping, geometry = LabelMapping({"face": 0}, frozenset()), GridGeometry(WIDTH, HEIGHT)
    images = LabelledImages([frame], [folder / "a.jpg"], mapping, geometry, Fitting(taken), augmented=False)
    return images.pixels[0]


def drawn(content, taken, folder, monkeypatch):
    """What `detectnet_v2 inference` shows a model that says what it takes."""
    model = write_detector(folder / "model")
    manifest = json.loads((model / "manifest.json").read_text())
    described = manifest["settings"]
    described["decoder"] = {"kind": "grid", "geometry": described["geometry"], "clustering": described["clustering"]}
    described["input"] = asdict(taken)
    (model / "manifest.json").write_text(json.dumps(manifest))
    assert load_predictor(model).input == taken
    file = write_spec(folder, "inference", image_width=WIDTH, image_height=HEIGHT, batch_size=1, model=model)
    seen = []
    monkeypatch.setattr(inference, "detect_images", lambda _, images, __: seen.append(images) or [])
    with pytest.raises(ValueError, match="zip"):  # nothing was found for the image
        inference.ImageDetector(spec.load_inference(file).message, model / "model.onnx")([decode(content)])
    return seen[0][0]


def served(content, taken, folder, monkeypatch):
    """What the step before the network makes of a request."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.ModuleType("triton_python_backend_utils"))
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "1")  # restored afterwards
    values = {"input_spec": asdict(taken), "decoder": {}, "max_image_pixels": 10**6}
    step = importlib.import_module("components.serve.models.preprocess").Preprocess(values, folder)
    return step({"input_image_data": np.frombuffer(content, np.uint8)[None]}, {})[PIXELS]


@pytest.mark.parametrize("taken", SPECS, ids=lambda each: f"{each.fit} {each.resampling}")
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("orientation", [0, 6], ids=["upright", "turned"])
def test_an_image_is_the_same_input_everywhere(taken, size, orientation, tmp_path, monkeypatch):
    content = photograph(size, orientation)
    kitti = tmp_path / "kitti"
    for split in ("training", "test"):
        with ShardWriter(kitti / split) as shards:
            shards.add(Sample("a", "a.jpg", content, []))
    expected = taken.place(decode(content))[0]
    assert expected.shape == (HEIGHT, WIDTH, 3)
    truth = read_truth(kitti, Findings(), "test")
    ((_, fitted),) = Pictures(truth, kitti, "test").fitted(taken)(truth.images)
    for pixels in (
        trained(content, taken, tmp_path),
        network_input(content, "a", taken)[0],
        fitted[..., ::-1],
        drawn(content, taken, tmp_path, monkeypatch),
        draw_images(kitti, 1, taken)[0],
    ):
        np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(served(content, taken, tmp_path, monkeypatch), taken.prepare([expected]))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_set_at_the_inputs_size_holds_the_input_of_one_at_source_resolution(size):
    taken, image = InputSpec(WIDTH, HEIGHT), WiderImage("0--Parade/a.jpg", (Face((3, 4, 20, 30)),))
    content = photograph(size, 6)
    settings = {"width": WIDTH, "height": HEIGHT, "min_face_height": 0}
    ready = convert_image(content, image, "a", Conversion(**settings)).sample
    stored = convert_image(content, image, "a", Conversion(**settings, resolution="source")).sample
    near, placement = taken.place(decode(stored.image))
    assert np.abs(taken.place(decode(content))[0] - decode(ready.image)[..., ::-1].astype(int)).max() == 0
    assert np.abs(near.astype(int) - decode(ready.image)[..., ::-1]).mean() < 4  # it was turned, so encoded anew
    box = placement.to_input(np.array(stored.labels[0].box))
    np.testing.assert_allclose(box, ready.labels[0].box, atol=1e-9)


@pytest.mark.parametrize("shrunk", [(93, 69), (200, 150), (170, 128), (400, 20)])
def test_area_lets_no_false_pattern_appear(shrunk):
    """What cannot be seen at the smaller size becomes an even grey."""
    assert resize(checkerboard(400, 300), shrunk).std() < 20


def test_cubic_lets_one_appear_as_taos_converter_does():
    board = checkerboard(400, 300)
    assert resize(board, (93, 69)).std() < 5
    assert resize(board, (93, 69), "cubic").std() > 50


@pytest.mark.parametrize("taken", SPECS[::2], ids=lambda each: each.fit)
def test_a_fine_pattern_is_an_even_grey_in_the_networks_input(taken):
    pixels = taken.place(checkerboard(4 * WIDTH + 52, 4 * HEIGHT + 37))[0]
    inner = pixels[2:-2, 4:-4]
    assert inner.std() < 4
    assert inner.mean() == pytest.approx(127.5, abs=1)


def test_enlarging_one_side_does_not_stop_the_other_from_being_averaged():
    board = checkerboard(400, 20)
    assert resize(board, (93, 69)).std() < 20
    assert cv2.resize(board, (93, 69), interpolation=cv2.INTER_AREA).std() > 30


@pytest.mark.parametrize("resampling", ["area", "cubic"])
def test_an_image_of_the_right_size_is_not_touched(resampling):
    image = np.random.default_rng(4).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    np.testing.assert_array_equal(resize(image, (WIDTH, HEIGHT), resampling), image)
