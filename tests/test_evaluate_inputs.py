import io
import json
import re
import tarfile
import zipfile

import cv2
import numpy as np
import pytest

from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.coco_source import CocoSource
from components.evaluate.inputs import Findings, read_predictions, read_truth
from components.formats.kitti import Label, Sample, ShardWriter, format_label
from components.formats.wider_predictions import parse_predictions
from components.measure.dataset import ANY_CLASS
from components.measure.matching import ClassBoxes, Matcher
from components.step import UserError

ANNOTATIONS = """0--Parade/a.jpg
2
10 20 30 40 0 0 0 0 1 0
50 60 7 8 2 0 0 1 0 0
1--Handshaking/b.jpg
0
0 0 0 0 0 0 0 0 0 0
0--Parade/c.v2.jpg
1
5 5 20 20 1 0 1 0 2 1
"""


@pytest.fixture
def wider(tmp_path):
    """WIDER FACE's annotations as a text file: an image of a face and an invalid one, an empty one, one of a face."""
    file = tmp_path / "wider_face_val_bbx_gt.txt"
    file.write_text(ANNOTATIONS)
    return file


def write_wider(folder, **images):
    """WIDER FACE's detections; an image is named event__image."""
    for name, lines in images.items():
        event, _, image = name.partition("__")
        file = folder / event / f"{image}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join([image, str(len(lines)), *lines]) + "\n")
    return folder


def truth_of(file):
    return read_truth(file, Findings())


GOOD = {"0--Parade__a": ["10 20 30 40 0.9", "50 60 7 8 0.5"], "1--Handshaking__b": [], "0--Parade__c.v2": []}


# ---- Truth -----------------------------------------------------------------------------------------------------------


def test_wider_annotations_become_corners_attributes_and_regions(wider):
    findings = Findings()
    truth = read_truth(wider, findings)
    assert truth.images == ("0--Parade/a.jpg", "1--Handshaking/b.jpg", "0--Parade/c.v2.jpg")
    assert truth.offsets.tolist() == [0, 2, 2, 3]
    assert truth.boxes.tolist() == [[10, 20, 40, 60], [50, 60, 57, 68], [5, 5, 25, 25]]
    assert truth.regions.tolist() == [False, True, False]  # the annotators discarded the second one
    assert truth.singles.tolist() == [False, True, False]
    assert truth.attributes["occlusion"].tolist() == [1, 0, 2]
    assert truth.attributes["illumination"].tolist() == [0, 0, 1]
    assert not findings.faults
    assert findings.notes == {"images without objects": 1}


def test_wider_layout_is_read_from_folders_and_archives_without_their_images(tmp_path, wider):
    folder = tmp_path / "folders" / "wider_face_split"
    folder.mkdir(parents=True)
    (folder / wider.name).write_bytes(wider.read_bytes())
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "wider_face_split.zip", "w") as archive:
        archive.writestr(f"wider_face_split/{wider.name}", wider.read_bytes())
    for root in (folder.parent, tmp_path / "zipped"):
        assert read_truth(root, Findings()).boxes.tolist() == truth_of(wider).boxes.tolist()


def label(name, *box, score=None):
    return Label(name, 0.0, 1, box, score)


def test_kitti_set_becomes_classes_and_regions_of_any_class(tmp_path):
    png = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    with ShardWriter(tmp_path / "set" / "validation") as writer:
        writer.add(Sample("one", "one.png", png, [label("person", 0, 0, 5, 5), label("dontcare", 1, 1, 9, 9)]))
        writer.add(Sample("two", "two.png", png, [label("face", 2, 2, 8, 8), label("face", 3, 3, 3, 8)]))
    findings = Findings()
    truth = read_truth(tmp_path / "set", findings)
    assert truth.images == ("one", "two")
    assert truth.class_names == ("face", "person")
    assert truth.classes.tolist() == [1, ANY_CLASS, 0, 0]
    assert truth.regions.tolist() == [False, True, False, True]  # the last one has no area
    assert findings.notes == {"objects without area, which count for nothing": 1}
    assert findings.examples["objects without area, which count for nothing"] == "two"


