"""The connection to the Pipelines API: everything that goes wrong is one clear line and the right exit code."""

import socket
import threading

import pytest
from kubeflow_stub import LOGIN_PAGE, Pipelines, certificates

from components.step import StageError, UserError
from pipeline import settings
from pipeline.kubeflow import connection
from pipeline.kubeflow.api import Kubeflow
from pipeline.kubeflow.connection import Connection, Refused, Unavailable

CANARY = "canary-9b3e77"


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No settings but a test's own, no proxies, and no patience."""
    for name in list(settings.os.environ):
        if name.startswith("GRIDBOX_") or name.lower().endswith("_proxy") or name == "KUBERNETES_SERVICE_HOST":
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(connection, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(connection, "LONGEST_PAUSE", 0.01)


def api(stub, **flags):
    configuration = settings.load({"endpoint": stub.url, "timeout": 0.5, **flags})
    return Kubeflow(Connection(configuration), configuration.settings.namespace)


@pytest.fixture
def stub():
    with Pipelines() as stub:
        yield stub


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (400, UserError, r"refused \(400\): boom"),
        (401, UserError, r"not authenticated \(401\): boom; set token_file or GRIDBOX_TOKEN"),
        (403, UserError, r"not allowed, and no namespace is set \(403\): boom; check the namespace"),
        (404, UserError, r"no such thing \(404\): boom"),
        (409, UserError, r"there already, or has changed meanwhile \(409\): boom"),
        (500, StageError, r"the server fails \(500\): boom"),
    ],
)
def test_each_status_has_its_line(stub, status, kind, reason):
    stub.fail("GET", ".*/runs", status)
    with pytest.raises(kind, match=reason) as caught:
        api(stub).runs(1)
    assert "\n" not in str(caught.value)
    assert stub.url in str(caught.value)
    assert stub.count("GET", ".*/runs") == 1, "not to be mended by another try"


@pytest.mark.parametrize(("status", "location"), [(302, "/dex/auth"), (200, None), (403, None)])
def test_a_login_page_is_called_one(stub, monkeypatch, status, location):
    monkeypatch.setenv("GRIDBOX_TOKEN", CANARY)
    headers = {"Location": location} if location else {}
    stub.fail("GET", ".*", status, body=LOGIN_PAGE, headers=headers)
    with pytest.raises(
        Refused, match=r"a web page, such as a login.*the token \(GRIDBOX_TOKEN\) does not open"
    ) as caught:
        api(stub).runs(1)
    assert CANARY not in str(caught.value)
    assert len(stub.calls) == 1, "redirects are not followed: the token would go to another server"


@pytest.mark.parametrize("text", ["not json", "[1]"])
def test_an_answer_that_is_no_object_is_no_api(stub, text):
    stub.fail("GET", ".*", 200, body=text, content_type="application/json")
    with pytest.raises(UserError, match="no JSON object; check the endpoint"):
        api(stub).runs(1)


def test_a_server_without_this_api_is_told_from_a_missing_object(stub):
    with pytest.raises(Refused, match="no such thing") as missing:
        api(stub).run("00000000-0000-0000-0000-000000000000")
    assert missing.value.status == 404
    stub.fail("GET", ".*", 404, body="404 page not found", content_type="text/plain")
    with pytest.raises(Refused, match="no Kubeflow Pipelines API v2beta1 here") as wrong:
        api(stub).pipeline("faces")
    assert wrong.value.status != 404, "else the pipeline would count as missing, and be created"


@pytest.mark.parametrize("status", [429, 502, 503, 504, None])
def test_reading_is_tried_again(stub, status):
    stub.fail("GET", ".*/runs", status, times=2, headers={"Retry-After": "3600"})
    assert api(stub).runs(5) == []
    assert stub.count("GET", ".*/runs") == 3


@pytest.mark.parametrize("status", [429, 503, None])
def test_creating_is_not_tried_again(stub, status):
    stub.fail("POST", ".*/runs", status)
    with pytest.raises((UserError, StageError)) as caught:
        api(stub).create_run({"display_name": "one"})
    assert stub.count("POST", ".*/runs") == 1
    if status is None:
        assert "may have arrived" in str(caught.value)


@pytest.mark.parametrize("call", [lambda api: api.terminate("x"), lambda api: api.enable_schedule("x", enabled=False)])
def test_what_does_no_harm_twice_is_tried_again(stub, call):
    stub.fail("POST", ".*", 503)
    with pytest.raises(Refused, match="404"):
        call(api(stub))
    assert len(stub.calls) == 2


def test_a_body_that_is_too_large_says_what_to_do(stub):
    page = "<html><h1>413 Request Entity Too Large</h1></html>"  # nginx's, which is no login
    stub.fail("POST", ".*/runs", 413, body=page)
    with pytest.raises(
        Refused, match=r"too large.*\(413\); upload the pipeline.*--uploaded.*client_max_body_size"
    ) as caught:
        api(stub).create_run({"display_name": "one"})
    assert "login" not in str(caught.value)


