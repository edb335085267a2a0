"""From the experiment spec to the objects that train and evaluate with it.

What is wrong or not honoured has been refused by `spec.load_experiment`, which knows file and line.
"""

from dataclasses import replace
from typing import Literal

import torch

from components.decode.grid.clustering import Clustering
from components.decode.grid.geometry import STRIDE, GridGeometry
from components.detectnet_v2 import spec_fields, spec_pb2
from components.detectnet_v2.losses import OBJECTIVES, ClassCost, Objectives
from components.detectnet_v2.network import GridNetConfig
from components.formats.images import Resampling
from components.vision.inputs import Fit, InputSpec
from components.vision.neck import STRIDE as FINE_STRIDE
from components.vision.neck import FineNeck
from components.vision.resnet import ResNetConfig
from components.vision.schedule import CosineAnnealing, EarlyStoppingAnnealing, Schedule, SoftStartAnnealing

# As a spec would hold it.
_NMS_IOU = spec_pb2.ClusteringConfig(nms_iou_threshold=spec_fields.NMS_IOU).nms_iou_threshold

# How a spec's clustering algorithm is called in `Clustering`.
_ALGORITHMS: dict[int, Literal["dbscan", "nms", "hybrid"]] = {
    spec_pb2.ClusteringConfig.DBSCAN: "dbscan",
    spec_pb2.ClusteringConfig.NMS: "nms",
    spec_pb2.ClusteringConfig.HYBRID: "hybrid",
}
_CONFIDENCE_MODELS: dict[str, Literal["aggregate_cov", "mean_cov"]] = {
    "aggregate_cov": "aggregate_cov",
    "mean_cov": "mean_cov",
}

# How a spec's `open_engine` has images fitted into the input.
_FITS: dict[int, Fit] = {
    spec_pb2.OpenEngineConfig.LETTERBOX: "letterbox",
    spec_pb2.OpenEngineConfig.STRETCH: "stretch",
    spec_pb2.OpenEngineConfig.CROP: "crop",
}
_RESAMPLINGS: dict[int, Resampling] = {
    spec_pb2.OpenEngineConfig.AREA: "area",
    spec_pb2.OpenEngineConfig.CUBIC: "cubic",
}

# How a spec's regulariser is called in `WeightPenalty`.
REGULARIZERS: dict[int, Literal["none", "L1", "L2"]] = {
    spec_pb2.RegularizerConfig.NO_REG: "none",
    spec_pb2.RegularizerConfig.L1: "L1",
    spec_pb2.RegularizerConfig.L2: "L2",
}


def class_names(spec: spec_pb2.Experiment) -> tuple[str, ...]:
    """Returns the trained classes in the order of the network's channels."""
    return tuple(target.name for target in spec.cost_function_config.target_classes)


def geometry(spec: spec_pb2.Experiment) -> GridGeometry:
    """Returns the network's input size and grid."""
    size, bbox = spec.augmentation_config.preprocessing, spec.model_config.objective_set.bbox
    stride = spec.open_engine.grid_stride or STRIDE
    return GridGeometry(size.output_image_width, size.output_image_height, stride, bbox.scale, bbox.offset)


def clustering(spec: spec_pb2.Experiment, tao5: bool = False) -> dict[str, Clustering]:
    """Returns how candidates become detections in evaluation, by class; `tao5` as in `to_clustering`."""
    configs = spec.postprocessing_config.target_class_config
    return {name: to_clustering(configs[name].clustering_config, tao5) for name in class_names(spec)}


def to_clustering(config: spec_pb2.ClusteringConfig, tao5: bool = False) -> Clustering:
    """Translates a `clustering_config` message of a loaded spec.

    Args:
        config: The message.
        tao5: Whether to read it as TAO 5 evaluates it: the two confidence thresholds change places,
            `dbscan_min_samples` is a whole number of at least 1, and `nms_iou_threshold` 0 if unset. Otherwise the
            former counts as written, be it 0, and is 1 if unset, and the latter is 0.3.
    """
    thresholds = config.dbscan_confidence_threshold, config.nms_confidence_threshold
    dbscan_confidence, nms_confidence = reversed(thresholds) if tao5 else thresholds
    return Clustering(
        algorithm=_ALGORITHMS[config.clustering_algorithm],
        coverage_threshold=config.coverage_threshold,
        minimum_height=config.minimum_bounding_box_height,
        dbscan_eps=config.dbscan_eps,
        dbscan_min_samples=_min_samples(config, tao5),
        dbscan_confidence_threshold=dbscan_confidence,
        nms_iou_threshold=config.nms_iou_threshold or (0.0 if tao5 else _NMS_IOU),
        nms_confidence_threshold=nms_confidence,
    )


