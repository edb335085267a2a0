"""Where images come from: a file, a folder of files, a video or a camera."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from components.formats.images import Image, decode
from components.formats.listing import image_files, label_names
from components.formats.video import SUFFIXES as VIDEO_SUFFIXES
from components.formats.video import USUAL_RATE, VideoReader
from components.step import UserError

# At this quality boxes found in a frame that travels as JPEG move by hundredths of a pixel.
_JPEG_QUALITY = 95


@dataclass(frozen=True, slots=True)
class SourceImage:
    """An image file, undecoded, or a frame of a video or camera.

    Attributes:
        name: Name of the file, or of the frame, which has no suffix.
        label_name: Name of its label file, without a suffix.
        content: The file's bytes; empty for a frame.
        frame: [H, W, 3] BGR; None for a file.
    """

    name: str
    label_name: str
    content: bytes = b""
    frame: Image | None = None

    def encoded(self) -> bytes:
        """Returns the file's bytes, or the frame as JPEG."""
        if self.frame is None:
            return self.content
        return cv2.imencode(".jpg", self.frame, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()

    def pixels(self) -> Image:
        """Returns [H, W, 3] BGR, which may be drawn on.

        Raises:
            ImageError: The file is not an image, or is cut off.
        """
        return decode(self.content) if self.frame is None else self.frame


class Source:
    """Images in order.

    Attributes:
        title: Its name in messages and in names of files.
        total: Number of images, 0 if it is not known.
        rate: Frames per second of a video or camera; None for image files.
        live: Whether it has no end of its own.
        troubles: What could not be used so far, each in words.
    """

    def __init__(self, title: str, total: int, rate: float | None = None, live: bool = False) -> None:
        """See the attributes."""
        self.title, self.total, self.rate, self.live = title, total, rate, live
        self.troubles: list[str] = []

    def __iter__(self) -> Iterator[SourceImage]:
        """Yields the images, once."""
        raise NotImplementedError

    def _frame(self, index: int, pixels: Image) -> SourceImage:
        name = f"{self.title}_{index:06d}"
        return SourceImage(name, name, frame=pixels)


class ImageFiles(Source):
    """An image, or all images of a folder by name."""

    def __init__(self, path: Path) -> None:
        """Lists the files; folders in the folder are not searched.

        Raises:
            UserError: There are none, or two label files would have the same name.
        """
        self._labels = label_names(image_files(path))
        absolute = path.resolve()
        super().__init__(absolute.stem if path.is_file() else absolute.name, len(self._labels))

    def __iter__(self) -> Iterator[SourceImage]:
        """See `Source`."""
        for file, label in self._labels.items():
            try:
                yield SourceImage(file.name, label, file.read_bytes())
            except OSError as error:
                self.troubles.append(f"{file.name}: {error.strerror}")


class Video(Source):
    """The frames of a video file."""

    def __init__(self, file: Path) -> None:
        """Opens the file.

        Raises:
            UserError: It cannot be read as a video.
        """
        self._reader = VideoReader(file)
        super().__init__(file.stem, self._reader.announced, self._reader.rate)

    def __iter__(self) -> Iterator[SourceImage]:
        """See `Source`."""
        for index, pixels in enumerate(self._reader):
            yield self._frame(index, pixels)
        if missing := self._reader.missing():
            lost = f"{missing} of {self._reader.announced} frames could not be read"
            self.troubles.append(f"{lost}, the video is damaged or cut off")


class Camera(Source):
    """The frames of a camera of this machine."""

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
        super().__init__(f"camera{number}", 0, rate if 0 < rate <= 1000 else USUAL_RATE, live=True)

    def __iter__(self) -> Iterator[SourceImage]:
        """See `Source`."""
        index = 0
        try:
            while (read := self._capture.read())[0]:
                yield self._frame(index, np.asarray(read[1], np.uint8))
                index += 1
            self.troubles.append("it gives no more frames")
        finally:
            self._capture.release()


def open_files(path: Path) -> Source:
    """Returns the frames of a video, or an image, or all images of a folder.

    Raises:
        UserError: There is nothing of that kind.
    """
    is_video = path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()
    return Video(path) if is_video else ImageFiles(path)


def open_source(location: str) -> Source:
    """Returns what `open_files` does, or the camera of a number.

    Raises:
        UserError: There is nothing of that kind.
    """
    path = Path(location)
    if location.isdecimal() and not path.exists():
        return Camera(int(location))
    if not path.exists():
        raise UserError(f"{location}: no such image, folder or video (a camera has a number, the first one 0)")
    return open_files(path)
