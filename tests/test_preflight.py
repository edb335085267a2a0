"""The first stage: what is missing fails it in seconds, in one line that names all of it."""

import contextlib
import http.server
import io
import json
import os
import threading

import kube_stub
import pytest
import s3_server
from kubeflow_stub import Kubernetes
from test_kubeflow_doctor import TAINT, node

from components import program
from components.formats.wider import ARCHIVES
from components.serve.access import DEPLOY_RULES
from components.tao.workplace import CHECKPOINTS
from pipeline import preflight
from pipeline.catalogue import WORKFLOWS, definition
from pipeline.kubeflow.findings import Finding


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """A Kubernetes in which the stage runs."""
    with Kubernetes() as stub:
        stub.nodes = [node(), node("0", {})]
        monkeypatch.setenv("KUBECONFIG", str(stub.kubeconfig(tmp_path / "kubeconfig")))
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        yield stub


@pytest.fixture
def call(capsys):
    """Runs the stage; returns its exit code, what it found by subject, and its last line."""

    def run(*words):
        code = program.run(preflight.app, [str(word) for word in words], "gridbox preflight")
        captured = capsys.readouterr()
        found = {}
        for line in captured.out.splitlines():
            state, _, rest = line.partition(" ")
            subject, _, text = rest.strip().partition(": ")
            found[subject] = (state, text)
        assert captured.err.count("\n") == (1 if code else 0)
        return code, found, captured.err

    return run


