"""TAO 5's unencrypted models: HDF5 files as Keras 2.2.4 writes them (`model.save(…, include_optimizer=False)`).

The architecture stands as JSON in the attribute `model_config`, the weights under `model_weights/<layer>/<layer>/` as
`kernel:0` (height, width, in, out), `bias:0`, `gamma:0`, `beta:0`, `moving_mean:0` and `moving_variance:0`. Files of
weights alone (`.h5`) have the layers at their root. A model wrapped in another one has its layers one folder deeper.

Files written here load in `tf_keras` 2.21, every weight in its place. What is not verified: no file of TAO's own was
at hand. The layout is that of Keras' source, the graph that of TAO's (`core/templates/resnet.py`,
`cv/detectnet_v2/objectives/base_objective.py`). TAO writes no padding layers: it patches Keras so that `padding: same`
pads with k//2 zeros on both sides (`third_party/keras/tensorflow_backend.py`). Unpatched Keras pads convolutions of
stride 2 on one side only, and so computes something else from the same file.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from components.step import UserError, publish
from components.vision.resnet import (
    UNITS,
    ResNetConfig,
    layer_of,
)

_CONVOLUTION = {"kernel": "weight", "bias": "bias"}
_BATCH_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_OUR_NAMES = _CONVOLUTION | _BATCH_NORM
_LAYER = re.compile(r"conv1|bn_conv1|block_([1-4])([a-z])_(conv|bn)_(\d|shortcut)")
# What Keras has no place for: what is not in the graph. Keras ignores an attribute that it does not know.
_OWN_ATTRIBUTE = "gridbox"


@dataclass(frozen=True, slots=True)
class KerasFile:
    """What a Keras file holds.

    Attributes:
        path: The file.
        heads: The layers asked for beside a ResNet's.
        tensors: Weights by the names of a network's state, in PyTorch's order of dimensions; a backbone's begin with
            `backbone.`.
        unknown: Layers with weights that are neither a ResNet's nor one of the heads asked for.
        layers: The architecture's layers (`name`, `class_name`, `config`, `inputs`); None in a file of weights alone.
        own: What `write_keras` adds about the network; None in files of others.
    """

    path: Path
    heads: Collection[str]
    tensors: dict[str, Tensor]
    unknown: tuple[str, ...]
    layers: list[dict[str, Any]] | None
    own: dict[str, Any] | None


def read_keras(path: Path, heads: Collection[str]) -> KerasFile:
    """Reads the weights of a Keras file: of a ResNet and of heads with these names.

    Raises:
        UserError: It is no HDF5 file, or names weights that it does not hold.
    """
    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            _check_complete(path, root)
            weights_of = _weights_by_layer(root)
            graph = _json_attribute(file, "model_config")
            layers = None if graph is None else list(_flattened(graph))
            own = _json_attribute(file, _OWN_ATTRIBUTE)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # whatever h5py makes of broken bytes
        raise UserError(f"{path}: not a readable Keras file: {str(error).splitlines()[0]}") from error
    tensors: dict[str, Tensor] = {}
    unknown = []
    for layer, weights in weights_of.items():
        if (layer in heads or _LAYER.fullmatch(layer)) and set(weights) <= set(_OUR_NAMES):
            module = _module_of(layer)
            tensors |= {f"{module}.{_OUR_NAMES[name]}": _to_torch(value) for name, value in weights.items()}
        else:
            unknown.append(layer)
    return KerasFile(path, heads, tensors, tuple(unknown), layers, own)


def stored_resnet(file: KerasFile) -> ResNetConfig:
    """Returns the ResNet that a file's names and shapes describe, pruned or not.

    Raises:
        UserError: The file has no architecture, or one that this engine does not build; the layer is named.
    """
    if file.layers is None:
        raise UserError(f"{file.path}: weights alone, without a graph; set load_graph: false to copy them by name")
    if file.unknown:
        raise UserError(f"{file.path}: layer {file.unknown[0]!r} is none of a ResNet of TAO's; use a ResNet model")
    kernels = {layer_of(name): value for name, value in file.tensors.items() if value.ndim == 4}
    matches = [match for match in map(_LAYER.fullmatch, kernels) if match and match[1]]
    units = tuple(len({match[2] for match in matches if match[1] == block}) for block in "1234")
    is_bottleneck = any(match[4] == "3" for match in matches)
    depths = [depth for depth, counts in UNITS.items() if counts == units and (depth >= 50) == is_bottleneck]
    if not depths:
        known = ", ".join(map(str, UNITS))
        raise UserError(f"{file.path}: blocks of {units} units are those of no ResNet of depth {known}; use one")
    backbone = ResNetConfig(
        depth=depths[0],
        all_projections="block_1b_conv_shortcut" in kernels,
        use_batch_norm="backbone.bn_conv1.weight" in file.tensors,
        channels={layer: len(kernel) for layer, kernel in kernels.items() if layer not in file.heads},
        use_pooling=any(layer["class_name"] == "MaxPooling2D" for layer in file.layers),
        dropout_rate=next(
            (float(layer["config"].get("rate", 0.0)) for layer in file.layers if layer["class_name"] == "Dropout"), 0.0
        ),
    )
    missing = {convolution.name for convolution in backbone.convolutions()} - set(backbone.channels)
    if missing:
        raise UserError(
            f"{file.path}: layer {min(missing)!r} of a ResNet-{backbone.depth} is missing; use a whole model"
        )
    return replace(backbone, channels={c.name: backbone.channels[c.name] for c in backbone.convolutions()})


def write_keras(path: Path, graph: Mapping[str, Any], state: Mapping[str, Tensor], own: Mapping[str, Any]) -> None:
    """Writes a network as Keras 2.2.4 writes TAO's; an interrupted call leaves the former file untouched.

    The same network gives the same bytes.

    Args:
        path: The file.
        graph: The network's `model_config`, by `KerasGraph`.
        state: Its state.
        own: What else is to be known about it.
    """
    with publish(path) as scratch, h5py.File(scratch, "w", track_order=False) as file:
        file.attrs["keras_version"] = b"2.2.4"
        file.attrs["backend"] = b"tensorflow"
        file.attrs["model_config"] = json.dumps(graph).encode()
        file.attrs[_OWN_ATTRIBUTE] = json.dumps(own, sort_keys=True).encode()
        root = file.create_group("model_weights")
        names = [layer["name"] for layer in graph["config"]["layers"]]
        root.attrs["layer_names"] = np.array([name.encode() for name in names])
        root.attrs["backend"] = b"tensorflow"
        root.attrs["keras_version"] = b"2.2.4"
        for layer in graph["config"]["layers"]:
            _write_layer(root.create_group(layer["name"]), layer, state)


# ---- Weights ---------------------------------------------------------------------------------------------------------


def _check_complete(path: Path, root: h5py.Group) -> None:
    for layer in root.attrs.get("layer_names", ()):
        group = root.get(_text(layer))
        if group is None:
            raise UserError(f"{path}: the weights of layer {_text(layer)!r} are missing; copy the file again")
        for weight in group.attrs.get("weight_names", ()):
            if _text(weight) not in group:
                raise UserError(f"{path}: the weight {_text(weight)!r} is missing; copy the file again")


def _weights_by_layer(root: h5py.Group) -> dict[str, dict[str, Any]]:
    """Returns the arrays by layer and by name without `:0`."""
    found: list[tuple[list[str], Any]] = []

    def collect(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found.append((name.split("/"), item[()]))

    root.visititems(collect)
    # Keras writes a layer's weights under the layer's name twice. A model inside a model is one layer to the outer one,
    # with the weights of many beneath.
    scopes: dict[str, set[str]] = {}
    for parts, _ in found:
        scopes.setdefault(parts[0], set()).add("/".join(parts[1:-1]))
    layers: dict[str, dict[str, Any]] = {}
    for parts, value in found:
        layer = parts[-2] if len(scopes[parts[0]]) > 1 else parts[0]
        layers.setdefault(layer, {})[parts[-1].removesuffix(":0")] = value
    return layers


def _to_torch(value: np.ndarray[Any, Any]) -> Tensor:
    """Keras keeps kernels as height, width, in, out; PyTorch as out, in, height, width."""
    ordered = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
    return torch.from_numpy(np.ascontiguousarray(ordered, np.float32))


def _write_layer(group: h5py.Group, layer: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    kinds = {"Conv2D": _CONVOLUTION, "BatchNormalization": _BATCH_NORM}
    name = layer["name"]
    weights = {}
    for theirs, ours in kinds.get(layer["class_name"], {}).items():
        value = state[f"{_module_of(name)}.{ours}"].detach().cpu().numpy()
        weights[f"{name}/{theirs}:0"] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
    group.attrs["weight_names"] = np.array([weight.encode() for weight in weights])
    for weight, value in weights.items():
        group.create_dataset(weight, data=np.ascontiguousarray(value), track_times=False)


def _module_of(layer: str) -> str:
    """Returns the module that a layer is in a network with a backbone and heads."""
    return f"backbone.{layer}" if _LAYER.fullmatch(layer) else layer


# ---- Architecture ----------------------------------------------------------------------------------------------------


def _json_attribute(file: h5py.File, name: str) -> dict[str, Any] | None:
    text = file.attrs.get(name)
    return None if text is None else dict(json.loads(_text(text)))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _flattened(graph: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields a model's layers and those of the models in it."""
    for layer in graph["config"]["layers"]:
        kind, config = layer["class_name"], layer["config"]
        if kind == "Model":
            yield from _flattened(layer)
        else:
            inputs = [source[0] for node in layer["inbound_nodes"] for source in node]
            yield {"name": config["name"], "class_name": kind, "config": config, "inputs": inputs}


