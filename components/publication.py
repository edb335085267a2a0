"""Publishes a folder as an immutable version below a base, in any S3 store or in a folder, and reads it back.

    <base>/versions/<version>/…      the folder's files, never changed after
    <base>/records/<version>.json    written when all of them are there and verified: names, sizes, SHA-256
    <base>/current.json              the pointer to the version that is served, written last
    <base>/evidence/<version>.npz    what the score of a deployed version rests on
    <base>/held/<holder>.json        versions that a deployment serves or can go back to

A reader resolves the pointer. A publish that ends before the pointer is written leaves the former version served; what
it leaves behind (a version without a record) is listed, and removed by `prune`.

Every object is verified by reading it back and hashing it. That costs its size once more, and is the one check that
holds on every store: S3's checksum headers are optional, differ between servers, and for an upload in parts are a
checksum of checksums.

Versions have unique names, so publishers never touch one another's objects. The last one to write the pointer wins,
unless it names the version that it expects there (`expected`). This comparison is atomic if the store enforces
conditional writes (AWS, MinIO, SeaweedFS, folders). With other stores two publishers may both find what they expect
between reading and writing the pointer; then the last one wins again.
"""

import json
import re
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components import step, store
from components.objects import Entry, Objects, open_objects
from components.step import UserError
from components.store import RETRY, Report, RetryPolicy, TransientError

LAYOUT_VERSION = 1
POINTER = "current.json"
VERSIONS, RECORDS, EVIDENCE, HELD = "versions/", "records/", "evidence/", "held/"
_VERSION = re.compile(r"\d{8}-\d{6}-\d{6}-[0-9a-f]{8}")
# Keeps the pointer small. Older versions are judged by their age, see `prune`.
_FORMER_NAMED = 100
YOUNG = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Published:
    """A version.

    Attributes:
        version: Its unique name; names sort by the time (of the publisher's clock) at which publishing began.
        uri: Where its files lie; ends with `/`. Neither they nor their number ever change.
        digest: SHA-256 over the names, sizes and SHA-256 of its files: equal for equal content.
        manifest: SHA-256 of its `manifest.json`, empty where it has none.
        kind: What the manifest says it is, empty where it has none.
        bytes: Size of its files.
        objects: Number of its files.
        time: When it was verified as a whole, UTC, ISO 8601.
    """

    version: str
    uri: str
    digest: str
    manifest: str
    kind: str
    bytes: int
    objects: int
    time: str


# The fields of `Published` that records and the pointer hold besides the version.
_RECORDED: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("digest", "manifest", "kind", "time"), str),
    **dict.fromkeys(("bytes", "objects"), int),
}


@dataclass(frozen=True, slots=True)
class Leftover:
    """The objects of a publish or prune that was interrupted or is still running.

    Attributes:
        name: `versions/<version>/`, or the unfinished file.
        entries: The objects and unfinished uploads.
    """

    name: str
    entries: tuple[Entry, ...]

    @property
    def bytes(self) -> int:
        """Bytes of its objects; an S3 store does not say how large unfinished uploads are."""
        return sum(entry.size for entry in self.entries)

    @property
    def modified(self) -> datetime:
        """When something was last added to it."""
        return max(entry.modified for entry in self.entries)


