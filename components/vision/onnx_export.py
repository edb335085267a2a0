"""Export to ONNX with TAO's tensor names, checked against PyTorch before the file is trusted."""

import warnings
from pathlib import Path

import numpy as np
import torch

from components.step import publish
from components.vision.gridnet import GridNet
from components.vision.predictor import BBOX_OUTPUT, COVERAGE_OUTPUT, INPUT

OPSET = 18
TOLERANCE = 1e-4


class _TaoOrder(torch.nn.Module):
    """TAO's graph gives the bbox output first."""

    def __init__(self, network: GridNet) -> None:
        super().__init__()
        self.network = network
        self.eval()  # the wrapper too, or the exporter warns

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        coverage, bbox = self.network(images)
        return bbox, coverage


def export_onnx(network: GridNet, path: Path, opset: int = OPSET, static_batch: int = 0) -> float:
    """Writes `network` as an ONNX file and compares it with PyTorch on random images.

    Args:
        network: The network; it is put into evaluation mode (batch norms are folded into the convolutions).
        path: Where the file shall stand.
        opset: ONNX operator set.
        static_batch: A fixed batch size, or 0 for a dynamic one.

    Returns:
        The largest difference between ONNX Runtime's and PyTorch's outputs on noise, as a share of the output's
        largest value (or of 1, where that is less).

    Raises:
        RuntimeError: The difference exceeds `TOLERANCE`; no file is left.
    """
    network.eval()
    geometry = network.config.geometry
    example = torch.rand(
        static_batch or 2, 3, geometry.height, geometry.width, generator=torch.Generator().manual_seed(0)
    )
    shapes = None if static_batch else ({0: torch.export.Dim("batch", min=1)},)
    with publish(path) as scratch:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # raised inside torch.export on Python 3.11
            torch.onnx.export(
                _TaoOrder(network),
                (example,),
                scratch,
                input_names=[INPUT],
                output_names=[BBOX_OUTPUT, COVERAGE_OUTPUT],
                opset_version=opset,
                dynamic_shapes=shapes,
                external_data=False,
                dynamo=True,
                verbose=False,
            )
        difference = _difference(network, scratch, example)
        if difference > TOLERANCE:
            raise RuntimeError(
                f"{path}: the ONNX outputs differ from PyTorch's by {difference:.2g} (limit {TOLERANCE})"
            )
    return difference


@torch.no_grad()
def _difference(network: GridNet, file: Path, images: torch.Tensor) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    outputs = session.run([COVERAGE_OUTPUT, BBOX_OUTPUT], {INPUT: images.numpy()})
    return max(
        float(np.abs(output - expected.numpy()).max() / max(1.0, float(expected.abs().max())))
        for output, expected in zip(outputs, network(images), strict=True)
    )
