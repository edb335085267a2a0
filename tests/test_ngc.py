import hashlib
import json

import h5py
import ngc_server
import pytest
from networks import small_network
from ngc_server import KEY, PERSONAL_KEY

from components import program, step
from components.ngc import commands, download, registry
from components.step import UserError
from components.store import RetryPolicy
from components.vision.checkpoint import save_network

SOURCE = "nvidia/tao/pretrained_detectnet_v2:resnet18"
NAME = "pretrained_detectnet_v2:resnet18"
QUICK = RetryPolicy(attempts=3, pause=0.01, timeout=2.0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A detector as TAO 5 writes it."""
    file = tmp_path_factory.mktemp("weights") / "resnet18.hdf5"
    save_network(file, small_network(width=0.125))
    return file.read_bytes()


@pytest.fixture
def ngc(monkeypatch, weights):
    with ngc_server.running() as (served, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv(registry.KEY, KEY)
        served.versions[NAME] = {"resnet18.hdf5": weights, "LICENSE.txt": b"the licence", "labels.txt": b"face\n"}
        yield served
    assert served.faults == []


def fetch(folder, source=SOURCE, **others):
    return download.download(source, folder / "model", retry=QUICK, **others)


def gridbox_ngc(*words):
    return program.run(commands.app, [str(word) for word in words], "gridbox ngc")


def assert_no_canary(folder, captured):
    said = captured.out + captured.err
    assert "canary" not in said
    for file in (path for path in folder.rglob("*") if path.is_file()):
        assert b"canary" not in file.read_bytes(), file


# --- What comes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [KEY, PERSONAL_KEY, f"{KEY}\n"])
def test_model_becomes_an_artifact_with_licence_and_checksum_and_without_secrets(
    ngc, weights, tmp_path, monkeypatch, capfd, key
):
    monkeypatch.setenv(registry.KEY, key)
    counts = fetch(tmp_path)
    model = tmp_path / "model"
    assert step.weights_file(model) == model / "weights/resnet18.hdf5"
    assert step.weights_file(model).read_bytes() == weights
    assert step.is_present(model)
    manifest = step.read_manifest(model, "model")
    digest = hashlib.sha256(weights).hexdigest()
    assert counts == manifest["counts"] == {
        "present": True, "source": SOURCE, "file_bytes": len(weights), "sha256": digest, "encrypted": False,
        "detector": True,
    }  # fmt: skip
    assert (model / "licence/LICENSE.txt").read_bytes() == b"the licence"
    notice = (model / "NOTICE.txt").read_text()
    assert "https://catalog.ngc.nvidia.com/orgs/nvidia/teams/tao/models/pretrained_detectnet_v2" in notice
    assert digest in notice
    captured = capfd.readouterr()
    assert notice.partition("\n")[0] in captured.out
    assert "1 other files of the version are left there: labels.txt" in captured.out
    assert_no_canary(tmp_path, captured)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    # A personal key is the bearer itself.
    assert ("/token" in ngc.asked) == (key.strip() == KEY)


def test_guest_gets_what_is_public_without_any_credential(ngc, weights, tmp_path, monkeypatch):
    monkeypatch.delenv(registry.KEY)
    ngc.guests.add(NAME)
    fetch(tmp_path)
    assert step.weights_file(tmp_path / "model").read_bytes() == weights
    assert "/token" not in ngc.asked


def test_backbone_is_told_from_a_detector(ngc, tmp_path):
    file = tmp_path / "resnet18.hdf5"
    save_network(file, small_network(width=0.125))
    with h5py.File(file, "r+") as stored:
        for head in ("output_cov", "output_bbox"):
            del stored["model_weights"][head]
        names = [n for n in stored["model_weights"].attrs["layer_names"] if not n.startswith(b"output")]
        stored["model_weights"].attrs["layer_names"] = names
    ngc.versions[NAME] = {"resnet18.hdf5": file.read_bytes()}
    assert fetch(tmp_path)["detector"] is False
    assert step.is_present(tmp_path / "model")
    assert not step.is_detector(tmp_path / "model")
    # Of the models that are scored it is skipped: test_tao_stages.py.


def test_encrypted_model_is_recorded_as_such_and_not_opened(ngc, tmp_path, capfd):
    ngc.versions["facenet:unpruned_v2.0"] = {"model.tlt": b"encrypted"}
    counts = fetch(tmp_path, "nvidia/tao/facenet:unpruned_v2.0")
    assert counts["encrypted"] is True
    assert "with its key in TAO_KEY" in capfd.readouterr().out
    assert step.is_detector(tmp_path / "model")  # for all that is known


def test_list_of_files_is_read_to_its_last_page(ngc, weights, tmp_path):
    ngc.page_size = 2
    ngc.versions[NAME] = {f"{number}.txt": b"x" for number in range(5)} | {"net.hdf5": weights}
    fetch(tmp_path)
    assert step.weights_file(tmp_path / "model").name == "net.hdf5"


def test_file_of_several_is_chosen_by_its_path(ngc, weights, tmp_path):
    ngc.versions[NAME] = {"a/one.hdf5": b"another", "a/two.hdf5": weights}
    fetch(tmp_path, file="a/two.hdf5")
    assert step.weights_file(tmp_path / "model").read_bytes() == weights


# --- What breaks off -------------------------------------------------------------------------------------------------


def test_cut_connection_is_resumed(ngc, weights, tmp_path):
    del ngc.versions[NAME]["LICENSE.txt"]
    ngc.cuts = [1000, 500]
    fetch(tmp_path)
    assert ngc.ranges == [None, "bytes=1000-", "bytes=1500-"]
    assert step.weights_file(tmp_path / "model").read_bytes() == weights


def test_later_call_goes_on_where_a_former_one_gave_up(ngc, weights, tmp_path):
    del ngc.versions[NAME]["LICENSE.txt"]
    ngc.cuts = [1000, 0, 0, 0]
    with pytest.raises(UserError, match="gave up after 3 tries, run again to resume"):
        fetch(tmp_path)
    assert not (tmp_path / "model").exists()
    ngc.cuts, ngc.ranges = [], []
    fetch(tmp_path)
    assert ngc.ranges == ["bytes=1000-"]
    assert step.weights_file(tmp_path / "model").read_bytes() == weights
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_busy_registry_is_asked_again(ngc, tmp_path):
    ngc.statuses = [503, 429]
    fetch(tmp_path)


def test_registry_that_stays_away_is_given_up(ngc, tmp_path, monkeypatch):
    ngc.statuses = [503] * 3
    with pytest.raises(UserError, match=r"NGC answers 503 .*; gave up after 3 tries"):
        fetch(tmp_path)
    monkeypatch.setenv("NGC_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"NGC cannot be reached .*; gave up after 3 tries"):
        fetch(tmp_path)


# --- What is refused -------------------------------------------------------------------------------------------------


def refused(match, folder, captured, **others):
    """One clear line, nothing left at the output, and no secret anywhere."""
    with pytest.raises(UserError, match=match) as caught:
        fetch(folder, **others)
    assert "\n" not in str(caught.value)
    assert "canary" not in str(caught.value)
    assert not (folder / "model").exists()
    assert_no_canary(folder, captured())


def test_wrong_key_is_named_but_not_shown_even_where_ngc_repeats_it(ngc, tmp_path, capfd):
    ngc.tokens_of = set()
    refused(
        r"NGC refuses the key in NGC_API_KEY \(401: Invalid credentials \*\*\*\); make a new one",
        tmp_path,
        capfd.readouterr,
    )


def test_licence_that_is_not_accepted_is_named_with_its_page(ngc, tmp_path, capfd):
    ngc.gated.add(NAME)
    said = r"\(403: The license terms have not been accepted\); accept the model's licence at https://catalog\.ngc"
    refused(said, tmp_path, capfd.readouterr)


@pytest.mark.usefixtures("ngc")
def test_guest_is_told_to_bring_a_key(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv(registry.KEY, "")
    refused("NGC gives it to no guest .*; set NGC_API_KEY to a key of your NGC account", tmp_path, capfd.readouterr)


@pytest.mark.usefixtures("ngc")
def test_unknown_version_is_named_with_the_models_page(tmp_path, capfd):
    said = r"pretrained_detectnet_v2:resnet19: NGC has no such model or version .*; look at https://catalog"
    refused(said, tmp_path, capfd.readouterr, source="nvidia/tao/pretrained_detectnet_v2:resnet19")


def test_content_that_is_not_what_ngc_says_is_refused(ngc, tmp_path, capfd):
    del ngc.versions[NAME]["LICENSE.txt"]
    ngc.wrong = True
    refused("the SHA-256 is [0-9a-f]{64}, expected", tmp_path, capfd.readouterr)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_checksum_of_the_user_is_held_against_ngcs_and_where_ngc_has_none_against_the_content(
    ngc, weights, tmp_path, capfd
):
    digest = hashlib.sha256(weights).hexdigest()
    refused("expected 00", tmp_path, capfd.readouterr, checksum="00" * 32)
    ngc.checksums = False
    refused("expected 00", tmp_path, capfd.readouterr, checksum="00" * 32)
    fetch(tmp_path, checksum=digest.upper())


def test_file_without_any_checksum_comes_with_a_word_about_it(ngc, tmp_path, capfd):
    ngc.checksums = False
    fetch(tmp_path)
    assert "NGC names no SHA-256 for this file; that of what came is recorded" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("files", "chosen", "said"),
    [
        ({"labels.txt": b""}, "", "has no model to start from .*; its files are labels.txt"),
        ({"a.hdf5": b"", "b.tlt": b""}, "", "has several models, name one as file: a.hdf5, b.tlt"),
        ({"a.hdf5": b""}, "c.hdf5", "has no file c.hdf5; there are a.hdf5"),
        ({"a.onnx": b""}, "a.onnx", "a.onnx is no model to start from"),
        ({"../../a.hdf5": b""}, "", "leaves the folder"),
        ({"a.hdf5": b"no HDF5 at all"}, "", "not a readable Keras file"),
    ],
)
def test_version_without_one_usable_model_is_refused(ngc, tmp_path, capfd, files, chosen, said):
    ngc.versions[NAME] = files
    refused(said, tmp_path, capfd.readouterr, file=chosen)


@pytest.mark.parametrize("address", ["file:///etc/passwd", "http://example.com/x", "", "s3://bucket/key"])
def test_address_that_is_not_https_is_not_followed(ngc, tmp_path, capfd, address):
    ngc.location = address or "nowhere"
    refused("NGC names no https address", tmp_path, capfd.readouterr)


@pytest.mark.parametrize(
    "source", ["", "facenet", "nvidia/tao/facenet", "a/b/c/d:1", "nvidia/tao/face net:1", "x/../y:1/.."]
)
def test_source_of_another_form_is_refused_before_anything_is_asked(ngc, tmp_path, capfd, source):
    refused("write org/team/model:version", tmp_path, capfd.readouterr, source=source)
    assert ngc.asked == []


def test_key_never_goes_over_plain_http(ngc, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("NGC_ENDPOINT", "http://api.ngc.nvidia.com")
    refused("NGC_ENDPOINT: must start with https://", tmp_path, capfd.readouterr)
    assert ngc.asked == []


# --- Command ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ngc")
def test_command_runs_by_an_executor_input(tmp_path, capfd):
    document = {
        "inputs": {"parameterValues": {"source": SOURCE, "file": "", "sha256": ""}},
        "outputs": {
            "artifacts": {"model": {"artifacts": [{"name": "model", "uri": str(tmp_path / "out/model")}]}},
            "outputFile": str(tmp_path / "out/executor_output.json"),
        },
    }
    assert gridbox_ngc("download", "--executor-input", json.dumps(document)) == 0
    written = json.loads((tmp_path / "out/executor_output.json").read_text())
    assert written["artifacts"]["model"]["artifacts"][0]["metadata"]["present"] is True
    assert step.read_manifest(tmp_path / "out/model", "model")["settings"]["source"] == SOURCE
    assert_no_canary(tmp_path, capfd.readouterr())


@pytest.mark.usefixtures("ngc")
@pytest.mark.parametrize("file", ["", "/resnet18.hdf5"])
def test_uri_of_a_model_brings_it_as_pretrained_weights(tmp_path, capfd, file):
    from components.detectnet_v2 import commands as detectnet_v2

    words = ["pretrained", "--uri", f"ngc://{SOURCE}{file}", "--model", str(tmp_path / "model")]
    assert program.run(detectnet_v2.app, words, "detectnet_v2") == 0
    counts = step.read_manifest(tmp_path / "model", "model")["counts"]
    assert (counts["present"], counts["source"], counts["detector"]) == (True, SOURCE, True)
    download.probe(f"ngc://{SOURCE}{file}")
    with pytest.raises(UserError, match=r"has no file other.hdf5"):
        download.probe(f"ngc://{SOURCE}/other.hdf5")
    assert_no_canary(tmp_path, capfd.readouterr())


def test_mistake_is_one_line_and_exit_code_2(ngc, tmp_path, capfd):
    ngc.gated.add(NAME)
    assert gridbox_ngc("download", "--source", SOURCE, "--model", tmp_path / "model") == 2
    captured = capfd.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"gridbox ngc: {SOURCE}: NGC denies access")
    assert_no_canary(tmp_path, captured)
