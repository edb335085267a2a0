"""The training loop: resuming at any step, several processes, precision, early stopping, and what it shows."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from discs import detectnet_v2, edit, experiment_spec, write_records
from google.protobuf import text_format

from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.evaluation import evaluate
from components.detectnet_v2.spec import load_experiment
from components.detectnet_v2.train import TrainOptions, train
from components.step import StageError, UserError
from components.vision.checkpoint import load_tensors
from components.vision.cost_scaling import CostScaling
from components.vision.trainer import Trainer
from components.vision.training import RESUME_FILE, TrainingState

EPOCHS, STEPS = 3, 4
# Everything that an open engine's loader may draw.
CROPS = """
open_engine {
  random_crop {
    zoom_min: 0.8 zoom_max: 2.0 object_probability: 0.5 hflip_probability: 0.5 rotate_rad_max: 0.3
    rotate_probability: 0.5
    min_object_height: 6 min_visible_share: 0.4 mosaic_probability: 0.3 copy_paste_probability: 0.3
    blur_probability: 0.2
    jpeg_probability: 0.2 grey_probability: 0.2
  }
}
"""
SPLITS = {"data_sources": "training", "validation_data_source": "validation"}


@pytest.fixture
def spec(tmp_path, kitti, records):
    """Four steps an epoch, auto-weighting, dropout: everything that a step's past can reach."""
    file = experiment_spec(tmp_path, kitti, records, epochs=EPOCHS, batch_size=2)
    return edit(
        file,
        ("enable_autoweighting: false", "enable_autoweighting: true"),
        ("use_batch_norm: true", "use_batch_norm: true\n  dropout_rate: 0.1"),
        ("first_validation_epoch: 10", "first_validation_epoch: 1"),
        ("validation_period_during_training: 10", "validation_period_during_training: 1"),
    )


def with_open_engine(spec, text):
    """Replaces the block in a spec; an empty text removes it."""
    message = text_format.Parse(spec.read_text(), spec_pb2.Experiment())
    message.ClearField("open_engine")
    text_format.Parse(text, message)
    spec.write_text(text_format.MessageToString(message))
    return spec


def run(spec, results, **options):
    options = {"width": 0.125, "threads": 1, **options}
    return train(load_experiment(spec).message, TrainOptions(results=results, **options))


def status(results):
    return [json.loads(line) for line in (results / "status.json").read_text().splitlines()]


def losses(results):
    return [line["graphical"]["loss"] for line in status(results) if "graphical" in line]


def validation_costs(results):
    return [line["kpi"]["validation cost"] for line in status(results) if "epoch" in line and "kpi" in line]


def assert_same_weights(one, other):
    ours, theirs = load_tensors(one)[0], load_tensors(other)[0]
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("loader", ["TAO's", "open engine's"])
def test_a_training_killed_at_any_step_ends_with_the_very_same_weights(spec, tmp_path, monkeypatch, loader):
    with_open_engine(spec, CROPS if loader == "open engine's" else "")
    reference = run(spec, tmp_path / "whole")
    results, step, save = tmp_path / "killed", Trainer.step, TrainingState.save
    dice = random.Random(0)
    for _ in range(4):
        left = dice.randrange(1, 2 * STEPS)  # calls of either function until the next kill

        def fragile(function):
            def call(*arguments):
                nonlocal left
                left -= 1
                if left < 0:
                    raise RuntimeError("killed")
                return function(*arguments)

            return call

        monkeypatch.setattr(Trainer, "step", fragile(step))
        monkeypatch.setattr(TrainingState, "save", fragile(save))
        with pytest.raises(RuntimeError, match="killed"):
            run(spec, results, save_seconds=-1)  # saves after every step
    monkeypatch.undo()
    finished = run(spec, results, save_seconds=-1)
    assert_same_weights(reference, finished)
    assert losses(results)[-1] == losses(tmp_path / "whole")[-1]


@pytest.mark.parametrize(
    ("first", "period", "windows"),
    [(1, 1, [[0, 1, 2], [3, 0, 1], [2, 3, 0]]), (2, 2, [[0, 1, 2], [3, 0, 1]])],  # the second one ends off the period
)
def test_under_tao5_each_validation_goes_on_where_the_one_before_stopped(
    first, period, windows, spec, tmp_path, monkeypatch
):
    edit(
        spec,
        ("batch_size_per_gpu: 2", "batch_size_per_gpu: 3"),
        ("first_validation_epoch: 1", f"first_validation_epoch: {first}"),
        ("during_training: 1", f"during_training: {period}"),
    )
    for tao5, expected in ((False, [None] * len(windows)), (True, windows)):
        seen = []

        def recorded(*arguments, order, seen=seen, **options):
            seen.append(None if order is None else order.tolist())
            return evaluate(*arguments, order=order, **options)

        monkeypatch.setattr("components.detectnet_v2.train.evaluate", recorded)
        run(spec, tmp_path / str(tao5), tao5=tao5)
        assert seen == expected


