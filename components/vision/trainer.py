"""One training step: forward pass, losses, backward pass, regulariser, update."""

from typing import Any, Generic, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from components.step import StageError
from components.vision.cost_scaling import CostScaling
from components.vision.distributed import Group
from components.vision.optimizer import trained_parameters
from components.vision.task import Targets, Task

Precision = Literal["float32", "bfloat16", "float16"]


class Trainer(Generic[Targets]):
    """Trains a task's network batch by batch, alone or with other processes.

    Attributes:
        losses: Of the last step, the mean over all processes.
        scaling: Cost scaling; None for none.
        precision: Of the forward and backward pass; losses, weights and updates are always in float32.
    """

    losses: Tensor
    precision: Precision = "float32"

    def __init__(
        self, task: Task[Targets], group: Group, mixed_precision: bool = False, compiled: bool = False
    ) -> None:
        """Prepares the network.

        Args:
            task: Its network is in training mode, on the group's device.
            group: The processes that train together; each sees its own part of the joined batch.
            mixed_precision: Forward and backward pass in 16 bits: bfloat16 where the device has it, otherwise float16.
            compiled: Run the network through `torch.compile`.
        """
        self._task, self._group = task, group
        self._device = next(task.network.parameters()).device
        if mixed_precision:
            has_bfloat16 = self._device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
            self.precision = "bfloat16" if has_bfloat16 else "float16"
        self.scaling = task.scaling(self.precision == "float16")
        self._forward: nn.Module = task.network
        if group.size > 1:
            devices = [self._device] if self._device.type == "cuda" else None
            self._forward = DistributedDataParallel(task.network, device_ids=devices)
        if compiled:
            self._forward = torch.compile(self._forward)  # type: ignore[assignment]

    def step(self, inputs: Tensor, targets: Targets, rate: float) -> Tensor:
        """Trains one batch.

        Args:
            inputs: What the network sees, on its device.
            targets: What `Task.losses` compares its outputs with.
            rate: Learning rate of this step.

        Returns:
            The loss, [] on the device, over the joined batch of all processes; NaN where a gradient was no number. On a
            GPU it is not looked at here, so that it need not be waited for.

        Raises:
            StageError: On a CPU, a gradient is no number; the weights are as before the step.
        """
        task = self._task
        losses = task.losses(self._outputs(inputs), targets)
        for group in task.optimizer.param_groups:
            group["lr"] = rate
        for parameter in trained_parameters(task.optimizer):
            parameter.grad = None
        factor = self.scaling.factor if self.scaling else 1.0
        (task.total(losses) * factor).backward()  # type: ignore[no-untyped-call]
        penalty: Tensor | float = 0.0
        if self.scaling is None or self._unscale(self.scaling):
            penalty = task.regularise()
        steepest = self._steepest()
        with torch.no_grad():
            self.losses = self._group.mean(losses.detach().double())
            loss = task.total(self.losses) + penalty
        if self._device.type == "cpu" and not steepest.isfinite():
            what = f"the loss became {float(loss)}" if not loss.isfinite() else f"a gradient became {float(steepest)}"
            raise StageError(f"{what}; {task.if_diverged}")
        task.optimizer.step()
        return torch.where(steepest.isfinite(), loss, torch.nan)

    def _steepest(self) -> Tensor:
        """Returns the largest absolute gradient, [] on the device; those of all processes are averaged already."""
        gradients = [each.grad for each in trained_parameters(self._task.optimizer) if each.grad is not None]
        return torch.stack(torch._foreach_norm(gradients, torch.inf)).amax()

    def _outputs(self, inputs: Tensor) -> Any:  # noqa: ANN401 - whatever the network returns
        kind = torch.float16 if self.precision == "float16" else torch.bfloat16
        with torch.autocast(self._device.type, kind, enabled=self.precision != "float32"):
            return self._forward(inputs)

    def _unscale(self, scaling: CostScaling) -> bool:
        """Divides the gradients by the cost's factor; zeros them if one overflowed, and says whether none did.

        The gradients are those of all processes averaged, so that all decide alike.
        """
        parameters = trained_parameters(self._task.optimizer)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_div_(gradients, scaling.factor)
        finite = bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all())
        scaling.update(finite)
        if not finite:
            torch._foreach_zero_(gradients)
        return finite
