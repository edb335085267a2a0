"""`gridbox submit` and `wait` to the end of a run: whoever still speaks is asked, and silence is said, too."""

import json
import re

import kubeflow_pipeline
import pytest
from kubeflow_stub import Kubernetes
from test_kubeflow_recordings import looks

from pipeline.kubeflow import logs

pytest_plugins = ["kubeflow_fixtures"]

LAUNCHER = """\
I1130 21:58:46.100000      18 main.go:67] Setting log level to: '1'
{own}
time="2026-11-30T21:58:49.000Z" level=info msg="sub-process exited" argo=true error="<nil>"
I1130 21:58:50.100000      18 launcher_v2.go:1230] ExecutorOutput: {{
  "parameterValues": {{}}
}}
F1130 21:58:50.200000      18 main.go:59] failed to execute component: exit status 1
Error: exit status 1
"""


@pytest.fixture
def cluster(monkeypatch, tmp_path, alone):  # noqa: ARG001
    """A Kubernetes that a kubeconfig leads to."""
    with Kubernetes() as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig(tmp_path / "kubeconfig")))
        yield cluster


def lines_of_stages(out):
    return [line for line in out.splitlines() if line.startswith("[")]


WHOLE = [
    ({"fit": "RUNNING"}, "RUNNING"),
    ({"fit": "CACHED", "score": "RUNNING"}, "RUNNING"),
    ({"fit": "CACHED", "score": "SUCCEEDED"}, "SUCCEEDED"),
]
SAID = ["[ 1/2] fit: running", "[ 1/2] fit: cached", "[ 2/2] score-it: running", "[ 2/2] score-it: done in 10.0 s"]


@pytest.mark.parametrize("compressed_from", [None, 1])
def test_stages_are_followed_to_the_end_though_the_details_stand_still(stub, gridbox, compiled, compressed_from):
    stub.script, stub.compressed_from = WHOLE, compressed_from
    code, out, _ = gridbox("submit", compiled)
    assert code == 0
    assert lines_of_stages(out) == SAID


def test_without_the_older_api_the_workflow_comes_from_kubernetes(stub, gridbox, compiled, cluster):
    stub.script, stub.compressed_from, stub.has_v1 = WHOLE, 1, False
    assert gridbox("submit", compiled, "--no-wait")[0] == 0
    (run_id,) = stub.runs
    stub._looks[run_id] = len(WHOLE)
    cluster.workflows = [stub.workflow(run_id)]
    code, out, _ = gridbox("wait", run_id)
    assert code == 0
    assert lines_of_stages(out) == ["[ 1/2] fit: cached", "[ 2/2] score-it: done in 10.0 s"]


def test_where_workflows_may_not_be_listed_the_pods_tell(stub, gridbox, compiled, cluster):
    stub.script = [({"fit": "RUNNING"}, "RUNNING"), ({"fit": "SUCCEEDED", "score": "SUCCEEDED"}, "SUCCEEDED")]
    stub.compressed_from, stub.has_v1 = 1, False
    assert gridbox("submit", compiled, "--no-wait")[0] == 0
    (run_id,) = stub.runs
    cluster.denied = {("list", "workflows")}
    cluster.pods = [pod(stub, run_id, "fit", "Succeeded"), pod(stub, run_id, "score", "Succeeded")]
    code, out, _ = gridbox("wait", run_id)
    assert code == 0
    assert lines_of_stages(out) == ["[ 1/2] fit: done", "[ 2/2] score-it: done"]


def test_where_nobody_tells_any_more_that_is_said(stub, gridbox, compiled):
    stub.script, stub.compressed_from, stub.has_v1 = WHOLE, 1, False
    code, out, _ = gridbox("submit", compiled, "--name", "first")
    assert code == 0
    assert lines_of_stages(out) == ["[ 1/2] fit: running"]
    assert out.splitlines()[-2:] == [
        "Kubeflow gives no details any more of fit, score-it; the run itself: done",
        "run first: done",
    ]


