"""The Argo Workflow of a run at its end, built from the compiled file: how large will it be?

Follows Kubeflow Pipelines 2.17.0 (`backend/src/v2/compiler/argocompiler`: arguments, templates, tasks;
`backend/src/v2/driver`: executor input and pod-spec-patch) and Argo 4.0 (a Retry node round every node, since the
installation's `templateDefaults` have a retry strategy). `test_workflow_size.py` holds it against a recorded Workflow.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.package import Package

Document = dict[str, Any]

# What the recorded installation is called, and the lengths of what it makes up for every run.
_RUN, _UUID, _NODE = "0" * 36, "0" * 36, "0" * 10
_ROOT = "minio://mlpipeline/v2/artifacts"
_SESSION = json.dumps(
    {
        "Provider": "minio",
        "Params": {
            "accessKeyKey": "accesskey",
            "disableSSL": "true",
            "endpoint": "seaweedfs.kubeflow:9000",
            "fromEnv": "false",
            "maxRetries": "5",
            "region": "minio",
            "secretKeyKey": "secretkey",
            "secretName": "mlpipeline-minio-artifact",
        },
    },
    separators=(",", ":"),
)
_LAUNCHER = [
    *("--pod_name", "$(KFP_POD_NAME)", "--pod_uid", "$(KFP_POD_UID)"),
    *("--ml_pipeline_server_address", "ml-pipeline.kubeflow.svc.cluster.local", "--ml_pipeline_server_port", "8887"),
    *("--mlmd_server_address", "metadata-grpc-service.kubeflow.svc.cluster.local", "--mlmd_server_port", "8080"),
    *("--publish_logs", "true", "--publish_logs", "true", "--"),
]
# The fixed templates: driver and executor of a container, the same with retries, driver of a DAG.
_FIXED_TEMPLATES = 2430 + 484 + 2038 + 1029 + 2479 + 2242
_RETRY = ("retry-max-count", "retry-backoff-duration", "retry-backoff-factor", "retry-backoff-max-duration")


@dataclass
class EndedWorkflow:
    """The bytes of a Workflow at its end, by what they are spent on.

    Attributes:
        spec: Bytes of the specification.
        nodes: Bytes of `status.nodes`, uncompressed.
        by_stage: Of both, the bytes that a task's name accounts for.
    """

    spec: int = 0
    nodes: int = 0
    by_stage: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Bytes of the whole object: the rest of metadata and status is about 1.6 KB."""
        return self.spec + self.nodes + 1600

    def largest(self, count: int = 5) -> str:
        """Says what costs most, one a line."""
        return "\n".join(f"  {size:>9,} bytes  {name}" for name, size in self.by_stage.most_common(count))


def ended_workflow(
    package: Package, arguments: Mapping[str, Any], metadata: Mapping[tuple[str, str], Mapping[str, Any]], least: int
) -> EndedWorkflow:
    """Builds the Workflow of a run in which every stage ran once and succeeded.

    Args:
        package: The compiled pipeline.
        arguments: Values of parameters that differ from its defaults.
        metadata: By stage's task and output, an artifact's metadata.
        least: Bytes to assume for the metadata of an artifact that is not listed.
    """
    return _Builder(package, arguments, metadata, least).build()


