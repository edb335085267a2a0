import json
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np
import pytest
from scripted_endpoint import Server, script, write_model

from components.step import StageError, UserError
from components.vision import endpoint_connection
from components.vision.endpoint import Endpoint
from components.vision.endpoint_connection import Address, NoServerError

FACE = [10, 20, 30.5, 40, 0.75, 0]
HAND = [1, 2, 3, 4, 0.5, 1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton")
    write_model(folder / "models")
    write_model(folder / "models", "two_classes", ("face", "hand"), instances=1)
    write_model(folder / "models", "nameless", (), instances=1)
    server = Server(folder / "models", folder / "server.log")
    yield server
    server.kill()


@pytest.fixture(params=["http", "grpc"])
def url(request, server):
    return getattr(server, f"{request.param}_url")


def regions():
    return {file.name for file in Path("/dev/shm").glob("gridbox-image-*")}


def test_boxes_come_back_by_class_without_the_padding_of_the_answer(url):
    with Endpoint(url, "facenet_ensemble") as endpoint:
        assert endpoint.class_names == ("face",)
        one, none = endpoint.detect([script(boxes=[FACE], padding=3), script()])
    np.testing.assert_array_equal(one["face"], np.float32([FACE[:5]]))
    assert none["face"].shape == (0, 5)
    with Endpoint(url, "two_classes") as endpoint:
        found = endpoint.detect([script(boxes=[FACE, HAND])])[0]
    assert list(found) == ["face", "hand"]
    np.testing.assert_array_equal(found["hand"], np.float32([HAND[:5]]))


def test_answers_keep_the_order_and_the_keys_of_the_images_though_later_ones_are_done_first(url):
    images = [(f"image {index}", script(sleep=0.2 * (index == 0), size=[1, index + 1])) for index in range(6)]
    with Endpoint(url, "facenet_ensemble", in_flight=2) as endpoint:
        answers = list(endpoint.stream(images))
    assert [(key, answer.width) for key, answer in answers] == [(f"image {i}", i + 1) for i in range(6)]


def test_images_are_taken_as_they_are_needed_and_no_more_than_allowed_are_under_way(url):
    taken = []

    def images():
        for index in range(20):
            taken.append(index)
            yield index, script()

    with Endpoint(url, "facenet_ensemble", in_flight=3) as endpoint:
        answers = endpoint.stream(images())
        for index in range(10):
            next(answers)
            assert len(taken) == index + 3
        answers.close()


def test_several_images_are_worked_on_at_once(url):
    with Endpoint(url, "facenet_ensemble", in_flight=2) as endpoint:
        endpoint.detect([script()])
        begin = time.monotonic()
        endpoint.detect([script(sleep=0.3)] * 2)
    assert time.monotonic() - begin < 0.55  # one after the other, they take 0.6


def test_image_that_fails_has_an_error_and_the_others_are_answered(url):
    images = [script(boxes=[FACE]), script(error="not an image"), b"", script(boxes=[FACE])]
    with Endpoint(url, "facenet_ensemble") as endpoint:
        answers = [answer for _, answer in endpoint.stream(enumerate(images))]
        assert [answer.error for answer in answers] == ["", "not an image", "the file is empty", ""]
        assert [len(answer.detections["face"]) for answer in (answers[0], answers[3])] == [1, 1]
        with pytest.raises(StageError, match=r"no detections for 2 of 4 images.* index 1: not an image"):
            endpoint.detect(images)


def test_shared_memory_gives_the_same_and_is_freed(url):
    before = regions()
    large = script(boxes=[FACE], ignored="x" * (1 << 19))  # does not fit the first region
    images = [script(boxes=[FACE]), large, script(error="bad"), script(boxes=[FACE, FACE])]
    with Endpoint(url, "facenet_ensemble", shared_memory=True, in_flight=2) as endpoint:
        answers = [answer for _, answer in endpoint.stream(enumerate(images * 3))]
        assert [len(answer.detections.get("face", "x" * 9)) for answer in answers] == [1, 1, 9, 2] * 3
        assert 1 <= len(regions() - before) <= 2
    assert regions() == before


def test_shared_memory_that_the_server_cannot_see_is_explained(url, monkeypatch):
    # As a server in a container: the memory is not where it is said to be.
    real, before = shared_memory.SharedMemory, regions()
    monkeypatch.setattr(endpoint_connection.Region, "name", property(lambda _: "elsewhere"), raising=False)
    monkeypatch.setattr(endpoint_connection.Region, "__init__", lambda region, size: _unseen(region, size, real))
    with (
        Endpoint(url, "facenet_ensemble", shared_memory=True) as endpoint,
        pytest.raises(UserError, match="a server on this machine"),
    ):
        endpoint.detect([script()])
    assert regions() == before


def _unseen(region, size, real):
    region.size, region._memory = size, real(create=True, size=size)


def test_image_that_takes_too_long_ends_with_one_line(url):
    with (
        Endpoint(url, "facenet_ensemble", timeout=0.2) as endpoint,
        pytest.raises(StageError, match=r"no answer within 0\.2 s$"),
    ):
        endpoint.detect([script(sleep=0.5)])
    with Endpoint(url, "facenet_ensemble") as endpoint:  # and the server goes on
        endpoint.detect([script()])


def test_failing_model_is_no_matter_of_one_image(url):
    with Endpoint(url, "facenet_ensemble") as endpoint:
        with pytest.raises(StageError, match="out of memory"):
            endpoint.detect([script(fail="out of memory")])
        with pytest.raises(StageError, match="makes no sense: 7 detections are announced, 1 boxes came"):
            endpoint.detect([script(count=7)])


def test_unknown_model_and_one_that_does_not_say_its_classes_are_user_errors(url):
    with pytest.raises(UserError, match="unknown model: 'facenet' is not found"):
        Endpoint(url, "facenet")
    with pytest.raises(UserError, match="no parameter class_names"):
        Endpoint(url, "nameless")


def test_nothing_listening_says_how_to_start_a_server():
    for url in ("127.0.0.1:9", "grpc://127.0.0.1:9"):
        with pytest.raises(NoServerError, match=r"no Triton at .*:9 \(.*refused\); start one with `gridbox serve`"):
            Endpoint(url, "facenet_ensemble")


def test_port_of_another_protocol_is_recognised(server):
    ports = server.ports
    for url in (f"127.0.0.1:{ports.metrics}", f"127.0.0.1:{ports.grpc}"):
        with pytest.raises(UserError, match="something answers, but it is no Triton"):
            Endpoint(url, "facenet_ensemble")
    with pytest.raises(UserError, match="no Triton at"):
        Endpoint(f"grpc://127.0.0.1:{ports.http}", "facenet_ensemble")
    for url in (f"https://127.0.0.1:{ports.http}", f"grpcs://127.0.0.1:{ports.grpc}"):
        with pytest.raises(UserError, match="no Triton with TLS"):
            Endpoint(url, "facenet_ensemble")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_server_that_dies_in_mid_request_ends_with_one_line(tmp_path, protocol):
    write_model(tmp_path / "models", instances=1)
    server = Server(tmp_path / "models", tmp_path / "log")
    try:
        with Endpoint(getattr(server, f"{protocol}_url"), "facenet_ensemble", shared_memory=True) as endpoint:
            threading.Timer(0.3, server.kill).start()
            with pytest.raises(StageError, match="the server is gone") as caught:
                endpoint.detect([script(sleep=20)])
    finally:
        server.kill()
    assert "\n" not in str(caught.value)
    assert not regions()


@pytest.mark.parametrize(
    ("words", "protocol", "expected"),
    [
        ("localhost:8000", "http", Address("http", "localhost:8000", False)),
        ("localhost:8001", "grpc", Address("grpc", "localhost:8001", False)),
        ("localhost", "grpc", Address("grpc", "localhost:8001", False)),
        ("http://face.example", "grpc", Address("http", "face.example:80", False)),
        ("https://face.example/triton/", "http", Address("http", "face.example:443/triton", True)),
        ("grpcs://face.example", "http", Address("grpc", "face.example:443", True)),
        ("http://[::1]:8000", "http", Address("http", "[::1]:8000", False)),
    ],
)
def test_addresses(words, protocol, expected):
    assert Address.parse(words, protocol) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "is no server"),
        ("ftp://face.example", "is no server"),
        ("face.example:port", "Port"),
        ("http://face.example?model=x", "is no server"),
        ("grpc://face.example/triton", "gRPC knows no paths"),
        ("http://user:secret@face.example", "password"),
    ],
)
def test_what_is_no_address_is_refused_without_repeating_secrets(words, message):
    with pytest.raises(UserError, match=message) as caught:
        Address.parse(words)
    assert "secret" not in str(caught.value)


