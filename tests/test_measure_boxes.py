import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.measure.boxes import area, iou, overlap

coordinate = st.floats(-50, 50, allow_nan=False)
box = st.tuples(coordinate, coordinate, coordinate, coordinate)


def slow_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    common = width * height
    size = [max(0.0, c[2] - c[0]) * max(0.0, c[3] - c[1]) for c in (a, b)]
    return common / (size[0] + size[1] - common) if common > 0 else 0.0


@given(st.lists(box, max_size=6), st.lists(box, max_size=6))
def test_iou_equals_the_definition_for_every_pair(first, second):
    result = iou(np.reshape(first, (-1, 4)), np.reshape(second, (-1, 4)))
    assert result.shape == (len(first), len(second))
    assert result.dtype == np.float64
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            assert result[i, j] == pytest.approx(slow_iou(a, b), abs=1e-12)


def test_iou_uses_continuous_coordinates_without_a_border_pixel():
    assert iou([[0, 0, 10, 10]], [[0, 0, 10, 5]])[0, 0] == 0.5
    assert iou([[0, 0, 10, 10]], [[10, 0, 20, 10]])[0, 0] == 0.0


def test_degenerate_boxes_overlap_nothing_not_even_themselves():
    degenerate = [[5, 5, 5, 9], [5, 5, 9, 5], [9, 9, 5, 5]]
    assert not iou(degenerate, [*degenerate, [0, 0, 20, 20]]).any()
    assert not area(degenerate).any()


def test_share_of_the_first_is_one_inside_a_larger_region():
    inside, region = [2, 2, 4, 4], [0, 0, 100, 100]
    assert overlap(inside, region, of_first=True) == 1.0
    assert overlap(inside, region) == pytest.approx(4 / 10_000)
