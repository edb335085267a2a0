"""Static INT8 quantisation of an ONNX model (QDQ format) by ONNX Runtime.

What is fixed here was measured on trained ResNet-10 detectors (312,597 parameters, 320x192, 200 calibration and 160
validation images; root mean square errors against floating point over the cells of objects):

- Percentile calibration: coverage 0.009, boxes 0.58 pixels; minimum and maximum: 0.010 and 0.65. Entropy calibration
  reached 0.009 and 0.53, but only in batches of ten: fed image by image (0.17 and 7 pixels, 9 points of average
  precision lost) or all at once it fails, because its histograms grow with what they are fed.
- The two 1x1 heads stay in floating point: quantised they add a tenth to these errors and save nothing.
- From 64 images on, more calibration images change nothing.
"""

import contextlib
import io
import tempfile
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from components.step import UserError
from components.vision.inputs import Image, InputSpec

QUANTIZED_OPERATORS = ("Conv", "Add", "Relu")
_WEIGHTED = ("Conv", "Gemm", "MatMul")
# The first one whose operators take a scale for each channel.
SMALLEST_OPSET = 13
# Of an activation's values, those beyond are clipped.
PERCENTILE = 99.999


class Runtime(StrEnum):
    """The runtime that the activations' numbers are laid out for.

    `onnxruntime`: unsigned with a zero point. On x86 all quantised convolutions run as integers: 1.8 times as fast as
    floating point where AVX-512 VNNI is there. TensorRT does not take such a model.
    `tensorrt`: signed and symmetric, the only ones that TensorRT takes. ONNX Runtime runs these as well, but on x86
    most of the convolutions in floating point, and no faster.
    """

    onnxruntime = "onnxruntime"
    tensorrt = "tensorrt"


class CalibrationImages(CalibrationDataReader):  # type: ignore[misc]
    """Feeds images one by one, so that the activations of only one are in memory at any time."""

    def __init__(self, input_name: str, images: Sequence[Image], spec: InputSpec) -> None:
        """Takes images as `InputSpec.place` gives them."""
        self._input_name, self._images, self._spec = input_name, images, spec
        self._next, self._end = 0, len(images)

    def __len__(self) -> int:
        return len(self._images)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Restricts what comes next to these images; called by ONNX Runtime between merging histograms."""
        self._next, self._end = start_index, end_index

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Returns the next image as the network takes it, or None."""
        if self._next >= self._end:
            return None
        image = self._images[self._next]
        self._next += 1
        return {self._input_name: self._spec.prepare([image])}


def quantize(model: Path, target: Path, images: Sequence[Image], spec: InputSpec, runtime: Runtime) -> list[str]:
    """Writes an INT8 version of an ONNX model; names of inputs and outputs stay as they are.

    Args:
        model: The floating-point model, one input.
        target: Where the quantised model shall stand.
        images: Calibration images as `InputSpec.place` gives them; at least one.
        spec: What the model takes.
        runtime: What the activations are laid out for.

    Returns:
        The names of the layers that stay in floating point: the last ones before the outputs.

    Raises:
        UserError: The model's operator set is too old.
    """
    opset = next(entry.version for entry in onnx.load(model).opset_import if not entry.domain)
    if opset < SMALLEST_OPSET:
        raise UserError(
            f"{model}: operator set {opset} has no scales by channel; export again with --target_opset {SMALLEST_OPSET}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        # Folds batch norms into convolutions, so that they are quantised as one.
        quant_pre_process(model, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared)
        heads = _heads(graph.graph)
        onnx.save(graph, prepared)
        symmetric = runtime is Runtime.tensorrt
        # ONNX Runtime prints its progress.
        with contextlib.redirect_stdout(io.StringIO()):
            quantize_static(
                prepared,
                target,
                CalibrationImages(graph.graph.input[0].name, images, spec),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTIZED_OPERATORS),
                per_channel=True,
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=heads,
                calibrate_method=CalibrationMethod.Percentile,
                extra_options={
                    "ActivationSymmetric": symmetric,
                    "WeightSymmetric": True,
                    "CalibPercentile": PERCENTILE,
                    # Works for all methods, whatever its name says: one image's activations in memory at a time.
                    "CalibStridedMinMax": 1,
                },
            )
    return heads


def _heads(graph: onnx.GraphProto) -> list[str]:
    """Returns the names of the last layers with weights before the outputs; nameless nodes are given a name."""
    producers = {}
    for index, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
        producers.update(dict.fromkeys(node.output, node))
    heads: dict[str, None] = {}
    waiting = [output.name for output in graph.output]
    while waiting:
        name = waiting.pop(0)
        if name in producers:
            node = producers[name]
            if node.op_type in _WEIGHTED:
                heads[node.name] = None
            else:
                waiting.extend(node.input)
    return list(heads)
