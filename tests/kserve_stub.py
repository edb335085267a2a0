"""KServe and the Deployment controller, as far as a deployment can see them: children, pods and statuses.

Statuses follow KServe v0.20.0: `predictor_ready` is `InferenceServiceStatus.PropagateRawStatus`, `model_status` is
`PropagateModelStatus` (pkg/apis/serving/v1beta1/inference_service_status.go), names, annotations and canaries are those
of `Predictor.Reconcile` (pkg/controller/v1beta1/inferenceservice/components/predictor.go). Deployments follow
Kubernetes 1.36 (pkg/controller/deployment). A test holds both against recordings of real ones.

Time goes on with every look at an InferenceService. The first look after a change still sees everything as it was.
"""

import copy
import itertools
import json

MODE = "serving.kserve.io/deploymentMode"
SOURCE = "internal.serving.kserve.io/storage-initializer-sourceuri"
OWNER = "serving.kserve.io/inferenceservice"
IMAGE = "ghcr.io/gridbox/triton:stub"


def waiting(why, told="", /, **last):
    """A container that waits, and how it ended last."""
    return {
        "state": {"waiting": {"reason": why, "message": told}},
        "lastState": {"terminated": last} if last else {},
    }


# What becomes of a pod that is no good: (init container, container).
LOADED = {"state": {"terminated": {"reason": "Completed", "exitCode": 0}}}
FATES = {
    "image": (
        LOADED,
        waiting("ErrImagePull", f'failed to pull and unpack image "{IMAGE}": failed to resolve reference: not found'),
    ),
    "registry": (LOADED, waiting("ImagePullBackOff", f'Back-off pulling image "{IMAGE}": dial tcp: i/o timeout')),
    "crash": (
        LOADED,
        waiting("CrashLoopBackOff", "back-off 10s restarting", reason="Error", exitCode=1, message="no GPU"),
    ),
    "memory": (LOADED, waiting("CrashLoopBackOff", "back-off 10s restarting", reason="OOMKilled", exitCode=137)),
    "load": (
        waiting(
            "CrashLoopBackOff", "back-off 10s restarting", reason="Error", exitCode=1, message="No model found in\ns3"
        ),
        waiting("PodInitializing"),
    ),
    "slow": (LOADED, {"state": {"running": {}}}),
}
QUOTA = 'pods "facenet-x" is forbidden: exceeded quota: small, requested: memory=2Gi, used: memory=8Gi'
POD_SECURITY = (
    'pods "facenet-predictor-5d8-x7x2k" is forbidden: violates PodSecurity "restricted:latest": seccompProfile'
)
REFUSALS = {"pod-security": POD_SECURITY, "quota": QUOTA}


def predictor_ready(conditions):
    """PropagateRawStatus: (status, reason) of PredictorReady for the conditions of one Deployment, the last word wins.

    | Available | Progressing                  | ReplicaFailure | PredictorReady                        |
    |-----------|------------------------------|----------------|---------------------------------------|
    | -         | -                            | -              | False                                 |
    | True      | True, ReplicaSetUpdated      | -              | True, Available's reason: old pods!   |
    | -         | True, ReplicaSetUpdated      | -              | Unknown, Progressing's reason         |
    | any       | True, NewReplicaSetAvailable | -              | True, NewReplicaSetAvailable          |
    | True      | False with a message         | -              | False, Progressing's reason           |
    | False     | any                          | -              | False, Available's reason             |
    | any       | any                          | True           | False, ReplicaFailure's reason        |
    """
    found = {each["type"]: each for each in conditions}
    available, progressing, failure = (found.get(name, {}) for name in ("Available", "Progressing", "ReplicaFailure"))
    told = ("False", "")
    if available.get("status") == "True":
        told = ("True", available["reason"])
    if progressing.get("status") == "False" and progressing.get("message"):
        told = ("False", progressing["reason"])
    elif progressing.get("status") == "True" and progressing["reason"] == "NewReplicaSetAvailable":
        told = ("True", progressing["reason"])
    elif progressing.get("status") == "True" and available.get("status") != "True":
        told = ("Unknown", progressing["reason"])
    if available.get("status") == "False":
        told = ("False", available["reason"])
    if failure.get("status") == "True":
        told = ("False", failure["reason"])
    return told


