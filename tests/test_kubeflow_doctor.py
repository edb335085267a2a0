"""`gridbox doctor`: each line says how it is and how to mend it; the exit code says whether all is well."""

import copy
import os

import kubeflow_pipeline
import pytest
import s3_server
import yaml
from kubeflow_stub import Kubernetes, Pipelines

from components import program
from components.images import OPEN_ENGINE
from components.serve.release import TRITON_IMAGE
from pipeline import cli, package, settings
from pipeline.kubeflow import connection, doctor, needs
from pipeline.kubeflow.cluster import Cluster


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    return kubeflow_pipeline.compile_to(tmp_path_factory.mktemp("doctor") / "tiny.yaml")


def node(gpus="2", labels=None, taints=(), **spec):
    return {
        "metadata": {"name": "n", "labels": {"pool": "gpu"} if labels is None else labels},
        "spec": {"taints": list(taints), **spec},
        "status": {"allocatable": {"nvidia.com/gpu": gpus, "cpu": "8"}},
    }


TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


@pytest.fixture
def world(monkeypatch, tmp_path):
    """A Kubeflow and a Kubernetes that have all that the pipeline needs."""
    for name in list(settings.os.environ):
        if name.startswith("GRIDBOX_") or name.lower().endswith("_proxy") or name == "KUBERNETES_SERVICE_HOST":
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(connection, "PAUSE_SECONDS", 0.001)
    with Pipelines() as pipelines, Kubernetes() as cluster:
        cluster.secrets, cluster.claims, cluster.nodes = (
            {"s3", "pull"},
            {"cache": {"phase": "Bound"}},
            [node(), node("0", {})],
        )
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(tmp_path / "kubeconfig")))
        monkeypatch.setenv("GRIDBOX_ENDPOINT", pipelines.url)
        monkeypatch.setenv("GRIDBOX_STORE", str(tmp_path / "store"))
        yield pipelines, cluster


@pytest.fixture
def examine(capsys, compiled):
    """Returns the exit code and, by subject, (state, text)."""

    def call(*words):
        code = program.run(cli.app, ["doctor", str(compiled), *words], "gridbox")
        lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("  ")]
        findings = {}
        for line in lines:
            state, _, rest = line.partition(" ")
            subject, _, text = rest.strip().partition(": ")
            findings[subject] = (state, text)
        return code, findings

    return call


@pytest.mark.usefixtures("world")
def test_all_is_well(examine, tmp_path):
    code, findings = examine()
    assert code == 0, findings
    assert {subject: state for subject, (state, _) in findings.items()} == {
        "store": "pass", "pipelines API": "pass", "release": "pass", "namespace": "pass", "kubernetes": "pass",
        "rights on pods": "pass", "pipelines are kept": "pass", "logs of stages": "pass", "cache": "pass",
        "further attempts": "pass", "images": "pass",
        "secret s3": "pass", "secret pull": "pass", "secret ngc": "skipped",
        "volume claim cache": "pass", "artifact store": "pass", "nodes": "pass",
    }  # fmt: skip
    assert "1 of 2 nodes have 1 nvidia.com/gpu with pool=gpu for fit" in findings["nodes"][1]
    assert not [each for each in (tmp_path / "store").rglob("*") if each.is_file()], "the trial is removed again"


def test_nothing_is_set(monkeypatch, tmp_path, examine):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("GRIDBOX_ENDPOINT", raising=False)
    code, findings = examine()
    assert code == 1
    assert findings["pipelines API"][0] == "fail"
    assert findings["release"][0] == findings["namespace"][0] == findings["kubernetes"][0] == "skipped"
    assert findings["store"][0] == "skipped"


@pytest.mark.parametrize(
    ("version", "state", "text"),
    [
        ("2.15.0", "fail", "security contexts (from 2.16); folders of a volume claim (subPath) (from 2.16)"),
        ("2.16.0", "pass", "2.16.0 has all that tiny uses"),
        ("unknown", "skipped", "does not say which release"),
    ],
)
def test_the_release_is_held_against_what_the_file_uses(world, examine, version, state, text):
    world[0].version = version
    code, findings = examine()
    assert findings["release"][0] == state
    assert text in findings["release"][1]
    assert code == (state == "fail")


