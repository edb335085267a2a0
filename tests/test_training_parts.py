"""Losses, weights, schedules, optimiser and cost scaling against slow versions written straight from TAO's formulas."""

import math
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.detectnet_v2.batches import BatchTensors
from components.detectnet_v2.losses import (
    ClassCost,
    Objectives,
    WeightPenalty,
    bbox_cost,
    coverage_cost,
    focal_cost,
    generalised_iou,
    object_weights,
    overlap_cost,
)
from components.vision.cost_scaling import CostScaling
from components.vision.optimizer import Adam
from components.vision.schedule import CosineAnnealing, EarlyStoppingAnnealing, SoftStartAnnealing
from components.vision.training import stop_between_steps

seeds = st.integers(0, 2**32 - 1)


def slow_coverage_cost(predicted, target, foreground_weight, mask):
    total, count = 0.0, 0
    for n in range(len(target)):
        for y in range(len(target[n])):
            for x in range(len(target[n][y])):
                p, t = predicted[n][y][x], target[n][y][x]
                entropy = -(t * math.log(p + 1e-5) + (1 - t) * math.log(1 - p + 1e-5))
                total += entropy * (foreground_weight if t > 0.5 else 1 - foreground_weight) * mask[n][y][x]
                count += 1
    return total / count


def slow_bbox_cost(predicted, target, norm, mask):
    """All [N][4][h][w] for one class, but norm and mask [N][h][w]."""
    total, count = 0.0, 0
    for n in range(len(target)):
        for edge in range(4):
            for y in range(len(norm[n])):
                for x in range(len(norm[n][y])):
                    difference = abs(predicted[n][edge][y][x] - target[n][edge][y][x])
                    total += norm[n][y][x] * difference * mask[n][y][x]
                    count += 1
    return total / count


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 3), st.integers(1, 3))
def test_costs_equal_the_text(seed, images, classes):
    random = np.random.default_rng(seed)
    shape = (images, classes, 3, 2)
    # Ends of the range, one half and its neighbours, and anything between.
    special = np.array([0.0, 0.5, np.nextafter(np.float32(0.5), np.float32(1)), 1.0])
    draw = lambda: np.where(random.random(shape) < 0.4, random.choice(special, shape), random.random(shape))  # noqa: E731
    p, t, norm, mask = draw(), draw(), random.random(shape), random.choice([0.0, 0.3, 1.0], shape)
    foreground = random.uniform(0.01, 0.99, classes)
    tensors = [torch.tensor(value) for value in (p, t, foreground, mask)]
    cost = coverage_cost(*tensors)
    for c in range(classes):
        expected = slow_coverage_cost(p[:, c].tolist(), t[:, c].tolist(), foreground[c], mask[:, c].tolist())
        assert float(cost[c]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    predicted, target = random.normal(size=(images, 4 * classes, 3, 2)), random.normal(size=(images, classes, 4, 3, 2))
    cost = bbox_cost(*(torch.tensor(value) for value in (predicted, target, norm, mask)))
    for c in range(classes):
        channels = predicted[:, 4 * c : 4 * c + 4].tolist()
        expected = slow_bbox_cost(channels, target[:, c].tolist(), norm[:, c].tolist(), mask[:, c].tolist())
        assert float(cost[c]) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_costs_by_hand():
    coverage, target = torch.tensor([[[[0.5, 0.25]]]]), torch.tensor([[[[1.0, 0.0]]]])
    # A half found of a face weighs 0.8 * 0.6931, a quarter seen of nothing 0.2 * 0.2877; the mean of two cells.
    cost = coverage_cost(coverage, target, torch.tensor([0.8]), torch.ones(1, 1, 1, 2))
    assert float(cost) == pytest.approx(0.30602, abs=1e-5)
    # Errors of 1, 2, 3 and 4 in the first cell, which weighs a half; the second one's do not count. Eight numbers.
    edges = torch.tensor([[[[1.0, 9.0]], [[-2.0, 9.0]], [[3.0, 9.0]], [[-4.0, 9.0]]]])
    norm = torch.tensor([[[[0.5, 0.0]]]])
    cost = bbox_cost(edges, torch.zeros(1, 1, 4, 1, 2), norm, torch.ones(1, 1, 1, 2))
    assert float(cost) == pytest.approx(0.625)


def slow_generalised_iou(one, other):
    """Of two boxes x1, y1, x2, y2."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    area = lambda b: max(b[2] - b[0], 0) * max(b[3] - b[1], 0)  # noqa: E731
    union = area(one) + area(other) - shared
    hull = (max(one[2], other[2]) - min(one[0], other[0])) * (max(one[3], other[3]) - min(one[1], other[1]))
    return shared / union - (hull - union) / hull


@settings(max_examples=100, deadline=None)
@given(seeds)
def test_generalised_iou_equals_the_formula_wherever_the_boxes_lie(seed):
    random = np.random.default_rng(seed)
    x, y = random.uniform(-2, 2, 2)
    corners = [np.sort(random.uniform(-3, 3, (2, 2)), axis=0).reshape(4) for _ in range(2)]
    edges = [torch.tensor([x - c[0], y - c[1], c[2] - x, c[3] - y]) for c in corners]
    assert float(generalised_iou(*edges, dim=0)) == pytest.approx(slow_generalised_iou(*corners), abs=1e-6)


def test_boxes_that_do_not_touch_are_drawn_together():
    edges = torch.tensor([3.0, 3.0, -2.0, -2.0], requires_grad=True)  # up and left of the point, a unit wide
    generalised_iou(edges, torch.tensor([-2.0, -2.0, 3.0, 3.0]), dim=0).backward()
    assert edges.grad[2] > 0
    assert edges.grad[3] > 0


def test_the_focal_loss_by_hand():
    predicted, target = torch.tensor([[[[0.5, 0.1]]]]), torch.tensor([[[[1.0, 0.0]]]])
    # 0.25 * 0.6931 for half a face, 0.01 * 0.1054 for a tenth of none; of one covered cell.
    assert float(focal_cost(predicted, target, torch.ones(1, 1, 1, 2))) == pytest.approx(0.17434, abs=1e-5)
    masked = torch.tensor([[[[0.0, 1.0]]]])
    assert float(focal_cost(predicted, target, masked)) == pytest.approx(0.00105, abs=1e-5)


def test_the_focal_loss_lets_known_background_count_for_nothing():
    predicted = torch.full((1, 1, 30, 60), 0.02)
    target = torch.zeros_like(predicted)
    target[0, 0, 3, 3] = 1
    mask = torch.ones_like(predicted)
    of_background = focal_cost(predicted, torch.zeros_like(target), mask)
    assert float(of_background) < 0.02 * float(focal_cost(predicted, target, mask))


@given(seeds, st.floats(0, 1))
def test_objects_weigh_by_their_number_of_cells_to_a_power(seed, balance):
    random = np.random.default_rng(seed)
    cells = random.choice([0, 1, 4, 9, 100], (2, 1, 3, 4))
    coverage = torch.from_numpy(np.where(cells > 0, random.uniform(0.1, 1, cells.shape), 0))
    norm = torch.where(coverage > 0, coverage / torch.from_numpy(np.maximum(cells, 1)), 0)
    expected = [(count / 9) ** -balance if count > 1 else 1.0 for count in cells.flat]
    found = object_weights(coverage, norm, balance).flatten().tolist()
    assert found == pytest.approx(expected)


def test_a_balance_changes_what_covered_cells_cost_and_no_others():
    target = torch.tensor([[[[1.0, 0.0]]]])
    batch = BatchTensors(target, target, target / 36, torch.zeros(1, 1, 4, 1, 2), torch.ones_like(target))
    outputs = torch.tensor([[[[0.5, 0.1]]]]), torch.zeros(1, 4, 1, 2)
    costs = ClassCost(1, 0.5, (1, 1), (1, 1))
    plain, balanced = (Objectives([costs], False, 0, 1, focal=True, balance=b).costs(outputs, batch) for b in (0, 0.5))
    of_empty = 0.01 * -math.log(0.9)
    assert float(plain[0, 0]) == pytest.approx(0.17434, abs=1e-5)
    assert float(balanced[0, 0]) - of_empty == pytest.approx((float(plain[0, 0]) - of_empty) / 2)


def test_a_box_that_lost_its_area_finds_back():
    edges = torch.full((1, 4, 1, 1), -0.1, requires_grad=True)
    ones = torch.ones(1, 1, 1, 1)
    overlap_cost(edges, torch.ones(1, 1, 4, 1, 1), ones, ones).backward()
    assert (edges.grad < 0).all()


def test_the_overlap_loss_is_the_mean_over_covered_cells():
    random = np.random.default_rng(4)
    predicted, target = (torch.tensor(random.uniform(0.1, 1, (2, 2, 4, 3, 3))) for _ in range(2))
    norm, mask = torch.tensor(random.random((2, 2, 3, 3))), torch.tensor(random.integers(0, 2, (2, 2, 3, 3)))
    cost = overlap_cost(predicted.reshape(2, 8, 3, 3), target, norm, mask)
    for c in range(2):
        weights = (norm * mask)[:, c]
        losses = 1 - generalised_iou(predicted[:, c], target[:, c], dim=1)
        losses += (predicted[:, c] - target[:, c]).abs().mean(1)
        assert float(cost[c]) == pytest.approx(float((losses * weights).sum() / max(float(weights.sum()), 2)))


def slow_auto_weights(targets, sums, old, low, high):
    raw = [target / total if total else 0.0 for target, total in zip(targets, sums, strict=True)]
    if sum(raw) == 0:
        return old
    return [min(max(value / sum(raw), low), high) for value in raw]


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_auto_weighting_equals_the_text(seed):
    random = np.random.default_rng(seed)
    classes = [
        ClassCost(random.uniform(0.1, 3), 0.5, tuple(random.uniform(0.1, 10, 2)), tuple(random.uniform(0.1, 10, 2)))
        for _ in range(2)
    ]
    low, high = random.uniform(0, 0.2), random.uniform(0.6, 1)
    weights = Objectives(classes, True, low, high)
    expected = [[w / sum(cost.initial_weights) for w in cost.initial_weights] for cost in classes]
    for _ in range(3):
        steps = random.random((4, 2, 2)) * random.choice([0.0, 1.0], (1, 2, 2), p=[0.2, 0.8])
        for costs in torch.tensor(steps):
            total = sum(
                classes[c].class_weight / (classes[0].class_weight + classes[1].class_weight)
                * expected[c][o] * float(costs[c, o]) for c in range(2) for o in range(2)
            )  # fmt: skip
            assert float(weights.total(costs)) == pytest.approx(total)
            weights.note(costs)
        weights.end_epoch()
        expected = [
            slow_auto_weights(cost.weight_targets, steps.sum(0)[c].tolist(), expected[c], low, high)
            for c, cost in enumerate(classes)
        ]
        np.testing.assert_allclose(weights.weights, expected, rtol=1e-9)


def test_weights_stay_where_auto_weighting_is_off_and_survive_a_checkpoint():
    costs = [ClassCost(1, 0.5, (1, 10), (1, 1))]
    weights = Objectives(costs, False, 0.0, 1.0)
    weights.note(torch.tensor([[0.5, 0.1]]))
    again = Objectives(costs, True, 0.0, 1.0)
    again.restore(weights.state())
    weights.end_epoch()
    np.testing.assert_allclose(weights.weights, [[1 / 11, 10 / 11]])
    again.end_epoch()  # with the sums that were restored
    np.testing.assert_allclose(again.weights, [[2 / 12, 10 / 12]])


def test_auto_weighting_by_hand():
    # Shares of 1 and 10 at costs of 0.5 and 0.1 ask for 2 to 100, so 0.02 to 0.98 before the limits.
    weights = Objectives([ClassCost(1, 0.5, (1, 1), (1, 10))], True, 0.05, 0.9)
    weights.note(torch.tensor([[0.25, 0.05]]))
    weights.note(torch.tensor([[0.25, 0.05]]))
    weights.end_epoch()
    assert weights.weights.tolist() == [[0.05, 0.9]]


@pytest.mark.parametrize("kind", ["L1", "L2", "none"])
def test_the_penalty_and_its_gradient_equal_the_text(kind):
    values = torch.tensor([[0.5, -2.0], [0.0, 3.0]], requires_grad=True)
    bias = torch.tensor([-1.5], requires_grad=True)
    (values.sum() + bias.sum()).backward()
    penalty = WeightPenalty(kind, 0.01, [values, bias]).add_gradients()
    numbers = [0.5, -2.0, 0.0, 3.0, -1.5]
    expected = {"L1": sum(abs(n) for n in numbers), "L2": sum(n * n for n in numbers), "none": 0.0}[kind]
    assert float(penalty) == pytest.approx(0.01 * expected)
    slope = {"L1": lambda n: (n > 0) - (n < 0), "L2": lambda n: 2 * n, "none": lambda _: 0}[kind]
    gradients = [*values.grad.flatten().tolist(), *bias.grad.tolist()]
    assert gradients == pytest.approx([1 + 0.01 * slope(n) for n in numbers])


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_adam_equals_tensorflows_form(seed):
    random = np.random.default_rng(seed)
    start = random.normal(size=3)
    parameter = torch.tensor(start.copy(), requires_grad=True)
    adam = Adam([parameter], 0.9, 0.999, 1e-3)  # an epsilon large enough to tell the two forms apart
    value, mean, variance = start.tolist(), [0.0] * 3, [0.0] * 3
    for t in range(1, 6):
        gradient, rate = random.normal(size=3), random.uniform(1e-4, 1e-1)
        parameter.grad = torch.tensor(gradient)
        adam.param_groups[0]["lr"] = rate
        adam.step()
        for i in range(3):
            mean[i] = 0.9 * mean[i] + 0.1 * gradient[i]
            variance[i] = 0.999 * variance[i] + 0.001 * gradient[i] ** 2
            corrected = rate * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            value[i] -= corrected * mean[i] / (math.sqrt(variance[i]) + 1e-3)
    np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=1e-9)


def test_adam_does_what_keras_does():
    """Recorded from Keras 3.15's Adam in 64 bits, with an epsilon that is not lost beside small gradients."""
    parameter = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, requires_grad=True)
    adam = Adam([parameter], 0.9, 0.999, 1e-3)
    adam.param_groups[0]["lr"] = 0.1
    for gradient in ([1.0, 0.01, 0.0], [-0.5, 0.01, 1e-3], [0.25, -0.02, 1e-3]):
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        adam.step()
    keras = [0.844036799725496, -2.0516201023945317, 0.4940450265041921]
    np.testing.assert_allclose(parameter.detach().numpy(), keras, rtol=1e-12)


