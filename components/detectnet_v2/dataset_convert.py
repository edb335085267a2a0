"""`detectnet_v2 dataset_convert`: labelled images (KITTI or COCO) to TFRecord shards.

Partitions, shuffling, shard cuts and file names are those of TAO 5.0 (`cv/detectnet_v2/dataio`), so that the same data
and spec give the same frames in the same shards.
"""

import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from components.detectnet_v2.coco_source import CocoSource
from components.detectnet_v2.kitti_source import KittiSource
from components.detectnet_v2.partition import Partition, Skipped
from components.detectnet_v2.records import Frame, frame_to_example
from components.detectnet_v2.sample_modifiers import Modified, SampleModifier, build_modifier
from components.detectnet_v2.spec import load_dataset_export
from components.formats.tfrecord import write_records
from components.step import UserError, check_target
from components.vision.threads import available_cores


@dataclass(slots=True)
class Conversion:
    """What a conversion wrote.

    Attributes:
        shards: The record files.
        frames: Number of frames of each fold.
        objects: Number of objects of each class.
        skipped: Objects left out because they have no area.
        unlisted: Images left out because no sequence names them (partition_mode sequence).
        left_out: Other files among the images.
        modified: What the sample modifiers did; None if there are none.
    """

    shards: list[Path] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    objects: Counter[str] = field(default_factory=Counter)
    skipped: Skipped = field(default_factory=dict)
    unlisted: int = 0
    left_out: Sequence[str] = ()
    modified: Modified | None = None


def convert(spec_path: Path, output_prefix: Path, validation_fold: int | None = None) -> Conversion:
    """Converts the data that a spec names, and prints what was written.

    The files appear under their names when all of them are written; those of an earlier conversion with the same prefix
    are replaced. Objects without area are listed in `<output_prefix>_warning.json`.

    Args:
        spec_path: A `DatasetExportConfig`.
        output_prefix: `-fold-…-of-…-shard-…-of-…` is appended to it.
        validation_fold: The fold that sample modifiers leave alone (TAO's -f); needed where they alter one of several
            folds. Without modifiers it changes nothing.

    Raises:
        UserError: The spec is wrong, or an image, a label or an annotation is missing or cannot be read.
    """
    spec = load_dataset_export(spec_path)
    for warning in spec.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    kitti = spec.message.WhichOneof("convert_config_type") == "kitti_config"
    config = spec.message.kitti_config if kitti else spec.message.coco_config
    if validation_fold is not None and validation_fold >= max(config.num_partitions, 1):
        raise UserError(f"-f {validation_fold}: {spec_path} makes {config.num_partitions} partitions, counted from 0")
    root = _data_root() / config.root_directory_path
    source = KittiSource(spec.message.kitti_config, root) if kitti else CocoSource(spec.message.coco_config, root)
    output_prefix.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=output_prefix.parent, prefix=f".{output_prefix.name}.", suffix=".partial"
    ) as scratch:
        # TAO counts folds after it has passed over empty partitions: without a validation split, training is fold 0.
        partitions = [partition for partition in source.partitions if partition.keys]
        modifier = build_modifier(spec.message.sample_modifier_config, len(partitions), validation_fold)
        folds = _Folds(partitions, config.num_partitions, modifier, validation_fold)
        conversion = _write(folds, Path(scratch), output_prefix)
    conversion.unlisted, conversion.left_out = source.unlisted, source.left_out
    _report(conversion, output_prefix)
    return conversion


def _data_root() -> Path:
    """Returns the folder that relative root directories lie in, as in TAO."""
    return Path(os.environ.get("DATA_BASE_PATH") or "~/datasets").expanduser()


def cut_into_shards(keys: Sequence[str], shards: int) -> list[Sequence[str]]:
    """Cuts a partition into `shards` equal parts (0 means 1); the last one also takes the remainder."""
    shards = max(shards, 1)
    size = len(keys) // shards
    return [keys[i * size : (i + 1) * size if i + 1 < shards else len(keys)] for i in range(shards)]


