import errno
import json
from pathlib import Path

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from kfp.pipeline_spec import pipeline_spec_pb2

from components import step
from components.step import StageError, UserError

# --- flags ---------------------------------------------------------------------------------------------------------


def executor_input(tmp_path, parameters=None, inputs=None, outputs=None):
    return {
        "inputs": {"parameterValues": parameters or {}, "artifacts": inputs or {}},
        "outputs": {"artifacts": outputs or {}, "outputFile": str(tmp_path / "out" / "executor_output.json")},
    }


@pytest.mark.parametrize(
    ("value", "flags"),
    [
        (8.0, ["--min-face-height=8"]),
        (8, ["--min-face-height=8"]),
        (0.5, ["--min-face-height=0.5"]),
        (5e-06, ["--min-face-height=5e-06"]),
        (0, ["--min-face-height=0"]),
        (-3, ["--min-face-height=-3"]),
        (True, ["--min-face-height"]),
        (False, ["--no-min-face-height"]),
        ("", []),
        (None, []),
        ("-x y", ["--min-face-height=-x y"]),
        ("a=b", ["--min-face-height=a=b"]),
        ([1, 2], ["--min-face-height=[1, 2]"]),
        ({"a": 1}, ['--min-face-height={"a": 1}']),
    ],
)
def test_parameter_becomes_the_flag_a_person_types(tmp_path, value, flags):
    assert step.flags_from_executor_input(executor_input(tmp_path, {"min_face_height": value})) == flags


@given(st.integers(-(2**53), 2**53))
def test_protojson_float_of_an_integer_is_spelt_as_the_integer(number):
    document = {"inputs": {"parameterValues": {"n": float(number)}}, "outputs": {"outputFile": "x"}}
    assert step.flags_from_executor_input(document) == [f"--n={number}"]


@pytest.mark.parametrize(
    ("artifact", "path"),
    [
        ({"uri": "minio://mlpipeline/v2/a b"}, "/minio/mlpipeline/v2/a b"),
        ({"uri": "s3://bucket/key"}, "/s3/bucket/key"),
        ({"uri": "gs://bucket/key"}, "/gcs/bucket/key"),
        ({"uri": "file:///tmp/x"}, "/tmp/x"),
        ({"uri": "/tmp/x"}, "/tmp/x"),
        ({"uri": "minio://mlpipeline/x", "customPath": "/data/x"}, "/data/x"),
    ],
)
def test_artifact_path_follows_kubeflows_mounts(artifact, path):
    assert step.artifact_path(artifact) == Path(path)


@pytest.mark.parametrize("uri", ["", "oci://registry/x", "minio://"])
def test_unknown_uri_is_refused_in_one_line(uri):
    with pytest.raises(UserError, match="cannot read the URI") as caught:
        step.artifact_path({"name": "model", "uri": uri})
    assert "\n" not in str(caught.value)


def test_missing_input_is_named_with_its_path(tmp_path, capsys):
    document = executor_input(tmp_path, inputs={"model": {"artifacts": [{"name": "m", "uri": str(tmp_path / "no")}]}})
    assert step.run(["--executor-input", json.dumps(document)], lambda _: pytest.fail("must not run")) == 2
    said = capsys.readouterr().err
    assert "input model" in said
    assert str(tmp_path / "no") in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"outputs": {}}', '{"outputs": {"outputFile": ""}}'])
def test_malformed_executor_input_is_one_line_and_exit_code_2(text, capsys):
    assert step.run(["x", "--executor-input", text], lambda _: pytest.fail("must not run")) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_output_parents_are_created(tmp_path):
    outputs = {"model": {"artifacts": [{"name": "model", "uri": str(tmp_path / "a/b/model")}]}}
    step.flags_from_executor_input(executor_input(tmp_path, outputs=outputs))
    assert (tmp_path / "a/b").is_dir()
    assert not (tmp_path / "a/b/model").exists()


# --- executor output -------------------------------------------------------------------------------------------------


def test_executor_output_parses_as_kubeflows_message_with_sanitised_metadata(tmp_path):
    def artifact(name, schema):
        return {"artifacts": [{"name": name, "uri": str(tmp_path / name), "type": {"schemaTitle": f"system.{schema}"}}]}

    kinds = (("kitti", "Dataset"), ("metrics", "Metrics"), ("curve", "ClassificationMetrics"), ("page", "HTML"))
    outputs = {name: artifact(name, schema) for name, schema in kinds}

    def program(arguments):
        given = dict(argument.split("=", 1) for argument in arguments)
        Path(given["--kitti"]).mkdir()
        Path(given["--kitti"], "x").write_text("x")
        counts = {"images": 3, "synthetic": True, "faces": 9}
        step.write_manifest(Path(given["--kitti"]), "kitti_set", counts, {}, shown=("synthetic", "images"))
        figures = (
            '{"ap": 0.5, "bad": NaN, "worse": -Infinity, "none": null, "text": "x", "ok": true, "band": {"16": 0.25}}'
        )
        Path(given["--metrics"]).write_text(figures)
        Path(given["--curve"]).write_text('{"confidenceMetrics": [{"recall": 0.3, "x": null}]}')
        Path(given["--page"]).write_text("<html>")

    document = executor_input(tmp_path, outputs=outputs)
    assert step.run(["--executor-input", json.dumps(document)], program) == 0
    text = Path(document["outputs"]["outputFile"]).read_text()
    message = json_format.Parse(text, pipeline_spec_pb2.ExecutorOutput())
    metadata = {
        name: json_format.MessageToDict(listed.artifacts[0].metadata) for name, listed in message.artifacts.items()
    }
    assert metadata["kitti"] == {"images": 3, "synthetic": True}
    assert metadata["metrics"] == {"ap": 0.5, "ok": True, "band/16": 0.25}
    assert metadata["curve"] == {"confidenceMetrics": [{"recall": 0.3}]}
    assert metadata["page"] == {}
    assert message.artifacts["kitti"].artifacts[0].uri == str(tmp_path / "kitti")


