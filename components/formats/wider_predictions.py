"""Detections in the text layout of the WIDER FACE evaluation: one file an image, in a folder or a zip archive.

Layout: `<event>/<image>.txt`, at any depth. A file holds the image's name (ignored, the path counts), the number of
detections, and a line `x y width height score` for each, in pixels, origin top left.
"""

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from components.formats.listing import is_foreign, list_files
from components.formats.reading import decode_text, read_bytes, to_number
from components.formats.wider import ZIP_ERRORS
from components.step import UserError

_COLUMNS = 5


@dataclass(frozen=True, slots=True)
class PredictedBoxes:
    """Detections as in the files, unchecked, one file after the other.

    Attributes:
        names: [I] `<event>/<image>`, without a suffix.
        counts: [I] number of detections.
        rows: [D, 5] x, y, width, height, score; `nan` and `inf` are kept.
        left_out: Text files that lie in no folder of an event.
    """

    names: tuple[str, ...]
    counts: NDArray[np.int64]
    rows: NDArray[np.float64]
    left_out: tuple[str, ...]


def read_predictions(source: Path) -> PredictedBoxes:
    """Reads all text files of a folder or a zip archive, but those outside the folders of events (a README).

    Raises:
        UserError: There is none, or one is not in this layout.
    """
    names: dict[str, str] = {}
    parsed: list[NDArray[np.float64]] = []
    left_out = []
    for path, content in _files(source):
        where = f"{source}/{path}"
        name = "/".join(PurePosixPath(path).with_suffix("").parts[-2:])
        if "/" not in name:
            left_out.append(path)
            continue
        if name in names:
            raise UserError(f"{where}: {name} stands here a second time, after {names[name]}; remove one of them")
        names[name] = path
        parsed.append(parse_predictions(content, where))
    if not parsed:
        raise UserError(f"{source}: no detections here; <event>/<image>.txt is needed")
    counts = np.array([len(rows) for rows in parsed], np.int64)
    return PredictedBoxes(tuple(names), counts, np.concatenate(parsed), tuple(left_out))


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
    lines = decode_text(content, source).splitlines()
    count = lines[1].strip() if len(lines) > 1 else ""
    if not is_count(count):
        raise UserError(f"{source}:2: {count[:40]!r} stands where the number of detections should stand")
    rows = []
    for number, line in enumerate(lines[2:], start=3):
        columns = line.split()
        if columns and (len(columns) != _COLUMNS or None in map(to_number, columns)):
            raise UserError(f"{source}:{number}: {line.strip()[:60]!r} is not a line 'x y width height score'")
        rows += [columns] if columns else []
    if len(rows) != int(count):
        raise UserError(f"{source}:2: {int(count)} detections are announced, {len(rows)} follow; was the file cut off?")
    return np.array(rows, np.float64).reshape(-1, _COLUMNS)


def is_count(line: str) -> bool:
    """Returns whether a line holds the number of detections."""
    return bool(re.fullmatch(r"\s*[0-9]{1,9}\s*", line))


def _files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yields the path and the bytes of each text file, by path."""
    if source.is_dir():
        for file in list_files(source, [".txt"], deep=True).files:
            yield file.relative_to(source).as_posix(), read_bytes(file)
        return
    try:
        with zipfile.ZipFile(source) as archive:
            for name in sorted(name for name in archive.namelist() if name.lower().endswith(".txt")):
                if not is_foreign(name):
                    yield name, archive.read(name)
    except ZIP_ERRORS as error:
        raise UserError(f"{source}: neither a folder nor a whole zip archive of detections: {error}") from error
