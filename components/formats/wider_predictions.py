"""Detections in the text layout of the WIDER FACE evaluation: one file an image, in a folder or a zip archive.

Layout: `<event>/<image>.txt`, at any depth. A file holds the image's name (which no evaluator reads: the path counts),
the number of detections, and a line `x y width height score` for each, in pixels, origin top left.
"""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from components.step import UserError

_COLUMNS = 5


@dataclass(frozen=True, slots=True)
class PredictedBoxes:
    """Detections as the files hold them, unjudged, one file after the other.

    Attributes:
        names: [I] `<event>/<image>`, without a suffix.
        counts: [I] number of detections.
        rows: [D, 5] x, y, width, height, score; `nan` and `inf` come through.
    """

    names: tuple[str, ...]
    counts: NDArray[np.int64]
    rows: NDArray[np.float64]


def read_predictions(source: Path) -> PredictedBoxes:
    """Reads all text files of a folder or a zip archive.

    Raises:
        UserError: There is none, or one is not in this layout.
    """
    names: dict[str, str] = {}
    parsed: list[NDArray[np.float64]] = []
    for path, content in _files(source):
        where = f"{source}/{path}"
        name = "/".join(PurePosixPath(path).with_suffix("").parts[-2:])
        if name in names:
            raise UserError(f"{where}: {name} stands here a second time, after {names[name]}; remove one of them")
        names[name] = path
        parsed.append(parse_predictions(content, where))
    if not parsed:
        raise UserError(f"{source}: no detections here; <event>/<image>.txt is needed")
    return PredictedBoxes(tuple(names), np.array([len(rows) for rows in parsed], np.int64), np.concatenate(parsed))


def parse_predictions(content: bytes, source: str) -> NDArray[np.float64]:
    """Parses one file.

    Args:
        content: The file's bytes.
        source: The file's name, for messages.

    Returns:
        [N, 5] x, y, width, height, score.

    Raises:
        UserError: The file is not in this layout.
    """
    lines = content.splitlines()
    count = lines[1].strip() if len(lines) > 1 else b""
    if not count.isdigit():
        found = count[:40].decode("utf-8", "replace")
        raise UserError(f"{source}:2: {found!r} stands where the number of detections should stand")
    rows = [(number, line.split()) for number, line in enumerate(lines[2:], start=3) if line.strip()]
    try:
        values = [[float(column) for column in columns] for _, columns in rows]
    except ValueError:
        values = []
    if len(values) != len(rows) or any(len(row) != _COLUMNS for row in values):
        _fail(rows, source)
    if len(values) != int(count):
        raise UserError(f"{source}:2: {int(count)} detections are announced, {len(rows)} follow; was the file cut off?")
    return np.array(values, np.float64).reshape(-1, _COLUMNS)


def _fail(rows: list[tuple[int, list[bytes]]], source: str) -> NoReturn:
    """Names the first line that is wrong."""
    number, columns = next(row for row in rows if len(row[1]) != _COLUMNS or not all(map(_is_number, row[1])))
    text = b" ".join(columns)[:60].decode("utf-8", "replace")
    raise UserError(f"{source}:{number}: {text!r} is not a line 'x y width height score'")


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yields the path and the bytes of each text file, by path."""
    try:
        if source.is_dir():
            for file in sorted(source.rglob("*.txt")):
                yield file.relative_to(source).as_posix(), file.read_bytes()
            return
        with zipfile.ZipFile(source) as archive:
            for name in sorted(name for name in archive.namelist() if name.endswith(".txt")):
                yield name, archive.read(name)
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{source}: neither a folder nor a whole zip archive of detections: {error}") from error
