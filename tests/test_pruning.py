"""Structured pruning against a slow version in plain loops, and against the network with silent channels."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import assert_same_outputs, network_of, small_network

from components.step import UserError
from components.vision.channels import Coupling
from components.vision.network import count_parameters
from components.vision.pruning import PruneSettings, prune, threshold_for_ratio
from components.vision.resnet import ResNet, ResNetConfig

# ---- Slow version, from the text of tao.md 3 and 6 alone -------------------------------------------------------------

UNITS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


def graph_of(depth, all_projections):
    """Layer name to the names of the layers it reads; additions are layers, batch norms and activations are not."""
    graph, features = {"conv1": []}, "conv1"
    for block, count in enumerate(UNITS[depth], 1):
        for index in range(count):
            unit = f"block_{block}{'abcdef'[index]}"
            y = features
            for number in range(1, 4 if depth == 50 else 3):
                graph[f"{unit}_conv_{number}"] = [y]
                y = f"{unit}_conv_{number}"
            shortcut = features
            if all_projections or index == 0:
                shortcut = f"{unit}_conv_shortcut"
                graph[shortcut] = [features]
            features = f"{unit}_add"
            graph[features] = [y, shortcut]
    return graph


def parents_of(graph, layer):
    """The convolutions found by walking back through additions."""
    if not layer.endswith("_add"):
        return [layer]
    return [parent for source in graph[layer] for parent in parents_of(graph, source)]


def slow_groups(graph):
    """Element-wise joins; groups that share a member are merged; other convolutions stand alone."""
    groups = []
    for layer in graph:
        joined = set(parents_of(graph, layer))
        for group in [group for group in groups if group & joined]:
            groups.remove(group)
            joined |= group
        groups.append(joined)
    return groups


def slow_kept(network, prune_settings, all_projections):
    """Kept indices by convolution, in plain loops."""
    kept = {}
    for group in slow_groups(graph_of(network.config.backbone.depth, all_projections)):
        statistics = []
        for name in group:
            norms = []
            for kernel in network.get_parameter(f"backbone.{name}.weight").tolist():
                total = 0.0
                for plane in kernel:
                    for row in plane:
                        for value in row:
                            total += value * value
                norms.append(math.sqrt(total))
            if prune_settings.normalizer == "max":
                statistics.append([norm / max(norms) for norm in norms])
            else:
                length = math.sqrt(sum(norm * norm for norm in norms))
                statistics.append([norm / length * len(norms) for norm in norms])
        merged = []
        for values in zip(*statistics, strict=True):
            if prune_settings.equalization == "union":
                merged.append(max(values))
            elif prune_settings.equalization == "intersection":
                merged.append(min(values))
            elif prune_settings.equalization == "arithmetic_mean":
                merged.append(sum(values) / len(values))
            else:
                merged.append(math.prod(values) ** (1 / len(values)))
        count = sum(1 for value in merged if value > prune_settings.threshold)
        count = max(count, min(prune_settings.minimum_filters, len(merged)))
        if count % prune_settings.granularity:
            count += prune_settings.granularity - count % prune_settings.granularity
        count = min(count, len(merged))
        if any(name in prune_settings.excluded for name in group):
            count = len(merged)
        best = sorted(range(len(merged)), key=lambda index: -merged[index])[:count]
        for name in group:
            kept[name] = sorted(best)
    return kept


def random_backbone(draw, depth, all_projections, use_batch_norm=True, use_pooling=False):
    """Any channel counts that fit together."""
    channels = {}
    for group in slow_groups(graph_of(depth, all_projections)):
        channels |= dict.fromkeys((name for name in group), draw.randint(3, 12))
    names = ResNetConfig.of_width(depth, 1.0, all_projections).channels  # in TAO's order
    return ResNetConfig(depth, all_projections, use_batch_norm, {name: channels[name] for name in names}, use_pooling)


def random_settings(draw, names):
    return PruneSettings(
        threshold=draw.choice([0.0, 0.5, 0.8, 0.9, 0.95, 1.0, 2.0, draw.uniform(0.5, 1.2)]),
        granularity=draw.randint(1, 5),
        minimum_filters=draw.randint(1, 7),
        normalizer=draw.choice(["max", "L2"]),
        equalization=draw.choice(["union", "intersection", "arithmetic_mean", "geometric_mean"]),
        excluded=draw.sample(sorted(names), draw.choice([0, 0, 1, 2])),
    )


def silence(network, kept):
    """Takes the removed channels' influence away: nothing leaves their convolutions any more."""
    with torch.no_grad():
        for name, indices in kept.items():
            silent = torch.ones(network.config.backbone.channels[name], dtype=torch.bool)
            silent[indices] = False
            last = name
            if network.config.backbone.use_batch_norm:
                last = "bn_conv1" if name == "conv1" else name.replace("_conv_", "_bn_")
            network.get_parameter(f"backbone.{last}.weight")[silent] = 0
            network.get_parameter(f"backbone.{last}.bias")[silent] = 0


