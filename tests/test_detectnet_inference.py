"""`detectnet_v2 inference` with a hand-made detector whose answers are known."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest
from discs import detectnet_v2, edit, write_spec
from square_detector import CELL, HEIGHT, WIDTH, picture, write_detector

from components.decode.grid.clustering import detect_for_inference
from components.detectnet_v2 import inference
from components.detectnet_v2.inference import kitti_line
from components.formats.kitti import Label, parse_labels
from components.vision import sinks

# As the program sets it; here the tests use FFmpeg first.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


@pytest.fixture
def model(tmp_path):
    return write_detector(tmp_path / "model") / "model.onnx"


def spec_of(folder, model, *replacements, width=WIDTH, height=HEIGHT, batch_size=2):
    spec = write_spec(folder, "inference", image_width=width, image_height=height, batch_size=batch_size, model=model)
    return edit(spec, ("nms_confidence_threshold: 0.3", "nms_confidence_threshold: 0.5"), *replacements)


def folder_of(folder, **images):
    folder.mkdir()
    for name, cells in images.items():
        assert cv2.imwrite(str(folder / name.replace("__", ".")), picture(cells))
    return folder


def labels_of(results, name):
    file = results / "labels" / f"{name}.txt"
    return parse_labels(file.read_text(), str(file))


def infer(spec, source, results, *options):
    return detectnet_v2("inference", "-e", spec, "-i", source, "-r", results, *options)


def boxes(labels):
    return sorted(tuple(round(edge) for edge in label.box) for label in labels)


# ---- Labels ----------------------------------------------------------------------------------------------------------


def test_a_label_line_is_taos_to_the_letter():
    line = kitti_line(Label("face", 0.0, 0, (1.0, 2.34567, 30.5, 40.0), 1.23456))
    assert line == "face 0.00 0 0.00 1.000 2.346 30.500 40.000 0.00 0.00 0.00 0.00 0.00 0.00 0.00 1.235"
    assert len(line.split()) == 16


def test_a_folder_gives_overlays_and_labels(model, tmp_path, capsys):
    source = folder_of(tmp_path / "in", a__png=[(0, 0), (3, 2)], b__jpg=[], c__bmp=[(5, 3)])
    for name in ("notes.txt", "._a.png", "Thumbs.db"):
        (source / name).write_text("hello")
    (source / ".ipynb_checkpoints.png").mkdir()
    out = tmp_path / "out"
    assert infer(spec_of(tmp_path, model), source, out) == 0
    assert boxes(labels_of(out, "a")) == [(0, 0, 16, 16), (48, 32, 64, 48)]
    assert labels_of(out, "b") == []
    assert boxes(labels_of(out, "c")) == [(80, 48, 96, 64)]
    assert {file.name for file in (out / "images_annotated").iterdir()} == {"a.png", "b.jpg", "c.bmp"}
    drawn = cv2.imread(str(out / "images_annotated/a.png"))
    assert (drawn != picture([(0, 0), (3, 2)])).any()
    said = capsys.readouterr()
    assert "3 detections in 3 images" in said.out
    assert "files left out, not meant as data: 4 ('._a.png', '.ipynb_checkpoints.png'" in said.err
    records = [json.loads(line) for line in (out / "status.json").read_text().splitlines()]
    assert [record["status"] for record in records] == ["STARTED", "SUCCESS"]
    assert records[1]["kpi"]["detections"] == 3


def test_ppm_images_are_read_and_drawn_as_such(model, tmp_path):
    source = folder_of(tmp_path / "in", a__ppm=[(0, 0)])
    assert infer(spec_of(tmp_path, model), source, tmp_path / "out") == 0
    assert boxes(labels_of(tmp_path / "out", "a")) == [(0, 0, 16, 16)]
    assert (tmp_path / "out/images_annotated/a.ppm").read_bytes().startswith(b"P6")


def test_a_single_image_of_another_size_has_its_boxes_in_its_own_pixels(model, tmp_path):
    image = cv2.resize(picture([(1, 1)]), (WIDTH * 3, HEIGHT * 3), interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(tmp_path / "large.png"), image)
    assert infer(spec_of(tmp_path, model), tmp_path / "large.png", tmp_path / "out") == 0
    assert boxes(labels_of(tmp_path / "out", "large")) == [(CELL * 3, CELL * 3, CELL * 6, CELL * 6)]
    assert cv2.imread(str(tmp_path / "out/images_annotated/large.png")).shape == image.shape


def test_images_are_framed_as_the_model_was_trained_and_stretched_as_tao_does_only_on_demand(model, tmp_path):
    cv2.imwrite(str(tmp_path / "wide.png"), picture([(1, 1)])[CELL : HEIGHT - CELL])
    spec = spec_of(tmp_path, model)
    assert infer(spec, tmp_path / "wide.png", tmp_path / "out") == 0
    assert boxes(labels_of(tmp_path / "out", "wide")) == [(CELL, 0, 2 * CELL, CELL)]
    assert infer(spec, tmp_path / "wide.png", tmp_path / "tao5", "--compat", "tao5") == 0
    halves = [(CELL, 0, 2 * CELL, CELL // 2), (CELL, CELL // 2, 2 * CELL, CELL)]
    assert boxes(labels_of(tmp_path / "tao5", "wide")) == halves


def test_what_is_found_in_the_border_of_a_letterbox_alone_is_not_in_the_image(model, tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "wide.png"), picture([(1, 1)])[CELL : HEIGHT - CELL])

    def above(coverage, bbox, geometry, clustering):
        return detect_for_inference(np.roll(coverage, -1, axis=-2), bbox, geometry, clustering)

    monkeypatch.setattr(inference, "detect_for_inference", above)
    assert infer(spec_of(tmp_path, model), tmp_path / "wide.png", tmp_path / "out") == 0
    assert labels_of(tmp_path / "out", "wide") == []


def test_tao5_draws_low_boxes_that_nms_found(model, tmp_path):
    low = ("minimum_bounding_box_height: 4", f"clustering_algorithm: NMS minimum_bounding_box_height: {CELL}")
    spec, source = spec_of(tmp_path, model, low), folder_of(tmp_path / "in", a__png=[(1, 1)])
    for compat, count in (("none", 0), ("tao5", 1)):
        assert infer(spec, source, tmp_path / compat, "--compat", compat) == 0
        assert len(labels_of(tmp_path / compat, "a")) == count


def test_boxes_lie_within_the_image(model, tmp_path, monkeypatch):
    """Candidates are clamped to the network's input before they are scaled."""

    def unbounded(coverage, bbox, geometry, clustering):
        return detect_for_inference(coverage, bbox + 10, geometry, clustering)

    monkeypatch.setattr(inference, "detect_for_inference", unbounded)
    source = folder_of(tmp_path / "in", a__png=[(0, 0)])
    assert infer(spec_of(tmp_path, model), source, tmp_path / "out") == 0
    assert boxes(labels_of(tmp_path / "out", "a")) == [(0, 0, WIDTH, HEIGHT)]


