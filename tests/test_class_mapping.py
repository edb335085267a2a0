"""A class mapping that matches no label is refused before the first step, by the words of both sides."""

import json

import pytest
from discs import detectnet_v2, edit, experiment_spec, write_records
from networks import small_network

from components.vision.checkpoint import save_network

WRONG = ('target_class_mapping {\\s*key: "face"', 'target_class_mapping { key: "visage"')


def refusal(capsys):
    line = capsys.readouterr().err.splitlines()[-1]
    assert "target_class_mapping takes labels of 'visage', but the records hold " in line
    return line.rpartition("hold ")[2]


def test_training_is_refused_and_trains_nothing(kitti, records, tmp_path, capsys):
    spec = edit(experiment_spec(tmp_path, kitti, records, epochs=1), WRONG)
    assert detectnet_v2("train", "-e", spec, "-r", tmp_path / "out") == 2
    assert refusal(capsys) == "8 of 'face'"
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    last = json.loads((tmp_path / "out/status.json").read_text().splitlines()[-1])
    assert (last["status"], "visage" in last["message"]) == ("FAILURE", True)


@pytest.mark.parametrize(("flags", "held"), [((), "4 of 'face'"), (("--use_training_set",), "8 of 'face'")])
def test_so_is_an_evaluation(kitti, records, tmp_path, capsys, flags, held):
    spec = edit(experiment_spec(tmp_path, kitti, records, epochs=1), WRONG, ("grid_stride: 8", "grid_stride: 16"))
    save_network(tmp_path / "net.safetensors", small_network(width=0.125))
    assert detectnet_v2("evaluate", "-e", spec, "-m", tmp_path / "net.safetensors", *flags) == 2
    assert refusal(capsys) == held


def test_records_without_any_label_are_told_as_that(kitti, tmp_path, capsys):
    for split in ("training", "validation"):
        (tmp_path / split / "labels").mkdir(parents=True)
        (tmp_path / split / "images").symlink_to(kitti / split / "images")
        for file in (kitti / split / "labels").iterdir():
            (tmp_path / split / "labels" / file.name).write_text("")
    spec = experiment_spec(tmp_path, kitti, write_records(tmp_path, tmp_path), epochs=1)
    assert detectnet_v2("train", "-e", spec, "-r", tmp_path / "out") == 2
    assert "the records hold none at all" in capsys.readouterr().err
