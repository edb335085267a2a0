"""What each task demands, and the results it leaves, in TAO's layout."""

import argparse
import contextlib
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from components.detectnet_v2.tao_double import faults, models, specs
from components.step import UserError
from components.vision.status import Status

_MEGABYTE = 1 << 20
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# The double's own figures: nothing is measured.
_LOSS, _AVERAGE_PRECISION, _VALIDATION_COST = 0.001, 50.0, 0.0005


class StatusWriter(Protocol):
    """TAO's status log."""

    def write(self, status: Status, message: str, **fields: Any) -> None:  # noqa: ANN401 - TAO's further keys
        """Appends one line."""


def _log(text: str) -> None:
    print(f"[TAO Toolkit] [INFO] {text}", flush=True)


def _dataset_convert(options: argparse.Namespace, status: StatusWriter) -> None:
    from components.detectnet_v2.dataset_convert import convert

    status.write("STARTED", "Starting Object Detection Dataset Convert.")
    specs.load_dataset_export(options.dataset_export_spec)
    faults.strike("dataset_convert")
    # The records are the real ones: the same frames in the same shards.
    convert(Path(options.dataset_export_spec), Path(options.output_filename), options.validation_fold)


# ---- train -----------------------------------------------------------------------------------------------------------


def _train(options: argparse.Namespace, status: StatusWriter) -> None:
    if not options.results_dir:
        raise ValueError("the double needs -r; TAO would write to ~/experiments")
    results = Path(options.results_dir)
    weights = results / "weights" / f"{options.model_name}.hdf5"
    weights.parent.mkdir(parents=True, exist_ok=True)
    status.write("STARTED", "Starting DetectNet_v2 Training job")
    spec = specs.load_experiment(options.experiment_spec_file)
    (results / "experiment_spec.txt").write_text(str(spec), encoding="utf-8")
    frames = _frames(spec, validation=False)
    steps = math.ceil(frames / spec.training_config.batch_size_per_gpu)
    _check_logging_points(spec.training_config, steps)
    _frames(spec, validation=True)
    first = _latest_checkpoint(results)
    with _pretrained(spec.model_config, options.key) as source:
        if first:
            _log(f"Restoring from {results}/model.epoch-{first}.ckzip")
        for epoch in range(first, spec.training_config.num_epochs):
            _train_epoch(spec, epoch, results, status)
            if epoch == first + (spec.training_config.num_epochs - first) // 2:
                faults.strike("train")
        status.write("RUNNING", "Training loop completed.")
        if source and spec.model_config.load_graph:
            models.write_copy(weights, source)
        else:
            models.write_new(weights, spec)
    kpi = {"size": weights.stat().st_size / _MEGABYTE, "param_count": models.describe(weights).parameters / 1e6}
    status.write("RUNNING", "Model saved.", kpi=kpi)


def _frames(spec: Any, validation: bool) -> int:  # noqa: ANN401 - a message class that is built at run time
    """Counts the frames of a data set whose records and images are all there.

    Raises:
        DataLossError: A file that the glob catches holds no records.
        ValueError: A glob catches no file, or an image is missing.
    """
    from components.detectnet_v2.records import load_frames

    data = spec.dataset_config
    split = data.WhichOneof("dataset_split_type")
    fold = data.validation_fold if split == "validation_fold" else None
    if validation and split is None:
        return 0
    sources = [data.validation_data_source] if validation and fold is None else data.data_sources
    only, without = (fold, None) if validation else (None, fold)
    total = 0
    for source in sources:
        try:
            frames = load_frames(source.tfrecords_path, only_fold=only, exclude_fold=without)
        except UserError as error:
            wrong = "no file matches" in str(error) or "folds found" in str(error)
            raise ValueError(str(error)) if wrong else faults.DataLossError("corrupted record at 0") from error
        for frame in frames:
            # TAO puts the dot in itself.
            image = Path(source.image_directory_path, f"{frame.id}.{data.image_extension}")
            if not image.is_file():
                raise ValueError(f"{image}; No such file or directory")
        total += len(frames)
    return total


def _check_logging_points(training: Any, steps: int) -> None:  # noqa: ANN401
    points = training.visualizer.scalar_logging_frequency or 10
    if points > steps:
        raise ValueError(f"Number of logging points {points} must be <= than the number of steps per epoch {steps}.")


