"""Where detections go: images or a video with boxes drawn, KITTI labels, JSON lines."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import cv2

from components.formats.images import Image
from components.formats.kitti import Label, format_label
from components.formats.listing import IMAGE_SUFFIXES
from components.formats.video import OUTPUT_SUFFIX, VideoWriter
from components.progress import track
from components.step import UserError, publish, publish_files
from components.vision.sources import Source, SourceImage

# TAO's names for the folders of an inference's results.
OVERLAYS, LABELS = "images_annotated", "labels"
JSON_LINES = "detections.jsonl"


@dataclass(frozen=True, slots=True)
class Drawing:
    """How one class's detections are written and drawn.

    Attributes:
        output_name: Class name in the label files.
        colour: BGR, 0..255.
    """

    output_name: str
    colour: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Found:
    """A detection in an image, in the image's own pixels, and how it is drawn."""

    label: Label
    drawing: Drawing


@dataclass
class Result:
    """What was found in an image.

    Attributes:
        image: The image.
        size: Its width and height, pixels.
        found: The detections.
        line_width: Width of the lines drawn, pixels; 0 lets it grow with the image.
    """

    image: SourceImage
    size: tuple[int, int]
    found: Sequence[Found]
    line_width: int = 0

    @cached_property
    def drawn(self) -> Image:
        """The image [H, W, 3] BGR with its detections."""
        drawn = self.image.pixels()
        draw(drawn, self.found, self.line_width or max(1, round(min(drawn.shape[:2]) / 400)))
        return drawn


Sink = Callable[[Result], None]


@dataclass
class Done:
    """A finished detection.

    Attributes:
        images: Images or frames with a result.
        detections: Detections in them.
        seconds: From the first image to the last, reading and writing included.
        troubles: What could not be read or answered, each in words.
    """

    images: int = 0
    detections: int = 0
    seconds: float = 0.0
    troubles: Sequence[str] = field(default_factory=list)


def write_results(results: Iterable[Result | str], source: Source, sinks: Sequence[Sink]) -> Done:
    """Hands each result to all sinks, until there are no more or, of a live source, until Ctrl-C.

    Args:
        results: In the order of the images; of an image without a result, what was wrong with it.
        source: Where the images come from; its `troubles` grow by theirs.
        sinks: What writes a result.
    """
    done, begin = Done(troubles=source.troubles), time.monotonic()
    try:
        for result in track(results, source.total, f"detecting in {source.title}"):
            if isinstance(result, str):
                source.troubles.append(result)
                continue
            for sink in sinks:
                sink(result)
            done.images += 1
            done.detections += len(result.found)
    except KeyboardInterrupt:
        if not source.live:
            raise
    done.seconds = time.monotonic() - begin
    return done


def overlays(stack: ExitStack, results: Path, source: Source) -> Sink:
    """Returns a sink for drawn images, or for a video of them, which appear in a folder when `stack` ends."""
    folder = stack.enter_context(publish_files(results / OVERLAYS))
    if source.rate is None:
        return lambda result: _write_image(folder / result.image.name, result.drawn)
    video = stack.enter_context(VideoWriter(folder / f"{source.title}{OUTPUT_SUFFIX}", source.rate))
    return lambda result: video.add(result.drawn)


def kitti_labels(stack: ExitStack, results: Path, line: Callable[[Label], str] = format_label) -> Sink:
    """Returns a sink for one label file an image, which appear in a folder when `stack` ends."""
    folder = stack.enter_context(publish_files(results / LABELS))

    def write(result: Result) -> None:
        text = "".join(line(entry.label) + "\n" for entry in result.found)
        (folder / f"{result.image.label_name}.txt").write_text(text, encoding="utf-8")

    return write


def json_lines(stack: ExitStack, results: Path) -> Sink:
    """Returns a sink for one line of JSON an image, in a file that appears when `stack` ends."""
    stream = stack.enter_context(stack.enter_context(publish(results / JSON_LINES)).open("w", encoding="utf-8"))
    return lambda result: print(_json_line(result), file=stream)


def check_apart(source: Path, results: Path) -> None:
    """Refuses a results directory in which results would take the place of the source's images or of their labels.

    Raises:
        UserError: They would.
    """
    images = source.resolve() if source.is_dir() else source.resolve().parent
    beside = images.parent if (images.parent / LABELS).is_dir() else None
    if results.resolve() == beside or (results / OVERLAYS).resolve() == images:
        raise UserError(f"{results}: results would take the place of images or labels of {source}; name another folder")


def draw(image: Image, found: Sequence[Found], line_width: int) -> None:
    """Draws boxes and scores on an image [H, W, 3] BGR; lines are `line_width` pixels wide, the text grows with H."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, max(0.35, image.shape[0] / 1200)
    for entry in found:
        x1, y1, x2, y2 = (round(edge) for edge in entry.label.box)
        colour, text = entry.drawing.colour, f"{entry.label.score:.2f}"
        cv2.rectangle(image, (x1, y1), (x2, y2), colour, line_width, cv2.LINE_AA)
        (width, height), below = cv2.getTextSize(text, font, scale, 1)
        bottom = max(y1, height + below)
        cv2.rectangle(image, (x1, bottom - height - below), (x1 + width, bottom), colour, cv2.FILLED)
        cv2.putText(image, text, (x1, bottom - below // 2 - 1), font, scale, _contrasting(colour), 1, cv2.LINE_AA)


def _contrasting(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Returns black or white, whichever stands out."""
    blue, green, red = colour
    return (0, 0, 0) if 0.114 * blue + 0.587 * green + 0.299 * red > 128 else (255, 255, 255)


def _write_image(file: Path, image: Image) -> None:
    """Writes an image in the format of its suffix, or as PNG behind a suffix of another kind."""
    if file.suffix.lower() not in IMAGE_SUFFIXES:
        file = file.with_name(f"{file.name}.png")
    file.write_bytes(cv2.imencode(file.suffix, image)[1].tobytes())


def _json_line(result: Result) -> str:
    detections = [
        {
            "class": entry.label.class_name,
            "box": [round(edge, 3) for edge in entry.label.box],
            "score": round(entry.label.score or 0.0, 6),
        }
        for entry in result.found
    ]
    width, height = result.size
    return json.dumps({"image": result.image.name, "width": width, "height": height, "detections": detections})