class Gateway:
    """Stands before a server that is not there: answers the model's configuration to who asks for the right host."""

    def __init__(self, host, context=None):
        self.paths, self.busy = [], 0
        outputs = [{"name": name} for name in ("true_boxes", "true_proba", "num_detections", "true_image_size")]
        config = {
            "input": [{"name": "input_image_data", "dims": [-1]}],
            "output": outputs,
            "parameters": {"class_names": {"string_value": '["face"]'}},
        }
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self._reply(200, config) if self.headers["Host"] == host else self._reply(404, None)

            def do_POST(self):
                gateway.paths.append(self.path)
                self.rfile.read(int(self.headers["Content-Length"]))
                if gateway.busy:
                    gateway.busy -= 1
                    self._reply(503, {"error": "warming up"})
                else:
                    self._reply(400, {"error": "image: too large"})

            def _reply(self, status, document):
                content = b"no such route" if document is None else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


def test_gateway_is_asked_for_the_host_name_and_told_apart_from_a_server_without_it():
    with Gateway("facenet.face.example") as gateway:
        url = f"http://127.0.0.1:{gateway.port}"
        with pytest.raises(UserError, match=r"no Triton \(404\); .* a gateway that asks for a host name"):
            Endpoint(url, "facenet_ensemble")
        with Endpoint(f"{url}/base", "facenet_ensemble", host="facenet.face.example") as endpoint:
            assert [answer.error for _, answer in endpoint.stream([(0, b"jpeg")])] == ["too large"]
        assert gateway.paths == ["/base/v2/models/facenet_ensemble/infer"]


