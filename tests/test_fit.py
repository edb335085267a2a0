"""The training loop with a toy: a classifier of four numbers into two classes."""

import math

import pytest
import torch
from torch import nn

from components.step import StageError
from components.vision.checkpoint import load_network, load_tensors
from components.vision.loop import FitOptions, fit
from components.vision.network import Network
from components.vision.schedule import EarlyStoppingAnnealing, SoftStartAnnealing
from components.vision.task import Task, Validation

EPOCHS, STEPS = 4, 5


class Classifier(Network, kind="toy_classifier"):
    def __init__(self, width):
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 2))

    def forward(self, x):
        return self.layers(x)

    def to_json(self):
        return {"width": self.width}

    @classmethod
    def from_json(cls, values):
        return cls(**values)


class Toy(Task):
    def __init__(self, group, optimizer=torch.optim.AdamW, rate=1e-2, epochs=EPOCHS):
        torch.manual_seed(0)
        self.network = Classifier(8).to(group.device)
        self.optimizer = optimizer(self.network.parameters(), lr=0.0)
        self.steps, self.epochs = STEPS, epochs
        self.schedule = SoftStartAnnealing(rate / 10, rate, 0.1, 0.9, epochs * STEPS)
        self.costs = []

    def batches(self, epoch, first_step):
        for step in range(first_step, STEPS):
            generator = torch.Generator().manual_seed(epoch * STEPS + step)
            x = torch.rand(16, 4, generator=generator)
            yield x, (x.sum(1) > 2).long()

    def losses(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)

    def is_validated(self, _epochs):
        return True

    @torch.no_grad()
    def validate(self, network, _epochs):
        network.eval()
        x, targets = next(self.batches(99, 0))
        self.costs.append(float(self.losses(network(x), targets)))
        return Validation(self.costs[-1])


def run(results, build=Toy, **options):
    options = {"threads": 1, "save_seconds": -1, **options}
    return fit(build, FitOptions(results=results, **options), "toy")


def same(one, other):
    ours, theirs = load_tensors(one)[0], load_tensors(other)[0]
    assert ours.keys() == theirs.keys()
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


def sgd(parameters, lr):
    return torch.optim.SGD(parameters, lr, momentum=0.9)


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, sgd])
def test_a_toy_resumes_to_the_same_bits(tmp_path, optimizer, ema):
    def whole(group):
        return Toy(group, optimizer)

    class Fragile(Toy):
        left = 7

        def stepped(self, _step):
            Fragile.left -= 1
            if Fragile.left == 0:
                raise RuntimeError("killed")

    reference = run(tmp_path / "whole", whole, ema=ema)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "killed", lambda group: Fragile(group, optimizer), ema=ema)
    assert load_tensors(tmp_path / "killed/resume.safetensors")[1]["progress"][:2] == [1, 1]
    resumed = run(tmp_path / "killed", whole, ema=ema)
    assert same(reference, resumed)
    loaded = load_network(resumed)
    assert isinstance(loaded, Classifier)
    assert loaded.width == 8


def test_the_toy_learns_and_a_network_is_saved_as_its_average_only_if_asked(tmp_path):
    tasks = []

    def kept(group):
        tasks.append(Toy(group))
        return tasks[-1]

    models = [run(tmp_path / str(ema), kept, ema=ema) for ema in (0.0, 0.9)]
    assert tasks[0].costs[-1] < tasks[0].costs[0]
    assert not same(*models)
    plain, averaged = (task.network.state_dict() for task in tasks)
    for name, value in load_tensors(models[0])[0].items():
        assert torch.equal(value, plain[name])
        assert torch.equal(value, averaged[name])  # the average changes nothing in what is trained


