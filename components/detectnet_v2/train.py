"""`detectnet_v2 train`: the training loop of DetectNet_v2."""

import math
import os
from collections.abc import Mapping
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from google.protobuf import text_format
from torch import Tensor

from components.detectnet_v2 import experiment, sources, spec_pb2
from components.detectnet_v2.dataset import LabelledImages
from components.detectnet_v2.evaluation import evaluate, evaluation_status, print_evaluation
from components.detectnet_v2.losses import WeightPenalty
from components.detectnet_v2.network import build_network, freeze
from components.detectnet_v2.trainer import Precision, Trainer, require_finite
from components.detectnet_v2.validation import CostMeter, Order, scored_by_tao5
from components.detectnet_v2.visualizer import Visualizer
from components.step import StageError, UserError, sha256
from components.vision.checkpoint import SUFFIX, save_network
from components.vision.cost_scaling import CostScaling
from components.vision.distributed import Group, joined
from components.vision.gridnet import GridNet
from components.vision.network import count_parameters
from components.vision.optimizer import Adam
from components.vision.status import StatusLog
from components.vision.threads import available_cores
from components.vision.torch_predictor import TorchPredictor
from components.vision.training import EpochClock, Resumable, StopRequest, TrainingState, stop_between_steps

# A GPU is not waited for after every step just to look at its loss.
_STEPS_BETWEEN_LOOKS = 50


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """The options of `detectnet_v2 train` beside the spec.

    Attributes:
        results: Results directory; a training found there is resumed.
        name: Base name of the model file.
        width: Scales the channels of a new network (an engine flag, not TAO's).
        threads: Threads of PyTorch; 0 for all available cores.
        deterministic: Choose deterministic kernels on a GPU; on a CPU they always are (at one number of threads).
        mixed_precision: Forward and backward pass in 16 bits (bfloat16 where the GPU has it, otherwise float16).
        compiled: Run the network through `torch.compile`.
        tao5: Reproduce TAO 5's defects.
        save_seconds: A kill costs at most these seconds of training.
    """

    results: Path
    name: str = "model"
    width: float = 1.0
    threads: int = 0
    deterministic: bool = False
    mixed_precision: bool = False
    compiled: bool = False
    tao5: bool = False
    save_seconds: float = 60.0


