import json
from dataclasses import replace
from types import SimpleNamespace

import cv2
import flat_sets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_endpoint import Server, write_model
from square_detector import HEIGHT, WIDTH, face, picture, random_samples, sample, write_detector, write_kitti
from typer.main import get_command

from components import program
from components.evaluate import component
from components.evaluate.commands import app
from components.evaluate.difference import compare, counterparts
from components.evaluate.latency import LEAST_REQUESTS, Latency, measure
from components.evaluate.pictures import Picture
from components.evaluate.program import Scoring, Source, input_of, require_version
from components.evaluate.report.figures import chart_svg, latency_chart
from components.evaluate.rules import Protocol, Rules
from components.formats.kitti import Label
from components.measure.matching import HeightBand
from components.serve.config import RepositorySettings
from components.serve.repository import build_repository
from components.step import StageError, UserError, write_manifest
from components.vision.endpoint import Answer, Endpoint
from components.vision.inputs import InputSpec

SCALE = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton")
    write_model(folder / "models")
    server = Server(folder / "models", folder / "server.log")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return write_detector(tmp_path_factory.mktemp("model") / "exported")


@pytest.fixture
def score(tmp_path, server):
    """Runs `evaluate score --endpoint`; returns the exit code and the metrics of the artifact."""

    def run(*more, url=None):
        folder = tmp_path / "evaluation"
        flags = [
            "--endpoint",
            url or server.grpc_url,
            "--evaluation",
            folder,
            "--height-bands",
            "8-16,16-24,24+",
            *more,
        ]
        code = program.run(app, ["score", *map(str, flags)], "gridbox evaluate")
        metrics = folder / "metrics.json"
        return code, json.loads(metrics.read_text()) if metrics.exists() else None

    return run


def large_sample(name, red, faces):
    """A picture three times the size of the network's input, with labels in its own pixels."""
    image = cv2.resize(picture(red), None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_NEAREST)
    labels = [
        Label(label.class_name, 0, 0, tuple(SCALE * edge for edge in label.box))
        for label in (face(*cell) for cell in faces)
    ]
    return sample(name, red, labels, image)


def write_set(folder, *more):
    samples = [
        large_sample("good", [(0, 0), (3, 2)], [(0, 0), (3, 2)]),
        sample("small", [(1, 1), (4, 2)], [face(1, 1), face(4, 2)]),
        large_sample("missed", [(2, 1)], [(2, 1), (5, 3)]),
        large_sample("wrong", [(2, 1), (4, 3)], [(2, 1)]),
        large_sample("empty", [], []),
    ]
    return write_kitti(folder, [], [*samples, *more])


def test_endpoint_scores_as_the_model_here_does_and_finds_the_same_boxes(tmp_path, score, detector, capsys):
    kitti = write_set(tmp_path / "kitti")
    code, metrics = score("--kitti", kitti, "--model", detector, "--metrics", tmp_path / "metrics.json")
    assert code == 0
    here, served = metrics["models"]["in-process"], metrics["models"]["endpoint"]
    assert 0 < served["mean_average_precision"] < 1
    for name in ("mean_average_precision", "average_precision_by_height", "objects", "detections"):
        assert served[name] == here[name]
    assert metrics["model"] == "endpoint"
    words = capsys.readouterr().out
    assert "Endpoint and model find the same boxes in 5 of 5 images" in words
    assert "p50" in words

    flat = json.loads((tmp_path / "metrics.json").read_text())
    times = [flat[f"latency_p{percent}_milliseconds"] for percent in (50, 90, 95, 99)]
    assert times == sorted(times)
    assert times[0] > 0
    assert flat["images_per_second"] > 0
    assert flat["differing_images"] == 0
    assert "file_bytes" not in flat  # nothing is known of the served model's file
    page = (tmp_path / "evaluation" / "report.html").read_text()
    for text in ("<h2>Latency</h2>", "Share of images done within", "each edge within 0.5 pixel", "in all 5 images"):
        assert text in page
    assert "None" not in page


