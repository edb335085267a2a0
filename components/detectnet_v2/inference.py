"""`detectnet_v2 inference`: overlays and KITTI labels for a folder of images."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from components.detectnet_v2 import experiment, spec_pb2
from components.formats.images import Image, ImageError, decode
from components.formats.kitti import Label, format_label
from components.grid.clustering import Clustering
from components.step import UserError, publish
from components.vision.predictor import Predictor, detect_images, load_predictor
from components.vision.status import StatusLog

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp"}
OVERLAYS, LABELS = "images_annotated", "labels"


@dataclass(frozen=True, slots=True)
class Drawing:
    """How one class's detections are written.

    Attributes:
        output_name: Class name in the label files.
        colour: BGR, 0..255.
    """

    output_name: str
    colour: tuple[int, int, int]


def infer(
    spec: spec_pb2.Inference, source: Path, results: Path, model: Path | None = None, batch_size: int = 0
) -> tuple[int, int]:
    """Detects in an image or in all images of a folder; returns the numbers of images and of detections.

    Args:
        spec: The inference spec.
        source: An image, or a folder of images.
        results: Where `images_annotated/` and `labels/` are written.
        model: Replaces the spec's model.
        batch_size: Replaces the spec's batch size where above 0.

    Raises:
        UserError: There is no image, or an image cannot be read.
    """
    config = spec.bbox_handler_config
    predictor = load_predictor(model or Path(spec.inferencer_config.tlt_config.model))
    predictor.clustering = {name: _clustering(spec, name) for name in predictor.class_names}
    drawings = {name: _drawing(spec, name) for name in predictor.class_names}
    files = _image_files(source)
    size = batch_size or spec.inferencer_config.batch_size or 1
    found = 0
    for folder in (OVERLAYS, LABELS):
        shutil.rmtree(results / folder, ignore_errors=True)
        (results / folder).mkdir(parents=True)
    for batch in _batches(files, size):
        images = [_read(file) for file in batch]
        for file, image, labels in zip(batch, images, _detect(predictor, images, drawings), strict=True):
            found += len(labels)
            if config.kitti_dump:
                text = "".join(format_label(label) + "\n" for label, _ in labels)
                with publish(results / LABELS / f"{file.stem}.txt") as scratch:
                    scratch.write_text(text, encoding="utf-8")
            if not config.disable_overlay:
                _draw(image, labels, max(config.overlay_linewidth, 1))
                with publish(results / OVERLAYS / file.name) as scratch:
                    scratch.write_bytes(_encode(image, file.suffix))
    StatusLog(results).write("SUCCESS", "Inference finished successfully", kpi={"images": len(files)})
    return len(files), found


def _batches(files: list[Path], size: int) -> Iterator[list[Path]]:
    for start in range(0, len(files), size):
        yield files[start : start + size]


def _image_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"{source}: no such image or folder")
    files = sorted(file for file in source.iterdir() if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise UserError(f"{source}: no images here ({', '.join(sorted(_SUFFIXES))})")
    return files


def _read(file: Path) -> Image:
    try:
        return decode(file.read_bytes())
    except ImageError as error:
        raise UserError(f"{file}: {error}") from error


def _encode(image: Image, suffix: str) -> bytes:
    done, buffer = cv2.imencode(suffix, image)
    if not done:
        raise RuntimeError(f"OpenCV cannot write {suffix} images")
    return buffer.tobytes()


def _detect(
    predictor: Predictor, images: list[Image], drawings: dict[str, Drawing]
) -> Iterator[list[tuple[Label, Drawing]]]:
    """Yields each image's labels in the image's own pixels: TAO stretches images to the network's input."""
    size = predictor.geometry.width, predictor.geometry.height
    stretched = [cv2.resize(image[..., ::-1], size, interpolation=cv2.INTER_AREA) for image in images]
    for image, detections in zip(images, detect_images(predictor, np.stack(stretched).astype(np.uint8)), strict=True):
        scale = image.shape[1] / size[0], image.shape[0] / size[1]
        yield [
            (_label(row, scale, drawings[name].output_name), drawings[name])
            for name, rows in detections.items()
            for row in rows
        ]


def _label(row: NDArray[np.float32], scale: tuple[float, float], name: str) -> Label:
    x1, y1, x2, y2, score = (float(value) for value in row)
    return Label(name, 0.0, 0, (x1 * scale[0], y1 * scale[1], x2 * scale[0], y2 * scale[1]), score)


def _draw(image: Image, labels: list[tuple[Label, Drawing]], line_width: int) -> None:
    for label, drawing in labels:
        x1, y1, x2, y2 = (round(edge) for edge in label.box)
        cv2.rectangle(image, (x1, y1), (x2, y2), drawing.colour, line_width, cv2.LINE_AA)
        text = f"{label.score:.2f}"
        cv2.putText(image, text, (x1, max(y1 - 3, 9)), cv2.FONT_HERSHEY_SIMPLEX, 0.35, drawing.colour, 1, cv2.LINE_AA)


def _class_config(spec: spec_pb2.Inference, name: str) -> spec_pb2.BboxHandlerConfig.ClasswiseBboxHandlerConfig:
    configs = spec.bbox_handler_config.classwise_bbox_handler_config
    for key in (name, "default"):
        if key in configs:
            return configs[key]
    raise UserError(f"bbox_handler_config.classwise_bbox_handler_config has neither {name!r} nor 'default'; add one")


def _clustering(spec: spec_pb2.Inference, name: str) -> Clustering:
    return experiment.to_clustering(_class_config(spec, name).clustering_config)


def _drawing(spec: spec_pb2.Inference, name: str) -> Drawing:
    config = _class_config(spec, name)
    colour = config.bbox_color
    return Drawing(config.output_map or name, (colour.B, colour.G, colour.R))
