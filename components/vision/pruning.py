"""Structured pruning with TAO's rules (TAO 5.0, `core/pruning/pruning.py`): whole channels are removed.

The rules are our own code rather than torch-pruning's. That library traces a network to find which channels are
coupled; here the coupling follows from the configuration: convolutions whose outputs meet in an addition keep the same
channels. TAO's rules about how many channels stay (normaliser, threshold, minimum, granularity, equalisation by layer
name) are not among its importance measures, so that all but the tracing would be our code anyhow.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from components.step import UserError
from components.vision.gridnet import HEADS, GridNet, parameters_of
from components.vision.resnet import IMAGE_CHANNELS, ResNetConfig, batch_norm_name

Equalization = Literal["union", "intersection", "arithmetic_mean", "geometric_mean"]
_MERGE: dict[Equalization, Callable[[Tensor], Tensor]] = {
    "union": lambda norms: norms.amax(0),
    "intersection": lambda norms: norms.amin(0),
    "arithmetic_mean": lambda norms: norms.mean(0),
    "geometric_mean": lambda norms: norms.log().mean(0).exp(),  # 0 where one of them is 0
}
_Group = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PruneSettings:
    """TAO's pruning options with TAO's defaults.

    Attributes:
        threshold: Channels with a normalised norm of at most this are removed.
        granularity: Channel counts are rounded up to a multiple of this.
        minimum_filters: No convolution keeps fewer channels (or fewer than it has).
        normalizer: `max`: norms are divided by the largest; `L2`: by their root sum of squares, times their number.
        equalization: How the norms of channels that meet in an addition are merged.
        excluded: Convolutions that keep all channels, and so do those they are added to.
    """

    threshold: float = 0.1
    granularity: int = 8
    minimum_filters: int = 16
    normalizer: Literal["max", "L2"] = "max"
    equalization: Equalization = "union"
    excluded: Collection[str] = ()


def prune(network: GridNet, settings: PruneSettings) -> GridNet:
    """Returns a smaller network that holds the kept channels of `network`.

    Raises:
        UserError: An excluded layer does not exist.
    """
    kept: dict[str, Tensor] = {}
    for group, statistic in _group_statistics(network, settings).items():
        above = int((statistic > settings.threshold).sum())
        count = _kept_count(group, len(statistic), above, settings)
        # Of equal channels the first ones stay; TAO's unstable sort leaves that open.
        best = torch.sort(statistic, descending=True, stable=True).indices[:count]
        kept |= dict.fromkeys(group, best.sort().values)
    channels = {name: len(kept[name]) for name in network.config.backbone.channels}
    pruned = GridNet(network.config.with_backbone(replace(network.config.backbone, channels=channels)))
    pruned.load_state_dict(_slice(network, kept))
    return pruned


def threshold_for_ratio(network: GridNet, settings: PruneSettings, target_ratio: float) -> float:
    """Returns the smallest threshold that leaves at most `target_ratio` of the parameters.

    Raises:
        UserError: Even the largest threshold leaves more (minimum filters, granularity or excluded layers stand in the
            way), or an excluded layer does not exist.
    """
    backbone, classes = network.config.backbone, len(network.config.class_names)
    statistics = _group_statistics(network, settings)
    # The ratio falls in steps, one at each channel's statistic.
    steps: list[float] = sorted({0.0, *torch.cat([*statistics.values()]).tolist()})
    total = parameters_of(backbone, classes)

    def ratio(index: int) -> float:
        channels: dict[str, int] = {}
        for group, statistic in statistics.items():
            above = int((statistic > steps[index]).sum())
            channels |= dict.fromkeys(group, _kept_count(group, len(statistic), above, settings))
        return parameters_of(replace(backbone, channels=channels), classes) / total

    low, high = 0, len(steps) - 1
    if ratio(high) > target_ratio:
        excluded = f" and {len(settings.excluded)} layers excluded" if settings.excluded else ""
        raise UserError(
            f"a ratio of {target_ratio} is out of reach: with at least {settings.minimum_filters} filters in steps of "
            f"{settings.granularity}{excluded} the smallest is {ratio(high):.3f}; lower one of them"
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if ratio(middle) <= target_ratio else (middle + 1, high)
    return steps[low]


def coupled_convolutions(config: ResNetConfig) -> list[_Group]:
    """Returns the groups of convolutions that must keep the same output channels."""
    groups: list[_Group] = [("conv1",)]
    join = groups[0]
    for unit in config.units():
        groups += [(name,) for name in unit.convolutions[:-1]]
        if unit.shortcut:
            join = (unit.last, unit.shortcut)
        else:  # the identity adds this unit's output to the previous join
            groups.remove(join)
            join = (*join, unit.last)
        groups.append(join)
    return groups


def _kept_count(group: _Group, total: int, above: int, settings: PruneSettings) -> int:
    """Returns how many of a group's `total` channels stay when `above` of them exceed the threshold."""
    if any(name in settings.excluded for name in group):
        return total
    count = max(above, min(settings.minimum_filters, total))
    return min(total, math.ceil(count / settings.granularity) * settings.granularity)


def _group_statistics(network: GridNet, settings: PruneSettings) -> dict[_Group, Tensor]:
    unknown = set(settings.excluded) - set(network.config.backbone.channels) - set(HEADS)
    if unknown:
        known = ", ".join(network.config.backbone.channels)
        raise UserError(f"excluded layer {sorted(unknown)[0]!r} does not exist; the convolutions are {known}")
    statistics = {}
    for group in coupled_convolutions(network.config.backbone):
        norms = torch.stack([_normalised_norms(network, name, settings.normalizer) for name in group])
        statistics[group] = _MERGE[settings.equalization](norms)
    return statistics


def _normalised_norms(network: GridNet, convolution: str, normalizer: str) -> Tensor:
    kernel = network.backbone.get_parameter(f"{convolution}.weight").detach().double().cpu()
    norms = torch.linalg.vector_norm(kernel.flatten(1), dim=1)
    scale = norms.max() if normalizer == "max" else norms.square().sum().sqrt() / len(norms)
    # A convolution that is dead altogether has zeros, not NaN.
    return torch.div(norms, scale) if scale > 0 else norms


def _slice(network: GridNet, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = network.state_dict()
    backbone = network.config.backbone
    for convolution in backbone.convolutions():
        outputs = kept[convolution.name]
        inputs = kept[convolution.source] if convolution.source else torch.arange(IMAGE_CHANNELS)
        layer = f"backbone.{convolution.name}"
        state[f"{layer}.weight"] = state[f"{layer}.weight"][outputs][:, inputs]
        state[f"{layer}.bias"] = state[f"{layer}.bias"][outputs]
        if backbone.use_batch_norm:
            for value in ("weight", "bias", "running_mean", "running_var"):
                key = f"backbone.{batch_norm_name(convolution.name)}.{value}"
                state[key] = state[key][outputs]
    for head in HEADS:
        state[f"{head}.weight"] = state[f"{head}.weight"][:, kept[backbone.units()[-1].last]]
    return state
