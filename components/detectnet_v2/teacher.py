"""Knowledge distillation: what a larger network, trained before, finds in an image is a target beside its labels."""

from dataclasses import dataclass
from pathlib import Path

import torch

from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.batches import BatchTensors
from components.detectnet_v2.network import GridNet, GridNetConfig, grid_net
from components.step import UserError
from components.vision.checkpoint import load_network


@dataclass(frozen=True)
class Teacher:
    """A trained network with the student's grid and classes (Hinton et al., 2015: soft targets).

    Attributes:
        network: In evaluation mode.
        weight: Share of its targets in the cost, 0 to 1; the labels have the rest.
    """

    network: GridNet
    weight: float

    @classmethod
    def of(cls, spec: spec_pb2.Experiment, student: GridNetConfig, device: torch.device) -> "Teacher | None":
        """Loads the spec's teacher; None where it names none.

        Raises:
            UserError: The file cannot be read, or its grid or classes are not the student's.
        """
        config = spec.open_engine.teacher
        if not config.model_file:
            return None
        file = Path(config.model_file)
        network = grid_net(load_network(file), file)
        theirs = network.config
        if theirs.geometry != student.geometry or theirs.class_names != student.class_names:
            raise UserError(
                f"{file}: a teacher needs the input size, grid_stride, box scale and classes of the spec; this one has "
                f"{theirs.geometry} and {', '.join(theirs.class_names)}"
            )
        network = network.requires_grad_(False).eval().to(device)
        return cls(network, round(config.weight, 6))  # the message holds 32 bits

    @torch.no_grad()
    def targets(self, labelled: BatchTensors) -> BatchTensors:
        """Returns what the teacher finds in a batch, in the place of its labels; all cells count."""
        coverage, bbox = self.network(labelled.images)
        return labelled._replace(
            coverage=coverage,
            coverage_norm=coverage,
            bbox=bbox.reshape(labelled.bbox.shape),
            mask=torch.ones_like(labelled.mask),
        )