@pytest.mark.parametrize(
    ("shown", "names"),
    [
        (None, ["a", "b", "c", "d"]),
        (("f", "b"), ["f", "b"]),
        (("b", "not counted"), ["b"]),
        ((), []),
    ],
)
def test_manifest_says_which_few_counts_kubeflow_shows(tmp_path, shown, names):
    counts = dict(zip("abcdef", range(6), strict=True))
    step.write_manifest(tmp_path, "model", counts, {}, shown=shown)
    manifest = step.read_manifest(tmp_path, "model")
    assert (manifest["shown"], manifest["counts"]) == (names, counts)
    with pytest.raises(ValueError, match="shows at most 4 counts, not 5"):
        step.write_manifest(tmp_path, "model", counts, {}, shown="abcde")


def test_artifact_of_an_earlier_release_shows_nothing(tmp_path):
    step.write_manifest(tmp_path / "model", "model", {"file_bytes": 1}, {})
    manifest = json.loads((tmp_path / "model/manifest.json").read_text())
    del manifest["shown"]
    step.write_json(tmp_path / "model/manifest.json", manifest)
    outputs = {"model": {"artifacts": [{"name": "model", "uri": str(tmp_path / "model")}]}}
    document = executor_input(tmp_path, outputs=outputs)
    step.write_executor_output(document)
    written = json.loads(Path(document["outputs"]["outputFile"]).read_text())
    assert written["artifacts"]["model"]["artifacts"][0]["metadata"] == {}


def test_outputs_that_the_driver_adds_are_none_of_the_programs(tmp_path):
    def artifact(name):
        return {"artifacts": [{"name": name, "uri": str(tmp_path / name)}]}

    document = executor_input(tmp_path, outputs={name: artifact(name) for name in ("model", "executor-logs")})
    document["outputs"]["parameters"] = {"url": {"outputFile": str(tmp_path / "parameters/url")}}
    asked = []

    def program(arguments):
        asked.append(arguments)
        (tmp_path / "model").write_text("weights")

    def flags_of(words):
        assert words == ["train"]
        return {"--model"}

    assert step.run(["train", "--executor-input", json.dumps(document)], program, flags_of=flags_of) == 0
    assert asked == [["train", f"--model={tmp_path}/model"]]
    assert not (tmp_path / "parameters").exists()
    assert set(json.loads(Path(document["outputs"]["outputFile"]).read_text())["artifacts"]) == {"model"}


def test_missing_output_fails_the_stage_and_names_it(tmp_path, capsys):
    outputs = {"model": {"artifacts": [{"name": "model", "uri": str(tmp_path / "model")}]}}
    document = executor_input(tmp_path, outputs=outputs)
    assert step.run(["--executor-input", json.dumps(document)], lambda _: None) == 1
    assert "output model" in capsys.readouterr().err
    assert not Path(document["outputs"]["outputFile"]).exists()


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (UserError("x"), 2),
        (StageError("x"), 1),
        (OSError(errno.ENOSPC, "No space left on device", "/some/file"), 1),
        (OSError(errno.ENOTDIR, "Not a directory", "/some/file/below"), 2),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/some/file"), 2),
        (KeyboardInterrupt(), 130),
        (SystemExit(7), 7),
        (SystemExit(None), 0),
    ],
)
def test_what_went_wrong_becomes_an_exit_code(raised, code, capsys):
    def program(_):
        raise raised

    assert step.run([], program) == code
    assert capsys.readouterr().err.count("\n") <= 1


def test_failed_stage_writes_no_executor_output(tmp_path):
    document = executor_input(tmp_path)
    assert step.run(["--executor-input", json.dumps(document)], lambda _: 3) == 3
    assert not Path(document["outputs"]["outputFile"]).exists()


def test_parameters_of_a_placement_are_not_the_programs(tmp_path):
    # Kubeflow 2.17 hands them over with their placeholder unresolved.
    count = "{{$.inputs.parameters['pipelinechannel--pool_gpu_count']}}"
    given = {"pipelinechannel--pool_gpu_count": "0", "accelerator_count": count, "accelerator_type": "a", "size": 3.0}
    assert step.flags_from_executor_input(executor_input(tmp_path, given)) == ["--size=3"]
