"""Decoded images in a file-backed array: resident memory stays flat as the data grow, whatever their number."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Literal, Self

import numpy as np
from numpy.typing import NDArray

from components.formats.images import ImageError, decode
from components.step import UserError
from components.vision.distributed import Group

Pixels = NDArray[np.uint8]
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class PixelStore:
    """Images [height, width, 3] of mixed sizes, one behind the other in an unlinked temporary file.

    Nothing is left behind, however the process ends.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], file: IO[bytes] | None = None) -> None:
        """Reserves the place of black images.

        Args:
            sizes: Width and height of each, pixels.
            file: Holds them already.

        Raises:
            UserError: The disk has no room for them.
        """
        self.sizes = sizes
        self._offsets = np.cumsum([0, *(3 * width * height for width, height in sizes)], dtype=np.int64)
        size = int(self._offsets[-1])
        self._file = file or _reserved(size)
        mode: Literal["r", "r+"] = "r" if file else "r+"
        self._bytes: Pixels = np.memmap(self._file, np.uint8, mode, shape=(size,)) if size else np.zeros(0, np.uint8)

    @classmethod
    def filled(cls, sizes: Sequence[tuple[int, int]], fill: Callable[[Self], None], group: Group) -> Self:
        """Returns images that one process of each machine has decoded, and that its others map.

        Args:
            sizes: Width and height of each, pixels.
            fill: Called in the machine's first process.
            group: The processes that train together; all of them call this.

        Raises:
            UserError: The disk has no room, or `fill` says so; in the machine's first process.
            SystemExit: Another process says so.
        """
        store = failure = None
        if group.local_rank == 0:
            try:
                store = cls(sizes)
                fill(store)
            except UserError as error:
                failure = error
        opened = None if store is None or failure else (os.getpid(), store._file.fileno())
        first = group.gathered(opened)[group.rank - group.local_rank]
        if failure:
            raise failure
        if not first:
            raise SystemExit(2)  # the first process has said why
        # The file has no name; as long as the first process has it open, the others reach it so.
        if store is None:
            with Path("/proc/{}/fd/{}".format(*first)).open("rb") as file:
                store = cls(sizes, file)
        group.gathered(None)  # nobody ends before all have it
        return store

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Pixels]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Pixels:
        width, height = self.sizes[index]
        return self._bytes[self._offsets[index] : self._offsets[index + 1]].reshape(height, width, 3)

    def stacked(self) -> Pixels:
        """Returns [N, height, width, 3], of images of one size."""
        width, height = self.sizes[0] if self.sizes else (1, 1)
        return self._bytes.reshape(-1, height, width, 3)


def _reserved(size: int) -> IO[bytes]:
    """Returns an unlinked temporary file of this size.

    The disk's blocks are taken at once: where they come as they are written, a full disk ends the process by a signal,
    without a word.
    """
    file = tempfile.TemporaryFile()  # noqa: SIM115 - it is kept open
    try:
        if size:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        file.close()
        if error.errno not in _NO_ROOM:
            raise
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        raise UserError(
            f"{folder}: the decoded images need {size / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free "
            f"({error.strerror}); name a larger place in TMPDIR, or convert the images to a smaller size"
        ) from error
    return file


def read_rgb(file: Path, width: int, height: int) -> Pixels:
    """Decodes the image of a record as RGB [height, width, 3].

    A record whose width and height are swapped is about the image as it is stored, without its EXIF orientation.

    Raises:
        UserError: The image is missing, broken, or of another size.
    """
    try:
        content = file.read_bytes()
        image = decode(content)
        if image.shape[:2] == (width, height):
            image = decode(content, upright=False)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; the records name this image, was the folder moved?") from error
    except ImageError as error:
        raise UserError(f"{file}: {error}") from error
    if image.shape[:2] != (height, width):
        size = f"{image.shape[1]}x{image.shape[0]}, its record says {width}x{height}"
        raise UserError(f"{file}: {size}; convert the data again")
    return image[..., ::-1]
