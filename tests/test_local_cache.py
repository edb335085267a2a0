"""What makes a stage run again, and what does not."""

import json
import shutil
from pathlib import Path

import pytest
from test_local_runner import Bench

from components import step
from pipeline import cache
from pipeline.cache import Store, code_digest, content_digest, stage_key


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.fixture
def code(tmp_path):
    """A small `components`: the family `tiny` uses the room `formats`, and nothing uses `vision`."""
    folder = tmp_path / "components"
    for room in ("tiny", "formats", "vision"):
        (folder / room).mkdir(parents=True)
        (folder / room / "__init__.py").write_text("")
    shutil.copy(step.__file__, folder / "step.py")
    (folder / "tiny/program.py").write_text("def f():\n    from components.formats import kitti\n")
    (folder / "tiny/component.py").write_text("import kfp\nimport components.vision\n")
    (folder / "formats/kitti.py").write_text("from components.step import UserError\n")
    (folder / "vision/training.py").write_text("x = 1\n")
    return folder


def test_second_run_is_cached_and_quick(bench):
    assert bench.run() == ["make", "total"]
    assert bench.run() == []
    assert json.loads((bench.runs / "r/add-up/result").read_text())["sum"] == 6


def test_other_run_of_equal_content_is_cached_too(bench):
    bench.run()
    assert bench.run(bench.settings(name="other")) == []
    assert (bench.runs / "other/make/numbers/numbers.json").exists()


def test_changed_parameter_runs_its_stage_and_those_whose_input_changed(bench):
    bench.run(size=3, factor=2.0)
    assert bench.run(size=3, factor=3.0) == ["total"]
    assert bench.run(size=4, factor=3.0) == ["make", "total"]
    assert bench.run(size=3, factor=2.0) == []


def test_equal_output_of_a_stage_that_ran_again_leaves_the_next_one_cached(bench):
    bench.run(mood="")
    assert bench.run(mood="joy") == ["make"]  # the mood does not show in the numbers


def test_editing_one_line_of_the_code_makes_its_stages_run_again(bench, code):
    settings = bench.settings(code=code)
    bench.run(settings)
    assert bench.run(settings) == []
    edit(code / "formats/kitti.py")
    assert bench.run(settings) == ["make", "total"]