def test_sigterm_saves_the_step_at_work(spec, tmp_path, monkeypatch, capsys):
    calls, step = [], Trainer.step

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == STEPS + 2:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(spec, tmp_path / "stopped")
    assert load_tensors(tmp_path / "stopped" / RESUME_FILE)[1]["progress"][:2] == [1, 2]
    assert "interrupted" in status(tmp_path / "stopped")[-1]["message"]
    run(spec, tmp_path / "stopped")
    assert "Resuming after epoch 1, step 2 of the next" in capsys.readouterr().out
    assert len(calls) == EPOCHS * STEPS  # no step was made twice


def torchrun(processes, *arguments):
    code = "import torch; torch.manual_seed(0); from components.detectnet_v2.commands import main; main()"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, "--no-python", sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


def test_two_processes_lose_what_one_does_with_the_joined_batch(tmp_path, kitti, records):
    """Without batch norm, whose statistics are those of each process, as in TAO."""
    specs = []
    for batch_size in (4, 2):
        folder = tmp_path / str(batch_size)
        folder.mkdir()
        file = experiment_spec(folder, kitti, records, epochs=EPOCHS, batch_size=batch_size)
        edit(
            file,
            ("use_batch_norm: true", "use_batch_norm: false"),
            ("enable_autoweighting: false", "enable_autoweighting: true"),
            ("first_validation_epoch: 10", "first_validation_epoch: 2"),
        )
        specs.append(with_open_engine(file, CROPS))
    alone = run(specs[0], tmp_path / "alone")
    done = torchrun(2, "train", "-e", specs[1], "-r", tmp_path / "pair", "--width", 0.125, "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Epoch 0/") == 1  # only the first one talks
    np.testing.assert_allclose(losses(tmp_path / "pair"), losses(tmp_path / "alone"), rtol=1e-5)
    assert validation_costs(tmp_path / "alone")
    np.testing.assert_allclose(validation_costs(tmp_path / "pair"), validation_costs(tmp_path / "alone"), rtol=1e-4)
    ours, theirs = load_tensors(tmp_path / "pair/weights/model.safetensors")[0], load_tensors(alone)[0]
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], atol=2e-4, err_msg=name)


def test_an_average_of_the_weights_is_saved_where_the_spec_asks_for_it(spec, tmp_path):
    averaging = tmp_path / "averaging.txt"
    averaging.write_text(with_open_engine(spec, "").read_text())
    with_open_engine(averaging, "open_engine { ema_decay: 0.9 }")
    options = ("--width", 0.125, "--threads", 1)
    assert detectnet_v2("train", "-e", spec, *options, "-r", tmp_path / "plain") == 0
    assert detectnet_v2("train", "-e", averaging, *options, "-r", tmp_path / "averaged") == 0
    assert losses(tmp_path / "plain") == losses(tmp_path / "averaged")
    plain, averaged = (load_tensors(tmp_path / name / "weights/model.safetensors")[0] for name in ("plain", "averaged"))
    assert not torch.equal(plain["output_cov.weight"], averaged["output_cov.weight"])
    assert validation_costs(tmp_path / "plain") != validation_costs(tmp_path / "averaged")


def test_more_gpus_than_there_are_is_refused(spec, tmp_path, capsys):
    assert detectnet_v2("train", "-e", spec, "-r", tmp_path / "r", "--gpus", 99) == 2
    assert "--gpus 99: this machine shows" in capsys.readouterr().err


def test_early_stopping_anneals_and_ends_before_the_last_epoch(tmp_path, kitti, records, capsys):
    spec = experiment_spec(tmp_path, kitti, records, epochs=40)
    edit(
        spec,
        ("cosine_annealing_schedule", "early_stopping_annealing_schedule"),
        ("warm_up: [\\d.]+", "soft_start_epochs: 1 annealing_epochs: 1 patience_steps: 1"),
        (r"max_learning_rate: [\d.]+", "max_learning_rate: 0.00010001"),  # learns nothing more soon
        ("first_validation_epoch: 10", "first_validation_epoch: 1"),
        ("validation_period_during_training: 10", "validation_period_during_training: 1"),
    )
    run(spec, tmp_path / "r")
    epochs = len(losses(tmp_path / "r"))
    assert 3 <= epochs < 40
    assert "The validation cost has not fallen any more" in capsys.readouterr().out
    assert (tmp_path / "r/weights/model.safetensors").is_file()


