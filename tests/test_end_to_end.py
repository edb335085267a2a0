"""The face-detection workflow from one compiled file, at the micro profile: ends, resumes, survives kills.

The long versions (synthetic figures of the cpu profile, five kills at random steps) run in `make test-long`.
"""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
import s3_server
import torch
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from components.step import sha256, weights_file
from components.tao.tasks import MODELS
from components.vision.checkpoint import load_tensors

GRIDBOX = Path(sys.executable).with_name("gridbox")
# Smaller than the profile: what counts here is that every stage runs, not what it learns.
SETTINGS = ("--profile", "micro")
STAGES_WITH_WEIGHTS = ("train", "retrain")


def start(runs, *arguments, **environment):
    command = [GRIDBOX, "run", "facedetect", *SETTINGS, "--runs", runs, *arguments]
    # With byte code, as a person runs it: it must not make other inputs of the stages' inputs.
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**own, "COLUMNS": "160", **environment},
    )


def run(runs, *arguments, **environment):
    process = start(runs, *arguments, **environment)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def store():
    """A new bucket of a real S3 server, and the environment that leads there."""
    with s3_server.running() as environment, s3_server.bucket(environment) as (_, bucket):
        yield f"s3://{bucket}/facenet", environment


# Enough to find some of the larger faces.
LEARNING = ("data_training_images=64", "train_epochs=30", "retrain_epochs=15", "eval_min_face_height=16")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, store):
    """One whole run that publishes to S3 and serves from there, what else it needs, its output and its seconds."""
    runs = tmp_path_factory.mktemp("runs")
    base, environment = store
    settings = [*LEARNING, "deploy_target=local", f"deploy_base={base}"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    begin = time.monotonic()
    output = run(runs, "--name", "first", *arguments, **environment)
    return runs, output, time.monotonic() - begin


def test_the_whole_workflow_ends_with_a_report(finished):
    runs, output, _ = finished
    folder = runs / "first"
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "SYNTHETIC" in report.upper()
    assert "<svg" in report
    assert str(folder / "report.html") in output or "report.html" in output
    assert (folder / "model/model.onnx").is_file()
    assert "synthetic" in output.lower() or "SYNTHETIC" in (folder / "logs/data.log").read_text()


def test_every_artifact_is_named_and_summed(finished):
    runs, _, _ = finished
    manifests = {file.parent: json.loads(file.read_text()) for file in (runs / "first").glob("*/*/manifest.json")}
    kinds = {manifest["kind"] for manifest in manifests.values()}
    learnt = {"raw_faces", "kitti_set", "records", "model", "exported_model", "evaluation", "evaluations", "annotated"}
    assert kinds == learnt | {"program", "published_repository", "deployment"}
    for folder, manifest in manifests.items():
        present = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
        assert set(manifest["files"]) == present - {"manifest.json"}
        assert len(manifest["shown"]) <= 4
        for name, digest in manifest["files"].items():
            assert digest is None or sha256(folder / name) == digest


def test_endpoint_of_the_published_model_scores_what_the_model_scores_in_process(finished, store):
    folder = finished[0] / "first"
    models = json.loads((folder / "endpoint/evaluation/metrics.json").read_text())["models"]
    quantized = json.loads((folder / "report/evaluation/metrics.json").read_text())["models"]["quantized"]
    precision = {name: figures["mean_average_precision"] for name, figures in models.items()}
    assert precision["in-process"] > 0.02
    assert precision["endpoint"] == pytest.approx(precision["in-process"], abs=5e-4)
    assert precision["in-process"] == pytest.approx(quantized["mean_average_precision"], abs=5e-4)
    assert "Latency" in (folder / "endpoint.html").read_text(encoding="utf-8")
    deployment = json.loads((folder / "deploy/deployment/manifest.json").read_text())["counts"]
    assert deployment["storage_uri"].startswith(store[0])
    assert deployment["url"].startswith("http://127.0.0.1:")


def test_every_stage_has_written_what_kubeflow_reads(finished):
    files = list((finished[0] / "first").glob("*/executor_output.json"))
    assert len(files) == finished[1].count(": done")
    for file in files:
        output = json_format.Parse(file.read_text(), pipeline_spec_pb2.ExecutorOutput())
        for artifact in (listed.artifacts[0] for listed in output.artifacts.values() if listed.artifacts):
            manifest = Path(artifact.uri) / "manifest.json"
            if manifest.is_file():
                assert sorted(artifact.metadata) == sorted(json.loads(manifest.read_text())["shown"])


def test_every_model_is_scored_and_the_report_has_a_row_of_each(finished):
    folder = finished[0] / "first"
    scored = {name: metrics_of(folder, name) for name in MODELS}
    assert scored["pretrained"] == {"skipped": True}
    assert scored["retrained"]["parameters"] < scored["trained"]["parameters"]
    assert scored["trained"]["objects"] == scored["retrained"]["objects"] > 0
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert all(f"<td>{name.capitalize()}</td>" in report or f">{name.capitalize()}<" in report for name in MODELS)
    assert list((folder / "evaluate/annotated/images_annotated").iterdir())


def metrics_of(folder, model):
    """What the stage `evaluate` of a run says of a model."""
    return json.loads((folder / "evaluate/evaluations" / model / "metrics.json").read_text())


def test_no_key_of_the_store_is_written_anywhere(finished, store):
    secret = store[1]["AWS_SECRET_ACCESS_KEY"]
    assert secret not in finished[1]
    for file in finished[0].rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes(), file


def test_server_of_a_run_ends_with_it(finished):
    assert alive(finished[0]) == []
    log = (finished[0] / "first/logs/triton.log").read_text()
    port = re.search(r"Started HTTPService at 127\.0\.0\.1:(\d+)", log)[1]
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(port))) != 0


