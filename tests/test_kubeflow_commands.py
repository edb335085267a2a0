"""The commands for Kubeflow, against a stub that holds every request against kfp's own descriptions."""

import json
import re
import signal
import subprocess
import sys
import time

import jsonschema
import kubeflow_pipeline
import pytest
import yaml
from kfp import compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions
from kubeflow_stub import Kubernetes, Pipelines, certificates

from components.step import UserError
from pipeline import package
from pipeline.kubeflow.schedules import trigger_of

CANARY = "canary-7d20aa"
CLUSTER_CANARY = "canary-c44e19"


pytest_plugins = ["kubeflow_fixtures"]
pytestmark = pytest.mark.usefixtures("alone")


def posted(stub, path):
    (call,) = [call for call in stub.calls if (call.method, call.path) == ("POST", f"/apis/v2beta1/{path}")]
    return call.body


# --- upload ----------------------------------------------------------------------------------------------------------


def test_upload_creates_a_pipeline_and_a_version_named_after_its_content(stub, gridbox, compiled):
    code, out, _ = gridbox("upload", compiled)
    assert code == 0
    (pipeline,), (version,) = stub.pipelines.values(), stub.versions.values()
    assert pipeline["name"] == "tiny"
    assert pipeline["description"] == "Fits, and scores."
    assert re.fullmatch(r"tiny-[0-9a-f]{12}", version["name"])
    assert version["pipeline_spec"] == dict(
        zip(("pipeline_spec", "platform_spec"), yaml.safe_load_all(compiled.read_text()), strict=True)
    )
    assert f"{version['name']}: uploaded" in out
    page = f"pipelines/details/{pipeline['pipeline_id']}/version/{version['pipeline_version_id']}"
    assert f"{stub.url}/#/{page}" in out


def test_the_same_content_is_uploaded_once_and_another_one_again(stub, gridbox, compiled, tmp_path):
    assert gridbox("upload", compiled)[0] == 0
    same = tmp_path / "same.yaml"
    same.write_text("# a comment\n" + compiled.read_text())
    code, out, _ = gridbox("upload", same)
    assert code == 0
    assert "is there already" in out
    assert len(stub.versions) == 1
    other = tmp_path / "other.yaml"
    other.write_text(compiled.read_text().replace("example.com/fit:1", "example.com/fit:2"))
    assert gridbox("upload", other)[0] == 0
    assert len(stub.pipelines) == 1
    assert len(stub.versions) == 2


def test_two_may_upload_the_same_content_at_once(stub, gridbox, compiled):
    gridbox("upload", compiled)
    (kept,) = stub.versions
    stub.fail("GET", ".*/versions", 200, body='{"pipeline_versions": []}', content_type="application/json")
    code, out, _ = gridbox("upload", compiled)
    assert code == 0
    assert "is there already" in out
    assert list(stub.versions) == [kept]
    assert stub.count("POST", ".*/upload_version") == 2


def test_upload_compiles_a_pipeline_of_ours(stub, gridbox):
    assert gridbox("upload", "facedetect", "--profile", "micro")[0] == 0
    (version,) = stub.versions.values()
    spec = version["pipeline_spec"].get("pipeline_spec", version["pipeline_spec"])
    assert spec["root"]["inputDefinitions"]["parameters"]["train_epochs"]["defaultValue"] == 2


# --- submit ----------------------------------------------------------------------------------------------------------


