"""Grid targets and decoding against slow versions written straight from the formulas, one sample point at a time."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from components.decode.grid.decode import decode
from components.decode.grid.encode import CoverageShape, encode
from components.decode.grid.geometry import GridGeometry

GEOMETRY = GridGeometry(160, 96)
NOBODY = -1


def random_shape(random):
    return CoverageShape(
        center_x=random.choice([0.0, 0.3, 0.5, 0.7]),
        center_y=random.choice([0.4, 0.5, 1.0]),
        radius_x=random.choice([0.0, 0.2, 0.4, 0.75, 1.0]),
        radius_y=random.uniform(0.2, 1.0),
        min_radius=random.choice([0.0, 0.25, 0.5, 1.0, 3.0]),
    )


def random_boxes(random):
    """Boxes inside, across and outside the frame, tiny and huge; half of the lists lie on even pixels."""
    count = random.integers(0, 9)
    corner = random.uniform((-60, -60), (170, 110), (count, 2))
    size = np.exp(random.uniform(0, np.log(130), (count, 2)))
    if random.random() < 0.5:
        corner, size = 2 * np.round(corner / 2), 16 * np.ceil(size / 16)
    size[random.random(count) < 0.05] = random.choice([0.01, 5000])
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def slow_encode(boxes, class_ids, shapes, geometry, deadzone):
    """Returns coverage, coverage_norm, bbox and which box owns a cell, all [C, ..., rows, columns]."""
    s, rows, columns = geometry.stride, geometry.rows, geometry.columns
    cov, norm = np.zeros((2, len(shapes), rows, columns))
    edges = np.zeros((len(shapes), 4, rows, columns))
    owner = np.full(cov.shape, NOBODY)
    for k in sorted(range(len(boxes)), key=lambda k: boxes[k][3]):
        plane, shape = class_ids[k], shapes[class_ids[k]]
        px1, py1, px2, py2 = (float(v) for v in boxes[k])
        x1, y1, x2, y2 = px1 / s, py1 / s, px2 / s, py2 / s
        cx, cy = x1 + shape.center_x * (x2 - x1), y1 + shape.center_y * (y2 - y1)
        sx = cx - x1 if shape.center_x < 0.5 else x2 - cx
        sy = cy - y1 if shape.center_y < 0.5 else y2 - cy
        csx, csy = max(shape.radius_x * sx, 0.1), max(shape.radius_y * sy, 0.1)
        if csx < shape.min_radius:
            csy, csx = shape.min_radius * csy / csx, shape.min_radius
        if csy < shape.min_radius:
            csx, csy = shape.min_radius * csx / csy, shape.min_radius
        dsx = max((1 - deadzone) * csx + deadzone * sx, csx)
        dsy = max((1 - deadzone) * csy + deadzone * sy, csy)
        for row in range(rows):
            for column in range(columns):
                c = a = 0.0
                for j in range(4):
                    for i in range(4):
                        fx, fy = column + (i + 0.5) / 4, row + (j + 0.5) / 4
                        c += (((fx - cx) / csx) ** 2 + ((fy - cy) / csy) ** 2 < 1) / 16
                        a += (((fx - cx) / dsx) ** 2 + ((fy - cy) / dsy) ** 2 < 1) / 16
                cell = plane, row, column
                if a >= cov[cell] and a > 0:
                    cov[cell] = norm[cell] = 0
                    edges[plane, :, row, column] = 0
                    owner[cell] = NOBODY
                if c >= cov[cell] and c > 0:
                    gx, gy = column * s + geometry.offset, row * s + geometry.offset
                    cov[cell] = c
                    norm[cell] = c / max(4 * csx * csy, 1)
                    edges[plane, :, row, column] = [
                        v / geometry.scale for v in (gx - px1, gy - py1, px2 - gx, py2 - gy)
                    ]
                    owner[cell] = k
    return cov, norm, edges, owner


def test_targets_equal_the_slow_reference_and_decode_to_the_owning_box():
    random = np.random.default_rng(0)
    frame = np.array([GEOMETRY.width, GEOMETRY.height] * 2)
    for _ in range(100):
        boxes, shapes = random_boxes(random), [random_shape(random), random_shape(random)]
        class_ids, deadzone = random.integers(0, 2, len(boxes)), random.choice([0.0, 0.5, 0.67, 1.0])
        targets = encode(boxes, class_ids, shapes, GEOMETRY, deadzone)
        cov, norm, edges, owner = slow_encode(boxes, class_ids, shapes, GEOMETRY, deadzone)
        np.testing.assert_array_equal(targets.coverage, cov)
        np.testing.assert_allclose(targets.coverage_norm, norm, rtol=1e-6)
        np.testing.assert_allclose(targets.bbox, edges, rtol=1e-5, atol=1e-5)
        assert all(plane.dtype == np.float32 for plane in (targets.coverage, targets.coverage_norm, targets.bbox))
        for plane in range(2):
            owned = owner[plane] != NOBODY
            decoded = decode(targets.bbox[plane], GEOMETRY)[owned]
            assert np.abs(decoded - np.clip(boxes[owner[plane][owned]], 0, frame)).max(initial=0) < 0.5


def test_a_sample_point_on_the_ellipse_is_outside():
    # The circle of one cell's radius around the sample point (2.125, 2.125) runs through (1.125, 2.125) and others.
    targets = encode(np.array([[18, 18, 50, 50]], np.float32), np.zeros(1, np.int64), (CoverageShape(),), GEOMETRY)
    assert targets.coverage[0, 2, 1:4].tolist() == [11 / 16, 15 / 16, 0]


face = st.tuples(st.floats(-40, 150, width=32), st.floats(-40, 90, width=32), st.floats(1, 200), st.floats(1, 150))


@settings(max_examples=300, deadline=None)
@given(face, st.sampled_from([16, 35, 100.0]), st.sampled_from([0.0, 0.5, 8.0]))
@example((0.0, 0.0, 1.0, 1.0), 35, 0.5)
@example((7.5, 7.5, 1.0, 1.0), 35, 0.5)
def test_a_lone_box_decodes_to_itself_within_half_a_pixel_wherever_it_owns_a_cell(face, scale, offset):
    geometry = GridGeometry(160, 96, scale=scale, offset=offset)
    x, y, width, height = face
    box = np.array([[x, y, x + width, y + height]], np.float32)
    targets = encode(box, np.zeros(1, np.int64), (CoverageShape(),), geometry)
    cells = targets.coverage[0] > 0
    decoded = decode(targets.bbox[0], geometry)[cells]
    visible = np.clip(box, 0, [160, 96, 160, 96])
    assert np.abs(decoded - visible).max(initial=0) < 0.5
    center = (box[0, :2] + box[0, 2:]) / 2
    # Half axes of at least one cell reach a sample point of every cell that the centre may lie in.
    if (center > 0).all() and (center < (160, 96)).all():
        assert cells.any()


@pytest.mark.parametrize("size", [0.01, 1.0, 1e6])
def test_tiny_boxes_get_a_cell_and_huge_ones_fill_the_grid(size):
    box = np.array([[80 - size / 2, 48 - size / 2, 80 + size / 2, 48 + size / 2]], np.float32)
    covered = encode(box, np.zeros(1, np.int64), (CoverageShape(),), GEOMETRY).coverage > 0
    assert covered.all() if size > 1000 else 1 <= covered.sum() <= 4


@pytest.mark.parametrize("box", [(-90, 20, -40, 60), (200, 20, 260, 60), (40, -90, 80, -40), (40, 140, 80, 190)])
def test_a_box_outside_the_frame_leaves_no_trace(box):
    targets = encode(np.array([box], np.float32), np.zeros(1, np.int64), (CoverageShape(),), GEOMETRY)
    assert not targets.coverage.any()
    assert not targets.bbox.any()


def test_the_lower_box_lies_on_top_whatever_the_order_of_the_labels():
    boxes = np.array([[10, 10, 90, 60], [30, 20, 100, 70], [60, 5, 130, 80], [0, 0, 150, 95]], np.float32)
    ids, shape = np.zeros(len(boxes), np.int64), (CoverageShape(radius_x=0.5, radius_y=0.5),)
    first = encode(boxes, ids, shape, GEOMETRY, 0.5)
    for order in ([3, 2, 1, 0], [1, 3, 0, 2]):
        other = encode(boxes[order], ids, shape, GEOMETRY, 0.5)
        np.testing.assert_array_equal(other.coverage, first.coverage)
        np.testing.assert_array_equal(other.coverage_norm, first.coverage_norm)
        np.testing.assert_array_equal(other.bbox, first.bbox)


def test_of_equally_low_boxes_the_later_one_lies_on_top():
    boxes = np.array([[16, 16, 80, 80], [20, 20, 84, 80]], np.float32)
    targets = encode(boxes, np.zeros(2, np.int64), (CoverageShape(),), GEOMETRY)
    np.testing.assert_allclose(decode(targets.bbox[0], GEOMETRY)[3, 3], boxes[1])


def test_classes_do_not_touch_each_other():
    boxes = np.array([[16, 16, 80, 80], [20, 20, 84, 84]], np.float32)
    both = encode(boxes, np.array([0, 1]), (CoverageShape(), CoverageShape()), GEOMETRY)
    for class_id in (0, 1):
        alone = encode(boxes[[class_id]], np.array([0]), (CoverageShape(),), GEOMETRY)
        np.testing.assert_array_equal(both.coverage[class_id], alone.coverage[0])
        np.testing.assert_array_equal(both.bbox[class_id], alone.bbox[0])


def test_input_size_that_is_no_multiple_of_the_stride_is_refused():
    with pytest.raises(ValueError, match="not divisible by 16"):
        GridGeometry(736, 146 + 1)


@pytest.mark.parametrize("geometry", [GEOMETRY, GridGeometry(48, 64, scale=20.0, offset=8.0)])
def test_decoding_equals_the_slow_reference(geometry):
    bbox = np.random.default_rng(0).normal(0, 3, (4, geometry.rows, geometry.columns)).astype(np.float32)
    decoded = decode(bbox, geometry)
    for row in range(geometry.rows):
        for column in range(geometry.columns):
            gx, gy = column * 16 + geometry.offset, row * 16 + geometry.offset
            left, top, right, bottom = (float(v) * geometry.scale for v in bbox[:, row, column])
            x1 = min(max(gx - left, 0), geometry.width)
            y1 = min(max(gy - top, 0), geometry.height)
            x2 = min(max(gx + right, x1), geometry.width)
            y2 = min(max(gy + bottom, y1), geometry.height)
            np.testing.assert_allclose(decoded[row, column], (x1, y1, x2, y2), atol=1e-3)