def test_images_of_equal_stem_keep_their_labels_apart(model, tmp_path, capsys):
    source = folder_of(tmp_path / "in", a__png=[(0, 0)], a__jpg=[], b__png=[])
    assert infer(spec_of(tmp_path, model), source, tmp_path / "out") == 0
    assert {file.name for file in (tmp_path / "out/labels").iterdir()} == {"a.png.txt", "a.jpg.txt", "b.txt"}
    assert len(labels_of(tmp_path / "out", "a.png")) == 1
    assert "a.jpg, a.png" in capsys.readouterr().err
    shutil.copy(source / "b.png", source / "a.png.png")
    assert infer(spec_of(tmp_path, model), source, tmp_path / "out") == 2
    assert "rename one of them" in capsys.readouterr().err
    assert len(labels_of(tmp_path / "out", "a.png")) == 1  # what stood there is untouched


def test_neither_labels_nor_overlays_are_written_unasked(model, tmp_path):
    spec = spec_of(tmp_path, model, ("kitti_dump: true", ""), ("disable_overlay: false", "disable_overlay: true"))
    assert infer(spec, folder_of(tmp_path / "in", a__png=[(0, 0)]), tmp_path / "out") == 0
    assert [*(tmp_path / "out/labels").iterdir(), *(tmp_path / "out/images_annotated").iterdir()] == []


