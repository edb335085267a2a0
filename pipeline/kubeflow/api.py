"""The calls of the Kubeflow Pipelines API (v2beta1) that the commands make, with their answers as types."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from components.step import UserError
from pipeline.kubeflow.connection import MESSAGE_LETTERS, Connection, Document, Refused
from pipeline.package import Package, from_documents

BASE = "apis/v2beta1"
PAGE = 50
ENDED = frozenset({"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"})
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Server:
    """What answers at the endpoint.

    Attributes:
        version: Of the API server, as `2.17.0`; empty where it does not say.
        is_shared: Whether it keeps several users apart by namespaces.
        is_ui: Whether the UI's server answers, which passes calls on and serves logs of its own.
        pipeline_store: Where it keeps pipelines: `database` or `kubernetes`; empty where it does not say.
    """

    version: str
    is_shared: bool
    is_ui: bool
    pipeline_store: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """A node of a run: `name` is the task's in the pipeline, or one of Kubeflow's own beside it."""

    name: str
    state: str
    started: datetime | None
    seconds: float | None
    error: str


@dataclass(frozen=True, slots=True)
class Run:
    """A run. `version_id` is empty for one whose pipeline was sent along, which `spec` then holds."""

    id: str
    name: str
    state: str
    created: datetime | None
    finished: datetime | None
    experiment_id: str
    error: str
    tasks: tuple[Task, ...]
    pipeline_id: str
    version_id: str
    spec: Document | None


@dataclass(frozen=True, slots=True)
class Pipeline:
    """An uploaded pipeline."""

    id: str
    name: str
    created: datetime | None


@dataclass(frozen=True, slots=True)
class Version:
    """A version of an uploaded pipeline."""

    id: str
    pipeline_id: str
    name: str
    created: datetime | None
    spec: Document


@dataclass(frozen=True, slots=True)
class Schedule:
    """A recurring run: `trigger` says when, in words."""

    id: str
    name: str
    is_enabled: bool
    trigger: str
    created: datetime | None


class Kubeflow:
    """The API of one server, for one namespace."""

    def __init__(self, connection: Connection, namespace: str) -> None:
        self.connection = connection
        self.namespace = namespace

    def server(self) -> Server:
        """Asks who answers."""
        health = self._call("GET", "healthz")
        tag = str(health.get("apiServerTagName") or health.get("tag_name") or "")
        is_shared = bool(health.get("apiServerMultiUser", health.get("multi_user")))
        version = tag if re.match(r"v?\d+\.\d+", tag) else ""
        pipeline_store = str(health.get("pipeline_store") or health.get("pipelineStore") or "")
        return Server(version.removeprefix("v"), is_shared, "apiServerReady" in health, pipeline_store)

    # --- pipelines ---------------------------------------------------------------------------------------------------

    def pipelines(self, limit: int) -> list[Pipeline]:
        """Lists the newest pipelines."""
        return [_pipeline(each) for each in self._listed("pipelines", "pipelines", limit)]

    def pipeline(self, name: str) -> Pipeline | None:
        """Returns the pipeline of this name, or None."""
        try:
            found = self._call("GET", f"pipelines/names/{quote(name, safe='')}", {"namespace": self.namespace})
        except Refused as error:
            if error.status == 404:
                return None
            raise
        return _pipeline(found)

    def create_pipeline(self, name: str, description: str) -> Pipeline:
        """Creates a pipeline without versions."""
        body = {"name": name, "display_name": name, "description": description, "namespace": self.namespace}
        return _pipeline(self._call("POST", "pipelines", body={key: text for key, text in body.items() if text}))

    def version(self, pipeline: Pipeline, name: str = "") -> Version | None:
        """Returns the version of this name, or the newest one, or None."""
        wanted = _equals("name", name) if name else {}
        found = self._listed(f"pipelines/{pipeline.id}/versions", "pipeline_versions", 1, wanted, of_namespace=False)
        return _version(found[0]) if found else None

    def version_by_id(self, pipeline_id: str, version_id: str) -> Version:
        """Returns a version."""
        return _version(self._call("GET", f"pipelines/{pipeline_id}/versions/{version_id}"))

    def upload_version(self, pipeline: Pipeline, package: Package) -> Version:
        """Uploads a compiled pipeline as a version that is named after its content."""
        name = package.version_name
        query = {"name": name, "display_name": name, "pipelineid": pipeline.id}
        return _version(
            self.connection.upload(f"{BASE}/pipelines/upload_version", query, f"{name}.yaml", package.text())
        )

    # --- runs --------------------------------------------------------------------------------------------------------

    def experiment(self, name: str) -> str:
        """Returns the id of an experiment, which is created where it is missing."""
        found = self._listed("experiments", "experiments", 1, _equals("display_name", name))
        if not found:
            body = {"display_name": name} | ({"namespace": self.namespace} if self.namespace else {})
            found = [self._call("POST", "experiments", body=body)]
        return str(found[0]["experiment_id"])

    def create_run(self, body: Document) -> Run:
        """Starts a run."""
        return _run(self._call("POST", "runs", body=body))

    def run(self, run_id: str) -> Run:
        """Returns a run."""
        return _run(self._call("GET", f"runs/{quote(run_id, safe='')}"))

    def find_run(self, text: str) -> Run:
        """Returns the run of this id, or the newest one of this name.

        Raises:
            Refused: There is none.
        """
        if _ID.fullmatch(text):
            return self.run(text)
        found = self._listed("runs", "runs", 1, _equals("display_name", text))
        if not found:
            raise Refused(f"{text}: there is no run of this name or id; see gridbox list runs", 404)
        return self.run(str(found[0]["run_id"]))

    def runs(self, limit: int) -> list[Run]:
        """Lists the newest runs."""
        return [_run(each) for each in self._listed("runs", "runs", limit)]

    def terminate(self, run_id: str) -> None:
        """Ends a run; doing so twice does no harm."""
        self._call("POST", f"runs/{run_id}:terminate", body={}, repeatable=True)

    def package_of(self, run: Run) -> Package | None:
        """Returns what a run runs, or None where that is gone."""
        if run.spec:
            return from_documents(f"run {run.id}", run.spec)
        if not (run.pipeline_id and run.version_id):
            return None
        try:
            return from_documents(f"run {run.id}", self.version_by_id(run.pipeline_id, run.version_id).spec)
        except Refused as error:
            if error.status != 404:
                raise
            return None

    def workflow(self, run_id: str) -> Document | None:
        """Returns the Argo workflow behind a run, or None: only servers before 3.0 tell, by their older API.

        Raises:
            Refused: The server has no such API, or denies it to all.
            Unavailable: The server cannot be reached or fails.
        """
        detail = self.connection.json("GET", f"apis/v1beta1/runs/{run_id}")
        try:
            manifest = json.loads((detail.get("pipeline_runtime") or {}).get("workflow_manifest") or "null")
        except ValueError:
            return None
        return manifest if isinstance(manifest, dict) else None

    def log(self, server: Server, run_id: str, pod: str) -> Iterator[str]:
        """Yields the lines that a pod has printed so far; the server looks into its archive when the pod is gone."""
        if server.is_ui:
            query: dict[str, str | int] = {"podname": pod, "runid": run_id, "podnamespace": self.namespace}
            return self.connection.lines("k8s/pod/logs", query)
        return _log_lines(self.connection.lines(f"apis/v1alpha1/runs/{run_id}/nodes/{pod}/log", {}))

    # --- schedules ---------------------------------------------------------------------------------------------------

    def create_schedule(self, body: Document) -> Schedule:
        """Creates a recurring run."""
        return _schedule(self._call("POST", "recurringruns", body=body))

    def schedules(self, limit: int) -> list[Schedule]:
        """Lists the newest recurring runs."""
        return [_schedule(each) for each in self._listed("recurringruns", "recurringRuns", limit)]

    def has_schedule(self, name: str) -> bool:
        """Returns whether there is a schedule of this name."""
        return bool(self._listed("recurringruns", "recurringRuns", 1, _equals("display_name", name)))

    def find_schedule(self, text: str) -> Schedule:
        """Returns the schedule of this id or name.

        Raises:
            Refused: There is none.
            UserError: There are several of this name.
        """
        if _ID.fullmatch(text):
            return _schedule(self._call("GET", f"recurringruns/{text}"))
        found = self._listed("recurringruns", "recurringRuns", 2, _equals("display_name", text))
        if not found:
            raise Refused(f"{text}: there is no schedule of this name or id; see gridbox schedule list", 404)
        if len(found) > 1:
            raise UserError(f"{text}: several schedules have this name; say the id that gridbox schedule list shows")
        return _schedule(found[0])

    def enable_schedule(self, schedule_id: str, enabled: bool) -> None:
        """Lets a schedule start runs, or not; doing so twice does no harm."""
        verb = "enable" if enabled else "disable"
        self._call("POST", f"recurringruns/{schedule_id}:{verb}", body={}, repeatable=True)

    def delete_schedule(self, schedule_id: str) -> None:
        """Deletes a schedule; the runs that it started stay."""
        self._call("DELETE", f"recurringruns/{schedule_id}")

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int] | None = None,
        body: Document | None = None,
        repeatable: bool = False,
    ) -> Document:
        return self.connection.json(method, f"{BASE}/{path}", query, body, repeatable)

    def _listed(
        self,
        path: str,
        key: str,
        limit: int,
        query: Mapping[str, str | int] | None = None,
        of_namespace: bool = True,
    ) -> list[Document]:
        """Lists the newest objects first, page by page."""
        asked: dict[str, str | int] = {"sort_by": "created_at desc", **(query or {})}
        if of_namespace:
            asked["namespace"] = self.namespace
        found: list[Document] = []
        while len(found) < limit:
            page = self._call("GET", path, asked | {"page_size": min(limit - len(found), PAGE)})
            found += page.get(key) or page.get(_camel_or_snake(key)) or []
            asked["page_token"] = str(page.get("next_page_token") or page.get("nextPageToken") or "")
            if not asked["page_token"]:
                break
        return found[:limit]


def _camel_or_snake(key: str) -> str:
    """Returns the other spelling of a key: servers have changed theirs."""
    return {"recurringRuns": "recurring_runs", "pipeline_versions": "pipelineVersions"}.get(key, key)


def _equals(key: str, text: str) -> dict[str, str | int]:
    predicate = {"operation": "EQUALS", "key": key, "stringValue": text}
    return {"filter": json.dumps({"predicates": [predicate]})}


def _time(document: Document, key: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(document[key])
    except (KeyError, TypeError, ValueError):
        return None
    return time if time > datetime(1971, 1, 1, tzinfo=UTC) else None  # a time that has not come is that of the epoch


def _message(document: Document) -> str:
    return " ".join(str((document.get("error") or {}).get("message") or "").split())


def _task(document: Document) -> Task:
    start, end = _time(document, "start_time"), _time(document, "end_time")
    return Task(
        name=str(document.get("name") or document.get("display_name") or ""),
        state=str(document.get("state") or ""),
        started=start,
        seconds=(end - start).total_seconds() if start and end else None,
        error=_message(document),
    )


def _log_lines(lines: Iterator[str]) -> Iterator[str]:
    """The API server says 200 before it looks for the log; what it says when there is none comes as its only line."""
    first = next(lines, None)
    if first is None:
        return
    if first.startswith('{"error_message":'):
        said = first
        with contextlib.suppress(ValueError):
            said = str(json.loads(first)["error_message"])
        raise Refused(" ".join(said.split())[:MESSAGE_LETTERS], 404)
    yield first
    yield from lines


def _run_state(document: Document) -> str:
    """Returns a run's state; one that was cancelled ends as FAILED (2.17), and its history alone says why."""
    state = str(document.get("state") or "PENDING")
    was_cancelled = any(each.get("state") == "CANCELING" for each in document.get("state_history") or [])
    return "CANCELED" if state == "FAILED" and was_cancelled else state


