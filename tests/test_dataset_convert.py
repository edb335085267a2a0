import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.dataset_convert import convert, cut_into_shards
from components.detectnet_v2.records import Frame, frame_from_example, frame_to_example, load_frames
from components.detectnet_v2.sample_modifiers import build_modifier
from components.formats.tfrecord import decode_example, encode_example, read_records, write_records
from components.step import UserError

FACE = "face 0.25 1 0.5 10.5 4.25 20 30 1 2 3 4 5 6 7"


def _encoded(width: int = 64, height: int = 48, suffix: str = ".png") -> bytes:
    image = np.full((height, width, 3), 90, np.uint8)
    return cv2.imencode(suffix, image)[1].tobytes()


class KittiFolder:
    """A small KITTI folder and the conversion of it."""

    def __init__(self, root: Path) -> None:
        self.root = root / "data"
        self.out = root / "records" / "kitti"
        (self.root / "images").mkdir(parents=True)
        (self.root / "labels").mkdir()

    def add(self, name: str, *labels: str, image: bytes | None = None, suffix: str = ".png") -> None:
        (self.root / "images" / f"{name}{suffix}").write_bytes(image or _encoded(suffix=suffix))
        (self.root / "labels" / f"{name}.txt").write_text("".join(f"{label}\n" for label in labels))

    def convert(self, settings: str = 'partition_mode: "random" num_partitions: 2 val_split: 20 num_shards: 2'):
        folders = 'image_dir_name: "images" label_dir_name: "labels"'
        spec = self.root.parent / "convert.txt"
        spec.write_text(f'kitti_config {{ root_directory_path: "{self.root}" {folders} {settings} }}')
        return convert(spec, self.out)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.out.parent.iterdir())

    def ids(self, name: str) -> list[str]:
        return [frame_from_example(record).id for record in read_records(self.out.with_name(name))]


@pytest.fixture
def folder(tmp_path: Path) -> KittiFolder:
    return KittiFolder(tmp_path)


# ---- Partitions and shards -------------------------------------------------------------------------------------------


def test_random_mode_cuts_shuffles_and_shards_as_tao_does(folder: KittiFolder):
    for index in range(11):
        folder.add(f"img{index:02d}", FACE)
    folder.convert()
    # TAO: the first int(11 * 20 / 100) of the sorted names validate; Python's generator, seeded with 42, shuffles
    # both parts, and then both again.
    names = [f"img{index:02d}" for index in range(11)]
    validation, training = names[:2], names[2:]
    random.seed(42)
    for part in (validation, training, validation, training):
        random.shuffle(part)
    shards = {
        "kitti-fold-000-of-002-shard-00000-of-00002": validation[:1],
        "kitti-fold-000-of-002-shard-00001-of-00002": validation[1:],
        "kitti-fold-001-of-002-shard-00000-of-00002": training[:4],
        "kitti-fold-001-of-002-shard-00001-of-00002": training[4:],
    }
    assert folder.names() == sorted(shards)
    for name, ids in shards.items():
        assert folder.ids(name) == [f"images/{frame}" for frame in ids]


def test_without_a_validation_split_the_training_data_are_fold_0(folder: KittiFolder):
    folder.add("a", FACE)
    conversion = folder.convert('partition_mode: "random" num_partitions: 2 val_split: 0 num_shards: 1')
    assert folder.names() == ["kitti-fold-000-of-002-shard-00000-of-00001"]
    assert conversion.frames == [1]


def test_shard_count_of_zero_leaves_the_shard_out_of_the_name(folder: KittiFolder):
    for name in "abcde":
        folder.add(name, FACE)
    folder.convert('partition_mode: "random" num_partitions: 2 val_split: 20')
    assert folder.names() == ["kitti-fold-000-of-002", "kitti-fold-001-of-002"]


