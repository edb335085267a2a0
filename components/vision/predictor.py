"""One interface over a checkpoint (PyTorch) and an exported model (ONNX Runtime)."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from components.decode.grid.clustering import Clustering, detect
from components.decode.grid.geometry import GridGeometry
from components.formats.reading import entry, read_json, read_text
from components.step import MANIFEST, UserError, read_manifest
from components.vision.threads import available_cores

INPUT = "input_1"
COVERAGE_OUTPUT = "output_cov/Sigmoid"
BBOX_OUTPUT = "output_bbox/BiasAdd"
# What TensorFlow, and so TAO 5's ONNX files, add to the name of a tensor.
TENSOR_SUFFIX = ":0"
MODEL_FILE = "model.onnx"
LABELS_FILE = "labels.txt"

Images = NDArray[np.uint8]
Grids = tuple[NDArray[np.float32], NDArray[np.float32]]
# See `components.decode.grid.clustering.detect`.
Detector = Callable[[NDArray[np.float32], NDArray[np.float32], GridGeometry, Clustering], NDArray[np.float32]]


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


def detect_images(
    predictor: Predictor, images: Images, detector: Detector = detect
) -> list[dict[str, NDArray[np.float32]]]:
    """Runs a predictor on images [N, H, W, 3] RGB uint8 and clusters its output; see `cluster`."""
    return cluster(predictor, predictor(images), detector)


def cluster(predictor: Predictor, grids: Grids, detector: Detector = detect) -> list[dict[str, NDArray[np.float32]]]:
    """Turns a predictor's output for N images into detections.

    Args:
        predictor: Whose output it is; classes without an entry in its `clustering` are left out.
        grids: Coverage and bbox.
        detector: How candidates become detections: on the evaluation's or on the inference's path.

    Returns:
        For each image, by class name, detections [K, 5]: x1, y1, x2, y2 in network-input pixels and score, best first.
    """
    coverage, bbox = grids
    return [
        {
            name: detector(
                coverage[index, channel],
                bbox[index, 4 * channel : 4 * channel + 4],
                predictor.geometry,
                predictor.clustering[name],
            )
            for channel, name in enumerate(predictor.class_names)
            if name in predictor.clustering
        }
        for index in range(len(coverage))
    ]


def load_predictor(path: Path, class_names: Sequence[str] = ()) -> Predictor:
    """Loads a model for inference.

    Args:
        path: An exported-model artifact (folder), an `.onnx` file, a model artifact (folder) or a checkpoint file.
        class_names: The classes in the order of the channels, for an ONNX file that has neither description nor
            labels; not used otherwise.

    Raises:
        UserError: There is no model, or it cannot be used.
    """
    if not path.exists():
        raise UserError(f"{path}: no such model")
    if path.suffix == ".onnx":
        return OnnxPredictor(path, class_names)
    if (path / MODEL_FILE).is_file():
        return OnnxPredictor(path / MODEL_FILE, class_names)
    # PyTorch is not needed (and may not be installed) where only exported models are run.
    from components.vision.torch_predictor import TorchPredictor

    return TorchPredictor(path)


class OnnxPredictor:
    """An exported model in ONNX Runtime. Its tensors may carry a trailing `:0`."""

    def __init__(self, file: Path, class_names: Sequence[str] = ()) -> None:
        """Loads the model and its description; what has to be assumed without one is said on standard error."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = available_cores()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise UserError(f"{file}: ONNX Runtime cannot load this model: {str(error).splitlines()[0]}") from error
        description = _description(file)
        names = description.get("tensors", {"input": INPUT, "coverage": COVERAGE_OUTPUT, "bbox": BBOX_OUTPUT})
        source = _find_tensor(self._session.get_inputs(), names["input"], file)
        coverage = _find_tensor(self._session.get_outputs(), names["coverage"], file)
        self._input, self._coverage = source.name, coverage.name
        self._bbox = _find_tensor(self._session.get_outputs(), names["bbox"], file).name
        self._batch = source.shape[0] if isinstance(source.shape[0], int) else 0

        assumed: list[str] = []
        self.geometry = _geometry(file, description, source.shape, assumed)
        self.class_names = _class_names(file, description, coverage.shape, class_names, assumed)
        if "clustering" not in description:
            assumed.append("unless a spec says otherwise, the defaults of DBSCAN")
        self.clustering: Mapping[str, Clustering] = {
            name: Clustering(**description.get("clustering", {}).get(name, {})) for name in self.class_names
        }
        self.parameters = int(description["parameters"]) if "parameters" in description else _count_parameters(file)
        self.file_bytes = file.stat().st_size
        if assumed:
            print(f"warning: {file} is described incompletely; assumed: {'; '.join(assumed)}", file=sys.stderr)

    def __call__(self, images: Images) -> Grids:
        """See `Predictor`. A model of fixed batch size sees its batches one by one, the last one filled up."""
        pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
        if not self._batch or len(pixels) == self._batch:
            return self._run(pixels)
        missing = -len(pixels) % self._batch
        padded = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), np.float32)])
        parts = [self._run(part) for part in np.split(padded, len(padded) // self._batch)]
        coverage, bbox = (np.concatenate(grids)[: len(pixels)] for grids in zip(*parts, strict=True))
        return coverage, bbox

    def _run(self, pixels: NDArray[np.float32]) -> Grids:
        coverage, bbox = self._session.run([self._coverage, self._bbox], {self._input: pixels})
        return coverage, bbox


def description_file(model: Path) -> Path:
    """Returns where the description of an ONNX file stands: beside it, under its name."""
    return model.with_suffix(".json")


def _description(model: Path) -> dict[str, Any]:
    """Returns what `detectnet_v2 export` says of a model: in the artifact's manifest, or beside a bare ONNX file."""
    if model.name == MODEL_FILE and (model.parent / MANIFEST).is_file():
        return dict(read_manifest(model.parent, "exported_model")["settings"])
    file = description_file(model)
    if not file.is_file():
        return {}
    return dict(entry(read_json(file), str(file)).fields)


def _geometry(
    file: Path, description: Mapping[str, Any], shape: Sequence[int | str], assumed: list[str]
) -> GridGeometry:
    """Returns the described geometry, held against the graph's input [N, 3, H, W], which also fills its gaps."""
    values = dict(description.get("geometry", {}))
    for name, size in zip(("height", "width"), shape[2:], strict=True):
        if isinstance(size, int) and values.setdefault(name, size) != size:
            raise UserError(f"{file}: its {name} is {size}, its description says {values[name]}; export it again")
    if not {"width", "height"} <= values.keys():
        raise UserError(f"{file}: the size of its input is neither described nor fixed in the graph; export it again")
    try:
        geometry = GridGeometry(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{file}: {error}") from error
    if not {"scale", "offset"} <= values.keys():
        drawn = "" if "geometry" in description else f"input {geometry.width}x{geometry.height} from the graph; "
        assumed.append(f"{drawn}box scale {geometry.scale:g} and offset {geometry.offset:g}")
    return geometry


def _class_names(
    file: Path, description: Mapping[str, Any], shape: Sequence[int | str], given: Sequence[str], assumed: list[str]
) -> tuple[str, ...]:
    """Returns the classes, one for each channel: the described ones, else those of the labels, else the given ones."""
    labels = file.with_name(LABELS_FILE)
    if "class_names" in description:
        names, source = tuple(description["class_names"]), "its description"
    elif labels.is_file():
        # One a line; files for DeepStream may have them in one line with semicolons.
        lines = read_text(labels).replace(";", "\n").splitlines()
        names, source = tuple(line.strip() for line in lines if line.strip()), str(labels)
    else:
        names, source = tuple(given), "the spec"
    if not names:
        raise UserError(f"{file}: nothing says what its classes are; put a {LABELS_FILE} beside it, one class a line")
    if isinstance(shape[1], int) and shape[1] != len(names):
        raise UserError(f"{file}: it has {shape[1]} classes, {source} names {len(names)} ({', '.join(names)})")
    if "class_names" not in description:
        assumed.append(f"classes {', '.join(names)} from {source}")
    return names


def _count_parameters(file: Path) -> int:
    import onnx

    return sum(int(np.prod(tensor.dims)) for tensor in onnx.load(file).graph.initializer)


def _find_tensor(tensors: Sequence[Any], name: str, file: Path) -> Any:  # noqa: ANN401 - ONNX Runtime has no types
    for tensor in tensors:
        if tensor.name.removesuffix(TENSOR_SUFFIX) == name.removesuffix(TENSOR_SUFFIX):
            return tensor
    raise UserError(f"{file}: no tensor {name!r}; it has {', '.join(tensor.name for tensor in tensors)}")
