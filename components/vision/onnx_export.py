"""Export to ONNX with TAO's tensor names, checked against PyTorch before the file is trusted."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from components.decode.grid.clustering import detect
from components.decode.grid.decode import decode
from components.decode.grid.geometry import GridGeometry
from components.formats.images import Image
from components.step import StageError, UserError, publish
from components.vision.gridnet import GridNet
from components.vision.predictor import BBOX_OUTPUT, COVERAGE_OUTPUT, INPUT, TENSOR_SUFFIX, Grids

# TAO's own choice is 12; INT8 with a scale for each channel (`gridbox convert int8`) starts at 13.
OPSET = 13
# Measured: below, ONNX demands what the exporter does not write; above, ONNX Runtime 1.27 does not read it.
OPSETS = range(11, 27)
# What the exporter writes; older ones it only pretends to write.
_WRITTEN_OPSET = 18
# Operators that mean the same for floating-point numbers in all of `OPSETS`.
_TIMELESS = {"Add", "Conv", "MaxPool", "Pad", "Relu", "Sigmoid"}
# Of the largest output. A wrong graph is off by its whole size; a right one was seen at 1.1e-4 in a network that had
# trained for a few steps only, so that its activations were large.
TOLERANCE = 5e-4
# Edges of a detection that differ by no more are the same.
_SAME_PIXELS = 0.1
_PROBES = 4


@dataclass(frozen=True, slots=True)
class TensorNames:
    """What the input and the outputs of an ONNX file are called."""

    input: str
    bbox: str
    coverage: str

    @classmethod
    def of_tao(cls, suffix: bool = False) -> "TensorNames":
        """Returns TAO's names, with the `:0` of its ONNX files if `suffix`."""
        end = TENSOR_SUFFIX if suffix else ""
        return cls(INPUT + end, BBOX_OUTPUT + end, COVERAGE_OUTPUT + end)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well an ONNX file agrees with PyTorch, over drawn images.

    Attributes:
        difference: The largest difference of an output, as a share of the output's largest value (or of 1, where
            that is less).
        pixels: The largest difference of a box's edge, over the boxes of all cells.
        detections: Detections that were found, the same by both (but for at most one in twenty, and a single one:
            where rounding decides, either side may be right).
    """

    difference: float
    pixels: float
    detections: int


class _TaoOrder(torch.nn.Module):
    """TAO's graph gives the bbox output first."""

    def __init__(self, network: GridNet) -> None:
        super().__init__()
        self.network = network
        self.eval()  # the wrapper too, or the exporter warns

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        coverage, bbox = self.network(images)
        return bbox, coverage


def export_onnx(
    network: GridNet, path: Path, opset: int = OPSET, static_batch: int = 0, names: TensorNames | None = None
) -> Agreement:
    """Writes `network` as an ONNX file and compares it with PyTorch on drawn images.

    Args:
        network: The network; it is put into evaluation mode (batch norms are folded into the convolutions).
        path: Where the file shall stand.
        opset: ONNX operator set, one of `OPSETS`.
        static_batch: A fixed batch size, or 0 for a dynamic one.
        names: Of the tensors; TAO's without suffix when None.

    Raises:
        UserError: This operator set cannot be written.
        StageError: The file does not agree with PyTorch; none is left.
    """
    if opset not in OPSETS:
        raise UserError(f"ONNX operator set {opset} cannot be written; choose one from {OPSETS[0]} to {OPSETS[-1]}")
    network.eval().cpu()
    names = names or TensorNames.of_tao()
    with publish(path) as scratch:
        _write(network, scratch, static_batch, names)
        graph = onnx.load(scratch)
        _declare(graph, opset)
        onnx.checker.check_model(graph, full_check=True)
        onnx.save(graph, scratch)
        return _compare(network, scratch, static_batch, names)


def _write(network: GridNet, file: Path, static_batch: int, names: TensorNames) -> None:
    geometry = network.config.geometry
    shapes = None if static_batch else ({0: torch.export.Dim("batch", min=1)},)
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it misses torchvision, which is not needed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # raised inside torch.export on Python 3.11
            torch.onnx.export(
                _TaoOrder(network),
                (torch.zeros(static_batch or 2, 3, geometry.height, geometry.width),),
                file,
                input_names=[names.input],
                output_names=[names.bbox, names.coverage],
                opset_version=_WRITTEN_OPSET,
                dynamic_shapes=shapes,
                external_data=False,
                dynamo=True,
                verbose=False,
            )
    finally:
        log.setLevel(level)


