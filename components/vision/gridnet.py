"""The grid-box network: a backbone with a coverage head and a bbox head (DetectNet_v2)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from components.grid.clustering import Clustering
from components.grid.geometry import GridGeometry
from components.vision.resnet import ResNet, ResNetConfig, initialise

COVERAGE_HEAD = "output_cov"
BBOX_HEAD = "output_bbox"


@dataclass(frozen=True)
class GridNetConfig:
    """Everything needed to build a grid-box network and to turn its outputs into detections.

    Attributes:
        backbone: The backbone.
        class_names: Classes in the order of the coverage channels.
        geometry: Input size and grid.
        clustering: By class name, how candidates become detections.
    """

    backbone: ResNetConfig
    class_names: tuple[str, ...]
    geometry: GridGeometry
    clustering: Mapping[str, Clustering]

    def with_backbone(self, backbone: ResNetConfig) -> Self:
        """Returns the same configuration around another backbone."""
        return replace(self, backbone=backbone)

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for `from_json`."""
        return {
            "backbone": asdict(self.backbone),
            "class_names": list(self.class_names),
            "geometry": asdict(self.geometry),
            "clustering": {name: asdict(value) for name, value in self.clustering.items()},
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Builds the configuration from the values of `to_json`."""
        return cls(
            ResNetConfig(**values["backbone"]),
            tuple(values["class_names"]),
            GridGeometry(**values["geometry"]),
            {name: Clustering(**value) for name, value in values["clustering"].items()},
        )


class GridNet(nn.Module):
    """Images [N, 3, H, W] (RGB, 0..1) to coverage [N, C, H/16, W/16] (0..1) and bbox [N, 4C, H/16, W/16]."""

    def __init__(self, config: GridNetConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNet(config.backbone)
        classes = len(config.class_names)
        self.output_bbox = nn.Conv2d(self.backbone.out_channels, 4 * classes, 1)
        self.output_cov = nn.Conv2d(self.backbone.out_channels, classes, 1)
        initialise(self.output_bbox)
        initialise(self.output_cov)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns coverage and bbox; see the class."""
        features = self.backbone(images)
        return torch.sigmoid(self.output_cov(features)), self.output_bbox(features)


def count_parameters(network: nn.Module) -> int:
    """Returns the number of weights as Keras counts them: moving batch statistics included."""
    return sum(
        value.numel() for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")
    )
