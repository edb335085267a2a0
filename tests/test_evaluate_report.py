import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from square_detector import (
    HEIGHT,
    WIDTH,
    cell_box,
    face,
    picture,
    random_samples,
    sample,
    write_detector,
    write_kitti,
)

from components import program
from components.decode.description import at_operating_point
from components.evaluate.commands import app
from components.evaluate.evaluation import Scored, flat_metrics, write_evaluation
from components.evaluate.inputs import read_labelled
from components.formats.kitti import SPLITS, read_split
from components.formats.wider import Face, WiderImage, format_annotations
from components.measure.evidence import FILE as EVIDENCE
from components.measure.evidence import read_evidence
from components.measure.metric import Score
from components.measure.uncertainty import RatioOutcomes
from components.serve.gate import read_score
from components.step import UserError, read_manifest, sha256, write_manifest

BANDS = "8-16,16-24,24+"


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return write_detector(tmp_path_factory.mktemp("model") / "exported")


@pytest.fixture
def score(tmp_path, detector):
    """Runs `evaluate score` and returns the exit code, the metrics of the artifact and its folder."""

    def run(*more, model=detector):
        folder = tmp_path / "evaluation"
        flags = ["--model", str(model), "--evaluation", str(folder), "--height-bands", BANDS, *map(str, more)]
        code = program.run(app, ["score", *flags], "gridbox evaluate")
        metrics = json.loads((folder / "metrics.json").read_text()) if code == 0 else None
        return code, metrics, folder

    return run


def one_missed(**counts):
    """Twelve right answers, one face that is not red, one red cell that is no face."""
    samples = random_samples(12, "good", seed=4)
    return [*samples, sample("bad", [(0, 0), (3, 2)], [face(3, 2), face(5, 3)])], counts


def lines(folder):
    return [json.loads(line) for line in (folder / "detections.jsonl").read_text().splitlines()]


def test_perfect_detector_scores_one_and_the_artifact_is_whole(tmp_path, score, capsys):
    kitti = write_kitti(tmp_path / "kitti", [], random_samples(14, "v"))
    code, metrics, folder = score("--kitti", kitti, "--metrics", tmp_path / "metrics.json")
    faces = sum(len(entry.labels) for entry in read_split(kitti, "validation"))
    assert code == 0
    assert metrics["mean_average_precision"] == 1.0
    assert (metrics["objects"], metrics["images"], metrics["parameters"]) == (faces, 14, 1234)
    by_height = {band["band"]: band["average_precision"] for band in metrics["average_precision_by_height"]}
    assert by_height == {"8-16": None, "16-24": 1.0, "24+": None}
    manifest = read_manifest(folder, "evaluation")
    assert manifest["counts"]["mean_average_precision"] == 1.0
    assert manifest["settings"]["data_digest"] == sha256(kitti / "manifest.json")
    assert manifest["files"]["detections.jsonl"]
    assert manifest["files"]["metrics.json"] is None  # holds times
    assert read_evidence(folder / EVIDENCE).outcomes.value() == 1.0
    flat = json.loads((tmp_path / "metrics.json").read_text())
    assert flat["mean_average_precision"] == 1.0
    assert flat["average_precision_height_16-24"] == 1.0
    assert "average_precision_height_24+" not in flat  # neither null nor NaN for Kubeflow
    assert all(isinstance(value, (int, float)) for value in flat.values())
    assert [manifest["counts"][end] for end in ("low", "high")] == [1.0, 1.0]
    assert [flat[f"mean_average_precision_{end}"] for end in ("low", "high")] == [1.0, 1.0]
    assert f"AP@0.5 1.0000 [1.0000, 1.0000] over {faces} objects" in capsys.readouterr().out


def test_intervals_stand_beside_the_figures_and_can_be_left_out(tmp_path, score, capsys):
    samples, _ = one_missed()
    kitti = write_kitti(tmp_path / "kitti", [], samples)
    _, metrics, folder = score("--kitti", kitti)
    low, high = metrics["low"], metrics["high"]
    assert low < metrics["mean_average_precision"] < high
    value = f"{metrics['mean_average_precision']:.3f} [{low:.3f}, {high:.3f}]"
    page = (folder / "report.html").read_text()
    assert f"<dd>{value}</dd>" in page
    assert f">{value}</td>" in page
    assert "had other images of the kind been drawn" in page
    again = score("--kitti", kitti)[1]
    assert (again["low"], again["high"]) == (low, high)  # the same images are drawn every time
    capsys.readouterr()
    _, metrics, folder = score("--kitti", kitti, "--no-intervals")
    assert "low" not in metrics
    assert "[" not in capsys.readouterr().out.splitlines()[0]
    assert "had other images of the kind been drawn" not in (folder / "report.html").read_text()


