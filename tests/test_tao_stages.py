"""TAO's stages with a stand-in for its program, and the program that travels into NVIDIA's image."""

import ast
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import fake_tao
import pytest
from test_step import executor_input

from components import step
from components.detectnet_v2 import commands
from components.detectnet_v2.stage import SPLITS
from components.step import UserError
from components.tao.call import TAO_KEY
from components.tao.rendering import render, template_text
from components.tao.status import status_seconds
from components.tao.tasks import MODELS, run_task
from components.tao.workplace import CHECKPOINTS, RUN_ID, STAGE_DIR, unpack, workplace

FOLDERS, SPEC_NAMES = ("facedetect", "facedetect-cpu", "facedetect-open"), ("convert", "inference", "retrain", "train")
SPEC = """random_seed: ${seed}
dataset_config {
  data_sources { tfrecords_path: "${training_records}/*" image_directory_path: "${images_training}" }
  validation_data_source { tfrecords_path: "${validation_records}/*" image_directory_path: "${images_validation}" }
}
model_config {
  pretrained_model_file: "${pretrained_model}"
  load_graph: true
}
size: ${image_width}x${image_height} epochs: ${epochs} batch: ${batch_size}
rates: "${minimum_learning_rate} ${learning_rate}"
lowest: ${minimum_height}
"""


# What a model artifact keeps of it: paths, and the lowest object that counts, stay open.
KEPT = """random_seed: 7
dataset_config {
  data_sources { tfrecords_path: "${training_records}/*" image_directory_path: "${images_training}" }
  validation_data_source { tfrecords_path: "${validation_records}/*" image_directory_path: "${images_validation}" }
}
augmentation_config { preprocessing { output_image_width: 128 output_image_height: 96 } }
model_config {
  pretrained_model_file: "${pretrained_model}"
  load_graph: true
}
evaluation_config { evaluation_box_config { key: "face" value { minimum_height: ${minimum_height} } } }
"""


# --- specs -----------------------------------------------------------------------------------------------------------


def test_render_names_the_placeholder_that_has_no_value():
    with pytest.raises(UserError, match=r"\$\{epoch\} has no value; known are epochs"):
        render("num_epochs: ${epoch}", {"epochs": 3})


def test_render_refuses_an_unclosed_placeholder():
    with pytest.raises(UserError, match="not closed"):
        render("num_epochs: ${epochs\n", {"epochs": 3})


def test_render_escapes_quotes_and_backslashes_in_paths():
    assert render('path: "${p}"', {"p": 'a"b\\c'}) == 'path: "a\\"b\\\\c"'


def test_spec_of_ours_goes_by_its_name_and_any_other_as_its_text():
    assert "bbox_rasterizer_config" in template_text("facedetect/train")
    for text in ("a: 1", "random_seed: 1\n", "a/b {}"):
        assert template_text(text) == text
    with pytest.raises(UserError, match="spec facedetect/trian: there is no such template; there are facedetect-cpu/c"):
        template_text("facedetect/trian")


# --- shards ----------------------------------------------------------------------------------------------------------


def shard(folder, members):
    folder.mkdir(parents=True)
    with tarfile.open(folder / "shard-00000.tar", "w") as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return folder / "shard-00000.tar"


def link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


@pytest.mark.parametrize(
    "member",
    [
        "/etc/passwd",
        "../evil",
        "images/../../evil",
        "images/a/b.png",
        "other/a.png",
        "images/..",
        link("images/a", "/"),
    ],
)
def test_unsafe_member_is_refused_and_nothing_escapes(tmp_path, member):
    shard(tmp_path / "set/training", [(member, b"x" if isinstance(member, str) else b"")])
    with pytest.raises(UserError, match="is refused"):
        unpack(tmp_path / "set", "training", tmp_path / "scratch")
    assert not [path for path in tmp_path.rglob("*") if path.name in ("evil", "a", "b.png")]


def test_truncated_shard_is_a_user_error(tmp_path):
    file = shard(tmp_path / "set/training", [("images/a.png", b"x" * 5000), ("labels/a.txt", b"")])
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UserError, match="not a readable tar shard"):
        unpack(tmp_path / "set", "training", tmp_path / "scratch")


