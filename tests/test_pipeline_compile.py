"""The compiled face-detection pipeline: what Kubeflow will see."""

import itertools
import json
import re
import socket
from pathlib import Path

import pytest
import yaml
from kfp import compiler
from test_pipeline_contract import all_tasks

from components import step
from components.detectnet_v2.stage import TASKS
from components.step import UserError
from components.tao.program import write_program
from components.tao.rendering import template_text
from pipeline import compiled as compiled_module
from pipeline.building import build
from pipeline.catalogue import WORKFLOWS, definition
from pipeline.compiled import load
from pipeline.compiling import compile_to
from pipeline.options import Backend, Engine, Options, Serving, parse_engines
from pipeline.parameters import check_ranges, parse_assignments

VARIANTS = {
    "cpu": Options(),
    "gpu": Options(Serving.gpu),
    "tao": Options(engines=parse_engines("tao")),
    "2.15": Options(backend=Backend.v2_15),
}
PARAMETERS = definition("facedetect").parameters
PROGRAM = "{{$.inputs.artifacts['program'].path}}"
TAO_STAGES = ["dataset-convert", "evaluate", "export", "prune", "train", "train-2"]


# For what is said of this workflow alone.
of_facedetect = pytest.mark.parametrize("workflow", ["facedetect"], indirect=True)


@pytest.fixture(scope="module", params=WORKFLOWS)
def workflow(request):
    return definition(request.param)


@pytest.fixture(scope="module", params=VARIANTS)
def options(request):
    return VARIANTS[request.param]


@pytest.fixture(scope="module")
def file(tmp_path_factory, workflow, options):
    path = tmp_path_factory.mktemp("compiled") / f"{workflow.name}.yaml"
    compile_to(workflow.name, path, "", options)
    return path


def of_run(workflow):
    """The parameters of a run; the others are bound."""
    return {name for name, each in workflow.parameters.items() if each.is_of_run}


@pytest.fixture(scope="module")
def document(file):
    return first_document(file)


def first_document(file):
    return next(yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader))


@pytest.fixture
def bind(tmp_path):
    """Compiles with values bound as `--set` does; returns the document."""

    def compile_with(*assignments, profile="tao"):
        values = parse_assignments(assignments, definition("facedetect").types)
        compile_to("facedetect", tmp_path / "bound.yaml", profile, Options(), values)
        return first_document(tmp_path / "bound.yaml")

    return compile_with


def containers(document):
    """By task, its container."""
    executors = document["deploymentSpec"]["executors"]
    labels = {name: component.get("executorLabel") for name, component in document["components"].items()}
    return {
        name: executors[labels[task["componentRef"]["name"]]]["container"] for name, task in all_tasks(document).items()
    }


def words_of_stages(document):
    return {name: container["args"] for name, container in containers(document).items()}


def dags(document):
    yield "root", document["root"]
    yield from ((name, component) for name, component in document["components"].items() if "dag" in component)


# --- The graph -------------------------------------------------------------------------------------------------------


@of_facedetect
def test_graph_shows_four_boxes_of_a_few_stages_each(document, options):
    shown = {name: sorted(each["dag"]["tasks"]) for name, each in dags(document)}
    publish = ["publish-plan", "tensorrt"] if options.serving is Serving.gpu else ["publish"]
    assert shown == {
        "root": ["data", "learn", "measure", "serve"],
        "comp-data": ["acquire", "convert", "dataset-convert", "preflight", "pretrained-weights"],
        "comp-learn": ["prune", "train", "train-2"],
        "comp-measure": ["evaluate", "export", "int8", "report"],
        "comp-serve": ["conclude", "exit-handler-1", *publish],
        "comp-exit-handler-1": ["deploy", "endpoint", "promote"],
    }


@of_facedetect
def test_boxes_and_stages_have_the_names_that_a_person_reads(document, options, workflow):
    named = {
        name: task["taskInfo"]["name"] for _, each in dags(document) for name, task in each["dag"]["tasks"].items()
    }
    assert [named[name] for name in document["root"]["dag"]["tasks"]] == ["data", "learn", "measure", "serve"]
    assert named["exit-handler-1"] == "deployment"
    stages = [named[name] for name in all_tasks(document)]
    assert sorted(stages) == sorted(
        name for name in workflow.stages if name != "plan" or options.serving is Serving.gpu
    )


