"""What workflows share once a model is exported: publish, deploy, score the endpoint, promote; their parameters."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.building import Argument, Graph
from pipeline.options import Serving
from pipeline.parameters import Parameter, bound, of_run
from pipeline.placement import Access, Pool, Stage
from pipeline.ranges import (
    Account,
    BatchSize,
    Gateway,
    Namespace,
    Points,
    Quantity,
    Selector,
    ServiceName,
    Tolerations,
)

STAGES = {
    "plan": Stage(Pool.serving),
    "publish": Stage(access=(Access.store,), is_cached=False),
    "deploy": Stage(access=(Access.store,), is_cached=False, may_retry=False),
    "endpoint": Stage(is_cached=False),
    "promote": Stage(access=(Access.store,), is_cached=False, may_retry=False),
    "conclude": Stage(is_cached=False, may_retry=False),
}
# Parameters of a run that the pre-flight reads.
PREFLIGHT = ("deploy_target", "deploy_base", "deploy_name", "deploy_namespace", "deploy_canary_percent")
# What is bound of the service and of its pods, by the inputs of the stage `deploy`.
_SERVICE = (
    *("mode", "protocol", "cpu", "cpu_limit", "memory", "memory_limit", "shared_memory", "gpus", "image"),
    *("minimum_replicas", "maximum_replicas", "node_selector", "tolerations", "service_account"),
)

PARAMETERS: dict[str, Parameter] = {
    "deploy_target": of_run(
        Literal["manifest", "kserve", "local"],
        "manifest",
        "`manifest` writes YAML for kubectl apply, `kserve` applies it and waits, `local` serves on this "
        "machine while the run lasts (`gridbox run` only).",
    ),
    "deploy_base": of_run(
        str,
        "",
        "Where published models lie: an s3:// URI, or for a run on one machine a folder; empty: the model is "
        "trained and scored, but neither published nor deployed.",
    ),
    "deploy_name": of_run(ServiceName, "facenet", "Name of the InferenceService."),
    "deploy_namespace": of_run(Namespace, "gridbox", "Its namespace."),
    "deploy_service_account": bound(Account, "gridbox-serving", "Account of its pods, whose secrets fetch the model."),
    "deploy_mode": bound(
        Literal["Standard", "Knative"],
        "Standard",
        "`Standard` or `Knative`: how KServe runs it; cannot be changed later.",
    ),
    "deploy_protocol": bound(
        Literal["v2", "grpc-v2"], "v2", "`v2` (HTTP) or `grpc-v2`: what the service's port speaks."
    ),
    "deploy_gateway": bound(
        Gateway, "", "Ingress gateway (host:port) to score through where the service's name cannot be resolved."
    ),
    "deploy_image": bound(str, "", "The image of Triton that serves; empty: that of [images] in gridbox.toml."),
    "deploy_backend": bound(
        Literal["onnxruntime", "python"],
        "onnxruntime",
        "What runs the network in Triton on CPUs: its own ONNX Runtime, or ours in Python where the image has none.",
    ),
    "deploy_precision": bound(
        Literal["fp16", "fp32"],
        "fp16",
        "`fp16` or `fp32`: numbers of the TensorRT plan (compiled with --serving gpu only).",
    ),
    "deploy_best_batch": bound(BatchSize, 16, "The batch that the plan is optimised for (--serving gpu only)."),
    "deploy_largest_batch": bound(BatchSize, 32, "The largest batch of the plan (--serving gpu only)."),
    "deploy_workspace": bound(
        Annotated[int, Field(ge=1, le=1_048_576)],
        4096,
        "MiB of GPU memory for the plan's kernels (--serving gpu only).",
    ),
    "deploy_gpus": bound(
        Annotated[int, Field(ge=0, le=16)],
        0,
        "NVIDIA GPUs of a serving pod; 0: none, or one where compiled with --serving gpu.",
    ),
    "deploy_cpu": bound(Quantity, "1", "Cores a serving pod requests."),
    "deploy_cpu_limit": bound(Quantity, "4", "Cores a serving pod may use."),
    "deploy_memory": bound(Quantity, "2Gi", "Memory a serving pod requests."),
    "deploy_memory_limit": bound(Quantity, "4Gi", "Memory a serving pod may use."),
    "deploy_shared_memory": bound(Quantity, "1Gi", "Size of a serving pod's /dev/shm."),
    "deploy_minimum_replicas": bound(Annotated[int, Field(ge=0, le=1000)], 1, "Serving pods at least."),
    "deploy_maximum_replicas": bound(Annotated[int, Field(ge=1, le=1000)], 1, "Serving pods at most."),
    "deploy_node_selector": bound(Selector, {}, "Labels of the nodes to serve on."),
    "deploy_tolerations": bound(Tolerations, [], "Tolerations of its pods."),
    "deploy_canary_percent": of_run(
        Annotated[int, Field(ge=0, le=99)], 0, "Traffic to the new model until its endpoint is scored; 0: all at once."
    ),
    "deploy_champion": bound(str, "", "Score of the served model, a path or URI; empty: read from the cluster."),
    "deploy_max_points_lost": of_run(
        Points, 1.0, "Points (hundredths) of average precision by which the served model may be better."
    ),
    "deploy_accept_incomparable": of_run(
        bool, False, "Whether a model passes that was not scored on the same images as the served one."
    ),
    "deploy_force": bound(bool, False, "Whether fields that other field managers own are taken over."),
    "deploy_timeout": bound(
        Annotated[float, Field(ge=1, le=86_400)], 900.0, "Seconds until the service must be ready."
    ),
}


def parameters(name: str) -> dict[str, Parameter]:
    """Returns the parameters of a workflow whose service has this name by default."""
    return PARAMETERS | {"deploy_name": replace(PARAMETERS["deploy_name"], default=name)}


def with_preflight(stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """Returns stages with the pre-flight, which checks for the others: it needs the same access."""
    access = dict.fromkeys(each for stage in stages.values() for each in stage.access)
    return {**stages, "preflight": Stage(access=tuple(access), is_cached=False, may_retry=False)}


def preflight(graph: Graph, **given: object) -> Any:  # noqa: ANN401 - kfp ships no types
    """Adds the stage that fails in seconds for what would fail after hours.

    Args:
        graph: The part that it begins.
        given: Inputs for which the workflow has no parameter of their name.
    """
    from pipeline.preflight_component import preflight

    service = _service(graph)
    told = json.dumps({name: each.value for name, each in service.items()}, sort_keys=True, separators=(",", ":"))
    deployment = Argument(told, tuple(f"deploy_{name}" for name in service))
    task = graph.task("preflight", preflight, "pool", deployment=deployment, **given)
    if graph.definition.data_files:
        task.container_spec.args.insert(1, f"--data-files={' '.join(graph.definition.data_files)}")
    return task.outputs


def serve(
    graph: Graph,
    model: Any,  # noqa: ANN401
    evaluation: Any,  # noqa: ANN401
    scored_model: str,
    score: Callable[[Any], Any],
) -> None:
    """Adds the stages that publish a model, deploy it, score its endpoint and promote it.

    Args:
        graph: The part that they belong to.
        model: The exported model.
        evaluation: Its evaluation.
        scored_model: Which of the evaluated models it is.
        score: Adds the stage `endpoint` for a deployment; returns the evaluation of the endpoint.
    """
    from kfp import dsl

    from components.serve import component as serving

    scored = {"exported": model, "evaluation": evaluation, "scored_model": scored_model}
    if graph.options.serving is Serving.gpu:
        plan = graph.stage("plan", serving.tensorrt, "deploy", exported=model)["plan"]
        published = graph.stage("publish", serving.publish_plan, "deploy", plan=plan, **scored)["published"]
    else:
        published = graph.stage("publish", serving.publish, "deploy", **scored)["published"]
    run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    # What fails in it after a deployment has that undone; what failed before has deployed nothing.
    concluded = graph.task("conclude", serving.conclude, "deploy", run_id=run_id)
    with dsl.ExitHandler(concluded, name="deployment"):
        deployment = graph.stage(
            "deploy",
            serving.deploy,
            "deploy",
            published=published,
            evaluation=evaluation,
            scored_model=scored_model,
            run_id=run_id,
            **_service(graph),
        )["deployment"]
        graph.task("promote", serving.promote, "deploy", deployment=deployment, evaluation=score(deployment))


def _service(graph: Graph) -> dict[str, Argument]:
    """Returns what is bound of the service and of its pods."""
    bound = {name: graph[f"deploy_{name}"] for name in _SERVICE}
    gpus, image = bound["gpus"], bound["image"]
    least = 1 if graph.options.serving is Serving.gpu else 0
    return {
        **bound,
        "gpus": gpus._replace(value=max(gpus.value, least)),
        "image": image._replace(value=image.value or graph.options.images.triton),
    }
