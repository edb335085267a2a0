"""`gridbox evaluate` and `gridbox compare`: from files, models and endpoints to figures, JSON and reports."""

import json
import re

import cv2
import numpy as np
import pytest
from scripted_endpoint import Server, write_model
from square_detector import face, picture, random_samples, sample, write_detector, write_kitti

from components import program
from components.decode.instances import Instances
from components.evaluate.commands import app
from components.evaluate.compare_command import app as compare_app
from components.evaluate.detectors import detect_here, detect_there
from components.evaluate.inputs import Findings, read_predictions, read_truth
from components.evaluate.measuring import Source
from components.evaluate.pictures import Pictures
from components.evaluate.protocols import measure
from components.evaluate.rules import Protocol, Rules
from components.formats.kitti import Label
from components.step import UserError
from components.vision.endpoint import Answer
from components.vision.inputs import InputSpec
from components.vision.predictor import load_predictor


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return write_detector(tmp_path_factory.mktemp("model") / "exported")


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Twelve right images, one with a missed and a false face, one with labels in an image three times the size."""
    samples = random_samples(12, "good", seed=4)
    large = cv2.resize(picture([(2, 1)]), None, fx=3, fy=3, interpolation=cv2.INTER_NEAREST)
    labels = [Label("face", 0, 0, (96.0, 48.0, 144.0, 96.0))]
    samples += [sample("bad", [(0, 0), (3, 2)], [face(3, 2), face(5, 3)]), sample("large", [], labels, large)]
    return write_kitti(tmp_path_factory.mktemp("set") / "kitti", [], samples)


@pytest.fixture
def evaluate(capsys):
    """Runs `gridbox evaluate` and returns the exit code, standard output and standard error."""

    def run(*words, of=app):
        capsys.readouterr()
        code = program.run(of, [str(word) for word in words], "gridbox evaluate")
        return code, *capsys.readouterr()

    return run


def figures(out):
    assert out.count("\n") == 1  # one object and nothing else
    return json.loads(out)


# ---- WIDER FACE ------------------------------------------------------------------------------------------------------


def test_official_figures_come_as_one_json_object(real_data, evaluate):
    folder = real_data / "wider_face_eval"
    code, out, err = evaluate(
        *("--predictions", folder / "retinaface_mnet025_predictions.zip", "--truth", folder / "ground_truth"),
        *("--protocol", "wider", "--json"),
    )
    document = figures(out)
    assert code == 0
    assert (document["images"], document["detections"]) == (3226, 297_333)
    points = {name: round(100 * value, 2) for name, value in document["figures"].items()}
    assert points == {"easy": 90.70, "medium": 88.16, "hard": 73.83}
    assert "4 images without objects" in err


def test_official_figures_of_the_images_at_hand_are_of_these_images_alone(real_data, evaluate):
    folder = real_data / "wider_face_eval"
    code, out, _ = evaluate(
        *("--predictions", folder / "retinaface_mnet025_predictions.zip", "--truth", folder / "ground_truth"),
        *("--images", real_data / "wider_face", "--at-hand", "--protocol", "wider", "--json", "--strict"),
    )
    document = figures(out)
    assert code == 0
    assert (document["images"], document["detections"]) == (300, 12_815)
    assert document["findings"]["retinaface_mnet025_predictions"] == {"faults": {}, "notes": {}}
    points = {name: round(100 * value, 1) for name, value in document["figures"].items()}
    assert points == {"easy": 96.1, "medium": 95.0, "hard": 87.1}


def test_heights_are_those_in_a_network_input_when_its_size_is_given(real_data, evaluate):
    code, out, _ = evaluate(
        *("--predictions", real_data / "wider_face_eval/retinaface_mnet025_predictions.zip"),
        *("--truth", real_data / "wider_face", "--input", "480x272", "--min-height", "0,20,40", "--json"),
    )
    assert code == 0
    # As an independent reader of the same files measured them.
    assert figures(out)["figures"] == pytest.approx(
        {"map": 0.745, "map_from_20": 0.970, "map_from_40": 0.982}, abs=6e-4
    )


# ---- Protocols -------------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path, detector, squares):
    """The detector's detections as KITTI labels with scores, in pixels of the stored images."""
    truth = read_truth(squares, Findings())
    found = detect_here(load_predictor(detector), "m", Pictures(truth, squares, "validation"), truth, Findings())
    folder = tmp_path / "found"
    folder.mkdir()
    for index, name in enumerate(truth.images):
        here = slice(*found.predictions.offsets[index : index + 2])
        rows = zip(found.predictions.boxes[here].tolist(), found.predictions.scores[here].tolist(), strict=True)
        lines = [
            f"face 0 0 0 {' '.join(f'{edge:.3f}' for edge in box)} 0 0 0 0 0 0 0 {score:.6f}" for box, score in rows
        ]
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize(
    ("protocol", "names"),
    [("ap50", {"map"}), ("tao", {"map", "ap_area"}), ("coco", {"ap", "ap50", "ap75", "ap_small", "ap_area"})],
)
def test_each_protocol_gives_its_figures_intervals_and_reports(tmp_path, results, squares, evaluate, protocol, names):
    words = ["--predictions", results, "--truth", squares, "--protocol", protocol, "--json", "--intervals"]
    reports = ["--report", tmp_path / "report.html", "--markdown", tmp_path / "report.md"]
    code, out, _ = evaluate(*words, "--replicates", 100, *reports)
    document = figures(out)
    assert code == 0
    assert names <= document["figures"].keys()
    assert document["findings"]["found"] == {"faults": {}, "notes": {}}
    figure = "map" if protocol == "ap50" else "ap_area"
    interval = document["intervals"][figure]
    assert interval["low"] <= document["figures"][figure] == interval["value"] <= interval["high"]
    assert 0.9 < interval["value"] < 1
    value = f"{100 * document['figures']['ap' if protocol == 'coco' else 'map']:.2f} %"
    around = f" [{100 * interval['low']:.2f}, {100 * interval['high']:.2f}]" if protocol == "ap50" else ""
    assert f"<dd>{value}{around}</dd>" in (tmp_path / "report.html").read_text()
    assert f"**{value}{around}**" in (tmp_path / "report.md").read_text().replace("\\", "")
    assert "intervals" not in figures(evaluate(*words, "--no-intervals")[1])