def test_submit_streams_states_and_ends_well(stub, gridbox, compiled):
    stub.script = [
        ({}, "PENDING"),
        ({"fit": "RUNNING"}, "RUNNING"),
        ({"fit": "RUNNING"}, "RUNNING"),
        ({"fit": "SUCCEEDED", "score": "RUNNING"}, "RUNNING"),
        ({"fit": "SUCCEEDED", "score": "SUCCEEDED"}, "SUCCEEDED"),
    ]
    code, out, _ = gridbox(
        "submit", compiled, "--set", "train_epochs=7", "--set", "train_rate=1e-3", "--data", "s3://faces/set",
        "--name", "first", "--experiment", "faces", "--service-account", "trainer",
    )  # fmt: skip
    assert code == 0
    body = posted(stub, "runs")
    assert body["runtime_config"] == {
        "parameters": {"train_epochs": 7, "train_rate": 1e-3, "data_uri": "s3://faces/set"}
    }
    assert body["service_account"] == "trainer"
    (experiment,) = stub.experiments.values()
    assert (experiment["display_name"], experiment["experiment_id"]) == ("faces", body["experiment_id"])
    (run_id,) = stub.runs
    assert out.splitlines() == [
        f"run first: {run_id}",
        f"see it at {stub.url}/#/runs/details/{run_id}",
        "[ 1/2] fit: running",
        "[ 1/2] fit: done in 10.0 s",
        "[ 2/2] score-it: running",
        "[ 2/2] score-it: done in 10.0 s",
        "run first: done",
    ]


def test_a_known_experiment_is_used(stub, gridbox, compiled):
    for name in ("one", "two"):
        assert gridbox("submit", compiled, "--name", name)[0] == 0
    assert len(stub.experiments) == 1


def test_a_failed_run_names_stage_and_reason(stub, gridbox, compiled):
    stub.script = [({"fit": "FAILED", "score": "SKIPPED"}, "FAILED")]
    stub.messages = {"fit": "OOMKilled (exit code 137)"}
    code, out, err = gridbox("submit", compiled, "--name", "first")
    assert code == 1
    assert "[ 1/2] fit: failed" in out
    (run_id,) = stub.runs
    assert f"run first ({run_id}): failed" in err
    assert "fit: failed: OOMKilled (exit code 137)" in err
    assert f"gridbox logs {run_id}" in err


def test_a_failed_run_is_told_without_the_older_api_too(stub, gridbox, compiled):
    stub.script, stub.has_v1 = [({"fit": "FAILED"}, "FAILED")], False
    code, _, err = gridbox("submit", compiled)
    assert code == 1
    assert "fit: failed" in err


def test_a_cancelled_run_is_no_success(stub, gridbox, compiled):
    stub.script = [({"fit": "RUNNING"}, "CANCELED")]
    code, _, err = gridbox("submit", compiled, "--name", "first")
    assert code == 1
    assert "cancelled" in err


def test_submit_can_leave_the_run_to_itself(stub, gridbox, compiled):
    code, out, _ = gridbox("submit", compiled, "--no-wait")
    (run_id,) = stub.runs
    assert code == 0
    assert f"gridbox wait {run_id}" in out
    assert stub.count("GET", ".*/runs/.*") == 0


def test_an_uploaded_pipeline_is_run_by_reference(stub, gridbox, compiled, tmp_path):
    gridbox("upload", compiled)
    newer = tmp_path / "newer.yaml"
    newer.write_text(compiled.read_text().replace("example.com/fit:1", "example.com/fit:2"))
    gridbox("upload", newer)
    former, latest = stub.versions.values()
    assert gridbox("submit", "tiny", "--uploaded", "--set", "train_epochs=7", "--no-wait")[0] == 0
    assert gridbox("submit", f"tiny@{former['name']}", "--uploaded")[0] == 0
    references = [run["pipeline_version_reference"]["pipeline_version_id"] for run in stub.runs.values()]
    assert references == [latest["pipeline_version_id"], former["pipeline_version_id"]]
    run_id = next(iter(stub.runs))
    stub.script = [({"score": "SUCCEEDED"}, "SUCCEEDED")]
    assert "score-it: done" in gridbox("wait", run_id)[1]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--set", "train_epocs=3"), "did you mean train_epochs"),
        (("--set", "train_epochs=x"), "must be a whole number"),
        (("--set", "data_uri=/home/faces"), "which the cluster does not see"),
        (("--profile", "micro"), "the pipeline has no parameter"),
        (("--profile", "nano"), "no such profile"),
    ],
)
def test_wrong_values_start_nothing(stub, gridbox, compiled, words, reason):
    code, _, err = gridbox("submit", compiled, *words)
    assert code == 2
    assert reason in err
    assert err.count("\n") == 1
    assert not stub.runs


