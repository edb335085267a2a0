"""Publishing to a bucket and to a folder: the same promises, the same tests."""

import json
import logging
import re
import threading
from datetime import timedelta

import pytest
import s3_server

from components import objects, program, publication, publication_commands, step
from components.publication import fetch_published, hold, point, prune, publish, resolve, versions
from components.step import UserError
from components.store import RetryPolicy

QUICK = RetryPolicy(attempts=3, pause=0.01, timeout=10.0)
AT_ONCE = timedelta(0)


@pytest.fixture(scope="module")
def s3():
    with s3_server.running() as values:
        yield values


@pytest.fixture(params=["folder", "s3"])
def base(request, tmp_path, monkeypatch):
    """Where to publish: nothing is there yet."""
    if request.param == "folder":
        yield (tmp_path / "a store").as_uri()
        return
    values = request.getfixturevalue("s3")
    s3_server.enter(monkeypatch, values)
    with s3_server.bucket(values) as (_, name):
        yield f"s3://{name}/models/facenet"


@pytest.fixture
def bucket(s3, monkeypatch):
    s3_server.enter(monkeypatch, s3)
    with s3_server.bucket(s3) as (_, name):
        yield f"s3://{name}/models"


@pytest.fixture
def proxy(s3, monkeypatch, bucket):  # noqa: ARG001 - the bucket's environment comes first
    with s3_server.proxy(s3["AWS_ENDPOINT_URL"]) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