class _Builder:
    def __init__(
        self,
        package: Package,
        arguments: Mapping[str, Any],
        metadata: Mapping[tuple[str, str], Mapping[str, Any]],
        least: int,
    ) -> None:
        self.package, self.metadata, self.least = package, metadata, least
        self.components = package.spec["components"]
        self.executors = package.spec["deploymentSpec"]["executors"]
        kubernetes = (package.platform.get("platforms") or {}).get("kubernetes") or {}
        self.kubernetes = (kubernetes.get("deploymentSpec") or {}).get("executors") or {}
        self.values = {name: each.get("defaultValue", "") for name, each in package.parameters.items()}
        self.values |= dict(arguments)
        self.result = EndedWorkflow()
        self.arguments: set[str] = set()

    def build(self) -> EndedWorkflow:
        root = self.package.spec["root"]
        runtime = _compact({"parameterValues": self.values})
        self._argument("root", "components-root", _compact(root))
        entry = {"component": "{{workflow.parameters.components-root}}", "runtime-config": runtime}
        self._spec("root", _template("entrypoint", [_parameters(entry)]) + 900)
        self._dag_nodes("root", "", {"component": _compact(root), "runtime-config": runtime, "task": ""}, "root")
        self.result.spec += _FIXED_TEMPLATES + 700
        self._nodes("root", _dag_node("", {}), 2)
        self._walk("root", root["dag"], "(0).root(0)", self.values)
        return self.result

    def _walk(self, dag_name: str, dag: Document, path: str, values: Mapping[str, Any]) -> None:
        """Adds a DAG's template and the nodes of its tasks."""
        self._spec(dag_name, _template(dag_name, []))
        for name, task in dag["tasks"].items():
            component = self.components[task["componentRef"]["name"]]
            given = {key: self._value(source, values) for key, source in _inputs(task, "parameters")}
            is_exit = "strategy" in (task.get("triggerPolicy") or {})
            if is_exit:
                self._nodes(name, _dag_node(path, {"parent-dag-id": "1"}), 2)
                self._spec(name, _template(f"exit-hook-{dag_name}-{name}", []))
            if "dag" in component:
                label = task["componentRef"]["name"]
                self._argument(name, f"components-{label}", _compact(component))
                driver = {"component": f"{{{{workflow.parameters.components-{label}}}}}", "task": _compact(task)}
                self._spec(name, _task(f"{name}-driver", driver) + _task(name, {"parent-dag-id": "{{tasks…}}"}) + 250)
                inputs = {"component": _compact(component), "runtime-config": "", "task": _compact(task)}
                self._dag_nodes(name, path, inputs, name)
                self._walk(label, component["dag"], f"{path}.{name}(0)", given)
            else:
                self._stage(name, task, component, f"{path}.{name}", given)

    def _stage(self, name: str, task: Document, component: Document, path: str, given: Mapping[str, Any]) -> None:
        label = component["executorLabel"]
        container = self.executors[label]["container"]
        config = _compact(self.kubernetes[label]) if label in self.kubernetes else ""
        text = _compact({key: value for key, value in component.items() if key != "executorLabel"})
        digest = f"{hash((text, _compact(container))):064x}"[-64:]
        self._argument(name, f"components-{digest}", _compact(component))
        self._argument(name, f"implementations-{digest}", _compact(container))
        self._argument(name, f"kubernetes-comp-{name}", config)
        retry = _retry(task)
        driver = {
            "component": f"{{{{workflow.parameters.components-{digest}}}}}",
            "task": _compact(task),
            "container": f"{{{{workflow.parameters.implementations-{digest}}}}}",
            "task-name": name,
            "parent-dag-id": "{{inputs.parameters.parent-dag-id}}",
            "kubernetes-config": f"{{{{workflow.parameters.kubernetes-comp-{name}}}}}",
        }
        executor = {
            "pod-spec-patch": f"{{{{tasks.{name}-driver.outputs.parameters.pod-spec-patch}}}}",
            "cached-decision": f"{{{{tasks.{name}-driver.outputs.parameters.cached-decision}}}}",
            **retry,
        }
        self._spec(name, _task(f"{name}-driver", driver) + _task(name, executor) + 60)
        patch = self._patch(name, component, container, label, given, task)
        inputs = {
            "component": _compact(component),
            "task": _compact(task),
            "container": _compact(container),
            "task-name": name,
            "parent-dag-id": "2",
            "iteration-index": "-1",
            "kubernetes-config": config,
        }
        outputs = {"pod-spec-patch": patch, "cached-decision": "false", "condition": "nil"}
        self._nodes(name, _pod_node(f"{path}-driver", inputs, outputs), 2)
        self._nodes(name, _dag_node(path, {"pod-spec-patch": patch, "cached-decision": "false", **retry}), 2)
        self._nodes(name, _pod_node(f"{path}(0).executor", {"pod-spec-patch": patch, **retry}, {}), 2)

    def _patch(
        self,
        name: str,
        component: Document,
        container: Document,
        label: str,
        given: Mapping[str, Any],
        task: Document,
    ) -> str:
        declared = json.loads(json.dumps(component))
        outputs = declared.setdefault("outputDefinitions", {}).setdefault("artifacts", {})
        outputs["executor-logs"] = {"artifactType": {"schemaTitle": "system.Artifact"}}
        main = {
            "name": "main",
            "image": container["image"],
            "command": [
                *("/kfp-launcher/launch", "--pipeline_name", self.package.name, "--run_id", _RUN),
                *(
                    "--execution_id",
                    "11",
                    "--executor_input",
                    _spaced(self._executor_input(name, declared, given, task)),
                ),
                *("--component_spec", _spaced(declared), *_LAUNCHER),
            ],
            "args": [*container.get("command", []), *container.get("args", [])],
            "resources": container.get("resources") or {},
            "securityContext": {"capabilities": {"drop": ["ALL"]}},
            "env": [*(container.get("env") or []), *self._secret_variables(label)],
        }
        config = {key: each for key, each in self.kubernetes.get(label, {}).items() if key != "secretAsEnv"}
        return _compact({"containers": [main], **config})

    def _secret_variables(self, label: str) -> Iterator[Document]:
        for secret in self.kubernetes.get(label, {}).get("secretAsEnv") or []:
            for pair in secret["keyToEnv"]:
                reference = {"name": secret["secretName"], "key": pair["secretKey"], "optional": True}
                yield {"name": pair["envVar"], "valueFrom": {"secretKeyRef": reference}}

    def _executor_input(self, name: str, component: Document, given: Mapping[str, Any], task: Document) -> Document:
        folder = f"{_ROOT}/{self.package.name}/{_RUN}/{name}/{_UUID}"
        artifacts = {}
        for key, source in _inputs(task, "artifacts"):
            producer, output = self._producer(source, key)
            told = self.metadata.get((producer, output)) or {"x" * (self.least - 5): 1}
            artifacts[key] = {
                "name": "17",
                "type": {"instanceSchema": ""},
                "uri": f"{_ROOT}/{self.package.name}/{_RUN}/{producer}/{_UUID}/{output}",
                "metadata": {"display_name": output, **told, "store_session_info": _SESSION},
            }
        declared = component["outputDefinitions"]
        outputs: Document = {
            "artifacts": {
                key: {"artifacts": [{"name": key, "type": dict(each["artifactType"]), "uri": f"{folder}/{key}"}]}
                for key, each in declared["artifacts"].items()
            },
            "outputFile": f"{folder.replace('minio://', '/minio/')}/output_metadata.json",
        }
        if parameters := declared.get("parameters"):
            at = folder.replace("minio://", "/minio/")
            outputs["parameters"] = {key: {"outputFile": f"{at}/{key}"} for key in parameters}
        inputs = {"artifacts": {key: {"artifacts": [each]} for key, each in artifacts.items()}} if artifacts else {}
        return {"inputs": {**inputs, "parameterValues": dict(given)}, "outputs": outputs}

    def _producer(self, source: Document, key: str) -> tuple[str, str]:
        if "taskOutputArtifact" in source:
            told = source["taskOutputArtifact"]
            return str(told["producerTask"]), str(told["outputArtifactKey"])
        return "a-stage-elsewhere", key

    def _value(self, source: Document, values: Mapping[str, Any]) -> Any:
        if "runtimeValue" in source:
            return source["runtimeValue"].get("constant")
        if "componentInputParameter" in source:
            return values.get(source["componentInputParameter"], "")
        if "taskFinalStatus" in source:
            return {"error": {}, "pipelineJobResourceName": "facedetect-4hf54", "state": "COMPLETE"}
        return "x" * 80  # a task's output: a URL

    def _argument(self, stage: str, name: str, value: str) -> None:
        if value and name not in self.arguments:
            self.arguments.add(name)
            self._spec(stage, len(_compact({"name": name, "value": value})) + 1)

    def _spec(self, stage: str, size: int) -> None:
        self.result.spec += size
        self.result.by_stage[stage] += size

    def _nodes(self, stage: str, node: str, count: int) -> None:
        self.result.nodes += count * len(node)
        self.result.by_stage[stage] += count * len(node)

    def _dag_nodes(self, stage: str, path: str, inputs: Mapping[str, str], name: str) -> None:
        told = {**inputs, "task-name": name, "parent-dag-id": "1", "iteration-index": "-1", "driver-type": "DAG"}
        outputs = {"execution-id": "2", "iteration-count": "0", "condition": "nil"}
        self._nodes(stage, _pod_node(f"{path}.{name}-driver", told, outputs), 2)
        self._nodes(stage, _dag_node(f"{path}.{name}", {"parent-dag-id": "2"}), 2)


