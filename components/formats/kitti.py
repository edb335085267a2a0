"""KITTI labels, and the KITTI-set artifact: images and labels in tar shards.

Layout of a set (see `docs/architecture.md`): a folder a split, `training/shard-00000.tar …`, whose members are
`images/<id>.png` (or `.jpg`) and `labels/<id>.txt`, image before label; `rejected.jsonl`; `manifest.json`.

By `validation` one chooses (epochs, thresholds, whether INT8 is good enough), by `test` one tells how good the result
is. A set without `test`, as former releases wrote them, is told on `validation`: see `telling_split`.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Self

from components.formats.listing import IMAGE_SUFFIXES, is_foreign, list_files
from components.formats.reading import Entry, decode_text, read_bytes, read_text, to_number
from components.step import UserError

SPLITS = ("training", "validation", "test")
# The class of what is not to be judged (KITTI's own name, lower-cased as TAO does): a region where truncation or
# occlusion is -1, as in KITTI's own labels, else one object that is ignored.
IGNORED_CLASS = "dontcare"
SHARD_BYTES = 512 * 1024 * 1024
_FIELDS = (
    *("class", "truncation", "occlusion", "alpha", "x1", "y1", "x2", "y2"),
    *("height", "width", "length", "x", "y", "z", "rotation_y", "score"),
)


@dataclass(frozen=True, slots=True)
class Label:
    """One object of a KITTI label file.

    Attributes:
        class_name: Lower-cased class.
        truncation: 0 (whole) to 1 (leaves the image).
        occlusion: 0 visible, 1 partly, 2 largely occluded, 3 unknown; -1 for KITTI's regions.
        box: x1, y1, x2, y2 in pixels of the image, x2 and y2 exclusive.
        score: Confidence of a detection; None for ground truth.
        angle: The observation angle alpha, radians.
        world: Height, width, length, x, y, z (metres) and rotation_y (radians).
    """

    class_name: str
    truncation: float
    occlusion: int
    box: tuple[float, float, float, float]
    score: float | None = None
    angle: float = 0.0
    world: tuple[float, ...] = (0.0,) * 7

    @property
    def is_crowd(self) -> bool:
        """Whether an ignored label is a region, of any number of objects, and not one object."""
        return self.truncation < 0 or self.occlusion < 0


def format_label(label: Label) -> str:
    """Returns the label as a KITTI line of 15 columns, or 16 with a score, with two decimals for coordinates."""
    x1, y1, x2, y2 = label.box
    line = (
        f"{label.class_name} {label.truncation:.2f} {label.occlusion:d} 0.00 "
        f"{x1:.2f} {y1:.2f} {x2:.2f} {y2:.2f} 0.00 0.00 0.00 0.00 0.00 0.00 0.00"
    )
    return line if label.score is None else f"{line} {label.score:.4f}"


def parse_labels(text: str, source: str, scored: bool | None = None) -> list[Label]:
    """Parses a KITTI label file of 15 (ground truth) or 16 (detections) columns a line.

    Args:
        text: The file's content.
        source: The file's name, for messages.
        scored: Whether labels must have a score; None if they may.

    Raises:
        UserError: A line has another number of columns, a blank in its class, or a column that is no number. Of
            detections, the box and the score need not be finite.
    """
    lines = ((number, line.split()) for number, line in enumerate(text.splitlines(), start=1))
    return [_label(columns, f"{source}:{number}", scored) for number, columns in lines if columns]


def _label(columns: list[str], place: str, scored: bool | None) -> Label:
    words = 1 + len([*takewhile(lambda column: to_number(column) is None, columns[1:])])
    if words > 1 and len(columns) - words in (14, 15):
        name = " ".join(columns[:words])
        raise UserError(f"{place}: the class name {name!r} holds a blank; write {name.replace(' ', '_')!r}")
    if len(columns) not in (15, 16):
        raise UserError(f"{place}: {len(columns)} columns, a KITTI label has 15 (16 with a score)")
    if scored is False and len(columns) == 16:
        hint = "labels with a score are detections, not ground truth"
        raise UserError(f"{place}: 16 columns, a KITTI label has 15; {hint}")
    if scored and len(columns) == 15:
        raise UserError(f"{place}: a label without a score (15 columns); detections have 16")
    row, finite = Entry(place, dict(zip(_FIELDS, columns, strict=False))), len(columns) == 15
    x1, y1, x2, y2 = (row.number(field, finite=finite) for field in _FIELDS[4:8])
    return Label(
        class_name=row.text("class").lower(),
        truncation=row.number("truncation"),
        occlusion=int(row.number("occlusion")),  # cut to an integer, as TAO does
        box=(x1, y1, x2, y2),
        score=None if finite else row.number("score", finite=False),
        angle=row.number("alpha"),
        world=tuple(row.number(field) for field in _FIELDS[8:15]),
    )


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a set: its id, file name, undecoded bytes and labels."""

    id: str
    file_name: str
    image: bytes
    labels: list[Label]