def test_the_defect_of_one_release_is_known(compiled):
    """2.17.0 alone fails on defaults of components that the pipeline does not pass (kubeflow/pipelines#14178)."""
    spec, platform = yaml.safe_load_all(compiled.read_text())
    spec["components"]["comp-fit"]["inputDefinitions"]["parameters"]["extra"] = {
        "parameterType": "STRING", "defaultValue": "", "isOptional": True,
    }  # fmt: skip
    changed = package.from_documents("x", spec, platform)
    states = {}
    for version in ("2.16.1", "2.17.0", "2.17.1"):
        states[version] = doctor._release(doctor.Server(version, False, True), changed).state
    assert states == {"2.16.1": "pass", "2.17.0": "fail", "2.17.1": "pass"}


def test_a_missing_secret_and_claim_are_named(world, examine):
    world[1].secrets, world[1].claims = {"pull"}, {}
    code, findings = examine()
    assert code == 1
    assert findings["secret s3"] == ("fail", "is not in kubeflow")
    assert findings["volume claim cache"] == ("fail", "is not in kubeflow")
    code, findings = examine("--set", "data_secret=pull")
    assert "secret s3" not in findings, "the value of this run counts"


def test_a_secret_for_images_is_of_another_kind(world, capsys, compiled):
    world[1].secrets = set()
    program.run(cli.app, ["doctor", str(compiled)], "gridbox")
    said = capsys.readouterr().out
    assert "-> kubectl -n kubeflow create secret generic s3 --from-env-file=FILE" in said
    assert "create secret docker-registry pull --from-file=$HOME/.docker/config.json" in said


@pytest.mark.parametrize(
    ("store", "has_definitions", "text"),
    [
        ("database", False, "in the database: gridbox upload works, kubectl apply does not (there is no pipelines.p"),
        ("database", True, "(which this API server does not read)"),
        ("kubernetes", True, "as custom resources"),
        ("", True, "as custom resources"),
    ],
)
def test_the_kind_of_installation_is_told(world, examine, store, has_definitions, text):
    pipelines, cluster = world
    pipelines.pipeline_store = store
    if has_definitions:
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/pipelines.pipelines.kubeflow.org"
        cluster.objects[path] = {"metadata": {"name": "pipelines.pipelines.kubeflow.org"}}
    assert text in examine()[1]["pipelines are kept"][1]


def test_what_the_installation_does_is_told(world, examine):
    findings = examine()[1]
    assert "kept as artifacts (executor-logs)" in findings["logs of stages"][1]
    assert "a stage whose program fails is tried once (retryPolicy OnError)" in findings["further attempts"][1]
    assert findings["cache"][1].startswith("is on")
    (deployment,) = [each for path, each in world[1].objects.items() if path.endswith("/ml-pipeline")]
    changed = copy.deepcopy(deployment)
    changed["spec"]["template"]["spec"]["containers"][0]["env"] = [
        {"name": "PUBLISH_LOGS", "value": "false"}, {"name": "CACHEENABLED", "value": "false"},
    ]  # fmt: skip
    world[1].objects["/apis/apps/v1/namespaces/kubeflow/deployments/ml-pipeline"] = changed
    findings = examine()[1]
    assert "PUBLISH_LOGS is off" in findings["logs of stages"][1]
    assert findings["cache"][1].startswith("is off")


@pytest.fixture
def ours(tmp_path, compiled):
    """The same pipeline with an image of ours by its default name."""
    file = tmp_path / "ours.yaml"
    text = compiled.read_text().replace("example.com/fit:1", OPEN_ENGINE)
    file.write_text(text.replace("- --executor-input", f"- --image={TRITON_IMAGE}\n        - --executor-input"))
    return file


def test_images_that_nobody_has_pushed_are_named(world, capsys, ours):
    def images():
        code = program.run(cli.app, ["doctor", str(ours)], "gridbox")
        return code, next(line for line in capsys.readouterr().out.splitlines() if " images: " in line)

    code, line = images()
    assert code == 1
    assert f"nobody has pushed {OPEN_ENGINE}, {TRITON_IMAGE}" in line
    for each in world[1].nodes:
        each["status"]["images"] = [{"names": [OPEN_ENGINE], "sizeBytes": 1}, {"names": [TRITON_IMAGE]}]
    code, line = images()
    assert code == 0
    assert "each node holds it" in line


