"""NVIDIA's registry NGC, as far as gridbox asks it: token, list of files, signed addresses, and a host of files.

Every request is held against what the real one wants; what is wrong with one goes to `Registry.faults`, which tests
demand to be empty. The host of files listens on a port of its own, as the real one has a name of its own.
"""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

KEY, PERSONAL_KEY, TOKEN = "canary-legacy-key-4711", "nvapi-canary-personal-4711", "canary-token-4711"
SIGNATURE = "canary-signature-4711"
ORG, TEAM = "nvidia", "tao"


class Registry:
    """What the servers hold and how they behave.

    Attributes:
        versions: By `model:version`, the content of each file by its path.
        guests: Those versions that a guest may have.
        gated: Those whose licence the key's owner has not accepted.
        checksums: Whether NGC names them; `wrong` makes them so.
        cuts: Bytes after which the next answers of the host of files break off.
        statuses: Codes with which the API answers next, in the place of an answer.
        page_size: Files a page of the list, at most.
    """

    def __init__(self):
        self.versions, self.guests, self.gated = {}, set(), set()
        self.checksums, self.wrong = True, False
        self.cuts, self.statuses = [], []
        self.page_size = 100
        self.tokens_of = {KEY}
        self.asked, self.ranges, self.faults = [], [], []
        self.location = None  # another address than that of the host of files


@contextlib.contextmanager
def running():
    """Gives a registry and the environment that leads to it."""
    registry = Registry()
    with _Server(_Api, registry) as api, _Server(_Files, registry) as files:
        registry.files_url = files.url
        threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in (api, files)]
        for thread in threads:
            thread.start()
        yield registry, {"NGC_ENDPOINT": api.url, "NGC_AUTH_ENDPOINT": api.url}
        for server in (api, files):
            server.shutdown()
        for thread in threads:
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, handler, registry):
        super().__init__(("127.0.0.1", 0), handler)
        self.registry = registry
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    @property
    def registry(self):
        return self.server.registry

    def answer(self, document, code=200, headers=()):
        body = json.dumps(document).encode()
        self.send_response(code)
        for name, value in [*headers, ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, code, description):
        self.answer({"requestStatus": {"statusCode": "ERROR", "statusDescription": description}}, code)


class _Api(_Handler):
    def do_GET(self):
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        self.registry.asked.append(parts.path)
        if "canary" in self.path:
            self.registry.faults.append(f"a secret in the address {self.path}")
        if self.registry.statuses:
            self.refuse(self.registry.statuses.pop(0), "not now")
        elif parts.path == "/token":
            self.token(query)
        else:
            self.api(parts.path.strip("/").split("/"), query)

    def token(self, query):
        wanted = {"service": ["ngc"], "scope": [f"group/ngc:{ORG}", f"group/ngc:{ORG}/{TEAM}"]}
        if query != wanted:
            self.registry.faults.append(f"a token asked for with {query}")
        scheme, _, password = self.headers.get("Authorization", "").partition(" ")
        user, _, key = base64.b64decode(password).decode().partition(":")
        if (scheme, user) != ("Basic", "$oauthtoken"):
            self.registry.faults.append(f"a token asked for as {scheme} {user}")
        if key not in self.registry.tokens_of:
            self.refuse(401, f"Invalid credentials {key}")
        else:
            self.answer({"token": TOKEN, "expires_in": 900})

    def api(self, path, query):
        given = self.headers.get("Authorization")
        if given not in (None, f"Bearer {TOKEN}", f"Bearer {PERSONAL_KEY}"):
            return self.refuse(401, "Invalid bearer")
        is_guest = given is None
        match path:
            case ["v2", "org", org, "team", team, "models", model, "versions", version, "files"] if not is_guest:
                pass
            case ["v2", "models", org, team, model, "versions", version, "files"] if is_guest:
                pass
            case ["v2", "org", org, "team", team, "models", model, version, "files"] if not is_guest:
                pass
            case ["v2", "models", "org", org, "team", team, model, version, "files"] if is_guest:
                if query.get("redirect") != ["true"]:
                    self.registry.faults.append("a guest asked for a file without redirect=true")
            case _:
                self.registry.faults.append(f"an unknown address {self.path}, {'as a guest' if is_guest else 'by key'}")
                return self.refuse(404, "no such endpoint")
        name = f"{model}:{version}"
        if (org, team) != (ORG, TEAM) or name not in self.registry.versions:
            return self.refuse(404, f"Could not find {name}")
        if is_guest and name not in self.registry.guests:
            return self.refuse(403, "Guest access is not enabled")
        if name in self.registry.gated:
            return self.refuse(403, "The license terms\nhave not been accepted")
        if "versions" in path:
            return self.list(self.registry.versions[name], query)
        return self.locate(name, query["path"][0], is_guest)

    def list(self, files, query):
        size = min(int(query["page-size"][0]), self.registry.page_size)
        first = int(query["page-number"][0]) * size
        entries = []
        for path, content in list(files.items())[first : first + size]:
            entry = {"path": path, "sizeInBytes": len(content)}
            if self.registry.checksums:
                digest = hashlib.sha256(content + (b"!" if self.registry.wrong else b"")).digest()
                entry["sha256_base64"] = base64.b64encode(digest).decode()
            entries.append(entry)
        self.answer({"modelFiles": entries, "paginationInfo": {"totalResults": len(files)}})

    def locate(self, name, path, is_guest):
        url = self.registry.location or f"{self.registry.files_url}/{name}/{path}?signature={SIGNATURE}"
        if is_guest:
            self.answer({}, 302, [("Location", url)])
        else:
            self.answer({"urls": [url], "filepath": [path]})


class _Files(_Handler):
    def do_GET(self):
        parts = urlsplit(self.path)
        if self.headers.get("Authorization"):
            self.registry.faults.append("a key for the host of files, which wants none")
            return self.refuse(400, "Only one auth mechanism allowed")
        if parse_qs(parts.query) != {"signature": [SIGNATURE]}:
            return self.refuse(403, "Request has expired")
        _, name, path = parts.path.split("/", 2)
        content, tag = self.registry.versions[name][path], '"v1"'
        wanted = self.headers.get("Range")
        self.registry.ranges.append(wanted)
        start = int(wanted[len("bytes=") : -1]) if wanted and self.headers.get("If-Range") == tag else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        self.wfile.write(body[: self.registry.cuts.pop(0)] if self.registry.cuts else body)
        return None
