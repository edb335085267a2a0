"""Model files of others: TAO's Keras files, read and written, and torchvision's weights."""

import json
import math

import h5py
import numpy as np
import pytest
import torch
from networks import HEIGHT, WIDTH, assert_same_outputs, small_network
from safetensors.torch import save_file
from torch.nn import functional

from components.decode.grid.clustering import Clustering
from components.detectnet_v2.keras_model import load_keras, save_keras
from components.detectnet_v2.transfer import load_pretrained
from components.step import UserError
from components.vision.checkpoint import load_network, save_network
from components.vision.pruning import PruneSettings, prune
from components.vision.resnet import copy_matching

# ---- A writer and a reader of Keras' layout, from tao.md 3 and 9.5 alone ---------------------------------------------

UNITS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class Tao:
    """Writes a network the way TAO's container would: its own graph, its own names."""

    def __init__(self, network):
        self.state = {name: value.numpy() for name, value in network.state_dict().items()}
        self.config = network.config
        self.layers, self.weights, self.adds = [], {}, 0

    def layer(self, kind, name, sources, **config):
        inbound = [[[source, 0, 0, {}] for source in sources]] if sources else []
        self.layers.append(
            {"name": name, "class_name": kind, "config": dict(config, name=name), "inbound_nodes": inbound}
        )
        return name

    def conv(self, name, source, stride=1, padding="same", activation="linear"):
        key = name if name.startswith("output") else f"backbone.{name}"
        out, _, height, width = self.state[f"{key}.weight"].shape
        self.layer("Conv2D", name, [source], filters=out, kernel_size=[height, width], strides=[stride, stride],
                   padding=padding, dilation_rate=[1, 1], data_format="channels_first", activation=activation,
                   use_bias=True)  # fmt: skip
        kernel = np.empty((height, width, *self.state[f"{key}.weight"].shape[1::-1]), np.float32)
        for y in range(height):
            for x in range(width):
                kernel[y, x] = self.state[f"{key}.weight"][:, :, y, x].T
        self.weights[name] = {"kernel": kernel, "bias": self.state[f"{key}.bias"]}
        return name

    def conv_bn(self, name, source, stride=1, padding="same"):
        x = self.conv(name, source, stride, padding)
        if not self.config.backbone.use_batch_norm:
            return x
        bn = {"conv1": "bn_conv1"}.get(name, name.replace("_conv_", "_bn_"))
        keys = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
        self.weights[bn] = {theirs: self.state[f"backbone.{bn}.{ours}"] for theirs, ours in keys.items()}
        return self.layer("BatchNormalization", bn, [x], axis=1, momentum=0.99, epsilon=0.001, center=True, scale=True)

    def relu(self, name, source):
        return self.layer("Activation", name, [source], activation="relu")

    def backbone(self):
        x = self.layer("InputLayer", "input_1", [], batch_input_shape=[None, 3, HEIGHT, WIDTH], dtype="float32")
        x = self.relu("activation_1", self.conv_bn("conv1", x, 2))
        config = self.config.backbone
        strides = (2, 2, 2, 1)
        if config.use_pooling:
            x = self.layer("MaxPooling2D", "max_pooling2d_1", [x], pool_size=[3, 3], strides=[2, 2], padding="same",
                           data_format="channels_first")  # fmt: skip
            strides = (1, 2, 2, 1)
        for block, count in enumerate(UNITS[config.depth]):
            for index in range(count):
                unit = f"block_{block + 1}{'abcdef'[index]}"
                stride = strides[block] if index == 0 else 1
                y = self.conv_bn(f"{unit}_conv_1", x, stride)
                for number in range(2, 4 if config.depth == 50 else 3):
                    y = self.conv_bn(f"{unit}_conv_{number}", self.relu(f"{unit}_relu_{number - 1}", y))
                if config.all_projections or index == 0:
                    x = self.conv_bn(f"{unit}_conv_shortcut", x, stride, "valid")
                self.adds += 1
                x = self.relu(f"{unit}_relu", self.layer("Add", f"add_{self.adds}", [y, x]))
        return x

    def build(self, heads=True):
        x = self.backbone()
        if heads:
            self.conv("output_bbox", x)
            self.conv("output_cov", x, activation="sigmoid")
        return self

    def graph(self):
        ends = {"input_layers": [["input_1", 0, 0]], "output_layers": [["output_bbox", 0, 0], ["output_cov", 0, 0]]}
        return {"class_name": "Model", "config": {"name": "resnet_detectnet_v2", "layers": self.layers, **ends}}

    def write(self, path, form="keras", graph=None):
        """Forms: as Keras nests them, one level less, a model inside a model, weights alone."""
        with h5py.File(path, "w") as file:
            root = file
            if form != "weights":
                document = graph or self.graph()
                if form == "model in model":
                    inner = dict(document, name="detector", inbound_nodes=[[["input_2", 0, 0, {}]]])
                    outer = {"name": "input_2", "class_name": "InputLayer", "inbound_nodes": [],
                             "config": {"name": "input_2", "batch_input_shape": [None, 3, HEIGHT, WIDTH]}}  # fmt: skip
                    document = {"class_name": "Model", "config": {"name": "wrapper", "layers": [outer, inner]}}
                file.attrs["model_config"] = json.dumps(document).encode()
                file.attrs["keras_version"] = b"2.2.4"
                root = file.create_group("model_weights")
            groups = (
                {"detector": self.weights} if form == "model in model" else {n: {n: w} for n, w in self.weights.items()}
            )
            plain = ["input_2" if form == "model in model" else "input_1"]
            root.attrs["layer_names"] = [name.encode() for name in (*plain, *groups)]
            for name in plain:
                root.create_group(name).attrs["weight_names"] = np.zeros(0)
            for group, layers in groups.items():
                folder, names = root.create_group(group), []
                for layer, weights in layers.items():
                    for name, value in weights.items():
                        names.append(f"{name}:0" if form == "flat" else f"{layer}/{name}:0")
                        folder[names[-1]] = value
                folder.attrs["weight_names"] = [name.encode() for name in names]
        return path


