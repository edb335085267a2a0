# ruff: noqa: ARG001 - the arguments of a container component declare its interface; the program gets them by name
"""How Kubeflow sees the first stage."""

from kfp import dsl
from kfp.dsl import OutputPath

from components.images import OPEN_ENGINE


@dsl.container_component  # type: ignore[untyped-decorator]
def preflight(
    data_uri: str,
    pretrained_uri: str,
    deploy_base: str,
    deploy_target: str,
    deploy_name: str,
    deploy_namespace: str,
    deploy_canary_percent: int,
    deployment: str,
    gpu_type: str,
    gpu_count: str,
    gpu_node_selector: dict,  # type: ignore[type-arg]
    gpu_tolerations: list,  # type: ignore[type-arg]
    data_version: OutputPath(str),  # type: ignore[valid-type]
    pretrained_version: OutputPath(str),  # type: ignore[valid-type]
) -> dsl.ContainerSpec:
    """Fails in seconds where data, store, volumes, permissions or GPUs are missing.

    Args:
        data_uri: Where the data set is; empty: it will be drawn.
        pretrained_uri: Where the pretrained weights are; empty: there are none.
        deploy_base: Where the model will be published; empty: it will not.
        deploy_target: Where it will be deployed.
        deploy_name: Name of the InferenceService.
        deploy_namespace: Its namespace.
        deploy_canary_percent: Traffic until it is scored; 0: all at once.
        deployment: JSON: mode, image, cpu, memory and the like of the service and its pods.
        gpu_type: The resource by which the cluster counts GPUs.
        gpu_count: GPUs of a stage.
        gpu_node_selector: Labels of their nodes.
        gpu_tolerations: Tolerations of those stages.
        data_version: Version of remote data; empty where they are drawn.
        pretrained_version: Version of remote weights.
    """
    return dsl.ContainerSpec(
        image=OPEN_ENGINE,
        command=["gridbox"],
        args=["preflight", "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )
