"""Augmentation, against slow versions written straight from TAO's rules: plain loops, no shared helper."""

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.detectnet_v2 import augment
from components.detectnet_v2.augment import AugmentSettings
from components.vision.data import annotations, warp

WIDTH, HEIGHT = 40, 24
ALL = {
    "hflip_probability": 0.5, "vflip_probability": 0.5, "zoom_min": 0.6, "zoom_max": 1.7, "translate_max_x": 7,
    "translate_max_y": 5, "rotate_max": 0.6, "rotate_probability": 0.8, "brightness_stddev": 0.1,
    "hue_rotation_max": 25.0, "saturation_shift_max": 0.3, "contrast_scale_max": 0.4, "contrast_center": 0.45,
}  # fmt: skip
seeds = st.integers(0, 2**32 - 1)


# ---- Slow versions ---------------------------------------------------------------------------------------------------


def slow_point(settings, x, y, random):
    """Where MULTISOURCE samples the output point (x, y): rotation first, flips last; the draws come in spec order."""
    horizontal = random.random() < settings.hflip_probability
    vertical = random.random() < settings.vflip_probability
    dx = int(random.integers(-int(settings.translate_max_x), int(settings.translate_max_x) + 1))
    dy = int(random.integers(-int(settings.translate_max_y), int(settings.translate_max_y) + 1))
    r = random.uniform(settings.zoom_min, settings.zoom_max)
    tx, ty = random.random() * (WIDTH - WIDTH / r), random.random() * (HEIGHT - HEIGHT / r)
    angle = 0.0
    if settings.rotate_max > 0 and random.random() < settings.rotate_probability:
        angle = random.uniform(-settings.rotate_max, settings.rotate_max)
    cos, sin = math.cos(angle), math.sin(angle)
    if not settings.forward:
        x, y = (
            x * cos - y * sin + HEIGHT * sin / 2 - WIDTH * cos / 2 + WIDTH / 2,
            x * sin + y * cos - HEIGHT * cos / 2 + HEIGHT / 2 - WIDTH * sin / 2,
        )
        x, y = (x - tx) * r, (y - ty) * r
        x, y = x + dx, y + dy
        return (WIDTH - x if horizontal else x), (HEIGHT - y if vertical else y)
    # DEFAULT: the forward way is flip, rotation, zoom, translation; here it is gone backwards.
    x, y = x - dx, y - dy
    x, y = x / r + tx, y / r + ty
    x, y = x - WIDTH / 2, y - HEIGHT / 2
    x, y = x * cos + y * sin + WIDTH / 2, -x * sin + y * cos + HEIGHT / 2
    return (WIDTH - x if horizontal else x), (HEIGHT - y if vertical else y)


def slow_colour(settings, rgb, random):
    """The colour of a pixel in 0..1, not clipped."""

    def normal():
        while True:
            value = random.standard_normal()
            if -2 <= value <= 2:
                return value

    brightness = [normal() * settings.brightness_stddev for _ in range(3 if settings.forward else 1)]
    hue = normal() * settings.hue_rotation_max / 2 * math.pi / 180
    k = 1 + random.uniform(-settings.saturation_shift_max, settings.saturation_shift_max)
    contrast = normal() * settings.contrast_scale_max / 2

    def contrasted(pixel):
        return [(1 + contrast) * value - contrast * settings.contrast_center for value in pixel]

    def tinted(pixel):
        c = [[0.299, 0.299, 0.299], [0.587, 0.587, 0.587], [0.114, 0.114, 0.114]]
        a = [[0.701, -0.299, -0.299], [-0.587, 0.413, -0.587], [-0.114, -0.114, 0.886]]
        b = [[0.168, -0.328, 1.25], [0.330, 0.035, -1.05], [-0.497, 0.292, -0.203]]
        result = []
        for j in range(3):
            total = 0.0
            for i in range(3):
                total += pixel[i] * (c[i][j] + k * math.cos(hue) * a[i][j] + k * math.sin(hue) * b[i][j])
            result.append(total)
        return result

    pixel = contrasted(tinted(rgb)) if settings.forward else tinted(contrasted(rgb))
    return [value + brightness[channel % len(brightness)] for channel, value in enumerate(pixel)]


