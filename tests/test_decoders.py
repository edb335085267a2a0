"""What a network takes and what its outputs mean: input specs, and decoders of kinds that nobody here knows."""

import importlib
import sys
import types
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from torch import nn

import components.decode
from components.convert.int8 import Gate, Measured, convert
from components.convert.quantize import Runtime
from components.decode.decoder import load_decoder
from components.decode.description import at_operating_point, operating_point, upgraded
from components.decode.grid.decoder import GridDecoder
from components.decode.instances import Instances, Placement
from components.measure.metric import Score
from components.step import StageError, UserError, write_manifest
from components.vision.inputs import InputSpec
from components.vision.network import Network
from components.vision.onnx_export import export
from components.vision.predictor import detect_images, load_predictor
from components.vision.torch_predictor import TorchPredictor

WIDTH, HEIGHT = 24, 16
SPEC = InputSpec(WIDTH, HEIGHT, order="BGR", mean=(104.0, 117.0, 123.0), scale=(58.0,), fit="crop")
CLASSES = ("blue", "green", "red")

# What a family writes beside its network: the whole image is the instance.
KIND = """
from dataclasses import dataclass

import numpy as np

from components.decode.instances import Instances


@dataclass(frozen=True)
class LogitsDecoder:
    class_names: tuple[str, ...]
    size: tuple[int, int]
    tensors = ("logits",)
    assumed = ()

    def __call__(self, tensors):
        box = np.array([[0, 0, *self.size]], np.float32)
        logits = tensors["logits"]
        return [Instances(box, row.max(keepdims=True), row.argmax(keepdims=True)) for row in logits]

    def count_classes(self, shapes):
        return shapes["logits"][1]

    def settings(self):
        return {"kind": "logits"}


def load(description):
    size = description["input"]
    return LogitsDecoder(tuple(description["class_names"]), (size["width"], size["height"]))
"""


@pytest.fixture
def kind(tmp_path, monkeypatch):
    """A decoder is a file of its kind's name."""
    (tmp_path / "kinds").mkdir()
    (tmp_path / "kinds" / "logits.py").write_text(KIND)
    monkeypatch.setattr(components.decode, "__path__", [*components.decode.__path__, str(tmp_path / "kinds")])
    yield
    sys.modules.pop("components.decode.logits", None)


class Colours(Network):
    """Says which colour prevails."""

    outputs = ("features", "logits")

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, len(CLASSES))

    @property
    def input(self):
        return SPEC

    @property
    def decoder(self):
        return load_decoder(description())

    def forward(self, images):
        features = torch.relu(self.body(images)).mean((2, 3))
        return features, self.head(features)


def description():
    return {"class_names": list(CLASSES), "input": asdict(SPEC), "decoder": {"kind": "logits"}}


def picture(seed, width=60, height=20):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def exported(folder, name="logits:0", agree=lambda _ours, _theirs: "agreed"):
    """Writes the toy as an exported model; returns the network and its folder."""
    torch.manual_seed(0)
    network = Colours()
    difference, agreed = export(network, folder / "model.onnx", {"logits": name}, agree, source="image", opset=18)
    assert (difference, agreed) == (pytest.approx(0, abs=1e-5), "agreed")
    write_manifest(folder, "exported_model", {}, {**description(), "parameters": 1})
    return network, folder


@pytest.mark.usefixtures("kind")
def test_a_new_kind_of_network_is_exported_and_run_without_a_change_elsewhere(tmp_path):
    network, folder = exported(tmp_path)
    predictor = load_predictor(folder)
    assert (predictor.input, predictor.decoder.class_names) == (SPEC, CLASSES)
    images = np.stack([SPEC.place(picture(seed))[0] for seed in range(3)])
    ours, theirs = detect_images(predictor, images), detect_images(TorchPredictor.of(network), images)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.rows(), other.rows(), atol=1e-4)
        assert one.classes.tolist() == other.classes.tolist()


@pytest.mark.usefixtures("kind")
def test_an_output_that_the_decoder_reads_has_to_be_there(tmp_path):
    _, folder = exported(tmp_path, name="scores")
    with pytest.raises(UserError, match="no tensor 'logits'; it has scores"):
        load_predictor(folder)