@settings(max_examples=100)
@given(st.integers(1, 500), st.floats(0, 0.4), st.floats(0.5, 0.99), st.floats(1e-7, 1e-4), st.floats(1e-3, 1))
def test_soft_start_annealing_equals_the_text(steps, soft_start, annealing, low, high):
    schedule = SoftStartAnnealing(low, high, soft_start, annealing, steps)
    for step in range(steps):
        q = step / steps
        t = q / soft_start if q < soft_start else (1 - q) / (1 - annealing) if q > annealing else 1.0
        expected = math.exp(math.log(low) + t * (math.log(high) - math.log(low)))
        assert schedule.rate(step) == pytest.approx(expected, rel=1e-9)
    assert schedule.validated(1, 1, 5.0)


def test_the_cosine_rises_in_a_line_and_falls_to_its_minimum():
    schedule = CosineAnnealing(0.001, 0.1, 0.1, 1000)
    assert schedule.rate(0) == pytest.approx(0.001)
    assert schedule.rate(49) == pytest.approx(0.05)
    assert schedule.rate(100) == pytest.approx(0.1)
    assert schedule.rate(550) == pytest.approx((0.1 + 0.001) / 2)
    assert schedule.rate(999) == pytest.approx(0.001, abs=1e-6)
    rates = [schedule.rate(step) for step in range(1000)]
    assert np.argmax(rates) in (99, 100)
    assert CosineAnnealing(0.0, 0.1, 0.0, 10).rate(0) == pytest.approx(0.1)


