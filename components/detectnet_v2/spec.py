"""Loads the specs of DetectNet_v2: parses, fills in TAO's defaults and validates; problems have file and line."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor

from components.detectnet_v2 import prototext, spec_fields, spec_pb2, spec_rules, spec_warnings
from components.detectnet_v2.prototext import Node, Problem
from components.detectnet_v2.spec_fields import Fault, WithoutEffect
from components.step import UserError

SpecMessage = TypeVar("SpecMessage", spec_pb2.Experiment, spec_pb2.Inference, spec_pb2.DatasetExportConfig)


@dataclass(frozen=True, slots=True)
class Spec(Generic[SpecMessage]):
    """A spec that has passed every check.

    Attributes:
        message: The spec with TAO's defaults.
        path: The file.
        text: The file's content with `${NAME}` filled in, for the copy in the results directory.
        warnings: Shown once before the program starts, each with file and line.
    """

    message: SpecMessage
    path: Path
    text: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kind(Generic[SpecMessage]):
    """A kind of spec.

    Attributes:
        name: Its name in messages.
        readers: The sub-commands that read it.
        new: Creates an empty message.
        fill: Fills in TAO's defaults.
        check: Finds errors, in a filled message.
        warn: Finds what may surprise the writer, in a message before it is filled.
        without_effect: Its fields without effect.
    """

    name: str
    readers: str
    new: Callable[[], SpecMessage]
    fill: Callable[[SpecMessage], None]
    check: Callable[[SpecMessage], Iterator[Fault]]
    warn: Callable[[SpecMessage], Iterator[Fault]]
    without_effect: Sequence[WithoutEffect]

    @property
    def fields(self) -> set[str]:
        """The fields of its outermost block."""
        return {field.name for field in self.new().DESCRIPTOR.fields}


@dataclass(frozen=True, slots=True)
class Review:
    """The findings about a spec, valid or not. Each list is in the order of the lines.

    Attributes:
        path: The file.
        kind: The kind as which it was read.
        message: The message, with defaults if there are no problems.
        text: The file's content with `${NAME}` filled in.
        problems: Errors; a spec with any cannot be used.
        is_complete: Whether values were checked too; they are not if the text itself has problems.
        warnings: What may surprise the writer.
        without_effect: Fields that are set and have no effect.
        refused_by_tao5: What TAO 3.x and 4.0 accept and TAO 5 refuses.
        differs_in_tao5: What TAO 5, and `--compat tao5`, do differently.
    """

    path: Path
    kind: Kind[Any]
    message: Any
    text: str
    problems: tuple[Problem, ...]
    is_complete: bool = False
    warnings: tuple[Problem, ...] = ()
    without_effect: tuple[Problem, ...] = ()
    refused_by_tao5: tuple[Problem, ...] = ()
    differs_in_tao5: tuple[Problem, ...] = ()


def load_experiment(path: Path) -> Spec[spec_pb2.Experiment]:
    """Loads the spec of train, evaluate, prune and export.

    Raises:
        UserError: The file cannot be read or parsed, or a value is missing, out of range or not honoured. The message
            names the file and the line of the first problem and counts the others.
    """
    return _load(path, EXPERIMENT)


def load_inference(path: Path) -> Spec[spec_pb2.Inference]:
    """Loads the spec of inference.

    Raises:
        UserError: As `load_experiment`.
    """
    return _load(path, INFERENCE)


def load_dataset_export(path: Path) -> Spec[spec_pb2.DatasetExportConfig]:
    """Loads the spec of dataset_convert.

    Raises:
        UserError: As `load_experiment`.
    """
    return _load(path, DATASET_EXPORT)


def review(path: Path) -> Review:
    """Reads a spec of any kind and collects all findings.

    Raises:
        UserError: The file cannot be read, is no protobuf text, or has no field of any kind of spec.
    """
    return _review(path, None)


# ---- Loading ---------------------------------------------------------------------------------------------------------


def _load(path: Path, kind: Kind[SpecMessage]) -> Spec[SpecMessage]:
    found = _review(path, kind)
    if found.problems:
        first = found.problems[0]
        more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
        raise UserError(f"{path}:{first.line}: {first.message}{more}")
    warnings = tuple(f"{path}:{line}: {warning}" for line, warning in found.warnings)
    return Spec(found.message, path, found.text, warnings)


def _review(path: Path, kind: Kind[Any] | None) -> Review:
    text, unfilled = prototext.fill_variables(_read_text(path), os.environ)
    try:
        tree = prototext.read(text)
    except prototext.TextSyntaxError as error:
        first = min([*unfilled, error.problem], key=lambda problem: problem.line)
        raise UserError(f"{path}:{first.line}: {first.message}") from error
    kind = kind or _kind_of(path, tree)
    message = kind.new()
    descriptor = cast(Descriptor, message.DESCRIPTOR)  # the stubs have two classes for it, which share an interface
    # A variable that could not be filled in is reported once.
    lines = {problem.line for problem in unfilled}
    misread = [problem for problem in prototext.check(tree, descriptor) if problem.line not in lines]
    if unfilled or misread:
        return Review(path, kind, message, text, _in_order(unfilled + misread))
    try:
        text_format.Merge(text, message)  # unlike Parse it takes the last of several scalars, as TAO does
    except text_format.ParseError as error:
        raise UserError(f"{path}:{error.GetLine()}: {error}") from error

    def placed(faults: Iterable[Fault]) -> tuple[Problem, ...]:
        return _in_order(_place(tree, fault) for fault in faults)

    twice = prototext.overridden(tree, descriptor)
    warnings = _in_order([*twice, *(_place(tree, fault) for fault in kind.warn(message))])
    refused = placed(spec_warnings.refused_by_tao5(message, lambda field: prototext.locate(tree, field)[1]))
    without_effect = placed(spec_fields.effectless(message, kind.without_effect))
    kind.fill(message)
    problems = placed([*spec_rules.not_finite(message), *kind.check(message)])
    differs = placed(spec_warnings.differs_in_tao5(message))
    return Review(path, kind, message, text, problems, True, warnings, without_effect, refused, differs)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: the spec cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the spec is no UTF-8 text (byte {error.start} is wrong)") from error


def _kind_of(path: Path, tree: Node) -> Kind[Any]:
    names = {node.name for node in tree.children}
    best = max(KINDS, key=lambda kind: len(names & kind.fields))
    if not names & best.fields:
        outermost = "; ".join(f"{kind.name}: {', '.join(_telling_fields(kind))}" for kind in KINDS)
        raise UserError(f"{path}: no field tells what kind of spec this is ({outermost})")
    return best


def _telling_fields(kind: Kind[Any]) -> list[str]:
    return [field.name for field in kind.new().DESCRIPTOR.fields if field.name.endswith("_config")][:3]


def _in_order(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    return tuple(sorted(problems, key=lambda problem: problem.line))  # stable: the first found wins among equals


def _place(tree: Node, fault: Fault) -> Problem:
    line, value = prototext.locate(tree, fault.path)
    if value and re.fullmatch(r"-?\d+\.\d{8,}(?:[eE]-?\d+)?", value):
        value = f"{float(value):.7g}"  # NVIDIA's specs have 0.05 as 0.0500000007451
    state = "is not set" if value is None else f"is {value}"
    return Problem(line, f"{prototext.display(fault.path)} {fault.text.replace('{is}', state)}".strip())


# ---- Defaults --------------------------------------------------------------------------------------------------------


def _fill_experiment(spec: spec_pb2.Experiment) -> None:
    """Fills in the defaults of TAO's builders for unset fields, so that no consumer repeats them.

    The exceptions are `visualizer.scalar_logging_frequency`, whose default depends on the number of steps (see
    `visualizer.scalar_logs_per_epoch`), and `nms_iou_threshold`, which TAO 5 evaluates as 0 (see
    `experiment.to_clustering`).
    """
    model, training, augmentation = spec.model_config, spec.training_config, spec.augmentation_config
    if spec.HasField("model_config"):
        model.num_layers = model.num_layers or 18
    if spec.HasField("training_config"):
        training.checkpoint_interval = training.checkpoint_interval or 10
    if training.HasField("visualizer"):
        visualizer = training.visualizer
        visualizer.num_images = visualizer.num_images or 3
        visualizer.infrequent_logging_frequency = visualizer.infrequent_logging_frequency or 1
    data = spec.dataset_config
    validation = [data.validation_data_source] if data.HasField("validation_data_source") else []
    for source in (*data.data_sources, *validation):
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
    """Fills in the defaults of TAO's inference."""
    if spec.HasField("inferencer_config"):
        config = spec.inferencer_config
        config.stride = config.stride or spec_fields.STRIDE
        for name, value in spec_warnings.INFERENCE_DEFAULTS.items():
            setattr(config, name, getattr(config, name) or value)
    for handler in spec.bbox_handler_config.classwise_bbox_handler_config.values():
        if handler.HasField("clustering_config"):
            clustering = handler.clustering_config
            clustering.nms_iou_threshold = clustering.nms_iou_threshold or spec_fields.NMS_IOU
            clustering.nms_confidence_threshold = clustering.nms_confidence_threshold or 0.1


def _fill_export(spec: spec_pb2.DatasetExportConfig) -> None:
    """Fills in the defaults of TAO's converter."""
    if spec.HasField("kitti_config"):
        spec.kitti_config.image_extension = spec.kitti_config.image_extension or ".png"


EXPERIMENT = Kind(
    "experiment",
    "train, evaluate, prune and export",
    spec_pb2.Experiment,
    _fill_experiment,
    spec_rules.check_experiment,
    spec_warnings.warn_experiment,
    spec_fields.WITHOUT_EFFECT_IN_EXPERIMENT,
)
INFERENCE = Kind(
    "inference",
    "inference",
    spec_pb2.Inference,
    _fill_inference,
    spec_rules.check_inference,
    spec_warnings.warn_inference,
    spec_fields.WITHOUT_EFFECT_IN_INFERENCE,
)
DATASET_EXPORT = Kind(
    "dataset conversion",
    "dataset_convert",
    spec_pb2.DatasetExportConfig,
    _fill_export,
    spec_rules.check_export,
    spec_warnings.warn_export,
    spec_fields.WITHOUT_EFFECT_IN_EXPORT,
)
KINDS: tuple[Kind[Any], ...] = (EXPERIMENT, INFERENCE, DATASET_EXPORT)
