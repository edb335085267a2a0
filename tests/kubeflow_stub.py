"""The Kubeflow Pipelines API (v2beta1) and a Kubernetes beneath it, small enough to be understood.

They follow Kubeflow Pipelines 2.17.0 over Argo 4.0.5: what the API says of a run is derived from its Argo workflow
(`argo_workflow.py`) by the rules of `backend/src/apiserver` (`toApiPipelineTaskDetail`, `report_server.go`), and held
against recordings of a real server (`test_kubeflow_recordings.py`).

What they are asked is held against kfp's own descriptions: bodies against the models of `kfp_server_api`, pipelines
against the protobuf messages of `kfp.pipeline_spec`. A wrong request is answered with 400 and kept in `problems`, so
that no test can pass over it.
"""

import contextlib
import datetime
import email
import email.policy
import ipaddress
import json
import re
import ssl
import threading
import uuid
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import kfp_server_api
import yaml
from argo_workflow import STATES, Workflow
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

LOGIN_PAGE = "<!doctype html><html><body><h1>Sign in</h1></body></html>"
# manifests/kustomize of Kubeflow Pipelines 2.17.0, as far as it is asked for.
INSTALLATION = {
    "/apis/apps/v1/namespaces/kubeflow/deployments/ml-pipeline": {
        "metadata": {"name": "ml-pipeline"},
        "spec": {"template": {"spec": {"containers": [
            {"name": "ml-pipeline-api-server", "env": [
                {"name": "PUBLISH_LOGS", "value": "true"}, {"name": "LOG_LEVEL", "value": "info"},
                {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            ]},
        ]}}},
    },
    "/api/v1/namespaces/kubeflow/configmaps/workflow-controller-configmap": {
        "metadata": {"name": "workflow-controller-configmap"},
        "data": {"workflowDefaults": (
            "spec:\n  ttlStrategy: {secondsAfterCompletion: 3600}\n"
            "  templateDefaults: {retryStrategy: {limit: '2', retryPolicy: OnError}}\n"
        )},
    },
}  # fmt: skip
EPOCH = "1970-01-01T00:00:00Z"


class Answer(Exception):
    """An answer other than success."""

    def __init__(self, status, body, content_type="application/json", headers=()):
        super().__init__(status)
        self.status, self.body, self.content_type, self.headers = status, body, content_type, dict(headers)


def refusal(status, message):
    codes = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 500: 13}
    return Answer(status, {"code": codes.get(status, 2), "message": message, "details": []})


@dataclass
class Fault:
    """Answers the next `times` calls that match; `hang_up` closes the connection instead."""

    method: str
    path: str
    times: int
    answer: Answer | None = None
    hang_up: bool = False


@dataclass(frozen=True)
class Call:
    method: str
    path: str
    query: dict
    body: object


class Stub:
    """What both servers share: HTTP, TLS, faults and a record of the calls."""

    def __init__(self, token="", certificate=None):
        self.token = token
        self.certificate = certificate  # (file of the chain, file of the key)
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self.problems: list[str] = []
        self._lock = threading.RLock()

    def __enter__(self):
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16

            def log_message(self, *_arguments):
                pass

            def do_GET(self):
                stub._serve(self, "GET")

            def do_POST(self):
                stub._serve(self, "POST")

            def do_DELETE(self):
                stub._serve(self, "DELETE")

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if self.certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._server.handle_error = lambda *_: None  # a client that breaks off is what some tests are about
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exception):
        self._server.shutdown()
        self._server.server_close()
        assert not self.problems, self.problems

    @property
    def port(self):
        return self._server.server_address[1]

    @property
    def url(self):
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}"

    def fail(self, method, path, status=None, message="boom", times=1, headers=(), body=None, content_type=None):
        """Lets the next matching calls fail with a status, or, without one, by hanging up."""
        if status is None:
            self.faults.append(Fault(method, path, times, hang_up=True))
            return
        answer = refusal(status, message)
        answer.headers = dict(headers)
        if body is not None:
            answer.body, answer.content_type = body, content_type or "text/html; charset=utf-8"
        self.faults.append(Fault(method, path, times, answer))

    def count(self, method, path):
        return sum(call.method == method and re.fullmatch(path, call.path) is not None for call in self.calls)

    def _serve(self, handler, method):
        content = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        parts = urlsplit(handler.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        try:
            with self._lock:
                status, body, kind, headers = 200, *self._answer(handler.headers, method, parts.path, query, content)
        except Answer as answer:
            status, body, kind, headers = answer.status, answer.body, answer.content_type, answer.headers
        except ConnectionAbortedError:
            handler.close_connection = True
            with contextlib.suppress(OSError):
                handler.connection.shutdown(2)
            return
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)
        handler.wfile.flush()

    def _answer(self, headers, method, path, query, content):
        kind = headers.get("Content-Type", "")
        body = None
        if kind == "application/json" and content:
            body = json.loads(content)
        self.calls.append(Call(method, path, query, body))
        for fault in self.faults:
            if fault.times and fault.method == method and re.fullmatch(fault.path, path):
                fault.times -= 1
                if fault.hang_up:
                    raise ConnectionAbortedError
                raise fault.answer
        given = headers.get("Authorization", "")
        if self.token and given != f"Bearer {self.token}":
            raise refusal(401, f"Request header error: there is no user identity header. Got {given!r}")
        form = _form(kind, content) if kind.startswith("multipart/form-data") else None
        try:
            found = self._route(method, path, query, form if form is not None else body, headers)
        except AssertionError as error:
            self.problems.append(f"{method} {path}: {error}")
            raise refusal(400, f"Invalid input error: {error}") from error
        return found if isinstance(found, tuple) else (found, "application/json", {})


