"""The training loop, for any network: `fit`."""

import math
import os
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, cast

import torch
from torch import Tensor, nn

from components.step import StageError, UserError
from components.vision.checkpoint import SUFFIX, save_network
from components.vision.distributed import Group, joined
from components.vision.network import Network, count_parameters
from components.vision.status import StatusLog
from components.vision.task import Step, Targets, Task, Validation
from components.vision.threads import available_cores
from components.vision.trainer import Trainer
from components.vision.training import EpochClock, StopRequest, TrainingState, stop_between_steps

# A GPU is not waited for after every step just to look at its loss.
_STEPS_BETWEEN_LOOKS = 50
_Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a training runs, whatever is trained.

    Attributes:
        results: Results directory; a training found there is resumed.
        name: Base name of the model file.
        threads: Threads of PyTorch; 0 for all available cores.
        deterministic: Choose deterministic kernels on a GPU; on a CPU they always are (at one number of threads).
        mixed_precision: Forward and backward pass in 16 bits (bfloat16 where the GPU has it, otherwise float16).
        compiled: Run the network through `torch.compile`.
        ema: Decay of an exponential moving average of the network, over the steps, which is then what is validated and
            saved; 0 for none. The first t steps have a decay of (1 + t) / (10 + t), where that is less.
        save_seconds: A kill costs at most these seconds of training.
    """

    results: Path
    name: str = "model"
    threads: int = 0
    deterministic: bool = False
    mixed_precision: bool = False
    compiled: bool = False
    ema: float = 0.0
    save_seconds: float = 60.0


def fit(build: Callable[[Group], Task[Targets]], options: FitOptions, title: str) -> Path:
    """Trains a task to its end, from where an earlier call with the same results directory was left.

    Interrupted at any step, a training ends with the very same weights. Started by torchrun, the processes train
    together, each on its part of every batch.

    Args:
        build: Makes the task for one of the processes that train together.
        options: How it runs.
        title: What is trained, in `status.json`.

    Returns:
        The model file `<results>/weights/<name>.safetensors`.
    """
    with joined() as group:
        torch.set_num_threads(options.threads or max(1, available_cores() // group.local_size))
        if options.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS may choose as it likes
            torch.use_deterministic_algorithms(True)
        status = StatusLog(options.results) if group.rank == 0 else None
        try:
            if status:
                status.write("STARTED", f"Starting {title} training")
            with nullcontext() if group.rank == 0 else redirect_stdout(None):  # one process reports
                return _Loop(build(group), options, group, status, title).run()
        except (UserError, StageError) as error:
            if status:
                status.write("FAILURE", str(error))
            raise
        except (KeyboardInterrupt, SystemExit):
            if status:
                status.write("FAILURE", "Training was interrupted; the same command goes on from here")
            raise


class _Loop(Generic[Targets]):
    """A training from its first epoch to its last, or from where it was left."""

    def __init__(
        self, task: Task[Targets], options: FitOptions, group: Group, status: StatusLog | None, title: str
    ) -> None:
        self.task, self.options, self.group, self.status, self.title = task, options, group, status, title
        self.trainer = Trainer(task, group, options.mixed_precision, options.compiled)
        self.average = _average(task.network, options.ema) if options.ema else None
        self.state = self._state()
        print(
            f"Training {count_parameters(task.network):,} parameters on {task.data}, {task.steps} steps an epoch"
            + (f", {group.size} processes" if group.size > 1 else "")
            + ("" if self.trainer.precision == "float32" else f", {self.trainer.precision}"),
            flush=True,
        )
        self._resume()
        task.begin(self.state.epoch * task.steps + self.state.step)

    @property
    def network(self) -> Network:
        """What is validated and saved."""
        return cast(Network, self.average.module) if self.average else self.task.network

    def _state(self) -> TrainingState:
        task = self.task
        modules = {"network": task.network} | ({"average": self.average} if self.average else {})
        parts = {"schedule": task.schedule} | ({"scaling": self.trainer.scaling} if self.trainer.scaling else {})
        settings = {
            "threads": torch.get_num_threads(),
            "processes": self.group.size,
            "precision": self.trainer.precision,
            "ema": self.options.ema,
        }
        return TrainingState(
            modules, task.optimizer, {**parts, **task.parts}, {**settings, **task.settings}, task.if_diverged
        )

    def _resume(self) -> None:
        state, results = self.state, self.options.results
        found = state.resume(results)
        here = [float(state.epoch), float(state.step)]
        if self.group.from_first(*here) != here:
            raise UserError(f"{results}: not the same on all machines; name a directory that all of them share")
        if found:
            print(f"Resuming after epoch {state.epoch}, step {state.step} of the next, from {results}", flush=True)

    def run(self) -> Path:
        """Trains to the end; returns the model file."""
        state, task = self.state, self.task
        clock = EpochClock(state.epoch, task.epochs)
        with stop_between_steps() as stop:
            while state.epoch < task.epochs and not state.finished:
                self._train_epoch(stop)
                rate = task.schedule.rate((state.epoch + 1) * task.steps - 1)  # which a validation may change
                validation = self._validate() if task.is_validated(state.epoch + 1) else None
                task.end_epoch()
                loss = state.end_epoch() / task.steps
                self._save_epoch()
                self._report_epoch(clock, loss, rate, validation)
        task.close()
        model = self.options.results / "weights" / f"{self.options.name}{SUFFIX}"
        if self.status:
            task.describe(self.network)
            save_network(model, self.network)
            kpi = {"size": model.stat().st_size / 2**20, "param_count": count_parameters(self.network) / 1e6}
            self.status.write("SUCCESS", f"{self.title} training job complete", kpi=kpi)
        return model

    def _train_epoch(self, stop: StopRequest) -> None:
        """Trains what is left of the epoch."""
        state, task, rank = self.state, self.task, self.group.rank
        on_cpu = self.group.device.type == "cpu"
        pending: list[Tensor] = []
        task.network.train()
        for inputs, targets in task.batches(state.epoch, state.step):
            number = state.epoch * task.steps + state.step
            rate = task.schedule.rate(number)
            torch.manual_seed(hash((task.seed, number, rank)))
            pending.append(self.trainer.step(inputs, targets, rate))
            if self.average:
                self.average.update_parameters(task.network)
            state.step += 1
            ends_epoch = state.step == task.steps
            save = stop.signal_number or state.seconds_since_save > self.options.save_seconds
            if on_cpu or save or ends_epoch or len(pending) == _STEPS_BETWEEN_LOOKS:
                self._look_at(pending)
            task.stepped(Step(number, rate, inputs, self.trainer.losses, self.trainer.scaling, ends_epoch))
            if save and rank == 0:
                state.save(self.options.results)
            stop.raise_if_made()

    def _look_at(self, pending: list[Tensor]) -> None:
        """Adds losses to the epoch's, which takes waiting for the device that computes them."""
        self.state.loss_sum = loss = math.fsum([self.state.loss_sum, *torch.stack(pending).tolist()])
        pending.clear()
        if not math.isfinite(loss):
            raise StageError(f"the loss became {loss}; {self.task.if_diverged}")

    def _validate(self) -> Validation | None:
        """Validates, and lets the schedule decide by the cost whether training goes on."""
        validation, epochs = None, self.state.epoch + 1
        if self.group.rank == 0:
            self.state.save(self.options.results)  # validation may take long
            validation = self.task.validate(self.network, epochs)
        (cost,) = self.group.from_first(validation.cost if validation else math.nan)
        if not math.isnan(cost):
            self.state.finished = not self.task.schedule.validated(epochs, epochs * self.task.steps, cost)
        return validation

    def _save_epoch(self) -> None:
        if self.group.rank:
            return
        epochs, results, interval = self.state.epoch, self.options.results, self.task.checkpoint_interval
        self.state.save(results)
        if interval and epochs % interval == 0:
            self.task.describe(self.network)
            save_network(results / f"model.epoch-{epochs}{SUFFIX}", self.network)

    def _report_epoch(self, clock: EpochClock, loss: float, rate: float, validation: Validation | None) -> None:
        """Says how the epoch that has just ended went; epochs are counted from 0 there."""
        finished, total = self.state.epoch, self.task.epochs
        taken, eta = clock.lap(finished)
        print(
            f"Epoch {finished - 1}/{total}: loss: {loss:0.5f} learning rate: {rate:.4g} Time taken: {taken} ETA: {eta}",
            flush=True,
        )
        if self.state.finished:
            print(f"The validation cost has not fallen any more: stopped after epoch {finished}", flush=True)
        if self.status:
            fields: dict[str, Any] = {"epoch": finished - 1, "max_epoch": total, "time_per_epoch": taken, "eta": eta}
            graphical = {"loss": loss, "learning_rate": rate}
            scored = validation.status if validation else {}
            self.status.write("RUNNING", "Training loop in progress", **fields, graphical=graphical, **scored)


def _average(network: nn.Module, decay: float) -> "torch.optim.swa_utils.AveragedModel":
    # Takes a second to import, which a training without an average need not.
    from torch.optim.swa_utils import AveragedModel

    def average(averages: _Tensors, values: _Tensors, count: Tensor | int) -> None:
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, values)
            return
        # The average begins short, or a training of few steps would keep a part of its random start.
        share = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averages, values, 1 - share)

    return AveragedModel(network, multi_avg_fn=average, use_buffers=True)