def test_schedules_by_hand():
    soft = SoftStartAnnealing(1e-4, 1e-2, 0.25, 0.5, 8)
    ramp_down = [10**-2.5, 1e-3, 10**-3.5]
    assert [soft.rate(step) for step in range(8)] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-2, 1e-2, *ramp_down])
    early, rates, goes_on = EarlyStoppingAnnealing(1e-4, 1e-2, 2, 2, patience=2), [], []
    for epoch, cost in enumerate([3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0], 1):
        rates.append(early.rate(epoch - 1))
        goes_on.append(early.validated(epoch, epoch, cost))
    # Up in two steps; no better cost in epochs 3 and 4, so down in two; still none, so the end after the ramp.
    assert rates == pytest.approx([1e-4, 1e-3, 1e-2, 1e-2, 1e-2, 1e-3, 1e-4])
    assert goes_on == [True] * 6 + [False]


def slow_early_stopping(costs, steps, soft_epochs, annealing_epochs, patience, low, high):
    """Learning rate of every step of every epoch, validated after each, until training stops."""
    rates, lowest, lowest_epoch, annealed_at = [], None, None, None
    for epoch, cost in enumerate(costs):
        for step in range(epoch * steps, (epoch + 1) * steps):
            if annealed_at is None:
                t = min(1.0, step / (soft_epochs * steps)) if soft_epochs else 1.0
            else:
                t = max(0.0, 1 - (step - annealed_at) / (annealing_epochs * steps)) if annealing_epochs else 1.0
            rates.append(low ** (1 - t) * high**t)
        done = epoch + 1
        if lowest is None or cost < lowest:
            lowest, lowest_epoch = cost, done
        elif done - lowest_epoch >= patience:
            if annealed_at is None:
                annealed_at, lowest, lowest_epoch = done * steps, cost, done
            elif done * steps - annealed_at > annealing_epochs * steps:
                return rates
    return rates


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([1.0, 2.0, 3.0]), min_size=1, max_size=30),
    st.integers(0, 3), st.integers(0, 3), st.integers(1, 4),
)  # fmt: skip
def test_early_stopping_annealing_equals_the_text(costs, soft_epochs, annealing_epochs, patience):
    steps = 3
    schedule = EarlyStoppingAnnealing(1e-5, 1e-2, soft_epochs * steps, annealing_epochs * steps, patience)
    rates = []
    for epoch, cost in enumerate(costs):
        rates += [schedule.rate(step) for step in range(epoch * steps, (epoch + 1) * steps)]
        copy = EarlyStoppingAnnealing(1e-5, 1e-2, soft_epochs * steps, annealing_epochs * steps, patience)
        copy.restore(schedule.state())  # a resumed training decides alike
        goes_on = schedule.validated(epoch + 1, (epoch + 1) * steps, cost)
        assert copy.validated(epoch + 1, (epoch + 1) * steps, cost) == goes_on
        if not goes_on:
            break
    expected = slow_early_stopping(costs, steps, soft_epochs, annealing_epochs, patience, 1e-5, 1e-2)
    assert rates == pytest.approx(expected, rel=1e-9)


