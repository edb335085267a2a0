"""Backbones, pruning, optimiser, checkpoints and export."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from components.grid.clustering import Clustering
from components.grid.geometry import GridGeometry
from components.step import UserError
from components.vision.checkpoint import load_network, save_network
from components.vision.gridnet import GridNet, GridNetConfig, count_parameters
from components.vision.onnx_export import export_onnx
from components.vision.optimizer import Adam, SoftStartAnnealing
from components.vision.pruning import PruneSettings, coupled_convolutions, prune, threshold_for_ratio
from components.vision.resnet import PointwiseConvolution, ResNetConfig
from components.vision.status import StatusLog
from components.vision.threads import _cgroup_quota
from components.vision.torch_predictor import TorchPredictor


def small_network(depth=10, width=0.25, seed=0, **options):
    torch.manual_seed(seed)
    geometry = GridGeometry(96, 64)
    config = GridNetConfig(ResNetConfig.of_width(depth, width, **options), ("face",), geometry, {"face": Clustering()})
    network = GridNet(config)
    for module in network.modules():  # moving statistics as after some training
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


# tao.md's table: Keras parameter counts with one class, moving statistics included.
@pytest.mark.parametrize(
    ("depth", "all_projections", "parameters"),
    [
        (10, True, 4_921_413),
        (10, False, 4_921_413),
        (18, True, 11_550_853),
        (18, False, 11_197_893),
        (34, True, 22_240_581),
        (34, False, 21_317_189),
    ],
)
def test_full_width_networks_have_the_parameters_of_tao(depth, all_projections, parameters):
    with torch.device("meta"):
        config = ResNetConfig.of_width(depth, 1.0, all_projections)
        network = GridNet(GridNetConfig(config, ("face",), GridGeometry(736, 416), {}))
    assert count_parameters(network) == parameters


def test_outputs_lie_on_a_grid_of_stride_16():
    coverage, bbox = small_network()(torch.rand(2, 3, 64, 96))
    assert coverage.shape == (2, 1, 4, 6)
    assert bbox.shape == (2, 4, 4, 6)
    assert (coverage >= 0).all()
    assert (coverage <= 1).all()


@pytest.mark.parametrize("depth", [10, 18])
def test_a_pruned_network_computes_what_the_full_one_does_without_the_removed_channels(depth):
    network = small_network(depth)
    settings = PruneSettings(threshold=0.9, granularity=1, minimum_filters=2)
    kept_names = network.config.backbone.channels
    pruned = prune(network, settings).eval()
    assert count_parameters(pruned) < count_parameters(network)
    # Silence the removed channels in the full network: zero scale and shift behind every convolution.
    for group in coupled_convolutions(network.config.backbone):
        for name in group:
            full = network.get_parameter(f"backbone.{name}.weight")
            batch_norm = "bn_conv1" if name == "conv1" else name.replace("_conv_", "_bn_")
            kept = kept_indices(network, group, settings)
            assert pruned.config.backbone.channels[name] == len(kept) <= kept_names[name] == len(full)
            silent = torch.ones(len(full), dtype=torch.bool)
            silent[kept] = False
            with torch.no_grad():
                network.get_parameter(f"backbone.{batch_norm}.weight")[silent] = 0
                network.get_parameter(f"backbone.{batch_norm}.bias")[silent] = 0
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        for one, other in zip(network(images), pruned(images), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def kept_indices(network, group, settings):
    """TAO's rule in plain loops."""
    merged = None
    for name in group:
        kernel = network.get_parameter(f"backbone.{name}.weight")
        norms = [math.sqrt(sum(v**2 for v in kernel[i].flatten().tolist())) for i in range(len(kernel))]
        norms = [norm / max(norms) for norm in norms]
        merged = norms if merged is None else [max(a, b) for a, b in zip(merged, norms, strict=True)]
    count = max(sum(norm > settings.threshold for norm in merged), min(settings.minimum_filters, len(merged)))
    count = min(len(merged), math.ceil(count / settings.granularity) * settings.granularity)
    best = sorted(range(len(merged)), key=lambda i: -merged[i])[:count]
    return sorted(best)


