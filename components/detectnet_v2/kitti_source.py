"""KITTI data for `dataset_convert`: partitions and labels."""

import os
import random
from collections import Counter
from pathlib import Path

import numpy as np

from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.partition import Partition, Skipped, has_area
from components.detectnet_v2.records import Frame
from components.formats.images import ImageError, upright_size
from components.formats.kitti import parse_labels
from components.formats.listing import list_files
from components.formats.reading import read_bytes, read_json, read_text
from components.step import UserError

_SEED = 42  # TAO's


class KittiSource:
    """A folder of images and a folder of label files of equal names, partitioned as the spec says.

    Attributes:
        partitions: The folds.
        unlisted: Images left out because no sequence names them (partition_mode sequence).
        left_out: Other files among the images.
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
        for partition in partitions:  # a second time in random mode, as in TAO, for the same order
            shuffle(partition)
        self._require_labels([frame for partition in partitions for frame in partition])
        self.partitions = [Partition(keys, config.num_shards, self._read) for keys in partitions]

    def _list_images(self) -> list[str]:
        extension = self._config.image_extension
        listing = list_files(self._images, [""])
        names = [file.name for file in listing.files]
        ids = [name.removesuffix(extension) for name in names if name.endswith(extension)]
        self.left_out = [*listing.left_out, *(name for name in names if not name.endswith(extension))]
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
        image, file = self._images / (key + self._config.image_extension), self._label_file(key)
        try:
            width, height = upright_size(read_bytes(image))
        except ImageError as error:
            raise UserError(f"{image}: {error}") from error
        labels = parse_labels(read_text(file), str(file), scored=False)
        kept = [label for label in labels if has_area(label.box)]
        skipped = {
            f"{self._config.label_dir_name}/{key}.txt_{index}": [int(value) for value in label.box]
            for index, label in enumerate(labels)
            if not has_area(label.box)
        }
        frame = Frame(
            id=os.path.join(self._config.image_dir_name, key),  # noqa: PTH118 - TAO's own spelling of the id
            width=width,
            height=height,
            class_names=[label.class_name for label in kept],
            boxes=np.array([label.box for label in kept], np.float32).reshape(-1, 4),
            truncation=np.array([label.truncation for label in kept], np.float32),
            occlusion=np.array([label.occlusion for label in kept], np.int64),
            observation_angle=np.array([label.angle for label in kept], np.float32),
            world_boxes=np.array([label.world for label in kept], np.float32).reshape(-1, 7),
        )
        return frame, skipped


def _is_id_list(frames: object) -> bool:
    return isinstance(frames, list) and all(isinstance(frame, str) for frame in frames)
