"""Networks and training states on disk: safetensors files (plain tensors and JSON, nothing that can execute)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from components.step import UserError, publish, weights_file
from components.vision.gridnet import GridNet, GridNetConfig

SUFFIX = ".safetensors"
_HEADER = "gridbox"
_FORMAT = 1


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Writes tensors and a JSON header; an interrupted call leaves the former file untouched."""
    text = json.dumps({"format": _FORMAT, **header}, sort_keys=True)
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with publish(path) as scratch:
        save_file(contiguous, scratch, {_HEADER: text})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_tensors` wrote.

    Raises:
        UserError: The file is missing, broken, encrypted by TAO, or not one of ours.
    """
    refuse_encrypted(path)
    if not path.is_file():
        raise UserError(f"{path}: no such model file")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "null"))
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


def save_network(path: Path, network: GridNet) -> None:
    """Writes a network and its description."""
    save_tensors(path, network.state_dict(), {"network": network.config.to_json()})


def load_network(path: Path) -> GridNet:
    """Builds and loads the network of a checkpoint file or of a model artifact's `weights/` folder."""
    path = weights_file(path)
    tensors, header = load_tensors(path)
    network = GridNet(GridNetConfig.from_json(header["network"]))
    network.load_state_dict(tensors)
    return network