def train(spec: spec_pb2.Experiment, options: TrainOptions) -> Path:
    """Trains by an experiment spec; returns the model file `<results>/weights/<name>.safetensors`.

    Started by torchrun, the processes train together, each on its part of every batch, as TAO's do.
    """
    with joined() as group:
        torch.set_num_threads(options.threads or max(1, available_cores() // group.local_size))
        if options.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS may choose as it likes
            torch.use_deterministic_algorithms(True)
        torch.manual_seed(spec.random_seed)
        status = StatusLog(options.results) if group.rank == 0 else None
        try:
            return _Training(spec, options, group, status).run()
        except (UserError, StageError) as error:
            if status:
                status.write("FAILURE", str(error))
            raise
        except (KeyboardInterrupt, SystemExit):
            if status:
                status.write("FAILURE", "Training was interrupted; the same command goes on from here")
            raise


class _Training:
    """A training from its first epoch to its last, or from where it was left."""

    def __init__(
        self, spec: spec_pb2.Experiment, options: TrainOptions, group: Group, status: StatusLog | None
    ) -> None:
        self.spec, self.options, self.group, self.status = spec, options, group, status
        self._write_status("STARTED", "Starting DetectNet_v2 training")
        with nullcontext() if group.rank == 0 else redirect_stdout(None):  # one report is enough
            network = build_network(spec, options.width)
        freeze(network, spec.model_config)
        self.network = network.to(group.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        data = sources.training_images(spec, tao5=options.tao5)
        self.batches = sources.batch_maker(spec, data, group.rank, group.size, tao5=options.tao5)
        self.validation = self._validation_images()
        self.epochs = spec.training_config.num_epochs
        self.schedule = experiment.schedule(spec, self.batches.steps)
        self.trainer = self._trainer()
        self.state = self._state()
        self._say(
            f"Training {count_parameters(network):,} parameters on {len(data)} images of "
            f"{network.config.geometry.width}x{network.config.geometry.height}, {self.batches.steps} steps an epoch"
            + (f", {group.size} processes" if group.size > 1 else "")
            + ("" if self.trainer.precision == "float32" else f", {self.trainer.precision}")
        )
        self._resume()
        self.visualizer = self._visualizer()

    # ---- What it is made of ------------------------------------------------------------------------------------------

    def _validation_images(self) -> LabelledImages | None:
        """The first process validates; the others wait for it."""
        if self.spec.dataset_config.WhichOneof("dataset_split_type") is None or self.group.rank:
            return None
        return sources.validation_images(self.spec, tao5=self.options.tao5)

    def _trainer(self) -> Trainer:
        config = self.spec.training_config
        adam = config.optimizer.adam
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        if not trained:
            raise UserError("model_config freezes every layer: there is nothing to train")
        precision = self._precision()
        scaling = config.cost_scaling
        return Trainer(
            self.network,
            experiment.objective_weights(self.spec, self.group.device),
            Adam(trained, adam.beta1, adam.beta2, adam.epsilon),
            WeightPenalty(
                experiment.REGULARIZERS[config.regularizer.type],
                config.regularizer.weight,
                _convolution_parameters(self.network),
            ),
            # Without scaling, float16 would lose the small gradients.
            CostScaling(scaling.initial_exponent, scaling.increment, scaling.decrement)
            if scaling.enabled or precision == "float16"
            else None,
            precision,
            self.group,
            self.options.compiled,
        )

    def _precision(self) -> Precision:
        if not self.options.mixed_precision:
            return "float32"
        if self.group.device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return "float16"
        return "bfloat16"

    def _state(self) -> TrainingState:
        parts: dict[str, Resumable] = {"objectives": self.trainer.weights, "schedule": self.schedule}
        if self.trainer.scaling:
            parts["scaling"] = self.trainer.scaling
        settings: Mapping[str, Any] = {
            "spec": text_format.MessageToString(_without_paths(self.spec)),
            "network": self.network.config.to_json(),
            "start": _start(self.spec),
            "images": len(self.batches.data),
            "threads": torch.get_num_threads(),
            "processes": self.group.size,
            "precision": self.trainer.precision,
            "tao5": self.options.tao5,
        }
        return TrainingState(self.network, self.trainer.optimizer, parts, settings)

    def _resume(self) -> None:
        state, results = self.state, self.options.results
        found = state.resume(results)
        here = [float(state.epoch), float(state.step)]
        if self.group.from_first(*here) != here:
            raise UserError(f"{results}: not the same on all machines; name a directory that all of them share")
        if found:
            self._say(f"Resuming after epoch {state.epoch}, step {state.step} of the next, from {results}")

    def _visualizer(self) -> Visualizer | None:
        config = self.spec.training_config.visualizer
        if not config.enabled or self.group.rank:
            return None
        first = self.state.epoch * self.batches.steps + self.state.step
        return Visualizer(self.options.results, config, self.network, self.batches.steps, first)

    # ---- What it does ------------------------------------------------------------------------------------------------

    def run(self) -> Path:
        """Trains to the end; returns the model file."""
        state, results = self.state, self.options.results
        clock = EpochClock(state.epoch, self.epochs)
        with stop_between_steps() as stop:
            while state.epoch < self.epochs and not state.finished:
                self._train_epoch(stop)
                self._end_epoch(clock)
        if self.visualizer:
            self.visualizer.close()
        model = results / "weights" / f"{self.options.name}{SUFFIX}"
        if self.group.rank == 0:
            save_network(model, self.network)
            kpi = {"size": model.stat().st_size / 2**20, "param_count": count_parameters(self.network) / 1e6}
            self._write_status("SUCCESS", "DetectNet_v2 training job complete", kpi=kpi)
        return model

    def _train_epoch(self, stop: StopRequest) -> None:
        """Trains what is left of the epoch."""
        self.network.train()
        state, device = self.state, self.group.device
        pending: list[Tensor] = []
        for batch in self.batches.epoch(state.epoch, state.step):
            step = state.epoch * self.batches.steps + state.step
            if self.spec.model_config.dropout_rate:  # whose draws, too, depend on the step alone
                torch.manual_seed(hash((self.spec.random_seed, step, self.group.rank)))
            tensors = batch.to_tensors(device)
            pending.append(self.trainer.step(tensors, self.schedule.rate(step)))
            state.step += 1
            is_last = state.step == self.batches.steps
            save = stop.signal_number or state.seconds_since_save > self.options.save_seconds
            if device.type == "cpu" or save or is_last or len(pending) == _STEPS_BETWEEN_LOOKS:
                losses = torch.stack(pending).tolist()
                pending.clear()
                state.loss_sum = math.fsum([state.loss_sum, *losses])
                require_finite(state.loss_sum)
            if self.visualizer and self.visualizer.is_scalar_step(step):
                self._visualise_step(step)
            if self.visualizer and is_last:
                self.visualizer.epoch(state.epoch + 1, step, tensors.images)
            if save and self.group.rank == 0:
                state.save(self.options.results)
            stop.raise_if_made()

    def _visualise_step(self, step: int) -> None:
        assert self.visualizer
        self.visualizer.costs(step, self.trainer.costs)
        cost = float(self.trainer.weights.total(self.trainer.costs))
        values = {"cost/total": cost, "learning_rate": self.schedule.rate(step)}
        if scaling := self.trainer.scaling:
            values |= {"cost_scaling/exponent": scaling.exponent, "cost_scaling/overflows": scaling.overflows}
        self.visualizer.scalars(step, values)

    def _end_epoch(self, clock: EpochClock) -> None:
        """Balances the objectives, validates where that is due, saves, and says how it went."""
        state, results = self.state, self.options.results
        epoch, last_step = state.epoch, (state.epoch + 1) * self.batches.steps
        rate, loss = self.schedule.rate(last_step - 1), state.loss_sum / self.batches.steps
        is_due = self._validation_is_due(epoch + 1)
        if is_due and self.group.rank == 0 and self.validation:
            state.save(results)  # validation may take long
        figures, cost = self._validate(epoch + 1) if is_due else (None, math.nan)
        self.trainer.weights.end_epoch()
        if is_due:
            (cost,) = self.group.from_first(cost)
            goes_on = math.isnan(cost) or self.schedule.validated(epoch + 1, last_step, cost)
            state.finished = not goes_on
        state.epoch, state.step, state.loss_sum = epoch + 1, 0, 0.0
        taken, eta = clock.lap(epoch + 1)
        if self.group.rank == 0:
            state.save(results)
            if (epoch + 1) % (self.spec.training_config.checkpoint_interval or 10) == 0:
                save_network(results / f"model.epoch-{epoch + 1}{SUFFIX}", self.network)
        self._say(
            f"Epoch {epoch}/{self.epochs}: loss: {loss:0.5f} learning rate: {rate:.4g} Time taken: {taken} ETA: {eta}"
        )
        if state.finished:
            self._say(f"The validation cost has not fallen any more: stopped after epoch {epoch + 1}")
        scored = {} if figures is None else evaluation_status(figures, cost)
        self._write_status(
            "RUNNING",
            "Training loop in progress",
            epoch=epoch,
            max_epoch=self.epochs,
            time_per_epoch=taken,
            eta=eta,
            graphical={"loss": loss, "learning_rate": rate},
            **scored,
        )

    def _validation_is_due(self, finished: int) -> bool:
        config = self.spec.evaluation_config
        since_first = finished - config.first_validation_epoch
        is_due = since_first >= 0 and since_first % config.validation_period_during_training == 0
        return is_due or finished == self.epochs

    def _validate(self, finished: int) -> tuple[dict[str, Any] | None, float]:
        """Returns the figures and the cost on the validation images; nothing in a process that has none."""
        if self.validation is None:
            return None, math.nan
        predictor = TorchPredictor.of(self.network)
        decoder = replace(self.network.decoder, clustering=experiment.clustering(self.spec, tao5=self.options.tao5))
        targets = sources.batch_maker(self.spec, self.validation, tao5=self.options.tao5)
        batch_size, images = self.spec.training_config.batch_size_per_gpu, len(self.validation.pixels)
        order: Order | None = None
        config = self.spec.evaluation_config
        if self.options.tao5:
            since_first = max(finished - config.first_validation_epoch, 0)
            order = scored_by_tao5(images, batch_size, -(-since_first // config.validation_period_during_training))
        meter = CostMeter(predictor, targets, self.trainer.weights, order)
        figures = evaluate(
            meter, self.validation, config, decoder, batch_size=batch_size, tao5=self.options.tao5, order=order
        )
        self._say(f"Epoch {finished}/{self.epochs}\n{'=' * 25}")
        print_evaluation(figures, meter.cost)
        if self.visualizer:
            self.visualizer.validated(finished * self.batches.steps, figures, meter.cost)
        return figures, meter.cost

    def _say(self, text: str) -> None:
        if self.group.rank == 0:
            print(text, flush=True)

    def _write_status(self, *arguments: Any, **fields: Any) -> None:  # noqa: ANN401 - those of StatusLog.write
        if self.status:
            self.status.write(*arguments, **fields)


def _convolution_parameters(network: GridNet) -> list[Tensor]:
    convolutions = (module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
    return [parameter for module in convolutions for parameter in module.parameters() if parameter.requires_grad]


def _without_paths(spec: spec_pb2.Experiment) -> spec_pb2.Experiment:
    """A resumed run may find the same data elsewhere."""
    copy = spec_pb2.Experiment()
    copy.CopyFrom(spec)
    copy.dataset_config.ClearField("validation_data_source")
    for source in copy.dataset_config.data_sources:
        source.ClearField("tfrecords_path")
        source.ClearField("image_directory_path")
    copy.model_config.ClearField("pretrained_model_file")
    return copy


def _start(spec: spec_pb2.Experiment) -> str:
    file = spec.model_config.pretrained_model_file
    return sha256(Path(file)) if file else ""
