"""Fetches files from a folder, an http(s) server or any S3 store.

The S3 store and its credentials come from the environment only, under AWS's names: `AWS_ENDPOINT_URL`, `AWS_REGION` (or
`AWS_DEFAULT_REGION`), and `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`, or, if these are not
set, the file that `AWS_SHARED_CREDENTIALS_FILE` names (as a mounted secret; its profile is `AWS_PROFILE` or `default`).
Without keys, access is anonymous. A private certificate authority is the file that `AWS_CA_BUNDLE` or `SSL_CERT_FILE`
names.

A download is written to `<destination>.partial` and renamed when it is complete. It resumes, in the same run or in a
later one, if the server confirms that the content has not changed (by an ETag or a date, kept in
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
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from components import step
from components.step import UserError

BLOCK = 1 << 20
SCHEMES = ("a path", "file://", "https://", "http://", "s3://")
RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)

Result = TypeVar("Result")

# Called with the bytes received and their total (None if the server does not say).
Report = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long a transfer is retried.

    Attributes:
        attempts: Attempts without a single new byte before the transfer fails.
        pause: Seconds before the second attempt; doubled after each.
        timeout: Seconds without an answer after which a connection is given up.
    """

    attempts: int = 5
    pause: float = 1.0
    timeout: float = 30.0


RETRY = RetryPolicy()


class TransientError(Exception):
    """An attempt failed in a way that another attempt may not."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """A remote file.

    Attributes:
        offset: Where the blocks start.
        total: Size of the whole file; None if it is not known.
        tag: Identifies this version of the content.
        blocks: The content from `offset` on.
        md5: Of the whole content, hexadecimal; empty if it is not known.
    """

    offset: int
    total: int | None
    tag: str
    blocks: Iterator[bytes]
    md5: str = ""


# Requests the content from an offset on, if it still has the tag; otherwise from the start.
Open = Callable[[int, str], _Answer]


def fetch(
    uri: str, destination: Path, sha256: str = "", report: Report | None = None, retry: RetryPolicy = RETRY
) -> None:
    """Fetches one file to `destination`; a file there is replaced when the new one is complete.

    Args:
        uri: A path, or a `file://`, `https://`, `http://` or `s3://bucket/key` URI.
        destination: The file to write. Its parent is created.
        sha256: The expected SHA-256, hexadecimal; empty if it is not known.
        report: Called with the progress.
        retry: Attempts, pauses and timeouts.

    Raises:
        UserError: The file does not exist, the server cannot be reached or refuses, or the content is not the
            expected one.
    """
    destination = Path(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    if urllib.parse.urlsplit(uri).scheme not in ("", "file"):
        download(_remote(uri, retry), redacted(uri), destination, sha256.lower(), report or _ignore, retry)
        return
    source = local_path(uri)
    if not source.is_file():
        raise UserError(f"{source}: no such file; check the path")
    with step.publish(destination) as scratch:
        shutil.copyfile(source, scratch)
        _check(scratch, sha256.lower(), str(source))


def probe(uri: str, retry: RetryPolicy = RETRY) -> str:
    """Checks that there is something to read: a file, or below an `s3://…/` prefix at least one object.

    Returns:
        A version of the content: the server's tag, or a digest of the objects below the prefix; empty for a path, and
        if the server has none.

    Raises:
        UserError: There is nothing, or the server cannot be reached or refuses.
    """
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme in ("", "file"):
        if not local_path(uri).exists():
            raise UserError(f"{uri}: there is nothing here")
        return ""
    if parts.scheme == "s3" and parts.path.endswith("/"):
        listed = [(str(each.object_name), str(each.etag), each.size) for each in _objects_below(uri, retry)]
        return hashlib.sha256(repr(sorted(listed)).encode()).hexdigest()
    remote = _remote(uri, retry)

    def tag() -> str:
        answer = remote(0, "")
        next(answer.blocks, b"")
        return answer.tag

    return retried(tag, redacted(uri), retry)


def fetch_prefix(uri: str, destination: Path, report: Report | None = None, retry: RetryPolicy = RETRY) -> list[str]:
    """Fetches every object below `s3://bucket/prefix/` into the folder `destination`, which must not exist yet.

    Returns:
        The names of the files, relative to the prefix, sorted.

    Raises:
        UserError: There is no such object, an object's name leaves the folder, or a download fails.
    """
    uri = uri if uri.endswith("/") else uri + "/"
    bucket, prefix = bucket_and_key(uri)
    names = sorted(str(each.object_name)[len(prefix) :] for each in _objects_below(uri, retry))
    with step.publish(destination) as scratch:
        scratch.mkdir()
        for name in names:
            check_inside(name, redacted(uri))
            fetch(f"s3://{bucket}/{prefix}{name}", scratch / name, report=report, retry=retry)
    return names


def _objects_below(uri: str, retry: RetryPolicy) -> list[Any]:
    """Returns minio's entries of the objects below a prefix, without the empty ones that stand for folders."""
    bucket, prefix = bucket_and_key(uri)
    client = s3_client(retry)

    def list_objects() -> list[Any]:
        with s3_errors(redacted(uri)):
            listed = client.list_objects(bucket, prefix=prefix, recursive=True)
            return [each for each in listed if not str(each.object_name).endswith("/")]

    found = retried(list_objects, redacted(uri), retry)
    if not found:
        raise UserError(f"{redacted(uri)}: no object lies below this prefix; check bucket, prefix and credentials")
    return found


