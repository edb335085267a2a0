"""From the experiment spec to the data that train and evaluate: sources, classes, augmentation and batches.

What is wrong or not honoured has been refused by `spec.load_experiment`, which knows file and line.
Source of the loaders' rules: TAO 5.0, `cv/detectnet_v2/dataloader/*.py`.
"""

import math
from collections import Counter
from pathlib import Path

import torch

from components.decode.grid.encode import CoverageShape
from components.decode.grid.geometry import STRIDE, GridGeometry
from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.augment import AugmentSettings
from components.detectnet_v2.batches import BatchMaker
from components.detectnet_v2.dataset import LabelledImages, LabelMapping
from components.detectnet_v2.experiment import class_names, geometry, network_input
from components.detectnet_v2.framing import Fitting, Framing
from components.detectnet_v2.records import Frame, load_frames
from components.step import UserError
from components.vision.data.crops import RandomCrop
from components.vision.distributed import Group

_NAMED = 20  # of the classes in the records
# What an image of a set may be called where it is not called as the spec says: sets keep JPEGs as they were.
_EXTENSIONS = "png", "jpg", "jpeg"

_Sources = list[tuple[list[Frame], spec_pb2.DataSource]]


def training_images(
    spec: spec_pb2.Experiment, *, tao5: bool = False, augmented: bool = True, group: Group | None = None
) -> LabelledImages:
    """Loads the images of all training sources, and prints what is left out of them.

    Args:
        spec: The experiment.
        tao5: Reproduce TAO 5's defects.
        augmented: Whether training batches will be drawn of them.
        group: The processes that train together, if this is one of several; all of them call this.

    Raises:
        UserError: There are none, an image is missing or broken, a record is none, or no label is of a class to train.
    """
    fold = spec.dataset_config.validation_fold if _has_validation_fold(spec) else None
    sources = [
        (load_frames(source.tfrecords_path, exclude_fold=fold), source) for source in spec.dataset_config.data_sources
    ]
    if not sources:
        raise UserError("dataset_config has no data_sources; add one with tfrecords_path and image_directory_path")
    return _load(spec, sources, tao5, "Training data", augmented=augmented, group=group)


def validation_images(spec: spec_pb2.Experiment, *, tao5: bool = False) -> LabelledImages:
    """Loads the images of the validation source or fold, and prints what is left out of them.

    Args:
        spec: The experiment.
        tao5: Reproduce TAO 5's defects.

    Raises:
        UserError: The spec names neither, an image is missing or broken, a record is none, or no label is of a class
            to score.
    """
    config = spec.dataset_config
    if config.WhichOneof("dataset_split_type") == "validation_data_source":
        sources = [(load_frames(config.validation_data_source.tfrecords_path), config.validation_data_source)]
    elif _has_validation_fold(spec):
        fold = config.validation_fold
        sources = [(load_frames(source.tfrecords_path, only_fold=fold), source) for source in config.data_sources]
    else:
        raise UserError("dataset_config names no validation data; add validation_data_source or validation_fold")
    return _load(spec, sources, tao5, "Validation data", augmented=False)


def _has_validation_fold(spec: spec_pb2.Experiment) -> bool:
    return bool(spec.dataset_config.WhichOneof("dataset_split_type") == "validation_fold")


