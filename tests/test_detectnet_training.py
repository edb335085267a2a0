"""Losses, augmentation and the training loop of the engine."""

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.detectnet_v2 import augment, experiment, spec_pb2
from components.detectnet_v2.augment import AugmentSettings
from components.detectnet_v2.dataset import BatchMaker, LabelledImages, LabelMapping
from components.detectnet_v2.losses import ClassCost, ObjectiveWeights, bbox_cost, coverage_cost
from components.detectnet_v2.records import Frame
from components.grid.encode import CoverageShape
from components.grid.geometry import GridGeometry
from components.step import UserError

WIDTH, HEIGHT = 96, 64


def slow_coverage_cost(p, t, f):
    total = 0.0
    for value, target in zip(p.flatten().tolist(), t.flatten().tolist(), strict=True):
        entropy = -(target * math.log(value + 1e-5) + (1 - target) * math.log(1 - value + 1e-5))
        total += entropy * (f if target > 0.5 else 1 - f)
    return total / p.numel()


def test_costs_equal_the_slow_reference():
    random = torch.Generator().manual_seed(0)
    p, t = (torch.rand(2, 2, 3, 4, generator=random) for _ in range(2))
    mask = torch.ones(2, 2, 3, 4)
    foreground = torch.tensor([0.05, 0.6])
    cost = coverage_cost(p, t, foreground, mask)
    for class_id in (0, 1):
        expected = slow_coverage_cost(p[:, class_id], t[:, class_id], float(foreground[class_id]))
        assert float(cost[class_id]) == pytest.approx(expected, rel=1e-5)
    predicted, target = (torch.randn(2, 8, 3, 4, generator=random) for _ in range(2))
    norm = torch.rand(2, 2, 3, 4, generator=random)
    cost = bbox_cost(predicted, target.view(2, 2, 4, 3, 4), norm, mask)
    for class_id in (0, 1):
        total = 0.0
        for n in range(2):
            for edge in range(4):
                difference = (predicted[n, 4 * class_id + edge] - target[n, 4 * class_id + edge]).abs()
                total += float((difference * norm[n, class_id]).sum())
        assert float(cost[class_id]) == pytest.approx(total / (2 * 4 * 3 * 4), rel=1e-5)


def test_masked_cells_cost_nothing():
    p, t = torch.full((1, 1, 2, 2), 0.9), torch.zeros(1, 1, 2, 2)
    mask = torch.zeros(1, 1, 2, 2)
    assert float(coverage_cost(p, t, torch.tensor([0.5]), mask).sum()) == 0
    assert float(bbox_cost(torch.ones(1, 4, 2, 2), torch.zeros(1, 1, 4, 2, 2), p, mask).sum()) == 0


def test_auto_weighting_gives_each_objective_its_share_of_the_cost():
    weights = ObjectiveWeights([ClassCost(1, 0.5, (1, 10), (1, 10))], True, 0.0001, 0.9999)
    np.testing.assert_allclose(weights.weights, [[1 / 11, 10 / 11]])
    for cov, bbox in ((0.03, 0.002), (0.01, 0.004)):
        total = weights.total(torch.tensor([cov]), torch.tensor([bbox]))
        assert float(total) == pytest.approx(cov / 11 + bbox * 10 / 11)
    weights.end_epoch()
    raw = 1 / 0.04, 10 / 0.006
    np.testing.assert_allclose(weights.weights, [[raw[0] / sum(raw), raw[1] / sum(raw)]], rtol=1e-5)
    weights.end_epoch()  # an epoch without cost changes nothing
    np.testing.assert_allclose(weights.weights, [[raw[0] / sum(raw), raw[1] / sum(raw)]], rtol=1e-5)


def test_auto_weighting_respects_its_limits():
    weights = ObjectiveWeights([ClassCost(1, 0.5, (1, 1), (1, 1e9))], True, 0.01, 0.9)
    weights.total(torch.tensor([1.0]), torch.tensor([1.0]))
    weights.end_epoch()
    np.testing.assert_allclose(weights.weights, [[0.01, 0.9]])


FULL = AugmentSettings(0.5, 0.7, 1.8, 12, 12, 0.1, 1.0, 0.1, 25, 0.2, 0.1, 0.5)


def test_boxes_stay_on_what_they_enclose():
    """A bright block is warped with the image; its box must enclose the bright pixels."""
    box = np.array([[30, 20, 60, 44]], np.float32)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[20:44, 30:60] = 255
    settings = AugmentSettings(0.5, 0.8, 1.4, 6, 6)
    for seed in range(40):
        matrix = augment.draw_spatial(settings, WIDTH, HEIGHT, np.random.default_rng(seed))
        warped = augment.warp_image(image, matrix)
        x1, y1, x2, y2 = augment.warp_boxes(box, matrix)[0]
        rows, columns = np.where(warped[..., 0] > 200)
        assert abs(columns.min() - max(x1, 0)) <= 1.5
        assert abs(columns.max() + 1 - min(x2, WIDTH)) <= 1.5
        assert abs(rows.min() - max(y1, 0)) <= 1.5
        assert abs(rows.max() + 1 - min(y2, HEIGHT)) <= 1.5


def test_zoom_above_one_shows_more_than_the_image():
    settings = AugmentSettings(zoom_min=2.0, zoom_max=2.0)
    matrix = augment.draw_spatial(settings, WIDTH, HEIGHT, np.random.default_rng(0))
    box = augment.warp_boxes(np.array([[0, 0, WIDTH, HEIGHT]], np.float32), matrix)[0]
    np.testing.assert_allclose([box[2] - box[0], box[3] - box[1]], [WIDTH / 2, HEIGHT / 2], rtol=1e-4)
    assert box.min() >= -1e-3


