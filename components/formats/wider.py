"""Reads WIDER FACE in its official layout, from folders or straight from the official archives.

Layout: `WIDER_train/images/<event>/<name>.jpg`, `WIDER_val/images/…` and
`wider_face_split/wider_face_{train,val}_bbx_gt.txt`. Each of the three parts may be a folder or a zip archive of the
same name (`WIDER_train.zip`, …) whose members start with the part's name.

An annotation block is a line with the image's path below `images`, a line with the number of faces, and a line of ten
integers a face. An image without faces has the number 0, followed in the official files by one line of ten zeros.
"""

import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from components.formats.images import ImageError
from components.formats.listing import is_foreign, list_files
from components.formats.reading import CONTROL, decode_text
from components.step import UserError

# Our name of a split (as in a KITTI set) and the one in the official file names.
OFFICIAL_NAMES = {"training": "train", "validation": "val"}
ANNOTATIONS = "wider_face_split"
ARCHIVES = ("WIDER_train.zip", "WIDER_val.zip", f"{ANNOTATIONS}.zip")
COLUMNS = 10
_INTEGER = re.compile("-?[0-9]{1,9}")  # no longer than any picture needs
# Raised by reading a damaged archive.
ZIP_ERRORS = (OSError, KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError)


@dataclass(frozen=True, slots=True)
class Face:
    """One annotated face.

    Attributes:
        box: x, y, width, height in pixels of the source image, origin top left. Sizes may be zero or negative and
            boxes may leave the image: this is the file's content, unchecked.
        blur: 0 clear, 1 normal, 2 heavy.
        expression: 0 typical, 1 exaggerated.
        illumination: 0 normal, 1 extreme.
        invalid: 1 if the annotators discarded the face.
        occlusion: 0 none, 1 partial (1 to 30 % of the face), 2 heavy.
        pose: 0 typical, 1 atypical.
    """

    box: tuple[int, int, int, int]
    blur: int = 0
    expression: int = 0
    illumination: int = 0
    invalid: int = 0
    occlusion: int = 0
    pose: int = 0


@dataclass(frozen=True, slots=True)
class WiderImage:
    """One annotation block.

    Attributes:
        name: Path below `WIDER_<split>/images`, `<event>/<file>`.
        faces: The faces in the file's order; empty for an image without faces.
    """

    name: str
    faces: tuple[Face, ...]


def parse_annotations(content: bytes, source: str) -> list[WiderImage]:
    """Parses the content of a `*_bbx_gt.txt` file.

    Args:
        content: The file's bytes.
        source: The file's name, for messages.

    Raises:
        UserError: The text is not UTF-8 or not a sequence of whole blocks, a path leaves the image folder, or an
            image is listed twice.
    """
    reader = _LineReader(content, source)
    first_line: dict[str, int] = {}
    images = []
    while reader.more():
        name = reader.image_name()
        if name in first_line:
            reader.fail(f"{name} is listed a second time (first in line {first_line[name]}); remove one block")
        first_line[name] = reader.number
        count = reader.face_count(name)
        faces = tuple(reader.face(name, index, count) for index in range(count))
        if count == 0:
            reader.skip_filler()
        images.append(WiderImage(name, faces))
    return images


def format_annotations(images: list[WiderImage]) -> bytes:
    """Returns the content of a `*_bbx_gt.txt` file in the official style (trailing blanks, filler lines)."""
    lines = []
    for image in images:
        lines += [image.name, str(len(image.faces))]
        for face in image.faces or (Face((0, 0, 0, 0)),):
            flags = (face.blur, face.expression, face.illumination, face.invalid, face.occlusion, face.pose)
            lines.append(" ".join(str(value) for value in (*face.box, *flags)) + " ")
    return "".join(line + "\n" for line in lines).encode()


