import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from exif import turned
from hypothesis import given
from hypothesis import strategies as st

from components import program
from components.formats.images import decode, is_jpeg, resize
from components.formats.kitti import IGNORED_CLASS, SPLITS, read_split
from components.formats.wider import Face, WiderImage, format_annotations
from components.step import StageError, UserError, read_manifest
from components.widerface.acquire import pack
from components.widerface.commands import app
from components.widerface.convert import Conversion, convert, convert_image, drawn, evenly_spaced, unique_ids
from components.widerface.workers import ordered_map

ROOT = Path(__file__).resolve().parent.parent


def conversion(**changes):
    values = {
        "width": 64,
        "height": 48,
        "grayscale": False,
        "min_face_height": 0,
        "small_faces": "ignore",
        "invalid_faces": "ignore",
        "occluded_faces": "keep",
        "max_images": 0,
        "validation_share": 0,
    }
    return Conversion(**(values | changes))


SOURCE = {"resolution": "source", "longest_side": 128}


def picture(width=128, height=96, seed=0):
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(extension=".jpg", **size):
    return cv2.imencode(extension, picture(**size))[1].tobytes()


def write_set(root, training, validation=None):
    """`training` and `validation` map image names to (bytes or None for a missing file, faces)."""
    validation = validation or {"0--Parade/v.jpg": (encoded(), [Face((10, 10, 40, 40))])}
    (root / "wider_face_split").mkdir(parents=True)
    for official, content in (("train", training), ("val", validation)):
        (root / f"WIDER_{official}/images").mkdir(parents=True)
        blocks = []
        for name, (data, faces) in content.items():
            file = root / f"WIDER_{official}/images" / name
            file.parent.mkdir(exist_ok=True)
            if data is not None:
                file.write_bytes(data)
            blocks.append(WiderImage(name, tuple(faces)))
        (root / f"wider_face_split/wider_face_{official}_bbx_gt.txt").write_bytes(format_annotations(blocks))
    return root


def samples(kitti, split="training"):
    return {sample.id: sample for sample in read_split(kitti, split)}


def rejected(kitti):
    return [json.loads(line) for line in (kitti / "rejected.jsonl").read_text().splitlines()]


