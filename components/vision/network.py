"""The interface of every network."""

from abc import abstractmethod

from torch import Tensor, nn

from components.decode.decoder import Decoder
from components.vision.inputs import InputSpec


class Network(nn.Module):
    """A network that says what it takes and what it gives.

    Attributes:
        outputs: The names of its outputs.
    """

    outputs: tuple[str, ...]

    @property
    @abstractmethod
    def input(self) -> InputSpec:
        """What it takes."""

    @property
    @abstractmethod
    def decoder(self) -> Decoder:
        """What its outputs mean."""

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Runs it on images as `input` prepares them; returns as many outputs as it has names for."""


def count_parameters(network: nn.Module) -> int:
    """Returns the number of weights as Keras counts them: moving batch statistics included."""
    return sum(
        value.numel() for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")
    )
