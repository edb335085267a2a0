"""Networks and training states on disk: safetensors files (plain tensors and JSON, nothing that can execute).

Models also come and go as TAO's `.hdf5` files; pretrained weights may be torchvision's, too.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from components.step import UserError, publish, weights_file
from components.vision.gridnet import GridNet, GridNetConfig
from components.vision.resnet import ResNetConfig

SUFFIX = ".safetensors"
KERAS_SUFFIX = ".hdf5"
_KERAS_WEIGHTS_SUFFIX = ".h5"
_TORCHVISION_SUFFIXES = (".pth", ".pt")
_HEADER = "gridbox"
_FORMAT = 1


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON header; an interrupted call leaves the former file untouched."""
    text = json.dumps({"format": _FORMAT, **header}, sort_keys=True)
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with publish(path) as scratch:
        # Not `save_file`: its files can be read by their owner alone, and containers have users of their own.
        scratch.write_bytes(save(contiguous, {_HEADER: text}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_tensors` wrote.

    Raises:
        UserError: The file is missing, broken, encrypted by TAO, or not one of ours.
    """
    refuse_encrypted(path)
    _require(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(file)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {error}") from error
    if header is None:
        raise UserError(f"{path}: a safetensors file, but not one that gridbox wrote (it has no network description)")
    if header.get("format") != _FORMAT:
        raise UserError(f"{path}: written in format {header.get('format')}, this release reads {_FORMAT}")
    return tensors, header


def refuse_encrypted(path: Path) -> None:
    """Raises UserError for TAO's encrypted files, naming TAO's own way out."""
    if path.suffix in (".tlt", ".etlt"):
        raise UserError(
            f"{path}: encrypted by TAO, only NVIDIA's program can open it; in the tao-toolkit:5.0.0-tf1.15.5 image "
            f"'detectnet_v2 export -m {path.name} -k KEY -o model.onnx' writes an open ONNX file"
        )


def save_network(path: Path, network: nn.Module) -> None:
    """Writes a network and its description: in TAO's layout when the path ends in `.hdf5`, else in ours."""
    assert isinstance(network, GridNet)
    if path.suffix == KERAS_SUFFIX:
        from components.vision.keras_weights import save_keras

        save_keras(path, network)
    else:
        save_tensors(path, network.state_dict(), {"network": network.config.to_json()})


def load_network(path: Path) -> GridNet:
    """Builds and loads the network of a model file, or of a model artifact's `weights/` folder.

    Args:
        path: Ours (`.safetensors`), or TAO's unencrypted `.hdf5`, which does not name its classes: they are
            `placeholder_names` then, and clustering and box scale the default ones.

    Raises:
        UserError: The file is missing, broken, encrypted by TAO, or holds no detector.
    """
    path = weights_file(path)
    if path.suffix in (KERAS_SUFFIX, _KERAS_WEIGHTS_SUFFIX):
        from components.vision.keras_weights import load_keras

        _require(path)
        return load_keras(path)
    if path.suffix in _TORCHVISION_SUFFIXES:
        raise UserError(f"{path}: weights of a backbone, no detector; name it as pretrained_model_file and train")
    tensors, header = load_tensors(path)
    network = GridNet(GridNetConfig.from_json(header["network"]))
    network.load_state_dict(tensors)
    return network


@dataclass(frozen=True, slots=True)
class Pretrained:
    """The weights of a pretrained model file.

    Attributes:
        tensors: By the names of GridNet's state.
        backbone: The stored graph; None where it was not asked for.
        class_names: Classes of the stored heads; None where the file does not name them.
        unknown: Layers of the file that have no counterpart in any of our networks.
        identities: Layers that the file does not hold but whose place the identity takes there.
    """

    tensors: dict[str, Tensor]
    backbone: ResNetConfig | None = None
    class_names: tuple[str, ...] | None = None
    unknown: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()


def load_pretrained(path: Path, graph: bool = False) -> Pretrained:
    """Reads a pretrained model file: ours, TAO's `.hdf5` or `.h5`, or a torchvision ResNet's `.pth` or `.safetensors`.

    Args:
        path: The file, or a model artifact.
        graph: Whether the stored graph is wanted, not the weights alone.

    Raises:
        UserError: The file is missing, broken, encrypted by TAO, or holds no (or another) graph.
    """
    path = weights_file(path)
    refuse_encrypted(path)
    _require(path)
    if path.suffix in (KERAS_SUFFIX, _KERAS_WEIGHTS_SUFFIX):
        from components.vision.keras_weights import read_keras, stored_backbone

        file = read_keras(path)
        names = tuple(file.own["class_names"]) if file.own else None
        return Pretrained(file.tensors, stored_backbone(file) if graph else None, names, file.unknown)
    if path.suffix in _TORCHVISION_SUFFIXES or _is_foreign(path):
        from components.vision.torchvision_weights import read_torchvision

        if graph:
            raise UserError(f"{path}: weights alone, without a graph; set load_graph: false to copy them by name")
        weights = read_torchvision(path)
        return Pretrained(weights.tensors, unknown=weights.unknown, identities=weights.identities)
    tensors, header = load_tensors(path)
    config = GridNetConfig.from_json(header["network"])
    return Pretrained(tensors, config.backbone if graph else None, config.class_names)


def _require(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: no such model file")


def _header(file: Any) -> dict[str, Any] | None:  # noqa: ANN401 - the library does not type its files
    header = json.loads((file.metadata() or {}).get(_HEADER, "null"))
    return None if header is None else dict(header)


def _is_foreign(path: Path) -> bool:
    """Returns whether it is a safetensors file of another program."""
    try:
        with safe_open(path, framework="pt") as file:
            return _header(file) is None
    except (SafetensorError, ValueError):
        return False  # `load_tensors` says what is wrong with it
