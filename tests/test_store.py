import hashlib
import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import s3_server

from components import store
from components.step import UserError
from components.store import RetryPolicy, fetch, fetch_prefix

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = RetryPolicy(attempts=3, pause=0.01, timeout=2.0)


class Server(ThreadingHTTPServer):
    """Serves CONTENT under any path, with the faults a test asks for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag = '"v1"'
        self.cuts = []  # bytes after which the next answers break off
        self.statuses = []  # instead of the next answers
        self.ranges = True
        self.asked = []  # the Range header of each request
        self.url = f"http://127.0.0.1:{self.server_port}/folder/file.zip"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server = self.server
        server.asked.append(self.headers.get("Range"))
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        start = 0
        wanted = self.headers.get("Range")
        if wanted and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_download_is_whole_and_leaves_nothing_beside_it(server, tmp_path):
    seen = []
    fetch(server.url, tmp_path / "new/file.zip", SHA256.upper(), lambda *at: seen.append(at), QUICK)
    assert (tmp_path / "new/file.zip").read_bytes() == CONTENT
    assert names(tmp_path / "new") == ["file.zip"]
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_cut_connections_resume_where_they_broke_off(server, tmp_path):
    server.cuts = [300_000, 200_000, 100]
    fetch(server.url, tmp_path / "file.zip", SHA256, retry=QUICK)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=500000-", "bytes=500100-"]


def test_a_later_run_resumes_an_earlier_one(server, tmp_path):
    server.cuts = [300_000, 0, 0]
    with pytest.raises(UserError, match=r"300000 of 1048576 bytes; gave up after 3 tries, run again to resume"):
        fetch(server.url, tmp_path / "file.zip", SHA256, retry=QUICK)
    assert names(tmp_path) == ["file.zip.partial", "file.zip.partial.tag"]
    server.asked.clear()
    fetch(server.url, tmp_path / "file.zip", SHA256, retry=QUICK)
    assert server.asked == ["bytes=300000-"]
    assert names(tmp_path) == ["file.zip"]


def test_a_server_that_ignores_ranges_is_read_from_the_start(server, tmp_path):
    server.ranges = False
    server.cuts = [300_000]
    fetch(server.url, tmp_path / "file.zip", SHA256, retry=QUICK)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_content_that_changed_meanwhile_is_never_spliced(server, tmp_path):
    server.cuts = [300_000, 0, 0]
    with pytest.raises(UserError, match="gave up"):
        fetch(server.url, tmp_path / "file.zip", retry=QUICK)
    server.content, server.etag = CONTENT[::-1], '"v2"'
    fetch(server.url, tmp_path / "file.zip", retry=QUICK)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_strong_tag_a_cut_download_starts_anew(server, tmp_path, etag):
    server.etag = etag
    server.cuts = [300_000]
    fetch(server.url, tmp_path / "file.zip", SHA256, retry=QUICK)
    assert server.asked == [None, None]


def test_a_wrong_checksum_is_refused_and_nothing_stays(server, tmp_path):
    with pytest.raises(UserError, match=f"SHA-256 is {SHA256}, expected 000000"):
        fetch(server.url, tmp_path / "file.zip", "0" * 64, retry=QUICK)
    assert names(tmp_path) == []


def test_a_refused_download_leaves_the_former_file(server, tmp_path):
    (tmp_path / "file.zip").write_text("former")
    server.statuses = [404]
    with pytest.raises(UserError, match=r"/folder/file\.zip: the server answers 404 Not Found$"):
        fetch(server.url, tmp_path / "file.zip", retry=QUICK)
    assert server.asked == [None]
    assert (tmp_path / "file.zip").read_text() == "former"


def test_a_busy_server_is_asked_again_but_not_for_ever(server, tmp_path):
    server.statuses = [503, 500]
    fetch(server.url, tmp_path / "file.zip", SHA256, retry=QUICK)
    server.statuses = [503] * 3
    with pytest.raises(UserError, match="503 Service Unavailable; gave up after 3 tries"):
        fetch(server.url, tmp_path / "other.zip", retry=QUICK)


def test_an_unreachable_server_an_unknown_name_and_a_silent_one_are_one_line(server, tmp_path, monkeypatch):
    def lines(url):
        with pytest.raises(UserError) as caught:
            fetch(url, tmp_path / "file.zip", retry=RetryPolicy(attempts=2, pause=0.01, timeout=0.2))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "refused" in lines("http://127.0.0.1:9/file.zip")
    monkeypatch.setattr(Handler, "do_GET", lambda _handler: threading.Event().wait(1))
    assert "does not answer in time" in lines(server.url)

    def unknown(*_arguments, **_options):
        raise store.socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(store.socket, "getaddrinfo", unknown)
    assert "name cannot be resolved (Name or service not known)" in lines("http://nowhere.invalid/file.zip")


def test_secrets_in_a_url_do_not_reach_the_message(server, tmp_path):
    server.statuses = [403]
    url = server.url.replace("http://", "http://user:secret@") + "?X-Amz-Signature=secret"
    assert "secret" not in store.redacted(url)
    with pytest.raises(UserError) as caught:
        fetch(server.url + "?X-Amz-Signature=secret", tmp_path / "file.zip", retry=QUICK)
    assert "secret" not in str(caught.value)


def test_paths_and_file_uris_are_copied(tmp_path):
    (tmp_path / "a b.zip").write_bytes(CONTENT)
    fetch(str(tmp_path / "a b.zip"), tmp_path / "one", SHA256)
    fetch(f"file://{tmp_path}/a%20b.zip", tmp_path / "two", SHA256)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == CONTENT
    for uri, words in (
        (str(tmp_path / "none"), "no such file"),
        ("file://host/none", "three slashes"),
        ("ftp://host/none", "cannot read ftp://"),
    ):
        with pytest.raises(UserError, match=words):
            fetch(uri, tmp_path / "three")
    with pytest.raises(UserError, match="SHA-256"):
        fetch(str(tmp_path / "a b.zip"), tmp_path / "three", "0" * 64)
    assert not (tmp_path / "three").exists()


def test_names_join_below_paths_and_uris():
    assert store.join("/data/set", "a.zip") == "/data/set/a.zip"
    assert store.join("https://host/dir", "a.zip") == "https://host/dir/a.zip"
    assert store.join("https://host/dir/?sig=1", "a.zip") == "https://host/dir/a.zip?sig=1"
    assert store.join("s3://bucket", "a.zip") == "s3://bucket/a.zip"


@pytest.fixture(scope="module")
def s3():
    with s3_server.running() as values:
        yield values


@pytest.fixture
def bucket(s3, monkeypatch):
    """An empty bucket, and the environment that leads to it."""
    s3_server.enter(monkeypatch, s3)
    with s3_server.bucket(s3) as (client, name):

        def put(key, content):
            client.put_object(bucket_name=name, object_name=key, data=io.BytesIO(content), length=len(content))

        put.name = name
        yield put


@pytest.fixture
def proxy(s3, bucket, monkeypatch):  # noqa: ARG001 - the bucket's environment comes first
    with s3_server.proxy(s3["AWS_ENDPOINT_URL"]) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


def test_an_s3_object_is_fetched_and_checked(bucket, tmp_path):
    bucket("dir/file.zip", CONTENT)
    fetch(f"s3://{bucket.name}/dir/file.zip", tmp_path / "file.zip", SHA256, retry=QUICK)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert names(tmp_path) == ["file.zip"]


def test_an_s3_download_resumes_only_the_same_object(bucket, tmp_path):
    bucket("file.zip", CONTENT)
    etag = f'"{hashlib.md5(CONTENT).hexdigest()}"'
    partial, tag = tmp_path / "file.zip.partial", tmp_path / "file.zip.partial.tag"
    seen = []
    partial.write_bytes(CONTENT[:1000])
    tag.write_text(etag)
    fetch(f"s3://{bucket.name}/file.zip", tmp_path / "file.zip", SHA256, lambda *at: seen.append(at), QUICK)
    assert seen[0] == (1000, len(CONTENT))
    partial.write_bytes(b"of another object")
    tag.write_text('"another"')
    fetch(f"s3://{bucket.name}/file.zip", tmp_path / "file.zip", SHA256, retry=QUICK)
    assert (tmp_path / "file.zip").read_bytes() == CONTENT


def test_a_spliced_s3_object_fails_its_md5(bucket, tmp_path):
    bucket("file.zip", CONTENT)
    (tmp_path / "file.zip.partial").write_bytes(b"\xff" * 1000)
    (tmp_path / "file.zip.partial.tag").write_text(f'"{hashlib.md5(CONTENT).hexdigest()}"')
    with pytest.raises(UserError, match="MD5"):
        fetch(f"s3://{bucket.name}/file.zip", tmp_path / "file.zip", retry=QUICK)
    assert names(tmp_path) == []


def test_a_prefix_is_fetched_as_a_folder(bucket, tmp_path):
    for key in ("set/a.txt", "set/deep/b.txt", "setting/c.txt"):
        bucket(key, key.encode())
    assert fetch_prefix(f"s3://{bucket.name}/set", tmp_path / "out", retry=QUICK) == ["a.txt", "deep/b.txt"]
    assert (tmp_path / "out/deep/b.txt").read_text() == "set/deep/b.txt"


def test_s3_mistakes_are_one_line_without_secrets(bucket, s3, tmp_path, monkeypatch):
    secret = s3["AWS_SECRET_ACCESS_KEY"]

    def message(call, uri):
        with pytest.raises(UserError) as caught:
            call(uri, tmp_path / "out", retry=RetryPolicy(attempts=2, pause=0.01, timeout=1.0))
        assert "\n" not in str(caught.value)
        assert secret not in str(caught.value)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert "NoSuchKey" in message(fetch, f"s3://{bucket.name}/none.zip")
    assert "NoSuchBucket" in message(fetch, "s3://no-such-bucket-here/none.zip")
    assert "no object lies below" in message(fetch_prefix, f"s3://{bucket.name}/none/")
    assert "write s3://bucket/key" in message(fetch, "s3:///key")
    bucket("evil//out.txt", b"x")  # the rest of the name is an absolute path
    assert "leaves the folder" in message(fetch_prefix, f"s3://{bucket.name}/evil/")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "cannot be reached" in message(fetch, f"s3://{bucket.name}/none.zip")
    assert "cannot be reached" in message(fetch_prefix, f"s3://{bucket.name}/none/")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9")
    assert "AWS_ENDPOINT_URL" in message(fetch, f"s3://{bucket.name}/none.zip")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://user:password@host")
    assert "password" not in message(fetch, f"s3://{bucket.name}/none.zip")
    assert "credentials do not belong into a URI" in message(fetch, f"s3://user:{secret}@bucket/none.zip")


def test_a_busy_s3_store_is_asked_again(bucket, proxy, tmp_path):
    bucket("set/file.zip", CONTENT)
    faults = ["error", (503, "SlowDown"), "drop", "lost"] * 2
    proxy.arm(lambda request: faults[request.number // 2] if request.number % 2 == 0 else None)
    for number in range(4):
        fetch_prefix(f"s3://{bucket.name}/set", tmp_path / str(number), retry=QUICK)
        assert (tmp_path / str(number) / "file.zip").read_bytes() == CONTENT
    assert len(proxy.seen) == 16


@pytest.fixture
def asks(bucket, proxy, tmp_path):
    """Asks the store for an object and returns the access key it was asked with, empty for none."""

    def ask():
        proxy.arm(lambda _request: (404, "NoSuchKey"))
        with pytest.raises(UserError, match="NoSuchKey"):
            fetch(f"s3://{bucket.name}/none.zip", tmp_path / "none.zip", retry=QUICK)
        return proxy.seen[0].headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0]

    return ask


def test_credentials_come_from_the_environment_or_from_a_file_it_names(asks, tmp_path, monkeypatch):
    file = tmp_path / "credentials"
    file.write_text(
        "[default]\naws_access_key_id = of-the-file\naws_secret_access_key = 50%/+x\n"
        "[other]\naws_access_key_id=of-the-other\naws_secret_access_key=y\naws_session_token=z\n"
    )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-environment")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    assert asks() == "of-the-environment"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert asks() == "of-the-file"
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert asks() == "of-the-other"
    monkeypatch.delenv("AWS_SHARED_CREDENTIALS_FILE")
    assert asks() == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[default]\naws_access_key_id = a\n", "only one of access key id and secret access key is set"),
        ("[other]\naws_access_key_id = a\n", "aws_access_key_id is missing"),
        ("aws_secret_access_key = hush hush\n", "MissingSectionHeaderError; write an INI file"),
        (None, "FileNotFoundError; write an INI file"),
    ],
)
def test_a_wrong_credentials_file_is_named_but_not_quoted(bucket, tmp_path, monkeypatch, text, words):
    if text:
        (tmp_path / "credentials").write_text(text)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=words) as caught:
        fetch(f"s3://{bucket.name}/none.zip", tmp_path / "none.zip", retry=QUICK)
    assert "AWS_SHARED_CREDENTIALS_FILE" in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_half_a_pair_of_keys_is_refused(bucket, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match="the environment: only one of"):
        fetch(f"s3://{bucket.name}/none.zip", tmp_path / "none.zip", retry=QUICK)


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_an_authority_of_ones_own_is_trusted_when_it_is_named(bucket, proxy, tmp_path, monkeypatch, variable):
    bucket("file.zip", CONTENT)
    certificate, key = s3_server.write_certificate(tmp_path)
    proxy.use_tls(certificate, key)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with pytest.raises(UserError, match="certificate is not trusted; name its authority's file in AWS_CA_BUNDLE"):
        fetch(f"s3://{bucket.name}/file.zip", tmp_path / "file.zip")
    monkeypatch.setenv(variable, str(certificate))
    fetch(f"s3://{bucket.name}/file.zip", tmp_path / "file.zip", SHA256)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(UserError, match=r"AWS_CA_BUNDLE: .*none\.pem is no file"):
        fetch(f"s3://{bucket.name}/file.zip", tmp_path / "file.zip")
