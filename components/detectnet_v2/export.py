"""`detectnet_v2 export`: ONNX with TAO's tensor names, labels, a description of the model, DeepStream's settings."""

import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from components.decode.decoder import Tensors
from components.decode.grid.decode import decode
from components.decode.grid.decoder import BBOX, COVERAGE, GridDecoder
from components.decode.instances import Floats
from components.detectnet_v2 import experiment, spec_pb2
from components.detectnet_v2.deepstream import Precision, TensorNames, nvinfer_config
from components.detectnet_v2.network import GridNet, GridNetConfig, grid_net
from components.step import StageError, UserError, publish, write_json
from components.vision.checkpoint import load_network
from components.vision.network import count_parameters
from components.vision.onnx_export import OPSET, OPSETS, export
from components.vision.predictor import LABELS_FILE, description_file
from components.vision.status import StatusLog

DEEPSTREAM_FILE = "nvinfer_config.txt"
# Edges of a detection that differ by no more are the same.
_SAME_PIXELS = 0.1


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The options of `detectnet_v2 export`.

    Attributes:
        opset: ONNX operator set.
        static_batch: A fixed batch size; at most 0 for a dynamic one.
        tensor_suffix: Whether tensor names end in `:0`, as in TAO 5's ONNX files.
        deepstream: Whether to write `nvinfer_config.txt`.
        precision: What DeepStream shall build its engine in.
        calibration_cache: TensorRT's, copied beside the model; DeepStream then builds its engine in INT8.
        results: Where `status.json` is written; beside the output when None.
    """

    opset: int = OPSET
    static_batch: int = 0
    tensor_suffix: bool = False
    deepstream: bool = False
    precision: Literal["fp32", "fp16"] = "fp32"
    calibration_cache: Path | None = None
    results: Path | None = None


def export_model(model: Path, output: Path, spec: spec_pb2.Experiment | None, options: ExportOptions) -> Path:
    """Writes a model as ONNX; returns the ONNX file.

    Beside it stand `labels.txt` and a description under the ONNX file's name (`model.json` for `model.onnx`).

    Args:
        model: A trained model.
        output: Where the ONNX file shall stand; the suffix is completed.
        spec: Experiment spec whose postprocessing settings go into the description; None keeps those of the model.
        options: The options.

    Raises:
        UserError: The output exists, as TAO demands, the model cannot be read, or an option cannot be honoured.
    """
    output = output if output.suffix == ".onnx" else output.with_name(output.name + ".onnx")
    if output.exists():
        raise UserError(f"{output}: exists already; name another output file")
    if options.opset not in OPSETS:
        raise UserError(f"--target_opset {options.opset}: only {OPSETS[0]} to {OPSETS[-1]} can be written")
    cache = options.calibration_cache
    if cache:
        _check_cache(cache)
    network = grid_net(load_network(model), model)
    if spec is not None:
        network.config = _with_clustering(network.config, spec, model)
    names = TensorNames.of_tao(options.tensor_suffix)
    settings = _deepstream_settings(network.config, names, output, options) if options.deepstream else None
    status = StatusLog(options.results or output.parent)
    status.write("STARTED", "Starting export")
    agreement = export_onnx(network, output, options.opset, max(options.static_batch, 0), names)
    description = {
        "class_names": list(network.config.class_names),
        "input": asdict(network.input),
        "decoder": network.decoder.settings(),
        "parameters": count_parameters(network),
        "tensors": asdict(names),
        "opset": options.opset,
    }
    write_json(description_file(output), description)
    _write(output.with_name(LABELS_FILE), "".join(f"{name}\n" for name in network.config.class_names))
    if settings is not None:
        _write(output.with_name(DEEPSTREAM_FILE), settings)
    if cache and cache.resolve() != output.with_name(cache.name).resolve():
        with publish(output.with_name(cache.name)) as scratch:
            shutil.copyfile(cache, scratch)
    print(
        f"Exported {output}: outputs differ from PyTorch's by at most {agreement.difference:.2g}, boxes by "
        f"{agreement.pixels:.2g} pixels; {agreement.detections} detections in drawn images, the same in both"
    )
    kpi = {"size": output.stat().st_size / 2**20, "param_count": count_parameters(network) / 1e6}
    status.write("SUCCESS", "Export finished successfully.", kpi=kpi)
    return output


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well an ONNX file agrees with PyTorch, over drawn images.

    Attributes:
        difference: The largest difference of an output, see `components.vision.onnx_export.export`.
        pixels: The largest difference of a box's edge, over the boxes of all cells.
        detections: Detections that were found, the same by both (but for at most one in twenty, and a single one:
            where rounding decides, either side may be right).
    """

    difference: float
    pixels: float
    detections: int


