"""Executor inputs of Kubeflow's own shape drive every stage of the compiled pipeline.

What the launcher puts in place of the placeholder is Go's protojson: every number a float, fields in any order, URIs of
the object store, fields that no program reads.
"""

import importlib
import json
import os
import re
from pathlib import Path

import fake_tao
import pytest
import test_step
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from typer.main import get_command

from components import step
from components.serve import tensorrt
from pipeline import cli
from pipeline.options import Options, Serving, parse_engines

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


VARIANTS = {"cpu": Options(), "gpu": Options(Serving.gpu), "tao": Options(engines=parse_engines("tao"))}


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """The compiled pipeline: serving on CPUs and on GPUs, and with NVIDIA's engine."""
    compiled = {}
    for name, options in VARIANTS.items():
        path = tmp_path_factory.mktemp("compiled") / f"{name}.yaml"
        cli.compile_to("facedetect", path, "tao-micro", options)
        compiled[name] = next(yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader))
    return compiled


@pytest.fixture
def mounts(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "MOUNTS", {**step.MOUNTS, "minio": str(tmp_path / "minio")})
    return tmp_path / "minio"


def arguments_of(document, task, component):
    """The values of a task's parameters as protojson has them."""
    defaults = {
        name: parameter["defaultValue"]
        for name, parameter in document["root"]["inputDefinitions"]["parameters"].items()
    }
    values = {}
    for name, source in task["inputs"].get("parameters", {}).items():
        if "componentInputParameter" in source:
            value = defaults[source["componentInputParameter"].removeprefix("pipelinechannel--")]
        elif "taskFinalStatus" in source:
            value = {"state": "SUCCEEDED", "pipelineTaskName": source["taskFinalStatus"]["producerTask"]}
        elif "taskOutputParameter" in source:
            value = "text of the stage before"
        else:
            value = source["runtimeValue"]["constant"]
            # What kfp makes of a number of GPUs that is a parameter: Kubeflow hands it to the program, too.
            if match := re.fullmatch(r"\{\{\$.inputs.parameters\['pipelinechannel--(\w+)'\]\}\}", str(value)):
                value = defaults[match[1]]
        declared = component["inputDefinitions"]["parameters"].get(name, {"parameterType": "STRING"})
        kind = declared["parameterType"]
        values[name] = float(value) if kind.startswith("NUMBER") else value
    return dict(reversed(values.items()))


def executor_input(document, name, mounts):
    """An executor input of Kubeflow's shape for a task, whose input artifacts exist."""
    task = all_tasks(document)[name]
    component = document["components"][task["componentRef"]["name"]]
    base = f"mlpipeline/v2/artifacts/facedetect/7b1/{name}/4d2"

    def runtime_artifact(key, declared):
        kind = {"schemaVersion": "0.0.1", "schemaTitle": declared["artifactType"]["schemaTitle"]}
        return {"artifacts": [{"uri": f"minio://{base}/{key}", "type": kind, "name": key, "metadata": {}}]}

    inputs, outputs = component.get("inputDefinitions", {}), component.get("outputDefinitions", {})
    for key in inputs.get("artifacts", {}):
        (mounts / base / key).mkdir(parents=True)
    return {
        "outputs": {
            "outputFile": str(mounts / f"mlpipeline/v2/artifacts/facedetect/7b1/{name}/output_metadata.json"),
            "artifacts": {
                key: runtime_artifact(key, declared) for key, declared in outputs.get("artifacts", {}).items()
            },
            "parameters": {key: {"outputFile": str(mounts / base / key)} for key in outputs.get("parameters", {})},
        },
        "inputs": {
            "artifacts": {
                key: runtime_artifact(key, declared) for key, declared in inputs.get("artifacts", {}).items()
            },
            "parameterValues": arguments_of(document, task, component),
        },
    }


def all_tasks(document):
    """Every task that runs a container, by its name."""
    found, dags = {}, [document["root"]["dag"]]
    while dags:
        for name, task in dags.pop()["tasks"].items():
            component = document["components"][task["componentRef"]["name"]]
            if "dag" in component:
                dags.append(component["dag"])
            else:
                found[name] = task
    return found


LEARNING = "pretrained-weights train train-2 prune inference export int8"
DATA = "acquire convert dataset-convert dataset-convert-2"
SCORING = "evaluate evaluate-2 evaluate-3 evaluate-4 report endpoint"
COMMON = f"{DATA} {LEARNING} {SCORING} preflight publish deploy promote conclude".split()
STAGES = {
    "cpu": [*COMMON, "repository"],
    "gpu": [*COMMON, "tensorrt", "repository-of-plan"],
    "tao": [*COMMON, "repository"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_stage_is_tested_here(documents, variant):
    assert sorted(all_tasks(documents[variant])) == sorted(STAGES[variant])


@pytest.mark.parametrize(("variant", "name"), [(variant, name) for variant in VARIANTS for name in STAGES[variant]])
def test_stage_takes_the_flags_of_kubeflows_executor_input(documents, mounts, variant, name):
    document = documents[variant]
    given = executor_input(document, name, mounts)
    json_format.ParseDict(given, pipeline_spec_pb2.ExecutorInput())  # it is one
    flags = step.flags_from_executor_input(step.parse_executor_input(json.dumps(given)))
    assert not any(re.fullmatch(r"\d+\.0", flag) for flag in flags)
    container = document["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
    words = [*container["command"], *container["args"][:-2]]
    if words[:2] == ["python3", "-c"]:
        options = step.parse_tao_flags(words[4], flags)
        assert all(Path(mounts) in value.parents for value in vars(options).values() if isinstance(value, Path))
        return
    if words[:2] == ["python3", "-m"]:
        options = tensorrt.parse([*words[3:], *flags])
        assert options.exported.is_relative_to(mounts)
        return
    program, family, *fixed = words
    assert program == "gridbox"
    command = get_command(importlib.import_module(cli.FAMILIES[family]).app)
    if fixed:
        command = command.commands[fixed.pop(0)]
    context = command.make_context(family, [*fixed, *flags])  # raises for a flag or a value that it does not know
    assert {*given["outputs"]["artifacts"], *given["outputs"]["parameters"]} <= set(context.params)


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


def test_source_embedded_in_the_pipeline_is_that_of_step(documents):
    command = documents["cpu"]["deploymentSpec"]["executors"]["exec-train"]["container"]["command"]
    assert command[-1] == test_step.SOURCE
