"""Every part of a URL that a person gives is used, or refused by name; none is dropped in silence."""

import dataclasses

import pytest

from components.ngc import download, registry
from components.serve.answering import question
from components.serve.deploy import endpoint
from components.serve.kserve import Protocol
from components.step import UserError
from components.store import RetryPolicy, bucket_and_key, fetch, local_path, s3_client
from pipeline.compiling import check_arguments, compile_to
from pipeline.options import Options
from pipeline.placement import Placement
from pipeline.settings import load


@pytest.mark.parametrize("rest", ["/minio", "/minio/", "?region=eu", "#x", "/?x"])
def test_an_object_stores_address_is_scheme_host_and_port_alone(monkeypatch, tmp_path, rest):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://store.example.com:9000{rest}")
    with pytest.raises(UserError, match=r"AWS_ENDPOINT_URL: must be https://store\.example\.com:9000 alone"):
        s3_client(RetryPolicy())
    options = Options(placement=dataclasses.replace(Placement(), store_endpoint=f"http://store:9000{rest}"))
    with pytest.raises(UserError, match="store_endpoint: must be http://store:9000 alone"):
        compile_to("facedetect", tmp_path / "compiled.yaml", "micro", options)


def test_an_object_stores_address_has_no_user(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://somebody:canary@store.example.com:9000")
    with pytest.raises(UserError, match="AWS_ENDPOINT_URL: must be http://host:port") as caught:
        s3_client(RetryPolicy())
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9000", "http://127.0.0.1:9000/"])
def test_a_slash_at_its_end_is_nothing(monkeypatch, address):
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    assert s3_client(RetryPolicy())


def test_a_bucket_has_no_port():
    with pytest.raises(UserError, match="bucket, which has no port; set AWS_ENDPOINT_URL"):
        bucket_and_key("s3://store:9000/models/a.zip")


@pytest.mark.parametrize("key", ["a/b.zip", "a#b?c.zip", "/a.zip", "a//b/"])
def test_a_key_is_taken_to_the_letter(key):
    assert bucket_and_key(f"s3://bucket/{key}") == ("bucket", key)


@pytest.mark.parametrize("rest", ["?version=1", "#part"])
def test_a_file_uri_has_neither_query_nor_fragment(rest):
    with pytest.raises(UserError, match="%3F"):
        local_path(f"file:///data/set{rest}")
    assert str(local_path("file:///data/a%23b%3Fc")) == "/data/a#b?c"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://somebody:canary@127.0.0.1:9/x", "a user and a password are not sent"),
        ("https://127.0.0.1:9/x#canary", "what follows # is not asked for"),
    ],
)
def test_a_download_refuses_what_it_would_not_send(tmp_path, url, said):
    with pytest.raises(UserError, match=said) as caught:
        fetch(url, tmp_path / "x")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("rest", ["?x=1", "#x", "/v2?x"])
def test_ngcs_address_has_neither_query_nor_fragment(monkeypatch, rest):
    for address in (f"https://ngc.example.com{rest}", "https://somebody:canary@ngc.example.com"):
        monkeypatch.setenv("NGC_ENDPOINT", address)
        with pytest.raises(UserError, match="NGC_ENDPOINT: must start with https") as caught:
            registry._endpoint("NGC_ENDPOINT", "")
        assert "canary" not in str(caught.value)


@pytest.mark.parametrize("uri", ["ngc://org/team/model:1.0?x=1", "ngc://org/team/model:1.0#x", "ngc://me@org/model:1"])
def test_a_model_of_ngc_has_neither_user_nor_query_nor_fragment(uri):
    with pytest.raises(UserError, match="write org/team/model:version"):
        download.probe(uri)


def test_kubeflows_address_has_no_query():
    with pytest.raises(UserError, match="write it like"):
        load({"endpoint": "https://host/pipeline?x=1"}).endpoint()


def test_the_path_of_a_services_address_is_kept():
    url = "https://gateway.example.com/serving/team/facenet"
    assert endpoint(url, Protocol.http) == ("https://gateway.example.com:443/serving/team/facenet", "")
    assert endpoint(url, Protocol.http, "localhost:8080")[0] == "https://localhost:8080/serving/team/facenet"
    from test_serve_kserve import service

    asked = question(url, service())
    assert asked.full_url == f"{url}/v2/models/facenet_ensemble/config"


@pytest.mark.parametrize("gateway", ["http://gateway:80", "gateway/path", "somebody@gateway", "gateway:80 x"])
def test_a_gateway_is_host_and_port(gateway):
    with pytest.raises(UserError, match="must be host:port"):
        check_arguments("facedetect", {"deploy_gateway": gateway})
    check_arguments("facedetect", {"deploy_gateway": "gateway.istio-system:80"})
