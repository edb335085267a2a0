"""Executor inputs of Kubeflow's own shape drive every stage of the compiled pipeline.

What the launcher puts in place of the placeholder is Go's protojson: every number a float, fields in any order, URIs of
the object store, fields that no program reads.
"""

import importlib
import json
import os
from pathlib import Path

import fake_tao
import pytest
import test_step
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from typer.main import get_command

from components import step
from pipeline import cli

# As recorded from a launcher (ids shortened): the order of fields and the extra ones are Kubeflow's.
RECORDED = """{"outputs":{"outputFile":"/minio/mlpipeline/v2/artifacts/facedetect/7b1/prune/output_metadata.json",
"artifacts":{"metrics":{"artifacts":[{"uri":"minio://mlpipeline/v2/artifacts/facedetect/7b1/prune/4d2/metrics",
"type":{"schemaVersion":"0.0.1","schemaTitle":"system.Metrics"},"name":"metrics","metadata":{}}]},"pruned":{"artifacts":
[{"type":{"schemaTitle":"system.Model","schemaVersion":"0.0.1"},"metadata":{},"name":"pruned",
"uri":"minio://mlpipeline/v2/artifacts/facedetect/7b1/prune/4d2/pruned"}]}}},
"inputs":{"artifacts":{"model":{"artifacts":[{"metadata":{"present":1,"display_name":"model","file_bytes":1234567},
"uri":"minio://mlpipeline/v2/artifacts/facedetect/7b1/train/9ac/model","artifactId":"12","state":"LIVE",
"name":"model","type":{"schemaTitle":"system.Model","schemaVersion":"0.0.1"}}]}},"parameterValues":{"granularity":8.0,
"threshold":5.2e-06,"minimum_filters":16,"normalizer":"max","excluded_layers":"","equalization":"union",
"target_ratio":0}}}"""


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    path = tmp_path_factory.mktemp("compiled") / "facedetect.yaml"
    cli.compile_to("facedetect", path, "micro")
    return yaml.safe_load(path.read_text())


@pytest.fixture
def mounts(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "MOUNTS", {**step.MOUNTS, "minio": str(tmp_path / "minio")})
    return tmp_path / "minio"


def arguments_of(document, task, component):
    """The values of a task's parameters as protojson has them."""
    defaults = {
        name: declared["defaultValue"] for name, declared in document["root"]["inputDefinitions"]["parameters"].items()
    }
    values = {}
    for name, source in task["inputs"].get("parameters", {}).items():
        pipeline_parameter = source.get("componentInputParameter")
        value = defaults[pipeline_parameter] if pipeline_parameter else source["runtimeValue"]["constant"]
        kind = component["inputDefinitions"]["parameters"][name]["parameterType"]
        values[name] = float(value) if kind.startswith("NUMBER") else value
    return dict(reversed(values.items()))


def executor_input(document, name, mounts):
    """An executor input of Kubeflow's shape for a task, whose input artifacts exist."""
    task = document["root"]["dag"]["tasks"][name]
    component = document["components"][task["componentRef"]["name"]]
    base = f"mlpipeline/v2/artifacts/facedetect/7b1/{name}/4d2"

    def runtime_artifact(key, declared):
        kind = {"schemaVersion": "0.0.1", "schemaTitle": declared["artifactType"]["schemaTitle"]}
        return {"artifacts": [{"uri": f"minio://{base}/{key}", "type": kind, "name": key, "metadata": {}}]}

    inputs = component.get("inputDefinitions", {})
    for key in inputs.get("artifacts", {}):
        (mounts / base / key).mkdir(parents=True)
    return {
        "outputs": {
            "outputFile": str(mounts / f"mlpipeline/v2/artifacts/facedetect/7b1/{name}/output_metadata.json"),
            "artifacts": {
                key: runtime_artifact(key, declared)
                for key, declared in component["outputDefinitions"]["artifacts"].items()
            },
        },
        "inputs": {
            "artifacts": {
                key: runtime_artifact(key, declared) for key, declared in inputs.get("artifacts", {}).items()
            },
            "parameterValues": arguments_of(document, task, component),
        },
    }


def stage_names():
    names = "acquire convert dataset-convert dataset-convert-2 pretrained-weights evaluate evaluate-2 evaluate-3"
    return f"{names} evaluate-4 train train-2 prune inference export int8 report".split()


def test_every_stage_is_tested_here(document):
    assert sorted(document["root"]["dag"]["tasks"]) == sorted(stage_names())


@pytest.mark.parametrize("name", stage_names())
def test_stage_takes_the_flags_of_kubeflows_executor_input(document, mounts, name):
    given = executor_input(document, name, mounts)
    json_format.ParseDict(given, pipeline_spec_pb2.ExecutorInput())  # it is one
    flags = step.flags_from_executor_input(step.parse_executor_input(json.dumps(given)))
    assert not any(flag.endswith(".0") for flag in flags if "\n" not in flag and flag not in ("1.0",))
    container = document["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
    words = [*container["command"], *container["args"][:-2]]
    if words[0] == "python3":
        options = step.parse_tao_flags(words[4], flags)
        assert all(Path(mounts) in value.parents for value in vars(options).values() if isinstance(value, Path))
    else:
        program, family, task = words
        assert program == "gridbox"
        app = importlib.import_module(f"components.{family}.commands").app
        command = get_command(app).commands[task]
        context = command.make_context(task, list(flags))  # raises for a flag or a value that it does not know
        assert set(given["outputs"]["artifacts"]) <= set(context.params)


def test_recorded_executor_input_prunes_a_model(tmp_path, mounts, monkeypatch):
    programs = fake_tao.install(tmp_path / "bin", tmp_path / "calls")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    model = mounts / "mlpipeline/v2/artifacts/facedetect/7b1/train/9ac/model"
    (model / "weights").mkdir(parents=True)
    (model / "weights/facedetect.hdf5").write_text("weights")
    step.write_manifest(model, "model", {"present": True}, {})
    given = RECORDED.replace('"/minio/', f'"{mounts}/')
    assert step.run(["detectnet_v2", "prune", "--executor-input", given], step.tao_stage) == 0
    call = json.loads((tmp_path / "calls").read_text())
    assert call[call.index("-pg") + 1] == "8"
    assert call[call.index("-pth") + 1] == "5.2e-06"
    text = (mounts / "mlpipeline/v2/artifacts/facedetect/7b1/prune/output_metadata.json").read_text()
    written = json_format.Parse(text, pipeline_spec_pb2.ExecutorOutput()).artifacts
    assert written["pruned"].artifacts[0].uri.startswith("minio://mlpipeline/v2")
    assert json_format.MessageToDict(written["metrics"].artifacts[0].metadata)["pruning_ratio"] == 0.4


def test_source_embedded_in_the_pipeline_is_that_of_step(document):
    command = document["deploymentSpec"]["executors"]["exec-train"]["container"]["command"]
    assert command[-1] == test_step.SOURCE
