"""KITTI labels, and the KITTI-set artifact: images and labels in tar shards.

Layout of a set (see `docs/architecture.md`): `training/shard-00000.tar …` and `validation/shard-00000.tar …`, whose
members are `images/<id>.png` and `labels/<id>.txt`, image before label; `rejected.jsonl`; `manifest.json`.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from components.step import UserError

SPLITS = ("training", "validation")
# The class of regions in which a detector is neither rewarded nor punished (KITTI's own word, lower-cased as TAO does).
IGNORED_CLASS = "dontcare"
SHARD_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Label:
    """One object of a KITTI label file.

    Attributes:
        class_name: Lower-cased class.
        truncation: 0 (whole) to 1 (leaves the image).
        occlusion: 0 visible, 1 partly, 2 largely occluded, 3 unknown.
        box: x1, y1, x2, y2 in pixels of the image, x2 and y2 exclusive.
        score: Confidence of a detection; None for ground truth.
    """

    class_name: str
    truncation: float
    occlusion: int
    box: tuple[float, float, float, float]
    score: float | None = None


def format_label(label: Label) -> str:
    """Returns the label as a KITTI line of 15 columns, or 16 with a score, with two decimals for coordinates."""
    x1, y1, x2, y2 = label.box
    line = (
        f"{label.class_name} {label.truncation:.2f} {label.occlusion:d} 0.00 "
        f"{x1:.2f} {y1:.2f} {x2:.2f} {y2:.2f} 0.00 0.00 0.00 0.00 0.00 0.00 0.00"
    )
    return line if label.score is None else f"{line} {label.score:.4f}"


def parse_labels(text: str, source: str) -> list[Label]:
    """Parses a KITTI label file of 15 (ground truth) or 16 (detections) columns a line.

    Args:
        text: The file's content.
        source: The file's name, for messages.

    Raises:
        UserError: A line has another number of columns or a column that is no number.
    """
    labels = []
    for number, line in enumerate(text.splitlines(), start=1):
        columns = line.split()
        if not columns:
            continue
        if len(columns) not in (15, 16):
            raise UserError(f"{source}:{number}: {len(columns)} columns, a KITTI label has 15 (16 with a score)")
        try:
            x1, y1, x2, y2 = (float(column) for column in columns[4:8])
            score = float(columns[15]) if len(columns) == 16 else None
            label = Label(columns[0].lower(), float(columns[1]), int(columns[2]), (x1, y1, x2, y2), score)
        except ValueError as error:
            raise UserError(f"{source}:{number}: {error}") from error
        labels.append(label)
    return labels


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
        member = tarfile.TarInfo(name)  # time 0, mode 0644, owner 0: nothing of this machine
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        """Closes the current shard."""
        if self._tar is not None:
            self._tar.close()
            self._tar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_split(kitti_set: Path, split: str) -> Iterator[Sample]:
    """Streams the samples of a split, in the order in which they were written.

    Accepts the artifact's tar shards or TAO's own folders (`<split>/images`, `<split>/labels`, sorted by name).

    Raises:
        UserError: There is neither, or a label cannot be read.
    """
    directory = kitti_set / split
    shards = sorted(directory.glob("shard-*.tar"))
    if shards:
        for shard in shards:
            yield from _read_shard(shard)
        return
    if not (directory / "images").is_dir():
        raise UserError(f"{directory}: no KITTI set here (neither shard-*.tar nor images/ and labels/)")
    for image in sorted((directory / "images").iterdir()):
        label = directory / "labels" / f"{image.stem}.txt"
        text = label.read_text(encoding="utf-8") if label.is_file() else ""
        yield Sample(image.stem, image.name, image.read_bytes(), parse_labels(text, str(label)))


def _read_shard(shard: Path) -> Iterator[Sample]:
    image: tuple[str, bytes] | None = None
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                stream = tar.extractfile(member)
                content = stream.read() if stream else b""
                folder, _, name = member.name.partition("/")
                if folder == "images":
                    image = (name, content)
                elif image is not None:
                    sample_id = Path(image[0]).stem
                    labels = parse_labels(content.decode(), f"{shard}:{member.name}")
                    yield Sample(sample_id, image[0], image[1], labels)
    except tarfile.TarError as error:
        raise UserError(f"{shard}: not a readable tar shard: {error}") from error
