"""`detectnet_v2 evaluate`: figures, TAO's printed lines and status records."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from discs import detectnet_v2, edit, experiment_spec
from square_detector import CELL, HEIGHT, WIDTH, cell_box, picture, write_detector

from components.decode.grid.clustering import Clustering
from components.detectnet_v2 import evaluation, spec_pb2
from components.detectnet_v2.evaluation import box_sizes, evaluation_status, print_evaluation
from components.detectnet_v2.validation import scored_by_tao5
from components.measure.matching import BoxSizes
from components.measure.metric import AVERAGE_PRECISION, Score
from components.measure.uncertainty import Resampling
from components.step import UserError
from components.vision.data.annotations import Annotations
from components.vision.predictor import detect_images, load_predictor

SETTINGS = {"face": Clustering(algorithm="nms", coverage_threshold=0.5)}
NOTHING = np.zeros((0, 4), np.float32)
CELLS = [(column, row) for row in range(0, HEIGHT // CELL, 2) for column in range(0, WIDTH // CELL, 2)]


@pytest.fixture
def predictor(tmp_path):
    return load_predictor(write_detector(tmp_path / "model"))


def evaluate(predictor, data, config, clustering=SETTINGS, **options):
    return evaluation.evaluate(predictor, data, config, replace(predictor.decoder, clustering=clustering), **options)


def data_of(*images, masked=NOTHING):
    """Labelled images as the loader makes them; each image is a list of cells that are red, and of labelled ones."""
    pixels = np.stack([picture(red)[..., ::-1] for red, _ in images])
    objects = [
        Annotations(
            np.array([cell_box(*cell) for cell in cells], np.float32).reshape(-1, 4), np.zeros(len(cells), int), masked
        )
        for _, cells in images
    ]
    return SimpleNamespace(pixels=pixels, objects=objects)


def config_of(mode="INTEGRATE", overlap=0.5, **sizes):
    config = spec_pb2.EvaluationConfig(average_precision_mode=mode)
    config.minimum_detection_ground_truth_overlap["face"] = overlap
    limits = {"minimum_height": 1, "maximum_height": 9999, "minimum_width": 1, "maximum_width": 9999, **sizes}
    config.evaluation_box_config["face"].CopyFrom(spec_pb2.EvaluationConfig.EvaluationBoxConfig(**limits))
    return config


# ---- Figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["INTEGRATE", "SAMPLE"])
def test_a_perfect_detector_scores_one_and_under_tao5_loses_its_last_object(mode, predictor):
    data = data_of((CELLS, CELLS), (CELLS[:3], CELLS[:3]))
    objects = len(CELLS) + 3
    right = evaluate(predictor, data, config_of(mode))
    assert (right["mean_average_precision"], right["objects"], right["compat"]) == (1.0, objects, "none")
    taos = evaluate(predictor, data, config_of(mode), tao5=True, batch_size=2)
    expected = (objects - 1) / objects if mode == "INTEGRATE" else 1.0
    assert taos["mean_average_precision"] == pytest.approx(expected)
    assert taos["average_precision"] == {"face": pytest.approx(expected)}
    assert (taos["compat"], taos["average_precision_mode"]) == ("tao5", mode.lower())


def test_the_mode_of_the_spec_counts(predictor):
    data = data_of((CELLS[:3], CELLS[:5]))
    figures = {mode: evaluate(predictor, data, config_of(mode))["mean_average_precision"] for mode in (0, 1)}
    assert figures == {0: pytest.approx(7 / 11), 1: pytest.approx(3 / 5)}


@pytest.mark.parametrize(
    ("images", "batch_size", "scored"), [(4, 2, [0, 1, 2, 3]), (5, 2, [0, 1, 2, 3, 4, 0]), (2, 5, [0, 1, 0, 1, 0])]
)
def test_tao5_evaluates_whole_batches_and_fills_the_last_with_the_first_images(images, batch_size, scored):
    assert scored_by_tao5(images, batch_size).tolist() == scored


def test_tao5_validates_whole_batches_in_training_and_goes_on_where_it_stopped():
    windows = [scored_by_tao5(5, 2, validations).tolist() for validations in range(4)]
    assert windows == [[0, 1, 2, 3], [4, 0, 1, 2], [3, 4, 0, 1], [2, 3, 4, 0]]
    assert [scored_by_tao5(4, 2, validations).tolist() for validations in range(2)] == [[0, 1, 2, 3]] * 2
    with pytest.raises(UserError, match="2 validation images are fewer than one batch of 5, and TAO 5 would validate"):
        scored_by_tao5(2, 5, 0)


def test_an_image_that_is_scored_twice_counts_twice(predictor):
    data = data_of((CELLS[:2], CELLS[:2]), (CELLS[:2], CELLS[:2]), ([], CELLS[:4]))
    assert evaluate(predictor, data, config_of(), batch_size=2)["images"] == 3
    figures = evaluate(predictor, data, config_of(), batch_size=2, tao5=True, order=scored_by_tao5(3, 2))
    # 6 of 10 objects are found; one of the 6 is lost with TAO's end of the curve.
    assert (figures["images"], figures["average_precision"]["face"]) == (4, pytest.approx(5 / 10))


@pytest.mark.parametrize(("setting", "ours", "taos"), [("minimum_height", 0, 3), ("nms_confidence_threshold", 3, 0)])
def test_under_tao5_nms_ignores_heights_and_wants_scores_above_the_threshold(setting, ours, taos, predictor):
    data = data_of((CELLS[:3], CELLS[:3]))
    score = float(detect_images(predictor, data.pixels)[0].scores[0])
    at_limit = {setting: {"minimum_height": CELL, "nms_confidence_threshold": score}[setting]}
    clustering = {"face": Clustering(algorithm="nms", coverage_threshold=0.5, **at_limit)}
    for tao5, expected in ((False, ours), (True, taos)):
        figures = evaluate(predictor, data, config_of(), clustering, tao5=tao5, batch_size=1)
        assert figures["detections"] == expected


@pytest.mark.parametrize(
    "limits", [{"minimum_width": 17}, {"maximum_width": 15}, {"minimum_height": 17}, {"maximum_height": 15}]
)
def test_objects_of_other_widths_and_heights_are_not_demanded(limits, predictor):
    data = data_of((CELLS, CELLS))
    assert evaluate(predictor, data, config_of(**limits))["mean_average_precision"] is None
    assert evaluate(predictor, data, config_of(**limits), tao5=True, batch_size=1)["mean_average_precision"] == 0.0


def test_masked_regions_are_neutral_but_not_for_tao5(predictor):
    # All scores are equal, and the first detection is the false one.
    data = data_of((CELLS[:3], CELLS[1:3]), masked=np.array([cell_box(*CELLS[0])], np.float32))
    figures = evaluate(predictor, data, config_of("SAMPLE"))
    assert (figures["detections"], figures["mean_average_precision"]) == (2, 1.0)
    below = evaluate(predictor, data, config_of("SAMPLE"), tao5=True, batch_size=1)
    assert below["mean_average_precision"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("grown", "detections"),
    [
        (-2.4, 2),  # an ignored face of 11.2 pixels: IoU 0.49 with the detection of 16 round it
        (-4, 3),  # one of 8 pixels: IoU 0.25
        (20, 2),  # a region, in which the detection lies
    ],
)
def test_a_detection_is_excused_by_an_ignored_face_of_its_size_and_by_a_region_round_it(grown, detections, predictor):
    masked = np.array([cell_box(*CELLS[0])], np.float32) + np.float32([-grown, -grown, grown, grown])
    data = data_of((CELLS[:3], CELLS[1:3]), masked=masked)
    assert evaluate(predictor, data, config_of())["detections"] == detections


def test_one_models_figure_has_an_interval_and_taos_has_none(predictor):
    data = data_of((CELLS[:3], CELLS[:5]), (CELLS[:2], CELLS[:2]), ([], CELLS[:1]))
    figures = evaluate(predictor, data, config_of("INTEGRATE"), resampling=Resampling())
    assert Score.read(figures) == Score(
        AVERAGE_PRECISION, figures["mean_average_precision"], figures["low"], figures["high"]
    )
    assert figures["low"] < figures["mean_average_precision"] < figures["high"]
    for other in ({"tao5": True, "batch_size": 1}, {}):
        config = config_of("INTEGRATE" if other else "SAMPLE")
        assert "low" not in evaluate(predictor, data, config, resampling=Resampling(), **other)


def test_the_overlap_of_the_spec_counts(predictor):
    data = data_of(([(1, 1)], [(1, 1)]))
    data.objects[0].boxes[0, 2] += 8  # IoU 2/3
    assert evaluate(predictor, data, config_of(overlap=0.66))["mean_average_precision"] == 1.0
    assert evaluate(predictor, data, config_of(overlap=0.67))["mean_average_precision"] == 0.0


def test_an_unset_maximum_is_no_limit():
    assert box_sizes(spec_pb2.EvaluationConfig.EvaluationBoxConfig(minimum_height=4)) == BoxSizes(minimum_height=4)


# ---- What is printed and recorded ------------------------------------------------------------------------------------

FIGURES = {
    "mean_average_precision": 0.6172839506172839,
    "average_precision": {"person": 0.25, "face": 0.9845679012345678},
    "median_inference_seconds": 0.0123456789,
}


def test_an_evaluation_is_printed_as_tao_does(capsys):
    print_evaluation(FIGURES, 0.0012345678)
    assert capsys.readouterr().out == (
        "\nValidation cost: 0.001235\nMean average_precision (in %): 61.7284\n\n"
        "+------------+--------------------------+\n"
        "| class name | average precision (in %) |\n"
        "+------------+--------------------------+\n"
        "|    face    |    98.45679012345678     |\n"
        "|   person   |           25.0           |\n"
        "+------------+--------------------------+\n"
        "\nMedian Inference Time: 0.012346\n"
    )


@pytest.mark.parametrize("names", [("a", "bc"), ("a very long class name", "x")])
def test_the_table_is_that_of_tabulate(names, capsys):
    tabulate = pytest.importorskip("tabulate")
    scores = dict(zip(names, (1 / 3, 0.987654321987), strict=True))
    print_evaluation({**FIGURES, "average_precision": scores})
    rows = sorted((name, 100 * score) for name, score in scores.items())
    table = tabulate.tabulate(rows, headers=["class name", "average precision (in %)"], tablefmt="pretty")
    printed = capsys.readouterr().out
    assert table in printed
    assert "Validation cost" not in printed


def test_classes_without_objects_show_as_nan_and_are_left_out_of_the_records(capsys):
    figures = {**FIGURES, "mean_average_precision": None, "average_precision": {"face": None}}
    print_evaluation(figures)
    assert "Mean average_precision (in %): nan" in capsys.readouterr().out
    assert evaluation_status(figures) == {
        "kpi": {"mean average precision": 0.0},
        "categorical": {"average_precision": {}},
    }


def test_status_fields_are_taos():
    assert evaluation_status(FIGURES, 0.00123456789123) == {
        "kpi": {"validation cost": 0.00123457, "mean average precision": 61.7284},
        "categorical": {"average_precision": {"person": 25.0, "face": 98.4568}},
    }


# ---- The command -----------------------------------------------------------------------------------------------------

STRIDE = ("grid_stride: 8", "grid_stride: 16")  # the detector's


def test_the_command_prints_and_records_an_evaluation(kitti, records, tmp_path, capsys):
    model = write_detector(tmp_path / "model")
    spec = edit(experiment_spec(tmp_path, kitti, records, batch_size=3), STRIDE)
    for compat, images in (("none", 4), ("tao5", 6)):
        results = tmp_path / compat
        options = ("-r", results, "--compat", compat, "-f", "tlt", "-k", "key", "-v")
        assert detectnet_v2("evaluate", "-e", spec, "-m", model / "model.onnx", *options) == 0
        lines = [json.loads(line) for line in (results / "status.json").read_text().splitlines()]
        assert [line["status"] for line in lines] == ["STARTED", "RUNNING", "SUCCESS"]
        metrics = json.loads((results / "metrics.json").read_text())
        assert metrics["images"] == images
        assert metrics["validation_cost"] > 0
        assert lines[1]["kpi"]["validation cost"] == round(metrics["validation_cost"], 8)
        assert math.isfinite(metrics["median_inference_seconds"])
        out = capsys.readouterr().out
        assert f"Validation cost: {metrics['validation_cost']:f}" in out
        assert out.rstrip().splitlines()[-1] == f"Median Inference Time: {metrics['median_inference_seconds']:f}"


@pytest.mark.parametrize(
    ("options", "replacements", "words"),
    [
        (("-f", "tensorrt"), (), "-f tensorrt: TensorRT engines are not run here"),
        ((), (("output_image_width: 96", "output_image_width: 192"),), "made for 96x64, the spec says 192x64"),
        (
            (),
            (("scale: 35.0", "scale: 30.0"),),
            "16 pixels a cell, box scale 35 and offset 0.5, the spec's 16 pixels a cell, box scale 30 and offset 0.5",
        ),
        (("--compat", "tao4"), (), "tao4"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options, replacements, words, kitti, records, tmp_path, capsys):
    model = write_detector(tmp_path / "model")
    spec = edit(experiment_spec(tmp_path, kitti, records), STRIDE, *replacements)
    assert detectnet_v2("evaluate", "-e", spec, "-m", model / "model.onnx", *options) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len([line for line in error.splitlines() if not line.startswith("warning")]) == 1


def test_options_without_effect_are_named(kitti, records, tmp_path, capsys):
    model = write_detector(tmp_path / "model")
    spec = edit(experiment_spec(tmp_path, kitti, records), STRIDE)
    assert detectnet_v2("evaluate", "-e", spec, "-m", model, "-b", 8, "-l", "labels") == 0
    assert "without effect, the spec says what to score on: -l, -b" in capsys.readouterr().err
