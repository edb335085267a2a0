"""Brings files from a folder, an http(s) server or any S3 store.

Where an S3 store is and who asks comes from the environment only, in AWS's own words: `AWS_ENDPOINT_URL`, `AWS_REGION`
(or `AWS_DEFAULT_REGION`), and `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`, or, where these are
not set, the file that `AWS_SHARED_CREDENTIALS_FILE` names (as a mounted secret; its profile is `AWS_PROFILE` or
`default`). Without keys the store is asked anonymously. A certificate authority of one's own is the file that
`AWS_CA_BUNDLE` names, or `SSL_CERT_FILE`.

A download grows in `<destination>.partial` and is renamed when it is whole. It resumes, in this run or a later one,
where it broke off, provided the server vouches that the content is still the same (an ETag or a date, kept in
`<destination>.partial.tag`).
"""

import configparser
import contextlib
import hashlib
import http.client
import os
import re
import shutil
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from components import step
from components.step import UserError

BLOCK = 1 << 20
SCHEMES = ("a path", "file://", "https://", "http://", "s3://")
RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)

Result = TypeVar("Result")

# Told the bytes that are here and how many there will be (None where the server does not say).
Report = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a transfer is tried.

    Attributes:
        attempts: Tries without a single new byte before the transfer fails.
        pause: Seconds before the second try; doubled after each.
        timeout: Seconds without an answer after which a connection is given up.
    """

    attempts: int = 5
    pause: float = 1.0
    timeout: float = 30.0


def fetch(
    uri: str, destination: Path, sha256: str = "", report: Report | None = None, patience: Patience | None = None
) -> None:
    """Brings one file to `destination`; a file that stands there already is replaced when the new one is whole.

    Args:
        uri: A path, or a `file://`, `https://`, `http://` or `s3://bucket/key` URI.
        destination: Where the file shall stand. Its parent is created.
        sha256: What the content must hash to, hexadecimal; empty where it is not known.
        report: Called now and then with the progress.
        patience: Tries, pauses and timeouts of a download.

    Raises:
        UserError: The file does not exist, the server cannot be reached or refuses, or the content is not the
            expected one.
    """
    destination = Path(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    patience = patience or Patience()
    if urllib.parse.urlsplit(uri).scheme in ("", "file"):
        _copy(local_path(uri), destination, sha256)
        return
    download(_remote(uri, patience), shown(uri), destination, sha256.lower(), report or _silent, patience)


def look(uri: str, patience: Patience | None = None) -> str:
    """Looks whether there is something to read: a file, or below an `s3://…/` prefix at least one object.

    Returns:
        What changes with the content: the server's tag of it, or a digest of those below the prefix; empty for a path,
        and where the server has none.

    Raises:
        UserError: There is nothing, or the server cannot be reached or refuses.
    """
    patience = patience or Patience()
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme in ("", "file"):
        if not local_path(uri).exists():
            raise UserError(f"{uri}: there is nothing here")
        return ""
    if parts.scheme == "s3" and parts.path.endswith("/"):
        return retried(lambda: _tag_of_prefix(uri, patience), shown(uri), patience)
    remote = _remote(uri, patience)

    def tag() -> str:
        answer = remote.open(0, "")
        next(answer.blocks, b"")
        return answer.tag

    return retried(tag, shown(uri), patience)


def _tag_of_prefix(uri: str, patience: Patience) -> str:
    bucket, prefix = bucket_and_key(uri)
    with s3_errors(shown(uri)):
        listed = s3_client(patience).list_objects(bucket, prefix=prefix, recursive=True)
        objects = sorted((str(each.object_name), str(each.etag), each.size) for each in listed)
    if not objects:
        raise UserError(f"{shown(uri)}: no object lies below this prefix; check bucket, prefix and credentials")
    return hashlib.sha256(repr(objects).encode()).hexdigest()


def _remote(uri: str, patience: Patience) -> "_Remote":
    scheme = urllib.parse.urlsplit(uri).scheme
    if scheme in ("http", "https"):
        parts = urllib.parse.urlsplit(uri)
        if "@" in parts.netloc:
            raise UserError(f"{shown(uri)}: a user and a password are not sent; give a signed URL, or s3://")
        if parts.fragment:
            raise UserError(f"{shown(uri)}: what follows # is not asked for; leave it out, or write %23")
        return _HttpFile(uri, patience)
    if scheme == "s3":
        bucket, key = bucket_and_key(uri)
        return S3Object(s3_client(patience), bucket, key)
    raise UserError(f"{shown(uri)}: cannot read {scheme}://; use {', '.join(SCHEMES)}")


def fetch_prefix(
    uri: str, destination: Path, report: Report | None = None, patience: Patience | None = None
) -> list[str]:
    """Brings every object below `s3://bucket/prefix/` into the folder `destination`, which must not exist yet.

    Returns:
        The names of the files, relative to the prefix, sorted.

    Raises:
        UserError: There is no such object, an object's name leaves the folder, or a download fails.
    """
    bucket, prefix = bucket_and_key(uri if uri.endswith("/") else uri + "/")
    patience = patience or Patience()
    client = s3_client(patience)

    def list_names() -> list[str]:
        with s3_errors(shown(uri)):
            listed = client.list_objects(bucket, prefix=prefix, recursive=True)
            return sorted(str(entry.object_name)[len(prefix) :] for entry in listed)

    names = [name for name in retried(list_names, shown(uri), patience) if name and not name.endswith("/")]
    if not names:
        raise UserError(f"{shown(uri)}: no object lies below this prefix; check bucket, prefix and credentials")
    with step.publish(destination) as scratch:
        scratch.mkdir()
        for name in names:
            check_inside(name, shown(uri))
            fetch(f"s3://{bucket}/{prefix}{name}", scratch / name, report=report, patience=patience)
    return names


def join(base: str, name: str) -> str:
    """Returns the location of the file `name` under a path or URI; a query (as of a signed URL) stays at the end."""
    parts = urllib.parse.urlsplit(base)
    if not parts.scheme:
        return str(Path(base) / name)
    return urllib.parse.urlunsplit(parts._replace(path=parts.path.rstrip("/") + "/" + name))


def local_path(uri: str) -> Path:
    """Returns the path that a plain path or `file://` URI names."""
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme != "file":
        return Path(uri)
    if parts.netloc not in ("", "localhost"):
        raise UserError(f"{uri}: a file URI has three slashes before an absolute path (file:///folder)")
    if parts.query or parts.fragment:
        raise UserError(f"{uri}: in a file URI ? is written %3F, and # %23")
    return Path(urllib.parse.unquote(parts.path))


def shown(uri: str) -> str:
    """Returns a URI for messages: without user, password and query, which may hold secrets."""
    parts = urllib.parse.urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit(parts._replace(netloc=host, query="", fragment=""))


def _silent(_done: int, _total: int | None) -> None:
    pass


def _copy(source: Path, destination: Path, sha256: str) -> None:
    if not source.is_file():
        raise UserError(f"{source}: no such file; check the path")
    with step.publish(destination) as scratch:
        shutil.copyfile(source, scratch)
        _check(scratch, sha256.lower(), str(source))


def _check(file: Path, sha256: str, name: str) -> None:
    if sha256 and (found := step.sha256(file)) != sha256:
        raise UserError(f"{name}: the SHA-256 is {found}, expected {sha256}; the file is damaged or another one")


def check_inside(name: str, where: str) -> None:
    """Checks that the name of an object is a path that stays inside the folder it is written to."""
    if ".." in name.split("/") or name.startswith("/"):
        raise UserError(f"{where}: the object name {name!r} leaves the folder; rename the object")


class Interrupted(Exception):
    """A try failed in a way that another try may mend."""


def retried(work: Callable[[], Result], name: str, patience: Patience) -> Result:
    """Does some work again, with growing pauses, for as long as it is `Interrupted`.

    Raises:
        UserError: The last try was interrupted, too.
    """
    pause = patience.pause
    for _ in range(patience.attempts - 1):
        try:
            return work()
        except Interrupted:
            time.sleep(pause)
            pause *= 2
    try:
        return work()
    except Interrupted as error:
        raise UserError(f"{name}: {error}; gave up after {patience.attempts} tries") from error


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a remote sends: its content from `offset` on, the whole size, and a tag of this version of the content."""

    offset: int
    total: int | None
    tag: str
    blocks: Iterator[bytes]


