"""Scoring a predictor on labelled images, and predictors from ONNX files however they are described."""

import json
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import pytest
from square_detector import CELL, HEIGHT, WIDTH, cell_box, picture, write_detector

from components.decode.grid.clustering import Clustering, detect_for_inference
from components.decode.grid.decoder import COVERAGE
from components.measure.average_precision import AveragePrecision
from components.measure.metric import Score
from components.step import UserError
from components.vision.predictor import detect_images, load_predictor
from components.vision.scoring import Inference


@dataclass
class Labelled:
    """An image with one face."""

    id: str
    pixels: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray = field(default_factory=lambda: np.zeros(1, int))
    regions: np.ndarray = field(default_factory=lambda: np.zeros(1, bool))
    singles: np.ndarray | None = None


def labelled(amount):
    """Images with one face each, in another place each time."""
    images = []
    for index in range(amount):
        place = index % (WIDTH // CELL), index % (HEIGHT // CELL)
        pixels = np.ascontiguousarray(picture([place])[..., ::-1])
        images.append(Labelled(str(index), pixels, np.array([cell_box(*place)], float)))
    return images


def score(predictor, images, iou=0.5, batch_size=16, decoder=None):
    """Returns the metric of what a predictor finds, the names of the images, and the loop that it ran in."""
    metric, inference, ids = AveragePrecision(("face",), iou=iou), Inference(predictor, batch_size, decoder), []
    for image, found in inference.stream((image, image.pixels) for image in images):
        metric.add(image.id, image, found)
        ids.append(image.id)
    return metric, ids, inference


def bare(folder, **changes):
    """Writes the detector as one file without manifest, labels or description; returns the file."""
    write_detector(folder)
    (folder / "manifest.json").unlink()
    (folder / "labels.txt").unlink()
    model = onnx.load(folder / "model.onnx")
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = changes.get("rename", str)(name)
    for value in (*model.graph.input, *model.graph.output):
        value.name = changes.get("rename", str)(value.name)
        if "batch" in changes:
            value.type.tensor_type.shape.dim[0].dim_value = changes["batch"]
    file = folder / changes.get("name", "detector.onnx")
    onnx.save(model, file)
    return file


def test_a_whole_data_set_is_scored_in_batches(tmp_path):
    metric, ids, inference = score(load_predictor(write_detector(tmp_path / "model")), labelled(7), batch_size=3)
    assert ids == [str(index) for index in range(7)]
    assert len(inference.network_seconds) == 3
    assert 0 < sum(inference.network_seconds) < inference.seconds
    assert metric.score() == Score("mean_average_precision", 1.0, count=7)
    assert metric.outcomes()["face"].value() == 1.0


def test_nothing_to_score_has_no_score(tmp_path):
    metric, _, _ = score(load_predictor(write_detector(tmp_path / "model")), [])
    assert metric.score().value is None


def test_the_given_detector_finds_what_is_scored(tmp_path):
    predictor = load_predictor(write_detector(tmp_path / "model"))
    blind = replace(predictor.decoder, detector=lambda *_: np.zeros((0, 5), np.float32))
    metric, _, _ = score(predictor, labelled(2), decoder=blind)
    assert metric.score().value == 0.0


def test_each_class_has_its_own_overlap(tmp_path):
    predictor = load_predictor(write_detector(tmp_path / "model"))
    shifted = [
        Labelled(image.id, image.pixels, image.boxes + np.array([4, 0, 4, 0])) for image in labelled(2)
    ]  # IoU 12/20
    found = {at: score(predictor, shifted, {"face": at})[0].score().value == 1 for at in (0.6, 0.61)}
    assert found == {0.6: True, 0.61: False}


def test_only_classes_with_clustering_settings_are_looked_for_and_either_path_is_taken(tmp_path):
    predictor = load_predictor(write_detector(tmp_path / "model"))
    images = np.stack([image.pixels for image in labelled(2)])
    for_inference = replace(predictor.decoder, detector=detect_for_inference)
    evaluation, inference = detect_images(predictor, images), detect_images(predictor, images, for_inference)
    for one, other in zip(evaluation, inference, strict=True):
        np.testing.assert_allclose(one.rows(), other.rows())
        assert len(one) == 1
    nothing = replace(predictor.decoder, clustering={})
    assert [len(found) for found in nothing(predictor(images))] == [0, 0]


# ---- ONNX files from elsewhere ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rename", [str, lambda name: f"{name}:0" if name[:5] in ("input", "outpu") else name])
def test_a_file_without_description_tells_its_size_and_gets_the_classes_it_is_given(rename, tmp_path, capsys):
    file = bare(tmp_path / "model", rename=rename)
    predictor = load_predictor(file, ("face",))
    assert (predictor.input.width, predictor.input.height) == (WIDTH, HEIGHT)
    assert (predictor.decoder.geometry.scale, predictor.decoder.geometry.offset) == (35, 0.5)
    assert predictor.decoder.class_names == ("face",)
    assert predictor.parameters > 10_000
    said = capsys.readouterr().err
    assert "input 96x64 from the graph; box scale 35 and offset 0.5; classes face from the spec" in said
    assert len(said.splitlines()) == 1
    assert (predictor(labelled(1)[0].pixels[None])[COVERAGE] > 0.5).sum() == 1
    # Scored as a spec would say: DBSCAN's defaults drop a cell that stands alone.
    decoder = replace(predictor.decoder, clustering={"face": Clustering(algorithm="nms", coverage_threshold=0.5)})
    metric, _, _ = score(predictor, labelled(3), iou=0.9, decoder=decoder)
    assert metric.score().value == 1.0


def test_labels_beside_the_file_go_before_given_classes(tmp_path, capsys):
    file = bare(tmp_path / "model")
    (file.parent / "labels.txt").write_text("head\n")
    assert load_predictor(file, ("face",)).decoder.class_names == ("head",)
    assert "classes head from" in capsys.readouterr().err
    (file.parent / "labels.txt").write_text("\ufeffface;head\n", "utf-8")
    with pytest.raises(UserError, match=r"it has 1 classes, .*labels\.txt names 2 \(face, head\)"):
        load_predictor(file)


def test_a_file_of_which_nothing_tells_the_classes_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"put a labels\.txt beside it"):
        load_predictor(bare(tmp_path / "model"))


