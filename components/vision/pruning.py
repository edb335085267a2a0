"""Structured pruning with TAO's rules (TAO 5.0, `core/pruning/pruning.py`): whole channels are removed.

The network's graph is ours and regular, so the coupling of channels is written down directly rather than traced: every
3x3 convolution whose output meets another one in an addition must keep the same channels.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from components.step import UserError
from components.vision.gridnet import BBOX_HEAD, COVERAGE_HEAD, GridNet, count_parameters
from components.vision.resnet import ResNetConfig, batch_norm_name

Equalization = Literal["union", "intersection", "arithmetic_mean", "geometric_mean"]
_MERGE: dict[Equalization, Callable[[Tensor], Tensor]] = {
    "union": lambda norms: norms.amax(0),
    "intersection": lambda norms: norms.amin(0),
    "arithmetic_mean": lambda norms: norms.mean(0),
    "geometric_mean": lambda norms: norms.clamp_min(1e-30).log().mean(0).exp(),
}


@dataclass(frozen=True, slots=True)
class PruneSettings:
    """TAO's pruning options with TAO's defaults.

    Attributes:
        threshold: Channels with a normalised norm of at most this are removed.
        granularity: Channel counts are rounded up to a multiple of this.
        minimum_filters: No convolution keeps fewer channels (or fewer than it has).
        normalizer: `max`: norms are divided by the largest; `L2`: by their root sum of squares, times their number.
        equalization: How the norms of channels that meet in an addition are merged.
        excluded: Convolutions that keep all channels.
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
    unknown = set(settings.excluded) - set(network.config.backbone.channels) - {COVERAGE_HEAD, BBOX_HEAD}
    if unknown:
        known = ", ".join(network.config.backbone.channels)
        raise UserError(f"excluded layer {sorted(unknown)[0]!r} does not exist; the convolutions are {known}")
    kept = _kept_channels(network, settings)
    backbone = replace(network.config.backbone, channels={name: len(indices) for name, indices in kept.items()})
    pruned = GridNet(network.config.with_backbone(backbone))
    pruned.load_state_dict(_slice(network, kept))
    return pruned


def threshold_for_ratio(network: GridNet, settings: PruneSettings, target_ratio: float) -> float:
    """Returns the smallest threshold that leaves at most `target_ratio` of the parameters.

    Raises:
        UserError: Even the largest threshold leaves more (minimum filters or granularity stand in the way).
    """
    statistics = _group_statistics(network, settings).values()
    # The ratio falls in steps, one at each channel's statistic.
    steps = [0.0, *sorted({float(value) for statistic in statistics for value in statistic})]
    total = count_parameters(network)

    def ratio(index: int) -> float:
        return count_parameters(prune(network, replace(settings, threshold=steps[index]))) / total

    low, high = 0, len(steps) - 1
    if ratio(high) > target_ratio:
        raise UserError(
            f"a ratio of {target_ratio} is out of reach: with at least {settings.minimum_filters} filters in steps of "
            f"{settings.granularity} the smallest is {ratio(high):.3f}; lower one of them"
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if ratio(middle) <= target_ratio else (middle + 1, high)
    return steps[low]


def coupled_convolutions(config: ResNetConfig) -> list[tuple[str, ...]]:
    """Returns the groups of convolutions that must keep the same output channels."""
    groups: list[tuple[str, ...]] = [("conv1",)]
    join: tuple[str, ...] = ("conv1",)
    for unit in config.units():
        groups.append((unit.first,))
        if unit.shortcut:
            join = (unit.second, unit.shortcut)
        else:  # the identity adds this unit's output to the previous join
            groups.remove(join)
            join = (*join, unit.second)
        groups.append(join)
    return groups


def _group_statistics(network: GridNet, settings: PruneSettings) -> dict[tuple[str, ...], Tensor]:
    statistics = {}
    for group in coupled_convolutions(network.config.backbone):
        norms = torch.stack([_normalised_norms(network, name, settings.normalizer) for name in group])
        statistics[group] = _MERGE[settings.equalization](norms)
    return statistics


def _normalised_norms(network: GridNet, convolution: str, normalizer: str) -> Tensor:
    kernel = network.backbone.get_parameter(f"{convolution}.weight").detach()
    norms = torch.linalg.vector_norm(kernel.flatten(1), dim=1)
    scale = norms.max() if normalizer == "max" else norms.square().sum().sqrt() / len(norms)
    return torch.div(norms, scale)


def _kept_channels(network: GridNet, settings: PruneSettings) -> dict[str, Tensor]:
    kept = {}
    for group, statistic in _group_statistics(network, settings).items():
        total = len(statistic)
        count = int((statistic > settings.threshold).sum())
        count = max(count, min(settings.minimum_filters, total))
        count = min(total, math.ceil(count / settings.granularity) * settings.granularity)
        if any(name in settings.excluded for name in group):
            count = total
        best = torch.sort(statistic, descending=True, stable=True).indices[:count]
        for name in group:
            kept[name] = best.sort().values
    return kept


def _slice(network: GridNet, kept: dict[str, Tensor]) -> dict[str, Tensor]:
    state = network.state_dict()

    def slice_convolution(name: str, inputs: Tensor) -> None:
        outputs = kept[name]
        prefix = f"backbone.{name}"
        state[f"{prefix}.weight"] = state[f"{prefix}.weight"][outputs][:, inputs]
        state[f"{prefix}.bias"] = state[f"{prefix}.bias"][outputs]
        if network.config.backbone.use_batch_norm:
            for value in ("weight", "bias", "running_mean", "running_var"):
                key = f"backbone.{batch_norm_name(name)}.{value}"
                state[key] = state[key][outputs]

    inputs = torch.arange(3)
    slice_convolution("conv1", inputs)
    inputs = kept["conv1"]
    for unit in network.config.backbone.units():
        slice_convolution(unit.first, inputs)
        slice_convolution(unit.second, kept[unit.first])
        if unit.shortcut:
            slice_convolution(unit.shortcut, inputs)
        inputs = kept[unit.second]
    for head in (COVERAGE_HEAD, BBOX_HEAD):
        state[f"{head}.weight"] = state[f"{head}.weight"][:, inputs]
    return state