def _run(document: Document) -> Run:
    reference = document.get("pipeline_version_reference") or {}
    return Run(
        id=str(document["run_id"]),
        name=str(document.get("display_name", "")),
        state=_run_state(document),
        created=_time(document, "created_at"),
        finished=_time(document, "finished_at"),
        experiment_id=str(document.get("experiment_id", "")),
        error=_message(document),
        tasks=tuple(_task(each) for each in (document.get("run_details") or {}).get("task_details") or []),
        pipeline_id=str(reference.get("pipeline_id", "")),
        version_id=str(reference.get("pipeline_version_id", "")),
        spec=document.get("pipeline_spec") or None,
    )


def _pipeline(document: Document) -> Pipeline:
    name = str(document.get("name") or document.get("display_name") or "")
    return Pipeline(str(document["pipeline_id"]), name, _time(document, "created_at"))


def _version(document: Document) -> Version:
    return Version(
        id=str(document["pipeline_version_id"]),
        pipeline_id=str(document.get("pipeline_id", "")),
        name=str(document.get("name") or document.get("display_name") or ""),
        created=_time(document, "created_at"),
        spec=document.get("pipeline_spec") or {},
    )


def _schedule(document: Document) -> Schedule:
    return Schedule(
        id=str(document["recurring_run_id"]),
        name=str(document.get("display_name", "")),
        is_enabled=document.get("status") == "ENABLED",
        trigger=_trigger(document.get("trigger") or {}),
        created=_time(document, "created_at"),
    )


def _trigger(document: dict[str, Any]) -> str:
    cron = str((document.get("cron_schedule") or {}).get("cron") or "")
    if len(cron.split()) == 6:  # Kubeflow's begins with seconds, which people leave away
        cron = cron.removeprefix("0 ")
    seconds = (document.get("periodic_schedule") or {}).get("interval_second")
    return f"cron {cron}" if cron else f"every {seconds} s" if seconds else "never"
