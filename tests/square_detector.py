"""A hand-made grid-box network whose answers are known: a cell of the grid that is all red is a face of 16x16 pixels.

Labels come in KITTI or WIDER FACE layout. No training and no PyTorch: tests can say exactly what must come out.
"""

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from components.formats.kitti import Label, Sample, ShardWriter
from components.step import write_manifest

WIDTH, HEIGHT, CELL = 96, 64, 16
CHANNELS = 16


def write_detector(folder, threshold=0.6, loud_channel=1.0, parameters=1234):
    """Writes an exported-model artifact.

    Args:
        folder: Where to.
        threshold: Share of red at which a cell counts; above 1 the detector is blind.
        loud_channel: Scale of a channel that carries green and is not used: a large one spoils quantisation.
        parameters: What the manifest says.
    """
    folder.mkdir(parents=True)
    first = np.zeros((CHANNELS, 3, 3, 3), np.float32)
    first[0, 0, 1, 1], first[1, 1, 1, 1], first[2, 2, 1, 1] = 1, loud_channel, 1
    mean = np.zeros((CHANNELS, CHANNELS, CELL, CELL), np.float32)
    mean[range(CHANNELS), range(CHANNELS)] = 1 / CELL**2
    coverage = np.zeros((1, CHANNELS, 1, 1), np.float32)
    coverage[0, 0], coverage[0, 2] = 40, -40  # red and not blue
    edges = np.array([0.5, 0.5, CELL - 0.5, CELL - 0.5], np.float32) / 35
    weights = {
        "w1": first,
        "b1": np.zeros(CHANNELS, np.float32),
        "w2": mean,
        "b2": np.zeros(CHANNELS, np.float32),
        "wc": coverage,
        "bc": np.array([-40 * threshold], np.float32),
        "wb": np.zeros((4, CHANNELS, 1, 1), np.float32),
        "bb": edges,
    }
    nodes = [
        helper.make_node("Conv", ["input_1", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], strides=[CELL, CELL]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("Conv", ["r2", "wc", "bc"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["output_cov/Sigmoid"]),
        helper.make_node("Conv", ["r2", "wb", "bb"], ["output_bbox/BiasAdd"]),
    ]
    rows, columns = HEIGHT // CELL, WIDTH // CELL
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "squares",
        [value("input_1", TensorProto.FLOAT, ["batch", 3, HEIGHT, WIDTH])],
        [
            value("output_bbox/BiasAdd", TensorProto.FLOAT, ["batch", 4, rows, columns]),
            value("output_cov/Sigmoid", TensorProto.FLOAT, ["batch", 1, rows, columns]),
        ],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "model.onnx"
    )
    (folder / "labels.txt").write_text("face\n")
    settings = {
        "geometry": {"width": WIDTH, "height": HEIGHT, "stride": CELL, "scale": 35.0, "offset": 0.5},
        "class_names": ["face"],
        "clustering": {"face": {"algorithm": "nms", "coverage_threshold": 0.5}},
        "parameters": parameters,
        "tensors": {"input": "input_1", "coverage": "output_cov/Sigmoid", "bbox": "output_bbox/BiasAdd"},
    }
    write_manifest(folder, "exported_model", {}, settings)
    return folder


def picture(cells, width=WIDTH, height=HEIGHT):
    """Returns a green BGR image with red squares in these (column, row) cells."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 1] = 255
    for column, row in cells:
        image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = (0, 0, 255)
    return image


def cell_box(column, row):
    return (column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL)


def face(column, row, class_name="face"):
    return Label(class_name, 0, 0, tuple(float(edge) for edge in cell_box(column, row)))


def sample(name, red, labels, image=None):
    content = cv2.imencode(".png", picture(red) if image is None else image)[1].tobytes()
    return Sample(name, f"{name}.png", content, labels)


def write_kitti(folder, training, validation, test=None, settings=None, **counts):
    """Writes a KITTI-set artifact of these samples; without `test` as former releases wrote it."""
    folder.mkdir(parents=True)
    splits = {"training": training, "validation": validation, **({} if test is None else {"test": test})}
    for split, samples in splits.items():
        with ShardWriter(folder / split) as writer:
            for entry in samples:
                writer.add(entry)
    counts = {"training_images": len(training), "validation_images": len(validation), **counts}
    write_manifest(folder, "kitti_set", counts, settings or {})
    return folder


def random_samples(count, prefix, seed=0):
    """Pictures with up to five squares, each labelled as a face."""
    random = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        places = random.permutation((WIDTH // CELL) * (HEIGHT // CELL))[: random.integers(0, 6)]
        cells = [(int(place) % (WIDTH // CELL), int(place) // (WIDTH // CELL)) for place in places]
        samples.append(sample(f"{prefix}_{index:03d}", cells, [face(*cell) for cell in cells]))
    return samples
