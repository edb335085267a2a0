# ruff: noqa: ARG001 - the arguments of a container component declare its interface; the program gets them by name
"""How Kubeflow sees serving: the model repository, the TensorRT plan, publishing, deployment and promotion.

Keys of object stores come from a secret as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, access to the cluster from the
step's own service account; neither is a parameter, since Kubeflow shows those.
"""

from kfp import dsl
from kfp.dsl import Artifact, Input, Markdown, Metrics, Model, Output, OutputPath

from components.images import OPEN_ENGINE
from components.serve.release import TRITON_IMAGE


def _task(name: str) -> dsl.ContainerSpec:
    return dsl.ContainerSpec(
        image=OPEN_ENGINE,
        command=["gridbox"],
        args=["serve", name, "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )


@dsl.container_component  # type: ignore[untyped-decorator]
def tensorrt(
    exported: Input[Model],
    precision: str,
    best_batch: int,
    largest_batch: int,
    workspace: int,
    timing_cache: str,
    plan: Output[Model],
    metrics: Output[Metrics],
) -> dsl.ContainerSpec:
    """Builds a TensorRT plan, in the image and on the kind of GPU that will serve it.

    Args:
        exported: The exported model; for int8, one quantised for tensorrt.
        precision: `fp32`, `fp16` or `int8`.
        best_batch: The batch to optimise for.
        largest_batch: The largest batch.
        workspace: MiB of GPU memory that kernels may use for themselves.
        timing_cache: File of kernel timings on a mounted volume, or empty.
        plan: The plan, and in its metadata the GPU, TensorRT and Triton release it is bound to.
        metrics: Latency and throughput as trtexec measured them.
    """
    return dsl.ContainerSpec(
        image=TRITON_IMAGE,
        command=["python3", "-m", "components.serve.tensorrt"],
        args=["build", "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )


@dsl.container_component  # type: ignore[untyped-decorator]
def repository(
    exported: Input[Model], backend: str, preprocessing: str, repository: Output[Model]
) -> dsl.ContainerSpec:
    """Builds the Triton model repository of an exported model, without a plan.

    Args:
        exported: The exported model.
        backend: `onnxruntime` or `python`.
        preprocessing: `letterbox` or `stretch`.
        repository: The model repository.
    """
    return _task("build")


@dsl.container_component  # type: ignore[untyped-decorator]
def repository_of_plan(
    exported: Input[Model], plan: Input[Model], preprocessing: str, repository: Output[Model]
) -> dsl.ContainerSpec:
    """Builds the Triton model repository of a TensorRT plan.

    Args:
        exported: The exported model that the plan was built of.
        plan: The plan.
        preprocessing: `letterbox` or `stretch`.
        repository: The model repository.
    """
    return dsl.ContainerSpec(
        image=OPEN_ENGINE,
        command=["gridbox"],
        args=[
            "serve",
            "build",
            "--backend",
            "tensorrt",
            "--executor-input",
            dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )


@dsl.container_component  # type: ignore[untyped-decorator]
def publish(repository: Input[Model], base: str, published: Output[Artifact]) -> dsl.ContainerSpec:
    """Publishes a model repository as a new, immutable version.

    Args:
        repository: The model repository.
        base: Where versions lie: a folder, or an s3:// URI.
        published: Where the version is, its digest, and what it needs to be served.
    """
    return _task("publish")


@dsl.container_component  # type: ignore[untyped-decorator]
def deploy(
    published: Input[Artifact],
    evaluation: Input[Artifact],
    scored_model: str,
    image: str,
    target: str,
    name: str,
    namespace: str,
    run_id: str,
    mode: str,
    protocol: str,
    gpus: int,
    cpu: str,
    cpu_limit: str,
    memory: str,
    memory_limit: str,
    shared_memory: str,
    minimum_replicas: int,
    maximum_replicas: int,
    node_selector: dict,  # type: ignore[type-arg]
    tolerations: list,  # type: ignore[type-arg]
    service_account: str,
    canary_percent: int,
    force: bool,
    timeout: float,
    max_points_lost: float,
    accept_incomparable: bool,
    champion: str,
    gateway: str,
    deployment: Output[Artifact],
    endpoint: OutputPath(str),  # type: ignore[valid-type]
    gateway_host: OutputPath(str),  # type: ignore[valid-type]
) -> dsl.ContainerSpec:
    """Deploys a published model repository, if the quality gate lets it pass.

    Args:
        published: The published model repository.
        evaluation: Evaluation of the model.
        scored_model: Which model of the evaluation is deployed; empty: its last one.
        image: The image of Triton that serves.
        target: `manifest` writes YAML for kubectl apply, `kserve` applies it and waits, `local` starts a Triton here.
        name: Name of the InferenceService.
        namespace: Its namespace.
        run_id: The run that deploys; empty: the published version stands for it.
        mode: `Standard` or `Knative`; cannot be changed later.
        protocol: What the service's port speaks: `v2` (HTTP) or `grpc-v2`.
        gpus: NVIDIA GPUs of a pod; 0: CPU.
        cpu: Cores a pod requests.
        cpu_limit: Cores a pod may use.
        memory: Memory a pod requests.
        memory_limit: Memory a pod may use.
        shared_memory: Size of /dev/shm.
        minimum_replicas: Pods at least.
        maximum_replicas: Pods at most.
        node_selector: Labels of the nodes to run on.
        tolerations: Taints of nodes to put up with.
        service_account: Account of the pods, whose secrets fetch the model.
        canary_percent: Traffic to the new model until it is promoted; 0: all at once.
        force: Whether fields that other field managers own are taken over.
        timeout: Seconds until the service must be ready.
        max_points_lost: Points (hundredths) of average precision by which the served model may be better.
        accept_incomparable: Whether a model passes that was not scored on the same images as the served one.
        champion: Score of the served model, a path or URI; empty: read from the cluster.
        gateway: Ingress gateway (host:port) for clients that cannot resolve the service's name.
        deployment: The manifest, and in its metadata the addresses.
        endpoint: URL of the new model's endpoint; empty where nothing serves it yet.
        gateway_host: Host name to ask the gateway for, or empty.
    """
    return _task("deploy")


@dsl.container_component  # type: ignore[untyped-decorator]
def promote(
    deployment: Input[Artifact],
    evaluation: Input[Artifact],
    force: bool,
    timeout: float,
    max_points_lost: float,
    accept_incomparable: bool,
    champion: str,
) -> dsl.ContainerSpec:
    """Gives the deployed model all traffic if its endpoint scores well enough; otherwise serves the former one again.

    Args:
        deployment: The deployment.
        evaluation: Evaluation of its endpoint.
        force: Whether fields that other field managers own are taken over.
        timeout: Seconds until the service must be ready.
        max_points_lost: Points (hundredths) of average precision by which the former model may be better.
        accept_incomparable: Whether a model passes that was not scored on the same images as the former one.
        champion: Score of the former model, a path or URI; empty: read from the cluster.
    """
    return _task("promote")


@dsl.container_component  # type: ignore[untyped-decorator]
def conclude(
    name: str,
    namespace: str,
    run_id: str,
    status: dsl.PipelineTaskFinalStatus,
    target: str,
    force: bool,
    timeout: float,
    summary: Output[Markdown],
) -> dsl.ContainerSpec:
    """Ends a run: writes how it ended, and serves again what was served before a run that failed.

    Args:
        name: Name of the InferenceService.
        namespace: Its namespace.
        run_id: The run.
        status: The run's final status as Kubeflow gives it to an exit handler.
        target: Where the run deployed; only `kserve` has something to undo.
        force: Whether fields that other field managers own are taken over.
        timeout: Seconds until the service must be ready.
        summary: How the run ended.
    """
    return _task("conclude")