def edit(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as source:
        source.write("x = 1\n")


@pytest.mark.parametrize(
    "file", ["tiny/program.py", "tiny/new.proto", "formats/kitti.py", "step.py", "tiny/specs/x/train.txt"]
)
def test_code_that_a_stage_runs_counts(code, file):
    before = code_digest(code, "tiny")
    edit(code / file)
    assert code_digest(code, "tiny") != before


@pytest.mark.parametrize(
    "file", ["tiny/component.py", "vision/training.py", "tiny/__pycache__/program.cpython-311.pyc"]
)
def test_code_that_a_stage_does_not_run_does_not_count(code, file):
    before = code_digest(code, "tiny")
    edit(code / file)
    assert code_digest(code, "tiny") == before


def test_local_path_counts_by_its_content(bench, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "image.jpg").write_text("picture")
    assert bench.run(data_uri=str(tmp_path / "a")) == ["make", "total"]
    assert bench.run(data_uri=str(tmp_path / "b")) == []
    (tmp_path / "b/image.jpg").write_text("another picture")
    assert bench.run(data_uri=str(tmp_path / "b")) == ["make"]


def test_stage_with_a_remote_uri_always_runs_and_the_next_goes_by_its_result(bench):
    assert bench.run(data_uri="s3://bucket/set") == ["make", "total"]
    assert bench.run(data_uri="s3://bucket/set") == ["make"]


def test_stage_with_a_remote_uri_of_a_known_version_is_taken_from_the_cache():
    def is_pure(version):
        return stage_key(["tiny"], {}, executor_input("s3://bucket/set", version), "run", 2).is_pure

    def executor_input(uri, version):
        return {"inputs": {"parameterValues": {"uri": uri, "version": version}}, "outputs": {}}

    assert is_pure("0f2c6d9b")
    assert not is_pure("")
    keys = {stage_key(["tiny"], {}, executor_input("s3://b/set", each), "run", 2).digest for each in ("1", "2")}
    assert len(keys) == 2


def test_remote_stage_that_has_finished_is_not_repeated_when_its_own_run_resumes(bench):
    bench.run(data_uri="s3://bucket/set")
    assert bench.run(bench.settings(resume=True), data_uri="s3://bucket/set") == []
    assert bench.run(bench.settings(name="other", resume=True), data_uri="s3://bucket/set") == ["make"]


def test_image_tag_does_not_count(bench):
    bench.run()
    bench.yaml.write_text(bench.yaml.read_text().replace(":0.1.0\n", ":9.9.9\n"))
    assert ":9.9.9" in bench.yaml.read_text()
    assert bench.run() == []


@pytest.mark.parametrize("harm", ["truncate", "edit", "delete", "garble"])
def test_damaged_entry_is_not_used(bench, harm):
    bench.run()
    for entry in (bench.runs / ".cache").iterdir():
        file = next((entry / "outputs").rglob("*numbers.json"), entry / "outputs/metrics")
        if harm == "truncate":
            file.write_text("")
        elif harm == "edit":
            file.write_text(file.read_text().replace("0", "1").replace("6", "7"))
        elif harm == "delete":
            file.unlink()
        else:
            (entry / "entry.json").write_text("{")
    assert bench.run() == ["make", "total"]


def test_failed_stage_is_not_kept(bench):
    for _ in range(2):
        with pytest.raises(Exception, match="stage make failed"):
            bench.run(mood="failure")
        assert bench.calls_file.read_text().split() == ["make"]
    assert not (bench.runs / ".cache").exists()


def test_cached_results_survive_the_removal_of_the_run_that_made_them(bench):
    bench.run()
    shutil.rmtree(bench.runs / "r")
    assert bench.run() == []


def key(argv=("gridbox", "tiny", "train"), threads=2, parameters=None, **others):
    document = {"inputs": {"parameterValues": parameters or {}}, "outputs": {"outputFile": "/x"}}
    return stage_key(list(argv), {}, document, "run", threads, **others).digest


def test_thread_count_counts_for_training_only(code):
    assert key(threads=1, code=code) != key(threads=2, code=code)
    evaluate = ("gridbox", "tiny", "evaluate")
    assert key(evaluate, threads=1, code=code) == key(evaluate, threads=2, code=code)


def test_input_that_the_command_names_counts_by_its_content_and_not_by_where_it_lies(code, tmp_path):
    def of(run, text):
        (tmp_path / run).mkdir()
        (tmp_path / run / "__main__.py").write_text(text)
        inputs = {"artifacts": {"program": {"artifacts": [{"uri": str(tmp_path / run)}]}}}
        argv = ["python3", str(tmp_path / run), "tiny", "train"]
        return stage_key(argv, {}, {"inputs": inputs, "outputs": {"outputFile": "/x"}}, "run", 2, code).digest

    assert of("one", "1") == of("other", "1") != of("third", "2")


def test_package_version_counts(code, monkeypatch):
    before = key(code=code)
    monkeypatch.setattr(cache, "package_versions", lambda: {"numpy": "0.0"})
    assert key(code=code) != before


def test_word_that_happens_to_be_a_folder_here_is_no_path(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = key(parameters={"split": "training"}, code=code)
    (tmp_path / "training").mkdir()
    assert key(parameters={"split": "training"}, code=code) == before


def test_integral_float_and_integer_of_protojson_are_one_value(code):
    assert key(parameters={"epochs": 3}, code=code) == key(parameters={"epochs": 3.0}, code=code)


def test_content_digest_of_an_artifact_is_that_of_its_manifest(tmp_path):
    (tmp_path / "status.json").write_text("monday")
    step.write_manifest(tmp_path, "model", {}, {}, logs=("status.json",))
    before = content_digest(tmp_path)
    (tmp_path / "status.json").write_text("tuesday")
    assert content_digest(tmp_path) == before


def test_code_digest_of_the_real_engine_covers_what_it_imports():
    engine, data = code_digest(cache.CODE, "detectnet_v2"), code_digest(cache.CODE, "widerface")
    assert engine != data
    rooms = cache.imported_rooms(cache.CODE, "detectnet_v2")
    assert {"step", "tao", "formats", "decode", "vision", "detectnet_v2"} <= rooms
    assert "widerface" not in rooms


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """The real `components`, to be edited."""
    folder = tmp_path_factory.mktemp("engine") / "components"
    return shutil.copytree(cache.CODE, folder, ignore=shutil.ignore_patterns("__pycache__"))


@pytest.mark.parametrize("file", ["detectnet_v2/stage.py", "detectnet_v2/specs/facedetect/train.txt"])
def test_edit_of_a_familys_stage_empties_the_caches_of_this_family_alone(engine, file):
    def keys():
        return {words: key(words, code=engine) for words in [tao, *others]}

    tao = ("python3", "-B", "program", "detectnet_v2", "prune")
    others = [("gridbox", family, "x") for family in ("widerface", "convert", "evaluate", "serve")]
    before = keys()
    edit(engine / file)
    assert {words for words, each in keys().items() if each != before[words]} == {tao}


@pytest.mark.parametrize("file", ["served.py", "decoding.py"])
def test_how_a_family_is_served_counts_for_whoever_asks_it_by_name(engine, file):
    families = ("widerface", "detectnet_v2", "convert", "evaluate", "serve")
    before = {family: code_digest(engine, family) for family in families}
    edit(engine / "detectnet_v2" / file)
    assert {family for family in families if code_digest(engine, family) == before[family]} == {"widerface"}


def test_edit_of_what_all_stages_of_tao_share_leaves_the_data_alone(engine):
    before = {family: code_digest(engine, family) for family in ("widerface", "detectnet_v2")}
    edit(engine / "tao/call.py")
    assert code_digest(engine, "widerface") == before["widerface"]
    assert code_digest(engine, "detectnet_v2") != before["detectnet_v2"]


def test_store_keeps_nothing_half(tmp_path, monkeypatch):
    store, entry_key = Store(tmp_path / "cache"), cache.Key("k", True)
    output = tmp_path / "model"
    output.write_text("weights")
    document = {"outputs": {"artifacts": {"model": {"artifacts": [{"uri": str(output)}]}}, "outputFile": "/x"}}
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        store.keep(entry_key, document, 1.0)
    assert store.restore(entry_key, document) is None
    assert not list((tmp_path / "cache").iterdir())
