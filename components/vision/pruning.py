"""Structured pruning with TAO's rules (TAO 5.0, `core/pruning/pruning.py`): whole channels are removed.

The rules decide about groups of convolutions whose outputs meet in an addition and so keep the same channels; which
ones these are is found by tracing the network (`components.vision.channels`).
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from components.step import UserError
from components.vision.channels import Coupling, Layer
from components.vision.network import Network, count_parameters

N = TypeVar("N", bound=Network)
Equalization = Literal["union", "intersection", "arithmetic_mean", "geometric_mean"]
_MERGE: dict[Equalization, Callable[[Tensor], Tensor]] = {
    "union": lambda norms: norms.amax(0),
    "intersection": lambda norms: norms.amin(0),
    "arithmetic_mean": lambda norms: norms.mean(0),
    "geometric_mean": lambda norms: norms.log().mean(0).exp(),  # 0 where one of them is 0
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
        excluded: Convolutions that keep all channels, and so do those they are added to.
    """

    threshold: float = 0.1
    granularity: int = 8
    minimum_filters: int = 16
    normalizer: Literal["max", "L2"] = "max"
    equalization: Equalization = "union"
    excluded: Collection[str] = ()


def prune(network: N, settings: PruneSettings) -> N:
    """Returns a smaller network that holds the kept channels of `network`.

    Raises:
        UserError: An excluded layer does not exist.
    """
    coupling = Coupling.of(network)
    groups = coupling.groups()
    kept: dict[int, Tensor] = {}
    for group, statistic in _statistics(coupling, settings).items():
        above = int((statistic > settings.threshold).sum())
        count = _kept_count(groups[group], len(statistic), above, settings)
        # Of equal channels the first ones stay; TAO's unstable sort leaves that open.
        best = torch.sort(statistic, descending=True, stable=True).indices[:count]
        kept[group] = best.sort().values
    pruned = network.with_channels({layer.path: len(kept[group]) for group in kept for layer in groups[group]})
    pruned.load_state_dict({**network.state_dict(), **coupling.sliced(kept)})
    return pruned


def threshold_for_ratio(network: nn.Module, settings: PruneSettings, target_ratio: float) -> float:
    """Returns the smallest threshold that leaves at most `target_ratio` of the parameters.

    Raises:
        UserError: Even the largest threshold leaves more (minimum filters, granularity or excluded layers stand in the
            way), or an excluded layer does not exist.
    """
    coupling = Coupling.of(network)
    groups, statistics = coupling.groups(), _statistics(coupling, settings)
    # The ratio falls in steps, one at each channel's statistic.
    steps: list[float] = sorted({0.0, *torch.cat([*statistics.values()]).tolist()})
    total = count_parameters(network)

    def ratio(index: int) -> float:
        counts = {}
        for group, statistic in statistics.items():
            above = int((statistic > steps[index]).sum())
            counts[group] = _kept_count(groups[group], len(statistic), above, settings)
        return (total - coupling.removed_parameters(counts)) / total

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


def _kept_count(group: list[Layer], total: int, above: int, settings: PruneSettings) -> int:
    """Returns how many of a group's `total` channels stay when `above` of them exceed the threshold."""
    if any(layer.name in settings.excluded for layer in group):
        return total
    count = max(above, min(settings.minimum_filters, total))
    return min(total, math.ceil(count / settings.granularity) * settings.granularity)


def _statistics(coupling: Coupling, settings: PruneSettings) -> dict[int, Tensor]:
    """Returns what decides about the channels of each group that may lose some."""
    groups = coupling.groups()
    prunable = {group: layers for group, layers in groups.items() if not coupling.is_fixed(group)}
    unknown = set(settings.excluded) - {layer.name for layers in groups.values() for layer in layers}
    if unknown:
        known = ", ".join(layer.name for layer in coupling.layers if any(layer in group for group in prunable.values()))
        raise UserError(f"excluded layer {sorted(unknown)[0]!r} does not exist; the convolutions are {known}")
    return {
        group: _MERGE[settings.equalization](
            torch.stack([_normalised_norms(layer.module, settings.normalizer) for layer in layers])
        )
        for group, layers in prunable.items()
    }


def _normalised_norms(layer: nn.Module, normalizer: str) -> Tensor:
    kernel = layer.get_parameter("weight").detach().double().cpu()
    norms = torch.linalg.vector_norm(kernel.flatten(1), dim=1)
    scale = norms.max() if normalizer == "max" else norms.square().sum().sqrt() / len(norms)
    # A convolution that is dead altogether has zeros, not NaN.
    return torch.div(norms, scale) if scale > 0 else norms
