"""`detectnet_v2 inference`: overlays and KITTI labels for an image, a folder of images, or a video."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from components.decode.grid.clustering import detect_for_inference, detect_for_inference_like_tao5
from components.detectnet_v2 import experiment, spec_pb2
from components.formats.images import Image, ImageError, decode
from components.formats.kitti import Label
from components.formats.listing import IMAGE_SUFFIXES, image_files, label_names, some
from components.formats.video import OUTPUT_SUFFIX, VideoReader, VideoWriter
from components.formats.video import SUFFIXES as VIDEO_SUFFIXES
from components.progress import track
from components.step import StageError, UserError, publish_files
from components.vision.overlay import LABELS, OVERLAYS, Drawing, Found, draw, spare_source
from components.vision.predictor import Predictor, detect_images, load_predictor
from components.vision.status import StatusLog

_GREEN = (0, 255, 0)

Item = TypeVar("Item")
Handler = spec_pb2.BboxHandlerConfig.ClasswiseBboxHandlerConfig


@dataclass
class Inferred:
    """What an inference did.

    Attributes:
        images: Images or frames looked at.
        detections: Found in them.
        seconds: From the first image to the last, reading and writing included.
        troubles: What could not be read, each in words.
    """

    images: int = 0
    detections: int = 0
    seconds: float = 0.0
    troubles: list[str] = field(default_factory=list)


def infer(
    spec: spec_pb2.Inference,
    source: Path,
    results: Path,
    model: Path | None = None,
    batch_size: int = 0,
    *,
    tao5: bool = False,
) -> Inferred:
    """Detects in an image, in all images of a folder, or in a video.

    The files in `images_annotated/` and `labels/` appear in the results directory when all is done, in the place of
    former ones of their names. Other files there stay.
    What cannot be read is left out and named at the end.

    Args:
        spec: The inference spec.
        source: An image, a folder of images (its folders are not looked into), or a video.
        results: The results directory.
        model: Replaces the spec's model.
        batch_size: Replaces the spec's batch size where above 0.
        tao5: Reproduce TAO 5's defects.

    Raises:
        UserError: There is nothing to read, the model does not belong to the spec, or results would take the place of
            the source.
        StageError: Some of the images, or a part of the video, could not be read; the rest is done.
    """
    spare_source(source, results)
    status = StatusLog(results)
    status.write("STARTED", "Starting DetectNet_v2 Inference")
    config = spec.bbox_handler_config
    detector = ImageDetector(spec, model or Path(spec.inferencer_config.tlt_config.model), tao5=tao5)
    size = batch_size or spec.inferencer_config.batch_size or 1
    begin = time.monotonic()
    with publish_files(results / OVERLAYS) as overlays, publish_files(results / LABELS) as labels:
        output = _Output(
            None if config.disable_overlay else overlays,
            labels if config.kitti_dump else None,
            max(config.overlay_linewidth, 1),
        )
        if source.is_file() and source.suffix.lower() in VIDEO_SUFFIXES:
            done = _infer_video(detector, source, size, output)
        else:
            done = _infer_images(detector, image_files(source), size, output)
        if not done.images:
            raise UserError(f"{source}: nothing here can be read: {some(done.troubles)}")
    done.seconds = time.monotonic() - begin
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
        _refuse_stranger(model, self._predictor, config)
        names = tuple(spec.bbox_handler_config.postproc_classes) or tuple(config.target_classes)
        self._drawings = {name: _drawing(spec, name) for name in names}
        # Classes without an entry are not looked for.
        handlers = {name: _handler(spec, name)[1] for name in names}
        self._decoder = replace(
            experiment.grid_decoder(self._predictor.decoder, model),
            clustering={name: experiment.inference_clustering(handler, tao5) for name, handler in handlers.items()},
            detector=detect_for_inference_like_tao5 if tao5 else detect_for_inference,
        )

    def __call__(self, images: Sequence[Image]) -> list[list[Found]]:
        """Detects in images [H, W, 3] BGR of any sizes: TAO stretches them to the network's input."""
        spec = replace(self._predictor.input, fit="stretch")
        width, height = spec.width, spec.height
        stretched = np.stack([spec.place(image)[0] for image in images])
        found = detect_images(self._predictor, stretched, self._decoder)
        return [
            [
                Found(
                    _label(row, (image.shape[1] / width, image.shape[0] / height), drawing.output_name),
                    drawing,
                )
                for name, drawing in self._drawings.items()
                for row in instances.select(self._decoder.class_names.index(name)).rows().tolist()
            ]
            for image, instances in zip(images, found, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class _Output:
    """Where overlays and labels go, None for nowhere, and the width of the lines drawn."""

    overlays: Path | None
    labels: Path | None
    line_width: int

    def write_labels(self, name: str, found: Sequence[Found]) -> None:
        if self.labels:
            text = "".join(kitti_line(entry.label) + "\n" for entry in found)
            (self.labels / f"{name}.txt").write_text(text, encoding="utf-8")


def _infer_images(detector: ImageDetector, files: Sequence[Path], size: int, output: _Output) -> Inferred:
    done = Inferred()
    names = label_names(files)
    for batch in _batches(track(files, len(files), "detecting in images"), size):
        images: dict[Path, Image] = {}
        for file in batch:
            try:
                images[file] = decode(file.read_bytes())
            except (ImageError, OSError) as error:
                done.troubles.append(f"{file.name}: {error}")
        if not images:
            continue
        for (file, image), found in zip(images.items(), detector(list(images.values())), strict=True):
            output.write_labels(names[file], found)
            if output.overlays:
                draw(image, found, output.line_width)
                name = file.name if file.suffix.lower() in IMAGE_SUFFIXES else f"{file.name}.png"
                (output.overlays / name).write_bytes(cv2.imencode(Path(name).suffix, image)[1].tobytes())
            done.images += 1
            done.detections += len(found)
    return done


def _infer_video(detector: ImageDetector, file: Path, size: int, output: _Output) -> Inferred:
    done = Inferred()
    reader = VideoReader(file)
    with ExitStack() as stack:
        writer = None
        if output.overlays:
            writer = stack.enter_context(VideoWriter(output.overlays / f"{file.stem}{OUTPUT_SUFFIX}", reader.rate))
        for batch in _batches(track(reader, reader.announced, "detecting in frames"), size):
            for image, found in zip(batch, detector(batch), strict=True):
                output.write_labels(f"{file.stem}_{done.images:06d}", found)
                if writer:
                    draw(image, found, output.line_width)
                    writer.add(image)
                done.images += 1
                done.detections += len(found)
    if reader.missing():
        done.troubles.append(
            f"{reader.missing()} of {reader.announced} frames could not be read, the video is damaged or cut off"
        )
    return done


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def _label(row: Sequence[float], scale: tuple[float, float], name: str) -> Label:
    """Maps a detection (x1, y1, x2, y2, score), which lies inside the network's input, to the image's own pixels."""
    x1, y1, x2, y2, score = row
    return Label(name, 0.0, 0, (x1 * scale[0], y1 * scale[1], x2 * scale[0], y2 * scale[1]), score)


def kitti_line(label: Label) -> str:
    """Returns TAO's line of 16 columns: what a detector does not know is zero, coordinates have three decimals."""
    box = " ".join(f"{edge:.3f}" for edge in label.box)
    return f"{label.class_name} 0.00 0 0.00 {box} {'0.00 ' * 7}{label.score:.3f}"


def _refuse_stranger(model: Path, predictor: Predictor, config: spec_pb2.InferencerConfig) -> None:
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