def _remote(uri: str, retry: RetryPolicy) -> Open:
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme == "s3":
        bucket, key = bucket_and_key(uri)
        return partial(open_object, s3_client(retry), bucket, key)
    if parts.scheme not in ("http", "https"):
        raise UserError(f"{redacted(uri)}: cannot read {parts.scheme}://; use {', '.join(SCHEMES)}")
    if "@" in parts.netloc:
        raise UserError(f"{redacted(uri)}: a user and a password are not sent; give a signed URL, or s3://")
    if parts.fragment:
        raise UserError(f"{redacted(uri)}: what follows # is not asked for; leave it out, or write %23")
    return partial(_open_url, uri, retry.timeout)


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


def redacted(uri: str) -> str:
    """Returns a URI for messages: without user, password and query, which may hold secrets."""
    parts = urllib.parse.urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit(parts._replace(netloc=host, query="", fragment=""))


def _ignore(_done: int, _total: int | None) -> None:
    """Reports nothing."""


def _check(file: Path, sha256: str, name: str) -> None:
    if sha256 and (found := step.sha256(file)) != sha256:
        raise UserError(f"{name}: the SHA-256 is {found}, expected {sha256}; the file is damaged or another one")


def check_inside(name: str, where: str) -> None:
    """Checks that the name of an object is a path that stays inside the folder it is written to."""
    if ".." in name.split("/") or name.startswith("/"):
        raise UserError(f"{where}: the object name {name!r} leaves the folder; rename the object")


def retried(work: Callable[[], Result], name: str, retry: RetryPolicy) -> Result:
    """Repeats some work after a `TransientError`, with growing pauses.

    Raises:
        UserError: The last attempt failed, too.
    """
    pause = retry.pause
    for attempt in range(1, retry.attempts + 1):
        try:
            return work()
        except TransientError as error:
            if attempt == retry.attempts:
                raise UserError(f"{name}: {error}; gave up after {attempt} tries") from error
            time.sleep(pause)
            pause *= 2
    raise AssertionError("a retry policy has at least one attempt")


