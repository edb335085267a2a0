"""Building a plan: the command, the log, and what is recorded.

There is no GPU here. The logs are samples written after the format of public ones (trtexec of TensorRT 8.6 and 10.5, as
seen in reports to NVIDIA/TensorRT), with the version of today; a stand-in prints them and fails on demand.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from square_detector import HEIGHT, WIDTH, write_detector

from components import step
from components.serve import tensorrt
from components.serve.half_precision import write_half_precision
from components.serve.release import TENSORRT_VERSION, TRITON_RELEASE
from components.serve.tensorrt import Build, build_plan, command, parse_log
from components.step import StageError, UserError, read_manifest, write_manifest

PASSED = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v110100] [b18] # trtexec --onnx=model.onnx --saveEngine=model.plan
[10/30/2026-09:21:50] [I] === Model Options ===
[10/30/2026-09:21:50] [I] Format: ONNX
[10/30/2026-09:21:50] [I] Precision: FP32+FP16
[10/30/2026-09:21:51] [I] === Device Information ===
[10/30/2026-09:21:51] [I] Available Devices:
[10/30/2026-09:21:51] [I]   Device 0: "NVIDIA A10" UUID: GPU-00000000-0000-0000-0000-000000000000
[10/30/2026-09:21:51] [I] Selected Device: NVIDIA A10
[10/30/2026-09:21:51] [I] Selected Device ID: 0
[10/30/2026-09:21:51] [I] Compute Capability: 8.6
[10/30/2026-09:21:51] [I] SMs: 72
[10/30/2026-09:21:51] [I] TensorRT version: 11.1.0
[10/30/2026-09:21:51] [W] [TRT] onnxOpImporters.cpp: a warning
[10/30/2026-09:22:40] [I] Engine built in 48.9 sec.
[10/30/2026-09:22:44] [I] === Performance summary ===
[10/30/2026-09:22:44] [I] Throughput: 130.298 qps
[10/30/2026-09:22:44] [I] Latency: min = 5.38672 ms, max = 13.3664 ms, mean = 7.60628 ms, median = 7.16092 ms, \
percentile(90%) = 10.2996 ms, percentile(95%) = 10.8698 ms, percentile(99%) = 12.9675 ms
[10/30/2026-09:22:44] [I] Enqueue Time: min = 2.72876 ms, max = 15.0201 ms, mean = 7.63062 ms, median = 7.86694 ms
[10/30/2026-09:22:44] [I] H2D Latency: min = 0.0065918 ms, max = 0.0698242 ms, mean = 0.0122212 ms
[10/30/2026-09:22:44] [I] GPU Compute Time: min = 5.34595 ms, max = 13.3388 ms, mean = 7.58404 ms
&&&& PASSED TensorRT.trtexec [TensorRT v110100] [b18] # trtexec --onnx=model.onnx --saveEngine=model.plan
"""
FAILED = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v110100] [b18] # trtexec --onnx=model.onnx --saveEngine=model.plan
[10/30/2026-09:21:51] [I] Selected Device: NVIDIA A10
[10/30/2026-09:21:51] [I] Compute Capability: 8.6
[10/30/2026-09:21:51] [I] TensorRT version: 11.1.0
[10/30/2026-09:21:52] [E] [TRT] ModelImporter.cpp:949: ERROR: onnxOpImporters.cpp:5078 Plugin not found
[10/30/2026-09:21:52] [E] Failed to parse onnx file
[10/30/2026-09:21:52] [E] Parsing model failed
[10/30/2026-09:21:52] [E] Failed to create engine from model or file.
[10/30/2026-09:21:52] [E] Engine set up failed
&&&& FAILED TensorRT.trtexec [TensorRT v110100] [b18] # trtexec --onnx=model.onnx --saveEngine=model.plan
"""
OLD = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v8603] # trtexec --onnx=model.onnx
[03/28/2024-07:10:12] [I] === Device Information ===
[03/28/2024-07:10:12] [I] Selected Device: NVIDIA GeForce RTX 2080
[03/28/2024-07:10:12] [I] Compute Capability: 7.5
[03/28/2024-07:10:26] [I] Latency: min = 2.02026 ms, max = 62.6 ms, mean = 2.13468 ms, median = 2.1 ms
&&&& PASSED TensorRT.trtexec [TensorRT v8603] # trtexec --onnx=model.onnx
"""
SETTINGS = {
    "tensors": {"input": "input_1", "coverage": "output_cov/Sigmoid", "bbox": "output_bbox/BiasAdd"},
    "geometry": {"width": 736, "height": 416},
    "class_names": ["face"],
}
QDQ = {**SETTINGS, "quantization": {"precision": "int8", "runtime": "tensorrt"}}