def test_a_model_and_its_own_labels_score_the_same_in_stored_pixels(results, squares, detector, evaluate):
    code, out, _ = evaluate("--model", detector, "--truth", squares, "--json")
    assert code == 0
    from_model = figures(out)
    assert from_model["parameters"] == 1234
    _, out, _ = evaluate("--predictions", results, "--truth", squares, "--json")
    assert figures(out)["figures"] == pytest.approx(from_model["figures"])


def test_rules_of_its_own_cannot_be_changed_and_missing_subsets_are_told():
    for protocol in ("wider", "coco"):
        with pytest.raises(UserError, match="it has rules of its own; leave out --iou, --min-height and --mode"):
            Rules(Protocol(protocol), iou=0.7)


def test_what_only_a_person_can_mend_costs_one_line(tmp_path, squares, results, detector, evaluate):
    for words, message in [
        (["--truth", squares], "with one of --predictions, --model and --endpoint"),
        (["--truth", squares, "--predictions", results, "--model", detector], "with one of --predictions"),
        (["--truth", squares, "--predictions", results, "--protocol", "wider"], "give the folder of the official .mat"),
        (["--truth", squares, "--predictions", tmp_path / "none"], "no such file or folder"),
        (["--truth", tmp_path, "--predictions", results], "no truth here"),
        (["--truth", squares, "--predictions", results, "--images", tmp_path / "none"], "no folder of images"),
        (["--truth", squares, "--predictions", results, "--height-bands", "9-3"], "--height-bands"),
    ]:
        code, out, err = evaluate(*words)
        assert (code, out) == (2, "")
        assert message in err.replace("\n", " ")
        assert err.count("\n") == 1


