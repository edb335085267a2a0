"""Backbones, checkpoints, status log and threads."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import assert_same_outputs, small_network
from safetensors.torch import save_file

from components.decode.grid.clustering import Clustering
from components.decode.grid.geometry import GridGeometry
from components.detectnet_v2.export import export_onnx
from components.detectnet_v2.network import GridNet, GridNetConfig
from components.step import UserError
from components.vision.checkpoint import load_network, save_network, save_tensors
from components.vision.neck import FineNeck
from components.vision.network import count_parameters
from components.vision.pruning import PruneSettings, prune, threshold_for_ratio
from components.vision.resnet import PointwiseConvolution, ResNetConfig, copy_matching
from components.vision.status import StatusLog
from components.vision.threads import _cgroup_quota

# tao.md's table: Keras parameter counts with one class, moving statistics included.
PARAMETERS = [
    # depth, backbone with all projections, total with and without, trainable with and without
    (10, 4_918_848, 4_921_413, 4_921_413, 4_915_525, 4_915_525),
    (18, 11_548_288, 11_550_853, 11_197_893, 11_539_205, 11_188_165),
    (34, 22_238_016, 22_240_581, 21_317_189, 22_217_797, 21_300_037),
    (50, 38_193_024, 38_203_269, 23_597_957, 38_127_621, 23_544_837),
]


@pytest.mark.parametrize(
    ("depth", "backbone", "total_true", "total_false", "trained_true", "trained_false"), PARAMETERS
)
def test_full_width_networks_have_the_parameters_of_tao(
    depth, backbone, total_true, total_false, trained_true, trained_false
):
    for all_projections, total, trained in ((True, total_true, trained_true), (False, total_false, trained_false)):
        config = ResNetConfig.of_width(depth, 1.0, all_projections)
        with torch.device("meta"):
            network = GridNet(GridNetConfig(config, ("face",), GridGeometry(736, 416), {}))
        assert count_parameters(network) == total
        assert sum(parameter.numel() for parameter in network.parameters()) == trained
        if all_projections:
            assert count_parameters(network.backbone) == backbone


@pytest.mark.parametrize(("all_projections", "parameters"), [(True, 11_555_983), (False, 11_203_023)])
def test_three_classes_have_the_parameters_of_public_logs(all_projections, parameters):
    config = ResNetConfig.of_width(18, 1.0, all_projections)
    with torch.device("meta"):
        network = GridNet(GridNetConfig(config, ("a", "b", "c"), GridGeometry(736, 416), {}))
    assert count_parameters(network) == parameters


def test_layers_have_the_names_of_tao():
    names = {
        name.rpartition(".")[2] for name, module in small_network(50, 0.05).named_modules() if not [*module.children()]
    }
    unit = ["conv_1", "bn_1", "conv_2", "bn_2", "conv_3", "bn_3"]
    units = [
        f"block_{block}{letter}"
        for block, letters in enumerate(("abc", "abcd", "abcdef", "abc"), 1)
        for letter in letters
    ]
    shortcuts = [f"block_{block}a_{kind}_shortcut" for block in range(1, 5) for kind in ("conv", "bn")]
    expected = {f"{name}_{part}" for name in units for part in unit} | set(shortcuts)
    assert names == expected | {"conv1", "bn_conv1", "output_bbox", "output_cov"}


@pytest.mark.parametrize("use_pooling", [True, False])
@pytest.mark.parametrize("depth", [10, 18, 34, 50])
def test_outputs_lie_on_a_grid_of_stride_16(depth, use_pooling):
    coverage, bbox = small_network(depth, 0.05, use_pooling=use_pooling)(torch.rand(2, 3, 64, 96))
    assert coverage.shape == (2, 1, 4, 6)
    assert bbox.shape == (2, 4, 4, 6)
    assert (coverage >= 0).all()
    assert (coverage <= 1).all()


def test_a_neck_gives_a_grid_of_stride_8_that_sees_as_far():
    config = ResNetConfig.of_width(10, 0.25)
    geometry = GridGeometry(96, 64, stride=8)
    coarse = GridNet(GridNetConfig(config, ("face",), GridGeometry(96, 64), {}))
    fine = GridNet(GridNetConfig(config, ("face",), geometry, {}, neck=FineNeck.channels_of_width(0.25)))
    coverage, bbox = fine(torch.rand(2, 3, 64, 96))
    assert coverage.shape == (2, 1, 8, 12)
    assert bbox.shape == (2, 4, 8, 12)
    assert count_parameters(fine) < 350_000 < 1.15 * count_parameters(coarse)
    image = torch.rand(1, 3, 64, 96, requires_grad=True)
    fine.eval()(image)[0][0, 0, 4, 6].backward()
    touched = np.flatnonzero(image.grad.abs().sum((0, 1, 2)))
    assert touched.max() - touched.min() > 90  # the whole width, although a cell has 8 pixels


def test_a_network_with_a_neck_is_stored_pruned_and_exported(tmp_path):
    torch.manual_seed(3)
    neck = FineNeck.channels_of_width(0.25)
    config = GridNetConfig(
        ResNetConfig.of_width(10, 0.25),
        ("face",),
        GridGeometry(96, 64, stride=8),
        {"face": Clustering("nms")},
        neck=neck,
    )
    network = GridNet(config).eval()
    save_network(tmp_path / "m.safetensors", network)
    again = load_network(tmp_path / "m.safetensors").eval()
    image = torch.rand(1, 3, 64, 96)
    for one, other in zip(network(image), again(image), strict=True):
        torch.testing.assert_close(one, other)
    settings = PruneSettings(granularity=8, minimum_filters=8)
    pruned = prune(network, replace(settings, threshold=threshold_for_ratio(network, settings, 0.6)))
    assert count_parameters(pruned) <= 0.6 * count_parameters(network)
    assert pruned.config.neck["neck_coarse"] == pruned.config.neck["neck_fine"] < neck["neck_fine"]
    export_onnx(pruned, tmp_path / "m.onnx", opset=13)
    with pytest.raises(UserError, match=r"no grid of stride 8; write m\.safetensors"):
        save_network(tmp_path / "m.hdf5", network)


def test_a_bottleneck_strides_in_its_first_convolution():
    convolutions = {c.name: c for c in ResNetConfig.of_width(50).convolutions()}
    assert [convolutions[f"block_2a_conv_{i}"].stride for i in (1, 2, 3)] == [2, 1, 1]
    assert convolutions["block_2a_conv_shortcut"].stride == 2
    assert [convolutions[f"block_2a_conv_{i}"].kernel for i in (1, 2, 3)] == [1, 3, 1]


def test_pooling_takes_the_place_of_the_first_blocks_stride():
    network = small_network(10, 0.05, use_pooling=True).backbone
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        stem = torch.relu(network.bn_conv1(network.conv1(images)))
        # TAO: 3x3 windows two apart over the image with a frame of zeros, in plain loops
        framed = torch.nn.functional.pad(stem, (1, 1, 1, 1))
        rows, columns = stem.shape[2] // 2, stem.shape[3] // 2
        pooled = torch.empty(1, stem.shape[1], rows, columns)
        for y in range(rows):
            for x in range(columns):
                pooled[:, :, y, x] = framed[:, :, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3].amax((2, 3))
        seen = []
        network.block_1a_conv_1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        network(images)
    assert torch.equal(seen[0], pooled)
    assert network.block_1a_conv_1.stride == (1, 1)


def test_dropout_zeroes_features_in_training_only():
    network = small_network(10, 0.05, dropout_rate=0.5)
    reference = small_network(10, 0.05)
    assert_same_outputs(network, reference, 0, 0)
    images = torch.rand(8, 3, 64, 96)
    with torch.no_grad():
        plain = reference.backbone(images)
        network.backbone.training = True  # batch norms stay as they are
        dropped = network.backbone(images)
    zeroed = (dropped == 0) & (plain > 0)
    assert 0.4 < zeroed.sum() / (plain > 0).sum() < 0.6
    torch.testing.assert_close(dropped[~zeroed], 2 * plain[~zeroed])


def test_batch_norms_that_are_not_trained_stay_in_inference_mode():
    network = small_network()
    network.backbone.bn_conv1.requires_grad_(False)
    statistics = network.backbone.bn_conv1.running_mean.clone()
    others = network.backbone.block_1a_bn_1.running_mean.clone()
    network.train()(torch.rand(2, 3, 64, 96))
    assert torch.equal(network.backbone.bn_conv1.running_mean, statistics)
    assert not torch.equal(network.backbone.block_1a_bn_1.running_mean, others)


def test_layers_are_copied_whole_or_not_at_all():
    source, target = small_network(18, 0.25, seed=1), small_network(18, 0.5, class_names=("a", "b"))
    state = source.state_dict()
    fitting = target.state_dict()["backbone.block_2a_conv_1.weight"] + 1
    state["backbone.block_2a_conv_1.weight"] = fitting  # but its bias does not fit
    state["backbone.conv1.weight"] = target.state_dict()["backbone.conv1.weight"] + 1
    state["backbone.conv1.bias"] = target.state_dict()["backbone.conv1.bias"] + 1
    before = target.state_dict()["backbone.block_2a_conv_1.weight"].clone()
    copied, left = copy_matching(state, target)
    assert copied == ["conv1"]
    assert {"block_2a_conv_1", "bn_conv1", "output_cov"} <= set(left)
    assert torch.equal(target.state_dict()["backbone.conv1.bias"], state["backbone.conv1.bias"])
    assert torch.equal(target.state_dict()["backbone.block_2a_conv_1.weight"], before)


def test_networks_of_few_channels_train_without_a_crash():
    """In a process of its own: the crash that `PointwiseConvolution` avoids would take pytest along."""
    program = """
