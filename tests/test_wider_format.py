import shutil
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.formats.images import ImageError
from components.formats.wider import Face, WiderImage, WiderSource, format_annotations, parse_annotations
from components.step import UserError
from components.widerface.acquire import pack

BLOCK = b"0--Parade/a.jpg\n1\n1 2 30 40 0 1 0 0 2 1 \n"

flag = st.integers(0, 2)
faces = st.builds(Face, st.tuples(*[st.integers(-50, 2000)] * 4), flag, flag, flag, flag, flag, flag)
images = st.lists(
    st.builds(
        WiderImage,
        st.from_regex(r"[0-9]{1,2}--[A-Z][a-z_]{0,8}/[a-z0-9_ü][a-z0-9_. ü]{0,8}[a-z0-9]\.jpg", fullmatch=True),
        st.lists(faces, max_size=4).map(tuple),
    ),
    unique_by=lambda image: image.name,
)


def parse(content: bytes) -> list[WiderImage]:
    return parse_annotations(content, "gt.txt")


@given(images)
def test_what_is_formatted_is_parsed_back(blocks):
    assert parse(format_annotations(blocks)) == blocks


def test_columns_are_read_in_the_official_order():
    (image,) = parse(BLOCK)
    assert image.name == "0--Parade/a.jpg"
    assert image.faces == (Face((1, 2, 30, 40), blur=0, expression=1, illumination=0, invalid=0, occlusion=2, pose=1),)


def test_zero_face_image_with_and_without_its_filler_line():
    filler = b"0--Parade/none.jpg\n0\n0 0 0 0 0 0 0 0 0 0 \n"
    bare = b"0--Parade/bare.jpg\n0\n"
    blocks = parse(filler + bare + BLOCK + bare.replace(b"bare", b"last"))
    assert [len(block.faces) for block in blocks] == [0, 0, 1, 0]


def test_windows_line_ends_byte_order_mark_and_blank_lines_are_read():
    assert parse(b"\xef\xbb\xbf" + BLOCK.replace(b"\n", b"\r\n") + b"\r\n\r\n") == parse(BLOCK)


def test_a_face_of_zeros_in_a_counted_block_is_kept_as_annotated():
    (image,) = parse(b"0--Parade/a.jpg\n2\n0 0 0 0 0 0 0 0 0 0\n1 2 3 4 0 0 0 0 0 0\n")
    assert [face.box for face in image.faces] == [(0, 0, 0, 0), (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        (BLOCK + b"0--Parade/b.jpg\n3\n1 2 3 4 0 0 0 0 0 0\n", 6, "face 2 of 3 of 0--Parade/b.jpg"),
        (BLOCK + b"0--Parade/b.jpg\n2\n1 2 3 4 0 0 0 0 0 0\n5 6 7", 7, "face 2 of 2"),
        (BLOCK + b"0--Parade/b.jpg\n2\n1 2 3 4 0 0 0 0 0 0\n" + BLOCK.replace(b"a.jpg", b"c.jpg"), 7, "face 2 of 2"),
        (BLOCK + b"0--Parade/b.jpg\n", 4, "number of faces of 0--Parade/b.jpg"),
        (b"0--Parade/b.jpg\n" + BLOCK, 2, "number of faces"),
        (b"0--Parade/b.jpg\n-1\n", 2, "number of faces"),
        (BLOCK + b"1 2 30 40 0 1 0 0 2 1\n", 4, "path of an image"),
        (b"0--Parade/b.jpg\n1\n1 2 x 4 0 0 0 0 0 0\n", 3, "10 integers"),
        (b"0--Parade/b.jpg\n1\n1 2 3.5 4 0 0 0 0 0 0\n", 3, "10 integers"),
        (b"0--Parade/b.jpg\n1\n1 2 3 4\n", 3, "10 integers"),
        (b"0--Parade/b.jpg\n1\n1 2 3 4 0 0 0 0 0 0 0\n", 3, "10 integers"),
        (BLOCK + b"0--Parade/b\xff.jpg\n0\n", 4, "not UTF-8"),
        (BLOCK + BLOCK, 4, "second time (first in line 1)"),
        (b"../../etc/passwd.jpg\n0\n", 1, "leaves the image folder"),
        (b"/etc/passwd.jpg\n0\n", 1, "leaves the image folder"),
    ],
)
def test_malformed_text_is_refused_with_file_and_line(content, line, words):
    with pytest.raises(UserError, match=f"^gt.txt:{line}: ") as caught:
        parse(content)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.integers(1, len(BLOCK) * 2 - 1))
