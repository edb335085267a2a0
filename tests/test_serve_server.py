"""The local Triton server: what it answers is exact, bad input is refused by the image, and what breaks is mended.

What is asked of the ensemble is asked twice: of the one process that the local server has for it, and of the three
models with batching that a cluster has.
"""

import contextlib
import fcntl
import functools
import importlib
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from square_detector import HEIGHT, WIDTH, cell_box, picture, write_detector
from triton_server import Client, leftovers, needs_triton, texts

from components.decode.description import at_operating_point
from components.decode.grid.clustering import Clustering
from components.detectnet_v2.served import served
from components.serve import config, wheel
from components.serve import server as server_module
from components.serve.config import RepositorySettings, configurations
from components.serve.local import local_settings
from components.serve.release import LIVENESS_COMMAND, SERVER_ARGUMENTS
from components.serve.repository import build_repository
from components.serve.server import LocalServer, Ports
from components.step import StageError, UserError, read_manifest, write_manifest
from components.vision.endpoint import Endpoint
from components.vision.predictor import detect_images, load_predictor
from components.vision.scoring import network_input

pytest.importorskip("tritonclient.http")
tritonclient_grpc = pytest.importorskip("tritonclient.grpc")
InferenceServerException = tritonclient_grpc.InferenceServerException
pytestmark = needs_triton

MAX_PIXELS = 4_000_000
BATCH = 8
# Overlapping candidates are merged, so that boxes and scores are sums of many numbers.
CLUSTERING = Clustering(coverage_threshold=0.005, dbscan_eps=0.6, dbscan_min_samples=0.05)


def write_model(folder):
    """A detector whose candidate boxes reach into the neighbouring cells, and which clusters them."""
    write_detector(folder, threshold=0.1)
    settings = read_manifest(folder, "exported_model")["settings"]
    settings["geometry"]["scale"] = 60.0
    settings["clustering"] = {"face": asdict(CLUSTERING)}
    write_manifest(folder, "exported_model", {}, settings)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("serve") / "exported")


def build_one_process(model, folder):
    settings = RepositorySettings("python", max_batch_size=BATCH, threads=2, instances=2, max_image_pixels=MAX_PIXELS)
    build_repository(model, folder, settings)
    return folder / "repository"


def build_three_models(model, folder):
    """Lays a repository out as for a GPU, but for the network, which runs in Python."""
    repository = build_one_process(model, folder)
    settings = RepositorySettings("tensorrt", max_batch_size=BATCH, max_image_pixels=MAX_PIXELS)
    for name, text in configurations(served(model / "model.onnx", settings), settings).items():
        if name != "facenet":
            (repository / name / "config.pbtxt").write_text(text)
    return repository