def test_unpack_takes_a_laid_out_folder_as_it_stands(tmp_path):
    (tmp_path / "set/training/images").mkdir(parents=True)
    assert unpack(tmp_path / "set", "training", tmp_path / "scratch") == tmp_path / "set/training"
    with pytest.raises(UserError, match="no KITTI set here"):
        unpack(tmp_path / "set", "validation", tmp_path / "scratch")


# --- TAO stages ------------------------------------------------------------------------------------------------------


class Bench:
    """Artifacts, flags and a stand-in program for TAO stages."""

    def __init__(self, tmp_path):
        self.root, self.calls_file = tmp_path, tmp_path / "calls"
        for split in SPLITS:
            shard(tmp_path / "kitti" / split, [("images/a.png", b"png"), ("labels/a.txt", b"face\n")])
        self.artifact("records", "records", {f"{split}/kitti-fold-000": "r" for split in SPLITS})
        self.artifact("absent", "model", {}, present=False)
        for name in ("model", "pruned", "retrained"):
            self.artifact(name, "model", {f"weights/{name}.hdf5": "w", "experiment_spec.txt": KEPT}, present=True)

    def artifact(self, name, kind, files, **counts):
        (self.root / name).mkdir()
        for file, content in files.items():
            (self.root / name / file).parent.mkdir(exist_ok=True)
            (self.root / name / file).write_text(content)
        step.write_manifest(self.root / name, kind, counts, {})

    def flags(self, *names, **others):
        paths = {name: str(self.root / name) for name in names}
        return [f"--{name.replace('_', '-')}={value}" for name, value in {**paths, **others}.items()]

    def experiment(self, **others):
        values = {
            "image_width": 128,
            "image_height": 96,
            "epochs": 2,
            "batch_size": 4,
            "learning_rate": 5e-4,
            "seed": 7,
        }
        return self.flags(**{"spec": SPEC, **values, **others})

    def train(self, **others):
        fixed = {"name": "net", "width": 1.0, "threads": 0, "pretrained": self.root / "absent"}
        outputs = self.flags(model=self.root / "out/model", metrics=self.root / "out/metrics")
        own = self.flags("kitti", "records", **{**fixed, **others})
        return ["detectnet_v2", "train", *self.experiment(), *own, *outputs]

    def evaluate(self, **others):
        models = {"pretrained": "absent", "trained": "model", "pruned": "pruned", "retrained": "retrained", **others}
        own = {"spec": 'm: "${model}" ${image_width}x${image_height}', "batch_size": 4, "minimum_height": 12}
        names = ("evaluations", "annotated", "metrics")
        flags = {**{name: self.root / folder for name, folder in models.items()}, **own}
        outputs = {name: self.root / "out" / name for name in names}
        return ["detectnet_v2", "evaluate", *self.flags("kitti", "records", **flags, **outputs)]

    def export(self, **others):
        flags = self.flags(
            **{"model": self.root / "model", "opset": 0, "exported": self.root / "out/exported"} | others
        )
        return ["detectnet_v2", "export", *flags]

    def prune(self, **others):
        values = {"normalizer": "max", "equalization": "union", "granularity": 8, "threshold": 5.2e-06}
        values |= {"minimum_filters": 16, "target_ratio": 0.0, **others}
        outputs = self.flags(pruned=self.root / "out/pruned", metrics=self.root / "out/metrics")
        return ["detectnet_v2", "prune", *self.flags("model", **values), *outputs]

    def calls(self):
        return [json.loads(line) for line in self.calls_file.read_text().splitlines()]

    def metrics(self):
        return json.loads((self.root / "out/metrics").read_text())


@pytest.fixture
def bench(tmp_path, monkeypatch):
    bench = Bench(tmp_path)
    programs = fake_tao.install(tmp_path / "bin", bench.calls_file)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.delenv(STAGE_DIR, raising=False)
    monkeypatch.delenv(TAO_KEY, raising=False)
    return bench


def work_of(call, flag="-e"):
    return Path(call[call.index(flag) + 1]).parent


def test_train_calls_taos_command_line_and_keeps_spec_weights_and_status(bench):
    assert step.run(bench.train(), run_task) == 0
    (call,) = bench.calls()
    scratch = work_of(call)
    results = scratch.parent / "results"
    assert call == ["train", "-e", f"{scratch}/spec.txt", "-r", str(results), "-n", "net"]
    assert not scratch.parent.exists()  # a temporary folder, removed
    model = bench.root / "out/model"
    names = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    assert names == {"experiment_spec.txt", "manifest.json", "status.json", "weights/net.hdf5"}
    manifest = step.read_manifest(model, "model")
    assert manifest["counts"] == {"present": True, "file_bytes": 7}
    assert manifest["files"]["status.json"] is None
    figures = bench.metrics()
    assert figures.pop("seconds") >= 0
    assert figures == {"loss": 0.25, "mean_average_precision": 0.815, "parameters": 123456, "file_bytes": 7}


