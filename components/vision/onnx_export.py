"""Export to ONNX, checked against PyTorch before the file is trusted."""

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import onnx
import torch

from components.decode.decoder import Tensors
from components.step import StageError, UserError, publish
from components.vision.inputs import Image, InputSpec
from components.vision.network import Network

# TAO's own choice is 12; INT8 with a scale for each channel (`gridbox convert int8`) starts at 13.
OPSET = 13
# Measured: below, ONNX demands what the exporter does not write; above, ONNX Runtime 1.27 does not read it.
OPSETS = range(11, 27)
# What the exporter writes; older ones it only pretends to write.
_WRITTEN_OPSET = 18
# Operators that mean the same for floating-point numbers, as they are written here, in all sets from one on.
_TIMELESS = {"Add": 11, "Conv": 11, "MaxPool": 11, "Pad": 11, "Relu": 11, "Sigmoid": 11, "Resize": 13}
# Attributes that these operators got later, with what they did before.
_LATER_ATTRIBUTES = {"Resize": {"keep_aspect_ratio_policy": b"stretch", "antialias": 0}}
# Of the largest output. A wrong graph is off by its whole size; a right one was seen at 1.1e-4 in a network that had
# trained for a few steps only, so that its activations were large.
TOLERANCE = 5e-4
_PROBES = 4

Found = TypeVar("Found")


class _Ordered(torch.nn.Module):
    """A network that gives its outputs in another order."""

    def __init__(self, network: torch.nn.Module, order: Sequence[int]) -> None:
        super().__init__()
        self.network, self.order = network, order
        self.eval()  # the wrapper too, or the exporter warns

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.network(images)
        return tuple(outputs[index] for index in self.order)


def export(
    network: Network,
    path: Path,
    names: Mapping[str, str],
    agree: Callable[[Tensors, Tensors], Found],
    *,
    source: str,
    opset: int = OPSET,
    static_batch: int = 0,
) -> tuple[float, Found]:
    """Writes a network as an ONNX file and compares it with PyTorch on drawn images.

    Args:
        network: The network; it is put into evaluation mode (batch norms are folded into the convolutions).
        path: Where the file shall stand.
        names: By the network's names, what the file shall call its outputs, in the order that they shall have there.
        agree: Looks at what the outputs mean, of the file and of PyTorch, and raises StageError where they differ.
        source: What the file shall call its input.
        opset: ONNX operator set, one of `OPSETS`.
        static_batch: A fixed batch size, or 0 for a dynamic one.

    Returns:
        The largest difference of an output, as a share of the output's largest value (or of 1, where that is less), and
        what `agree` returns.

    Raises:
        UserError: This operator set cannot be written.
        StageError: The file does not agree with PyTorch; none is left.
    """
    if opset not in OPSETS:
        raise UserError(f"ONNX operator set {opset} cannot be written; choose one from {OPSETS[0]} to {OPSETS[-1]}")
    network.eval().cpu()
    with publish(path) as scratch:
        _write(network, scratch, static_batch, source, names)
        graph = onnx.load(scratch)
        _declare(graph, opset)
        onnx.checker.check_model(graph, full_check=True)
        onnx.save(graph, scratch)
        ours, theirs = _outputs(network, scratch, static_batch, source, names)
        difference = max(
            float(np.abs(ours[name] - theirs[name]).max() / max(1.0, float(np.abs(theirs[name]).max())))
            for name in names
        )
        if difference > TOLERANCE:
            raise StageError(f"{path}: its outputs differ from PyTorch's by {difference:.2g} (limit {TOLERANCE})")
        return difference, agree(ours, theirs)


def _write(network: Network, file: Path, static_batch: int, source: str, names: Mapping[str, str]) -> None:
    shapes = None if static_batch else ({0: torch.export.Dim("batch", min=1)},)
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it misses torchvision, which is not needed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # raised inside torch.export on Python 3.11
            torch.onnx.export(
                _Ordered(network, [network.outputs.index(name) for name in names]),
                (torch.zeros(static_batch or 2, *network.input.shape),),
                file,
                input_names=[source],
                output_names=list(names.values()),
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
    firsts = {node.op_type: _TIMELESS.get(node.op_type, _WRITTEN_OPSET) for node in graph.graph.node}
    strange = sorted(name for name, first in firsts.items() if opset < first or (opset > first == _WRITTEN_OPSET))
    if strange:
        raise UserError(
            f"this network needs {', '.join(strange)}, which cannot be written in ONNX operator set {opset}; choose "
            f"{max(firsts[name] for name in strange)}"
        )
    graph.opset_import[0].version = opset
    graph.ir_version = onnx.helper.find_min_ir_version_for(graph.opset_import)
    # Where in which source file of this machine each node came from.
    for node in graph.graph.node:
        del node.metadata_props[:]
        later = _LATER_ATTRIBUTES.get(node.op_type, {})
        for attribute in [each for each in node.attribute if each.name in later and opset < _WRITTEN_OPSET]:
            if onnx.helper.get_attribute_value(attribute) == later[attribute.name]:
                node.attribute.remove(attribute)


@torch.no_grad()
def _outputs(
    network: Network, file: Path, static_batch: int, source: str, names: Mapping[str, str]
) -> tuple[Tensors, Tensors]:
    """Returns the outputs of the file and of PyTorch for drawn images, by the network's names."""
    import onnxruntime

    probes = [probe_image(network.input, seed) for seed in range(static_batch or _PROBES)]
    pixels = network.input.prepare([network.input.place(probe)[0] for probe in probes])
    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    ours = dict(zip(names, session.run(list(names.values()), {source: pixels}), strict=True))
    theirs = [output.numpy() for output in network(torch.from_numpy(pixels))]
    return ours, dict(zip(network.outputs, theirs, strict=True))


def probe_image(spec: InputSpec, seed: int) -> Image:
    """Draws an image of the network's size, BGR, with what noise lacks: light, shades, objects of all sizes, edges."""
    random = np.random.default_rng(seed)
    size = spec.width, spec.height
    coarse = random.integers(0, 256, (4, 6, 3), np.uint8)
    image = np.asarray(cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    for _ in range(12):
        center = tuple(int(random.integers(edge)) for edge in size)
        radius = int(random.uniform(0.05, 0.3) * spec.height)
        colour, dark = random.integers(40, 256, 3).tolist(), random.integers(0, 90, 3).tolist()
        cv2.ellipse(image, center, (max(2, radius * 3 // 4), max(2, radius)), 0, 0, 360, colour, -1, cv2.LINE_AA)
        for side in (-1, 1):
            eye = center[0] + side * radius // 4, center[1] - radius // 4
            cv2.circle(image, eye, max(1, radius // 8), dark, -1, cv2.LINE_AA)
    noise = random.normal(0, 6, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)
