"""Ranges that parameters of several workflows have: types, annotated as pydantic has it."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

from components.serve import kubernetes

T = TypeVar("T")


def _refuse(problems: Callable[[T], Iterable[str]], value: T) -> T:
    """Refuses a value in which there are problems."""
    if found := "; ".join(problems(value)):
        raise ValueError(found)
    return value


Images = Annotated[int, Field(ge=1, le=1_000_000)]
PictureSize = Annotated[int, Field(ge=96, le=8192)]
Epochs = Annotated[int, Field(ge=1, le=10_000)]
BatchSize = Annotated[int, Field(ge=1, le=1024)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Threads = Annotated[int, Field(ge=0, le=1024)]
Share = Annotated[float, Field(ge=0, le=1)]
Points = Annotated[float, Field(ge=0, le=100)]
# Of Kubernetes and KServe.
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|[kMGTP]i?)?$")]
ServiceName = Annotated[str, AfterValidator(partial(_refuse, kubernetes.service_name_problems))]
Namespace = Annotated[str, AfterValidator(partial(_refuse, kubernetes.namespace_problems))]
Gateway = Annotated[str, AfterValidator(partial(_refuse, kubernetes.gateway_problems))]
Account = Annotated[str, AfterValidator(partial(_refuse, kubernetes.account_problems))]
Selector = Annotated[dict[str, str], AfterValidator(partial(_refuse, kubernetes.selector_problems))]
Tolerations = Annotated[list[dict[str, Any]], AfterValidator(partial(_refuse, kubernetes.toleration_problems))]
