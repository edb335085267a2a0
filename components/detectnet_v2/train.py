"""`detectnet_v2 train`: DetectNet_v2 as a task of the training loop."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from google.protobuf import text_format
from torch import Tensor, nn

from components.detectnet_v2 import experiment, sources, spec_pb2
from components.detectnet_v2.batches import BatchTensors
from components.detectnet_v2.dataset import LabelledImages
from components.detectnet_v2.evaluation import evaluate, evaluation_status, print_evaluation
from components.detectnet_v2.losses import WeightPenalty
from components.detectnet_v2.network import HEADS, GridNet
from components.detectnet_v2.teacher import Teacher
from components.detectnet_v2.transfer import build_network, freeze
from components.detectnet_v2.validation import CostMeter, OperatingPoint, Order, scored_by_tao5
from components.detectnet_v2.visualizer import Visualizer
from components.measure.summary import operating_point
from components.step import UserError, sha256
from components.vision.cost_scaling import CostScaling
from components.vision.distributed import Group
from components.vision.loop import FitOptions, fit
from components.vision.network import Network
from components.vision.optimizer import Adam
from components.vision.task import Step, Task, Validation
from components.vision.torch_predictor import TorchPredictor

# What the heads of a new network find everywhere, where the open engine's losses train it; boxes of 35 pixels.
_FIRST_COVERAGE, _FIRST_EDGE = 0.02, 0.5


@dataclass(frozen=True, kw_only=True)
class TrainOptions(FitOptions):
    """The options of `detectnet_v2 train` beside the spec.

    Attributes:
        width: Scales the channels of a new network (an engine flag, not TAO's).
        tao5: Reproduce TAO 5's defects.
    """

    width: float = 1.0
    tao5: bool = False


def train(spec: spec_pb2.Experiment, options: TrainOptions) -> Path:
    """Trains by an experiment spec; returns the model file (see `fit`)."""
    options = replace(options, ema=round(spec.open_engine.ema_decay, 6))  # the message holds 32 bits
    return fit(lambda group: _Detection(spec, options, group), options, "DetectNet_v2")


class _Detection(Task[BatchTensors]):
    """The training that a spec describes."""

    if_diverged = "lower training_config.learning_rate's max_learning_rate"

    def __init__(self, spec: spec_pb2.Experiment, options: TrainOptions, group: Group) -> None:
        torch.manual_seed(spec.random_seed)
        self._spec, self._options, self._group = spec, options, group
        config, adam = spec.training_config, spec.training_config.optimizer.adam
        network = build_network(spec, options.width)
        if experiment.has_own_loss(spec) and not network.pretrained_layers.intersection(HEADS):
            network.expect(_FIRST_COVERAGE, _FIRST_EDGE)
        freeze(network, spec.model_config)
        self.network = self._network = network.to(group.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        if not trained:
            raise UserError("model_config freezes every layer: there is nothing to train")
        self.optimizer = Adam(trained, adam.beta1, adam.beta2, adam.epsilon)
        self._objectives = experiment.objectives(spec, group.device)
        self._teacher = Teacher.of(spec, network.config, group.device)
        self._penalty = WeightPenalty(
            experiment.REGULARIZERS[config.regularizer.type],
            config.regularizer.weight,
            _convolution_parameters(network),
        )
        images = sources.training_images(spec, tao5=options.tao5, group=group)
        self._batches = sources.batch_maker(spec, images, group.rank, group.size, tao5=options.tao5)
        self._validation = self._validation_images()
        self._visualizer: Visualizer | None = None
        self.steps, self.epochs, self.seed = self._batches.steps, config.num_epochs, spec.random_seed
        self.schedule = experiment.schedule(spec, self.steps)
        self.checkpoint_interval = config.checkpoint_interval or 10
        geometry = network.config.geometry
        self.data = f"{len(images)} images of {geometry.width}x{geometry.height}"
        self._operating_point = OperatingPoint()
        self.parts = {"objectives": self._objectives, "operating_point": self._operating_point}
        self.settings = {
            "spec": text_format.MessageToString(_without_paths(spec)),
            "network": network.config.to_json(),
            "start": _digest(spec.model_config.pretrained_model_file),
            "teacher": _digest(spec.open_engine.teacher.model_file),
            "images": images.digest,
            "tao5": options.tao5,
        }

    def _validation_images(self) -> LabelledImages | None:
        """The first process validates; the others wait for it."""
        if not self._has_validation_data or self._group.rank:
            return None
        return sources.validation_images(self._spec, tao5=self._options.tao5)

    @property
    def _has_validation_data(self) -> bool:
        return self._spec.dataset_config.WhichOneof("dataset_split_type") is not None

    # ---- A step ------------------------------------------------------------------------------------------------------

    def batches(self, epoch: int, first_step: int) -> Iterator[tuple[Tensor, BatchTensors]]:
        """See `Task`."""
        for batch in self._batches.epoch(epoch, first_step):
            tensors = batch.to_tensors(self._group.device)
            yield tensors.images, tensors

    def losses(self, outputs: tuple[Tensor, Tensor], targets: BatchTensors) -> Tensor:
        """Returns the costs [C, 2] of each class's objectives."""
        costs = self._objectives.costs(outputs, targets)
        if not self._teacher:
            return costs
        taught = self._objectives.costs(outputs, self._teacher.targets(targets))
        return torch.lerp(costs, taught, self._teacher.weight)

    def total(self, losses: Tensor) -> Tensor:
        """See `Task`."""
        return self._objectives.total(losses)

    def regularise(self) -> Tensor | float:
        """See `Task`."""
        return self._penalty.add_gradients()

    def scaling(self, is_float16: bool) -> CostScaling | None:
        """See `Task`."""
        config = self._spec.training_config.cost_scaling
        if not (config.enabled or is_float16):
            return None
        return CostScaling(config.initial_exponent, config.increment, config.decrement)

    def stepped(self, step: Step) -> None:
        """See `Task`."""
        self._objectives.note(step.losses)
        if self._visualizer:
            self._visualizer.stepped(step, self._objectives)

    # ---- An epoch ----------------------------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """See `Task`."""
        config = self._spec.training_config.visualizer
        if config.enabled and self._group.rank == 0:
            self._visualizer = Visualizer(self._options.results, config, self._network, self.steps, step)

    def is_validated(self, epochs: int) -> bool:
        """See `Task`."""
        config = self._spec.evaluation_config
        since_first = epochs - config.first_validation_epoch
        is_due = since_first >= 0 and since_first % config.validation_period_during_training == 0
        return self._has_validation_data and (is_due or epochs == self.epochs)

    def validate(self, network: Network, epochs: int) -> Validation:
        """See `Task`."""
        assert self._validation
        assert isinstance(network, GridNet)
        spec, tao5 = self._spec, self._options.tao5
        config, batch_size = spec.evaluation_config, spec.training_config.batch_size_per_gpu
        predictor = TorchPredictor.of(network)
        decoder = replace(network.decoder, clustering=experiment.clustering(spec, tao5=tao5))
        order: Order | None = None
        if tao5:
            since_first = max(epochs - config.first_validation_epoch, 0)
            number = -(-since_first // config.validation_period_during_training)
            order = scored_by_tao5(len(self._validation.pixels), batch_size, number)
        targets = sources.batch_maker(spec, self._validation, tao5=tao5)
        meter = CostMeter(predictor, targets, self._objectives, order)
        figures = evaluate(meter, self._validation, config, decoder, batch_size=batch_size, tao5=tao5, order=order)
        # TAO's defects make other detections of the same outputs, which nobody is shown.
        self._operating_point.scores = {} if tao5 else operating_point(figures)
        print(f"Epoch {epochs}/{self.epochs}\n{'=' * 25}", flush=True)
        print_evaluation(figures, meter.cost)
        if self._visualizer:
            self._visualizer.validated(epochs * self.steps, figures, meter.cost)
        return Validation(meter.cost, evaluation_status(figures, meter.cost))

    def end_epoch(self) -> None:
        """See `Task`."""
        self._objectives.end_epoch()

    def describe(self, network: Network) -> None:
        """See `Task`."""
        assert isinstance(network, GridNet)
        network.config = replace(network.config, operating_point=self._operating_point.scores)

    def close(self) -> None:
        """See `Task`."""
        if self._visualizer:
            self._visualizer.close()


def _convolution_parameters(network: nn.Module) -> list[Tensor]:
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
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
    copy.open_engine.teacher.ClearField("model_file")
    return copy


def _digest(file: str) -> str:
    return sha256(Path(file)) if file else ""