@of_facedetect
def test_what_fails_before_deployment_has_nothing_undone(document):
    """Kubeflow runs an exit handler for the group round deployment alone: it is in no other box."""
    waiting = {name: task["dependentTasks"] for name, task in all_tasks(document).items() if task.get("triggerPolicy")}
    assert waiting == {"conclude": ["exit-handler-1"]}
    status = all_tasks(document)["conclude"]["inputs"]["parameters"]["status"]
    assert status == {"taskFinalStatus": {"producerTask": "exit-handler-1"}}


# --- The parameters --------------------------------------------------------------------------------------------------


@of_facedetect
def test_form_of_a_run_asks_for_some_twenty_values(document):
    assert 15 <= len(document["root"]["inputDefinitions"]["parameters"]) <= 25


def test_form_of_a_run_has_a_type_a_default_and_a_help_for_each_value(document, workflow):
    declared = document["root"]["inputDefinitions"]["parameters"]
    assert set(declared) == of_run(workflow)
    for name, parameter in declared.items():
        assert parameter["description"] == workflow.parameters[name].help
        assert parameter["isOptional"]
        assert parameter["parameterType"] == workflow.parameters[name].kfp_type
        assert parameter["defaultValue"] == workflow.parameters[name].default


def test_parameters_begin_with_their_stage_so_that_the_alphabet_is_an_order():
    stages = ("data", "records", "pretrained", "train", "prune", "retrain", "inference", "export", "int8")
    assert {name.partition("_")[0] for name in PARAMETERS} == {*stages, "deploy", "eval", "pool"}


def test_no_bound_value_travels_as_a_parameter(document, workflow):
    for name, each in dags(document):
        declared = each.get("inputDefinitions", {}).get("parameters", {})
        assert {key.removeprefix("pipelinechannel--") for key in declared} <= of_run(workflow), name
    for name, task in all_tasks(document).items():
        for source in task["inputs"].get("parameters", {}).values():
            constant = source.get("runtimeValue", {}).get("constant")
            assert constant in (None, "{{$.pipeline_job_uuid}}"), name


@of_facedetect
def test_bound_values_are_words_of_the_commands(document, options):
    words = words_of_stages(document)
    assert {"--seed=42", "--image-width=736", "--spec=facedetect/train", "--name=facedetect"} <= set(words["train"])
    assert {"--seed=42", "--batch-size=32", "--spec=facedetect/retrain"} <= set(words["train-2"])
    assert {"--mode=Standard", "--node-selector={}", "--no-force", "--timeout=900"} <= set(words["deploy"])
    assert "--no-grayscale" in words["convert"]
    assert ("--gpus=1" if options.serving is Serving.gpu else "--gpus=0") in words["deploy"]


def test_every_declared_input_of_a_stage_is_given_one(document):
    for name, task in all_tasks(document).items():
        declared = document["components"][task["componentRef"]["name"]].get("inputDefinitions", {})
        for kind in ("parameters", "artifacts"):
            assert set(declared.get(kind, {})) == set(task.get("inputs", {}).get(kind, {})), name


def test_set_binds_a_parameter_and_the_description_lists_it(bind):
    document = bind("train_seed=7", 'deploy_node_selector={"disk": "fast"}', "prune_excluded_layers=-x y")
    words = words_of_stages(document)
    assert "--seed=7" in words["train"]
    assert '--node-selector={"disk": "fast"}' in words["deploy"]
    assert "--excluded-layers=-x y" in words["prune"]
    assert document["pipelineInfo"]["description"].endswith(
        "Bound when it was compiled: deploy_node_selector={'disk': 'fast'}, prune_excluded_layers=-x y, train_seed=7."
    )


def test_set_of_a_runs_parameter_is_its_default(bind):
    document = bind("train_epochs=7")
    assert document["root"]["inputDefinitions"]["parameters"]["train_epochs"]["defaultValue"] == 7
    assert "Bound" not in document["pipelineInfo"]["description"]