def test_local_mistakes_are_told_before_anybody_is_asked(gridbox, compiled, monkeypatch):
    monkeypatch.setenv("GRIDBOX_ENDPOINT", "http://127.0.0.1:1")
    for words in (("submit", compiled), ("schedule", "create", compiled, "--every", "1d"), ("upload", "nothing")):
        code, _, err = gridbox(*words, "--set", "train_epocs=3")
        assert code == 2
        assert "did you mean train_epochs" in err or "no such pipeline" in err


@pytest.mark.parametrize(("value", "letters"), [("s3://a/$$b", "$$"), ("s3://$(KEY)/b", "$("), ("s3://{{x}}", "{{")])
@pytest.mark.parametrize("words", [("submit",), ("schedule", "create", "--every", "1d")])
def test_what_would_not_arrive_as_written_is_refused(stub, gridbox, compiled, words, value, letters):
    code, _, err = gridbox(*words, compiled, "--set", f"data_uri={value}")
    assert code == 2
    assert f"parameter data_uri: {letters} would not arrive as written" in err
    assert not stub.runs
    assert not stub.schedules


@pytest.mark.usefixtures("stub")
def test_a_path_that_a_claim_mounts_is_one_of_the_cluster(gridbox, compiled):
    assert gridbox("submit", compiled, "--data", "/cache/faces", "--no-wait")[0] == 0
    code, _, err = gridbox("submit", compiled, "--data", "/cachet/faces")
    assert code == 2
    assert "or a path below /cache" in err


def test_a_run_without_the_cache_says_so_for_every_task(stub, gridbox, tmp_path):
    file = kubeflow_pipeline.compile_nested_to(tmp_path / "nested.yaml")
    assert "enableCache: true" in file.read_text()
    assert gridbox("submit", file, "--no-cache", "--no-wait")[0] == 0
    spec = posted(stub, "runs")["pipeline_spec"]
    assert "enableCache" not in json.dumps(spec)
    gridbox("upload", file)
    code, _, err = gridbox("submit", "nested", "--uploaded", "--no-cache")
    assert code == 2
    assert "an uploaded pipeline keeps its cache" in err


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "cannot be read"),
        ("a: [", "this is no YAML"),
        ("a: 1", "not a compiled pipeline"),
        ("[1]", "not a compiled pipeline"),
        ("", "not a compiled pipeline"),
        ("kind: PipelineVersion", "compile without --kubernetes"),
    ],
)
def test_a_file_that_is_no_pipeline(gridbox, tmp_path, text, reason):
    file = tmp_path / "wrong.yaml"
    if text is not None:
        file.write_text(text)
    code, _, err = gridbox("submit", file)
    assert (code, err.count("\n")) == (2, 1)
    assert reason in err


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize("words", [("nowhere", "--uploaded"), ("nothing",)])
def test_an_unknown_pipeline(gridbox, words):
    code, _, err = gridbox("submit", *words)
    assert code == 2
    assert "no pipeline of this name is uploaded" in err or "no such pipeline" in err


def test_a_server_that_goes_away_does_not_end_the_run(stub, gridbox, compiled, monkeypatch):
    monkeypatch.setenv("GRIDBOX_PATIENCE", "0.05")
    stub.fail("GET", ".*/v2beta1/runs/.*", 503, times=999)
    code, out, err = gridbox("submit", compiled)
    (run_id,) = stub.runs
    assert code == 1
    assert out.count("the server fails (503): boom; it is starting or overloaded") == 1, "said once, then retried"
    assert f"the run goes on without: gridbox wait {run_id}" in err


def test_several_users_need_a_namespace(gridbox, compiled, monkeypatch):
    with Pipelines(namespaces={"team-a"}) as stub:
        monkeypatch.setenv("GRIDBOX_ENDPOINT", stub.url)
        code, _, err = gridbox("submit", compiled)
        assert code == 2
        assert "keeps several users apart: set namespace" in err
        code, _, err = gridbox("submit", compiled, "-n", "team-b")
        assert code == 2
        assert "not allowed in the namespace team-b (403)" in err
        assert "User 'ada' is not authorized" in err
        assert not stub.runs
        assert gridbox("submit", compiled, "-n", "team-a")[0] == 0
        (experiment,) = stub.experiments.values()
        assert experiment["namespace"] == "team-a"