def _pretrained(model: Any, key: str) -> contextlib.AbstractContextManager[Path | None]:  # noqa: ANN401
    """Opens the spec's pretrained model; a file of weights alone (`.h5`) serves where no graph is loaded."""
    file = model.pretrained_model_file
    if not file:
        return contextlib.nullcontext()
    assert Path(file).is_file(), f"Pretrained model file not found: {file}"
    if file.endswith(".h5") and not model.load_graph:
        return contextlib.nullcontext()
    return models.opened(file, key)


def _latest_checkpoint(results: Path) -> int:
    return max((int(file.stem.rpartition("-")[2]) for file in results.glob("model.epoch-*.ckzip")), default=0)


def _train_epoch(spec: Any, epoch: int, results: Path, status: StatusWriter) -> None:  # noqa: ANN401
    config, evaluation = spec.training_config, spec.evaluation_config
    epochs, period = config.num_epochs, evaluation.validation_period_during_training
    first = evaluation.first_validation_epoch
    schedule = config.learning_rate.soft_start_annealing_schedule
    rate = schedule.max_learning_rate or config.learning_rate.early_stopping_annealing_schedule.max_learning_rate
    _log(f"Epoch {epoch}/{epochs}: loss: {_LOSS:0.5f} learning rate: {rate} Time taken: 0:00:00 ETA: 0:00:00")
    times = {"time_per_epoch": "0:00:00", "eta": "0:00:00"}
    graphical = {"loss": _LOSS, "learning_rate": rate}
    status.write("RUNNING", "Training loop in progress", epoch=epoch, max_epoch=epochs, graphical=graphical, **times)
    done = epoch + 1
    if (done >= first and (done - first) % period == 0) or done == epochs:
        _report(spec, status, "Validation")
    if done % (config.checkpoint_interval or 10) == 0 or done == epochs:
        with zipfile.ZipFile(results / f"model.epoch-{done}.ckzip", "w") as checkpoint:
            checkpoint.writestr("double", "nothing was learnt")


def _report(spec: Any, status: StatusWriter, what: str) -> None:  # noqa: ANN401
    """Prints and logs the average precision of each class as TAO does."""
    names = [target.name for target in spec.cost_function_config.target_classes]
    print(f"\nValidation cost: {_VALIDATION_COST:f}\nMean average_precision (in %): {_AVERAGE_PRECISION:.4f}\n")
    width = max(len("class name"), *map(len, names))
    rule = f"+-{'-' * width}-+--------------------------+"
    rows = [f"| {name:^{width}} | {_AVERAGE_PRECISION:^24.2f} |" for name in names]
    print("\n".join([rule, f"| {'class name':^{width}} | average precision (in %) |", rule, *rows, rule]))
    print("\nMedian Inference Time: 0.005000", flush=True)
    kpi = {"validation cost": _VALIDATION_COST, "mean average precision": _AVERAGE_PRECISION}
    categorical = {"average_precision": dict.fromkeys(names, _AVERAGE_PRECISION)}
    status.write("RUNNING", f"{what} metrics generated.", kpi=kpi, categorical=categorical)


# ---- The other tasks -------------------------------------------------------------------------------------------------


def _detector(path: str | Path, key: str) -> models.Described:
    """Describes a model that is to detect; see `models.opened`."""
    with models.opened(path, key) as plain:
        model = models.describe(plain)
    if not model.classes:
        raise ValueError(f"{path}: the model has no output_cov and output_bbox")
    return model


def _evaluate(options: argparse.Namespace, status: StatusWriter) -> None:
    status.write("STARTED", "Starting DetectNet_v2 Evaluation")
    spec = specs.load_experiment(options.experiment_spec)
    if options.framework == "tensorrt":
        raise NotImplementedError("the double runs no TensorRT engine")
    faults.strike("evaluate")
    _detector(options.model_path, options.key)
    if not _frames(spec, validation=not options.use_training_set):
        raise ValueError("No validation data: set validation_fold or validation_data_source")
    _report(spec, status, "Evaluation")


def _prune(options: argparse.Namespace, status: StatusWriter) -> None:
    criteria = ("arithmetic_mean", "geometric_mean", "union", "intersection")
    assert options.equalization_criterion in criteria, f"Equalization criterion are {criteria}."
    assert options.normalizer in ("L2", "max"), "normalizer options are [L2, max]."
    with models.opened(options.model, options.key) as source:
        before = models.describe(source).parameters
        faults.strike("prune")
        # TAO puts its own suffix behind any other one.
        output = Path(options.output_file if options.output_file.endswith(".hdf5") else f"{options.output_file}.hdf5")
        from components.vision.pruning import PruneSettings

        settings = PruneSettings(
            options.pruning_threshold,
            options.pruning_granularity,
            options.min_num_filters,
            options.normalizer,
            options.equalization_criterion,
            tuple(options.excluded_layers),
        )
        models.write_pruned(output, source, settings)
    after = models.describe(output).parameters
    _log(f"Pruning ratio (pruned model / original model): {after / before}")
    # TAO looks for the file under the name that was given.
    size = Path(options.output_file).stat().st_size / _MEGABYTE
    kpi = {"pruning_ratio": after / before, "size": size, "param_count": after / 1e6}
    status.write("RUNNING", f"Pruning ratio (pruned model / original model): {after / before}", kpi=kpi)


