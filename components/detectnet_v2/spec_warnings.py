"""Warnings about specs, and what TAO 5 does differently with the same spec.

Facts about TAO: release 5.0, and of 3.x and 4.0 their published specs.
"""

import re
from collections.abc import Callable, Iterator

from components.detectnet_v2 import spec_fields, spec_pb2
from components.detectnet_v2.prototext import FieldPath, MapKey
from components.detectnet_v2.spec_fields import CLUSTERING, HANDLERS, Fault

Written = Callable[[FieldPath], str | None]
"""Returns a field's value as written in the file, or None."""

_MULTISOURCE = spec_pb2.DatasetConfig.MULTISOURCE
_DBSCAN, _NMS = spec_pb2.ClusteringConfig.DBSCAN, spec_pb2.ClusteringConfig.NMS


# ---- Warnings --------------------------------------------------------------------------------------------------------


def warn_experiment(spec: spec_pb2.Experiment) -> Iterator[Fault]:
    """Finds what may surprise the writer of a spec, before defaults are filled in."""
    for path, config in spec_fields.values(spec, CLUSTERING):
        if 0 < config.dbscan_min_samples < 1 and config.clustering_algorithm != _NMS:
            text = "{is}, taken as written; TAO 5 evaluates with at least 1, and so does --compat tao5"
            yield Fault((*path, "dbscan_min_samples"), text)
    data, model = spec.dataset_config, spec.model_config
    for source in data.target_class_mapping:
        if source != source.lower():
            text = f'is read as "{source.lower()}", as records hold it; TAO would match no label, so write it so'
            yield Fault(("dataset_config", "target_class_mapping", MapKey(source)), text)
    if data.WhichOneof("dataset_split_type") is None:
        yield Fault.at("dataset_config", "has neither validation_fold nor validation_data_source: nothing to validate")
    for path, spatial in spec_fields.values(spec, "augmentation_config.spatial_augmentation"):
        if spatial.vflip_probability > 0:
            yield Fault((*path, "vflip_probability"), "{is}; TAO 5 ignores it, and so does --compat tao5")
        if spatial.rotate_rad_max > 0 and data.dataloader_mode == _MULTISOURCE:
            text = "{is}, in radians as its name says; TAO 5 reads it as degrees, and so does --compat tao5"
            yield Fault((*path, "rotate_rad_max"), text)
    if model.use_pooling:
        text = (
            "{is}: a 3x3 max-pool follows the stem and the blocks have strides 1, 2, 2, 1, which keeps the grid's 16 "
            "pixels a cell; TAO's variant ends at 32 and a 7x7 average pool, which no detection head can use"
        )
        yield Fault.at("model_config.use_pooling", text)
    if model.freeze_pretrained_layers and not model.pretrained_model_file:
        yield Fault.at("model_config.freeze_pretrained_layers", "{is}, but pretrained_model_file is not set: no layer")
    if model.freeze_blocks and not model.pretrained_model_file:
        text = "but pretrained_model_file is not set: these blocks keep their random weights"
        yield Fault.at("model_config.freeze_blocks", text)
    visualizer = spec.training_config.visualizer
    yield from _check_wandb(visualizer.wandb_config, "training_config.visualizer")
    if visualizer.HasField("clearml_config"):
        yield Fault.at("training_config.visualizer.clearml_config", f"is left aside: {_METRICS}, not to ClearML")


def warn_inference(spec: spec_pb2.Inference) -> Iterator[Fault]:
    """As `warn_experiment`, for inference."""
    for path, config in spec_fields.values(spec, "inferencer_config"):
        for name, default in INFERENCE_DEFAULTS.items():
            if not getattr(config, name):
                yield Fault((*path, name), f"is not set: {default or 'the model has its own'}; TAO 5 requires it")
    yield from _check_wandb(spec.bbox_handler_config.wandb_config, "bbox_handler_config")


def warn_export(spec: spec_pb2.DatasetExportConfig) -> Iterator[Fault]:
    """As `warn_experiment`, for dataset conversion."""
    if any(source != target for source, target in spec.target_class_mapping.items()):
        text = "does not change the records; it takes effect in the dataset_config of the experiment spec"
        yield Fault.at("target_class_mapping", text)


INFERENCE_DEFAULTS = {"image_width": 0, "image_height": 0, "image_channels": 3, "batch_size": 1}
"""Defaults of `inferencer_config`, as in TAO's builder; 0 is the model's own size (TAO: 960x544 for every model)."""


_METRICS = "metrics go to status.json and TensorBoard files"


def _check_wandb(config: spec_pb2.WandBConfig, block: str) -> Iterator[Fault]:
    if config.enabled:
        yield Fault.at(f"{block}.wandb_config.enabled", f"{{is}}, but {_METRICS}, not to Weights & Biases")
    if config.key:
        text = "holds a secret, which the results directory's copy of the spec would hold too; remove it"
        yield Fault.at(f"{block}.wandb_config.key", text)


# ---- TAO 5 -----------------------------------------------------------------------------------------------------------