def slow_sample(image, matrix, width, height, border):
    """Bilinear at pixel centres; each of the four neighbours that is outside counts as border."""
    output = np.zeros((height, width, 3))
    for row in range(height):
        for column in range(width):
            x = (column + 0.5) * matrix[0, 0] + (row + 0.5) * matrix[1, 0] + matrix[2, 0] - 0.5
            y = (column + 0.5) * matrix[0, 1] + (row + 0.5) * matrix[1, 1] + matrix[2, 1] - 0.5
            left, top = math.floor(x), math.floor(y)
            for channel in range(3):
                value = 0.0
                for dy in (0, 1):
                    for dx in (0, 1):
                        inside = 0 <= top + dy < image.shape[0] and 0 <= left + dx < image.shape[1]
                        pixel = image[top + dy, left + dx, channel] if inside else border
                        value += pixel * (x - left if dx else 1 - x + left) * (y - top if dy else 1 - y + top)
                output[row, column, channel] = value
    return output


# ---- Matrices --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forward", [False, True])
@settings(max_examples=150, deadline=None)
@given(seed=seeds)
def test_matrix_composes_the_operations_in_the_loaders_order(seed, forward):
    chosen = AugmentSettings(**ALL, forward=forward)
    matrix = augment.draw_spatial(chosen, WIDTH, HEIGHT, np.random.default_rng(seed))
    for x, y in ((0, 0), (WIDTH, 0), (3.5, HEIGHT), (17.25, 9.0)):
        expected = slow_point(chosen, x, y, np.random.default_rng(seed))
        np.testing.assert_allclose((np.array([x, y, 1]) @ matrix)[:2], expected, atol=1e-9)


@pytest.mark.parametrize("forward", [False, True])
@settings(max_examples=150, deadline=None)
@given(seed=seeds)
def test_colour_matrix_composes_contrast_tint_and_brightness_in_the_loaders_order(seed, forward):
    chosen = AugmentSettings(**ALL, forward=forward)
    colour = augment.draw_colour(chosen, np.random.default_rng(seed))
    for rgb in ((0.2, 0.5, 0.7), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0)):
        expected = slow_colour(chosen, rgb, np.random.default_rng(seed))
        np.testing.assert_allclose(np.array([*rgb, 1.0]) @ colour, expected, atol=1e-12)


@pytest.mark.parametrize(("forward", "share"), [(False, 0.5), (True, 2.0)])
def test_a_zoom_of_two_shrinks_in_multisource_and_enlarges_in_default(forward, share):
    chosen = AugmentSettings(zoom_min=2.0, zoom_max=2.0, forward=forward)
    matrix = augment.draw_spatial(chosen, WIDTH, HEIGHT, np.random.default_rng(0))
    box = annotations.warp_boxes(np.array([[0, 0, WIDTH, HEIGHT]], np.float32), matrix)[0]
    np.testing.assert_allclose([box[2] - box[0], box[3] - box[1]], [WIDTH * share, HEIGHT * share], rtol=1e-5)


@given(st.floats(0.5, 2.0), seeds)
def test_zoom_keeps_the_smaller_of_image_and_view_inside_the_other(ratio, seed):
    chosen = AugmentSettings(zoom_min=ratio, zoom_max=ratio)
    matrix = augment.draw_spatial(chosen, WIDTH, HEIGHT, np.random.default_rng(seed))
    x1, y1, x2, y2 = annotations.warp_boxes(np.array([[0, 0, WIDTH, HEIGHT]], np.float32), matrix)[0]
    if ratio > 1:
        assert min(x1, y1) >= -1e-3
        assert x2 <= WIDTH + 1e-3
        assert y2 <= HEIGHT + 1e-3
    else:
        assert max(x1, y1) <= 1e-3
        assert x2 >= WIDTH - 1e-3
        assert y2 >= HEIGHT - 1e-3


def test_shifts_are_whole_pixels_up_to_and_including_the_limit():
    chosen = AugmentSettings(translate_max_x=2.9, translate_max_y=1)
    random = np.random.default_rng(0)
    drawn = {tuple(augment.draw_spatial(chosen, WIDTH, HEIGHT, random)[2, :2]) for _ in range(300)}
    assert drawn == {(x, y) for x in range(-2, 3) for y in range(-1, 2)}


def test_probabilities_decide_how_often_flips_and_rotations_happen():
    chosen = AugmentSettings(hflip_probability=0.25, vflip_probability=0.1, rotate_max=1e-3, rotate_probability=0.4)
    random = np.random.default_rng(0)
    matrices = [augment.draw_spatial(chosen, WIDTH, HEIGHT, random) for _ in range(4000)]
    assert np.mean([m[0, 0] < 0 for m in matrices]) == pytest.approx(0.25, abs=0.03)
    assert np.mean([m[1, 1] < 0 for m in matrices]) == pytest.approx(0.1, abs=0.03)
    assert np.mean([m[0, 1] != 0 for m in matrices]) == pytest.approx(0.4, abs=0.03)