def test_cost_scaling_grows_with_good_steps_and_falls_with_overflows():
    scaling = CostScaling(20.0, 0.005, 1.0)
    scaling.update(True)
    assert scaling.factor == pytest.approx(2**20.005)
    scaling.update(False)
    assert (scaling.exponent, scaling.overflows) == (pytest.approx(19.005), 1)
    other = CostScaling(1.0, 0.005, 1.0)
    other.restore(scaling.state())
    assert other.exponent == scaling.exponent


def test_a_first_signal_waits_for_the_step():
    with stop_between_steps() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM
    with pytest.raises(SystemExit, match="143"):
        stop.raise_if_made()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_signal_does_not_wait():
    def twice():
        with stop_between_steps():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        twice()


def test_the_focal_loss_is_finite_at_the_ends_of_coverage_and_no_number_of_none():
    mask = torch.ones(1, 1, 1, 4)
    target = torch.tensor([[[[0.0, 1.0, 0.0, 1.0]]]])
    logits = torch.tensor([[[[-200.0, -200.0, 200.0, 200.0]]]], requires_grad=True)
    cost = focal_cost(torch.sigmoid(logits), target, mask)
    cost.sum().backward()
    assert cost.isfinite().all()
    assert logits.grad.isfinite().all()
    # Two of the four are as wrong as can be, of an amount of two objects (or what the loss takes at least).
    assert cost.item() > 5
    assert focal_cost(torch.full_like(target, torch.nan), target, mask).isnan().all()
