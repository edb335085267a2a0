"""DetectNet_v2 as TAO's Keras files hold it: a ResNet with a coverage and a bbox head."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from components.decode.grid.clustering import Clustering
from components.decode.grid.geometry import GridGeometry
from components.detectnet_v2.network import (
    BBOX_HEAD,
    COVERAGE_HEAD,
    HEADS,
    GridNet,
    GridNetConfig,
    placeholder_names,
)
from components.step import UserError
from components.vision.keras_graph import KerasGraph
from components.vision.keras_weights import KerasFile, check_graph, read_keras, stored_resnet, write_keras
from components.vision.resnet import ResNetConfig, layer_of


def stored_backbone(file: KerasFile) -> ResNetConfig:
    """Returns the backbone that a file's names, shapes and graph describe, pruned or not.

    Raises:
        UserError: The file has no architecture, or one that this engine does not build; the layer is named.
    """
    backbone = stored_resnet(file)
    _check_shapes(file, backbone)
    check_graph(file, _graph(GridNetConfig(backbone, placeholder_names(1), GridGeometry(16, 16), {})))
    return backbone


def load_keras(path: Path) -> GridNet:
    """Rebuilds the detector that a Keras file holds, pruned or not, from its names, shapes and architecture.

    TAO's files say nothing of class names, clustering and box scale: they become `class_0` …, and defaults.
    Files written by `save_keras` keep theirs.

    Raises:
        UserError: It is none, or one that this engine does not build.
    """
    file = read_keras(path, HEADS)
    backbone = stored_backbone(file)
    missing = [head for head in HEADS if f"{head}.weight" not in file.tensors]
    if missing:
        raise UserError(
            f"{path}: the detector's head {missing[0]!r} is missing; train it first, with load_graph and "
            "allow_loaded_model_modification"
        )
    names = placeholder_names(len(file.tensors[f"{COVERAGE_HEAD}.weight"]))
    clustering: Mapping[str, Clustering] = {name: Clustering() for name in names}
    if file.own:
        own = GridNetConfig.from_json({**file.own, "backbone": {"depth": backbone.depth}})
        config = own.with_graph(backbone, {})
    else:
        config = GridNetConfig(backbone, names, _stored_geometry(file), clustering)
    network = GridNet(config)
    network.load_state_dict(file.tensors, strict=False)  # `_check_shapes` saw to the rest
    return network


def save_keras(path: Path, network: GridNet) -> None:
    """Writes a network as TAO would; an interrupted call leaves the former file untouched.

    Raises:
        UserError: It has a neck, which TAO knows nothing of.
    """
    if network.neck:
        raise UserError(f"{path}: TAO's layout has no grid of stride 8; write {path.with_suffix('.safetensors').name}")
    own = {key: value for key, value in network.to_json().items() if key != "backbone"}
    write_keras(path, _graph(network.config), network.state_dict(), own)


def _check_shapes(file: KerasFile, backbone: ResNetConfig) -> None:
    coverage = file.tensors.get(f"{COVERAGE_HEAD}.weight")
    classes = 1 if coverage is None else len(coverage)
    with torch.device("meta"):
        network = GridNet(GridNetConfig(backbone, placeholder_names(classes), GridGeometry(16, 16), {}))
    expected = {name: value.shape for name, value in network.state_dict().items() if "num_batches" not in name}
    for name in file.tensors:
        if name not in expected:
            raise UserError(f"{file.path}: layer {layer_of(name)!r} does not belong to a ResNet-{backbone.depth}")
    for name, shape in expected.items():
        layer = layer_of(name)
        stored = file.tensors.get(name)
        if stored is None and layer in HEADS and not any(layer_of(other) == layer for other in file.tensors):
            continue  # a backbone without that head
        if stored is None:
            raise UserError(f"{file.path}: layer {layer!r} lacks a weight; its convolutions need kernel and bias")
        if stored.shape != shape:
            raise UserError(
                f"{file.path}: layer {layer!r} has weights of {tuple(stored.shape)}, not the {tuple(shape)} that fit "
                "its neighbours"
            )


def _stored_geometry(file: KerasFile) -> GridGeometry:
    for layer in file.layers or ():
        match layer["config"].get("batch_input_shape"):
            case [_, 3, int(height), int(width)]:
                try:
                    return GridGeometry(width, height)
                except ValueError as error:
                    raise UserError(f"{file.path}: {error}") from error
    raise UserError(f"{file.path}: no colour input of a fixed size; train it with load_graph first, which gives it one")


def _graph(config: GridNetConfig) -> dict[str, Any]:
    """Returns the `model_config` of a network."""
    graph, classes = KerasGraph(config.backbone, config.geometry.width, config.geometry.height), len(config.class_names)
    graph.add_head(BBOX_HEAD, 4 * classes, "linear")
    graph.add_head(COVERAGE_HEAD, classes, "sigmoid")
    return graph.model("detectnet_v2")