def test_kept_spec_names_no_path_of_this_machine(bench):
    step.run(bench.train(pretrained=bench.root / "model"), run_task)
    kept = (bench.root / "out/model/experiment_spec.txt").read_text()
    assert 'image_directory_path: "${images_validation}"' in kept
    assert "lowest: ${minimum_height}" in kept  # evaluate has its own
    assert "/" not in kept.replace("/*", "")
    assert 'pretrained_model_file: "${pretrained_model}"' in kept
    assert 'rates: "5e-06 0.0005"' in kept


def test_training_without_pretrained_weights_drops_their_lines(bench, monkeypatch):
    monkeypatch.setenv(STAGE_DIR, str(bench.root / "stage"))
    step.run(bench.train(), run_task)
    spec = (bench.root / "stage/scratch/spec.txt").read_text()
    assert "pretrained_model_file" not in spec
    assert "load_graph" not in spec
    assert f'image_directory_path: "{bench.root}/stage/scratch/training"' in spec
    assert f'tfrecords_path: "{bench.root}/records/training/*"' in spec


def test_retraining_starts_from_the_pruned_model(bench, monkeypatch):
    monkeypatch.setenv(STAGE_DIR, str(bench.root / "stage"))
    step.run(bench.train(pretrained=bench.root / "model"), run_task)
    spec = (bench.root / "stage/scratch/spec.txt").read_text()
    assert f'pretrained_model_file: "{bench.root}/model/weights/model.hdf5"' in spec
    assert "load_graph: true" in spec


def test_training_from_a_backbone_takes_its_weights_and_not_its_graph(bench, monkeypatch):
    monkeypatch.setenv(STAGE_DIR, str(bench.root / "stage"))
    step.write_manifest(bench.root / "model", "model", {"present": True, "detector": False}, {})
    step.run(bench.train(pretrained=bench.root / "model"), run_task)
    spec = (bench.root / "stage/scratch/spec.txt").read_text()
    assert f'pretrained_model_file: "{bench.root}/model/weights/model.hdf5"' in spec
    assert "load_graph" not in spec


def test_flags_that_tao_lacks_are_passed_only_when_set(bench):
    step.run(bench.train(width=0.25, threads=2), run_task)
    assert bench.calls()[0][-4:] == ["--width", "0.25", "--threads", "2"]


def test_stage_folder_keeps_results_and_empties_scratch_between_attempts(bench, monkeypatch):
    monkeypatch.setenv(STAGE_DIR, str(bench.root / "stage"))
    (bench.root / "stage/results").mkdir(parents=True)
    (bench.root / "stage/results/model.epoch-1.ckzip").write_text("checkpoint")
    (bench.root / "stage/scratch/training/images").mkdir(parents=True)
    assert step.run(bench.train(), run_task) == 0
    assert (bench.root / "stage/results/model.epoch-1.ckzip").exists()
    assert step.run(bench.evaluate(), run_task) == 0
    assert not (bench.root / "stage/results/model.epoch-1.ckzip").exists()


def test_checkpoints_of_a_run_outlive_an_attempt_on_a_volume_and_go_when_it_ends_well(bench, monkeypatch):
    monkeypatch.setenv(CHECKPOINTS, str(bench.root / "volume/train"))
    monkeypatch.setenv(RUN_ID, "run-1")
    results = bench.root / "volume/train/run-1/results"
    monkeypatch.setenv("FAKE_TAO", "fail")
    assert step.run(bench.train(), run_task) == 1
    (results / "model.epoch-1.ckzip").write_text("checkpoint")
    monkeypatch.setenv("FAKE_TAO", "")
    with workplace(keep_results=True) as place:  # a further attempt
        assert place.results == results
        assert (place.results / "model.epoch-1.ckzip").exists()
        assert bench.root not in place.scratch.parents  # what is unpacked stays off the volume
    assert not results.parent.exists()
    assert step.run(bench.evaluate(), run_task) == 0  # keeps nothing there
    assert list((bench.root / "volume/train").iterdir()) == []