def test_more_shards_than_frames_leave_all_frames_to_the_last(folder: KittiFolder):
    folder.add("a", FACE)
    folder.convert('partition_mode: "random" num_partitions: 2 num_shards: 3')
    sizes = [len(folder.ids(name)) for name in folder.names()]
    assert sizes == [0, 0, 1]
    assert len(load_frames(f"{folder.out}-*")) == 1


@given(st.lists(st.text(max_size=2), max_size=40), st.integers(0, 9))
def test_shards_hold_every_frame_once_in_order(keys: Sequence[str], shards: int):
    cut = cut_into_shards(keys, shards)
    assert [key for shard in cut for key in shard] == keys
    assert len(cut) == max(shards, 1)
    assert len({len(shard) for shard in cut[:-1]}) <= 1


def _sequences(folder: KittiFolder, sequences: dict[str, list[str]]) -> str:
    for frames in sequences.values():
        for frame in frames:
            folder.add(frame, FACE)
    (folder.root / "map.json").write_text(json.dumps(sequences))
    return 'partition_mode: "sequence" kitti_sequence_to_frames_file: "map.json"'


def test_sequence_mode_deals_the_longest_first_and_reverses_the_partitions(folder: KittiFolder):
    sequences = {"b": ["b1", "b2"], "a": ["a1", "a2"], "long": ["l1", "l2", "l3"], "one": ["o1"]}
    mode = _sequences(folder, sequences)
    folder.add("stray", FACE)
    conversion = folder.convert(f"{mode} num_partitions: 3")
    # Order long, a, b, one; dealt to 0, 1, 2, 0; reversed; each shuffled once.
    expected = [["b1", "b2"], ["a1", "a2"], ["l1", "l2", "l3", "o1"]]
    random.seed(42)
    for part in expected:
        random.shuffle(part)
    for fold, part in enumerate(expected):
        assert folder.ids(f"kitti-fold-{fold:03d}-of-003") == [f"images/{frame}" for frame in part]
    assert conversion.unlisted == 1


def test_sequence_mode_without_partitions_writes_one_file_of_that_very_name(folder: KittiFolder):
    mode = _sequences(folder, {"b": ["b1"], "a": ["a1"]})
    folder.convert(mode)
    assert folder.names() == ["kitti"]
    assert sorted(folder.ids("kitti")) == ["images/a1", "images/b1"]


def test_sequence_that_names_a_missing_image_is_refused(folder: KittiFolder):
    mode = _sequences(folder, {"b": ["b1"]})
    (folder.root / "images" / "b1.png").rename(folder.root / "images" / "c1.png")
    with pytest.raises(UserError, match=r"map\.json: sequence b names the frame b1, but there is no .*b1\.png"):
        folder.convert(mode)


@pytest.mark.parametrize("content", ['["a"]', '{"a": "b1"}', '{"a": [1]}', "{", ""])
def test_sequence_file_of_another_shape_is_refused(content: str, folder: KittiFolder):
    mode = _sequences(folder, {"b": ["b1"]})
    (folder.root / "map.json").write_text(content)
    with pytest.raises(UserError, match=r"map\.json: (a JSON object of sequences is needed|no JSON text)"):
        folder.convert(mode)


# ---- Labels and images -----------------------------------------------------------------------------------------------


def test_record_holds_all_features_of_tao(folder: KittiFolder):
    folder.add("a", FACE, "Person 0 0 0 0 0 9 9 0 0 0 0 0 0 0")
    folder.convert('partition_mode: "random" num_partitions: 2')
    (record,) = read_records(folder.out.with_name("kitti-fold-000-of-002"))
    plain = {
        name: value if isinstance(value, list) else value.tolist() for name, value in decode_example(record).items()
    }
    world = dict(zip(("h", "w", "l", "x", "y", "z", "rot_y"), range(1, 8), strict=True))
    assert plain == {
        "frame/id": [b"images/a"],
        "frame/height": [48],
        "frame/width": [64],
        "target/object_class": [b"face", b"person"],
        "target/truncation": [0.25, 0],
        "target/occlusion": [1, 0],
        "target/observation_angle": [0.5, 0],
        "target/coordinates_x1": [10.5, 0],
        "target/coordinates_y1": [4.25, 0],
        "target/coordinates_x2": [20, 9],
        "target/coordinates_y2": [30, 9],
        **{f"target/world_bbox_{name}": [value, 0] for name, value in world.items()},
    }
    assert decode_example(record)["target/occlusion"].dtype == np.int64


