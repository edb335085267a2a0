"""What a training needs of an optimiser, Adam in TensorFlow's form, and an optimiser's memory as tensors."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor


class Optimizer(Protocol):
    """What any optimiser of `torch.optim` is.

    Attributes:
        param_groups: Settings of groups of parameters; `params` are the parameters, `lr` is set before each step.
        state: What it remembers of each parameter, by name.
    """

    param_groups: list[dict[str, Any]]
    state: Any  # a defaultdict of dictionaries by parameter, which torch.optim does not type further

    def step(self) -> object:
        """Updates the parameters from their gradients."""
        ...


class Adam:
    """Adam as `tf.train.Adam` computes it: epsilon is added before the bias correction, unlike in `torch.optim.Adam`.

    update = rate * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + epsilon)

    `torch.optim.Adam` with an epsilon of epsilon / sqrt(1 - beta2^t) in step t is the same formula, but it divides by
    the correction before it adds: in 32 bits, one weight in 240 has another last bit after the first step, and one in
    12 after 200. Nor is it a subclass of `torch.optim.Optimizer`, which takes a second to import torch's compiler.
    """

    def __init__(self, parameters: Iterable[Tensor], beta1: float, beta2: float, epsilon: float) -> None:
        group = {"params": list(parameters), "lr": 0.0, "betas": (beta1, beta2), "eps": epsilon}
        self.param_groups: list[dict[str, Any]] = [group]
        self.state: dict[Tensor, dict[str, Any]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Updates the parameters from their gradients."""
        (group,) = self.param_groups
        parameters: list[Tensor] = group["params"]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if len(gradients) != len(parameters):
            raise RuntimeError("a trained parameter got no gradient")
        for parameter in parameters:
            if parameter not in self.state:
                zeros = torch.zeros_like(parameter)
                self.state[parameter] = {"step": 0, "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
            self.state[parameter]["step"] += 1
        means, variances = ([self.state[each][name] for each in parameters] for name in ("exp_avg", "exp_avg_sq"))
        (beta1, beta2), count = group["betas"], int(self.state[parameters[0]]["step"])
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(variances, beta2)
        torch._foreach_addcmul_(variances, gradients, gradients, 1 - beta2)
        denominators = torch._foreach_sqrt(variances)
        torch._foreach_add_(denominators, group["eps"])
        correction = math.sqrt(1 - beta2**count) / (1 - beta1**count)
        torch._foreach_addcdiv_(parameters, means, denominators, -group["lr"] * correction)


def trained_parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    """Yields the parameters that an optimiser updates."""
    for group in optimizer.param_groups:
        yield from group["params"]


def flattened(optimizer: Optimizer) -> dict[str, Tensor]:
    """Returns what an optimiser remembers of each parameter: `<position of the parameter>.<name>`."""
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, parameter in enumerate(trained_parameters(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


@torch.no_grad()
def restore(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restores what `flattened` returned, moments in their parameter's order of dimensions in memory."""
    parameters = list(trained_parameters(optimizer))
    optimizer.state.clear()
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        is_moment = value.dim() > 0 and value.shape == parameter.shape
        kept = torch.empty_like(parameter).copy_(value) if is_moment else value
        optimizer.state.setdefault(parameter, {})[name] = kept
