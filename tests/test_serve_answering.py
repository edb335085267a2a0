"""Whether the model that answers is the one that was deployed."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from test_serve_kserve import service

from components.serve.answering import question, verify
from components.serve.kserve import Mode, Protocol
from components.step import StageError


@pytest.fixture
def endpoint():
    """Triton's model configuration over HTTP; yields (URL, what it answers in turn, what it was asked)."""
    answers, asked = [], []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            asked.append((self.path, self.headers["Host"]))
            digest = answers.pop(0) if len(answers) > 1 else answers[0]
            parameters = {"gridbox_digest": {"string_value": json.dumps(digest)}} if digest else {}
            body = json.dumps({"name": "facenet_ensemble", "parameters": parameters}).encode()
            self.send_response(200 if digest != "503" else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", answers, asked
    server.shutdown()
    server.server_close()


def test_model_proves_itself_by_the_digest_in_its_configuration(endpoint):
    url, answers, asked = endpoint
    answers[:] = ["d" * 64]
    assert verify(question(url, service()), "d" * 64, 0) == f"the model that answers is this one (digest {'d' * 12})"
    assert asked == [("/v2/models/facenet_ensemble/config", url.removeprefix("http://"))]


def test_former_model_may_answer_for_a_moment(endpoint):
    url, answers, _ = endpoint
    answers[:] = ["a" * 64, "503", "d" * 64]
    assert "is this one" in verify(question(url, service()), "d" * 64, 0)


@pytest.mark.parametrize("digest", ["a" * 64, ""])
def test_another_model_is_refused(endpoint, digest):
    url, answers, _ = endpoint
    answers[:] = [digest]
    with pytest.raises(StageError, match=f"its digest is {digest[:12] or 'not told'}, dddddddddddd was deployed"):
        verify(question(url, service()), "d" * 64, 0)


def test_gateway_is_asked_for_the_services_host(endpoint):
    url, answers, asked = endpoint
    answers[:] = ["d" * 64]
    gateway = url.removeprefix("http://")
    assert "is this one" in verify(question("http://facenet.face.example.com", service(), gateway), "d" * 64, 0)
    assert asked[0][1] == "facenet.face.example.com"


def test_where_nobody_can_ask_the_pods_are_relied_on_and_it_is_said():
    unreachable = question("http://127.0.0.1:9", service())
    assert "cannot be asked from here ([Errno 111] Connection refused); relying on its pods" in verify(
        unreachable, "d" * 64, 0
    )
    assert "published by an older release" in verify(unreachable, "", 0)
    assert "speaks gRPC alone" in verify(None, "d" * 64, 0)


def test_grpc_service_is_asked_at_its_http_port_where_it_has_one():
    grpc = service(protocol=Protocol.grpc)
    assert question("http://f.face.svc", grpc).full_url == "http://f.face.svc:8080/v2/models/facenet_ensemble/config"
    assert question("http://f.face.svc", service(protocol=Protocol.grpc, mode=Mode.knative)) is None
    assert question("http://f.face.svc", grpc, "istio:80") is None