def run_keras(path, images):
    """Runs a Keras file layer by layer as TAO's patched Keras does: symmetric zero padding of k//2."""
    with h5py.File(path) as file:
        graph = json.loads(file.attrs["model_config"])["config"]
        names = [name.decode() for name in file["model_weights"].attrs["layer_names"]]
        weights = {
            name: [torch.from_numpy(file["model_weights"][name][weight.decode()][()])
                   for weight in file["model_weights"][name].attrs["weight_names"]]
            for name in names
        }  # fmt: skip
    assert names == [layer["name"] for layer in graph["layers"]]
    values = {}
    for layer in graph["layers"]:
        name, kind, config = layer["name"], layer["class_name"], layer["config"]
        inputs = [values[source[0]] for node in layer["inbound_nodes"] for source in node]
        if kind == "InputLayer":
            assert config["batch_input_shape"] == [None, *images.shape[1:]]
            value = images
        elif kind == "Conv2D":
            kernel, bias = weights[name]
            assert list(kernel.shape[:2]) == config["kernel_size"]
            assert len(bias) == config["filters"]
            margin = config["kernel_size"][0] // 2 if config["padding"] == "same" else 0
            value = functional.conv2d(functional.pad(inputs[0], [margin] * 4), kernel.permute(3, 2, 0, 1), bias,
                                      config["strides"])  # fmt: skip
            value = {"linear": lambda x: x, "sigmoid": torch.sigmoid}[config["activation"]](value)
        elif kind == "BatchNormalization":
            gamma, beta, mean, variance = (weight.view(1, -1, 1, 1) for weight in weights[name])
            value = (inputs[0] - mean) / (variance + config["epsilon"]).sqrt() * gamma + beta
        elif kind == "MaxPooling2D":
            value = functional.max_pool2d(functional.pad(inputs[0], [1] * 4), config["pool_size"], config["strides"])
        elif kind == "Activation":
            assert config["activation"] == "relu"
            value = inputs[0].clamp_min(0)
        elif kind == "Add":
            value = inputs[0] + inputs[1]
        else:
            assert kind == "Dropout"
            value = inputs[0]
        values[name] = value
    return [values[output[0]] for output in graph["output_layers"]]


