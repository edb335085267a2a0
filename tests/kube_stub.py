"""A Kubernetes API server with KServe in it, small enough to be understood: what it is asked is checked and recorded.

It knows server-side apply (ownership by leaf, conflicts, force, removal of what is no longer applied), generations,
resource versions, access rules, admission, dry runs, and lists by label; `kserve_stub` makes children and pods of the
services. Lists are owned as a whole, as in KServe's definition but for a few lists that nobody shares here.
"""

import contextlib
import copy
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import yaml
from kserve_stub import KServe
from kserve_webhook import violations

TOKEN = "a-token-of-the-stub"
KINDS = {
    ("serving.kserve.io", "v1beta1", "inferenceservices"): "InferenceService",
    ("serving.kserve.io", "v1alpha1", "servingruntimes"): "ServingRuntime",
    ("apiextensions.k8s.io", "v1", "customresourcedefinitions"): "CustomResourceDefinition",
    ("apps", "v1", "deployments"): "Deployment",
    ("serving.knative.dev", "v1", "services"): "Service",
    ("", "v1", "pods"): "Pod",
    ("", "v1", "configmaps"): "ConfigMap",
}
DEFINITION = "inferenceservices.serving.kserve.io"
MODE = "serving.kserve.io/deploymentMode"


@dataclass(frozen=True)
class Call:
    """What was asked; an apply that creates counts as `create` besides `patch`, as the API server counts it."""

    verb: str
    group: str
    resource: str
    subresource: str
    namespace: str
    name: str
    force: bool = False


class Answer(Exception):
    """An answer other than success."""

    def __init__(self, code, reason, message, details=None, raw=None):
        super().__init__(message)
        self.code = code
        self.body = raw if raw is not None else {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason,
            "details": details or {}, "code": code,
        }  # fmt: skip


@dataclass
class Fault:
    """Answers the next `times` calls of a verb with an error, or hangs up."""

    verb: str
    resource: str
    times: int
    answer: Answer | None


@dataclass
class Stored:
    """An object and who owns which of its leaves."""

    document: dict
    owners: dict = field(default_factory=dict)
    looks: int = 0  # since the last change of the spec


