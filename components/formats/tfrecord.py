"""TFRecord files and the tf.train.Example messages in them, without TensorFlow.

A file is a sequence of records: length (uint64, little endian), masked CRC-32C of these 8 bytes (uint32), the content,
masked CRC-32C of the content (uint32). Source: TensorFlow, `core/lib/io/record_writer.cc` and `core/lib/hash/crc32c.h`.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from components.formats import example_pb2
from components.step import UserError, publish

Feature = list[bytes] | NDArray[np.float32] | NDArray[np.int64]
"""The values of one feature of an Example; all features are lists."""

_LENGTH = struct.Struct("<Q")
_CHECKSUM = struct.Struct("<I")
_HEADER_BYTES = _LENGTH.size + _CHECKSUM.size


def masked_crc(content: bytes) -> int:
    """Returns the CRC-32C of `content`, rotated right by 15 bits plus a constant, as TFRecord stores it."""
    crc = int(google_crc32c.value(content))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def write_records(path: Path, records: Iterable[bytes]) -> int:
    """Writes a TFRecord file, which appears at `path` only when it is whole; returns the number of records."""
    count = 0
    with publish(path) as scratch, scratch.open("wb") as stream:
        for record in records:
            length = _LENGTH.pack(len(record))
            stream.write(length + _CHECKSUM.pack(masked_crc(length)))
            stream.write(record)
            stream.write(_CHECKSUM.pack(masked_crc(record)))
            count += 1
    return count


def read_records(path: Path) -> Iterator[bytes]:
    """Streams the records of a TFRecord file; one record is in memory at a time.

    Raises:
        UserError: The file cannot be opened, is no TFRecord file, or is cut off or damaged; the message names the file
            and the record (from 0).
    """
    try:
        stream = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: the records cannot be read: {error.strerror}") from error
    with stream:
        remaining = path.stat().st_size
        index = 0
        while remaining:
            record = _read_record(stream, remaining, path, index)
            remaining -= _HEADER_BYTES + len(record) + _CHECKSUM.size
            yield record
            index += 1


def _read_record(stream: BinaryIO, remaining: int, path: Path, index: int) -> bytes:
    header = stream.read(_HEADER_BYTES)
    if len(header) == _HEADER_BYTES:
        length, (checksum,) = header[: _LENGTH.size], _CHECKSUM.unpack(header[_LENGTH.size :])
        if masked_crc(length) != checksum:
            raise UserError(f"{path}: {_foreign(header) if index == 0 else _damaged(index)}")
        (size,) = _LENGTH.unpack(length)
        # Compared before reading, so that a length beyond the file's end reserves no memory.
        if _HEADER_BYTES + size + _CHECKSUM.size <= remaining:
            record, trailer = stream.read(size), stream.read(_CHECKSUM.size)
            if len(trailer) == _CHECKSUM.size:
                if masked_crc(record) != _CHECKSUM.unpack(trailer)[0]:
                    raise UserError(f"{path}: {_damaged(index)}")
                return record
    elif index == 0:
        raise UserError(f"{path}: {_foreign(header)}")
    raise UserError(f"{path}: cut off in record {index}; copy or convert the file again")


def _damaged(index: int) -> str:
    return f"record {index} is damaged (its checksum is wrong); copy or convert the file again"


def _foreign(start: bytes) -> str:
    """Says what a file that does not start with a record is likely to be."""
    mend = "narrow the tfrecords_path glob to the shards, for example <prefix>-fold-*"
    if start.startswith(b"version http"):
        return "a Git LFS pointer, not the records themselves; fetch them with `git lfs pull`"
    if start.lstrip()[:1] in (b"{", b"["):
        return f"looks like JSON, not TFRecord; {mend}"
    return f"not a TFRecord file, or damaged in record 0; {mend}, or convert again"


def encode_example(features: Mapping[str, Feature]) -> bytes:
    """Serialises features as a tf.train.Example: lists of bytes, float arrays and integer arrays [K].

    The same features give the same bytes, whatever their order.
    """
    example = example_pb2.Example()
    for name, values in features.items():
        feature = example.features.feature[name]
        if isinstance(values, list):
            feature.bytes_list.SetInParent()
            feature.bytes_list.value.extend(values)
        elif np.issubdtype(values.dtype, np.floating):
            feature.float_list.SetInParent()
            feature.float_list.value.extend(values.tolist())
        else:
            feature.int64_list.SetInParent()
            feature.int64_list.value.extend(values.tolist())
    return example.SerializeToString(deterministic=True)


def decode_example(content: bytes) -> dict[str, Feature]:
    """Reads a tf.train.Example; a feature without a kind, as TensorFlow writes empty ones, is an empty list.

    Raises:
        ValueError: The bytes are no Example.
    """
    try:
        example = example_pb2.Example.FromString(content)
    except DecodeError as error:
        raise ValueError(f"no tf.train.Example: {error}") from error
    return {name: _values(feature) for name, feature in example.features.feature.items()}


def _values(feature: example_pb2.Feature) -> Feature:
    kind = feature.WhichOneof("kind")
    if kind == "float_list":
        return np.array(feature.float_list.value, np.float32)
    if kind == "int64_list":
        return np.array(feature.int64_list.value, np.int64)
    return list(feature.bytes_list.value)