# ---- Bad input -------------------------------------------------------------------------------------------------------


def test_faults_are_named_and_counted_and_fatal_when_strict(results, squares, evaluate):
    (results / "bad.txt").write_text(
        "face 0 0 0 0 0 16 16 0 0 0 0 0 0 0 nan\nface 0 0 0 9 9 3 12 0 0 0 0 0 0 0 0.9\n"
        "hand 0 0 0 0 0 16 16 0 0 0 0 0 0 0 0.9\n"
    )
    (results / "unknown.txt").write_text("face 0 0 0 0 0 16 16 0 0 0 0 0 0 0 0.9\n")
    words = ["--predictions", results, "--truth", squares]
    code, out, err = evaluate(*words, "--json")
    assert code == 0
    assert figures(out)["findings"]["found"]["faults"] == {
        "images with predictions that the truth does not know": 1,
        "detections of class hand, unknown to the truth": 1,
        "detections whose score is no finite number": 1,
        "detections of negative size": 1,
    }
    assert "found: 1 detections of negative size (first: bad)" in err
    code, out, err = evaluate(*words, "--strict", "--json")
    assert (code, out) == (2, "")
    assert "1 detections whose score is no finite number" in err
    assert "leave out --strict to go on without these" in err


# ---- Endpoint --------------------------------------------------------------------------------------------------------


def test_an_endpoint_is_measured_like_predictions_and_says_how_long_it_takes(tmp_path, squares, evaluate):
    write_model(tmp_path / "models")
    server = Server(tmp_path / "models", tmp_path / "server.log")
    try:
        code, out, _ = evaluate("--endpoint", server.grpc_url, "--truth", squares, "--json", "--report", tmp_path / "r")
    finally:
        server.kill()
    document = figures(out)
    assert code == 0
    assert document["latency_milliseconds"]["p50"] > 0
    assert document["images_per_second"] > 0
    assert 0 < document["figures"]["map"] < 1
    assert "<h2>Latency</h2>" in (tmp_path / "r").read_text()


class Silent:
    """An endpoint that has no answer for one image."""

    class_names = ("face",)

    def stream(self, images):
        for name, _ in images:
            yield name, Answer({"face": np.zeros((0, 5), np.float32)}, error="too large" if name == "bad" else "")

    def __str__(self):
        return "endpoint"


def test_images_without_an_answer_fail_the_measurement(squares):
    from components.step import StageError

    truth = read_truth(squares, Findings())
    with pytest.raises(StageError, match="endpoint: 1 of 14 images have no answer: bad: too large"):
        detect_there(Silent(), "m", Pictures(truth, squares, "validation"), truth, Findings())


def test_boxes_of_a_model_are_mapped_back_through_the_letterbox():
    boxes = np.array([[2.4, 24.8, 72, 41.6]])  # times 0.24, and 20 pixels down
    there = Instances(boxes, np.array([0.5]), np.array([0]))
    placement = InputSpec(96, 64).place(np.zeros((100, 400, 3), np.uint8))[1]
    np.testing.assert_allclose(there.to_source(placement).rows(), [[10, 20, 300, 90, 0.5]])


# ---- Images ----------------------------------------------------------------------------------------------------------


def test_images_that_are_not_at_hand_are_needed_by_a_model_only(tmp_path, results, detector, evaluate):
    truth = tmp_path / "truth.json"
    names = [file.stem for file in sorted(results.glob("*.txt"))]
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 16, 16]}
    document = {
        "images": [{"id": n + 1, "file_name": f"{name}.png"} for n, name in enumerate(names)],
        "categories": [{"id": 1, "name": "Face"}],
        "annotations": [annotation],
    }
    truth.write_text(json.dumps(document))
    code, _, _ = evaluate("--predictions", results, "--truth", truth, "--report", tmp_path / "report.html")
    assert code == 0
    assert "<h2>Gallery</h2>" not in (tmp_path / "report.html").read_text()
    code, _, err = evaluate("--model", detector, "--truth", truth)
    assert code == 2
    assert "14 of 14 images are not at hand (first: bad.png); name their folder with --images" in err
    (tmp_path / "images").mkdir()
    for name in names:
        (tmp_path / "images" / f"{name}.png").write_bytes(cv2.imencode(".png", picture([(0, 0)]))[1].tobytes())
    code, out, _ = evaluate("--model", detector, "--truth", truth, "--images", tmp_path / "images")
    assert code == 0
    assert "exported: 14 detections, 1 faces in 14 images" in out


