"""One interface over a checkpoint (PyTorch) and an exported model (ONNX Runtime)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from components.grid.clustering import Clustering, detect
from components.grid.geometry import GridGeometry
from components.step import MANIFEST, UserError, read_manifest
from components.vision.threads import available_cores

INPUT = "input_1"
COVERAGE_OUTPUT = "output_cov/Sigmoid"
BBOX_OUTPUT = "output_bbox/BiasAdd"
MODEL_FILE = "model.onnx"
# Input size, classes, clustering and tensor names; the settings of an exported model's manifest.
DESCRIPTION_FILE = "model.json"

Images = NDArray[np.uint8]
Grids = tuple[NDArray[np.float32], NDArray[np.float32]]


class Predictor(Protocol):
    """A trained grid-box network that can be run.

    Attributes:
        geometry: Input size and grid.
        class_names: Classes in the order of the coverage channels.
        clustering: By class name, how candidates become detections.
        parameters: Number of weights.
        file_bytes: Size of the model file.
    """

    geometry: GridGeometry
    class_names: tuple[str, ...]
    clustering: Mapping[str, Clustering]
    parameters: int
    file_bytes: int

    def __call__(self, images: Images) -> Grids:
        """Runs the network: images [N, H, W, 3] RGB uint8 to coverage [N, C, h, w] and bbox [N, 4C, h, w]."""
        ...


def detect_images(predictor: Predictor, images: Images) -> list[dict[str, NDArray[np.float32]]]:
    """Runs a predictor on images [N, H, W, 3] RGB uint8 and clusters its output.

    Returns:
        For each image, by class name, detections [K, 5]: x1, y1, x2, y2 in network-input pixels and score, best first.
    """
    coverage, bbox = predictor(images)
    return [
        {
            name: detect(
                coverage[index, channel],
                bbox[index, 4 * channel : 4 * channel + 4],
                predictor.geometry,
                predictor.clustering[name],
            )
            for channel, name in enumerate(predictor.class_names)
        }
        for index in range(len(images))
    ]


def load_predictor(path: Path) -> Predictor:
    """Loads a model for inference.

    Args:
        path: An exported-model artifact (folder), its `.onnx` file, a model artifact (folder) or a checkpoint file.

    Raises:
        UserError: There is no model, or it cannot be used.
    """
    if not path.exists():
        raise UserError(f"{path}: no such model")
    if path.suffix == ".onnx" or (path / MODEL_FILE).is_file():
        return OnnxPredictor(path.parent if path.suffix == ".onnx" else path)
    # PyTorch is not needed (and may not be installed) where only exported models are run.
    from components.vision.torch_predictor import TorchPredictor

    return TorchPredictor(path)


class OnnxPredictor:
    """An exported model in ONNX Runtime. Tensor names come from the manifest, with or without a trailing `:0`."""

    def __init__(self, exported: Path) -> None:
        import onnxruntime

        settings = _description(exported)
        self.geometry = GridGeometry(**settings["geometry"])
        self.class_names: tuple[str, ...] = tuple(settings["class_names"])
        self.clustering: Mapping[str, Clustering] = {
            name: Clustering(**values) for name, values in settings["clustering"].items()
        }
        self.parameters = int(settings["parameters"])
        file = exported / MODEL_FILE
        self.file_bytes = file.stat().st_size
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = available_cores()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise UserError(f"{file}: ONNX Runtime cannot load this model: {str(error).splitlines()[0]}") from error
        names = [tensor.name for tensor in (*self._session.get_inputs(), *self._session.get_outputs())]
        self._input, self._coverage, self._bbox = (
            _find_tensor(names, stem, file) for stem in (INPUT, COVERAGE_OUTPUT, BBOX_OUTPUT)
        )

    def __call__(self, images: Images) -> Grids:
        """See `Predictor`."""
        pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
        coverage, bbox = self._session.run([self._coverage, self._bbox], {self._input: pixels})
        return coverage, bbox


def _description(exported: Path) -> dict[str, Any]:
    """Returns what `detectnet_v2 export` says of a model: in the artifact's manifest, or beside a bare ONNX file."""
    file = exported / DESCRIPTION_FILE
    if (exported / MANIFEST).is_file() or not file.is_file():
        return dict(read_manifest(exported, "exported_model")["settings"])
    return dict(json.loads(file.read_text(encoding="utf-8")))


def _find_tensor(names: list[str], stem: str, file: Path) -> str:
    for name in names:
        if name.removesuffix(":0") == stem:
            return name
    raise UserError(f"{file}: no tensor {stem!r}; it has {', '.join(names)}")