def test_objects_without_area_are_left_out_and_listed(folder: KittiFolder, capsys):
    folder.add("a", FACE, "face 0 0 0 5.2 5 5.9 9 0 0 0 0 0 0 0", FACE, "face 0 0 0 5 9 8 5 0 0 0 0 0 0 0")
    conversion = folder.convert('partition_mode: "random" num_partitions: 2')
    assert conversion.objects == {"face": 2}
    listed = json.loads(folder.out.with_name("kitti_warning.json").read_text())
    assert listed == {"labels/a.txt_1": [5, 5, 5, 9], "labels/a.txt_3": [5, 9, 8, 5]}
    assert "2 objects without area left out" in capsys.readouterr().out


def test_image_with_an_empty_label_file_keeps_its_frame(folder: KittiFolder):
    folder.add("a")
    folder.convert('partition_mode: "random" num_partitions: 2')
    (frame,) = load_frames(f"{folder.out}-fold-*")
    assert (frame.id, frame.width, frame.height, frame.class_names) == ("images/a", 64, 48, [])
    assert frame.boxes.shape == (0, 4)


def test_image_without_a_label_file_is_named_and_counted(folder: KittiFolder):
    for name in "abc":
        folder.add(name, FACE)
    (folder.root / "labels" / "b.txt").unlink()
    (folder.root / "labels" / "c.txt").unlink()
    with pytest.raises(UserError, match=r"b\.txt: the label file is missing, as for 2 of 3 images"):
        folder.convert()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"{FACE} 0.9", r"a\.txt:2: 16 columns, a KITTI label has 15; labels with a score are detections"),
        ("face 0 0 0 1 2 3 4", r"a\.txt:2: 8 columns"),
        (FACE.replace("10.5", "ten"), r"a\.txt:2: x1 is 'ten'; a number is needed"),
        (FACE.replace("10.5", "nan"), r"a\.txt:2: x1 is 'nan'; a finite number"),
        (FACE.replace("10.5", "1e999"), r"a\.txt:2: x1 is '1e999'; a finite number"),
        (FACE.replace("10.5", "1_0"), r"a\.txt:2: x1 is '1_0'; a number is needed"),
        (
            FACE.replace("face", "Safety Helmet"),
            r"a\.txt:2: the class name 'Safety Helmet' holds a blank; write 'Safety_H",
        ),
    ],
)
def test_label_that_cannot_be_read_is_named_with_its_line(line: str, expected: str, folder: KittiFolder):
    folder.add("a", FACE, line)
    with pytest.raises(UserError, match=expected):
        folder.convert()


def test_label_file_that_is_no_text_is_named(folder: KittiFolder):
    folder.add("a", FACE)
    (folder.root / "labels" / "a.txt").write_bytes(b"face\xff 0")
    with pytest.raises(
        UserError, match=r"a\.txt:1: not UTF-8 text \(byte 0xff, Latin-1 perhaps\); save the file as UTF-8"
    ):
        folder.convert()


