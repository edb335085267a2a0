"""The available images of a ground truth: of a KITTI set, of a WIDER FACE folder, or of any folder."""

from collections.abc import Callable, Collection, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from components.decode.instances import Placement
from components.evaluate.inputs import image_key
from components.formats.images import Image, ImageError, decode, upright_size
from components.formats.kitti import SPLITS, read_split
from components.formats.listing import IMAGE_SUFFIXES, list_files
from components.formats.wider import OFFICIAL_NAMES, WiderSource
from components.measure.boxes import Floats
from components.measure.dataset import Truth
from components.step import UserError
from components.vision.inputs import InputSpec
from components.vision.scoring import network_input

# Gives, for names of images, those names with the image [H, W, 3], BGR; the boxes' pixels are its pixels.
Reader = Callable[[Collection[str]], Iterator[tuple[str, Image]]]


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as it is stored.

    Attributes:
        name: As the truth has it.
        place: Where it is, for messages.
        content: Its bytes, not decoded.
    """

    name: str
    place: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Placements:
    """How images lie in a network's input.

    Attributes:
        scales: [I, 2] pixels of the input per pixel of the stored image, in x and y.
        offsets: [I, 2] the images' left upper corners in the input.
    """

    scales: Floats
    offsets: Floats

    @classmethod
    def of(cls, placements: Sequence[Placement]) -> Self:
        """Gathers those of several images."""
        scales, offsets = ([getattr(each, name) for each in placements] for name in ("scale", "offset"))
        return cls(np.array(scales, np.float64).reshape(-1, 2), np.array(offsets, np.float64).reshape(-1, 2))


class Pictures:
    """The available images, by their names without a suffix, as for predictions.

    Attributes:
        available: Names of the available images, as in the truth.
    """

    def __init__(self, truth: Truth, source: Path | None, split: str) -> None:
        """Lists the available images; they are read when they are needed.

        Args:
            truth: Whose images.
            source: Where they are, or None.
            split: Of a KITTI set or of WIDER FACE.

        Raises:
            UserError: The source is named, and no folder.
        """
        if source is not None and not source.is_dir():
            raise UserError(f"{source}: no folder of images; give one, or leave out --images")
        self._source, self._split = source, split
        self._kitti = source is not None and any((source / name).is_dir() for name in SPLITS)
        self._wider: WiderSource | None = None
        self._files = {} if source is None or self._kitti else self._find(source)
        self.available = {name for name in truth.images if self._kitti or image_key(name) in self._files}

    def nowhere(self) -> Self:
        """Returns the same, without any image."""
        other = copy(self)
        other.available = set()
        return other

    def _find(self, source: Path) -> dict[str, str]:
        """Returns by image the name of its file."""
        part = f"WIDER_{OFFICIAL_NAMES[self._split]}"
        if (source / part).is_dir() or (source / f"{part}.zip").is_file():
            self._wider = WiderSource(source)
            names = [*self._wider.files(self._split)]
        else:
            names = [
                file.relative_to(source).as_posix() for file in list_files(source, IMAGE_SUFFIXES, deep=True).files
            ]
        return {image_key(name): name for name in names}

    def encoded(self, wanted: Collection[str]) -> Iterator[Picture]:
        """Yields images as they are stored; those of a KITTI set in its order, otherwise in that of `wanted`.

        Raises:
            UserError: One is missing, or cannot be read.
        """
        missing = [name for name in wanted if name not in self.available]
        if missing:
            where = f"{self._source}: " if self._source else ""
            raise UserError(
                f"{where}{len(missing)} of {len(wanted)} images are not at hand (first: {missing[0]}); name their "
                "folder with --images"
            )
        if self._kitti and self._source:
            chosen = set(wanted)
            for sample in read_split(self._source, self._split):
                if sample.id in chosen:
                    yield Picture(sample.id, f"{self._source / self._split}: {sample.file_name}", sample.image)
            return
        for name in wanted:
            file = self._files[image_key(name)]
            yield Picture(name, f"{self._source}: {file}", self._read(file))

    def decoded(self, wanted: Collection[str]) -> Iterator[tuple[str, Image]]:
        """Yields names of images and their pixels [H, W, 3], BGR; see `encoded`."""
        for picture in self.encoded(wanted):
            try:
                yield picture.name, decode(picture.content)
            except ImageError as error:
                raise UserError(f"{picture.place}: {error}; replace or remove this image") from error

    def fitted(self, spec: InputSpec) -> Reader:
        """Returns what reads images as they lie in a network's input; see `decoded`."""
        shown = replace(spec, channels=3, order="BGR")

        def read(wanted: Collection[str]) -> Iterator[tuple[str, Image]]:
            for picture in self.encoded(wanted):
                yield picture.name, network_input(picture.content, picture.place, shown)[0]

        return read

    def placements(self, wanted: Sequence[str], spec: InputSpec) -> Placements:
        """Returns how images lie in a network's input, in the order of `wanted`; see `encoded`."""
        placed = {}
        for picture in self.encoded(wanted):
            try:
                placed[picture.name] = spec.placement(*upright_size(picture.content))
            except ImageError as error:
                raise UserError(f"{picture.place}: {error}; replace or remove this image") from error
        return Placements.of([placed[name] for name in wanted])

    def _read(self, file: str) -> bytes:
        assert self._source is not None
        try:
            return self._wider.read(self._split, file) if self._wider else (self._source / file).read_bytes()
        except (OSError, ImageError) as error:
            raise UserError(f"{self._source}: {file}: {error}; replace or remove this image") from error