# ---- Trouble ---------------------------------------------------------------------------------------------------------


def test_broken_images_are_named_and_counted_and_the_others_done(model, tmp_path, capsys):
    source = folder_of(tmp_path / "in", a__png=[(0, 0)], z__png=[(1, 1)])
    for index in range(5):
        (source / f"m{index}.jpg").write_bytes(b"\xff\xd8 cut off")
    assert infer(spec_of(tmp_path, model), source, tmp_path / "out") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "m0.jpg: the JPEG is cut off" in error
    assert "and 2 more" in error
    assert {file.name for file in (tmp_path / "out/labels").iterdir()} == {"a.txt", "z.txt"}
    assert json.loads((tmp_path / "out/status.json").read_text().splitlines()[-1])["status"] == "FAILURE"


def test_a_folder_without_a_readable_image_leaves_former_results_alone(model, tmp_path, capsys):
    source = folder_of(tmp_path / "in", a__png=[(0, 0)])
    spec, out = spec_of(tmp_path, model), tmp_path / "out"
    assert infer(spec, source, out) == 0
    (source / "a.png").write_bytes(b"")
    assert infer(spec, source, out) == 2
    assert "nothing here can be read: a.png: the file is empty" in capsys.readouterr().err
    assert len(labels_of(out, "a")) == 1
    assert [file.name for file in out.iterdir() if "partial" in file.name] == []


@pytest.mark.parametrize(
    ("replacements", "size", "words"),
    [
        ((), {"width": WIDTH * 2}, "its input is 96 pixels in width, inferencer_config.image_width is 192"),
        ((('target_classes: "face"', 'target_classes: "cat"'), ('key: "face"', 'key: "cat"')), {}, "names 'cat'"),
        ((("kitti_dump", 'postproc_classes: "dog"\n  kitti_dump'),), {}, 'postproc_classes[0] is "dog"'),
        ((('output_map: "face"', 'output_map: "human face"'),), {}, "write 'human_face'"),
    ],
)
def test_a_spec_that_is_not_the_models_is_refused(replacements, size, words, model, tmp_path, capsys):
    spec = spec_of(tmp_path, model, *replacements, **size)
    assert infer(spec, folder_of(tmp_path / "in", a__png=[]), tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_a_spec_without_a_size_takes_the_models(model, tmp_path):
    spec = spec_of(tmp_path, model, ("image_width: 96", ""), ("image_height: 64", ""))
    assert infer(spec, folder_of(tmp_path / "in", a__png=[(0, 0)]), tmp_path / "out") == 0
    assert len(labels_of(tmp_path / "out", "a")) == 1


# ---- Classes ---------------------------------------------------------------------------------------------------------


def two_classes(folder):
    """The square detector with two classes: both see the same squares."""
    import onnx
    from onnx import numpy_helper

    write_detector(folder)
    graph = onnx.load(folder / "model.onnx")
    for tensor in graph.graph.initializer:
        if tensor.name in ("wc", "bc", "wb", "bb"):
            twice = np.concatenate([numpy_helper.to_array(tensor)] * 2)
            tensor.CopyFrom(numpy_helper.from_array(twice, tensor.name))
    for value in graph.graph.output:
        value.type.tensor_type.shape.dim[1].dim_value *= 2
    onnx.save(graph, folder / "two.onnx")
    (folder / "labels.txt").write_text("face\nhand\n")
    return folder / "two.onnx"


def test_a_class_without_an_entry_falls_back_to_default_and_keeps_its_name(tmp_path):
    model = two_classes(tmp_path / "model")
    spec = spec_of(
        tmp_path, model, ('target_classes: "face"', 'target_classes: "face" target_classes: "hand"'),
        ('output_map: "face"', 'output_map: "anything"'), ('key: "face"', 'key: "default"'),
    )  # fmt: skip
    source = folder_of(tmp_path / "in", a__png=[(0, 0)])
    assert infer(spec, source, tmp_path / "out") == 0
    assert [label.class_name for label in labels_of(tmp_path / "out", "a")] == ["face", "hand"]
    edit(spec, ("kitti_dump", 'postproc_classes: "hand"\n  kitti_dump'))
    assert infer(spec, source, tmp_path / "out") == 0
    assert [label.class_name for label in labels_of(tmp_path / "out", "a")] == ["hand"]
    edit(spec, ('key: "default"', 'key: "hand"'), ('target_classes: "face"', ""))
    assert infer(spec, source, tmp_path / "out") == 0
    assert [label.class_name for label in labels_of(tmp_path / "out", "a")] == ["anything"]


# ---- Video -----------------------------------------------------------------------------------------------------------


def write_video(file, frames, codec="mp4v"):
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*codec), 10.0, (WIDTH, HEIGHT))
    for frame in frames:
        writer.write(frame)
    writer.release()
    return file


