"""The compiled face-detection pipeline: what Kubeflow will see."""

import inspect
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler
from test_pipeline_contract import all_tasks

from components import step
from components.step import UserError
from pipeline import cli, facedetect
from pipeline.compiled import load
from pipeline.options import Backend, Options, Serving, parse_engines
from pipeline.parameters import check_ranges
from pipeline.profiles import PROFILES

VARIANTS = {
    "cpu": Options(),
    "gpu": Options(Serving.gpu),
    "tao": Options(engines=parse_engines("tao")),
    "2.15": Options(backend=Backend.v2_15),
}


@pytest.fixture(scope="module", params=VARIANTS)
def options(request):
    return VARIANTS[request.param]


@pytest.fixture(scope="module")
def file(tmp_path_factory, options):
    path = tmp_path_factory.mktemp("compiled") / "facedetect.yaml"
    compile_to("facedetect", path, "tao", options)
    return path


@pytest.fixture(scope="module")
def document(file):
    return next(yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader))


def containers(document):
    return {name: executor["container"] for name, executor in document["deploymentSpec"]["executors"].items()}


def test_compiling_twice_gives_the_same_bytes(file, options, tmp_path):
    compile_to("facedetect", tmp_path / "again.yaml", "tao", options)
    assert (tmp_path / "again.yaml").read_bytes() == file.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.yaml"]


def test_documents_are_those_that_kfp_writes(file, options, tmp_path):
    function = facedetect.define(options)
    compiler.Compiler().compile(function, str(tmp_path / "kfp.yaml"))
    text = (tmp_path / "kfp.yaml").read_text()
    theirs = list(yaml.load_all(text[text.index("\ncomponents:\n") :], Loader=yaml.CSafeLoader))
    ours = list(yaml.load_all(file.read_text(), Loader=yaml.CSafeLoader))
    for parameter in ours[0]["root"]["inputDefinitions"]["parameters"].values():
        parameter.pop("literals", None)
    assert ours == theirs


def test_only_placeholder_is_the_executor_input_and_only_in_args(file, document):
    found = set(re.findall(r"\{\{.*?\}\}", file.read_text()))
    # The kind and number of GPUs are filled in by the driver; the run's identity is one only as a whole value.
    gpus = {f"{{{{$.inputs.parameters['pipelinechannel--pool_gpu_{name}']}}}}" for name in ("type", "count")}
    assert {text.replace("''", "'") for text in found} == {"{{$}}", "{{$.pipeline_job_uuid}}", *gpus}
    for container in containers(document).values():
        assert not any("{{" in word for word in container["command"])
        assert container["args"][-2:] == ["--executor-input", "{{$}}"]
        assert sum("{{" in word for word in container["args"]) == 1
    assert "IfPresent" not in file.read_text()
    assert '"Concat"' not in file.read_text()


def test_file_holds_no_local_path_and_no_secret(file):
    text = file.read_text()
    root = Path(step.__file__).parent.parent
    for forbidden in (str(root), str(Path.home()), socket.gethostname(), "nvidia_tlt", "tlt_encode"):
        assert forbidden not in text.replace("TAO_KEY", "")
    assert not re.search(r"/(root|home|tmp|work)/", text)


def test_tao_stages_run_the_source_of_step_itself(document):
    source = inspect.getsource(step)
    found = [container for container in containers(document).values() if container["command"][:2] == ["python3", "-c"]]
    assert len(found) == 11
    for container in found:
        assert container["command"] == ["python3", "-c", source]
        assert container["args"][0] == "detectnet_v2"
        assert container["args"][1] in step.TASKS
        # One argument of a process may have 128 KiB.
        assert len(source.encode()) < 100 * 1024


def test_tao_stages_declare_exactly_the_flags_that_step_reads(document):
    for label, container in containers(document).items():
        if container["command"][:2] != ["python3", "-c"]:
            continue
        component = document["components"][label.replace("exec-", "comp-")]
        _, inputs, parameters, outputs = step.TASKS[container["args"][1]]
        assert set(component["inputDefinitions"].get("artifacts", {})) == set(inputs)
        assert set(component["inputDefinitions"].get("parameters", {})) == set(parameters)
        assert set(component["outputDefinitions"]["artifacts"]) == set(outputs)


def test_no_output_name_is_a_prefix_of_another(document):
    for component in document["components"].values():
        names = sorted(component.get("outputDefinitions", {}).get("artifacts", {}))
        assert not [(a, b) for a in names for b in names if a != b and b.startswith(a)]