def test_test_images_tell_where_there_are_some_and_others_are_named_as_having_chosen(tmp_path, score, capsys):
    found, missed = sample("v", [(1, 1)], [face(1, 1)]), sample("t", [(1, 1)], [face(4, 1)])
    kitti = write_kitti(tmp_path / "kitti", [], [found], [missed])
    chose = "whose images also chose: a test split tells without favour"
    for words, split, value in (
        ([], "test", 0.0),
        (["--split", "test"], "test", 0.0),
        (["--split", "validation"], "validation", 1.0),
    ):
        _, metrics, folder = score("--kitti", kitti, *words)
        assert metrics["mean_average_precision"] == value
        assert read_manifest(folder, "evaluation")["settings"]["split"] == split
        page, said = (folder / "report.html").read_text(), capsys.readouterr().out
        assert f"1 images ({split} split of a KITTI set)" in page
        assert ("The images that tell here also chose" in page) is (chose in said) is (split == "validation")
    former = write_kitti(tmp_path / "former", [], [found])
    _, metrics, folder = score("--kitti", former)
    assert metrics["mean_average_precision"] == 1.0
    assert chose in capsys.readouterr().out
    code, _, _ = score("--kitti", former, "--split", "test")
    assert code == 2
    assert "test: no KITTI set here" in capsys.readouterr().err


IGNORING = {"small_faces": "ignore", "min_face_height": 8, "width": WIDTH, "height": HEIGHT}


@pytest.mark.parametrize(
    ("settings", "height", "least"),
    [
        (IGNORING, 7.5, 8),
        (IGNORING, 8, None),
        ({**IGNORING, "width": 2 * WIDTH, "height": 2 * HEIGHT}, 3, 4),  # half as high in this network's input
        ({**IGNORING, "width": 2 * WIDTH, "height": 2 * HEIGHT}, 4, None),
        ({**IGNORING, "small_faces": "keep"}, 1, None),
        ({"small_faces": "keep", "min_face_height": 0, "longest_side": 1024}, 1, None),
        ({}, 1, None),
    ],
)
def test_heights_that_the_set_ignores_are_refused(tmp_path, score, capsys, settings, height, least):
    samples = [sample("v", [(1, 1)], [face(1, 1)])]
    kitti = write_kitti(tmp_path / "kitti", [], samples, samples, settings)
    code, _, _ = score("--kitti", kitti, "--min-face-height", height)
    assert code == (2 if least else 0)
    if least:
        message = capsys.readouterr().err
        assert f"kitti: faces lower than {least} pixels are ignored in this set" in message
        assert f"give at least {least} (--min-face-height, eval_min_face_height)" in message
        assert message.count("\n") == 1
        assert score("--kitti", kitti, "--min-face-height", height, "--no-ignore-regions")[0] == 0


def test_detections_are_listed_with_what_became_of_them(tmp_path, score):
    samples, _ = one_missed()
    kitti = write_kitti(tmp_path / "kitti", [], samples)
    _, metrics, folder = score("--kitti", kitti)
    listed = {entry["image"]: entry for entry in lines(folder)}
    assert len(listed) == len(samples)
    outcomes = {tuple(found["box"]): found["outcome"] for found in listed["bad"]["detections"]}
    assert outcomes == {cell_box(0, 0): "false_positive", cell_box(3, 2): "true_positive"}
    assert [missed["box"] for missed in listed["bad"]["missed"]] == [list(cell_box(5, 3))]
    assert 0.9 < metrics["mean_average_precision"] < 1.0


def test_ignore_regions_are_neutral_unless_switched_off(tmp_path, score):
    labels = [face(1, 1), face(4, 1, "dontcare"), face(4, 3, "dontcare")]
    kitti = write_kitti(tmp_path / "kitti", [], [sample("v", [(1, 1), (4, 1)], labels)])
    _, metrics, folder = score("--kitti", kitti)
    assert (metrics["objects"], metrics["mean_average_precision"]) == (1, 1.0)
    assert sorted(found["outcome"] for found in lines(folder)[0]["detections"]) == ["neutral", "true_positive"]
    _, metrics, folder = score("--kitti", kitti, "--no-ignore-regions")
    assert metrics["objects"] == 3
    assert metrics["mean_average_precision"] == pytest.approx(2 / 3)
    assert len(lines(folder)[0]["missed"]) == 1


