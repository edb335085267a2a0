"""The parameters that choose the nodes of every workflow's stages."""

from typing import Annotated

from pydantic import Field

from pipeline.parameters import Parameter, bound
from pipeline.ranges import Selector, Tolerations

PARAMETERS: dict[str, Parameter] = {
    "pool_cpu_node_selector": bound(Selector, {}, "Labels of the nodes for stages without a GPU."),
    "pool_cpu_tolerations": bound(Tolerations, [], "Tolerations of those stages."),
    "pool_gpu_type": bound(
        Annotated[str, Field(pattern=r"^[a-z0-9.-]+(/[A-Za-z0-9._-]+)?$")],
        "nvidia.com/gpu",
        "The resource by which the cluster counts its GPUs.",
    ),
    "pool_gpu_count": bound(
        Annotated[str, Field(pattern=r"^[0-9]{1,2}$")], "1", "GPUs of a stage that trains or evaluates; 0 for none."
    ),
    "pool_gpu_node_selector": bound(Selector, {}, "Labels of the nodes for those stages."),
    "pool_gpu_tolerations": bound(Tolerations, [], "Tolerations of those stages, for a spot pool, for example."),
}