def test_boxes_that_differ_are_named_and_fail_the_stage_when_there_are_too_many(tmp_path, score, detector, capsys):
    # A patch that fills a cell for the network, and not quite for the endpoint, which sees its own pixels.
    image = cv2.resize(picture([(2, 1)]), None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_NEAREST)
    image[: 16 * SCALE + 1] = (0, 255, 0)
    kitti = write_set(tmp_path / "kitti", sample("shifted", [], [], image))
    code, metrics = score("--kitti", kitti, "--model", detector)
    assert code == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "differ from those of" in error
    assert "in 1 of 6 images, first in shifted; at most 1.00% may" in error
    assert metrics["models"]["endpoint"]["images"] == 6  # all is written
    assert "in all but 1 of 6 images (shifted)" in (tmp_path / "evaluation" / "report.html").read_text()
    code, _ = score("--kitti", kitti, "--model", detector, "--differing-images", "0.2")
    assert code == 0
    assert "same boxes in 5 of 6 images" in capsys.readouterr().out


def test_model_that_is_not_the_served_one_is_refused(tmp_path, score, capsys):
    other = tmp_path / "other"
    write_detector(other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["settings"]["class_names"] = ["hand"]
    manifest["settings"]["clustering"] = {"hand": {}}
    (other / "manifest.json").write_text(json.dumps(manifest))
    code, metrics = score("--kitti", write_set(tmp_path / "kitti"), "--model", other)
    assert (code, metrics) == (2, None)
    assert "its input size or classes are not those behind" in capsys.readouterr().err


def test_mistakes_cost_one_line_and_leave_nothing(tmp_path, score, detector, capsys):
    kitti = write_set(tmp_path / "kitti")
    for words, url, message in [
        (["--kitti", kitti], "127.0.0.1:9", "no Triton at"),
        (["--kitti", kitti], None, "none of its models says the size of the network's input; give --model, too"),
        (["--model", detector], None, "give the labelled images with one of --kitti and --wider"),
        (["--kitti", kitti, "--endpoint-model", "facenet"], None, "unknown model"),
    ]:
        code, metrics = score(*words, url=url)
        assert (code, metrics) == (2, None)
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert program.run(app, ["score", "--kitti", str(kitti), "--evaluation", "e"], "gridbox evaluate") == 2
    assert "give what to score: --model, --endpoint, or both" in capsys.readouterr().err


def test_component_declares_what_the_command_takes():
    command, spec = get_command(app).commands["endpoint"], component.endpoint.component_spec
    declared = {"--" + name.replace("_", "-") for name in {*spec.inputs, *spec.outputs}}
    assert declared <= {name for parameter in command.params for name in parameter.opts}
    assert {name for parameter in command.params if parameter.required for name in parameter.opts} <= declared


@pytest.fixture
def drive(tmp_path, detector):
    """Runs the stage `endpoint` for a deployment as Kubeflow does; returns the exit code and its outputs."""

    def artifact(path, schema="system.Artifact"):
        return {"artifacts": [{"name": path.name, "uri": str(path), "type": {"schemaTitle": schema}}]}

    def run(**deployment):
        (tmp_path / "deployment").mkdir()
        write_manifest(tmp_path / "deployment", "deployment", {}, deployment)
        outputs = {"evaluation": "system.Artifact", "metrics": "system.Metrics", "report": "system.HTML"}
        inputs = {"kitti": write_set(tmp_path / "kitti"), "model": detector, "deployment": tmp_path / "deployment"}
        executor_input = {
            "inputs": {
                "parameterValues": {"min_face_height": 12},
                "artifacts": {name: artifact(path) for name, path in inputs.items()},
            },
            "outputs": {
                "artifacts": {name: artifact(tmp_path / "out" / name, schema) for name, schema in outputs.items()},
                "outputFile": str(tmp_path / "out" / "executor_output.json"),
            },
        }
        code = program.run(app, ["endpoint", "--executor-input", json.dumps(executor_input)], "gridbox evaluate")
        file = tmp_path / "out" / "executor_output.json"
        return code, json.loads(file.read_text())["artifacts"] if file.exists() else {}

    return run


def test_kubeflow_scores_the_endpoint_that_the_deployment_names(drive, server):
    code, written = drive(endpoint=server.grpc_url, gateway_host="", repository_digest="")
    assert code == 0
    assert written["metrics"]["artifacts"][0]["metadata"]["latency_p99_milliseconds"] > 0
    assert written["evaluation"]["artifacts"][0]["metadata"]["mean_average_precision"] > 0


def test_deployment_that_serves_nothing_is_written_as_not_scored(drive, tmp_path, capsys):
    code, written = drive(endpoint="", repository_digest="ab")
    assert code == 0
    assert written["metrics"]["artifacts"][0]["metadata"] == {"skipped": True}
    assert "no endpoint to score" in (tmp_path / "out/report").read_text()
    assert "skipped: the deployment serves nothing yet" in capsys.readouterr().out


def test_another_version_that_answers_is_not_scored_in_the_place_of_the_deployed_one(drive, server, tmp_path, capsys):
    code, written = drive(endpoint=server.grpc_url, repository_digest="ab" * 32)
    assert (code, written) == (1, {})
    said = capsys.readouterr().err
    assert "a version that does not say which it is answers, not abababababababab…; it is not scored" in said
    assert not (tmp_path / "out/evaluation").exists()


@pytest.mark.parametrize(("wanted", "found"), [("", "cd"), ("", ""), ("cd", "cd")])
def test_version_that_answers_is_scored_where_it_is_the_wanted_one_or_any_will_do(wanted, found):
    require_version(SimpleNamespace(parameters={"gridbox_digest": found}), wanted)


class FakeEndpoint:
    """Answers at once: what stands in `answers` by the image's bytes."""

    class_names = ("face",)
    network_size = (WIDTH, HEIGHT)
    in_flight = 2

    def __init__(self, **answers):
        self.answers, self.sent = answers, 0
        self.parameters = {}

    def __str__(self):
        return "endpoint"

    def stream(self, images):
        for key, content in images:
            self.sent += 1
            yield key, self.answers[content.decode()]


class Stored:
    """Images whose bytes are their names."""

    def __init__(self, *names):
        self.available = set(names)

    def encoded(self, wanted):
        return (Picture(name, name, name.encode()) for name in wanted)


def scored(endpoint, min_height, **truths):
    """Scores an endpoint on images with these faces, in their own pixels."""
    truth = flat_sets.truth_of([np.reshape(boxes, (-1, 4)).astype(float) for boxes in truths.values()])
    rules = Rules(Protocol.ap50, min_height=min_height, bands=(HeightBand(0, 16), HeightBand(16)))
    source, spec = Source(None, None, "validation"), InputSpec(WIDTH, HEIGHT)
    return Scoring(source, rules, spec, replace(truth, images=tuple(truths)), {}, Stored(*truths)).endpoint(endpoint)


def answer(*boxes, seconds=0.01, size=(WIDTH, HEIGHT)):
    return Answer({"face": np.float32([[*box, 0.9] for box in boxes]).reshape(-1, 5)}, *size, seconds=seconds)


def test_heights_are_those_of_the_network_input_whatever_the_size_of_the_image():
    # 400 pixels high in an image of 1600 that becomes 64 high: 16 pixels, and moved by the black bars beside it.
    tall = answer((100, 200, 300, 600), size=(1000, 1600))
    there = [400, 200, 600, 600]
    served = scored(FakeEndpoint(tall=tall), 16, tall=there)
    metrics, detected = served.metrics, served.result.detected
    np.testing.assert_allclose(detected.predictions.boxes[0], (32, 8, 40, 24))
    assert (metrics["objects"], detected.placements.scales.tolist()) == (1, [[64 / 1600] * 2])
    assert scored(FakeEndpoint(tall=tall), 17, tall=there).metrics["objects"] == 0
    assert input_of(FakeEndpoint()).width == WIDTH


def test_an_endpoint_says_how_it_fits_images():
    endpoint = FakeEndpoint()
    endpoint.parameters = {"geometry": {"width": WIDTH}, "preprocessing": "crop", "resampling": "cubic"}
    assert input_of(endpoint) == InputSpec(WIDTH, HEIGHT, fit="crop", resampling="cubic")


def test_images_without_an_answer_are_counted_and_named():
    bad = Answer(error="too large")
    endpoint = FakeEndpoint(a=answer(), b=bad, c=bad, d=bad, e=bad)
    with pytest.raises(StageError, match=r"^endpoint: 4 of 5 images have no answer: b: too large; .* and 1 more$"):
        scored(endpoint, 1, **{name: [] for name in "abcde"})


def test_few_images_are_sent_over_and_over_for_the_latency():
    endpoint = FakeEndpoint(a=answer(seconds=0.3), b=answer(seconds=0.1))
    latency = measure(endpoint, [b"a", b"b"])
    assert endpoint.sent == LEAST_REQUESTS
    assert latency.seconds == tuple([0.1] * (LEAST_REQUESTS // 2) + [0.3] * (LEAST_REQUESTS // 2))
    assert latency.in_flight == 2
    assert latency.milliseconds() == pytest.approx({"p50": 200, "p90": 300, "p95": 300, "p99": 300})
    with pytest.raises(StageError, match="fails on an image that it has answered before: gone"):
        measure(FakeEndpoint(a=Answer(error="gone")), [b"a"])


def test_percentiles_are_interpolated_between_the_times():
    latency = Latency(tuple(float(value) for value in range(101)), 1, 1.0)
    assert latency.milliseconds() == {"p50": 50e3, "p90": 90e3, "p95": 95e3, "p99": 99e3}


def test_latency_is_drawn_within_the_plot_for_any_times():
    for seconds in ([0.0001], [0.01, 0.02], [0.5] * 3000, list(np.linspace(0.01, 7, 1000))):
        svg = chart_svg(latency_chart([("endpoint", 0, Latency(tuple(seconds), 1, 1.0))]))
        points = [tuple(map(float, point.split(","))) for point in svg.split('points="')[1].split('"')[0].split()]
        assert all(0 <= x <= 560 and 0 <= y <= 400 for x, y in points)
        assert points[-1][1] == 16.0  # all are done in the end


def found(*images):
    """Detections of each image, of one class."""
    rows = [np.float64(boxes).reshape(-1, 5) for boxes in images]
    return flat_sets.predictions_of(rows)


def names(count):
    return [f"image {index}" for index in range(count)]


def test_difference_counts_in_pixels_of_the_stored_image():
    here = found([[10, 10, 20, 20, 0.9]], [[10, 10, 20, 20, 0.9]], [])
    there = found([[10.2, 10, 20, 20, 0.8]], [[10.2, 10, 20, 20, 0.9]], [])
    # A fifth of the network's pixel is 0.4 pixels of an image shrunk to a half, and 0.8 of one shrunk to a quarter.
    difference = compare(names(3), here, there, [0.5, 0.25, 1.0])
    assert difference.differing == ["image 1"]
    assert difference.share == pytest.approx(1 / 3)
    assert difference.edge == pytest.approx(0.4, abs=1e-5)
    assert difference.score == pytest.approx(0.1, abs=1e-6)


def test_missing_additional_and_doubled_boxes_differ():
    box, other = [10, 10, 20, 20, 0.9], [40, 10, 60, 20, 0.5]
    one = found([box], [box, other], [box, box], [])
    two = found([box, other], [box], [box, other], [box])
    assert len(compare(names(4), one, two, [1.0] * 4).differing) == 4


coordinates = st.floats(0, 100, allow_nan=False, width=32)


@given(
    st.lists(st.tuples(coordinates, coordinates, coordinates, coordinates), max_size=8),
    st.floats(-0.5, 0.5, width=32),
    st.randoms(use_true_random=False),
)
def test_moved_and_shuffled_boxes_all_have_a_counterpart_when_they_lie_apart(boxes, shift, random):
    left = np.array(boxes, np.float64).reshape(-1, 4) + 200 * np.arange(len(boxes))[:, None]
    order = list(range(len(boxes)))
    random.shuffle(order)
    right = left[order] + shift
    pairs = counterparts(left, right, 0.5 + 1e-6)
    assert sorted(pairs) == sorted((source, place) for place, source in enumerate(order))


@given(st.lists(st.integers(0, 6), max_size=7), st.lists(st.integers(0, 6), max_size=7), st.floats(0, 2))
def test_no_box_has_two_counterparts_and_none_is_too_far(left, right, tolerance):
    one, other = (np.repeat(np.array(values, float)[:, None], 4, axis=1) for values in (left, right))
    pairs = counterparts(one, other, tolerance)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    assert all(abs(left[i] - right[j]) <= tolerance for i, j in pairs)
    rest = [(i, j) for i in range(len(left)) for j in range(len(right)) if abs(left[i] - right[j]) <= tolerance]
    assert all(any(i == a or j == b for a, b in pairs) for i, j in rest)  # nobody is left without need


@pytest.fixture(scope="module")
def served_squares(tmp_path_factory, detector):
    """The hand-made detector behind the real ensemble."""
    folder = tmp_path_factory.mktemp("served")
    build_repository(detector, folder / "repository", RepositorySettings("python"))
    server = Server(folder / "repository" / "repository", folder / "server.log")
    yield server
    server.kill()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_real_ensemble_scores_as_the_model_here_does(tmp_path, served_squares, detector, score, protocol):
    samples = random_samples(12, "random", seed=3)
    kitti = write_set(tmp_path / "kitti", *samples)
    url = getattr(served_squares, f"{protocol}_url")
    code, metrics = score("--kitti", kitti, "--model", detector, url=url)
    assert code == 0
    here, served = metrics["models"]["in-process"], metrics["models"]["endpoint"]
    assert served["mean_average_precision"] == here["mean_average_precision"]
    assert served["average_precision_by_height"] == here["average_precision_by_height"]
    assert served["detections"] == here["detections"] > 20
    code, alone = score("--kitti", kitti, url=url)  # the endpoint says how large the network's input is
    assert code == 0
    assert alone["mean_average_precision"] == here["mean_average_precision"]


def test_real_ensemble_refuses_bad_images_one_by_one(served_squares):
    good = sample("good", [(1, 1)], []).image
    huge = cv2.imencode(".png", np.zeros((7000, 7200, 3), np.uint8))[1].tobytes()
    with Endpoint(served_squares.grpc_url, "facenet_ensemble", shared_memory=True) as endpoint:
        answers = [answer for _, answer in endpoint.stream(enumerate([good, b"a text", huge, b"", good[:99], good]))]
    assert [len(answer.detections.get("face", [])) for answer in answers] == [1, 0, 0, 0, 0, 1]
    errors = [answer.error for answer in answers]
    for error, expected in zip(
        errors, ["", "not an image", "million pixels", "empty", "not an image", ""], strict=True
    ):
        assert expected in error
        assert bool(expected) == bool(error)
    assert (answers[0].width, answers[0].height) == (WIDTH, HEIGHT)
    with pytest.raises(UserError, match=r"takes input_1 and gives .*: name the ensemble"):
        Endpoint(served_squares.grpc_url, "facenet")