def test_a_run_that_needs_nothing_passes(call, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    code, found, _ = call("--gpu-count", 1)
    assert code == 0
    assert {subject: state for subject, (state, _) in found.items()} == dict.fromkeys(
        ["data", "pretrained weights", "store", "nodes"], "skipped"
    )
    assert "not published" in found["store"][1]


def test_all_that_is_missing_is_named_at_once(call, tmp_path):
    words = ["--data-uri", tmp_path / "none", "--pretrained-uri", tmp_path / "nothing", "--deploy-target", "local"]
    code, found, said = call(*words)
    assert code == 2
    assert [state for state, _ in found.values()].count("fail") == 3
    for part in (f"data: {tmp_path}/none: there is nothing here", "pretrained weights", "set deploy_base, for example"):
        assert part in said


def test_data_and_store_in_a_bucket_are_looked_at(call, monkeypatch):
    with s3_server.running() as environment, s3_server.bucket(environment) as (client, bucket):
        s3_server.enter(monkeypatch, environment)
        uri = f"s3://{bucket}/wider_face"
        code, found, said = call("--data-uri", uri, "--deploy-base", f"s3://{bucket}/models")
        assert code == 2
        assert found["store"][0] == "pass"
        assert "no object lies below this prefix" in said
        client.put_object(bucket, "wider_face/wider_face_split.zip", io.BytesIO(b"x"), 1)
        code, found, _ = call("--data-uri", uri, "--pretrained-uri", f"{uri}/wider_face_split.zip")
        assert code == 0
        assert found["data"] == ("pass", f"{uri} can be read")
        assert found["pretrained weights"][0] == "pass"
        assert call("--pretrained-uri", f"{uri}/absent.hdf5")[0] == 2
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        assert "cannot be reached" in call("--deploy-base", f"s3://{bucket}/models")[2]


def test_version_of_remote_data_changes_with_what_lies_there_and_only_then(call, monkeypatch, tmp_path):
    with s3_server.running() as environment, s3_server.bucket(environment) as (client, bucket):
        s3_server.enter(monkeypatch, environment)

        def put(name, content):
            client.put_object(bucket, name, io.BytesIO(content), len(content))

        def versions():
            files = tmp_path / "data", tmp_path / "weights"
            words = ["--data-uri", f"s3://{bucket}/faces", "--pretrained-uri", f"s3://{bucket}/weights.hdf5"]
            assert call(*words, "--data-version", files[0], "--pretrained-version", files[1])[0] == 0
            return [file.read_text() for file in files]

        put("faces/a.zip", b"a")
        put("weights.hdf5", b"w")
        first = versions()
        assert len(set(first)) == 2
        assert versions() == first
        put("faces/b.zip", b"b")
        second = versions()
        assert (second[0] != first[0], second[1] == first[1]) == (True, True)
        put("weights.hdf5", b"v")
        assert versions()[1] != first[1]


def test_nothing_remote_has_no_version(call, tmp_path):
    (tmp_path / "faces").mkdir()
    file = tmp_path / "version"
    for words in ((), ("--data-uri", tmp_path / "faces")):
        assert call(*words, "--data-version", file)[0] == 0
        assert file.read_text() == ""


def test_data_of_a_server_without_versions_are_never_taken_for_those_of_before(call, tmp_path):
    with plain_server({f"/{name}": b"zip" for name in ARCHIVES}) as url:
        told = []
        for name in ("first", "second"):
            code, found, _ = call("--data-uri", url, "--data-version", tmp_path / name)
            assert code == 0
            assert "does not tell versions" in found["data"][1]
            told.append((tmp_path / name).read_text())
        assert told[0] != told[1]


@contextlib.contextmanager
def plain_server(files):
    """A web server that tells neither ETag nor time of change."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = files.get(self.path)
            self.send_response(200 if content else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_):
            """Prints nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_claim_that_the_stages_user_cannot_write_to(call, monkeypatch, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setenv(CHECKPOINTS, str(tmp_path / "checkpoints" / "preflight"))
    assert call("--gpu-count", 0)[1]["checkpoints"][0] == "pass"
    assert not [each for each in (tmp_path / "checkpoints").rglob("*") if each.is_file()]
    (tmp_path / "file").touch()  # root, as which tests may run, is refused by no mode of a folder
    monkeypatch.setenv(CHECKPOINTS, str(tmp_path / "file" / "preflight"))
    code, found, said = call("--gpu-count", 0)
    assert code == 2
    assert found["checkpoints"][0] == "fail"
    assert f"user {os.getuid()} cannot write to {tmp_path}/file/preflight: Not a directory; give the claim's" in said
    assert f"chown {os.getuid()} {tmp_path}/file" in said


DEPLOYMENT = {"mode": "Standard", "image": "example.com/triton:1", "cpu": "2", "gpus": 1, "service_account": "server"}


@pytest.fixture
def kserve(monkeypatch, tmp_path):
    """A Kubernetes with KServe that the stage would deploy to; what is asked of it by review is allowed."""
    with kube_stub.Kube() as stub:
        monkeypatch.setenv("KUBECONFIG", str(stub.kubeconfig(tmp_path / "kubeconfig")))
        monkeypatch.setattr(preflight, "_rights", lambda namespace: Finding("rights to deploy", "pass", namespace))
        yield stub


def words_of_kserve(tmp_path, *more):
    return ["--deploy-target", "kserve", "--deploy-namespace", "face", "--deploy-base", tmp_path / "store",
            "--deployment", json.dumps(DEPLOYMENT), *more]  # fmt: skip


def test_the_deployment_is_tried_and_nothing_is_kept(call, kserve, tmp_path):
    code, found, _ = call(*words_of_kserve(tmp_path))
    assert code == 0
    assert found["deployment"] == ("pass", "face would take facenet and its pod")
    kinds = {each["kind"]: each for each in kserve.rehearsed}
    assert set(kinds) == {"ServingRuntime", "InferenceService", "Pod"}
    (container,) = kinds["Pod"]["spec"]["containers"]
    assert container["image"] == "example.com/triton:1"
    assert container["resources"]["requests"]["cpu"] == "2"
    assert kinds["Pod"]["spec"]["serviceAccountName"] == "server"
    assert not kserve.applied


def test_a_pod_that_the_cluster_would_refuse_fails_before_training(call, kserve, tmp_path):
    kserve.admission = lambda _old, new: (
        'pods "x" is forbidden: violates PodSecurity "restricted:latest"' if new["kind"] == "Pod" else None
    )
    code, _, said = call(*words_of_kserve(tmp_path))
    assert code == 2
    assert "deployment: face: facenet could not be deployed" in said
    assert 'violates PodSecurity "restricted:latest"' in said


def test_a_canary_that_would_get_no_traffic_is_refused(call, kserve, tmp_path):
    assert call(*words_of_kserve(tmp_path, "--deploy-canary-percent", 10))[0] == 0
    kserve.gateway_api = False
    code, _, said = call(*words_of_kserve(tmp_path, "--deploy-canary-percent", 10))
    assert code == 2
    assert "enableGatewayApi is off" in said
    assert call(*words_of_kserve(tmp_path))[0] == 0, "no canary is wanted"


def test_rights_to_deploy_are_asked_for_one_by_one(call, cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "_deployment", lambda plan: Finding("deployment", "pass", plan.deploy_name))
    words = ["--deploy-target", "kserve", "--deploy-namespace", "face", "--deploy-base", tmp_path / "store"]
    code, found, _ = call(*words)
    assert code == 0
    assert found["rights to deploy"] == ("pass", "in face")
    asked = sum(len(rule["verbs"]) * len(rule["resources"]) for rule in DEPLOY_RULES)
    assert cluster.count("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews") == asked
    cluster.denied = {("patch", "inferenceservices")}
    code, _, said = call(*words)
    assert code == 2
    assert "this run may not patch inferenceservices in face" in said


def test_nodes_are_held_against_selector_and_taints(call, cluster):
    cluster.nodes = [node(taints=[TAINT])]
    words = ["--gpu-count", 1, "--gpu-node-selector", '{"pool": "gpu"}']
    code, _, said = call(*words)
    assert code == 2
    assert "none of 1 nodes has 1 nvidia.com/gpu with pool=gpu" in said
    assert "tainted nvidia.com/gpu" in said
    code, found, _ = call(*words, "--gpu-tolerations", '[{"key": "nvidia.com/gpu", "operator": "Exists"}]')
    assert code == 0
    assert found["nodes"][0] == "pass"


def test_an_account_that_may_not_list_nodes_is_no_failure(call, cluster):
    cluster.denied = {("list", "nodes")}
    code, found, _ = call("--gpu-count", 1)
    assert code == 0
    assert found["nodes"][0] == "skipped"


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_it_has_whatever_a_stage_that_it_vouches_for_has(workflow):
    stages = definition(workflow).stages
    every = {access for stage in stages.values() for access in stage.access}
    assert set(stages["preflight"].access) == every
    assert len(every) >= 4
