"""Transfer learning: a spec's network, from a pretrained model file where one is named, and what of it is frozen."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from components.detectnet_v2 import experiment, spec_pb2
from components.detectnet_v2.keras_model import stored_backbone
from components.detectnet_v2.network import HEADS, GridNet, GridNetConfig
from components.step import UserError
from components.vision.pretrained import Weights, read_weights
from components.vision.resnet import ResNetConfig, copy_matching, layer_of


def build_network(spec: spec_pb2.Experiment, width: float) -> GridNet:
    """Builds the spec's network, from `pretrained_model_file` where one is named.

    With `load_graph` the stored network is taken as it is (needed after pruning). Heads that it lacks, or has for other
    classes, are added where `allow_loaded_model_modification` is set, and refused otherwise. Without `load_graph` the
    spec's network is built and the stored layers of equal name and shapes are copied into its backbone; as in TAO the
    heads start from random weights. What does not match is named in both cases.

    Args:
        spec: The experiment.
        width: Scales the channels of a new network.

    Returns:
        The network; its `pretrained_layers` are those whose weights came from the file.

    Raises:
        UserError: The file cannot be read, has no graph to load, or does not fit the spec at all.
    """
    config = experiment.network_config(spec, width)
    if not spec.model_config.pretrained_model_file:
        return GridNet(config)
    file = Path(spec.model_config.pretrained_model_file)
    if spec.model_config.load_graph:
        return _stored_network(config, file, spec.model_config.allow_loaded_model_modification)
    stored = load_pretrained(file)
    network = GridNet(config)
    backbone = {name: value for name, value in stored.weights.tensors.items() if layer_of(name) not in HEADS}
    copied, left = copy_matching(backbone, network)
    if not copied:
        raise UserError(
            f"{file}: no layer fits the spec's ResNet-{config.backbone.depth}; set model_config.load_graph: true for a "
            "pruned network, or name a file of that network"
        )
    network.pretrained_layers = frozenset(copied)
    _report(file, stored, network, left)
    return network


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A pretrained model file.

    Attributes:
        weights: What it holds.
        backbone: The stored graph; None where it was not asked for.
        neck: What the stored graph has behind it; see `GridNetConfig`.
        class_names: Classes of the stored heads; None where the file does not name them.
    """

    weights: Weights
    backbone: ResNetConfig | None
    class_names: tuple[str, ...] | None
    neck: Mapping[str, int] = field(default_factory=dict)


def load_pretrained(path: Path, graph: bool = False) -> Pretrained:
    """Reads a pretrained model file: ours, TAO's `.hdf5` or `.h5`, or a torchvision ResNet's `.pth` or `.safetensors`.

    Args:
        path: The file, or a model artifact.
        graph: Whether the stored graph is wanted, not the weights alone.

    Raises:
        UserError: The file is missing, broken, encrypted by TAO, or holds no (or another) graph.
    """
    weights = read_weights(path, HEADS)
    if weights.config is not None:
        config = GridNetConfig.from_json(weights.config)
        return Pretrained(weights, config.backbone if graph else None, config.class_names, config.neck)
    own = weights.keras.own if weights.keras else None
    names = tuple(own["class_names"]) if own else None
    if not graph:
        return Pretrained(weights, None, names)
    if weights.keras is None:
        raise UserError(f"{weights.path}: weights alone, without a graph; set load_graph: false to copy them by name")
    return Pretrained(weights, stored_backbone(weights.keras), names)


def _stored_network(config: GridNetConfig, file: Path, may_add_heads: bool) -> GridNet:
    stored = load_pretrained(file, graph=True)
    assert stored.backbone is not None
    # How much is dropped is a matter of the training, not of the stored network.
    backbone = replace(stored.backbone, dropout_rate=config.backbone.dropout_rate)
    if bool(stored.neck) != bool(config.neck):
        ours, theirs = (8 if neck else 16 for neck in (config.neck, stored.neck))
        raise UserError(f"{file}: its grid has a stride of {theirs}, the spec's open_engine has {ours}; make them one")
    network = GridNet(config.with_graph(backbone, stored.neck))
    knows_classes = stored.class_names in (None, config.class_names)
    tensors = {
        name: value for name, value in stored.weights.tensors.items() if knows_classes or layer_of(name) not in HEADS
    }
    copied, left = copy_matching(tensors, network)
    if left and not may_add_heads:
        wanted = ", ".join(config.class_names)
        if stored.class_names is not None:
            reason = f"trained for the classes {', '.join(stored.class_names)}, the spec names {wanted}"
        else:
            reason = f"its {left[0]} is missing or made for another number of classes than the spec's ({wanted})"
        raise UserError(
            f"{file}: {reason}; set allow_loaded_model_modification for new heads, or load_graph to false to copy the "
            "matching layers only"
        )
    network.pretrained_layers = frozenset(copied)
    if left:
        _report(file, stored, network, left)
    return network


def _report(file: Path, stored: Pretrained, network: GridNet, left: list[str]) -> None:
    identities = [layer for layer in stored.weights.identities if layer in network.pretrained_layers]
    copied = network.pretrained_layers - set(identities)
    unused = sorted({layer_of(name) for name in stored.weights.tensors} - copied - set(stored.weights.identities))
    lines = [f"Pretrained weights: {len(copied)} layers copied from {file.name}, {len(left)} without a match"]
    lines += [f"  not matched: {layer}" for layer in left]
    lines += [f"  of the file, not used: {layer}" for layer in (*unused, *stored.weights.unknown)]
    lines += [f"  not in the file, which has the identity there: {layer}" for layer in identities]
    print("\n".join(lines), flush=True)


def freeze(network: GridNet, config: spec_pb2.ModelConfig) -> None:
    """Excludes layers from training.

    `freeze_blocks` (0 is the stem, 1 to 4 the blocks) holds the convolutions, as in TAO; `freeze_bn` all batch norms;
    `freeze_pretrained_layers` whatever came from the pretrained model file. Frozen batch norms stay in inference mode
    (see `GridNet.train`). TAO's `freeze_bn` goes on training scale and shift, and its `freeze_pretrained_layers` has no
    effect at all.
    """
    blocks = {int(block) for block in config.freeze_blocks}
    prefixes = tuple("conv1" if block == 0 else f"block_{block}" for block in sorted(blocks))
    for name, module in network.named_modules():
        layer = name.rpartition(".")[2]
        is_pretrained = config.freeze_pretrained_layers and layer in network.pretrained_layers
        is_in_frozen_block = isinstance(module, nn.Conv2d) and layer.startswith(prefixes)
        if is_pretrained or is_in_frozen_block or (isinstance(module, nn.BatchNorm2d) and config.freeze_bn):
            module.requires_grad_(False)
    network.train(network.training)