def leaves(value, path=()):
    """Yields (path, value) of everything that is not a map."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    else:
        yield path, value


def at(document, path):
    for part in path:
        if not isinstance(document, dict) or part not in document:
            return None
        document = document[part]
    return document


def put(document, path, value):
    for part in path[:-1]:
        document = document.setdefault(part, {})
    document[path[-1]] = copy.deepcopy(value)


def drop(document, path):
    parents = [document]
    for part in path[:-1]:
        document = document.get(part)
        if not isinstance(document, dict):
            return
        parents.append(document)
    document.pop(path[-1], None)
    for depth in range(len(path) - 1, 0, -1):  # maps that have become empty
        if not parents[depth]:
            parents[depth - 1].pop(path[depth - 1], None)


class Kube:
    """The server. Use it as a context; `kubeconfig` writes the file that leads to it."""

    def __init__(self, namespaces=("face",), canaries=True):
        self.namespaces = set(namespaces)
        self.calls: list[Call] = []
        self.applied: list[dict] = []
        self.faults: list[Fault] = []
        self.rules = None  # of the account; None allows everything
        self.token = TOKEN
        self.kserve = KServe()
        self.controller: Callable = self.kserve.look
        self.gateway_api: bool | None = True  # None: KServe's configuration is nowhere to be found
        self.rehearsed: list[dict] = []
        self.admission: Callable = lambda _old, _new: None  # returns why not
        self.before_apply: list[Callable] = []  # each is called once, before an apply is looked at
        self.groups = {group for group, _, _ in KINDS}
        self.canaries = canaries
        self._stored: dict = {}
        self._version = 100
        self._lock = threading.RLock()

    def __enter__(self):
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # one packet an answer; of two, the second would wait for the client's delayed ACK

            def log_message(self, *_arguments):
                pass

            def do_GET(self):
                stub._serve(self, "get")

            def do_PATCH(self):
                stub._serve(self, "patch")

            def do_POST(self):
                stub._serve(self, "create")

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_error):
        self._server.shutdown()
        self._server.server_close()

    def kubeconfig(self, path, token=TOKEN):
        document = {
            "apiVersion": "v1", "kind": "Config", "current-context": "stub",
            "clusters": [{"name": "stub", "cluster": {"server": self.url}}],
            "users": [{"name": "stub", "user": {"token": token}}],
            "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "stub"}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(document))
        return path

    # --- what tests ask and do --------------------------------------------------------------------------------------

    def service(self, name="facenet", namespace="face"):
        return self._stored[("serving.kserve.io", "inferenceservices", namespace, name)].document

    def runtimes(self):
        return [stored.document for key, stored in self._stored.items() if key[1] == "servingruntimes"]

    def edit(self, manager, changes, name="facenet", namespace="face"):
        """Somebody else changes leaves: {("spec", "predictor", "minReplicas"): 3}."""
        with self._lock:
            stored = self._stored[("serving.kserve.io", "inferenceservices", namespace, name)]
            for path, value in changes.items():
                put(stored.document, path, value)
                for owned in stored.owners.values():
                    owned.discard(path)
                stored.owners.setdefault(manager, set()).add(path)
            self._touch(stored, spec=any(path[0] == "spec" for path in changes))

    def fail(self, verb, code=None, message="etcdserver: request timed out", times=1, resource="inferenceservices"):
        """Lets the next calls fail with a status, or, without one, by hanging up."""
        answer = Answer(code, "InternalError", message) if code else None
        self.faults.append(Fault(verb, resource, times, answer))

    # --- the server -------------------------------------------------------------------------------------------------

    def _serve(self, handler, method):
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        try:
            with self._lock:
                code, document = self._answer(method, handler.path, handler.headers, body)
        except Answer as answer:
            code, document = answer.code, answer.body
        except ConnectionAbortedError:
            handler.close_connection = True
            with contextlib.suppress(OSError):
                handler.connection.shutdown(2)
            return
        text = document.encode() if isinstance(document, str) else json.dumps(document).encode()
        handler.send_response(code)
        handler.send_header("Content-Type", "text/plain" if isinstance(document, str) else "application/json")
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)
        handler.wfile.flush()

    def _answer(self, method, target, headers, body):
        parts = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(parts.query, strict_parsing=bool(parts.query)).items()}
        if headers.get("Authorization") != f"Bearer {self.token}":
            raise Answer(401, "Unauthorized", "Unauthorized")
        words = parts.path.strip("/").split("/")
        if words[0] == "api":
            words.insert(1, "")
        group, version, words = words[1], words[2], words[3:]
        namespace = ""
        if words[0] == "namespaces":
            namespace, words = words[1], words[2:]
        resource, name, subresource = words[0], words[1] if len(words) > 1 else "", "/".join(words[2:])
        force = query.pop("force", "false")
        assert force in ("true", "false"), force
        verb = "list" if method == "get" and not name else method
        call = Call(verb, group, resource, subresource, namespace, name, force == "true")
        self.calls.append(call)
        self._fault(call)
        self._authorize(call)
        if group not in self.groups or (group, version, resource) not in KINDS:
            raise Answer(404, "", "", raw="404 page not found\n")
        if verb == "list":
            (selector,) = query.values()
            owner = selector.removeprefix("serving.kserve.io/inferenceservice=")
            return 200, {"kind": "PodList", "apiVersion": "v1", "items": self.kserve.pods(namespace, owner)}
        if verb == "get":
            assert not query, query
            return 200, self._get(call)
        if verb == "create":
            assert query == {"dryRun": "All"}, query
            return 201, self._rehearse(call, json.loads(body))
        assert headers["Content-Type"] == "application/apply-patch+yaml", headers["Content-Type"]
        assert query == {"fieldManager": "gridbox"}, query
        api_version = f"{group}/{version}".lstrip("/")
        return self._apply(call, KINDS[(group, version, resource)], api_version, yaml.safe_load(body))

    def _fault(self, call):
        for fault in self.faults:
            if (fault.verb, fault.resource) == (call.verb, call.resource) and fault.times:
                fault.times -= 1
                if fault.answer is None:
                    raise ConnectionAbortedError
                raise fault.answer

    def _authorize(self, call):
        if self.rules is None or any(
            call.group in rule["apiGroups"]
            and call.resource in rule["resources"]
            and call.verb in rule["verbs"]
            and call.name in rule.get("resourceNames", [call.name])
            for rule in self.rules
        ):
            return
        scope = f'in the namespace "{call.namespace}"' if call.namespace else "at the cluster scope"
        raise Answer(
            403, "Forbidden",
            f'{call.resource}.{call.group} "{call.name}" is forbidden: User "system:serviceaccount:face:deploy" cannot '
            f'{call.verb} resource "{call.resource}" in API group "{call.group}" {scope}',
        )  # fmt: skip

    def _get(self, call):
        if call.resource == "customresourcedefinitions" and call.name == DEFINITION:
            canary = {"canary": {"type": "array"}} if self.canaries else {}
            properties = {"spec": {"type": "object", "properties": {"predictor": {"type": "object"}, **canary}}}
            schema = {"openAPIV3Schema": {"type": "object", "properties": properties}}
            return {
                "kind": "CustomResourceDefinition", "metadata": {"name": DEFINITION},
                "spec": {"versions": [{"name": "v1beta1", "served": True, "schema": schema}]},
            }  # fmt: skip
        if call.resource == "configmaps" and call.name == "inferenceservice-config" and self.gateway_api is not None:
            ingress = json.dumps({"enableGatewayApi": self.gateway_api})
            return {"kind": "ConfigMap", "metadata": {"name": call.name}, "data": {"ingress": ingress}}
        if call.resource in ("deployments", "services"):
            child = self.kserve.child(call.namespace, call.name, call.resource == "services")
            stored = Stored(child) if child else None
        else:
            stored = self._stored.get((call.group, call.resource, call.namespace, call.name))
        if stored is None:
            details = {"name": call.name, "group": call.group, "kind": call.resource}
            raise Answer(404, "NotFound", f'{call.resource}.{call.group} "{call.name}" not found', details)
        if call.resource == "inferenceservices":
            stored.looks += 1
            stored.document["status"] = self.controller(stored.document, stored.looks)
        return stored.document

    def _rehearse(self, call, body):
        assert body["metadata"]["namespace"] == call.namespace
        self.rehearsed.append(body)
        why_not = self.admission(None, body)
        if why_not:
            raise Answer(403, "Forbidden", why_not)
        return body

    def _apply(self, call, kind, api_version, body):
        while self.before_apply:
            self.before_apply.pop(0)(self)
        assert (body["kind"], body["apiVersion"]) == (kind, api_version)
        assert (body["metadata"]["name"], body["metadata"]["namespace"]) == (call.name, call.namespace)
        assert not {"status", "managedFields", "uid", "creationTimestamp"} & ({*body} | {*body["metadata"]})
        assert all(value is not None for _, value in leaves(body)), "null removes a field in other kinds of patch only"
        if call.namespace not in self.namespaces:
            details = {"name": call.namespace, "kind": "namespaces"}
            raise Answer(404, "NotFound", f'namespaces "{call.namespace}" not found', details)
        key = (call.group, call.resource, call.namespace, call.name)
        stored = self._stored.get(key)
        if stored is None:
            creation = Call("create", call.group, call.resource, "", call.namespace, call.name)
            self.calls.append(creation)
            self._authorize(creation)
            assert "resourceVersion" not in body["metadata"]
        elif (
            body["metadata"].get("resourceVersion", stored.document["metadata"]["resourceVersion"])
            != (stored.document["metadata"]["resourceVersion"])
        ):
            raise Answer(
                409, "Conflict",
                f'Operation cannot be fulfilled on {call.resource}.{call.group} "{call.name}": the object has been '
                "modified; please apply your changes to the latest version and try again",
            )  # fmt: skip
        new = self._merged(call, stored, body)
        self.applied.append(body)
        if kind == "InferenceService" and not self.canaries:
            new.document["spec"].pop("canary", None)  # an unknown field is pruned without a word
        why_not = self._refused(stored, new) if kind == "InferenceService" else None
        if why_not:
            raise Answer(
                403, "Forbidden",
                'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: ' + why_not,
            )  # fmt: skip
        before = None if stored is None else stored.document
        self._touch(new, before is None or before.get("spec") != new.document.get("spec"))
        self._stored[key] = new
        return (201 if stored is None else 200), new.document

    def _merged(self, call, stored, body):
        new = copy.deepcopy(stored) if stored else Stored({"metadata": {"generation": 0}})
        given = copy.deepcopy(body)
        given["metadata"].pop("resourceVersion", None)
        wanted = dict(leaves(given))
        conflicts = [
            (owner, path)
            for owner, owned in new.owners.items()
            if owner != "gridbox"
            for path, value in wanted.items()
            if path in owned and at(new.document, path) != value
        ]
        if conflicts and not call.force:
            causes = [
                {
                    "reason": "FieldManagerConflict",
                    "message": f'conflict with "{owner}" using {body["apiVersion"]}',
                    "field": "." + ".".join(path),
                }
                for owner, path in conflicts
            ]
            raise Answer(409, "Conflict", f"Apply failed with {len(causes)} conflict", {"causes": causes})
        for owner, path in conflicts:
            new.owners[owner].discard(path)
        others = set().union(*(owned for owner, owned in new.owners.items() if owner != "gridbox"))
        for path in new.owners.get("gridbox", set()) - set(wanted) - others:
            drop(new.document, path)
        for path, value in wanted.items():
            if isinstance(at(new.document, path), dict) and value == {}:
                continue
            put(new.document, path, value)
        new.owners["gridbox"] = set(wanted)
        return new

    def _refused(self, stored, new):
        old = stored.document if stored else None
        if old and old["metadata"]["annotations"].get(MODE) != new.document["metadata"]["annotations"].get(MODE):
            return "update rejected: deploymentMode cannot be changed"
        return "; ".join(violations(new.document)) or self.admission(old, new.document)

    def _touch(self, stored, spec):
        self._version += 1
        metadata = stored.document["metadata"]
        metadata["resourceVersion"] = str(self._version)
        metadata.setdefault("uid", f"uid-{self._version}")
        metadata["managedFields"] = [{"manager": owner} for owner in stored.owners]
        if spec:
            metadata["generation"] += 1
            stored.looks = 0


def rules_of(calls):
    """Derives the access rules that calls need: {(group, resource): {verb, …}}."""
    rules: dict = {}
    for call in calls:
        assert not call.subresource
        rules.setdefault((call.group, call.resource), set()).add(call.verb)
    return rules
