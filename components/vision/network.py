"""The interface of every network."""

import re
from abc import abstractmethod
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from components.decode.decoder import Decoder
from components.step import UserError
from components.vision.inputs import InputSpec

_KINDS: dict[str, type["Network"]] = {}


class Network(nn.Module):
    """A network that says what it takes, what it gives, and how it is built again.

    A family's class names its kind, `class GridNet(Network, kind="detectnet_v2")`, and stands in the family's module
    `network`, which is imported when a checkpoint of that kind is loaded.

    Attributes:
        kind: The family that it belongs to.
        outputs: The names of its outputs.
    """

    kind: ClassVar[str]
    outputs: tuple[str, ...]

    def __init_subclass__(cls, kind: str = "") -> None:
        super().__init_subclass__()
        cls.kind = kind
        if kind:  # without one it is never stored
            _KINDS[kind] = cls

    @property
    @abstractmethod
    def input(self) -> InputSpec:
        """What it takes."""

    @property
    @abstractmethod
    def decoder(self) -> Decoder:
        """What its outputs mean."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Returns what it is built from, as plain values."""

    @classmethod
    @abstractmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Builds a network, untrained, from the values of `to_json`."""

    def with_channels(self, counts: Mapping[str, int]) -> Self:
        """Returns an untrained network like it whose convolutions, by path, have so many output channels."""
        raise NotImplementedError(f"networks of the kind {self.kind} are not pruned")

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Runs it on images as `input` prepares them; returns as many outputs as it has names for."""


def network_class(kind: str) -> type[Network]:
    """Returns the class of a kind's networks.

    Raises:
        UserError: There is no such kind.
    """
    if kind not in _KINDS:
        family_module(kind, "network")
    return _KINDS[kind]


def family_module(kind: str, name: str) -> ModuleType:
    """Imports a module of a kind's family, whose name files hold and no code here.

    Raises:
        UserError: There is no such family, or it has no such module.
    """
    module = f"components.{kind}.{name}"
    # A word from a file must not reach beyond the families.
    if not re.fullmatch(r"[a-z][a-z0-9_]*", kind) or not find_spec(f"components.{kind}") or not find_spec(module):
        raise UserError(f"this release knows no {name} of the kind {kind!r}; was the model made by a later one?")
    return import_module(module)


def count_parameters(network: nn.Module) -> int:
    """Returns the number of weights as Keras counts them: moving batch statistics included."""
    return sum(
        value.numel() for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")
    )