def test_png_named_jpg_is_measured_by_its_content(folder: KittiFolder):
    folder.add("a", FACE, image=_encoded(40, 20, ".png"), suffix=".jpg")
    folder.convert('partition_mode: "random" num_partitions: 2 image_extension: ".jpg"')
    (frame,) = load_frames(f"{folder.out}-fold-*")
    assert (frame.width, frame.height) == (40, 20)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_truncated_image_is_named(suffix: str, folder: KittiFolder):
    whole = _encoded(400, 300, suffix)
    folder.add("a", FACE, image=whole[: len(whole) * 2 // 3], suffix=suffix)
    with pytest.raises(UserError, match=rf"a\{suffix}: "):
        folder.convert(f'partition_mode: "random" num_partitions: 2 image_extension: "{suffix}"')


def test_folder_without_images_of_the_extension_says_what_is_there(folder: KittiFolder):
    folder.add("a", FACE, suffix=".jpg")
    with pytest.raises(UserError, match=r"images: no image ends with \.png \(1 with \.jpg\); mend image_extension"):
        folder.convert()


def test_missing_image_folder_is_named(folder: KittiFolder):
    (folder.root / "images").rename(folder.root / "pictures")
    with pytest.raises(UserError, match="images: cannot be listed"):
        folder.convert()


def test_relative_root_lies_below_the_data_base_path(folder: KittiFolder, monkeypatch, tmp_path: Path):
    folder.add("a", FACE)
    monkeypatch.setenv("DATA_BASE_PATH", str(tmp_path))
    folder.root = Path("data")
    spec = tmp_path / "convert.txt"
    spec.write_text(
        'kitti_config { root_directory_path: "data" image_dir_name: "images" label_dir_name: "labels" '
        'partition_mode: "random" num_partitions: 2 }'
    )
    assert convert(spec, folder.out).frames == [1]


# ---- Publishing ------------------------------------------------------------------------------------------------------


def test_conversion_that_fails_midway_leaves_the_former_records_alone(folder: KittiFolder):
    folder.add("a", FACE)
    folder.add("b", FACE)
    folder.convert()
    former = {path.name: path.read_bytes() for path in folder.out.parent.iterdir()}
    folder.add("zz", "face 0 0")
    with pytest.raises(UserError):
        folder.convert('partition_mode: "random" num_partitions: 2 num_shards: 3')
    assert {path.name: path.read_bytes() for path in folder.out.parent.iterdir()} == former


def test_second_conversion_replaces_the_shards_of_the_first(folder: KittiFolder):
    for name in "abcdef":
        folder.add(name, FACE, "face 0 0 0 5 9 8 5 0 0 0 0 0 0 0")
    folder.convert('partition_mode: "random" num_partitions: 2 val_split: 50 num_shards: 3')
    other = folder.out.with_name("kitti_val-fold-000-of-002")
    other.write_bytes(b"")
    for name in "abcdef":
        folder.add(name, FACE)
    folder.convert('partition_mode: "random" num_partitions: 2 val_split: 0 num_shards: 1')
    assert folder.names() == ["kitti-fold-000-of-002-shard-00000-of-00001", other.name]


def test_same_data_give_the_same_bytes(folder: KittiFolder):
    for name in "abcdef":
        folder.add(name, FACE)
    folder.convert()
    first = [path.read_bytes() for path in sorted(folder.out.parent.iterdir())]
    folder.out = folder.out.parent.parent / "again" / "kitti"
    folder.convert()
    assert [path.read_bytes() for path in sorted(folder.out.parent.iterdir())] == first


def test_validation_fold_beyond_the_partitions_is_refused(folder: KittiFolder, tmp_path: Path):
    folder.add("a", FACE)
    folder.convert()
    with pytest.raises(UserError, match=r"-f 2: .* makes 2 partitions, counted from 0"):
        convert(tmp_path / "convert.txt", folder.out, validation_fold=2)


# ---- COCO ------------------------------------------------------------------------------------------------------------

COCO = {
    "images": [
        {"id": 7, "file_name": "x.jpg", "width": 64, "height": 48},
        {"id": 3, "file_name": "sub/y.v2.jpg", "width": 32, "height": 16},
    ],
    "categories": [{"id": 1, "name": "Traffic Light"}, {"id": 2, "name": "face"}],
    "annotations": [
        {"id": 11, "image_id": 7, "category_id": 1, "bbox": [1.5, 2, 10, 20], "iscrowd": 1},
        {"id": 12, "image_id": 7, "category_id": 2, "bbox": [1, 2, 0.5, 20]},
        {"id": 13, "image_id": 7, "category_id": 2, "bbox": [3, 4, 5, 6]},
    ],
}


def _convert_coco(tmp_path: Path, documents: list, shards: str = "num_shards: 1"):
    root = tmp_path / "coco"
    for index, document in enumerate(documents):
        for name in ("x.jpg", "sub/y.v2.jpg"):
            (root / f"part{index}" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / f"part{index}" / name).touch()
        (root / f"part{index}.json").write_text(json.dumps(document))
    parts = "".join(f'img_dir_names: "part{i}" annotation_files: "part{i}.json" ' for i in range(len(documents)))
    spec = tmp_path / "convert.txt"
    count = f"num_partitions: {len(documents)}"
    spec.write_text(f'coco_config {{ root_directory_path: "{root}" {parts} {count} {shards} }}')
    return convert(spec, tmp_path / "records" / "coco")


def test_coco_file_becomes_a_fold_in_its_own_order(tmp_path: Path):
    conversion = _convert_coco(tmp_path, [COCO, COCO], "num_shards: [1, 2]")
    assert [path.name for path in conversion.shards] == [
        "coco-fold-000-of-002-shard-00000-of-00001",
        "coco-fold-001-of-002-shard-00000-of-00002",
        "coco-fold-001-of-002-shard-00001-of-00002",
    ]
    first, second = load_frames(f"{tmp_path}/records/coco-fold-000*")
    assert (first.id, second.id) == ("part0/x", "part0/sub/y.v2")
    assert (second.width, second.height, second.class_names) == (32, 16, [])
    assert first.class_names == ["trafficlight", "face"]
    assert first.boxes.tolist() == [[1.5, 2, 11.5, 22], [3, 4, 8, 10]]
    assert json.loads((tmp_path / "records" / "coco_warning.json").read_text()) == {"12": [1, 2, 1, 22]}
    assert conversion.frames == [2, 2]


def _without(key: str) -> dict:
    return {name: value for name, value in COCO.items() if name != key}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (_without("images"), "part0.json: images is missing"),
        (_without("annotations") | {"annotations": []}, "images, annotations or categories are empty"),
        ([], "part0.json is []; an object is needed"),
        (COCO | {"annotations": [{"image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1]}]}, "image_id 9 is not in the"),
        (COCO | {"annotations": [{"image_id": 7, "category_id": 8, "bbox": [0, 0, 1, 1]}]}, "category_id 8 is not in"),
        (
            COCO | {"annotations": [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1]}]},
            "[0]: bbox is [0, 0, 1]; a li",
        ),
        (COCO | {"annotations": [{"image_id": 7, "category_id": 1}]}, "annotations[0]: bbox is missing"),
        (COCO | {"images": [{"id": 7, "file_name": "x.jpg", "width": 0, "height": 3}]}, "width or height of 0"),
        (COCO | {"images": [{"id": 7, "file_name": "x.jpg", "height": 3}]}, "images[0]: width is missing"),
        (COCO | {"images": [{"id": 7, "file_name": "z.jpg", "width": 4, "height": 3}]}, "no such image, as for 1 of 1"),
    ],
)
def test_coco_file_that_cannot_be_used_is_named(document: object, expected: str, tmp_path: Path):
    with pytest.raises(UserError, match=re.escape(expected)):
        _convert_coco(tmp_path, [document])


def test_coco_files_with_other_categories_are_refused(tmp_path: Path):
    other = COCO | {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 3, "name": "c"}]}
    with pytest.raises(UserError, match=r"part1\.json: its categories are not those of .*part0\.json"):
        _convert_coco(tmp_path, [COCO, other])


