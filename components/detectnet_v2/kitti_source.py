"""KITTI data for `dataset_convert`: partitions and labels."""

import math
import os
import random
import struct
from collections import Counter
from pathlib import Path

import numpy as np

from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.partition import Partition, Skipped, has_area, read_json
from components.detectnet_v2.records import Frame
from components.formats.images import ImageError, decode
from components.step import UserError

_SEED = 42  # TAO's
_COLUMNS = 15


class KittiSource:
    """A folder of images and a folder of label files of equal names, partitioned as the spec says.

    Attributes:
        partitions: The folds.
        unlisted: Images left out because no sequence names them (partition_mode sequence).
    """

    def __init__(self, config: spec_pb2.KITTIConfig, root: Path) -> None:
        """Lists and partitions the images below `root`.

        Raises:
            UserError: There are no images, one has no label file, or the sequences name one that is not there.
        """
        self._config = config
        self._images = root / config.image_dir_name
        self._labels = root / config.label_dir_name
        ids = self._list_images()
        self.unlisted = 0
        shuffle = random.Random(_SEED).shuffle
        if config.partition_mode == "random":
            partitions = self._split(ids)
            for partition in partitions:
                shuffle(partition)
        else:
            partitions = self._deal(root / config.kitti_sequence_to_frames_file, set(ids))
            self.unlisted = len(set(ids).difference(*partitions))
        for partition in partitions:  # a second time in random mode: TAO does so, and the order shall be the same
            shuffle(partition)
        self._require_labels([frame for partition in partitions for frame in partition])
        self.partitions = [Partition(keys, config.num_shards, self._read) for keys in partitions]

    def _list_images(self) -> list[str]:
        extension = self._config.image_extension
        try:
            names = sorted(file.name for file in self._images.iterdir())
        except OSError as error:
            raise UserError(f"{self._images}: the images cannot be listed: {error.strerror}") from error
        ids = [name.removesuffix(extension) for name in names if name.endswith(extension)]
        if not ids:
            found = Counter(Path(name).suffix or "no extension" for name in names).most_common(3)
            there = ", ".join(f"{count} with {suffix}" for suffix, count in found) or "the folder is empty"
            raise UserError(f"{self._images}: no image ends with {extension} ({there}); mend image_extension")
        return ids

    def _split(self, ids: list[str]) -> list[list[str]]:
        cut = int(self._config.val_split / 100.0 * len(ids))
        return [ids[:cut], ids[cut:]]

    def _deal(self, file: Path, known: set[str]) -> list[list[str]]:
        """Deals whole sequences, the longest first, to the partitions in turn, and reverses the partitions."""
        sequences = read_json(file)
        if not isinstance(sequences, dict) or not all(_is_id_list(frames) for frames in sequences.values()):
            raise UserError(f'{file}: a JSON object of sequences is needed: {{"<sequence>": ["<frame>", …], …}}')
        for name, frames in sequences.items():
            for frame in frames:
                if frame not in known:
                    missing = self._images / (frame + self._config.image_extension)
                    raise UserError(f"{file}: sequence {name} names the frame {frame}, but there is no {missing}")
        if self._config.num_partitions <= 1:
            return [[frame for frames in sequences.values() for frame in frames]]
        partitions: list[list[str]] = [[] for _ in range(self._config.num_partitions)]
        longest_first = sorted(sequences.items(), key=lambda item: (-len(item[1]), item[0]))
        for turn, (_, frames) in enumerate(longest_first):
            partitions[turn % len(partitions)].extend(frames)
        return partitions[::-1]

    def _require_labels(self, ids: list[str]) -> None:
        missing = [frame for frame in ids if not self._label_file(frame).is_file()]
        if missing:
            raise UserError(
                f"{self._label_file(min(missing))}: the label file is missing, as for {len(missing)} of {len(ids)} "
                "images; an image without objects needs an empty one"
            )

    def _label_file(self, frame: str) -> Path:
        return self._labels / f"{frame}.txt"

    def _read(self, key: str) -> tuple[Frame, Skipped]:
        width, height = image_size(self._images / (key + self._config.image_extension))
        names, rows = _read_labels(self._label_file(key))
        kept = [i for i, row in enumerate(rows) if has_area(row[3:7])]
        skipped = {
            f"{self._config.label_dir_name}/{key}.txt_{i}": [int(value) for value in rows[i][3:7]]
            for i in range(len(rows))
            if i not in kept
        }
        table = np.array([rows[i] for i in kept], np.float64).reshape(-1, _COLUMNS - 1)
        frame = Frame(
            id=os.path.join(self._config.image_dir_name, key),  # noqa: PTH118 - TAO's own spelling of the id
            width=width,
            height=height,
            class_names=[names[i] for i in kept],
            boxes=table[:, 3:7].astype(np.float32),
            truncation=table[:, 0].astype(np.float32),
            occlusion=table[:, 1].astype(np.int64),
            observation_angle=table[:, 2].astype(np.float32),
            world_boxes=table[:, 7:14].astype(np.float32),
        )
        return frame, skipped


def _is_id_list(frames: object) -> bool:
    return isinstance(frames, list) and all(isinstance(frame, str) for frame in frames)


def _read_labels(file: Path) -> tuple[list[str], list[list[float]]]:
    """Reads a label file: the lower-cased classes [K] and the 14 numbers behind each."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: the labels cannot be read: {error}") from error
    names, rows = [], []
    for number, line in enumerate(lines, start=1):
        columns = line.split()
        if not columns:
            continue
        if len(columns) != _COLUMNS:
            hint = "; labels with a score are detections, not ground truth" if len(columns) == 16 else ""
            raise UserError(f"{file}:{number}: {len(columns)} columns, a KITTI label has {_COLUMNS}{hint}")
        try:
            row = [float(column) for column in columns[1:]]
        except ValueError as error:
            raise UserError(f"{file}:{number}: {error}") from error
        if not all(math.isfinite(value) for value in row):
            raise UserError(f"{file}:{number}: a column is no finite number")
        names.append(columns[0].lower())
        rows.append(row)
    return names, rows


def image_size(file: Path) -> tuple[int, int]:
    """Returns width and height of an image in pixels; of a PNG from its header alone.

    Raises:
        UserError: The file cannot be read, or is no whole image.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(24)
            stream.seek(max(file.stat().st_size - 12, 0))
            # Where the header or the end is not a PNG's, decoding tells what is wrong, if anything is.
            if start[:8] == b"\x89PNG\r\n\x1a\n" and start[12:16] == b"IHDR" and stream.read()[4:8] == b"IEND":
                width, height = struct.unpack(">II", start[16:24])
                return width, height
        height, width = decode(file.read_bytes()).shape[:2]
    except OSError as error:
        raise UserError(f"{file}: the image cannot be read: {error.strerror}") from error
    except ImageError as error:
        raise UserError(f"{file}: {error}") from error
    return width, height
