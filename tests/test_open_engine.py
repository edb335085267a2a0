"""What the open engine does beyond TAO's: a finer grid, its own losses and schedule, an average, a teacher."""

import json
import re

import pytest
import torch
from discs import HEIGHT, WIDTH, detectnet_v2, edit, experiment_spec, write_kitti, write_records

from components.decode.grid.geometry import GridGeometry
from components.detectnet_v2.batches import BatchTensors
from components.detectnet_v2.losses import ClassCost, Objectives
from components.detectnet_v2.network import GridNet, GridNetConfig
from components.detectnet_v2.teacher import Teacher
from components.vision.checkpoint import load_network, save_network
from components.vision.neck import FineNeck
from components.vision.resnet import ResNetConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("discs")
    kitti = write_kitti(root / "kitti")
    (root / "records").mkdir()
    return kitti, write_records(root / "records", kitti)


def own_spec(folder, data, more="", **values):
    """The CPU profile's spec, not augmented."""
    spec = experiment_spec(folder, *data, **values)
    spec.write_text(re.sub(r"  random_crop \{.*?\n  \}\n", "", spec.read_text(), flags=re.DOTALL))
    return edit(spec, ("ema_decay: 0.999", f"ema_decay: 0.9\n  {more}"))


def small_net(stride=8, seed=0):
    torch.manual_seed(seed)
    neck = FineNeck.channels_of_width(0.125) if stride == 8 else {}
    geometry = GridGeometry(WIDTH, HEIGHT, stride=stride)
    return GridNet(GridNetConfig(ResNetConfig.of_width(10, 0.125), ("face",), geometry, {}, neck=neck)).eval()


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The results directory of a training by the open engine's recipe."""
    folder = tmp_path_factory.mktemp("trained")
    spec = own_spec(folder, data, epochs=80)
    assert detectnet_v2("train", "-e", spec, "-r", folder / "r", "--width", 0.125) == 0
    return folder / "r"


def losses(results):
    lines = [json.loads(line) for line in (results / "status.json").read_text().splitlines()]
    return [line["graphical"]["loss"] for line in lines if "graphical" in line]


def test_the_open_engines_recipe_learns(data, trained, tmp_path):
    spec = own_spec(tmp_path, data)
    assert detectnet_v2("evaluate", "-e", spec, "-m", trained / "weights", "-r", tmp_path / "e") == 0
    assert json.loads((tmp_path / "e/metrics.json").read_text())["mean_average_precision"] > 0.8
    assert load_network(trained / "weights").decoder.geometry.stride == 8
    assert losses(trained)[-1] < 0.5 * losses(trained)[0]


def test_a_network_has_nothing_to_learn_of_itself():
    network = small_net()
    images = torch.rand(2, 3, HEIGHT, WIDTH)
    empty = torch.zeros(2, 1, HEIGHT // 8, WIDTH // 8)
    batch = BatchTensors(images, empty, empty, torch.zeros(2, 1, 4, HEIGHT // 8, WIDTH // 8), torch.zeros_like(empty))
    cost = Objectives([ClassCost(1, 0.5, (1, 1), (1, 1))], False, 0.0, 1.0, focal=True, overlap=True)
    network.expect(0.3, 0.5)
    with torch.no_grad():
        own = cost.costs(network(images), Teacher(network, 1.0).targets(batch))
        other = cost.costs(small_net(seed=1)(images), Teacher(network, 1.0).targets(batch))
    assert float(own.abs().max()) < 1e-5
    assert float(other[0, 1]) > 0.1


def test_a_student_learns_of_its_teacher(data, trained, tmp_path):
    line = f'teacher {{ model_file: "{trained / "weights/model.safetensors"}" weight: 1.0 }}'
    spec = own_spec(tmp_path, data, line, epochs=20)
    assert detectnet_v2("train", "-e", spec, "-r", tmp_path / "r", "--width", 0.125) == 0
    assert losses(tmp_path / "r")[-1] < 0.3 * losses(tmp_path / "r")[0]


def test_a_teacher_with_another_grid_is_refused(data, tmp_path, capsys):
    save_network(tmp_path / "coarse.safetensors", small_net(stride=16))
    spec = own_spec(tmp_path, data, f'teacher {{ model_file: "{tmp_path / "coarse.safetensors"}" weight: 0.5 }}')
    assert detectnet_v2("train", "-e", spec, "-r", tmp_path / "r", "--width", 0.125) == 2
    assert "a teacher needs the input size, grid_stride, box scale and classes of the spec" in capsys.readouterr().err


def test_a_teacher_without_a_weight_is_refused(data, tmp_path, capsys):
    spec = own_spec(tmp_path, data, 'teacher { model_file: "t.safetensors" }')
    assert detectnet_v2("train", "-e", spec, "-r", tmp_path / "r") == 2
    assert "it must be more than 0 and at most 1" in capsys.readouterr().err


def test_a_balance_without_the_focal_loss_is_refused(data, tmp_path, capsys):
    spec = edit(own_spec(tmp_path, data), ("  coverage_loss: QUALITY_FOCAL\n", ""))
    assert detectnet_v2("train", "-e", spec, "-r", tmp_path / "r") == 2
    assert "object_balance needs coverage_loss: QUALITY_FOCAL" in capsys.readouterr().err


def test_a_stored_graph_of_another_stride_is_refused(data, tmp_path, capsys):
    save_network(tmp_path / "coarse.safetensors", small_net(stride=16))
    spec = own_spec(tmp_path, data)
    edit(spec, (r"load_graph: false", f'load_graph: true\n  pretrained_model_file: "{tmp_path}/coarse.safetensors"'))
    assert detectnet_v2("train", "-e", spec, "-r", tmp_path / "r") == 2
    assert "its grid has a stride of 16, the spec's open_engine has 8" in capsys.readouterr().err


def test_another_stride_is_refused(data, tmp_path, capsys):
    spec = edit(own_spec(tmp_path, data), ("grid_stride: 8", "grid_stride: 4"))
    assert detectnet_v2("train", "-e", spec, "-r", tmp_path / "r") == 2
    assert "grid_stride is 4; the networks have a grid of 16 or 8 pixels" in capsys.readouterr().err
