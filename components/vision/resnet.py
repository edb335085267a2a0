"""ResNet backbones of stride 16 with TAO's layer names (TAO 5.0, `core/templates/resnet.py`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

UNITS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
IMAGE_CHANNELS = 3
BATCH_NORM_EPSILON = 1e-3
_BLOCK_CHANNELS = (64, 128, 256, 512)
# Kernel sizes of a unit's convolutions; a bottleneck's last one has four times the channels.
_BASIC, _BOTTLENECK = (3, 3), (1, 3, 1)
_EXPANSION = 4


@dataclass(frozen=True)
class Convolution:
    """A convolution of the backbone.

    Attributes:
        name: TAO's name.
        source: The convolution whose output channels it reads (of an addition: one of those that meet in it), or None
            for the image.
        kernel: Width and height of the kernel.
        stride: In both directions.
    """

    name: str
    source: str | None
    kernel: int
    stride: int


@dataclass(frozen=True)
class Unit:
    """A residual unit: two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1.

    Attributes:
        name: TAO's name, for example `block_1a`.
        block: 0 to 3.
        stride: Of the first convolution and of the shortcut.
        kernels: Kernel sizes of its convolutions.
        has_projection: Whether the shortcut is a 1x1 convolution or the identity.
    """

    name: str
    block: int
    stride: int
    kernels: tuple[int, ...]
    has_projection: bool

    @property
    def convolutions(self) -> tuple[str, ...]:
        """Names of the convolutions beside the shortcut, in order."""
        return tuple(f"{self.name}_conv_{index + 1}" for index in range(len(self.kernels)))

    @property
    def last(self) -> str:
        """Name of the convolution that is added to the shortcut."""
        return self.convolutions[-1]

    @property
    def shortcut(self) -> str | None:
        """Name of the shortcut's 1x1 convolution, or None for an identity."""
        return f"{self.name}_conv_shortcut" if self.has_projection else None


