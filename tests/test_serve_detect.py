import json
import re

import cv2
import numpy as np
import pytest
from scripted_endpoint import Server, write_model
from square_detector import cell_box, picture

from components import program
from components.formats.kitti import parse_labels
from components.formats.video import VideoReader, VideoWriter
from components.serve import detect_command
from components.vision import sinks
from components.vision.endpoint import Endpoint

WIDTH, HEIGHT = 192, 128


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton")
    write_model(folder / "models")
    server = Server(folder / "models", folder / "server.log")
    yield server
    server.kill()


@pytest.fixture
def detect(server):
    """Runs the command; returns its exit code."""

    def run(*words, url=server.grpc_url):
        return program.run(detect_command.app, [*map(str, words), *(["--url", url] if url else [])], "gridbox detect")

    return run


def write_image(file, *cells):
    cv2.imwrite(str(file), picture(cells, WIDTH, HEIGHT))
    return file


def green_edges(image, box):
    """Whether a box is drawn there: its corners are pure green, and so a different colour from the red inside."""
    x1, y1, x2, y2 = map(int, box)
    edge = np.concatenate([image[y1, x1:x2], image[y2, x1:x2], image[y1:y2, x1], image[y1:y2, x2]]).astype(int)
    return bool((np.abs(edge - (0, 255, 0)).max(axis=1) < 60).mean() > 0.9)


def test_image_is_drawn_into_a_folder_beside_it(tmp_path, detect, capsys):
    assert detect(write_image(tmp_path / "photo.png", (3, 2))) == 0
    drawn = cv2.imread(str(tmp_path / "photo_detected" / "images_annotated" / "photo.png"))
    original = cv2.imread(str(tmp_path / "photo.png"))
    assert drawn.shape == original.shape
    assert green_edges(drawn, cell_box(3, 2))
    assert [file.name for file in (tmp_path / "photo_detected").iterdir()] == ["images_annotated"]
    assert re.search(r"1 images, 1 detections, [\d.]+ images/s: .*photo_detected", capsys.readouterr().out)


