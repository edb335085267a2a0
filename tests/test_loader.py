"""From records to batches: framing, sources, sampling, ranks, masks and weights."""

import math
import threading

import cv2
import numpy as np
import pytest
import torch
from exif import turned
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from components.decode.grid.encode import CoverageShape
from components.decode.grid.geometry import GridGeometry
from components.detectnet_v2 import augment, sources, spec_pb2
from components.detectnet_v2.augment import AugmentSettings
from components.detectnet_v2.batches import BatchMaker, covered_cells, touched_cells
from components.detectnet_v2.dataset import LabelledImages, LabelMapping
from components.detectnet_v2.framing import Fitting, Framing
from components.detectnet_v2.records import Frame, frame_to_example
from components.formats.images import upright_size
from components.formats.tfrecord import write_records
from components.step import UserError
from components.vision.data.annotations import Annotations
from components.vision.data.crops import RandomCrop
from components.vision.data.order import EpochOrder
from components.vision.inputs import InputSpec

WIDTH, HEIGHT = 96, 64
GEOMETRY = GridGeometry(WIDTH, HEIGHT)
FULL = AugmentSettings(0.5, 0.7, 1.8, 12, 12, 0.1, 1.0, 0.1, 25, 0.2, 0.1, 0.5)
MAPPING = LabelMapping({"face": 0}, frozenset({"dontcare"}))