def test_ctrl_c_leaves_the_run_running(stub, compiled, tmp_path):
    stub.script = [({"fit": "RUNNING"}, "RUNNING")]
    process = subprocess.Popen(
        [sys.executable, "-c", "from pipeline import cli; cli.main()", "submit", str(compiled), "--name", "first"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
    )  # fmt: skip
    while "fit: running" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    (run_id,) = stub.runs
    assert process.returncode == 130
    assert err.strip() == (
        f"gridbox: the run goes on in Kubeflow; follow it with 'gridbox wait {run_id}', end it with 'gridbox cancel "
        f"{run_id}'"
    )
    assert stub.count("POST", ".*:terminate") == 0


# --- runs that are there ---------------------------------------------------------------------------------------------


def test_cancel_by_name_takes_the_newest(stub, gridbox, compiled):
    stub.script = [({"fit": "RUNNING"}, "RUNNING")]
    for _ in range(2):
        gridbox("submit", compiled, "--name", "first", "--no-wait")
    code, out, _ = gridbox("cancel", "first")
    assert code == 0
    assert "is being cancelled" in out
    assert [run["state"] for run in stub.runs.values()] == ["PENDING", "CANCELING"]
    newest = list(stub.runs)[-1]
    code, _, err = gridbox("wait", newest)
    assert code == 1
    assert f"run first ({newest}): cancelled\n" in err, "though its state is FAILED"
    code, out, _ = gridbox("cancel", newest)
    assert code == 0
    assert "nothing to cancel" in out


def test_list_shows_runs_pipelines_and_schedules(stub, gridbox, compiled):
    assert gridbox("list")[1] == "none\n"
    gridbox("submit", compiled, "--name", "first")
    gridbox("upload", compiled)
    gridbox("schedule", "create", compiled, "--every", "12h")
    run, pipeline, schedule = next(iter(stub.runs)), next(iter(stub.pipelines)), next(iter(stub.schedules))
    assert re.search(rf"first +done .* {run}\n", gridbox("list")[1])
    assert re.search(rf"tiny .* {pipeline}\n", gridbox("list", "pipelines")[1])
    shown = gridbox("list", "schedules")[1]
    assert re.search(rf"tiny +enabled +every 43200 s .* {schedule}\n", shown)
    assert gridbox("schedule", "list")[1] == shown


def test_lists_settings_and_findings_are_json_for_programs(stub, gridbox, compiled):
    gridbox("submit", compiled, "--name", "first")
    (run_id,) = stub.runs
    (run,) = json.loads(gridbox("list", "-o", "json")[1])
    assert (run["run"], run["state"], run["id"]) == ("first", "done", run_id)
    assert json.loads(gridbox("schedule", "list", "-o", "json")[1]) == []
    settings = {each["setting"]: each for each in json.loads(gridbox("config", "-o", "json")[1])}
    assert settings["endpoint"] == {"setting": "endpoint", "value": stub.url, "set by": "GRIDBOX_ENDPOINT"}
    findings = {each["subject"]: each["state"] for each in json.loads(gridbox("doctor", compiled, "-o", "json")[1])}
    assert (findings["pipelines API"], findings["kubernetes"]) == ("pass", "skipped")


@pytest.mark.usefixtures("stub")
def test_an_unknown_run_is_named(gridbox):
    for words in (("wait", "none"), ("cancel", "none"), ("logs", "none")):
        code, _, err = gridbox(*words)
        assert code == 2
        assert "no run of this name or id; see gridbox list runs" in err


# --- logs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def failed_run(stub, gridbox, compiled):
    stub.script = [({"fit": "FAILED", "score": "SKIPPED"}, "FAILED")]
    gridbox("submit", compiled, "--name", "first")
    return next(iter(stub.runs))


def test_logs_are_those_of_the_failed_stages(stub, gridbox, failed_run):
    stub.logs = {stub.pod("fit"): "epoch 1\nCUDA out of memory\n"}
    code, out, _ = gridbox("logs", failed_run)
    assert code == 0
    assert out == f"== fit: failed, pod {stub.pod('fit')} ==\nepoch 1\nCUDA out of memory\n"
    assert "no pod ran it" in gridbox("logs", "first", "score-it")[1]


def test_logs_through_the_api_server_itself(gridbox, compiled, monkeypatch):
    with Pipelines(is_ui=False) as stub:
        monkeypatch.setenv("GRIDBOX_ENDPOINT", stub.url)
        stub.script = [({"fit": "SUCCEEDED"}, "SUCCEEDED")]
        _, out, _ = gridbox("submit", compiled, "--name", "first")
        assert "see it at" not in out, "the API server has no pages"
        code, _, err = gridbox("logs", "first", "fit")
        assert code == 2, "the server says 200 and then that it has none"
        assert "no log: BadRequestError: Failed to read logs; nor from Kubernetes" in err
        stub.logs = {stub.pod("fit"): "epoch 1"}
        assert "epoch 1" in gridbox("logs", "first", "fit")[1]
        monkeypatch.setenv("GRIDBOX_UI", "https://ui/")
        assert "see it at https://ui/#/runs/details/" in gridbox("submit", compiled)[1]


@pytest.mark.parametrize("has_v1", [True, False])
def test_logs_come_from_kubernetes_where_the_api_has_none(stub, gridbox, failed_run, monkeypatch, tmp_path, has_v1):
    stub.has_v1 = has_v1
    with Kubernetes() as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(tmp_path / "kubeconfig")))
        cluster.pods = [
            {
                "metadata": {
                    "name": stub.pod("fit"), "labels": {"pipeline/runid": failed_run},
                    "annotations": {"workflows.argoproj.io/node-name": "tiny-x7.root.fit.executor(0)"},
                },
                "status": {"phase": "Failed", "startTime": "2026-11-21T09:00:00Z"},
            }
        ]  # fmt: skip
        cluster.logs = {stub.pod("fit"): "from the pod\n"}
        for words in (("logs", failed_run), ("logs", failed_run, "fit", "--follow")):
            code, out, err = gridbox(*words)
            assert code == 0, err
            assert out.endswith("from the pod\n")