@dataclass(frozen=True)
class ResNetConfig:
    """What a backbone is built from.

    Attributes:
        depth: 10, 18, 34 or 50.
        all_projections: Every unit has a 1x1 convolution in its shortcut; otherwise only the first of each block.
        use_batch_norm: Batch normalisation behind every convolution (the convolutions keep their bias, as TAO's do).
        channels: Output channels of each convolution by layer name. Pruned networks differ from layer to layer.
        use_pooling: A 3x3 max-pool of stride 2 behind the stem takes the place of the first block's stride.
        dropout_rate: Share of the last features that training sets to zero, 0 to 1 (without 1).
    """

    depth: int
    all_projections: bool = False
    use_batch_norm: bool = True
    channels: dict[str, int] = field(default_factory=dict)
    use_pooling: bool = False
    dropout_rate: float = 0.0

    @classmethod
    def of_width(
        cls,
        depth: int,
        width: float = 1.0,
        all_projections: bool = False,
        use_batch_norm: bool = True,
        use_pooling: bool = False,
        dropout_rate: float = 0.0,
    ) -> Self:
        """Returns the unpruned network; `width` scales all channels (multiples of 8, at least 8)."""
        scaled = [max(8, round(channels * width / 8) * 8) for channels in _BLOCK_CHANNELS]
        config = cls(depth, all_projections, use_batch_norm, {}, use_pooling, dropout_rate)
        channels = {"conv1": scaled[0]}
        for unit in config.units():
            channels |= dict.fromkeys(unit.convolutions, scaled[unit.block])
            channels[unit.last] *= _EXPANSION if config.is_bottleneck else 1
            if unit.shortcut:
                channels[unit.shortcut] = channels[unit.last]
        return replace(config, channels=channels)

    @property
    def is_bottleneck(self) -> bool:
        """Whether the units have three convolutions."""
        return self.depth >= 50

    @property
    def block_strides(self) -> tuple[int, int, int, int]:
        """Strides of the blocks: with the stem (and its pooling) 16 in all, the stride of the detector's grid.

        TAO's variant with pooling halves the resolution in the last block again and ends in a 7x7 average pool, which
        leaves no grid to detect on.
        """
        return (1, 2, 2, 1) if self.use_pooling else (2, 2, 2, 1)

    def units(self) -> list[Unit]:
        """Returns the residual units from input to output."""
        kernels = _BOTTLENECK if self.is_bottleneck else _BASIC
        units = []
        for block, count in enumerate(UNITS[self.depth]):
            for index in range(count):
                name = f"block_{block + 1}{chr(ord('a') + index)}"
                stride = self.block_strides[block] if index == 0 else 1
                units.append(Unit(name, block, stride, kernels, self.all_projections or index == 0))
        return units

    def convolutions(self) -> list[Convolution]:
        """Returns all convolutions; each stands behind the one it reads from."""
        convolutions, features = [Convolution("conv1", None, 7, 2)], "conv1"
        for unit in self.units():
            source, stride = features, unit.stride
            for name, kernel in zip(unit.convolutions, unit.kernels, strict=True):
                convolutions.append(Convolution(name, source, kernel, stride))
                source, stride = name, 1
            if unit.shortcut:
                convolutions.append(Convolution(unit.shortcut, features, 1, unit.stride))
            features = unit.last
        return convolutions

    def in_channels(self, convolution: Convolution) -> int:
        """Returns the number of channels that a convolution reads."""
        return self.channels[convolution.source] if convolution.source else IMAGE_CHANNELS

    @property
    def out_channels(self) -> int:
        """Channels of the last features."""
        return self.block_channels(3)

    def block_channels(self, block: int) -> int:
        """Returns the channels of the features behind a block, 0 to 3."""
        return self.channels[[unit.last for unit in self.units() if unit.block == block][-1]]


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
        self._units = config.units()
        for convolution in config.convolutions():
            self._add(convolution)

    def _add(self, convolution: Convolution) -> None:
        kernel, out_channels = convolution.kernel, self.config.channels[convolution.name]
        kind = PointwiseConvolution if kernel == 1 else nn.Conv2d
        in_channels = self.config.in_channels(convolution)
        layer = kind(in_channels, out_channels, kernel, convolution.stride, padding=kernel // 2)
        initialise(layer)
        self.add_module(convolution.name, layer)
        if self.config.use_batch_norm:
            batch_norm = nn.BatchNorm2d(out_channels, eps=BATCH_NORM_EPSILON, momentum=0.01)
            self.add_module(batch_norm_name(convolution.name), batch_norm)

    def _convolve(self, name: str, x: Tensor) -> Tensor:
        x = self.get_submodule(name)(x)
        return self.get_submodule(batch_norm_name(name))(x) if self.config.use_batch_norm else x

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features [N, C, H/16, W/16] of images [N, 3, H, W]."""
        return self.blocks(x)[-1]

    def blocks(self, x: Tensor) -> list[Tensor]:
        """Returns the features behind each of the four blocks; those behind the second one have a stride of 8."""
        x = torch.relu(self._convolve("conv1", x))
        if self.config.use_pooling:
            # TAO pads with zeros, PyTorch with minus infinity: the same behind a ReLU.
            x = nn.functional.max_pool2d(x, 3, 2, padding=1)
        behind: dict[int, Tensor] = {}
        for unit in self._units:
            y = x
            for name in unit.convolutions[:-1]:
                y = torch.relu(self._convolve(name, y))
            y = self._convolve(unit.last, y)
            behind[unit.block] = x = torch.relu(y + (self._convolve(unit.shortcut, x) if unit.shortcut else x))
        # TAO 5.0 hands dropout_rate to MobileNet only, for a classification head that it then leaves out: no detector
        # of TAO's has any dropout. Here it stands where that head has it, on the features that the heads read.
        if self.config.dropout_rate:
            behind[unit.block] = nn.functional.dropout(x, self.config.dropout_rate, self.training)
        return list(behind.values())


def initialise(convolution: nn.Conv2d) -> None:
    """Initialises as Keras does: Glorot-uniform kernel, zero bias."""
    nn.init.xavier_uniform_(convolution.weight)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)


def layer_of(tensor: str) -> str:
    """Returns TAO's name of the layer that a tensor belongs to: `backbone.conv1.weight` -> `conv1`."""
    return tensor.rpartition(".")[0].rpartition(".")[2]


def copy_matching(source: Mapping[str, Tensor], target: nn.Module) -> tuple[list[str], list[str]]:
    """Copies layers by name into `target`; a layer is copied whole or not at all, as Keras sets weights.

    Args:
        source: Tensors by the names of `target`'s state; a batch norm's count of batches may be missing.
        target: The network to fill.

    Returns:
        The layers copied, and the layers of `target` without a source of equal shapes, both in the order of `target`.
    """
    state = target.state_dict()
    layers: dict[str, list[str]] = {}
    for name in state:
        if not name.endswith("num_batches_tracked"):  # batch norms with a momentum do not read it
            layers.setdefault(layer_of(name), []).append(name)
    matching = {
        layer: names
        for layer, names in layers.items()
        if all(name in source and source[name].shape == state[name].shape for name in names)
    }
    target.load_state_dict({name: source[name] for names in matching.values() for name in names}, strict=False)
    return list(matching), [layer for layer in layers if layer not in matching]
