"""The weights of a pretrained model file: ours, TAO's `.hdf5` or `.h5`, or a torchvision ResNet's."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from components.step import weights_file
from components.vision.checkpoint import (
    KERAS_SUFFIXES,
    TORCHVISION_SUFFIXES,
    described,
    is_foreign,
    load_tensors,
    refuse_encrypted,
    require_file,
)
from components.vision.keras_weights import KerasFile, read_keras
from components.vision.torchvision_weights import read_torchvision


@dataclass(frozen=True, slots=True)
class Weights:
    """What a pretrained model file holds.

    Attributes:
        path: The file.
        tensors: By the names of a network's state; a backbone's begin with `backbone.`.
        unknown: Layers of the file that are neither of a ResNet nor one of the heads asked for.
        identities: Layers that the file does not hold but whose place the identity takes there.
        config: How our file describes its network; None for files of others.
        keras: The Keras file, if it is one, with its graph.
    """

    path: Path
    tensors: dict[str, Tensor]
    unknown: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = None
    keras: KerasFile | None = None


def read_weights(path: Path, heads: Collection[str]) -> Weights:
    """Reads a pretrained model file.

    Args:
        path: The file, or a model artifact.
        heads: Layers that are wanted beside those of a ResNet.

    Raises:
        UserError: The file is missing, broken, encrypted by TAO, or holds something else.
    """
    path = weights_file(path)
    refuse_encrypted(path)
    require_file(path)
    if path.suffix in KERAS_SUFFIXES:
        keras = read_keras(path, heads)
        return Weights(path, keras.tensors, keras.unknown, keras=keras)
    if path.suffix in TORCHVISION_SUFFIXES or is_foreign(path):
        torchvision = read_torchvision(path)
        return Weights(path, torchvision.tensors, torchvision.unknown, torchvision.identities)
    tensors, header = load_tensors(path)
    _, config = described(path, header)
    return Weights(path, tensors, config=config)