def test_no_logs_anywhere_says_so(stub, gridbox, failed_run):
    code, _, err = gridbox("logs", failed_run)
    assert code == 2
    assert "no log: " in err
    assert "nor from Kubernetes: no kubeconfig" in err
    stub.has_v1 = False
    code, _, err = gridbox("logs", failed_run)
    assert code == 2
    assert "the API does not say which pods ran it" in err


def test_an_unknown_stage_names_the_known_ones(gridbox, failed_run):
    code, _, err = gridbox("logs", failed_run, "train")
    assert code == 2
    assert "there are fit, score-it" in err


# --- schedules -------------------------------------------------------------------------------------------------------


def test_a_schedule_runs_an_uploaded_version_one_at_a_time(stub, gridbox, compiled):
    code, out, _ = gridbox("schedule", "create", compiled, "--cron", "0 3 * * 1", "--set", "train_epochs=7")
    assert code == 0
    body = posted(stub, "recurringruns")
    assert body["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 1"}}, "Kubeflow's cron begins with seconds"
    assert body["pipeline_version_reference"]["pipeline_version_id"] in stub.versions
    assert (body["max_concurrency"], body["no_catchup"], body["mode"]) == ("1", True, "ENABLE")
    assert body["runtime_config"] == {"parameters": {"train_epochs": 7}}
    (schedule,) = stub.schedules
    assert f"{stub.url}/#/recurringrun/details/{schedule}" in out


@pytest.mark.usefixtures("stub")
def test_a_schedule_is_read_back_as_it_was_written(gridbox, compiled):
    for cron in ("0 3 * * 1", "30 0 3 * * 1"):
        shown = gridbox("schedule", "create", compiled, "--cron", cron, "--name", cron)[1]
        assert f": cron {cron}, " in shown