def _load(
    spec: spec_pb2.Experiment,
    sources: _Sources,
    tao5: bool,
    title: str,
    augmented: bool,
    group: Group | None = None,
) -> LabelledImages:
    extension = spec.dataset_config.image_extension.lstrip(".") or "png"
    frames: list[Frame] = []
    files: list[Path] = []
    weights: list[float] = []
    source_ids: list[int] = []
    for number, (source_frames, source) in enumerate(sources):
        frames += source_frames
        files += [_image_file(Path(source.image_directory_path), frame.id, extension) for frame in source_frames]
        weights += [source.source_weight or 1.0] * len(source_frames)
        source_ids += [number] * len(source_frames)
    patterns = ", ".join(source.tfrecords_path for _, source in sources)
    if not frames:
        raise UserError(f"{patterns}: the records hold no frame")
    mapping = label_mapping(spec, tao5=tao5)
    labelled = Counter(name for frame in frames for name in frame.class_names)
    if not any(name in mapping.classes for name in labelled):
        held = ", ".join(f"{count} of {name!r}" for name, count in labelled.most_common(_NAMED)) or "none at all"
        wanted = ", ".join(map(repr, sorted(mapping.classes)))
        raise UserError(f"{patterns}: target_class_mapping takes labels of {wanted}, but the records hold {held}")
    framed = fitting(spec) if spec.HasField("open_engine") else framing(spec)
    images = LabelledImages(
        frames, files, mapping, geometry(spec), framed, weights, source_ids, augmented=augmented, group=group
    )
    for reason, count in sorted(images.left_out.items()):
        print(f"{title}: {count} objects left out: {reason}", flush=True)
    if not any(len(objects.boxes) for objects in images.labels):
        reasons = "; ".join(f"{count} {reason}" for reason, count in sorted(images.left_out.items()))
        raise UserError(f"{patterns}: no label is left of those of the classes that are trained: {reasons or 'masked'}")
    return images


def _image_file(folder: Path, name: str, extension: str) -> Path:
    """Returns an image's file: as the spec calls it, unless only another kind is there."""
    for each in (extension, *_EXTENSIONS):
        file = folder / f"{name}.{each}"
        if file.is_file():
            return file
    return folder / f"{name}.{extension}"


def _composes_forward(spec: spec_pb2.Experiment) -> bool:
    """Whether TAO's DEFAULT loader is asked for; LEGACY treats images as that one does."""
    return bool(spec.dataset_config.dataloader_mode != spec_pb2.DatasetConfig.MULTISOURCE)


def fitting(spec: spec_pb2.Experiment) -> Fitting:
    """Returns how images become the network's input where the spec has an `open_engine`."""
    config = spec.open_engine
    drawn = config.random_crop
    smallest = spec.augmentation_config.preprocessing
    spatial = augmentation(spec)
    crop = RandomCrop(
        zoom_min=drawn.zoom_min or 1.0,
        zoom_max=drawn.zoom_max or 1.0,
        object_probability=drawn.object_probability,
        hflip_probability=drawn.hflip_probability,
        rotate_max=drawn.rotate_rad_max,
        rotate_probability=drawn.rotate_probability or 1.0,
        min_visible_share=drawn.min_visible_share,
        mosaic_probability=drawn.mosaic_probability,
        copy_paste_probability=drawn.copy_paste_probability,
        blur_probability=drawn.blur_probability,
        jpeg_probability=drawn.jpeg_probability,
        grey_probability=drawn.grey_probability,
        size=_view_size(drawn.view_share, geometry(spec)) if drawn.view_share else None,
        whole_from=round(drawn.view_epochs * spec.training_config.num_epochs) if drawn.view_epochs else None,
    )
    enlarged = max(1.0, spatial.zoom_max if spatial.forward else 1 / spatial.zoom_min)
    return Fitting(
        network_input(spec),
        crop if config.HasField("random_crop") else None,
        crop.zoom_max * enlarged,
        (smallest.min_bbox_width, max(drawn.min_object_height, smallest.min_bbox_height)),
    )


def _view_size(share: float, grid: GridGeometry) -> tuple[int, int]:
    """Returns width and height of training views: whole cells of the backbone's grid."""
    width, height = (max(1, round(share * edge / STRIDE)) * STRIDE for edge in (grid.width, grid.height))
    return width, height