def export_onnx(
    network: GridNet, path: Path, opset: int = OPSET, static_batch: int = 0, names: TensorNames | None = None
) -> Agreement:
    """Writes a network as an ONNX file with TAO's names, bbox first as TAO has it; see `export`.

    Args:
        network: The network.
        path: Where the file shall stand.
        opset: ONNX operator set.
        static_batch: A fixed batch size, or 0 for a dynamic one.
        names: Of the tensors; TAO's without suffix when None.
    """
    names = names or TensorNames.of_tao()

    def agree(ours: Tensors, theirs: Tensors) -> tuple[float, int]:
        return _agreement(path, network.decoder, ours, theirs)

    outputs = {BBOX: names.bbox, COVERAGE: names.coverage}
    difference, (pixels, detections) = export(
        network, path, outputs, agree, source=names.input, opset=opset, static_batch=static_batch
    )
    return Agreement(difference, pixels, detections)


def _agreement(path: Path, decoder: GridDecoder, ours: Tensors, theirs: Tensors) -> tuple[float, int]:
    """Compares boxes and detections; returns what `Agreement` holds of them."""
    edges = [
        np.stack([decode(box, decoder.geometry) for image in each[BBOX] for box in np.split(image, len(image) // 4)])
        for each in (ours, theirs)
    ]
    single, detections = 0, 0
    for one, other in zip(decoder(ours), decoder(theirs), strict=True):
        for channel in range(len(decoder.class_names)):
            single += _without_counterpart(one.select(channel).rows(), other.select(channel).rows())
        detections += len(other)
    if single > max(1, detections // 20):
        raise StageError(f"{path}: of {detections} detections in drawn images {single} differ from PyTorch's")
    return float(np.abs(edges[0] - edges[1]).max()), detections


def _without_counterpart(first: Floats, second: Floats) -> int:
    """Returns how many detections ([K, 5] and [L, 5]) the other side has not found too.

    Where a cell lies within the tolerance of a threshold, or two boxes within that of a distance, either may fall on
    either side; so a few may be without a counterpart.
    """
    near = np.abs(first[:, None, :4] - second[None, :, :4]).max(axis=2, initial=0.0) <= _SAME_PIXELS
    near &= np.abs(first[:, 4:] - second[:, 4]) <= 1e-3 * np.maximum(1, second[:, 4])
    return int(np.sum(~near.any(axis=1)) + np.sum(~near.any(axis=0)))


def _deepstream_settings(config: GridNetConfig, names: TensorNames, output: Path, options: ExportOptions) -> str | None:
    """Returns the text of `nvinfer_config.txt`; None, and a warning, for a model that DeepStream cannot run rightly."""
    cache = options.calibration_cache
    precision: Precision = "int8" if cache else options.precision
    try:
        return nvinfer_config(config, names, output.name, precision, options.static_batch, cache)
    except UserError as error:
        print(f"warning: no {DEEPSTREAM_FILE} is written: {error}", file=sys.stderr, flush=True)
        return None


def _with_clustering(config: GridNetConfig, spec: spec_pb2.Experiment, model: Path) -> GridNetConfig:
    names = experiment.class_names(spec)
    if names != config.class_names:
        known = ", ".join(config.class_names)
        raise UserError(f"{model}: its classes are {known}, the spec's are {', '.join(names)}; use its own spec")
    clustering = experiment.clustering(spec)
    # Other clusters have other scores.
    point = config.operating_point if clustering == config.clustering else {}
    return replace(config, clustering=clustering, operating_point=point)


def _check_cache(cache: Path) -> None:
    """Raises UserError unless the file is one that TensorRT's calibration wrote."""
    where = "only TensorRT writes one; for INT8 without it: 'gridbox convert int8'"
    if not cache.is_file():
        raise UserError(f"--cal_cache_file {cache}: no such calibration cache, and {where}")
    with cache.open("rb") as stream:
        if not stream.read(4) == b"TRT-":
            raise UserError(f"--cal_cache_file {cache}: not a calibration cache of TensorRT ({where})")


def _write(file: Path, text: str) -> None:
    with publish(file) as scratch:
        scratch.write_text(text, encoding="utf-8")
