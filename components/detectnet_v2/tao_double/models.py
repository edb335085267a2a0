"""The model files of the double: Keras HDF5 as TAO 5.0 writes it, a stand-in for encrypted ones, and ONNX."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

STRIDE = 16
# An eighth of TAO's channels: what a double writes shall be small.
_WIDTH = 0.125
_ENCRYPTED = b"gridbox double, encrypted with "
_KEPT_ATTRIBUTES = {"keras_version", "backend", "model_config"}


@dataclass(frozen=True, slots=True)
class Described:
    """What a model file says of its network: the input's size in pixels, its classes (0: no heads) and parameters."""

    width: int
    height: int
    classes: int
    parameters: int


def encrypt(source: Path, target: Path, key: str) -> None:
    """Writes what stands for an encrypted model (`.tlt`): `opened` gives it back to who has the key."""
    target.write_bytes(_ENCRYPTED + hashlib.sha256(key.encode()).digest() + source.read_bytes())


@contextmanager
def opened(path: str | Path, key: str) -> Iterator[Path]:
    """Gives the plain HDF5 file of a model, decrypted where it is not named `.hdf5`.

    Raises:
        ValueError: There is no such file.
        SystemExit: It is not encrypted with this key, or at all. (So TAO leaves.)
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError("Cannot find input file name.")
    if path.suffix == ".hdf5":
        yield path
        return
    lock = _ENCRYPTED + hashlib.sha256(key.encode()).digest()
    content = path.read_bytes()
    if not content.startswith(lock):
        raise SystemExit("Invalid decryption. Unable to open file. The key used to load the model is incorrect.")
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "model.hdf5")
        plain.write_bytes(content.removeprefix(lock))
        yield plain


def describe(file: Path) -> Described:
    """Reads a plain model file.

    Raises:
        OSError, KeyError: It is no Keras model.
    """
    import h5py

    with h5py.File(file, "r") as stored:
        layers = json.loads(stored.attrs["model_config"])["config"]["layers"]
        _, _, height, width = next(
            layer["config"]["batch_input_shape"] for layer in layers if "batch_input_shape" in layer["config"]
        )
        sizes: dict[str, int] = {}
        classes = 0

        def count(name: str, item: object) -> None:
            nonlocal classes
            if isinstance(item, h5py.Dataset):
                sizes[name] = int(item.size)
                if name.endswith("output_cov/kernel:0"):
                    classes = int(item.shape[-1])

        stored["model_weights"].visititems(count)
    return Described(width, height, classes, sum(sizes.values()))


def write_new(path: Path, spec: Any) -> None:  # noqa: ANN401 - a message class that is built at run time
    """Writes the network that a spec describes, an eighth as wide, with random weights.

    Raises:
        NotImplementedError: TAO would train this architecture; the double writes ResNets only.
    """
    import torch  # takes two seconds, which a refused spec need not

    from components.decode.grid.geometry import GridGeometry
    from components.detectnet_v2.keras_model import save_keras
    from components.detectnet_v2.network import GridNet, GridNetConfig
    from components.vision.resnet import UNITS, ResNetConfig

    model, size = spec.model_config, spec.augmentation_config.preprocessing
    depth = model.num_layers or 18
    if model.arch != "resnet" or depth not in UNITS:
        raise NotImplementedError(f"the double writes ResNets of depth {', '.join(map(str, UNITS))} only")
    torch.manual_seed(spec.random_seed)
    backbone = ResNetConfig.of_width(depth, _WIDTH, model.all_projections, model.use_batch_norm)
    names = tuple(target.name for target in spec.cost_function_config.target_classes)
    box = model.objective_set.bbox
    geometry = GridGeometry(size.output_image_width, size.output_image_height, scale=box.scale, offset=box.offset)
    save_keras(path, GridNet(GridNetConfig(backbone, names, geometry, {})))
    _strip(path)


def write_copy(path: Path, source: Path) -> None:
    """Writes a stored network again, as a training that loads its graph ends with the same layers."""
    shutil.copyfile(source, path)
    _strip(path)


def write_pruned(path: Path, source: Path, settings: Any) -> None:  # noqa: ANN401 - importing its type takes torch
    """Writes what `vision.pruning` leaves of a stored network."""
    from components.detectnet_v2.keras_model import load_keras, save_keras
    from components.vision.pruning import prune

    save_keras(path, prune(load_keras(source), settings))
    _strip(path)


def _strip(path: Path) -> None:
    """Takes away what only gridbox's writer adds, so that readers meet a file like TAO's, and says whose it is."""
    import h5py

    with h5py.File(path, "r+") as file:
        for name in set(file.attrs) - _KEPT_ATTRIBUTES:
            del file.attrs[name]
        file.attrs["double"] = "written by gridbox's double of NVIDIA TAO; nothing was learnt"


def write_onnx(path: Path, model: Described, opset: int, static_batch: int) -> None:
    """Writes a network with TAO's tensors: grids of the right shapes from two convolutions, and next to no coverage."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    batch: int | str = static_batch if static_batch > 0 else "N"
    height, width = model.height // STRIDE, model.width // STRIDE

    def weight(name: str, *shape: int) -> "onnx.TensorProto":
        return numpy_helper.from_array(random.normal(0, 0.02, shape).astype(np.float32), name)

    def constant(name: str, value: float, channels: int) -> "onnx.TensorProto":
        return numpy_helper.from_array(np.full(channels, value, np.float32), name)

    def head(name: str, output: str) -> "onnx.NodeProto":
        return helper.make_node("Conv", ["features", f"{name}/kernel", f"{name}/bias"], [output], name=f"{name}/conv")

    def tensor(name: str, *shape: int) -> "onnx.ValueInfoProto":
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape])

    cells, features, classes = [STRIDE, STRIDE], 8, model.classes
    nodes = [
        helper.make_node("Conv", ["input_1:0", "kernel", "bias"], ["cells"], kernel_shape=cells, strides=cells),
        helper.make_node("Relu", ["cells"], ["features"]),
        head("output_bbox", "output_bbox/BiasAdd:0"),
        head("output_cov", "output_cov/BiasAdd:0"),
        helper.make_node("Sigmoid", ["output_cov/BiasAdd:0"], ["output_cov/Sigmoid:0"]),
    ]
    weights = [
        weight("kernel", features, 3, *cells),
        constant("bias", 0.0, features),
        weight("output_bbox/kernel", 4 * classes, features, 1, 1),
        constant("output_bbox/bias", 0.5, 4 * classes),
        weight("output_cov/kernel", classes, features, 1, 1),
        constant("output_cov/bias", -8.0, classes),
    ]
    outputs = [
        tensor("output_bbox/BiasAdd:0", 4 * classes, height, width),
        tensor("output_cov/Sigmoid:0", classes, height, width),
    ]
    graph = helper.make_graph(nodes, "double", [tensor("input_1:0", 3, model.height, model.width)], outputs, weights)
    opsets = [helper.make_opsetid("", opset)]
    written = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    written.doc_string = "written by gridbox's double of NVIDIA TAO; nothing was learnt"
    onnx.checker.check_model(written, full_check=True)
    onnx.save(written, path)
