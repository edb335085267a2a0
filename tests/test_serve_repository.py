"""Model repositories: what is in them, and what their configurations say, for all backends of the network."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from square_detector import CELL, HEIGHT, WIDTH, write_detector

from components.serve import local, models
from components.serve.config import RepositorySettings, threads_within, to_text
from components.serve.families import family, family_of
from components.serve.local import find_model, local_repository, local_settings
from components.serve.release import GRIDBOX_VERSION, TRITON_RELEASE
from components.serve.repository import build_repository
from components.step import UserError, read_manifest, write_json, write_manifest
from components.vision.inputs import InputSpec
from components.vision.predictor import load_predictor

model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")

NAMES = ("facenet", "facenet_ensemble", "facenet_postprocess", "facenet_preprocess")
BACKENDS = ("onnxruntime", "python", "tensorrt")
GEOMETRY = {"width": WIDTH, "height": HEIGHT, "stride": CELL, "scale": 35.0, "offset": 0.5}


def write_plan(folder, exported, **changes):
    folder.mkdir()
    (folder / "model.plan").write_bytes(b"a plan")
    settings = read_manifest(exported, "exported_model")["settings"]
    bound = {
        "gpu": "NVIDIA A10",
        "compute_capability": "8.6",
        "tensorrt_version": "11.1.0",
        "triton_release": TRITON_RELEASE,
        "precision": "fp16",
        "batches": [1, 16, 32],
    }
    write_manifest(folder, "tensorrt_plan", {}, {**settings, **bound, **changes})
    return folder


def rename_tensors(model, suffix):
    """Gives the tensors of an exported model the suffix of TAO 5's ONNX files; its manifest stays as it is."""
    document = onnx.load(model)
    names = {value.name: value.name + suffix for value in [*document.graph.input, *document.graph.output]}
    for value in [*document.graph.input, *document.graph.output]:
        value.name = names[value.name]
    for node in document.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    onnx.save(document, model)


def configs(repository):
    """Returns the parsed configurations by model; a field that Triton does not know is an error."""
    return {
        folder.name: text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        for folder in sorted((repository / "repository").iterdir())
    }


def parameters(config):
    return {name: json.loads(value.string_value) for name, value in config.parameters.items()}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return write_detector(tmp_path_factory.mktemp("exported") / "model")