def framing(spec: spec_pb2.Experiment) -> Framing:
    """Returns how images become the network's input in TAO's loaders.

    In the DEFAULT loader boxes are always cut to the network's input, in MULTISOURCE if a crop is set. Only the DEFAULT
    loader drops boxes by their size after augmentation.
    """
    config = spec.augmentation_config.preprocessing
    forward = _composes_forward(spec)
    is_cropped = config.crop_right > config.crop_left and config.crop_bottom > config.crop_top
    return Framing(
        stretch=config.enable_auto_resize and not config.output_image_min,
        shorter_side=config.output_image_min,
        longer_side=config.output_image_max,
        scale=(config.scale_width or 1.0, config.scale_height or 1.0),
        corner=(config.crop_left, config.crop_top) if is_cropped else (0, 0),
        clip=forward or is_cropped,
        smallest=(config.min_bbox_width, config.min_bbox_height) if forward else (0.0, 0.0),
        border=0.0 if forward else 0.5,
    )


def label_mapping(spec: spec_pb2.Experiment, *, tao5: bool = False) -> LabelMapping:
    """Returns which source classes are trained as what, and which ones mask the loss.

    Raises:
        UserError: No source class is trained.
    """
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
    return LabelMapping(classes, frozenset(masked), *_smallest_box(spec, tao5))


def _smallest_box(spec: spec_pb2.Experiment, tao5: bool) -> tuple[float, float]:
    """Returns the width and height under which a label is dropped before augmentation."""
    if _composes_forward(spec):
        return 0.0, 0.0  # that loader looks at the sizes after augmentation
    if spec.HasField("open_engine"):
        return 1.0, 1.0  # of the stored image; see `fitting` for what the network sees
    config = spec.augmentation_config.preprocessing
    return (1.0, 1.0) if tao5 else (config.min_bbox_width or 1.0, config.min_bbox_height or 1.0)


def batch_maker(
    spec: spec_pb2.Experiment, data: LabelledImages, rank: int = 0, world_size: int = 1, *, tao5: bool = False
) -> BatchMaker:
    """Returns what makes the training batches of one of `world_size` processes.

    `sampling_mode` USER_DEFINED and PROPORTIONAL are one in TAO (the sources' frames are their ratios); every frame is
    taken once an epoch here, where TAO draws at random with that expectation.
    """
    mask = spec.loss_mask_label_filter
    return BatchMaker(
        data=data,
        geometry=geometry(spec),
        shapes=coverage_shapes(spec),
        deadzone_radius=spec.bbox_rasterizer_config.deadzone_radius,
        augmentation=augmentation(spec, tao5=tao5),
        mask_multiplier=mask.mask_multiplier,
        # An object that is too small or half hidden masks its cells, but never those of a neighbour that is learned.
        mask_spares_objects=mask.preserve_ground_truth or spec.HasField("open_engine"),
        batch_size=spec.training_config.batch_size_per_gpu,
        seed=spec.random_seed,
        rank=rank,
        world_size=world_size,
        uniform_sources=spec.dataset_config.sampling_mode == spec_pb2.DatasetConfig.UNIFORM,
        on_device=torch.cuda.is_available(),
    )


def augmentation(spec: spec_pb2.Experiment, *, tao5: bool = False) -> AugmentSettings:
    """Returns the augmentation settings; an unset zoom range means no zoom.

    With `tao5`, vertical flips are ignored, and the MULTISOURCE loader reads `rotate_rad_max` as degrees.
    """
    spatial = spec.augmentation_config.spatial_augmentation
    colour = spec.augmentation_config.color_augmentation
    forward = _composes_forward(spec)
    in_degrees = tao5 and not forward
    return AugmentSettings(
        hflip_probability=spatial.hflip_probability,
        vflip_probability=0.0 if tao5 else spatial.vflip_probability,
        zoom_min=spatial.zoom_min or 1.0,
        zoom_max=spatial.zoom_max or 1.0,
        translate_max_x=spatial.translate_max_x,
        translate_max_y=spatial.translate_max_y,
        rotate_max=math.radians(spatial.rotate_rad_max) if in_degrees else spatial.rotate_rad_max,
        rotate_probability=spatial.rotate_probability or 1.0,
        brightness_stddev=colour.color_shift_stddev,
        hue_rotation_max=colour.hue_rotation_max,
        saturation_shift_max=colour.saturation_shift_max,
        contrast_scale_max=colour.contrast_scale_max,
        contrast_center=colour.contrast_center,
        forward=forward,
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