def repository(folder, content="weights", kind="model_repository"):
    """Writes a small model-repository artifact."""
    for name, text in {
        "repository/facenet/1/model.onnx": content * 1000,
        "repository/facenet/config.pbtxt": 'name: "facenet"',
        "repository/facenet_ensemble/1/.keep": "a version without files of its own",
        "labels ü+&?.txt": "face\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    step.write_manifest(folder, kind, {}, {})
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def line(work, *arguments, **options):
    """Runs what must fail and returns its one line."""
    with pytest.raises(UserError) as caught:
        work(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names_below(base):
    place = objects.open_objects(base, QUICK)
    return sorted(entry.name for prefix in ("versions/", "records/") for entry in place.listed(prefix))


def test_what_is_published_is_resolved_and_comes_back_as_it_was(base, tmp_path):
    source = repository(tmp_path / "source")
    seen = []
    published = publish(source, base, report=lambda *at: seen.append(at), retry=QUICK)
    assert resolve(base, QUICK) == published
    assert published.uri == f"{base}/versions/{published.version}/"
    assert (published.kind, published.objects) == ("model_repository", 5)
    assert published.bytes == sum(map(len, contents(source).values()))
    assert published.manifest == step.sha256(source / "manifest.json")
    assert seen[-1] == (2 * published.bytes, 2 * published.bytes)  # sent and read back
    assert fetch_published(base, tmp_path / "back", retry=QUICK) == published
    assert contents(tmp_path / "back") == contents(source)


def test_the_files_lie_under_their_own_names_below_the_version(base, tmp_path):
    published = publish(repository(tmp_path / "source"), base, retry=QUICK)
    below = f"versions/{published.version}/"
    assert names_below(base) == sorted(
        [below + name for name in contents(tmp_path / "source")] + [f"records/{published.version}.json"]
    )


def test_equal_content_has_an_equal_digest_and_a_version_of_its_own(base, tmp_path):
    source = repository(tmp_path / "source")
    first, second = publish(source, base, retry=QUICK), publish(source, base, retry=QUICK)
    assert first.digest == second.digest
    assert first.version < second.version
    repository(tmp_path / "other", "weight5")
    assert publish(tmp_path / "other", base, retry=QUICK).digest != first.digest


def test_a_former_version_can_be_fetched_by_its_name(base, tmp_path):
    first = publish(repository(tmp_path / "one", "one"), base, retry=QUICK)
    publish(repository(tmp_path / "two", "two"), base, retry=QUICK)
    assert fetch_published(base, tmp_path / "back", first.version, retry=QUICK) == first
    assert contents(tmp_path / "back") == contents(tmp_path / "one")
    assert "there is no version" in line(
        fetch_published, base, tmp_path / "none", "20260101-000000-000000-00000000", retry=QUICK
    )
    assert "not the name of a version" in line(fetch_published, base, tmp_path / "none", "../x", retry=QUICK)
    assert "exists already" in line(fetch_published, base, tmp_path / "back", retry=QUICK)
    assert not (tmp_path / "none").exists()


def test_where_nothing_is_published_nothing_is_listed_and_nothing_resolves(base, tmp_path):
    assert versions(base, QUICK) == publication.Versions(None, (), ())
    assert "nothing is published here" in line(resolve, base, QUICK)
    assert "nothing is published here" in line(fetch_published, base, tmp_path / "none", retry=QUICK)


# --- What is refused -------------------------------------------------------------------------------------------------


def test_an_empty_file_or_folder_of_a_model_repository_is_refused_by_name(tmp_path):
    for empty, words in (
        ("repository/facenet_ensemble/1/.keep", r"1/\.keep: KServe skips empty files"),
        ("repository/facenet_postprocess/1", "1: an object store keeps no empty folder"),
    ):
        source = tmp_path / re.sub(r"\W", "", empty)
        repository(source)
        (source / "manifest.json").unlink()
        if "keep" in empty:
            (source / empty).write_text("")
        else:
            (source / empty).mkdir(parents=True)
        assert re.search(words, line(publish, source, str(tmp_path / "base"), retry=QUICK))
    assert not (tmp_path / "base").exists()


def test_an_empty_file_elsewhere_is_published(base, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/empty.log").write_text("")
    publish(tmp_path / "source", base, retry=QUICK)
    fetch_published(base, tmp_path / "back", retry=QUICK)
    assert contents(tmp_path / "back") == {"empty.log": b""}


def test_damaged_unfinished_and_strange_folders_are_refused(tmp_path):
    def refused(source, base=None):
        return line(publish, source, base or str(tmp_path / "base"), retry=QUICK)

    source = repository(tmp_path / "source", kind="exported_model")
    model = source / "repository/facenet/1/model.onnx"
    model.write_text("other")
    assert "model.onnx: differs from what the manifest says" in refused(source)
    model.unlink()
    assert "is an empty folder" in refused(source) or "keeps no empty folder" in refused(source)
    model.symlink_to(source / "manifest.json")
    assert "model.onnx: only plain files" in refused(source)
    (tmp_path / "nothing").mkdir()
    assert "the folder is empty" in refused(tmp_path / "nothing")
    assert "no such folder" in refused(tmp_path / "none")
    whole = repository(tmp_path / "whole")
    assert f"lies inside {whole}" in refused(whole, str(whole / "store"))
    assert "cannot publish to ftp://" in refused(whole, "ftp://host/folder")
    (whole / "two\nlines").write_text("x")
    assert "unprintable characters" in refused(whole)
    assert not (tmp_path / "base").exists()


def test_a_file_that_changes_meanwhile_is_refused_and_the_former_version_served(base, tmp_path, monkeypatch):
    former = publish(repository(tmp_path / "former"), base, retry=QUICK)
    source = repository(tmp_path / "source", "new")
    model = source / "repository/facenet/1/model.onnx"
    inventory = publication._inventory

    def then_change(folder, content):
        files = inventory(folder)
        model.write_text(content)
        return files

    for content in ("NEW" * 1000, "longer" * 1000):  # of the same size, and of another
        monkeypatch.setattr(publication, "_inventory", lambda folder, content=content: then_change(folder, content))
        model.write_text("new" * 1000)
        assert "model.onnx: changed while it was published" in line(publish, source, base, retry=QUICK)
    assert resolve(base, QUICK) == former


def test_a_pointer_that_is_not_ours_is_never_overwritten(base, tmp_path):
    place = objects.open_objects(base, QUICK)
    for content in (b"not json", b"[]", b'{"layout": 99}', b'{"layout": 1, "former": []}'):
        place.write("current.json", content)
        for work in (lambda: publish(repository(tmp_path / "source"), base, retry=QUICK), lambda: resolve(base)):
            assert "current.json: " in line(work)
        assert place.read("current.json")[0] == content
    assert names_below(base) == []


def test_damage_in_the_store_is_found_when_fetching(base, tmp_path):
    published = publish(repository(tmp_path / "source"), base, retry=QUICK)
    place = objects.open_objects(base, QUICK)
    name = f"versions/{published.version}/repository/facenet/1/model.onnx"
    place.write(name, b"WEIGHTS" * 1000)
    assert "SHA-256" in line(fetch_published, base, tmp_path / "back", retry=QUICK)
    record = f"records/{published.version}.json"
    document = json.loads(place.read(record)[0])
    document["files"]["../../evil"] = document["files"].pop("manifest.json")
    place.write(record, json.dumps(document).encode())
    assert "damaged" in line(fetch_published, base, tmp_path / "back", retry=QUICK)
    document["digest"] = publication._digest(publication._File(name, *at) for name, at in document["files"].items())
    place.write(record, json.dumps(document).encode())
    assert "leaves the folder" in line(fetch_published, base, tmp_path / "back", retry=QUICK)
    document["files"]["evil"] = document["files"].pop("../../evil")
    document["digest"] = publication._digest(publication._File(name, *at) for name, at in document["files"].items())
    place.write(record, json.dumps(document).encode())
    assert "not that of its version" in line(fetch_published, base, tmp_path / "back", retry=QUICK)
    assert not (tmp_path / "back").exists()


# --- Several publishers ----------------------------------------------------------------------------------------------


def test_publishers_at_once_leave_every_version_whole_and_one_of_them_served(base, tmp_path):
    def work(number):
        done[number] = publish(sources[number], base, retry=QUICK)

    sources = [repository(tmp_path / f"source {number}", f"weights {number}") for number in range(4)]
    done = [None] * 4
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = versions(base, QUICK)
    assert {each.version for each in found.complete} == {each.version for each in done}
    assert found.served in done
    assert not found.leftovers
    for number, each in enumerate(done):
        fetch_published(base, tmp_path / f"back {number}", each.version, retry=QUICK)
        assert contents(tmp_path / f"back {number}") == contents(sources[number])


def test_expected_refuses_when_another_version_is_served(base, tmp_path):
    source = repository(tmp_path / "source")
    first = publish(source, base, expected="", retry=QUICK)
    assert "is served, expected (none)" in line(publish, source, base, expected="", retry=QUICK)
    second = publish(source, base, expected=first.version, retry=QUICK)
    assert f"version {second.version} is served, expected {first.version}" in line(
        publish, source, base, expected=first.version, retry=QUICK
    )
    assert resolve(base, QUICK) == second


def in_between(monkeypatch, work):
    """Lets `work` happen once between reading and writing the pointer."""
    for place in (objects._BucketObjects, objects._FolderObjects):

        def replace(self, *arguments, original=place.replace):
            if todo:
                todo.pop()()
            return original(self, *arguments)

        monkeypatch.setattr(place, "replace", replace)
    todo = [work]


@pytest.mark.parametrize("expects", [True, False])
def test_a_publisher_overtaken_at_the_last_moment_loses_if_it_expected_and_wins_if_not(
    base, tmp_path, monkeypatch, expects
):
    source = repository(tmp_path / "source")
    first = publish(source, base, retry=QUICK)
    quicker = []
    in_between(monkeypatch, lambda: quicker.append(publish(source, base, retry=QUICK)))
    if expects:
        message = line(publish, source, base, expected=first.version, retry=QUICK)
        assert "another publish came first" in message
        assert resolve(base, QUICK) == quicker[0]
    else:
        last = publish(source, base, retry=QUICK)
        assert resolve(base, QUICK) == last
        # No forerunner is forgotten.
        pointer = json.loads(objects.open_objects(base, QUICK).read("current.json")[0])
        assert pointer["former"] == [first.version, quicker[0].version]


def test_a_store_without_conditional_writes_is_published_to(proxy, bucket, tmp_path):
    """It answers NotImplemented, or takes no notice of the condition."""
    source = repository(tmp_path / "source")

    def refuse(request):
        return (501, "NotImplemented") if {"If-Match", "If-None-Match"} & set(request.headers) else None

    def ignore(request):
        request.headers = {name: value for name, value in request.headers.items() if not name.startswith("If-")}

    for fault in (refuse, ignore):
        proxy.arm(fault)
        for _ in range(2):
            assert publish(source, bucket, retry=QUICK) == resolve(bucket, QUICK)


# --- Old versions and left-overs -------------------------------------------------------------------------------------


def test_prune_keeps_the_newest_and_the_served_one(base, tmp_path):
    source = repository(tmp_path / "source")
    made = [publish(source, base, retry=QUICK).version for _ in range(5)]
    pruned = prune(base, 2, retry=QUICK)
    assert (pruned.versions, pruned.leftovers, pruned.spared) == (tuple(made[:3]), (), ())
    assert pruned.bytes == 3 * sum(map(len, contents(source).values()))
    assert [each.version for each in versions(base, QUICK).complete] == made[3:]
    assert {name.split("/")[1].removesuffix(".json") for name in names_below(base)} == set(made[3:])
    assert prune(base, 2, retry=QUICK) == publication.Pruned((), (), 0, ())
    assert "at least one" in line(prune, base, 0)


def test_prune_never_removes_the_served_version_though_it_is_old(base, tmp_path):
    source = repository(tmp_path / "source")
    first = publish(source, base, retry=QUICK)
    for _ in range(2):
        publish(source, base, retry=QUICK)
    point(base, first.version, QUICK)
    pruned = prune(base, 1, young=AT_ONCE, retry=QUICK)
    assert len(pruned.versions) == 1
    assert fetch_published(base, tmp_path / "back", retry=QUICK) == first


def test_published_version_is_served_when_the_pointer_is_moved_to_it(base, tmp_path):
    source = repository(tmp_path / "source")
    first = publish(source, base, retry=QUICK)
    second = publish(source, base, serve=False, retry=QUICK)
    assert resolve(base, QUICK) == first
    for served in (second, first, second):  # and back, as a roll-back does
        assert point(base, served.version, QUICK) == served
        assert resolve(base, QUICK) == served
    assert "there is no version" in line(point, base, "20260101-000000-000000-0badcafe", QUICK)


def test_prune_spares_what_a_deployment_holds_and_takes_the_evidence_of_the_rest(base, tmp_path):
    source = repository(tmp_path / "source")
    made = [publish(source, base, retry=QUICK).version for _ in range(4)]
    place = objects.open_objects(base, QUICK)
    for version in made:
        place.write(f"evidence/{version}.npz", b"evidence")
    hold(base, "face.facenet", made[:2], QUICK)
    hold(base, "face.facenet", made[1:2], QUICK)  # in the place of those it named before
    hold(base, "face.other", [], QUICK)
    assert prune(base, 1, young=AT_ONCE, retry=QUICK).versions == (made[0], made[2])
    left = {entry.name for entry in place.listed("evidence/")}
    assert left == {f"evidence/{version}.npz" for version in (made[1], made[3])}


def test_versions_that_were_never_served_are_left_to_their_publisher_until_they_are_old(base, tmp_path):
    """They may be about to be."""
    source = repository(tmp_path / "source")
    waiting = publish(source, base, serve=False, retry=QUICK)
    last = publish(source, base, retry=QUICK)
    pruned = prune(base, 1, retry=QUICK)
    assert (pruned.versions, pruned.spared) == ((), (waiting.version,))
    assert prune(base, 1, young=AT_ONCE, retry=QUICK).versions == (waiting.version,)
    assert versions(base, QUICK).complete == (last,)


def test_leftovers_are_counted_and_removed_when_they_are_old(base, tmp_path):
    published = publish(repository(tmp_path / "source"), base, retry=QUICK)
    place = objects.open_objects(base, QUICK)
    name = "versions/20260101-000000-000000-0badcafe/"
    place.write(name + "model/a", b"12345")
    place.write(name + "b", b"6789")
    place.write("versions/readme.txt", b"somebody else's")
    (leftover,) = versions(base, QUICK).leftovers
    assert (leftover.name, leftover.bytes, len(leftover.entries)) == (name, 9, 2)
    assert prune(base, 1, retry=QUICK).spared == (name,)
    pruned = prune(base, 1, young=AT_ONCE, retry=QUICK)
    assert (pruned.versions, pruned.leftovers, pruned.bytes) == ((), (name,), 9)
    assert versions(base, QUICK) == publication.Versions(published, (published,), ())
    assert "versions/readme.txt" in names_below(base)


# --- The store misbehaves, or is far away ----------------------------------------------------------------------------


def test_a_flipped_byte_on_the_way_is_found_and_sent_again(proxy, bucket, tmp_path):
    source = repository(tmp_path / "source")

    def flip_sent(request):
        if request.method == "PUT" and "model.onnx" in request.target and not flipped:
            flipped.append(request)
            request.body = b"X" + request.body[1:]
            request.headers.pop("x-amz-content-sha256", None)  # a server that checks it would refuse it at once

    flipped = []
    proxy.arm(flip_sent)
    publish(source, bucket, retry=QUICK)
    assert flipped
    assert [request.method for request in proxy.seen if "model.onnx" in request.target] == ["PUT", "GET"] * 2


def test_a_store_that_alters_what_it_keeps_is_given_up_and_the_former_version_served(proxy, bucket, tmp_path):
    former = publish(repository(tmp_path / "former"), bucket, retry=QUICK)
    source = repository(tmp_path / "source", "new")

    def alter(name):
        return lambda request: flip if name in request.target and request.method == "GET" else None

    def flip(content):
        return b"X" + content[1:]

    for name in ("model.onnx", "/records/"):
        proxy.arm(alter(name))
        assert "not what it was sent; gave up after 3 tries" in line(publish, source, bucket, retry=QUICK)
        proxy.arm(lambda _request: None)
        assert resolve(bucket, QUICK) == former


def test_objects_missing_from_the_list_or_too_many_keep_the_version_from_being_served(bucket, tmp_path, monkeypatch):
    listed = objects._BucketObjects.listed
    monkeypatch.setattr(objects._BucketObjects, "listed", lambda *arguments: listed(*arguments)[1:])
    assert "the store lists 4 objects other than the 5" in line(
        publish, repository(tmp_path / "source"), bucket, retry=QUICK
    )
    assert "nothing is published" in line(resolve, bucket, QUICK)


def test_large_files_travel_in_parts(proxy, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "PART_BYTES", 5 << 20)
    (tmp_path / "source").mkdir()
    (tmp_path / "source/large.bin").write_bytes(bytes(range(256)) * (5 << 12) + b"and more")
    publish(tmp_path / "source", bucket, retry=QUICK)
    assert sum("partNumber=" in request.target for request in proxy.seen) == 2
    fetch_published(bucket, tmp_path / "back", retry=QUICK)
    assert contents(tmp_path / "back") == contents(tmp_path / "source")


def test_mistakes_of_the_store_are_one_line_each(proxy, bucket, tmp_path):
    source = repository(tmp_path / "source")

    def said(fault, base=bucket):
        proxy.arm(lambda _request: fault)
        return line(publish, source, base, retry=QUICK)

    assert "the store answers NoSuchBucket" in said(None, "s3://no-such-bucket-at-all/models")
    assert "the store answers AccessDenied (a fault); check bucket, key and credentials" in said((403, "AccessDenied"))
    assert "the store answers SlowDown (503); gave up after 3 tries" in said((503, "SlowDown"))
    assert "the store answers 500; gave up after 3 tries" in said("error")
    assert "the store cannot be reached (ProtocolError); gave up after 3 tries" in said("drop")


# --- Secrets ---------------------------------------------------------------------------------------------------------


def gridbox_store(*words):
    return program.run(publication_commands.app, [str(word) for word in words], "gridbox store")


def test_no_secret_reaches_output_log_or_store(proxy, s3, bucket, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    source, secret = repository(tmp_path / "source"), s3["AWS_SECRET_ACCESS_KEY"]
    fault = [None]
    proxy.arm(lambda _request: fault[0])
    assert gridbox_store("publish", source, bucket) == 0
    for fault[0] in (
        (403, "SignatureDoesNotMatch"),
        (403, "InvalidAccessKeyId"),
        (400, "AuthorizationHeaderMalformed"),
    ):
        assert gridbox_store("publish", source, bucket) == 2
        assert gridbox_store("list", bucket) == 2
    assert gridbox_store("publish", source, f"s3://somebody:{secret}@bucket/models") == 2
    output = capfd.readouterr()
    logged = output.out + output.err + caplog.text
    assert "SignatureDoesNotMatch" in output.err
    assert "credentials do not belong into a URI" in output.err
    assert secret not in logged
    assert all(secret.encode() not in request.body for request in proxy.seen)


# --- The command -----------------------------------------------------------------------------------------------------


def test_the_command_publishes_resolves_lists_fetches_and_prunes(base, tmp_path, capsys):
    source = repository(tmp_path / "source")

    def said(*words, code=0):
        assert gridbox_store(*words) == code
        return capsys.readouterr()

    uris = [said("publish", source, base).out.strip() for _ in range(3)]
    assert said("resolve", base).out.strip() == uris[-1]
    first = uris[0].split("/")[-2]
    lines = said("list", base).out.splitlines()
    assert [text[0] for text in lines] == [" ", " ", "*", "3"]
    assert lines[-1] == "3 versions, 0 left-overs"
    said("fetch", base, tmp_path / "back", "--version", first)
    assert contents(tmp_path / "back") == contents(source)
    assert "is served, expected" in said("publish", source, base, "--expected", first, code=2).err
    assert "removed 2 versions and 0 left-overs" in said("prune", base, "--keep", 1).out
    assert "--keep" in said("prune", base, code=2).err
