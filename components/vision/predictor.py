"""One interface over a checkpoint (PyTorch) and an exported model (ONNX Runtime)."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from components.decode.decoder import Decoder, Tensors, load_decoder
from components.decode.description import upgraded
from components.decode.instances import Instances
from components.formats.reading import entry, read_json, read_text
from components.step import MANIFEST, UserError, read_manifest
from components.vision.inputs import Images, InputSpec
from components.vision.threads import available_cores

# What TensorFlow, and so TAO 5's ONNX files, add to the name of a tensor.
TENSOR_SUFFIX = ":0"
MODEL_FILE = "model.onnx"
LABELS_FILE = "labels.txt"


class Predictor(Protocol):
    """A trained network that can be run.

    Attributes:
        input: What it takes.
        decoder: What its outputs mean.
        parameters: Number of weights.
        file_bytes: Size of the model file.
    """

    input: InputSpec
    decoder: Decoder
    parameters: int
    file_bytes: int

    def __call__(self, images: Images) -> Tensors:
        """Runs the network on images [N, H, W, channels] as `InputSpec.place` gives them.

        Returns:
            By name, without `:0`, the outputs [N, ...] that its decoder reads.
        """
        ...


def detect_images(predictor: Predictor, images: Images, decoder: Decoder | None = None) -> list[Instances]:
    """Runs a predictor on images and decodes its outputs, with its own decoder where none is given."""
    return (decoder or predictor.decoder)(predictor(images))


def load_predictor(path: Path, class_names: Sequence[str] = ()) -> Predictor:
    """Loads a model for inference.

    Args:
        path: An exported-model artifact (folder), an `.onnx` file, a model artifact (folder) or a checkpoint file.
        class_names: The classes in their order, for an ONNX file that has neither description nor labels; not used
            otherwise.

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
        source = self._session.get_inputs()[0]
        outputs = {tensor.name.removesuffix(TENSOR_SUFFIX): tensor for tensor in self._session.get_outputs()}
        names, said_by = _class_names(file, description, class_names)
        size = _size(file, description["input"], source.shape)
        try:
            self.input = InputSpec.from_json({**description["input"], **size})
            self.decoder = load_decoder({**description, "input": size, "class_names": names})
        except (TypeError, ValueError) as error:
            raise UserError(f"{file}: {error}") from error
        for name in self.decoder.tensors:
            if name not in outputs:
                raise UserError(f"{file}: no tensor {name!r}; it has {', '.join(outputs)}")
        there = self.decoder.count_classes({name: tensor.shape for name, tensor in outputs.items()})
        if there not in (None, len(names)):
            raise UserError(f"{file}: it has {there} classes, {said_by} names {len(names)} ({', '.join(names)})")
        self._input, self._outputs = source.name, {name: outputs[name].name for name in self.decoder.tensors}
        self._batch = source.shape[0] if isinstance(source.shape[0], int) else 0
        self.parameters = int(description["parameters"]) if "parameters" in description else _count_parameters(file)
        self.file_bytes = file.stat().st_size
        assumed = [*self.decoder.assumed]
        if "class_names" not in description:
            assumed.append(f"classes {', '.join(names)} from {said_by}")
        if assumed:
            print(f"warning: {file} is described incompletely; assumed: {'; '.join(assumed)}", file=sys.stderr)

    def __call__(self, images: Images) -> Tensors:
        """See `Predictor`. A model of fixed batch size sees its batches one by one, the last one filled up."""
        pixels = self.input.prepare(images)
        if not self._batch or len(pixels) == self._batch:
            return self._run(pixels)
        missing = -len(pixels) % self._batch
        padded = np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), np.float32)])
        parts = [self._run(part) for part in np.split(padded, len(padded) // self._batch)]
        return {name: np.concatenate([part[name] for part in parts])[: len(pixels)] for name in self._outputs}

    def _run(self, pixels: NDArray[np.float32]) -> Tensors:
        outputs = self._session.run(list(self._outputs.values()), {self._input: pixels})
        return dict(zip(self._outputs, outputs, strict=True))


def description_file(model: Path) -> Path:
    """Returns where the description of an ONNX file stands: beside it, under its name."""
    return model.with_suffix(".json")


def _description(model: Path) -> dict[str, Any]:
    """Returns what is said of a model in the artifact's manifest, or beside a bare ONNX file."""
    if model.name == MODEL_FILE and (model.parent / MANIFEST).is_file():
        return upgraded(read_manifest(model.parent, "exported_model")["settings"])
    file = description_file(model)
    return upgraded(entry(read_json(file), str(file)).fields if file.is_file() else {})


def _size(file: Path, described: Mapping[str, Any], shape: Sequence[int | str]) -> dict[str, int]:
    """Returns width and height as described, held against the graph's input, which also fills the gaps."""
    is_last = described.get("layout") == "HWC"
    size = {name: int(described[name]) for name in ("width", "height") if name in described}
    for name, there in zip(("height", "width"), shape[1:3] if is_last else shape[2:], strict=True):
        if isinstance(there, int) and size.setdefault(name, there) != there:
            raise UserError(f"{file}: its {name} is {there}, its description says {size[name]}; export it again")
    if len(size) < 2:
        raise UserError(f"{file}: the size of its input is neither described nor fixed in the graph; export it again")
    return size


def _class_names(file: Path, description: Mapping[str, Any], given: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Returns the classes and who says so: those described, else those of the labels, else the given ones."""
    labels = file.with_name(LABELS_FILE)
    if "class_names" in description:
        return tuple(description["class_names"]), "its description"
    if labels.is_file():
        # One a line; files for DeepStream may have them in one line with semicolons.
        lines = read_text(labels).replace(";", "\n").splitlines()
        names, source = tuple(line.strip() for line in lines if line.strip()), str(labels)
    else:
        names, source = tuple(given), "the spec"
    if not names:
        raise UserError(f"{file}: nothing says what its classes are; put a {LABELS_FILE} beside it, one class a line")
    return names, source


def _count_parameters(file: Path) -> int:
    import onnx

    return sum(int(np.prod(tensor.dims)) for tensor in onnx.load(file).graph.initializer)