# ---- Tests -----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_pruning_equals_the_text_and_the_network_without_the_removed_channels(seed):
    draw = random.Random(seed)
    depth, all_projections = draw.choice([10, 10, 18, 18, 34, 50]), draw.random() < 0.5
    backbone = random_backbone(draw, depth, all_projections, draw.random() < 0.8, draw.random() < 0.3)
    network = network_of(backbone, seed=seed % 1000)
    prune_settings = random_settings(draw, backbone.channels)
    kept = slow_kept(network, prune_settings, all_projections)
    pruned = prune(network, prune_settings)
    assert pruned.config.backbone.channels == {name: len(kept[name]) for name in backbone.channels}
    graph = graph_of(depth, all_projections)
    for name, indices in kept.items():
        # Sliced by its own kept channels, and by those of what it reads.
        inputs = kept[parents_of(graph, graph[name][0])[0]] if graph[name] else [0, 1, 2]
        full = network.get_parameter(f"backbone.{name}.weight")
        assert torch.equal(pruned.get_parameter(f"backbone.{name}.weight"), full[indices][:, inputs]), name
    silence(network, kept)
    assert_same_outputs(network, pruned)


@pytest.mark.parametrize("all_projections", [True, False])
@pytest.mark.parametrize("depth", [10, 18, 34, 50])
def test_every_depth_prunes_to_the_network_without_the_removed_channels(depth, all_projections):
    network = small_network(depth, 0.05, all_projections=all_projections)
    prune_settings = PruneSettings(threshold=0.9, granularity=1, minimum_filters=2)
    kept = slow_kept(network, prune_settings, all_projections)
    pruned = prune(network, prune_settings)
    assert count_parameters(pruned) < count_parameters(network)
    silence(network, kept)
    assert_same_outputs(network, pruned)


def coupled_convolutions(depth, all_projections=False):
    with torch.device("meta"):
        backbone = ResNet(ResNetConfig.of_width(depth, 1.0, all_projections))
    return [tuple(layer.name for layer in layers) for layers in Coupling.of(backbone).groups().values()]


@pytest.mark.parametrize("all_projections", [True, False])
@pytest.mark.parametrize("depth", [10, 18, 34, 50])
def test_coupling_is_found_by_walking_back(depth, all_projections):
    groups = coupled_convolutions(depth, all_projections)
    assert sorted(map(sorted, groups)) == sorted(map(sorted, slow_groups(graph_of(depth, all_projections))))


def test_identity_shortcuts_couple_all_convolutions_of_a_block():
    groups = coupled_convolutions(18)
    assert ("block_1a_conv_2", "block_1a_conv_shortcut", "block_1b_conv_2") in groups