class _Remote(Protocol):
    def open(self, offset: int, tag: str) -> _Answer:
        """Asks for the content from `offset` on, if it is still the version of `tag`; otherwise from the start."""

    def verify(self, file: Path) -> None:
        """Checks a whole file against what the remote says of it."""


def download(remote: _Remote, name: str, destination: Path, sha256: str, report: Report, patience: Patience) -> None:
    """Brings a remote file; see `fetch`. `name` is what messages call it."""
    partial = destination.with_name(destination.name + ".partial")
    tag_file = destination.with_name(destination.name + ".partial.tag")
    failures, pause = 0, patience.pause
    while True:
        size = partial.stat().st_size if partial.exists() and tag_file.exists() else 0
        try:
            _append(remote, partial, tag_file, report)
            break
        except Interrupted as error:
            grown = partial.exists() and tag_file.exists() and partial.stat().st_size > size
            failures = 1 if grown else failures + 1
            pause = patience.pause if grown else pause
            if failures >= patience.attempts:
                raise UserError(f"{name}: {error}; gave up after {failures} tries, run again to resume") from error
            time.sleep(pause)
            pause *= 2
    try:
        remote.verify(partial)
        _check(partial, sha256, name)
    except UserError:
        partial.unlink()
        raise
    finally:
        tag_file.unlink(missing_ok=True)
    partial.replace(destination)


