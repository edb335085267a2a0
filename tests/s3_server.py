"""An S3 server for tests, and a proxy in front of it that makes faults.

The server is moto's, in this process; or the one that GRIDBOX_TEST_S3_ENDPOINT names (a MinIO or SeaweedFS), with the
keys in GRIDBOX_TEST_S3_ACCESS_KEY and GRIDBOX_TEST_S3_SECRET_KEY.
"""

import contextlib
import datetime
import http.client
import ipaddress
import os
import ssl
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest


@contextlib.contextmanager
def running():
    """Gives the environment that leads to a server."""
    endpoint = os.environ.get("GRIDBOX_TEST_S3_ENDPOINT")
    if endpoint:
        keys = [os.environ[f"GRIDBOX_TEST_S3_{name}"] for name in ("ACCESS_KEY", "SECRET_KEY")]
        yield environment(endpoint, *keys)
        return
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield environment("http://{}:{}".format(*server.get_host_and_port()), "an access key", "a very secret key")
    finally:
        server.stop()


def environment(endpoint, access_key, secret_key):
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_REGION": "us-east-1",
    }


def enter(monkeypatch, values):
    """Makes `values` the whole environment of S3."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def client(values):
    from minio import Minio

    endpoint = urlsplit(values["AWS_ENDPOINT_URL"])
    return Minio(
        endpoint=endpoint.netloc,
        access_key=values["AWS_ACCESS_KEY_ID"],
        secret_key=values["AWS_SECRET_ACCESS_KEY"],
        region=values["AWS_REGION"],
        secure=endpoint.scheme == "https",
    )


@contextlib.contextmanager
def bucket(values):
    """Gives a client and the name of a new bucket, which is removed in the end."""
    made, name = client(values), f"gridbox-{uuid.uuid4().hex[:12]}"
    made.make_bucket(bucket_name=name)
    try:
        yield made, name
    finally:
        for entry in made.list_objects(bucket_name=name, recursive=True):
            made.remove_object(bucket_name=name, object_name=entry.object_name)
        for upload in made._list_multipart_uploads(name).uploads:
            made._abort_multipart_upload(name, upload.object_name, upload.upload_id)
        made.remove_bucket(bucket_name=name)


def write_certificate(folder):
    """Writes a certificate for 127.0.0.1, signed by itself, and its key; returns both paths."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a store for tests")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


class Request:
    """A request on its way; a fault may change it.

    `number` counts from 0 since the proxy was armed; `target` is the path with the query.
    """

    def __init__(self, number, method, target, headers, body):
        self.number, self.method, self.target, self.headers, self.body = number, method, target, headers, body


class Proxy(ThreadingHTTPServer):
    """Hands requests on to a server. `fault` sees each and says what happens to it.

    None: nothing. "error": it is answered with 500. "drop": the connection ends at once. "lost": it is carried out but
    the connection ends without an answer. A tuple (status, code): an error in S3's XML. A callable: it may change the
    answer's body.
    """

    daemon_threads = True

    def __init__(self, upstream):
        super().__init__(("127.0.0.1", 0), _Forwarder)
        self.upstream = urlsplit(upstream)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.lock = threading.Lock()
        self.arm(lambda _request: None)

    def arm(self, fault):
        with self.lock:
            self.fault, self.seen, self.done = fault, [], []

    def use_tls(self, certificate, key):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # a publisher that was killed


class _Forwarder(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *arguments):
        pass

    def _forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server = self.server
        with server.lock:
            request = Request(len(server.seen), self.command, self.path, dict(self.headers), body)
            server.seen.append(request)
            action = server.fault(request)
        if action == "drop":
            self.close_connection = True
        elif action == "error":
            self._answer(500, [("Content-Type", "text/html")], b"<html>\n<p>sorry</p>\n</html>")
        elif isinstance(action, tuple):
            status, code = action
            xml = f"<Error><Code>{code}</Code><Message>a\nfault</Message></Error>"
            self._answer(status, [("Content-Type", "application/xml")], xml.encode())
        else:
            self._pass_on(request, action)

    def _pass_on(self, request, action):
        server = self.server
        upstream = http.client.HTTPConnection(server.upstream.hostname, server.upstream.port, timeout=30)
        with contextlib.closing(upstream):
            upstream.request(request.method, request.target, request.body or None, request.headers)
            answer = upstream.getresponse()
            content = answer.read()
        with server.lock:
            server.done.append(request)
        if action == "lost":
            self.close_connection = True
            return
        self._answer(answer.status, answer.getheaders(), action(content) if callable(action) else content)

    def _answer(self, status, headers, content):
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward


@contextlib.contextmanager
def proxy(upstream):
    with Proxy(upstream) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
