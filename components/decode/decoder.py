"""From tensors to instances: what every kind of network does in its own way."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, cast

from components.decode.instances import Floats, Instances

Tensors = Mapping[str, Floats]


class Decoder(Protocol):
    """Turns a network's outputs into instances.

    Attributes:
        class_names: What it can find.
        tensors: Names of the outputs that it reads.
        assumed: What its description left open and was assumed, in words.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def tensors(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def assumed(self) -> tuple[str, ...]: ...  # noqa: D102

    def __call__(self, tensors: Tensors) -> list[Instances]:
        """Returns what each of N images shows, in pixels of the network's input.

        Args:
            tensors: By name, outputs [N, ...].
        """
        ...

    def count_classes(self, shapes: Mapping[str, Sequence[int | str]]) -> int | None:
        """Returns for how many classes a graph with outputs of these shapes is; None where they leave it open."""
        ...

    def settings(self) -> dict[str, Any]:
        """Returns the `decoder` of a description: its `kind`, and what `load_decoder` needs besides.

        Where it is known, the `operating_point` is there, too: by class the score at which F1 is best, from which on
        detections are shown. Decoders leave nothing out by it.
        """
        ...


class _Kind(Protocol):
    """The module of a kind."""

    def load(self, description: Mapping[str, Any]) -> Decoder: ...


def load_decoder(description: Mapping[str, Any]) -> Decoder:
    """Makes the decoder that a description names; see `components.decode.description`.

    The function `load` of the module `components.decode.<kind>` makes it, or, where one family alone has such networks,
    that of `components.<family>.decoder`, the family being the kind.

    Raises:
        ValueError: There is no such kind, or the description does not suffice for it.
    """
    kind = description["decoder"]["kind"]
    try:
        return _module(str(kind)).load(description)
    except (KeyError, TypeError) as error:
        raise ValueError(f"its decoder of the kind {kind!r} is not described as it should be: {error}") from error


def _module(kind: str) -> _Kind:
    # A word from a file must not reach beyond these two places.
    if kind.isidentifier():
        if find_spec(f"components.decode.{kind}"):
            return cast("_Kind", import_module(f"components.decode.{kind}"))
        if find_spec(f"components.{kind}") and find_spec(f"components.{kind}.decoder"):
            return cast("_Kind", import_module(f"components.{kind}.decoder"))
    raise ValueError(f"its decoder is of the kind {kind!r}, which this release does not know")