def keras_order(graph):
    """Returns the layers' names in the order in which Keras 2.2.4 holds a model that it builds from this graph.

    Written from `keras/engine/network.py`, `_map_graph_network`: nodes are visited from the outputs, counted when met
    and listed when all their inputs are done; depths are then set from the outputs on, and sort before the counts.
    """
    inbound = {layer["name"]: [s[0] for node in layer["inbound_nodes"] for s in node] for layer in graph["layers"]}
    count, done = {}, []

    def visit(name):
        if name in done:
            return
        count.setdefault(name, len(count))
        for source in inbound[name]:
            visit(source)
        done.append(name)

    for output in graph["output_layers"]:
        visit(output[0])
    depth = {}
    for name in reversed(done):
        depth.setdefault(name, 0)
        for source in inbound[name]:
            depth[source] = max(depth[name] + 1, depth.get(source, 0))
    return sorted(count, key=lambda name: (-depth[name], count[name]))


VARIANTS = [
    {"depth": 10},
    {"depth": 10, "use_batch_norm": False, "use_pooling": True},
    {"depth": 18, "all_projections": True},
    {"depth": 34},
    {"depth": 50, "dropout_rate": 0.1},
    {"depth": 50, "all_projections": True, "use_pooling": True},
]


def pruned_network(class_names=("face", "bag"), **variant):
    network = small_network(width=0.05, class_names=class_names, **variant)
    return prune(network, PruneSettings(0.9, granularity=1, minimum_filters=3)).eval()


# ---- Keras -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_written_keras_file_is_a_graph_that_computes_the_same(variant, tmp_path):
    network = pruned_network(**variant)
    save_keras(tmp_path / "model.hdf5", network)
    images = torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        coverage, bbox = network(images)
    stored_bbox, stored_coverage = run_keras(tmp_path / "model.hdf5", images)
    torch.testing.assert_close(stored_coverage, coverage, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stored_bbox, bbox, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_written_keras_file_lists_its_layers_where_keras_looks_for_them(variant, tmp_path):
    save_keras(tmp_path / "model.hdf5", pruned_network(**variant))
    with h5py.File(tmp_path / "model.hdf5") as file:
        stored = [name.decode() for name in file["model_weights"].attrs["layer_names"]]
        graph = json.loads(file.attrs["model_config"])["config"]
    assert stored == keras_order(graph) == [layer["name"] for layer in graph["layers"]]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_keras_itself_loads_a_written_file_with_every_weight_in_its_place(variant, tmp_path):
    keras = pytest.importorskip("tf_keras", reason="2 GB with TensorFlow, no part of `make setup`")
    network = pruned_network(**variant)
    save_keras(tmp_path / "model.hdf5", network)
    state = network.state_dict()
    names = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias",
             "moving_mean": "running_mean", "moving_variance": "running_var"}  # fmt: skip
    loaded = keras.models.load_model(tmp_path / "model.hdf5", compile=False).weights
    assert len(loaded) == sum("num_batches" not in name for name in state)
    for weight in loaded:
        layer, name = weight.name.removesuffix(":0").split("/")
        expected = state[f"{'' if layer.startswith('output') else 'backbone.'}{layer}.{names[name]}"].numpy()
        np.testing.assert_array_equal(
            weight.numpy(), expected.transpose(2, 3, 1, 0) if expected.ndim == 4 else expected
        )


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_written_keras_file_comes_back_whole(variant, tmp_path):
    network = pruned_network(**variant)
    save_network(tmp_path / "a.hdf5", network)
    save_network(tmp_path / "b.hdf5", network)
    loaded = load_network(tmp_path / "a.hdf5")
    assert loaded.config == network.config  # class names and clustering too
    for name, value in network.state_dict().items():
        assert "num_batches" in name or torch.equal(loaded.state_dict()[name], value), name
    assert (tmp_path / "a.hdf5").read_bytes() == (tmp_path / "b.hdf5").read_bytes()


@pytest.mark.parametrize("form", ["keras", "flat", "model in model"])
@pytest.mark.parametrize("variant", [v for v in VARIANTS if "dropout_rate" not in v], ids=str)
def test_a_pruned_file_of_taos_is_rebuilt_from_names_and_shapes(variant, form, tmp_path):
    network = pruned_network(**variant)
    loaded = load_network(Tao(network).build().write(tmp_path / "model.hdf5", form))
    assert loaded.config.backbone == network.config.backbone
    assert loaded.config.geometry == network.config.geometry
    assert loaded.config.class_names == ("class_0", "class_1")
    assert loaded.config.class_names == ("class_0", "class_1")
    assert loaded.config.clustering == {"class_0": Clustering(), "class_1": Clustering()}
    assert_same_outputs(loaded, network, 0, 0)