import torch
from components.decode.grid.clustering import Clustering
from components.decode.grid.geometry import GridGeometry
from components.detectnet_v2.export import export_onnx
from components.detectnet_v2.network import GridNet, GridNetConfig
from components.vision.resnet import ResNetConfig
for depth, (stem, *blocks) in [
    (10, (8, 8, 16, 32, 64)), (10, (4, 4, 8, 12, 20)), (10, (12, 20, 36, 44, 68)), (50, (4, 4, 6, 8, 12))
]:
    names = ResNetConfig.of_width(depth).channels
    config = ResNetConfig(depth, channels={n: stem if n == "conv1" else blocks[int(n[6]) - 1] for n in names})
    network = GridNet(GridNetConfig(config, ("face",), GridGeometry(128, 96), {})).to(memory_format=torch.channels_last)
    for _ in range(8):
        coverage, bbox = network(torch.rand(4, 3, 96, 128).to(memory_format=torch.channels_last))
        (coverage.mean() + bbox.abs().mean()).backward()
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_nth_pixel_first_is_the_strided_convolution():
    convolution = PointwiseConvolution(8, 12, 1, 2)
    x = torch.rand(2, 8, 9, 10)
    torch.testing.assert_close(convolution.train()(x), convolution.eval()(x))


def test_a_saved_network_is_the_same_network(tmp_path):
    network = prune(small_network(), PruneSettings(threshold=0.9))
    save_network(tmp_path / "a.safetensors", network)
    save_network(tmp_path / "b.safetensors", network)
    loaded = load_network(tmp_path / "a.safetensors")
    assert loaded.config == network.config
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_checkpoints_of_the_first_release_can_still_be_loaded(tmp_path):
    network = small_network(18)
    description = network.config.to_json()
    for added in ("use_pooling", "dropout_rate"):
        del description["backbone"][added]
    header = {"gridbox": json.dumps({"format": 1, "network": description})}  # it knew one kind of network
    save_file(network.state_dict(), tmp_path / "old.safetensors", header)
    loaded = load_network(tmp_path / "old.safetensors")
    assert loaded.config.backbone == network.config.backbone
    assert_same_outputs(loaded, network, 0, 0)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"kind": "segmenter", "config": {}}, "knows no network of the kind 'segmenter'"),
        ({"kind": "../os", "config": {}}, "knows no network of the kind '../os'"),
        ({"kind": "formats", "config": {}}, "knows no network of the kind 'formats'"),
        ({}, "holds no network"),
    ],
)
def test_a_network_of_an_unknown_kind_is_refused(header, message, tmp_path):
    save_tensors(tmp_path / "other.safetensors", {}, header)
    with pytest.raises(UserError, match=message):
        load_network(tmp_path / "other.safetensors")


