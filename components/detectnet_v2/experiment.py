"""From the experiment spec to the objects that train and evaluate with it.

What is wrong or not honoured has been refused by `spec.load_experiment`, which knows file and line.
"""

from pathlib import Path
from typing import Literal

from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.augment import AugmentSettings
from components.detectnet_v2.dataset import BatchMaker, LabelledImages, LabelMapping
from components.detectnet_v2.losses import OBJECTIVES, ClassCost, ObjectiveWeights
from components.detectnet_v2.records import Frame, load_frames
from components.grid.clustering import Clustering
from components.grid.encode import CoverageShape
from components.grid.geometry import GridGeometry
from components.step import UserError
from components.vision.gridnet import GridNetConfig
from components.vision.optimizer import SoftStartAnnealing
from components.vision.resnet import ResNetConfig

# How a spec's clustering algorithm is called in `Clustering`.
_ALGORITHMS: dict[int, Literal["dbscan", "nms"]] = {
    spec_pb2.ClusteringConfig.DBSCAN: "dbscan",
    spec_pb2.ClusteringConfig.NMS: "nms",
}


def class_names(spec: spec_pb2.Experiment) -> tuple[str, ...]:
    """Returns the trained classes in the order of the network's channels."""
    return tuple(target.name for target in spec.cost_function_config.target_classes)


def geometry(spec: spec_pb2.Experiment) -> GridGeometry:
    """Returns the network's input size and grid."""
    size, bbox = spec.augmentation_config.preprocessing, spec.model_config.objective_set.bbox
    return GridGeometry(size.output_image_width, size.output_image_height, scale=bbox.scale, offset=bbox.offset)


def clustering(spec: spec_pb2.Experiment) -> dict[str, Clustering]:
    """Returns how candidates become detections, by class."""
    configs = spec.postprocessing_config.target_class_config
    return {name: to_clustering(configs[name].clustering_config) for name in class_names(spec)}


def to_clustering(config: spec_pb2.ClusteringConfig) -> Clustering:
    """Translates a `clustering_config` message with TAO's defaults for unset fields."""
    if config.clustering_algorithm not in _ALGORITHMS:
        raise UserError("clustering_algorithm HYBRID is not supported; use DBSCAN or NMS")
    return Clustering(
        algorithm=_ALGORITHMS[config.clustering_algorithm],
        coverage_threshold=config.coverage_threshold,
        minimum_height=config.minimum_bounding_box_height,
        dbscan_eps=config.dbscan_eps,
        # TAO 5 reads an integer of at least 1 here, whatever the spec says.
        dbscan_min_samples=max(int(config.dbscan_min_samples), 1),
        dbscan_confidence_threshold=config.dbscan_confidence_threshold,
        nms_iou_threshold=config.nms_iou_threshold or 0.3,
        nms_confidence_threshold=config.nms_confidence_threshold,
    )


def network_config(spec: spec_pb2.Experiment, width: float = 1.0) -> GridNetConfig:
    """Returns the network the spec describes, its channels scaled by `width`."""
    model = spec.model_config
    backbone = ResNetConfig.of_width(model.num_layers or 18, width, model.all_projections, model.use_batch_norm)
    return GridNetConfig(backbone, class_names(spec), geometry(spec), clustering(spec))


def objective_weights(spec: spec_pb2.Experiment) -> ObjectiveWeights:
    """Returns the objectives' weights as `cost_function_config` starts them."""
    config = spec.cost_function_config
    classes = []
    for target in config.target_classes:
        objectives = {objective.name: objective for objective in target.objectives}
        cov, bbox = (objectives[name] for name in OBJECTIVES)
        classes.append(
            ClassCost(
                target.class_weight,
                target.coverage_foreground_weight,
                (cov.initial_weight, bbox.initial_weight),
                (cov.weight_target, bbox.weight_target),
            )
        )
    limits = config.min_objective_weight, config.max_objective_weight
    return ObjectiveWeights(classes, config.enable_autoweighting, *limits)


def schedule(spec: spec_pb2.Experiment) -> SoftStartAnnealing:
    """Returns the learning-rate schedule."""
    ramp = spec.training_config.learning_rate.soft_start_annealing_schedule
    return SoftStartAnnealing(ramp.min_learning_rate, ramp.max_learning_rate, ramp.soft_start, ramp.annealing)


