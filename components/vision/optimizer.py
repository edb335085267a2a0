"""Adam in TensorFlow's form."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Adam:
    """Adam as `tf.train.Adam` computes it: epsilon is added before the bias correction, unlike in `torch.optim.Adam`.

    update = rate * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + epsilon)
    """

    def __init__(self, parameters: Sequence[Tensor], beta1: float, beta2: float, epsilon: float) -> None:
        self.parameters = list(parameters)
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.step_count = 0
        self.means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.variances = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Updates the parameters from their gradients."""
        self.step_count += 1
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if len(gradients) != len(self.parameters):
            raise RuntimeError("a trained parameter got no gradient")
        torch._foreach_lerp_(self.means, gradients, 1 - self.beta1)
        torch._foreach_mul_(self.variances, self.beta2)
        torch._foreach_addcmul_(self.variances, gradients, gradients, 1 - self.beta2)
        denominators = torch._foreach_sqrt(self.variances)
        torch._foreach_add_(denominators, self.epsilon)
        correction = math.sqrt(1 - self.beta2**self.step_count) / (1 - self.beta1**self.step_count)
        torch._foreach_addcdiv_(self.parameters, self.means, denominators, -rate * correction)

    def state(self) -> dict[str, Tensor]:
        """Returns the moments by parameter position, for a checkpoint."""
        pairs = enumerate(zip(self.means, self.variances, strict=True))
        return {f"{index}.{name}": value for index, pair in pairs for name, value in zip("mv", pair, strict=True)}

    def load(self, state: dict[str, Tensor], step_count: int) -> None:
        """Restores what `state` returned."""
        self.step_count = step_count
        for index, (mean, variance) in enumerate(zip(self.means, self.variances, strict=True)):
            mean.copy_(state[f"{index}.m"])
            variance.copy_(state[f"{index}.v"])
