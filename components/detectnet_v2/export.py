"""`detectnet_v2 export`: ONNX with TAO's tensor names, labels, a description of the model, DeepStream's settings."""

import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from components.detectnet_v2 import experiment, spec_pb2
from components.detectnet_v2.deepstream import Precision, nvinfer_config
from components.step import UserError, publish, write_json
from components.vision.checkpoint import load_network
from components.vision.gridnet import GridNetConfig, count_parameters
from components.vision.onnx_export import OPSET, OPSETS, TensorNames, export_onnx
from components.vision.predictor import LABELS_FILE, description_file
from components.vision.status import StatusLog

DEEPSTREAM_FILE = "nvinfer_config.txt"


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
    network = load_network(model)
    if spec is not None:
        network.config = _with_clustering(network.config, spec, model)
    names = TensorNames.of_tao(options.tensor_suffix)
    settings = _deepstream_settings(network.config, names, output, options) if options.deepstream else None
    status = StatusLog(options.results or output.parent)
    status.write("STARTED", "Starting export")
    agreement = export_onnx(network, output, options.opset, max(options.static_batch, 0), names)
    description = {
        **{key: value for key, value in network.config.to_json().items() if key != "backbone"},
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
    return replace(config, clustering=experiment.clustering(spec))


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