def test_a_gateway_whose_server_is_down_is_no_login(stub):
    stub.fail("GET", ".*", 503, body="<html>no healthy upstream</html>", times=99)
    with pytest.raises(
        Unavailable, match=r"the server fails \(503\); it is starting or overloaded, so try again later"
    ):
        api(stub).runs(1)


def test_tries_end(stub):
    stub.fail("GET", ".*", 503, times=99)
    with pytest.raises(Unavailable, match=r"the server fails \(503\)"):
        api(stub).runs(1)
    assert len(stub.calls) == connection.TRIES


def test_silence_ends_the_waiting(monkeypatch):
    monkeypatch.setattr(connection, "TRIES", 2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted = []
        thread = threading.Thread(target=lambda: accepted.extend(listener.accept() for _ in range(2)), daemon=True)
        thread.start()
        configuration = settings.load({"endpoint": f"http://127.0.0.1:{listener.getsockname()[1]}", "timeout": 0.2})
        with pytest.raises(Unavailable, match=r"no answer within 0.2 s \(setting timeout\)"):
            Connection(configuration).json("GET", "apis/v2beta1/runs")
        thread.join(timeout=5)
        assert len(accepted) == 2, "a read that timed out is tried again"


def test_nobody_there_asks_for_the_port_forward():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    configuration = settings.load({"endpoint": f"http://127.0.0.1:{port}"})
    with pytest.raises(Unavailable, match="Connection refused; is the port-forward running") as caught:
        Connection(configuration).json("GET", "x")
    assert "object at 0x" not in str(caught.value)


def test_an_unknown_host_is_named():
    configuration = settings.load({"endpoint": "https://kubeflow.invalid"})
    with pytest.raises(Unavailable, match=r"https://kubeflow.invalid: cannot be reached: \w+"):
        Connection(configuration).json("GET", "x")


def test_an_authority_of_ones_own(tmp_path):
    authority, certificate = certificates(tmp_path)
    with Pipelines(certificate=certificate, token=CANARY) as stub:
        with pytest.raises(UserError, match=r"the certificate is not trusted \(.*\); name its authority: ca_file"):
            api(stub).runs(1)
        (tmp_path / "token").write_text(CANARY)
        assert api(stub, ca_file=str(authority), token_file=str(tmp_path / "token")).runs(1) == []
        with pytest.raises(UserError, match="401"):
            api(stub, ca_file=str(authority)).runs(1)


def test_a_certificate_for_another_name(tmp_path):
    authority, certificate = certificates(tmp_path, address="127.0.0.9")
    with Pipelines(certificate=certificate) as stub, pytest.raises(UserError, match="for another name"):
        api(stub, ca_file=str(authority)).runs(1)


def test_https_to_a_server_without_tls(stub):
    with pytest.raises(UserError, match="does not speak TLS"):
        api(stub, endpoint=stub.url.replace("http", "https")).runs(1)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_without_certificates(tmp_path, content):
    file = tmp_path / "ca.pem"
    if content:
        file.write_text(content)
    with pytest.raises(UserError, match="no such file" if content is None else "no PEM certificate"):
        Connection(settings.load({"endpoint": "https://host", "ca_file": str(file)}))


def test_a_token_does_not_travel_unencrypted(monkeypatch):
    monkeypatch.setenv("GRIDBOX_TOKEN", CANARY)
    with pytest.raises(UserError, match=r"GRIDBOX_TOKEN\) would travel unencrypted") as caught:
        Connection(settings.load({"endpoint": "http://kubeflow.example.com"}))
    assert CANARY not in str(caught.value)
    for near in ("http://localhost:8080", "http://[::1]:80", settings.IN_CLUSTER_ENDPOINT, "https://example.com"):
        Connection(settings.load({"endpoint": near}))


def test_a_renewed_token_is_read_anew(tmp_path):
    file = tmp_path / "token"
    file.write_text("former")
    with Pipelines(token=CANARY) as stub:
        client = api(stub, token_file=str(file))
        with pytest.raises(UserError, match=r"not authenticated \(401\).*renew the token") as caught:
            client.runs(1)
        assert "former" not in str(caught.value).partition("renew")[0], "the server repeated it"
        file.write_text(CANARY)
        assert client.runs(1) == []


def test_a_proxy_is_used_but_not_for_this_machine(stub, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert api(stub).runs(1) == []
    with pytest.raises(Unavailable, match="the proxy does not help"):
        api(stub, endpoint="http://kubeflow.invalid").runs(1)


def test_lists_come_page_by_page(stub):
    for number in range(120):
        stub._kept(stub.pipelines, "pipeline_id", {"name": f"p{number}"})
    names = [each.name for each in api(stub).pipelines(107)]
    assert names == [f"p{number}" for number in range(119, 12, -1)]
    assert stub.count("GET", ".*/pipelines") == 3
