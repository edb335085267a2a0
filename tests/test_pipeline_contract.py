"""Executor inputs as Kubeflow's driver makes them drive every stage of the compiled pipeline.

`recordings/executor_inputs.jsonl` holds seven of them, byte for byte, of a run on Kubeflow Pipelines 2.17.0 with its
own settings (profile micro; its stage `publish` still read a repository, its `deploy` had two output parameters). Those
of the other stages are made here, and held against the recorded ones: an input artifact is named by MLMD's id and has
no schemaTitle, its metadata hold two things that Kubeflow adds, and `executor-logs` is among every stage's outputs.
"""

import functools
import importlib
import json
import os
import tempfile
from pathlib import Path

import fake_tao
import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from typer.main import get_command

from components import program, step
from components.detectnet_v2.stage import TASKS
from components.serve import tensorrt
from components.tao.tasks import flags_of, run_task
from pipeline import cli
from pipeline.catalogue import WORKFLOWS
from pipeline.compiling import compile_to
from pipeline.options import Options, Serving, parse_engines

LINES = (Path(__file__).parent / "recordings/executor_inputs.jsonl").read_text(encoding="utf-8").splitlines()
RECORDED = {line["stage"]: line["executor_input"] for line in map(json.loads, LINES)}
# What Kubeflow adds to an artifact's metadata.
FOREIGN = {"display_name", "store_session_info"}
LOGS = {"executor-logs": {"artifactType": {"schemaTitle": "system.Artifact"}}}

VARIANTS = {"cpu": Options(), "gpu": Options(Serving.gpu), "tao": Options(engines=parse_engines("tao"))}
KINDS = [(workflow, variant) for workflow in WORKFLOWS for variant in VARIANTS]
DATA = ["preflight", "pretrained-weights", "acquire", "convert", "dataset-convert"]
MODELS = ["train", "prune", "train-2", "evaluate", "export", "int8", "report"]
COMMON = [*DATA, *MODELS, "deploy", "endpoint", "promote", "conclude"]
STAGES = {
    "cpu": [*COMMON, "publish"],
    "gpu": [*COMMON, "tensorrt", "publish-plan"],
    "tao": [*COMMON, "publish"],
}


@functools.cache
def compiled(workflow, variant):
    """A compiled workflow: serving on CPUs or on GPUs, or with NVIDIA's engine."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pipeline.yaml")
        compile_to(workflow, path, "", VARIANTS[variant])
        return next(yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader))


@pytest.fixture(scope="module")
def documents():
    """The compiled face detection, by variant."""
    return {variant: compiled("facedetect", variant) for variant in VARIANTS}


@pytest.fixture
def mounts(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "MOUNTS", {**step.MOUNTS, "minio": str(tmp_path / "minio")})
    return tmp_path / "minio"


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


# --- Executor inputs -------------------------------------------------------------------------------------------------


def parameter_values(document, task):
    """The values of a task's parameters; a pipeline within the pipeline calls its own as the root does."""
    declared = document["root"]["inputDefinitions"]["parameters"]
    values = {}
    for name, source in task["inputs"].get("parameters", {}).items():
        if "taskFinalStatus" in source:
            values[name] = {
                "error": {},
                "pipelineJobResourceName": "facedetect-4hf54",
                "pipelineTaskName": source["taskFinalStatus"]["producerTask"],
                "state": "COMPLETE",
            }
        elif "componentInputParameter" in source:
            root = source["componentInputParameter"].removeprefix("pipelinechannel--")
            values[name] = declared[root]["defaultValue"]
        elif "taskOutputParameter" in source:
            assert source["taskOutputParameter"]["producerTask"] == "preflight"
            values[name] = "0f2c6d9b1a3e4857"
        else:
            # Constants are words of the command; what is left is the run's id.
            assert source["runtimeValue"]["constant"] == "{{$.pipeline_job_uuid}}"
            values[name] = "dd81169e-7146-4857-9b0b-00e4e0097baf"
    return values