@pytest.fixture(scope="module")
def built(exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    plan = write_plan(folder / "plan", exported)
    for backend in BACKENDS:
        settings = RepositorySettings(backend)
        build_repository(exported, folder / backend, settings, plan if backend == "tensorrt" else None)
    return {backend: folder / backend for backend in BACKENDS}


@pytest.mark.parametrize(
    ("backend", "network", "ensemble"),
    [
        ("onnxruntime", {"model.onnx", "model.json"}, {"placeholder.txt"}),
        ("python", {"model.onnx", "model.json", "model.py"}, {"model.onnx", "model.py"}),
        ("tensorrt", {"model.plan"}, {"placeholder.txt"}),
    ],
)
def test_a_repository_has_four_models_of_one_version(built, backend, network, ensemble):
    repository = built[backend] / "repository"
    assert tuple(sorted(folder.name for folder in repository.iterdir())) == NAMES
    files = {
        name: {str(file.relative_to(repository / name / "1")) for file in (repository / name / "1").rglob("*")}
        for name in NAMES
    }
    assert files == {
        "facenet": network,
        "facenet_preprocess": {"model.py"},
        "facenet_postprocess": {"model.py"},
        "facenet_ensemble": ensemble,
    }
    # KServe's storage initializer skips empty objects, and with them the ensemble's version.
    assert all(file.stat().st_size for file in repository.rglob("*") if file.is_file())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_network_says_that_its_input_is_nchw_which_taos_client_demands(built, backend):
    formats = {name: [tensor.format for tensor in config.input] for name, config in configs(built[backend]).items()}
    assert formats["facenet"] == [model_config_pb2.ModelInput.FORMAT_NCHW]
    assert {value for name in NAMES[1:] for value in formats[name]} == {model_config_pb2.ModelInput.FORMAT_NONE}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_models_are_the_sources_that_are_tested_here(built, backend):
    sources = Path(models.__path__[0])
    found = {copy.parent.parent.name: copy.read_text() for copy in built[backend].glob("repository/*/1/model.py")}
    wanted = {"facenet_preprocess": "preprocess", "facenet_postprocess": "postprocess"}
    if backend == "python":
        wanted |= {"facenet": "network", "facenet_ensemble": "ensemble"}
    assert found == {name: (sources / f"{source}.py").read_text() for name, source in wanted.items()}


def test_the_manifest_says_what_is_served_and_what_a_plan_is_bound_to(built):
    settings = read_manifest(built["tensorrt"], "model_repository")["settings"]
    assert settings["model_name"] == "facenet"
    assert settings["class_names"] == ["face"]
    assert settings["geometry"] == GEOMETRY
    assert settings["tensors"] == {
        "input": "input_1",
        "coverage": "output_cov/Sigmoid",
        "bbox": "output_bbox/BiasAdd",
    }
    assert settings["clustering"]["face"]["coverage_threshold"] == 0.5
    assert settings["triton_release"] == TRITON_RELEASE
    assert settings["gridbox_version"] == GRIDBOX_VERSION
    assert (settings["gpu"], settings["tensorrt_version"]) == ("NVIDIA A10", "11.1.0")
    assert "gpu" not in read_manifest(built["python"], "model_repository")["settings"]


def test_the_same_model_gives_the_same_repository(exported, built, tmp_path):
    build_repository(exported, tmp_path / "again", RepositorySettings("python"))
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (built["python"] / "manifest.json").read_bytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_ensemble_tells_the_digest_of_the_repository(built, backend):
    told = {name: parameters(config).get("gridbox_digest") for name, config in configs(built[backend]).items()}
    digest = read_manifest(built[backend], "model_repository")["settings"]["repository_digest"]
    assert re.fullmatch(r"[0-9a-f]{64}", digest)
    assert told == {**dict.fromkeys(NAMES), "facenet_ensemble": digest}


def test_whatever_differs_in_a_repository_its_digest_does(exported, built, tmp_path):
    other = write_detector(tmp_path / "other", threshold=0.3)
    build_repository(exported, tmp_path / "stretched", RepositorySettings(preprocessing="stretch"))
    build_repository(other, tmp_path / "retrained", RepositorySettings())
    folders = [*built.values(), tmp_path / "stretched", tmp_path / "retrained"]
    digests = [read_manifest(folder, "model_repository")["settings"]["repository_digest"] for folder in folders]
    assert len(set(digests)) == len(folders)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_model_can_be_loaded_without_its_neighbours(built, backend):
    repository = built[backend] / "repository"
    for name, config in configs(built[backend]).items():
        if file := parameters(config).get("file"):
            assert ".." not in file
            assert (repository / name / file).is_file()


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_the_ensemble_joins_tensors_of_equal_kind_and_shape(built, backend):
    found = configs(built[backend])
    ensemble = found["facenet_ensemble"]
    known = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        model = found[step.model_name]
        assert set(step.input_map) == {tensor.name for tensor in model.input}
        for tensor in model.input:
            assert known[step.input_map[tensor.name]] == (tensor.data_type, list(tensor.dims))
        outputs = {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in model.output}
        known.update({step.output_map[name]: outputs[name] for name in step.output_map})
    for tensor in ensemble.output:
        assert known[tensor.name] == (tensor.data_type, list(tensor.dims))


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_models_take_equal_batches(built, backend):
    assert {model.max_batch_size for model in configs(built[backend]).values()} == {32 if backend == "tensorrt" else 8}


def test_the_ensemble_is_the_contract_with_its_clients(built):
    ensemble = configs(built["onnxruntime"])["facenet_ensemble"]
    kind = model_config_pb2.DataType.Name
    tensors = [(tensor.name, kind(tensor.data_type), list(tensor.dims)) for tensor in ensemble.input]
    assert tensors == [("input_image_data", "TYPE_UINT8", [-1])]
    assert [(tensor.name, kind(tensor.data_type), list(tensor.dims)) for tensor in ensemble.output] == [
        ("true_boxes", "TYPE_FP32", [-1, 4]),
        ("true_proba", "TYPE_FP32", [-1, 1]),
        ("true_class", "TYPE_INT32", [-1, 1]),
        ("num_detections", "TYPE_INT32", [1]),
        ("true_image_size", "TYPE_INT64", [3]),
        ("image_error", "TYPE_UINT8", [-1]),
    ]
    assert parameters(ensemble)["class_names"] == ["face"]


def test_backends_differ_in_what_runs_the_network_and_nothing_else(built):
    found = {backend: configs(built[backend]) for backend in BACKENDS}
    runtime = ("platform", "backend", "default_model_filename", "instance_group", "model_warmup", "ensemble_scheduling")
    for name in NAMES:
        for config in (found[backend][name] for backend in BACKENDS):
            config.max_batch_size = 0
            config.ClearField("dynamic_batching")
            if name in ("facenet", "facenet_ensemble"):
                for field in runtime:
                    config.ClearField(field)
                config.parameters.clear()
        assert found["onnxruntime"][name] == found["python"][name] == found["tensorrt"][name]


def test_the_one_process_of_the_python_backend_gets_what_the_three_models_get(built):
    found = {name: parameters(config) for name, config in configs(built["python"]).items()}
    steps = [found[name] for name in ("facenet", "facenet_preprocess", "facenet_postprocess")]
    own = {name: value for name, value in found["facenet_ensemble"].items() if name != "gridbox_digest"}
    assert own == {name: value for step in steps for name, value in step.items()}
    assert parameters(configs(built["tensorrt"])["facenet_ensemble"]).keys() < found["facenet_ensemble"].keys()


def test_what_runs_the_network_on_each_backend(built):
    found = {backend: configs(built[backend])["facenet"] for backend in BACKENDS}
    runtimes = {backend: (config.platform, config.backend) for backend, config in found.items()}
    assert runtimes == {
        "onnxruntime": ("onnxruntime_onnx", ""),
        "python": ("", "python"),
        "tensorrt": ("tensorrt_plan", ""),
    }
    assert found["tensorrt"].default_model_filename == "model.plan"
    assert found["onnxruntime"].default_model_filename == "model.onnx"
    groups = {backend: config.instance_group[0] for backend, config in found.items()}
    kind = model_config_pb2.ModelInstanceGroup
    assert (groups["tensorrt"].kind, groups["tensorrt"].count) == (kind.KIND_GPU, 2)
    assert (groups["onnxruntime"].kind, groups["onnxruntime"].count) == (kind.KIND_CPU, 1)
    assert (groups["python"].kind, groups["python"].count) == (kind.KIND_CPU, 1)


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_on_a_cpu_no_request_waits_for_others(built, backend):
    for name, config in configs(built[backend]).items():
        if name != "facenet_ensemble":
            assert list(config.dynamic_batching.preferred_batch_size) == [1]
            assert config.dynamic_batching.max_queue_delay_microseconds == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bounded_number_of_requests_waits_for_a_bounded_time(built, backend):
    for name, config in configs(built[backend]).items():
        policy = config.dynamic_batching.default_queue_policy
        if name != "facenet_ensemble":
            assert 0 < policy.max_queue_size <= 1024
            assert 0 < policy.default_timeout_microseconds <= 60_000_000
            assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT


def test_a_gpu_waits_for_batches_that_it_has_warmed_up(built):
    for config in (config for name, config in configs(built["tensorrt"]).items() if name != "facenet_ensemble"):
        assert list(config.dynamic_batching.preferred_batch_size) == [8, 16, 32]
        assert config.dynamic_batching.max_queue_delay_microseconds == 100
    warmup = configs(built["tensorrt"])["facenet"].model_warmup
    assert [sample.batch_size for sample in warmup] == [1, 8, 16, 32]
    assert list(warmup[0].inputs["input_1"].dims) == [3, HEIGHT, WIDTH]


@pytest.mark.parametrize(
    ("largest", "asked", "batch", "preferred"),
    [(64, 0, 64, [8, 16, 32, 64]), (12, 0, 12, [8, 12]), (4, 0, 4, [4]), (32, 12, 12, [8, 12])],
)
def test_batches_are_the_plans_unless_fewer_are_asked_for(exported, tmp_path, largest, asked, batch, preferred):
    plan = write_plan(tmp_path / "plan", exported, batches=[1, 2, largest])
    build_repository(exported, tmp_path / "built", RepositorySettings("tensorrt", max_batch_size=asked), plan)
    found = configs(tmp_path / "built")
    assert {config.max_batch_size for config in found.values()} == {batch}
    assert list(found["facenet"].dynamic_batching.preferred_batch_size) == preferred
    assert [sample.batch_size for sample in found["facenet"].model_warmup] == [1, *preferred]
    assert read_manifest(tmp_path / "built", "model_repository")["settings"]["max_batch_size"] == batch


@pytest.mark.parametrize(
    ("settings", "threads"), [({}, 4), ({"instances": 2}, 2), ({"instances": 8}, 1), ({"threads": 3}, 3)]
)
def test_onnx_runtime_never_takes_the_cores_of_the_node(exported, tmp_path, settings, threads):
    build_repository(exported, tmp_path / "built", RepositorySettings(**settings))
    assert parameters(configs(tmp_path / "built")["facenet"])["intra_op_thread_count"] == threads


@pytest.mark.parametrize(
    ("limit", "copies", "threads"), [("4", 1, 4), ("2.5", 1, 2), ("3500m", 1, 3), ("250m", 1, 1), ("8", 3, 2)]
)
def test_threads_fit_a_pods_limit(limit, copies, threads):
    assert threads_within(limit, copies) == threads


def test_encoded_images_of_different_lengths_share_a_batch(built):
    for backend in BACKENDS:
        assert configs(built[backend])["facenet_preprocess"].input[0].allow_ragged_batch


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_tensor_names_are_those_of_the_graph(tmp_path, backend):
    model = write_detector(tmp_path / "model")
    rename_tensors(model / "model.onnx", ":0")
    build_repository(model, tmp_path / "built", RepositorySettings(backend))
    config = configs(tmp_path / "built")["facenet"]
    assert [tensor.name for tensor in config.input] == ["input_1:0"]
    assert [tensor.name for tensor in config.output] == ["output_bbox/BiasAdd:0", "output_cov/Sigmoid:0"]
    tensors = read_manifest(tmp_path / "built", "model_repository")["settings"]["tensors"]
    assert tensors["coverage"] == "output_cov/Sigmoid:0"


def test_settings_reach_the_models(exported, tmp_path):
    settings = RepositorySettings(
        "python", "stretch", max_batch_size=4, instances=3, threads=2, workers=5, max_image_pixels=1000
    )
    build_repository(exported, tmp_path / "built", settings)
    found = configs(tmp_path / "built")
    assert {config.max_batch_size for config in found.values()} == {4}
    assert [group.count for group in found["facenet_ensemble"].instance_group] == [3]
    assert [group.count for group in found["facenet"].instance_group] == [1]
    for name in ("facenet", "facenet_ensemble"):
        assert parameters(found[name])["threads"] == 2
    for name in ("facenet_preprocess", "facenet_postprocess"):
        assert [group.count for group in found[name].instance_group] == [5]
    assert parameters(found["facenet_preprocess"]) == {
        "geometry": GEOMETRY,
        "preprocessing": "stretch",
        "resampling": "area",
        "max_image_pixels": 1000,
    }
    assert parameters(found["facenet_postprocess"])["geometry"] == GEOMETRY
    build_repository(exported, tmp_path / "other", RepositorySettings(instances=3))
    assert [group.count for group in configs(tmp_path / "other")["facenet"].instance_group] == [3]


def test_images_are_served_as_the_model_was_trained(exported, tmp_path):
    described = read_manifest(exported, "exported_model")
    taken = {"width": WIDTH, "height": HEIGHT, "fit": "crop", "resampling": "cubic"}
    shutil.copytree(exported, tmp_path / "exported")
    decoder = {"kind": "grid", **{name: described["settings"][name] for name in ("geometry", "clustering")}}
    settings = {**described["settings"], "input": taken, "decoder": decoder}
    write_json(tmp_path / "exported/manifest.json", {**described, "settings": settings})
    build_repository(tmp_path / "exported", tmp_path / "built", RepositorySettings())
    told = parameters(configs(tmp_path / "built")["facenet_preprocess"])
    assert (told["preprocessing"], told["resampling"]) == ("crop", "cubic")
    spec = load_predictor(tmp_path / "exported").input
    assert (spec.fit, spec.resampling) == ("crop", "cubic")
    assert load_predictor(tmp_path / "built/repository/facenet/1/model.onnx").input == spec
    local = local_repository(tmp_path / "built", tmp_path / "local", local_settings(2)).parent
    assert InputSpec.from_json(read_manifest(local, "model_repository")["settings"]["input"]) == spec


def test_the_network_in_a_repository_is_an_exported_model_like_any_other(exported, built):
    one, other = (
        load_predictor(exported),
        load_predictor(built["onnxruntime"] / "repository" / "facenet" / "1" / "model.onnx"),
    )
    assert (one.input, one.decoder) == (other.input, other.decoder)
    assert one.parameters == other.parameters


def test_a_repository_for_another_backend_is_laid_out_anew_for_this_machine(exported, tmp_path):
    build_repository(exported, tmp_path / "cluster", RepositorySettings(preprocessing="stretch", max_image_pixels=1000))
    repository = local_repository(tmp_path / "cluster", tmp_path / "local", local_settings(2))
    settings = read_manifest(repository.parent, "model_repository")["settings"]
    assert {name: settings[name] for name in ("backend", "preprocessing", "max_image_pixels", "threads")} == {
        "backend": "python",
        "preprocessing": "stretch",
        "max_image_pixels": 1000,
        "threads": 2,
    }


def test_copies_of_the_ensemble_and_its_threads_are_as_many_as_cores(monkeypatch):
    for cores, instances in ((1, 1), (2, 2), (64, 4)):
        monkeypatch.setattr(local, "available_cores", lambda cores=cores: cores)
        settings = local_settings()
        assert (settings.backend, settings.instances, settings.threads) == ("python", instances, cores)
    assert (local_settings(3).instances, local_settings(3).threads) == (4, 3)


def test_a_repository_for_this_machine_is_served_as_it_is(built, tmp_path):
    repository = local_repository(built["python"], tmp_path / "local", local_settings())
    assert repository == built["python"] / "repository"
    assert not (tmp_path / "local").exists()


def test_the_score_to_show_from_is_kept_unless_another_is_asked_for(exported, tmp_path):
    build_repository(exported, tmp_path / "cluster", RepositorySettings(min_score=0.4))
    build_repository(exported, tmp_path / "here", RepositorySettings("python", min_score=0.4))
    for model in ("cluster", "here"):
        for number, (asked, shown) in enumerate(((None, 0.4), (0.4, 0.4), (0.2, 0.2), (0.0, 0.0))):
            repository = local_repository(
                tmp_path / model, tmp_path / f"{model}-{number}", local_settings(min_score=asked)
            )
            assert parameters(configs(repository.parent)["facenet_ensemble"])["min_score"] == shown
            assert (repository.parent == tmp_path / "here") is (model == "here" and shown == 0.4)


@given(st.text(), st.integers(min_value=-(2**31), max_value=2**31 - 1), st.booleans())
def test_any_text_survives_in_a_configuration(text, number, flag):
    text = text.encode(errors="replace").decode()
    message = {
        "name": text,
        "max_batch_size": number,
        "input": [{"name": text, "allow_ragged_batch": flag, "dims": [1, 2]}],
    }
    config = text_format.Parse(to_text(message), model_config_pb2.ModelConfig())
    assert (config.name, config.max_batch_size) == (text, number)
    assert (config.input[0].name, config.input[0].allow_ragged_batch, list(config.input[0].dims)) == (
        text,
        flag,
        [1, 2],
    )


def test_a_fixed_batch_size_is_refused(tmp_path):
    model = write_detector(tmp_path / "model")
    document = onnx.load(model / "model.onnx")
    document.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(document, model / "model.onnx")
    with pytest.raises(UserError, match=r"model\.onnx: its batch size is fixed to 4"):
        build_repository(model, tmp_path / "built", RepositorySettings())
    assert not (tmp_path / "built").exists()


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="no exported model here"):
        build_repository(tmp_path, tmp_path / "built", RepositorySettings())