LAYOUTS = {"one process": build_one_process, "three models": build_three_models}


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Repository of the detector whose answers are known."""
    folder = tmp_path_factory.mktemp("serve")
    return build_one_process(write_detector(folder / "exported"), folder / "built")


@pytest.fixture(scope="module", params=LAYOUTS)
def server(request, tmp_path_factory):
    """The server that most tests share."""
    folder = tmp_path_factory.mktemp("serve")
    repository = LAYOUTS[request.param](write_detector(folder / "exported"), folder / "built")
    with LocalServer(repository, folder / "server.log") as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    client = Client(server)
    yield client
    client.close()


def encoded(image, suffix=".png", *options):
    return cv2.imencode(suffix, image, options)[1].tobytes()


def face_picture(*cells, suffix=".png", **size):
    return encoded(picture(cells, **size), suffix)


def with_orientation(jpeg, orientation):
    """Returns a JPEG with an EXIF segment that says how to turn it."""
    tiff = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + b"\0\0\0\0"
    segment = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def png_header(width, height):
    """Returns a small PNG file that promises this many pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def blurred(random, width, height):
    """Returns an image in which coverage takes all values from 0 to 1."""
    coarse = random.integers(0, 256, (8, 12, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + random.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)


def in_process(predictor, content):
    """Returns detections [K, 6] as this process finds them, mapped back to the pixels of the image."""
    pixels, placement = network_input(content, "image", predictor.input)
    rows = detect_images(predictor, pixels[None])[0].rows()
    offset = np.array(placement.offset * 2, np.float64)
    boxes = ((rows[:, :4].astype(np.float64) - offset) / placement.scale[0]).astype(np.float32)
    return np.column_stack([boxes, rows[:, 4], np.zeros(len(rows), np.float32)])


# --- exactness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_served_boxes_are_those_of_this_process_bit_for_bit(exported, tmp_path, layout):
    random = np.random.default_rng(0)
    sizes = [(WIDTH, HEIGHT), (640, 480), (333, 777), (1000, 90), (17, 23), (1, 1), (1500, 1000)]
    images = [encoded(blurred(random, *size), suffix) for size in sizes for suffix in (".png", ".jpg")]
    predictor = load_predictor(exported)
    with LocalServer(LAYOUTS[layout](exported, tmp_path / "built"), tmp_path / "log") as running:
        client = Client(running)
        alone = [client.detections(image)[0] for image in images]
        together = [rows for at in range(0, len(images), 7) for rows in client.detections(*images[at : at + 7])]
        client.close()
    wanted = [in_process(predictor, image) for image in images]
    assert sum(map(len, wanted)) > 50
    assert len({round(float(score), 3) for rows in wanted for score in rows[:, 4]}) > 30
    for one, many, rows in zip(alone, together, wanted, strict=True):
        np.testing.assert_array_equal(one, rows)
        np.testing.assert_array_equal(many, rows)


def test_known_faces_are_found_in_their_own_pixels(client):
    outputs = client.ask(face_picture((1, 1), (4, 2)))
    np.testing.assert_array_equal(outputs["true_boxes"], [[cell_box(1, 1), cell_box(4, 2)]])
    assert (outputs["true_proba"] > 0.99).all()
    assert outputs["num_detections"].tolist() == [[2]]
    assert outputs["true_image_size"].tolist() == [[HEIGHT, WIDTH, 3]]
    assert texts(outputs["image_error"]) == [""]
    kinds = {name: str(array.dtype) for name, array in outputs.items()}
    assert kinds == {
        "true_boxes": "float32",
        "true_proba": "float32",
        "true_class": "int32",
        "num_detections": "int32",
        "true_image_size": "int64",
        "image_error": "uint8",
    }


def test_an_image_without_faces_has_none(client):
    outputs = client.ask(face_picture())
    assert outputs["num_detections"].tolist() == [[0]]
    assert not outputs["true_boxes"].any()


def test_boxes_of_a_letterboxed_image_lie_in_the_image(client):
    image = cv2.resize(picture([(1, 1)]), (WIDTH * 5, HEIGHT * 5), interpolation=cv2.INTER_NEAREST)
    tall = cv2.copyMakeBorder(image, 0, HEIGHT * 5, 0, 0, cv2.BORDER_CONSTANT, value=(0, 255, 0))
    (rows,) = client.detections(encoded(image))
    np.testing.assert_allclose(rows[:, :4], [np.multiply(cell_box(1, 1), 5)], atol=1e-3)
    # In a picture twice as high a face is half as large to the network, and between its cells.
    assert client.ask(encoded(tall))["true_image_size"].tolist() == [[HEIGHT * 10, WIDTH * 5, 3]]


def test_exif_orientation_is_honoured(client):
    upright = picture([(1, 1), (4, 3)])
    stored = cv2.rotate(upright, cv2.ROTATE_90_COUNTERCLOCKWISE)
    jpeg = with_orientation(encoded(stored, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 100), 6)
    outputs = client.ask(jpeg)
    assert outputs["true_image_size"].tolist() == [[HEIGHT, WIDTH, 3]]
    boxes = sorted(outputs["true_boxes"][0].tolist())
    np.testing.assert_array_equal(boxes, [cell_box(1, 1), cell_box(4, 3)])


@pytest.fixture
def cv2_threads():
    threads = cv2.getNumThreads()
    yield
    cv2.setNumThreads(threads)


@pytest.mark.usefixtures("cv2_threads")
def test_a_stretched_image_fills_the_network(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.ModuleType("triton_python_backend_utils"))
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "1")  # restored afterwards
    geometry = {"width": WIDTH, "height": HEIGHT}
    values = {"geometry": geometry, "preprocessing": "stretch", "max_image_pixels": MAX_PIXELS}
    preprocess = importlib.import_module("components.serve.models.preprocess").Preprocess(values, Path())
    wide = cv2.resize(picture([(2, 1)]), (WIDTH * 4, HEIGHT // 2), interpolation=cv2.INTER_NEAREST)
    outputs = preprocess({"input_image_data": np.frombuffer(encoded(wide), np.uint8)[None]}, {})
    narrow = cv2.resize(wide, (WIDTH, HEIGHT // 2), interpolation=cv2.INTER_AREA)
    stretched = cv2.resize(narrow, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)[..., ::-1].transpose(2, 0, 1)
    np.testing.assert_array_equal(outputs["input_1"], stretched[None].astype(np.float32) / np.float32(255))
    assert outputs["placement"].tolist() == [[1 / 4, 2, 0, 0]]
    assert outputs["true_image_size"].tolist() == [[HEIGHT // 2, WIDTH * 4, 3]]


@pytest.fixture
def network_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.ModuleType("triton_python_backend_utils"))
    return importlib.import_module("components.serve.models.network")


@pytest.mark.parametrize(("cores", "threads", "takes_turns"), [(2, 2, True), (3, 2, True), (2, 1, False), (4, 0, True)])
def test_networks_take_turns_where_two_do_not_fit_on_the_cores(
    exported, monkeypatch, network_module, cores, threads, takes_turns
):
    monkeypatch.setattr(network_module, "available_cores", lambda: cores)
    outputs = ["output_bbox/BiasAdd", "output_cov/Sigmoid"]
    values = {"file": "model.onnx", "input": "input_1", "outputs": outputs, "threads": threads}
    network = network_module.Network(values, exported)
    pixels = np.zeros((1, 3, HEIGHT, WIDTH), np.float32)
    with (exported / "model.onnx").open("rb") as other, ThreadPoolExecutor() as pool:
        fcntl.flock(other, fcntl.LOCK_EX)
        running = pool.submit(network.run, pixels)
        done, _ = wait([running], timeout=0.3 if takes_turns else 20)
        assert bool(done) is not takes_turns
        fcntl.flock(other, fcntl.LOCK_UN)
        assert [output.shape[0] for output in running.result(20)] == [1, 1]


def test_requests_of_a_batch_are_worked_on_side_by_side(monkeypatch):
    """One decoder after the other would keep a GPU waiting."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.ModuleType("triton_python_backend_utils"))
    tensors = importlib.import_module("components.serve.models.tensors")
    monkeypatch.setattr(tensors, "pb_utils", types.SimpleNamespace(InferenceResponse=list))
    monkeypatch.setattr(tensors, "available_cores", lambda: 3)
    together, seen = threading.Barrier(3), []
    asked = ['{"min_score": "0.3"}', '{"min_score": 0.4}', ""]
    requests = [types.SimpleNamespace(parameters=lambda text=text: text) for text in asked]

    class Waiting(tensors.Step):
        def __init__(self, parameters, folder):
            pass

        def __call__(self, _inputs, asked):
            together.wait(10)
            seen.append(asked)
            return {}

    model = type("Model", (tensors.Model,), {"step": Waiting})()
    model.initialize({"model_config": '{"parameters": {}, "input": []}', "model_repository": "."})
    assert model.execute(requests) == [[], [], []]
    model.finalize()
    assert sorted(seen, key=str) == [{"min_score": "0.3"}, {"min_score": 0.4}, {}]


# --- from which score on objects are shown ----------------------------------------------------------------------------

POINT = 0.9
# By red of a cell, its score.
SHARES = {0.62: 0.69, 0.65: 0.88, 0.66: 0.917, 0.9: 1.0}


def shades():
    """A cell for each share of red."""
    image = picture([])
    for column, share in enumerate(SHARES):
        image[16:32, 16 * column : 16 * column + 16] = (0, 0, round(255 * share))
    return encoded(image)


@pytest.fixture(scope="module", params=LAYOUTS)
def graded(request, tmp_path_factory):
    """A server whose model says at which score its F1 is best."""
    folder = tmp_path_factory.mktemp("serve")
    model = write_detector(folder / "exported")
    settings = read_manifest(model, "exported_model")["settings"]
    write_manifest(model, "exported_model", {}, at_operating_point(settings, {"face": POINT}))
    with LocalServer(LAYOUTS[request.param](model, folder / "built"), folder / "server.log") as running:
        yield running


def test_served_from_the_operating_point_on_unless_the_request_says_otherwise(graded):
    for url in (graded.http_url, graded.grpc_url):
        for asked, scores in (
            (None, [1.0, 0.917]),
            (0.0, [1.0, 0.917, 0.88, 0.69]),
            (0.7, [1.0, 0.917, 0.88]),
            (2, []),
        ):
            with Endpoint(url, "facenet_ensemble", min_score=asked) as endpoint:
                assert endpoint.shown_from == {"face": POINT}
                assert endpoint.detect([shades()])[0]["face"][:, 4].tolist() == pytest.approx(scores, abs=0.01)


def ask_rest(server, **parameters):
    tensor = {"name": "input_image_data", "shape": [1, len(shades())], "datatype": "UINT8", "data": [*shades()]}
    url = f"{server.http_url}/v2/models/facenet_ensemble/infer"
    with urllib.request.urlopen(url, json.dumps({"parameters": parameters, "inputs": [tensor]}).encode()) as answer:
        outputs = {output["name"]: output["data"] for output in json.loads(answer.read())["outputs"]}
    return outputs["num_detections"]


def test_a_plain_request_of_kserves_protocol_says_it_as_a_number_or_as_text(graded):
    assert [ask_rest(graded), ask_rest(graded, min_score=0.7), ask_rest(graded, min_score="0.7")] == [[2], [3], [3]]
    assert [ask_rest(graded, min_score=0), ask_rest(graded, min_score=1)] == [[4], [0]]
    for wrong in ("high", True, "nan"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask_rest(graded, min_score=wrong)
        assert f"min_score {wrong!r}: give a number, for example 0.3" in refused.value.read().decode()


def test_requests_of_one_batch_keep_their_own_scores(graded):
    client = Client(graded)
    started = [
        client.start(shades(), parameters={} if asked is None else {"min_score": str(asked)})
        for asked in (None, 0, 0.7, 2) * 8
    ]
    counts = [request.get_result().as_numpy("num_detections").tolist() for request in started]
    client.close()
    assert counts == [[[2]], [[4]], [[3]], [[0]]] * 8


def test_a_repository_may_show_objects_from_another_score_on(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.ModuleType("triton_python_backend_utils"))
    postprocess = importlib.import_module("components.serve.models.postprocess").Postprocess
    model = write_detector(tmp_path / "exported")
    write_manifest(
        model,
        "exported_model",
        {},
        at_operating_point(read_manifest(model, "exported_model")["settings"], {"face": POINT}),
    )
    predictor = load_predictor(model)
    pixels, placement = network_input(shades(), "shades", predictor.input)
    inputs = {
        **predictor(pixels[None]),
        "placement": np.array([[*placement.scale, *placement.offset]]),
        "true_image_size": np.array([[HEIGHT, WIDTH, 3]]),
    }
    for own, asked, count in ((None, None, 2), (0.0, None, 4), (0.7, None, 3), (0.7, 2, 0)):
        settings = RepositorySettings("python", min_score=own)
        step = served(model / "model.onnx", settings).steps["facenet_postprocess"]
        answer = postprocess(step.parameters, tmp_path)(inputs, {} if asked is None else {"min_score": asked})
        assert answer["num_detections"].tolist() == [[count]]


# --- several images ---------------------------------------------------------------------------------------------------


def test_shorter_results_of_a_request_are_padded_with_zeros(client):
    images = [face_picture((0, 0), suffix=".jpg"), face_picture(), face_picture((1, 1), (2, 2), (3, 3))]
    outputs = client.ask(*images)
    assert outputs["num_detections"].tolist() == [[1], [0], [3]]
    assert outputs["true_boxes"].shape == (3, 3, 4)
    np.testing.assert_array_equal(outputs["true_boxes"][0, 0], cell_box(0, 0))
    for index, count in enumerate((1, 0, 3)):
        for name in ("true_boxes", "true_proba", "true_class"):
            assert not outputs[name][index, count:].any()


def test_a_short_jpeg_in_a_request_with_a_long_one_is_whole(client):
    random = np.random.default_rng(1)
    long = encoded(random.integers(0, 256, (500, 500, 3), np.uint8), ".png")
    short = face_picture((2, 1), suffix=".jpg")
    assert len(long) > len(short) + 100_000
    rows, _ = client.detections(short, long)
    np.testing.assert_array_equal(rows[:, :4], [cell_box(2, 1)])


@pytest.mark.parametrize("server", ["three models"], indirect=True)
def test_concurrent_requests_of_different_lengths_are_batched_and_each_gets_its_own_answer(client):
    before = executions(client, "facenet_preprocess")
    random = np.random.default_rng(2)
    noise = encoded(random.integers(0, 256, (1500, 1500, 3), np.uint8))
    cells = [(int(index) % 6, int(index) // 6 % 4) for index in random.integers(0, 24, 120)]
    images = []
    for index, cell in enumerate(cells):
        factor = (1, 1, 2, 3)[index % 4]
        large = cv2.resize(picture([cell]), None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
        images.append((encoded(large) + b"\0" * index, np.multiply(cell_box(*cell), factor)))
    slow = [client.start(noise) for _ in range(8)]  # while they are decoded, the others wait
    pending = [(client.start(image), box) for image, box in images]
    for request, box in pending:
        np.testing.assert_allclose(request.get_result().as_numpy("true_boxes"), [[box]], atol=1e-3)
    for request in slow:
        request.get_result()
    inferences, runs = np.subtract(executions(client, "facenet_preprocess"), before)
    assert inferences == len(images) + len(slow)
    assert runs < inferences, "the server was never given two requests at once"


def executions(client, model):
    (statistics,) = client.raw.get_inference_statistics(model)["model_stats"]
    return int(statistics["inference_count"]), int(statistics["execution_count"])


# --- bad input --------------------------------------------------------------------------------------------------------

BAD_IMAGES = {
    "text": (b"this is no picture\n" * 20, "image: not an image that OpenCV can decode"),
    "cut JPEG": (face_picture((1, 1), suffix=".jpg")[:-200], "image: the JPEG is cut off"),
    "50 megapixels": (png_header(8000, 6300), "image: more than the 4 million pixels that this server takes"),
    "one byte": (b"\0", "image: not an image that OpenCV can decode"),
}


def refusal(request):
    with pytest.raises(Exception, match=r".") as caught:
        request.get_result()
    return caught.value.message()


@pytest.fixture
def still_alive(client):
    """After whatever a test has sent, the server answers."""
    yield
    assert len(client.detections(face_picture((1, 1)))[0]) == 1


@pytest.mark.parametrize("name", BAD_IMAGES)
@pytest.mark.usefixtures("still_alive")
def test_a_bad_image_is_an_error_that_says_why(client, name):
    content, words = BAD_IMAGES[name]
    assert words in refusal(client.start(content))


@pytest.mark.usefixtures("still_alive")
def test_a_large_image_within_the_limit_is_answered(client):
    large = np.zeros((2000, 2000, 3), np.uint8)
    assert client.ask(encoded(large, ".png", cv2.IMWRITE_PNG_COMPRESSION, 1))["true_image_size"].tolist() == [
        [2000, 2000, 3]
    ]


@pytest.mark.usefixtures("still_alive")
def test_requests_batched_with_a_bad_one_are_answered(client):
    good = face_picture((3, 2))
    bad = [content for content, _ in BAD_IMAGES.values()]
    pending = [(client.start(bad[index % 4] if index % 3 == 1 else good), index % 3 == 1) for index in range(48)]
    for request, is_bad in pending:
        if is_bad:
            assert "image: " in refusal(request)
        else:
            np.testing.assert_array_equal(request.get_result().as_numpy("true_boxes"), [[cell_box(3, 2)]])


@pytest.mark.usefixtures("still_alive")
def test_a_bad_image_among_several_of_a_request_is_marked_and_the_others_are_answered(client):
    outputs = client.ask(face_picture((3, 2)), BAD_IMAGES["text"][0], face_picture((0, 0), (5, 3)))
    # Triton knows an error of a whole request only.
    assert outputs["num_detections"].tolist() == [[1], [-1], [2]]
    assert outputs["true_image_size"][1].tolist() == [0, 0, 0]
    assert texts(outputs["image_error"]) == ["", "not an image that OpenCV can decode", ""]
    assert not outputs["true_boxes"][1].any()
    np.testing.assert_array_equal(outputs["true_boxes"][2], [cell_box(0, 0), cell_box(5, 3)])


@pytest.mark.usefixtures("still_alive")
def test_a_request_without_a_good_image_fails(client):
    said = refusal(client.start(BAD_IMAGES["text"][0], BAD_IMAGES["50 megapixels"][0]))
    assert "image: none of 2 can be read, the first: not an image" in said


@pytest.mark.parametrize(
    ("shape", "kind", "words"),
    [
        ((1, 0), "UINT8", "image: the file is empty"),
        ((BATCH + 1, 100), "UINT8", "batch-size must be <= 8"),
        ((1, 2, 100), "UINT8", "unexpected shape"),
        ((100,), "UINT8", "unexpected shape|batch-size"),
        ((1, 100), "FP32", "data-type"),
    ],
    ids=["0 bytes", "oversized batch", "wrong shape", "no batch", "wrong type"],
)
@pytest.mark.usefixtures("still_alive")
def test_a_wrong_request_is_refused(client, shape, kind, words):
    array = np.zeros(shape, np.uint8 if kind == "UINT8" else np.float32)
    with pytest.raises(Exception, match=words):
        client.start_tensor(array, kind).get_result()


@pytest.mark.usefixtures("still_alive")
def test_an_unknown_model_or_input_is_refused(client):
    assert "unknown model: 'facenet_ensembl'" in refusal(client.start(face_picture(), model="facenet_ensembl"))
    array = np.zeros((1, 10), np.uint8)
    assert "image" in refusal(client.start_tensor(array, "UINT8", name="image"))


# --- the server -------------------------------------------------------------------------------------------------------


def test_it_listens_on_this_machine_only(server):
    sockets = psutil.Process(server._process.pid).net_connections("tcp")
    addresses = [address.laddr for address in sockets if address.status == psutil.CONN_LISTEN]
    listening = {(host.removeprefix("::ffff:"), port) for host, port in addresses}
    assert listening == {("127.0.0.1", port) for port in (server.ports.http, server.ports.grpc, server.ports.metrics)}


def test_models_run_in_this_environment(server):
    for pid in server._stubs.values():
        environment = psutil.Process(pid).environ()
        assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
        assert not {"PYTHONPATH", "AWS_SECRET_ACCESS_KEY", "PYTEST_CURRENT_TEST"} & environment.keys()


@pytest.mark.parametrize("server", ["one process"], indirect=True)
def test_the_memory_of_an_image_is_kept_for_the_next_one(server, client):
    image = encoded(np.zeros((900, 1200, 3), np.uint8), ".jpg")
    processes = [psutil.Process(pid) for name, pid in server._stubs.items() if name.startswith("facenet_ensemble")]

    def fetched():
        """Returns how many pages the processes have fetched from the kernel."""
        return sum(
            int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[7]) for process in processes
        )

    for _ in range(20):
        client.ask(image)
    before = fetched()
    for _ in range(20):
        client.ask(image)
    assert fetched() - before < 20 * 100, "an image has 800 pages"


def test_the_log_is_quiet_about_requests(server, client):
    before = server.log.stat().st_size
    client.ask(face_picture((1, 1)))
    assert server.log.stat().st_size == before


# --- as it is started where others reach it ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_a_cluster(squares, tmp_path_factory):
    """The local server, started as the manifests start Triton, and not mended."""
    folder = tmp_path_factory.mktemp("cluster")
    program, start = wheel.server_program(), folder / "start"
    start.write_text(f'#!/bin/sh\nPATH={program.parent}:$PATH exec {shlex.join(SERVER_ARGUMENTS)} "$@"\n')
    start.chmod(0o755)
    running = LocalServer(squares, folder / "log")
    running._mend = lambda: None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wheel, "server_program", lambda: start)
        running.start()
    yield running
    running.stop()


def test_administrative_interfaces_are_shut_and_those_of_clients_are_open(in_a_cluster):
    client = Client(in_a_cluster)
    grpc = tritonclient_grpc.InferenceServerClient(in_a_cluster.grpc_url.removeprefix("grpc://"))
    shut = [
        lambda raw: raw.get_model_repository_index(),
        lambda raw: raw.load_model("facenet"),
        lambda raw: raw.unload_model("facenet"),
        lambda raw: raw.register_system_shared_memory("region", "/region", 8),
        lambda raw: raw.get_system_shared_memory_status(),
        lambda raw: raw.get_cuda_shared_memory_status(),
        lambda raw: raw.get_inference_statistics("facenet"),
        lambda raw: raw.get_log_settings(),
        lambda raw: raw.update_log_settings({"log_file": "/tmp/somewhere"}),
        lambda raw: raw.update_trace_settings(settings={"trace_file": "/tmp/somewhere"}),
    ]
    try:
        for raw in (client.raw, grpc):
            for call in shut:
                with pytest.raises(Exception, match="restricted, expecting header"):
                    call(raw)
            assert raw.is_server_ready()
            assert raw.is_model_ready("facenet_ensemble")
            assert raw.get_model_config("facenet_ensemble")
            assert raw.get_model_metadata("facenet_ensemble")
        assert len(client.detections(face_picture((1, 1)))[0]) == 1
    finally:
        grpc.close()
        client.close()


def test_the_key_to_the_administration_is_drawn_anew_at_each_start_and_not_told():
    keys = set()
    for _ in range(2):
        shown = subprocess.run(
            [*SERVER_ARGUMENTS[:2], SERVER_ARGUMENTS[2].replace("exec tritonserver", "echo"), *SERVER_ARGUMENTS[3:]],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert shown.endswith(f" {' '.join(SERVER_ARGUMENTS[4:])}\n")
        keys |= set(re.findall(r"administrator=([0-9a-f-]{36})\b", shown))
    assert len(keys) == 2


def test_the_served_configuration_tells_the_digest_of_the_repository(in_a_cluster, squares):
    digest = read_manifest(squares.parent, "model_repository")["settings"]["repository_digest"]
    with Endpoint(in_a_cluster.grpc_url, "facenet_ensemble") as endpoint:
        assert endpoint.parameters["gridbox_digest"] == digest


def test_liveness_fails_when_a_models_process_has_died_though_triton_says_ready(in_a_cluster):
    # The container sees the processes of its own; here are those of other servers, too.
    mine = " ".join(f"/proc/{pid}/stat" for pid in in_a_cluster._stubs.values())
    command = [*LIVENESS_COMMAND[:2], LIVENESS_COMMAND[2].replace("/proc/[0-9]*/stat", mine)]
    assert command != list(LIVENESS_COMMAND)
    assert subprocess.run(command, check=False).returncode == 0
    os.kill(in_a_cluster._stubs["facenet_ensemble_0_0"], signal.SIGKILL)
    until(lambda: subprocess.run(command, check=False).returncode == 1)
    assert in_a_cluster._call("GET", "/v2/health/ready")[0] == 200
    assert in_a_cluster._call("GET", "/v2/models/facenet_ensemble/ready")[0] == 200


def test_more_requests_than_may_wait_are_refused_at_once_and_the_others_answered(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "QUEUE_LENGTH", 3)
    repository = build_three_models(write_detector(tmp_path / "exported"), tmp_path / "built")
    with LocalServer(repository, tmp_path / "log") as running:
        client = Client(running)
        slow = encoded(np.random.default_rng(3).integers(0, 256, (1200, 1200, 3), np.uint8))
        pending = [client.start(slow) for _ in range(24)]
        said = [outcome(request) for request in pending]
        client.close()
    refused = [text for text in said if "Exceeds maximum queue size" in text]
    assert refused
    assert len(refused) + said.count("") == len(pending)
    assert said.count("") >= 4


def outcome(request):
    """Returns the error of a request, empty if there is none."""
    try:
        request.get_result()
    except InferenceServerException as error:
        return error.message()
    return ""


def until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def answered(client):
    try:
        return len(client.detections(face_picture((1, 1)))[0]) == 1
    except Exception:  # tritonclient lets those of its HTTP library through
        return False


def test_what_dies_is_started_again_and_nothing_is_left_behind(squares, tmp_path):
    said = []
    files = sorted(squares.rglob("*"))
    with LocalServer(squares, tmp_path / "log", say=said.append) as running:
        break_and_watch(running, said)
    running.wait()
    assert leftovers(running) == []
    assert sorted(squares.rglob("*")) == files


def break_and_watch(running, said):
    client = Client(running)
    for model in ("facenet_preprocess", "facenet", "facenet_ensemble"):
        before = running._stubs[f"{model}_0_0"]
        os.kill(before, signal.SIGKILL)
        until(lambda: running._stubs[f"{model}_0_0"] != before)  # noqa: B023 - called at once
        until(functools.partial(answered, client))
        assert said == running.repairs == [f"a process of {model} died; loaded the model again"]
        running.repairs.clear()
        said.clear()
    # The server itself dies while it replaces a process.
    ports, server_process = running.ports, running._process
    os.kill(running._stubs["facenet_0_0"], signal.SIGKILL)
    until(lambda: said)
    pending = [client.start(face_picture((1, 1))) for _ in range(30)]
    os.kill(server_process.pid, signal.SIGKILL)
    for request in pending:  # each has an answer or an error, none waits for ever
        with contextlib.suppress(Exception):
            request.get_result(timeout=30)
    until(functools.partial(answered, client))
    assert running.ports == ports
    assert said[0] == "a process of facenet died; loaded the model again"
    assert said[1:] in (
        ["the server ended (exit code -9); started again"],
        ["the server does not answer; started again"],
    )
    client.close()


def test_a_model_that_dies_again_and_again_is_given_up(squares, tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "MOST_REPAIRS", 1)
    running = LocalServer(squares, tmp_path / "log")
    with running:
        first = running._stubs["facenet_postprocess_0_0"]
        os.kill(first, signal.SIGKILL)
        second = until(
            lambda: running._stubs["facenet_postprocess_0_0"] != first and running._stubs["facenet_postprocess_0_0"]
        )
        os.kill(second, signal.SIGKILL)
        until(running._ended.is_set)
        with pytest.raises(StageError, match=r"keeps breaking \(1 times within 60 s\); the end of .*log:\n"):
            running.wait()
    assert leftovers(running) == []


def test_a_model_that_does_not_load_is_told_with_the_end_of_the_log(squares, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(squares, broken)
    (broken / "facenet" / "1" / "model.onnx").write_bytes(b"no model")
    running = LocalServer(broken, tmp_path / "log")
    with pytest.raises(StageError, match=r"(?s)the Triton server ended with exit code 1; the end of .*model\.onnx"):
        running.start()
    assert leftovers(running) == []


def test_a_taken_port_is_named(squares, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        running = LocalServer(squares, tmp_path / "log", Ports(0, port, 0))
        with pytest.raises(
            UserError, match=rf"port {port} is taken .*; end who listens there, or give another --grpc-port"
        ):
            running.start()
    assert leftovers(running) == []


def test_a_free_port_that_somebody_takes_meanwhile_is_replaced(squares, tmp_path, monkeypatch):
    # The metrics' port is the one that Triton binds after it has said that it is ready.
    resolve = server_module._resolved
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        attempts = []

        def first_time_taken(ports):
            attempts.append(resolve(ports))
            if len(attempts) > 1:
                return attempts[-1]
            return replace(attempts[-1], metrics=port)

        monkeypatch.setattr(server_module, "_resolved", first_time_taken)
        with LocalServer(squares, tmp_path / "log") as running:
            client = Client(running)
            assert answered(client)
            client.close()
            assert len(attempts) == 2
            assert running.ports == attempts[1]


def test_another_server_on_the_port_is_not_taken_for_it(server, squares, tmp_path):
    other = LocalServer(squares, tmp_path / "log")
    other.ports = server.ports
    assert not other._is_ready()
    assert server._is_ready()


def test_a_missing_wheel_is_named_with_the_command(squares, tmp_path, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(
        UserError, match=r"^the local Triton server is not installed: pip install --no-deps nvidia-pytriton==0"
    ):
        LocalServer(squares, tmp_path / "log").start()


def test_another_version_of_the_wheel_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.5.7")
    with pytest.raises(UserError, match=r"nvidia-pytriton 0\.5\.7 is installed"):
        wheel.server_program()


PROGRAM = """
import sys
from components import program
from components.serve import commands
sys.exit(program.run(commands.app, sys.argv[1:], "gridbox serve"))
"""


def serve(*words, cache):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, words), "--http-port=0", "--grpc-port=0", "--metrics-port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "TMPDIR": str(cache), "PYTHONUNBUFFERED": "1"},
    )


def triton_of(process):
    return until(lambda: [child for child in psutil.Process(process.pid).children() if child.name() == "tritonserver"])[
        0
    ]


def test_the_command_serves_an_exported_model_until_it_is_interrupted(exported, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(exported)
    process = serve(tmp_path / "run", cache=tmp_path)
    lines = iter(process.stdout.readline, "")
    printed = "".join(iter(functools.partial(next, lines), "Ctrl-C ends it.\n"))
    triton = triton_of(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    assert f"{tmp_path / 'run' / 'model'}: served as facenet_ensemble\n  HTTP     http://127.0.0.1:" in printed
    assert "try:  gridbox detect photo.jpg --url grpc://127.0.0.1:" in printed
    assert not triton.is_running()


def test_the_server_ends_with_a_command_that_is_killed(exported, tmp_path):
    process = serve(exported, cache=tmp_path)
    triton = triton_of(process)
    until(lambda: len(triton.children()) == 3 + local_settings().instances)
    family = [triton, *triton.children()]
    process.kill()
    process.wait()
    assert psutil.wait_procs(family, timeout=15)[1] == []
    process.stdout.close()
