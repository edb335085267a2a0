"""Fixtures of the tests of the commands for Kubeflow: `pytest_plugins = ["kubeflow_fixtures"]`."""

import kubeflow_pipeline
import pytest
from kubeflow_stub import Pipelines

from components import program
from pipeline import cli, settings
from pipeline.kubeflow import connection, following, sources


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """The file of a small pipeline."""
    return kubeflow_pipeline.compile_to(tmp_path_factory.mktemp("kubeflow") / "tiny.yaml")


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No settings but a test's own, no Kubernetes, and no patience."""
    for name in list(settings.os.environ):
        if name.startswith("GRIDBOX_") or name.lower().endswith("_proxy") or name == "KUBERNETES_SERVICE_HOST":
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-kubeconfig"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(connection, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(following, "SHORTEST_PAUSE", 0.001)
    monkeypatch.setattr(following, "LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(sources, "SECONDS", 0.0)


@pytest.fixture
def stub(monkeypatch, alone):  # noqa: ARG001
    """A Kubeflow Pipelines that the settings name."""
    with Pipelines() as stub:
        monkeypatch.setenv("GRIDBOX_ENDPOINT", stub.url)
        yield stub


@pytest.fixture
def gridbox(capsys, alone):  # noqa: ARG001
    """Runs a command; returns its exit code and what it said."""

    def call(*words):
        code = program.run(cli.app, [str(word) for word in words], "gridbox")
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return call