def flags(**changes):
    settings = changes.pop("settings", SETTINGS)
    return command(Path("model.onnx"), Path("model.plan"), settings, Build(**changes))[1:]


# --- The command -----------------------------------------------------------------------------------------------------


def test_shapes_come_from_the_models_tensor_name_and_size():
    assert flags(batches=(1, 8, 32)) == [
        "--onnx=model.onnx",
        "--saveEngine=model.plan",
        "--minShapes=input_1:1x3x416x736",
        "--optShapes=input_1:8x3x416x736",
        "--maxShapes=input_1:32x3x416x736",
        "--shapes=input_1:8x3x416x736",
        "--memPoolSize=workspace:4096",
    ]


def test_workspace_and_timing_cache_are_flags_and_the_precision_is_the_models():
    """TensorRT 11 knows neither --fp16 nor --int8, says NVIDIA's guide to the migration from 10.x."""
    assert flags(precision="fp32") == flags(precision="fp16") == flags(precision="int8", settings=QDQ)
    assert not {"--fp16", "--int8", "--best", "--stronglyTyped"} & set(flags())
    assert "--memPoolSize=workspace:512" in flags(workspace=512)
    assert "--timingCacheFile=/cache/timing" in flags(timing_cache=Path("/cache/timing"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "fp8"}, "one of fp32, fp16, int8"),
        ({"precision": "int8"}, "the model is not quantised; convert it first"),
        ({"precision": "fp16", "settings": QDQ}, "the model is quantised; build it as int8"),
        (
            {"precision": "int8", "settings": {**SETTINGS, "quantization": {"runtime": "onnxruntime"}}},
            "quantised for onnxruntime.*--runtime tensorrt",
        ),
        ({"batches": (1, 32, 16)}, "must ascend from 1"),
        ({"batches": (0, 1, 1)}, "must ascend from 1"),
    ],
)
def test_what_cannot_be_built_is_refused_before_trtexec_starts(changes, said):
    with pytest.raises(UserError, match=said):
        flags(**changes)


# --- The log ---------------------------------------------------------------------------------------------------------


def test_log_tells_gpu_versions_and_latency():
    outcome = parse_log(PASSED)
    assert outcome.passed
    assert (outcome.gpu, outcome.compute_capability, outcome.tensorrt_version) == ("NVIDIA A10", "8.6", "11.1.0")
    assert outcome.latency["median"] == 7.16092
    assert outcome.latency["percentile(99%)"] == 12.9675
    assert outcome.throughput == 130.298
    assert outcome.reasons == ()


def test_log_without_a_version_line_has_it_in_the_banner():
    outcome = parse_log(OLD)
    assert (outcome.gpu, outcome.tensorrt_version) == ("NVIDIA GeForce RTX 2080", "8.6.3")
    without = "\n".join(line for line in PASSED.splitlines() if "TensorRT version" not in line)
    assert parse_log(without).tensorrt_version == "11.1.0"
    assert parse_log(without.replace("v110100", "v101303")).tensorrt_version == "10.13.3"


def test_failure_gives_its_errors_first_to_last():
    outcome = parse_log(FAILED)
    assert not outcome.passed
    assert outcome.reasons[0].startswith("ModelImporter.cpp:949")
    assert outcome.reasons[1] == "Failed to parse onnx file"


