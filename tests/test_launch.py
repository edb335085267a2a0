"""The options that TAO's entry point takes for every task."""

import os
import subprocess
import sys

import pytest

from components.detectnet_v2.launch import choose_gpus, run_common_options
from components.step import UserError


@pytest.mark.parametrize(
    ("written", "left"),
    [
        ("evaluate --gpus 2 -e spec -m model", "evaluate -e spec -m model"),
        ("evaluate --gpus=2 -e spec --use_amp -m model", "evaluate -e spec -m model"),
        ("prune -m model -np 1 -o out -el a b", "prune -m model -o out -el a b"),
        ("export -m model --output_file=x=y.onnx", "export -m model --output_file=x=y.onnx"),
        ("train --gpus 2 --use_amp -e spec", "train --gpus 2 --use_amp -e spec"),
        ("evaluate --mpirun-arg -x=A -e spec --multi-node -m model", "evaluate -e spec -m model"),
        ("export --mpirun-arg=-x -m model", "export -m model"),
        ("", ""),
    ],
)
def test_common_options_are_carried_out_and_the_rest_is_left(written, left):
    assert run_common_options(written.split()) == left.split()


def test_gpu_index_makes_only_these_gpus_visible(monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run_common_options(["evaluate", "--gpu_index", "3", "1", "-e", "spec"]) == ["evaluate", "-e", "spec"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert "running on the CPU" in capsys.readouterr().err
    with pytest.raises(UserError, match="names 1 GPUs"):
        choose_gpus(2, [0])


def test_cuda_launches_block_where_they_are_asked_to(monkeypatch):
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "0")
    assert run_common_options(["evaluate", "--launch_cuda_blocking", "-e", "spec"]) == ["evaluate", "-e", "spec"]
    assert os.environ["CUDA_LAUNCH_BLOCKING"] == "1"


def test_log_file_takes_what_is_printed_even_by_a_mistake(tmp_path):
    log = tmp_path / "log.txt"
    program = "from components.detectnet_v2.commands import main; main()"
    words = ["evaluate", "--log_file", str(log), "-e", "nowhere.txt", "-m", "model"]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    assert "nowhere.txt" in log.read_text()
