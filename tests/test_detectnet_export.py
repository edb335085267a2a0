"""`detectnet_v2 export`: operator sets, batch sizes, tensor names, and what stands beside the ONNX file."""

import configparser
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from discs import detectnet_v2
from networks import HEIGHT, WIDTH, small_network

from components.decode.grid.clustering import Clustering
from components.decode.grid.geometry import GridGeometry
from components.detectnet_v2 import export
from components.detectnet_v2.deepstream import TensorNames, nvinfer_config
from components.detectnet_v2.export import export_onnx
from components.step import StageError, UserError
from components.vision import onnx_export
from components.vision.checkpoint import save_network
from components.vision.inputs import InputSpec
from components.vision.onnx_export import OPSETS, probe_image
from components.vision.predictor import detect_images, load_predictor
from components.vision.torch_predictor import TorchPredictor

CLUSTERING = Clustering(
    algorithm="dbscan", coverage_threshold=0.3, dbscan_eps=0.4, dbscan_min_samples=0.5, minimum_height=2
)


@pytest.fixture(scope="module")
def network():
    network = small_network(class_names=("face", "hand"))
    network.config = replace(network.config, clustering=dict.fromkeys(("face", "hand"), CLUSTERING))
    return network


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory):
    file = tmp_path_factory.mktemp("checkpoint") / "net.safetensors"
    save_network(file, network)
    return file


def outputs_of(file):
    """Name and shape of the input and of the outputs."""
    graph = onnx.load(file).graph
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


REALLY_WRITE = onnx_export._write


