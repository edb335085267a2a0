# ruff: noqa: ARG001 - the arguments of a container component declare its interface; the program gets them by name
"""How Kubeflow sees serving: the TensorRT plan, publishing, deployment and promotion.

Keys of object stores come from a secret as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, access to the cluster from the
step's own service account; neither is a parameter, since Kubeflow shows those.
"""

from kfp import dsl
from kfp.dsl import Artifact, Input, Markdown, Metrics, Model, Output

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
    plan: Output[Model],
    metrics: Output[Metrics],
) -> dsl.ContainerSpec:
    """Builds a TensorRT plan, in the image and on the kind of GPU that will serve it.

    Args:
        exported: The exported model.
        precision: `fp32`, `fp16` or `int8`.
        best_batch: The batch to optimise for.
        largest_batch: The largest batch.
        workspace: MiB of GPU memory for kernels.
        plan: The plan.
        metrics: Latency and throughput as trtexec measured them.
    """
    return dsl.ContainerSpec(
        image=TRITON_IMAGE,
        command=["python3", "-m", "components.serve.tensorrt"],
        args=["build", "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )


@dsl.container_component  # type: ignore[untyped-decorator]
def publish(
    exported: Input[Model],
    evaluation: Input[Artifact],
    scored_model: str,
    backend: str,
    cpu_limit: str,
    base: str,
    published: Output[Artifact],
) -> dsl.ContainerSpec:
    """Publishes a model as a Triton model repository, a new version; promotion makes it the served one.

    Args:
        exported: The exported model.
        evaluation: Its evaluation: from which score on objects are shown, where the model does not say it.
        scored_model: Which model of the evaluation.
        backend: `onnxruntime` or `python`.
        cpu_limit: Cores that a serving pod may use.
        base: Where versions lie: a folder, or an s3:// URI; empty: nothing is published.
        published: Where the version is, and what it needs.
    """
    return _task("publish")


@dsl.container_component  # type: ignore[untyped-decorator]
def publish_plan(
    exported: Input[Model],
    evaluation: Input[Artifact],
    scored_model: str,
    plan: Input[Model],
    base: str,
    published: Output[Artifact],
) -> dsl.ContainerSpec:
    """Publishes a TensorRT plan as a Triton model repository, a new version.

    Args:
        exported: The exported model that the plan was built of.
        evaluation: See `publish`.
        scored_model: See `publish`.
        plan: The plan.
        base: Where versions lie: a folder, or an s3:// URI; empty: nothing is published.
        published: Where the version is, and what it needs.
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
) -> dsl.ContainerSpec:
    """Deploys a published model repository, if the quality gate lets it pass.

    Args:
        published: The published model repository.
        evaluation: Evaluation of the model.
        scored_model: Which model of the evaluation; empty: its last one.
        image: The image of Triton.
        target: `manifest` writes YAML for kubectl, `kserve` applies it and waits, `local` starts a Triton here.
        name: Name of the InferenceService.
        namespace: Its namespace.
        run_id: The run; empty: the published version.
        mode: `Standard` or `Knative`; cannot be changed later.
        protocol: `v2` (HTTP) or `grpc-v2`.
        gpus: GPUs of a pod; 0: CPU.
        cpu: Cores a pod requests.
        cpu_limit: Cores a pod may use.
        memory: Memory a pod requests.
        memory_limit: Memory a pod may use.
        shared_memory: Size of /dev/shm.
        minimum_replicas: Pods at least.
        maximum_replicas: Pods at most.
        node_selector: Labels of the nodes.
        tolerations: Taints that pods tolerate.
        service_account: Account whose secrets fetch the model.
        canary_percent: Traffic until promoted; 0: all at once.
        force: Take over fields of other field managers.
        timeout: Seconds until the service must be ready.
        max_points_lost: Points of AP by which the served model may be better.
        accept_incomparable: Let a model pass that cannot be compared.
        champion: Score of the served model, a path or URI; empty: read from the cluster.
        gateway: Ingress gateway (host:port) for clients that cannot resolve the service.
        deployment: What was deployed, and where it answers.
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
    """Gives a deployed model all traffic if its endpoint scores well enough; otherwise the former one serves again.

    Args:
        deployment: The deployment.
        evaluation: Evaluation of its endpoint.
        force: Take over fields of other field managers.
        timeout: Seconds until the service must be ready.
        max_points_lost: Points of AP by which the former model may be better.
        accept_incomparable: Let a model pass that cannot be compared.
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
    """Says how a run ended; if it failed, what served before its trial serves again.

    Args:
        name: Name of the InferenceService.
        namespace: Its namespace.
        run_id: The run.
        status: The final status that Kubeflow gives an exit handler.
        target: Where the run deployed.
        force: Take over fields of other field managers.
        timeout: Seconds until the service must be ready.
        summary: How the run ended.
    """
    return _task("conclude")