def test_real_coco_annotations_convert(real_data: Path, tmp_path: Path):
    root = real_data / "coco_keypoints"
    if not root.is_dir():
        pytest.skip(f"no COCO annotations at {root}")
    spec = tmp_path / "convert.txt"
    spec.write_text(
        f'coco_config {{ root_directory_path: "{root}" img_dir_names: "val2017" '
        'annotation_files: "annotations/person_keypoints_val2017.json" num_partitions: 1 num_shards: 4 }'
    )
    conversion = convert(spec, tmp_path / "records" / "coco")
    document = json.loads((root / "annotations" / "person_keypoints_val2017.json").read_text())
    assert conversion.frames == [len(document["images"])]
    assert conversion.objects["person"] + len(conversion.skipped) == len(document["annotations"])


# ---- Loading ---------------------------------------------------------------------------------------------------------


def _shards(tmp_path: Path) -> str:
    for fold in range(3):
        frames = [Frame(f"images/{fold}{i}", 8, 8, [], np.zeros((0, 4), np.float32)) for i in range(2)]
        write_records(tmp_path / f"set-fold-{fold:03d}-of-003-shard-00000-of-00001", map(frame_to_example, frames))
    return str(tmp_path / "set-*")


def test_validation_fold_divides_the_shards(tmp_path: Path):
    pattern = _shards(tmp_path)
    assert [frame.id for frame in load_frames(pattern, only_fold=1)] == ["images/10", "images/11"]
    assert [frame.id[7] for frame in load_frames(pattern, exclude_fold=1)] == ["0", "0", "2", "2"]
    assert len(load_frames(pattern)) == 6


