"""The catalogue: each workflow is whole, and what commands tell of it comes from its definition."""

import ast
import dataclasses
import importlib
import json
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from kfp import dsl
from kfp.dsl import Artifact, Input, Output

from components.images import OPEN_ENGINE
from components.step import UserError
from pipeline import catalogue, pools
from pipeline.building import Graph, build, readers
from pipeline.catalogue import DATA, WORKFLOWS, Part, PipelineDefinition, definition, part
from pipeline.compiling import compile_to
from pipeline.options import Engines, Options, parse_engines
from pipeline.parameters import bound, check_ranges, of_run
from pipeline.placement import Stage, Tao
from pipeline.ranges import Epochs

ROOT = Path(catalogue.__file__).parents[1]

pytest_plugins = ["kubeflow_fixtures"]


def container(*words, output):
    placeholder = dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER
    args = ["--executor-input", placeholder, output.path]
    return dsl.ContainerSpec(image=OPEN_ENGINE, command=["gridbox", "toy", *map(str, words)], args=args)


@dsl.container_component
def learn(uri: str, epochs: int, seed: int, note: str, model: Output[Artifact]):
    return container(uri, epochs, seed, note, output=model)


@dsl.container_component
def score(model: Input[Artifact], scores: Output[Artifact]):
    return container(model.path, output=scores)


@part("train", "data")
def whole(graph: Graph) -> None:
    model = graph.stage("train", learn, "train", "data")["model"]
    graph.stage("score", score, model=model)


def define(graph: Graph) -> None:
    graph.add(whole)


TOY = PipelineDefinition(
    name="toy",
    summary="Learns.",
    parameters={
        "data_uri": of_run(str, "", "Its data."),
        "train_epochs": of_run(Epochs, 3, "Passes."),
        "train_seed": bound(int, 1, "Seed."),
        "train_note": bound(str, "a", "A text.", is_open_only=True),
        **pools.PARAMETERS,
    },
    profiles={"full": {}, "small": {"train_epochs": 1}},
    local_profiles=("small", "full"),
    stages={"train": Stage(tao=Tao()), "score": Stage()},
    parts=(whole,),
    define=define,
    double="components.detectnet_v2.tao_double",
)
DEFINITION = TOY


def parameters(without="", **others):
    return {name: each for name, each in TOY.parameters.items() if name != without} | others


def check(workflow: PipelineDefinition) -> None:
    """Fails where a workflow lacks something."""
    assert re.fullmatch(r"[a-z][a-z0-9-]*", workflow.name), workflow.name
    assert workflow.summary.endswith(".")
    assert DATA in workflow.parameters, "--data would have nothing to set"
    assert set(workflow.local_profiles) <= set(workflow.profiles)
    for name, each in workflow.parameters.items():
        assert each.help.endswith("."), f"{name} has no help"
        assert each.range_words
        check_ranges({name: each.default}, workflow.parameters)
    for profile in workflow.profiles:
        values = workflow.profile_values(profile)
        assert set(values) <= set(workflow.parameters), profile
        check_ranges(values, workflow.parameters)
    for stage in workflow.stages.values():
        assert set(stage.tao.reads if stage.tao else ()) <= set(workflow.stages)
    calls_tao = any(stage.tao for stage in workflow.stages.values())
    assert bool(workflow.double) == calls_tao, "double"
    assert not workflow.double or callable(importlib.import_module(workflow.double).install)
    unread = {name for name, stages in readers(workflow).items() if not stages}
    assert not unread, f"no stage reads {unread}"
    assert set().union(*readers(workflow).values()) <= set(workflow.stages)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_workflow_is_whole(name):
    assert definition(name).name == name
    check(definition(name))