@pytest.mark.parametrize(
    ("assignment", "reason"),
    [
        ("train_sead=7", "--set train_sead: no such parameter; did you mean train_seed"),
        ("train_seed=x", "--set train_seed=x: must be a whole number"),
        ("train_seed=-1", "parameter train_seed=-1: must be a whole number from 0 to"),
        ("train_spec=facedetect/trian", "parameter train_spec=facedetect/trian: spec facedetect/trian: there is no"),
    ],
)
def test_value_that_cannot_be_bound_is_refused_in_one_line_and_writes_nothing(bind, tmp_path, assignment, reason):
    with pytest.raises(UserError, match=re.escape(reason)) as caught:
        bind(assignment)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_spec_of_a_person_travels_as_its_text_and_ours_by_its_name(bind, tmp_path):
    (tmp_path / "spec.txt").write_text(template_text("facedetect-cpu/train") + "# mine\n")
    document = bind(f"train_spec=@{tmp_path}/spec.txt")
    (spec,) = [word for word in words_of_stages(document)["train"] if word.startswith("--spec=")]
    assert spec.endswith("# mine\n")
    assert "--spec=facedetect/retrain" in words_of_stages(document)["train-2"]
    assert "train_spec=(a text)" in document["pipelineInfo"]["description"]


def test_kinds_of_value_that_a_parameter_has_are_those_of_its_range():
    kinds = {
        "STRING": str,
        "NUMBER_INTEGER": int,
        "NUMBER_DOUBLE": float,
        "BOOLEAN": bool,
        "LIST": list,
        "STRUCT": dict,
    }
    for name, each in PARAMETERS.items():
        assert isinstance(each.default, kinds[each.kfp_type]), name
        assert not each.literals or each.default in each.literals, name


@pytest.mark.parametrize(
    ("name", "profile"), [(name, profile) for name in WORKFLOWS for profile in definition(name).profiles]
)
def test_profile_compiles_and_is_within_the_ranges(name, profile, tmp_path):
    workflow = definition(name)
    compile_to(name, tmp_path / "p.yaml", profile, Options())
    check_ranges(workflow.profiles[profile], workflow.parameters)
    declared = first_document(tmp_path / "p.yaml")["root"]["inputDefinitions"]["parameters"]
    for key, value in workflow.profiles[profile].items():
        assert key in workflow.parameters
        assert key not in of_run(workflow) or declared[key]["defaultValue"] == value


@of_facedetect
def test_enumerations_are_literals_where_kubeflow_knows_them(document, options):
    parameters = document["root"]["inputDefinitions"]["parameters"]
    literals = {name: parameter["literals"] for name, parameter in parameters.items() if "literals" in parameter}
    known = {} if options.backend is Backend.v2_15 else {"deploy_target": ["manifest", "kserve", "local"]}
    assert literals == known


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("train_epochs", 0, "must be a whole number from 1 to 10000"),
        ("data_width", 100, "must be a whole number from 64 to 4096 divisible by 16"),
        ("prune_normalizer", "l2", "must be max or L2"),
        ("train_learning_rate", 0.0, "must be a number above 0 to 1"),
        ("train_spec", "x: ${epoch}", r"\$\{epoch\} has no value"),
        ("inference_spec", "x: ${epochs}", r"\$\{epochs\} has no value; known are"),
        ("train_spec", "x" * 20_000, "may have 16384 bytes"),
    ],
)
def test_value_out_of_range_is_refused_with_its_range(name, value, reason):
    with pytest.raises(UserError, match=reason) as caught:
        check_ranges({name: value}, PARAMETERS)
    assert f"parameter {name}" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- The file --------------------------------------------------------------------------------------------------------


def test_compiling_twice_gives_the_same_bytes(file, workflow, options, tmp_path):
    compile_to(workflow.name, tmp_path / "again.yaml", "", options)
    assert (tmp_path / "again.yaml").read_bytes() == file.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.yaml"]


def test_documents_are_those_that_kfp_writes_but_for_constants_and_texts(workflow, options, tmp_path, monkeypatch):
    values = {name: each.default for name, each in workflow.parameters.items()}
    function = build(workflow, options, values)
    compiler.Compiler().compile(function, str(tmp_path / "kfp.yaml"))
    text = (tmp_path / "kfp.yaml").read_text()
    theirs = list(yaml.load_all(text[text.index("\ncomponents:\n") :], Loader=yaml.CSafeLoader))
    monkeypatch.setattr(compiled_module, "_spell_constants", lambda _: None)
    ours = list(yaml.load_all(compiled_module.dump(function), Loader=yaml.CSafeLoader))
    for component in theirs[0]["components"].values():
        for side, kind in itertools.product(("inputDefinitions", "outputDefinitions"), ("parameters", "artifacts")):
            for declared in component.get(side, {}).get(kind, {}).values():
                declared.pop("description", None)
    assert ours == theirs


def test_texts_of_components_do_not_travel(document):
    for name, component in document["components"].items():
        assert "description" not in json.dumps(component), name