@pytest.fixture(scope="module", autouse=True)
def _written_once():
    """The exporter takes seconds: what it writes for a network is kept."""
    kept = {}

    def write(network, file, static_batch, source, names):
        weights = tuple(float(value.double().sum()) for value in network.state_dict().values())
        key = (weights, repr(network.config.backbone), static_batch, source, tuple(names.items()))
        if key not in kept:
            REALLY_WRITE(network, file, static_batch, source, names)
            kept[key] = file.read_bytes()
        file.write_bytes(kept[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "_write", write)
        yield


# ---- The ONNX file ---------------------------------------------------------------------------------------------------


def test_operator_sets_on_offer_agree_with_pytorch(network, tmp_path):
    for opset in (OPSETS[0], 12, 13, 17, 18, OPSETS[-1]):  # all others were tried once; each export is checked anyway
        agreement = export_onnx(network, tmp_path / f"{opset}.onnx", opset)
        assert agreement.difference < 1e-4
        assert agreement.pixels < 0.01
        assert agreement.detections > 0
        model = onnx.load(tmp_path / f"{opset}.onnx")
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
        onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("opset", [OPSETS[0] - 1, OPSETS[-1] + 1])
def test_other_operator_sets_are_refused_by_name(opset, network, tmp_path):
    with pytest.raises(UserError, match=rf"operator set {opset} .* from 11 to 26"):
        export_onnx(network, tmp_path / "m.onnx", opset)


def test_pooling_is_written_in_old_operator_sets_too(tmp_path):
    pooled = small_network(use_pooling=True)
    for opset in (OPSETS[0], OPSETS[-1]):
        assert export_onnx(pooled, tmp_path / f"{opset}.onnx", opset).difference < 1e-4


def test_static_and_dynamic_batches_and_the_suffix(network, tmp_path):
    export_onnx(network, tmp_path / "dynamic.onnx")
    rows, columns = HEIGHT // 16, WIDTH // 16
    assert outputs_of(tmp_path / "dynamic.onnx") == {
        "input_1": ["batch", 3, HEIGHT, WIDTH],
        "output_bbox/BiasAdd": ["batch", 8, rows, columns],
        "output_cov/Sigmoid": ["batch", 2, rows, columns],
    }
    export_onnx(network, tmp_path / "static.onnx", static_batch=3, names=TensorNames.of_tao(suffix=True))
    assert outputs_of(tmp_path / "static.onnx") == {
        "input_1:0": [3, 3, HEIGHT, WIDTH],
        "output_bbox/BiasAdd:0": [3, 8, rows, columns],
        "output_cov/Sigmoid:0": [3, 2, rows, columns],
    }


def test_nothing_of_this_machine_is_in_the_file_and_it_is_the_same_every_time(network, tmp_path, monkeypatch):
    export_onnx(network, tmp_path / "a.onnx")
    monkeypatch.setattr(onnx_export, "_write", REALLY_WRITE)
    export_onnx(network, tmp_path / "b.onnx")
    content = (tmp_path / "a.onnx").read_bytes()
    assert content == (tmp_path / "b.onnx").read_bytes()
    assert b".py" not in content


def test_a_file_that_disagrees_is_not_left(network, tmp_path, monkeypatch):
    declare = onnx_export._declare

    def spoilt(graph, opset):
        declare(graph, opset)
        weights = next(tensor for tensor in graph.graph.initializer if len(tensor.dims) == 4)
        values = onnx.numpy_helper.to_array(weights) * np.float32(1.01)
        weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))

    monkeypatch.setattr(onnx_export, "_declare", spoilt)
    with pytest.raises(StageError, match="outputs differ from PyTorch"):
        export_onnx(network, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_other_detections_are_noticed_however_close_the_outputs():
    boxes = np.array([[0, 0, 20, 20, 0.9], [40, 0, 60, 20, 0.8]], np.float32)
    assert export._without_counterpart(boxes, boxes + np.float32(1e-4)) == 0
    assert export._without_counterpart(boxes, boxes[:1]) == 1
    assert export._without_counterpart(boxes, boxes + np.float32([0.2, 0, 0, 0, 0])) == 4
    assert export._without_counterpart(boxes[:0], boxes[:0]) == 0


def test_probe_images_have_structure_and_do_not_change():
    images = [probe_image(InputSpec(WIDTH, HEIGHT), seed) for seed in (0, 0, 1)]
    assert (images[0] == images[1]).all()
    assert (images[0] != images[2]).any()
    assert images[0].shape == (HEIGHT, WIDTH, 3)
    neighbours = np.abs(np.diff(images[0].astype(int), axis=1)).mean()
    assert neighbours < images[0].std() / 2  # neighbouring pixels are alike


# ---- What stands beside it -------------------------------------------------------------------------------------------


def test_the_command_writes_a_model_that_detects_what_the_checkpoint_does(checkpoint, tmp_path, capsys):
    output = tmp_path / "out" / "resnet"  # TAO completes the suffix
    cache = tmp_path / "cal.bin"
    cache.write_bytes(b"TRT-8601-EntropyCalibration2\ninput_1: 3c010a14\n")
    options = ("--tensor-suffix", "--gen_ds_config", "--cal_cache_file", cache, "--target_opset", 12)
    assert detectnet_v2("export", "-m", checkpoint, "-o", output, *options) == 0
    folder = output.parent
    names = {"resnet.onnx", "resnet.json", "labels.txt", "nvinfer_config.txt", "cal.bin", "status.json"}
    assert {file.name for file in folder.iterdir()} == names
    assert (folder / "labels.txt").read_text() == "face\nhand\n"
    assert (folder / "cal.bin").read_bytes() == cache.read_bytes()
    description = json.loads((folder / "resnet.json").read_text())
    tensors = {"input": "input_1:0", "bbox": "output_bbox/BiasAdd:0", "coverage": "output_cov/Sigmoid:0"}
    assert (description["tensors"], description["opset"]) == (tensors, 12)
    assert "detections in drawn images, the same in both" in capsys.readouterr().out

    ours, theirs = load_predictor(folder / "resnet.onnx"), TorchPredictor(checkpoint)
    assert (ours.input, ours.decoder) == (theirs.input, theirs.decoder)
    images = np.stack([probe_image(ours.input, seed)[..., ::-1] for seed in range(100, 104)])
    found = 0
    for one, other in zip(detect_images(ours, images), detect_images(theirs, images), strict=True):
        for kind in (0, 1):
            np.testing.assert_allclose(one.select(kind).rows(), other.select(kind).rows(), atol=1e-2)
            found += len(one.select(kind))
    assert found > 0
    assert detectnet_v2("export", "-m", checkpoint, "-o", output) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_file_goes_beside_the_model_where_none_is_named(checkpoint, tmp_path):
    model = tmp_path / "net.safetensors"
    model.write_bytes(checkpoint.read_bytes())
    assert detectnet_v2("export", "-m", model) == 0
    assert load_predictor(tmp_path / "net.onnx").decoder.class_names == ("face", "hand")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data_type", "int8"), "gridbox convert int8"),
        (("--engine_file", "net.engine"), "trtexec"),
        (("--cal_cache_file", "nowhere.bin"), "no such calibration cache"),
        (("--target_opset", 10), "only 11 to 26 can be written"),
        (("--data_type", "bf16"), "bf16"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_anything_is_written(options, words, checkpoint, tmp_path, capsys):
    assert detectnet_v2("export", "-m", checkpoint, "-o", tmp_path / "out/m.onnx", *options) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_file_that_no_calibration_wrote_is_refused(checkpoint, tmp_path, capsys):
    (tmp_path / "cal.bin").write_bytes(b"hello")
    options = ("--cal_cache_file", tmp_path / "cal.bin")
    assert detectnet_v2("export", "-m", checkpoint, "-o", tmp_path / "out/m.onnx", *options) == 2
    assert "not a calibration cache of TensorRT" in capsys.readouterr().err


def test_taos_options_for_engines_are_accepted_and_named(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("components.detectnet_v2.export.export_model", lambda *_: None)
    options = ("--batches", 10, "--max_workspace_size", 1 << 30, "-s", "--force_ptq", "--onnx_route", "tf2onnx")
    assert detectnet_v2("export", "-m", checkpoint, "-o", tmp_path / "m", "-k", "key", *options) == 0
    said = capsys.readouterr().err
    assert "without effect, no engine is built here: --batches, --max_workspace_size, -s, --force_ptq" in said
    assert detectnet_v2("export", "-m", checkpoint, "-o", tmp_path / "m", "--data_type", "fp16") == 0
    assert capsys.readouterr().err == ""


def test_a_model_that_deepstream_would_read_wrongly_is_exported_without_its_settings(tmp_path, capsys):
    network = small_network()
    network.config = replace(network.config, geometry=GridGeometry(WIDTH, HEIGHT, scale=30.0))
    save_network(tmp_path / "odd.safetensors", network)
    assert detectnet_v2("export", "-m", tmp_path / "odd.safetensors", "--gen_ds_config") == 0
    assert (
        "warning: no nvinfer_config.txt is written: DeepStream decodes boxes with scale 35" in capsys.readouterr().err
    )
    assert (tmp_path / "odd.onnx").is_file()
    assert not (tmp_path / "nvinfer_config.txt").exists()


# ---- DeepStream ------------------------------------------------------------------------------------------------------


def settings_of(config, precision="fp32", static_batch=0, cache=None, suffix=False):
    text = nvinfer_config(config, TensorNames.of_tao(suffix), "m.onnx", precision, static_batch, cache)
    parser = configparser.ConfigParser()
    parser.optionxform = str  # DeepStream's keys have capital letters
    parser.read_string(text)
    return parser


def test_deepstream_takes_the_stride_from_the_tensors(network):
    fine = replace(network.config, geometry=GridGeometry(WIDTH, HEIGHT, stride=8))
    assert settings_of(fine) == settings_of(network.config)


def test_deepstream_settings(network, tmp_path):
    settings = settings_of(network.config, "int8", 4, tmp_path / "cal.bin", suffix=True)
    assert dict(settings["property"]) == {
        "onnx-file": "m.onnx",
        "labelfile-path": "labels.txt",
        "infer-dims": f"3;{HEIGHT};{WIDTH}",
        "batch-size": "4",
        "net-scale-factor": "0.0039215697906911373",
        "model-color-format": "0",
        "maintain-aspect-ratio": "1",
        "symmetric-padding": "1",
        "network-type": "0",
        "num-detected-classes": "2",
        "output-blob-names": "output_bbox/BiasAdd:0;output_cov/Sigmoid:0",
        "network-mode": "1",
        "int8-calib-file": "cal.bin",
        "cluster-mode": "1",
    }
    expected = {"pre-cluster-threshold": "0.3", "eps": "0.4", "minBoxes": "1", "dbscan-min-score": "0"}
    assert dict(settings["class-attrs-0"]) == dict(settings["class-attrs-1"]) == expected
    modes = {precision: settings_of(network.config, precision)["property"] for precision in ("fp32", "fp16")}
    assert {name: section["network-mode"] for name, section in modes.items()} == {"fp32": "0", "fp16": "2"}
    assert "int8-calib-file" not in modes["fp32"]


def test_deepstream_fits_images_as_training_did(network):
    keys = ("maintain-aspect-ratio", "symmetric-padding")
    for fit, expected in (("letterbox", ["1", "1"]), ("stretch", ["0", "0"])):
        section = settings_of(replace(network.config, fit=fit))["property"]
        assert [section[key] for key in keys] == expected
    with pytest.raises(UserError, match="DeepStream cannot cut images"):
        settings_of(replace(network.config, fit="crop"))


@pytest.mark.parametrize(
    ("clustering", "mode", "attributes"),
    [
        (
            Clustering("nms", 0.02, nms_iou_threshold=0.35, nms_confidence_threshold=0.3),
            "2",
            {"pre-cluster-threshold": "0.3", "nms-iou-threshold": "0.35"},
        ),
        (
            Clustering("hybrid", 0.02, dbscan_min_samples=2.5, nms_iou_threshold=0.5, nms_confidence_threshold=0.3),
            "3",
            {
                "pre-cluster-threshold": "0.02",
                "eps": "0.15",
                "minBoxes": "3",
                "dbscan-min-score": "0",
                "nms-iou-threshold": "0.5",
                "post-cluster-threshold": "0.3",
            },
        ),
    ],
)
def test_deepstream_clusters_as_the_spec_says(clustering, mode, attributes, network):
    config = replace(network.config, clustering=dict.fromkeys(("face", "hand"), clustering))
    settings = settings_of(config)
    assert settings["property"]["cluster-mode"] == mode
    assert dict(settings["class-attrs-1"]) == attributes


@pytest.mark.parametrize(
    ("algorithm", "key", "kept"),
    [
        ("nms", "pre-cluster-threshold", {}),
        ("dbscan", "dbscan-min-score", {"pre-cluster-threshold": "0.02"}),
        ("hybrid", "post-cluster-threshold", {"pre-cluster-threshold": "0.02", "dbscan-min-score": "0.1"}),
    ],
)
def test_deepstream_shows_what_scores_as_high_as_the_operating_point(algorithm, key, kept, network):
    clustering = Clustering(algorithm, 0.02, dbscan_confidence_threshold=0.1, nms_confidence_threshold=0.05)
    classes = ("face", "hand")
    for point, shown in ((0.42, "0.42"), (0.03, {"nms": "0.05", "dbscan": "0.1", "hybrid": "0.05"}[algorithm])):
        config = replace(network.config, clustering=dict.fromkeys(classes, clustering), operating_point={"hand": point})
        face, hand = (dict(settings_of(config)[f"class-attrs-{channel}"]) for channel in range(2))
        assert hand[key] == shown
        assert face[key] == ("0.1" if algorithm == "dbscan" else "0.05")
        assert {name: hand[name] for name in kept} == kept


def test_what_deepstream_would_get_wrong_is_refused(network):
    odd = replace(network.config, geometry=GridGeometry(WIDTH, HEIGHT, scale=30.0))
    with pytest.raises(UserError, match=r"DeepStream decodes boxes with scale 35 .* this model has 30"):
        settings_of(odd)
    mixed = replace(network.config, clustering={"face": Clustering("nms"), "hand": Clustering("dbscan")})
    with pytest.raises(UserError, match="here are dbscan and nms"):
        settings_of(mixed)


def test_the_network_is_left_as_it_was(network, tmp_path):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    export_onnx(network, tmp_path / "m.onnx")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