def test_faces_under_the_minimum_height_are_neither_demanded_nor_punished(tmp_path, score):
    kitti = write_kitti(tmp_path / "kitti", [], [sample("v", [(1, 1)], [face(1, 1)])])
    _, metrics, _ = score("--kitti", kitti, "--min-face-height", 17)
    assert metrics["objects"] == 0
    assert metrics["mean_average_precision"] is None
    _, metrics, _ = score("--kitti", kitti, "--min-face-height", 16)
    assert (metrics["objects"], metrics["mean_average_precision"]) == (1, 1.0)


def test_labels_of_other_classes_are_counted_and_named(tmp_path, score, capsys):
    kitti = write_kitti(tmp_path / "kitti", [], [sample("v", [(1, 1)], [face(1, 1), face(3, 3, "hand")])])
    _, metrics, _ = score("--kitti", kitti)
    assert metrics["skipped_labels"] == {"labels of class hand": 1}
    assert "left out: 1 labels of class hand" in capsys.readouterr().out


def test_folders_as_tao_lays_them_out_give_the_same_figures(tmp_path, score):
    samples, _ = one_missed()
    kitti = write_kitti(tmp_path / "kitti", [], samples)
    _, expected, _ = score("--kitti", kitti)
    for name in ("images", "labels"):
        (tmp_path / "tao" / "validation" / name).mkdir(parents=True)
    for entry in samples:
        (tmp_path / "tao" / "validation" / "images" / entry.file_name).write_bytes(entry.image)
        text = "".join(
            f"face 0 0 0 {' '.join(f'{edge}' for edge in label.box)} 0 0 0 0 0 0 0\n" for label in entry.labels
        )
        (tmp_path / "tao" / "validation" / "labels" / f"{entry.id}.txt").write_text(text)
    _, metrics, _ = score("--kitti", tmp_path / "tao")
    # Average precision may differ: the images come in another order, and all scores of this detector are alike.
    assert metrics["objects"] == expected["objects"]
    assert metrics["best_f1"] == expected["best_f1"]


def test_wider_face_folder_is_letterboxed_and_invalid_faces_are_ignored(tmp_path, score):
    root, name = tmp_path / "wider", "0--Squares/0_Squares_1.jpg"
    image = cv2.resize(picture([(1, 1), (4, 2)]), (3 * WIDTH, 3 * HEIGHT), interpolation=cv2.INTER_NEAREST)
    image = np.vstack([image, np.zeros((3 * HEIGHT, 3 * WIDTH, 3), np.uint8)])  # twice as high: black below
    file = root / "WIDER_val" / "images" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes())
    # Scaled by a sixth, a square is 8 pixels wide and no cell is all red: one large face must not be found.
    faces = (Face((48, 48, 48, 48)), Face((192, 96, 48, 48), invalid=1), Face((5, 5, 0, 9)))
    (root / "wider_face_split").mkdir()
    annotations = format_annotations([WiderImage(name, faces)])
    (root / "wider_face_split" / "wider_face_val_bbx_gt.txt").write_bytes(annotations)
    code, metrics, folder = score("--wider", root, "--split", "val", "--min-face-height", 8)
    assert code == 0
    assert metrics["objects"] == 1
    assert metrics["skipped_labels"] == {"faces without area": 1}
    assert lines(folder)[0]["missed"] == [{"class": "face", "box": [32.0, 8.0, 40.0, 16.0]}]
    _, metrics, _ = score("--wider", root, "--split", "val", "--min-face-height", 8, "--no-ignore-regions")
    assert metrics["objects"] == 2


def test_real_wider_face_images_can_be_scored(tmp_path, real_data, score):
    source = real_data / "wider_face"
    text = (source / "wider_face_split" / "wider_face_val_bbx_gt.txt").read_bytes()
    from components.formats.wider import parse_annotations

    images = parse_annotations(text, "val")[:12]
    root = tmp_path / "wider"
    (root / "WIDER_val").mkdir(parents=True)
    (root / "WIDER_val" / "images").symlink_to(source / "WIDER_val" / "images")
    (root / "wider_face_split").mkdir()
    (root / "wider_face_split" / "wider_face_val_bbx_gt.txt").write_bytes(format_annotations(images))
    code, metrics, folder = score("--wider", root, "--min-face-height", 0)
    assert code == 0
    assert metrics["images"] == 12
    valid = sum(face.box[2] > 0 and face.box[3] > 0 and not face.invalid for image in images for face in image.faces)
    assert metrics["objects"] == valid
    assert len(gallery(folder / "report.html").names) == 12