def _form(kind, content):
    message = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + content, policy=email.policy.HTTP)
    return [
        (part.get_param("name", header="content-disposition"), part.get_filename(), part.get_payload(decode=True))
        for part in message.iter_parts()
    ]


def now():
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


# --- what kfp says a request looks like ------------------------------------------------------------------------------


def check_model(document, model, where="body"):
    """Holds a document against a model of kfp_server_api, closed to unknown fields."""
    described = getattr(kfp_server_api.models, model)
    if hasattr(described, "allowable_values"):
        assert document in described.allowable_values, f"{where}: {document} is none of {described.allowable_values}"
        return
    names = {key: name for name, key in described.attribute_map.items()}
    assert isinstance(document, dict), f"{where}: must be an object"
    for key, value in document.items():
        assert key in names, f"{where}: {model} has no field {key}"
        _check_type(value, described.openapi_types[names[key]], f"{where}.{key}")


def _check_type(value, kind, where):
    simple = {"str": str, "int": int, "bool": bool, "object": dict}
    if kind in simple:
        assert isinstance(value, simple[kind]), f"{where}: {value!r} is no {kind}"
    elif kind == "datetime":
        datetime.datetime.fromisoformat(value)
    elif kind.startswith("dict("):
        assert isinstance(value, dict), f"{where}: {value!r} is no map"
    elif kind.startswith("list["):
        for each in value:
            _check_type(each, kind[5:-1], where)
    else:
        check_model(value, kind, where)


def check_pipeline(document):
    """Holds a pipeline against kfp's protobuf messages."""
    spec, platform = document, None
    if "pipeline_spec" in document:
        assert set(document) <= {"pipeline_spec", "platform_spec"}, set(document)
        spec, platform = document["pipeline_spec"], document.get("platform_spec")
    try:
        message = json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
        if platform is not None:
            json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    except json_format.ParseError as error:
        raise AssertionError(f"pipeline_spec: {error}") from error
    assert message.pipeline_info.name
    return message