# What decides what a layer computes, beside its weights. Layers of the last kinds have names that Keras counts up.
_COMPUTING = {
    "Conv2D": ("kernel_size", "strides", "padding", "dilation_rate", "data_format", "activation", "use_bias"),
    "BatchNormalization": ("axis", "epsilon", "center", "scale"),
    "MaxPooling2D": ("pool_size", "strides", "padding", "data_format"),
    "Activation": ("activation",),
    "Add": (),
    "Dropout": (),
    "InputLayer": (),
}


def check_graph(file: KerasFile, graph: Mapping[str, Any]) -> None:
    """Refuses a layer that computes something else than the one this engine would put in its place.

    Args:
        file: What was read.
        graph: What this engine would write, by `KerasGraph`.

    Raises:
        UserError: There is such a layer, or a head that reads others than the last features.
    """
    ours = list(_flattened(graph))
    by_name = {layer["name"]: layer for layer in ours}
    by_kind = {layer["class_name"]: layer for layer in ours}
    for layer in file.layers or ():
        name, kind = layer["name"], layer["class_name"]
        twin = by_name.get(name, by_kind.get(kind))
        if kind not in _COMPUTING or twin is None or twin["class_name"] != kind:
            raise UserError(f"{file.path}: layer {name!r} is a {kind}, which a ResNet of TAO's does not have there")
        for key in _COMPUTING[kind]:
            stored, known = layer["config"].get(key), twin["config"][key]
            if stored != known:
                raise UserError(f"{file.path}: layer {name!r} has {key} {stored}, this engine has {known} there")
        if name in file.heads and layer["inputs"] != twin["inputs"]:
            raise UserError(f"{file.path}: {name} reads {', '.join(layer['inputs'])}, not the last features")
