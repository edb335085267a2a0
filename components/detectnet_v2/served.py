"""How a grid-box detector is served: decoding before it, clustering after it, and boxes as an answer."""

from dataclasses import asdict
from pathlib import Path

from components.decode.description import OPERATING_POINT
from components.decode.grid.decoder import BBOX, COVERAGE, INPUT
from components.detectnet_v2.decoding import grid_decoder
from components.measure.metric import AVERAGE_PRECISION
from components.serve.config import RepositorySettings
from components.serve.task import (
    DETECTION,
    DETECTIONS,
    IMAGE_SIZE,
    PLACEMENT,
    Network,
    ServedTask,
    Step,
    Tensor,
    found_from,
    image_step,
    tensor_names,
)
from components.vision.predictor import OnnxPredictor

PREFIX = "facenet"


def served(file: Path, settings: RepositorySettings) -> ServedTask:
    """Describes an exported model, an ONNX file.

    Raises:
        UserError: The model cannot be used, or its batch size is fixed.
    """
    predictor = OnnxPredictor(file)
    names = tensor_names(file, {"input": INPUT, "coverage": COVERAGE, "bbox": BBOX})
    decoder = grid_decoder(predictor.decoder, file)
    geometry, classes = decoder.geometry, len(decoder.class_names)
    pixels, cells = [3, geometry.height, geometry.width], [geometry.rows, geometry.columns]
    parameters = {
        "class_names": list(decoder.class_names),
        "geometry": asdict(geometry),
        "clustering": {name: asdict(value) for name, value in decoder.clustering.items()},
        **({OPERATING_POINT: dict(decoder.operating_point)} if decoder.operating_point else {}),
    }
    fitting = {
        "preprocessing": predictor.input.fit if settings.preprocessing == "model" else settings.preprocessing,
        "resampling": predictor.input.resampling,
    }
    prepared = {"geometry": asdict(geometry), **fitting, "max_image_pixels": settings.max_image_pixels}
    network = Network(
        file=file,
        # TAO's client of Triton asks for the order of the dimensions, and refuses a model that leaves it open.
        inputs=[Tensor(names["input"], "FP32", pixels, format="FORMAT_NCHW")],
        outputs=[
            Tensor(names["bbox"], "FP32", [4 * classes, *cells]),
            Tensor(names["coverage"], "FP32", [classes, *cells]),
        ],
        wires={names["input"]: "pixels", names["bbox"]: "bbox", names["coverage"]: "coverage"},
    )
    clustering = Step(
        name="postprocess",
        inputs=[
            Tensor(BBOX, "FP32", [4 * classes, *cells]),
            Tensor(COVERAGE, "FP32", [classes, *cells]),
            PLACEMENT,
            IMAGE_SIZE,
        ],
        outputs=DETECTIONS,
        wires={BBOX: "bbox", COVERAGE: "coverage"},
        parameters={**parameters, **found_from(settings.min_score)},
    )
    return ServedTask(
        PREFIX,
        [image_step(pixels, prepared), network, clustering],
        DETECTION,
        AVERAGE_PRECISION,
        parameters,
        {**parameters, **fitting, "parameters": predictor.parameters, "tensors": names},
    )