def test_fold_that_does_not_exist_is_refused_with_those_that_do(tmp_path: Path):
    with pytest.raises(UserError, match="shards of fold 5; folds found: 0, 1, 2"):
        load_frames(_shards(tmp_path), only_fold=5)


def test_only_fold_that_exists_cannot_be_excluded(tmp_path: Path):
    _shards(tmp_path)
    with pytest.raises(UserError, match="any fold but 0; folds found: 0"):
        load_frames(str(tmp_path / "set-fold-000-*"), exclude_fold=0)


def test_glob_that_matches_nothing_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"none-\*: no file matches this tfrecords_path"):
        load_frames(str(tmp_path / "none-*"))


@pytest.mark.parametrize("name", ["set-_warning.json", "set-manifest.json"])
def test_glob_that_catches_a_json_file_is_refused_by_name(name: str, tmp_path: Path):
    pattern = _shards(tmp_path)
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"{name}: the tfrecords_path .* catches this file.*narrow it to the shards"):
        load_frames(pattern)


def test_record_of_another_kind_is_named_with_its_number(tmp_path: Path):
    good = frame_to_example(Frame("a", 8, 8, [], np.zeros((0, 4), np.float32)))
    write_records(tmp_path / "set-0", [good, encode_example({"image/encoded": [b"x"]})])
    with pytest.raises(UserError, match=r"set-0: record 1 is no labelled frame.*target/object_class is missing"):
        load_frames(str(tmp_path / "set-*"))


@pytest.mark.parametrize("feature", ["target/coordinates_x2", "target/truncation", "frame/width"])
def test_feature_of_another_length_is_refused(feature: str):
    frame = Frame("a", 8, 8, ["face"], np.ones((1, 4), np.float32))
    features = decode_example(frame_to_example(frame))
    features[feature] = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=f"{feature} has 3 values, 1 are needed"):
        frame_from_example(encode_example(features))


def test_frame_without_the_optional_features_is_read():
    frame = Frame("a", 8, 8, ["face"], np.array([[1, 2, 3, 4]], np.float32))
    features = decode_example(frame_to_example(frame))
    needed = {n: v for n, v in features.items() if "coordinates" in n or "frame/" in n or n.endswith("object_class")}
    back = frame_from_example(encode_example(needed))
    assert back.boxes.tolist() == [[1, 2, 3, 4]]
    assert back.truncation.tolist() == [0]
    assert back.world_boxes.shape == (1, 7)