@dataclass(frozen=True, slots=True)
class Versions:
    """What lies below a base.

    Attributes:
        served: The version that the pointer names, or None.
        complete: All whole versions, oldest first.
        leftovers: The objects of no complete version.
    """

    served: Published | None
    complete: tuple[Published, ...]
    leftovers: tuple[Leftover, ...]


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `prune` did.

    Attributes:
        versions: Versions that are gone.
        leftovers: Names of the left-overs that are gone.
        bytes: Their size together.
        spared: Versions and left-overs that were kept because they are too young.
    """

    versions: tuple[str, ...]
    leftovers: tuple[str, ...]
    bytes: int
    spared: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class _Pointer:
    published: Published
    former: tuple[str, ...]
    tag: str


def publish(
    source: Path,
    base: str,
    *,
    serve: bool = True,
    expected: str | None = None,
    report: Report | None = None,
    retry: RetryPolicy = RETRY,
) -> Published:
    """Publishes a folder and makes it the served version, all or nothing.

    Args:
        source: An artifact, a model repository, checkpoints: any folder of plain files.
        base: A path, `file:///folder` or `s3://bucket/prefix`. The bucket must exist.
        serve: Whether it becomes the served version; otherwise `point` does so later.
        expected: The version that must be served now for this one to replace it; empty if none must be. None replaces
            any version.
        report: Called with the bytes transferred and their total; each byte counts when sent and when read back.
        retry: Attempts, pauses and timeouts of a request.

    Raises:
        UserError: The folder cannot be published, another version is served than expected, or the store refuses or
            cannot be reached. The former version is still served.
    """
    files = _inventory(Path(source))
    _check_apart(Path(source), base)
    objects = open_objects(base, retry)
    _check_expected(objects.retried(lambda: _read_pointer(objects)), expected, objects)
    version = f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{uuid.uuid4().hex[:8]}"
    _send(objects, Path(source), files, f"{VERSIONS}{version}/", report)
    published = _describe(Path(source), files, version, f"{objects.uri}{VERSIONS}{version}/")
    record = _document(published) | {"files": {file.name: [file.size, file.sha256] for file in files}}
    _write_verified(objects, f"{RECORDS}{version}.json", record)
    if serve:
        _point(objects, published, expected)
    return published


def point(base: str, version: str, retry: RetryPolicy = RETRY) -> Published:
    """Makes a published version the served one.

    Raises:
        UserError: There is no such version, or the store refuses or cannot be reached.
    """
    objects = open_objects(base, retry)
    published, _ = _read_record(objects, version)
    pointer = objects.retried(lambda: _read_pointer(objects))
    _point(objects, published, None, bool(pointer and version in pointer.former))
    return published


def hold(base: str, holder: str, versions: Iterable[str], retry: RetryPolicy = RETRY) -> None:
    """Makes `prune` keep versions, instead of those that the holder named before.

    Args:
        base: As in `publish`.
        holder: Who needs them, for example `namespace.name` of a deployment.
        versions: Their names.
        retry: Attempts, pauses and timeouts of a request.

    Raises:
        UserError: The store refuses or cannot be reached.
    """
    objects = open_objects(base, retry)
    document = {"layout": LAYOUT_VERSION, "versions": sorted(versions)}
    _write_verified(objects, f"{HELD}{holder}.json", document)


def resolve(base: str, retry: RetryPolicy = RETRY) -> Published:
    """Returns the served version.

    Raises:
        UserError: Nothing is published there, or the store cannot be reached.
    """
    return _served(open_objects(base, retry))


def fetch_published(
    base: str,
    destination: Path,
    version: str = "",
    *,
    report: Report | None = None,
    retry: RetryPolicy = RETRY,
) -> Published:
    """Fetches the served version, or the named one, into a new folder and verifies every file.

    Raises:
        UserError: There is no such version, the folder exists, or something is damaged. Nothing is left at
            `destination`.
    """
    objects = open_objects(base, retry)
    if Path(destination).exists():
        raise UserError(f"{destination}: exists already; name a new folder")
    served = None if version else _served(objects)
    published, files = _read_record(objects, served.version if served else version)
    if served and served.digest != published.digest:
        raise UserError(f"{objects.uri}{POINTER}: the digest is not that of its version; publish again")
    tally = _Tally(published.bytes, report)
    with step.publish(Path(destination)) as scratch:
        scratch.mkdir()
        for file in files:
            objects.fetch(f"{VERSIONS}{published.version}/{file.name}", scratch / file.name, file.sha256, tally.add)
    return published


def versions(base: str, retry: RetryPolicy = RETRY) -> Versions:
    """Returns the versions below a base, none if nothing was ever published.

    Raises:
        UserError: A record is damaged, or the store cannot be reached.
    """
    return _survey(open_objects(base, retry))[0]


def prune(base: str, keep: int, *, young: timedelta = YOUNG, retry: RetryPolicy = RETRY) -> Pruned:
    """Removes old versions and left-overs.

    The served version, those that a deployment holds, and the newest `keep` stay. So does what may belong to a running
    publish, as long as it is younger than `young`: versions without a record, and versions that were never served.

    Args:
        base: As in `publish`.
        keep: How many versions to keep, at least one.
        young: Age above which a publish counts as interrupted; the clocks of the store, of the publishers and of this
            machine must differ by less.
        retry: Attempts, pauses and timeouts of a request.

    Raises:
        UserError: The store refuses or cannot be reached; what was removed before stays removed.
    """
    if keep < 1:
        raise UserError(f"keep {keep}: at least one version must stay")
    objects = open_objects(base, retry)
    found, pointer = _survey(objects)
    started = datetime.now(UTC) - young
    needed = _held(objects) | ({found.served.version} if found.served else set())
    old = [each for each in found.complete[:-keep] if each.version not in needed]
    superseded = pointer.former if pointer else ()
    gone = [each for each in old if each.version in superseded or datetime.fromisoformat(each.time) < started]
    stale = [each for each in found.leftovers if each.modified < started]
    for published in gone:
        _remove_version(objects, published.version)
    for leftover in stale:
        _remove(objects, leftover.entries)
    return Pruned(
        versions=tuple(each.version for each in gone),
        leftovers=tuple(each.name for each in stale),
        bytes=sum(each.bytes for each in gone) + sum(each.bytes for each in stale),
        spared=(
            *(each.version for each in old if each not in gone),
            *(each.name for each in found.leftovers if each not in stale),
        ),
    )


# --- What is published -----------------------------------------------------------------------------------------------


def _inventory(source: Path) -> list[_File]:
    """Returns the folder's files with their checksums, sorted by name."""
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; publish the folder of an artifact or a model repository")
    paths = sorted(source.rglob("*"))
    files = [_file(path, path.relative_to(source).as_posix()) for path in paths if not _is_folder(path)]
    if not files:
        raise UserError(f"{source}: the folder is empty; there is nothing to publish")
    if any(Path(file.name).name == "config.pbtxt" for file in files):
        for file in files:
            if not file.size:
                raise UserError(
                    f"{source / file.name}: KServe skips empty files of a model repository; write some text into it"
                )
    _check_manifest(source, {file.name: file.sha256 for file in files})
    return files


