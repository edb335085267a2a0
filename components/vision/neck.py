"""A neck that gives a backbone of stride 16 a finer grid: its features of stride 8, with what the last ones know."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from components.vision.resnet import BATCH_NORM_EPSILON, ResNetConfig, initialise

STRIDE = 8
# At the width of TAO's networks.
_CHANNELS = 192
_BLOCK_OF_STRIDE_8 = 1


class FineNeck(nn.Module):
    """Features of stride 16 and of stride 8 to [N, C, H/8, W/8], as in a feature pyramid (Lin et al., 2017).

    Both are projected to the same channels, the coarse ones repeated over 2 x 2 cells, added, and mixed by a 3x3
    convolution. The grid becomes four times as fine for about a sixth more operations; a backbone without its last
    stride would need two and a half times as many.

    Attributes:
        channels: By convolution, its output channels; pruned networks have fewer.
    """

    def __init__(self, backbone: ResNetConfig, channels: Mapping[str, int]) -> None:
        super().__init__()
        self.channels = channels
        inputs = {
            "neck_coarse": (backbone.out_channels, 1),
            "neck_fine": (backbone.block_channels(_BLOCK_OF_STRIDE_8), 1),
            "neck_mix": (channels["neck_fine"], 3),
        }
        for name, (count, kernel) in inputs.items():
            layer = nn.Conv2d(count, channels[name], kernel, padding=kernel // 2)
            initialise(layer)
            self.add_module(name, layer)
            self.add_module(f"bn_{name}", nn.BatchNorm2d(channels[name], eps=BATCH_NORM_EPSILON, momentum=0.01))

    @staticmethod
    def channels_of_width(width: float) -> dict[str, int]:
        """Returns the channels of the unpruned neck of a network whose channels are scaled by `width`."""
        return dict.fromkeys(("neck_coarse", "neck_fine", "neck_mix"), max(8, round(_CHANNELS * width / 8) * 8))

    @property
    def out_channels(self) -> int:
        """Channels of its features."""
        return self.channels["neck_mix"]

    def forward(self, blocks: list[Tensor]) -> Tensor:
        """Returns the features of what `ResNet.blocks` returns."""
        coarse = self._convolve("neck_coarse", blocks[-1])
        fine = self._convolve("neck_fine", blocks[_BLOCK_OF_STRIDE_8])
        repeated = nn.functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
        return torch.relu(self._convolve("neck_mix", torch.relu(repeated + fine)))

    def _convolve(self, name: str, x: Tensor) -> Tensor:
        features: Tensor = self.get_submodule(f"bn_{name}")(self.get_submodule(name)(x))
        return features
