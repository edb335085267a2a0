"""Whole and cut images, and their sizes."""

import contextlib
import time

import cv2
import numpy as np
import pytest
from exif import turned
from hypothesis import given
from hypothesis import strategies as st

from components.formats import images
from components.formats.images import ImageError, decode, is_upright, upright_size


def encoded(suffix=".jpg", width=200, height=120, *flags):
    noise = np.random.default_rng(3).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    return cv2.imencode(suffix, cv2.resize(noise, (width, height)), flags)[1].tobytes()


BASELINE = encoded()
PROGRESSIVE = encoded(".jpg", 200, 120, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
RESTARTING = encoded(".jpg", 200, 120, cv2.IMWRITE_JPEG_RST_INTERVAL, 2)
KINDS = pytest.mark.parametrize("jpeg", [BASELINE, PROGRESSIVE, RESTARTING], ids=["baseline", "progressive", "restart"])
# A clip of a phone, which looks like marks of a JPEG to whoever searches for them.
CLIP = np.random.default_rng(5).integers(0, 256, 200_000, np.uint8).tobytes()
TRAILERS = {"5 kB": CLIP[:5000], "200 kB": CLIP, "zeros": bytes(200_000), "another image": BASELINE, "none": b""}


@KINDS
@pytest.mark.parametrize("trailer", TRAILERS.values(), ids=TRAILERS)
def test_what_follows_the_end_of_a_jpeg_does_not_matter(jpeg, trailer):
    np.testing.assert_array_equal(decode(jpeg + trailer), decode(jpeg))


@KINDS
@pytest.mark.parametrize("trailer", TRAILERS.values(), ids=TRAILERS)
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_a_jpeg_that_is_cut_off_is_refused_whatever_follows(jpeg, trailer, kept):
    with pytest.raises(ImageError, match="cut off"):
        decode(jpeg[: int(len(jpeg) * kept)] + trailer)


def test_a_preview_inside_a_jpeg_is_not_taken_for_its_end():
    note = b"\xff\xe1" + (len(BASELINE) + 2).to_bytes(2, "big") + BASELINE
    whole = PROGRESSIVE[:2] + note + PROGRESSIVE[2:]
    assert decode(whole).shape == (120, 200, 3)
    with pytest.raises(ImageError, match="cut off"):
        decode(whole[:-400])


def test_looking_for_the_end_costs_less_than_decoding():
    noise = np.random.default_rng(3).integers(0, 256, (750, 1000, 3), np.uint8)
    content = cv2.imencode(".jpg", noise, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    seconds = {content: [], content[:-3]: []}
    for jpeg in [*seconds] * 3:
        begin = time.perf_counter()
        with contextlib.suppress(ImageError):
            decode(jpeg)
        seconds[jpeg].append(time.perf_counter() - begin)
    assert min(seconds[content[:-3]]) < min(seconds[content]) / 3


@KINDS
def test_the_size_of_a_jpeg_without_exif_is_read_from_its_header(jpeg, monkeypatch):
    monkeypatch.setattr(images, "decode", None)
    assert upright_size(jpeg + CLIP[:5000]) == (200, 120)


@KINDS
@pytest.mark.parametrize("kept", [0.01, 0.3, 0.95])
def test_a_jpeg_that_is_cut_off_has_no_size(jpeg, kept):
    with pytest.raises(ImageError, match="cut off"):
        upright_size(jpeg[: int(len(jpeg) * kept)])


@KINDS
@pytest.mark.parametrize("orientation", range(9))
def test_an_image_is_upright_where_its_exif_changes_nothing(jpeg, orientation):
    assert is_upright(turned(jpeg, orientation) if orientation else jpeg) is (orientation < 2)


def test_an_eighth_of_an_image_shows_whether_it_can_be_read():
    assert decode(BASELINE, eighth=True).shape == (15, 25, 3)
    with pytest.raises(ImageError, match="cut off"):
        decode(BASELINE[:-300], eighth=True)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([".png", ".jpg", ".bmp"]), st.integers(0, 8))
def test_the_size_is_that_of_the_decoded_image_however_it_is_turned(width, height, suffix, orientation):
    content = cv2.imencode(suffix, np.full((height, width, 3), 90, np.uint8))[1].tobytes()
    if orientation and suffix != ".bmp":
        content = turned(content, orientation)
    image = decode(content)
    assert upright_size(content) == (image.shape[1], image.shape[0])
    assert image.shape[:2] == ((width, height) if orientation > 4 and suffix != ".bmp" else (height, width))
    assert decode(content, upright=False).shape[:2] == (height, width)


@pytest.mark.parametrize("kind", ["jpeg", "turned jpeg", "png"])
def test_an_image_of_more_pixels_than_memory_is_for_is_refused_before_it_is_decoded(kind):
    suffix, side = (".png", 4) if kind == "png" else (".jpg", 2)
    content = bytearray(cv2.imencode(suffix, np.zeros((16, 16, 3), np.uint8))[1].tobytes())
    place = 16 if kind == "png" else content.index(b"\xff\xc0") + 5
    content[place : place + 2 * side] = (12_000).to_bytes(side, "big") * 2
    file = turned(bytes(content)) if kind == "turned jpeg" else bytes(content)
    with pytest.raises(ImageError, match="12000x12000: more than 134 million pixels; shrink it first"):
        decode(file)
