"""The tasks of DetectNet_v2 as stages. Python 3.8, standard library only: it runs inside NVIDIA's image."""

import argparse
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Mapping, Sequence, Tuple

from components.step import (
    MANIFEST,
    StageError,
    UserError,
    is_detector,
    is_present,
    numbers,
    publish,
    sanitised,
    weights_file,
    write_json,
    write_manifest,
)
from components.tao.call import call_task
from components.tao.failures import Failure
from components.tao.rendering import only, parse_spec, placeholders, render, template_text
from components.tao.status import STATUS_FILE, read_status, status_seconds
from components.tao.tasks import MODELS, Task
from components.tao.workplace import Workplace, copy_results, unpack, workplace

# What may stand as ${…} in each kind of spec.
EXPERIMENT_PATHS = (
    "training_records",
    "validation_records",
    "images_training",
    "images_validation",
    "pretrained_model",
)
EXPERIMENT_VALUES = ("image_width", "image_height", "epochs", "batch_size", "learning_rate", "seed")
# Lowest object that counts, pixels. Only evaluate has a parameter for it: training's own validation need not be trained
# anew for another one.
MINIMUM_HEIGHT, TAO_MINIMUM_HEIGHT = "minimum_height", 4
# Derived: the files' suffix in the KITTI set at hand, without its dot.
IMAGE_EXTENSION = "image_extension"
# Derived: a hundredth of learning_rate, as in TAO's face-detection spec.
MINIMUM_LEARNING_RATE = "minimum_learning_rate"
IMAGE_SIZE = ("image_width", "image_height")
PLACEHOLDERS = {
    "convert": ("root", IMAGE_EXTENSION),
    "experiment": (*EXPERIMENT_PATHS, *EXPERIMENT_VALUES, IMAGE_EXTENSION, MINIMUM_LEARNING_RATE, MINIMUM_HEIGHT),
    "inference": ("model", *IMAGE_SIZE, "batch_size"),
}
# By validation one chooses, by test one tells; where a set has no test, validation does both.
SPLITS = ("training", "validation", "test")
# A model artifact's spec: filled, but for the paths and the lowest object that counts.
SPEC_FILE = "experiment_spec.txt"
# What DetectNet_v2 alone says of its failures; see `components.tao.failures`.
FAILURES: Tuple[Failure, ...] = (
    (
        "unrecognized arguments: (--width|--threads|--target-ratio)",
        True,
        "only the open engine has %s; with NVIDIA's, leave width at 1, threads and target_ratio at 0",
    ),
    (
        r"(\d+):\d+ :.*dbscan_min_samples.*Couldn't parse integer",
        True,
        "the spec's line %s: dbscan_min_samples is a whole number since TAO 5.0; write 1",
    ),
    (
        r"Number of logging points \d+ must be <= than the number of steps per epoch (\d+)",
        True,
        "an epoch has only %s steps, TAO logs at 10; write visualizer { scalar_logging_frequency: 1 } into the spec's "
        "training_config, lower the batch size, or give more images",
    ),
    (
        "corrupted record at|DataLossError",
        True,
        "a file that the spec's tfrecords_path catches holds no records; narrow it to the shards (/kitti-fold-*)",
    ),
)


def render_spec(template: str, values: Mapping[str, Any]) -> str:
    """Fills a spec template; where `pretrained_model` is empty, the lines that speak of it go."""
    text = render(template, values)
    if values.get("pretrained_model", "unused"):
        return text
    # Without a file there is no graph to load either.
    return re.sub(r'(?m)^\s*(pretrained_model_file\s*:\s*""|load_graph\s*:\s*true)\s*\n', "", text)


def _write_spec(place: Workplace, template: str, values: Mapping[str, Any]) -> Path:
    unused = sorted(name for name in values if name in EXPERIMENT_VALUES and name not in placeholders(template))
    if unused:
        print(f"note: the spec has fixed values for {', '.join(unused)}; the parameters of these names do nothing")
    return place.write_spec(render_spec(template, values))


def _tao(place: Workplace, task: str, *arguments: object) -> None:
    # dataset_convert opens no model, and has no -k.
    call_task("detectnet_v2", task, arguments, place.results, FAILURES, has_key=task != "dataset_convert")


def _extension(folder: Path) -> str:
    """Returns the suffix that most images of a folder have, without its dot; of equal numbers the first one."""
    names = sorted(file.name for file in folder.iterdir())
    suffixes = Counter(name.rpartition(".")[2] for name in names if "." in name[1:] and name[0] != ".")
    return suffixes.most_common(1)[0][0] if suffixes else ""


def _symbolic(values: Mapping[str, Any]) -> Dict[str, Any]:
    """The same values, with those that another stage fills in left as `${name}`: equal on every machine."""
    kept = [name for name in EXPERIMENT_PATHS if values[name]] + [MINIMUM_HEIGHT]
    return dict(values, **{name: "${" + name + "}" for name in kept})


