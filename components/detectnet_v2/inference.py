"""`detectnet_v2 inference`: overlays and KITTI labels for an image, a folder of images, or a video."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from components.decode.grid.clustering import detect_for_inference, detect_for_inference_like_tao5
from components.detectnet_v2 import experiment, spec_pb2
from components.detectnet_v2.decoding import grid_decoder
from components.formats.images import Image, ImageError
from components.formats.kitti import Label
from components.formats.listing import some
from components.step import StageError, UserError, publish_files
from components.vision.predictor import Predictor, detect_images, load_predictor
from components.vision.sinks import (
    LABELS,
    OVERLAYS,
    Done,
    Drawing,
    Found,
    Result,
    Sink,
    check_apart,
    kitti_labels,
    overlays,
    write_results,
)
from components.vision.sources import Source, SourceImage, open_files
from components.vision.status import StatusLog

_GREEN = (0, 255, 0)

Item = TypeVar("Item")
Handler = spec_pb2.BboxHandlerConfig.ClasswiseBboxHandlerConfig


def infer(
    spec: spec_pb2.Inference,
    source: Path,
    results: Path,
    model: Path | None = None,
    batch_size: int = 0,
    *,
    tao5: bool = False,
) -> Done:
    """Detects in an image, in all images of a folder, or in a video.

    The files of `images_annotated/` and `labels/` appear in the results directory at the end and replace those of the
    same names; other files are kept. Images that cannot be read are left out and named at the end.

    Args:
        spec: The inference spec.
        source: An image, a folder of images (without its subfolders), or a video.
        results: The results directory.
        model: Replaces the spec's model.
        batch_size: Replaces the spec's batch size if above 0.
        tao5: Reproduce TAO 5's defects.

    Raises:
        UserError: There is nothing to read, the model does not fit the spec, or results would replace the source.
        StageError: Some of the images, or a part of the video, could not be read; the rest is done.
    """
    check_apart(source, results)
    status = StatusLog(results)
    status.write("STARTED", "Starting DetectNet_v2 Inference")
    detector = ImageDetector(spec, model or Path(spec.inferencer_config.tlt_config.model), tao5=tao5)
    images, config = open_files(source), spec.bbox_handler_config
    size = batch_size or spec.inferencer_config.batch_size or 1
    with ExitStack() as stack:
        sinks: list[Sink] = []
        if config.disable_overlay:
            stack.enter_context(publish_files(results / OVERLAYS))  # TAO makes both folders in any case
        else:
            sinks.append(overlays(stack, results, images))
        if config.kitti_dump:
            sinks.append(kitti_labels(stack, results, kitti_line))
        else:
            stack.enter_context(publish_files(results / LABELS))
        found = _results(detector, images, size, max(config.overlay_linewidth, 1))
        done = write_results(found, images, sinks)
        if not done.images:
            raise UserError(f"{source}: nothing here can be read: {some(done.troubles)}")
    kpi = {"images": done.images, "detections": done.detections, "images_per_second": done.images / done.seconds}
    if done.troubles:
        message = f"{source}: {some(done.troubles)}; the {done.images} others are in {results}"
        status.write("FAILURE", message, kpi=kpi)
        raise StageError(message)
    status.write("SUCCESS", "Inference finished successfully.", kpi=kpi)
    return done


class ImageDetector:
    """A model and an inference spec: images in, boxes in the images' own pixels out."""

    def __init__(self, spec: spec_pb2.Inference, model: Path, *, tao5: bool = False) -> None:
        """Loads the model.

        Raises:
            UserError: It cannot be loaded, or is not the one that the spec describes.
        """
        config = spec.inferencer_config
        self._predictor = load_predictor(model, tuple(config.target_classes))
        # TAO stretches images, however the network was trained.
        self._input = replace(self._predictor.input, fit="stretch") if tao5 else self._predictor.input
        _check_model(model, self._predictor, config)
        names = tuple(spec.bbox_handler_config.postproc_classes) or tuple(config.target_classes)
        self._drawings = {name: _drawing(spec, name) for name in names}
        # Classes without an entry are not detected.
        handlers = {name: _handler(spec, name)[1] for name in names}
        self._decoder = replace(
            grid_decoder(self._predictor.decoder, model),
            clustering={name: experiment.inference_clustering(handler, tao5) for name, handler in handlers.items()},
            detector=detect_for_inference_like_tao5 if tao5 else detect_for_inference,
        )

    def __call__(self, images: Sequence[Image]) -> list[list[Found]]:
        """Detects in images [H, W, 3] BGR of any sizes, fitted into the network's input as the model was trained."""
        placed = [self._input.place(image) for image in images]
        found = detect_images(self._predictor, np.stack([pixels for pixels, _ in placed]), self._decoder)
        drawings = [(self._decoder.class_names.index(name), drawing) for name, drawing in self._drawings.items()]
        return [
            [
                Found(label, drawing)
                for kind, drawing in drawings
                for row in instances.select(kind).to_source(placement).rows().tolist()
                if (label := _label(row, (image.shape[1], image.shape[0]), drawing.output_name))
            ]
            for image, instances, (_, placement) in zip(images, found, placed, strict=True)
        ]