def executor_input(document, name, mounts):
    """An executor input for a task, whose input artifacts exist."""
    task = all_tasks(document)[name]
    component = document["components"][task["componentRef"]["name"]]
    inputs = component.get("inputDefinitions", {}).get("artifacts", {})
    outputs = {**component.get("outputDefinitions", {}).get("artifacts", {}), **LOGS}
    run = "mlpipeline/v2/artifacts/facedetect/dd81169e-7146-4857-9b0b-00e4e0097baf"
    for key in inputs:
        (mounts / run / "before" / key).mkdir(parents=True)

    def read(number, key):
        uri = f"minio://{run}/before/{key}"
        metadata = {"display_name": key, "images": 8, "store_session_info": '{"Provider":"minio"}'}
        return {"artifacts": [{"name": number, "type": {"instanceSchema": ""}, "uri": uri, "metadata": metadata}]}

    def written(key, declared):
        return {"artifacts": [{"name": key, "type": declared["artifactType"], "uri": f"minio://{run}/{name}/{key}"}]}

    given = {"parameterValues": parameter_values(document, task)}
    if inputs:
        given = {"artifacts": {key: read(str(at), key) for at, key in enumerate(inputs, 17)}, **given}
    return {
        "inputs": given,
        "outputs": {
            "artifacts": {key: written(key, declared) for key, declared in outputs.items()},
            "outputFile": str(mounts / run / name / "output_metadata.json"),
        },
    }


def shape(given):
    """What an executor input looks like, whatever its stage is called, takes and writes."""
    inputs, outputs = given["inputs"], given["outputs"]
    facts = {("inputs", key) for key in inputs} | {("outputs", key) for key in outputs}
    for listed in inputs.get("artifacts", {}).values():
        (artifact,) = listed["artifacts"]
        has_id, has_foreign = artifact["name"].isdigit(), set(artifact["metadata"]) >= FOREIGN
        facts.add(("read", *sorted(artifact), json.dumps(artifact["type"]), has_id, has_foreign))
    for key, listed in outputs["artifacts"].items():
        (artifact,) = listed["artifacts"]
        is_logs, has_own_name = key == "executor-logs", artifact["name"] == key
        facts.add(("written", *sorted(artifact), *sorted(artifact["type"]), is_logs, has_own_name))
    if status := inputs["parameterValues"].get("status"):
        facts.add(("final status", *sorted(status), json.dumps(status["error"]), status["state"]))
    return facts


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_stage_is_tested_here(documents, variant):
    assert sorted(all_tasks(documents[variant])) == sorted(STAGES[variant])


@pytest.mark.parametrize("variant", VARIANTS)
def test_executor_inputs_made_here_have_the_shape_of_the_recorded_ones(documents, mounts, variant):
    recorded = set().union(*(shape(json.loads(text)) for text in RECORDED.values()))
    made = set().union(*(shape(executor_input(documents[variant], name, mounts / name)) for name in STAGES[variant]))
    assert made == recorded - {("outputs", "parameters")}


# --- Stages ----------------------------------------------------------------------------------------------------------


class Stage:
    """Starts stages as Kubeflow does; their work is only to note what they are given, and to write every output."""

    def __init__(self, mounts, monkeypatch):
        self.mounts, self.given = mounts, {}
        monkeypatch.setattr(program, "get_command", self._noting_command)
        for task, entry in TASKS.items():
            noting = entry._replace(run=lambda options: self._note(**vars(options)))
            monkeypatch.setitem(TASKS, task, noting)

    def start(self, words, given):
        """Returns the exit code, and by its name what is in the executor output."""
        text = given if isinstance(given, str) else json.dumps(given)
        argv = [*words, "--executor-input", text]
        if words[0] == "detectnet_v2" and words[1] in TASKS:
            code = step.run(argv, run_task, flags_of=flags_of)
        elif words[0] == "tensorrt":
            code = step.run(argv[1:], self._note_tensorrt, flags_of=lambda _: tensorrt.OUTPUT_FLAGS)
        else:
            app = importlib.import_module(cli.FAMILIES[words[0]]).app
            code = program.run(app, argv[1:], f"gridbox {words[0]}")
        file = Path(json.loads(text)["outputs"]["outputFile"])
        if not file.exists():
            return code, {}
        return code, json_format.Parse(file.read_text(), pipeline_spec_pb2.ExecutorOutput()).artifacts

    def _note(self, **given):
        self.given = {name: str(value) for name, value in given.items()}
        for path in map(Path, self.given.values()):
            if self.mounts in path.parents and not path.exists():
                path.write_text("{}")

    def _note_tensorrt(self, words):
        self._note(**vars(tensorrt.parse(words)))

    def _noting_command(self, app):
        command = get_command(app)
        for each in getattr(command, "commands", {"": command}).values():
            each.callback = self._note
        return command


