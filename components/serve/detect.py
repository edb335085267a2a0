"""Detects through a Triton endpoint in an image, a folder of images, a video or a camera, and writes the results."""

import os
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Literal

import cv2

from components.formats.images import Image
from components.formats.kitti import Label
from components.formats.listing import some
from components.step import StageError, UserError
from components.vision.endpoint import Answer, Endpoint
from components.vision.sinks import Done, Drawing, Found, Result, Sink, json_lines, kitti_labels, write_results
from components.vision.sinks import overlays as draw_overlays
from components.vision.sources import Source

LabelFormat = Literal["none", "kitti", "json"]
_COLOURS = [(0, 255, 0), (0, 128, 255), (255, 128, 0), (255, 0, 255), (0, 255, 255), (255, 255, 0)]  # BGR
_STOP_KEYS = {ord("q"), 27}  # q, Escape


def default_output(words: str, source: Source) -> Path:
    """Returns the default folder for results: beside the source, or for a camera the working directory."""
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
        """Shows an image; returns False when q or Escape was pressed."""
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
) -> Done:
    """Sends images to an endpoint, several at once, and draws and writes what it finds in their order.

    Results appear in `output` at the end: `images_annotated/` (a video for a video), `labels/` or
    `detections.jsonl`; existing files of other names are kept. A live source ends with
    Ctrl-C.

    Args:
        endpoint: The detector.
        source: The images.
        output: The folder of results; None for none.
        labels: What is written in addition to overlays: nothing, a KITTI file for each image, or lines of JSON.
        window: Shows each image.
        overlays: Whether images with boxes are written.

    Raises:
        UserError: Nothing of the source can be read.
        StageError: The endpoint fails, or some images could not be read or answered; the others are done.
    """
    with ExitStack() as stack:
        sinks: list[Sink] = []
        if output and overlays:
            sinks.append(draw_overlays(stack, output, source))
        if output and labels == "kitti":
            sinks.append(kitti_labels(stack, output))
        if output and labels == "json":
            sinks.append(json_lines(stack, output))
        results = stack.enter_context(closing(_results(endpoint, source)))
        if window:
            stack.callback(window.close)
        done = write_results(_watched(results, window) if window else results, source, sinks)
        if not done.images:
            raise UserError(f"{source.title}: nothing here could be detected in: {some(done.troubles) or 'no images'}")
    if done.troubles:
        where = f" and in {output}" if output else ""
        raise StageError(f"{source.title}: {some(done.troubles)}; the {done.images} others are done{where}")
    return done


def _results(endpoint: Endpoint, source: Source) -> Generator[Result | str, None, None]:
    """Yields what the endpoint finds in each image, or why it has no answer; several are under way at once."""
    with closing(endpoint.stream((image, image.encoded()) for image in source)) as answers:
        for image, answer in answers:
            if answer.error:
                yield f"{image.name}: {answer.error}"
            else:
                yield Result(image, (answer.width, answer.height), _found(answer))


def _watched(results: Iterable[Result | str], window: Window) -> Iterator[Result | str]:
    """Yields results, and shows each when it has been written, until the window is closed."""
    for result in results:
        yield result
        if isinstance(result, Result) and not window.show(result.drawn):
            return


def _found(answer: Answer) -> list[Found]:
    found = []
    for index, (name, rows) in enumerate(answer.detections.items()):
        drawing = Drawing(name, _COLOURS[index % len(_COLOURS)])
        for x1, y1, x2, y2, score in rows.tolist():
            found.append(Found(Label(name, 0.0, 0, (x1, y1, x2, y2), score), drawing))
    return found