def _results(detector: ImageDetector, source: Source, size: int, line_width: int) -> Iterator[Result | str]:
    """Yields the detections in each image, or why it cannot be read."""
    for batch in _batches(source, size):
        images: list[tuple[SourceImage, Image]] = []
        for image in batch:
            try:
                images.append((image, image.pixels()))
            except ImageError as error:
                yield f"{image.name}: {error}"
        detections = detector([pixels for _, pixels in images]) if images else []
        for (image, pixels), found in zip(images, detections, strict=True):
            yield Result(replace(image, frame=pixels), (pixels.shape[1], pixels.shape[0]), found, line_width)


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def _label(row: Sequence[float], size: tuple[int, int], name: str) -> Label | None:
    """Cuts a detection (x1, y1, x2, y2, score) to an image of `size` (width, height); None if it lies beside it."""
    x1, x2 = (min(max(edge, 0.0), float(size[0])) for edge in row[0:4:2])
    y1, y2 = (min(max(edge, 0.0), float(size[1])) for edge in row[1:4:2])
    return Label(name, 0.0, 0, (x1, y1, x2, y2), row[4]) if x1 < x2 and y1 < y2 else None


def kitti_line(label: Label) -> str:
    """Returns TAO's line of 16 columns: coordinates have three decimals, unknown values are zero."""
    box = " ".join(f"{edge:.3f}" for edge in label.box)
    return f"{label.class_name} 0.00 0 0.00 {box} {'0.00 ' * 7}{label.score:.3f}"


def _check_model(model: Path, predictor: Predictor, config: spec_pb2.InferencerConfig) -> None:
    for name in ("width", "height"):
        wanted, is_ = getattr(config, f"image_{name}"), getattr(predictor.input, name)
        if wanted not in (0, is_):
            raise UserError(f"{model}: its input is {is_} pixels in {name}, inferencer_config.image_{name} is {wanted}")
    for name in config.target_classes:
        if name not in predictor.decoder.class_names:
            known = ", ".join(predictor.decoder.class_names)
            raise UserError(f"{model}: it knows {known}; inferencer_config.target_classes names {name!r}")


def _handler(spec: spec_pb2.Inference, name: str) -> tuple[str, Handler]:
    """Returns a class's entry of `classwise_bbox_handler_config`, and its key: the class itself or `default`."""
    configs = spec.bbox_handler_config.classwise_bbox_handler_config
    for key in (name, "default"):
        if key in configs:
            return key, configs[key]
    raise UserError(f"bbox_handler_config.classwise_bbox_handler_config has neither {name!r} nor 'default'; add one")


def _drawing(spec: spec_pb2.Inference, name: str) -> Drawing:
    key, handler = _handler(spec, name)
    # A class that falls back to `default` keeps its own name, as in TAO.
    output = handler.output_map if key == name and handler.output_map else name
    if output.split() != [output]:
        raise UserError(f"output_map {output!r}: a KITTI class name has no spaces; write {'_'.join(output.split())!r}")
    colour = handler.bbox_color
    return Drawing(output, (colour.B, colour.G, colour.R) if handler.HasField("bbox_color") else _GREEN)