def test_neutral_colour_settings_change_nothing():
    colour = augment.draw_colour(AugmentSettings(), np.random.default_rng(0))
    image = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    # TAO's basis is rounded to three decimals, so that white comes out a quarter of a per cent off.
    assert np.abs(augment.recolour(image, colour).astype(int) - image).max() <= 1


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_colour_is_brightness_then_hue_and_saturation_then_contrast(seed):
    settings = AugmentSettings(brightness_stddev=0.1, hue_rotation_max=25, saturation_shift_max=0.2,
                               contrast_scale_max=0.2, contrast_center=0.4)  # fmt: skip
    drawn, again = np.random.default_rng(seed), np.random.default_rng(seed)
    colour = augment.draw_colour(settings, drawn)
    offset = augment._truncated_normal(again) * 0.1
    hue = math.radians(augment._truncated_normal(again) * 12.5)
    saturation = 1 + again.uniform(-0.2, 0.2)
    contrast = augment._truncated_normal(again) * 0.1
    pixel = np.array([0.2, 0.5, 0.7])
    basis = augment._GREY + saturation * (math.cos(hue) * augment._COSINE + math.sin(hue) * augment._SINE)
    expected = (1 + contrast) * ((pixel + offset) @ basis) - contrast * 0.4
    np.testing.assert_allclose(np.append(pixel, 1) @ colour, expected, rtol=1e-9)


def labelled_images(folder, sizes=((WIDTH, HEIGHT),), boxes=((8, 8, 40, 40),), stretch=False):
    frames, files = [], []
    for index, (width, height) in enumerate(sizes):
        file = folder / f"{index}.png"
        cv2.imwrite(str(file), np.full((height, width, 3), (10, 20, 30), np.uint8))
        names = ["face"] * len(boxes)
        frames.append(Frame(id=str(index), width=width, height=height, class_names=names,
                            boxes=np.array(boxes, np.float32).reshape(-1, 4),
                            truncation=np.zeros(len(boxes), np.float32),
                            occlusion=np.zeros(len(boxes), np.int64)))  # fmt: skip
        files.append(file)
    mapping = LabelMapping({"face": 0}, frozenset({"dontcare"}))
    return LabelledImages(frames, files, mapping, GridGeometry(WIDTH, HEIGHT), stretch)


def test_images_of_another_size_are_padded_or_stretched(tmp_path):
    small = [(WIDTH // 2, HEIGHT // 2)]
    padded = labelled_images(tmp_path, small)
    assert padded.pixels[0, 0, 0].tolist() == [30, 20, 10]  # RGB
    assert padded.pixels[0, -1, -1].tolist() == [0, 0, 0]
    assert padded.objects[0].boxes.tolist() == [[8, 8, 40, 40]]
    stretched = labelled_images(tmp_path, small, stretch=True)
    assert stretched.pixels[0, -1, -1].tolist() == [30, 20, 10]
    assert stretched.objects[0].boxes.tolist() == [[16, 16, 80, 80]]


def test_a_missing_or_broken_image_is_named(tmp_path):
    frame = Frame(id="gone", width=8, height=8, class_names=[], boxes=np.zeros((0, 4), np.float32),
                  truncation=np.zeros(0, np.float32), occlusion=np.zeros(0, np.int64))  # fmt: skip
    mapping, geometry = LabelMapping({"face": 0}, frozenset()), GridGeometry(WIDTH, HEIGHT)
    with pytest.raises(UserError, match=r"gone\.png"):
        LabelledImages([frame], [tmp_path / "gone.png"], mapping, geometry, False)
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UserError, match=r"cut\.png"):
        LabelledImages([frame], [tmp_path / "cut.png"], mapping, geometry, False)


def batch_maker(data, **changes):
    values = {
        "data": data, "geometry": GridGeometry(WIDTH, HEIGHT), "shapes": (CoverageShape(),), "deadzone_radius": 0.67,
        "augmentation": FULL, "mask_multiplier": 0.0, "mask_spares_objects": True, "batch_size": 3, "seed": 7,
    }  # fmt: skip
    return BatchMaker(**{**values, **changes})


def test_batches_depend_on_seed_and_epoch_alone(tmp_path):
    maker = batch_maker(labelled_images(tmp_path, [(WIDTH, HEIGHT)] * 4))
    assert maker.steps == 2
    list(maker.epoch(0))
    once, again, later = (list(maker.epoch(epoch)) for epoch in (5, 5, 6))
    for one, other in zip(once, again, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.bbox, other.bbox)
    assert any((one.images != other.images).any() for one, other in zip(once, later, strict=True))


def test_regions_that_nobody_cares_for_are_masked_but_objects_are_not(tmp_path):
    data = labelled_images(tmp_path)
    objects = data.objects[0]
    region = np.array([[0, 0, 90, 60]], np.float32)
    data.objects[0] = type(objects)(objects.boxes, objects.class_ids, region)
    batch = next(batch_maker(data, augmentation=None, batch_size=1).epoch(0))
    assert (batch.mask[0, 0][batch.coverage[0, 0] > 0] == 1).all()
    assert (batch.mask[0, 0] == 0).any()
    spared = next(batch_maker(data, augmentation=None, batch_size=1, mask_spares_objects=False).epoch(0))
    assert spared.mask.sum() < batch.mask.sum()


def test_a_mapping_that_trains_nothing_is_refused():
    spec = spec_pb2.Experiment()
    spec.cost_function_config.target_classes.add(name="face")
    spec.dataset_config.target_class_mapping["Person"] = "person"
    with pytest.raises(UserError, match="learn nothing"):
        experiment.label_mapping(spec)