def refused_by_tao5(
    spec: spec_pb2.Experiment | spec_pb2.Inference | spec_pb2.DatasetExportConfig, written: Written
) -> Iterator[Fault]:
    """Finds what this engine and TAO 3.x and 4.0 accept and TAO 5 refuses.

    Args:
        spec: The spec before defaults are filled in.
        written: Returns values as written in the file.
    """
    if isinstance(spec, spec_pb2.DatasetExportConfig):
        return
    is_experiment = isinstance(spec, spec_pb2.Experiment)
    for path, config in spec_fields.values(spec, CLUSTERING if is_experiment else f"{HANDLERS}.clustering_config"):
        value = written((*path, "dbscan_min_samples"))
        if value is not None and not re.fullmatch(r"[-+]?\d+", value):
            yield Fault(
                (*path, "dbscan_min_samples"), "{is}: TAO 3.x and 4.0 read a float, TAO 5 whole numbers only; write 1"
            )
        if is_experiment and config.clustering_algorithm not in (_DBSCAN, _NMS):
            yield Fault((*path, "clustering_algorithm"), "{is}, which TAO has in inference only")
        if is_experiment and config.clustering_algorithm == _DBSCAN and not config.dbscan_eps:
            yield Fault((*path, "dbscan_eps"), "{is}; TAO 5's DBSCAN must have more than 0")
    if isinstance(spec, spec_pb2.Experiment):
        yield from _experiment_refused_by_tao5(spec)
    else:
        for name in INFERENCE_DEFAULTS:
            if not getattr(spec.inferencer_config, name):
                yield Fault(("inferencer_config", name), "{is}: TAO 3.x and 4.0 have a default, TAO 5 requires it")


def _experiment_refused_by_tao5(spec: spec_pb2.Experiment) -> Iterator[Fault]:
    spatial = spec.augmentation_config.spatial_augmentation
    if not spatial.zoom_min:
        path = "augmentation_config.spatial_augmentation.zoom_min"
        yield Fault.at(path, "{is}; TAO 5 wants more than 0: write zoom_min: 1 zoom_max: 1 for no zoom")
    if spec.model_config.freeze_blocks and not spec.model_config.pretrained_model_file:
        yield Fault.at("model_config.freeze_blocks", "needs a pretrained_model_file in TAO 5")
    visualizer = spec.training_config.visualizer
    if visualizer.HasField("wandb_config") and not visualizer.wandb_config.name:
        yield Fault.at("training_config.visualizer.wandb_config.name", "{is}; TAO 5 requires it")


def differs_in_tao5(
    spec: spec_pb2.Experiment | spec_pb2.Inference | spec_pb2.DatasetExportConfig,
) -> Iterator[Fault]:
    """Finds what TAO 5 does differently, in addition to the warnings; `--compat tao5` reproduces it."""
    if isinstance(spec, spec_pb2.Experiment):
        yield from _experiment_differs_in_tao5(spec)
    elif isinstance(spec, spec_pb2.Inference):
        for path, config in spec_fields.values(spec, f"{HANDLERS}.clustering_config"):
            whole = config.dbscan_min_samples % 1 == 0 and config.dbscan_min_samples >= 1
            if config.HasField("dbscan_min_samples") and not whole and config.clustering_algorithm != _NMS:
                yield Fault((*path, "dbscan_min_samples"), "{is}; TAO 5 takes its whole part, and at least 1")
            if config.minimum_bounding_box_height and config.clustering_algorithm != _DBSCAN:
                yield Fault((*path, "minimum_bounding_box_height"), "{is}; TAO 5's NMS takes no notice of it")


def _experiment_differs_in_tao5(spec: spec_pb2.Experiment) -> Iterator[Fault]:
    for path, config in spec_fields.values(spec, CLUSTERING):
        is_zero = config.HasField("dbscan_min_samples") and not config.dbscan_min_samples
        if is_zero and config.clustering_algorithm != _NMS:
            yield Fault((*path, "dbscan_min_samples"), "{is}; TAO 5 takes 1")
        if config.clustering_algorithm != _DBSCAN:
            text = "in TAO 5 measures boxes a pixel larger, wants scores above the threshold and ignores heights"
            yield Fault((*path, "clustering_algorithm"), f"{{is}}, which {text}")
            if not config.nms_iou_threshold:
                yield Fault((*path, "nms_iou_threshold"), "{is}, here 0.3; TAO 5 evaluates with 0")
        used, swapped = "dbscan_confidence_threshold", "nms_confidence_threshold"
        if config.clustering_algorithm == _NMS:
            used, swapped = swapped, used
        if config.clustering_algorithm in (_DBSCAN, _NMS) and getattr(config, used) != getattr(config, swapped):
            value = f"{getattr(config, swapped):g}"
            yield Fault((*path, used), f"{{is}}; TAO 5 evaluates with the value of {swapped} in its place ({value})")
    for path, size in spec_fields.values(spec, "augmentation_config.preprocessing"):
        for name in ("min_bbox_width", "min_bbox_height"):
            if getattr(size, name) not in (0, 1) and spec.dataset_config.dataloader_mode == _MULTISOURCE:
                yield Fault((*path, name), "{is}; TAO 5 drops boxes below 1 pixel, whatever it says")
    if spec.dataset_config.WhichOneof("dataset_split_type"):
        text = "is used whole; TAO 5 takes whole batches, from a repetition of it"
        yield Fault.at(f"dataset_config.{spec.dataset_config.WhichOneof('dataset_split_type')}", text)
    text = "is computed from exact boxes; TAO 5 rounds them to whole pixels"
    if spec.evaluation_config.average_precision_mode == spec_pb2.EvaluationConfig.INTEGRATE:
        text += ", and gives a perfect detector of n objects (n-1)/n"
    yield Fault.at("evaluation_config.average_precision_mode", text)