def _inference(options: argparse.Namespace, status: StatusWriter) -> None:
    import cv2  # as all large libraries here, late: most runs of a double are to fail, and soon

    status.write("STARTED", "Starting DetectNet_v2 Inference")
    spec = specs.load_inference(options.experiment_spec)
    source, results = Path(options.image_dir), Path(options.results_dir)
    if not source.exists():
        raise ValueError(f"Invalid infer image root {source}")
    _detector(options.model_path or spec.inferencer_config.tlt_config.model, options.key)
    files = [source] if source.is_file() else sorted(source.iterdir())
    handlers = spec.bbox_handler_config
    faults.strike("inference")
    for name in ("images_annotated", "labels"):
        (results / name).mkdir(parents=True, exist_ok=True)
    for file in (file for file in files if file.suffix.lower() in _IMAGE_SUFFIXES):
        image = cv2.imread(str(file))
        if image is None:
            raise OSError(f"cannot identify image file '{file}'")
        rows = []
        for name in spec.inferencer_config.target_classes:
            height, width = image.shape[:2]
            box = (width // 4, height // 4, width // 2, height // 2)
            cv2.rectangle(image, box[:2], box[2:], (0, 255, 0), max(handlers.overlay_linewidth, 1))
            rows.append(_kitti_row(_handler(handlers, name).output_map, box))
        if not handlers.disable_overlay:
            cv2.imwrite(str(results / "images_annotated" / file.name), image)
        if handlers.kitti_dump:
            (results / "labels" / f"{file.stem}.txt").write_text("".join(rows), encoding="utf-8")


def _handler(handlers: Any, name: str) -> Any:  # noqa: ANN401 - message classes that are built at run time
    known = handlers.classwise_bbox_handler_config
    for key in (name, "default"):
        if key in known:
            return known[key]
    raise ValueError(f"No classwise_bbox_handler_config for {name} and no default")


def _kitti_row(name: str, box: tuple[int, int, int, int]) -> str:
    corners = " ".join(f"{value:.3f}" for value in box)
    return f"{name} 0.00 0 0.00 {corners} {' '.join(['0.00'] * 7)} 1.000\n"


def _export(options: argparse.Namespace, status: StatusWriter) -> None:
    output = Path(options.output_file or Path(options.model).with_suffix(".onnx"))
    if "onnx" not in str(output):
        output = output.with_name(output.name + ".onnx")
    assert not output.exists(), f"Default output file {output} already exists"
    status.write("RUNNING", "Building exporter object.")
    spec = specs.load_experiment(options.experiment_spec) if options.experiment_spec else None
    model = _detector(options.model, options.key)
    status.write("RUNNING", "Exporting the model.")
    faults.strike("export")
    output.parent.mkdir(parents=True, exist_ok=True)
    models.write_onnx(output, model, options.target_opset, options.static_batch_size)
    if options.gen_ds_config:
        if spec is None:
            raise AttributeError("Experiment spec wasn't loaded. To get class labels please provide it by -e.")
        names = [target.name for target in spec.cost_function_config.target_classes]
        output.with_name("labels.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        lines = (
            "net-scale-factor=0.0039215697906911373",
            "offsets=0;0;0",
            f"infer-dims=3;{model.height};{model.width}",
            "network-type=0",
            f"num-detected-classes={len(names)}",
            "model-color-format=0",
            "maintain-aspect-ratio=0",
            "output-tensor-meta=0",
        )
        output.with_name("nvinfer_config.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


TASKS: dict[str, Callable[[argparse.Namespace, StatusWriter], None]] = {
    "dataset_convert": _dataset_convert,
    "train": _train,
    "evaluate": _evaluate,
    "prune": _prune,
    "inference": _inference,
    "export": _export,
}
# As TAO calls them in its status log.
NAMES = {
    "dataset_convert": "Dataset convert",
    "train": "Training",
    "evaluate": "Evaluation",
    "prune": "Pruning",
    "inference": "Inference",
    "export": "Export",
}
