"""ImageNet weights in torchvision's format (a state dict of `torchvision.models.resnet*`) for our backbones.

What differs from torchvision, and what is done about it:

- Its convolutions have no bias: ours start at zero.
- Its batch norms add 1e-5 to the variance, ours 1e-3 as TAO's: the scale makes up for it, exactly so as long as the
  stored statistics hold.
- It reads images less ImageNet's mean, over its deviation; ours are RGB in 0..1: `conv1` takes that over. At the border
  its padding is the mean colour and ours is black: the outermost three pixels see another frame.
- A unit without a projection there may have one here (`all_projections`, and the first unit of ResNet-18 and 34): that
  projection starts as the identity. Its channels have equal norms, so that pruning finds few of them to remove.
- Its bottlenecks have their stride in the 3x3 convolution ("v1.5"), TAO's in the first 1x1; and its last block halves
  the resolution, where the detector keeps a stride of 16. The weights fit, the features have to be trained into it.
- Its stem is followed by a max-pool; without `use_pooling` the first block has that stride instead.
"""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from components.step import UserError
from components.vision.resnet import BATCH_NORM_EPSILON, batch_norm_name

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB values in 0..1
_TORCHVISION_EPSILON = 1e-5
_UNIT = re.compile(r"layer([1-4])\.(\d+)\.(conv|bn|downsample\.)(\d)")
_STATISTICS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class TorchvisionWeights:
    """Weights by the names of our backbone.

    Attributes:
        tensors: By the names of a network's state; its backbone's begin with `backbone.`.
        unknown: Layers of the file that a backbone does not have (the classifier `fc`).
        identities: Convolutions and batch norms of the projections that compute the identity, for the units without a
            projection in the file.
    """

    tensors: dict[str, Tensor]
    unknown: tuple[str, ...]
    identities: tuple[str, ...]


def read_torchvision(path: Path) -> TorchvisionWeights:
    """Reads a torchvision ResNet's state dict (`.pth` by `torch.save`, or `.safetensors`).

    Raises:
        UserError: The file cannot be read without running code from it, or holds something else.
    """
    state = _read_state(path)
    if "conv1.weight" not in state or not any(_UNIT.match(name) for name in state):
        raise UserError(f"{path}: no state dict of a torchvision ResNet (no conv1 and layer1); save model.state_dict()")
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        layer, _, tensor = name.rpartition(".")
        layers.setdefault(layer, {})[tensor] = value.float()
    tensors: dict[str, Tensor] = {}
    unknown = []
    for layer, values in layers.items():
        ours = _our_name(layer)
        if ours is None:
            unknown.append(layer)
        elif "running_mean" in values:
            tensors |= _batch_norm(ours, values)
        else:
            tensors |= _named(ours, _folded(values["weight"]) if layer == "conv1" else _without_bias(values["weight"]))
    identities: list[str] = []
    units = sorted({match[0].rpartition(".")[0] for match in map(_UNIT.match, state) if match})
    for unit in units:
        shortcut = _our_name(f"{unit}.downsample.0")
        if f"{unit}.downsample.0.weight" not in state and shortcut:
            last = max(name for name in layers if name.startswith(f"{unit}.conv"))
            tensors |= _identity(shortcut, len(state[f"{last}.weight"]))
            identities += [shortcut, batch_norm_name(shortcut)]
    return TorchvisionWeights(tensors, tuple(unknown), tuple(identities))


def _read_state(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Tensors and plain containers only: nothing in the file can run.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise UserError(f"{path}: not a readable state dict: {str(error).splitlines()[0]}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: not a state dict (tensors by name); save model.state_dict() instead")
    return state


def _our_name(layer: str) -> str | None:
    """Returns TAO's name of a torchvision layer, for example `layer2.1.bn2` -> `block_2b_bn_2`."""
    if layer in ("conv1", "bn1"):
        return "conv1" if layer == "conv1" else batch_norm_name("conv1")
    match = _UNIT.fullmatch(layer)
    if not match:
        return None
    unit = f"block_{match[1]}{chr(ord('a') + int(match[2]))}"
    if match[3] == "downsample.":
        return f"{unit}_{'bn' if match[4] == '1' else 'conv'}_shortcut"
    return f"{unit}_{match[3]}_{match[4]}"


def _named(layer: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"backbone.{layer}.{name}": value for name, value in values.items()}


def _without_bias(kernel: Tensor) -> dict[str, Tensor]:
    return {"weight": kernel, "bias": torch.zeros(len(kernel))}


def _folded(kernel: Tensor) -> dict[str, Tensor]:
    """Takes (x - mean) / deviation into the convolution [O, 3, k, k]."""
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _DEVIATION))
    weight = kernel / deviation
    return {"weight": weight, "bias": -(weight * mean).sum((1, 2, 3))}


def _batch_norm(layer: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    scaled = {name: values[name] for name in _STATISTICS}
    variance = values["running_var"]
    scaled["weight"] = values["weight"] * ((variance + BATCH_NORM_EPSILON) / (variance + _TORCHVISION_EPSILON)).sqrt()
    return _named(layer, scaled)


def _identity(shortcut: str, channels: int) -> dict[str, Tensor]:
    zero, one = torch.zeros(channels), torch.ones(channels)
    scale = one * (1 + BATCH_NORM_EPSILON) ** 0.5
    values = dict(zip(_STATISTICS, (scale, zero, zero, one), strict=True))
    kernel = torch.eye(channels).view(channels, channels, 1, 1)
    return _named(shortcut, _without_bias(kernel)) | _named(batch_norm_name(shortcut), values)