def test_a_norm_equal_to_the_threshold_is_not_kept():
    network = small_network(width=0.05)
    with torch.no_grad():
        kernel = network.backbone.block_1a_conv_1.weight
        kernel.fill_(0)
        kernel[:, 0, 0, 0] = torch.tensor([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    for threshold, expected in ((0.5, 6), (0.49, 7), (0.24, 8), (1.0, 1)):
        pruned = prune(network, PruneSettings(threshold, granularity=1, minimum_filters=1))
        assert pruned.config.backbone.channels["block_1a_conv_1"] == expected


def test_the_norm_l2_multiplies_by_the_number_of_filters():
    """Equal filters: each has 1/sqrt(n) of the joint norm, times n."""
    network = small_network(width=0.05)
    with torch.no_grad():
        network.backbone.block_1a_conv_1.weight.fill_(0.3)
    for threshold, expected in ((math.sqrt(8) + 1e-6, 1), (math.sqrt(8) - 1e-6, 8)):
        pruned = prune(network, PruneSettings(threshold, granularity=1, minimum_filters=1, normalizer="L2"))
        assert pruned.config.backbone.channels["block_1a_conv_1"] == expected


@pytest.mark.parametrize("normalizer", ["max", "L2"])
def test_dead_convolutions_are_pruned_like_any_other(normalizer):
    network = small_network(width=0.05)
    with torch.no_grad():
        network.backbone.block_1a_conv_1.weight.zero_()
        network.backbone.block_2a_conv_shortcut.weight.zero_()
    prune_settings = PruneSettings(0.0, 1, 3, normalizer, "geometric_mean")
    channels = prune(network, prune_settings).config.backbone.channels
    assert channels["block_1a_conv_1"] == channels["block_2a_conv_2"] == channels["block_2a_conv_shortcut"] == 3
    assert channels["conv1"] == 8


def test_granularity_minimum_and_exclusion_hold():
    network = small_network(18, width=0.5)
    prune_settings = PruneSettings(threshold=2.0, granularity=8, minimum_filters=12, excluded=("block_3b_conv_2",))
    channels = prune(network, prune_settings).config.backbone.channels
    assert channels["conv1"] == 16
    for coupled in ("block_3b_conv_2", "block_3a_conv_2", "block_3a_conv_shortcut"):
        assert channels[coupled] == network.config.backbone.channels[coupled]
    assert channels["block_3b_conv_1"] == 16


@pytest.mark.parametrize("call", [prune, lambda network, chosen: threshold_for_ratio(network, chosen, 0.5)])
def test_an_unknown_excluded_layer_is_refused_but_a_head_may_be_named(call):
    network = small_network(width=0.05)
    with pytest.raises(UserError, match=r"'block_9z' does not exist; the convolutions are conv1, "):
        call(network, PruneSettings(excluded=("block_9z",), minimum_filters=1, granularity=1))
    call(network, PruneSettings(excluded=("output_cov",), minimum_filters=1, granularity=1))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_target_ratio_is_met_by_the_smallest_threshold_that_meets_it(seed):
    draw = random.Random(seed)
    all_projections = draw.random() < 0.5
    network = network_of(random_backbone(draw, draw.choice([10, 18, 50]), all_projections), ("a", "b"), seed % 1000)
    chosen = random_settings(draw, network.config.backbone.channels)

    def size(threshold):
        values = {name: getattr(chosen, name) for name in chosen.__slots__}
        return count_parameters(prune(network, PruneSettings(**{**values, "threshold": threshold})))

    total = count_parameters(network)
    smallest = size(1e9) / total
    ratio = draw.uniform(smallest, 1.0)
    threshold = threshold_for_ratio(network, chosen, ratio)
    assert size(threshold) <= ratio * total
    assert threshold == 0 or size(float(np.nextafter(threshold, 0))) > ratio * total


def test_a_ratio_out_of_reach_is_refused_with_the_smallest():
    network = small_network()
    with pytest.raises(UserError, match=r"out of reach.* the smallest is 0\.\d+") as error:
        threshold_for_ratio(network, PruneSettings(minimum_filters=16, excluded=("conv1",)), 0.01)
    assert "1 layers excluded" in str(error.value)


def test_the_search_for_a_threshold_builds_no_network(monkeypatch):
    """A full ResNet-50 has 20,000 steps to search: only its norms are computed, once."""
    network = small_network(50, 0.05)
    monkeypatch.setattr("components.detectnet_v2.network.GridNet.__init__", None)
    assert threshold_for_ratio(network, PruneSettings(granularity=1, minimum_filters=1), 0.5) > 0


# ---- Other networks --------------------------------------------------------------------------------------------------


class Pyramid(torch.nn.Module):
    """A pyramid of features: concatenation, depthwise convolutions, a head that all levels share, a linear layer."""

    def __init__(self, counts=None):
        super().__init__()
        of = {"stem": 8, "low": 12, "lateral": 8, "top": 8, "point": 6, "share": 10, **(counts or {})}
        self.stem, self.low = torch.nn.Conv2d(3, of["stem"], 3, 2, 1), torch.nn.Conv2d(of["stem"], of["low"], 3, 2, 1)
        self.lateral, self.top = torch.nn.Conv2d(of["stem"], of["lateral"], 1), torch.nn.Conv2d(of["low"], of["top"], 1)
        self.norm = torch.nn.BatchNorm2d(of["lateral"])
        joined = of["lateral"] + of["stem"]
        self.depth = torch.nn.Conv2d(joined, joined, 3, padding=1, groups=joined)
        self.point = torch.nn.Conv2d(joined, of["point"], 1)
        self.share = torch.nn.Conv2d(of["lateral"], of["share"], 3, padding=1)
        self.head = torch.nn.Conv2d(of["share"], 2, 1)
        self.linear = torch.nn.Linear(of["point"] * 4, 3)

    def forward(self, x):
        stem = torch.relu(self.stem(x))
        top = self.top(torch.relu(self.low(stem)))
        up = torch.nn.functional.interpolate(top, scale_factor=2)
        merged = self.norm(self.lateral(stem) + up)
        levels = [self.head(torch.relu(self.share(level))) for level in (merged, top)]
        point = self.point(self.depth(torch.cat([merged, stem], dim=1)))
        pooled = torch.nn.functional.adaptive_avg_pool2d(point, 2).flatten(1)
        return *levels, self.linear(pooled)

    def with_channels(self, counts):
        return Pyramid(counts)


def test_any_network_is_pruned_to_the_one_without_the_removed_channels():
    torch.manual_seed(0)
    network = Pyramid().eval()
    groups = [tuple(layer.name for layer in layers) for layers in Coupling.of(network).groups().values()]
    assert groups == [("stem",), ("low",), ("top", "lateral"), ("share",), ("head",), ("point",), ("linear",)]
    removed = {"stem": [1], "low": [0, 5], "top": [2, 3], "lateral": [2, 3], "share": [9], "point": [4]}
    with torch.no_grad():
        for name, channels in removed.items():
            layer = getattr(network, name)
            layer.weight[channels] = 0
            layer.bias[channels] = 0
        network.norm.bias[[2, 3]] = 0  # what a removed channel is to its readers
        for name in ("depth",):
            getattr(network, name).bias[[2, 3, 8 + 1]] = 0
    pruned = prune(network, PruneSettings(threshold=0.0, granularity=1, minimum_filters=1))
    for name, channels in removed.items():
        assert len(getattr(pruned, name).weight) == len(getattr(network, name).weight) - len(channels)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for one, other in zip(network(images), pruned.eval()(images), strict=True):
            torch.testing.assert_close(one, other)
    threshold = threshold_for_ratio(network, PruneSettings(granularity=1, minimum_filters=1), 0.5)
    assert count_parameters(prune(network, PruneSettings(threshold, 1, 1))) <= 0.5 * count_parameters(network)


class Shuffle(Pyramid):
    """An operation that nobody knows mixes the channels of two layers."""

    def forward(self, x):
        return self.low(torch.nn.functional.channel_shuffle(self.stem(x), 2))


def test_channels_that_an_unknown_operation_reads_all_stay():
    coupling = Coupling.of(Shuffle())
    assert [coupling.is_fixed(group) for group in coupling.groups()] == [True, True]