def test_a_repository_without_an_onnx_file_is_no_source(built, tmp_path):
    with pytest.raises(UserError, match=r"for tensorrt holds no model\.onnx; give the exported model"):
        build_repository(built["tensorrt"], tmp_path / "built", RepositorySettings())


def test_tensorrt_needs_a_plan_and_nothing_else_takes_one(exported, tmp_path):
    with pytest.raises(UserError, match="tensorrt: it needs a plan"):
        build_repository(exported, tmp_path / "built", RepositorySettings("tensorrt"))
    plan = write_plan(tmp_path / "plan", exported)
    with pytest.raises(UserError, match="onnxruntime: it takes no plan"):
        build_repository(exported, tmp_path / "built", RepositorySettings(), plan)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"geometry": {**GEOMETRY, "width": 160}}, "its geometry are not the model's"),
        ({"class_names": ["mask"]}, "its class_names are not the model's"),
        ({"triton_release": "23.05"}, f"built in Triton 23.05, to be served in {TRITON_RELEASE}"),
        ({"batches": [1, 8, 16]}, "it takes batches up to 16, not 32; give --max-batch-size 16"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(exported, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        build_repository(
            exported,
            tmp_path / "built",
            RepositorySettings("tensorrt", max_batch_size=32),
            write_plan(tmp_path / "plan", exported, **changes),
        )


# --- the models' sources ----------------------------------------------------------------------------------------------

SOURCES = sorted(Path(models.__path__[0]).glob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_no_model_converts_tensors_through_numpys_c_interface(source):
    # With NumPy 2 the local server's backend would read wrong numbers, and say nothing.
    tree = ast.parse(source.read_text(), feature_version=(3, 10))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert node.attr != "as_numpy"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr != "Tensor", "tensors are made by pb_utils.Tensor.from_dlpack only"
        if source.stem != "tensors":
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert "triton_python_backend_utils" not in names


def test_models_need_nothing_that_tritons_image_lacks(tmp_path):
    (tmp_path / "triton_python_backend_utils.py").touch()
    program = (
        "import importlib, json, sys\n"
        "for name in ('preprocess', 'postprocess'):\n"
        "    importlib.import_module('components.serve.models.' + name)\n"
        "import components.decode.grid, components.formats.images\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    printed = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    )
    loaded = json.loads(printed.stdout)
    ours = {name for name in loaded if name.startswith("components.")}
    rooms = {
        "components.serve",
        "components.decode",
        "components.formats",
        "components.measure",
        "components.vision",
    }
    assert {".".join(name.split(".")[:2]) for name in ours} == rooms
    assert not {"torch", "onnxruntime", "onnx", "google.protobuf", "typer", "pipeline"} & set(loaded)


# --- which model a path means -----------------------------------------------------------------------------------------


def make_run(folder, exported, with_link=True):
    stage = folder / "export" / "exported"
    stage.parent.mkdir(parents=True)
    stage.symlink_to(exported)
    if with_link:
        (folder / "model").symlink_to(stage)
    return folder


def test_a_run_means_the_model_it_ended_with(exported, tmp_path):
    run = make_run(tmp_path / "first", exported)
    assert find_model(run) == run / "model"


def test_a_runs_model_repository_goes_first(exported, tmp_path):
    run = make_run(tmp_path / "first", exported)
    build_repository(exported, run / "deploy" / "repository", RepositorySettings())
    assert find_model(run) == run / "deploy" / "repository"


def test_the_newest_run_with_a_model_is_found(exported, tmp_path):
    runs = [
        make_run(tmp_path / name, exported, with_link)
        for name, with_link in (("old", True), ("new", True), ("bad", False))
    ]
    for age, run in enumerate(reversed(runs)):
        os.utime(run, (1e9 - age, 1e9 - age))
    assert find_model(tmp_path) == tmp_path / "new" / "model"


@pytest.mark.parametrize("path", ["model", "model/model.onnx"])
def test_a_model_is_taken_as_it_is(exported, path):
    assert find_model(exported.parent / path) == exported.parent / path


@pytest.mark.parametrize(("path", "words"), [("nowhere", "there is nothing here"), (".", "no run here has a model")])
def test_where_there_is_no_model_one_line_says_so(tmp_path, path, words):
    with pytest.raises(UserError, match=words):
        find_model(tmp_path / path)


def test_settings_are_written_with_their_resolved_batch(built):
    written = read_manifest(built["python"], "model_repository")["settings"]
    assert {name: written[name] for name in asdict(RepositorySettings())} == {
        **asdict(RepositorySettings("python")),
        "preprocessing": "letterbox",  # as the model says
        "max_batch_size": 8,
    }


def test_family_is_told_by_the_manifest_or_the_description_and_one_that_is_not_here_is_named(tmp_path):
    assert family_of(tmp_path / "model.onnx") == "detectnet_v2"
    write_json(tmp_path / "model.json", {"family": "toy"})
    assert family_of(tmp_path / "model.onnx") == "toy"
    write_manifest(tmp_path, "exported_model", {}, {"family": "other"})
    assert family_of(tmp_path / "model.onnx") == "other"
    with pytest.raises(UserError, match=r"family 'other': this release has no components\.other\.served"):
        family("other")