@pytest.mark.parametrize("text", ["", "&&&& RUNNING TensorRT.trtexec\n", "\x00\ufffd", PASSED[: len(PASSED) // 2]])
def test_log_that_breaks_off_has_not_passed(text):
    assert not parse_log(text).passed


# --- The build -------------------------------------------------------------------------------------------------------

STAND_IN = """#!{python}
import os, signal, sys, time
options = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
print({log!r}, flush=True)
if {behaviour!r} == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if {behaviour!r} == "hangs":
    open({pid!r}, "w").write(str(os.getpid()))
    time.sleep(60)
if {behaviour!r} == "passes":
    precision = b"half" if b"input_1/half" in open(options["onnx"], "rb").read() else b"single"
    open(options["saveEngine"], "wb").write(precision + b" plan of " + options["optShapes"].encode())
sys.exit({code})
"""


@pytest.fixture
def exported(tmp_path):
    folder = tmp_path / "exported"
    folder.mkdir()
    shutil.move(write_detector(tmp_path / "detector") / "model.onnx", folder / "model.onnx")
    shutil.rmtree(tmp_path / "detector")
    (folder / "labels.txt").write_text("face\n")
    write_manifest(folder, "exported_model", {}, SETTINGS)
    return folder


def stand_in(tmp_path, log=PASSED, behaviour="passes", code=0):
    file = tmp_path / "trtexec"
    pid = str(tmp_path / "pid")
    file.write_text(STAND_IN.format(python=sys.executable, log=log, behaviour=behaviour, code=code, pid=pid))
    file.chmod(0o755)
    return str(file)


def test_plan_is_written_with_all_it_is_bound_to(tmp_path, exported):
    build_plan(exported, tmp_path / "plan", Build(batches=(1, 8, 32)), stand_in(tmp_path))
    assert (tmp_path / "plan" / "model.plan").read_bytes() == b"half plan of input_1:8x3x416x736"
    assert (tmp_path / "plan" / "labels.txt").read_text() == "face\n"
    manifest = read_manifest(tmp_path / "plan", "tensorrt_plan")
    assert manifest["files"]["trtexec.log"] is None  # it holds times
    bound = {
        "gpu": "NVIDIA A10",
        "compute_capability": "8.6",
        "tensorrt_version": "11.1.0",
        "triton_release": TRITON_RELEASE,
        "precision": "fp16",
        "batches": [1, 8, 32],
    }
    assert manifest["settings"] == {**SETTINGS, **bound}
    assert manifest["counts"]["latency_median_milliseconds"] == 7.16092
    assert "passed" in (tmp_path / "plan" / "trtexec.log").read_text().lower()


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ({"log": FAILED, "behaviour": "fails", "code": 1}, r"(?s)could not build the plan:.*Failed to parse onnx file"),
        ({"log": FAILED, "behaviour": "passes"}, "could not build the plan"),
        ({"log": PASSED, "behaviour": "writes nothing"}, "could not build the plan"),
        ({"log": PASSED[:900], "behaviour": "killed"}, r"(?s)ended with signal 9 \(out of memory\?\)"),
        ({"log": "trtexec: error while loading libnvinfer.so.10", "behaviour": "", "code": 127}, "libnvinfer.so.10"),
        (
            {"log": PASSED.replace("11.1.0", "10.3.0")},
            f"TensorRT 10.3.0, Triton {TRITON_RELEASE} has {TENSORRT_VERSION}",
        ),
        ({"log": PASSED.replace("Selected Device:", "Chosen:")}, "does not tell gpu"),
    ],
)
def test_failed_build_says_why_and_leaves_nothing(tmp_path, exported, faults, said):
    with pytest.raises(StageError, match=said):
        build_plan(exported, tmp_path / "plan", Build(), stand_in(tmp_path, **faults))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "trtexec"]


@pytest.mark.parametrize(("precision", "settings"), [("fp32", SETTINGS), ("int8", QDQ)])
def test_only_half_precision_changes_the_model(tmp_path, exported, precision, settings):
    write_manifest(exported, "exported_model", {}, settings)
    build_plan(exported, tmp_path / "plan", Build(precision), stand_in(tmp_path))
    assert (tmp_path / "plan" / "model.plan").read_bytes().startswith(b"single plan")


def test_image_of_another_release_builds_no_plan(tmp_path, exported, monkeypatch):
    monkeypatch.setenv("NVIDIA_TRITON_SERVER_VERSION", "24.10")
    with pytest.raises(UserError, match=f"image of Triton 24.10, and plans are served in {TRITON_RELEASE}"):
        build_plan(exported, tmp_path / "plan", Build(), stand_in(tmp_path))
    monkeypatch.setenv("NVIDIA_TRITON_SERVER_VERSION", TRITON_RELEASE)
    build_plan(exported, tmp_path / "plan", Build(), stand_in(tmp_path))


# --- Half precision --------------------------------------------------------------------------------------------------


def outputs(file, pixels):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [(value.name, value.type, value.shape) for value in (*session.get_inputs(), *session.get_outputs())]
    return names, session.run(None, {session.get_inputs()[0].name: pixels})