def test_folder_gets_labels_in_kitti_or_json_and_what_is_no_image_is_named(tmp_path, detect, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(9):
        write_image(folder / f"{index}.png", *[(column, 1) for column in range(0, index + 1, 2)])
    write_image(folder / "0.jpg")  # the stem of another: labels are named after the whole file
    (folder / "notes.txt").write_text("")
    assert detect(folder, "--labels", "kitti", "-o", tmp_path / "out", url="") == 2  # nobody listens there
    assert not (tmp_path / "out").exists()
    assert detect(folder, "--labels", "kitti", "-o", tmp_path / "out") == 0
    assert "notes.txt" in capsys.readouterr().err
    names = {file.name for file in (tmp_path / "out" / "labels").iterdir()}
    assert names == {"0.png.txt", "0.jpg.txt", *(f"{index}.txt" for index in range(1, 9))}
    labels = parse_labels((tmp_path / "out" / "labels" / "2.txt").read_text(), "labels")
    assert [label.box for label in labels] == [cell_box(0, 1), cell_box(2, 1)]
    assert [label.score for label in labels] == [0.9, 0.9]

    assert detect(folder, "--labels", "json", "-o", tmp_path / "out") == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "detections.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == sorted(file.name for file in folder.glob("*.*g"))  # in order
    assert (lines[0]["width"], lines[0]["height"], lines[0]["detections"]) == (WIDTH, HEIGHT, [])
    assert [len(line["detections"]) for line in lines[1:]] == [index // 2 + 1 for index in range(9)]
    assert lines[1]["detections"] == [{"class": "face", "box": list(cell_box(0, 1)), "score": 0.9}]


def test_scores_below_the_least_are_left_out(tmp_path, detect, capsys):
    assert detect(write_image(tmp_path / "photo.png", (3, 2)), "--min-score", 0.95) == 0
    assert "1 images, 0 detections" in capsys.readouterr().out


def test_an_operating_point_is_the_servers_default_and_is_told(tmp_path, detect, capsys, monkeypatch):
    monkeypatch.setattr(Endpoint, "shown_from", property(lambda _: {"face": 0.42}))
    photo = write_image(tmp_path / "photo.png", (3, 2))
    assert detect(photo) == 0
    line = "shown from a score of 0.42 on, where the model's F1 was best; --min-score 0 shows everything"
    assert line in capsys.readouterr().out
    assert detect(photo, "--min-score", 0) == 0
    assert "shown from" not in capsys.readouterr().out


def test_broken_image_is_named_and_the_others_are_done(tmp_path, detect, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "c"):
        write_image(folder / f"{name}.png", (1, 1))
    (folder / "b.png").write_text("a text")
    (folder / "empty.png").write_bytes(b"")
    assert detect(folder) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "b.png: not an image" in error
    assert "empty.png: the file is empty; the 2 others are done and in" in error
    assert len(list((tmp_path / "photos_detected" / "images_annotated").iterdir())) == 2


def test_folder_of_broken_images_leaves_nothing(tmp_path, detect, capsys):
    (tmp_path / "a.png").write_text("a text")
    assert detect(tmp_path / "a.png") == 2
    assert "nothing here could be detected in: a.png: not an image" in capsys.readouterr().err
    assert not list((tmp_path / "a_detected").iterdir())


def test_video_becomes_a_video_of_the_same_frames_in_order(tmp_path, detect, capsys):
    with VideoWriter(tmp_path / "film.mp4", 12) as video:
        for column in range(10):
            video.add(picture([(column, 3)], WIDTH, HEIGHT))
    assert detect(tmp_path / "film.mp4", "--labels", "json", "--in-flight", 3) == 0
    assert "10 frames, 10 detections" in capsys.readouterr().out
    reader = VideoReader(tmp_path / "film_detected" / "images_annotated" / "film.mp4")
    assert (reader.rate, sum(1 for _ in reader)) == (12, 10)
    text = (tmp_path / "film_detected" / "detections.jsonl").read_text()
    boxes = [json.loads(line)["detections"][0]["box"] for line in text.splitlines()]
    np.testing.assert_allclose(boxes, [cell_box(column, 3) for column in range(10)], atol=4)  # the codec blurs


class FakeCamera:
    """Gives frames until Ctrl-C, or its cable is pulled."""

    def __init__(self, frames, interrupt):
        self._frames, self._interrupt = frames, interrupt

    def isOpened(self):
        return True

    def get(self, _):
        return 0.0

    def read(self):
        if not self._frames:
            if self._interrupt:
                raise KeyboardInterrupt
            return False, None
        self._frames -= 1
        return True, picture([(1, 1)], WIDTH, HEIGHT)

    def release(self):
        pass


@pytest.mark.parametrize("interrupt", [True, False])
def test_camera_is_recorded_until_it_is_stopped(tmp_path, detect, monkeypatch, capsys, interrupt):
    real = cv2.VideoCapture

    def capture(source, *how):
        return FakeCamera(6, interrupt) if source == 0 else real(source, *how)

    monkeypatch.setattr(cv2, "VideoCapture", capture)
    code = detect("0", "--output", tmp_path / "out", "--in-flight", 1)
    assert sum(1 for _ in VideoReader(tmp_path / "out" / "images_annotated" / "camera0.mp4")) == 6
    words = capsys.readouterr()
    if interrupt:
        assert code == 0
        assert "6 frames, 6 detections" in words.out
    else:
        assert code == 1
        assert "camera0: it gives no more frames; the 6 others are done" in words.err


def test_interrupted_folder_leaves_nothing(tmp_path, detect, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sinks, "draw", interrupt)
    assert detect(write_image(tmp_path / "photo.png"), "-o", tmp_path / "out") == 130
    assert not list((tmp_path / "out").iterdir())


def test_window_shows_each_image_and_q_ends(tmp_path, detect, monkeypatch, capsys):
    shown = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "destroyWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", lambda _, image: shown.append(image))
    monkeypatch.setattr(cv2, "waitKey", lambda _: ord("q") if len(shown) == 2 else -1)
    for index in range(4):
        write_image(tmp_path / f"{index}.png", (1, 1))
    assert detect(tmp_path, "--show") == 0
    assert len(shown) == 2
    assert green_edges(shown[0], cell_box(1, 1))
    assert "2 images, 2 detections" in capsys.readouterr().out
    assert len(list(tmp_path.parent.glob(f"{tmp_path.name}_detected"))) == 0  # a window, and no files


def test_without_a_window_one_line_says_how_to_get_one(tmp_path, detect, monkeypatch, capsys):
    image = write_image(tmp_path / "photo.png")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert detect(image, "--show") == 2
    assert "no screen here" in capsys.readouterr().err

    def headless(*_):
        raise cv2.error("The function is not implemented. Rebuild the library with …")

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", headless)
    assert detect(image, "--show") == 2
    error = capsys.readouterr().err
    assert "pip install opencv-python" in error
    assert error.count("\n") == 1


def test_server_is_looked_for_where_gridbox_serve_starts_it(tmp_path, detect, monkeypatch, server, capsys):
    image = write_image(tmp_path / "photo.png")
    monkeypatch.setattr(detect_command, "LOCAL_URLS", ("grpc://localhost:9", server.http_url))
    assert detect(image, url="") == 0
    monkeypatch.setattr(detect_command, "LOCAL_URLS", ("grpc://localhost:9", "http://localhost:9"))
    assert detect(image, url="") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith(
        "no Triton at grpc://localhost:9 or http://localhost:9; start one with `gridbox serve`, or name one with --url"
    )


def test_what_is_not_there_costs_one_line(tmp_path, detect, capsys):
    folder = tmp_path / "empty"
    folder.mkdir()
    (tmp_path / "film.mp4").write_text("no film")
    for words, message in [
        ([tmp_path / "absent"], "no such image, folder or video"),
        ([folder], "no images here"),
        ([tmp_path / "film.mp4"], "not a video"),
        (["7"], "camera 7 cannot be opened"),
        ([write_image(tmp_path / "a.png"), "--model", "facenet"], "unknown model"),
    ]:
        assert detect(*words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1, error
    assert not list(folder.iterdir())
