"""The Argo workflow of a run, as Kubeflow Pipelines 2.17.0 makes it and Argo 4.0.5 keeps it, built from its stages.

`test_kubeflow_recordings.py` holds it against a recorded one, node by node. Its rules: every driver and every executor
is a Retry node and a Pod, since the installation gives each template a retryStrategy; a task is a Retry node and a DAG;
a node's id is the workflow's name and FNV-1a of the node's name; a stage that is taken from the cache has an executor
that is Skipped; one that cannot run is Omitted, as is its driver.
"""

import base64
import gzip
import json
import re

PHASES = {
    "SUCCEEDED": "Succeeded",
    "FAILED": "Failed",
    "RUNNING": "Running",
    "PENDING": "Pending",
    "CACHED": "Succeeded",
}
STATES = {  # backend/src/apiserver/model/run.go: phases of Argo in the words of the API
    "Pending": "PENDING", "Running": "RUNNING", "Succeeded": "SUCCEEDED", "Skipped": "SKIPPED", "Omitted": "SKIPPED",
    "Failed": "FAILED", "Error": "FAILED",
}  # fmt: skip


def fnv(text):
    """FNV-1a of 32 bits, as Go's hash/fnv has it."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 % (1 << 32)
    return value


class Workflow:
    """A workflow whose stages are at these states: RUNNING, SUCCEEDED, CACHED, SKIPPED, FAILED, DRIVER_FAILED."""

    def __init__(self, name, states, retried=(), messages=None, seconds=10, exit_handlers=None):
        """`exit_handlers`: by the path of an exit task, the group that it follows, as `serve.exit-handler-1`."""
        self.name, self.retried, self.messages, self.seconds = name, set(retried), messages or {}, seconds
        self.nodes = {}
        self._clock = 0
        worst = next(
            (each for each in ("FAILED", "RUNNING") if each in {_own(s) for s in states.values()}), "SUCCEEDED"
        )
        self._tries(name, "Retry", "DAG", "entrypoint", PHASES[worst])
        self._driver(f"{name}(0).root", "system-dag-driver", "Succeeded" if states else "Failed")
        if states:  # else nothing could begin
            self._tries(f"{name}(0).root", "Retry", "DAG", "root", PHASES[worst])
        for path, state in states.items():
            self._stage(path, state, states, (exit_handlers or {}).get(path))

    def document(self, run_id, compressed=False):
        """The Workflow object; compressed, as Argo writes it from 1 MiB on."""
        status = {"phase": self.nodes[self.name]["phase"], "progress": "1/2"}
        if compressed:
            packed = gzip.compress(json.dumps(self.nodes).encode())
            status["compressedNodes"] = base64.b64encode(packed).decode()
        else:
            status["nodes"] = self.nodes
        metadata = {
            "name": self.name, "labels": {"pipeline/runid": run_id},
            "annotations": {"workflows.argoproj.io/pod-name-format": "v2"},
        }  # fmt: skip
        return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": metadata, "status": status}

    def pod(self, node_name):
        """The name of a node's pod (`RetrievePodName` in backend/src/common/util/workflow.go)."""
        (node,) = [each for each in self.nodes.values() if each["name"] == node_name]
        return f"{self.name}-{node['templateName']}-{node['id'].rpartition('-')[2]}"

    def executor(self, path):
        """The name of the node of a stage's pod."""
        return self._named(path, "(0).executor(0)")

    def driver(self, path):
        """The name of the node of the pod of a stage's driver."""
        return self._named(path, "-driver(0)")

    def _named(self, path, end):
        wanted = re.compile(r"[^.]*\.root\." + path.replace(".", r"\.(?:[^.]+\.onExit\.)?"))
        (found,) = [
            name
            for name in self._names()
            if name.endswith(end) and wanted.fullmatch(name.removesuffix(end).replace("(0)", ""))
        ]
        return found

    def _names(self):
        return [each["name"] for each in self.nodes.values()]

    def _stage(self, path, state, states, group):
        above, _, key = path.rpartition(".")
        prefix = f"{self.name}(0).root(0)" + "".join(f".{each}(0)" for each in above.split(".") if each)
        if group:
            prefix = self._on_exit(prefix, group, PHASES.get(state, "Failed"))
        else:
            self._dags(above, states)
        template = ("retry-" if path in self.retried else "") + "system-container"
        if state in ("SKIPPED", "DRIVER_FAILED"):
            omitted = {"message": "omitted: depends condition not met"}
            if state == "SKIPPED":
                self._node(f"{prefix}.{key}-driver", "Skipped", "system-container-driver", "Omitted", **omitted)
            else:
                self._driver(f"{prefix}.{key}", "system-container-driver", "Failed")
            self._node(f"{prefix}.{key}", "Skipped", f"{template}-executor", "Omitted", **omitted)
            return
        self._driver(f"{prefix}.{key}", "system-container-driver", "Succeeded")
        self._tries(f"{prefix}.{key}", "Retry", "DAG", f"{template}-executor", PHASES[state])
        executor = f"{prefix}.{key}(0).executor"
        if state == "CACHED":
            when = {"message": "when 'true != true' evaluated false"}
            self._node(executor, "Skipped", f"{template}-impl", "Skipped", **when)
            return
        said = {"message": self.messages.get(path, "main: Error (exit code 1)")} if state == "FAILED" else {}
        self._tries(executor, "Retry", "Pod", f"{template}-impl", PHASES[state], **said)

    def _dags(self, above, states):
        """The nodes of the sub-pipelines and groups above a stage."""
        prefix, walked = f"{self.name}(0).root(0)", ""
        for key in filter(None, above.split(".")):
            walked = f"{walked}.{key}".lstrip(".")
            inside = {_own(state) for path, state in states.items() if path.startswith(f"{walked}.")}
            phase = next((PHASES[each] for each in ("FAILED", "RUNNING") if each in inside), "Succeeded")
            if f"{prefix}.{key}" not in self._names():
                self._driver(f"{prefix}.{key}", "system-dag-driver", "Succeeded")
                self._tries(f"{prefix}.{key}", "Retry", "DAG", f"comp-{key}", phase)
            prefix += f".{key}(0)"

    def _on_exit(self, prefix, group, phase):
        name = f"{prefix}.{group.rpartition('.')[2]}.onExit"
        self._tries(name, "Retry", "DAG", "exit-hook-root-conclude", phase)
        return f"{name}(0)"

    def _driver(self, name, template, phase):
        said = {"message": "main: Error (exit code 1)"} if phase == "Failed" else {}
        self._tries(f"{name}-driver", "Retry", "Pod", template, phase, **said)

    def _tries(self, name, outer, inner, template, phase, **more):
        self._node(name, outer, template, phase, children=[self._id(f"{name}(0)")], **more)
        self._node(f"{name}(0)", inner, template, phase, **more)

    def _node(self, name, kind, template, phase, **more):
        self._clock += 1
        ended = {"finishedAt": _time(self._clock + self.seconds)} if phase not in ("Running", "Pending") else {}
        self.nodes[self._id(name)] = {
            "id": self._id(name), "name": name, "displayName": name.rpartition(".")[2], "type": kind,
            "templateName": template, "phase": phase, "startedAt": _time(self._clock), **ended, **more,
        }  # fmt: skip

    def _id(self, name):
        return name if name == self.name else f"{self.name}-{fnv(name)}"


def _own(state):
    return "FAILED" if state == "DRIVER_FAILED" else state


def _time(seconds):
    return f"2026-11-30T21:{seconds // 60:02}:{seconds % 60:02}Z"
