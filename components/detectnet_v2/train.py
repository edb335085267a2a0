"""The training loop of DetectNet_v2."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from google.protobuf import text_format
from torch import Tensor

from components.detectnet_v2 import experiment, spec_pb2
from components.detectnet_v2.dataset import Batch, BatchMaker, BatchTensors
from components.detectnet_v2.evaluation import evaluate, print_evaluation
from components.detectnet_v2.losses import ObjectiveWeights, bbox_cost, coverage_cost
from components.step import StageError, UserError, sha256
from components.vision.checkpoint import SUFFIX, load_network, save_network
from components.vision.gridnet import GridNet, count_parameters
from components.vision.optimizer import Adam
from components.vision.resnet import copy_matching
from components.vision.status import StatusLog
from components.vision.threads import available_cores
from components.vision.torch_predictor import TorchPredictor
from components.vision.training import EpochClock, TrainingState


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """The options of `detectnet_v2 train` beside the spec.

    Attributes:
        results: Results directory; a training found there is resumed.
        name: Base name of the model file.
        width: Scales the channels of a new network (an engine flag, not TAO's).
        threads: Threads of PyTorch; 0 for all available cores.
        deterministic: Choose deterministic kernels on a GPU; on a CPU they always are (at one number of threads).
    """

    results: Path
    name: str = "model"
    width: float = 1.0
    threads: int = 0
    deterministic: bool = False


def train(spec: spec_pb2.Experiment, options: TrainOptions) -> Path:
    """Trains by an experiment spec; returns the model file `<results>/weights/<name>.safetensors`."""
    torch.set_num_threads(options.threads or available_cores())
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS may choose as it likes
        torch.use_deterministic_algorithms(True)
    torch.manual_seed(spec.random_seed)
    status = StatusLog(options.results)
    status.write("STARTED", "Starting DetectNet_v2 training")
    network = build_network(spec, options.width)
    data = experiment.training_images(spec)
    validation = experiment.validation_images(spec) if spec.dataset_config.WhichOneof("dataset_split_type") else None
    batches = experiment.batch_maker(spec, data)
    print(
        f"Training {count_parameters(network):,} parameters on {len(data)} images of "
        f"{network.config.geometry.width}x{network.config.geometry.height}, {batches.steps} steps an epoch",
        flush=True,
    )
    loop = _Loop(spec, options, network, batches)
    loop.resume()
    config, epochs = spec.evaluation_config, spec.training_config.num_epochs
    clock = EpochClock(loop.state.epoch, epochs)
    while loop.state.epoch < epochs:
        epoch = loop.state.epoch
        loss, rate = loop.run_epoch(epoch)
        loop.state.save(options.results)
        if (epoch + 1) % (spec.training_config.checkpoint_interval or 10) == 0:
            save_network(options.results / f"model.epoch-{epoch + 1}{SUFFIX}", network)
        taken, eta = clock.lap(epoch + 1)
        print(
            f"Epoch {epoch}/{epochs}: loss: {loss:0.5f} learning rate: {rate:.4g} Time taken: {taken} ETA: {eta}",
            flush=True,
        )
        scored = None
        since_first = epoch + 1 - config.first_validation_epoch
        is_due = since_first >= 0 and since_first % config.validation_period_during_training == 0
        if validation and (is_due or epoch + 1 == epochs):
            scored = evaluate(TorchPredictor.of(network), validation, config)
            print_evaluation(scored)
        status.write(
            "RUNNING",
            "Training loop in progress",
            epoch=epoch,
            max_epoch=epochs,
            time_per_epoch=taken,
            eta=eta,
            graphical={"loss": loss, "learning_rate": rate},
            kpi={"mean average precision": 100 * (scored["mean_average_precision"] or 0.0)} if scored else None,
        )
    model = options.results / "weights" / f"{options.name}{SUFFIX}"
    save_network(model, network)
    kpi = {"size": model.stat().st_size / 2**20, "param_count": count_parameters(network) / 1e6}
    status.write("SUCCESS", "DetectNet_v2 training job complete", kpi=kpi)
    return model


def build_network(spec: spec_pb2.Experiment, width: float) -> GridNet:
    """Builds the spec's network, from `pretrained_model_file` where one is named.

    With `load_graph` the stored network is taken as it is (needed after pruning); otherwise the spec's network is
    built and the stored weights of equal name and shape are copied into it. What does not match is named.
    """
    config = experiment.network_config(spec, width)
    if not spec.model_config.pretrained_model_file:
        return GridNet(config)
    file = Path(spec.model_config.pretrained_model_file)
    stored = load_network(file)
    if spec.model_config.load_graph:
        if stored.config.class_names != config.class_names:
            raise UserError(
                f"{file}: trained for the classes {', '.join(stored.config.class_names)}, the spec names "
                f"{', '.join(config.class_names)}; set load_graph to false to copy the matching layers only"
            )
        network = GridNet(config.with_backbone(stored.config.backbone))
        network.load_state_dict(stored.state_dict())
        return network
    network = GridNet(config)
    copied, left = copy_matching(stored.state_dict(), network)
    print(f"Pretrained weights: {len(copied)} tensors copied from {file.name}, {len(left)} without a match", flush=True)
    for name in left:
        print(f"  not matched: {name}", flush=True)
    return network


class _Loop:
    """One epoch after the other, and what is kept between them."""

    def __init__(self, spec: spec_pb2.Experiment, options: TrainOptions, network: GridNet, batches: BatchMaker) -> None:
        config = spec.training_config
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.batches, self.results = batches, options.results
        self.weights: ObjectiveWeights = experiment.objective_weights(spec)
        self.schedule = experiment.schedule(spec)
        self.total_steps = config.num_epochs * batches.steps
        freeze(network, spec.model_config)
        self.regularised = _convolution_parameters(network)
        self.regularizer = config.regularizer
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        adam = config.optimizer.adam
        self.optimizer = Adam(trained, adam.beta1, adam.beta2, adam.epsilon)
        extra = {"objective_weights": self.weights.weights}
        settings = {
            "spec": text_format.MessageToString(_without_paths(spec)),
            "network": network.config.to_json(),
            "start": _start(spec),
            "images": len(batches.data),
            "threads": torch.get_num_threads(),
        }
        self.state = TrainingState(network, self.optimizer, extra, 0, settings)
        self.freeze_bn = spec.model_config.freeze_bn

    def resume(self) -> None:
        if self.state.resume(self.results):
            self.weights.weights = self.state.extra["objective_weights"]
            print(f"Resuming after epoch {self.state.epoch} from {self.results}", flush=True)

    def run_epoch(self, epoch: int) -> tuple[float, float]:
        """Trains one epoch; returns the mean loss and the last learning rate."""
        self.network.train()
        if self.freeze_bn:
            for module in self.network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()
        total, rate = 0.0, 0.0
        for step, batch in enumerate(self.batches.epoch(epoch)):
            rate = self.schedule.at((epoch * self.batches.steps + step) / self.total_steps)
            total += self._step(batch, rate)
        self.weights.end_epoch()
        self.state.extra["objective_weights"] = self.weights.weights
        self.state.epoch = epoch + 1
        return total / self.batches.steps, rate

    def _step(self, batch: Batch, rate: float) -> float:
        tensors = batch.to_tensors(self.device)
        return training_step(self.network, self.weights, self.optimizer, tensors, rate, self._regularise)

    @torch.no_grad()
    def _regularise(self) -> float:
        """Adds the regulariser's gradient and returns its cost (TAO: kernels and biases, not batch norms)."""
        weight, kind = self.regularizer.weight, self.regularizer.type
        if kind == spec_pb2.RegularizerConfig.NO_REG or not weight:
            return 0.0
        gradients = [parameter.grad for parameter in self.regularised if parameter.grad is not None]
        if kind == spec_pb2.RegularizerConfig.L1:
            torch._foreach_add_(gradients, torch._foreach_sign(self.regularised), alpha=weight)
            return weight * float(sum(torch._foreach_norm(self.regularised, 1)))
        torch._foreach_add_(gradients, self.regularised, alpha=2 * weight)
        return weight * float(sum(norm.square() for norm in torch._foreach_norm(self.regularised, 2)))


def training_step(
    network: GridNet,
    weights: ObjectiveWeights,
    optimizer: Adam,
    batch: BatchTensors,
    rate: float,
    regularise: Callable[[], float] = lambda: 0.0,
) -> float:
    """Trains one batch; returns its loss.

    Args:
        network: In training mode.
        weights: Of the objectives.
        optimizer: Of the network's trained parameters.
        batch: Images and targets, on the network's device.
        rate: Learning rate of this step.
        regularise: Adds the regulariser's gradients to those of the loss; returns its cost.

    Raises:
        StageError: The loss is not finite.
    """
    coverage, bbox = network(batch.images)
    loss = weights.total(
        coverage_cost(coverage, batch.coverage, weights.foreground.to(coverage), batch.mask),
        bbox_cost(bbox, batch.bbox, batch.coverage_norm, batch.mask),
    )
    for parameter in optimizer.parameters:
        parameter.grad = None
    loss.backward()  # type: ignore[no-untyped-call]
    value = float(loss.detach()) + regularise()
    if not math.isfinite(value):
        raise StageError(f"the loss became {value}; lower training_config.learning_rate's max_learning_rate")
    optimizer.step(rate)
    return value


def freeze(network: GridNet, config: spec_pb2.ModelConfig) -> None:
    """Excludes layers from training: `freeze_blocks` (0 is the stem, 1 to 4 the blocks) and `freeze_bn`."""
    blocks = {int(block) for block in config.freeze_blocks}
    prefixes = tuple("backbone.conv1" if block == 0 else f"backbone.block_{block}" for block in sorted(blocks))
    for name, parameter in network.named_parameters():
        is_batch_norm = "_bn_" in name or ".bn_" in name
        if (prefixes and name.startswith(prefixes) and not is_batch_norm) or (is_batch_norm and config.freeze_bn):
            parameter.requires_grad_(False)


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
