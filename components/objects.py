"""Objects below a base, which is a folder or a prefix of an S3 bucket: written whole, read back, listed, removed.

In both, an object appears complete or not at all. A bucket guarantees that; in a folder, a file is written in
`<base>/.incoming/`, flushed to the disk and renamed. Every method makes one attempt and may raise
`store.TransientError`; `Objects.retried` makes more of them.
"""

import contextlib
import fcntl
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar
from urllib.parse import quote, urlsplit

from components import store
from components.step import UserError
from components.store import BLOCK, RetryPolicy

# Bytes of a part of a larger object; S3 allows 10,000 parts of 5 MiB or more.
PART_BYTES = 16 << 20
MAXIMUM_PARTS = 10_000

Result = TypeVar("Result")

# Called with the number of further bytes transferred.
Moved = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """An object, or the rest of an interrupted write.

    Attributes:
        name: Relative to the base.
        size: Bytes; 0 for an unfinished multipart upload, whose size S3 does not tell.
        modified: When it was last written, in UTC.
        unfinished: Empty for an object; otherwise what is needed to discard it.
    """

    name: str
    size: int
    modified: datetime
    unfinished: str = ""


class Objects(Protocol):
    """The objects below a base. Names are relative to it, with `/` between their parts.

    Attributes:
        uri: The base as a URI that ends with `/`; names that need no quoting may be appended.
        retry: Attempts, pauses and timeouts of a request.
    """

    uri: str
    retry: RetryPolicy

    def retried(self, work: Callable[[], Result], name: str = "") -> Result:
        """Does some work with several attempts; errors name the object."""
        return store.retried(work, self.uri + name, self.retry)

    def upload(self, name: str, file: Path, moved: Moved) -> None:
        """Writes an object from a file."""

    def write(self, name: str, content: bytes) -> None:
        """Writes a small object."""

    def replace(self, name: str, content: bytes, tag: str | None) -> bool:
        """Writes a small object if the present one still has this tag, or, with None, if there is none.

        A store without conditional writes writes in any case.

        Returns:
            Whether it was written.
        """

    def read(self, name: str) -> tuple[bytes, str] | None:
        """Returns a small object and the tag of its content; None if there is no such object."""

    def sha256(self, name: str, moved: Moved) -> str:
        """Reads an object back and returns its SHA-256 in hexadecimal."""

    def fetch(self, name: str, destination: Path, sha256: str, moved: Moved) -> None:
        """Fetches an object as `store.fetch` does, with several attempts."""

    def listed(self, prefix: str) -> list[Entry]:
        """Returns the objects whose names start with `prefix`, which ends with `/`, sorted by name."""

    def unfinished(self, prefix: str) -> list[Entry]:
        """Returns the rest of interrupted writes below `prefix`, as far as it is known."""

    def remove(self, entry: Entry) -> None:
        """Removes an object or the rest of an interrupted write, if it is still there."""


def open_objects(base: str, retry: RetryPolicy = store.RETRY) -> Objects:
    """Returns the objects below a path, a `file://` folder or `s3://bucket/prefix`; nothing needs to exist yet.

    Raises:
        UserError: It is another kind of location, or the environment does not lead to the store.
    """
    scheme = urlsplit(base).scheme
    if scheme == "s3":
        bucket, key = store.bucket_and_key(base)
        prefix = "/".join(part for part in key.split("/") if part)
        return _BucketObjects(store.s3_client(retry), bucket, prefix + "/" if prefix else "", retry)
    if scheme not in ("", "file"):
        raise UserError(f"{store.redacted(base)}: cannot publish to {scheme}://; use a path, file:// or s3://")
    return _FolderObjects(store.local_path(base).expanduser().absolute(), retry)


def _digest(blocks: Iterator[bytes], moved: Moved) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
        moved(len(block))
    return digest.hexdigest()


