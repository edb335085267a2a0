"""`gridbox serve publish`: a repository is built and published, and one that cannot be served from there is refused."""

import pytest
from square_detector import write_detector
from test_serve_repository import configs, write_plan
from typer import Typer

from components import program, publication
from components.objects import open_objects
from components.serve import deploy_commands
from components.serve.published import fetch_repository, read_published
from components.step import write_manifest

APP = Typer()
deploy_commands.mount(APP)


def call(*words):
    return program.run(APP, ["publish", *map(str, words)], "gridbox serve")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return write_detector(tmp_path_factory.mktemp("exported") / "model")


def test_exported_model_is_published_as_a_repository_that_is_not_served_yet(exported, tmp_path):
    assert call("--exported", exported, "--base", tmp_path / "store", "--published", tmp_path / "published") == 0
    published = read_published(tmp_path / "published")
    assert published.settings["backend"] == "onnxruntime"
    assert publication.versions(str(tmp_path / "store")).served is None
    fetch_repository(published, tmp_path / "fetched")
    assert (tmp_path / "fetched/repository/facenet_ensemble/config.pbtxt").is_file()


@pytest.mark.parametrize(("limit", "threads"), [("4", 4), ("2500m", 2)])
def test_network_has_as_many_threads_as_its_pod_may_use_cores(exported, tmp_path, limit, threads):
    given = ["--exported", exported, "--base", tmp_path / "store", "--published", tmp_path / "out"]
    assert call(*given, "--cpu-limit", limit) == 0
    fetch_repository(read_published(tmp_path / "out"), tmp_path / "fetched")
    network = configs(tmp_path / "fetched")["facenet"]
    assert network.parameters["intra_op_thread_count"].string_value == str(threads)


def test_plan_makes_it_a_repository_for_tensorrt(exported, tmp_path):
    plan = write_plan(tmp_path / "plan", exported)
    given = ["--exported", exported, "--plan", plan, "--base", tmp_path / "store", "--published", tmp_path / "out"]
    assert call(*given) == 0
    assert read_published(tmp_path / "out").settings["backend"] == "tensorrt"


def test_without_a_base_nothing_is_published_and_it_is_said(exported, tmp_path, capsys):
    assert call("--exported", exported, "--published", tmp_path / "published") == 0
    assert "skipped: there is nowhere to publish to" in capsys.readouterr().out
    assert read_published(tmp_path / "published") is None


def test_models_that_reach_for_one_anothers_files_are_refused_for_an_object_store(tmp_path, capsys, monkeypatch):
    def built(_exported, output, *_):
        (output / "repository/facenet_ensemble").mkdir(parents=True)
        text = 'parameters: { key: "network" value: { string_value: "{\\"file\\": \\"../facenet/1/model.onnx\\"}" } }\n'
        (output / "repository/facenet_ensemble/config.pbtxt").write_text(text)
        write_manifest(output, "model_repository", {}, {})

    monkeypatch.setattr("components.serve.repository.build_repository", built)
    monkeypatch.setattr(publication, "open_objects", lambda _, patience: open_objects(str(tmp_path / "s3"), patience))
    assert call("--exported", tmp_path, "--base", "s3://models/facenet", "--published", tmp_path / "out") == 2
    assert "facenet_ensemble: its configuration names ../facenet/1/model.onnx, outside" in capsys.readouterr().err
    assert not (tmp_path / "s3").exists()
    assert call("--exported", tmp_path, "--base", tmp_path / "folder", "--published", tmp_path / "out") == 0