def test_normal_draws_are_cut_off_at_two_deviations_not_clamped():
    random = np.random.default_rng(0)
    drawn = np.array([augment.truncated_normal(random) for _ in range(20_000)])
    assert np.abs(drawn).max() < 2
    assert np.mean(np.abs(drawn) > 1.9) < 0.03  # a clamped distribution would pile up at the limit
    assert drawn.std() == pytest.approx(0.8796, abs=0.01)  # of the truncated distribution


def test_neutral_settings_change_nothing():
    random = np.random.default_rng(0)
    np.testing.assert_array_equal(augment.draw_spatial(AugmentSettings(), WIDTH, HEIGHT, random), np.eye(3))
    image = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    # TAO's basis is rounded to three decimals, so that white comes out a quarter of a per cent off.
    colour = augment.draw_colour(AugmentSettings(), random)
    assert np.abs(warp.recolour(image, colour).astype(int) - image).max() <= 1
    np.testing.assert_array_equal(warp.warp_image(image, np.eye(3)), image)


# ---- Boxes -----------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(seeds, st.lists(st.tuples(*[st.floats(-20, 60)] * 4), max_size=4))
def test_boxes_are_the_bounds_of_their_corners_under_the_inverse(seed, corners):
    matrix = augment.draw_spatial(AugmentSettings(**ALL), WIDTH, HEIGHT, np.random.default_rng(seed))
    boxes = np.array([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in corners], np.float32)
    mapped = annotations.warp_boxes(boxes.reshape(-1, 4), matrix)
    (a, b, _), (c, d, _), (e, f, _) = matrix.tolist()
    determinant = a * d - b * c
    for box, result in zip(boxes.tolist(), mapped, strict=True):
        xs, ys = [], []
        for px in (box[0], box[2]):
            for py in (box[1], box[3]):
                xs.append(((px - e) * d - (py - f) * c) / determinant)
                ys.append(((py - f) * a - (px - e) * b) / determinant)
        np.testing.assert_allclose(result, [min(xs), min(ys), max(xs), max(ys)], rtol=1e-4, atol=1e-4)


def test_boxes_stay_on_what_they_enclose():
    """A bright block is warped with the image; its box must enclose the bright pixels."""
    width, height = 96, 64
    box = np.array([[30, 20, 60, 44]], np.float32)
    image = np.zeros((height, width, 3), np.uint8)
    image[20:44, 30:60] = 255
    for seed in range(40):
        chosen = AugmentSettings(0.5, 0.8, 1.4, 6, 6, vflip_probability=0.5, forward=bool(seed % 2))
        matrix = augment.draw_spatial(chosen, width, height, np.random.default_rng(seed))
        warped = warp.warp_image(image, matrix)
        x1, y1, x2, y2 = annotations.warp_boxes(box, matrix)[0]
        rows, columns = np.where(warped[..., 0] > 200)
        assert abs(columns.min() - max(x1, 0)) <= 1.5
        assert abs(columns.max() + 1 - min(x2, width)) <= 1.5
        assert abs(rows.min() - max(y1, 0)) <= 1.5
        assert abs(rows.max() + 1 - min(y2, height)) <= 1.5


# ---- Pixels ----------------------------------------------------------------------------------------------------------