@pytest.mark.usefixtures("kind")
def test_an_export_is_left_only_where_its_family_agrees(tmp_path):
    def disagree(ours, theirs):
        np.testing.assert_allclose(ours["logits"], theirs["logits"], atol=1e-4)
        raise StageError("other colours")

    with pytest.raises(StageError, match="other colours"):
        exported(tmp_path, agree=disagree)
    assert not (tmp_path / "model.onnx").exists()
    with pytest.raises(UserError, match=r"needs Gemm.*, which cannot be written in ONNX operator set 13; choose 18"):
        export(Colours(), tmp_path / "m.onnx", {"logits": "logits"}, lambda *_: None, source="x")


@pytest.mark.usefixtures("kind")
def test_any_network_is_converted_to_int8_and_held_to_its_own_score(tmp_path):
    network, folder = exported(tmp_path)
    images = [SPEC.place(picture(seed))[0] for seed in range(20)]
    wanted = [found.classes[0] for found in detect_images(TorchPredictor.of(network), np.stack(images))]

    def agreement(predictor):
        found = detect_images(predictor, np.stack(images))
        value = float(np.mean(np.array([each.classes[0] for each in found]) == wanted))
        return Measured(Score("agreement", value))

    gate = Gate(agreement, "agreement", 10)
    converted = convert(folder, tmp_path / "int8", Runtime.onnxruntime, lambda spec: images[: spec.height], gate)
    assert (converted.before.value, converted.calibration_images) == (1.0, HEIGHT)
    assert converted.after.value >= 0.9
    assert converted.metrics()["agreement_after"] == converted.after.value
    operators = [node.op_type for node in onnx.load(tmp_path / "int8" / "model.onnx").graph.node]
    assert "QuantizeLinear" in operators
    values = iter((1.0, 0.5))
    gate = Gate(lambda _: Measured(Score("agreement", next(values))), "agreement", 10)
    with pytest.raises(StageError, match=r"INT8 loses 50\.00 points"):
        convert(folder, tmp_path / "worse", Runtime.onnxruntime, lambda _: images, gate)
    assert not (tmp_path / "worse").exists()


@pytest.mark.usefixtures("kind")
def test_tritons_models_take_any_input_and_any_kind(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.ModuleType("triton_python_backend_utils"))
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "1")  # restored afterwards
    parameters = {**description(), "max_image_pixels": 10**6}
    models = "components.serve.models"
    before = importlib.import_module(f"{models}.preprocess").Preprocess(parameters, Path())
    after = importlib.import_module(f"{models}.postprocess").Postprocess(parameters, Path())
    content = np.frombuffer(cv2.imencode(".png", picture(1))[1].tobytes(), np.uint8)
    prepared = before({"input_image_data": content[None]}, {})
    np.testing.assert_array_equal(prepared["input_1"], SPEC.prepare([SPEC.place(picture(1))[0]]))
    answer = after({**prepared, "logits": np.float32([[0.5, 3, 1]])}, {})
    assert (answer["true_class"].tolist(), answer["true_proba"].tolist()) == ([[[1]]], [[[3.0]]])
    # 60x20 is scaled to 48x16, and of that the middle 24 columns are the input: columns 15 to 45 of the image.
    np.testing.assert_allclose(answer["true_boxes"], [[[15, 0, 45, 20]]])


@pytest.mark.parametrize("decoder", [{"kind": "unheard_of"}, {"kind": "../grid"}, {"kind": "grid", "geometry": 7}])
def test_decoders_that_cannot_be_made_are_refused_in_one_line(decoder):
    with pytest.raises(ValueError, match=r"^its decoder .*$"):
        load_decoder({"class_names": ["a"], "input": {"width": 32, "height": 32}, "decoder": decoder})


def test_descriptions_of_former_releases_say_the_same_as_those_of_this_one():
    former = {
        "class_names": ["face"],
        "geometry": {"width": 64, "height": 32, "scale": 30.0},
        "clustering": {"face": {"algorithm": "nms"}},
        "preprocessing": "stretch",
    }
    modern = upgraded(former)
    assert InputSpec.from_json(modern["input"]) == InputSpec(64, 32, fit="stretch")
    decoder = load_decoder(modern)
    assert isinstance(decoder, GridDecoder)
    assert upgraded(modern) == modern
    again = load_decoder({**modern, "decoder": decoder.settings()})
    assert again == decoder
    assert (decoder.geometry.scale, decoder.geometry.offset) == (30.0, 0.5)