def test_a_second_run_takes_from_the_cache_all_that_does_not_reach_outside(finished):
    runs, first, seconds = finished
    begin = time.monotonic()
    arguments = [word for setting in LEARNING for word in ("--set", setting)]
    output = run(runs, "--name", "second", *arguments)
    assert time.monotonic() - begin < min(20, seconds / 2)
    assert output.count(": cached") == first.count(": done") - 6
    published = runs / "published"
    deployment = yaml.safe_load_all((runs / "second/deploy/deployment/manifest.yaml").read_text())
    uri = next(each for each in deployment if each["kind"] == "InferenceService")["spec"]["predictor"]["model"]
    assert uri["storageUri"].startswith(f"file://{published}/versions/")
    assert "no endpoint to score" in (runs / "second/endpoint.html").read_text()


def test_kept_server_answers_after_the_run_until_it_is_interrupted(finished):
    runs = finished[0]
    arguments = [word for setting in LEARNING for word in ("--set", setting)]
    process = start(runs, "--name", "kept", "--keep-serving", *arguments, PYTHONUNBUFFERED="1")
    try:
        lines = iter(process.stdout.readline, "")
        url = next(line.split()[1] for line in lines if line.startswith("  HTTP"))
        with urllib.request.urlopen(f"{url}/v2/models/facenet_ensemble/ready", timeout=10) as answer:
            assert answer.status == 200
    finally:
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "stopping" in output
    assert alive(runs) == []


