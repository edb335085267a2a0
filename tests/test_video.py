"""Losses in videos: always said, and a failure where the container knows its frames or many are gone."""

import cv2
import numpy as np
import pytest

from components.formats.video import VideoReader

FRAMES = 120


def cut_video(file, codec, frames_left):
    """Writes a video of noise, in which frames are of equal size, and cuts its end off; it keeps its announcement."""
    noise = np.random.default_rng(1)
    writer = cv2.VideoWriter(str(file), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), 30.0, (64, 48))
    for _ in range(FRAMES):
        writer.write(noise.integers(0, 256, (48, 64, 3), np.uint8))
    writer.release()
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * frames_left / FRAMES)])
    reader = VideoReader(file)
    assert reader.announced == FRAMES
    list(reader)
    return reader


@pytest.mark.parametrize(
    ("name", "frames_left", "is_failure"),
    [
        ("index.avi", 117, True),
        ("index.avi", 94, True),
        ("estimate.mkv", 94, True),
        ("estimate.mkv", 118.5, False),
    ],
)
def test_lost_frames_are_said_and_a_failure_beyond_an_estimates_error(tmp_path, capsys, name, frames_left, is_failure):
    reader = cut_video(tmp_path / name, "MJPG", frames_left)
    lost = FRAMES - reader.read
    assert lost > 0
    assert reader.missing() == (lost if is_failure else 0)
    told = f"{name}: {lost} of about {FRAMES} frames are not there"
    assert (told in capsys.readouterr().err) is not is_failure