@pytest.mark.parametrize("form", ["keras", "flat", "model in model", "weights"])
def test_weights_are_read_by_name_in_every_form(form, tmp_path):
    network = small_network(18, 0.05)
    suffix = ".h5" if form == "weights" else ".hdf5"
    stored = load_pretrained(Tao(network).build().write(tmp_path / f"weights{suffix}", form))
    expected = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    assert stored.weights.tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(stored.weights.tensors[name], value), name
    assert stored.backbone is None
    assert stored.class_names is None
    assert stored.weights.unknown == ()


def test_a_layer_of_another_network_is_refused_by_name_but_may_be_left_out(tmp_path):
    tao = Tao(small_network(10, 0.05)).build()
    tao.weights["conv_pw_3"] = {"kernel": np.zeros((1, 1, 8, 8), np.float32)}
    file = tao.write(tmp_path / "model.hdf5")
    with pytest.raises(UserError, match=r"layer 'conv_pw_3' is none of a ResNet of TAO's"):
        load_keras(file)
    assert load_pretrained(file).weights.unknown == ("conv_pw_3",)


def edited(tao, name, **config):
    for layer in tao.layers:
        if layer["name"] == name:
            layer["config"].update(config)
            layer["class_name"] = config.get("class_name", layer["class_name"])
    return tao


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tao: edited(tao, "block_4a_conv_1", strides=[2, 2]),
         r"layer 'block_4a_conv_1' has strides \[2, 2\], this engine has \[1, 1\] there"),
        (lambda tao: edited(tao, "bn_conv1", epsilon=1e-5), r"layer 'bn_conv1' has epsilon 1e-05"),
        (lambda tao: edited(tao, "block_1a_relu", activation="elu"), r"layer 'block_1a_relu' has activation elu"),
        (lambda tao: edited(tao, "conv1", class_name="QuantizedConv2D"), r"layer 'conv1' is a QuantizedConv2D"),
        (lambda tao: tao.layer("AveragePooling2D", "average_pooling2d_1", ["block_4a_relu"]),
         r"layer 'average_pooling2d_1' is a AveragePooling2D"),
        (lambda tao: edited(tao, "input_1", batch_input_shape=[None, 3, None, None]), "no colour input of a fixed"),
        (lambda tao: edited(tao, "input_1", batch_input_shape=[None, 1, 64, 96]), "no colour input of a fixed size"),
        (lambda tao: edited(tao, "input_1", batch_input_shape=[None, 3, 64, 90]), "90x64 is not divisible by 16"),
        (lambda tao: tao.weights.pop("block_3a_conv_2"), r"layer 'block_3a_conv_2' of a ResNet-10 is missing"),
        (lambda tao: tao.weights.pop("block_3a_bn_2"), r"layer 'block_3a_bn_2' lacks a weight"),
        (lambda tao: tao.weights["block_3a_conv_2"].pop("bias"), r"layer 'block_3a_conv_2' lacks a weight"),
        (lambda tao: tao.weights["block_3a_bn_2"].update(gamma=np.ones(5, np.float32)),
         r"layer 'block_3a_bn_2' has weights of \(5,\), not the \(16,\) that fit"),
        (lambda tao: tao.weights.pop("output_cov"), r"the detector's head 'output_cov' is missing"),
        (lambda tao: tao.weights.update(block_3b_conv_1=tao.weights["block_3a_conv_1"]), "none of|no ResNet of depth"),
    ],
)  # fmt: skip
def test_a_graph_that_this_engine_does_not_build_is_refused_by_name(edit, message, tmp_path):
    tao = Tao(small_network(10, 0.05)).build()
    edit(tao)
    with pytest.raises(UserError, match=message) as error:
        load_keras(tao.write(tmp_path / "model.hdf5"))
    assert str(tmp_path / "model.hdf5") in str(error.value)
    assert "\n" not in str(error.value)


def test_heads_on_other_features_are_refused(tmp_path):
    tao = Tao(small_network(18, 0.05)).build()
    tao.layers[-1]["inbound_nodes"] = [[["block_4a_relu", 0, 0, {}]]]
    with pytest.raises(UserError, match="output_cov reads block_4a_relu, not the last features"):
        load_keras(tao.write(tmp_path / "model.hdf5"))