@pytest.fixture
def coco_of_some(tmp_path, squares):
    """COCO's truth of the squares' images, and a folder that holds every other one of them, with their names."""
    truth = read_truth(squares, Findings())
    pictures = Pictures(truth, squares, "validation")
    document = {"images": [], "categories": [{"id": 1, "name": "face"}], "annotations": []}
    (tmp_path / "some").mkdir()
    for index, image in enumerate(pictures.encoded(truth.images)):
        document["images"].append({"id": index + 1, "file_name": f"{image.name}.png"})
        for x1, y1, x2, y2 in truth.boxes[slice(*truth.offsets[index : index + 2])].tolist():
            row = {"image_id": index + 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
            document["annotations"].append({"id": len(document["annotations"]) + 1, **row})
        if index % 2 == 0:
            (tmp_path / "some" / f"{image.name}.png").write_bytes(image.content)
    (tmp_path / "truth.json").write_text(json.dumps(document))
    kept = truth.of_images(np.arange(len(truth.images)) % 2 == 0)
    return tmp_path / "truth.json", tmp_path / "some", kept


def test_only_images_at_hand_count_when_asked_for(results, coco_of_some, evaluate):
    truth, some, kept = coco_of_some
    words = ["--predictions", results, "--truth", truth, "--images", some, "--strict", "--json"]
    code, out, _ = evaluate(*words, "--at-hand")
    document = figures(out)
    assert code == 0
    assert (document["images"], document["objects"]) == (7, len(kept.boxes))
    with pytest.raises(UserError, match="7 images with predictions that the truth does not know"):
        read_predictions(results, kept, Findings(strict=True))
    found = read_predictions(results, kept, Findings())
    expected = measure("m", kept, found, Rules(Protocol.ap50)).figures["map"].value
    assert document["figures"]["map"] == expected
    code, out, _ = evaluate(*words)
    assert figures(out)["images"] == 14
    assert figures(out)["figures"]["map"] != expected
    code, _, err = evaluate("--predictions", results, "--truth", truth, "--at-hand")
    assert code == 2
    assert "none of the truth's images is there; name their folder with --images" in err


def test_height_in_an_input_is_that_of_the_fitted_image(results, squares, evaluate, tmp_path):
    # Faces are 16 pixels high in images of 96 x 64, and 48 in one three times as large.
    words = ["--predictions", results, "--truth", squares, "--json", "--report", tmp_path / "report.html"]

    def measured(height, *size):
        code, out, _ = evaluate(*words, "--min-height", height, *size)
        assert code == 0
        return figures(out)

    everything = measured("0,33")
    assert (measured("17")["objects"], measured("17", "--input", "96x64")["objects"]) == (1, 0)
    doubled = measured("17,33", "--input", "192x128")
    assert doubled["objects"] == everything["objects"]
    assert doubled["figures"]["map"] == everything["figures"]["map"]
    assert doubled["figures"]["map_from_33"] is None  # the large one, too, is 32 pixels high there
    assert everything["figures"]["map_from_33"] == 1
    assert "Height in 192x128, pixels" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--min-height", "20,10"], "--min-height '20,10': give one height in pixels, or several that rise"),
        (["--min-height", "-1"], "--min-height '-1'"),
        (["--min-height", "nan"], "--min-height 'nan'"),
        (["--input", "480"], "--input '480': give width and height in pixels, for example 480x272"),
        (["--input", "0x272"], "--input '0x272'"),
        (["--protocol", "tao", "--input", "480x272"], "--protocol tao: only ap50 takes several heights"),
    ],
)
def test_heights_and_sizes_that_make_no_sense_cost_one_line(results, squares, evaluate, words, message):
    code, out, err = evaluate("--predictions", results, "--truth", squares, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


# ---- Comparing -------------------------------------------------------------------------------------------------------


def test_models_are_compared_on_the_same_images(tmp_path, squares, detector, results, evaluate):
    blind = write_detector(tmp_path / "blind", threshold=2)
    code, out, _ = evaluate(
        *(f"sees={detector}", f"blind={blind}", f"labels={results}", "--truth", squares, "--json"),
        *("--replicates", 200, "--report", tmp_path / "report.html", "--markdown", tmp_path / "report.md"),
        of=compare_app,
    )
    document = figures(out)
    assert code == 0
    assert [model["name"] for model in document["models"]] == ["sees", "blind", "labels"]
    values = [model["figures"]["map"] for model in document["models"]]
    assert values[1] == 0
    assert values[0] == pytest.approx(values[2])
    worse, same = document["differences"]
    assert (worse["model"], worse["baseline"], worse["figure"]) == ("blind", "sees", "map")
    assert worse["value"] == pytest.approx(-values[0])
    assert worse["p_value"] < 0.05
    assert (same["model"], same["value"]) == ("labels", pytest.approx(0))
    assert same["p_value"] == 1.0
    page = (tmp_path / "report.html").read_text()
    assert all(f"<b>{name}</b>" in page for name in ("Ground truth", "sees", "blind", "labels"))
    markdown = (tmp_path / "report.md").read_text()
    assert "## Differences" in markdown
    assert re.search(r"\| AP@0.5, blind − sees \| −\d\d\.\d\d \(.*\), p = 0\.01", markdown)


def test_one_model_or_the_same_name_twice_is_no_comparison(squares, detector, evaluate):
    code, _, err = evaluate(detector, "--truth", squares, of=compare_app)
    assert code == 2
    assert "give two models or more" in err
    code, _, err = evaluate(detector, detector, "--truth", squares, of=compare_app)
    assert code == 2
    assert "each with another name (NAME=PATH)" in err


def test_what_a_source_is_is_told_by_what_is_there(tmp_path, detector):
    def parsed(text):
        source = Source.parse(str(text))
        return source.name, source.kind, source.model

    assert parsed(detector) == ("exported", "model", "")
    assert parsed(f"new={detector}") == ("new", "model", "")
    assert parsed("grpc://host:8001") == ("host:8001", "endpoint", "")
    assert parsed("live=https://host/a=b") == ("live", "endpoint", "")
    (tmp_path / "run" / "weights").mkdir(parents=True)
    assert parsed(tmp_path / "run") == ("run", "model", "")
    assert parsed(tmp_path / "face.safetensors") == ("face", "model", "")
    (tmp_path / "labels").mkdir()
    assert parsed(tmp_path / "labels") == ("labels", "predictions", "")
    lines = [{"model": name, "image": "a", "detections": []} for name in ("exported", "quantized")]
    (tmp_path / "detections.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert parsed(f"quantized={tmp_path}") == ("quantized", "predictions", "quantized")
    with pytest.raises(UserError, match="holds the detections of exported, quantized; name one of them"):
        parsed(tmp_path)


def test_empty_predictions_score_zero_and_empty_truth_nothing(squares, results):
    from components.evaluate.inputs import read_predictions

    truth = read_truth(squares, Findings())
    predictions = read_predictions(results, truth, Findings())
    nothing = predictions.where(np.zeros(len(predictions.scores), bool))
    rules = Rules(Protocol.ap50)
    assert measure("m", truth, nothing, rules).figures["map"].value == 0
    empty = truth.where(np.zeros(len(truth.boxes), bool))
    figure = measure("m", empty, predictions, rules).figures["map"]
    assert (figure.value, figure.outcomes) == (None, None)