@pytest.fixture
def stage(mounts, monkeypatch):
    return Stage(mounts, monkeypatch)


def words_of(document, name):
    """The words of a stage's command before the executor input, without the interpreter and the program."""
    task = all_tasks(document)[name]
    label = document["components"][task["componentRef"]["name"]]["executorLabel"]
    container = document["deploymentSpec"]["executors"][label]["container"]
    words = [*container["command"], *container["args"]]
    assert words[-2:] == ["--executor-input", "{{$}}"]
    if words[:3] == ["python3", "-m", "components.serve.tensorrt"]:
        return ["tensorrt", *words[3:-2]]
    if words[0] == "gridbox":
        return words[1:-2]
    assert words[:3] == ["python3", "-B", "{{$.inputs.artifacts['program'].path}}"]
    return words[3:-2]


@pytest.mark.parametrize(
    ("workflow", "variant", "name"), [(*kind, name) for kind in KINDS for name in all_tasks(compiled(*kind))]
)
def test_stage_takes_every_input_and_writes_every_declared_output(mounts, stage, capsys, workflow, variant, name):
    document = compiled(workflow, variant)
    given = executor_input(document, name, mounts)
    json_format.ParseDict(given, pipeline_spec_pb2.ExecutorInput())  # it is one
    code, written = stage.start(words_of(document, name), given)
    assert code == 0, capsys.readouterr().err
    assert set(written) == set(given["outputs"]["artifacts"]) - set(LOGS)
    assert not list(mounts.rglob("executor-logs"))


def commands_of_recorded():
    """The commands of the recorded stages: the same since."""
    families = {"acquire": "widerface", "convert": "widerface", "prune": "detectnet_v2"}
    return {name: [families.get(name, "serve"), name] for name in RECORDED} | {"preflight": ["preflight"]}


def recorded(name, mounts):
    """A recorded executor input, its mount moved below `mounts`; its input artifacts exist."""
    text = RECORDED[name].replace('"/minio/', f'"{mounts}/').replace('"/tmp/kfp/', f'"{mounts}/tmp/kfp/')
    for listed in json.loads(text)["inputs"].get("artifacts", {}).values():
        step.artifact_path(listed["artifacts"][0]).mkdir(parents=True)
    return text


@pytest.mark.parametrize("name", [name for name in RECORDED if name != "publish"])
def test_recorded_executor_input_is_taken_and_answered(mounts, stage, capsys, name):
    code, written = stage.start(commands_of_recorded()[name], recorded(name, mounts))
    assert code == 0, capsys.readouterr().err
    assert set(written) == set(json.loads(RECORDED[name])["outputs"]["artifacts"]) - set(LOGS)
    assert not list(mounts.rglob("tmp"))  # the output parameters that `deploy` had once


def test_recorded_values_arrive_as_a_person_would_type_them(mounts, stage):
    stage.start(["detectnet_v2", "prune"], recorded("prune", mounts))
    assert (stage.given["granularity"], stage.given["threshold"]) == ("8", "5.2e-06")
    stage.start(["serve", "conclude"], recorded("conclude", mounts))
    assert json.loads(stage.given["status"])["state"] == "COMPLETE"


