"""A checkpoint run by PyTorch."""

from pathlib import Path

import numpy as np
import torch

from components.decode.decoder import Tensors
from components.step import weights_file
from components.vision.checkpoint import load_network
from components.vision.inputs import Images
from components.vision.network import Network, count_parameters
from components.vision.threads import available_cores


class TorchPredictor:
    """See `components.vision.predictor.Predictor`."""

    def __init__(self, path: Path) -> None:
        torch.set_num_threads(available_cores())
        file = weights_file(path)
        self._attach(load_network(file), file.stat().st_size)

    @classmethod
    def of(cls, network: Network) -> "TorchPredictor":
        """Wraps a network in memory, for example the one being trained; it is switched to evaluation mode per call."""
        predictor = cls.__new__(cls)
        predictor._attach(network, 0)
        return predictor

    def _attach(self, network: Network, file_bytes: int) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = network.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.input, self.decoder = network.input, network.decoder
        self.parameters = count_parameters(network)
        self.file_bytes = file_bytes

    @torch.no_grad()
    def __call__(self, images: Images) -> Tensors:
        """See `Predictor`."""
        was_training = self.network.training
        self.network.eval()
        pixels = torch.from_numpy(np.array(images)).to(self._device)
        outputs = self.network(self.input.prepare_tensor(pixels))
        self.network.train(was_training)
        return {name: output.cpu().numpy() for name, output in zip(self.network.outputs, outputs, strict=True)}
