"""Networks and training states on disk: safetensors files (plain tensors and JSON, nothing that can execute).

Models also come and go as TAO's `.hdf5` files; pretrained weights may be torchvision's, too.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from components.step import UserError, publish, weights_file
from components.vision.network import Network, family_module, network_class

SUFFIX = ".safetensors"
KERAS_SUFFIX = ".hdf5"
KERAS_SUFFIXES = (KERAS_SUFFIX, ".h5")
TORCHVISION_SUFFIXES = (".pth", ".pt")
_HEADER = "gridbox"
_FORMAT = 2
_FORMATS = (1, 2)
# Of networks in files that do not name theirs: format 1, which knew one kind, and the Keras files of TAO.
_UNNAMED_KIND = "detectnet_v2"


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
    require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(file)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {error}") from error
    if header is None:
        raise UserError(f"{path}: a safetensors file, but not one that gridbox wrote (it has no network description)")
    if header.get("format") not in _FORMATS:
        raise UserError(f"{path}: written in format {header.get('format')}, this release reads up to {_FORMAT}")
    return tensors, header


def refuse_encrypted(path: Path) -> None:
    """Raises UserError for TAO's encrypted files, naming TAO's own way out."""
    if path.suffix in (".tlt", ".etlt"):
        raise UserError(
            f"{path}: encrypted by TAO, only NVIDIA's program can open it; in the tao-toolkit:5.0.0-tf1.15.5 image "
            f"'detectnet_v2 export -m {path.name} -k KEY -o model.onnx' writes an open ONNX file"
        )


def save_network(path: Path, network: Network) -> None:
    """Writes a network and its description: in TAO's layout when the path ends in `.hdf5`, else in ours."""
    if path.suffix == KERAS_SUFFIX:
        family_module(network.kind, "keras_model").save_keras(path, network)
    else:
        save_tensors(path, network.state_dict(), {"kind": network.kind, "config": network.to_json()})


def load_network(path: Path) -> Network:
    """Builds and loads the network of a model file, or of a model artifact's `weights/` folder.

    Args:
        path: Ours (`.safetensors`), or TAO's unencrypted `.hdf5` of a detector.

    Raises:
        UserError: The file is missing, broken, encrypted by TAO, or holds no detector.
    """
    path = weights_file(path)
    if path.suffix in KERAS_SUFFIXES:
        require_file(path)
        network: Network = family_module(_UNNAMED_KIND, "keras_model").load_keras(path)
        return network
    if path.suffix in TORCHVISION_SUFFIXES:
        raise UserError(f"{path}: weights of a backbone, no detector; name it as pretrained_model_file and train")
    tensors, header = load_tensors(path)
    kind, config = described(path, header)
    network = network_class(kind).from_json(config)
    network.load_state_dict(tensors)
    return network


def described(path: Path, header: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns kind and configuration of the network that a header describes.

    Raises:
        UserError: It describes none.
    """
    if header["format"] == 1 and "network" in header:
        return _UNNAMED_KIND, header["network"]
    if not {"kind", "config"} <= header.keys():
        raise UserError(f"{path}: holds no network")
    return header["kind"], header["config"]


def require_file(path: Path) -> None:
    """Raises UserError if there is no such file."""
    if not path.is_file():
        raise UserError(f"{path}: no such model file")


def _header(file: Any) -> dict[str, Any] | None:  # noqa: ANN401 - the library does not type its files
    header = json.loads((file.metadata() or {}).get(_HEADER, "null"))
    return None if header is None else dict(header)


def is_foreign(path: Path) -> bool:
    """Returns whether it is a safetensors file of another program."""
    try:
        with safe_open(path, framework="pt") as file:
            return _header(file) is None
    except (SafetensorError, ValueError):
        return False  # `load_tensors` says what is wrong with it