def test_mixed_precision_keeps_float32_weights_and_learns_alike(spec, tmp_path, capsys):
    edit(spec, ("    view_epochs: 0.75\n", ""))  # whole inputs have other losses than the views before them
    mixed = run(spec, tmp_path / "mixed", mixed_precision=True)
    assert "bfloat16" in capsys.readouterr().out
    run(spec, tmp_path / "full")
    assert {value.dtype for value in load_tensors(mixed)[0].values()} <= {torch.float32, torch.int64}
    assert losses(tmp_path / "mixed") != losses(tmp_path / "full")
    assert losses(tmp_path / "mixed")[0] == pytest.approx(losses(tmp_path / "full")[0], rel=0.1)
    assert losses(tmp_path / "mixed")[-1] < losses(tmp_path / "mixed")[0]


def test_cost_scaling_changes_nothing_but_survives_an_overflow(spec, tmp_path, monkeypatch):
    scaling = r"enabled: false initial_exponent: 20.0 increment: 0.005 decrement: 1.0"
    run(spec, tmp_path / "plain")
    run(edit(spec, (scaling, "enabled: true initial_exponent: 20 increment: 1 decrement: 1")), tmp_path / "scaled")
    np.testing.assert_allclose(losses(tmp_path / "scaled"), losses(tmp_path / "plain"), rtol=1e-6)
    seen = []
    update = CostScaling.update
    monkeypatch.setattr(CostScaling, "update", lambda self, finite: (seen.append(finite), update(self, finite)))
    edit(spec, ("initial_exponent: 20 increment: 1 decrement: 1", "initial_exponent: 200 increment: 1 decrement: 100"))
    run(spec, tmp_path / "overflow")
    # 2 to the power of 200 is beyond 32 bits, and 2 to the power of 100 is not.
    assert seen == [False] + [True] * (len(seen) - 1)
    assert len(seen) > 2
    assert np.isfinite(losses(tmp_path / "overflow")).all()


def test_a_loss_that_is_no_number_ends_the_training_by_name(spec, tmp_path):
    edit(spec, ("max_learning_rate: 0.01", "max_learning_rate: 1e30"))
    with pytest.raises(StageError, match="lower training_config"):
        run(spec, tmp_path / "r")
    assert status(tmp_path / "r")[-1]["status"] == "FAILURE"


def test_the_visualizer_writes_scalars_images_and_histograms_for_tensorboard(spec, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    visualizer = "visualizer { enabled: true num_images: 2 scalar_logging_frequency: 2 }"
    edit(spec, ("checkpoint_interval", f"{visualizer}\n  checkpoint_interval"))
    run(spec, tmp_path / "r")
    events = EventAccumulator(str(tmp_path / "r/events"))
    events.Reload()
    tags = events.Tags()
    assert {"cost/total", "learning_rate", "cost/face/cov", "cost/face/bbox", "validation/cost"} <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("learning_rate")] == [1, 3, 5, 7, 9, 11]
    assert set(tags["images"]) == {"images/0", "images/1"}
    assert any("conv1.weight" in tag for tag in tags["histograms"])


@pytest.mark.parametrize("part", ["data_sources", "validation_data_source"])
def test_a_class_mapping_that_matches_nothing_is_refused_before_the_first_step(
    spec, tmp_path, kitti, monkeypatch, part
):
    labels = tmp_path / "cars"
    shutil.copytree(kitti, labels)
    for file in labels.rglob("*.txt"):
        file.write_text(file.read_text().replace("face", "car"))
    (tmp_path / "r").mkdir()
    others = write_records(tmp_path / "r", labels)
    edit(spec, (rf"({part} {{\s+tfrecords_path: \")[^\"]*/", rf"\g<1>{others}/{SPLITS[part]}/"))
    monkeypatch.setattr(Trainer, "step", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(UserError, match=r"takes labels of 'face', but the records hold \d+ of 'car'"):
        run(spec, tmp_path / "results")
    assert "FAILURE" in status(tmp_path / "results")[-1]["status"]


def test_a_training_on_other_labels_is_not_resumed(spec, tmp_path, kitti):
    run(spec, tmp_path / "results")
    moved = tmp_path / "moved"
    shutil.copytree(kitti, moved)
    (tmp_path / "r").mkdir()
    text = spec.read_text()
    former = re.search(r'tfrecords_path: "(.*)/training/', text)[1]
    same = write_records(tmp_path / "r", moved)
    spec.write_text(text.replace(former, str(same)))
    run(spec, tmp_path / "results")  # the same data elsewhere
    label = moved / "training/labels/000.txt"
    label.write_text(re.sub(r"(face \S+ \S+ \S+) \S+", r"\g<1> 1.0", label.read_text(), count=1))
    (tmp_path / "r2").mkdir()
    other = write_records(tmp_path / "r2", moved)
    spec.write_text(text.replace(former, str(other)))
    with pytest.raises(UserError, match="holds a training with other settings"):
        run(spec, tmp_path / "results")