def test_ignored_label_is_one_object_unless_kitti_says_that_it_is_a_region(tmp_path):
    png = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    region = Label("dontcare", -1.0, -1, (20, 20, 40, 40))
    with ShardWriter(tmp_path / "set" / "validation") as writer:
        writer.add(Sample("one", "one.png", png, [label("face", 0, 0, 5, 5), label("dontcare", 1, 1, 9, 9), region]))
    truth = read_truth(tmp_path / "set", Findings())
    assert truth.regions.tolist() == [False, True, True]
    assert truth.singles.tolist() == [False, True, False]


COCO = {
    "images": [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}],
    "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "face"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 55.5, "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 18, "bbox": [5, 6, 7, 8]},
        {"id": 3, "image_id": 7, "category_id": 1, "bbox": [20, 0, 40, 40], "area": 9, "iscrowd": 1},
    ],
}


def write_json(file, document):
    file.write_text(json.dumps(document))
    return file


def test_coco_annotations_are_ordered_by_their_numbers_and_keep_outlines_and_crowds(tmp_path):
    truth = truth_of(write_json(tmp_path / "instances.json", COCO))
    assert (truth.images, truth.image_ids) == (("a.jpg", "b.jpg"), (3, 7))
    assert (truth.class_names, truth.class_ids) == (("face", "dog"), (1, 18))
    assert truth.offsets.tolist() == [0, 1, 3]
    assert truth.boxes.tolist() == [[5, 6, 12, 14], [0, 0, 10, 10], [20, 0, 60, 40]]
    assert truth.classes.tolist() == [1, 0, 0]
    assert truth.areas.tolist() == [56, 55.5, 9]
    assert truth.regions.tolist() == [False, False, True]


def test_real_coco_files_are_read(real_data):
    truth = truth_of(real_data / "coco_keypoints" / "annotations" / "person_keypoints_val2017.json")
    assert (len(truth.images), len(truth.boxes), int(truth.regions.sum())) == (44, 94, 1)
    faces = truth_of(real_data / "airport_faces" / "annotation_faces_train.json")
    assert (len(faces.images), len(faces.boxes), faces.class_names) == (10, 41, ("face",))