@pytest.mark.parametrize(
    ("level", "context", "state"),
    [
        ("baseline", {}, "pass"),
        ("restricted", {}, "fail"),
        ("restricted", {"allowPrivilegeEscalation": False}, "fail"),
        ("restricted", {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, "pass"),
    ],
)
def test_a_restricted_namespace_needs_a_mended_initializer(world, level, context, state):
    """A pod's own securityContext gives user and seccomp profile; these two are the container's alone."""
    labels = {"pod-security.kubernetes.io/enforce": level}
    container = {"spec": {"container": {"securityContext": context}}, "metadata": {"name": "default"}}
    world[1].objects |= {
        "/api/v1/namespaces/faces": {"metadata": {"name": "faces", "labels": labels}},
        "/apis/serving.kserve.io/v1alpha1/clusterstoragecontainers": {"items": [container]},
    }
    assert doctor.kserve_pods(Cluster(), "faces").state == state
    assert doctor.kserve_pods(Cluster(), "nowhere").state == "fail"


@pytest.mark.parametrize(
    ("claim", "state", "said"),
    [
        ({"phase": "Lost"}, "fail", "its volume is lost"),
        ({"phase": "Pending"}, "pass", "gets its volume with its first pod"),
        ({"phase": "Bound"}, "pass", "the pre-flight stage tries whether user 10001 can write to it"),
    ],
)
def test_a_claim_is_looked_at(world, examine, claim, state, said):
    world[1].claims = {"cache": claim}
    found = examine()[1]["volume claim cache"]
    assert found[0] == state
    assert said in found[1]


def test_what_one_may_not_look_at_is_skipped(world, examine):
    world[1].denied = {("get", "secrets"), ("list", "nodes"), ("get", "pods/log")}
    code, findings = examine()
    assert findings["secret s3"][0] == findings["nodes"][0] == "skipped"
    assert "cannot get secrets" in findings["secret s3"][1]
    assert findings["rights on pods"] == ("fail", "you may not get pods/log")
    assert code == 1


@pytest.mark.parametrize(
    ("nodes", "words", "reason"),
    [
        ([], (), "none of 0 nodes has"),
        ([node(labels={"pool": "cpu"})], (), "1 without the labels"),
        ([node("0"), node("0")], (), "2 without 1 nvidia.com/gpu"),
        ([node("2")], ("--set", "train_gpus=4"), "1 without 4 nvidia.com/gpu"),
        ([node(taints=[TAINT])], (), "1 tainted nvidia.com/gpu"),
        ([node(unschedulable=True)], (), "1 cordoned"),
    ],
)
def test_nodes_that_do_not_fit(world, examine, nodes, words, reason):
    world[1].nodes = nodes
    code, findings = examine(*words)
    assert code == 1
    assert findings["nodes"][0] == "fail"
    assert reason in findings["nodes"][1]


@pytest.mark.parametrize(
    "toleration",
    [
        '[{"key": "nvidia.com/gpu", "operator": "Exists"}]',
        '[{"operator": "Exists"}]',
        '[{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]',
    ],
)
def test_taints_are_tolerated_by_parameter(world, examine, toleration):
    world[1].nodes = [node(taints=[TAINT, {"key": "soft", "effect": "PreferNoSchedule"}])]
    assert examine("--set", f"train_tolerations={toleration}")[0] == 0


@pytest.mark.parametrize(
    "toleration",
    [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoExecute"},
        {"key": "nvidia.com/gpu", "operator": "Equal", "value": "absent"},
        {"key": "nvidia.com/gpu"},
        {"key": "other", "operator": "Exists"},
    ],
)
def test_tolerations_of_other_taints(toleration):
    assert not doctor._tolerates(toleration, TAINT)


@pytest.mark.usefixtures("world")
def test_no_accelerator_is_wanted(examine):
    code, findings = examine("--set", "train_gpus=0")
    assert code == 0
    assert findings["nodes"][0] == "skipped"


def test_several_users_need_a_namespace_and_rights(world, monkeypatch, examine):
    with Pipelines(namespaces={"team-a"}) as shared:
        monkeypatch.setenv("GRIDBOX_ENDPOINT", shared.url)
        code, findings = examine()
        assert code == 1
        assert findings["namespace"] == ("fail", "this Kubeflow has several users, and no namespace is set")
        assert findings["rights on runs"][0] == "pass"
        world[1].namespace = "team-b"
        code, findings = examine("-n", "team-b")
        assert "not allowed in the namespace team-b (403)" in findings["namespace"][1]
        world[1].namespace = "team-a"
        world[1].denied = {("create", "runs")}
        code, findings = examine("-n", "team-a")
        assert code == 1
        assert findings["namespace"][0] == "pass"
        assert findings["rights on runs"] == ("fail", "you may not create runs.pipelines.kubeflow.org")


@pytest.mark.parametrize(
    ("data", "state"),
    [
        ({"defaultPipelineRoot": "s3://bucket/root"}, "fail"),
        ({"defaultPipelineRoot": "s3://bucket/root", "providers": "s3: {default: {region: x}}"}, "pass"),
        ({"defaultPipelineRoot": "minio://bucket/root"}, "pass"),
        ({"providers": "a: ["}, "fail"),
    ],
)
def test_the_launchers_store_has_credentials(world, examine, data, state):
    world[1].config_maps = {"kfp-launcher": data}
    assert examine()[1]["artifact store"][0] == state


@pytest.mark.usefixtures("world")
def test_a_store_that_cannot_be_written(examine, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRIDBOX_STORE", str(tmp_path / "file" / "store"))
    code, findings = examine()
    assert code == 1
    assert findings["store"][0] == "fail"


@pytest.mark.usefixtures("world")
def test_a_store_inside_the_cluster_cannot_be_tried_from_here(examine, monkeypatch, tmp_path):
    monkeypatch.setenv("GRIDBOX_STORE", "s3://faces/models")
    (tmp_path / "gridbox.toml").write_text('[placement]\nstore_endpoint = "http://seaweedfs.kubeflow.invalid:8333"')
    code, findings = examine()
    assert code == 0
    assert findings["store"][0] == "skipped"
    assert "cannot be tried from here: seaweedfs.kubeflow.invalid is no name of this network" in findings["store"][1]
    with s3_server.running() as environment, s3_server.bucket(environment) as (_, bucket):
        s3_server.enter(monkeypatch, environment)
        monkeypatch.setenv("GRIDBOX_STORE", f"s3://{bucket}/models")
        monkeypatch.setenv("GRIDBOX_STORE_ENDPOINT", environment["AWS_ENDPOINT_URL"])
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        assert examine()[1]["store"][0] == "pass"
        assert "AWS_ENDPOINT_URL" not in os.environ
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        state, text = examine()[1]["store"][:2]
        assert state == "skipped"
        assert "cannot be tried from here without a key" in text


@pytest.mark.usefixtures("world")
def test_a_store_that_is_full_says_its_last_word(examine, monkeypatch):
    """As Kubeflow's SeaweedFS: buckets can be made and listed, objects not be written."""
    with s3_server.running() as environment, s3_server.bucket(environment) as (_, bucket):
        s3_server.enter(monkeypatch, environment)
        with s3_server.proxy(environment["AWS_ENDPOINT_URL"]) as full:
            full.arm(lambda request: (500, "InternalError") if request.method == "PUT" else None)
            monkeypatch.setenv("AWS_ENDPOINT_URL", full.url)
            monkeypatch.setenv("GRIDBOX_STORE", f"s3://{bucket}/models")
            code, findings = examine()
    assert code == 1
    said = "the store answers InternalError (500); so does a store without free room"
    assert findings["store"][0] == "fail"
    assert said in findings["store"][1]


def test_a_cluster_that_does_not_answer_is_skipped(world, examine, tmp_path):
    file = tmp_path / "kubeconfig"
    file.write_text(file.read_text().replace(world[1].url, "http://127.0.0.1:1"))
    code, findings = examine()
    assert code == 0
    assert findings["kubernetes"][0] == "skipped"
    assert "cannot be reached" in findings["kubernetes"][1]


def test_needs_are_read_off_the_file(compiled):
    read = package.read(compiled)
    given = needs.values(read, {"data_secret": "mine", "train_selector": {"a": "b"}})
    assert needs.secrets(read, given) == {
        "mine": needs.Secret(is_optional=False, is_for_images=False),
        "ngc": needs.Secret(is_optional=True, is_for_images=False),
        "pull": needs.Secret(is_optional=False, is_for_images=True),
    }
    assert needs.volumes(read, given) == {"cache"}
    assert needs.pools(read, given) == {"fit": needs.Pool("nvidia.com/gpu", 1, {"a": "b"}, ())}
    assert {feature.release for feature in needs.features(read)} == {(2, 16), (2, 15), (2, 10), (2, 5)}
