"""ResNet backbones of stride 16 with TAO's layer names (TAO 5.0, `core/templates/resnet.py`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

UNITS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BLOCK_CHANNELS = (64, 128, 256, 512)
# With `use_pooling: false` the stem and the first three blocks halve the resolution: stride 16 in all.
_BLOCK_STRIDES = (2, 2, 2, 1)


@dataclass(frozen=True)
class ResNetConfig:
    """What a backbone is built from.

    Attributes:
        depth: 10, 18 or 34.
        all_projections: Every unit has a 1x1 convolution in its shortcut; otherwise only the first of each block.
        use_batch_norm: Batch normalisation behind every convolution (the convolutions keep their bias, as TAO's do).
        channels: Output channels of each convolution by layer name. Pruned networks differ from layer to layer.
    """

    depth: int
    all_projections: bool = False
    use_batch_norm: bool = True
    channels: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of_width(
        cls, depth: int, width: float = 1.0, all_projections: bool = False, use_batch_norm: bool = True
    ) -> Self:
        """Returns the unpruned network; `width` scales all channels (multiples of 8, at least 8)."""
        config = cls(depth, all_projections, use_batch_norm)
        scaled = [max(8, round(channels * width / 8) * 8) for channels in _BLOCK_CHANNELS]
        channels = {"conv1": scaled[0]}
        for unit in config.units():
            for convolution in (unit.first, unit.second, *([unit.shortcut] if unit.shortcut else [])):
                channels[convolution] = scaled[unit.block]
        return cls(depth, all_projections, use_batch_norm, channels)

    def units(self) -> list["Unit"]:
        """Returns the residual units from input to output."""
        units = []
        for block, count in enumerate(UNITS[self.depth]):
            for index in range(count):
                name = f"block_{block + 1}{chr(ord('a') + index)}"
                has_projection = self.all_projections or index == 0
                units.append(Unit(name, block, _BLOCK_STRIDES[block] if index == 0 else 1, has_projection))
        return units


@dataclass(frozen=True)
class Unit:
    """A residual unit of two 3x3 convolutions.

    Attributes:
        name: TAO's name, for example `block_1a`.
        block: 0 to 3.
        stride: Of the first convolution and of the shortcut.
        has_projection: Whether the shortcut is a 1x1 convolution or the identity.
    """

    name: str
    block: int
    stride: int
    has_projection: bool

    @property
    def first(self) -> str:
        """Name of the first 3x3 convolution."""
        return f"{self.name}_conv_1"

    @property
    def second(self) -> str:
        """Name of the second 3x3 convolution."""
        return f"{self.name}_conv_2"

    @property
    def shortcut(self) -> str | None:
        """Name of the shortcut's 1x1 convolution, or None for an identity."""
        return f"{self.name}_conv_shortcut" if self.has_projection else None


def batch_norm_name(convolution: str) -> str:
    """Returns the name of the batch norm behind a convolution: `conv1` -> `bn_conv1`, `…_conv_1` -> `…_bn_1`."""
    return "bn_conv1" if convolution == "conv1" else convolution.replace("_conv_", "_bn_")


class PointwiseConvolution(nn.Conv2d):
    """A 1x1 convolution that trains in any number of channels.

    PyTorch 2.13 crashes on CPUs (oneDNN, memory corruption) in the backward pass of a strided 1x1 convolution with
    fewer than 16 input channels in channels-last order. Taking every n-th pixel first computes the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the convolution of `x` [N, C, H, W]."""
        step = self.stride[0]
        if self.training and step > 1 and self.in_channels < 16:
            return nn.functional.conv2d(x[:, :, ::step, ::step], self.weight, self.bias)
        return super().forward(x)


class ResNet(nn.Module):
    """The backbone: [N, 3, H, W] RGB in 0..1 to [N, channels of the last unit, H/16, W/16]."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self._add("conv1", 3, kernel=7, stride=2)
        channels = config.channels["conv1"]
        for unit in config.units():
            self._add(unit.first, channels, kernel=3, stride=unit.stride)
            self._add(unit.second, config.channels[unit.first], kernel=3, stride=1)
            if unit.shortcut:
                self._add(unit.shortcut, channels, kernel=1, stride=unit.stride)
            channels = config.channels[unit.second]
        self.out_channels = channels

    def _add(self, name: str, in_channels: int, kernel: int, stride: int) -> None:
        out_channels = self.config.channels[name]
        kind = PointwiseConvolution if kernel == 1 else nn.Conv2d
        convolution = kind(in_channels, out_channels, kernel, stride, padding=kernel // 2)
        initialise(convolution)
        self.add_module(name, convolution)
        if self.config.use_batch_norm:
            self.add_module(batch_norm_name(name), nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01))

    def _convolve(self, name: str, x: Tensor) -> Tensor:
        x = self.get_submodule(name)(x)
        return self.get_submodule(batch_norm_name(name))(x) if self.config.use_batch_norm else x

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features [N, C, H/16, W/16] of images [N, 3, H, W]."""
        x = torch.relu(self._convolve("conv1", x))
        for unit in self.config.units():
            y = torch.relu(self._convolve(unit.first, x))
            y = self._convolve(unit.second, y)
            x = torch.relu(y + (self._convolve(unit.shortcut, x) if unit.shortcut else x))
        return x


def initialise(convolution: nn.Conv2d) -> None:
    """Initialises as Keras does: Glorot-uniform kernel, zero bias."""
    nn.init.xavier_uniform_(convolution.weight)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)


def copy_matching(source: Mapping[str, Tensor], target: nn.Module) -> tuple[list[str], list[str]]:
    """Copies tensors by name into `target`; returns the names copied and the names that had no match of equal shape."""
    state = target.state_dict()
    matching = [name for name, value in state.items() if name in source and source[name].shape == value.shape]
    target.load_state_dict({name: source[name] for name in matching}, strict=False)
    return matching, [name for name in state if name not in matching]
