"""The grid-box network: a backbone with a coverage head and a bbox head (DetectNet_v2)."""

import math
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
from components.vision.neck import FineNeck
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
        neck: Channels of the neck of a network whose grid has a stride of 8; empty for 16, TAO's.
    """

    backbone: ResNetConfig
    class_names: tuple[str, ...]
    geometry: GridGeometry
    clustering: Mapping[str, Clustering]
    operating_point: Mapping[str, float] = field(default_factory=dict)
    fit: Fit = "letterbox"
    resampling: Resampling = "area"
    neck: Mapping[str, int] = field(default_factory=dict)

    def with_graph(self, backbone: ResNetConfig, neck: Mapping[str, int]) -> Self:
        """Returns the same configuration around another backbone and neck, whose scores are others."""
        return replace(self, backbone=backbone, neck=neck, operating_point={})

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
            "neck": dict(self.neck),
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
            # Files of former releases have none of them.
            **{name: values[name] for name in ("fit", "resampling", "neck") if name in values},
        )


class GridNet(Network, kind="detectnet_v2"):
    """Images [N, 3, H, W] (RGB, 0..1) to coverage [N, C, h, w] (0..1) and bbox [N, 4C, h, w].

    The grid's h x w cells have a stride of 16 pixels, or with a neck, of 8.

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
        self.neck = FineNeck(config.backbone, config.neck) if config.neck else None
        features = self.neck.out_channels if self.neck else config.backbone.out_channels
        classes = len(config.class_names)
        self.output_bbox = nn.Conv2d(features, 4 * classes, 1)
        self.output_cov = nn.Conv2d(features, classes, 1)
        initialise(self.output_bbox)
        initialise(self.output_cov)

    def expect(self, coverage: float, edge: float) -> None:
        """Sets what untrained heads find everywhere before they have learned anything.

        A focal loss needs it to be little, or empty cells, most of an image, would be all of the first steps' loss (Lin
        et al., 2017, RetinaNet, section 4.1); a loss of overlaps has no gradient where boxes have no area.

        Args:
            coverage: Above 0 and below 1.
            edge: Distance of all edges, in units of the geometry's scale.
        """
        nn.init.constant_(self.output_cov.bias, math.log(coverage / (1 - coverage)))  # type: ignore[arg-type]
        nn.init.constant_(self.output_bbox.bias, edge)  # type: ignore[arg-type]

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
        blocks = self.backbone.blocks(images)
        features = self.neck(blocks) if self.neck else blocks[-1]
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
        backbone, neck = (
            {name: named[name] for name in part} for part in (self.config.backbone.channels, self.config.neck)
        )
        return type(self)(self.config.with_graph(replace(self.config.backbone, channels=backbone), neck))

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