def test_runs_never_share_a_folder_of_checkpoints(bench, monkeypatch, capsys):
    monkeypatch.setenv(CHECKPOINTS, str(bench.root / "volume/train"))
    monkeypatch.delenv(RUN_ID, raising=False)
    assert step.run(bench.train(), run_task) == 2
    assert f"set {RUN_ID}, too" in capsys.readouterr().err
    assert not (bench.root / "volume").exists()


def test_evaluate_scores_every_model_and_draws_what_the_last_one_finds(bench, monkeypatch):
    monkeypatch.setenv(STAGE_DIR, str(bench.root / "stage"))
    assert step.run(bench.evaluate(pretrained="model"), run_task) == 0
    *scored, drawn = bench.calls()
    for call, (name, model) in zip(
        scored,
        [("pretrained", "model"), ("trained", "model"), ("pruned", "pruned"), ("retrained", "retrained")],
        strict=True,
    ):
        work, results = bench.root / "stage/scratch" / name, bench.root / "stage/results" / name
        weights = f"{bench.root}/{model}/weights/{model}.hdf5"
        assert call == ["evaluate", "-e", f"{work}/spec.txt", "-m", weights, "-r", str(results)]
    assert drawn[0] == "inference"
    assert drawn[drawn.index("-m") + 1] == f"{bench.root}/retrained/weights/retrained.hdf5"
    spec = (bench.root / "stage/scratch/inference/spec.txt").read_text()
    assert spec == f'm: "{bench.root}/retrained/weights/retrained.hdf5" 128x96'
    out = bench.root / "out"
    files = set(step.read_manifest(out / "evaluations", "evaluations")["files"])
    names = ("manifest.json", "metrics.json", "status.json")
    assert files == {f"{model}/{name}" for model in MODELS for name in names}
    assert step.read_manifest(out / "evaluations/pruned", "evaluation")["counts"]["mean_average_precision"] == 0.8
    assert step.read_manifest(out / "annotated", "annotated")["counts"] == {"images": 1, "detections": 2}
    assert (out / "annotated/images_annotated/a.png").exists()


def test_models_are_scored_by_the_spec_that_they_were_trained_with(bench, monkeypatch):
    monkeypatch.setenv(STAGE_DIR, str(bench.root / "stage"))
    (bench.root / "pruned/experiment_spec.txt").write_text(KEPT.replace("random_seed: 7", "random_seed: 8"))
    assert step.run(bench.evaluate(pretrained="retrained"), run_task) == 0
    specs = {name: (bench.root / f"stage/scratch/{name}/spec.txt").read_text() for name in MODELS}
    seeds = {name: text.split()[1] for name, text in specs.items()}
    assert seeds == {"pretrained": "7", "trained": "7", "pruned": "8", "retrained": "7"}
    spec = specs["trained"]
    assert f'tfrecords_path: "{bench.root}/records/test/*"' in spec
    assert f'image_directory_path: "{bench.root}/stage/scratch/test"' in spec
    assert "/validation" not in spec
    assert "minimum_height: 12" in spec
    assert "${" not in spec
    assert "pretrained_model_file" not in spec  # what is scored is given by -m


def test_a_set_without_test_images_is_told_on_those_that_chose_and_the_stage_says_so(bench, monkeypatch, capfd):
    monkeypatch.setenv(STAGE_DIR, str(bench.root / "stage"))
    for artifact in ("kitti", "records"):
        shutil.rmtree(bench.root / artifact / "test")
    assert step.run(bench.evaluate(), run_task) == 0
    assert f'"{bench.root}/records/validation/*"' in (bench.root / "stage/scratch/trained/spec.txt").read_text()
    assert f"note: {bench.root}/kitti has no test split; its validation images chose" in capfd.readouterr().out


def test_records_of_a_former_set_are_refused_for_a_set_with_test_images(bench, capfd):
    shutil.rmtree(bench.root / "records/test")
    assert step.run(bench.evaluate(), run_task) == 2
    assert (
        f"{bench.root}/records/test: no records of the split test; convert the KITTI set again"
        in capfd.readouterr().err
    )


def test_evaluate_refuses_heights_that_the_set_ignores_before_it_scores_anything(bench, capfd):
    for settings, code in (({"small_faces": "ignore", "min_face_height": 16}, 2), ({"min_face_height": 16}, 0)):
        step.write_manifest(bench.root / "kitti", "kitti_set", {}, settings)
        assert step.run(bench.evaluate(), run_task) == code
        assert (bench.root / "calls").exists() is (code == 0)
    message = capfd.readouterr().err
    assert "kitti: faces lower than 16 pixels are ignored in this set, so figures from 12 pixels on" in message