def test_real_wider_folder_is_read(real_data):
    truth = truth_of(real_data / "wider_face")
    assert (len(truth.images), len(truth.boxes)) == (300, 1483)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "images is missing"),
        ({"images": {}}, "images is {}; a list of objects is needed"),
        ({"images": [{"id": 3, "file_name": "a"}] * 2}, "images: id 3 stands twice"),
        ({"images": [{"id": 0, "file_name": "a"}, {"id": 0.0, "file_name": "b"}]}, "images: id 0 stands twice"),
        ({"images": [{"id": "x", "file_name": "a"}]}, r"images[0]: id is 'x'; a number is needed"),
        ({"images": [{"id": 1.5, "file_name": "a"}]}, r"images[0]: id is 1.5; a whole number is needed"),
        ({"images": [{"id": 3, "file_name": ["a"]}]}, r"images[0]: file_name is ['a']; a text of one line is needed"),
        ({"categories": []}, "[0]: category_id 1 is not in the file; 2 such"),
        ({"annotations": [None]}, "annotations[0] is None; an object is needed"),
        ({"annotations": [{"image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1]}]}, "image_id 9 is not in the file"),
        ({"annotations": [{"image_id": 3, "category_id": 1, "bbox": [0, 0, 1]}]}, "[0]: bbox is [0, 0, 1]; a list of"),
        ({"annotations": [{"image_id": 3, "category_id": 1, "bbox": [None] * 4}]}, "[0]: bbox[0] is None; a number is"),
        ({"annotations": [COCO["annotations"][0] | {"area": float("nan")}]}, "annotations[0]: area is nan; a finite"),
        ({"annotations": [COCO["annotations"][0]] * 2}, "annotations: id 1 stands twice"),
    ],
)
def test_malformed_coco_is_named(tmp_path, change, message):
    with pytest.raises(UserError, match=f"broken.json: .*{re.escape(message)}"):
        truth_of(write_json(tmp_path / "broken.json", COCO | change))


def test_numbers_of_every_spelling_and_fields_that_are_null_are_read_by_both_rooms(tmp_path):
    spelled = {
        "images": [image | {"id": float(image["id"]), "width": 64.0, "height": "48"} for image in COCO["images"]],
        "categories": [category | {"id": str(category["id"])} for category in COCO["categories"]],
        "annotations": [row | {"image_id": f"{row['image_id']}.0", "area": None} for row in COCO["annotations"]],
    }
    file = write_json(tmp_path / "spelled.json", spelled)
    assert truth_of(file).boxes.tolist() == truth_of(write_json(tmp_path / "plain.json", COCO)).boxes.tolist()
    assert truth_of(file).areas.tolist() == [56, 100, 1600]
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    config = spec_pb2.COCOConfig(annotation_files=[file.name], img_dir_names=["."], num_partitions=1, num_shards=[1])
    (partition,) = CocoSource(config, tmp_path).partitions
    frames = [partition.read(key)[0] for key in partition.keys]
    assert [(frame.id, frame.width, frame.height) for frame in frames] == [("./b", 64, 48), ("./a", 64, 48)]
    assert [frame.boxes.tolist() for frame in frames] == [[[0, 0, 10, 10], [20, 0, 60, 40]], [[5, 6, 12, 14]]]


def test_truth_that_is_none_of_the_known_kinds_is_refused(tmp_path):
    with pytest.raises(UserError, match="no truth here; give a KITTI set"):
        truth_of(tmp_path)
    with pytest.raises(UserError, match="no images are listed"):
        truth_of(write_json(tmp_path / "empty.json", {"images": [], "categories": [], "annotations": []}))


def test_empty_truth_is_a_fault(tmp_path):
    document = COCO | {"annotations": []}
    file, findings = write_json(tmp_path / "empty.json", document), Findings()
    assert len(read_truth(file, findings).boxes) == 0
    assert findings.faults == {"truth without any object": 1}
    with pytest.raises(UserError, match=r"empty.json: 1 truth without any object"):
        read_truth(file, Findings(strict=True))


def test_objects_of_negative_size_are_left_out_and_counted(wider):
    wider.write_text(ANNOTATIONS.replace("5 5 20 20 1", "5 5 -20 20 1"))
    findings = Findings()
    assert read_truth(wider, findings).offsets.tolist() == [0, 2, 2, 2]
    assert findings.faults == {"objects of negative size": 1}
    assert "0--Parade/c.v2.jpg" in findings.lines()[0]
    with pytest.raises(UserError, match="1 objects of negative size"):
        read_truth(wider, Findings(strict=True))


# ---- Predictions -----------------------------------------------------------------------------------------------------


def test_wider_detections_are_ordered_by_the_truth(tmp_path, wider):
    truth, findings = truth_of(wider), Findings()
    found = read_predictions(write_wider(tmp_path / "found", **GOOD), truth, findings)
    assert found.offsets.tolist() == [0, 2, 2, 2]
    assert found.boxes.tolist() == [[10, 20, 40, 60], [50, 60, 57, 68]]
    assert found.scores.tolist() == [0.9, 0.5]
    assert not findings.faults
    assert not findings.notes
    assert Matcher(ClassBoxes.of(truth, found, "face")).match().curve().average_precision() == 0.5


def test_wider_detections_are_read_from_an_archive_at_any_depth(tmp_path, wider):
    folder = write_wider(tmp_path / "found", **GOOD)
    with zipfile.ZipFile(tmp_path / "found.zip", "w") as archive:
        for file in folder.rglob("*.txt"):
            archive.write(file, f"deep/er/{file.relative_to(folder)}")
    one = read_predictions(folder, truth_of(wider), Findings())
    other = read_predictions(tmp_path / "found.zip", truth_of(wider), Findings())
    assert one.boxes.tolist() == other.boxes.tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\n", "2: '' stands where the number of detections"),
        ("a\nx\n", "2: 'x' stands where the number of detections"),
        ("a\n2\n1 2 3 4 0.5\n", "2: 2 detections are announced, 1 follow"),
        ("a\n1\n1 2 3 4 0.5\n1 2 3 4 0.5\n", "2: 1 detections are announced, 2 follow"),
        ("a\n2\n1 2 3 4 0.5\n1 2 3 4\n", "4: '1 2 3 4' is not a line"),
        ("a\n2\n1 2 3 4\n5 0.5 1 2 3 4\n", "3: '1 2 3 4' is not a line"),
        ("a\n2\n1 2 3 4 0.5\n\n1 2 z 4 0.5\n", "5: '1 2 z 4 0.5' is not a line"),
    ],
)
def test_malformed_wider_detections_are_named_with_their_line(content, message):
    with pytest.raises(UserError, match=f"^a.txt:{message}"):
        parse_predictions(content.encode(), "a.txt")