def test_a_video_becomes_a_video_and_a_label_file_a_frame(model, tmp_path, capsys):
    frames = [picture([(index % 6, index % 4)]) for index in range(12)]
    video = write_video(tmp_path / "walk.mp4", frames)
    out = tmp_path / "out"
    assert infer(spec_of(tmp_path, model, batch_size=5), video, out) == 0
    assert [file.name for file in sorted((out / "labels").iterdir())] == [f"walk_{i:06d}.txt" for i in range(12)]
    found = [boxes(labels_of(out, f"walk_{i:06d}")) for i in range(12)]
    assert sum(len(one) == 1 for one in found) >= 10  # the codec blurs edges
    assert found[7] in ([], [(16, 48, 32, 64)])
    capture = cv2.VideoCapture(str(out / "images_annotated/walk.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 12
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    assert (capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)) == (WIDTH, HEIGHT)
    assert "in 12 images" in capsys.readouterr().out


def test_a_video_that_is_cut_off_is_done_as_far_as_it_goes(model, tmp_path, capsys):
    video = write_video(tmp_path / "cut.avi", [picture([(i % 6, 0)]) for i in range(40)], "MJPG")
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 2])
    assert infer(spec_of(tmp_path, model), video, tmp_path / "out") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "of 40 frames could not be read" in error
    done = len(list((tmp_path / "out/labels").iterdir()))
    assert 0 < done < 40
    assert f"the {done} others" in error


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_what_is_no_video_costs_one_line_and_leaves_nothing(content, model, tmp_path, capfd):
    (tmp_path / "x.mp4").write_bytes(content)
    assert infer(spec_of(tmp_path, model), tmp_path / "x.mp4", tmp_path / "out") == 2
    error = capfd.readouterr().err
    assert "not a video that can be read" in error
    assert len(error.strip().splitlines()) == 1
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["status.json"]


def test_a_video_with_odd_sides_loses_no_pixel(tmp_path):
    from components.formats.video import VideoReader, VideoWriter

    with VideoWriter(tmp_path / "odd.mp4", 25.0) as writer:
        for shade in (0, 100, 200):
            writer.add(np.full((65, 97, 3), shade, np.uint8))
    reader = VideoReader(tmp_path / "odd.mp4")
    frames = list(reader)
    assert [frame.shape for frame in frames] == [(66, 98, 3)] * 3
    assert [round(float(frame.mean()) / 100) for frame in frames] == [0, 1, 2]
    assert (reader.read, reader.announced, reader.missing()) == (3, 3, 0)


def test_an_interrupted_inference_leaves_nothing_half_written(model, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sinks, "draw", interrupted)
    source = folder_of(tmp_path / "in", a__png=[(0, 0)])
    assert infer(spec_of(tmp_path, model), source, tmp_path / "out") == 130
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["status.json"]


def test_the_detector_in_memory_takes_images_of_any_size(model, tmp_path):
    from components.detectnet_v2.spec import load_inference

    detector = inference.ImageDetector(load_inference(spec_of(tmp_path, model)).message, model)
    big = cv2.resize(picture([(2, 2)]), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    found = detector([picture([]), big])
    assert [len(one) for one in found] == [0, 1]