def _check_apart(source: Path, base: str) -> None:
    if urlsplit(base).scheme in ("", "file") and store.local_path(base).resolve().is_relative_to(source.resolve()):
        raise UserError(f"{base}: lies inside {source}, which is to be published there; name a folder beside it")


def _is_folder(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    if not any(path.iterdir()):
        raise UserError(
            f"{path}: an object store keeps no empty folder; put a file with some text into it or remove it"
        )
    return True


def _file(path: Path, name: str) -> _File:
    if path.is_symlink() or not path.is_file():
        raise UserError(f"{path}: only plain files are published; replace the link by a copy")
    if not name.isprintable():
        raise UserError(f"{str(path)!r}: unprintable characters in the name; rename the file")
    return _File(name, path.stat().st_size, step.sha256(path))


def _check_manifest(source: Path, found: Mapping[str, str]) -> None:
    """Checks an artifact against its own manifest: it may be damaged, or unfinished."""
    for name, wanted in (_manifest(source).get("files") or {}).items():
        if name not in found:
            raise UserError(f"{source / name}: missing, but the manifest names it; make the artifact again")
        if wanted and found[name] != wanted:
            raise UserError(f"{source / name}: differs from what the manifest says; make the artifact again")


def _manifest(source: Path) -> dict[str, Any]:
    """Returns the artifact's manifest, empty where the folder has none."""
    file = source / step.MANIFEST
    if not file.is_file():
        return {}
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        return step.read_manifest(source, manifest["kind"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a readable manifest: {error}") from error


def _describe(source: Path, files: list[_File], version: str, uri: str) -> Published:
    return Published(
        version=version,
        uri=uri,
        digest=_digest(files),
        manifest=next((file.sha256 for file in files if file.name == step.MANIFEST), ""),
        kind=_manifest(source).get("kind", ""),
        bytes=sum(file.size for file in files),
        objects=len(files),
        time=datetime.now(UTC).isoformat(timespec="microseconds"),
    )


def _digest(files: Iterable[_File]) -> str:
    listed = sorted([file.name, file.size, file.sha256] for file in files)
    return sha256(json.dumps(listed, separators=(",", ":")).encode()).hexdigest()


# --- Sending and verifying -------------------------------------------------------------------------------------------


class _Tally:
    """Counts transferred bytes for a report."""

    def __init__(self, total: int, report: Report | None) -> None:
        self.done = 0
        self._total, self._report = total, report

    def add(self, count: int) -> None:
        self.done += count
        if self._report:
            self._report(self.done, self._total)


def _send(objects: Objects, source: Path, files: list[_File], prefix: str, report: Report | None) -> None:
    tally = _Tally(2 * sum(file.size for file in files), report)
    for file in files:
        name = prefix + file.name
        objects.retried(partial(_send_file, objects, source / file.name, file, name, tally, tally.done), name)
    sent = {prefix + file.name: file.size for file in files}
    found = objects.retried(lambda: objects.listed(prefix), prefix)
    if {entry.name: entry.size for entry in found} != sent:
        raise UserError(
            f"{objects.uri}{prefix}: the store lists {len(found)} objects other than the {len(sent)} it was sent;"
            " is something else writing or removing there?"
        )


def _send_file(objects: Objects, path: Path, file: _File, name: str, tally: _Tally, start: int) -> None:
    """Uploads a file and reads it back; `start` is the tally before the first attempt."""
    tally.done = start
    if path.stat().st_size == file.size:
        objects.upload(name, path, tally.add)
        if objects.sha256(name, tally.add) == file.sha256:
            return
        if step.sha256(path) == file.sha256:
            raise TransientError("what the store gives back is not what it was sent")
    raise UserError(f"{path}: changed while it was published; publish it when it is finished")


def _write_verified(objects: Objects, name: str, document: Mapping[str, Any]) -> None:
    content = _json(document)

    def write() -> None:
        objects.write(name, content)
        found = objects.read(name)
        if found is None or found[0] != content:
            raise TransientError("what the store gives back is not what it was sent")

    objects.retried(write, name)


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def _document(published: Published) -> dict[str, Any]:
    # Without the URI: a base may be copied elsewhere, or be known under another name.
    return {"layout": LAYOUT_VERSION} | {name: getattr(published, name) for name in ("version", *_RECORDED)}


# --- The pointer -----------------------------------------------------------------------------------------------------


def _point(objects: Objects, published: Published, expected: str | None, was_served: bool = False) -> None:
    """Makes a version the served one, again if it `was_served` before, and reads the pointer back."""

    def write() -> bool:
        """Makes one attempt; returns whether the version is served, or was until another publisher replaced it."""
        current = _read_pointer(objects)
        # The answer to an earlier attempt may have been lost, and others may have published since.
        if current and (
            current.published.version == published.version or (not was_served and published.version in current.former)
        ):
            return True
        _check_expected(current, expected, objects)
        former = (*current.former, current.published.version)[-_FORMER_NAMED:] if current else ()
        content = _json(_document(published) | {"former": former})
        written = objects.replace(POINTER, content, current.tag if current else None)
        now = _read_pointer(objects)
        if (now.tag if now else None) == (current.tag if current else None):
            raise TransientError("the store has not taken the new pointer")
        return written

    while not objects.retried(write, POINTER):
        pass  # another publisher was faster: read again what is served now


def _check_expected(current: _Pointer | None, expected: str | None, objects: Objects) -> None:
    served = current.published.version if current else ""
    if expected is not None and served != expected:
        raise UserError(
            f"{objects.uri}: version {served or '(none)'} is served, expected {expected or '(none)'};"
            " another publish came first, look at it and publish again"
        )


def _read_pointer(objects: Objects) -> _Pointer | None:
    found = objects.read(POINTER)
    if found is None:
        return None
    document = _parsed(found[0], objects.uri + POINTER)
    try:
        former = tuple(str(version) for version in document["former"])
        return _Pointer(_published(document, objects), former, found[1])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{objects.uri}{POINTER}: not a pointer to a version ({error!r})") from error


def _served(objects: Objects) -> Published:
    pointer = objects.retried(lambda: _read_pointer(objects))
    if pointer is None:
        raise UserError(f"{objects.uri}: nothing is published here ({POINTER} is missing); check the location")
    return pointer.published


def _parsed(content: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(content)
        layout = document["layout"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: not written by a publish of gridbox ({error!r})") from error
    if layout != LAYOUT_VERSION:
        raise UserError(f"{where}: layout {layout}, this release reads {LAYOUT_VERSION}")
    return dict(document)


def _published(document: Mapping[str, Any], objects: Objects) -> Published:
    version = _checked(document["version"])
    recorded = {name: kind(document[name]) for name, kind in _RECORDED.items()}
    return Published(version=version, uri=f"{objects.uri}{VERSIONS}{version}/", **recorded)


def _checked(version: object) -> str:
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise UserError(f"{version}: not the name of a version; `gridbox store list` names them")
    return version


# --- What lies there -------------------------------------------------------------------------------------------------


def _read_record(objects: Objects, version: str) -> tuple[Published, list[_File]]:
    name = f"{RECORDS}{_checked(version)}.json"
    found = objects.retried(lambda: objects.read(name), name)
    if found is None:
        raise UserError(f"{objects.uri}: there is no version {version}; `gridbox store list` names those there are")
    document = _parsed(found[0], objects.uri + name)
    try:
        published = _published(document, objects)
        files = [_File(each, int(size), str(digest)) for each, (size, digest) in document["files"].items()]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{objects.uri}{name}: not the record of a version ({error!r})") from error
    if _digest(files) != published.digest or published.version != version:
        raise UserError(f"{objects.uri}{name}: damaged, it contradicts itself; publish again")
    for file in files:
        store.check_inside(file.name, objects.uri + name)
    return published, files


def _survey(objects: Objects) -> tuple[Versions, _Pointer | None]:
    # Objects before records, records before the pointer: what a running publish completes counts as complete.
    entries = objects.retried(lambda: [*objects.listed(VERSIONS), *objects.unfinished(VERSIONS)])
    records = objects.retried(lambda: objects.listed(RECORDS))
    names = [entry.name.removeprefix(RECORDS).removesuffix(".json") for entry in records]
    complete = [_read_record(objects, name)[0] for name in names if _VERSION.fullmatch(name)]
    pointer = objects.retried(lambda: _read_pointer(objects))
    found = Versions(pointer.published if pointer else None, tuple(complete), _leftovers(entries, names))
    return found, pointer


def _held(objects: Objects) -> set[str]:
    """Returns the versions that deployments serve or can go back to."""
    held: set[str] = set()
    for entry in objects.retried(lambda: objects.listed(HELD)):
        found = objects.retried(partial(objects.read, entry.name), entry.name)
        if found is not None:
            held |= {str(version) for version in _parsed(found[0], objects.uri + entry.name).get("versions", [])}
    return held


def _leftovers(entries: Iterable[Entry], complete: Iterable[str]) -> tuple[Leftover, ...]:
    groups = defaultdict[str, list[Entry]](list)
    for entry in entries:
        name = entry.name
        if name.startswith(VERSIONS):
            version = name.removeprefix(VERSIONS).partition("/")[0]
            if not _VERSION.fullmatch(version) or (version in complete and not entry.unfinished):
                continue  # not written by a publish, or part of a complete version
            name = f"{VERSIONS}{version}/"
        groups[name].append(entry)
    return tuple(Leftover(name, tuple(group)) for name, group in sorted(groups.items()))


def _remove_version(objects: Objects, version: str) -> None:
    # The record goes first: without it the rest is a left-over, should this be interrupted.
    _remove(objects, [Entry(f"{RECORDS}{version}.json", 0, datetime.now(UTC))])
    files = objects.retried(lambda: objects.listed(f"{VERSIONS}{version}/"))
    _remove(objects, [*files, Entry(f"{EVIDENCE}{version}.npz", 0, datetime.now(UTC))])


def _remove(objects: Objects, entries: Iterable[Entry]) -> None:
    for entry in entries:
        objects.retried(partial(objects.remove, entry), entry.name)