def test_recorded_executor_input_prunes_a_model(tmp_path, mounts, monkeypatch):
    programs = fake_tao.install(tmp_path / "bin", tmp_path / "calls")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    text = recorded("prune", mounts)
    given = json.loads(text)
    model = step.artifact_path(given["inputs"]["artifacts"]["model"]["artifacts"][0])
    (model / "weights").mkdir()
    (model / "weights/facedetect.hdf5").write_text("weights")
    step.write_manifest(model, "model", {"present": True}, {})
    argv = ["detectnet_v2", "prune", "--executor-input", text]
    assert step.run(argv, run_task, flags_of=flags_of) == 0
    call = json.loads((tmp_path / "calls").read_text())
    assert call[call.index("-pg") + 1] == "8"
    assert call[call.index("-pth") + 1] == "5.2e-06"
    written = json.loads(Path(given["outputs"]["outputFile"]).read_text())["artifacts"]
    assert set(written) == {"metrics", "pruned"}
    assert written["pruned"]["artifacts"][0]["uri"].startswith("minio://mlpipeline/v2")
    assert written["metrics"]["artifacts"][0]["metadata"]["pruning_ratio"] == 0.4


# --- Values as written, and bad input --------------------------------------------------------------------------------

# A stage of each kind of program, with a text and a number among its parameters.
BEGIN_WITH_A_DASH = [
    ("train", {"name": "-x", "seed": -7}),
    ("acquire", {"uri": "-x"}),
    ("deploy", {"champion": "--force", "image": "-x"}),
    ("tensorrt", {"workspace": -7}),
]


@pytest.mark.parametrize(("name", "values"), BEGIN_WITH_A_DASH)
def test_value_that_begins_with_a_dash_arrives_as_written(documents, mounts, stage, capsys, name, values):
    document = documents["gpu"]
    given = executor_input(document, name, mounts)
    bound = tuple(f"--{key.replace('_', '-')}=" for key in values)
    words = [word for word in words_of(document, name) if not word.startswith(bound)]
    given["inputs"]["parameterValues"] |= values
    code, _ = stage.start(words, given)
    assert code == 0, capsys.readouterr().err
    assert {key: stage.given[key] for key in values} == {key: str(value) for key, value in values.items()}


def one_line(captured):
    assert "Traceback" not in captured.err
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.mark.parametrize("name", ["acquire", "train", "tensorrt"])
def test_output_that_the_stage_does_not_have_is_left_alone(documents, mounts, stage, name):
    given = executor_input(documents["gpu"], name, mounts)
    declared = set(given["outputs"]["artifacts"]) - set(LOGS)
    given["outputs"]["artifacts"]["surprise"] = {"artifacts": [{"name": "surprise", "uri": "gopher://nowhere"}]}
    given["outputs"]["parameters"] = {"news": {"outputFile": str(mounts / "news/file")}}
    code, written = stage.start(words_of(documents["gpu"], name), given)
    assert (code, set(written)) == (0, declared)
    assert not (mounts / "news").exists()


@pytest.mark.parametrize(("name", "key"), [("convert", "dataset"), ("train", "records"), ("tensorrt", "exported")])
def test_missing_input_artifact_is_one_line_and_exit_code_2(documents, mounts, stage, capsys, name, key):
    given = executor_input(documents["gpu"], name, mounts)
    step.artifact_path(given["inputs"]["artifacts"][key]["artifacts"][0]).rmdir()
    code, written = stage.start(words_of(documents["gpu"], name), given)
    assert (code, dict(written)) == (2, {})
    assert f"input {key}: " in one_line(capsys.readouterr())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("acquire", {"training_images": "many"}),
        ("deploy", {"canary_percent": 0.5}),
        ("deploy", {"accept_incomparable": "perhaps"}),
        ("train", {"epochs": "many"}),
        ("train", {"learning_rate": [1]}),
        ("prune", {"threshold": True}),
        ("tensorrt", {"workspace": "much"}),
    ],
)
def test_parameter_of_the_wrong_kind_is_one_line_and_exit_code_2(documents, mounts, stage, capsys, name, values):
    given = executor_input(documents["gpu"], name, mounts)
    given["inputs"]["parameterValues"] |= values
    code, written = stage.start(words_of(documents["gpu"], name), given)
    assert (code, dict(written)) == (2, {})
    assert "--" + next(iter(values)).replace("_", "-") in one_line(capsys.readouterr())


def test_input_that_the_stage_does_not_have_is_one_line_and_exit_code_2(mounts, stage, capsys):
    code, _ = stage.start(["serve", "publish"], recorded("publish", mounts))
    assert code == 2
    assert "--repository" in one_line(capsys.readouterr())