class Page(HTMLParser):
    """What a test wants to know of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.names, self.text, self.tips = [], [], [], [], []
        self.rows, self.inside = [], None

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("href", "src", "xlink:href")]
        self.inside = dict(attributes).get("class")
        self.tips += [value for name, value in attributes if name == "data-tip"]
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        self.text.append(data)
        if self.inside == "name" and data.strip():
            self.names.append(data)
        if self.rows and data.strip():
            self.rows[-1].append(data.strip())


def gallery(file):
    page = Page()
    page.feed(file.read_text(encoding="utf-8"))
    return page


def test_report_is_one_file_that_asks_for_nothing_from_outside(tmp_path, score):
    kitti = write_kitti(tmp_path / "kitti", [], random_samples(14, "v"))
    _, _, folder = score("--kitti", kitti, "--report", tmp_path / "copy.html")
    page = gallery(folder / "report.html")
    assert "link" not in page.tags
    assert page.addresses
    assert all(address.startswith(("#", "data:image/jpeg;base64,")) for address in page.addresses)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "Content-Security-Policy\" content=\"default-src 'none'" in text  # and the browser holds it to that
    assert not re.findall(r"https?://|url\(|@import|\$\{?\w", text)
    assert (tmp_path / "copy.html").read_text(encoding="utf-8") == text


def test_gallery_shows_the_worst_image_first(tmp_path, score):
    samples, _ = one_missed()
    kitti = write_kitti(tmp_path / "kitti", [], samples)
    _, _, folder = score("--kitti", kitti)
    page = gallery(folder / "report.html")
    assert len(page.names) == 13
    assert page.names[0] == "bad"
    assert "1 missed" in page.text
    assert "1 false" in page.text
    assert any(re.fullmatch(r"face, score \d\.\d+, found, IoU 1\.00", tip) for tip in page.tips)


def test_long_gallery_shows_the_worst_and_some_of_the_rest(tmp_path, score):
    samples = random_samples(60, "v", seed=9)
    kitti = write_kitti(tmp_path / "kitti", [], samples)
    blind = write_detector(tmp_path / "blind", threshold=2)
    _, metrics, folder = score("--kitti", kitti, model=blind)
    assert metrics["mean_average_precision"] == 0.0
    assert len(gallery(folder / "report.html").names) == 24
    assert (folder / "report.html").stat().st_size < 3_000_000


def test_hostile_names_are_escaped(tmp_path, score):
    hostile = "<script>alert(1)<&'\"|*"
    plain = write_kitti(tmp_path / "plain", [], [sample("v", [(1, 1)], [face(1, 1)])])
    kitti = write_kitti(tmp_path / "kitti", [], [sample(hostile, [(1, 1)], [face(1, 1)])])
    _, _, folder = score("--kitti", plain)
    scripts = gallery(folder / "report.html").tags.count("script")
    _, _, folder = score("--kitti", kitti, "--markdown", tmp_path / "report.md")
    page = gallery(folder / "report.html")
    assert page.tags.count("script") == scripts
    assert hostile in "".join(page.text)


def test_synthetic_images_are_called_synthetic(tmp_path, score):
    plain = write_kitti(tmp_path / "plain", [], [sample("v", [(1, 1)], [face(1, 1)])])
    _, _, folder = score("--kitti", plain)
    assert "synthetic" not in (folder / "report.html").read_text(encoding="utf-8")
    drawn = write_kitti(tmp_path / "drawn", [], [sample("v", [(1, 1)], [face(1, 1)])], synthetic=True)
    _, _, folder = score("--kitti", drawn)
    assert "The images are synthetic." in (folder / "report.html").read_text(encoding="utf-8")
    assert read_manifest(folder, "evaluation")["counts"]["synthetic"] is True


def stage(folder, **metrics):
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def report_flags(tmp_path, detector):
    samples, counts = one_missed()
    evaluations = tmp_path / "evaluations"
    evaluations.mkdir()
    stage(evaluations / "pretrained", skipped=True)
    figures = {"parameters": 5678, "file_bytes": 23456, "model_seconds": 75.2}
    stage(evaluations / "trained", mean_average_precision=0.91234, **figures)
    stage(evaluations / "pruned", mean_average_precision=None, parameters=1234)
    stage(evaluations / "retrained", mean_average_precision=0.9)
    return {
        "exported": detector,
        "quantized": write_detector(tmp_path / "quantized", threshold=0.7),
        "kitti": write_kitti(tmp_path / "kitti", [], samples, **counts),
        "evaluations": evaluations,
        "min_face_height": 12,
    }


def run_report(tmp_path, flags):
    outputs = {name: tmp_path / name for name in ("evaluation", "metrics", "report")}
    words = [w for name, value in {**flags, **outputs}.items() for w in ("--" + name.replace("_", "-"), str(value))]
    return program.run(app, ["report", *words], "gridbox evaluate"), outputs


def test_final_report_has_a_row_for_every_model_that_was_scored_before(tmp_path, detector, capsys):
    code, outputs = run_report(tmp_path, report_flags(tmp_path, detector))
    assert code == 0
    assert "no earlier evaluations given" not in capsys.readouterr().out
    rows = {row[0]: row[1:] for row in gallery(outputs["report"]).rows if row}
    assert rows["Pretrained"] == ["skipped"]
    assert rows["Trained"] == ["0.912", "5,678", "23.5 kB", "1 min 15 s"]
    assert rows["Pruned"] == ["–", "1,234", "–", "–"]
    assert rows["Retrained"] == ["0.900", "–", "–", "–"]
    assert rows["Exported"][1] == rows["Quantized"][1] == "1,234"
    metrics = json.loads(outputs["metrics"].read_text())
    assert metrics["quantization_points_lost"] == pytest.approx(0)
    assert metrics["exported_mean_average_precision"] == metrics["mean_average_precision"]
    evidence = [read_evidence(outputs["evaluation"] / EVIDENCE, name) for name in ("exported", "quantized")]
    assert evidence[0].digest == evidence[1].digest
    assert [kept.outcomes.value() for kept in evidence] == pytest.approx(
        [metrics["exported_mean_average_precision"], metrics["mean_average_precision"]], abs=1e-12
    )
    models = [entry["model"] for entry in lines(outputs["evaluation"])]
    assert models == ["exported"] * 13 + ["quantized"] * 13


def test_report_says_from_which_score_on_each_model_is_shown(tmp_path, detector):
    flags = report_flags(tmp_path, detector)
    settings = read_manifest(flags["quantized"], "exported_model")["settings"]
    quantisation = {"quantization": {"operating_point": {"face": 0.25}}}  # of the model that was quantised
    write_manifest(
        flags["quantized"], "exported_model", {}, at_operating_point({**settings, **quantisation}, {"face": 0.75})
    )
    models = {
        name: figures.get("operating_point")
        for name, figures in json.loads((run_report(tmp_path, flags)[1]["evaluation"] / "metrics.json").read_text())[
            "models"
        ].items()
    }
    assert models == {"exported": {"face": 0.25}, "quantized": {"face": 0.75}}


def test_report_without_earlier_evaluations_says_so_in_their_rows(tmp_path, detector, capsys):
    flags = report_flags(tmp_path, detector)
    del flags["evaluations"]
    code, outputs = run_report(tmp_path, flags)
    assert code == 0
    assert "no earlier evaluations given: their rows of the table stay empty" in capsys.readouterr().out
    rows = {row[0]: row[1:] for row in gallery(outputs["report"]).rows if row}
    assert all(rows[name] == ["no evaluation given"] for name in ("Pretrained", "Trained", "Pruned", "Retrained"))


def test_kubeflow_drives_the_report_with_its_executor_input(tmp_path, detector):
    flags = report_flags(tmp_path, detector)
    height = flags.pop("min_face_height")

    def artifact(path, schema="system.Artifact"):
        return {"artifacts": [{"name": path.name, "uri": str(path), "type": {"schemaTitle": schema}}]}

    outputs = {"evaluation": "system.Artifact", "metrics": "system.Metrics", "report": "system.HTML"}
    executor_input = {
        "inputs": {
            "parameterValues": {"min_face_height": float(height)},
            "artifacts": {name: artifact(path) for name, path in flags.items()},
        },
        "outputs": {
            "artifacts": {name: artifact(tmp_path / "out" / name, schema) for name, schema in outputs.items()},
            "outputFile": str(tmp_path / "out" / "executor_output.json"),
        },
    }
    assert program.run(app, ["report", "--executor-input", json.dumps(executor_input)], "gridbox evaluate") == 0
    written = json.loads((tmp_path / "out" / "executor_output.json").read_text())["artifacts"]
    assert written["metrics"]["artifacts"][0]["metadata"]["objects"] > 0
    assert "mean_average_precision" in written["evaluation"]["artifacts"][0]["metadata"]


def test_components_declare_exactly_what_their_commands_take():
    from typer.main import get_command

    from components.convert import commands as convert_commands
    from components.convert import component as convert_component
    from components.evaluate import component as evaluate_component

    for command, component in (
        (get_command(app).commands["report"], evaluate_component.report),
        (get_command(convert_commands.app).commands["int8"], convert_component.int8),
    ):
        options = {name for parameter in command.params for name in parameter.opts}
        spec = component.component_spec
        declared = {*spec.inputs, *spec.outputs}
        assert {"--" + name.replace("_", "-") for name in declared} <= options
        required = {name for parameter in command.params if parameter.required for name in parameter.opts}
        assert required <= {"--" + name.replace("_", "-") for name in declared}
        outputs = sorted(spec.outputs)
        assert not any(b.startswith(a) for a in outputs for b in outputs if a != b)
        assert component.description


def fails(capsys, code, *words):
    message = capsys.readouterr().err
    assert code == 2
    assert message.count("\n") == 1
    assert all(word in message for word in words), message


def test_mistakes_cost_one_line_and_leave_nothing(tmp_path, score, capsys):
    kitti = write_kitti(tmp_path / "kitti", [], [sample("v", [(1, 1)], [face(1, 1)])])
    fails(capsys, score()[0], "--kitti", "--wider")
    fails(capsys, score("--kitti", kitti, "--wider", tmp_path)[0], "--kitti", "--wider")
    fails(capsys, score("--kitti", tmp_path / "nowhere")[0], "nowhere")
    fails(capsys, score("--kitti", kitti, "--split", "training")[0], "training")
    fails(capsys, score("--kitti", kitti, model=tmp_path / "none")[0], "no such model")
    fails(capsys, score("--kitti", kitti, "--height-bands", "16-12")[0], "--height-bands", "16-24")
    broken = write_kitti(tmp_path / "broken", [], [sample("v", [], [])])
    whole = next((broken / SPLITS[1]).glob("*.tar"))
    whole.write_bytes(whole.read_bytes().replace(b"IHDR", b"XXXX"))
    fails(capsys, score("--kitti", broken)[0], "v.png", "replace or remove")
    assert not (tmp_path / "evaluation").exists()


def test_nothing_to_score_is_told(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / "validation" / name).mkdir(parents=True)
    with pytest.raises(UserError, match="no images to score"):
        read_labelled(tmp_path, "validation", ("face",), wider=False, ignore_regions=True)


def test_models_that_do_not_belong_together_are_refused(tmp_path, detector, capsys):
    flags = report_flags(tmp_path, detector)
    manifest = flags["quantized"] / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"face"\n', '"hand"\n').replace('"face": {', '"hand": {'))
    code, outputs = run_report(tmp_path, flags)
    fails(capsys, code, "differ")
    assert not outputs["evaluation"].exists()


def test_unreadable_evaluation_of_a_stage_is_refused(tmp_path, detector, capsys):
    flags = report_flags(tmp_path, detector)
    (flags["evaluations"] / "trained/metrics.json").write_text("[1]")
    code, _ = run_report(tmp_path, flags)
    fails(capsys, code, "trained", "not the metrics")


def test_evaluation_of_any_kind_of_model_can_be_judged_by_the_gate(tmp_path):
    right = RatioOutcomes(np.array([1.0, 0.0, 1.0]), np.ones(3, int))
    metrics = {**Score("accuracy", right.value(), count=3).written(), "images": 3, "objects": 3}
    scored = Scored("toy", metrics, ("a", "b", "c"), {"cat": right})
    write_evaluation(tmp_path / "evaluation", [scored], "<p>", {}, {"data_digest": "d", "split": "validation"})
    read = read_score(tmp_path / "evaluation")
    assert read.score == Score("accuracy", 2 / 3)
    assert read.evidence.outcomes.value() == pytest.approx(2 / 3)
    assert flat_metrics([scored]) == {"accuracy": 2 / 3, "images": 3, "objects": 3}