def noise(seed, width=30, height=20):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth(width, height):
    coarse = np.random.default_rng(3).integers(0, 256, (5, 7, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def on_device(image, matrix, size, border):
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    warped = warp.warp_tensor(tensor, torch.from_numpy(matrix)[None], size, border)
    return warped[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("forward", "border"), [(False, 0.5), (True, 0.0)])
@pytest.mark.parametrize("seed", range(4))
def test_device_samples_as_the_slow_sampler(seed, forward, border):
    image = noise(seed)
    chosen = AugmentSettings(**ALL, forward=forward)
    matrix = augment.draw_spatial(chosen, 24, 16, np.random.default_rng(seed))
    expected = slow_sample(image / 255, matrix, 24, 16, border)
    np.testing.assert_allclose(on_device(image, matrix, (24, 16), border), expected, atol=1e-4)


@pytest.mark.parametrize("border", [0.5, 0.0])
@pytest.mark.parametrize("seed", range(4))
def test_opencv_samples_as_the_device_on_a_smooth_image(seed, border):
    """OpenCV rounds positions to 1/32 of a pixel and values to bytes."""
    image = smooth(90, 60)
    matrix = augment.draw_spatial(AugmentSettings(**ALL), 80, 48, np.random.default_rng(seed))
    ours = warp.warp_image(image, matrix, (80, 48), border) / 255
    difference = np.abs(ours - on_device(image, matrix, (80, 48), border))
    assert np.mean(difference) < 0.003
    assert np.quantile(difference, 0.99) < 0.02  # at the image's edge the border begins within a pixel


@pytest.mark.parametrize("seed", range(4))
def test_device_colours_as_the_slow_version_and_as_opencv(seed):
    image = noise(seed)
    chosen = AugmentSettings(**ALL)
    colour = augment.draw_colour(chosen, np.random.default_rng(seed))
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    ours = warp.recolour_tensor(tensor, torch.from_numpy(colour)[None])[0].permute(1, 2, 0).numpy()
    for row, column in ((0, 0), (3, 7), (19, 29)):
        pixel = slow_colour(chosen, (image[row, column] / 255).tolist(), np.random.default_rng(seed))
        np.testing.assert_allclose(ours[row, column], np.clip(pixel, 0, 1), atol=1e-5)
    np.testing.assert_allclose(warp.recolour(image, colour) / 255, ours, atol=1.01 / 255)  # fixed point there


def test_a_batch_is_sampled_image_by_image():
    images = torch.rand(3, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    random = np.random.default_rng(0)
    drawn = [augment.draw_spatial(AugmentSettings(**ALL), 16, 12, random) for _ in range(3)]
    matrices = torch.from_numpy(np.stack(drawn))
    joined = warp.warp_tensor(images, matrices, (16, 12), 0.5)
    for index in range(3):
        alone = warp.warp_tensor(images[index : index + 1], matrices[index : index + 1], (16, 12), 0.5)
        torch.testing.assert_close(joined[index], alone[0])


# ---- Points and masks ------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_points_and_boxes_move_alike_and_mirrored_points_change_places(seed, forward):
    random = np.random.default_rng(seed)
    matrix = augment.draw_spatial(AugmentSettings(**{**ALL, "forward": forward}), WIDTH, HEIGHT, random)
    points = random.uniform((0, 0), (WIDTH, HEIGHT), (2, 3, 2)).astype(np.float32)
    corners = np.concatenate([points[:, 0], points[:, 0]], axis=1)  # boxes of no extent: points themselves
    visible = np.array([[True, False, True]] * 2)
    before = annotations.Annotations(corners, np.arange(2), corners[:0], points, visible)
    after = before.moved(matrix, flip_map=(0, 2, 1))
    is_mirrored = matrix[0, 0] * matrix[1, 1] < matrix[0, 1] * matrix[1, 0]
    np.testing.assert_allclose(after.points[:, 0], after.boxes[:, :2], atol=1e-3)
    back = np.concatenate([after.points, np.ones((2, 3, 1))], axis=2) @ matrix  # output to source
    places = [0, 2, 1] if is_mirrored else [0, 1, 2]
    np.testing.assert_allclose(back[..., :2], points[:, places], atol=1e-2)
    np.testing.assert_array_equal(after.visible, visible[:, places])


def test_cutting_drops_an_object_with_its_points():
    boxes = np.array([[-5, 0, 10, 10], [50, 0, 60, 10]], np.float32)
    points = np.array([[[1, 2]], [[55, 5]]], np.float32)
    cut = annotations.Annotations(boxes, np.array([0, 1]), boxes[1:], points, np.ones((2, 1), bool)).cut((40, 20))
    np.testing.assert_array_equal(cut.boxes, [[0, 0, 10, 10]])
    assert cut.class_ids.tolist() == [0]
    assert cut.points.tolist() == [[[1, 2]]]
    assert cut.visible.shape == (1, 1)
    assert len(cut.masked) == 0


@pytest.mark.parametrize("seed", range(10))
def test_a_mask_moves_with_the_pixels_that_it_covers(seed):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[HEIGHT // 3 : HEIGHT // 2, WIDTH // 4 : WIDTH // 2] = True
    matrix = augment.draw_spatial(AugmentSettings(**ALL), WIDTH, HEIGHT, np.random.default_rng(seed))
    empty = np.zeros((0, 4), np.float32)
    moved = annotations.Annotations(empty, np.zeros(0, np.int64), empty, mask=mask).moved(matrix).mask
    image = warp.warp_image(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2), matrix, border=0.0)
    assert (moved == (image[..., 0] > 127)).mean() > 0.99
