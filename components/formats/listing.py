"""Selects the data files of a folder or archive, without those that file managers and notebooks create."""

import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from components.formats.reading import CONTROL
from components.step import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm")
_NAMED = 3
_FOREIGN = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini"}


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a folder.

    Attributes:
        folder: The folder.
        files: The data files, sorted.
        left_out: Paths of the others below the folder.
    """

    folder: Path
    files: Sequence[Path]
    left_out: Sequence[str]

    def tell(self) -> None:
        """Reports on stderr what was left out, if anything."""
        if self.left_out:
            names = some([*map(repr, self.left_out)])
            print(f"{self.folder}: files left out, not meant as data: {len(self.left_out)} ({names})", file=sys.stderr)


def some(words: Sequence[str]) -> str:
    """Returns the first names and the number of the others."""
    rest = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return ", ".join(words[:_NAMED]) + rest


def is_foreign(path: str) -> bool:
    """Returns whether a path is hidden, created by macOS or Windows themselves, or has control characters."""
    parts = PurePosixPath(path).parts
    return any(part.startswith(".") or part.lower() in _FOREIGN or CONTROL.search(part) for part in parts)


def list_files(folder: Path, suffixes: Collection[str], *, deep: bool = False) -> Listing:
    """Lists the regular files of a folder, with `deep` also of its folders, that end in one of the suffixes.

    Suffixes are given in lower case; upper case is accepted too.

    Raises:
        UserError: The folder cannot be listed.
    """
    try:
        paths = sorted(folder.rglob("*") if deep else folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}") from error
    files, left_out = [], []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        if path.is_file() and path.name.lower().endswith(tuple(suffixes)) and not is_foreign(name):
            files.append(path)
        elif not (path.is_dir() and deep):
            left_out.append(name)
    return Listing(folder, files, left_out)


def image_files(source: Path) -> Sequence[Path]:
    """Returns an image, or all images of a folder by name.

    Raises:
        UserError: There is none.
    """
    if source.is_file():
        return [source]
    listing = list_files(source, IMAGE_SUFFIXES)
    listing.tell()
    if not listing.files:
        raise UserError(f"{source}: no images here ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return listing.files


def label_names(images: Sequence[Path]) -> dict[Path, str]:
    """Returns the name of each image's label file: its stem, or its whole name if stems are equal.

    Raises:
        UserError: Two names would be equal.
    """
    stems = Counter(file.stem for file in images)
    names = {file: file.stem if stems[file.stem] == 1 else file.name for file in images}
    if clashes := [file.name for file in images if stems[file.stem] > 1]:
        print(f"Labels named after the whole file name, for equal stems: {some(clashes)}", file=sys.stderr)
    for name, count in Counter(names.values()).items():
        if count > 1:
            raise UserError(f"{images[0].parent}: the labels of several images would be {name}.txt; rename one of them")
    return names