def model_status(pods, ready):
    """PropagateModelStatus: of any one of the pods, the former ones included."""
    for status in pods[0]["status"]["initContainerStatuses"] if pods else ():
        if status["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff":
            ended = status["lastState"]["terminated"]
            info = {"reason": "ModelLoadFailed", "message": ended.get("message", ""), "exitCode": ended["exitCode"]}
            return {"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": info}
    return {"transitionStatus": "UpToDate" if ready else "InProgress"}


class Child:
    """A Deployment, or Knative's Service, with its pods."""

    def __init__(self, name):
        self.name, self.generation, self.observed = name, 0, 0
        self.template, self.pods, self.refusal = None, [], ""

    def roll(self, template, owner, fate):
        """Takes a template of pods; the same one changes nothing, one whose pods still run brings them back."""
        if template == self.template:
            return
        self.generation += 1
        self.template, self.refusal = template, REFUSALS.get(fate, "")
        running = [pod for pod in self.pods if pod["metadata"]["annotations"] == template]
        if not running and not self.refusal:
            self.pods.append(self._pod(owner, fate))

    def age(self):
        """Lets time go on: pods become ready, those of former templates end, and then are gone."""
        self.observed = self.generation
        self.pods = [pod for pod in self.pods if "deletionTimestamp" not in pod["metadata"]]
        for pod in self.pods:
            pod["age"] += 1
            if pod["fate"] not in FATES and pod["age"] > 1:
                pod["status"] = _status("Running", LOADED, {"state": {"running": {}}}, ready=True)
        if any(map(_is_ready, self.updated)):
            for pod in self.pods:
                if pod not in self.updated:
                    pod["metadata"]["deletionTimestamp"] = "2026-12-01T00:00:00Z"

    @property
    def updated(self):
        return [pod for pod in self.pods if pod["metadata"]["annotations"] == self.template]

    @property
    def staying(self):
        return [pod for pod in self.pods if "deletionTimestamp" not in pod["metadata"]]

    def _pod(self, owner, fate):
        name = f"{self.name}-{next(SERIAL)}"
        first, second = FATES.get(fate, (waiting("PodInitializing"), waiting("PodInitializing")))
        metadata = {"name": name, "labels": {OWNER: owner}, "annotations": self.template}
        return {"metadata": metadata, "status": _status("Pending", first, second), "age": 0, "fate": fate}

    def deployment(self):
        ready = len(list(filter(_is_ready, self.staying)))
        finished = bool(self.updated) and ready == len(self.updated) == len(self.staying)
        conditions = [
            {"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable"}
            if ready
            else {"type": "Available", "status": "False", "reason": "MinimumReplicasUnavailable"},
            {
                "type": "Progressing", "status": "True",
                "reason": "NewReplicaSetAvailable" if finished else "ReplicaSetUpdated",
            },
        ]  # fmt: skip
        if self.refusal:
            failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": self.refusal}
            conditions.append(failure)
        status = {
            "observedGeneration": self.observed, "replicas": len(self.staying), "updatedReplicas": len(self.updated),
            "availableReplicas": ready, "conditions": conditions,
        }  # fmt: skip
        return self._document("Deployment", "apps/v1", {"replicas": 1}, status)

    def knative_service(self):
        """Knative 1.19's: a revision a generation of the template."""
        created = f"{self.name}-{self.generation:05}"
        ready = any(map(_is_ready, self.updated))
        formerly = f"{self.name}-{self.generation - 1:05}"
        status = {
            "observedGeneration": self.observed,
            "latestCreatedRevisionName": created, "latestReadyRevisionName": created if ready else formerly,
            "conditions": [{"type": "ConfigurationsReady", "status": "True" if ready else "Unknown"}],
        }  # fmt: skip
        return self._document("Service", "serving.knative.dev/v1", {}, status)

    def _document(self, kind, version, spec, status):
        template = {"metadata": {"annotations": self.template}}
        metadata = {"name": self.name, "generation": self.generation}
        return {
            "apiVersion": version,
            "kind": kind,
            "metadata": metadata,
            "spec": {**spec, "template": template},
            "status": status,
        }


SERIAL = itertools.count(1)


def _status(phase, first, second, ready=False):
    containers = [{"name": "storage-initializer", "image": "kserve/storage-initializer", **first}]
    return {
        "phase": phase, "conditions": [{"type": "Ready", "status": str(ready)}],
        "initContainerStatuses": containers,
        "containerStatuses": [
            {"name": "kserve-container", "image": IMAGE, "ready": ready, "restartCount": 0, **second}
        ],
    }  # fmt: skip


def _is_ready(pod):
    return any(each == {"type": "Ready", "status": "True"} for each in pod["status"]["conditions"])


class KServe:
    """The controller.

    Attributes:
        fates: What becomes of the pods of a model whose storage URI holds a word: {"run-2": "image"}.
        delay: Looks until it takes notice of a change.
    """

    def __init__(self):
        self.fates, self.delay = {}, 2
        self._children = {}  # by (namespace, service): {name: Child}

    def look(self, document, looks):
        """Lets time go on for an InferenceService, `looks` after its last change; returns its status."""
        children = self._children.setdefault(self._key(document), {})
        if looks >= self.delay:
            wanted = dict(self._wanted(document))
            for name in set(children) - set(wanted):
                del children[name]  # orphans go at once, their pods with them
            for name, template in wanted.items():
                fate = next((fate for word, fate in self.fates.items() if word in template[SOURCE]), "")
                children.setdefault(name, Child(name)).roll(template, document["metadata"]["name"], fate)
            for child in children.values():
                child.age()
        if not children:
            return {}
        return self._status(document, children)

    def child(self, namespace, name, knative):
        for (where, _), children in self._children.items():
            if where == namespace and name in children:
                return children[name].knative_service() if knative else children[name].deployment()
        return None

    def pods(self, namespace, owner):
        children = self._children.get((namespace, owner), {}).values()
        return [{"metadata": pod["metadata"], "status": pod["status"]} for child in children for pod in child.pods]

    @staticmethod
    def _key(document):
        return document["metadata"]["namespace"], document["metadata"]["name"]

    def _wanted(self, document):
        """Yields (name of the child, annotations of its pods)."""
        spec, metadata = document["spec"], document["metadata"]
        canaries = [each["predictor"] for each in spec.get("canary", [])]
        for predictor in (spec["predictor"], *canaries):
            name = "-".join(part for part in (metadata["name"], predictor.get("name", ""), "predictor") if part)
            inherited = spec["predictor"].get("annotations", {})
            annotations = {**metadata["annotations"], **inherited, **predictor.get("annotations", {})}
            yield name, {**annotations, SOURCE: predictor["model"]["storageUri"]}

    def _status(self, document, children):
        name, namespace = document["metadata"]["name"], document["metadata"]["namespace"]
        is_knative = document["metadata"]["annotations"][MODE] == "Knative"
        stable, *canaries = (children.get(child) for child, _ in self._wanted(document))
        if stable is None:  # renamed, and not noticed yet
            return copy.deepcopy(document.get("status", {}))
        ready, reason = predictor_ready(stable.deployment()["status"]["conditions"])
        if is_knative:
            ready = "True" if any(map(_is_ready, stable.pods)) else "Unknown"
        local = f"{namespace}.svc.cluster.local"
        traffic = [{"latestRevision": True, "percent": 100, "url": f"http://latest-{name}-predictor.{local}"}]
        status = {
            "observedGeneration": stable.observed,  # the child's, never its own
            "conditions": [
                {"type": "PredictorReady", "status": ready, "reason": reason},
                {"type": "Ready", "status": ready, "reason": reason},
            ],
            "url": f"http://{name}-{namespace}.example.com",
            "address": {"url": f"http://{name}-predictor.{local}"},
            "modelStatus": model_status(stable.pods, ready == "True"),
            "components": {"predictor": {"traffic": traffic}},
            "deploymentMode": document["metadata"]["annotations"].get(MODE, ""),
        }
        if canaries:
            answers = [bool(each) and any(map(_is_ready, each.pods)) for each in canaries]
            names = [each["predictor"]["name"] for each in document["spec"]["canary"]]
            status["canaryStatuses"] = [
                {"name": each, "ready": answer} for each, answer in zip(names, answers, strict=True)
            ]
            told = ("True", "AllCanariesReady") if all(answers) else ("False", "CanariesNotReady")
            status["conditions"].append({"type": "CanaryPredictorReady", "status": told[0], "reason": told[1]})
        return status


def recorded(lines):
    """Turns a recording into (seconds, {"kind/name": object}) after each moment, objects as the API has them."""
    objects = {}
    for at, group in itertools.groupby(map(json.loads, lines), key=lambda line: line["t"]):
        for line in group:
            if "gone" in line:
                resource, _, name = line["gone"].partition("/")
                objects.pop(f"{KINDS[resource]}/{name}", None)
            elif line["kind"] in KINDS.values():
                objects[f"{line['kind']}/{line['name']}"] = _as_object(line)
        yield at, copy.deepcopy(objects)


KINDS = {"pods": "Pod", "deployments": "Deployment", "inferenceservices": "InferenceService"}


def _as_object(line):
    metadata = {
        "name": line["name"], "namespace": "gridbox", "annotations": line["annotations"],
        "generation": line["generation"], "resourceVersion": "1", "labels": {},
    }  # fmt: skip
    if line.get("deleting"):
        metadata["deletionTimestamp"] = "2026-11-30T00:00:00Z"
    spec = line.get("spec") or {"replicas": 1, "template": {"metadata": {"annotations": line["annotations"]}}}
    return {"kind": line["kind"], "metadata": metadata, "spec": spec, "status": line.get("status") or {}}