def download(remote: Open, name: str, destination: Path, sha256: str, report: Report, retry: RetryPolicy) -> None:
    """Downloads a remote file; see `fetch`. `name` is its name in messages."""
    partial_file = destination.with_name(destination.name + ".partial")
    tag_file = destination.with_name(destination.name + ".partial.tag")

    def resumable() -> int:
        return partial_file.stat().st_size if partial_file.exists() and tag_file.exists() else 0

    failures, pause = 0, retry.pause
    while True:
        size = resumable()
        try:
            md5 = _append(remote, partial_file, tag_file, report)
            break
        except TransientError as error:
            if resumable() > size:
                failures, pause = 0, retry.pause
            failures += 1
            if failures >= retry.attempts:
                raise UserError(f"{name}: {error}; gave up after {failures} tries, run again to resume") from error
            time.sleep(pause)
            pause *= 2
    try:
        _check_md5(partial_file, md5, name)
        _check(partial_file, sha256, name)
    except UserError:
        partial_file.unlink()
        raise
    finally:
        tag_file.unlink(missing_ok=True)
    partial_file.replace(destination)


def _append(remote: Open, partial_file: Path, tag_file: Path, report: Report) -> str:
    """Makes one attempt; returns the MD5 that the remote has when the partial file is complete."""
    tag = tag_file.read_text(encoding="utf-8") if tag_file.exists() and partial_file.exists() else ""
    answer = remote(partial_file.stat().st_size if tag else 0, tag)
    done = answer.offset
    # Without a tag a later attempt could not tell whether the content is still the same, so it starts over.
    if answer.tag:
        tag_file.write_text(answer.tag, encoding="utf-8")
    else:
        tag_file.unlink(missing_ok=True)
    with partial_file.open("r+b" if done else "wb") as stream:
        stream.seek(done)
        stream.truncate()
        report(done, answer.total)
        for block in answer.blocks:
            stream.write(block)
            done += len(block)
            report(done, answer.total)
    if answer.total is not None and done != answer.total:
        raise TransientError(f"the connection ended after {done} of {answer.total} bytes")
    return answer.md5