def test_the_average_is_the_exponential_one_and_begins_short(tmp_path):
    seen = []

    class Noting(Toy):
        def stepped(self, _step):
            seen.append({name: value.clone() for name, value in self.network.state_dict().items()})

    model = run(tmp_path, Noting, ema=0.75)
    expected = seen[0]
    for number, state in enumerate(seen[1:], 1):
        kept = min(0.75, (1 + number) / (10 + number))
        expected = {name: kept * value + (1 - kept) * state[name] for name, value in expected.items()}
    for name, value in load_tensors(model)[0].items():
        torch.testing.assert_close(value, expected[name])


def test_the_toy_stops_when_its_cost_has_not_fallen(tmp_path, capsys):
    class Stalling(Toy):
        def __init__(self, group):
            super().__init__(group, epochs=50)
            self.schedule = EarlyStoppingAnnealing(1e-5, 1e-4, 0, STEPS, patience=2)

        def validate(self, _network, _epochs):
            return Validation(1.0)

    run(tmp_path, Stalling)
    assert "stopped after epoch 5" in capsys.readouterr().out  # anneals after 3, holds out 2 more


def test_a_loss_that_is_no_number_ends_the_toy_with_its_advice(tmp_path):
    class Diverging(Toy):
        def losses(self, outputs, targets):
            return super().losses(outputs, targets) * math.nan

    with pytest.raises(StageError, match="the loss became nan; lower the learning rate"):
        run(tmp_path, Diverging)


def infinite_gradients(at):
    """A toy whose loss is finite in every step, but has no finite gradient in one: a square root at nought."""

    class Steep(Toy):
        if_diverged = "add a little to what the root is taken of"
        step = 0

        def losses(self, outputs, targets):
            Steep.step += self.network.training
            loss = super().losses(outputs, targets)
            is_steep = self.network.training and Steep.step == at
            return loss + (outputs.sum() * 0).abs().sqrt() if is_steep else loss

    return Steep


@pytest.mark.parametrize("at", [3, EPOCHS * STEPS], ids=["amid", "last step"])
def test_a_finite_loss_with_infinite_gradients_never_reaches_the_weights(tmp_path, at):
    tasks = []

    def kept(group):
        tasks.append(infinite_gradients(at)(group))
        return tasks[-1]

    with pytest.raises(StageError, match=r"gradient became (nan|inf); add a little"):
        run(tmp_path, kept)
    assert all(value.isfinite().all() for value in tasks[0].network.state_dict().values())
    saved, header = load_tensors(tmp_path / "resume.safetensors")
    assert header["progress"][:2] == list(divmod(at - 1, STEPS))
    assert all(value.isfinite().all() for value in saved.values())
    assert not (tmp_path / "weights").exists()
    assert "FAILURE" in (tmp_path / "status.json").read_text().splitlines()[-1]


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_weights_that_the_last_update_made_infinite_are_not_saved(tmp_path, ema):
    class Leaping(Toy):
        def __init__(self, group):
            super().__init__(group, sgd)
            self.schedule = self

        def rate(self, step):
            return math.inf if step == EPOCHS * STEPS - 1 else 1e-3

        def validated(self, *_arguments):
            return True

        def state(self):
            return {}

    with pytest.raises(StageError, match="left the numbers; what was saved before is kept; lower the learning rate"):
        run(tmp_path, Leaping, ema=ema)
    saved, header = load_tensors(tmp_path / "resume.safetensors")
    assert header["progress"][:2] == [EPOCHS - 1, STEPS - 1]
    assert all(value.isfinite().all() for value in saved.values())
    assert not (tmp_path / "weights").exists()
    assert "FAILURE" in (tmp_path / "status.json").read_text().splitlines()[-1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, whose steps are not waited for")
def test_a_gpu_tells_of_infinite_gradients_by_the_end_of_the_epoch_and_saves_none(tmp_path):
    class OnDevice(infinite_gradients(3)):
        def batches(self, epoch, first_step):
            for inputs, targets in super().batches(epoch, first_step):
                yield inputs.cuda(), targets.cuda()

    with pytest.raises(StageError, match="add a little"):
        run(tmp_path, OnDevice, save_seconds=3600)
    assert not (tmp_path / "resume.safetensors").exists()