def test_numbers_of_every_spelling_are_read():
    rows = parse_predictions(b"a b c\r\n2\r\n1 2.50 3e1 4 1e-3\r\n-1 -2 3 4 nan\r\n", "a.txt")
    assert rows[0].tolist() == [1, 2.5, 30, 4, 0.001]
    assert np.isnan(rows[1, 4])


def test_an_image_detected_in_twice_is_refused(tmp_path, wider):
    write_wider(tmp_path / "found" / "old", **GOOD)
    write_wider(tmp_path / "found" / "new", **GOOD)
    with pytest.raises(UserError, match="0--Parade/a stands here a second time"):
        read_predictions(tmp_path / "found", truth_of(wider), Findings())


def lines_of(file, *documents):
    file.write_text("".join(json.dumps(document) + "\n" for document in documents))
    return file


def detection(box, score, name="face"):
    return {"class": name, "box": box, "score": score, "outcome": "neutral"}


def test_json_lines_hold_one_model_or_are_asked_for_one(tmp_path, wider):
    truth = truth_of(wider)
    one = {"model": "a", "image": "0--Parade/a.jpg", "detections": [detection([1, 2, 3, 4], 0.5, "Face")]}
    other = {"model": "b", "image": "0--Parade/a.jpg", "detections": []}
    folder = tmp_path / "evaluation"
    folder.mkdir()
    file = lines_of(folder / "detections.jsonl", one, other)
    assert read_predictions(folder, truth, Findings(), model="a").boxes.tolist() == [[1, 2, 3, 4]]
    assert len(read_predictions(file, truth, Findings(), model="b").boxes) == 0
    with pytest.raises(UserError, match="holds the detections of a, b; say of which model"):
        read_predictions(folder, truth, Findings())
    with pytest.raises(UserError, match="no model 'c' is in it, but a, b"):
        read_predictions(folder, truth, Findings(), model="c")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2: no JSON text"),
        ("[]", r":2 is \[\]; an object is needed"),
        ('{"image": "x"}', ":2: detections is missing"),
        ('{"image": "0--Parade/a.jpg", "detections": []}', ":2: 0--Parade/a.jpg stands here again, after .*:1; remove"),
        (
            '{"image": "x", "detections": [{"class": "face", "box": [1, 2], "score": 1}]}',
            r"detections\[0\]: box is \[1, 2\]",
        ),
        ('{"image": "x", "detections": [{"class": "face", "box": [1, 2, 3, 4], "score": null}]}', "score is missing"),
    ],
)
def test_malformed_json_lines_are_named(tmp_path, wider, line, message):
    good = {"image": "0--Parade/a.jpg", "detections": [detection([1, 2, 3, 4], 0.5)]}
    file = lines_of(tmp_path / "detections.jsonl", good)
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(UserError, match=message):
        read_predictions(file, truth_of(wider), Findings())


def test_coco_results_are_told_apart_by_their_numbers(tmp_path):
    truth = truth_of(write_json(tmp_path / "instances.json", COCO))
    rows = [
        {"image_id": 7, "category_id": 18, "bbox": [0, 0, 10, 10], "score": 0.25},
        {"image_id": 3, "category_id": 1, "bbox": [1, 1, 10, 10], "score": 0.75},
        {"image_id": 4, "category_id": 1, "bbox": [1, 1, 10, 10], "score": 0.75},
        {"image_id": 3, "category_id": 5, "bbox": [1, 1, 10, 10], "score": 0.75},
    ]
    findings = Findings()
    found = read_predictions(write_json(tmp_path / "results.json", rows), truth, findings)
    assert found.boxes.tolist() == [[1, 1, 11, 11], [0, 0, 10, 10]]
    assert found.classes.tolist() == [0, 1]
    assert findings.faults == {
        "images with predictions that the truth does not know": 1,
        "detections of class category 5, unknown to the truth": 1,
    }
    assert findings.examples["images with predictions that the truth does not know"] == "image 4"