def picture(width, height, seed=0):
    """A smooth image, [height, width, 3] RGB."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def labelled_images(folder, sizes=((WIDTH, HEIGHT),), boxes=((8, 8, 40, 40),), framing=None, names=None, **others):
    frames, files = [], []
    for index, (width, height) in enumerate(sizes):
        file = folder / f"{index}.png"
        cv2.imwrite(str(file), picture(width, height, index)[..., ::-1])
        labels = np.array(boxes, np.float32).reshape(-1, 4)
        frames.append(Frame(str(index), width, height, list(names or ["face"] * len(boxes)), labels))
        files.append(file)
    return LabelledImages(frames, files, others.pop("mapping", MAPPING), GEOMETRY, framing, **others)


def batch_maker(data, **changes):
    values = {
        "data": data, "geometry": GEOMETRY, "shapes": (CoverageShape(),), "deadzone_radius": 0.67,
        "augmentation": FULL, "mask_multiplier": 0.0, "mask_spares_objects": True, "batch_size": 3, "seed": 7,
    }  # fmt: skip
    return BatchMaker(**{**values, **changes})


def assert_same(one, other):
    for name in ("images", "coverage", "coverage_norm", "bbox", "mask"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


# ---- How an image becomes the network's input ------------------------------------------------------------------------


def test_images_of_another_size_are_padded_or_stretched(tmp_path):
    small = [(WIDTH // 2, HEIGHT // 2)]
    padded = labelled_images(tmp_path, small)
    np.testing.assert_array_equal(padded.pixels[0, : HEIGHT // 2, : WIDTH // 2], picture(*small[0]))
    assert not padded.pixels[0, HEIGHT // 2 :].any()
    assert not padded.pixels[0, :, WIDTH // 2 :].any()
    assert padded.objects[0].boxes.tolist() == [[8, 8, 40, 40]]
    stretched = labelled_images(tmp_path, small, framing=Framing(stretch=True))
    expected = cv2.resize(picture(*small[0]), (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(stretched.pixels[0], expected)
    assert stretched.objects[0].boxes.tolist() == [[16, 16, 80, 80]]


def test_a_larger_image_shows_its_top_left_and_augmentation_can_reach_the_rest(tmp_path):
    data = labelled_images(tmp_path, [(WIDTH * 2, HEIGHT * 2)])
    large = picture(WIDTH * 2, HEIGHT * 2)
    np.testing.assert_array_equal(data.pixels[0], large[:HEIGHT, :WIDTH])
    out = AugmentSettings(zoom_min=2.0, zoom_max=2.0)
    maker = batch_maker(data, augmentation=out, batch_size=1)
    batch = next(maker.epoch(0))
    matrix = augment.draw_spatial(out, WIDTH, HEIGHT, maker.order.random(0, 0, 0))
    x, y = WIDTH - 1, HEIGHT - 1
    source = (np.array([x + 0.5, y + 0.5, 1]) @ matrix)[:2]
    assert source.max() > WIDTH  # a pixel beyond what is shown without augmentation
    np.testing.assert_allclose(batch.images[0, y, x], large[int(source[1]), int(source[0])], atol=12)


@pytest.mark.parametrize(
    ("size", "shorter", "longer", "expected"),
    [
        ((200, 100), 64, 96, (96, 48)),  # the longer side limits: 0.48
        ((120, 100), 64, 96, (76, 64)),
        ((100, 120), 32, 96, (32, 38)),
        ((200, 100), 32, 0, (64, 32)),
    ],
)
def test_resizing_to_a_shorter_side_keeps_the_aspect_ratio(size, shorter, longer, expected, tmp_path):
    framing = Framing(shorter_side=shorter, longer_side=longer)
    resized, (scale_x, scale_y) = framing.resized(*size, GEOMETRY)
    assert resized == expected
    scale = shorter / min(size)
    if longer:
        scale = min(scale, longer / max(size))
    assert scale_x == scale_y == pytest.approx(scale)
    data = labelled_images(tmp_path, [size], framing=framing)
    np.testing.assert_allclose(data.objects[0].boxes[0], np.array([8, 8, 40, 40]) * scale, rtol=1e-6)
    assert data.pixels.shape == (1, HEIGHT, WIDTH, 3)
    assert not data.pixels[0, expected[1] :].any()
    assert not data.pixels[0, :, expected[0] :].any()


def test_scale_and_crop_take_a_window_of_the_canvas(tmp_path):
    framing = Framing(scale=(0.5, 0.5), corner=(20, 10), clip=True)
    data = labelled_images(tmp_path, [(300, 200)], [(30, 30, 60, 60), (50, 40, 90, 80), (0, 0, 20, 20)], framing)
    half = cv2.resize(picture(300, 200), (150, 100), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(data.pixels[0].astype(int), half[10 : 10 + HEIGHT, 20 : 20 + WIDTH], atol=6)
    # x / 2 - 20, y / 2 - 10, cut at zero; the last box lies outside.
    np.testing.assert_allclose(data.objects[0].boxes, [[0, 5, 10, 20], [5, 10, 25, 30]], atol=1e-4)


def slow_cut(box, smallest):
    x1, y1, x2, y2 = box
    if x1 >= WIDTH or x2 <= 0 or y1 >= HEIGHT or y2 <= 0:
        return None
    cut = [max(x1, 0), max(y1, 0), min(x2, WIDTH), min(y2, HEIGHT)]
    if cut[2] - cut[0] < smallest[0] or cut[3] - cut[1] < smallest[1]:
        return None
    return cut


edges = st.floats(-40, 140, width=32)


@given(st.lists(st.tuples(edges, edges, edges, edges), max_size=6), st.sampled_from([(0.0, 0.0), (3.0, 5.0)]))
def test_boxes_are_cut_to_the_input_and_dropped_outside(corners, smallest):
    boxes = [[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in corners]
    array = np.array(boxes, np.float32).reshape(-1, 4)
    objects = Annotations(array, np.arange(len(boxes)), array)
    result = Framing(clip=True, smallest=smallest).cut(objects, GEOMETRY)
    expected = [(index, cut) for index, box in enumerate(boxes) if (cut := slow_cut(box, smallest))]
    assert result.class_ids.tolist() == [index for index, _ in expected]
    assert result.boxes.tolist() == result.masked.tolist() == [cut for _, cut in expected]
    assert Framing(smallest=smallest).cut(objects, GEOMETRY) is objects


def test_a_missing_or_broken_image_is_named(tmp_path):
    frame = Frame("gone", 8, 8, [], np.zeros((0, 4), np.float32))
    with pytest.raises(UserError, match=r"gone\.png"):
        LabelledImages([frame], [tmp_path / "gone.png"], MAPPING, GEOMETRY)
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UserError, match=r"cut\.png"):
        LabelledImages([frame], [tmp_path / "cut.png"], MAPPING, GEOMETRY)


@pytest.mark.parametrize("size", [(WIDTH * 2, HEIGHT), (WIDTH // 2, HEIGHT)])
def test_an_image_of_another_size_than_its_record_says_is_refused(tmp_path, size):
    file = tmp_path / "other.png"
    cv2.imwrite(str(file), picture(*size))
    frame = Frame("other", WIDTH, HEIGHT, [], np.zeros((0, 4), np.float32))
    expected = f"other.png: {size[0]}x{size[1]}, its record says {WIDTH}x{HEIGHT}"
    with pytest.raises(UserError, match=expected):
        LabelledImages([frame], [file], MAPPING, GEOMETRY)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_an_image_is_turned_as_the_size_in_its_record_says(tmp_path, suffix):
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, :32] = 255  # bright on the left as it is stored, at the top when it is upright
    file = tmp_path / f"turned{suffix}"
    file.write_bytes(turned(cv2.imencode(suffix, wide)[1].tobytes()))
    assert upright_size(file.read_bytes()) == (32, 64)
    for width, height in ((32, 64), (64, 32)):
        frame = Frame("turned", width, height, [], np.zeros((0, 4), np.float32))
        canvas, _ = LabelledImages([frame], [file], MAPPING, GEOMETRY).stored(0)
        assert canvas[8, 8].mean() > 250
        assert canvas[min(40, height - 2), min(40, width - 2)].mean() < 5
        assert canvas[height - 8, 8].mean() > 250 if width == 64 else canvas[8, width - 8].mean() > 250


def test_what_is_neither_trained_nor_masked_is_counted_by_reason(tmp_path):
    boxes = [(0, 0, 20, 20), (0, 0, 20, 20), (0, 0, 20, 20), (0, 0, 1, 20), (0, 0, 20, 20), (4, 4, 4.5, 30)]
    names = ["face", "car", "car", "face", "dontcare", "car"]
    mapping = LabelMapping({"face": 0}, frozenset({"dontcare"}), 2.0, 3.0)
    data = labelled_images(tmp_path, boxes=boxes, names=names, mapping=mapping)
    assert len(data.objects[0].boxes) == len(data.objects[0].masked) == 1
    assert dict(data.left_out) == {
        'of class "car", which target_class_mapping does not name': 3,
        "smaller than 2 x 3 pixels": 1,
    }


# ---- Batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_device", [False, True])
def test_batches_depend_on_seed_and_epoch_alone(tmp_path, on_device):
    maker = batch_maker(labelled_images(tmp_path, [(WIDTH, HEIGHT)] * 4), on_device=on_device)
    assert maker.steps == 2
    list(maker.epoch(0))
    once, again, later = (list(maker.epoch(epoch)) for epoch in (5, 5, 6))
    for one, other in zip(once, again, strict=True):
        assert_same(one, other)
        if one.resampling:
            np.testing.assert_array_equal(one.resampling.matrices, other.resampling.matrices)
            np.testing.assert_array_equal(one.resampling.colours, other.resampling.colours)
    assert any((one.bbox != other.bbox).any() for one, other in zip(once, later, strict=True))


@pytest.mark.parametrize("uniform", [False, True])
def test_an_epoch_begun_late_is_the_tail_of_the_epoch(tmp_path, uniform):
    data = labelled_images(tmp_path, [(WIDTH, HEIGHT)] * 5, source_ids=[0, 0, 0, 1, 1])
    maker = batch_maker(data, batch_size=2, uniform_sources=uniform)
    whole = list(maker.epoch(3))
    for first in range(maker.steps + 1):
        tail = list(maker.epoch(3, first_step=first))
        assert len(tail) == len(whole) - first
        for one, other in zip(tail, whole[first:], strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("images", [4, 5])
@pytest.mark.parametrize("uniform", [False, True])
def test_two_ranks_together_see_the_joined_batches_of_one_process(tmp_path, images, uniform):
    data = labelled_images(tmp_path, [(WIDTH, HEIGHT)] * images, source_ids=[0] + [1] * (images - 1))
    alone = batch_maker(data, batch_size=4, uniform_sources=uniform)
    ranks = [batch_maker(data, batch_size=2, rank=r, world_size=2, uniform_sources=uniform) for r in (0, 1)]
    assert ranks[0].steps == alone.steps == math.ceil(images / 4)
    for joined, *parts in zip(alone.epoch(1), *(maker.epoch(1) for maker in ranks), strict=True):
        for name in ("images", "coverage", "coverage_norm", "bbox", "mask"):
            together = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(together, getattr(joined, name))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_every_image_is_taken_once_before_any_is_repeated(images, batch_size, world_size, epoch):
    sources = np.zeros(images, np.int64)
    ranks = [EpochOrder(sources, batch_size, 1, rank, world_size) for rank in range(world_size)]
    order = ranks[0].joined(epoch)
    assert sorted(order[:images]) == list(range(images))
    assert order[images:].tolist() == order[: len(order) - images].tolist()
    # Every process has its share of each step.
    shares = np.stack([rank.own(epoch) for rank in ranks], axis=1)
    assert shares.shape == (ranks[0].steps, world_size, batch_size)
    assert shares.flatten().tolist() == order.tolist()
    assert ranks[0].steps == math.ceil(math.ceil(images / batch_size) / world_size)  # as TAO counts


@pytest.mark.parametrize("uniform", [False, True])
def test_order_is_another_one_in_each_epoch_and_the_same_for_the_same_seed(uniform):
    def order(seed, epoch):
        return tuple(EpochOrder(np.arange(40) % 2, 4, seed, uniform_sources=uniform).joined(epoch))

    assert len({order(1, 0), order(1, 1), order(2, 0), tuple(range(40))}) == 4
    assert order(1, 1) == order(1, 1)


def test_uniform_sampling_draws_the_sources_alike_and_each_ones_images_in_turn():
    source_ids = np.array([0] * 3 + [2] * 97)  # the middle source has no frame
    maker = EpochOrder(source_ids, batch_size=10, seed=1, uniform_sources=True)
    orders = np.stack([maker.joined(epoch) for epoch in range(40)])
    assert np.mean(orders < 3) == pytest.approx(0.5, abs=0.03)
    for order in orders:
        small, large = order[order < 3], order[order >= 3]
        assert len(small) > 6
        for begin in range(0, len(small) - 2, 3):
            assert sorted(small[begin : begin + 3]) == [0, 1, 2]
        assert len(set(large)) == len(large)


def test_a_loader_left_early_ends_its_threads(tmp_path):
    maker = batch_maker(labelled_images(tmp_path, [(WIDTH, HEIGHT)] * 4), batch_size=1)
    before = set(threading.enumerate())
    batches = maker.epoch(0)
    next(batches)
    made = set(threading.enumerate()) - before
    assert made
    batches.close()
    for thread in made:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_an_error_in_a_worker_reaches_the_training(tmp_path):
    data = labelled_images(tmp_path)
    data.labels[0] = None  # anything a worker stumbles over
    with pytest.raises(AttributeError):
        next(batch_maker(data).epoch(0))


def test_the_order_of_an_epoch_and_each_of_its_images_draw_from_streams_of_their_own():
    order = EpochOrder(np.zeros(3, np.int64), batch_size=2, seed=7, rank=1, world_size=2)
    assert order.random(0, 0, 1).random() == EpochOrder(np.zeros(3, np.int64), 4, 7).random(0, 0, 3).random()
    places = [(epoch, step, position) for epoch in range(3) for step in range(3) for position in range(2)]
    drawn = {order.random(*place).random() for place in places}
    drawn |= {order._stream(0, epoch).random() for epoch in range(3)}  # what `joined` shuffles with
    drawn |= {np.random.default_rng(seed).random() for seed in (7, (7, 0), (7, 0, 0))}  # filled up with zeros, one
    assert len(drawn) == len(places) + 3 + 1
    # A seed of 33 bits takes two words; its streams are none of a short one's.
    assert EpochOrder(order.source_ids, 2, 7 + (1 << 32)).random(0, 0, 0).random() != order.random(1, 0, 0).random()


# ---- Under open_engine -----------------------------------------------------------------------------------------------

MIXED = [(WIDTH, HEIGHT), (150, 90), (60, 130), (400, 260), (40, 30)]
CROP = RandomCrop(0.7, 2.0, 0.5, 0.5, 0.4, 0.5, 0.4, 0.3, 0.5, 0.2, 0.2, 0.2)


def fitting(fit="letterbox", crop=CROP, **others):
    return Fitting(InputSpec(WIDTH, HEIGHT, fit=fit), crop, **{"largest_zoom": 9.0, **others})


@pytest.mark.parametrize("augmented", [True, False], ids=["training", "validation"])
@pytest.mark.parametrize("fit", ["letterbox", "stretch", "crop"])
def test_what_is_not_augmented_is_the_image_as_the_network_is_served_it(tmp_path, fit, augmented):
    framing = fitting(fit)
    data = labelled_images(tmp_path, MIXED, framing=framing, augmented=augmented)
    batch = batch_maker(data, augmentation=None, batch_size=5).batch(0, 0, np.arange(5))
    for index, (width, height) in enumerate(MIXED):
        stored = cv2.imread(str(tmp_path / f"{index}.png"))
        placed, placement = framing.input.place(stored)
        np.testing.assert_array_equal(data.pixels[index], placed)
        np.testing.assert_array_equal(batch.images[index], placed)
        box = placement.to_input(np.array([8, 8, 40, 40]))
        cut = np.clip(box, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
        expected = [cut] if cut[3] > cut[1] else np.zeros((0, 4))  # outside a crop
        np.testing.assert_allclose(data.objects[index].boxes, expected, atol=1e-3, err_msg=f"{width}x{height}")


def test_images_stay_as_they_are_stored_unless_no_zoom_shows_so_much_of_them(tmp_path):
    data = labelled_images(tmp_path, MIXED, framing=fitting())
    for index, size in enumerate(MIXED):
        image, labels = data.stored(index)
        np.testing.assert_array_equal(image, picture(*size, index))
        assert labels.boxes.tolist() == [[8, 8, 40, 40]]
    # 400x260 fits at 0.24; at a zoom of 2, 0.48 of its resolution are seen.
    data = labelled_images(tmp_path, MIXED, framing=fitting(largest_zoom=2.0))
    sizes = [data.stored(index)[0].shape[1::-1] for index in range(5)]
    assert sizes == [*MIXED[:3], (192, 125), MIXED[4]]
    np.testing.assert_allclose(data.stored(3)[1].boxes, [[3.84, 8 * 125 / 260, 19.2, 40 * 125 / 260]], rtol=1e-5)
    np.testing.assert_allclose(
        data.objects[3].boxes, labelled_images(tmp_path, MIXED, framing=fitting()).objects[3].boxes, atol=0.3
    )


@pytest.mark.parametrize("on_device", [False, True])
def test_crops_too_depend_on_seed_epoch_step_and_place_alone(tmp_path, on_device):
    data = labelled_images(tmp_path, MIXED, framing=fitting())
    alone = batch_maker(data, batch_size=4, on_device=on_device)
    whole = list(alone.epoch(3))
    assert all(batch.images.shape == (4, HEIGHT, WIDTH, 3) and batch.resampling is None for batch in whole)
    for one, other in zip(whole[1:], alone.epoch(3, first_step=1), strict=True):
        assert_same(one, other)
    ranks = [batch_maker(data, batch_size=2, rank=rank, world_size=2) for rank in (0, 1)]
    for joined, *parts in zip(whole, *(maker.epoch(3) for maker in ranks), strict=True):
        for name in ("images", "coverage", "coverage_norm", "bbox", "mask"):
            together = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(together, getattr(joined, name))
    assert any((one.images != other.images).any() for one, other in zip(whole, alone.epoch(4), strict=True))


def test_objects_too_small_to_learn_mask_their_cells_and_those_of_no_other(tmp_path):
    # Fitted into 96x64, the second face is 5 pixels high; the third one is as small, beside the first.
    boxes = [(16, 16, 96, 96), (156, 100, 161, 110), (98, 40, 108, 50)]
    data = labelled_images(tmp_path, [(192, 128)], boxes, fitting(crop=None, smallest=(0.0, 8.0)))
    for maker in (batch_maker(data, augmentation=None), batch_maker(data, augmentation=AugmentSettings())):
        batch = maker.batch(0, 0, np.zeros(1, np.int64))
        covered = batch.coverage[0, 0] > 0
        assert covered[1:3, 1:3].all()
        assert (batch.mask[0, 0][covered] == 1).all()
        assert batch.mask[0, 0, 3, 4] == batch.mask[0, 0, 3, 5] == 0  # from 78 to 80.5 across
        assert not covered[3, 4]
        assert (batch.mask[0, 0] == 0).sum() <= 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 90), st.floats(0, 60), st.floats(0.1, 5), st.floats(0.1, 3)), max_size=3))
def test_every_cell_that_a_region_touches_is_masked(regions):
    boxes = np.array([(x, y, x + width, y + height) for x, y, width, height in regions], np.float32).reshape(-1, 4)
    touched = touched_cells(boxes, GEOMETRY)
    for row in range(GEOMETRY.rows):
        for column in range(GEOMETRY.columns):
            x, y = column * 16, row * 16
            expected = any(x1 < x + 16 and x2 > x and y1 < y + 16 and y2 > y for x1, y1, x2, y2 in boxes)
            assert touched[row, column] == expected
    # TAO's rule is part of it, and masks nothing where a region lies between its sample points.
    assert not (covered_cells(boxes, GEOMETRY) & ~touched).any()


def test_taos_rule_masks_nothing_for_six_in_ten_regions_of_two_pixels():
    corners = np.random.default_rng(0).uniform((0, 0), (90, 60), (2000, 2))
    boxes = np.hstack([corners, corners + 2]).astype(np.float32)
    missed = np.mean([not covered_cells(box[None], GEOMETRY).any() for box in boxes])
    assert missed == pytest.approx(0.6, abs=0.1)
    assert all(touched_cells(box[None], GEOMETRY).any() for box in boxes)


# ---- On the device ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", [FULL, AugmentSettings(0.5, 0.7, 1.4, 5, 5, forward=True)])
@pytest.mark.parametrize(
    "framing",
    [Framing(), Framing(scale=(0.8, 0.9), corner=(7, 3), clip=True), Framing(clip=True, border=0.0)],
    ids=["plain", "cropped", "black"],
)
def test_the_device_path_gives_the_batches_of_the_opencv_path(tmp_path, augmentation, framing):
    data = labelled_images(tmp_path, [(WIDTH, HEIGHT), (130, 90)] * 2, framing=framing)
    here = batch_maker(data, augmentation=augmentation)
    there = batch_maker(data, augmentation=augmentation, on_device=True)
    assert there.workers >= 1
    for one, other in zip(here.epoch(0), there.epoch(0), strict=True):
        assert other.resampling is not None
        ours, theirs = one.to_tensors(torch.device("cpu")), other.to_tensors(torch.device("cpu"))
        assert theirs.images.shape == (3, 3, HEIGHT, WIDTH)
        assert theirs.images.is_contiguous(memory_format=torch.channels_last)
        difference = (ours.images - theirs.images).abs()
        assert difference.mean() < 0.006
        assert difference.flatten().quantile(0.98) < 0.04
        for name in ("coverage", "coverage_norm", "bbox", "mask"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=0)


def test_without_augmentation_there_is_nothing_to_resample(tmp_path):
    data = labelled_images(tmp_path, [(WIDTH, HEIGHT)] * 3)
    batch = next(batch_maker(data, augmentation=None, on_device=True).epoch(0))
    assert batch.resampling is None
    images = batch.to_tensors(torch.device("cpu")).images
    torch.testing.assert_close(images, torch.from_numpy(batch.images).permute(0, 3, 1, 2) / 255)


# ---- Masks and weights -----------------------------------------------------------------------------------------------


def slow_covered(boxes):
    covered = np.zeros((GEOMETRY.rows, GEOMETRY.columns), bool)
    for row in range(GEOMETRY.rows):
        for column in range(GEOMETRY.columns):
            for j in range(5):
                for i in range(5):
                    x, y = (column + (i + 0.5) / 5) * 16, (row + (j + 0.5) / 5) * 16
                    covered[row, column] |= any(x1 < x < x2 and y1 < y < y2 for x1, y1, x2, y2 in boxes)
    return covered


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(edges, edges, edges, edges), max_size=3))
def test_a_masked_region_is_the_cells_that_its_box_touches(boxes):
    array = np.array(boxes, np.float32).reshape(-1, 4)
    np.testing.assert_array_equal(covered_cells(array, GEOMETRY), slow_covered(boxes))


def test_regions_that_nobody_cares_for_are_masked_but_objects_are_not(tmp_path):
    data = labelled_images(tmp_path, boxes=[(8, 8, 40, 40), (0, 0, 90, 60)], names=["face", "dontcare"])
    batch = next(batch_maker(data, augmentation=None, batch_size=1).epoch(0))
    assert (batch.mask[0, 0][batch.coverage[0, 0] > 0] == 1).all()
    assert (batch.mask[0, 0][batch.coverage[0, 0] == 0] == 0).all()
    spared = next(batch_maker(data, augmentation=None, batch_size=1, mask_spares_objects=False).epoch(0))
    assert not spared.mask.any()


def test_a_sources_weight_multiplies_the_loss_of_its_frames_masked_or_not(tmp_path):
    data = labelled_images(
        tmp_path, [(WIDTH, HEIGHT)] * 2, [(8, 8, 40, 40), (50, 0, 96, 64)], names=["face", "dontcare"], weights=[1, 2.5]
    )
    maker = batch_maker(data, augmentation=None, batch_size=2, mask_multiplier=0.5)
    batch = next(maker.epoch(0))
    found = {tuple(np.unique(batch.mask[position])) for position in (0, 1)}
    assert found == {(0.5, 1.0), (1.25, 2.5)}


# ---- What the data are -----------------------------------------------------------------------------------------------


def test_the_digest_of_images_tells_their_names_sizes_classes_and_boxes(tmp_path):
    def digest(**changes):
        sizes = changes.pop("sizes", [(WIDTH, HEIGHT)] * 2)
        return labelled_images(tmp_path, sizes, **changes).digest

    ours = digest()
    assert digest() == ours
    others = [
        digest(sizes=[(WIDTH, HEIGHT)]),
        digest(sizes=[(WIDTH, HEIGHT), (WIDTH + 1, HEIGHT)]),
        digest(boxes=[(8, 8, 40, 41)]),
        digest(names=["dontcare"]),
        digest(boxes=[], names=[]),
    ]
    assert len({ours, *others}) == 6


def test_a_canvas_much_larger_than_the_input_is_sampled_here_and_not_on_the_device(tmp_path):
    data = labelled_images(tmp_path, [(WIDTH, HEIGHT), (2 * WIDTH, 2 * HEIGHT)])
    batch = next(batch_maker(data, batch_size=2, on_device=True).epoch(0))
    assert batch.images.shape == (2, 2 * HEIGHT, 2 * WIDTH, 3)
    assert batch.resampling is not None
    data = labelled_images(tmp_path, [(WIDTH, HEIGHT), (2 * WIDTH + 1, 2 * HEIGHT)])
    there = batch_maker(data, batch_size=2, on_device=True)
    batch = next(there.epoch(0))
    assert batch.images.shape == (2, HEIGHT, WIDTH, 3)
    assert batch.resampling is None
    assert_same(batch, next(batch_maker(data, batch_size=2).epoch(0)))


# ---- From the spec ---------------------------------------------------------------------------------------------------

SPEC = """
random_seed: 3
dataset_config { image_extension: "png" target_class_mapping { key: "Face" value: "face" } %s }
augmentation_config {
  preprocessing { output_image_width: 96 output_image_height: 64 output_image_channel: 3 %s }
  spatial_augmentation { hflip_probability: 0.5 vflip_probability: 0.25 rotate_rad_max: 0.2 %s }
}
cost_function_config { target_classes { name: "face" } }
model_config { objective_set { bbox { scale: 35 offset: 0.5 } } }
training_config { batch_size_per_gpu: 2 }
bbox_rasterizer_config { deadzone_radius: 0.67 target_class_config {
  key: "face" value { cov_center_x: 0.5 cov_center_y: 0.5 cov_radius_x: 1 cov_radius_y: 1 bbox_min_radius: 1 } } }
