"""What a Triton endpoint finds in an image, a folder of images, a video or a camera's pictures: drawn and written."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from components.formats.images import Image, decode
from components.formats.kitti import Label, format_label
from components.formats.listing import IMAGE_SUFFIXES, image_files, label_names, some
from components.formats.video import OUTPUT_SUFFIX, VideoReader, VideoWriter
from components.formats.video import SUFFIXES as VIDEO_SUFFIXES
from components.progress import track
from components.step import StageError, UserError, publish, publish_files
from components.vision.endpoint import Answer, Endpoint
from components.vision.overlay import LABELS, OVERLAYS, Drawing, Found, draw

JSON_LINES = "detections.jsonl"
LabelFormat = Literal["none", "kitti", "json"]
_COLOURS = [(0, 255, 0), (0, 128, 255), (255, 128, 0), (255, 0, 255), (0, 255, 255), (255, 255, 0)]  # BGR
# Frames travel as JPEG: at this quality boxes move by hundredths of a pixel.
_FRAME_QUALITY = 95
_USUAL_RATE = 25.0
_STOP_KEYS = {ord("q"), 27}  # q, Escape


@dataclass(frozen=True, slots=True)
class Shot:
    """One image on its way.

    Attributes:
        name: What its overlay is called, with a suffix; of a frame, what the frame is called.
        label_name: What its label file is called, without a suffix.
        encoded: What is sent.
        pixels: [H, W, 3] BGR, of a frame; an image file is decoded when it is drawn.
    """

    name: str
    label_name: str
    encoded: bytes
    pixels: Image | None = None

    def image(self) -> Image:
        """Returns its pixels, which may be drawn on."""
        return decode(self.encoded) if self.pixels is None else self.pixels


@dataclass
class Done:
    """What was done.

    Attributes:
        images: Images or frames with an answer.
        detections: Found in them.
        seconds: From the first image to the last, reading and drawing included.
        troubles: What could not be read or answered, each in words.
    """

    images: int = 0
    detections: int = 0
    seconds: float = 0.0
    troubles: list[str] = field(default_factory=list)


class Source:
    """Where images come from.

    Attributes:
        title: What it is called in messages and in the names of files.
        total: How many images there will be, 0 where nobody knows.
        rate: Frames per second of a video or camera; None for image files.
        live: Whether it goes on until somebody stops it.
        troubles: What could not be read so far.
    """

    def __init__(self, title: str, total: int, rate: float | None = None, live: bool = False) -> None:
        """See the attributes."""
        self.title, self.total, self.rate, self.live = title, total, rate, live
        self.troubles: list[str] = []

    def __iter__(self) -> Iterator[Shot]:
        """Yields the images in order, once."""
        raise NotImplementedError


class ImageFiles(Source):
    """An image, or all images of a folder by name."""

    def __init__(self, path: Path) -> None:
        """Lists the files.

        Raises:
            UserError: There are none, or their labels would clash.
        """
        self._labels = label_names(image_files(path))
        super().__init__(path.stem if path.is_file() else path.name, len(self._labels))

    def __iter__(self) -> Iterator[Shot]:
        """See `Source`."""
        for file, label in self._labels.items():
            name = file.name if file.suffix.lower() in IMAGE_SUFFIXES else f"{file.name}.png"
            try:
                yield Shot(name, label, file.read_bytes())
            except OSError as error:
                self.troubles.append(f"{file.name}: {error.strerror}")


class Video(Source):
    """The frames of a video file."""

    def __init__(self, file: Path) -> None:
        """Opens it."""
        self._reader = VideoReader(file)
        super().__init__(file.stem, self._reader.announced, self._reader.rate)

    def __iter__(self) -> Iterator[Shot]:
        """See `Source`."""
        for index, frame in enumerate(self._reader):
            yield _frame(self.title, index, frame)
        if missing := self._reader.missing():
            self.troubles.append(f"{missing} of {self._reader.announced} frames could not be read")


class Camera(Source):
    """The pictures of a camera of this machine, until it is stopped."""

    def __init__(self, number: int) -> None:
        """Opens camera `number`.

        Raises:
            UserError: It cannot be opened.
        """
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        self._capture = cv2.VideoCapture(number)
        cv2.utils.logging.setLogLevel(level)
        if not self._capture.isOpened():
            raise UserError(
                f"camera {number} cannot be opened; is it attached, free, and may you read /dev/video{number}?"
            )
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        super().__init__(f"camera{number}", 0, rate if 0 < rate <= 1000 else _USUAL_RATE, live=True)

    def __iter__(self) -> Iterator[Shot]:
        """See `Source`."""
        index = 0
        try:
            while (read := self._capture.read())[0]:
                yield _frame(self.title, index, np.asarray(read[1], np.uint8))
                index += 1
            self.troubles.append("it gives no more frames")
        finally:
            self._capture.release()


def _frame(title: str, index: int, pixels: Image) -> Shot:
    name = f"{title}_{index:06d}"
    encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _FRAME_QUALITY])[1].tobytes()
    return Shot(name, name, encoded, pixels)


def open_source(words: str) -> Source:
    """Returns what a person means: a camera's number, a video, an image or a folder of images.

    Raises:
        UserError: There is nothing of that kind.
    """
    path = Path(words)
    if words.isdecimal() and not path.exists():
        return Camera(int(words))
    if not path.exists():
        raise UserError(f"{words}: no such image, folder or video (a camera has a number, the first one 0)")
    return Video(path) if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES else ImageFiles(path.resolve())


def default_output(words: str, source: Source) -> Path:
    """Returns the folder beside the source into which results go; those of a camera go here."""
    return (Path() if source.live else Path(words).resolve().parent) / f"{source.title}_detected"


class Window:
    """A window on the screen that shows one image after the other."""

    def __init__(self, title: str, wait_for_key: bool) -> None:
        """Opens it; with `wait_for_key` an image stays until a key is pressed.

        Raises:
            UserError: This OpenCV, or this machine, has none.
        """
        mend = "leave out --show to write files"
        if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise UserError(f"--show: there is no screen here (DISPLAY is not set); {mend}")
        try:
            cv2.namedWindow(title, cv2.WINDOW_NORMAL)
        except cv2.error as error:
            swap = "pip uninstall opencv-python-headless && pip install opencv-python"
            raise UserError(f"--show: the headless OpenCV has no windows; {swap}, or {mend}") from error
        self._title, self._delay = title, 0 if wait_for_key else 1

    def show(self, image: Image) -> bool:
        """Shows an image; returns False when somebody pressed q or Escape."""
        cv2.imshow(self._title, image)
        return cv2.waitKey(self._delay) & 0xFF not in _STOP_KEYS

    def close(self) -> None:
        """Closes it."""
        cv2.destroyWindow(self._title)


def detect(
    endpoint: Endpoint,
    source: Source,
    output: Path | None,
    labels: LabelFormat = "none",
    window: Window | None = None,
    overlays: bool = True,
    min_score: float = 0.0,
) -> Done:
    """Sends images to an endpoint, several at once, and draws and writes what it finds in their order.

    Results appear in `output` when all is done: `images_annotated/` (a video for a video), `labels/` or
    `detections.jsonl`; of what lies there, only files of the same names are replaced. A live source is done when it is
    stopped (Ctrl-C).

    Args:
        endpoint: The detector.
        source: The images.
        output: The folder of results; None for none.
        labels: What is written besides overlays: nothing, a KITTI file for each image, or lines of JSON.
        window: Shows each image.
        overlays: Whether images with boxes are written.
        min_score: Detections with a lower score are left out.

    Raises:
        UserError: Nothing of the source can be read.
        StageError: The endpoint fails, or some images could not be read or answered and the others are done.
    """
    done, begin = Done(), time.monotonic()
    with ExitStack() as stack:
        sinks = _sinks(stack, source, output if overlays or labels != "none" else None, labels, overlays)
        if window:
            stack.callback(window.close)
        answers = endpoint.stream((shot, shot.encoded) for shot in source)
        try:
            for shot, answer in track(answers, source.total, f"detecting in {source.title}"):
                if answer.error:
                    done.troubles.append(f"{shot.name}: {answer.error}")
                    continue
                result = _Result(shot, answer, _found(answer, min_score))
                for sink in sinks:
                    sink(result)
                done.images += 1
                done.detections += len(result.found)
                if window and not window.show(result.drawn()):
                    break
        except KeyboardInterrupt:
            if not source.live:
                raise
        finally:
            answers.close()
        done.troubles += source.troubles
        if not done.images:
            raise UserError(f"{source.title}: nothing here could be detected in: {some(done.troubles) or 'no images'}")
    done.seconds = time.monotonic() - begin
    if done.troubles:
        where = f" and in {output}" if output else ""
        raise StageError(f"{source.title}: {some(done.troubles)}; the {done.images} others are done{where}")
    return done


@dataclass
class _Result:
    """One image and what was found in it; it is drawn at most once."""

    shot: Shot
    answer: Answer
    found: list[Found]
    _drawn: Image | None = None

    def drawn(self) -> Image:
        if self._drawn is None:
            self._drawn = self.shot.image()
            draw(self._drawn, self.found, max(1, round(min(self._drawn.shape[:2]) / 400)))
        return self._drawn


_Sink = Callable[[_Result], None]


def _found(answer: Answer, min_score: float) -> list[Found]:
    found = []
    for index, (name, rows) in enumerate(answer.detections.items()):
        drawing = Drawing(name, _COLOURS[index % len(_COLOURS)])
        for x1, y1, x2, y2, score in rows[rows[:, 4] >= min_score].tolist():
            found.append(Found(Label(name, 0.0, 0, (x1, y1, x2, y2), score), drawing))
    return found


def _sinks(stack: ExitStack, source: Source, output: Path | None, labels: LabelFormat, overlays: bool) -> list[_Sink]:
    """Returns what writes a result, each ending with `stack`."""
    sinks: list[_Sink] = []
    if output is None:
        return sinks
    if overlays:
        folder = stack.enter_context(publish_files(output / OVERLAYS))
        if source.rate is None:
            sinks.append(lambda result: _write_image(folder / result.shot.name, result.drawn()))
        else:
            video = stack.enter_context(VideoWriter(folder / f"{source.title}{OUTPUT_SUFFIX}", source.rate))
            sinks.append(lambda result: video.add(result.drawn()))
    if labels == "kitti":
        texts = stack.enter_context(publish_files(output / LABELS))
        sinks.append(lambda result: _write_kitti(texts / f"{result.shot.label_name}.txt", result.found))
    if labels == "json":
        stream = stack.enter_context(stack.enter_context(publish(output / JSON_LINES)).open("w", encoding="utf-8"))
        sinks.append(lambda result: print(_json_line(result), file=stream))
    return sinks


def _write_image(file: Path, image: Image) -> None:
    file.write_bytes(cv2.imencode(file.suffix, image)[1].tobytes())


def _write_kitti(file: Path, found: Sequence[Found]) -> None:
    file.write_text("".join(format_label(entry.label) + "\n" for entry in found), encoding="utf-8")


def _json_line(result: _Result) -> str:
    detections = [
        {
            "class": entry.label.class_name,
            "box": [round(edge, 3) for edge in entry.label.box],
            "score": round(entry.label.score or 0.0, 6),
        }
        for entry in result.found
    ]
    answer = result.answer
    line = {"image": result.shot.name, "width": answer.width, "height": answer.height, "detections": detections}
    return json.dumps(line)