def _inputs(task: Document, kind: str) -> list[tuple[str, Document]]:
    return list(((task.get("inputs") or {}).get(kind) or {}).items())


def _retry(task: Document) -> dict[str, str]:
    policy = task.get("retryPolicy")
    return dict(zip(_RETRY, (str(policy["maxRetryCount"]), "60", "2", "600"), strict=True)) if policy else {}


def _node(path: str, inputs: Mapping[str, str], rest: Document) -> str:
    node = {
        "id": f"facedetect-4hf54-{_NODE}",
        "name": f"facedetect-4hf54{path}(0)",
        "displayName": path.rpartition(".")[2] + "(0)",
        "type": "Retry",
        "templateName": "retry-system-container-impl",
        "templateScope": "local/facedetect-4hf54",
        "phase": "Succeeded",
        "boundaryID": f"facedetect-4hf54-{_NODE}",
        "startedAt": "2026-11-30T21:53:21Z",
        "finishedAt": "2026-11-30T21:53:25Z",
        "progress": "26/26",
        "resourcesDuration": {"cpu": 2, "memory": 149, "nvidia.com/gpu": 0},
        "nodeFlag": {"retried": True},
        "inputs": {"parameters": [{"name": name, "value": value} for name, value in inputs.items()]},
        "children": [f"facedetect-4hf54-{_NODE}"],
        **rest,
    }
    return f'"facedetect-4hf54-{_NODE}":{_compact(node)},'