def test_schedules_are_switched_and_deleted(stub, gridbox, compiled):
    gridbox("schedule", "create", compiled, "--every", "1d", "--name", "nightly")
    (schedule,) = stub.schedules.values()
    for _ in range(2):
        assert gridbox("schedule", "disable", "nightly")[0] == 0
        assert schedule["status"] == "DISABLED"
    assert gridbox("schedule", "enable", schedule["recurring_run_id"])[0] == 0
    assert schedule["status"] == "ENABLED"
    assert gridbox("schedule", "delete", "nightly")[0] == 0
    assert not stub.schedules
    code, _, err = gridbox("schedule", "delete", "nightly")
    assert code == 2
    assert "no schedule of this name" in err


def test_a_name_is_scheduled_once(stub, gridbox, compiled):
    gridbox("schedule", "create", compiled, "--every", "1d")
    code, _, err = gridbox("schedule", "create", compiled, "--every", "2d")
    assert code == 2
    assert "there is a schedule of this name" in err
    assert len(stub.schedules) == 1


@pytest.mark.parametrize(
    ("cron", "every", "trigger"),
    [
        ("*/5 * * * *", "", {"cron_schedule": {"cron": "0 */5 * * * *"}}),
        ("30 0 3 * * *", "", {"cron_schedule": {"cron": "30 0 3 * * *"}}),
        ("@daily", "", {"cron_schedule": {"cron": "@daily"}}),
        ("", "90s", {"periodic_schedule": {"interval_second": "90"}}),
        ("", "2d", {"periodic_schedule": {"interval_second": "172800"}}),
    ],
)
def test_triggers(cron, every, trigger):
    assert trigger_of(cron, every) == trigger


@pytest.mark.parametrize(
    ("cron", "every"), [("", ""), ("@daily", "1d"), ("", "1 day"), ("", "0h"), ("* * *", ""), ("@dayly", "")]
)
def test_triggers_that_say_nothing(cron, every):
    with pytest.raises(UserError):
        trigger_of(cron, every)


# --- custom resources ------------------------------------------------------------------------------------------------

# The definition of PipelineVersion in kubeflow/pipelines, manifests/kustomize/base/crds, closed to unknown fields.
VERSION_SCHEMA = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "pipelines.kubeflow.org/v2beta1"},
        "kind": {"const": "PipelineVersion"},
        "metadata": {
            "type": "object",
            "properties": {"name": {"pattern": "^[a-z0-9]([-a-z0-9]{0,251}[a-z0-9])?$"}},
            "additionalProperties": False,
        },
        "spec": {
            "type": "object",
            "required": ["pipelineSpec"],
            "properties": {
                "codeSourceURL": {"type": "string"},
                "description": {"type": "string"},
                "displayName": {"type": "string"},
                "pipelineName": {"type": "string"},
                "pipelineSpec": {"type": "object"},
                "pipelineSpecURI": {"type": "string"},
                "platformSpec": {"type": "object"},
            },
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
}


def test_custom_resources_are_those_that_kfp_would_write(compiled, tmp_path):
    read = package.read(compiled)
    pipeline, version = yaml.safe_load_all(package.resources(read))
    jsonschema.validate(version, VERSION_SCHEMA)
    file = tmp_path / "kfp.yaml"
    options = KubernetesManifestOptions(
        pipeline_name="tiny", pipeline_version_name=read.version_name, include_pipeline_manifest=True
    )
    compiler.Compiler().compile(
        kubeflow_pipeline.tiny, str(file), kubernetes_manifest_options=options, kubernetes_manifest_format=True
    )
    wanted_pipeline, wanted_version = yaml.safe_load_all(file.read_text())
    assert pipeline == wanted_pipeline
    assert version["spec"].pop("platformSpec") == yaml.safe_load(kubeflow_pipeline.PLATFORM)
    assert version == wanted_version


def test_compile_writes_custom_resources(gridbox, tmp_path):
    file = tmp_path / "resources.yaml"
    assert gridbox("compile", "facedetect", "-o", file, "--profile", "micro", "--kubernetes")[0] == 0
    pipeline, version = yaml.safe_load_all(file.read_text())
    jsonschema.validate(version, VERSION_SCHEMA)
    assert (pipeline["kind"], version["spec"]["pipelineName"]) == ("Pipeline", pipeline["metadata"]["name"])
    assert [each.name for each in tmp_path.iterdir()] == ["resources.yaml"]


