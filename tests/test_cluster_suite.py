"""The suite of `make test-cluster`, against stubs: as far as they reach it passes, and it can fail."""

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import fields
from pathlib import Path

import pytest
from cluster.settings import Settings
from kubeflow_stub import Kubernetes, Pipelines

from pipeline.package import read

PREFLIGHT = "data.preflight"
ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")


class Cluster(Kubernetes):
    """A Kubernetes whose workflows are those of a Kubeflow; KServe is not installed."""

    def __init__(self, pipelines):
        super().__init__(token="")  # kubectl sends none without TLS
        self.objects["/readyz"] = "ok"
        self.secrets = {"gridbox-s3"}
        self._pipelines = pipelines

    def _route(self, method, path, query, body, headers):
        self.workflows = [self._pipelines.workflow(run_id) for run_id in self._pipelines.runs]
        return super()._route(method, path, query, body, headers)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """The paths of the workflow's stages."""
    file = tmp_path_factory.mktemp("stages") / "workflow.yaml"
    command = [Path(sys.executable).with_name("gridbox"), "compile", "facedetect", "--profile", "micro", "-o", file]
    subprocess.run(command, check=True, capture_output=True)
    return list(read(file).stages())


@pytest.fixture
def kubeflow(stages):
    with Pipelines("2.17.0") as pipelines:
        whole = dict.fromkeys(stages, "SUCCEEDED")
        pipelines.script = [({PREFLIGHT: "RUNNING"}, "RUNNING"), (whole, "SUCCEEDED")]
        pipelines.logs = {pipelines.pod(PREFLIGHT): "gridbox preflight: all is there"}
        pipelines.exit_handlers = {path: "serve.exit-handler-1" for path in stages if path.endswith("conclude")}
        yield pipelines


@pytest.fixture
def suite(kubeflow, tmp_path):
    """Runs checks; returns the exit code, what was said, and by check what the JUnit file has."""
    images = {name: f"registry.example.com/{name}:1" for name in ("open", "open_gpu", "triton")}
    told = ["[images]", *(f'{name} = "{image}"' for name, image in images.items())]
    (tmp_path / "gridbox.toml").write_text("\n".join(told))
    with Cluster(kubeflow) as kubernetes:

        def call(checks, **variables):
            kept = {name: value for name, value in os.environ.items() if not name.startswith(("GRIDBOX_", "PYTEST"))}
            junit = tmp_path / "junit.xml"
            environment = {
                **kept, "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(tmp_path), "GRIDBOX_ENDPOINT": kubeflow.url,
                "KUBECONFIG": str(kubernetes.kubeconfig(tmp_path / "kubeconfig")), "CHECKS": checks,
                "TEST_CLUSTER_FOLDER": str(tmp_path / "files"), **variables,
            }  # fmt: skip
            words = [ROOT / "tests/cluster/suite.py", f"--rootdir={ROOT}", "-c", ROOT / "pyproject.toml",
                     "-o", "junit_family=xunit1", f"--junitxml={junit}", "-p", "no:cacheprovider"]  # fmt: skip
            ran = subprocess.run(
                [sys.executable, "-m", "pytest", *words], capture_output=True, text=True, cwd=tmp_path, env=environment
            )
            cases = ElementTree.parse(junit).iter("testcase") if junit.exists() else ()
            return ran.returncode, ran.stdout + ran.stderr, {case.get("name"): case for case in cases}

        yield call


def properties(case):
    return {each.get("name"): each.get("value") for each in case.iter("property")}


def figure(case):
    return properties(case)["figure"]


def test_it_passes_against_a_kubeflow_that_works(suite, stages):
    code, said, cases = suite("doctor upload submit logs list schedule slow")
    assert code == 0, said
    assert "slow" in said
    assert "there is no KServe here" in said
    assert figure(cases["test_submit"]).startswith(f"{len(stages)} stages in ")
    assert f"bytes after {len(stages)} stages" in properties(cases["test_submit"])
    assert figure(cases["test_schedule"]) == "enabled, disabled, enabled"
    assert "left: runs named gridbox-test-" in said


def test_a_run_that_goes_on_is_cancelled(suite, kubeflow):
    kubeflow.script = [({PREFLIGHT: "RUNNING"}, "RUNNING")]
    code, said, _ = suite("cancel")
    assert code == 0, said


def test_it_fails_where_argo_has_compressed_the_workflow(suite, kubeflow):
    kubeflow.script, kubeflow.compressed_from = kubeflow.script[1:], 0
    code, said, _ = suite("submit")
    assert code == 1, said
    assert "submit" in said
    assert "beyond 1 MiB" in said


def test_it_fails_where_a_stage_is_not_told(suite, kubeflow, stages):
    kubeflow.script = [(dict.fromkeys(stages[:-1], "SUCCEEDED"), "SUCCEEDED")]
    code, said, _ = suite("submit")
    assert code == 1, said
    assert "no line of" in said


def test_it_fails_where_a_second_run_computes_again(suite, kubeflow, tmp_path):
    kubeflow.script = kubeflow.script[1:]
    (tmp_path / "files").mkdir()
    (tmp_path / "files/state.json").write_text('{"run": "of an earlier call", "seed": 1}')
    code, said, _ = suite("cache")
    assert code == 1, said
    assert "FAIL" in said


def test_it_is_skipped_with_one_line_without_a_cluster(suite):
    code, said, cases = suite("", GRIDBOX_ENDPOINT="http://127.0.0.1:9")
    assert (code, cases) == (0, {})
    assert len(said.splitlines()) == 1
    assert said.startswith("Exit: test-cluster is skipped: http://127.0.0.1:9: cannot be reached")


def test_an_unknown_check_or_setting_is_named(suite):
    code, said, _ = suite("slwo")
    assert code == 2
    assert "there is no check slwo; there are doctor, upload, submit" in said
    code, said, _ = suite("", TEST_CLUSTER_PATIENSE="2")
    assert code == 2
    assert "TEST_CLUSTER_PATIENSE: no such setting; there are" in said


def test_its_settings_and_checks_are_documented():
    text = (ROOT / "docs/testing-on-a-cluster.md").read_text(encoding="utf-8")
    rows = " ".join(re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE))
    documented = re.findall(r"`(\w+)`", rows)
    checks = re.findall(r"^def test_(\w+)", (ROOT / "tests/cluster/suite.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert documented[: len(checks)] == checks
    assert sorted(documented[len(checks) :]) == sorted(each.name.upper() for each in fields(Settings))
