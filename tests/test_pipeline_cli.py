"""The command line: what it refuses before anything starts, and what it teaches."""

import subprocess
import sys

import pytest
import yaml

from components.step import UserError
from pipeline import cli
from pipeline.parameters import parse_assignments

TYPES = {
    "data_uri": "STRING",
    "train_epochs": "NUMBER_INTEGER",
    "train_learning_rate": "NUMBER_DOUBLE",
    "data_grayscale": "BOOLEAN",
    "names": "LIST",
}


def gridbox(*arguments, cwd):
    command = [sys.executable, "-c", "from pipeline import cli; cli.main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=60)


def test_values_have_the_parameters_types(tmp_path):
    (tmp_path / "file").write_text("text")
    assignments = ["train_epochs=3", "train_learning_rate=5e-6", "data_grayscale=Yes", "names=[1]", "data_uri=a=b"]
    assert parse_assignments(assignments, TYPES) == {
        "train_epochs": 3,
        "train_learning_rate": 5e-6,
        "data_grayscale": True,
        "names": [1],
        "data_uri": "a=b",
    }
    assert parse_assignments([f"data_uri=@{tmp_path}/file"], TYPES) == {"data_uri": "text"}


@pytest.mark.parametrize(
    ("assignment", "reason"),
    [
        ("train_epochs", "write name=value"),
        ("train_epocs=3", "did you mean train_epochs"),
        ("zzz=3", "there are data_grayscale, data_uri, names, train_epochs, train_learning_rate"),
        ("train_epochs=3.5", "must be a whole number"),
        ("train_learning_rate=x", "must be a number"),
        ("data_grayscale=maybe", "must be true or false"),
        ("names=[", "must be JSON"),
        ("data_uri=@/nowhere/x", "/nowhere/x cannot be read"),
    ],
)
def test_bad_assignment_is_refused_in_one_line(assignment, reason):
    with pytest.raises(UserError, match=reason) as caught:
        parse_assignments([assignment], TYPES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["run", "facedetct"], "facedetct: cannot be read"),
        (["compile", "facedetct", "-o", "x.yaml"], "no such pipeline; there is facedetect"),
        (["compile", "facedetect", "-o", "x.yaml", "--profile", "gpu"], "no such profile; there are tao, open, cpu"),
        (["compile", "facedetect", "-o", "x.yaml", "--set", "train_sead=1"], "did you mean train_seed"),
        (["compile", "facedetect", "-o", "x.yaml", "--set", "train_seed=-1"], "must be a whole number from 0 to"),
        (["run", "facedetect", "--set", "train_width=9"], "parameter train_width=9.0: must be a number from 0.05 to 2"),
        (["run", "facedetect", "--set", "train_epochs=0"], "must be a whole number from 1 to 10000"),
        (["run", "facedetect", "--name", "../x"], "use letters, digits"),
        (["run", "facedetect", "--data", "no/such/folder"], "no/such/folder does not exist"),
        (["run"], "pipeline"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2_before_anything_starts(tmp_path, arguments, reason):
    done = gridbox(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x.yaml").exists()
    assert not list(tmp_path.rglob("logs"))


def test_compiled_file_binds_what_set_says_and_a_run_of_it_cannot_change_that(tmp_path):
    done = gridbox("compile", "facedetect", "-o", "f.yaml", "--set", "train_seed=7", "--profile", "micro", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    spec = next(yaml.safe_load_all((tmp_path / "f.yaml").read_text()))
    assert "--seed=7" in spec["deploymentSpec"]["executors"]["exec-train"]["container"]["args"]
    assert spec["root"]["inputDefinitions"]["parameters"]["train_epochs"]["defaultValue"] == 2
    for words in (["--set", "train_seed=8"], ["--profile", "cpu"]):
        done = gridbox("run", "f.yaml", *words, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "no such parameter" in done.stderr or "it was bound when the file was compiled" in done.stderr
    assert not list(tmp_path.rglob("logs"))


def test_compile_writes_the_custom_resources_of_a_cluster_that_keeps_pipelines(tmp_path):
    done = gridbox("compile", "facedetect", "-o", "f.yaml", "--kubernetes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    kinds = [each["kind"] for each in yaml.safe_load_all((tmp_path / "f.yaml").read_text())]
    assert kinds == ["Pipeline", "PipelineVersion"]


def test_help_teaches_the_commands_and_the_families(tmp_path):
    said = gridbox("--help", cwd=tmp_path).stdout
    for word in ("compile", "run", *cli.FAMILIES):
        assert word in said
    said = gridbox("run", "--help", cwd=tmp_path).stdout
    for word in ("--data", "--set", "--resume", "--profile", "cpu-real"):
        assert word in said


@pytest.mark.parametrize("family", cli.FAMILIES)
def test_family_command_needs_no_kfp_and_no_pydantic(tmp_path, family):
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('kfp', 'pydantic', 'yaml'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from pipeline import cli\n"
        f"sys.argv = ['gridbox', '{family}', '--help']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert f"gridbox {family}" in done.stdout


def test_data_folder_is_made_absolute_for_the_stages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "faces").mkdir()
    assert cli.absolute("data_uri", "faces") == str(tmp_path / "faces")
    assert cli.absolute("data_uri", "~/faces") == str(tmp_path / "faces")
    assert cli.absolute("data_uri", "s3://bucket/faces") == "s3://bucket/faces"
    assert cli.absolute("data_uri", "") == ""
    assert cli.absolute("train_spec", "faces") == "faces"