def test_half_precision_computes_the_same_to_three_digits_between_the_same_tensors(tmp_path, exported):
    write_half_precision(exported / "model.onnx", tmp_path / "half.onnx")
    pixels = np.random.default_rng(0).random((2, 3, HEIGHT, WIDTH), np.float32)
    names, single = outputs(exported / "model.onnx", pixels)
    same_names, half = outputs(tmp_path / "half.onnx", pixels)
    assert same_names == names
    for one, other in zip(single, half, strict=True):
        np.testing.assert_allclose(other, one, rtol=5e-3, atol=5e-3)
    kept = [tensor.name for tensor in onnx.load(tmp_path / "half.onnx").graph.initializer if tensor.data_type == 1]
    assert kept == []


def test_sizes_and_casts_within_a_model_stay_what_they_are(tmp_path):
    node = onnx.helper.make_node
    nodes = [
        node("Constant", [], ["two"], value=onnx.numpy_helper.from_array(np.float32([1, 1, 2, 2]), "two")),
        node("Resize", ["x", "", "two"], ["large"], mode="nearest"),
        node("Cast", ["large"], ["whole"], to=onnx.TensorProto.INT32),
        node("Cast", ["whole"], ["again"], to=onnx.TensorProto.FLOAT),
        node("Mul", ["again", "three"], ["y"]),
    ]
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [tensor("x", onnx.TensorProto.FLOAT, [1, 1, 2, 2])],
        [tensor("y", onnx.TensorProto.FLOAT, [1, 1, 4, 4])],
        [onnx.numpy_helper.from_array(np.float32([3]), "three")],
    )
    opset = [onnx.helper.make_opsetid("", 13)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "single.onnx")
    write_half_precision(tmp_path / "single.onnx", tmp_path / "half.onnx")
    pixels = np.float32([[[[1, 2], [3, 4]]]])
    np.testing.assert_array_equal(
        outputs(tmp_path / "half.onnx", pixels)[1], outputs(tmp_path / "single.onnx", pixels)[1]
    )


def test_weights_that_do_not_fit_are_refused(tmp_path, exported):
    model = onnx.load(exported / "model.onnx")
    weight = model.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + np.float32(1e6), weight.name))
    onnx.save(model, exported / "model.onnx")
    with pytest.raises(UserError, match="has weights above 65504; build the plan with fp32"):
        write_half_precision(exported / "model.onnx", tmp_path / "half.onnx")


def test_missing_trtexec_says_where_it_is(tmp_path, exported):
    with pytest.raises(UserError, match=f"not here; build in the image of Triton {TRITON_RELEASE}"):
        build_plan(exported, tmp_path / "plan", Build(), str(tmp_path / "trtexec"))


def test_executor_input_of_kubeflow_builds_a_plan(tmp_path, exported):
    given = {
        "inputs": {
            "parameterValues": {
                "precision": "fp16", "best_batch": 8.0, "largest_batch": 32.0, "workspace": 1024.0,
                "trtexec": stand_in(tmp_path),
            },
            "artifacts": {"exported": {"artifacts": [{"name": "exported", "uri": str(exported)}]}},
        },
        "outputs": {
            "outputFile": str(tmp_path / "output.json"),
            "artifacts": {
                name: {"artifacts": [{"name": name, "uri": str(tmp_path / name), "type": {"schemaTitle": kind}}]}
                for name, kind in (("plan", "system.Model"), ("metrics", "system.Metrics"))
            },
        },
    }  # fmt: skip
    assert step.run(["build", "--executor-input", json.dumps(given)], tensorrt.main) == 0
    written = json.loads((tmp_path / "output.json").read_text())["artifacts"]
    assert written["plan"]["artifacts"][0]["metadata"]["gpu"] == "NVIDIA A10"
    assert written["metrics"]["artifacts"][0]["metadata"]["batches_per_second"] == 130.298
    assert (tmp_path / "plan" / "model.plan").read_bytes().endswith(b":8x3x416x736")


def test_interrupted_build_leaves_neither_processes_nor_files(tmp_path, exported):
    words = ["build", "--exported", exported, "--plan", tmp_path / "plan"]
    words += ["--trtexec", stand_in(tmp_path, behaviour="hangs")]
    program = subprocess.Popen([sys.executable, "-m", "components.serve.tensorrt", *words], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child = int((tmp_path / "pid").read_text())
    program.send_signal(signal.SIGTERM)
    assert program.wait(10) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert not (tmp_path / "plan").exists()
    assert not list(tmp_path.glob(".*partial*"))


def test_program_needs_nothing_that_tritons_image_lacks():
    code = (
        "import sys; before = set(sys.modules); import components.serve.tensorrt; "
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) <= {*sys.stdlib_module_names, "components"}