class ShardWriter:
    """Writes the samples of one split as tar shards; the same samples in the same order give the same bytes."""

    def __init__(self, directory: Path, shard_bytes: int = SHARD_BYTES) -> None:
        """Creates `directory`, for example `<set>/training`. A shard is closed before it grows past `shard_bytes`."""
        directory.mkdir(parents=True)
        self._directory = directory
        self._shard_bytes = shard_bytes
        self._shards = 0
        self._tar: tarfile.TarFile | None = None

    def add(self, sample: Sample) -> None:
        """Appends an image and its labels."""
        label_text = "".join(format_label(label) + "\n" for label in sample.labels).encode()
        if self._tar is None or self._tar.offset + len(sample.image) + len(label_text) > self._shard_bytes:
            self._next_shard()
        self._add_member(f"images/{sample.file_name}", sample.image)
        self._add_member(f"labels/{sample.id}.txt", label_text)

    def _next_shard(self) -> None:
        self.close()
        path = self._directory / f"shard-{self._shards:05d}.tar"
        self._tar = tarfile.open(path, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115 - closed in close()
        self._shards += 1

    def _add_member(self, name: str, content: bytes) -> None:
        assert self._tar is not None
        member = tarfile.TarInfo(name)  # time 0, mode 0644, owner 0: the same on every machine
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        """Closes the current shard."""
        if self._tar is not None:
            self._tar.close()
            self._tar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def telling_split(kitti_set: Path) -> str:
    """Returns the split that tells how good a model is: `test`, or `validation` where a set has no other."""
    return "test" if (kitti_set / "test").is_dir() else "validation"


def read_split(kitti_set: Path, split: str) -> Iterator[Sample]:
    """Yields the samples of a split, in the order in which they were written.

    Accepts the artifact's tar shards or TAO's own folders (`<split>/images`, `<split>/labels`, sorted by name).

    Raises:
        UserError: There is neither, or a label cannot be read.
    """
    directory = kitti_set / split
    shards = [file for file in directory.glob("shard-*.tar") if file.is_file()]
    if shards:
        for shard in sorted(shards):
            yield from _read_shard(shard)
        return
    if not (directory / "images").is_dir():
        raise UserError(f"{directory}: no KITTI set here (neither shard-*.tar nor images/ and labels/)")
    listing = list_files(directory / "images", IMAGE_SUFFIXES)
    listing.tell()
    for image in listing.files:
        label = directory / "labels" / f"{image.stem}.txt"
        text = read_text(label) if label.is_file() else ""
        yield Sample(image.stem, image.name, read_bytes(image), parse_labels(text, str(label), scored=False))


def _read_shard(shard: Path) -> Iterator[Sample]:
    image: tuple[str, bytes] | None = None
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile() or is_foreign(member.name):
                    continue
                stream = tar.extractfile(member)
                content = stream.read() if stream else b""
                folder, _, name = member.name.partition("/")
                if folder == "images":
                    image = (name, content)
                elif image is not None:
                    place = f"{shard}:{member.name}"
                    labels = parse_labels(decode_text(content, place), place, scored=False)
                    yield Sample(Path(image[0]).stem, image[0], image[1], labels)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{shard}: not a readable tar shard: {error}") from error