def fingerprint(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def assert_nothing_left(parent, *expected):
    assert sorted(entry.name for entry in parent.iterdir()) == sorted(expected)


def test_image_and_box_are_letterboxed_as_the_reference_converter_does(tmp_path):
    """A slow, independent copy of the reference arithmetic; its boxes are whole numbers, ours are within one pixel."""
    source = picture(100, 60)
    data = cv2.imencode(".png", source)[1].tobytes()
    write_set(tmp_path / "set", {"0--Parade/a.jpg": (data, [Face((10, 6, 33, 21), occlusion=1)])})
    convert(tmp_path / "set", tmp_path / "kitti", conversion(resampling="cubic"), workers=1)

    scale = min(64 / 100, 48 / 60)
    inner_width, inner_height = int(100 * scale), int(60 * scale)
    dx, dy = (64 - inner_width) // 2, (48 - inner_height) // 2
    wanted = np.zeros((48, 64, 3), np.uint8)
    resized = cv2.resize(source, (inner_width, inner_height), interpolation=cv2.INTER_CUBIC)
    wanted[dy : dy + inner_height, dx : dx + inner_width] = resized

    sample = samples(tmp_path / "kitti")["a"]
    assert sample.file_name == "a.png"
    assert np.array_equal(decode(sample.image), wanted)
    (label,) = sample.labels
    assert (label.class_name, label.occlusion, label.truncation) == ("face", 1, 0)
    reference = [int(dx + 10 * scale), int(dy + 6 * scale), int(dx + 43 * scale), int(dy + 27 * scale)]
    assert np.abs(np.array(label.box) - reference).max() < 1
    assert label.box == pytest.approx((dx + 6.4, dy + 3.84, dx + 27.52, dy + 17.28), abs=0.006)


def test_grayscale_is_luma_in_three_equal_channels(tmp_path):
    write_set(tmp_path / "set", {"0--Parade/a.jpg": (encoded(".png"), [Face((10, 10, 40, 40))])})
    convert(tmp_path / "set", tmp_path / "colour", conversion(), workers=1)
    convert(tmp_path / "set", tmp_path / "grey", conversion(grayscale=True), workers=1)
    colour = decode(samples(tmp_path / "colour")["a"].image).astype(float)
    grey = decode(samples(tmp_path / "grey")["a"].image)
    assert (grey[..., 0] == grey[..., 1]).all()
    assert (grey[..., 0] == grey[..., 2]).all()
    assert np.abs(grey[..., 0] - colour @ (0.114, 0.587, 0.299)).max() <= 1


def test_zero_face_image_keeps_its_empty_label(tmp_path):
    write_set(tmp_path / "set", {"0--Parade/a.jpg": (encoded(), [])})
    counts = convert(tmp_path / "set", tmp_path / "kitti", conversion(), workers=1)
    assert samples(tmp_path / "kitti")["a"].labels == []
    assert counts["training_images"] == 1
    assert counts["training_faces"] == 0


def test_boxes_without_area_or_outside_are_rejected_and_boxes_across_the_edge_clipped(tmp_path):
    faces = [
        Face((10, 10, 0, 5)),
        Face((10, 10, 5, -5)),
        Face((0, 0, 0, 0)),
        Face((128, 10, 20, 20)),
        Face((-30, -30, 30, 20)),
        Face((-20, 10, 40, 40)),
        Face((10, 10, 40, 40)),
    ]
    write_set(tmp_path / "set", {"0--Parade/a.jpg": (encoded(), faces)})
    counts = convert(tmp_path / "set", tmp_path / "kitti", conversion(), workers=1)
    clipped, whole = samples(tmp_path / "kitti")["a"].labels
    assert clipped.box == pytest.approx((0, 5, 10, 25))
    assert clipped.truncation == pytest.approx(0.5)
    assert whole.box == pytest.approx((5, 5, 25, 25))
    entries = rejected(tmp_path / "kitti")
    assert [entry["box"] for entry in entries] == [list(face.box) for face in faces[:5]]
    assert {entry["image"] for entry in entries} == {"0--Parade/a.jpg"}
    assert [entry["reason"] for entry in entries] == ["the box has no area"] * 3 + [
        "the box lies outside the image"
    ] * 2
    wanted = {"faces": 2, "clipped_faces": 1, "rejected_faces": 5, "rejected_faces_no_area": 3}
    assert {name: counts[f"training_{name}"] for name in wanted} == wanted
    assert counts["training_rejected_faces_outside"] == 2


@pytest.mark.parametrize(
    ("switch", "face", "count"),
    [
        ({"invalid_faces": "ignore"}, Face((10, 10, 40, 40), invalid=1), "invalid"),
        ({"occluded_faces": "ignore"}, Face((10, 10, 40, 40), occlusion=2), "occluded"),
        ({"min_face_height": 21, "small_faces": "ignore"}, Face((10, 10, 40, 40)), "small"),
    ],
)
def test_doubtful_faces_become_ignore_regions_or_stay_as_the_switch_says(switch, face, count):
    keep = {"invalid_faces": "keep", "occluded_faces": "keep", "small_faces": "keep"}
    image = WiderImage("0--Parade/a.jpg", (face,))
    kept = convert_image(encoded(), image, "a", conversion(**(keep | {"min_face_height": 21})))
    ignored = convert_image(encoded(), image, "a", conversion(**(keep | switch)))
    assert [label.class_name for label in kept.sample.labels] == ["face"]
    assert [label.class_name for label in ignored.sample.labels] == [IGNORED_CLASS]
    assert kept.sample.labels[0].box == ignored.sample.labels[0].box
    assert ignored.counts[f"ignored_faces_{count}"] == ignored.counts["ignored_faces"] == 1


def test_a_face_exactly_as_high_as_the_limit_counts():
    image = WiderImage("0--Parade/a.jpg", (Face((10, 10, 40, 40)),))
    result = convert_image(encoded(), image, "a", conversion(min_face_height=20))
    assert result.counts["faces"] == 1


def test_unusable_images_are_listed_and_a_png_named_jpg_works(tmp_path):
    whole = [Face((10, 10, 40, 40))]
    training = {
        "0--Parade/good.jpg": (encoded(), whole),
        "0--Parade/png.jpg": (encoded(".png"), whole),
        "0--Parade/fine.jpg": (encoded(seed=2), whole),
        "0--Parade/cut.jpg": (encoded()[:-600], whole * 3),
        "0--Parade/text.jpg": (b"<html>404</html>", whole),
        "0--Parade/missing.jpg": (None, whole),
    }
    write_set(tmp_path / "set", training)
    (tmp_path / "set/WIDER_train/images/0--Parade/extra.jpg").write_bytes(encoded())
    counts = convert(tmp_path / "set", tmp_path / "kitti", conversion(), workers=1)
    assert sorted(samples(tmp_path / "kitti")) == ["fine", "good", "png"]
    reasons = {entry["image"].removeprefix("0--Parade/"): entry["reason"] for entry in rejected(tmp_path / "kitti")}
    assert sorted(reasons) == ["cut.jpg", "extra.jpg", "missing.jpg", "text.jpg"]
    assert "cut off" in reasons["cut.jpg"]
    assert "missing" in reasons["missing.jpg"]
    assert "annotations do not list" in reasons["extra.jpg"]
    assert counts["training_rejected_images"] == 3
    assert counts["training_faces_of_rejected_images"] == 5
    assert counts["training_unlisted_images"] == 1
    assert read_manifest(tmp_path / "kitti", "kitti_set")["counts"] == counts


def test_more_than_half_of_the_images_unusable_is_an_error_and_leaves_nothing(tmp_path):
    bad = {f"0--Parade/{n}.jpg": (b"junk", [Face((1, 1, 9, 9))]) for n in range(3)}
    write_set(tmp_path / "set", bad | {"0--Parade/good.jpg": (encoded(), []), "0--Parade/fine.jpg": (encoded(), [])})
    with pytest.raises(UserError, match=r"3 of 5 training images are unusable, the first is 0--Parade/0\.jpg"):
        convert(tmp_path / "set", tmp_path / "kitti", conversion(), workers=1)
    assert_nothing_left(tmp_path, "set")


def test_events_with_equal_base_names_do_not_overwrite_each_other(tmp_path):
    training = {
        "0--Parade/a.jpg": (encoded(seed=1), []),
        "1--Rally/a.jpg": (encoded(seed=2), []),
        "1--Rally/A.jpg": (encoded(seed=3), []),
        "1--Rally/b.jpg": (encoded(seed=4), []),
    }
    write_set(tmp_path / "set", training)
    counts = convert(tmp_path / "set", tmp_path / "kitti", conversion(), workers=1)
    assert list(samples(tmp_path / "kitti")) == ["0--Parade_a", "1--Rally_a", "1--Rally_A_2", "b"]
    assert counts["training_renamed_images"] == 3
    assert len({sample.image for sample in read_split(tmp_path / "kitti", "training")}) == 4


@given(st.lists(st.text("aAbB_.-/ 2é", min_size=1, max_size=7).map(lambda text: f"0--E/{text}.jpg"), unique=True))
def test_ids_are_unique_safe_and_do_not_depend_on_what_follows(names):
    ids = unique_ids(names)
    assert len({sample_id.lower() for sample_id in ids}) == len(names)
    assert not set("".join(ids)) & set("./ ")
    assert ids == unique_ids(list(names))


def test_a_subset_is_evenly_spaced():
    assert list(evenly_spaced(10, 0)) == list(evenly_spaced(10, 10)) == list(evenly_spaced(10, 99)) == list(range(10))
    assert list(evenly_spaced(10, 4)) == [0, 2, 5, 7]


@pytest.fixture(scope="module")
def twenty(tmp_path_factory):
    root = tmp_path_factory.mktemp("twenty") / "set"
    faces = [Face((10, 10, 40, 40)), Face((60, 20, 0, 9))]
    training = {f"{n % 3}--Event/{n:02d}.jpg": (encoded(seed=n), faces[: n % 3]) for n in range(20)}
    return write_set(root, training)


@pytest.mark.parametrize("changes", [{}, SOURCE | {"longest_side": 100}], ids=["input", "source"])
def test_equal_bytes_whatever_the_number_of_workers_and_from_archives(twenty, tmp_path, changes):
    settings = conversion(validation_share=0.3, **changes)
    archives = tmp_path / "archives"
    archives.mkdir()
    for part in ("WIDER_train", "WIDER_val", "wider_face_split"):
        pack(twenty, part, archives / f"{part}.zip")
    convert(twenty, tmp_path / "one", settings, workers=1)
    convert(twenty, tmp_path / "two", settings, workers=2)
    convert(archives, tmp_path / "packed", settings, workers=1)
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two") == fingerprint(tmp_path / "packed")
    assert len(samples(tmp_path / "two")) == 14


def test_jpegs_within_bounds_are_kept_byte_for_byte_and_their_labels_unscaled(tmp_path):
    face = Face((10, 6, 33, 21))
    training = {"0--Parade/a.jpg": (encoded(), [face]), "0--Parade/b.jpg": (encoded(height=128, width=2), [])}
    write_set(tmp_path / "set", training)
    counts = convert(tmp_path / "set", tmp_path / "kitti", conversion(**SOURCE), workers=1)
    found = samples(tmp_path / "kitti")
    assert {found[name].file_name: found[name].image for name in found} == {
        "a.jpg": training["0--Parade/a.jpg"][0],
        "b.jpg": training["0--Parade/b.jpg"][0],
    }
    (label,) = found["a"].labels
    assert label.box == (10, 6, 43, 27)
    assert counts["training_copied_images"] == 2


@pytest.mark.parametrize("size", [(129, 96), (96, 300), (1000, 3)])
def test_larger_images_are_shrunk_to_the_bound_and_their_labels_with_them(size):
    width, height = size
    image = WiderImage("0--Parade/a.jpg", (Face((0, 0, width, height)),))
    result = convert_image(encoded(width=width, height=height), image, "a", conversion(**SOURCE))
    stored = decode(result.sample.image)
    assert max(stored.shape) == 128
    assert min(stored.shape[:2]) == max(1, round(128 * min(size) / max(size)))
    assert result.sample.labels[0].box == (0, 0, stored.shape[1], stored.shape[0])
    assert result.counts["copied_images"] == 0
    wanted = resize(decode(encoded(width=width, height=height)), (stored.shape[1], stored.shape[0]))
    assert np.abs(stored.astype(int) - wanted).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_is_stored_upright_so_that_no_reader_can_be_wrong_about_it(orientation):
    content = turned(encoded(width=100, height=60), orientation)
    upright = decode(content)
    width = upright.shape[1]
    image = WiderImage("0--Parade/a.jpg", (Face((width - 20, 10, 20, 30)),))
    result = convert_image(content, image, "a", conversion(**SOURCE))
    stored = decode(result.sample.image, upright=False)
    assert stored.shape == upright.shape
    assert np.abs(stored.astype(int) - upright).mean() < 3
    assert (result.sample.image == content) == (orientation == 1)
    assert result.sample.labels[0].box == (width - 20, 10, width, 40)


def test_other_formats_become_jpegs_whatever_they_are_called(tmp_path):
    write_set(tmp_path / "set", {"0--Parade/a.jpg": (encoded(".png"), []), "0--Parade/b.bmp": (encoded(".bmp"), [])})
    convert(tmp_path / "set", tmp_path / "kitti", conversion(**SOURCE), workers=1)
    for sample in read_split(tmp_path / "kitti", "training"):
        assert sample.file_name == f"{sample.id}.jpg"
        assert is_jpeg(sample.image)
        assert np.abs(decode(sample.image).astype(int) - picture()).mean() < 3


def test_grey_at_source_resolution_has_three_equal_channels():
    image = WiderImage("0--Parade/a.jpg", ())
    grey = decode(convert_image(encoded(), image, "a", conversion(**SOURCE, grayscale=True)).sample.image)
    assert (grey == grey[..., :1]).all()
    assert np.abs(grey[..., 0] - decode(encoded()) @ (0.114, 0.587, 0.299)).mean() < 2


def test_nothing_is_small_at_source_resolution_and_the_manifest_says_so(tmp_path):
    faces = [Face((10, 10, 4, 4)), Face((10, 10, 4, 4), invalid=1)]
    write_set(tmp_path / "set", {"0--Parade/a.jpg": (encoded(), faces)})
    convert(tmp_path / "set", tmp_path / "kitti", conversion(**SOURCE, min_face_height=20), workers=1)
    assert [label.class_name for label in samples(tmp_path / "kitti")["a"].labels] == ["face", IGNORED_CLASS]
    settings = read_manifest(tmp_path / "kitti", "kitti_set")["settings"]
    assert settings == {
        "resolution": "source",
        "longest_side": 128,
        "resampling": "area",
        "grayscale": False,
        "min_face_height": 0,
        "small_faces": "keep",
        "invalid_faces": "ignore",
        "occluded_faces": "keep",
        "max_images": 0,
        "validation_share": 0,
        "split_seed": 1,
    }


def test_a_jpeg_that_no_loader_could_read_is_rejected_though_its_header_is_whole(tmp_path):
    whole = encoded()
    start = whole.index(b"\xff\xc0")  # the frame: eight bits a value become twelve, which no baseline decoder takes
    strange = whole[: start + 4] + b"\x0c" + whole[start + 5 :]
    write_set(tmp_path / "set", {"0--Parade/a.jpg": (strange, []), "0--Parade/b.jpg": (whole, [])})
    convert(tmp_path / "set", tmp_path / "kitti", conversion(**SOURCE), workers=1)
    (entry,) = rejected(tmp_path / "kitti")
    assert (entry["image"], "OpenCV" in entry["reason"]) == ("0--Parade/a.jpg", True)


@pytest.mark.parametrize("changes", [{}, SOURCE], ids=["input", "source"])
def test_three_splits_share_no_image_and_test_is_the_sources_validation(twenty, tmp_path, changes):
    counts = convert(twenty, tmp_path / "kitti", conversion(validation_share=0.2, **changes), workers=1)
    found = {split: list(samples(tmp_path / "kitti", split)) for split in SPLITS}
    assert {split: len(ids) for split, ids in found.items()} == {"training": 16, "validation": 4, "test": 1}
    assert sorted(found["training"] + found["validation"]) == [f"{n:02d}" for n in range(20)]
    assert found["test"] == ["v"]
    for split in SPLITS:
        assert found[split] == sorted(found[split])
        assert counts[f"{split}_images"] == len(found[split])


def test_the_draw_follows_seed_and_share_and_keeps_its_order_as_the_set_grows():
    names = [f"0--Parade/{n}.jpg" for n in range(1000)]
    assert len(drawn(names, 0.1, 1)) == 100
    assert drawn(names, 0.1, 1) == drawn(names[::-1], 0.1, 1) < drawn(names, 0.2, 1)
    assert len(drawn(names, 0.1, 1) & drawn(names, 0.1, 2)) < 30
    grown = drawn(names + [f"1--Rally/{n}.jpg" for n in range(1000)], 0.1, 1)
    assert len(drawn(names, 0.1, 1) & grown) > 80
    with pytest.raises(UserError, match=r"^1 training image cannot be dealt"):
        drawn(names[:1], 0.1, 1)


def test_without_a_share_the_sources_validation_images_choose_and_tell(twenty, tmp_path):
    convert(twenty, tmp_path / "kitti", conversion(), workers=1)
    assert [len(samples(tmp_path / "kitti", split)) for split in SPLITS[:2]] == [20, 1]
    assert not (tmp_path / "kitti/test").exists()


def test_max_images_takes_that_many_of_each_split(twenty, tmp_path):
    counts = convert(twenty, tmp_path / "few", conversion(max_images=5), workers=1)
    assert list(samples(tmp_path / "few")) == ["00", "04", "08", "12", "16"]
    assert counts["validation_images"] == 1
    counts = convert(twenty, tmp_path / "three", conversion(max_images=5, validation_share=0.4), workers=1)
    assert [counts[f"{split}_images"] for split in SPLITS] == [5, 5, 1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 100}, "--width 100: must be a positive multiple of 16, for example 96"),
        ({"height": 0}, "--height 0"),
        ({"height": -16}, "for example 16"),
        ({"min_face_height": -1}, "--min-face-height -1: must be 0 or more"),
        ({"small_faces": "drop"}, "--small-faces 'drop': must be 'ignore' or 'keep'"),
        ({"resolution": "full"}, "--resolution 'full': must be 'input' or 'source'"),
        ({"resampling": "nearest"}, "--resampling 'nearest': must be 'area' or 'cubic'"),
        ({"longest_side": 63}, "--longest-side 63: must be 64 or more"),
        ({"validation_share": 0.6}, "--validation-share 0.6: must be from 0 to 0.5"),
        ({"validation_share": float("nan")}, "--validation-share nan: must be from 0 to 0.5"),
        ({"split_seed": -1}, "--split-seed -1: must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(changes, words):
    with pytest.raises(UserError, match=r"^--") as caught:
        conversion(**changes)
    assert words in str(caught.value)


def run_command(*arguments):
    return program.run(app, [str(argument) for argument in arguments], "gridbox widerface")


def test_mistakes_end_with_one_line_and_code_2(twenty, tmp_path, capsys):
    out = tmp_path / "kitti"
    assert run_command("convert", "--dataset", tmp_path / "nowhere", "--kitti", out) == 2
    assert run_command("convert", "--dataset", twenty, "--kitti", out, "--width", 100) == 2
    assert run_command("convert", "--dataset", twenty, "--kitti", out, "--small-faces", "drop") == 2
    broken = tmp_path / "broken"
    shutil.copytree(twenty, broken)
    text = broken / "wider_face_split/wider_face_train_bbx_gt.txt"
    text.write_bytes(text.read_bytes()[:-20])
    assert run_command("convert", "--dataset", broken, "--kitti", out) == 2
    text.write_bytes(b"0--Parade/\xe9t\xe9.jpg\n0\n")
    assert run_command("convert", "--dataset", broken, "--kitti", out) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    for line, words in zip(lines, ("no such folder", "multiple of 16", "drop", "cut off", "not UTF-8"), strict=True):
        assert words in line
    assert not out.exists()


def test_the_summary_counts_every_reason(twenty, tmp_path, capsys):
    arguments = ("convert", "--dataset", twenty, "--kitti", tmp_path / "k", "--width", 64, "--height", 48)
    assert run_command(*arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "training images: 18" in printed
    assert sum(int(line.rpartition(" ")[2]) for line in printed if "rejected faces no area" in line) == 6
    assert "validation rejected images: 0" in printed
    assert "test images: 1" in printed


SCRIPT = (
    "import sys; from components import program; from components.widerface.commands import app\n"
    "if __name__ == '__main__': sys.exit(program.run(app, sys.argv[1:], 'gridbox widerface'))\n"
)


def start(tmp_path, *arguments):
    script = tmp_path / "command.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    argv = [sys.executable, str(script), *(str(argument) for argument in arguments)]
    return subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_until_gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive


@pytest.fixture
def long_set(tmp_path):
    """Enough work for a few seconds: 400 large images that share one file."""
    data = encoded(width=1600, height=1200)
    root = write_set(tmp_path / "set", {"0--Parade/0000.jpg": (data, [])})
    folder = root / "WIDER_train/images/0--Parade"
    names = [f"0--Parade/{n:04d}.jpg" for n in range(400)]
    for name in names[1:]:
        (folder / Path(name).name).hardlink_to(folder / "0000.jpg")
    blocks = [WiderImage(name, ()) for name in names]
    (root / "wider_face_split/wider_face_train_bbx_gt.txt").write_bytes(format_annotations(blocks))
    return root


def interrupt(process, send):
    """Waits for the first line of progress, sends the signal, and returns the workers that were at work."""
    line = process.stderr.readline()
    assert "converting training" in line
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    send(process.pid)
    return workers


def test_ctrl_c_ends_with_130_without_workers_or_files(long_set, tmp_path):
    process = start(tmp_path, "convert", "--dataset", long_set, "--kitti", tmp_path / "kitti")
    workers = interrupt(process, lambda pid: os.killpg(pid, signal.SIGINT))
    assert process.wait(timeout=20) == 130
    wait_until_gone(workers)
    assert "Traceback" not in process.stderr.read()
    assert_nothing_left(tmp_path, "set", "command.py")


def test_workers_do_not_outlive_a_killed_parent(long_set, tmp_path):
    process = start(tmp_path, "convert", "--dataset", long_set, "--kitti", tmp_path / "kitti")
    workers = interrupt(process, lambda pid: os.kill(pid, signal.SIGKILL))
    process.wait(timeout=20)
    wait_until_gone(workers)
    assert not (tmp_path / "kitti").exists()


def test_a_killed_worker_is_a_failed_stage():
    with pytest.raises(StageError, match="a worker process was killed"):
        list(ordered_map(os._exit, [1], workers=2))


def test_a_full_disk_is_one_line_and_leaves_nothing(twenty, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or not mount:
        pytest.skip("only root can mount a small disk")
    mounted = subprocess.run([mount, "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        process = start(tmp_path, "convert", "--dataset", twenty, "--kitti", disk / "kitti", "--width", 320)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 1
        (line,) = [line for line in errors.splitlines() if not line.startswith("converting")]
        assert "No space left on device" in line
        assert_nothing_left(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_real_images_convert_with_nothing_unaccounted(real_data, tmp_path):
    source = real_data / "wider_face"
    if not source.is_dir():
        pytest.skip(f"no WIDER FACE at {source}")
    started = time.monotonic()
    settings = conversion(width=480, height=272, min_face_height=8, max_images=16, validation_share=0.1)
    counts = convert(source, tmp_path / "kitti", settings)
    assert time.monotonic() - started < 20
    for split in SPLITS:
        labels = [label for sample in read_split(tmp_path / "kitti", split) for label in sample.labels]
        kept = sum(label.class_name == "face" for label in labels)
        assert (kept, len(labels) - kept) == (counts[f"{split}_faces"], counts[f"{split}_ignored_faces"])
        assert counts[f"{split}_images"] == 16
        boxes = np.array([label.box for label in labels])
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2] <= 480).all()
        assert (boxes[:, 3] <= 272).all()
        heights = np.array([label.box[3] - label.box[1] for label in labels if label.class_name == "face"])
        assert heights.min() >= 8 - 0.02


def test_the_two_real_images_without_faces_have_empty_labels(real_data, tmp_path):
    source = real_data / "wider_face"
    if not source.is_dir():
        pytest.skip(f"no WIDER FACE at {source}")
    names = ("0--Parade/0_Parade_Parade_0_452.jpg", "2--Demonstration/2_Demonstration_Political_Rally_2_444.jpg")
    training = {name: ((source / "WIDER_train/images" / name).read_bytes(), []) for name in names}
    write_set(tmp_path / "set", training)
    convert(tmp_path / "set", tmp_path / "kitti", conversion(), workers=1)
    assert [sample.labels for sample in read_split(tmp_path / "kitti", "training")] == [[], []]