def augmentation(spec: spec_pb2.Experiment) -> AugmentSettings:
    """Returns the augmentation settings; an unset zoom range means no zoom."""
    spatial = spec.augmentation_config.spatial_augmentation
    colour = spec.augmentation_config.color_augmentation
    return AugmentSettings(
        hflip_probability=spatial.hflip_probability,
        zoom_min=spatial.zoom_min or 1.0,
        zoom_max=spatial.zoom_max or 1.0,
        translate_max_x=spatial.translate_max_x,
        translate_max_y=spatial.translate_max_y,
        rotate_max=spatial.rotate_rad_max,
        rotate_probability=spatial.rotate_probability or 1.0,
        brightness_stddev=colour.color_shift_stddev,
        hue_rotation_max=colour.hue_rotation_max,
        saturation_shift_max=colour.saturation_shift_max,
        contrast_scale_max=colour.contrast_scale_max,
        contrast_center=colour.contrast_center,
    )


def coverage_shapes(spec: spec_pb2.Experiment) -> tuple[CoverageShape, ...]:
    """Returns each class's coverage shape."""
    configs = spec.bbox_rasterizer_config.target_class_config
    return tuple(
        CoverageShape(
            configs[name].cov_center_x,
            configs[name].cov_center_y,
            configs[name].cov_radius_x,
            configs[name].cov_radius_y,
            configs[name].bbox_min_radius,
        )
        for name in class_names(spec)
    )


def label_mapping(spec: spec_pb2.Experiment) -> LabelMapping:
    """Returns which source classes are trained as what, and which ones mask the loss."""
    names = class_names(spec)
    mapping = spec.dataset_config.target_class_mapping
    classes = {source.lower(): names.index(target) for source, target in mapping.items() if target in names}
    if not classes:
        raise UserError(
            f"dataset_config.target_class_mapping maps nothing to {', '.join(names)}: the network would learn nothing; "
            'add target_class_mapping { key: "face" value: "face" }'
        )
    masked: set[str] = set()
    for entry in spec.loss_mask_label_filter.objective_label_filter_configs:
        masked |= {name.lower() for name in entry.label_filter.source_class_label_filter.source_class_names}
    return LabelMapping(classes, frozenset(masked))


def training_images(spec: spec_pb2.Experiment) -> LabelledImages:
    """Loads the images of all training sources."""
    fold = spec.dataset_config.validation_fold if _has_validation_fold(spec) else None
    sources = [
        (load_frames(source.tfrecords_path, exclude_fold=fold), source) for source in spec.dataset_config.data_sources
    ]
    if not sources:
        raise UserError("dataset_config has no data_sources; add one with tfrecords_path and image_directory_path")
    return _load(spec, sources)


def validation_images(spec: spec_pb2.Experiment) -> LabelledImages:
    """Loads the images of the validation source or fold.

    Raises:
        UserError: The spec names neither.
    """
    config = spec.dataset_config
    if config.WhichOneof("dataset_split_type") == "validation_data_source":
        source = config.validation_data_source
        return _load(spec, [(load_frames(source.tfrecords_path), source)])
    if _has_validation_fold(spec):
        fold = config.validation_fold
        return _load(spec, [(load_frames(s.tfrecords_path, only_fold=fold), s) for s in config.data_sources])
    raise UserError("dataset_config names no validation data; add validation_data_source or validation_fold")


def _has_validation_fold(spec: spec_pb2.Experiment) -> bool:
    return bool(spec.dataset_config.WhichOneof("dataset_split_type") == "validation_fold")


def _load(spec: spec_pb2.Experiment, sources: list[tuple[list[Frame], spec_pb2.DataSource]]) -> LabelledImages:
    extension = spec.dataset_config.image_extension.lstrip(".") or "png"
    frames, files = [], []
    for source_frames, source in sources:
        frames += source_frames
        files += [Path(source.image_directory_path) / f"{frame.id}.{extension}" for frame in source_frames]
    stretch = spec.augmentation_config.preprocessing.enable_auto_resize
    return LabelledImages(frames, files, label_mapping(spec), geometry(spec), stretch)


def batch_maker(spec: spec_pb2.Experiment, data: LabelledImages) -> BatchMaker:
    """Returns what makes the training batches."""
    mask = spec.loss_mask_label_filter
    return BatchMaker(
        data=data,
        geometry=geometry(spec),
        shapes=coverage_shapes(spec),
        deadzone_radius=spec.bbox_rasterizer_config.deadzone_radius,
        augmentation=augmentation(spec),
        mask_multiplier=mask.mask_multiplier,
        mask_spares_objects=mask.preserve_ground_truth,
        batch_size=spec.training_config.batch_size_per_gpu,
        seed=spec.random_seed,
    )