def _kept_spec(model: Path, values: Mapping[str, Any]) -> str:
    """Returns the spec that a model was trained with, for a stage that trains nothing."""
    file = model / SPEC_FILE
    if not file.is_file():
        raise UserError(f"{file}: the model's spec is missing; give the model artifact as train or prune wrote it")
    filled: Dict[str, Any] = dict.fromkeys(EXPERIMENT_PATHS, "unused")
    filled.update({"pretrained_model": "", MINIMUM_HEIGHT: TAO_MINIMUM_HEIGHT})
    filled.update(values)
    return render_spec(file.read_text(encoding="utf-8"), filled)


def _image_size(spec: str) -> Dict[str, int]:
    """Returns the network's input size that an experiment spec says."""
    told = only(parse_spec(spec), "augmentation_config", "preprocessing")
    try:
        return {name: int(told["output_" + name][0]) for name in IMAGE_SIZE}
    except (KeyError, ValueError):
        raise UserError("spec: augmentation_config.preprocessing says no output_image_width and _height") from None


def _settings(options: argparse.Namespace, *names: str) -> Dict[str, Any]:
    return {name: getattr(options, name) for name in names}


def _dataset_convert(options: argparse.Namespace) -> None:
    with workplace() as place, publish(options.records) as scratch:
        counts = {"shards": 0, "bytes": 0}
        for split in SPLITS:
            if split == "test" and not (options.kitti / split).is_dir():
                continue
            part = place.part(split)
            root = unpack(options.kitti, split, part.scratch)
            values = {"root": root, IMAGE_EXTENSION: _extension(root / "images")}
            spec = _write_spec(part, template_text(options.spec), values)
            _tao(part, "dataset_convert", "-d", spec, "-o", part.results / "kitti")
            shards = sorted(path.name for path in part.results.glob("kitti-fold-*"))
            if not shards:
                raise StageError(f"detectnet_v2 dataset_convert ended well but wrote no records of {split}")
            copy_results(part.results, scratch / split, (*shards, "kitti_warning.json"))
            counts["shards"] += len(shards)
            counts["bytes"] += sum((scratch / split / shard).stat().st_size for shard in shards)
        write_manifest(scratch, "records", counts, _settings(options, "spec"))


def _train(options: argparse.Namespace) -> None:
    started = time.monotonic()
    with workplace(keep_results=True) as place:
        images = unpack(options.kitti, "training", place.scratch)
        values = dict(
            _settings(options, *EXPERIMENT_VALUES),
            image_extension=_extension(images / "images"),
            minimum_learning_rate=float(options.learning_rate) / 100,
            minimum_height=TAO_MINIMUM_HEIGHT,
            training_records=options.records / "training",
            validation_records=options.records / "validation",
            images_training=images,
            images_validation=unpack(options.kitti, "validation", place.scratch),
            pretrained_model=weights_file(options.pretrained) if is_present(options.pretrained) else "",
        )
        chosen = template = template_text(options.spec)
        if is_present(options.pretrained) and not is_detector(options.pretrained):
            # A backbone has no heads whose graph could be taken over.
            template = re.sub(r"(?m)^\s*load_graph\s*:\s*true\s*\n", "", template)
        spec = _write_spec(place, template, values)
        extra = [] if float(options.width) == 1.0 else ["--width", options.width]
        extra += [] if int(options.threads) == 0 else ["--threads", options.threads]
        _tao(place, "train", "-e", spec, "-r", place.results, "-n", options.name, *extra)
        figures = dict(read_status(place.results / STATUS_FILE), seconds=time.monotonic() - started)
        with publish(options.model) as scratch:
            copy_results(place.results, scratch, (STATUS_FILE, "weights"), required=("weights",))
            kept = render_spec(chosen, _symbolic(values))
            (scratch / SPEC_FILE).write_text(kept, encoding="utf-8")
            figures["file_bytes"] = weights_file(scratch).stat().st_size
            _write_model_manifest(scratch, _settings(options, *EXPERIMENT_VALUES, "name", "width"))
        write_json(options.metrics, sanitised(figures))


def _write_model_manifest(model: Path, settings: Mapping[str, Any]) -> None:
    counts = {"present": True, "file_bytes": weights_file(model).stat().st_size}
    write_manifest(model, "model", counts, settings, logs=(STATUS_FILE,))