def test_weights_alone_are_no_graph(tmp_path):
    file = Tao(small_network(10, 0.05)).build().write(tmp_path / "model.h5", "weights")
    for load in (load_network, lambda path: load_pretrained(path, graph=True)):
        with pytest.raises(UserError, match="weights alone, without a graph; set load_graph: false"):
            load(file)


def test_a_truncated_or_foreign_file_is_refused(tmp_path):
    broken = tmp_path / "broken.hdf5"
    broken.write_bytes(b"\x89HDF\r\n\x1a\nand nothing else")
    with pytest.raises(UserError, match="not a readable Keras file") as error:
        load_network(broken)
    assert "\n" not in str(error.value)
    file = Tao(small_network(10, 0.05)).build().write(tmp_path / "model.hdf5")
    with h5py.File(file, "a") as stored:
        del stored["model_weights/bn_conv1/bn_conv1/beta:0"]
    with pytest.raises(UserError, match=r"the weight 'bn_conv1/beta:0' is missing"):
        load_network(file)
    with pytest.raises(UserError, match="no such model file"):
        load_network(tmp_path / "nowhere.hdf5")


def test_an_interrupted_write_leaves_the_former_file(tmp_path, monkeypatch):
    file = tmp_path / "model.hdf5"
    save_keras(file, small_network(10, 0.05))
    before = file.read_bytes()
    monkeypatch.setattr("components.vision.keras_weights._write_layer", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_keras(file, small_network(10, 0.05, seed=1))
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.hdf5"]


# ---- torchvision -----------------------------------------------------------------------------------------------------


def torchvision_state(depth, channels=(4, 5, 6, 7)):
    """A narrow network in torchvision's format, and its architecture as (kernels, expansion)."""
    draw = torch.Generator().manual_seed(depth)
    state = {}

    def conv(name, inputs, outputs, kernel):
        size = (outputs, inputs, kernel, kernel)
        state[f"{name}.weight"] = torch.randn(size, generator=draw) * math.sqrt(1 / (inputs * kernel**2))

    def bn(name, count):
        for value in ("weight", "bias", "running_mean"):
            state[f"{name}.{value}"] = torch.rand(count, generator=draw) - (0 if value == "weight" else 0.5)
        state[f"{name}.running_var"] = torch.rand(count, generator=draw) * 0.01  # where the epsilons matter
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("conv1", 3, channels[0], 7)
    bn("bn1", channels[0])
    kernels, expansion = ((1, 3, 1), 4) if depth == 50 else ((3, 3), 1)
    features = channels[0]
    for layer, (count, width) in enumerate(zip(UNITS[depth], channels, strict=True), 1):
        for index in range(count):
            unit, inputs = f"layer{layer}.{index}", features
            for number, kernel in enumerate(kernels, 1):
                outputs = width * (expansion if number == len(kernels) else 1)
                conv(f"{unit}.conv{number}", inputs, outputs, kernel)
                bn(f"{unit}.bn{number}", outputs)
                inputs = outputs
            if index == 0 and (layer > 1 or features != outputs):
                conv(f"{unit}.downsample.0", features, outputs, 1)
                bn(f"{unit}.downsample.1", outputs)
            features = outputs
    state["fc.weight"], state["fc.bias"] = torch.zeros(10, features), torch.zeros(10)
    return state


def run_torchvision(state, pixels, depth, padding_in_pixels):
    """Features as torchvision computes them, but for the strides: the detector's, in a unit's first convolution."""

    def bn(name, x):
        mean, variance, weight, bias = (
            state[f"{name}.{value}"].view(1, -1, 1, 1) for value in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    if padding_in_pixels:  # black, as the detector pads; torchvision pads with the mean colour
        x = functional.conv2d((functional.pad(pixels, [3] * 4) - mean) / deviation, state["conv1.weight"], None, 2)
    else:
        x = functional.conv2d((pixels - mean) / deviation, state["conv1.weight"], None, 2, 3)
    x = stem = torch.relu(bn("bn1", x))
    x = functional.max_pool2d(x, 3, 2, 1)
    for layer, count in enumerate(UNITS[depth], 1):
        for index in range(count):
            unit, y = f"layer{layer}.{index}", x
            stride = 2 if index == 0 and layer in (2, 3) else 1
            numbers = (1, 2, 3) if depth == 50 else (1, 2)
            for number in numbers:
                weight = state[f"{unit}.conv{number}.weight"]
                y = functional.conv2d(y, weight, None, stride if number == 1 else 1, weight.shape[-1] // 2)
                y = bn(f"{unit}.bn{number}", y)
                y = torch.relu(y) if number != numbers[-1] else y
            if f"{unit}.downsample.0.weight" in state:
                x = bn(f"{unit}.downsample.1", functional.conv2d(x, state[f"{unit}.downsample.0.weight"], None, stride))
            x = torch.relu(x + y)
    return stem, x


def matching_network(state, depth, all_projections):
    """Our network with the channels of a torchvision state."""
    network = small_network(depth, 0.05, all_projections=all_projections, use_pooling=True)
    backbone = network.config.backbone
    widths = [len(state[f"layer{layer}.0.conv1.weight"]) for layer in (1, 2, 3, 4)]
    channels = {"conv1": len(state["conv1.weight"])}
    for name in backbone.channels:
        if name != "conv1":
            wide = depth == 50 and name.endswith(("conv_3", "shortcut"))
            channels[name] = widths[int(name[6]) - 1] * (4 if wide else 1)
    config = network.config.with_graph(type(backbone)(depth, all_projections, True, channels, True), {})
    return type(network)(config).eval()


@pytest.mark.parametrize("all_projections", [False, True])
@pytest.mark.parametrize("depth", [18, 34, 50])
def test_torchvisions_weights_give_torchvisions_features(depth, all_projections, tmp_path):
    state = torchvision_state(depth)
    torch.save(state, tmp_path / "resnet.pth")
    network = matching_network(state, depth, all_projections)
    stored = load_pretrained(tmp_path / "resnet.pth")
    copied, left = copy_matching(stored.weights.tensors, network)
    assert left == ["output_bbox", "output_cov"]
    assert stored.weights.unknown == ("fc",)
    assert ("block_1a_conv_shortcut" in stored.weights.identities) == (depth != 50)
    assert "block_2b_bn_shortcut" in stored.weights.identities
    assert ("block_2b_bn_shortcut" in copied) == all_projections
    pixels = torch.rand(2, 3, HEIGHT, WIDTH)
    with torch.no_grad():
        _, expected = run_torchvision(state, pixels, depth, padding_in_pixels=True)
        features = network.backbone(pixels)
    assert features.abs().max() > 0.1
    torch.testing.assert_close(features, expected, rtol=3e-3, atol=1e-4 * float(expected.max()))


def test_only_the_border_sees_another_frame_than_in_torchvision(tmp_path):
    state = torchvision_state(18)
    save_file(state, tmp_path / "resnet.safetensors")
    network = matching_network(state, 18, False)
    copy_matching(load_pretrained(tmp_path / "resnet.safetensors").weights.tensors, network)
    pixels = torch.rand(1, 3, HEIGHT, WIDTH)
    with torch.no_grad():
        expected, _ = run_torchvision(state, pixels, 18, padding_in_pixels=False)
        stem = torch.relu(network.backbone.bn_conv1(network.backbone.conv1(pixels)))
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(stem[inner], expected[inner], rtol=1e-3, atol=1e-4)
    assert (stem - expected).abs().max() > 0.01


class Payload:
    def __reduce__(self):
        return print, ("this must never run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"conv1.weight": Payload()}, "not a readable state dict"),
        ({"state_dict": {"conv1.weight": torch.zeros(1)}}, "not a state dict"),
        ({"conv1.weight": torch.zeros(4, 3, 7, 7)}, "no state dict of a torchvision ResNet"),
        ([torch.zeros(1)], "not a state dict"),
    ],
)
def test_other_pth_files_are_refused_and_nothing_in_them_runs(content, message, tmp_path, capsys):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(UserError, match=message) as error:
        load_pretrained(tmp_path / "model.pth")
    assert "\n" not in str(error.value)
    assert "never run" not in capsys.readouterr().out


def test_a_file_of_a_backbone_is_no_detector(tmp_path):
    torch.save(torchvision_state(18), tmp_path / "model.pth")
    with pytest.raises(UserError, match="no detector"):
        load_network(tmp_path / "model.pth")
    with pytest.raises(UserError, match="without a graph"):
        load_pretrained(tmp_path / "model.pth", graph=True)
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="not a readable state dict"):
        load_pretrained(tmp_path / "broken.pth")