def test_stages_of_one_name_in_two_sub_pipelines_are_told_apart(stub, gridbox, tmp_path):
    file = kubeflow_pipeline.compile_nested_to(tmp_path / "nested.yaml")
    stub.exit_handlers = {"serve.end": "serve.exit-handler-1"}
    begun = {"learn.fit": "SUCCEEDED", "learn.score": "SUCCEEDED", "serve.exit-handler-1.score": "RUNNING"}
    stub.script = [
        (begun, "RUNNING"),
        (begun | {"serve.exit-handler-1.score": "FAILED", "serve.end": "SUCCEEDED"}, "FAILED"),
    ]
    code, out, err = gridbox("submit", file)
    assert code == 1
    assert lines_of_stages(out) == [
        "[ 1/4] fit: done in 10.0 s", "[ 2/4] learn.score: done in 10.0 s",
        "[ 3/4] serve.exit-handler-1.score: running", "[ 3/4] serve.exit-handler-1.score: failed",
        "[ 4/4] end: done in 10.0 s",
    ]  # fmt: skip
    assert "  serve.exit-handler-1.score: failed: main: Error (exit code 1)\n" in err
    stub.has_v1 = False
    (run_id,) = stub.runs
    assert "[ 3/4] serve.exit-handler-1.score: failed" in gridbox("wait", run_id)[1], "by the order in which they began"


def test_a_failure_is_named_though_the_details_stand_still(stub, gridbox, compiled):
    stub.script = [({"fit": "RUNNING"}, "RUNNING"), ({"fit": "FAILED", "score": "SKIPPED"}, "FAILED")]
    stub.compressed_from = 1
    code, out, err = gridbox("submit", compiled)
    assert code == 1
    assert lines_of_stages(out) == ["[ 1/2] fit: running", "[ 1/2] fit: failed", "[ 2/2] skipped: score-it"]
    assert "fit: failed: main: Error (exit code 1)" in err


def test_a_failed_stage_ends_with_the_last_line_of_its_program(stub, gridbox, compiled):
    stub.script = [({"fit": "FAILED"}, "FAILED")]
    own = "epoch 1\ngridbox fit: /checkpoints is not writable; chown it to 10001"
    stub.logs = {stub.pod("fit"): LAUNCHER.format(own=own)}
    _, _, err = gridbox("submit", compiled)
    assert "  fit: failed: gridbox fit: /checkpoints is not writable; chown it to 10001 (exit code 1)\n" in err


def test_a_workflow_that_argo_gave_up_says_why(stub, gridbox, compiled):
    stub.script, stub.message = [({"fit": "SUCCEEDED"}, "FAILED")], "workflow is longer than maximum allowed size"
    code, _, err = gridbox("submit", compiled)
    assert code == 1
    assert "): failed: workflow is longer than maximum allowed size\n" in err


def test_a_recorded_run_whose_details_stood_still_is_followed_to_its_end(stub, gridbox):
    """Its pipeline is not recorded, and no other source speaks: what remains is the details, as far as they go."""
    stub.has_v1 = False
    run_id = looks()[0]["run_id"]
    for look in (looks()[-2], *looks()):  # the first answer is to the question which run it is
        text = json.dumps(look)
        stub.fail("GET", f"/apis/v2beta1/runs/{run_id}", 200, body=text, content_type="application/json")
    code, out, _ = gridbox("wait", run_id)
    assert code == 0
    said = lines_of_stages(out)
    assert said[0] == "[ 1/20] exit-handler-1: running"
    assert "[19/20] publish: running" in said
    assert [line for line in said if line.endswith("done in 10.0 s")]
    *_, last, end = out.splitlines()
    assert last == "Kubeflow gives no details any more of exit-handler-1, publish; the run itself: done"
    assert end.endswith(": done")


def test_a_driver_that_fails_names_its_stage_and_its_last_error(stub, gridbox, compiled):
    stub.script = [({"fit": "DRIVER_FAILED", "score": "SKIPPED"}, "FAILED")]
    said = "F1130 21:58:50.200000      18 main.go:127] KFP driver: failed to get MLMD context\n"
    stub.logs = {stub.driver_pod("fit"): "I1130 21:58:46.1 main.go:119] Setting log level\n" + said}
    code, _, err = gridbox("submit", compiled, "--name", "first")
    assert code == 1
    assert "  fit: its driver, which prepares the stage, failed: KFP driver: failed to get MLMD context" in err
    first, *_, last = gridbox("logs", "first")[1].splitlines()
    assert first == f"== fit, its driver: failed, pod {stub.driver_pod('fit')} =="
    assert last == said.strip()


def test_a_run_that_cannot_even_begin_names_the_root(stub, gridbox, compiled):
    stub.script = [({}, "FAILED")]
    code, out, err = gridbox("submit", compiled)
    assert code == 1
    assert "no details" not in out
    assert "  root: its driver, which prepares the stage, failed: main: Error (exit code 1)\n" in err