def test_evaluations_say_what_the_workflow_shows(bench):
    assert step.run(bench.evaluate(), run_task) == 0
    manifest = step.read_manifest(bench.root / "out/evaluations", "evaluations")
    assert manifest["counts"] == dict.fromkeys(("trained", "pruned", "retrained"), 0.8)
    assert manifest["settings"] == {"split": "test"}
    metrics = bench.metrics()
    assert metrics["mean_average_precision"] == metrics["pruned/mean_average_precision"] == 0.8
    own = json.loads((bench.root / "out/evaluations/trained/metrics.json").read_text())
    assert (own["mean_average_precision"], own["by_height"]) == (0.8, {"16-24": 0.7})


def test_evaluate_builds_metrics_from_taos_status_log(bench, monkeypatch):
    monkeypatch.setenv("FAKE_TAO", "plain TAO")
    assert step.run(bench.evaluate(), run_task) == 0
    figures = json.loads((bench.root / "out/evaluations/retrained/metrics.json").read_text())
    assert figures.pop("seconds") >= 0
    assert figures == {"mean_average_precision": 0.8, "file_bytes": 1}


@pytest.mark.parametrize("kind", ["absent", "backbone"])
def test_pretrained_weights_that_detect_nothing_are_skipped_and_it_is_said(bench, capsys, kind):
    bench.artifact("backbone", "model", {"weights/net.hdf5": "w"}, present=True, detector=False)
    assert step.run(bench.evaluate(pretrained=kind), run_task) == 0
    assert [call[0] for call in bench.calls()] == ["evaluate"] * 3 + ["inference"]
    folder = bench.root / "out/evaluations/pretrained"
    assert json.loads((folder / "metrics.json").read_text()) == {"skipped": True}
    assert step.read_manifest(folder, "evaluation")["counts"] == {"skipped": True}
    assert "pretrained: skipped" in capsys.readouterr().out


@pytest.mark.parametrize("task", ["evaluate", "export"])
def test_model_without_its_spec_is_refused_with_what_to_give(bench, capsys, task):
    (bench.root / "model/experiment_spec.txt").unlink()
    assert step.run(getattr(bench, task)(), run_task) == 2
    said = capsys.readouterr().err
    assert "model/experiment_spec.txt: the model's spec is missing; give the model artifact as train or prune" in said
    assert not (bench.root / "out").exists() or not list((bench.root / "out").iterdir())


def test_prune_has_taos_options_and_the_suffix_of_its_input(bench):
    assert step.run(bench.prune(), run_task) == 0
    call = bench.calls()[0]
    results = call[-1]
    assert call == [
        *["prune", "-m", f"{bench.root}/model/weights/model.hdf5", "-o", f"{results}/weights/model_pruned.hdf5"],
        *["-n", "max", "-eq", "union", "-pg", "8", "-pth", "5.2e-06", "-nf", "16", "--results_dir", results],
    ]
    pruned = bench.root / "out/pruned"
    assert (pruned / "weights/model_pruned.hdf5").read_text() == "pruned"
    assert (pruned / "experiment_spec.txt").read_text() == KEPT
    assert bench.metrics()["pruning_ratio"] == 0.4


def test_prune_passes_excluded_layers_and_the_target_ratio_when_set(bench):
    step.run(bench.prune(excluded_layers="conv1 conv2", target_ratio=0.5), run_task)
    call = bench.calls()[0]
    assert call[call.index("-el") : call.index("--results_dir")] == ["-el", "conv1", "conv2", "--target-ratio", "0.5"]


def test_specs_name_the_suffix_that_most_images_of_the_set_have(bench, monkeypatch):
    monkeypatch.setenv(STAGE_DIR, str(bench.root / "stage"))
    for split in SPLITS:
        names = ("images/a.jpg", "images/b.jpg", "images/c.png", "images/._a.png", "images/.hidden")
        shutil.rmtree(bench.root / "kitti" / split)
        shard(bench.root / "kitti" / split, [(name, b"") for name in names])
    flags = bench.flags("kitti", spec="${root} .${image_extension}", records=bench.root / "out/records")
    assert step.run(["detectnet_v2", "dataset_convert", *flags], run_task) == 0
    assert (bench.root / "stage/scratch/test/spec.txt").read_text().endswith(" .jpg")
    assert step.run(bench.train(spec="${image_extension} ${training_records} ${seed}"), run_task) == 0
    assert (bench.root / "out/model/experiment_spec.txt").read_text() == "jpg ${training_records} 7"


