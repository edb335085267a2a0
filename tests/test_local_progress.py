"""What a person sees of a run."""

import json

import pytest

from pipeline.progress import current_note, duration, headline


def test_training_shows_epoch_loss_and_time_left_from_the_status_log(tmp_path):
    (tmp_path / "results").mkdir()
    record = {"epoch": 4, "max_epoch": 20, "eta": "0:01:20", "graphical": {"loss": 0.0123456}}
    lines = [json.dumps({"status": "STARTED"}), json.dumps(record), json.dumps({"kpi": {}}), '{"epoch": 5, "max']
    (tmp_path / "results/status.json").write_text("\n".join(lines))
    assert current_note(tmp_path, tmp_path / "log") == "epoch 5/20  loss 0.012346  ETA 0:01:20"


def test_other_stages_show_their_last_line(tmp_path):
    (tmp_path / "log").write_bytes(b"first\n\x1b[31mconverting\x1b[0m 3/24 \xff\n\n")
    assert current_note(tmp_path, tmp_path / "log") == "[31mconverting[0m 3/24 \ufffd"
    assert current_note(tmp_path, tmp_path / "absent") == ""


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ({"mean_average_precision": 0.91234, "parameters": 1234567, "seconds": 3}, "AP 0.9123  1,234,567 parameters"),
        ({"skipped": True, "images": 3}, "skipped"),
        ({"training_images": 24, "rejected": 0, "synthetic": True}, "training images 24  synthetic True"),
        ({}, ""),
    ],
)
def test_headline_says_what_matters_most(figures, text):
    assert headline(figures) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (61, "1 min 01 s"), (7260, "2 h 01 min")]
)
def test_duration_reads_as_people_say_it(seconds, text):
    assert duration(seconds) == text