def test_identity_shortcuts_couple_all_convolutions_of_a_block():
    groups = coupled_convolutions(ResNetConfig.of_width(18))
    assert ("block_1a_conv_2", "block_1a_conv_shortcut", "block_1b_conv_2") in groups
    assert ("conv1",) in groups
    names = [name for group in groups for name in group]
    assert sorted(names) == sorted(ResNetConfig.of_width(18).channels)


def test_granularity_minimum_and_exclusion_hold():
    network = small_network(width=0.5)
    settings = PruneSettings(threshold=2.0, granularity=8, minimum_filters=12, excluded=("block_3a_conv_1",))
    channels = prune(network, settings).config.backbone.channels
    assert channels["block_3a_conv_1"] == network.config.backbone.channels["block_3a_conv_1"]
    assert channels["conv1"] == 16
    with pytest.raises(UserError, match="block_9z"):
        prune(network, PruneSettings(excluded=("block_9z",)))


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
def test_target_ratio_is_met_by_the_smallest_threshold_that_meets_it(ratio):
    network = small_network(width=0.5)
    settings = PruneSettings(minimum_filters=8)
    threshold = threshold_for_ratio(network, settings, ratio)
    size = count_parameters(prune(network, PruneSettings(threshold, minimum_filters=8)))
    slightly_less = count_parameters(prune(network, PruneSettings(threshold * 0.9999, minimum_filters=8)))
    assert size <= ratio * count_parameters(network) < slightly_less


def test_a_ratio_out_of_reach_is_refused():
    with pytest.raises(UserError, match="out of reach"):
        threshold_for_ratio(small_network(), PruneSettings(minimum_filters=16), 0.01)


def test_adam_is_that_of_tensorflow():
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(5))
    adam = Adam([parameter], 0.9, 0.999, 1e-2)
    expected, m, v = parameter.detach().double().numpy().copy(), np.zeros(5), np.zeros(5)
    for step in range(1, 8):
        gradient = torch.randn(5)
        parameter.grad = gradient
        adam.step(0.01)
        g = gradient.double().numpy()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        rate = 0.01 * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        expected -= rate * m / (np.sqrt(v) + 1e-2)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-5)


def test_soft_start_annealing_ramps_in_the_logarithm():
    schedule = SoftStartAnnealing(5e-6, 5e-4, 0.1, 0.7)
    assert schedule.at(0) == pytest.approx(5e-6)
    assert schedule.at(0.05) == pytest.approx(math.sqrt(5e-6 * 5e-4))
    assert schedule.at(0.4) == pytest.approx(5e-4)
    assert schedule.at(0.85) == pytest.approx(math.sqrt(5e-6 * 5e-4))
    assert schedule.at(1.0) == pytest.approx(5e-6)


@pytest.mark.parametrize("channels", [(8, 8, 16, 32, 64), (4, 4, 8, 12, 20), (12, 20, 36, 44, 68)])
def test_networks_of_few_channels_train_without_a_crash(channels):
    """In a process of its own: the crash that `PointwiseConvolution` avoids would take pytest along."""
    program = f"""
import torch
from components.grid.geometry import GridGeometry
from components.vision.gridnet import GridNet, GridNetConfig
from components.vision.resnet import PointwiseConvolution, ResNetConfig
stem, *blocks = {channels}
names = ResNetConfig.of_width(10).channels
config = ResNetConfig(10, channels={{n: stem if n == "conv1" else blocks[int(n[6]) - 1] for n in names}})
network = GridNet(GridNetConfig(config, ("face",), GridGeometry(128, 96), {{}})).to(memory_format=torch.channels_last)
for _ in range(30):
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


def test_the_exported_model_computes_what_pytorch_does_at_any_batch_size(tmp_path):
    import onnx
    import onnxruntime

    network = small_network()
    assert export_onnx(network, tmp_path / "model.onnx") < 1e-4
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [tensor.name for tensor in graph.input] == ["input_1"]
    assert [tensor.name for tensor in graph.output] == ["output_bbox/BiasAdd", "output_cov/Sigmoid"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 96, 3), np.uint8)
    coverage, bbox = TorchPredictor.of(network)(images)
    pixels = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    onnx_bbox, onnx_coverage = session.run(None, {"input_1": pixels})
    np.testing.assert_allclose(onnx_coverage, coverage, atol=1e-4)
    np.testing.assert_allclose(onnx_bbox, bbox, atol=1e-4)


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