class _FolderObjects(Objects):
    """Objects that are the files of a folder."""

    def __init__(self, base: Path, retry: RetryPolicy) -> None:
        self.uri, self.retry = f"file://{quote(str(base))}/", retry
        self._base = base
        self._incoming = base / ".incoming"

    def upload(self, name: str, file: Path, moved: Moved) -> None:
        with file.open("rb") as stream:
            self._place(name, iter(lambda: stream.read(BLOCK), b""), moved)

    def write(self, name: str, content: bytes) -> None:
        self._place(name, iter([content]), lambda _count: None)

    def replace(self, name: str, content: bytes, tag: str | None) -> bool:
        self._base.mkdir(parents=True, exist_ok=True)
        with (self._base / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed or the process ends
            present = self.read(name)
            if (present[1] if present else None) != tag:
                return False
            self.write(name, content)
        return True

    def read(self, name: str) -> tuple[bytes, str] | None:
        try:
            content = (self._base / name).read_bytes()
        except FileNotFoundError:
            return None
        return content, hashlib.sha256(content).hexdigest()

    def sha256(self, name: str, moved: Moved) -> str:
        with (self._base / name).open("rb") as stream:
            return _digest(iter(lambda: stream.read(BLOCK), b""), moved)

    def fetch(self, name: str, destination: Path, sha256: str, moved: Moved) -> None:
        store.fetch(str(self._base / name), destination, sha256)
        moved(destination.stat().st_size)

    def listed(self, prefix: str) -> list[Entry]:
        return self._files(self._base / prefix)

    def unfinished(self, prefix: str) -> list[Entry]:
        del prefix  # here the name of a file says nothing of what it was to become
        return [
            Entry(entry.name, entry.size, entry.modified, unfinished="file") for entry in self._files(self._incoming)
        ]

    def remove(self, entry: Entry) -> None:
        file = self._base / entry.name
        file.unlink(missing_ok=True)
        for folder in file.relative_to(self._base).parents[:-1]:
            try:
                (self._base / folder).rmdir()
            except OSError:
                return  # not empty

    def _files(self, folder: Path) -> list[Entry]:
        entries = []
        for path in sorted(folder.rglob("*")):
            try:
                status = path.stat()
            except FileNotFoundError:  # removed or renamed concurrently
                continue
            if path.is_file():
                modified = datetime.fromtimestamp(status.st_mtime, UTC)
                entries.append(Entry(path.relative_to(self._base).as_posix(), status.st_size, modified))
        return sorted(entries, key=lambda entry: entry.name)

    def _place(self, name: str, blocks: Iterator[bytes], moved: Moved) -> None:
        target, scratch = self._base / name, self._incoming / uuid.uuid4().hex
        self._incoming.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with scratch.open("xb") as stream:
                for block in blocks:
                    stream.write(block)
                    moved(len(block))
                stream.flush()
                os.fsync(stream.fileno())
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)
        self._flush_folders(target.parent)

    def _flush_folders(self, folder: Path) -> None:
        """Flushes the folders up to the base; only then does a renamed file survive a power cut."""
        while folder.is_relative_to(self._base):
            descriptor = os.open(folder, os.O_RDONLY)
            with contextlib.suppress(OSError):  # network file systems refuse it for a folder
                os.fsync(descriptor)
            os.close(descriptor)
            folder = folder.parent