def test_a_driver_that_fails_is_named_by_the_details_alone(stub, gridbox, compiled):
    stub.script, stub.has_v1 = [({"fit": "DRIVER_FAILED"}, "FAILED")], False
    assert "  fit: its driver, which prepares the stage, failed\n" in gridbox("submit", compiled)[2]


def test_the_launchers_lines_are_hidden_unless_asked_for(stub, gridbox, compiled):
    stub.script = [({"fit": "FAILED"}, "FAILED")]
    whole = LAUNCHER.format(own="epoch 1\n{\ntime is short")
    stub.logs = {stub.pod("fit"): whole}
    gridbox("submit", compiled, "--name", "first")
    assert gridbox("logs", "first")[1].splitlines()[1:] == ["epoch 1", "{", "time is short"]
    assert gridbox("logs", "first", "--all")[1].splitlines()[1:] == whole.splitlines()


@pytest.mark.parametrize(
    "line",
    [
        'time="2025-11-30T21:58:49Z" level=info msg="capturing logs" argo=true',  # Argo 3
        'time=2026-11-30T21:58:49.123Z level=INFO msg="sub-process exited" argo=true error=<nil>',  # Argo 4
        "E1130 21:58:50.200000       7 launcher_v2.go:449] Component failed to execute successfully: exit status 1",
    ],
)
def test_lines_that_are_not_the_programs(line):
    assert list(logs.own(["a", line, "b"])) == ["a", "b"]


def pod(stub, run_id, task, phase, **status):
    return {
        "metadata": {
            "name": stub.pod(task), "labels": {"pipeline/runid": run_id},
            "annotations": {"workflows.argoproj.io/node-name": f"tiny-x7(0).root(0).{task}(0).executor(0)"},
        },
        "status": {"phase": phase, "startTime": "2026-11-21T09:00:00Z", **status},
    }  # fmt: skip


@pytest.fixture
def standing(stub, gridbox, compiled, monkeypatch):
    """A run that stands still at its first stage for a while."""
    stub.script = [({"fit": "RUNNING"}, "RUNNING")] * 30 + [({"fit": "SUCCEEDED"}, "SUCCEEDED")]
    monkeypatch.setenv("GRIDBOX_PATIENCE", "0.05")
    gridbox("submit", compiled, "--no-wait")
    return next(iter(stub.runs))


def test_a_run_that_stands_still_is_said_to_with_its_pods_and_where_to_look(stub, gridbox, cluster, standing):
    cluster.pods = [pod(stub, standing, "fit", "Succeeded")]
    _, out, _ = gridbox("wait", standing)
    assert re.search(r"no stage has changed for 0\.\d s: fit \(running\)\n", out)
    assert f"  pod {stub.pod('fit')}: Succeeded\n" in out
    assert "kubectl -n kubeflow logs deploy/workflow-controller" in out
    assert out.count("no stage has changed") < 6, "each time after twice as long"


def test_a_pod_that_cannot_start_is_named_with_its_reason(stub, gridbox, cluster, standing):
    waiting = [{"name": "main", "state": {"waiting": {"reason": "ErrImagePull"}}}]
    cluster.pods = [pod(stub, standing, "fit", "Pending", containerStatuses=waiting)]
    _, out, _ = gridbox("wait", standing)
    assert f"pod {stub.pod('fit')}: Pending (ErrImagePull)" in out
    assert f"kubectl -n kubeflow describe pod {stub.pod('fit')}" in out
    assert "workflow-controller" not in out


def test_a_long_stage_whose_pod_runs_is_no_alarm(stub, gridbox, cluster, standing):
    cluster.pods = [pod(stub, standing, "fit", "Running")]
    _, out, _ = gridbox("wait", standing)
    assert re.search(rf"still at it after 0\.\d s: fit \(running\); pod {stub.pod('fit')}: Running\n", out)
    assert "no stage has changed" not in out


def test_a_run_that_stands_still_is_said_to_without_kubernetes_too(gridbox, standing):
    _, out, _ = gridbox("wait", standing)
    assert re.search(r"no stage has changed for 0\.\d s: fit \(running\)\n", out)
    assert f"kubectl -n kubeflow get pods -l pipeline/runid={standing}" in out
    assert "workflow-controller" in out


def test_a_server_that_restarts_is_waited_for(stub, gridbox, compiled):
    stub.script = WHOLE
    stub.fail("GET", ".*/v2beta1/runs/.*", 503, times=9)
    code, out, _ = gridbox("submit", compiled)
    assert code == 0
    assert lines_of_stages(out) == SAID
