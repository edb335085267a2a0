"""Settings: which source overrules which, what is refused, and that no secret is ever shown."""

import pytest

from components.step import UserError
from pipeline import settings
from pipeline.settings import load

CANARY = "canary-51f0c3"


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No settings but a test's own."""
    for name in list(settings.os.environ):
        if name.startswith("GRIDBOX_") or name in ("KUBERNETES_SERVICE_HOST", settings.PROJECTED_TOKEN_VARIABLE):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    work = tmp_path / "project" / "deep"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    return work


def test_each_source_overrules_the_one_before(alone, monkeypatch):
    file = alone.parent / "gridbox.toml"
    file.write_text('endpoint = "https://file"\nnamespace = "file"\nexperiment = "file"\ntimeout = 5\n')
    monkeypatch.setenv("GRIDBOX_NAMESPACE", "environment")
    monkeypatch.setenv("GRIDBOX_EXPERIMENT", "environment")
    found = load({"experiment": "flag", "endpoint": "", "ca_file": None})
    assert found.settings.endpoint == "https://file"
    assert found.settings.namespace == "environment"
    assert found.settings.experiment == "flag"
    assert found.settings.timeout == 5.0
    assert found.settings.store == ""
    shown = {name: found.origins[name] for name in ("endpoint", "namespace", "experiment", "store")}
    assert shown == {
        "endpoint": str(file), "namespace": "GRIDBOX_NAMESPACE", "experiment": "--experiment", "store": "default",
    }  # fmt: skip


def test_the_nearest_file_counts_and_the_home_one_comes_last(alone, tmp_path):
    home = tmp_path / "config" / "gridbox" / "gridbox.toml"
    home.parent.mkdir(parents=True)
    home.write_text('namespace = "home"')
    assert load().settings.namespace == "home"
    (alone.parent / "gridbox.toml").write_text('namespace = "project"')
    assert load().settings.namespace == "project"
    (alone / "gridbox.toml").write_text('namespace = "here"')
    assert load().settings.namespace == "here"


def test_paths_of_a_file_are_seen_from_it(alone):
    (alone.parent / "gridbox.toml").write_text('ca_file = "ca.pem"\ntoken_file = "/elsewhere/token"')
    found = load().settings
    assert found.ca_file == str(alone.parent / "ca.pem")
    assert found.token_file == "/elsewhere/token"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('endpiont = "x"', "did you mean endpoint"),
        ('zzz = "x"', "there are backend, ca_file, context, endpoint"),
        ("namespace = 3", "write a text in quotes"),
        ('timeout = "3"', "write a number"),
        ("timeout = true", "write a number"),
        ("timeout = 0", "above 0"),
        ("timeout = nan", "above 0"),
        ("namespace = team", "this is no TOML: at line 1"),
        (f'token = "{CANARY}"', "no secret belongs in this file"),
        (f'api_key = "{CANARY}"', "no secret belongs in this file"),
        (f"token = {CANARY}", "this is no TOML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_that_holds_no_secret(alone, text, reason):
    (alone / "gridbox.toml").write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        load()
    assert "gridbox.toml" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert CANARY not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(alone):
    (alone / "gridbox.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        load()


@pytest.mark.parametrize("text", ["soon", "-1", "inf"])
def test_a_wrong_variable_is_named(monkeypatch, text):
    monkeypatch.setenv("GRIDBOX_TIMEOUT", text)
    with pytest.raises(UserError, match="GRIDBOX_TIMEOUT: must be a number of seconds"):
        load()


def test_the_token_comes_from_flag_then_variable_then_file_then_pod(alone, monkeypatch):
    for name in ("flag", "file", "pod"):
        (alone / name).write_text(f"{name}-token\n")
    monkeypatch.setenv(settings.PROJECTED_TOKEN_VARIABLE, str(alone / "pod"))
    assert load().credential().secret == "pod-token"
    (alone / "gridbox.toml").write_text('token_file = "file"')
    assert load().credential().secret == "file-token"
    monkeypatch.setenv("GRIDBOX_TOKEN", "variable-token")
    assert load().credential().secret == "variable-token"
    assert load().credential().origin == "GRIDBOX_TOKEN"
    assert load({"token_file": str(alone / "flag")}).credential().secret == "flag-token"


def test_no_token_is_no_token():
    assert load().credential() is None


@pytest.mark.parametrize("text", ["", " \n", f"{CANARY}\nHost: evil", f"{CANARY} {CANARY}", f"{CANARY}ä"])
def test_what_cannot_be_a_token_is_refused_and_not_repeated(alone, text):
    (alone / "token").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="no bearer token") as caught:
        load({"token_file": str(alone / "token")}).credential()
    assert CANARY not in str(caught.value)


def test_a_token_has_no_text_form(monkeypatch):
    monkeypatch.setenv("GRIDBOX_TOKEN", CANARY)
    found = load()
    assert CANARY not in f"{found} {found.credential()!r} {found.credential()}"


def test_a_missing_token_file_is_named(alone):
    with pytest.raises(UserError, match=r"absent.*No such file"):
        load({"token_file": str(alone / "absent")}).credential()


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("", "where is Kubeflow.*port-forward"),
        ("kubeflow.example.com", "write it like https://"),
        ("ftp://kubeflow", "write it like https://"),
        (f"https://ada:{CANARY}@kubeflow", "no place for a password"),
    ],
)
def test_a_wrong_endpoint_is_refused(endpoint, reason):
    with pytest.raises(UserError, match=reason) as caught:
        load({"endpoint": endpoint}).endpoint()
    assert CANARY not in str(caught.value)


def test_an_address_copied_from_the_browser_will_do(monkeypatch):
    assert load({"endpoint": "https://host/pipeline/#/runs"}).endpoint() == "https://host/pipeline"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert load().endpoint() == settings.IN_CLUSTER_ENDPOINT