@given(st.lists(st.tuples(st.text(max_size=5), st.floats(-1e4, 1e4, width=32), st.integers(0, 3)), max_size=6))
def test_any_frame_survives_a_round_trip(objects: list[tuple[str, float, int]]):
    count = len(objects)
    numbers = np.array([number for _, number, _ in objects], np.float32)
    frame = Frame(
        id="images/ü",
        width=640,
        height=480,
        class_names=[name for name, _, _ in objects],
        boxes=np.outer(numbers, np.arange(4)).astype(np.float32).reshape(count, 4),
        truncation=numbers,
        occlusion=np.array([occlusion for _, _, occlusion in objects], np.int64),
        observation_angle=-numbers,
        world_boxes=np.outer(numbers, np.arange(7)).astype(np.float32).reshape(count, 7),
    )
    back = frame_from_example(frame_to_example(frame))
    assert (back.id, back.width, back.height, back.class_names) == ("images/ü", 640, 480, frame.class_names)
    for name in ("boxes", "truncation", "occlusion", "observation_angle", "world_boxes"):
        np.testing.assert_array_equal(getattr(back, name), getattr(frame, name))
        assert getattr(back, name).dtype == getattr(frame, name).dtype


# ---- Sample modifiers ------------------------------------------------------------------------------------------------

CLASSES = "car person bicycle tree"


def slow_copies(frames, settings, limit):
    """How often each frame of one training fold is written: straight from TAO's rules."""
    written, result = 0, []
    for names in frames:
        targets = [settings["mapping"][name] for name in names if name in settings["mapping"]]
        copies = 1
        if len(set(targets)) == 1 and targets[0] in settings["only"]:
            copies = 0
        else:
            rare = False
            for target in targets:
                for dominant in settings["dominant"]:
                    bound = targets.count(dominant) * settings["imbalance"].get(target, 1.0)
                    if target not in settings["dominant"] and targets.count(target) > bound:
                        rare = True
            if rare:
                copies += settings["duplicates"]
        if limit:
            copies = min(copies, limit - written)
        written += copies
        result.append(copies)
    return result


def modifier_config(settings, limit):
    config = spec_pb2.DatasetExportConfig.SampleModifierConfig(
        filter_samples_containing_only=settings["only"],
        dominant_target_classes=settings["dominant"],
        minimum_target_class_imbalance=settings["imbalance"],
        num_duplicates=settings["duplicates"],
        max_training_samples=limit,
    )
    for source, target in settings["mapping"].items():
        config.source_to_target_class_mapping[source] = target
    return config


targets = st.sampled_from(["vehicle", "human"])


@given(
    st.lists(st.lists(st.sampled_from(CLASSES.split()), max_size=6), max_size=12),
    st.lists(targets, unique=True),
    st.lists(targets, unique=True),
    st.dictionaries(targets, st.sampled_from([0.5, 1.0, 2.0])),
    st.integers(0, 3),
    st.integers(0, 9),
)
def test_modifier_writes_each_frame_as_often_as_the_slow_version(frames, only, dominant, imbalance, duplicates, limit):
    mapping = {"car": "vehicle", "bicycle": "vehicle", "person": "human"}
    names = ("mapping", "only", "dominant", "imbalance", "duplicates")
    settings = dict(zip(names, (mapping, only, dominant, imbalance, duplicates), strict=True))
    modifier = build_modifier(modifier_config(settings, limit), 1, None)
    expected = slow_copies(frames, settings, limit)
    if modifier is None:
        assert expected == [1] * len(frames)
        return
    assert [modifier.copies(names, 0) for names in frames] == expected
    unlimited = slow_copies(frames, settings, 0)
    assert modifier.modified.filtered == unlimited.count(0)
    assert modifier.modified.duplicates == sum(max(copies - 1, 0) for copies in expected)
    assert modifier.modified.beyond_limit == sum(unlimited) - sum(expected)


