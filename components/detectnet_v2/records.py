"""Labelled frames as TAO's `dataset_convert` stores them: one tf.train.Example each, in TFRecord shards."""

import glob
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.formats.tfrecord import Feature, decode_example, encode_example, read_records
from components.step import UserError

_COORDINATES = ("x1", "y1", "x2", "y2")
_WORLD = ("h", "w", "l", "x", "y", "z", "rot_y")
_FOLD = re.compile(r"fold-(\d{3,})-of-")


def _no_floats() -> NDArray[np.float32]:
    return np.zeros(0, np.float32)


@dataclass(slots=True)
class Frame:
    """The labels of one image; K objects.

    Attributes:
        id: Path of the image below the image directory, without its extension.
        width: Of the image, pixels.
        height: Of the image, pixels.
        class_names: [K], as labelled (lower-cased by the converter).
        boxes: [K, 4] x1, y1, x2, y2 in pixels of the image.
        truncation: [K], 0 (whole) to 1; zeros by default.
        occlusion: [K], 0 visible, 1 partly, 2 largely, 3 unknown; zeros by default.
        observation_angle: [K], KITTI's alpha, radians; zeros by default.
        world_boxes: [K, 7] height, width, length, x, y, z (metres) and rotation_y (radians); zeros by default.
    """

    id: str
    width: int
    height: int
    class_names: list[str]
    boxes: NDArray[np.float32]
    truncation: NDArray[np.float32] = field(default_factory=_no_floats)
    occlusion: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    observation_angle: NDArray[np.float32] = field(default_factory=_no_floats)
    world_boxes: NDArray[np.float32] = field(default_factory=_no_floats)

    def __post_init__(self) -> None:
        count = len(self.class_names)
        if self.boxes.shape != (count, 4):
            raise ValueError(f"{self.id}: boxes of shape {self.boxes.shape} for {count} objects")
        for name, shape in (("truncation", (count,)), ("occlusion", (count,)), ("observation_angle", (count,))):
            self._fill(name, shape)
        self._fill("world_boxes", (count, len(_WORLD)))

    def _fill(self, name: str, shape: tuple[int, ...]) -> None:
        values = getattr(self, name)
        if not values.size:
            setattr(self, name, np.zeros(shape, values.dtype))
        elif values.shape != shape:
            raise ValueError(f"{self.id}: {name} of shape {values.shape}, {shape} is needed")


def frame_to_example(frame: Frame) -> bytes:
    """Serialises a frame with TAO's feature names."""
    features: dict[str, Feature] = {
        "frame/id": [frame.id.encode()],
        "frame/height": np.array([frame.height], np.int64),
        "frame/width": np.array([frame.width], np.int64),
        "target/object_class": [name.encode() for name in frame.class_names],
        "target/truncation": frame.truncation,
        "target/occlusion": frame.occlusion,
        "target/observation_angle": frame.observation_angle,
    }
    features.update({f"target/coordinates_{name}": frame.boxes[:, i] for i, name in enumerate(_COORDINATES)})
    features.update({f"target/world_bbox_{name}": frame.world_boxes[:, i] for i, name in enumerate(_WORLD)})
    return encode_example(features)


def frame_from_example(content: bytes) -> Frame:
    """Reads a frame; point clouds and calibrations are ignored.

    Raises:
        ValueError: The bytes are no Example, a feature is missing, or the features of the objects differ in length.
    """
    features = decode_example(content)
    names = [name.decode() for name in _texts(features, "target/object_class")]
    count = len(names)
    frame_ids = _texts(features, "frame/id")
    sizes = [*_numbers(features, "frame/width", 1), *_numbers(features, "frame/height", 1)]
    if len(frame_ids) != 1:
        raise ValueError(f"frame/id has {len(frame_ids)} values, one is needed")
    return Frame(
        id=frame_ids[0].decode(),
        width=int(sizes[0]),
        height=int(sizes[1]),
        class_names=names,
        boxes=_columns(features, "target/coordinates", _COORDINATES, count),
        truncation=_numbers(features, "target/truncation", count, optional=True).astype(np.float32),
        occlusion=_numbers(features, "target/occlusion", count, optional=True).astype(np.int64),
        observation_angle=_numbers(features, "target/observation_angle", count, optional=True).astype(np.float32),
        world_boxes=_columns(features, "target/world_bbox", _WORLD, count, optional=True),
    )


def _texts(features: dict[str, Feature], name: str) -> list[bytes]:
    values = features.get(name)
    if not isinstance(values, list):
        raise ValueError(f"{name} is missing" if values is None else f"{name} holds numbers, texts are needed")
    return values


def _numbers(
    features: dict[str, Feature], name: str, count: int, optional: bool = False
) -> NDArray[np.float32] | NDArray[np.int64]:
    values = features.get(name, [])
    if isinstance(values, list):
        if values:
            raise ValueError(f"{name} holds texts, numbers are needed")
        values = np.zeros(0, np.float32)
    if optional and not len(values):
        return np.zeros(count, np.float32)
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} values, {count} are needed")
    return values


def _columns(
    features: dict[str, Feature], prefix: str, names: tuple[str, ...], count: int, optional: bool = False
) -> NDArray[np.float32]:
    columns = [_numbers(features, f"{prefix}_{name}", count, optional) for name in names]
    return np.stack(columns, axis=1).astype(np.float32)


def load_frames(pattern: str, *, only_fold: int | None = None, exclude_fold: int | None = None) -> list[Frame]:
    """Loads the frames of all shards that a glob names, in the order of the shards' names.

    Args:
        pattern: A glob, as in a spec's `tfrecords_path`.
        only_fold: Keeps only the shards of this fold (`validation_fold`).
        exclude_fold: Leaves out the shards of this fold.

    Raises:
        UserError: No shard matches, a file is no complete TFRecord file, or a record is no labelled frame.
    """
    paths = sorted(Path(name) for name in glob.glob(pattern, recursive=True))  # noqa: PTH207 - absolute globs too
    files = [path for path in paths if path.is_file()]
    if not files:
        raise UserError(f"{pattern}: no file matches this tfrecords_path; convert first, or mend the glob")
    for file in files:
        if file.suffix == ".json":
            raise UserError(
                f"{file}: the tfrecords_path {pattern} catches this file, which holds no records; "
                "narrow it to the shards, for example <prefix>-fold-*"
            )
    shards = [file for file in files if _is_wanted(file, only_fold, exclude_fold)]
    if not shards:
        folds = ", ".join(str(fold) for fold in sorted({_fold(file) for file in files} - {None}, key=str)) or "none"
        wanted = f"fold {only_fold}" if only_fold is not None else f"any fold but {exclude_fold}"
        raise UserError(f"{pattern}: validation_fold asks for shards of {wanted}; folds found: {folds}")
    return [frame for shard in shards for frame in _read_shard(shard)]


def _fold(path: Path) -> int | None:
    match = _FOLD.search(path.name)
    return int(match.group(1)) if match else None


def _is_wanted(path: Path, only_fold: int | None, exclude_fold: int | None) -> bool:
    fold = _fold(path)
    return (only_fold is None or fold == only_fold) and (exclude_fold is None or fold != exclude_fold)


def _read_shard(shard: Path) -> list[Frame]:
    frames = []
    for index, record in enumerate(read_records(shard)):
        try:
            frames.append(frame_from_example(record))
        except ValueError as error:
            raise UserError(f"{shard}: record {index} is no labelled frame of a detection set: {error}") from error
    return frames