def _min_samples(config: spec_pb2.ClusteringConfig, tao5: bool) -> float:
    if tao5:
        return max(int(config.dbscan_min_samples), 1)
    return config.dbscan_min_samples if config.HasField("dbscan_min_samples") else 1.0


def inference_clustering(
    handler: spec_pb2.BboxHandlerConfig.ClasswiseBboxHandlerConfig, tao5: bool = False
) -> Clustering:
    """Translates one class's `classwise_bbox_handler_config` of a loaded spec.

    TAO 5 reads these as they are meant, except for `dbscan_min_samples`, of which `tao5` takes the whole number.
    """
    model = _CONFIDENCE_MODELS.get(handler.confidence_model, "aggregate_cov")  # unset, which NMS may leave it
    config = handler.clustering_config
    return replace(to_clustering(config), confidence_model=model, dbscan_min_samples=_min_samples(config, tao5))


def network_config(spec: spec_pb2.Experiment, width: float = 1.0) -> GridNetConfig:
    """Returns the network the spec describes, its channels scaled by `width`."""
    model = spec.model_config
    backbone = ResNetConfig.of_width(
        model.num_layers or 18,
        width,
        model.all_projections,
        model.use_batch_norm,
        model.use_pooling,
        # As written: the message holds 32 bits, 0.1 would become 0.10000000149.
        round(model.dropout_rate, 6),
    )
    neck = FineNeck.channels_of_width(width) if spec.open_engine.grid_stride == FINE_STRIDE else {}
    taken = network_input(spec)
    return GridNetConfig(
        backbone,
        class_names(spec),
        geometry(spec),
        clustering(spec),
        neck=neck,
        fit=taken.fit,
        resampling=taken.resampling,
    )


def network_input(spec: spec_pb2.Experiment) -> InputSpec:
    """Returns how images of any size become the network's input, wherever the trained model looks at one.

    Without `open_engine`, TAO's loader stretches them or, as a rule, takes images of the input's size, which `gridbox
    widerface convert` has letterboxed.
    """
    size = spec.augmentation_config.preprocessing
    fit, resampling = _FITS[spec.open_engine.fit], _RESAMPLINGS[spec.open_engine.resampling]
    if not spec.HasField("open_engine") and size.enable_auto_resize and not size.output_image_min:
        fit = "stretch"
    return InputSpec(size.output_image_width, size.output_image_height, fit=fit, resampling=resampling)


def objectives(spec: spec_pb2.Experiment, device: str | torch.device = "cpu") -> Objectives:
    """Returns the objectives, with the weights with which `cost_function_config` starts them."""
    config = spec.cost_function_config
    classes = []
    for target in config.target_classes:
        named = {objective.name: objective for objective in target.objectives}
        cov, bbox = (named[name] for name in OBJECTIVES)
        classes.append(
            ClassCost(
                target.class_weight,
                target.coverage_foreground_weight,
                (cov.initial_weight, bbox.initial_weight),
                (cov.weight_target, bbox.weight_target),
            )
        )
    limits = config.min_objective_weight, config.max_objective_weight
    own, engine = spec.open_engine, spec_pb2.OpenEngineConfig
    return Objectives(
        classes,
        config.enable_autoweighting,
        *limits,
        device,
        focal=own.coverage_loss == engine.QUALITY_FOCAL,
        balance=round(own.object_balance, 6),  # the message holds 32 bits
        overlap=own.box_loss == engine.GIOU,
    )


def has_own_loss(spec: spec_pb2.Experiment) -> bool:
    """Returns whether a loss is the open engine's, not TAO's."""
    return bool(spec.open_engine.coverage_loss or spec.open_engine.box_loss)


def schedule(spec: spec_pb2.Experiment, steps: int) -> Schedule:
    """Returns the learning-rate schedule for epochs of this many steps."""
    config = spec.training_config.learning_rate
    if config.WhichOneof("learning_rate") == "early_stopping_annealing_schedule":
        early = config.early_stopping_annealing_schedule
        return EarlyStoppingAnnealing(
            early.min_learning_rate,
            early.max_learning_rate,
            early.soft_start_epochs * steps,
            early.annealing_epochs * steps,
            early.patience_steps,
        )
    total = spec.training_config.num_epochs * steps
    if config.WhichOneof("learning_rate") == "cosine_annealing_schedule":
        cosine = config.cosine_annealing_schedule
        return CosineAnnealing(cosine.min_learning_rate, cosine.max_learning_rate, cosine.warm_up, total)
    ramp = config.soft_start_annealing_schedule
    return SoftStartAnnealing(ramp.min_learning_rate, ramp.max_learning_rate, ramp.soft_start, ramp.annealing, total)