"""


def experiment(data="", preprocessing="", spatial=""):
    return text_format.Parse(SPEC % (data, preprocessing, spatial), spec_pb2.Experiment())


def source(folder, name, count, labels=("face",), fold=None):
    """Writes records and images; returns the two fields of a data source."""
    images = folder / name
    images.mkdir()
    frames = []
    for index in range(count):
        cv2.imwrite(str(images / f"{index}.png"), picture(WIDTH, HEIGHT, index)[..., ::-1])
        boxes = np.array([[4, 4, 40, 40]] * len(labels), np.float32)
        frames.append(frame_to_example(Frame(str(index), WIDTH, HEIGHT, list(labels), boxes)))
    write_records(folder / f"{name}-fold-000-of-002", frames[: fold or 0])
    write_records(folder / f"{name}-fold-001-of-002", frames[fold or 0 :])
    return f'tfrecords_path: "{folder}/{name}-fold*" image_directory_path: "{images}"'


def test_sources_are_joined_with_their_weights(tmp_path):
    fields = (
        f"data_sources {{ {source(tmp_path, 'a', 2)} }} data_sources {{ {source(tmp_path, 'b', 3)} source_weight: 4 }}"
    )
    spec = experiment(fields)
    images = sources.training_images(spec)
    assert images.weights.tolist() == [1, 1, 4, 4, 4]
    assert images.source_ids.tolist() == [0, 0, 1, 1, 1]
    maker = sources.batch_maker(spec, images, rank=1, world_size=2)
    assert (maker.rank, maker.world_size, maker.steps, maker.uniform_sources) == (1, 2, 2, False)
    uniform = experiment(fields + " sampling_mode: UNIFORM")
    assert sources.batch_maker(uniform, images).uniform_sources


def test_the_validation_fold_is_left_out_of_training(tmp_path):
    spec = experiment(f"data_sources {{ {source(tmp_path, 'a', 5, fold=2)} }} validation_fold: 0")
    assert len(sources.training_images(spec)) == 3
    assert len(sources.validation_images(spec)) == 2
    with pytest.raises(UserError, match="names no validation data"):
        sources.validation_images(experiment())


def test_unmapped_objects_are_named_with_their_number(tmp_path, capsys):
    data = source(tmp_path, "a", 3, labels=("face", "car"))
    images = sources.training_images(experiment(f"data_sources {{ {data} }}"))
    assert [len(objects.boxes) for objects in images.objects] == [1, 1, 1]
    assert 'Training data: 3 objects left out: of class "car"' in capsys.readouterr().out


def test_records_without_a_frame_are_refused(tmp_path):
    with pytest.raises(UserError, match="hold no frame"):
        sources.training_images(experiment(f"data_sources {{ {source(tmp_path, 'a', 0)} }}"))


def test_a_mapping_that_trains_nothing_is_refused():
    spec = spec_pb2.Experiment()
    spec.cost_function_config.target_classes.add(name="face")
    spec.dataset_config.target_class_mapping["Person"] = "person"
    with pytest.raises(UserError, match="learn nothing"):
        sources.label_mapping(spec)


def test_tao5_ignores_vertical_flips_and_reads_rotations_as_degrees():
    ours, theirs = (sources.augmentation(experiment(), tao5=tao5) for tao5 in (False, True))
    assert (ours.vflip_probability, theirs.vflip_probability) == (0.25, 0.0)
    assert ours.rotate_max == pytest.approx(0.2)
    assert theirs.rotate_max == pytest.approx(0.2 * math.pi / 180)
    forward = sources.augmentation(experiment("dataloader_mode: DEFAULT"), tao5=True)
    assert forward.rotate_max == pytest.approx(0.2)


@pytest.mark.parametrize("mode", ["LEGACY", "DEFAULT"])
def test_the_default_loader_composes_forward_on_black_and_cuts_boxes(mode):
    spec = experiment(f"dataloader_mode: {mode}", "min_bbox_width: 5 min_bbox_height: 6")
    assert sources.augmentation(spec).forward
    framing = sources.framing(spec)
    assert (framing.border, framing.clip, framing.smallest) == (0.0, True, (5.0, 6.0))
    mapping = sources.label_mapping(spec)
    assert (mapping.min_width, mapping.min_height) == (0.0, 0.0)


def test_multisource_drops_small_boxes_by_the_spec_and_with_tao5_by_one_pixel():
    spec = experiment(preprocessing="min_bbox_width: 5")
    framing = sources.framing(spec)
    assert (framing.border, framing.clip, framing.smallest) == (0.5, False, (0.0, 0.0))
    for tao5, expected in ((False, (5.0, 1.0)), (True, (1.0, 1.0))):
        mapping = sources.label_mapping(spec, tao5=tao5)
        assert (mapping.min_width, mapping.min_height) == expected


def test_a_crop_cuts_boxes_in_either_loader():
    crop = "crop_left: 10 crop_top: 20 crop_right: 106 crop_bottom: 84 scale_width: 0.5"
    for mode in ("MULTISOURCE", "DEFAULT"):
        framing = sources.framing(experiment(f"dataloader_mode: {mode}", crop))
        assert (framing.corner, framing.scale, framing.clip) == ((10, 20), (0.5, 1.0), True)


# ---- open_engine in a spec -------------------------------------------------------------------------------------------

OPEN = """
open_engine {
  fit: CROP resampling: CUBIC
  random_crop {
    zoom_min: 0.8 zoom_max: 2.5 object_probability: 0.5 hflip_probability: 0.5 rotate_rad_max: 0.35
    rotate_probability: 0.25 min_object_height: 8 min_visible_share: 0.4 mosaic_probability: 0.1
    copy_paste_probability: 0.2 blur_probability: 0.05 jpeg_probability: 0.06 grey_probability: 0.07 view_share: 0.7
  }
}
"""


def test_a_specs_random_crop_reaches_the_loader_whole():
    spec = experiment(preprocessing="min_bbox_width: 3 min_bbox_height: 4", spatial="zoom_min: 0.5 zoom_max: 1.5")
    spec.MergeFrom(text_format.Parse(OPEN, spec_pb2.Experiment()))
    framing = sources.fitting(spec)
    assert framing.input == InputSpec(WIDTH, HEIGHT, fit="crop", resampling="cubic")
    expected = RandomCrop(0.8, 2.5, 0.5, 0.5, 0.35, 0.25, 0.4, 0.1, 0.2, 0.05, 0.06, 0.07)
    assert framing.crop.size == (64, 48)  # whole cells of 16 pixels
    for name in set(RandomCrop.__slots__) - {"size"}:
        assert getattr(framing.crop, name) == pytest.approx(getattr(expected, name)), name
    assert framing.smallest == (3.0, 8.0)
    assert framing.largest_zoom == pytest.approx(2.5 * 2)  # TAO's MULTISOURCE shows twice as much at a zoom of a half
    spec.dataset_config.dataloader_mode = spec_pb2.DatasetConfig.DEFAULT
    assert sources.fitting(spec).largest_zoom == pytest.approx(2.5 * 1.5)
    spec.open_engine.ClearField("random_crop")
    assert sources.fitting(spec).crop is None
    assert sources.fitting(spec).smallest == (3.0, 4.0)


def test_a_spec_with_open_engine_takes_images_of_any_size_and_either_kind(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    sizes, frames = [(200, 120), (90, 140)], []
    for index, (width, height) in enumerate(sizes):
        cv2.imwrite(str(folder / f"{index}.{'png' if index else 'jpg'}"), picture(width, height, index)[..., ::-1])
        boxes = np.array([[4, 4, 40, 40], [50, 50, 51, 50.5]], np.float32)
        frames.append(frame_to_example(Frame(str(index), width, height, ["face", "face"], boxes)))
    write_records(tmp_path / "r-fold-000-of-001", frames)
    data = f'data_sources {{ tfrecords_path: "{tmp_path}/r-fold*" image_directory_path: "{folder}" }}'
    spec = experiment(data + " validation_data_source {" + data.partition("{")[2])
    spec.MergeFrom(text_format.Parse(OPEN.replace("CROP", "LETTERBOX"), spec_pb2.Experiment()))
    training, validation = sources.training_images(spec), sources.validation_images(spec)
    assert [training.stored(index)[0].shape[1::-1] for index in range(2)] == sizes
    np.testing.assert_array_equal(training.pixels, validation.pixels)
    maker = sources.batch_maker(spec, training)
    assert maker.mask_spares_objects
    batch = next(maker.epoch(0))
    assert batch.images.shape == (2, 48, 64, 3)
    assert batch.coverage.shape == (2, 1, 3, 4)
    assert batch.input == sources.fitting(spec).input
    spec.training_config.num_epochs = 4
    spec.open_engine.random_crop.view_epochs = 0.75
    grown = sources.batch_maker(spec, sources.training_images(spec))
    whole, small = (2, HEIGHT, WIDTH, 3), (2, 48, 64, 3)
    assert [next(grown.epoch(epoch)).images.shape for epoch in range(4)] == [small, small, small, whole]
    assert next(grown.epoch(3)).coverage.shape == (2, 1, grown.geometry.rows, grown.geometry.columns)
    spec.open_engine.random_crop.ClearField("view_share")
    assert next(sources.batch_maker(spec, sources.training_images(spec)).epoch(0)).images.shape == (2, HEIGHT, WIDTH, 3)


def test_images_with_no_label_left_to_learn_from_are_refused(tmp_path):
    data = source(tmp_path, "a", 2, labels=("face", "car"))
    with pytest.raises(UserError, match=r"no label is left .*: 2 of class \"car\".*; 2 smaller than 50 x 50 pixels"):
        sources.training_images(experiment(f"data_sources {{ {data} }}", "min_bbox_width: 50 min_bbox_height: 50"))
