"""Which files of a folder or archive are meant: those that file managers and notebooks leave behind are not."""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from components.formats.reading import CONTROL
from components.step import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
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
        """Says on stderr how many were left out, if any."""
        if self.left_out:
            count = len(self.left_out)
            print(f"{self.folder}: {count} files left out, not meant as data: {self.left_out[0]!r}, …", file=sys.stderr)


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