def test_coco_results_need_coco_annotations(tmp_path, wider):
    with pytest.raises(UserError, match="only COCO annotations say which these are"):
        read_predictions(write_json(tmp_path / "results.json", []), truth_of(wider), Findings())


def test_kitti_labels_with_scores_are_predictions_and_without_are_not(tmp_path):
    truth = truth_of(write_json(tmp_path / "instances.json", COCO))
    labels = tmp_path / "annotated" / "labels"
    labels.mkdir(parents=True)
    (labels / "a.txt").write_text(format_label(label("dog", 1, 2, 3, 4, score=0.5)) + "\n")
    (labels / "b.txt").write_text("")
    findings = Findings()
    found = read_predictions(labels.parent, truth, findings)
    assert (found.boxes.tolist(), found.classes.tolist()) == ([[1, 2, 3, 4]], [1])
    assert not findings.notes
    (labels / "b.txt").write_text(format_label(label("dog", 1, 2, 3, 4)) + "\n")
    with pytest.raises(UserError, match=r"b.txt:1: a label without a score"):
        read_predictions(labels, truth, Findings())


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (["1 2 3 4 nan"], "detections whose score is no finite number"),
        (["1 2 3 4 inf"], "detections whose score is no finite number"),
        (["1 nan 3 4 0.5"], "detections whose box is not finite"),
        (["1 2 -3 4 0.5"], "detections of negative size"),
    ],
)
def test_what_cannot_be_right_is_left_out_counted_and_named_and_fatal_when_strict(tmp_path, wider, lines, fault):
    found = write_wider(tmp_path / "found", **GOOD | {"0--Parade__c.v2": [*lines, "5 5 20 20 0.5"]})
    truth, findings = truth_of(wider), Findings()
    predictions = read_predictions(found, truth, findings)
    assert predictions.offsets.tolist() == [0, 2, 2, 3]
    assert findings.faults == {fault: 1}
    assert findings.lines() == [f"1 {fault} (first: 0--Parade/c.v2)"]
    with pytest.raises(UserError, match=f"found: 1 {fault} .*leave out --strict"):
        read_predictions(found, truth, Findings(strict=True))


def test_unknown_images_are_a_fault_and_images_without_predictions_are_counted(tmp_path, wider):
    found = write_wider(tmp_path / "found", **{"0--Parade__a": [], "9--Other__x": ["1 2 3 4 0.5"], "9--Other__y": []})
    truth, findings = truth_of(wider), Findings()
    assert len(read_predictions(found, truth, findings).boxes) == 0
    assert findings.faults == {"images with predictions that the truth does not know": 2}
    assert findings.notes == {"images without predictions, in which nothing is found": 2}
    with pytest.raises(UserError, match=r"2 images with predictions that the truth does not know .first: 9--Other/x"):
        read_predictions(found, truth, Findings(strict=True))


def test_mismatched_class_names_are_a_fault(tmp_path, wider):
    document = {"image": "0--Parade/a.jpg", "detections": [detection([1, 2, 3, 4], 0.5, "person")] * 3}
    file, findings = lines_of(tmp_path / "detections.jsonl", document), Findings()
    assert len(read_predictions(file, truth_of(wider), findings).boxes) == 0
    assert findings.faults == {"detections of class person, unknown to the truth": 3}
    assert "the truth has face" in findings.lines()[0]


def test_wider_detections_need_a_truth_of_one_class(tmp_path):
    truth = truth_of(write_json(tmp_path / "instances.json", COCO))
    with pytest.raises(UserError, match="name no class, and the truth has 2"):
        read_predictions(write_wider(tmp_path / "found", **GOOD), truth, Findings())


def test_predictions_that_are_not_there_are_refused(tmp_path, wider):
    truth = truth_of(wider)
    with pytest.raises(UserError, match="no such file or folder"):
        read_predictions(tmp_path / "nothing", truth, Findings())
    (tmp_path / "hollow").mkdir()
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="no detections here"):
        read_predictions(tmp_path / "hollow", truth, Findings())
    with pytest.raises(UserError, match="neither a folder nor a whole zip archive"):
        read_predictions(tmp_path / "broken.zip", truth, Findings())
    with pytest.raises(UserError, match=r"only a detections.jsonl says which model"):
        read_predictions(tmp_path / "hollow", truth, Findings(), model="a")