@pytest.mark.parametrize("suffix", [".tlt", ".etlt"])
def test_encrypted_files_are_refused_with_taos_way_out(tmp_path, suffix):
    file = tmp_path / f"facenet{suffix}"
    file.write_bytes(b"secret")
    with pytest.raises(UserError, match=r"encrypted by TAO.*detectnet_v2 export") as error:
        load_network(file)
    assert "\n" not in str(error.value)


def test_a_broken_or_foreign_weights_file_is_refused(tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a tensor in sight")
    with pytest.raises(UserError, match="not a readable safetensors"):
        load_network(broken)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(UserError, match="not one that gridbox wrote"):
        load_network(foreign)


def test_status_lines_are_those_of_tao(tmp_path):
    log = StatusLog(tmp_path)
    log.write("STARTED", "Starting")
    log.write("RUNNING", "Training loop in progress", epoch=3, max_epoch=10, graphical={"loss": 0.5})
    lines = [json.loads(line) for line in (tmp_path / "status.json").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["STARTED", "RUNNING"]
    assert lines[1]["epoch"] == 3
    assert lines[1]["graphical"] == {"loss": 0.5}
    assert set(lines[0]) == {"date", "time", "status", "verbosity", "message"}


def test_cpu_quotas_of_both_cgroup_versions_are_read(tmp_path):
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert _cgroup_quota(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert _cgroup_quota(tmp_path) is None
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("200000")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    assert _cgroup_quota(tmp_path) == 2.0


def test_a_checkpoint_can_be_read_by_whom_the_umask_lets(tmp_path):
    former = os.umask(0o022)
    try:
        save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2)}, {})
    finally:
        os.umask(former)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o644
