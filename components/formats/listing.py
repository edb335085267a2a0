"""Which files of a folder or archive are meant: those that file managers and notebooks leave behind are not."""

import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from components.formats.reading import CONTROL
from components.step import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
_NAMED = 3
_FOREIGN = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini"}


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a folder.

    Attributes:
        folder: The folder.
        files: Those that are meant, sorted.
        left_out: Paths of the others below the folder.
    """

    folder: Path
    files: Sequence[Path]
    left_out: Sequence[str]

    def tell(self) -> None:
        """Says on stderr what was left out, if anything."""
        if self.left_out:
            names = some([*map(repr, self.left_out)])
            print(f"{self.folder}: files left out, not meant as data: {len(self.left_out)} ({names})", file=sys.stderr)


def some(words: Sequence[str]) -> str:
    """Names the first ones and counts the others."""
    rest = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return ", ".join(words[:_NAMED]) + rest


def is_foreign(path: str) -> bool:
    """Says whether a path below a folder or archive is hidden, one that macOS or Windows leave behind, or no text."""
    parts = PurePosixPath(path).parts
    return any(part.startswith(".") or part.lower() in _FOREIGN or CONTROL.search(part) for part in parts)


def list_files(folder: Path, suffixes: Collection[str], *, deep: bool = False) -> Listing:
    """Lists the regular files of a folder, with `deep` those of its folders too, that end in one of the suffixes.

    Suffixes are in lower case, and meant in any.

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
    """Returns how the label file of each image is called: by its stem, or by its whole name where stems are equal.

    Raises:
        UserError: Two would be called the same.
    """
    stems = Counter(file.stem for file in images)
    names = {file: file.stem if stems[file.stem] == 1 else file.name for file in images}
    if clashes := [file.name for file in images if stems[file.stem] > 1]:
        print(f"Labels named after the whole file name, for equal stems: {some(clashes)}", file=sys.stderr)
    for name, count in Counter(names.values()).items():
        if count > 1:
            raise UserError(f"{images[0].parent}: the labels of several images would be {name}.txt; rename one of them")
    return names
