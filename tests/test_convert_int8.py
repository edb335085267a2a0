import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from square_detector import face, random_samples, sample, write_detector, write_kitti

from components import program
from components.convert.commands import app
from components.convert.int8 import Gate, Measured, draw_images
from components.decode.description import operating_point
from components.measure.metric import Score
from components.measure.uncertainty import RatioOutcomes
from components.step import read_manifest
from components.vision.inputs import InputSpec
from components.vision.predictor import load_predictor


@pytest.fixture(scope="module")
def kitti(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set") / "kitti"
    return write_kitti(folder, random_samples(8, "t", seed=1), random_samples(12, "v", seed=2))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return write_detector(tmp_path_factory.mktemp("model") / "exported")


@pytest.fixture(scope="module", params=["onnxruntime", "tensorrt"])
def quantized(request, tmp_path_factory, exported, kitti):
    folder = tmp_path_factory.mktemp("int8")
    code = convert(
        exported, kitti, folder / "quantized", "--metrics", str(folder / "metrics.json"), "--runtime", request.param
    )
    assert code == 0
    return folder / "quantized", request.param


def convert(exported, kitti, output, *more):
    flags = ["--exported", str(exported), "--kitti", str(kitti), "--quantized", str(output), *more]
    return program.run(app, ["int8", *flags], "gridbox convert")


def producers(graph):
    return {output: node for node in graph.node for output in node.output}


def test_a_model_of_too_old_an_operator_set_is_refused_by_name(exported, kitti, tmp_path, capsys):
    old = shutil.copytree(exported, tmp_path / "old")
    model = onnx.load(old / "model.onnx")
    model.opset_import[0].version = 12
    onnx.save(model, old / "model.onnx")
    assert convert(old, kitti, tmp_path / "quantized") == 2
    assert "export again with --target_opset 13" in capsys.readouterr().err
    assert not (tmp_path / "quantized").exists()


def test_every_convolution_but_the_heads_is_quantised(quantized):
    graph = onnx.load(quantized[0] / "model.onnx").graph
    made_by = producers(graph)
    kinds = [[made_by[name].op_type if name in made_by else "" for name in node.input[:2]] for node in convs(graph)]
    assert kinds.count(["DequantizeLinear", "DequantizeLinear"]) == 2
    assert kinds.count(["DequantizeLinear", ""]) == 2  # the two heads: integer in, floating-point weights
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in convs(graph):
        quantiser = made_by.get(node.input[1])
        if quantiser is not None:
            assert weights[quantiser.input[0]].dtype == np.int8
            assert len(weights[quantiser.input[1]]) == len(weights[quantiser.input[0]])  # a scale per channel


def convs(graph):
    return [node for node in graph.node if node.op_type == "Conv"]


def test_onnx_runtime_really_computes_with_integers(quantized, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(quantized[0] / "model.onnx"), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operators.count("QLinearConv") == 2


def test_tensorrt_gets_signed_symmetric_numbers_only(quantized):
    folder, runtime = quantized
    graph = onnx.load(folder / "model.onnx").graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    zero_points = [values[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert zero_points
    if runtime == "tensorrt":
        assert all(point.dtype == np.int8 and not point.any() for point in zero_points)
    else:
        assert all(point.dtype == np.uint8 for point in zero_points)


def test_names_settings_and_labels_are_kept_and_the_file_is_smaller(quantized, exported):
    folder = quantized[0]
    before, after = load_predictor(exported), load_predictor(folder)  # finds the tensors by TAO's names
    point = {"face": pytest.approx(1.0, abs=0.01)}  # all faces are found, and with this score or a higher one
    assert (after.input, after.decoder) == (before.input, replace(before.decoder, operating_point=point))
    assert after.decoder.class_names == ("face",)
    assert after.file_bytes < before.file_bytes / 3
    assert (folder / "labels.txt").read_text() == "face\n"
    manifest = read_manifest(folder, "exported_model")
    assert manifest["settings"]["parameters"] == 1234
    assert manifest["settings"]["quantization"]["runtime"] == quantized[1]
    assert manifest["settings"]["quantization"]["operating_point"] == point  # the exported model's
    assert [manifest["counts"][f"points_lost{end}"] for end in ("", "_low", "_high")] == pytest.approx([0, 0, 0])
    metrics = json.loads((folder.parent / "metrics.json").read_text())
    assert metrics["average_precision_before"] == 1.0
    assert metrics["average_precision_after"] == 1.0
    assert all(isinstance(value, (int, float)) for value in metrics.values())


def test_conversion_that_loses_too_much_is_refused_and_leaves_nothing(tmp_path, kitti, capsys):
    # One channel reaches 100,000, so the red one falls below the smallest step of an 8-bit number.
    fragile = write_detector(tmp_path / "exported", loud_channel=1e5)
    assert convert(fragile, kitti, tmp_path / "quantized", "--metrics", str(tmp_path / "metrics.json")) == 1
    message = capsys.readouterr().err
    assert "INT8 loses 100.00 points of AP@0.5 (from 1.0000 to 0.0000), at most 2 are allowed (95% interval " in message
    assert "100.00 to 100.00: more than the 2 that are allowed, for certain)" in message
    assert "--max-points-lost" in message
    assert message.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


def test_same_conversion_is_accepted_where_the_loss_is_allowed(tmp_path, kitti, capsys):
    fragile = write_detector(tmp_path / "exported", loud_channel=1e5)
    assert convert(fragile, kitti, tmp_path / "quantized", "--max-points-lost", "100") == 0
    output = capsys.readouterr().out
    certain = "(95% interval 100.00 to 100.00: at most the 100 that are allowed, for certain)"
    assert f"INT8 lost 100.00 points of AP@0.5 {certain}: 1.0000 before, 0.0000 after" in output
    assert "calibrated on all of them" in output
    settings = read_manifest(tmp_path / "quantized", "exported_model")["settings"]
    assert operating_point(settings) == {}  # the INT8 model finds nothing, whatever the exported one found
    assert settings["quantization"]["operating_point"]


def test_what_is_lost_is_judged_by_the_images_and_their_interval_says_how_sure_that_is():
    random = np.random.default_rng(0)

    def measured(right):
        total = right.astype(float)
        return Measured(Score("agreement", total.mean()), RatioOutcomes(total, np.ones(len(total), np.int64)))

    before = measured(np.ones(100, bool))
    for lost, allowed, verdict in (
        (0, 2, "at most the 2 that are allowed, for certain"),
        (1, 2, "whether more than the 2 that are allowed, these images do not decide"),
        (3, 2, "whether more than the 2 that are allowed, these images do not decide"),
        (30, 2, "more than the 2 that are allowed, for certain"),
    ):
        after = measured(random.permutation(100) >= lost)
        gate = Gate(lambda _: before, "agreement", allowed)
        interval = gate.lost(before, after)
        assert interval.value == pytest.approx(lost)
        assert interval.low <= interval.value <= interval.high
        assert verdict in gate.verdict(interval)
    assert Gate(lambda _: before, "agreement", 2, None).lost(before, after) is None
    assert Gate(lambda _: before, "agreement", 2).lost(before, Measured(after.score)) is None


def test_without_intervals_nothing_is_said_of_them(exported, kitti, tmp_path, capsys):
    metrics = tmp_path / "metrics.json"
    assert convert(exported, kitti, tmp_path / "quantized", "--no-intervals", "--metrics", str(metrics)) == 0
    assert "interval" not in capsys.readouterr().out
    assert "points_lost_low" not in json.loads(metrics.read_text())


def test_gate_and_operating_point_are_of_the_validation_images_not_of_those_that_tell(exported, tmp_path):
    # What is labelled in the validation images is found, in the test images nothing is.
    tells = [sample(f"t{index}", [(1, 1)], [face(4, 2)]) for index in range(6)]
    kitti = write_kitti(tmp_path / "kitti", random_samples(8, "t"), random_samples(12, "v"), tells)
    assert convert(exported, kitti, tmp_path / "quantized") == 0
    manifest = read_manifest(tmp_path / "quantized", "exported_model")
    assert manifest["counts"]["average_precision_after"] == 1.0
    assert operating_point(manifest["settings"])["face"] > 0.9


def test_without_training_images_there_is_nothing_to_calibrate_on(tmp_path, exported, capsys):
    kitti = write_kitti(tmp_path / "kitti", [], random_samples(3, "v"))
    assert convert(exported, kitti, tmp_path / "quantized") == 2
    assert "kitti" in capsys.readouterr().err
    assert not (tmp_path / "quantized").exists()


def test_without_faces_there_is_nothing_to_measure(tmp_path, exported, capsys):
    kitti = write_kitti(tmp_path / "kitti", random_samples(3, "t"), [sample("v", [], [])])
    assert convert(exported, kitti, tmp_path / "quantized") == 2
    assert "nothing can be measured" in capsys.readouterr().err


def test_calibration_images_are_spread_over_the_set_and_the_same_every_time(tmp_path):
    height, width = 64, 96
    grey = [np.full((height, width, 3), value, np.uint8) for value in range(200)]
    samples = [sample(f"t{index:03d}", [], [], image) for index, image in enumerate(grey)]
    kitti = write_kitti(tmp_path / "kitti", samples, [])
    spec = InputSpec(width, height)
    chosen = [int(image[0, 0, 0]) for image in draw_images(kitti, 40, spec)]
    assert chosen == [int(image[0, 0, 0]) for image in draw_images(kitti, 40, spec)]
    assert len(set(chosen)) == 40
    assert 60 < np.mean(chosen) < 140
    assert max(chosen) > 150
    assert len(draw_images(kitti, 1000, spec)) == 200