def _evaluate(options: argparse.Namespace) -> None:
    """Scores the four models on the test images, and draws what the last one finds there.

    The pretrained one has no spec of its own and is scored by that of the training.
    """
    metrics: Dict[str, Any] = {}
    _require_height(options.kitti, float(options.minimum_height))
    told = "test" if (options.kitti / "test").is_dir() else "validation"
    if told != "test":
        print(f"note: {options.kitti} has no test split; its validation images chose the models, and now score them")
    records = options.records / told
    if not records.is_dir():
        raise UserError(f"{records}: no records of the split {told}; convert the KITTI set again")
    with workplace() as place, publish(options.evaluations) as scratch:
        images = unpack(options.kitti, told, place.scratch)
        for name in MODELS:
            artifact = getattr(options, name)
            if is_detector(artifact):
                part = place.part(name)
                owner = options.trained if name == "pretrained" else artifact
                values = {
                    MINIMUM_HEIGHT: options.minimum_height,
                    "training_records": options.records / "training",
                    "validation_records": records,
                    "images_validation": images,
                }
                part.write_spec(_kept_spec(owner, values))
                figures = _evaluate_model(part, weights_file(artifact))
                copy_results(part.results, scratch / name, (STATUS_FILE,))
                shown = ("mean_average_precision", "parameters", "file_bytes")
                metrics.update({f"{name}/{key}": figures[key] for key in shown if key in figures})
            else:
                print(f"{name}: skipped, there is no such model, or a backbone alone, which detects nothing yet")
                figures = {"skipped": True}
                (scratch / name).mkdir(parents=True)
            write_json(scratch / name / "metrics.json", sanitised(figures))
            counts = {key: value for key, value in numbers(figures) if "seconds" not in key}
            settings = {"split": told, MINIMUM_HEIGHT: options.minimum_height}
            write_manifest(scratch / name, "evaluation", sanitised(counts), settings, logs=(STATUS_FILE,))
        logs = [f"{name}/{STATUS_FILE}" for name in MODELS]
        precisions = {name: f"{name}/mean_average_precision" for name in MODELS}
        counts = {name: metrics[key] for name, key in precisions.items() if key in metrics}
        write_manifest(scratch, "evaluations", counts, {"split": told}, logs=logs)
        _inference(place.part("inference"), options, images / "images")
    metrics["mean_average_precision"] = counts["retrained"]
    write_json(options.metrics, sanitised(metrics))


def _require_height(kitti: Path, height: float) -> None:
    """Refuses figures of faces lower than those that the set has: it ignores these as if they were not there."""
    file = kitti / MANIFEST
    made = json.loads(file.read_text(encoding="utf-8")).get("settings", {}) if file.is_file() else {}
    least = made.get("min_face_height", 0) if made.get("small_faces") == "ignore" else 0
    if height < least:
        raise UserError(
            f"{kitti}: faces lower than {least:g} pixels are ignored in this set, so figures from {height:g} pixels on "
            f"would be of others; give at least {least:g} (eval_min_face_height), or convert the set with a lower "
            "--min-face-height"
        )


def _evaluate_model(place: Workplace, model: Path) -> Dict[str, Any]:
    """Scores one model by the spec in its workplace; returns its figures."""
    started = time.monotonic()
    _tao(place, "evaluate", "-e", place.scratch / "spec.txt", "-m", model, "-r", place.results)
    own = place.results / "metrics.json"
    if own.is_file():
        figures = dict(json.loads(own.read_text(encoding="utf-8")))
    else:
        figures = dict(read_status(place.results / STATUS_FILE), seconds=time.monotonic() - started)
        figures["file_bytes"] = model.stat().st_size
    if "mean_average_precision" not in figures:
        raise StageError("the program ended well but reported no average precision")
    figures["model_seconds"] = status_seconds(model.parent.parent / STATUS_FILE)
    return figures


def _prune(options: argparse.Namespace) -> None:
    started = time.monotonic()
    with workplace() as place:
        source = weights_file(options.model)
        # NVIDIA's program writes no encrypted files any more.
        suffix = ".hdf5" if source.suffix == ".tlt" else source.suffix
        target = place.results / "weights" / (source.stem + "_pruned" + suffix)
        target.parent.mkdir()
        arguments = ["-m", source, "-o", target, "-n", options.normalizer, "-eq", options.equalization]
        arguments += ["-pg", options.granularity, "-pth", options.threshold, "-nf", options.minimum_filters]
        arguments += ["-el", *options.excluded_layers.split()] if options.excluded_layers.split() else []
        arguments += ["--target-ratio", options.target_ratio] if float(options.target_ratio) else []
        _tao(place, "prune", *arguments, "--results_dir", place.results)
        figures = dict(read_status(place.results / STATUS_FILE), seconds=time.monotonic() - started)
        with publish(options.pruned) as scratch:
            copy_results(place.results, scratch, (STATUS_FILE, "weights"), required=("weights",))
            copy_results(options.model, scratch, (SPEC_FILE,))
            figures["file_bytes"] = weights_file(scratch).stat().st_size
            _write_model_manifest(scratch, _settings(options, *PRUNE_VALUES))
        write_json(options.metrics, sanitised(figures))


