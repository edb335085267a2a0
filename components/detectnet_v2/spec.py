"""Loads the specs of DetectNet_v2: parses, fills in TAO's defaults, and refuses what is wrong, with file and line."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar, cast

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor

from components.detectnet_v2 import prototext, spec_pb2, spec_rules
from components.detectnet_v2.prototext import Node, Problem
from components.detectnet_v2.spec_rules import Fault
from components.step import UserError

SpecMessage = TypeVar("SpecMessage", spec_pb2.Experiment, spec_pb2.Inference, spec_pb2.DatasetExportConfig)


@dataclass(frozen=True, slots=True)
class Spec(Generic[SpecMessage]):
    """A spec that has passed every check.

    Attributes:
        message: The spec with the defaults of TAO filled in (see `_fill_experiment` and its kin).
        path: The file it came from.
        text: The file's content, for the copy that a results directory keeps.
        warnings: What the program says once before it starts, each with file and line.
    """

    message: SpecMessage
    path: Path
    text: str
    warnings: tuple[str, ...] = ()


def load_experiment(path: Path) -> Spec[spec_pb2.Experiment]:
    """Loads the spec of train, evaluate, prune and export.

    Raises:
        UserError: The file cannot be read or parsed, or a value is missing, out of range or not honoured. The message
            names the file and the line of the first problem and counts the others.
    """
    return _load(path, spec_pb2.Experiment(), _fill_experiment, spec_rules.check_experiment, spec_rules.warn_experiment)


def load_inference(path: Path) -> Spec[spec_pb2.Inference]:
    """Loads the spec of inference.

    Raises:
        UserError: As `load_experiment`.
    """
    return _load(path, spec_pb2.Inference(), _fill_inference, spec_rules.check_inference, spec_rules.warn_inference)


def load_dataset_export(path: Path) -> Spec[spec_pb2.DatasetExportConfig]:
    """Loads the spec of dataset_convert.

    Raises:
        UserError: As `load_experiment`.
    """
    return _load(path, spec_pb2.DatasetExportConfig(), _fill_export, spec_rules.check_export, spec_rules.warn_export)


# ---- Loading ---------------------------------------------------------------------------------------------------------


def _load(
    path: Path,
    message: SpecMessage,
    fill: Callable[[SpecMessage], None],
    validate: Callable[[SpecMessage], Iterator[Fault]],
    warn: Callable[[SpecMessage], Iterator[Fault]],
) -> Spec[SpecMessage]:
    text = _read_text(path)
    try:
        tree = prototext.read(text)
    except prototext.TextSyntaxError as error:
        raise UserError(f"{path}:{error.problem.line}: {error.problem.message}") from error
    descriptor = cast(Descriptor, message.DESCRIPTOR)  # the stubs have two classes for it, which share an interface
    _refuse(path, list(prototext.unfilled_variables(tree)))
    _refuse(path, list(prototext.check(tree, descriptor)))
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise UserError(f"{path}:{error.GetLine()}: {error}") from error
    fill(message)
    _refuse(path, [_place(tree, fault) for fault in (*spec_rules.not_finite(message), *validate(message))])
    warnings = sorted(_place(tree, fault) for fault in warn(message))
    return Spec(message, path, text, tuple(f"{path}:{line}: {warning}" for line, warning in warnings))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: the spec cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the spec is no UTF-8 text (byte {error.start} is wrong)") from error


def _refuse(path: Path, problems: Sequence[Problem]) -> None:
    if problems:
        first = min(problems, key=lambda problem: problem.line)  # the first written wins among equals
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{path}:{first.line}: {first.message}{more}")


def _place(tree: Node, fault: Fault) -> Problem:
    line, value = prototext.locate(tree, fault.path)
    state = "is not set" if value is None else f"is {value}"
    return Problem(line, f"{prototext.display(fault.path)} {fault.text.replace('{is}', state)}".strip())


# ---- Defaults --------------------------------------------------------------------------------------------------------


def _fill_experiment(spec: spec_pb2.Experiment) -> None:
    """Fills in what TAO's builders use for an unset field, so that no consumer repeats it."""
    model, training, augmentation = spec.model_config, spec.training_config, spec.augmentation_config
    if spec.HasField("model_config"):
        model.num_layers = model.num_layers or 18
    if spec.HasField("training_config"):
        training.checkpoint_interval = training.checkpoint_interval or 10
        if training.HasField("visualizer"):
            training.visualizer.scalar_logging_frequency = training.visualizer.scalar_logging_frequency or 10
    for source in spec.dataset_config.data_sources:
        source.source_weight = source.source_weight or 1.0
    if spec.dataset_config.HasField("validation_data_source"):
        source = spec.dataset_config.validation_data_source
        source.source_weight = source.source_weight or 1.0
    if augmentation.HasField("spatial_augmentation"):
        spatial = augmentation.spatial_augmentation
        if spatial.zoom_min == spatial.zoom_max == 0:  # no zoom
            spatial.zoom_min = spatial.zoom_max = 1.0
        if spatial.rotate_rad_max > 0 and spatial.rotate_probability == 0:
            spatial.rotate_probability = 1.0
    if augmentation.HasField("preprocessing"):
        preprocessing = augmentation.preprocessing
        preprocessing.output_image_channel = preprocessing.output_image_channel or 3


def _fill_inference(spec: spec_pb2.Inference) -> None:
    """Fills in what TAO's inference uses for an unset field."""
    if spec.HasField("inferencer_config"):
        spec.inferencer_config.stride = spec.inferencer_config.stride or spec_rules.STRIDE
    for handler in spec.bbox_handler_config.classwise_bbox_handler_config.values():
        if handler.HasField("clustering_config"):
            clustering = handler.clustering_config
            clustering.nms_iou_threshold = clustering.nms_iou_threshold or 0.3
            clustering.nms_confidence_threshold = clustering.nms_confidence_threshold or 0.1


def _fill_export(spec: spec_pb2.DatasetExportConfig) -> None:
    """Fills in what TAO's converter uses for an unset field."""
    if spec.HasField("kitti_config"):
        spec.kitti_config.image_extension = spec.kitti_config.image_extension or ".png"
