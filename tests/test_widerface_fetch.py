import functools
import hashlib
import http.server
import io
import threading
import zipfile

import pytest
from typer.main import get_command

from components import program
from components.formats.wider import ARCHIVES, Face, WiderImage, WiderSource, format_annotations
from components.step import UserError, read_manifest
from components.store import RetryPolicy
from components.widerface.acquire import acquire
from components.widerface.commands import app
from components.widerface.fetch import fetch_archives, read_checksums

QUICK = RetryPolicy(attempts=2, pause=0.01, timeout=2.0)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def official(tmp_path):
    root = tmp_path / "official"
    (root / "wider_face_split").mkdir(parents=True)
    for name in ("train", "val"):
        blocks = []
        for event, image in (("1--Rally", "b.jpg"), ("0--Parade", "a.jpg")):
            file = root / f"WIDER_{name}/images/{event}/{image}"
            file.parent.mkdir(parents=True)
            file.write_bytes(f"{name} {image}".encode() * 50)
            blocks.append(WiderImage(f"{event}/{image}", (Face((1, 2, 3, 4)),) * 2))
        (root / f"wider_face_split/wider_face_{name}_bbx_gt.txt").write_bytes(format_annotations(blocks))
    return root


def bring(uri, output):
    return acquire(str(uri), output, 2, 1, 0, 96, 96, QUICK)


@pytest.fixture
def archives(official, tmp_path):
    bring(official, tmp_path / "archives")
    return tmp_path / "archives"


@pytest.fixture
def website(archives):
    handler = functools.partial(Quiet, directory=str(archives.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_folder_becomes_the_three_official_archives_with_stable_bytes(official, archives, tmp_path):
    assert sorted(contents(archives)) == sorted([*ARCHIVES, "manifest.json"])
    with zipfile.ZipFile(archives / "WIDER_train.zip") as packed:
        assert packed.namelist() == ["WIDER_train/images/0--Parade/a.jpg", "WIDER_train/images/1--Rally/b.jpg"]
        assert {member.compress_type for member in packed.infolist()} == {zipfile.ZIP_STORED}
    for file in official.rglob("*.jpg"):
        file.touch()
    bring(official.as_uri(), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(archives)


def test_counts_say_that_real_data_are_not_synthetic(archives):
    counts = read_manifest(archives, "raw_faces")["counts"]
    expected = {"training_images": 2, "training_faces": 4, "validation_images": 2, "validation_faces": 4}
    assert counts == {"synthetic": False} | expected


def test_archives_come_the_same_from_a_folder_a_website_and_an_object_store(archives, website, tmp_path, monkeypatch):
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    from minio import Minio

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host = "{}:{}".format(*server.get_host_and_port())
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        client = Minio(endpoint=host, access_key="key", secret_key="secret", secure=False)
        client.make_bucket(bucket_name="faces")
        for name in ARCHIVES:
            data = (archives / name).read_bytes()
            client.put_object(bucket_name="faces", object_name=f"v1/{name}", data=io.BytesIO(data), length=len(data))
        for index, uri in enumerate((archives, f"{website}/archives/", "s3://faces/v1/")):
            bring(uri, tmp_path / str(index))
            assert contents(tmp_path / str(index)) == contents(archives)
    finally:
        server.stop()


def test_an_empty_uri_draws_a_synthetic_set_and_says_so(tmp_path, capsys):
    counts = bring("", tmp_path / "raw")
    assert "SYNTHETIC" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "raw", "raw_faces")
    assert manifest["counts"] == counts
    assert (counts["synthetic"], counts["training_images"], counts["validation_images"]) == (True, 2, 1)
    assert manifest["settings"]["seed"] == 0
    assert len(WiderSource(tmp_path / "raw").images("training")) == 2
    bring("", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "raw")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("{tmp}/nowhere", "no such folder"),
        ("{tmp}", "wider_face_train_bbx_gt.txt is missing"),
        ("{web}/nowhere", "WIDER_train.zip: the server answers 404"),
        ("gs://bucket/set", "--uri gs://bucket/set: use a path"),
    ],
)
def test_a_wrong_location_is_one_line_and_leaves_nothing(uri, words, website, tmp_path):
    with pytest.raises(UserError) as caught:
        bring(uri.format(tmp=tmp_path, web=website), tmp_path / "raw")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["archives", "official"]


def test_fetch_tries_mirrors_in_turn_keeps_what_is_there_and_checks(archives, website, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "WIDER_val.zip").write_bytes(b"here already")
    sums = {name: hashlib.sha256((archives / name).read_bytes()).hexdigest() for name in ARCHIVES}
    (tmp_path / "SHA256SUMS").write_text("".join(f"{value}  ./{name}\n" for name, value in sums.items()))
    checksums = read_checksums(tmp_path / "SHA256SUMS")
    assert checksums == sums
    fetch_archives([f"{website}/nowhere", f"{website}/archives"], output, checksums, QUICK)
    expected = contents(archives) | {"WIDER_val.zip": b"here already"}
    del expected["manifest.json"]
    assert contents(output) == expected


def test_fetch_names_every_source_that_failed(website, tmp_path):
    sources = [f"{website}/nowhere", f"{website}/archives"]
    with pytest.raises(UserError, match=r"nowhere/WIDER_train\.zip: .* 404 .*; .*WIDER_train\.zip: the SHA-256 is"):
        fetch_archives(sources, tmp_path / "out", {"WIDER_train.zip": "0" * 64}, QUICK)
    assert contents(tmp_path / "out") == {}
    with pytest.raises(UserError, match="--source"):
        fetch_archives([], tmp_path / "out")
    with pytest.raises(UserError, match=r"checksums name other\.zip"):
        fetch_archives(sources, tmp_path / "out", {"other.zip": "0" * 64})


def test_a_malformed_list_of_checksums_is_refused_with_its_line(tmp_path):
    (tmp_path / "sums").write_text(f"{'0' * 64}  a.zip\n\nabc  b.zip\n")
    with pytest.raises(UserError, match=r"sums:3: not a line of sha256sum"):
        read_checksums(tmp_path / "sums")
    with pytest.raises(UserError, match="none: cannot be read"):
        read_checksums(tmp_path / "none")


def test_the_fetch_command_takes_sources_from_the_environment(website, tmp_path, monkeypatch):
    monkeypatch.setenv("GRIDBOX_WIDER_SOURCES", f"{website}/archives")
    assert program.run(app, ["fetch", "--output", str(tmp_path / "out")], "gridbox widerface") == 0
    assert sorted(contents(tmp_path / "out")) == sorted(ARCHIVES)


def test_every_option_of_every_command_is_explained():
    commands = get_command(app).commands
    assert sorted(commands) == ["acquire", "convert", "fetch", "synthesize"]
    for command in commands.values():
        for option in command.params:
            assert len(option.help.split()) > 4, (command.name, option.name)
