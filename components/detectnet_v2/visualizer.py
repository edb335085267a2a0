"""`training_config.visualizer`: what a training does, for TensorBoard (event files in `<results>/events`)."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.decode.grid.decode import decode
from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.losses import OBJECTIVES, Objectives
from components.detectnet_v2.network import GridNet
from components.step import UserError
from components.vision.task import Step

EVENTS = "events"
_GREEN = (0, 255, 0)
# TAO's default, times an epoch.
_SCALAR_LOGS = 10


class Visualizer:
    """Writes scalars some times an epoch; images and histograms of the weights every few epochs."""

    def __init__(
        self, results: Path, config: spec_pb2.VisualizerConfig, network: GridNet, steps: int, first_step: int
    ) -> None:
        """Opens the event file.

        Args:
            results: The training's results directory.
            config: `training_config.visualizer`.
            network: The trained network.
            steps: Steps of an epoch.
            first_step: Where a resumed training goes on; what an interrupted one wrote from there on is superseded.

        Raises:
            UserError: TensorBoard is not installed, or scalars are wanted more often than there are steps.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "training_config.visualizer needs TensorBoard: pip install 'gridbox[visualizer]', or set enabled: false"
            ) from error
        self._writer = SummaryWriter(str(results / EVENTS), purge_step=first_step or None)
        self._network, self._steps = network, steps
        logs, warning = scalar_logs_per_epoch(config, steps)
        if warning:
            print(f"warning: {warning}", file=sys.stderr, flush=True)
        self._scalar_steps = steps // logs
        self._epochs, self._images = config.infrequent_logging_frequency, config.num_images
        self._thresholds = {name: value.coverage_threshold for name, value in config.target_class_config.items()}

    def stepped(self, step: Step, weights: Objectives) -> None:
        """Writes a step's costs, rate and cost scaling, and at an epoch's end images and histograms, where due."""
        if (step.number + 1) % self._scalar_steps == 0:
            for name, costs in zip(self._network.config.class_names, step.losses.tolist(), strict=True):
                by_objective = zip(OBJECTIVES, costs, strict=True)
                self._scalars(step.number, {f"cost/{name}/{objective}": cost for objective, cost in by_objective})
            values = {"cost/total": float(weights.total(step.losses)), "learning_rate": step.rate}
            if scaling := step.scaling:
                values |= {"cost_scaling/exponent": scaling.exponent, "cost_scaling/overflows": scaling.overflows}
            self._scalars(step.number, values)
        if step.ends_epoch:
            self._epoch(step)

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def _epoch(self, step: Step) -> None:
        epochs = (step.number + 1) // self._steps
        if epochs % self._epochs == 0:
            for index, image in enumerate(self._annotated(step.inputs[: self._images])):
                self._writer.add_image(f"images/{index}", image, step.number, dataformats="HWC")
            for name, parameter in self._network.named_parameters():
                self._writer.add_histogram(name, parameter.detach(), step.number)
        self._writer.flush()

    def validated(self, step: int, figures: Mapping[str, Any], cost: float) -> None:
        """Writes a validation's figures."""
        by_class = {f"average_precision/{name}": value for name, value in figures["average_precision"].items()}
        values = {"validation/cost": cost, "validation/mean_average_precision": figures["mean_average_precision"]}
        self._scalars(step, {name: value for name, value in {**values, **by_class}.items() if value is not None})

    def close(self) -> None:
        """Writes what is still in memory."""
        self._writer.close()

    @torch.no_grad()
    def _annotated(self, images: Tensor) -> list[NDArray[np.uint8]]:
        """Returns the images [H, W, 3] with the boxes of all cells above each class's coverage threshold."""
        was_training = self._network.training
        self._network.eval()
        coverage, bbox = (output.float().cpu().numpy() for output in self._network(images))
        self._network.train(was_training)
        height, width = images.shape[2:]
        geometry = replace(self._network.config.geometry, width=width, height=height)  # crops may be smaller
        drawn = []
        for index, image in enumerate((images * 255).byte().permute(0, 2, 3, 1).cpu().numpy()):
            canvas = np.ascontiguousarray(image)
            for channel, name in enumerate(self._network.config.class_names):
                boxes = decode(bbox[index, 4 * channel : 4 * channel + 4], geometry)
                shown = boxes[coverage[index, channel] > self._thresholds.get(name, 0.5)]
                for x1, y1, x2, y2 in shown.round().astype(int).tolist():
                    cv2.rectangle(canvas, (x1, y1), (x2, y2), _GREEN, 1)
            drawn.append(canvas)
        return drawn


def scalar_logs_per_epoch(visualizer: spec_pb2.VisualizerConfig, steps_per_epoch: int) -> tuple[int, str]:
    """Returns how often an epoch's scalars are logged, and a warning or "".

    TAO logs 10 times an epoch by default, and fails if an epoch has fewer steps, even if the 10 was not set. Here the
    default is lowered to the number of steps; a larger number that was set is refused.

    Args:
        visualizer: `training_config.visualizer`.
        steps_per_epoch: Steps of one epoch, at least 1.

    Raises:
        UserError: `scalar_logging_frequency` is set to more than the steps of an epoch.
    """
    wanted = visualizer.scalar_logging_frequency
    if wanted > steps_per_epoch:
        raise UserError(
            f"training_config.visualizer.scalar_logging_frequency is {wanted}, but an epoch has {steps_per_epoch} "
            f"steps; set it to {steps_per_epoch} or less, or leave it out"
        )
    if wanted or steps_per_epoch >= _SCALAR_LOGS:
        return wanted or _SCALAR_LOGS, ""
    return steps_per_epoch, (
        f"an epoch has {steps_per_epoch} steps, so scalars are logged as often instead of {_SCALAR_LOGS} times; "
        f"TAO 5 needs training_config.visualizer.scalar_logging_frequency: {steps_per_epoch} to train with so few"
    )