# --- config, and secrets ---------------------------------------------------------------------------------------------


def test_config_shows_values_and_who_set_them(gridbox, monkeypatch, tmp_path):
    (tmp_path / "gridbox.toml").write_text('endpoint = "https://file"')
    monkeypatch.setenv("GRIDBOX_TOKEN", CANARY)
    code, out, _ = gridbox("config", "--namespace", "team-a")
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert rows["endpoint"] == ["https://file", str(tmp_path / "gridbox.toml")]
    assert rows["namespace"] == ["team-a", "--namespace"]
    assert rows["experiment"] == ["Default", "default"]
    assert rows["token"] == ["set", "GRIDBOX_TOKEN"]


def test_no_secret_is_ever_written_or_sent_elsewhere(compiled, gridbox, monkeypatch, tmp_path):
    """Plants tokens, lets servers repeat them, runs every command, and looks into all that was written and asked."""
    authority, certificate = certificates(tmp_path)
    said = []

    def call(*words):
        said.append(str(gridbox(*words)))

    with Pipelines(token=CANARY, certificate=certificate) as stub, Kubernetes(token=CLUSTER_CANARY) as cluster:
        (tmp_path / "gridbox.toml").write_text(f'endpoint = "{stub.url}"\nca_file = "{authority.name}"\n')
        kubeconfig = cluster.kubeconfig(tmp_path / "kubeconfig")
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        monkeypatch.setenv("GRIDBOX_TOKEN", CANARY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
        stub.script = [({"fit": "FAILED"}, "FAILED")]
        for words in (
            ("config",), ("doctor", compiled), ("upload", compiled), ("submit", compiled, "--name", "first"),
            ("wait", "first"), ("list",), ("list", "pipelines"), ("logs", "first"), ("cancel", "first"),
            ("schedule", "create", compiled, "--every", "1d"), ("schedule", "delete", "tiny"),
            ("compile", "facedetect", "-o", tmp_path / "ours.yaml"), ("list", "--endpoint", "https://127.0.0.1:1"),
        ):  # fmt: skip
            call(*words)
        stub.fail("GET", ".*", 500, message=f"Authorization: Bearer {CANARY}", times=2)
        call("list")
        call("doctor", compiled)
        stub.token = "another"  # the stub repeats what it was given
        call("list")
        asked = json.dumps([(each.path, each.query, str(each.body)) for each in (*stub.calls, *cluster.calls)])
    kubeconfig.unlink()
    for secret in (CANARY, CLUSTER_CANARY):
        assert secret not in "".join(said)
        assert secret not in asked
        for file in (each for each in tmp_path.rglob("*") if each.is_file()):
            assert secret not in file.read_bytes().decode(errors="replace"), file
    assert "not authenticated (401)" in said[-1]
    assert len(stub.calls) > 30


# --- what users meet first -------------------------------------------------------------------------------------------


def test_without_an_endpoint_the_first_step_is_told(gridbox):
    code, _, err = gridbox("list")
    assert code == 2
    assert "kubectl -n kubeflow port-forward" in err


@pytest.mark.parametrize(
    "words",
    ["upload", "submit", "wait", "list", "logs", "cancel", "doctor", "config", "schedule", "schedule create"],
)
def test_help_teaches_by_an_example(gridbox, words):
    code, out, _ = gridbox(*words.split(), "--help")
    assert code == 0
    assert words == "schedule" or f"gridbox {words}" in out.partition("Usage")[2].partition("\n")[2]


def test_help_is_quick_and_imports_nothing_heavy():
    heavy = "{'kfp', 'kubernetes', 'urllib3', 'pydantic', 'yaml', 'numpy', 'minio', 'cv2'}"
    text = f"import sys; from pipeline import cli; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False, timeout=30)
    assert found.stdout == "set()\n"
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "from pipeline import cli; cli.main()", "--help"], check=False, timeout=30)
    assert time.monotonic() - start < 5.0, "the true limit is in benchmarks/cli.py"