def shard_suffix(fold: int, folds: int, shard: int, shards: int) -> str:
    """Returns what TAO appends to the prefix; a number of 0 leaves its part out."""
    fold_part = f"-fold-{fold:03d}-of-{folds:03d}" if folds else ""
    return fold_part + (f"-shard-{shard:05d}-of-{shards:05d}" if shards else "")


@dataclass(frozen=True, slots=True)
class _Folds:
    """What is written.

    Attributes:
        partitions: The folds that hold frames.
        count: Number of folds as the files' names give it.
        modifier: Alters the training folds.
        validation: The fold it leaves alone.
    """

    partitions: Sequence[Partition]
    count: int
    modifier: SampleModifier | None
    validation: int | None

    def copies(self, frame: Frame, fold: int) -> int:
        if self.modifier is None or fold == self.validation:
            return 1
        return self.modifier.copies(frame.class_names, fold)


def _write(folds: _Folds, scratch: Path, prefix: Path) -> Conversion:
    conversion = Conversion(modified=folds.modifier.modified if folds.modifier else None)
    with ThreadPoolExecutor(available_cores()) as pool:
        for fold, partition in enumerate(folds.partitions):
            conversion.frames.append(0)
            for index, shard in enumerate(cut_into_shards(partition.keys, partition.shards)):
                name = prefix.name + shard_suffix(fold, folds.count, index, partition.shards)
                frames = pool.map(partition.read, shard)
                write_records(scratch / name, _examples(frames, fold, folds, conversion))
                conversion.shards.append(prefix.with_name(name))
    _publish(scratch, prefix, conversion)
    return conversion


def _examples(
    frames: Iterator[tuple[Frame, Skipped]], fold: int, folds: _Folds, conversion: Conversion
) -> Iterator[bytes]:
    for frame, skipped in frames:
        conversion.skipped.update(skipped)
        example = frame_to_example(frame)
        for _ in range(folds.copies(frame, fold)):
            conversion.frames[fold] += 1
            conversion.objects.update(frame.class_names)
            yield example


def _publish(scratch: Path, prefix: Path, conversion: Conversion) -> None:
    """Moves the finished files into place; those of an earlier conversion that would mix with them go then."""
    warning_file = _warning_file(prefix)
    if conversion.skipped:
        text = json.dumps(conversion.skipped, indent=2) + "\n"
        (scratch / warning_file.name).write_text(text, encoding="utf-8")
    fold, shard = r"-fold-\d+-of-\d+", r"-shard-\d+-of-\d+"
    earlier = re.compile(f"{re.escape(prefix.name)}({fold}|{shard}|{fold}{shard}|_warning\\.json)")
    files = [prefix.with_name(file.name) for file in sorted(scratch.iterdir())]
    for file in files:
        check_target(file, None)
    for file in files:
        (scratch / file.name).replace(file)
    for file in prefix.parent.iterdir():
        if earlier.fullmatch(file.name) and file not in files and file.is_file():
            file.unlink()


def _warning_file(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}_warning.json")


def _report(conversion: Conversion, prefix: Path) -> None:
    folds = ", ".join(f"fold {fold}: {frames}" for fold, frames in enumerate(conversion.frames))
    print(f"Converted {sum(conversion.frames)} frames ({folds}) into {len(conversion.shards)} files {prefix}*")
    for name, count in sorted(conversion.objects.items()):
        print(f"  {name}: {count} objects")
    if not conversion.objects:
        print("  no object is labelled in any of them")
    if conversion.skipped:
        print(f"  {len(conversion.skipped)} objects without area left out, listed in {_warning_file(prefix)}")
    if conversion.modified:
        done = conversion.modified
        print(f"  sample_modifier_config: {done.filtered} frames left out by filter_samples_containing_only")
        print(f"  sample_modifier_config: {done.duplicates} copies added by num_duplicates")
        print(f"  sample_modifier_config: {done.beyond_limit} frames left out by max_training_samples")
    if left_out := conversion.left_out:
        print(f"  {len(left_out)} files among the images left out, for example {left_out[0]!r}")
    if conversion.unlisted:
        print(f"  {conversion.unlisted} images left out: kitti_sequence_to_frames_file does not name them")