def test_busy_server_is_asked_again_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(endpoint_connection, "_RETRY_SECONDS", (0.01, 0.01))
    with Gateway("face") as gateway, Endpoint(f"127.0.0.1:{gateway.port}", "facenet_ensemble", host="face") as endpoint:
        gateway.busy = 2
        assert [answer.error for _, answer in endpoint.stream([(0, b"jpeg")])] == ["too large"]
        assert len(gateway.paths) == 3
        gateway.busy = 3
        with pytest.raises(StageError, match=r"gone or refuses work \(.*warming up"):
            endpoint.detect([b"jpeg"])
        assert len(gateway.paths) == 6


def test_tls_wants_the_authority_that_is_named(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    flags = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", *subject]
    subprocess.run(["openssl", "req", *flags, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Gateway("face", context) as gateway:
        url = f"https://localhost:{gateway.port}"
        with pytest.raises(UserError, match=r"no Triton with TLS .*[Cc]ertificate"):
            Endpoint(url, "facenet_ensemble", host="face")
        with Endpoint(url, "facenet_ensemble", host="face", certificates=certificate) as endpoint:
            assert endpoint.class_names == ("face",)
        with pytest.raises(UserError, match="not a file of certificates in PEM"):
            Endpoint(url, "facenet_ensemble", certificates=key)
        with pytest.raises(UserError, match="no such file of certificates"):
            Endpoint(url, "facenet_ensemble", certificates=tmp_path / "absent.pem")


def test_missing_client_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tritonclient.http.aio", None)
    with pytest.raises(UserError, match=r"pip install 'gridbox\[serving\]'"):
        Endpoint("127.0.0.1:9", "facenet_ensemble")
