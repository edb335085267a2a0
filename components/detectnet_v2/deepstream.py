"""The settings with which NVIDIA DeepStream's `nvinfer` runs an exported model.

DeepStream's own parser reads DetectNet_v2's outputs: it finds them by `bbox` and `cov` in their names, and decodes
with a scale of 35 and an offset of 0.5. Keys: DeepStream's documentation of Gst-nvinfer.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from components.decode.grid.clustering import Clustering
from components.decode.grid.decoder import BBOX, COVERAGE, INPUT
from components.decode.grid.geometry import GridGeometry
from components.detectnet_v2.network import GridNetConfig
from components.step import UserError
from components.vision.predictor import LABELS_FILE, TENSOR_SUFFIX

Precision = Literal["fp32", "fp16", "int8"]
_NETWORK_MODES = {"fp32": 0, "int8": 1, "fp16": 2}
_CLUSTER_MODES = {"dbscan": 1, "nms": 2, "hybrid": 3}
# 1/255 in the digits that all of NVIDIA's own configurations have.
_NET_SCALE_FACTOR = "0.0039215697906911373"


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
        return cls(INPUT + end, BBOX + end, COVERAGE + end)


def nvinfer_config(
    config: GridNetConfig,
    names: TensorNames,
    onnx_file: str,
    precision: Precision,
    static_batch: int,
    calibration_cache: Path | None,
) -> str:
    """Returns the text of `nvinfer_config.txt`, for a primary detector; files are looked for beside it.

    Args:
        config: The network.
        names: What its tensors are called.
        onnx_file: The model's file name.
        precision: Of the engine that DeepStream builds.
        static_batch: The model's batch size, or at most 0.
        calibration_cache: For `int8`.

    Raises:
        UserError: DeepStream would read this model's outputs wrongly, or cannot cluster as it is set.
    """
    geometry = config.geometry
    # The stride it takes from the tensors' sizes.
    usual = GridGeometry(geometry.width, geometry.height, geometry.stride)
    if geometry != usual:
        raise UserError(
            f"DeepStream decodes boxes with scale {usual.scale:g} and offset {usual.offset:g}, this model has "
            f"{geometry.scale:g} and {geometry.offset:g}; train with those of DeepStream"
        )
    if config.fit == "crop":
        raise UserError("DeepStream cannot cut images to the network's input; train with fit: LETTERBOX or STRETCH")
    algorithms = {config.clustering[name].algorithm for name in config.class_names}
    if len(algorithms) > 1:
        words = " and ".join(sorted(algorithms))
        raise UserError(f"DeepStream clusters all classes alike, here are {words}; choose one of them")
    lines = [
        "[property]",
        f"onnx-file={onnx_file}",
        f"labelfile-path={LABELS_FILE}",
        f"infer-dims=3;{geometry.height};{geometry.width}",
        f"batch-size={max(static_batch, 1)}",
        f"net-scale-factor={_NET_SCALE_FACTOR}",
        "# RGB",
        "model-color-format=0",
        f"# Images are fitted into the network's input as in training: {config.fit}",
        f"maintain-aspect-ratio={int(config.fit == 'letterbox')}",
        f"symmetric-padding={int(config.fit == 'letterbox')}",
        "# A detector",
        "network-type=0",
        f"num-detected-classes={len(config.class_names)}",
        f"output-blob-names={names.bbox};{names.coverage}",
        "# 0: FP32, 1: INT8, 2: FP16",
        f"network-mode={_NETWORK_MODES[precision]}",
    ]
    if calibration_cache:
        lines.append(f"int8-calib-file={calibration_cache.name}")
    lines += ["# 1: DBSCAN, 2: NMS, 3: both", f"cluster-mode={_CLUSTER_MODES[algorithms.pop()]}"]
    for channel, name in enumerate(config.class_names):
        shown_from = config.operating_point.get(name, 0.0)
        attributes = _class_attributes(config.clustering[name], shown_from)
        lines += ["", f"# {name}", f"[class-attrs-{channel}]", *attributes]
    return "\n".join(lines) + "\n"


def _class_attributes(clustering: Clustering, shown_from: float) -> list[str]:
    """Returns one class's thresholds; what scores less than `shown_from`, the operating point, is not shown.

    DeepStream counts boxes where TAO sums up coverage (`minBoxes`), so its clusters are not quite TAO's. For NMS one
    threshold before it does what TAO does with one before and one after: a box never suppresses a better one.
    """
    nms, dbscan = clustering.algorithm == "nms", clustering.algorithm == "dbscan"
    least = max(clustering.coverage_threshold, max(clustering.nms_confidence_threshold, shown_from) if nms else 0.0)
    lines = [f"pre-cluster-threshold={least:g}"]
    if not nms:
        lines += [
            f"eps={clustering.dbscan_eps:g}",
            f"minBoxes={max(1, math.ceil(clustering.dbscan_min_samples))}",
            f"dbscan-min-score={max(clustering.dbscan_confidence_threshold, shown_from if dbscan else 0.0):g}",
        ]
    if clustering.algorithm != "dbscan":
        lines.append(f"nms-iou-threshold={clustering.nms_iou_threshold:g}")
    if clustering.algorithm == "hybrid":
        lines.append(f"post-cluster-threshold={max(clustering.nms_confidence_threshold, shown_from):g}")
    height = f"# TAO drops boxes up to {clustering.minimum_height} pixels high in the network's input; in your frames':"
    return [*lines, height, "# detected-min-h="]