def test_a_toy_is_whole():
    check(TOY)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "Toy 1"}, "Toy 1"),
        ({"summary": ""}, "endswith"),
        ({"parameters": parameters("data_uri")}, "--data would have nothing to set"),
        ({"parameters": parameters(train_seed=bound(int, 1, ""))}, "train_seed has no help"),
        ({"parameters": parameters(train_epochs=of_run(Epochs, 0, "Passes."))}, "train_epochs=0: must be"),
        ({"parameters": parameters(train_spare=bound(int, 1, "Nobody reads it."))}, "no stage reads {'train_spare'}"),
        ({"parameters": parameters(of_nobody=of_run(int, 1, "Nobody reads it."))}, "no stage reads {'of_nobody'}"),
        ({"profiles": {"full": {"epochs": 1}, "small": {}}}, "full"),
        ({"profiles": {"full": {"train_epochs": 0}, "small": {}}}, "train_epochs=0: must be"),
        ({"local_profiles": ("small", "tiny")}, "tiny"),
        ({"stages": {"train": Stage(tao=Tao())}}, "score"),
        ({"stages": {"train": Stage(tao=Tao(reads=("prune",))), "score": Stage()}}, "prune"),
        ({"double": ""}, "double"),
        ({"double": "components.no_such_module"}, "no_such_module"),
    ],
)
def test_a_workflow_that_lacks_something_is_refused(fields, reason):
    with pytest.raises((AssertionError, LookupError, UserError, ImportError), match=re.escape(reason)):
        check(dataclasses.replace(TOY, **fields))


def test_nothing_but_its_own_files_and_the_catalogue_names_a_workflow():
    for file in (ROOT / "pipeline").rglob("*.py"):
        if file.name == "catalogue.py" or file.stem.startswith(tuple(WORKFLOWS)):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)} - docstrings(tree)
        assert not [text for text in texts if isinstance(text, str) and any(name in text for name in WORKFLOWS)], file


def docstrings(tree):
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, nodes)}


# --- Building --------------------------------------------------------------------------------------------------------


def toy_document(options=None, **values):
    complete = {name: each.default for name, each in TOY.parameters.items()} | values
    return build(TOY, options or Options(), complete)


def test_a_part_declares_the_parameters_of_a_run_that_it_reads():
    root = toy_document(train_epochs=7).pipeline_spec.root.input_definitions.parameters
    assert set(root) == {"data_uri", "train_epochs"}
    assert root["train_epochs"].default_value.number_value == 7
    spec = toy_document().pipeline_spec.components["comp-whole"]
    assert set(spec.input_definitions.parameters) == {"data_uri", "train_epochs"}
    assert {task.task_info.name for task in spec.dag.tasks.values()} == {"train", "score"}


def test_parameters_know_who_reads_them():
    found = readers(TOY)
    assert found["train_epochs"] == found["train_seed"] == found["train_note"] == ["train"]
    assert found["data_uri"] == ["train"]
    assert found["pool_cpu_node_selector"] == ["train", "score"]
    assert found["pool_gpu_type"] == ["train"]  # where it is NVIDIA's


def test_a_parameter_of_a_run_that_a_part_does_not_declare_is_named():
    narrow = Part(whole.function, ("data",))
    with pytest.raises(LookupError, match="train_epochs: a parameter of a run that this part does not declare"):
        readers(dataclasses.replace(TOY, parts=(narrow,)))


def test_what_only_the_open_engine_knows_is_refused_for_nvidias():
    Options(engines=Engines()).check(TOY, {"train_note": "b"})
    with pytest.raises(UserError, match=r"train_note=b: NVIDIA's program does not know it; leave it at a"):
        Options(engines=parse_engines("tao")).check(TOY, {"train_note": "b"})


# --- What commands tell ----------------------------------------------------------------------------------------------


@pytest.fixture
def with_toy(monkeypatch):
    """A catalogue of two."""
    monkeypatch.setitem(catalogue.WORKFLOWS, "toy", __name__)


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        ({"eval_min_face_height": 7}, True),
        ({"data_min_face_height": 12}, True),
        ({"data_min_face_height": 12, "data_small_faces": "keep"}, False),
        ({"data_min_face_height": 4, "eval_min_face_height": 4}, False),
        ({"data_min_face_height": 12, "data_resolution": "source"}, False),  # there the evaluation alone decides
    ],
)
def test_evaluations_of_faces_that_the_set_ignores_are_refused_when_compiling(values, refused, tmp_path):
    workflow = definition("facedetect")
    if not refused:
        assert workflow.complete("tao", values)["data_small_faces"] == values.get("data_small_faces", "ignore")
        return
    least = values.get("data_min_face_height", 8)
    with pytest.raises(UserError, match=f"the set ignores faces below {least} pixels .* give at least {least}"):
        compile_to("facedetect", tmp_path / "compiled.yaml", "tao", Options(), values)
    assert not (tmp_path / "compiled.yaml").exists()


