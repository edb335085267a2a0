# ruff: noqa: ARG001 - the arguments of a container component declare its interface; the program gets them by name
"""How Kubeflow sees the final evaluation and that of the endpoint."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from components.images import OPEN_ENGINE


@dsl.container_component  # type: ignore[untyped-decorator]
def report(
    exported: Input[Model],
    quantized: Input[Model],
    kitti: Input[Dataset],
    evaluations: Input[Artifact],
    min_face_height: int,
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
    report: Output[HTML],
) -> dsl.ContainerSpec:
    """Scores the exported and the quantised model on the test images and writes the report.

    Args:
        exported: The exported model.
        quantized: The quantised model.
        kitti: The KITTI set.
        evaluations: Those of the pretrained, trained, pruned and retrained model.
        min_face_height: Smallest face that counts, in pixels of the network's input.
        evaluation: `metrics.json`, `detections.jsonl` and `report.html`.
        metrics: Average precision overall and by height, points lost by quantisation, size and speed.
        report: The report, one self-contained page.
    """
    return dsl.ContainerSpec(
        image=OPEN_ENGINE,
        command=["gridbox"],
        args=["evaluate", "report", "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )


@dsl.container_component  # type: ignore[untyped-decorator]
def endpoint(
    kitti: Input[Dataset],
    model: Input[Model],
    deployment: Input[Artifact],
    min_face_height: int,
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
    report: Output[HTML],
) -> dsl.ContainerSpec:
    """Scores the served detector on the test images, and holds its boxes against those of its model.

    Args:
        kitti: The KITTI set.
        model: The exported model that is served.
        deployment: The deployment, which says where the model answers, if anywhere.
        min_face_height: Smallest face that counts, in pixels of the network's input.
        evaluation: `metrics.json`, `detections.jsonl` and `report.html`.
        metrics: Average precision overall and by height, latency and throughput of the endpoint.
        report: The report, one self-contained page.
    """
    return dsl.ContainerSpec(
        image=OPEN_ENGINE,
        command=["gridbox"],
        args=["evaluate", "endpoint", "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )
