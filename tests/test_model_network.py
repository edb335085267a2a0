"""From a spec to a network: stored graphs, copied weights, frozen layers; and the commands that make model files."""

import json

import pytest
import torch
from networks import HEIGHT, WIDTH, assert_same_outputs, small_network
from test_model_files import Tao, torchvision_state

from components import program
from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.commands import app
from components.detectnet_v2.network import GridNet
from components.detectnet_v2.transfer import build_network, freeze
from components.step import UserError
from components.vision.checkpoint import load_network, save_network
from components.vision.pruning import PruneSettings, prune

NARROW = 0.05


def experiment(class_names=("face",), **model):
    spec = spec_pb2.Experiment()
    size = spec.augmentation_config.preprocessing
    size.output_image_width, size.output_image_height = WIDTH, HEIGHT
    spec.model_config.num_layers, spec.model_config.use_batch_norm = 10, True
    spec.model_config.objective_set.bbox.scale, spec.model_config.objective_set.bbox.offset = 35.0, 0.5
    for name in class_names:
        spec.cost_function_config.target_classes.add().name = name
        spec.postprocessing_config.target_class_config[name].clustering_config.coverage_threshold = 0.005
    for name, value in model.items():
        if name == "freeze_blocks":
            spec.model_config.freeze_blocks.extend(value)
        else:
            setattr(spec.model_config, name, value)
    return spec


def saved(network, path):
    save_network(path, network)
    return str(path)


def detectnet_v2(*arguments):
    return program.run(app, [str(argument) for argument in arguments], "detectnet_v2")


# ---- Building --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [10, 18, 34, 50])
def test_the_spec_describes_the_network(depth):
    model = {"num_layers": depth, "all_projections": True, "use_pooling": True, "dropout_rate": 0.1}
    network = build_network(experiment(("face", "bag"), **model), NARROW)
    backbone = network.config.backbone
    assert (backbone.depth, backbone.all_projections, backbone.use_batch_norm) == (depth, True, True)
    assert (backbone.use_pooling, backbone.dropout_rate) == (True, 0.1)
    assert network.config.class_names == ("face", "bag")
    assert network.pretrained_layers == frozenset()


@pytest.mark.parametrize("suffix", [".safetensors", ".hdf5"])
def test_a_stored_graph_is_taken_as_it_is(suffix, tmp_path, capsys):
    stored = prune(small_network(18, 0.1), PruneSettings(0.9, granularity=1, minimum_filters=3))
    file = saved(stored, tmp_path / f"pruned{suffix}")
    network = build_network(experiment(pretrained_model_file=file, load_graph=True, dropout_rate=0.25), 1.0)
    assert network.config.backbone.channels == stored.config.backbone.channels
    assert network.config.backbone.dropout_rate == 0.25
    assert network.config.class_names == ("face",)
    assert {"conv1", "block_2b_bn_2", "output_cov"} <= network.pretrained_layers
    assert_same_outputs(network, stored, 0, 0)
    assert capsys.readouterr().out == ""


def test_a_graph_of_taos_takes_its_class_names_from_the_spec(tmp_path):
    stored = small_network(class_names=("a", "b"))
    file = Tao(stored).build().write(tmp_path / "tao.hdf5")
    network = build_network(experiment(("face", "bag"), pretrained_model_file=str(file), load_graph=True), 1.0)
    assert network.config.class_names == ("face", "bag")
    assert_same_outputs(network, stored, 0, 0)


def test_heads_are_added_only_where_the_spec_allows_it(tmp_path, capsys):
    stored = small_network(10, NARROW)
    headless = str(Tao(stored).build(heads=False).write(tmp_path / "backbone.hdf5"))
    two_classes = str(Tao(small_network(10, NARROW, class_names=("a", "b"))).build().write(tmp_path / "two.hdf5"))
    others = saved(small_network(10, NARROW, class_names=("bag",)), tmp_path / "others.safetensors")
    for file, message in (
        (headless, "its output_bbox is missing or made for another number of classes"),
        (two_classes, "its output_bbox is missing or made for another number of classes"),
        (others, "trained for the classes bag, the spec names face"),
    ):
        with pytest.raises(UserError, match=f"{message}.*set allow_loaded_model_modification"):
            build_network(experiment(pretrained_model_file=file, load_graph=True), 1.0)
        capsys.readouterr()
        spec = experiment(pretrained_model_file=file, load_graph=True, allow_loaded_model_modification=True)
        network = build_network(spec, 1.0)
        assert network.config.class_names == ("face",)
        assert network.pretrained_layers.isdisjoint({"output_bbox", "output_cov"})
        assert "conv1" in network.pretrained_layers
        assert "  not matched: output_cov\n" in capsys.readouterr().out
    torch.testing.assert_close(build_network(spec, 1.0).backbone.conv1.weight,
                               load_network(tmp_path / "others.safetensors").backbone.conv1.weight)  # fmt: skip


def test_one_head_that_is_there_is_kept(tmp_path):
    tao = Tao(small_network(10, NARROW)).build()
    del tao.weights["output_cov"]
    tao.layers.pop()
    file = str(tao.write(tmp_path / "half.hdf5"))
    spec = experiment(pretrained_model_file=file, load_graph=True, allow_loaded_model_modification=True)
    network = build_network(spec, 1.0)
    assert "output_bbox" in network.pretrained_layers
    assert "output_cov" not in network.pretrained_layers


def test_weights_are_copied_by_name_and_what_does_not_match_is_named(tmp_path, capsys):
    tao = Tao(small_network(18, NARROW, all_projections=True)).build()
    tao.weights["predictions"] = {"kernel": torch.zeros(8, 5).numpy()}
    tao.weights["block_3a_conv_2"]["kernel"] = tao.weights["block_3a_conv_2"]["kernel"][..., :5]
    file = tao.write(tmp_path / "weights.h5", "weights")
    network = build_network(experiment(num_layers=18, pretrained_model_file=str(file)), NARROW)
    report = capsys.readouterr().out.splitlines()
    # 20 convolutions and their batch norms, the one that was damaged not; and the heads start anew.
    assert report[0] == "Pretrained weights: 41 layers copied from weights.h5, 3 without a match"
    assert {"  not matched: block_3a_conv_2", "  not matched: output_bbox", "  not matched: output_cov"} == set(
        report[1:4]
    )
    unused = {line.removeprefix("  of the file, not used: ") for line in report[4:]}
    expected = {f"block_{block}b_{kind}_shortcut" for block in range(1, 5) for kind in ("conv", "bn")}
    assert unused == expected | {"block_3a_conv_2", "output_bbox", "output_cov", "predictions"}
    assert len(network.pretrained_layers) == 41


def test_torchvisions_weights_start_a_training(tmp_path, capsys):
    torch.save(torchvision_state(18, (8, 8, 8, 8)), tmp_path / "resnet18.pth")
    spec = experiment(num_layers=18, use_pooling=True, pretrained_model_file=str(tmp_path / "resnet18.pth"))
    network = build_network(spec, 0.01)
    assert set(network.config.backbone.channels.values()) == {8}
    report = capsys.readouterr().out
    assert "40 layers copied from resnet18.pth, 2 without a match" in report
    assert "  of the file, not used: fc\n" in report
    assert "  not in the file, which has the identity there: block_1a_conv_shortcut\n" in report
    assert "block_1b" not in report


def test_a_file_that_fits_nowhere_is_refused(tmp_path):
    file = saved(small_network(10, 0.5), tmp_path / "wide.safetensors")
    with pytest.raises(UserError, match=r"no layer fits the spec's ResNet-10; set model_config.load_graph: true for"):
        build_network(experiment(pretrained_model_file=file), NARROW)
    with pytest.raises(UserError, match="no such model file"):
        build_network(experiment(pretrained_model_file=str(tmp_path / "nowhere.hdf5")), NARROW)


# ---- Freezing --------------------------------------------------------------------------------------------------------


def trained_layers(network: GridNet):
    return {
        name.rpartition(".")[0].rpartition(".")[2] for name, value in network.named_parameters() if value.requires_grad
    }


def test_frozen_blocks_hold_their_convolutions():
    network = small_network(18, NARROW)
    everything = trained_layers(network)
    freeze(network, experiment(freeze_blocks=[0, 2]).model_config)
    frozen = everything - trained_layers(network)
    convolutions = {f"block_2{unit}_conv_{number}" for unit in "ab" for number in (1, 2)}
    assert frozen == {"conv1", "block_2a_conv_shortcut"} | convolutions