MODIFIERS = """
sample_modifier_config {
  filter_samples_containing_only: "vehicle" dominant_target_classes: "vehicle" num_duplicates: 2
  source_to_target_class_mapping { key: "Car" value: "vehicle" }
  source_to_target_class_mapping { key: "person" value: "human" }
}
"""


def modified(folder: KittiFolder, fold: int | None, modifiers: str = MODIFIERS, val_split: int = 50):
    for index, names in enumerate((["car"], ["person"], ["car"], ["car", "person", "person"], ["tree"], ["person"])):
        folder.add(f"{index}", *(f"{name} 0 0 0 1 1 20 20 0 0 0 0 0 0 0" for name in names))
    folders = f'root_directory_path: "{folder.root}" image_dir_name: "images" label_dir_name: "labels"'
    settings = f'partition_mode: "random" num_partitions: 2 val_split: {val_split} num_shards: 1'
    spec = folder.root.parent / "convert.txt"
    spec.write_text(f"kitti_config {{ {folders} {settings} }} {modifiers}")
    converted = convert(spec, folder.out, fold)
    ids = [folder.ids(shard.name) for shard in converted.shards]
    return converted, [sorted(names) for names in ids]


def test_modifiers_alter_the_training_fold_alone_and_say_what_they_did(folder: KittiFolder, capsys):
    converted, (validation, training) = modified(folder, fold=0)
    assert validation == ["images/0", "images/1", "images/2"]
    assert training == ["images/3"] * 3 + ["images/4"] + ["images/5"] * 3
    assert converted.frames == [3, 7]
    assert converted.objects == {"car": 2 + 3, "person": 1 + 6 + 3, "tree": 1}
    printed = capsys.readouterr().out
    assert "0 frames left out by filter_samples_containing_only" in printed
    assert "4 copies added by num_duplicates" in printed
    _, (training, validation) = modified(folder, fold=1)
    assert training == ["images/1"] * 3
    assert len(validation) == 3
    assert "2 frames left out by filter_samples_containing_only" in capsys.readouterr().out


def test_training_samples_are_capped_per_fold_in_the_order_of_writing(folder: KittiFolder, capsys):
    everything, _ = modified(folder, 0, "")
    order = folder.ids(everything.shards[1].name)
    limit = "sample_modifier_config { max_training_samples: 2 }"
    converted, _ = modified(folder, 0, limit)
    assert converted.frames == [3, 2]
    assert folder.ids(converted.shards[1].name) == order[:2]
    assert "1 frames left out by max_training_samples" in capsys.readouterr().out


def test_modifiers_of_several_folds_ask_for_the_validation_fold(folder: KittiFolder):
    with pytest.raises(UserError, match="say with -f which of the 2 folds"):
        modified(folder, None)
    _, (training,) = modified(folder, None, val_split=0)  # a single fold is for training
    assert training.count("images/1") == 3
    with pytest.raises(UserError, match="there is no other fold"):
        modified(folder, 0, val_split=0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ('dominant_target_classes: "plane" num_duplicates: 1', "dominant_target_classes names plane"),
        ('filter_samples_containing_only: "plane"', "target classes are: human, vehicle"),
        ("max_training_samples: 1", "fewer than the 2 training folds"),
    ],
)
def test_modifiers_that_cannot_be_meant_are_refused(config: str, expected: str):
    mapping = "".join(
        f'source_to_target_class_mapping {{ key: "{key}" value: "{value}" }}'
        for key, value in (("car", "vehicle"), ("person", "human"))
    )
    message = text_format.Parse(f"{config} {mapping}", spec_pb2.DatasetExportConfig.SampleModifierConfig())
    with pytest.raises(UserError, match=expected):
        build_modifier(message, 3, 2)


def test_modifiers_that_change_nothing_need_no_validation_fold():
    config = spec_pb2.DatasetExportConfig.SampleModifierConfig(num_duplicates=3)  # no dominant class
    assert build_modifier(config, 2, None) is None