def test_every_parameter_is_passed_explicitly(document):
    for task in all_tasks(document).values():
        component = document["components"][task["componentRef"]["name"]]
        declared = component.get("inputDefinitions", {})
        given = task.get("inputs", {}).get("parameters", {})
        given = {name: source for name, source in given.items() if not name.startswith(step.NOT_OURS)}
        assert set(declared.get("parameters", {})) == set(given)
        assert set(declared.get("artifacts", {})) == set(task.get("inputs", {}).get("artifacts", {}))
        optional = {name for name, spec in declared.get("parameters", {}).items() if spec.get("isOptional")}
        assert optional == {name for name, source in given.items() if "taskFinalStatus" in source}


def test_there_is_no_condition_and_no_resource_that_is_not_a_string(document):
    for name, task in all_tasks(document).items():
        wanted = {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"} if name == "conclude" else None
        assert task.get("triggerPolicy") == wanted
    for container in containers(document).values():
        for value in container.get("resources", {}).values():
            assert isinstance(value, (str, dict))
            assert not isinstance(value, dict) or all(isinstance(inner, str) for inner in value.values())


def test_every_parameter_is_described_and_named_after_its_stage(document):
    stages = (
        "data",
        "records",
        "pretrained",
        "train",
        "prune",
        "retrain",
        "inference",
        "export",
        "int8",
        "deploy",
        "eval",
        "pool",
    )
    for name, declared in document["root"]["inputDefinitions"]["parameters"].items():
        assert declared.get("description"), name
        assert name.partition("_")[0] in stages
    for component in document["components"].values():
        if "dag" in component:
            continue
        for kind in ("parameters", "artifacts"):
            for name, declared in component.get("inputDefinitions", {}).get(kind, {}).items():
                assert declared.get("description"), name


def test_ranges_know_every_parameter_with_its_type(document):
    types = {
        "STRING": str,
        "NUMBER_INTEGER": int,
        "NUMBER_DOUBLE": float,
        "BOOLEAN": bool,
        "LIST": list[dict[str, Any]],
        "STRUCT": dict[str, str],
    }
    declared = document["root"]["inputDefinitions"]["parameters"]
    annotations = facedetect.Ranges.__annotations__
    assert set(annotations) == set(declared)
    for name, parameter in declared.items():
        annotation = annotations[name]
        base = annotation.__origin__ if hasattr(annotation, "__metadata__") else annotation
        wanted = types[parameter["parameterType"]]
        assert base == wanted or (wanted is str and "Literal" in str(annotation)), name


@pytest.mark.parametrize("name", PROFILES)
def test_profile_compiles_and_is_within_the_ranges(name, tmp_path):
    compile_to("facedetect", tmp_path / "p.yaml", name, Options())
    parameters = next(yaml.safe_load_all((tmp_path / "p.yaml").read_text()))["root"]["inputDefinitions"]["parameters"]
    check_ranges({key: value["defaultValue"] for key, value in parameters.items()}, facedetect.Ranges)
    for key, value in PROFILES[name].items():
        assert parameters[key]["defaultValue"] == value


DATA_STAGES = "data kitti records-training records-validation pretrained"
MODEL_STAGES = "train evaluate prune evaluate-pruned retrain evaluate-retrained inference export int8 report"
NAMES = f"{DATA_STAGES} evaluate-pretrained {MODEL_STAGES}".split()


def test_compiled_file_can_run_here_unless_it_wants_images_that_have_no_double(file, options):
    if options.serving is Serving.gpu:
        with pytest.raises(UserError, match=r"tensorrt has the image .*/triton:"):
            load(file)
        return
    if options.engines:
        with pytest.raises(UserError, match="runs here as a double only: --engine tao-double"):
            load(file)
    compiled = load(file, has_double=True)
    assert compiled.name == "facedetect"
    outside = {"preflight", "publish", "deploy", "endpoint", "promote", "conclude"}
    assert set(compiled.stages.values()) == {*NAMES, "model-repository", *outside}
    assert compiled.uncached == outside
    of_tao = {name for name in NAMES if name not in ("data", "kitti", "pretrained", "int8", "report")}
    assert compiled.of_tao == (of_tao if options.engines else set())


def test_enumerations_are_literals_where_kubeflow_knows_them(document, options):
    parameters = document["root"]["inputDefinitions"]["parameters"]
    literals = {name: parameter["literals"] for name, parameter in parameters.items() if "literals" in parameter}
    if options.backend is Backend.v2_15:
        assert literals == {}
        return
    assert literals["deploy_target"] == ["manifest", "kserve", "local"]
    assert literals["prune_normalizer"] == ["max", "L2"]
    assert all(parameters[name]["defaultValue"] in values for name, values in literals.items())


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
        check_ranges({name: value}, facedetect.Ranges)
    assert f"parameter {name}" in str(caught.value)
    assert "\n" not in str(caught.value)