def _append(remote: _Remote, partial: Path, tag_file: Path, report: Report) -> None:
    """Makes one try; returns when the partial file is whole."""
    tag = tag_file.read_text(encoding="utf-8") if tag_file.exists() and partial.exists() else ""
    answer = remote.open(partial.stat().st_size if tag else 0, tag)
    done = answer.offset
    # Without a tag nobody can say later whether the content is still the same: then the next try starts anew.
    if answer.tag:
        tag_file.write_text(answer.tag, encoding="utf-8")
    else:
        tag_file.unlink(missing_ok=True)
    with partial.open("r+b" if done else "wb") as stream:
        stream.seek(done)
        stream.truncate()
        report(done, answer.total)
        for block in answer.blocks:
            stream.write(block)
            done += len(block)
            report(done, answer.total)
    if answer.total is not None and done != answer.total:
        raise Interrupted(f"the connection ended after {done} of {answer.total} bytes")


class _HttpFile:
    """A file on an http(s) server."""

    def __init__(self, url: str, patience: Patience) -> None:
        self._url = url
        self._timeout = patience.timeout

    def open(self, offset: int, tag: str) -> _Answer:
        headers = {"Accept-Encoding": "identity", "User-Agent": "gridbox"}
        if offset:
            headers |= {"Range": f"bytes={offset}-", "If-Range": tag}
        try:
            response = urllib.request.urlopen(  # the scheme is http or https
                urllib.request.Request(self._url, headers=headers), timeout=self._timeout
            )
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and offset:  # the partial file is no part of what is there now
                return self.open(0, "")
            if error.code in RETRIED_STATUS:
                raise Interrupted(f"the server answers {error.code} {error.reason}") from error
            raise UserError(f"{shown(self._url)}: the server answers {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise Interrupted(_reason(error)) from error
        start = self._start(response)
        length = response.headers.get("Content-Length")
        total = start + int(length) if length and length.isdecimal() else None
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        return _Answer(start, total, "" if tag.startswith("W/") else tag, _blocks(response))

    def _start(self, response: Any) -> int:  # noqa: ANN401 - urllib's answer has no public type
        if response.status != 206:
            return 0  # the whole content: the server ignores ranges, or the content has changed
        unit, _, span = response.headers.get("Content-Range", "").partition(" ")
        first = span.partition("-")[0]
        if unit != "bytes" or not first.isdecimal():
            raise UserError(f"{shown(self._url)}: the server answers a range without saying which; fetch it elsewhere")
        return int(first)

    def verify(self, file: Path) -> None:
        """HTTP says nothing more than the size."""


def _blocks(response: Any) -> Iterator[bytes]:  # noqa: ANN401 - urllib's or urllib3's answer
    try:
        with response:
            while block := response.read(BLOCK):
                yield block
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """Says in a few words why a connection failed."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, socket.gaierror):
        return f"the server's name cannot be resolved ({cause.strerror})"
    if isinstance(cause, TimeoutError):
        return "the server does not answer in time"
    return str(cause) or type(cause).__name__


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Splits `s3://bucket/key`.

    Raises:
        UserError: It is no such URI, or it holds a user or a password.
    """
    parts = urllib.parse.urlsplit(uri, allow_fragments=False)
    key = parts.path.removeprefix("/") + (f"?{parts.query}" if parts.query else "")
    if parts.scheme != "s3" or not parts.netloc:
        raise UserError(f"{shown(uri)}: not an S3 location; write s3://bucket/key")
    if "@" in parts.netloc:
        raise UserError(f"{shown(uri)}: credentials do not belong into a URI; set AWS_ACCESS_KEY_ID and its secret")
    if ":" in parts.netloc:
        raise UserError(f"{shown(uri)}: the first part is the bucket, which has no port; set AWS_ENDPOINT_URL")
    return parts.netloc, key


def s3_endpoint(url: str, name: str) -> urllib.parse.SplitResult:
    """Takes the address of an S3 store apart.

    Raises:
        UserError: It is none, or holds more than scheme, host and port, which nobody would look at.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        raise UserError(f"{name}: must be http://host:port or https://host")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise UserError(f"{name}: must be {parts.scheme}://{parts.netloc} alone, S3 knows no path there")
    return parts


def s3_client(patience: Patience) -> Any:  # noqa: ANN401 - minio ships no types for what it returns
    """Returns a `minio.Minio` for the store that the environment names. It makes no tries of its own.

    Raises:
        UserError: The environment is incomplete or wrong.
    """
    import urllib3
    from minio import Minio

    endpoint = s3_endpoint(os.environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com", "AWS_ENDPOINT_URL")
    # Without a file of one's own OpenSSL takes SSL_CERT_FILE or the system's authorities.
    authorities = os.environ.get("AWS_CA_BUNDLE") or None
    if authorities and not Path(authorities).is_file():
        raise UserError(f"AWS_CA_BUNDLE: {authorities} is no file; name the PEM file of the certificate authority")
    access_key, secret_key, session_token = _credentials()
    return Minio(
        endpoint=endpoint.netloc,
        access_key=access_key,
        secret_key=secret_key,
        session_token=session_token,
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None,
        secure=endpoint.scheme == "https",
        # The tries are ours to count; the client's own would multiply them.
        http_client=urllib3.PoolManager(
            timeout=urllib3.Timeout(patience.timeout), retries=False, ca_certs=authorities, maxsize=10
        ),
    )


def _credentials() -> tuple[str | None, str | None, str | None]:
    """Returns access key, secret key and session token, or three times None for anonymous access."""
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    found, where = {name: os.environ.get(name.upper()) for name in names}, "the environment"
    file = os.environ.get("AWS_SHARED_CREDENTIALS_FILE")
    if file and not (found[names[0]] or found[names[1]]):
        profile = os.environ.get("AWS_PROFILE") or "default"
        where = f"AWS_SHARED_CREDENTIALS_FILE ({file}, profile {profile})"
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read_string(Path(file).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, configparser.Error) as error:
            # The parser's own words quote the line, which may be the secret.
            raise UserError(f"{where}: {type(error).__name__}; write an INI file as AWS's tools do") from None
        found = {name: parser.get(profile, name, fallback=None) for name in names}
        if not found[names[0]]:
            raise UserError(f"{where}: aws_access_key_id is missing")
    if bool(found[names[0]]) != bool(found[names[1]]):
        raise UserError(f"{where}: only one of access key id and secret access key is set; give both or neither")
    access_key, secret_key, session_token = (found[name] or None for name in names)
    return access_key, secret_key, session_token


# What S3 says where the next try may go better, beside the HTTP statuses of RETRIED_STATUS.
_RETRIED_CODES = ("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "BadDigest", "IncompleteBody")


@contextlib.contextmanager
def s3_errors(name: str) -> Iterator[None]:
    """Turns the client's exceptions into one line, or into another try where that may help."""
    from xml.etree.ElementTree import ParseError

    import urllib3
    from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

    try:
        yield
    except S3Error as error:
        if error.code in _RETRIED_CODES or error.response.status in RETRIED_STATUS:
            raise Interrupted(f"the store answers {error.code} ({error.response.status})") from error
        said = " ".join(f"{error.code} ({error.message})".split())
        raise UserError(f"{name}: the store answers {said}; check bucket, key and credentials") from error
    except (ServerError, InvalidResponseError) as error:
        status = getattr(error, "_status_code", None) or getattr(error, "_code", None)
        if status in RETRIED_STATUS:
            raise Interrupted(f"the store answers {status}") from error
        # What a server says that is none: a page of HTML, for example.
        raise UserError(f"{name}: the answer ({status}) is not S3's; check AWS_ENDPOINT_URL") from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise UserError(
                f"{name}: the store's certificate is not trusted; name its authority's file in AWS_CA_BUNDLE"
            ) from error
        late = isinstance(error, (urllib3.exceptions.ReadTimeoutError, TimeoutError))
        problem = "does not answer in time" if late else f"cannot be reached ({type(error).__name__})"
        raise Interrupted(f"the store {problem}") from error
    except ParseError as error:
        raise Interrupted("the store's answer is no XML") from error
    except (MinioException, ValueError) as error:
        raise UserError(f"{name}: {' '.join(str(error).split())}") from error


class S3Object:
    """An object in an S3 store, as `download` wants it."""

    def __init__(self, client: Any, bucket: str, key: str) -> None:  # noqa: ANN401 - minio.Minio
        self._client, self._bucket, self._key = client, bucket, key
        self._md5 = ""

    def open(self, offset: int, tag: str) -> _Answer:
        """Asks for the object from `offset` on, if it is still the one of `tag`; otherwise from the start."""
        headers = {"If-Match": tag} if offset else {}
        try:
            with s3_errors(f"s3://{self._bucket}/{self._key}"):
                response = self._client.get_object(self._bucket, self._key, offset, request_headers=headers)
        except UserError as error:
            if offset and getattr(error.__cause__, "code", "") in ("PreconditionFailed", "InvalidRange"):
                return self.open(0, "")  # the object has changed since
            raise
        etag = response.headers.get("ETag", "")
        plain = etag.strip('"')
        # The ETag of an object uploaded in one part is its MD5, unless the store encrypts with a key of its own.
        encrypted = response.headers.get("x-amz-server-side-encryption", "AES256") != "AES256"
        self._md5 = plain if re.fullmatch(r"[0-9a-f]{32}", plain) and not encrypted else ""
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length else None
        return _Answer(offset, total, etag, self._blocks(response))

    def _blocks(self, response: Any) -> Iterator[bytes]:  # noqa: ANN401 - urllib3.HTTPResponse
        try:
            with s3_errors(f"s3://{self._bucket}/{self._key}"):
                yield from response.stream(BLOCK)
        finally:
            response.close()
            response.release_conn()

    def verify(self, file: Path) -> None:
        """Checks the file against the object's MD5, where the store has one."""
        if not self._md5:
            return
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != self._md5:
            raise UserError(
                f"s3://{self._bucket}/{self._key}: the MD5 is {found}, the store says {self._md5}; try again"
            )