@of_facedetect
def test_only_placeholders_are_the_executor_input_the_program_and_the_runs_id(file, document):
    found = {text.replace("''", "'") for text in re.findall(r"\{\{.*?\}\}", file.read_text())}
    assert found == {"{{$}}", "{{$.pipeline_job_uuid}}", PROGRAM}
    for container in containers(document).values():
        assert not any("{{" in word for word in container["command"])
        assert container["args"][-2:] == ["--executor-input", "{{$}}"]
        assert [word for word in container["args"][:-1] if "{{" in word] in ([], [PROGRAM])
    assert "IfPresent" not in file.read_text()
    assert '"Concat"' not in file.read_text()


def test_file_holds_no_local_path_and_no_secret(file):
    text = file.read_text()
    root = Path(step.__file__).parent.parent
    for forbidden in (str(root), str(Path.home()), socket.gethostname(), "nvidia_tlt", "tlt_encode"):
        assert forbidden not in text.replace("TAO_KEY", "")
    assert not re.search(r"/(root|home|tmp|work)/", text)


@of_facedetect
def test_tao_stages_run_the_program_that_travels_once_as_an_artifact(document):
    found = containers(document)
    assert sorted(name for name, each in found.items() if PROGRAM in each["args"]) == TAO_STAGES
    for name in TAO_STAGES:
        assert found[name]["command"] == ["python3", "-B"]
        assert found[name]["args"][:2] == [PROGRAM, "detectnet_v2"]
        assert found[name]["args"][2] in TASKS
    assert found["pretrained-weights"]["command"] == ["gridbox"]


def test_source_of_the_program_and_of_our_specs_is_nowhere_in_the_file(file, tmp_path):
    text = "".join(file.read_text().split())
    write_program("detectnet_v2", tmp_path / "program")
    for source in (tmp_path / "program").rglob("*.py"):
        for line in (line for line in source.read_text().splitlines() if len(line) > 60):
            assert "".join(line.split()) not in text
    assert "bbox_rasterizer_config" not in text
    assert len(file.read_bytes()) < 64_000


@of_facedetect
def test_tao_stages_declare_exactly_the_flags_that_step_reads(document):
    for name, container in containers(document).items():
        if name not in TAO_STAGES:
            continue
        component = document["components"][f"comp-{name}"]
        task = TASKS[container["args"][2]]
        bound = {word[2:].partition("=")[0].replace("-", "_") for word in container["args"][3:-2]}
        given = set(component["inputDefinitions"].get("parameters", {}))
        assert not given & bound
        assert given | bound == set(task.parameters) - ({"excluded_layers"} - given - bound)
        assert set(component["inputDefinitions"]["artifacts"]) == {"program", *task.inputs}
        assert set(component["outputDefinitions"]["artifacts"]) == set(task.outputs)


def test_no_output_name_is_a_prefix_of_another(document):
    for component in document["components"].values():
        names = sorted(component.get("outputDefinitions", {}).get("artifacts", {}))
        assert not [(a, b) for a in names for b in names if a != b and b.startswith(a)]


@of_facedetect
def test_there_is_no_condition_and_no_resource_that_is_not_a_string(document):
    for name, task in all_tasks(document).items():
        wanted = {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"} if name == "conclude" else None
        assert task.get("triggerPolicy") == wanted
    for container in containers(document).values():
        for value in container.get("resources", {}).values():
            assert isinstance(value, (str, dict))
            assert not isinstance(value, dict) or all(isinstance(inner, str) for inner in value.values())


@of_facedetect
def test_compiled_file_can_run_here_unless_it_wants_images_that_have_no_double(file, options, workflow):
    if options.serving is Serving.gpu:
        with pytest.raises(UserError, match=r"tensorrt has the image .*/triton:"):
            load(file)
        return
    if options.engines.default is Engine.tao:
        with pytest.raises(UserError, match="runs here as a double only: --engine tao-double"):
            load(file)
    compiled = load(file, has_double=True)
    assert compiled.name == "facedetect"
    assert set(compiled.stages.values()) == set(workflow.stages) - {"plan"}
    assert compiled.uncached == {"preflight", "publish", "deploy", "endpoint", "promote", "conclude"}
    of_tao = {"records", "train", "prune", "retrain", "evaluate", "export"}
    assert compiled.of_tao == (of_tao if options.engines.default is Engine.tao else set())