def test_frozen_batch_norms_keep_weights_and_statistics():
    network = small_network(10, NARROW)
    everything = trained_layers(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    freeze(network, experiment(freeze_bn=True).model_config)
    assert everything - trained_layers(network) == {name for name in everything if "bn" in name}
    for _ in range(2):  # as a validation between two epochs does
        coverage, bbox = network(torch.rand(2, 3, HEIGHT, WIDTH))
        (coverage.mean() + bbox.abs().mean()).backward()
        network.eval()
        network.train()
    assert network.training
    assert network.backbone.conv1.training
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(module.weight.grad is None for name, module in network.named_modules() if "bn_" in name)


def test_pretrained_layers_are_frozen_and_new_ones_are_not(tmp_path):
    file = saved(small_network(10, NARROW), tmp_path / "model.safetensors")
    spec = experiment(num_layers=18, pretrained_model_file=file, freeze_pretrained_layers=True)
    network = build_network(spec, NARROW)
    everything = trained_layers(network)
    freeze(network, spec.model_config)
    trained = trained_layers(network)
    assert everything - trained == network.pretrained_layers
    assert "block_1a_conv_1" not in trained
    assert {"block_1b_conv_1", "block_1b_bn_2", "output_cov"} <= trained
    network.train()
    assert not network.backbone.bn_conv1.training
    assert network.backbone.block_1b_bn_1.training


# ---- Commands --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "written"),
    [
        ("pruned", "pruned.safetensors"),
        ("pruned.v2", "pruned.v2.safetensors"),
        ("pruned.tlt", "pruned.safetensors"),
        ("pruned.safetensors", "pruned.safetensors"),
        ("pruned.hdf5", "pruned.hdf5"),
    ],
)
def test_prune_completes_the_suffix_and_writes_taos_layout_on_demand(named, written, tmp_path, capsys):
    model = saved(small_network(10, 0.25), tmp_path / "model.safetensors")
    options = ("-pg", 1, "-nf", 4, "--target-ratio", 0.5, "--results_dir", tmp_path / "results")
    assert detectnet_v2("prune", "-m", model, "-o", tmp_path / named, *options) == 0
    printed = capsys.readouterr().out
    assert f"Pruned model: {tmp_path / written}\n" in printed
    pruned = load_network(tmp_path / written)
    assert pruned.config.class_names == ("face",)
    # The threshold that is printed prunes to the very same network.
    threshold = printed.split("Threshold for a ratio of at most 0.5: ")[1].splitlines()[0]
    options = ("-pg", 1, "-nf", 4, "-pth", threshold, "--results_dir", tmp_path / "results")
    assert detectnet_v2("prune", "-m", model, "-o", tmp_path / "again.safetensors", *options) == 0
    assert_same_outputs(load_network(tmp_path / "again.safetensors"), pruned, 0, 0)
    last = json.loads((tmp_path / "results/status.json").read_text().splitlines()[-1])
    assert last["kpi"]["pruning_ratio"] <= 0.5


def test_prune_reads_taos_models_and_overwrites_nothing(tmp_path, capsys):
    file = Tao(small_network(10, 0.25)).build().write(tmp_path / "tao.hdf5")
    output = tmp_path / "pruned"
    arguments = ("prune", "-m", file, "-o", output, "-pth", 0.9, "-pg", 1, "-nf", 4, "--results_dir", tmp_path)
    assert detectnet_v2(*arguments) == 0
    assert load_network(tmp_path / "pruned.safetensors").config.class_names == ("class_0",)
    assert detectnet_v2(*arguments) == 2
    assert "exists already" in capsys.readouterr().err


def test_pretrained_takes_an_encrypted_model_for_nvidias_program_and_says_so(tmp_path, capsys):
    (tmp_path / "model.tlt").write_bytes(b"secret")
    assert detectnet_v2("pretrained", "--model", tmp_path / "artifact", "--uri", tmp_path / "model.tlt") == 0
    assert json.loads((tmp_path / "artifact/manifest.json").read_text())["counts"]["encrypted"] is True
    assert "NVIDIA's program alone reads it" in capsys.readouterr().out


def test_pretrained_takes_every_kind_of_file_and_refuses_others(tmp_path, capsys):
    Tao(small_network(10, NARROW)).build().write(tmp_path / "tao.hdf5")
    Tao(small_network(10, NARROW)).build().write(tmp_path / "tao.h5", "weights")
    torch.save(torchvision_state(18), tmp_path / "resnet.pth")
    saved(small_network(10, NARROW), tmp_path / "ours.safetensors")
    for name in ("tao.hdf5", "tao.h5", "resnet.pth", "ours.safetensors"):
        artifact = tmp_path / f"artifact-{name}"
        assert detectnet_v2("pretrained", "--model", artifact, "--uri", tmp_path / name) == 0
        assert (artifact / "weights" / name).is_file()
        assert json.loads((artifact / "manifest.json").read_text())["counts"]["present"] is True
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    assert detectnet_v2("pretrained", "--model", tmp_path / "artifact", "--uri", tmp_path / "model.onnx") == 2
    assert not (tmp_path / "artifact").exists()
    assert capsys.readouterr().err.count("\n") == 1
