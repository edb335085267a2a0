"""The stub's workflows and details against those of a real Kubeflow Pipelines 2.17.0 over Argo 4.0.5."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from argo_workflow import Workflow, fnv
from kubeflow_stub import Pipelines

from pipeline.kubeflow import api, sources, workflow

RECORDINGS = Path(__file__).with_name("recordings")


@pytest.fixture(scope="module")
def failed():
    """The workflow of a run that failed in `train`: cached, omitted and failed stages, an exit handler that ran."""
    with gzip.open(RECORDINGS / "workflow_failed.json.gz", "rt") as stream:
        return json.load(stream)


def looks():
    """What the API said of a run, look by look, until it succeeded; its workflow was compressed on the way."""
    with gzip.open(RECORDINGS / "api_run.jsonl.gz", "rt") as stream:
        return [json.loads(line) for line in stream]


def shape(nodes):
    return {
        (each["name"], each["type"], each["phase"], each["templateName"], each.get("message", "")): each["id"]
        for each in nodes
    }


def test_a_workflow_of_the_stub_has_the_nodes_of_a_recorded_one(failed):
    states = {path: each.state for path, each in workflow.states(failed).items()}
    name = failed["metadata"]["name"]
    uncounted = {"exit-handler-1.preflight", "exit-handler-1.deploy", "exit-handler-1.promote", "conclude"}
    made = Workflow(name, states, set(states) - uncounted, exit_handlers={"conclude": "exit-handler-1"})
    assert shape(made.nodes.values()) == shape(failed["status"]["nodes"].values())


def test_ids_of_nodes_are_hashes_of_their_names(failed):
    name = failed["metadata"]["name"]
    for node in failed["status"]["nodes"].values():
        assert node["id"] in (name, f"{name}-{fnv(node['name'])}")


def test_details_of_the_stub_have_the_shape_of_recorded_ones():
    *_, recorded = looks()[:10]
    with Pipelines() as stub:
        stub.runs["r"] = run = {"run_id": "r", "created_at": "2026-11-30T21:58:15Z"}
        stub.script = [({"learn.train": "RUNNING", "data.kitti": "CACHED"}, "RUNNING")]
        made = list(stub._task_details(run, stub._workflow(0)))
    kinds = [Counter(frozenset(each) - {"child_tasks", "state_history"} for each in details)
             for details in (made, recorded["run_details"]["task_details"])]  # fmt: skip
    assert set(kinds[0]) == set(kinds[1])


def test_a_recorded_workflow_tells_of_every_stage(failed):
    states = {path: each.state for path, each in workflow.states(failed).items()}
    assert Counter(states.values()) == {"SKIPPED": 14, "CACHED": 6, "SUCCEEDED": 2, "FAILED": 1}
    assert states["exit-handler-1.train"] == "FAILED"
    assert states["conclude"] == "SUCCEEDED", "an exit handler's task stands beside its group, as in the compiled file"
    (tried,) = [each for each in workflow.attempts(failed) if each.has_failed]
    assert (tried.task, tried.message) == ("exit-handler-1.train", "main: Error (exit code 1)")
    assert tried.pod == "facedetect-4wz6k-retry-system-container-impl-2051471867"


def test_a_compressed_workflow_tells_the_same(failed):
    packed = Workflow("w", {"learn.train": "RUNNING"}).document("r", compressed=True)
    assert "nodes" not in packed["status"]
    assert workflow.is_compressed(packed)
    assert {path: each.state for path, each in workflow.states(packed).items()} == {"learn.train": "RUNNING"}
    assert not workflow.is_compressed(failed)


def test_recorded_details_stand_still_when_the_workflow_is_compressed():
    stages = {f"exit-handler-1.{name}": name for name in ("publish", "deploy", "promote", "train", "report")}
    former, last = (api._run(each) for each in looks()[-2:])
    assert (former.state, last.state) == ("RUNNING", "SUCCEEDED")
    states = sources.of_details(last.tasks, stages)
    assert states == sources.of_details(former.tasks, stages)
    assert states["exit-handler-1.publish"].state == "RUNNING", "of a run that has succeeded"
    assert "exit-handler-1.deploy" not in states


def test_a_plugin_that_failed_is_no_failure_of_the_run():
    last = looks()[-1]
    assert last["plugins_output"]["mlflow"]["state"] == "PLUGIN_FAILED"
    assert (api._run(last).state, api._run(last).error) == ("SUCCEEDED", "")


def test_stages_of_one_name_are_told_apart_by_their_order_where_only_details_speak():
    times = ("2026-11-30T21:58:20Z", "2026-11-30T21:58:50Z")
    tasks = [
        api._task({"display_name": "evaluate", "state": state, "start_time": time})
        for state, time in zip(("RUNNING", "SUCCEEDED"), reversed(times), strict=True)
    ]
    found = sources.of_details(tasks, {"learn.evaluate": "a", "measure.evaluate": "b"})
    assert {path: each.state for path, each in found.items()} == {
        "learn.evaluate": "SUCCEEDED", "measure.evaluate": "RUNNING",
    }  # fmt: skip