def test_text_cut_anywhere_is_read_whole_or_refused(cut):
    """A cut inside the last number cannot be seen; any other gives whole blocks or an error, never a lost face."""
    content = (BLOCK + BLOCK.replace(b"a.jpg", b"b.jpg"))[:cut]
    try:
        blocks = parse(content)
    except UserError:
        return
    assert all(len(block.faces) == 1 for block in blocks)
    assert len(blocks) == content.count(b".jpg\n")


@pytest.fixture
def official(tmp_path):
    root = tmp_path / "official"
    (root / "wider_face_split").mkdir(parents=True)
    for name in ("train", "val"):
        (root / f"WIDER_{name}/images/0--Parade").mkdir(parents=True)
        (root / f"WIDER_{name}/images/0--Parade/a.jpg").write_bytes(b"pixels of " + name.encode())
        (root / f"wider_face_split/wider_face_{name}_bbx_gt.txt").write_bytes(BLOCK)
    return root


def test_archives_read_the_same_as_folders(official, tmp_path):
    archives = tmp_path / "archives"
    archives.mkdir()
    for part in ("WIDER_train", "WIDER_val", "wider_face_split"):
        pack(official, part, archives / f"{part}.zip")
    for split in ("training", "validation"):
        folder, packed = WiderSource(official), WiderSource(archives)
        assert packed.images(split) == folder.images(split)
        assert packed.read(split, "0--Parade/a.jpg") == folder.read(split, "0--Parade/a.jpg")
        assert list(packed.files(split)) == list(folder.files(split)) == ["0--Parade/a.jpg"]
        for source in (folder, packed):
            with pytest.raises(ImageError, match="missing"):
                source.read(split, "0--Parade/b.jpg")


def test_a_damaged_archive_member_is_an_image_error(official, tmp_path):
    pack(official, "WIDER_train", tmp_path / "WIDER_train.zip")
    content = (tmp_path / "WIDER_train.zip").read_bytes()
    (tmp_path / "WIDER_train.zip").write_bytes(content.replace(b"pixels", b"pixies"))
    with pytest.raises(ImageError, match="CRC"):
        WiderSource(tmp_path).read("training", "0--Parade/a.jpg")


def test_missing_folder_part_and_empty_set_are_named(official, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        WiderSource(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"wider_face_train_bbx_gt\.txt is missing"):
        WiderSource(tmp_path).images("training")
    shutil.rmtree(official / "WIDER_train")
    with pytest.raises(UserError, match=r"neither WIDER_train/images nor WIDER_train\.zip"):
        WiderSource(official).images("training")
    (official / "wider_face_split/wider_face_val_bbx_gt.txt").write_bytes(b"\n")
    with pytest.raises(UserError, match="validation set is empty"):
        WiderSource(official).images("validation")


def test_a_cut_archive_is_named(official):
    shutil.rmtree(official / "WIDER_train")
    (official / "WIDER_train.zip").write_bytes(b"PK\x03\x04 only the beginning")
    with pytest.raises(UserError, match=r"WIDER_train\.zip: not a whole zip archive"):
        WiderSource(official).images("training")


def test_the_complete_official_annotations_survive_a_round_trip_byte_for_byte(real_data):
    archive = real_data / "wider_face_eval/wider_face_split_full.zip"
    if not archive.is_file():
        pytest.skip(f"no official annotations at {archive}")
    with zipfile.ZipFile(archive) as packed:
        for name, count, face_count in (("train", 12880, 159420), ("val", 3226, 39708)):
            content = packed.read(f"wider_face_{name}_bbx_gt.txt")
            blocks = parse(content)
            assert len(blocks) == count
            assert sum(len(block.faces) for block in blocks) == face_count
            assert format_annotations(blocks) == content