def test_operating_point_stands_with_the_decoder_in_either_layout_and_can_be_replaced():
    former = {"class_names": ["face"], "geometry": {"width": 64, "height": 32}, "operating_point": {"face": 0.3}}
    modern = upgraded(former)
    assert "operating_point" not in modern
    for description in (former, modern):
        assert operating_point(description) == {"face": 0.3}
        decoder = load_decoder(upgraded(description))
        assert decoder.operating_point == {"face": 0.3}
        assert load_decoder({**modern, "decoder": decoder.settings()}) == decoder
        replaced = at_operating_point(description, {"face": 0.4})
        assert operating_point(replaced) == {"face": 0.4}
        assert operating_point(at_operating_point(replaced, {})) == {}
        assert operating_point(description) == {"face": 0.3}  # is left as it was


# ---- Inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["CHW", "HWC"])
@pytest.mark.parametrize("mean", [(0.0,), (127.5,), (104.0, 117.0, 123.0)])
@pytest.mark.parametrize("scale", [(255.0,), (58.0, 57.0, 59.0)])
def test_pixels_are_prepared_alike_on_every_way(layout, mean, scale):
    spec = InputSpec(WIDTH, HEIGHT, layout=layout, mean=mean, scale=scale)
    images = np.stack([picture(seed, WIDTH, HEIGHT) for seed in range(2)])
    expected = (images.astype(np.float32) - np.float32(mean)) / np.float32(scale)
    expected = expected.transpose(0, 3, 1, 2) if layout == "CHW" else expected
    prepared = spec.prepare(images)
    assert prepared.shape == (2, *spec.shape)
    np.testing.assert_array_equal(prepared, expected)
    np.testing.assert_array_equal(spec.prepare_tensor(torch.from_numpy(images)).numpy(), expected)
    assert InputSpec.from_json(asdict(spec)) == spec


@pytest.mark.parametrize(("channels", "order"), [(1, "RGB"), (3, "RGB"), (3, "BGR")])
def test_colours_come_in_the_networks_order(channels, order):
    image = picture(0, WIDTH, HEIGHT)
    placed, placement = InputSpec(WIDTH, HEIGHT, channels, order).place(image)
    expected = {1: cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None], 3: image if order == "BGR" else image[..., ::-1]}
    np.testing.assert_array_equal(placed, expected[channels])
    assert placement == Placement()


@pytest.mark.parametrize("fit", ["letterbox", "stretch", "crop"])
@pytest.mark.parametrize("size", [(60, 20), (20, 60), (WIDTH, HEIGHT), (7, 5)])
def test_what_is_placed_is_found_at_its_place_and_mapped_back(fit, size):
    width, height = size
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.linspace(0, 255, width), np.linspace(0, 255, height)[:, None]
    placed, placement = InputSpec(WIDTH, HEIGHT, order="BGR", fit=fit).place(ramp)
    assert placed.shape == (HEIGHT, WIDTH, 3)
    middle = placement.to_input(np.array([width / 2, height / 2]))
    np.testing.assert_allclose(middle, (WIDTH / 2, HEIGHT / 2), atol=1)
    x, y = (int(value) for value in middle)
    np.testing.assert_allclose(placed[y, x, :2], 127, atol=255 / min(size) + 20)
    boxes = np.array([[1.0, 2.0, 5.0, 4.0]])
    np.testing.assert_allclose(placement.to_source(placement.to_input(boxes)), boxes)


def test_instances_are_chosen_and_mapped_with_all_that_belongs_to_them():
    points = np.arange(12.0).reshape(3, 2, 2)
    found = Instances(np.ones((3, 4)), np.array([0.9, 0.8, 0.7]), np.array([1, 0, 1]), points, np.ones((3, 2)))
    chosen = found.select(1)
    assert (len(chosen), chosen.scores.tolist(), chosen.points[:, 0, 0].tolist()) == (2, [0.9, 0.7], [0, 8])
    moved = chosen.to_source(Placement((2.0, 4.0), (1.0, -1.0)))
    np.testing.assert_allclose(moved.boxes[0], [0, 0.5, 0, 0.5])
    np.testing.assert_allclose(moved.points[1, 1], [(10 - 1) / 2, (11 + 1) / 4])
    assert moved.visibility.shape == (2, 2)