@pytest.mark.parametrize("splits", [SPLITS, SPLITS[:2]], ids=["three splits", "a former set of two"])
def test_dataset_convert_writes_the_records_of_every_split_and_what_was_dropped(bench, monkeypatch, splits):
    monkeypatch.setenv(STAGE_DIR, str(bench.root / "stage"))
    for split in set(SPLITS) - set(splits):
        shutil.rmtree(bench.root / "kitti" / split)
    flags = bench.flags("kitti", spec='root: "${root}" .${image_extension}', records=bench.root / "out/records")
    assert step.run(["detectnet_v2", "dataset_convert", *flags], run_task) == 0
    manifest = step.read_manifest(bench.root / "out/records", "records")
    names = ("kitti-fold-000-of-002-shard-00000-of-00001", "kitti_warning.json")
    assert set(manifest["files"]) == {f"{split}/{name}" for split in splits for name in names}
    assert manifest["counts"] == {"shards": len(splits), "bytes": 7 * len(splits)}
    for split, call in zip(splits, bench.calls(), strict=True):
        spec = Path(call[call.index("-d") + 1])
        assert spec == bench.root / "stage/scratch" / split / "spec.txt"
        assert spec.read_text() == f'root: "{bench.root}/stage/scratch/{split}/{split}" .png'


def test_export_records_the_true_tensor_names(bench):
    assert step.run(bench.export(), run_task) == 0
    call = bench.calls()[0]
    assert "--gen_ds_config" in call
    assert "--target_opset" not in call
    settings = step.read_manifest(bench.root / "out/exported", "exported_model")["settings"]
    assert settings["tensors"]["coverage"] == "output_cov/Sigmoid:0"
    assert settings["class_names"] == ["face"]
    assert settings["geometry"] == {"width": 128, "height": 96}


def test_export_takes_the_spec_of_the_model_with_taos_lowest_object(bench, monkeypatch):
    monkeypatch.setenv(STAGE_DIR, str(bench.root / "stage"))
    assert step.run(bench.export(opset=13), run_task) == 0
    call = bench.calls()[0]
    assert call[call.index("--target_opset") + 1] == "13"
    spec = Path(call[call.index("-e") + 1]).read_text()
    assert "random_seed: 7" in spec
    assert "minimum_height: 4" in spec
    assert "${" not in spec


def test_export_of_nvidias_program_is_described_by_its_spec(bench):
    spec = KEPT.replace("load_graph: true", "load_graph: true objective_set { bbox { scale: 40 } cov {} }") + (
        'postprocessing_config { target_class_config { key: "face" value { clustering_config {'
        "  clustering_algorithm: NMS dbscan_eps: 0.2 minimum_bounding_box_height: 6 } } } }"
    )
    (bench.root / "model/experiment_spec.txt").write_text(spec)
    assert step.run(bench.export(), run_task) == 0
    settings = step.read_manifest(bench.root / "out/exported", "exported_model")["settings"]
    assert settings["geometry"] == {"width": 128, "height": 96, "scale": 40.0}
    assert settings["clustering"] == {"face": {"algorithm": "nms", "dbscan_eps": 0.2, "minimum_height": 6}}


@pytest.mark.parametrize("names", [[], ["a.hdf5", "b.safetensors"]])
def test_model_artifact_needs_exactly_one_model_file(tmp_path, names):
    (tmp_path / "weights").mkdir()
    for name in names:
        (tmp_path / "weights" / name).write_text("")
    for path in (tmp_path, tmp_path / "weights"):
        with pytest.raises(UserError, match="exactly one model file"):
            step.weights_file(path)


