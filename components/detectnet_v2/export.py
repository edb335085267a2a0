"""`detectnet_v2 export`: ONNX with TAO's tensor names, labels and a description of the model."""

from dataclasses import replace
from pathlib import Path

from components.detectnet_v2 import experiment, spec_pb2
from components.step import UserError, publish, write_json
from components.vision.checkpoint import load_network
from components.vision.gridnet import count_parameters
from components.vision.onnx_export import export_onnx
from components.vision.predictor import BBOX_OUTPUT, COVERAGE_OUTPUT, DESCRIPTION_FILE, INPUT
from components.vision.status import StatusLog

LABELS = "labels.txt"


def export_model(
    model: Path,
    output: Path,
    spec: spec_pb2.Experiment | None,
    opset: int,
    static_batch: int,
    results: Path | None,
) -> Path:
    """Writes a model as ONNX, `labels.txt` and `model.json` beside it; returns the ONNX file.

    Args:
        model: A trained model.
        output: Where the ONNX file shall stand; the suffix is completed.
        spec: Experiment spec whose postprocessing settings go into the description; None keeps those of the model.
        opset: ONNX operator set.
        static_batch: A fixed batch size, or at most 0 for a dynamic one.
        results: Where `status.json` is written; beside the output when None.

    Raises:
        UserError: The output exists, as TAO demands, or the model cannot be read.
    """
    output = output if output.suffix == ".onnx" else output.with_name(output.name + ".onnx")
    if output.exists():
        raise UserError(f"{output}: exists already; name another output file")
    status = StatusLog(results or output.parent)
    status.write("STARTED", "Starting export")
    network = load_network(model)
    if spec is not None:
        network.config = replace(network.config, clustering=experiment.clustering(spec))
    difference = export_onnx(network, output, opset, max(static_batch, 0))
    description = {
        **{key: value for key, value in network.config.to_json().items() if key != "backbone"},
        "parameters": count_parameters(network),
        "tensors": {"input": INPUT, "coverage": COVERAGE_OUTPUT, "bbox": BBOX_OUTPUT},
    }
    write_json(output.with_name(DESCRIPTION_FILE), description)
    with publish(output.with_name(LABELS)) as scratch:
        scratch.write_text("".join(f"{name}\n" for name in network.config.class_names), encoding="utf-8")
    print(f"Exported {output} (largest difference to PyTorch: {difference:.2g})")
    kpi = {"size": output.stat().st_size / 2**20, "param_count": count_parameters(network) / 1e6}
    status.write("SUCCESS", "Export finished successfully", kpi=kpi)
    return output