@pytest.mark.usefixtures("with_toy")
def test_a_line_in_the_catalogue_is_all_that_a_workflow_needs(gridbox, tmp_path):
    code, _, err = gridbox("compile", "toy", "-o", tmp_path / "toy.yaml", "--profile", "small")
    assert code == 0, err
    document = next(yaml.safe_load_all((tmp_path / "toy.yaml").read_text()))
    assert document["root"]["inputDefinitions"]["parameters"]["train_epochs"]["defaultValue"] == 1
    assert "train_seed" in gridbox("params", "toy")[1]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_params_lists_every_parameter(gridbox, name):
    code, said, _ = gridbox("params", name)
    assert code == 0
    lines = said.splitlines()
    assert lines[0].split()[:3] == ["parameter", "set", "for"]
    assert [line.split()[0] for line in lines[1:]] == list(definition(name).parameters)


def test_params_explains_one(gridbox):
    code, said, _ = gridbox("params", "facedetect", "eval_min_face_height")
    assert code == 0
    for words in (
        "eval_min_face_height <a whole number from 0 to 4096>",
        "DEFAULT:    8\n",
        "cpu: 12, cpu-real: 20",
        "for each run",
        "evaluate, int8, report, endpoint",
        "Lowest face that counts",
    ):
        assert words in said
    assert "when the workflow is compiled" in gridbox("params", "facedetect", "train_seed")[1]
    assert "open only" in gridbox("params", "facedetect", "train_width")[1]


def test_params_for_programs_is_all_that_is_known(gridbox):
    (told, one) = (json.loads(gridbox("params", "facedetect", *name, "-o", "json")[1]) for name in ([], ["data_width"]))
    assert [each["name"] for each in told] == list(definition("facedetect").parameters)
    assert one in told
    assert one == yaml.safe_load(gridbox("params", "facedetect", "data_width", "-o", "yaml")[1])
    assert (one["type"], one["default"], one["set"], one["profiles"]["cpu"]) == ("int", 736, "compile", 320)
    assert one["stages"] == ["kitti", "train", "retrain"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("facedetect", "train_epocs"), "did you mean train_epochs"),
        (("facedetect", "zzz"), "there are data_grayscale"),
        (("facedetct",), "no such pipeline; there is facedetect"),
    ],
)
def test_params_of_an_unknown_name_says_what_there_is(gridbox, words, reason):
    code, _, err = gridbox("params", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert reason in err


@pytest.mark.parametrize("command", ["compile", "run", "submit", "upload", "doctor", "schedule create"])
def test_help_names_the_workflows_and_their_profiles(gridbox, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "300")
    said = gridbox(*command.split(), "--help")[1]
    assert all(name in said for name in WORKFLOWS)
    assert all(profile in said for name in WORKFLOWS for profile in definition(name).profiles)


def test_version_is_that_of_the_package(gridbox):
    assert gridbox("--version")[:2] == (0, f"gridbox {metadata.version('gridbox')}\n")


# --- Time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORKFLOWS)
def test_compiling_takes_less_than_two_seconds_of_a_core(name, tmp_path):
    compile_to(name, tmp_path / "warm.yaml", "", Options())
    start = time.process_time()
    compile_to(name, tmp_path / "pipeline.yaml", "", Options())
    assert time.process_time() - start < 2.0, "with the import of kfp it is in benchmarks/cli.py"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_definition_is_read_without_kfp(name):
    text = f"import sys; from pipeline.catalogue import definition; definition({name!r}); print('kfp' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=30)
    assert found.stdout == "False\n"
