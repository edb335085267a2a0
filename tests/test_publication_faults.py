"""A publish that is cut off anywhere leaves the former version served, whole."""

import contextlib
import os
import signal
import subprocess
import sys
from datetime import timedelta

import pytest
import s3_server

from components import objects
from components.publication import fetch_published, prune, publish, resolve, versions
from components.step import UserError
from components.store import RetryPolicy

HASTY = RetryPolicy(attempts=2, pause=0.001, timeout=10.0)
PARTS = 5 << 20  # the smallest S3 allows


def source(folder, content):
    """Three files, the last of which is large enough to travel in two parts."""
    small_source(folder, content)
    (folder / "z.bin").write_bytes(content.encode() * (PARTS // len(content)) + b"and more than a part")
    return folder


def small_source(folder, content):
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text(content)
    (folder / "sub/b.txt").write_text(content * 2)
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def s3():
    with s3_server.running() as values:
        yield values


@pytest.fixture
def bucket(s3, monkeypatch):
    s3_server.enter(monkeypatch, s3)
    monkeypatch.setattr(objects, "PART_BYTES", PARTS)
    with s3_server.bucket(s3) as (_, name):
        yield f"s3://{name}/models"


@pytest.fixture
def proxy(s3, bucket, monkeypatch):  # noqa: ARG001 - the bucket's environment comes first
    with s3_server.proxy(s3["AWS_ENDPOINT_URL"]) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


@pytest.fixture
def former(tmp_path):
    return small_source(tmp_path / "former", "former ")


@pytest.fixture
def new(tmp_path):
    return source(tmp_path / "new", "new version ")


def check_served(base, expected, folder, scratch):
    """Checks that this version is served, and that all of it comes back."""
    assert resolve(base, HASTY) == expected
    fetch_published(base, scratch, retry=HASTY)
    assert contents(scratch) == contents(folder)


def moved_pointer(requests):
    return any(request.method == "PUT" and request.target.endswith("/current.json") for request in requests)


def count_requests(proxy, folder, base):
    proxy.arm(lambda _request: None)
    published = publish(folder, base, retry=HASTY)
    return published, len(proxy.seen)


@pytest.mark.parametrize("kind", ["error", "drop", "lost"])
def test_cut_off_at_any_request_the_former_version_is_served(proxy, bucket, former, new, tmp_path, kind):
    """From request i on the store is gone; with "lost" it carries out request i, but its answer does not come."""
    _, total = count_requests(proxy, new, bucket)
    served = publish(former, bucket, retry=HASTY)
    assert total == 16  # pointer, 2 x (send, read), 5 for the parts, list, record and pointer with their reading
    for index in range(total):
        proxy.arm(lambda request, index=index: fate(request.number - index, kind))
        with pytest.raises(UserError) as caught:
            publish(new, bucket, retry=HASTY)
        assert "\n" not in str(caught.value)
        pointed = moved_pointer(proxy.done)
        proxy.arm(lambda _request: None)
        if pointed:  # only what comes after is cut off: the new version is whole, and served
            assert index >= total - 2
            check_served(bucket, versions(bucket, HASTY).complete[-1], new, tmp_path / f"back {index}")
        else:
            assert index <= total - 2
            check_served(bucket, served, former, tmp_path / f"back {index}")
    check_nothing_stays_behind(bucket)


def fate(number, kind):
    """What happens to the request `number` places after the cut."""
    if number < 0:
        return None
    return kind if number == 0 else "drop"


def check_nothing_stays_behind(base):
    """Checks that all that broken-off publishes leave is recognised, and removed when it is old."""
    assert versions(base, HASTY).leftovers
    prune(base, 1, young=timedelta(0), retry=HASTY)
    found = versions(base, HASTY)
    assert not found.leftovers
    place = objects.open_objects(base, HASTY)
    names = {
        entry.name.split("/")[1].removesuffix(".json")
        for part in ("versions/", "records/")
        for entry in place.listed(part)
    }
    assert names == {each.version for each in found.complete}
    assert found.served in found.complete


@pytest.mark.parametrize("kind", ["error", "drop", "lost"])
def test_a_single_fault_at_any_request_is_overcome(proxy, bucket, tmp_path, kind):
    folder = small_source(tmp_path / "small", "content")
    served, total = count_requests(proxy, folder, bucket)
    assert total == 11
    for index in range(total):
        proxy.arm(lambda request, index=index: kind if request.number == index else None)
        # A pointer that was written though its answer was lost is not taken for another publisher's.
        served = publish(folder, bucket, expected=served.version, retry=HASTY)
        assert resolve(bucket, HASTY) == served
        assert len(proxy.seen) > total
    found = versions(bucket, HASTY)
    assert len(found.complete) == 1 + total
    assert not found.leftovers


PUBLISHER = """
import sys
from pathlib import Path
from components import objects
from components.publication import publish
objects.PART_BYTES = 5 << 20
publish(Path(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.parametrize(
    ("at", "when"),
    [
        ("sub/b.txt", "before"),
        ("partNumber=2", "after"),
        ("/records/", "before"),
        ("/records/", "after"),
        ("/current.json", "before"),
        ("/current.json", "after"),
    ],
)
def test_a_killed_publisher_leaves_the_former_version_served(proxy, bucket, former, new, tmp_path, at, when):
    """It is killed when the store receives the request, or when it has carried it out."""
    served = publish(former, bucket, retry=HASTY)

    def kill(request):
        if request.method != "PUT" or at not in request.target:
            return None
        if when == "after":
            return lambda content: (os.kill(publisher.pid, signal.SIGKILL), content)[1]
        os.kill(publisher.pid, signal.SIGKILL)
        return "drop"

    proxy.arm(kill)
    publisher = subprocess.Popen([sys.executable, "-c", PUBLISHER, str(new), bucket], stderr=subprocess.DEVNULL)
    assert publisher.wait(60) == -signal.SIGKILL
    proxy.arm(lambda _request: None)
    if (at, when) == ("/current.json", "after"):
        check_served(bucket, versions(bucket, HASTY).complete[-1], new, tmp_path / "back")
        return
    check_served(bucket, served, former, tmp_path / "back")
    found = versions(bucket, HASTY)
    is_whole = at == "/current.json" or (at, when) == ("/records/", "after")
    assert (len(found.complete), len(found.leftovers)) == ((2, 0) if is_whole else (1, 1))
    assert any(entry.unfinished for each in found.leftovers for entry in each.entries) == (at == "partNumber=2")
    prune(bucket, 1, young=timedelta(0), retry=HASTY)
    assert not versions(bucket, HASTY).leftovers
    assert resolve(bucket, HASTY) == served
    assert publish(new, bucket, retry=HASTY) == resolve(bucket, HASTY)


# --- A folder: every file that is opened, made, renamed or removed below the base is a request ----------------------

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir")


class Disk:
    """Sees the file operations below a folder by an audit hook, and does to them what a test wants."""

    def __init__(self):
        self.base = self.act = None
        sys.addaudithook(self._hear)

    def _hear(self, event, arguments):
        if self.base and event in EVENTS and str(arguments[0]).startswith(self.base):
            self.number += 1
            self.act(self.number - 1)

    @contextlib.contextmanager
    def watched(self, base, act):
        self.number, self.act, self.base = 0, act, str(base)
        try:
            yield self
        finally:
            self.base = None


@pytest.fixture(scope="module")
def disk():
    return Disk()


def in_a_process(work):
    """Runs `work` in a fork, and returns how that ended."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("kind", ["error", "kill"])
def test_cut_off_at_any_file_operation_the_former_version_is_served(disk, tmp_path, kind):
    base, former, new = tmp_path / "store", *(small_source(tmp_path / name, name) for name in ("former", "new"))
    publish(former, str(base))
    with disk.watched(base, lambda _number: None):
        served = publish(former, str(base))
        total = disk.number
    assert total > 30
    finished = []
    for index in range(total):

        def cut(number, index=index):
            if number < index:
                return
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(5, "Input/output error")

        def work(cut=cut):
            with disk.watched(base, cut):
                publish(new, str(base))

        if kind == "kill":
            assert in_a_process(work) == -signal.SIGKILL
        else:
            with pytest.raises(OSError, match="Input/output error"):
                work()
        if resolve(str(base)) == served:
            assert not finished
        else:
            finished.append(index)
        is_new = bool(finished)
        expected = versions(str(base)).complete[-1] if is_new else served
        check_served(str(base), expected, new if is_new else former, tmp_path / f"back {index}")
    assert finished
    assert finished[0] > total - 8  # what comes after the pointer: flushing folders, reading back
    check_nothing_stays_behind(str(base))


def test_killed_in_the_middle_of_a_file_the_former_version_is_served(former, new, tmp_path):
    base = str(tmp_path / "store")
    served = publish(former, base)

    def work():
        publish(
            new, base, report=lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done > total / 3 else None
        )

    assert in_a_process(work) == -signal.SIGKILL
    check_served(base, served, former, tmp_path / "back")
    found = versions(base)
    assert len(found.leftovers) == 2  # the version's whole files, and the one that was growing
    assert sum(each.bytes for each in found.leftovers) > 1 << 20
    check_nothing_stays_behind(base)