class Pipelines(Stub):
    """Kubeflow Pipelines. `script` gives, look by look, the states of a new run's tasks and of the run itself."""

    def __init__(self, version="2.17.1", namespaces=(), is_ui=True, token="", certificate=None):
        super().__init__(token, certificate)
        self.version, self.namespaces, self.is_ui = version, set(namespaces), is_ui
        self.has_v1 = True
        self.pipeline_store = "database"
        self.pipelines, self.versions, self.experiments, self.runs, self.schedules = {}, {}, {}, {}, {}
        self.script = [({}, "SUCCEEDED")]
        self.logs = {}  # by pod
        self.messages = {}  # by stage, why its pod failed
        self.retried = set()  # stages with retries of their own
        self.exit_handlers = {}  # by the path of an exit task, the group that it follows
        self.message = ""  # why the workflow as a whole ended as it did
        self.compressed_from = None  # the look from which the workflow's status is too large for Argo
        self._looks = {}

    @property
    def is_shared(self):
        return bool(self.namespaces)

    def _route(self, method, path, query, body, _headers):
        if path == "/apis/v2beta1/healthz":
            return self._health()
        if path == "/k8s/pod/logs" and self.is_ui:
            return self._log(query["podname"], query["runid"], query.get("podnamespace", ""))
        if found := re.fullmatch(r"/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log", path):
            assert not self.is_ui, "the UI does not pass this on"
            return self._log(found[2], found[1], None)
        if found := re.fullmatch(r"/apis/v1beta1/runs/([^/]+)", path):
            if not self.has_v1:
                raise Answer(404, "404 page not found\n", "text/plain")
            return {"pipeline_runtime": {"workflow_manifest": json.dumps(self.workflow(found[1]))}}
        for verb, pattern, function in self._routes():
            found = re.fullmatch("/apis/v2beta1/" + pattern, path)
            if found and verb == method:
                return function(query, body, *map(unquote, found.groups()))
        raise Answer(404, {"code": 5, "message": "Not Found", "details": []})

    def _routes(self):
        return (
            ("GET", "experiments", self._list("experiments", "V2beta1Experiment", "experiments")),
            ("POST", "experiments", self._create_experiment),
            ("GET", "pipelines", self._list("pipelines", "V2beta1Pipeline", "pipelines")),
            ("POST", "pipelines", self._create_pipeline),
            ("GET", "pipelines/names/([^/]+)", self._pipeline_by_name),
            ("POST", "pipelines/upload_version", self._upload_version),
            ("GET", "pipelines/([^/]+)/versions", self._list_versions),
            ("GET", "pipelines/([^/]+)/versions/([^/]+)", lambda _q, _b, _p, v: self._found(self.versions, v)),
            ("GET", "runs", self._list("runs", "V2beta1Run", "runs")),
            ("POST", "runs", self._create_run),
            ("GET", r"runs/([^/:]+)", self._get_run),
            ("POST", r"runs/([^/:]+):terminate", self._terminate),
            ("GET", "recurringruns", self._list("schedules", "V2beta1RecurringRun", "recurringRuns")),
            ("POST", "recurringruns", self._create_schedule),
            ("GET", r"recurringruns/([^/:]+)", lambda _q, _b, i: self._found(self.schedules, i)),
            ("DELETE", r"recurringruns/([^/:]+)", self._delete_schedule),
            ("POST", r"recurringruns/([^/:]+):(enable|disable)", self._switch),
        )

    def _health(self):
        if self.is_ui:  # frontend/server/handlers/healthz.ts
            return {
                "frontendTagName": self.version, "apiServerTagName": self.version, "apiServerReady": True,
                "apiServerMultiUser": self.is_shared, "multi_user": self.is_shared,
                "pipelineStore": self.pipeline_store,
            }  # fmt: skip
        return {
            "commit_sha": "0",
            "tag_name": self.version,
            "multi_user": self.is_shared,
            "pipeline_store": self.pipeline_store,
        }

    def _allow(self, namespace, what):
        if not self.is_shared:
            assert not namespace or namespace == "kubeflow", f"no namespaces here, but {namespace}"
        elif not namespace:
            raise refusal(400, "Invalid input error: A namespace cannot be empty in multi-user mode")
        elif namespace not in self.namespaces:
            raise refusal(
                403,
                f"Failed to authorize with API: PermissionDenied: User 'ada' is not authorized with reason: (request: "
                f"&ResourceAttributes{{Namespace:{namespace},Verb:{what},Group:pipelines.kubeflow.org}})",
            )

    def _found(self, objects, key):
        if key not in objects:
            raise refusal(404, f"Resource not found: {key}")
        return objects[key]

    def _list(self, kind, model, key):
        def answer(query, _body):
            self._allow(query.get("namespace", ""), "list")
            return self._page(getattr(self, kind).values(), model, key, query, {"namespace"})

        return answer

    def _list_versions(self, query, _body, pipeline_id):
        of_pipeline = [each for each in self.versions.values() if each["pipeline_id"] == pipeline_id]
        return self._page(of_pipeline, "V2beta1PipelineVersion", "pipeline_versions", query, set())

    def _page(self, objects, model, key, query, also):
        assert set(query) <= {"page_token", "page_size", "sort_by", "filter"} | also, set(query)
        assert query.get("sort_by", "created_at desc") == "created_at desc", query["sort_by"]
        found = list(reversed(list(objects)))
        if "filter" in query:
            given = json.loads(query["filter"])
            given["predicates"] = [
                {re.sub("V", "_v", name): value for name, value in each.items()} for each in given["predicates"]
            ]
            for each in given["predicates"]:
                check_model(each, "V2beta1Predicate", "filter")
                assert each["operation"] == "EQUALS", each
                assert each["key"] in getattr(kfp_server_api.models, model).openapi_types, each
                found = [one for one in found if one.get(each["key"]) == each["string_value"]]
        start, size = int(query.get("page_token") or 0), int(query.get("page_size") or 20)
        page = {key: found[start : start + size]}
        return page | ({"next_page_token": str(start + size)} if len(found) > start + size else {})

    # --- writing -----------------------------------------------------------------------------------------------------

    def _create_experiment(self, query, body):
        assert not query, query
        check_model(body, "V2beta1Experiment")
        self._allow(body.get("namespace", ""), "create")
        return self._kept(self.experiments, "experiment_id", body)

    def _kept(self, objects, key, body):
        found = {**body, key: str(uuid.uuid4()), "created_at": now()}
        objects[found[key]] = found
        return found

    def _create_pipeline(self, query, body):
        assert not query, query
        check_model(body, "V2beta1Pipeline")
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", body["name"]), body["name"]
        self._allow(body.get("namespace", ""), "create")
        if any(each["name"] == body["name"] for each in self.pipelines.values()):
            raise refusal(409, "Already exist error: The name facedetect already exist")
        return self._kept(self.pipelines, "pipeline_id", body)

    def _pipeline_by_name(self, query, _body, name):
        assert set(query) <= {"namespace"}, query
        self._allow(query.get("namespace", ""), "get")
        for each in self.pipelines.values():
            if each["name"] == name:
                return each
        raise refusal(404, f"Failed to get a pipeline by name. ResourceNotFoundError: Pipeline {name} not found.")

    def _upload_version(self, query, form):
        assert set(query) <= {"name", "display_name", "description", "pipelineid", "tags"}, query
        (name, file_name, content) = form[0]
        assert len(form) == 1, "one part: the file"
        assert name == "uploadfile", name
        assert file_name.endswith((".yaml", ".yml", ".zip", ".tar.gz", ".json")), file_name
        self._found(self.pipelines, query["pipelineid"])
        assert len(query["name"]) <= 127, query["name"]
        documents = list(yaml.safe_load_all(content))
        spec = {"pipeline_spec": documents[0], "platform_spec": documents[1]} if documents[1:] else documents[0]
        check_pipeline(spec)
        if any(each["name"] == query["name"] for each in self.versions.values()):
            raise Answer(409, {"error_message": "Failed to create a pipeline version", "error_details": ""})
        body = {"name": query["name"], "display_name": query["display_name"], "pipeline_id": query["pipelineid"]}
        return self._kept(self.versions, "pipeline_version_id", body | {"pipeline_spec": spec})

    def _what(self, body):
        """Checks that a run or schedule says what to run, and with which parameters."""
        assert ("pipeline_spec" in body) != ("pipeline_version_reference" in body), "one source"
        document = body.get("pipeline_spec")
        if document is None:
            reference = body["pipeline_version_reference"]
            version = self._found(self.versions, reference["pipeline_version_id"])
            assert version["pipeline_id"] == reference["pipeline_id"]
            document = version["pipeline_spec"]
        message = check_pipeline(document)
        declared = message.root.input_definitions.parameters
        kinds = {1: (int, float), 2: int, 3: str, 4: bool, 5: list, 6: dict}  # ParameterType.ParameterTypeEnum
        for name, value in body["runtime_config"]["parameters"].items():
            if name not in declared:
                raise refusal(400, f"Invalid input error: parameter {name} is not declared")
            assert isinstance(value, kinds[declared[name].parameter_type]), f"{name}: {value!r}"
        experiment = self._found(self.experiments, body["experiment_id"])
        self._allow(experiment.get("namespace", ""), "create")

    def _create_run(self, query, body):
        assert not query, query
        check_model(body, "V2beta1Run")
        self._what(body)
        run = self._kept(self.runs, "run_id", body | {"state": "PENDING", "run_details": {"task_details": []}})
        run["finished_at"] = EPOCH
        self._looks[run["run_id"]] = 0
        return run

    def _get_run(self, query, _body, run_id):
        assert not query, query
        run = self._found(self.runs, run_id)
        look = self._looks[run_id]
        self._looks[run_id] = look + 1
        if "state_history" in run:  # as seen: a run that is terminated ends as FAILED
            run["state"] = "FAILED"
            run["state_history"].append({"update_time": now(), "state": "FAILED"})
            return run
        run["state"] = self.script[min(look, len(self.script) - 1)][1]
        if not self._is_compressed(look):
            # Without nodes the server leaves the details as they were (`report_server.go`, HasNodes).
            run["run_details"] = {"task_details": [*self._task_details(run, self._workflow(look))]}
        return run

    def _is_compressed(self, look):
        return self.compressed_from is not None and look >= self.compressed_from

    def _workflow(self, look):
        tasks, _state = self.script[min(look, len(self.script) - 1)]
        return Workflow("tiny-x7", tasks, self.retried, self.messages, exit_handlers=self.exit_handlers)

    def _task_details(self, run, workflow):
        """As `toApiPipelineTaskDetail` gives them: by random ids, without a node's path or pod (#14007)."""
        common = {"run_id": run["run_id"], "create_time": run["created_at"]}
        found = []
        for node in workflow.nodes.values():
            times = {"start_time": node["startedAt"], "end_time": node.get("finishedAt", "0001-01-01T00:00:00Z")}
            children = [{"pod_name": each} for each in node.get("children", [])]
            found.append(
                common | times | {
                    "task_id": str(uuid.uuid4()), "display_name": node["displayName"], "state": STATES[node["phase"]],
                } | ({"child_tasks": children} if children else {})
            )  # fmt: skip
            if node["type"] == "Pod" and node["displayName"].endswith("-driver(0)"):  # what the driver tells of itself
                found.append(common | times | {"task_id": str(uuid.uuid4()), "execution_id": "7"})
        return sorted(found, key=lambda each: each["task_id"])

    def workflow(self, run_id):
        """The Argo workflow of a run, as the older API keeps it: whatever Argo wrote, compressed or not."""
        look = max(0, self._looks.get(run_id, len(self.script)) - 1)
        document = self._workflow(look).document(run_id, self._is_compressed(look))
        document["status"] |= {"message": self.message} if self.message else {}
        return document

    def pod(self, task):
        """The name of the pod that ran a stage."""
        workflow = self._workflow(len(self.script) - 1)
        return workflow.pod(workflow.executor(task))

    def driver_pod(self, task):
        """The name of the pod of a stage's driver."""
        workflow = self._workflow(len(self.script) - 1)
        return workflow.pod(workflow.driver(task))

    def _log(self, pod, run_id, namespace):
        self._found(self.runs, run_id)
        if namespace is not None:
            self._allow(namespace, "readLog")
        if pod not in self.logs and self.is_ui:
            raise Answer(500, "Could not get main container logs: Error: unable to find pod log archive", "text/plain")
        if pod not in self.logs:  # `ReadRunLogV1` says 200 before it looks
            said = {"error_message": "BadRequestError: Failed to read logs", "error_details": "BadRequestError: ..."}
            raise Answer(200, json.dumps(said, separators=(",", ":")), "text/plain; charset=utf-8")
        return self.logs[pod], "text/plain; charset=utf-8", {}

    def _terminate(self, query, body, run_id):
        assert not query, query
        assert body == {}, body
        run = self._found(self.runs, run_id)
        run["state"] = "CANCELING"
        run["state_history"] = [{"update_time": now(), "state": state} for state in ("RUNNING", "CANCELING")]
        return {}

    def _create_schedule(self, query, body):
        assert not query, query
        check_model(body, "V2beta1RecurringRun")
        self._what(body)
        assert 1 <= int(body["max_concurrency"]) <= 10, "max_concurrency"
        (trigger,) = body["trigger"].values()
        if "cron" in trigger:
            assert len(trigger["cron"].split()) == 6 or trigger["cron"].startswith("@"), trigger
        else:
            assert int(trigger["interval_second"]) >= 1
        assert body["mode"] == "ENABLE"
        return self._kept(self.schedules, "recurring_run_id", body | {"status": "ENABLED"})

    def _delete_schedule(self, query, _body, schedule_id):
        assert not query, query
        self._found(self.schedules, schedule_id)
        del self.schedules[schedule_id]
        return {}

    def _switch(self, query, body, schedule_id, verb):
        assert not query, query
        assert body == {}, body
        self._found(self.schedules, schedule_id)["status"] = verb.upper() + "D"
        return {}