def _inference(place: Workplace, options: argparse.Namespace, images: Path) -> None:
    """Draws the retrained model's detections on the images of a folder."""
    model = weights_file(options.retrained)
    size = _image_size(_kept_spec(options.retrained, {}))
    values = dict(size, batch_size=options.batch_size, model=model)
    spec = _write_spec(place, template_text(options.spec), values)
    _tao(place, "inference", "-e", spec, "-i", images, "-r", place.results, "-m", model)
    with publish(options.annotated) as scratch:
        copy_results(place.results, scratch, (STATUS_FILE, "images_annotated", "labels"), required=("labels",))
        labels = [file.read_text(encoding="utf-8") for file in (scratch / "labels").glob("*.txt")]
        counts = {"images": len(labels), "detections": sum(len(text.splitlines()) for text in labels)}
        write_manifest(scratch, "annotated", counts, {}, logs=(STATUS_FILE,))


def _export(options: argparse.Namespace) -> None:
    with workplace() as place:
        text = _kept_spec(options.model, {})
        spec = place.write_spec(text)
        target = place.results / "model.onnx"
        arguments = ["-m", weights_file(options.model), "-o", target, "-e", spec, "--gen_ds_config"]
        arguments += ["--target_opset", options.opset] if int(options.opset) else []
        _tao(place, "export", *arguments, "--results_dir", place.results)
        with publish(options.exported) as scratch:
            names = ("model.onnx", "labels.txt", "nvinfer_config.txt", STATUS_FILE)
            copy_results(place.results, scratch, names, required=("model.onnx", "labels.txt"))
            counts = {"file_bytes": (scratch / "model.onnx").stat().st_size}
            write_manifest(scratch, "exported_model", counts, _description(place.results, text), logs=(STATUS_FILE,))


def _description(results: Path, text: str) -> Dict[str, Any]:
    """What a reader of the exported model needs: as the open engine describes it, else what TAO's files tell."""
    own = results / "model.json"
    if own.is_file():
        return dict(json.loads(own.read_text(encoding="utf-8")))
    onnx = (results / "model.onnx").read_bytes()
    stems = {"input": "input_1", "coverage": "output_cov/Sigmoid", "bbox": "output_bbox/BiasAdd"}
    spec = parse_spec(text)
    box, size = only(spec, "model_config", "objective_set", "bbox"), _image_size(text)
    return {
        # TAO's ONNX route adds `:0` to the names of inputs and outputs.
        "tensors": {role: stem + ":0" if (stem + ":0").encode() in onnx else stem for role, stem in stems.items()},
        "geometry": dict(
            {name: float(box[name][0]) for name in ("scale", "offset") if name in box},
            width=size["image_width"],
            height=size["image_height"],
        ),
        "class_names": (results / "labels.txt").read_text(encoding="utf-8").split(),
        "clustering": _clustering(only(spec, "postprocessing_config").get("target_class_config", [])),
    }


def _clustering(classes: Sequence[Any]) -> Dict[str, Any]:
    """What the open engine's export says of `clustering_config`, by class; a field that is not set is left out."""
    fields = {"minimum_bounding_box_height": "minimum_height", "clustering_algorithm": "algorithm"}
    described = {}
    for entry in classes:
        given = {name: values[-1] for name, values in only(entry, "value", "clustering_config").items()}
        algorithm = str(given.pop("clustering_algorithm", "DBSCAN"))
        settings: Dict[str, Any] = {fields.get(name, name): float(value) for name, value in given.items()}
        settings["algorithm"] = {"0": "dbscan", "1": "nms", "2": "hybrid"}.get(algorithm, algorithm.lower())
        if "minimum_height" in settings:
            settings["minimum_height"] = int(settings["minimum_height"])
        described[entry["key"][-1]] = settings
    return described


PRUNE_VALUES = (
    "normalizer",
    "equalization",
    "granularity",
    "threshold",
    "minimum_filters",
    "excluded_layers",
    "target_ratio",
)
TASKS = {
    "dataset_convert": Task(_dataset_convert, ("kitti",), ("spec",), ("records",)),
    "train": Task(
        _train,
        ("kitti", "records", "pretrained"),
        ("spec", *EXPERIMENT_VALUES, "name", "width", "threads"),
        ("model", "metrics"),
        texts=("spec", "name"),
    ),
    "evaluate": Task(
        _evaluate,
        ("kitti", "records", *MODELS),
        ("spec", "batch_size", MINIMUM_HEIGHT),
        ("evaluations", "annotated", "metrics"),
    ),
    "prune": Task(
        _prune,
        ("model",),
        PRUNE_VALUES,
        ("pruned", "metrics"),
        texts=("normalizer", "equalization", "excluded_layers"),
        optional=("excluded_layers",),
    ),
    "export": Task(_export, ("model",), ("opset",), ("exported",)),
}
