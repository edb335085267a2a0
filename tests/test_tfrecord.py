import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from components.formats.tfrecord import decode_example, encode_example, masked_crc, read_records, write_records
from components.step import UserError


def _slow_crc32c(content: bytes) -> int:
    """CRC-32C (Castagnoli, reflected polynomial 0x82F63B78) bit by bit."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _slow_masked_crc(content: bytes) -> int:
    crc = _slow_crc32c(content)
    rotated = int(f"{crc:032b}"[-15:] + f"{crc:032b}"[:-15], 2)  # right by 15 bits
    return (rotated + 0xA282EAD8) % 2**32


def _slow_record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return b"".join(
        [length, struct.pack("<I", _slow_masked_crc(length)), content, struct.pack("<I", _slow_masked_crc(content))]
    )


def _file(tmp_path: Path, content: bytes) -> Path:
    file = tmp_path / "set-fold-000-of-002-shard-00000-of-00001"
    file.write_bytes(content)
    return file


RECORDS = [b"", b"abc", b"\x00" * 40]
CONTENT = b"".join(_slow_record(record) for record in RECORDS)


# ---- Files -----------------------------------------------------------------------------------------------------------


def test_slow_reference_gives_the_published_check_value_of_crc32c():
    assert _slow_crc32c(b"123456789") == 0xE3069283  # the check value in the catalogue of CRCs
    assert _slow_crc32c(b"\x00" * 32) == 0x8A9136AA  # RFC 3720, B.4


@given(st.binary(max_size=64))
def test_checksum_is_the_rotated_crc32c_plus_the_constant(content: bytes):
    assert masked_crc(content) == _slow_masked_crc(content)


def test_written_file_has_exactly_the_bytes_of_the_format(tmp_path: Path):
    file = tmp_path / "records"
    assert write_records(file, iter(RECORDS)) == 3
    assert file.read_bytes() == CONTENT


def test_records_come_back_as_they_were_written(tmp_path: Path):
    assert list(read_records(_file(tmp_path, CONTENT))) == RECORDS


def test_empty_file_holds_no_records(tmp_path: Path):
    assert list(read_records(_file(tmp_path, b""))) == []


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=300), max_size=5))
def test_any_records_survive_a_round_trip(records: list[bytes]):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "records"
        write_records(file, records)
        assert list(read_records(file)) == records


def test_failing_writer_leaves_the_former_file_alone(tmp_path: Path):
    def failing():
        yield b"one"
        raise RuntimeError("no more")

    file = _file(tmp_path, b"former")
    with pytest.raises(RuntimeError):
        write_records(file, failing())
    assert file.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [file]


def test_every_truncation_is_detected(tmp_path: Path):
    ends = {0, 16, 16 + 19, len(CONTENT)}  # where a record ends and the file is a shorter, whole one
    for length in range(len(CONTENT)):
        file = _file(tmp_path, CONTENT[:length])
        if length in ends:
            list(read_records(file))
            continue
        with pytest.raises(UserError) as caught:
            list(read_records(file))
        record = 0 if length < 16 else 1 if length < 35 else 2
        assert str(file) in str(caught.value)
        assert f"record {record}" in str(caught.value), length


def test_every_flipped_bit_is_detected(tmp_path: Path):
    for position in range(len(CONTENT)):
        for bit in (0, 3, 7):
            damaged = bytearray(CONTENT)
            damaged[position] ^= 1 << bit
            with pytest.raises(UserError) as caught:
                list(read_records(_file(tmp_path, bytes(damaged))))
            record = 0 if position < 16 else 1 if position < 35 else 2
            assert f"record {record}" in str(caught.value), position


def test_length_beyond_the_file_is_a_truncation_and_reserves_no_memory(tmp_path: Path):
    length = struct.pack("<Q", 2**62)
    file = _file(tmp_path, length + struct.pack("<I", _slow_masked_crc(length)) + b"short")
    with pytest.raises(UserError, match="cut off in record 0"):
        list(read_records(file))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{\n  "labels/0001.txt_0": [1, 2, 3, 4]\n}', "looks like JSON.*narrow the tfrecords_path glob"),
        (b"[]", "looks like JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "Git LFS pointer.*git lfs pull"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "not a TFRecord file.*narrow the tfrecords_path glob"),
        (b"abc", "not a TFRecord file"),
    ],
)
def test_file_of_another_kind_is_named_for_what_it_is(content: bytes, expected: str, tmp_path: Path):
    with pytest.raises(UserError, match=expected):
        list(read_records(_file(tmp_path, content)))


def test_missing_file_is_a_user_error(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        list(read_records(tmp_path / "none"))


# ---- Examples --------------------------------------------------------------------------------------------------------


def test_example_has_the_bytes_of_tensorflows_message():
    # By hand from tf.train.Example: features (1) { feature (1) { key (1) value (2) { kind { value (1) } } } }
    integers = bytes.fromhex("0a 0c 0a 0a 0a 01 61 12 05 1a 03 0a 01 07")
    floats = bytes.fromhex("0a 0f 0a 0d 0a 01 61 12 08 12 06 0a 04 00 00 c0 3f")
    texts = bytes.fromhex("0a 0e 0a 0c 0a 01 61 12 07 0a 05 0a 01 78 0a 00")
    assert encode_example({"a": np.array([7], np.int64)}) == integers
    assert encode_example({"a": np.array([1.5], np.float32)}) == floats
    assert encode_example({"a": [b"x", b""]}) == texts


def test_unpacked_numbers_of_older_writers_are_read():
    integers = bytes.fromhex("0a 0d 0a 0b 0a 01 61 12 06 1a 04 08 07 08 08")
    floats = bytes.fromhex("0a 10 0a 0e 0a 01 61 12 09 12 07 0d 00 00 c0 3f 0a 00")
    assert decode_example(integers)["a"].tolist() == [7, 8]
    assert decode_example(floats)["a"].tolist() == [1.5]


def test_empty_lists_keep_their_kind_and_a_feature_without_one_is_an_empty_list():
    empty = {"f": np.zeros(0, np.float32), "i": np.zeros(0, np.int64), "b": []}
    back = decode_example(encode_example(empty))
    assert back["f"].dtype == np.float32
    assert back["i"].dtype == np.int64
    assert back["b"] == []
    assert decode_example(bytes.fromhex("0a 07 0a 05 0a 01 61 12 00"))["a"] == []


def test_same_features_in_another_order_give_the_same_bytes():
    features = {name: [name.encode()] for name in "qwertyuiopasdfgh"}
    assert encode_example(features) == encode_example(dict(reversed(features.items())))


def test_bytes_that_are_no_example_are_refused():
    with pytest.raises(ValueError, match=r"no tf\.train\.Example"):
        decode_example(b"\xff\xff\xff")


FEATURE = st.one_of(
    st.lists(st.binary(max_size=9), max_size=4),
    npst.arrays(np.float32, st.integers(0, 5), elements=st.floats(width=32)),
    npst.arrays(np.int64, st.integers(0, 5)),
)


@given(st.dictionaries(st.text(max_size=8), FEATURE, max_size=5))
def test_any_example_survives_a_round_trip(features: dict):
    back = decode_example(encode_example(features))
    assert back.keys() == features.keys()
    for name, values in features.items():
        assert type(back[name]) is type(values)
        if isinstance(values, list):
            assert back[name] == values
        else:
            assert back[name].dtype == values.dtype
            np.testing.assert_array_equal(back[name], values)