def test_the_file_that_is_named_is_the_one_that_is_loaded(tmp_path):
    file = bare(tmp_path / "model", name="other.onnx")
    (tmp_path / "model" / "model.onnx").write_bytes(b"not this one")
    assert load_predictor(file, ("face",)).file_bytes == file.stat().st_size


def test_a_description_under_the_files_name_is_taken_and_held_against_the_graph(tmp_path, capsys):
    file = bare(tmp_path / "model")
    description = {"class_names": ["head"], "parameters": 7, "clustering": {"head": {"coverage_threshold": 0.5}}}
    description["geometry"] = {"width": WIDTH, "height": HEIGHT, "scale": 40.0, "offset": 0.5}
    file.with_suffix(".json").write_text(json.dumps(description))
    predictor = load_predictor(file, ("face",))
    decoder = predictor.decoder
    assert (decoder.class_names, predictor.parameters, decoder.geometry.scale) == (("head",), 7, 40)
    assert decoder.clustering["head"].coverage_threshold == 0.5
    assert capsys.readouterr().err == ""
    description["geometry"]["width"] = 2 * WIDTH
    file.with_suffix(".json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=f"its width is {WIDTH}, its description says {2 * WIDTH}"):
        load_predictor(file)
    file.with_suffix(".json").write_text("[")
    with pytest.raises(UserError, match="no JSON text"):
        load_predictor(file)


@pytest.mark.parametrize("amount", [1, 2, 3, 5])
def test_a_model_of_fixed_batch_size_takes_any_number_of_images(amount, tmp_path):
    dynamic = load_predictor(bare(tmp_path / "dynamic"), ("face",))
    fixed = load_predictor(bare(tmp_path / "fixed", batch=2), ("face",))
    images = np.stack([image.pixels for image in labelled(amount)])
    for one, other in zip(dynamic(images).values(), fixed(images).values(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("content", [b"", b"no model"])
def test_a_broken_file_costs_one_line(content, tmp_path):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(UserError, match="ONNX Runtime cannot load this model") as raised:
        load_predictor(tmp_path / "m.onnx", ("face",))
    assert "\n" not in str(raised.value)