class Kubernetes(Stub):
    """A Kubernetes API server that answers what `gridbox doctor` and `gridbox logs` ask."""

    def __init__(self, namespace="kubeflow", token="a-token-of-kubernetes", certificate=None):
        super().__init__(token, certificate)
        self.namespace = namespace
        self.secrets, self.nodes, self.pods, self.config_maps = set(), [], [], {}
        self.claims = {}  # by name, the status
        self.workflows = []
        # By path, whatever else is there: the objects of the installation of 2.17 (env/platform-agnostic).
        self.objects = dict(INSTALLATION)
        self.logs = {}
        self.denied = set()  # (verb, resource with its subresource)

    def kubeconfig(self, file):
        """Writes the file that leads here."""
        cluster = {"server": self.url}
        document = {
            "apiVersion": "v1", "kind": "Config", "current-context": "stub",
            "clusters": [{"name": "stub", "cluster": cluster}],
            "users": [{"name": "stub", "user": {"token": self.token}}],
            "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "stub"}}],
        }  # fmt: skip
        file.write_text(yaml.safe_dump(document))
        return file

    def _may(self, verb, resource):
        if (verb, resource) in self.denied:
            raise Answer(
                403, {"kind": "Status", "message": f'{resource} is forbidden: User "ada" cannot {verb} {resource}'}
            )

    def _route(self, method, path, query, body, headers):
        if path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews" and method == "POST":
            attributes = body["spec"]["resourceAttributes"]
            assert set(attributes) <= {"namespace", "verb", "group", "resource", "subresource"}, attributes
            assert "/" not in attributes["resource"], "a subresource has a field of its own"
            resource = "/".join(filter(None, [attributes["resource"], attributes.get("subresource", "")]))
            return {"status": {"allowed": (attributes["verb"], resource) not in self.denied}}
        assert method == "GET", "nothing is changed"
        if found := re.fullmatch(r"/apis/argoproj.io/v1alpha1/namespaces/([^/]+)/workflows", path):
            self._may("list", "workflows")
            return {"items": [each for each in self.workflows if self._bears(each, query)]}
        if path == "/api/v1/nodes":
            self._may("list", "nodes")
            return {"items": self.nodes}
        if path in self.objects:
            self._may("get", path.split("/")[-2])
            return self.objects[path]
        found = re.fullmatch(r"/api/v1/namespaces/([^/]+)/([a-z]+)(?:/([^/]+))?(/log)?", path)
        if found is None:
            raise self._missing(*path.split("/")[-2:])
        namespace, kind, name, log = found.groups()
        assert namespace == self.namespace, namespace
        if log:
            assert query["container"] == "main"
            if name not in self.logs:
                raise self._missing(kind, name)
            return self.logs[name], "text/plain", {}
        if kind == "pods" and not name:
            return {"items": [pod for pod in self.pods if self._bears(pod, query)]}
        self._may("get", kind)
        if kind == "secrets":
            assert "PartialObjectMetadata" in headers["Accept"], "a secret's content is none of our business"
        known = {"secrets": self.secrets, "persistentvolumeclaims": self.claims, "configmaps": self.config_maps}[kind]
        if name not in known:
            raise self._missing(kind, name)
        more = {"configmaps": "data", "persistentvolumeclaims": "status"}.get(kind)
        return {"metadata": {"name": name}} | ({more: known[name]} if more else {})

    @staticmethod
    def _bears(document, query):
        key, _, value = query["labelSelector"].partition("=")
        return document["metadata"]["labels"].get(key) == value

    def _missing(self, kind, name):
        return Answer(404, {"kind": "Status", "message": f'{kind} "{name}" not found', "details": {"name": name}})


def certificates(folder, address="127.0.0.1"):
    """Makes an authority and a certificate for an address; returns (authority's file, (chain, key))."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def name(text):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def builder(subject, public_key):
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("authority of a test"))
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + datetime.timedelta(days=7))
        )

    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    authority = (
        builder("authority of a test", authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    leaf = (
        builder("kubeflow of a test", key.public_key())
        .add_extension(names, critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    files = [folder / f"{each}.pem" for each in ("authority", "leaf", "key")]
    files[0].write_bytes(authority.public_bytes(pem))
    files[1].write_bytes(leaf.public_bytes(pem))
    private = serialization.PrivateFormat.PKCS8
    files[2].write_bytes(key.private_bytes(pem, private, serialization.NoEncryption()))
    return files[0], (files[1], files[2])