def _open_url(url: str, timeout: float, offset: int, tag: str) -> _Answer:
    headers = {"Accept-Encoding": "identity", "User-Agent": "gridbox"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": tag}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and offset:  # the partial file is longer than the present one
            return _open_url(url, timeout, 0, "")
        if error.code in RETRIED_STATUS:
            raise TransientError(f"the server answers {error.code} {error.reason}") from error
        raise UserError(f"{redacted(url)}: the server answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise TransientError(_reason(error)) from error
    start = 0  # the server sends the whole content if it ignores ranges, or if the content has changed
    if response.status == 206:
        unit, _, span = response.headers.get("Content-Range", "").partition(" ")
        first = span.partition("-")[0]
        if unit != "bytes" or not first.isdecimal():
            raise UserError(f"{redacted(url)}: the server answers a range without saying which; fetch it elsewhere")
        start = int(first)
    length = response.headers.get("Content-Length")
    total = start + int(length) if length and length.isdecimal() else None
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    return _Answer(start, total, "" if tag.startswith("W/") else tag, _blocks(response))


def _blocks(response: Any) -> Iterator[bytes]:  # noqa: ANN401 - urllib's or urllib3's answer
    try:
        with response:
            while block := response.read(BLOCK):
                yield block
    except (OSError, http.client.HTTPException) as error:
        raise TransientError(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """Returns why a connection failed, in a few words."""
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
        raise UserError(f"{redacted(uri)}: not an S3 location; write s3://bucket/key")
    if "@" in parts.netloc:
        raise UserError(f"{redacted(uri)}: credentials do not belong into a URI; set AWS_ACCESS_KEY_ID and its secret")
    if ":" in parts.netloc:
        raise UserError(f"{redacted(uri)}: the first part is the bucket, which has no port; set AWS_ENDPOINT_URL")
    return parts.netloc, key


def s3_endpoint(url: str, name: str) -> urllib.parse.SplitResult:
    """Parses the address of an S3 store.

    Raises:
        UserError: It is none, or holds more than scheme, host and port, which would be ignored.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        raise UserError(f"{name}: must be http://host:port or https://host")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise UserError(f"{name}: must be {parts.scheme}://{parts.netloc} alone, S3 knows no path there")
    return parts


def s3_client(retry: RetryPolicy) -> Any:  # noqa: ANN401 - minio ships no types for what it returns
    """Returns a `minio.Minio` for the store that the environment names. It does not retry.

    Raises:
        UserError: The environment is incomplete or wrong.
    """
    import urllib3
    from minio import Minio

    endpoint = s3_endpoint(os.environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com", "AWS_ENDPOINT_URL")
    # Without AWS_CA_BUNDLE, OpenSSL takes SSL_CERT_FILE or the system's authorities.
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
        # `retried` counts the attempts; the client's own would multiply them.
        http_client=urllib3.PoolManager(
            timeout=urllib3.Timeout(retry.timeout), retries=False, ca_certs=authorities, maxsize=10
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


# S3's codes of transient errors, in addition to the HTTP statuses of RETRIED_STATUS.
_RETRIED_CODES = ("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "BadDigest", "IncompleteBody")


@contextlib.contextmanager
def s3_errors(name: str) -> Iterator[None]:
    """Turns the client's exceptions into a `UserError` of one line, or into a `TransientError`."""
    from xml.etree.ElementTree import ParseError

    import urllib3
    from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

    try:
        yield
    except S3Error as error:
        if error.code in _RETRIED_CODES or error.response.status in RETRIED_STATUS:
            raise TransientError(f"the store answers {error.code} ({error.response.status})") from error
        said = " ".join(f"{error.code} ({error.message})".split())
        raise UserError(f"{name}: the store answers {said}; check bucket, key and credentials") from error
    except (ServerError, InvalidResponseError) as error:
        status = getattr(error, "_status_code", None) or getattr(error, "_code", None)
        if status in RETRIED_STATUS:
            raise TransientError(f"the store answers {status}") from error
        # Not an S3 server: it may send a page of HTML, for example.
        raise UserError(f"{name}: the answer ({status}) is not S3's; check AWS_ENDPOINT_URL") from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise UserError(
                f"{name}: the store's certificate is not trusted; name its authority's file in AWS_CA_BUNDLE"
            ) from error
        late = isinstance(error, (urllib3.exceptions.ReadTimeoutError, TimeoutError))
        problem = "does not answer in time" if late else f"cannot be reached ({type(error).__name__})"
        raise TransientError(f"the store {problem}") from error
    except ParseError as error:
        raise TransientError("the store's answer is no XML") from error
    except (MinioException, ValueError) as error:
        raise UserError(f"{name}: {' '.join(str(error).split())}") from error


def open_object(client: Any, bucket: str, key: str, offset: int, tag: str) -> _Answer:  # noqa: ANN401 - minio.Minio
    """Requests an object of an S3 store; see `Open`."""
    name = f"s3://{bucket}/{key}"
    try:
        with s3_errors(name):
            response = client.get_object(bucket, key, offset, request_headers={"If-Match": tag} if offset else {})
    except UserError as error:
        if offset and getattr(error.__cause__, "code", "") in ("PreconditionFailed", "InvalidRange"):
            return open_object(client, bucket, key, 0, "")  # the object has changed
        raise
    etag = response.headers.get("ETag", "")
    plain = etag.strip('"')
    # The ETag of an object uploaded in one part is its MD5, unless the store encrypts with a key of its own.
    encrypted = response.headers.get("x-amz-server-side-encryption", "AES256") != "AES256"
    md5 = plain if re.fullmatch(r"[0-9a-f]{32}", plain) and not encrypted else ""
    length = response.headers.get("Content-Length")

    def blocks() -> Iterator[bytes]:
        with s3_errors(name), closing(response):
            yield from response.stream(BLOCK)

    return _Answer(offset, offset + int(length) if length else None, etag, blocks(), md5)


@contextlib.contextmanager
def closing(response: Any) -> Iterator[None]:  # noqa: ANN401 - urllib3.HTTPResponse
    """Closes a response of the S3 client and returns its connection to the pool."""
    try:
        yield
    finally:
        response.close()
        response.release_conn()


def _check_md5(file: Path, md5: str, name: str) -> None:
    if not md5:
        return
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise UserError(f"{name}: the MD5 is {found}, the store says {md5}; try again")