class _BucketObjects(Objects):
    """Objects below a prefix of an S3 bucket."""

    def __init__(self, client: Any, bucket: str, prefix: str, retry: RetryPolicy) -> None:  # noqa: ANN401 - minio.Minio
        self.uri, self.retry = f"s3://{bucket}/{prefix}", retry
        self._client, self._bucket, self._prefix = client, bucket, prefix

    def upload(self, name: str, file: Path, moved: Moved) -> None:
        size = file.stat().st_size
        part_size = max(PART_BYTES, -(-size // MAXIMUM_PARTS))
        with file.open("rb") as stream, self._errors(name):
            self._client.put_object(
                self._bucket, self._prefix + name, _CountedStream(stream, moved), size, part_size=part_size
            )

    def write(self, name: str, content: bytes) -> None:
        with self._errors(name):
            self._put(name, content, {})

    def replace(self, name: str, content: bytes, tag: str | None) -> bool:
        condition = {"If-None-Match": "*"} if tag is None else {"If-Match": tag}
        try:
            with self._errors(name):
                self._put(name, content, condition)
        except UserError as error:
            code = getattr(error.__cause__, "code", "")
            if code in ("PreconditionFailed", "ConditionalRequestConflict"):
                return False
            if code != "NotImplemented":
                raise
            self.write(name, content)
        return True

    def _put(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        # The public put_object lets no condition through.
        self._client._put_object(self._bucket, self._prefix + name, content, headers)

    def read(self, name: str) -> tuple[bytes, str] | None:
        try:
            with self._errors(name):
                response = self._client.get_object(self._bucket, self._prefix + name)
                with store.closing(response):
                    return response.read(), response.headers.get("ETag", "")
        except UserError as error:
            if getattr(error.__cause__, "code", "") == "NoSuchKey":
                return None
            raise

    def sha256(self, name: str, moved: Moved) -> str:
        with self._errors(name):
            response = self._client.get_object(self._bucket, self._prefix + name)
            with store.closing(response):
                return _digest(response.stream(BLOCK), moved)

    def fetch(self, name: str, destination: Path, sha256: str, moved: Moved) -> None:
        destination.parent.mkdir(parents=True, exist_ok=True)
        seen = 0

        def report(done: int, _total: int | None) -> None:
            nonlocal seen
            moved(done - seen)
            seen = done

        remote = partial(store.open_object, self._client, self._bucket, self._prefix + name)
        store.download(remote, self.uri + name, destination, sha256, report, self.retry)

    def listed(self, prefix: str) -> list[Entry]:
        with self._errors(prefix):
            found = self._client.list_objects(self._bucket, prefix=self._prefix + prefix, recursive=True)
            entries = [Entry(self._relative(each.object_name), each.size, each.last_modified) for each in found]
        return sorted(entries, key=lambda entry: entry.name)

    def unfinished(self, prefix: str) -> list[Entry]:
        """MinIO lists none (its API takes full names only) and discards them after a day."""
        entries: list[Entry] = []
        marker = None
        while True:
            try:
                with self._errors(prefix):
                    page = self._client._list_multipart_uploads(
                        self._bucket, prefix=self._prefix + prefix, key_marker=marker
                    )
            except UserError as error:
                if getattr(error.__cause__, "code", "") in ("NotImplemented", "MethodNotAllowed"):
                    return []
                raise
            entries += [
                Entry(self._relative(each.object_name), 0, each.initiated_time, unfinished=each.upload_id)
                for each in page.uploads
            ]
            if not page.is_truncated:
                return entries
            marker = page.next_key_marker

    def remove(self, entry: Entry) -> None:
        key = self._prefix + entry.name
        try:
            with self._errors(entry.name):
                if entry.unfinished:
                    self._client._abort_multipart_upload(self._bucket, key, entry.unfinished)
                else:
                    self._client.remove_object(self._bucket, key)
        except UserError as error:
            if getattr(error.__cause__, "code", "") not in ("NoSuchKey", "NoSuchUpload"):
                raise

    def _relative(self, key: object) -> str:
        return str(key)[len(self._prefix) :]

    def _errors(self, name: str) -> Any:  # noqa: ANN401 - a context manager
        return store.s3_errors(self.uri + name)


class _CountedStream:
    """A stream that reports how much of it has been read."""

    def __init__(self, stream: BinaryIO, moved: Moved) -> None:
        self._stream, self._moved = stream, moved

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        self._moved(len(block))
        return block
