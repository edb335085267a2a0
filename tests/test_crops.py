"""Views of images of any size: sampling without aliasing, crops, what is learned in them, mosaics, pasted objects."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.vision.data import crops, warp
from components.vision.data.annotations import Annotations, warp_boxes, warp_ellipses, warp_mask
from components.vision.data.crops import Composer, RandomCrop
from components.vision.inputs import InputSpec

WIDTH, HEIGHT = 96, 64
SIZE = WIDTH, HEIGHT
INPUT = InputSpec(WIDTH, HEIGHT)
ALL = RandomCrop(
    zoom_min=0.7, zoom_max=3.0, object_probability=0.5, hflip_probability=0.5, rotate_max=0.5, rotate_probability=0.5
)
seeds = st.integers(0, 2**32 - 1)


def smooth(width, height, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def checkerboard(width, height):
    return np.repeat((np.indices((height, width)).sum(0) % 2 * 255).astype(np.uint8)[..., None], 3, axis=2)


def turned(angle, size=SIZE):
    turn = np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return warp.translation(-size[0] / 2, -size[1] / 2) @ turn @ warp.translation(size[0] / 2, size[1] / 2)


def annotations(boxes=(), masked=(), **others):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Annotations(boxes, np.zeros(len(boxes), np.int64), np.array(masked, np.float32).reshape(-1, 4), **others)


class Images(list):
    def stored(self, index):
        return self[index]


def composer(images, crop=ALL, **changes):
    neutral = {"space": lambda _size, _random: np.eye(3), "colour": lambda _random: np.vstack([np.eye(3), np.zeros(3)])}
    return Composer(Images(images), INPUT, crop, **{**neutral, **changes})


# ---- Pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shrinking", [1.6, 2.0, 2.3, 3.1, 4.0, 7.7])
@pytest.mark.parametrize("angle", [0.0, 0.3])
def test_a_checkerboard_that_shrinks_turns_grey(shrinking, angle):
    board = checkerboard(900, 600)
    matrix = turned(angle) @ warp.whole_window((40, 30), (WIDTH * shrinking, HEIGHT * shrinking), SIZE)
    # The border of the board would show; only the middle is looked at.
    shown = warp.sample_image(board, matrix, SIZE)[20:-20, 30:-30]
    assert shown.std() < 4
    assert shown.mean() == pytest.approx(127.5, abs=2)
    if shrinking not in (2.0, 4.0):  # which bilinear sampling may meet right between two pixels
        assert warp.warp_image(board, matrix, SIZE)[20:-20, 30:-30].std() > 30


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.3, 6.0),
    st.floats(-0.6, 0.6),
    st.booleans(),
    st.booleans(),
    st.tuples(st.floats(-60, 90), st.floats(-60, 60)),
)
def test_a_smooth_image_is_sampled_where_the_matrix_says(shrinking, angle, is_mirrored, is_whole, corner):
    image = smooth(600, 400)
    extent = WIDTH * shrinking, HEIGHT * shrinking
    if is_whole:
        matrix = warp.whole_window(corner, extent, SIZE)
    else:
        matrix = turned(angle) @ np.diag([shrinking, shrinking, 1]) @ warp.translation(*corner)
    if is_mirrored:
        matrix = crops._mirrored(WIDTH) @ matrix
    ours = warp.sample_image(image, matrix, SIZE).astype(int)
    difference = np.abs(ours - warp.warp_image(image, matrix, SIZE, 0.0)).max(2)
    # Beside the edge of the image, where black begins, the antialiased one is softer.
    inside = warp_mask(np.pad(np.ones((384, 584), bool), 8), matrix, SIZE)
    assert difference[inside].max(initial=0) <= 14
    assert difference[inside].mean() < 1.5 if inside.any() else True


@given(st.floats(-50, 50), st.floats(0.2, 900), st.floats(0.2, 900))
def test_a_whole_window_lies_within_a_block_of_the_one_asked_for(left, width, height):
    matrix = warp.whole_window((left, -left), (width, height), SIZE)
    start, stop = (np.array([*corner, 1]) @ matrix for corner in ((0, 0), SIZE))
    blocks = [
        max(2 ** math.floor(math.log2(max(ask / edge, 1))), 1) for ask, edge in zip((width, height), SIZE, strict=True)
    ]
    assert np.abs(start[:2] - (left, -left)).max() <= 0.5
    extent = (stop - start)[:2]
    np.testing.assert_allclose(extent / blocks, np.rint(extent / blocks), atol=1e-6)
    for got, asked, block in zip(extent, (width, height), blocks, strict=True):
        assert abs(got - asked) <= block / 2 + 1e-6 or got == block


def test_a_window_at_the_images_own_resolution_is_its_pixels():
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    matrix = warp.whole_window((7, 11), SIZE, SIZE)
    np.testing.assert_array_equal(warp.sample_image(image, matrix, SIZE), image[11 : 11 + HEIGHT, 7 : 7 + WIDTH])
    mirrored = warp.sample_image(image, crops._mirrored(WIDTH) @ matrix, SIZE)
    np.testing.assert_array_equal(mirrored, image[11 : 11 + HEIGHT, 7 : 7 + WIDTH][:, ::-1])


def test_enlarging_is_bilinear_and_outside_is_black():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    matrix = warp.whole_window((10, 10), (WIDTH / 3, HEIGHT / 2), SIZE)
    shown = warp.sample_image(image, matrix, SIZE).astype(int)  # 32 rows, of which the image has 30
    expected = cv2.resize(image[10:40, 10:42], (WIDTH, 60), interpolation=cv2.INTER_LINEAR)
    assert np.abs(shown[:59] - expected[:59]).max() <= 2
    assert not shown[61:].any()
    assert not warp.sample_image(image, warp.translation(500, 0), SIZE).any()


# ---- Boxes -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_a_round_objects_box_is_the_bounds_of_its_ellipse(seed):
    random = np.random.default_rng(seed)
    matrix = turned(random.uniform(-3, 3)) @ np.diag([*random.uniform(0.3, 3, 2), 1])
    corner = random.uniform(-20, 60, (3, 2))
    boxes = np.hstack([corner, corner + random.uniform(1, 40, (3, 2))]).astype(np.float32)
    phase = np.linspace(0, 2 * np.pi, 2001)
    circle = np.stack([np.cos(phase), np.sin(phase)], axis=1)
    inverse = np.linalg.inv(matrix)
    for box, mapped in zip(boxes.astype(float), warp_ellipses(boxes, matrix), strict=True):
        outline = (box[:2] + box[2:]) / 2 + circle * (box[2:] - box[:2]) / 2
        outline = outline @ inverse[:2, :2] + inverse[2, :2]
        np.testing.assert_allclose(mapped, [*outline.min(0), *outline.max(0)], atol=1e-2)


def test_without_a_rotation_an_ellipse_is_its_box_and_turned_by_an_eighth_a_square_keeps_its_size():
    boxes = np.array([[10, 20, 30, 40], [5, 5, 6, 45]], np.float32)
    upright = crops._mirrored(WIDTH) @ np.diag([0.5, 2, 1]) @ warp.translation(3, 4)
    np.testing.assert_allclose(warp_ellipses(boxes, upright), warp_boxes(boxes, upright), atol=1e-4)
    (x1, y1, x2, y2), _ = warp_ellipses(boxes, turned(np.pi / 4))
    assert (x2 - x1, y2 - y1) == pytest.approx((20, 20))
    (x1, y1, x2, y2), _ = warp_boxes(boxes, turned(np.pi / 4))
    assert (x2 - x1, y2 - y1) == pytest.approx((20 * math.sqrt(2),) * 2)


@pytest.mark.parametrize("seed", range(30))
def test_in_any_crop_a_discs_box_encloses_its_pixels(seed):
    image = np.zeros((300, 500, 3), np.uint8)
    cv2.circle(image, (250, 150), 40, (255, 255, 255), -1)
    objects = annotations([(209.5, 109.5, 290.5, 190.5)])
    crop = RandomCrop(0.8, 2.5, 1.0, 0.5, 1.5, 0.7)
    shown, seen = composer([(image, objects)], crop).compose(0, np.random.default_rng(seed))
    rows, columns = np.where(shown[..., 0] > 127)
    assert len(rows)  # the crop is laid around it
    x1, y1, x2, y2 = seen.boxes[0]
    bounds = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert np.abs(bounds - (x1, y1, x2, y2)).max() <= 1.5


edges = st.integers(-40, 140)


@given(
    st.lists(st.tuples(edges, edges, edges, edges), max_size=5), st.integers(0, 20), st.sampled_from([0, 0.25, 0.5, 1])
)
def test_what_shows_too_little_of_itself_is_masked_and_the_rest_is_cut(corners, height, share):
    boxes = [[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in corners]
    shown = annotations(boxes, [(-5, -5, 3, 3), (200, 0, 210, 9)]).shown(SIZE, (2.0, height), share)
    learned, masked = [], [[0, 0, 3, 3]]
    for x1, y1, x2, y2 in np.array(boxes, np.float32).reshape(-1, 4):
        cut = [max(x1, 0), max(y1, 0), min(x2, WIDTH), min(y2, HEIGHT)]
        if x1 >= WIDTH or y1 >= HEIGHT or x2 <= 0 or y2 <= 0:
            continue
        width, tall = cut[2] - cut[0], cut[3] - cut[1]
        is_seen = width * tall >= share * ((x2 - x1) * (y2 - y1))
        (learned if width >= 2 and tall >= height and is_seen else masked).append(cut)
    np.testing.assert_array_equal(shown.boxes, np.array(learned, np.float32).reshape(-1, 4))
    np.testing.assert_array_equal(shown.masked, np.array(masked, np.float32).reshape(-1, 4))


# ---- What is drawn ---------------------------------------------------------------------------------------------------


def test_zooms_are_drawn_log_uniformly_between_their_ends():
    crop = RandomCrop(zoom_min=0.5, zoom_max=2.0)
    random, scale = np.random.default_rng(0), (0.1, 0.1)
    matrices = [crop.draw((960, 640), scale, np.zeros((0, 4), np.float32), SIZE, random) for _ in range(2000)]
    zooms = np.array([10 / matrix[0, 0] for matrix in matrices])
    assert 0.49 < zooms.min() < 0.52 < 1.9 < zooms.max() < 2.03
    assert np.mean(zooms < 1) == pytest.approx(0.5, abs=0.05)
    assert np.mean(zooms < math.sqrt(0.5)) == pytest.approx(0.25, abs=0.04)
    assert {matrix[0, 1] for matrix in matrices} == {0.0}  # no rotation unless asked for
    assert min(matrix[0, 0] for matrix in matrices) > 0


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_a_crop_stays_on_the_image_or_holds_it_whole(seed):
    crop = RandomCrop(zoom_min=0.5, zoom_max=4.0, hflip_probability=0.5)
    matrix = crop.draw((500, 300), (0.2, 0.2), np.zeros((0, 4), np.float32), SIZE, np.random.default_rng(seed))
    corners = np.sort((np.array([[0, 0, 1], [*SIZE, 1]]) @ matrix)[:, :2], axis=0)
    for low, high, length in zip(*corners, (500, 300), strict=True):
        # To the whole blocks of pixels that a window is made of.
        assert (low >= -4 and high <= length + 4) or (low <= 4 and high >= length - 4)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_a_crop_around_an_object_holds_the_middle_of_one(seed):
    random = np.random.default_rng(seed)
    corner = random.uniform((0, 0), (470, 270), (3, 2))
    boxes = np.hstack([corner, corner + 20]).astype(np.float32)
    crop = RandomCrop(zoom_min=2.0, zoom_max=6.0, object_probability=1.0)
    matrix = crop.draw((500, 300), (0.2, 0.2), boxes, SIZE, random)
    moved = warp_boxes(boxes, matrix)
    middle = (moved[:, :2] + moved[:, 2:]) / 2
    assert ((middle > -1).all(1) & (middle < np.array(SIZE) + 1).all(1)).any()


def test_flips_rotations_and_noise_come_as_often_as_asked_for():
    crop = RandomCrop(hflip_probability=0.25, rotate_max=0.3, rotate_probability=0.4)
    random, none = np.random.default_rng(0), np.zeros((0, 4), np.float32)
    matrices = [crop.draw((300, 200), (0.3, 0.3), none, SIZE, random) for _ in range(3000)]
    assert np.mean([m[0, 0] < 0 for m in matrices]) == pytest.approx(0.25, abs=0.03)
    assert np.mean([m[0, 1] != 0 for m in matrices]) == pytest.approx(0.4, abs=0.03)
    image = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)
    blurred = RandomCrop(blur_probability=0.3)
    seen = [blurred.degrade(image, random) for _ in range(1000)]
    assert np.mean([(each != image).any() for each in seen]) == pytest.approx(0.3, abs=0.05)
    assert RandomCrop(blur_probability=1.0).degrade(image, random).std() < 0.7 * image.std()
    grey = RandomCrop(grey_probability=1.0).degrade(image, random)
    np.testing.assert_array_equal(grey, np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, 2))
    scene = smooth(64, 64)
    noisy = RandomCrop(jpeg_probability=1.0).degrade(scene, random).astype(int)
    assert 0.2 < np.abs(noisy - scene).mean() < 12  # noise, not another image or other colours


def test_a_view_is_the_same_for_the_same_stream():
    images = [(smooth(200, 150, seed), annotations([(20, 20, 60, 60)])) for seed in range(4)]
    crop = RandomCrop(0.7, 2.0, 0.5, 0.5, 0.3, 0.5, 0.4, 0.5, 0.5, 0.3, 0.3, 0.3)
    make = composer(images, crop).compose
    for seed in range(6):
        (one, seen), (other, again) = (make(0, np.random.default_rng(seed)) for _ in range(2))
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(seen.boxes, again.boxes)
    assert (make(0, np.random.default_rng(0))[0] != make(0, np.random.default_rng(1))[0]).any()


@pytest.mark.parametrize("fit", ["letterbox", "stretch", "crop"])
def test_without_a_crop_a_view_is_the_fit(fit):
    image = smooth(250, 120)
    spec = InputSpec(WIDTH, HEIGHT, fit=fit)
    objects = annotations([(100, 40, 140, 80)])
    neutral = {"space": lambda _size, _random: np.eye(3), "colour": lambda _random: np.vstack([np.eye(3), np.zeros(3)])}
    view, seen = Composer(Images([(image, objects)]), spec, None, **neutral).compose(0, np.random.default_rng(0))
    placed, placement = spec.place(image[..., ::-1])
    assert np.abs(view.astype(int) - placed)[2:-2].mean() < 2
    np.testing.assert_allclose(seen.boxes, placement.to_input(objects.boxes), atol=1e-3)


# ---- Mosaics and pasted objects --------------------------------------------------------------------------------------


def test_a_mosaic_shows_four_images_and_keeps_each_ones_objects_in_its_part():
    levels = (40, 100, 160, 220)
    images = [(np.full((200, 300, 3), level, np.uint8), annotations([(100, 60, 200, 140)])) for level in levels]
    for number in range(4):
        cv2.rectangle(images[number][0], (100, 60), (199, 139), (255, 255, 255), -1)
    crop = RandomCrop(1.0, 2.0, mosaic_probability=1.0)
    for seed in range(10):
        view, seen = composer(images, crop).compose(2, np.random.default_rng(seed))
        assert (view == levels[2]).all(2).any() or (view == 255).all(2).any()
        white = np.zeros((HEIGHT, WIDTH), bool)
        for x1, y1, x2, y2 in np.concatenate([seen.boxes, seen.masked]):
            white[
                max(round(float(y1)) - 1, 0) : round(float(y2)) + 1, max(round(float(x1)) - 1, 0) : round(float(x2)) + 1
            ] = True
        assert (white | (view[..., 0] < 240)).all()  # all that is bright is labelled where it is
        assert (np.concatenate([seen.boxes, seen.masked]) <= (WIDTH, HEIGHT, WIDTH, HEIGHT)).all()


def test_pasted_objects_are_those_of_other_images_and_touch_nothing_that_is_labelled():
    ground = (np.full((HEIGHT, WIDTH, 3), 30, np.uint8), annotations([(0, 0, 30, 64)], [(70, 0, 96, 20)]))
    donor = np.full((200, 300, 3), 120, np.uint8)
    cv2.ellipse(donor, (150, 100), (20, 30), 0, 0, 360, (250, 250, 250), -1)
    donor = (donor, annotations([(130, 70, 170, 130)], [(0, 0, 40, 40)]))
    crop = RandomCrop(copy_paste_probability=1.0)
    pasted = 0
    for seed in range(40):
        view, seen = composer([ground, donor], crop, smallest=(0.0, 8.0)).compose(0, np.random.default_rng(seed))
        assert seen.boxes[0].tolist() == [0, 0, 30, 64]
        np.testing.assert_array_equal(seen.masked, [[70, 0, 96, 20]])
        for box in seen.boxes[1:]:
            pasted += 1
            x1, y1, x2, y2 = box
            assert 8 <= y2 - y1 <= HEIGHT / 3
            assert x1 >= 30
            assert x2 <= 70 or y1 >= 20
            assert view[round(float(y1 + y2) / 2), round(float(x1 + x2) / 2), 0] > 235
        others = seen.boxes[1:]
        for number, one in enumerate(others):
            assert crops._touching(one[None], others).sum() == 1, number
        if len(others) == 0:
            assert (view == 30).all()
    assert pasted > 10


def test_an_object_beside_another_is_not_taken_out_of_its_image():
    boxes = [(40, 40, 60, 60), (62, 40, 80, 60), (150, 100, 170, 120), (190, 150, 199, 160), (100, 10, 120, 30)]
    assert crops._alone(annotations(boxes, [(118, 5, 130, 9)]), (200, 200)).tolist() == [2]


def test_parts_of_an_image_are_joined_with_their_points_and_masks():
    points = np.array([[[1, 2], [3, 4]]], np.float32)
    part = annotations([(0, 0, 5, 5)], points=points, visible=np.ones((1, 2), bool), mask=np.eye(4, 6, dtype=bool))
    whole = Annotations.joined([part.placed(0, 0, (12, 8)), part.placed(6, 4, (12, 8))])
    assert whole.boxes.tolist() == [[0, 0, 5, 5], [6, 4, 11, 9]]
    assert whole.points[1].tolist() == [[7, 6], [9, 8]]
    assert whole.visible.shape == (2, 2)
    assert whole.mask.shape == (8, 12)
    assert whole.mask.sum() == 8
    assert whole.mask[4, 6]


def test_smaller_views_show_objects_as_large_as_the_network_sees_them():
    image, objects = smooth(2 * WIDTH, 2 * HEIGHT), annotations([[40, 40, 60, 70]])
    crop = RandomCrop(object_probability=1.0, size=(64, 48))
    for seed in range(20):
        view, shown = composer([(image, objects)], crop).compose(0, np.random.default_rng(seed))
        assert view.shape == (48, 64, 3)
        ((x1, y1, x2, y2),) = shown.boxes
        assert 0 <= x1 < x2 <= 64
        assert (x2 - x1, y2 - y1) == pytest.approx((10, 15), abs=1e-3) or x1 == 0 or y1 == 0 or x2 == 64 or y2 == 48
