"""What KServe's webhooks refuse beyond the types that its definition checks (v0.20)."""

from components.serve.kserve import AUTOSCALER, MODE, SCALING, Mode, problems
from components.step import UserError

_FRAMEWORKS = {
    "sklearn",
    "xgboost",
    "tensorflow",
    "pytorch",
    "triton",
    "onnx",
    "huggingface",
    "pmml",
    "lightgbm",
    "paddle",
}
_AUTOSCALERS = ("hpa", "keda", "external", "none")
_METRICS = {Mode.standard: ("cpu", "memory"), Mode.knative: ("concurrency", "rps")}


def refuse(document):
    """Refuses in one line that names every rule that is broken."""
    if broken := list(violations(document)):
        raise UserError(f"InferenceService {document['metadata'].get('name')}: {'; '.join(broken)}")


def violations(document):
    """Yields what is wrong with an InferenceService beyond the types that the custom resource definition checks."""
    metadata, spec = document.get("metadata", {}), document.get("spec", {})
    annotations, predictor = metadata.get("annotations", {}), spec.get("predictor", {})
    yield from problems(document)
    mode = annotations.get(MODE, "")
    if mode not in tuple(Mode):
        yield f"annotation {MODE} must be {' or '.join(Mode)}, not {mode!r}"
        return
    if annotations.get(AUTOSCALER, "hpa") not in _AUTOSCALERS:
        yield f"annotation {AUTOSCALER} must be one of {', '.join(_AUTOSCALERS)}"
    yield from _predictor_violations(predictor, Mode(mode), "spec.predictor")
    if predictor.get("model", {}).get("name"):
        yield "spec.predictor.model.name must not be set"
    yield from _scaling_violations(predictor, Mode(mode), annotations.get(AUTOSCALER, "hpa"))
    yield from _canary_violations(spec.get("canary", []), predictor, Mode(mode))


def _predictor_violations(predictor, mode, where):
    model = predictor.get("model", {})
    implementations = sorted({"model", *_FRAMEWORKS} & set(predictor))
    if implementations != ["model"]:
        yield f"{where} must have exactly one implementation, model, not {', '.join(implementations) or 'none'}"
    if not model.get("modelFormat", {}).get("name"):
        yield f"{where}.model.modelFormat.name is missing"
    if "storageUris" in predictor:
        yield f"{where}.storageUris excludes model.storageUri, which is needed"
    # A prefix is matched as text: without the slash the folder a/ would bring a_b/ too.
    if not model.get("storageUri", "").endswith("/"):
        yield f"{where}.model.storageUri must end with '/'"
    containers = [model, *predictor.get("containers", []), *predictor.get("initContainers", [])]
    if any(variable.get("name") == "PYTHONPATH" for each in containers for variable in each.get("env", [])):
        yield f"{where} must not set PYTHONPATH"
    if predictor.get("logger", {}).get("mode", "all") not in ("all", "request", "response"):
        yield f"{where}.logger.mode must be all, request or response"
    if mode is Mode.knative:
        if len(model.get("ports", [])) > 1:
            yield f"{where}.model.ports: Knative takes exactly one"
        if "deploymentStrategy" in predictor:
            yield f"{where}.deploymentStrategy is for mode Standard only"
        if not 0 <= predictor.get("canaryTrafficPercent", 0) <= 100:
            yield f"{where}.canaryTrafficPercent must be from 0 to 100"
    elif "canaryTrafficPercent" in predictor:
        yield f"{where}.canaryTrafficPercent is for mode Knative only; Standard has spec.canary"


def _scaling_violations(predictor, mode, autoscaler):
    low, high = predictor.get("minReplicas", 1), predictor.get("maxReplicas", 0)
    if low < 0 or high < 0:
        yield "spec.predictor: replicas must not be negative"
    metric, target = predictor.get("scaleMetric"), predictor.get("scaleTarget")
    if metric is not None and mode is Mode.standard and autoscaler == "keda":
        yield "spec.predictor.scaleMetric: with keda, write autoScaling.metrics"
    elif metric is not None and metric not in _METRICS[mode]:
        yield f"spec.predictor.scaleMetric must be {' or '.join(_METRICS[mode])} in mode {mode}, not {metric!r}"
    if target is not None and (target < 1 or (metric == "cpu" and target > 100)):
        yield f"spec.predictor.scaleTarget {target} is out of range"


def _canary_violations(canaries, stable, mode):
    canaries = list(canaries)
    if canaries and mode is not Mode.standard:
        yield "spec.canary is for mode Standard only; Knative has predictor.canaryTrafficPercent"
    names = [each.get("predictor", {}).get("name", "") for each in canaries]
    if not all(names) or len({*names, stable.get("name", "")}) != len(names) + 1:
        yield "spec.canary: every predictor needs a name of its own"
    if sum(each.get("trafficPercent", 0) for each in canaries) > 100:
        yield "spec.canary: trafficPercent adds up to more than 100"
    for each in canaries:
        predictor = each.get("predictor", {})
        yield from _predictor_violations(predictor, mode, "spec.canary[].predictor")
        for name in SCALING:
            if name != "minReplicas" and name in predictor:
                yield f"spec.canary[].predictor.{name}: a canary has no scaling of its own"
        if predictor.get("minReplicas", 0) > stable.get("minReplicas", 1):
            yield "spec.canary[].predictor.minReplicas is more than that of spec.predictor"