def _dag_node(path: str, inputs: Mapping[str, str]) -> str:
    return _node(path, inputs, {"outboundNodes": [f"facedetect-4hf54-{_NODE}"]})


def _pod_node(path: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> str:
    key = f"private-artifacts/kubeflow/facedetect-4hf54/2026/11/30/facedetect-4hf54-retry-system-container-impl-{_NODE}"
    told: Document = {"artifacts": [{"name": "main-logs", "s3": {"key": f"{key}/main.log"}}], "exitCode": "0"}
    if outputs:
        told["parameters"] = [
            {"name": name, "value": value, "valueFrom": {"path": f"/tmp/outputs/{name}", "default": ""}}
            for name, value in outputs.items()
        ]
    return _node(path, inputs, {"outputs": told})


def _parameters(values: Mapping[str, str]) -> Document:
    return {"arguments": {"parameters": [{"name": name, "value": value} for name, value in values.items()]}}


def _task(name: str, values: Mapping[str, str]) -> int:
    return len(_compact({**_parameters(values), "depends": "x" * 40, "name": name, "template": "system-container-x"}))


def _template(name: str, tasks: list[Document]) -> int:
    annotations = {"pipelines.kubeflow.org/v2_component": "true", "sidecar.istio.io/inject": "false"}
    frame = {"inputs": {"parameters": [{"name": "parent-dag-id"}]}, "metadata": {"annotations": annotations}}
    return len(_compact({"dag": {"tasks": tasks}, **frame, "name": name, "outputs": {}}))


def _compact(document: object) -> str:
    return json.dumps(document, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def _spaced(document: object) -> str:
    """As Go's protojson writes a message: a space after a comma, none after a colon."""
    return json.dumps(document, separators=(", ", ":"), sort_keys=True, ensure_ascii=False)
