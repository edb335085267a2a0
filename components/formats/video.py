"""Reading and writing video files with OpenCV, whose wheel contains FFmpeg."""

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import cv2
import numpy as np

from components.formats.images import Image
from components.step import StageError, UserError

SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"}
# MPEG-4 Part 2 in an MP4 container, which OpenCV's wheel can encode everywhere. It has no H.264 encoder.
_CODEC = cv2.VideoWriter.fourcc(*"mp4v")
OUTPUT_SUFFIX = ".mp4"
USUAL_RATE = 25.0
# Missing frames that are no failure if the container only estimates their number from the duration.
_TOLERATED_FRAMES, _TOLERATED_SHARE = 2, 0.03


class VideoReader:
    """The frames of a video file, upright, in order."""

    def __init__(self, file: Path) -> None:
        """Opens the file.

        Raises:
            UserError: It is not a video that FFmpeg can read.
        """
        # Errors are reported below, in one line. FFmpeg's log level is read when it is used for the first time.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        self._file = file
        start = b""
        with contextlib.suppress(OSError), file.open("rb") as stream:
            start = stream.read(12)
        self._has_index = start[4:8] == b"ftyp" or start[:4] + start[8:] == b"RIFFAVI "
        self._capture = cv2.VideoCapture(str(file), cv2.CAP_FFMPEG)
        cv2.utils.logging.setLogLevel(level)
        if not self._capture.isOpened():
            raise UserError(f"{file}: not a video that can be read; it may be cut off or of an unknown format")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if math.isfinite(rate) and 0 < rate <= 1000 else USUAL_RATE
        announced = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.announced = int(announced) if 0 < announced < 2**31 else 0
        self.read = 0

    def __iter__(self) -> Iterator[Image]:
        """Yields frames [H, W, 3] BGR, all of one size.

        Raises:
            StageError: The size changes within the video.
        """
        shape = None
        while True:
            found, frame = self._capture.read()
            if not found:
                break
            if frame.shape != (shape := shape or frame.shape):
                size = f"{frame.shape[1]}x{frame.shape[0]}"
                raise StageError(f"{self._file}: frame {self.read} is {size}, the ones before {shape[1]}x{shape[0]}")
            self.read += 1
            yield np.asarray(frame, np.uint8)
        self._capture.release()

    def missing(self) -> int:
        """Returns how many of the announced frames could not be read, once the others have been; 0 if it is no failure.

        MP4 and AVI have an exact index. Other containers estimate: a few per cent are reported, but are no failure.
        """
        lost = self.announced - self.read
        tolerated = 0 if self._has_index else max(_TOLERATED_FRAMES, _TOLERATED_SHARE * self.announced)
        if 0 < lost <= tolerated:
            print(f"{self._file}: {lost} of about {self.announced} frames are not there", file=sys.stderr)
        return lost if lost > tolerated else 0


class VideoWriter:
    """Writes frames as an MP4 file; use it as a context. The file has no audio."""

    def __init__(self, file: Path, rate: float) -> None:
        """Takes the file, ending in `.mp4`, and the frames per second."""
        self._file, self._rate = file, rate
        self._writer: cv2.VideoWriter | None = None
        self._written = 0

    def add(self, frame: Image) -> None:
        """Appends a frame [H, W, 3] BGR; the codec needs even sides, so the last row or column may be repeated."""
        height, width = frame.shape[:2]
        frame = np.asarray(cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE), np.uint8)
        if self._writer is None:
            size = frame.shape[1], frame.shape[0]
            self._writer = cv2.VideoWriter(str(self._file), cv2.CAP_FFMPEG, _CODEC, self._rate, size)
            if not self._writer.isOpened():
                raise StageError(f"{self._file}: OpenCV cannot write MP4 videos of {size[0]}x{size[1]} here")
        self._writer.write(frame)
        self._written += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._writer is None:
            return
        self._writer.release()
        if error is None and (stored := VideoReader(self._file).announced) != self._written:
            # OpenCV does not report a full disk.
            raise StageError(f"{self._file}: only {stored} of {self._written} frames could be written")