class _LineReader:
    """Reads an annotation file line by line and keeps the line number."""

    def __init__(self, content: bytes, source: str) -> None:
        self._source = source
        self.number = 0  # of the line read last, from 1
        self._lines = [line.strip() for line in decode_text(content, source).rstrip().split("\n")]

    def fail(self, problem: str) -> NoReturn:
        raise UserError(f"{self._source}:{self.number}: {problem}")

    def more(self) -> bool:
        """Skips blank lines and returns whether anything follows."""
        while self.number < len(self._lines) and not self._lines[self.number]:
            self.number += 1
        return self.number < len(self._lines)

    def _next(self, wanted: str) -> str:
        if not self.more():
            self.number = len(self._lines)
            self.fail(f"the file ends where {wanted} should stand; it was cut off, fetch it again")
        self.number += 1
        return self._lines[self.number - 1]

    def image_name(self) -> str:
        line = self._next("the path of an image")
        directory, file = posixpath.split(line)
        if not directory or "." not in file:
            self.fail(f"{line[:60]!r} stands where the path of an image (<event>/<name>.jpg) should stand")
        if CONTROL.search(line):
            self.fail(f"{line[:60]!r} holds a character that no path of an image has")
        if line.startswith("/") or "\\" in line or ".." in directory.split("/"):
            self.fail(f"{line[:60]!r} leaves the image folder; write a path below images/")
        return line

    def face_count(self, name: str) -> int:
        line = self._next(f"the number of faces of {name}")
        if not re.fullmatch("[0-9]{1,9}", line):
            self.fail(f"{line[:60]!r} stands where the number of faces of {name} should stand")
        return int(line)

    def face(self, name: str, index: int, count: int) -> Face:
        columns = self._next(f"face {index + 1} of {count} of {name}").split()
        if len(columns) != COLUMNS or not all(map(_INTEGER.fullmatch, columns)):
            problem = f"face {index + 1} of {count} of {name} is not a line of {COLUMNS} integers"
            self.fail(f"{problem}; mend the line, or fetch the file again if it was cut off")
        x, y, width, height, *flags = map(int, columns)
        return Face((x, y, width, height), *flags)

    def skip_filler(self) -> None:
        """Skips the line of zeros that the official files write for an image without faces."""
        if self.more() and set(self._lines[self.number].split()) == {"0"}:
            self.number += 1


class WiderSource:
    """A WIDER FACE distribution on disk. Not thread-safe: open one in each thread or process."""

    def __init__(self, root: Path) -> None:
        """Opens `root`; its parts are opened when they are needed.

        Raises:
            UserError: `root` is no folder.
        """
        self.root = Path(root)
        self._archives: dict[str, zipfile.ZipFile] = {}
        if not self.root.is_dir():
            raise UserError(f"{root}: no such folder; give one that holds {', '.join(ARCHIVES)} or their content")

    def annotations(self, split: str) -> list[WiderImage]:
        """Returns the annotation blocks of `training` or `validation`, in the file's order; images need not be here.

        Raises:
            UserError: The annotations are missing, malformed or empty.
        """
        member = f"{ANNOTATIONS}/wider_face_{OFFICIAL_NAMES[split]}_bbx_gt.txt"
        try:
            content = self._content(member)
        except ZIP_ERRORS as error:
            raise UserError(f"{self.root}: {member} is missing or unreadable; is this WIDER FACE's layout?") from error
        images = parse_annotations(content, str(self.root / member))
        if not images:
            raise UserError(f"{self.root / member}: no image is listed; the {split} set is empty")
        return images

    def images(self, split: str) -> list[WiderImage]:
        """Returns the annotation blocks of `training` or `validation`, in the file's order.

        Raises:
            UserError: The annotations or the images of the split are missing, malformed or empty.
        """
        images = self.annotations(split)
        part = f"WIDER_{OFFICIAL_NAMES[split]}"
        if self._archive(part) is None and not (self.root / part / "images").is_dir():
            raise UserError(
                f"{self.root}: neither {part}/images nor {part}.zip is here; put the images beside {ANNOTATIONS}"
            )
        return images

    def files(self, split: str) -> Iterator[str]:
        """Yields the names (`<event>/<file>`) of the files that lie in the split's image folder, unordered."""
        part = f"WIDER_{OFFICIAL_NAMES[split]}"
        prefix = f"{part}/images/"
        archive = self._archive(part)
        if archive is not None:
            names = (n[len(prefix) :] for n in archive.namelist() if n.startswith(prefix) and not n.endswith("/"))
            yield from (name for name in names if not is_foreign(name))
            return
        folder = self.root / part / "images"
        yield from (file.relative_to(folder).as_posix() for file in list_files(folder, [""], deep=True).files)

    def read(self, split: str, name: str) -> bytes:
        """Returns the undecoded bytes of one image.

        Raises:
            ImageError: The image is missing or its archive member is damaged.
        """
        try:
            return self._content(f"WIDER_{OFFICIAL_NAMES[split]}/images/{name}")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, KeyError) as error:
            raise ImageError("the image file is missing") from error
        except ZIP_ERRORS as error:
            raise ImageError(f"the image file cannot be read: {error}") from error

    def _content(self, member: str) -> bytes:
        part = member.split("/", 1)[0]
        archive = self._archive(part)
        return (self.root / member).read_bytes() if archive is None else archive.read(member)

    def _archive(self, part: str) -> zipfile.ZipFile | None:
        """Returns the opened archive of a part, or None if the part is a folder or missing."""
        if part not in self._archives:
            file = self.root / f"{part}.zip"
            if (self.root / part).is_dir() or not file.is_file():
                return None
            try:
                self._archives[part] = zipfile.ZipFile(file)
            except ZIP_ERRORS as error:
                raise UserError(f"{file}: not a whole zip archive ({error}); fetch it again") from error
        return self._archives[part]
