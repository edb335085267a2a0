"""The grid-box network: a backbone with a coverage head and a bbox head (DetectNet_v2)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from components.decode.description import OPERATING_POINT
from components.decode.grid.clustering import Clustering
from components.decode.grid.decoder import BBOX, COVERAGE, GridDecoder
from components.decode.grid.geometry import GridGeometry
from components.formats.images import Resampling
from components.step import UserError
from components.vision.inputs import Fit, InputSpec
from components.vision.network import Network
from components.vision.resnet import ResNet, ResNetConfig, initialise, layer_of

COVERAGE_HEAD = "output_cov"
BBOX_HEAD = "output_bbox"
HEADS = (BBOX_HEAD, COVERAGE_HEAD)


def placeholder_names(classes: int) -> tuple[str, ...]:
    """Returns the names of classes whose true names a model file does not say (TAO's do not)."""
    return tuple(f"class_{index}" for index in range(classes))


@dataclass(frozen=True)
class GridNetConfig:
    """Everything needed to build a grid-box network and to turn its outputs into detections.

    Attributes:
        backbone: The backbone.
        class_names: Classes in the order of the coverage channels.
        geometry: Input size and grid.
        clustering: By class name, how candidates become detections.
        operating_point: By class name, the score from which on detections are shown, of these weights; empty where it
            is not known.
        fit: How images become its input; see `InputSpec`.
        resampling: How they are scaled for it.
    """

    backbone: ResNetConfig
    class_names: tuple[str, ...]
    geometry: GridGeometry
    clustering: Mapping[str, Clustering]
    operating_point: Mapping[str, float] = field(default_factory=dict)
    fit: Fit = "letterbox"
    resampling: Resampling = "area"

    def with_backbone(self, backbone: ResNetConfig) -> Self:
        """Returns the same configuration around another backbone, whose scores are others."""
        return replace(self, backbone=backbone, operating_point={})

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for `from_json`."""
        return {
            "backbone": asdict(self.backbone),
            "class_names": list(self.class_names),
            "geometry": asdict(self.geometry),
            "clustering": {name: asdict(value) for name, value in self.clustering.items()},
            "fit": self.fit,
            "resampling": self.resampling,
            **({OPERATING_POINT: dict(self.operating_point)} if self.operating_point else {}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Builds the configuration from the values of `to_json`."""
        return cls(
            ResNetConfig(**values["backbone"]),
            tuple(values["class_names"]),
            GridGeometry(**values["geometry"]),
            {name: Clustering(**value) for name, value in values["clustering"].items()},
            values.get(OPERATING_POINT, {}),
            **{name: values[name] for name in ("fit", "resampling") if name in values},  # former files have neither
        )


class GridNet(Network, kind="detectnet_v2"):
    """Images [N, 3, H, W] (RGB, 0..1) to coverage [N, C, H/16, W/16] (0..1) and bbox [N, 4C, H/16, W/16].

    Attributes:
        config: What it was built from.
        pretrained_layers: TAO's names of the layers whose weights came from a pretrained model file.
    """

    outputs = (COVERAGE, BBOX)

    def __init__(self, config: GridNetConfig) -> None:
        super().__init__()
        self.config = config
        self.pretrained_layers: frozenset[str] = frozenset()
        self.backbone = ResNet(config.backbone)
        features, classes = config.backbone.out_channels, len(config.class_names)
        self.output_bbox = nn.Conv2d(features, 4 * classes, 1)
        self.output_cov = nn.Conv2d(features, classes, 1)
        initialise(self.output_bbox)
        initialise(self.output_cov)

    @property
    def input(self) -> InputSpec:
        """See `Network`."""
        size = self.config.geometry.width, self.config.geometry.height
        return InputSpec(*size, fit=self.config.fit, resampling=self.config.resampling)

    @property
    def decoder(self) -> GridDecoder:
        """See `Network`."""
        config = self.config
        point = config.operating_point
        return GridDecoder(config.geometry, config.class_names, config.clustering, operating_point=point)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns coverage and bbox; see the class."""
        features = self.backbone(images)
        # In float32, also where the rest runs in 16 bits: there 1 - coverage would vanish near 1, and its gradient too.
        return torch.sigmoid(self.output_cov(features).float()), self.output_bbox(features).float()

    def to_json(self) -> dict[str, Any]:
        """See `Network`."""
        return self.config.to_json()

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """See `Network`."""
        return cls(GridNetConfig.from_json(values))

    def with_channels(self, counts: Mapping[str, int]) -> Self:
        """See `Network`."""
        named = {layer_of(f"{path}.weight"): count for path, count in counts.items()}
        backbone = self.config.backbone
        channels = {name: named[name] for name in backbone.channels}
        return type(self)(self.config.with_backbone(replace(backbone, channels=channels)))

    def train(self, mode: bool = True) -> Self:
        """Switches to training or inference mode; batch norms that are not trained stay in inference mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                module.eval()
        return self


def grid_net(network: Network, model: Path) -> GridNet:
    """Returns the network of a model file.

    Raises:
        UserError: It is of another kind.
    """
    if not isinstance(network, GridNet):
        raise UserError(f"{model}: a network of the kind {network.kind}, no DetectNet_v2; name another model")
    return network