def test_images_that_differ_only_in_their_suffix_are_refused(tmp_path, wider):
    wider.write_text(ANNOTATIONS.replace("1--Handshaking/b.jpg", "0--Parade/a.png"))
    with pytest.raises(UserError, match=r"0--Parade/a.jpg and 0--Parade/a.png differ only in their suffix"):
        read_predictions(write_wider(tmp_path / "found", **GOOD), truth_of(wider), Findings())


def litter(folder):
    """What file managers and notebooks leave behind, and a README."""
    for name in (".DS_Store", "._a.txt", "._a.png", "Thumbs.db", "desktop.ini"):
        (folder / name).write_bytes(b"\0\xff")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "a.txt").write_bytes(b"\0\xff")
    (folder / "README.txt").write_bytes("Détections.\nOf 2 images, see there.\n".encode("latin-1"))


def test_wider_detections_stay_what_they_are_beside_foreign_files(tmp_path, wider):
    folder = write_wider(tmp_path / "found", **GOOD)
    litter(folder)
    (folder / "0--Parade" / "._a.txt").write_bytes(b"\0")
    findings = Findings()
    assert read_predictions(folder, truth_of(wider), findings).scores.tolist() == [0.9, 0.5]
    assert findings.notes == {"files left out, which are no predictions": 1}
    assert findings.examples["files left out, which are no predictions"] == "README.txt"
    with zipfile.ZipFile(tmp_path / "found.zip", "w") as archive:
        for file in folder.rglob("*.*"):
            archive.write(file, file.relative_to(folder))
    assert read_predictions(tmp_path / "found.zip", truth_of(wider), Findings()).scores.tolist() == [0.9, 0.5]


def test_kitti_labels_stay_what_they_are_beside_foreign_files(tmp_path):
    truth = truth_of(write_json(tmp_path / "instances.json", COCO))
    labels = tmp_path / "labels"
    labels.mkdir()
    litter(labels)
    (labels / "a.TXT").write_text("\ufeff" + format_label(label("dog", 1, 2, 3, 4, score=0.5)) + "\n", "utf-8")
    (labels / "b.txt").write_text("")
    findings = Findings()
    assert read_predictions(labels, truth, findings).classes.tolist() == [1]
    assert findings.notes == {"files left out, which are no predictions": 1}
    (labels / "b.txt").write_text("damaged 1 2 3\n")
    with pytest.raises(UserError, match=r"b\.txt:1: 4 columns"):
        read_predictions(labels, truth, Findings())


def test_images_of_a_kitti_folder_are_told_from_foreign_files(tmp_path, capsys):
    folder = tmp_path / "set" / "validation"
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    litter(folder / "images")
    for name in ("a.png", "b.JPG"):
        (folder / "images" / name).write_bytes(b"pixels")
    (folder / "labels" / "a.txt").write_text("\ufeff" + format_label(label("dog", 1, 2, 3, 4)), "utf-8")
    truth = truth_of(tmp_path / "set")
    assert (truth.images, truth.class_names) == (("a", "b"), ("dog",))
    assert "files left out, not meant as data: 8 ('.DS_Store', " in capsys.readouterr().err
    (folder / "labels" / "b.txt").write_bytes("visage_entêté 0 0".encode("latin-1"))
    with pytest.raises(UserError, match=r"b\.txt:1: not UTF-8 text .byte 0xea, Latin-1 perhaps.; save the file"):
        truth_of(tmp_path / "set")


def test_text_in_utf_16_is_read_by_its_mark(wider):
    expected = truth_of(wider).boxes.tolist()
    wider.write_text(ANNOTATIONS, encoding="utf-16")
    assert truth_of(wider).boxes.tolist() == expected


def test_damaged_shard_of_a_kitti_set_is_named(tmp_path):
    folder = tmp_path / "set" / "validation"
    folder.mkdir(parents=True)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("images/a.png"))
    (folder / "shard-00000.tar").write_bytes(stream.getvalue()[:100])
    with pytest.raises(UserError, match=r"shard-00000.tar: not a readable tar shard"):
        truth_of(tmp_path / "set")