def test_failure_shows_the_last_40_lines_and_leaves_nothing(bench, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_TAO", "fail")
    assert step.run(bench.train(), run_task) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("gridbox: detectnet_v2 train failed (exit code 1)")
    assert "line 60\n" in captured.err
    assert "line 59\n" not in captured.err
    assert "line 0\n" in captured.out
    assert not (bench.root / "out").exists()


def test_users_mistake_comes_through_as_one_line_and_exit_code_2(bench, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_TAO", "user error")
    assert step.run(bench.train(), run_task) == 2
    assert capsys.readouterr().err == "gridbox: spec.txt:3: unknown field epoch; did you mean epochs?\n"


def test_failure_with_exit_code_0_is_noticed(bench, monkeypatch):
    monkeypatch.setenv("FAKE_TAO", "fail quietly")
    assert step.run(bench.train(), run_task) == 1


@pytest.mark.parametrize(
    ("line", "code", "cause"),
    [
        ("train: error: unrecognized arguments: model", 2, "refuses its command line (unrecognized arguments: model)"),
        (
            "train: error: argument -np: invalid int value: 'x'",
            2,
            "command line (argument -np: invalid int value: 'x')",
        ),
        ("train: error: unrecognized arguments: --width 0.5", 2, "only the open engine has --width"),
        (
            "OSError: cannot open the image 7.png",
            1,
            "its last lines:\n  a line\n  OSError: cannot open the image 7.png",
        ),
        ("Epoch 3/10", 1, "its worker ended without a word, as a rule for memory"),
    ],
)
def test_memory_is_blamed_only_where_the_log_names_no_other_cause(bench, monkeypatch, capsys, line, code, cause):
    monkeypatch.setenv("FAKE_TAO", "say " + line)
    assert step.run(bench.train(), run_task) == code
    error = capsys.readouterr().err
    assert cause in error
    assert ("memory" in error) == line.startswith("Epoch")


def test_program_that_is_not_installed_is_named(bench, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert step.run(bench.train(), run_task) == 2
    assert "detectnet_v2 is not on PATH" in capsys.readouterr().err


def test_child_that_the_program_leaves_behind_does_not_hold_the_stage(bench, monkeypatch):
    monkeypatch.setenv("FAKE_TAO", "leave a child")
    begin = time.monotonic()
    assert step.run(bench.train(), run_task) == 0
    assert time.monotonic() - begin < 10


def test_key_of_encrypted_models_is_passed_and_never_printed(bench, monkeypatch, capsys):
    monkeypatch.setenv(TAO_KEY, "nvidia_tlt")
    step.run(bench.train(), run_task)
    assert bench.calls()[0][-2:] == ["-k", "nvidia_tlt"]
    captured = capsys.readouterr()
    assert "nvidia_tlt" not in captured.out + captured.err


def test_full_disk_is_one_line_and_leaves_nothing(bench, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "spec.txt")

    monkeypatch.setattr(shutil, "copy2", full)
    assert step.run(bench.train(), run_task) == 1
    captured = capsys.readouterr()
    assert captured.err == "gridbox: spec.txt: No space left on device\n"
    assert [path.name for path in (bench.root / "out").iterdir()] == []


def travelling_program(folder):
    """The artifact that the stages of NVIDIA's image run by its path."""
    commands.pretrained(model=folder / "none", uri="", program=folder / "program")
    return folder / "program"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_reaches_the_program_and_leaves_no_orphan(bench, number):
    argv = [sys.executable, travelling_program(bench.root), *bench.train()]
    stage = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env={**os.environ, "FAKE_TAO": "hang"})
    line = next(line for line in stage.stdout if line.startswith("pids"))
    pids = [int(word) for word in line.split()[1:]]
    stage.send_signal(number)
    assert stage.wait(10) == 128 + number
    deadline = time.monotonic() + 5
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(is_alive(pid) for pid in pids)
    assert not (bench.root / "out").exists()


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_missing_flag_and_unknown_task_are_exit_code_2(capsys):
    assert step.run(["detectnet_v2", "train"], run_task) == 2
    assert step.run(["detectnet_v2", "tarin"], run_task) == 2
    assert "dataset_convert" in capsys.readouterr().err


# --- NVIDIA's image --------------------------------------------------------------------------------------------------


def python38():
    candidates = [shutil.which("python3.8"), *sorted(Path.home().glob(".pyenv/versions/3.8*/bin/python3.8"))]
    for candidate in filter(None, candidates):
        if subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode == 0:
            return str(candidate)
    return None


@pytest.fixture
def sources(tmp_path):
    """All that travels, by the path below the folder."""
    folder = travelling_program(tmp_path)
    return {file.relative_to(folder).as_posix(): file for file in folder.rglob("*.py")}


def test_source_is_python_38(sources):
    for file in sources.values():
        ast.parse(file.read_text(), feature_version=(3, 8))


def test_vermin_finds_nothing_newer_than_python_38(sources):
    vermin = Path(sys.executable).with_name("vermin")
    if not vermin.exists():
        pytest.skip("vermin is not installed (extra `lint`)")
    found = subprocess.run([vermin, "-t=3.8-", *sources.values()], capture_output=True, check=False)
    assert found.returncode == 0, found.stdout.decode()


def test_source_imports_the_standard_library_and_what_travels_only(sources):
    names = set()
    for node in (node for file in sources.values() for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    ours = {name for name in names if name.partition(".")[0] == "components"}
    assert {name.replace(".", "/") + ".py" for name in ours} <= set(sources)
    assert {name.partition(".")[0] for name in names - ours} <= sys.stdlib_module_names


def run_alone(python, bench, words, tmp_path, **document):
    """Runs the program that travels as NVIDIA's image does: no package, no site, another folder."""
    given = executor_input(tmp_path, **document)
    given["outputs"]["artifacts"]["executor-logs"] = {"artifacts": [{"name": "executor-logs", "uri": "minio://x/y"}]}
    command = [python, "-B", "-I", "-S", travelling_program(bench.root), *words, "--executor-input", json.dumps(given)]
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "elsewhere", check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(Path(given["outputs"]["outputFile"]).read_text())["artifacts"]


def artifacts(folder, *names):
    return {name: {"artifacts": [{"name": name, "uri": str(folder / name)}]} for name in names}


@pytest.mark.parametrize("python", [sys.executable, python38()], ids=["this Python", "Python 3.8"])
def test_program_that_travels_runs_by_its_path_where_nothing_of_ours_is_installed(bench, python, tmp_path):
    if python is None:
        pytest.skip("no python3.8 on this machine")
    parameters = {"granularity": 8.0, "threshold": 0.1, "minimum_filters": 16.0, "excluded_layers": ""}
    words = ["detectnet_v2", "prune", "--normalizer=max", "--equalization=union", "--target-ratio=0"]
    inputs = {**artifacts(bench.root, "model"), **artifacts(bench.root, "program")}
    outputs = artifacts(tmp_path / "out", "pruned", "metrics")
    written = run_alone(python, bench, words, tmp_path, parameters=parameters, inputs=inputs, outputs=outputs)
    assert set(written) == {"pruned", "metrics"}
    assert written["pruned"]["artifacts"][0]["metadata"] == {"present": True, "file_bytes": 6}


def test_program_that_travels_has_our_specs_with_it(bench, tmp_path, monkeypatch):
    monkeypatch.setenv(STAGE_DIR, str(tmp_path / "stage"))
    words = ["detectnet_v2", "dataset_convert", "--spec=facedetect/convert"]
    inputs, outputs = artifacts(bench.root, "kitti"), artifacts(tmp_path / "out", "records")
    run_alone(sys.executable, bench, words, tmp_path, inputs=inputs, outputs=outputs)
    spec = (tmp_path / "stage/scratch/training/spec.txt").read_text()
    assert f'root_directory_path: "{tmp_path}/stage/scratch/training/training"' in spec
    names = {file.relative_to(bench.root / "program").as_posix() for file in (bench.root / "program").rglob("*.*")}
    specs = {f"components/detectnet_v2/specs/{folder}/{name}.txt" for folder in FOLDERS for name in SPEC_NAMES}
    code = {"__main__.py", "components/__init__.py", "components/step.py"}
    code |= {f"components/detectnet_v2/{name}.py" for name in ("__init__", "stage")}
    rooms = ("__init__", "call", "failures", "rendering", "status", "tasks", "workplace")
    code |= {f"components/tao/{room}.py" for room in rooms}
    assert names == {"manifest.json"} | code | specs


def test_time_between_two_attempts_does_not_count(tmp_path):
    moments = [("STARTED", "7:0:0"), ("RUNNING", "7:0:30"), ("STARTED", "9:0:0"), ("SUCCESS", "9:1:5")]
    lines = [json.dumps({"date": "11/21/2026", "time": time, "status": status}) for status, time in moments]
    (tmp_path / "status.json").write_text("\n".join([*lines, '{"date": "11/2']))
    assert status_seconds(tmp_path / "status.json") == 30 + 65
    assert status_seconds(tmp_path / "nowhere.json") is None