def alive(runs):
    """Processes that have anything to do with a runs folder."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "environ", "status"]):
        words = [*(process.info["cmdline"] or []), *(process.info["environ"] or {}).values()]
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(str(runs) in word for word in words):
            found.append(process)
    return [process for process in found if process.pid != os.getpid()]


def kill_when(condition, runs, *arguments):
    """Starts a run and kills the runner with SIGKILL when `condition` holds; then nothing of it stays alive."""
    process = start(runs, "--name", "cut", *arguments)
    give_up = time.monotonic() + 300
    while not condition(runs / "cut"):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < give_up
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    patience = time.monotonic() + 10
    while alive(runs) and time.monotonic() < patience:
        time.sleep(0.05)
    assert alive(runs) == []


def started(stage):
    return lambda folder: (folder / "logs" / f"{stage}.log").exists()


def trained_epochs(stage, epochs):
    def condition(folder):
        log = folder / "logs" / f"{stage}.log"
        return log.exists() and log.read_text(errors="replace").count("Epoch ") >= epochs

    return condition


def weights(folder):
    return {stage: load_tensors(weights_file(folder / stage / "model"))[0] for stage in STAGES_WITH_WEIGHTS}


def assert_same_weights(one, other):
    for stage in STAGES_WITH_WEIGHTS:
        assert one[stage].keys() == other[stage].keys()
        for name, value in one[stage].items():
            assert torch.equal(value, other[stage][name]), f"{stage}: {name}"


# Another seed than that of `finished`, so that training is not in any cache; epochs enough to be cut in between.
TRAINING = ("--set", "train_seed=7", "--set", "train_epochs=4")


CUTS = {"kitti": started("kitti"), "train": trained_epochs("train", 2), "retrain": trained_epochs("retrain", 1)}


@pytest.mark.parametrize("stages", [("retrain",), pytest.param(tuple(CUTS), marks=pytest.mark.long)])
def test_kills_change_no_weight(tmp_path, stages):
    run(tmp_path / "reference", "--name", "whole", *TRAINING)
    runs = tmp_path / "killed"
    for stage in stages:
        kill_when(CUTS[stage], runs, *TRAINING, *(["--resume"] if stage != stages[0] else []))
    run(runs, "--name", "cut", *TRAINING, "--resume")
    assert "Resuming after epoch" in (runs / "cut/logs/retrain.log").read_text()
    assert_same_weights(weights(tmp_path / "reference/whole"), weights(runs / "cut"))


def test_a_second_writer_is_locked_out(tmp_path):
    first = start(tmp_path, "--name", "same")
    try:
        while not (tmp_path / "same/logs/data.log").exists():
            assert first.poll() is None
            time.sleep(0.02)
        second = start(tmp_path, "--name", "same")
        output, _ = second.communicate(timeout=60)
        assert second.returncode == 2
        assert "another gridbox is writing to this run" in output
        assert len(output.strip().splitlines()) == 1
    finally:
        first.send_signal(signal.SIGINT)
        output, _ = first.communicate(timeout=60)
    assert first.returncode == 130, output
    assert alive(tmp_path) == []


def test_real_images_go_all_the_way(real_data, tmp_path):
    source = real_data / "wider_face"
    output = run(tmp_path, "--name", "real", "--data", source, "--set", "data_max_images=20")
    assert "SYNTHETIC" not in (tmp_path / "real/report.html").read_text(encoding="utf-8").upper()
    counts = json.loads(next((tmp_path / "real/kitti").glob("*/manifest.json")).read_text())["counts"]
    assert counts["training_images"] == counts["validation_images"] == 20
    assert "report" in output


@pytest.mark.long
def test_nvidias_stages_run_as_their_double(tmp_path):
    output = run(tmp_path, "--name", "tao", "--engine", "tao-double", "--profile", "tao-micro")
    assert output.count(": done") == len(list((tmp_path / "tao").glob("*/executor_output.json")))
    weights = {stage: weights_file(tmp_path / "tao" / stage / "model") for stage in STAGES_WITH_WEIGHTS}
    assert {file.suffix for file in weights.values()} == {".hdf5"}


@pytest.mark.long
def test_kills_at_five_random_moments_of_training_change_no_weight(tmp_path):
    training = ("--set", "train_seed=7", "--set", "train_epochs=30")
    run(tmp_path / "reference", "--name", "whole", *training)
    runs, moments = tmp_path / "killed", random.Random(1)
    for attempt in range(5):
        epoch, delay = 4 * attempt + 2, moments.uniform(0, 1.0)

        def reached(folder, epoch=epoch, delay=delay):
            file = folder / "logs/train.log"
            if not file.exists() or f"Epoch {epoch}/" not in file.read_text(errors="replace"):
                return False
            time.sleep(delay)
            return True

        kill_when(reached, runs, *training, *(["--resume"] if attempt else []))
    run(runs, "--name", "cut", *training, "--resume")
    assert_same_weights(weights(tmp_path / "reference/whole"), weights(runs / "cut"))


@pytest.mark.long
def test_the_cpu_profile_finds_synthetic_faces(tmp_path):
    """The promise of `make run`: average precision, size after pruning, what retraining brings back."""
    command = [str(GRIDBOX), "run", "facedetect", "--runs", str(tmp_path), "--name", "cpu"]
    subprocess.run(command, check=True, timeout=900)
    trained, retrained = metrics_of(tmp_path / "cpu", "trained"), metrics_of(tmp_path / "cpu", "retrained")
    assert retrained["parameters"] <= 0.5 * trained["parameters"]
    assert retrained["mean_average_precision"] >= trained["mean_average_precision"] - 0.02
    assert retrained["mean_average_precision"] >= 0.85
    bands = {band["band"]: band["average_precision"] for band in retrained["average_precision_by_height"]}
    assert bands["16-24"] >= 0.65


@pytest.mark.long
def test_ten_minutes_find_real_faces(real_data, tmp_path):
    """A quarter of the length of `cpu-real`: real faces are learnt, and retraining goes on from there."""
    command = [str(GRIDBOX), "run", "facedetect", "--runs", str(tmp_path), "--name", "real"]
    command += ["--data", str(real_data / "wider_face"), "--set", "train_epochs=40", "--set", "retrain_epochs=4"]
    subprocess.run(command, check=True, timeout=3600)
    trained, retrained = metrics_of(tmp_path / "real", "trained"), metrics_of(tmp_path / "real", "retrained")
    assert trained["objects"] > 500
    assert trained["mean_average_precision"] >= 0.60  # the profile's whole length: 0.88
    assert retrained["mean_average_precision"] >= 0.60