def _declare(graph: onnx.ModelProto, opset: int) -> None:
    """Declares a model to be of an operator set. The converters of PyTorch and ONNX know no way below 14.

    None is needed while all operators mean the same; ONNX's checker holds every node against the set's schema, and
    the comparison with PyTorch holds its meaning.
    """
    strange = {node.op_type for node in graph.graph.node} - _TIMELESS
    if strange and opset != _WRITTEN_OPSET:
        raise UserError(
            f"this network needs {', '.join(sorted(strange))}, which can only be written in ONNX operator set "
            f"{_WRITTEN_OPSET}; choose that one"
        )
    graph.opset_import[0].version = opset
    graph.ir_version = onnx.helper.find_min_ir_version_for(graph.opset_import)
    # Where in which source file of this machine each node came from.
    for node in graph.graph.node:
        del node.metadata_props[:]


@torch.no_grad()
def _compare(network: GridNet, file: Path, static_batch: int, names: TensorNames) -> Agreement:
    """Compares outputs, boxes and detections.

    Raises:
        StageError: They differ.
    """
    import onnxruntime

    config = network.config
    probes = [probe_image(config.geometry, seed) for seed in range(static_batch or _PROBES)]
    pixels = np.stack(probes)[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    ours: Grids = tuple(session.run([names.coverage, names.bbox], {names.input: pixels}))
    theirs: Grids = tuple(grid.numpy() for grid in network(torch.from_numpy(pixels)))
    difference = max(
        float(np.abs(a - b).max() / max(1.0, float(np.abs(b).max()))) for a, b in zip(ours, theirs, strict=True)
    )
    if difference > TOLERANCE:
        raise StageError(f"{file}: its outputs differ from PyTorch's by {difference:.2g} (limit {TOLERANCE})")
    widest, lonely, detections = 0.0, 0, 0
    for image in range(len(probes)):
        for channel, name in enumerate(config.class_names):
            pair = [(grids[0][image, channel], grids[1][image, 4 * channel :][:4]) for grids in (ours, theirs)]
            edges = [decode(bbox, config.geometry) for _, bbox in pair]
            widest = max(widest, float(np.abs(edges[0] - edges[1]).max()))
            found = [detect(*grids, config.geometry, config.clustering[name]) for grids in pair]
            lonely += _without_counterpart(found[0], found[1])
            detections += len(found[1])
    if lonely > max(1, detections // 20):
        raise StageError(f"{file}: of {detections} detections in drawn images {lonely} differ from PyTorch's")
    return Agreement(difference, widest, detections)


def _without_counterpart(first: NDArray[np.float32], second: NDArray[np.float32]) -> int:
    """Returns how many detections ([K, 5] and [L, 5]) the other side has not found too.

    Where a cell lies within the tolerance of a threshold, or two boxes within that of a distance, either may fall on
    either side; so a few may be without a counterpart.
    """
    near = np.abs(first[:, None, :4] - second[None, :, :4]).max(axis=2, initial=0.0) <= _SAME_PIXELS
    near &= np.abs(first[:, 4:] - second[:, 4]) <= 1e-3 * np.maximum(1, second[:, 4])
    return int(np.sum(~near.any(axis=1)) + np.sum(~near.any(axis=0)))


def probe_image(geometry: GridGeometry, seed: int) -> Image:
    """Draws an image of the network's size with what noise lacks: light, shades, objects of all sizes, edges."""
    random = np.random.default_rng(seed)
    size = geometry.width, geometry.height
    coarse = random.integers(0, 256, (4, 6, 3), np.uint8)
    image = np.asarray(cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    for _ in range(12):
        center = tuple(int(random.integers(edge)) for edge in size)
        radius = int(random.uniform(0.05, 0.3) * geometry.height)
        colour, dark = random.integers(40, 256, 3).tolist(), random.integers(0, 90, 3).tolist()
        cv2.ellipse(image, center, (max(2, radius * 3 // 4), max(2, radius)), 0, 0, 360, colour, -1, cv2.LINE_AA)
        for side in (-1, 1):
            eye = center[0] + side * radius // 4, center[1] - radius // 4
            cv2.circle(image, eye, max(1, radius // 8), dark, -1, cv2.LINE_AA)
    noise = random.normal(0, 6, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)
