"""Describes in words what training, inference or conversion with a spec does."""

import math
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.prototext import Problem
from components.detectnet_v2.spec import EXPERIMENT, INFERENCE, Review
from components.detectnet_v2.spec_fields import NMS_IOU, STRIDE

_WIDTH, _LABEL = 110, 20

_FITS: dict[int, str] = {
    spec_pb2.OpenEngineConfig.LETTERBOX: "they keep their shape, the rest is black (letterbox)",
    spec_pb2.OpenEngineConfig.STRETCH: "they are stretched to it",
    spec_pb2.OpenEngineConfig.CROP: "they keep their shape, what is beyond it is cut off",
}

Row = tuple[str, str]
"""A label and its text."""
Section = tuple[str, Iterable[Row]]


def describe(review: Review) -> str:
    """Describes a spec without problems, section by section, in lines of about 110 characters."""
    if review.kind is EXPERIMENT:
        sections = _experiment(review.message)
    elif review.kind is INFERENCE:
        sections = _inference(review.message)
    else:
        sections = _conversion(review.message)
    head = f"{review.path}: {review.kind.name} spec, read by {review.kind.readers}; nothing is wrong with it\n"
    blocks = [_block(title, rows) for title, rows in [*sections, *_remarks(review)]]
    return "\n".join([head, *(block for block in blocks if block), f"{_readers(review)}\n"])


def _readers(review: Review) -> str:
    own = []
    if review.kind is EXPERIMENT:
        schedule = review.message.training_config.learning_rate.WhichOneof("learning_rate")
        own += ["cosine_annealing_schedule"] * (schedule == "cosine_annealing_schedule")
        own += ["open_engine"] * review.message.HasField("open_engine")
    if own:
        return f"NVIDIA's program refuses this spec: it does not know {' and '.join(own)}."
    if review.refused_by_tao5:
        return "TAO 5 refuses this spec."
    return "TAO 3.x, 4.0 and 5.x can read this spec as well."


def _block(title: str, rows: Iterable[Row]) -> str:
    lines = [_line(label, text) for label, text in rows]
    return "\n".join([title, *lines, ""]) if lines else ""


def _line(label: str, text: str) -> str:
    start, indent = f"  {label}".ljust(_LABEL) + " ", " " * (_LABEL + 1)
    wrapper = textwrap.TextWrapper(_WIDTH, initial_indent=start, subsequent_indent=indent)
    wrapper.break_long_words = wrapper.break_on_hyphens = False  # a path stays whole
    return wrapper.fill(text)


def _remarks(review: Review) -> Iterator[Section]:
    yield "Good to know", map(_at_line, review.warnings)
    yield "Without effect", map(_at_line, review.without_effect)
    yield "Otherwise in TAO 5, and here with --compat tao5", map(_at_line, review.differs_in_tao5)
    yield "Why TAO 5 refuses this spec", map(_at_line, review.refused_by_tao5)


def _at_line(problem: Problem) -> Row:
    """Shortens the field's path to its name, as the line is given."""
    return f"line {problem.line}", re.sub(r'^(?:\w+(?:\["[^"]*"\]|\[\d+\])?\.)+', "", problem.message)


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def _every(epochs: int) -> str:
    return "every epoch" if epochs == 1 else f"every {epochs} epochs"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


# ---- The experiment --------------------------------------------------------------------------------------------------


def _experiment(spec: spec_pb2.Experiment) -> Iterator[Section]:
    yield "Data", _data(spec.dataset_config, spec)
    yield "Input", _input(spec)
    yield "Augmentation", _augmentation(spec)
    yield "Network", _network(spec)
    yield "Targets and loss", _loss(spec)
    yield "Training", _training(spec)
    yield "Evaluation", _evaluation(spec)


def _data(data: spec_pb2.DatasetConfig, spec: spec_pb2.Experiment) -> Iterator[Row]:
    split = data.WhichOneof("dataset_split_type")
    several = len(data.data_sources) > 1
    yield from _labelled("training", (_source(source, data.image_extension, several) for source in data.data_sources))
    if split == "validation_fold":
        yield "validation", f"fold {data.validation_fold} of the same records, which is left out of training"
    elif split:
        yield "validation", _source(data.validation_data_source, data.image_extension, False)
    else:
        yield "validation", "none"
    names = [target.name for target in spec.cost_function_config.target_classes]
    mapping = sorted(data.target_class_mapping.items())
    labels = {name: _listed(source.lower() for source, target in mapping if target == name) for name in names}
    yield from _labelled("classes", (f"{name}, from labels {labels[name]}" for name in names))
    masks = spec.loss_mask_label_filter.objective_label_filter_configs
    masked = [name for mask in masks for name in mask.label_filter.source_class_label_filter.source_class_names]
    if masked:
        weight = spec.loss_mask_label_filter.mask_multiplier
        kept = ", except where an object lies" if spec.loss_mask_label_filter.preserve_ground_truth else ""
        yield "masked", f"regions labelled {_listed(masked)}: the loss counts {weight:g} times there{kept}"
    if several:
        uniform = data.sampling_mode == spec_pb2.DatasetConfig.UNIFORM
        yield "an epoch", "draws from each source equally often" if uniform else "holds every image once"
    if _composes_forward(spec):
        mode = spec_pb2.DatasetConfig.DATALOADER_MODE.Name(data.dataloader_mode)
        yield "loader", f"{mode}: black where an image ends, boxes cut to the input and measured after augmentation"


def _labelled(label: str, texts: Iterable[str]) -> Iterator[Row]:
    for number, text in enumerate(texts):
        yield "" if number else label, text


def _composes_forward(spec: spec_pb2.Experiment) -> bool:
    return bool(spec.dataset_config.dataloader_mode != spec_pb2.DatasetConfig.MULTISOURCE)


def _source(source: spec_pb2.DataSource, extension: str, weighted: bool) -> str:
    weight = f"; weight {source.source_weight:g}" if weighted or source.source_weight != 1 else ""
    return f"{source.tfrecords_path}, images in {source.image_directory_path} (.{extension}){weight}"


def _input(spec: spec_pb2.Experiment) -> Iterator[Row]:
    size = spec.augmentation_config.preprocessing
    width, height = size.output_image_width, size.output_image_height
    stride = spec.open_engine.grid_stride or STRIDE
    grid = f"a grid of {width // stride} x {height // stride} cells of {stride} pixels"
    yield "size", f"{width} x {height} pixels in colour; {grid}"
    if spec.HasField("open_engine"):
        yield "fitting", f"images of any size: {_FITS[spec.open_engine.fit]}"
    elif size.output_image_min:
        most = f", the longer one to {size.output_image_max} at most" if size.output_image_max else ""
        yield "fitting", f"images keep their shape: the shorter side is scaled to {size.output_image_min} pixels{most}"
    elif size.enable_auto_resize:
        yield "fitting", "images are stretched to it"
    else:
        yield "fitting", "images are not scaled: padded or cut at the right and at the bottom"
    if size.crop_right or size.crop_bottom or size.crop_left or size.crop_top:
        box = f"columns {size.crop_left} to {size.crop_right}, rows {size.crop_top} to {size.crop_bottom}"
        yield "crop", f"{box} of an image"
    if size.scale_width or size.scale_height:
        yield "scale", f"images are scaled by {size.scale_width or 1:g} across and {size.scale_height or 1:g} down"
    unset = 0 if _composes_forward(spec) else 1
    least = size.min_bbox_width or unset, size.min_bbox_height or unset
    if any(least):
        yield "objects", f"those less than {least[0]:g} wide or {least[1]:g} high (pixels) are dropped"


def _augmentation(spec: spec_pb2.Experiment) -> Iterator[Row]:
    spatial = spec.augmentation_config.spatial_augmentation
    colour = spec.augmentation_config.color_augmentation
    rows = []
    if spatial.hflip_probability or spatial.vflip_probability:
        text = f"left-right with probability {spatial.hflip_probability:g}"
        if spatial.vflip_probability:
            text += f", upside down with probability {spatial.vflip_probability:g}"
        rows.append(("mirrored", text))
    low, high = spatial.zoom_min or 1.0, spatial.zoom_max or 1.0
    if (low, high) != (1.0, 1.0):
        # TAO's default loader maps output pixels to source pixels, so that a factor above 1 shrinks what is seen.
        sizes = (low, high) if _composes_forward(spec) else (1 / high, 1 / low)
        rows.append(("zoom", f"objects appear {sizes[0]:.2g} to {sizes[1]:.2g} times as large ({low:g} to {high:g})"))
    if spatial.translate_max_x or spatial.translate_max_y:
        across, down = spatial.translate_max_x, spatial.translate_max_y
        rows.append(("shifted", f"up to {across:g} pixels across and {down:g} down, either way"))
    if spatial.rotate_rad_max:
        degrees = math.degrees(spatial.rotate_rad_max)
        chance = f"with probability {spatial.rotate_probability:g}"
        rows.append(("rotated", f"up to {degrees:.3g} degrees either way, {chance}"))
    tints = [
        ("brightness", f"shifted, standard deviation {colour.color_shift_stddev:g}", colour.color_shift_stddev),
        ("hue", f"rotated, standard deviation {colour.hue_rotation_max / 2:g} degrees", colour.hue_rotation_max),
        (
            "saturation",
            f"times {1 - colour.saturation_shift_max:g} to {1 + colour.saturation_shift_max:g}",
            colour.saturation_shift_max,
        ),
        (
            "contrast",
            f"changed about {colour.contrast_center:g}, standard deviation {colour.contrast_scale_max / 2:g}",
            colour.contrast_scale_max,
        ),
    ]
    rows += [(label, text) for label, text, amount in tints if amount]
    yield from rows or [("none", "images are learnt as they are")]


def _network(spec: spec_pb2.Experiment) -> Iterator[Row]:
    model = spec.model_config
    stored = model.pretrained_model_file
    parts = [f"ResNet-{model.num_layers}"]
    parts += ["max-pool after the stem"] * model.use_pooling
    parts += ["a 1x1 convolution in every shortcut"] * model.all_projections
    parts += ["batch norm" if model.use_batch_norm else "no batch norm"]
    parts += [f"dropout {model.dropout_rate:g}"] * (model.dropout_rate > 0)
    if stored and model.load_graph:
        yield "graph", f"as stored in {stored}, which a pruned network needs"
    else:
        yield "backbone", ", ".join(parts)
        count = parameter_count(model, len(spec.cost_function_config.target_classes))
        yield "parameters", f"{count:,}, the two heads included"
        yield "start", f"layers of {stored} where name and shape agree" if stored else "random weights"
    frozen = ["the stem" if block == 0 else f"block {block:g}" for block in sorted(model.freeze_blocks)]
    frozen += ["all batch norms"] * model.freeze_bn
    frozen += ["the layers taken from the file"] * (model.freeze_pretrained_layers and bool(stored))
    if frozen:
        yield "frozen", ", ".join(frozen)


def parameter_count(model: spec_pb2.ModelConfig, classes: int) -> int:
    """Returns how many numbers an unpruned network holds, moving statistics of batch norms included.

    TAO 5.0, `core/templates/resnet.py`: every convolution has a bias, and its batch norm four numbers a channel.
    """

    def convolution(inputs: int, outputs: int, kernel: int) -> int:
        return kernel * kernel * inputs * outputs + outputs + (4 * outputs if model.use_batch_norm else 0)

    bottleneck = model.num_layers >= 50
    units = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2)}.get(model.num_layers, (3, 4, 6, 3))
    total, inputs = convolution(3, 64, 7), 64
    for width, count in zip((64, 128, 256, 512), units, strict=True):
        outputs = 4 * width if bottleneck else width
        for unit in range(count):
            if bottleneck:
                total += convolution(inputs, width, 1) + convolution(width, width, 3) + convolution(width, outputs, 1)
            else:
                total += convolution(inputs, width, 3) + convolution(width, width, 3)
            if unit == 0 or model.all_projections:
                total += convolution(inputs, outputs, 1)
            inputs = outputs
    return total + 5 * classes * (inputs + 1)


def _loss(spec: spec_pb2.Experiment) -> Iterator[Row]:
    config = spec.cost_function_config
    shapes = spec.bbox_rasterizer_config.target_class_config
    whole = sum(target.class_weight for target in config.target_classes)
    for target in config.target_classes:
        yield target.name, _coverage(shapes[target.name], spec.bbox_rasterizer_config.deadzone_radius)
        share = f"{target.class_weight / whole:.3g} of the loss; " if len(config.target_classes) > 1 else ""
        foreground = target.coverage_foreground_weight
        cells = f"covered cells weigh {foreground:g}, empty ones {1 - foreground:g}"
        if spec.open_engine.coverage_loss:
            cells = "coverage is learned with the quality focal loss"
            if balance := spec.open_engine.object_balance:
                cells += f", the cells of an object of n cells weighing (n / 9) ^ -{balance:g}"
        if spec.open_engine.box_loss:
            cells += ", boxes by their overlap (GIoU)"
        objectives = {objective.name: objective for objective in target.objectives}
        cov, bbox = objectives["cov"], objectives["bbox"]
        weights = f"coverage to box {cov.initial_weight:g} : {bbox.initial_weight:g}"
        yield "", f"{share}{cells}; {weights}"
        if config.enable_autoweighting:
            limits = f"each weight from {config.min_objective_weight:g} to {config.max_objective_weight:g}"
            parts = f"costs become {cov.weight_target:g} : {bbox.weight_target:g}"
            yield "", f"after every epoch the weights are set anew so that the {parts} ({limits})"


def _coverage(shape: spec_pb2.BboxRasterizerConfig.TargetClassConfig, deadzone: float) -> str:
    least = f"with radii of at least {_count(shape.bbox_min_radius, 'cell')}"
    if (shape.cov_center_x, shape.cov_center_y, shape.cov_radius_x, shape.cov_radius_y) == (0.5, 0.5, 1, 1):
        return f"an object covers the ellipse inscribed in its box, {least}"
    centre = f"centre at {shape.cov_center_x:g} of its width and {shape.cov_center_y:g} of its height"
    radii = f"radii {shape.cov_radius_x:g} and {shape.cov_radius_y:g} of the way to the nearer edges"
    dead = f"; {deadzone:g} of the way on from there it hides what lies behind" if deadzone else ""
    return f"an object covers an ellipse: {centre}, {radii}, {least}{dead}"


def _training(spec: spec_pb2.Experiment) -> Iterator[Row]:
    config = spec.training_config
    batch = f"batches of {_count(config.batch_size_per_gpu, 'image')} per device"
    yield "length", f"{_count(config.num_epochs, 'epoch')}, {batch}; random seed {spec.random_seed}"
    yield "learning rate", _learning_rate(config)
    adam = config.optimizer.adam
    if spec.open_engine.ema_decay:
        yield "average", f"of the weights, with a decay of {spec.open_engine.ema_decay:g} a step: it is what is saved"
    if teacher := spec.open_engine.teacher.model_file:
        yield "teacher", f"{teacher}, {spec.open_engine.teacher.weight:g} of the cost"
    yield "optimiser", f"Adam, beta1 {adam.beta1:g}, beta2 {adam.beta2:g}, epsilon {adam.epsilon:g}"
    kind, weight = config.regularizer.type, config.regularizer.weight
    sums = {
        spec_pb2.RegularizerConfig.L1: "sum of the absolute weights (L1)",
        spec_pb2.RegularizerConfig.L2: "sum of the squared weights (L2)",
    }
    yield "regulariser", f"{weight:g} times the {sums[kind]}" if kind in sums and weight else "none"
    scaling = config.cost_scaling
    if scaling.enabled:
        steps = f"up by {scaling.increment:g} after a finite step, down by {scaling.decrement:g} after another"
        yield "loss scaling", f"by 2 to the power of {scaling.initial_exponent:g}; {steps}"
    yield "models kept", _every(config.checkpoint_interval)
    visualizer = config.visualizer
    if visualizer.enabled:
        images = f"{_count(visualizer.num_images, 'image')} and histograms"
        often = _every(visualizer.infrequent_logging_frequency)
        yield "TensorBoard", f"scalars {visualizer.scalar_logging_frequency or 10} times an epoch, {images} {often}"


def _learning_rate(config: spec_pb2.TrainingConfig) -> str:
    epochs = config.num_epochs
    if config.learning_rate.WhichOneof("learning_rate") == "soft_start_annealing_schedule":
        ramp = config.learning_rate.soft_start_annealing_schedule
        low, high = f"{ramp.min_learning_rate:g}", f"{ramp.max_learning_rate:g}"
        rise = f"from {low} up to {high} until epoch {ramp.soft_start * epochs:.3g}" if ramp.soft_start else f"{high}"
        hold = f"held until epoch {ramp.annealing * epochs:.3g}"
        return f"{rise}, {hold}, down to {low} at epoch {epochs} (straight lines on a logarithmic scale)"
    if config.learning_rate.WhichOneof("learning_rate") == "cosine_annealing_schedule":
        cosine = config.learning_rate.cosine_annealing_schedule
        rise = f"up to {cosine.max_learning_rate:g} until epoch {cosine.warm_up * epochs:.3g}"
        return f"{rise}, down to {cosine.min_learning_rate:g} at epoch {epochs} (half a cosine)"
    stop = config.learning_rate.early_stopping_annealing_schedule
    low, high = f"{stop.min_learning_rate:g}", f"{stop.max_learning_rate:g}"
    rise = f"from {low} up to {high} over {_count(stop.soft_start_epochs, 'epoch')}"
    wait = f"held until the validation cost has not fallen for {_count(stop.patience_steps, 'epoch')}"
    fall = f"down to {low} over {_count(stop.annealing_epochs, 'epoch')}"
    return f"{rise}, {wait}, {fall}; training ends when the cost stalls again, or after {_count(epochs, 'epoch')}"


def _evaluation(spec: spec_pb2.Experiment) -> Iterator[Row]:
    config = spec.evaluation_config
    if spec.dataset_config.WhichOneof("dataset_split_type"):
        period = _every(config.validation_period_during_training)
        yield "in training", f"after epoch {config.first_validation_epoch}, then {period}, and at the end"
    modes = {spec_pb2.EvaluationConfig.SAMPLE: "mean precision at 11 recalls (SAMPLE)"}
    yield (
        "average precision",
        modes.get(config.average_precision_mode, "area under the precision-recall curve (INTEGRATE)"),
    )
    for target in spec.cost_function_config.target_classes:
        boxes = config.evaluation_box_config[target.name]
        overlap = config.minimum_detection_ground_truth_overlap[target.name]
        sizes = f"{boxes.minimum_width} to {boxes.maximum_width} pixels wide"
        sizes += f" and {boxes.minimum_height} to {boxes.maximum_height} high"
        yield target.name, f"a detection is right from an IoU of {overlap:g}; objects {sizes} count"
        clusters = spec.postprocessing_config.target_class_config[target.name].clustering_config
        yield "", _clustering(clusters, "at least")


def _clustering(config: spec_pb2.ClusteringConfig, bound: str, mean: bool = False) -> str:
    """Returns how cells become detections; a score must be `bound` its threshold."""
    kinds = spec_pb2.ClusteringConfig
    height = f"more than {_count(config.minimum_bounding_box_height, 'pixel')} of height"
    steps = [f"cells with coverage above {config.coverage_threshold:g}"]

    def kept(score: str, threshold: float) -> str:
        return f"kept with {f'a {score} of {bound} {threshold:g} and ' if threshold else ''}{height}"

    if config.clustering_algorithm != kinds.NMS:
        least = config.dbscan_min_samples if config.HasField("dbscan_min_samples") else 1
        core = f"cells in whose reach coverage sums to {least:g} or more"
        steps.append(f"merged from an IoU of {1 - config.dbscan_eps:g} on, around {core} (DBSCAN)")
        steps.append(kept("mean coverage" if mean else "summed coverage", config.dbscan_confidence_threshold))
    if config.clustering_algorithm == kinds.HYBRID:
        steps.append("then taken apart again into their cells")
    if config.clustering_algorithm != kinds.DBSCAN:
        iou = config.nms_iou_threshold or NMS_IOU
        steps.append(f"those that overlap a better one by an IoU of more than {iou:g} go (NMS)")
        steps.append(kept("coverage", config.nms_confidence_threshold))
    return "; ".join(steps)


# ---- Inference -------------------------------------------------------------------------------------------------------


def _inference(spec: spec_pb2.Inference) -> Iterator[Section]:
    config, handlers = spec.inferencer_config, spec.bbox_handler_config.classwise_bbox_handler_config
    sides = (str(side or "the model's own") for side in (config.image_width, config.image_height))
    size = f"{' x '.join(sides)} pixels, into which images are fitted as in training"
    yield "Model", [("file", config.tlt_config.model), ("input", f"{size}; batches of {config.batch_size}")]
    names = spec.bbox_handler_config.postproc_classes or config.target_classes
    yield "Classes", (row for name in names for row in _handled_class(name, handlers))
    yield "Output", _output(spec.bbox_handler_config)


def _handled_class(name: str, handlers: Any) -> Iterator[Row]:  # noqa: ANN401 - a protobuf map has no type of its own
    handler = handlers[name] if name in handlers else handlers["default"]
    output = handler.output_map if name in handlers and handler.output_map else name
    colour = handler.bbox_color if handler.HasField("bbox_color") else spec_pb2.BboxHandlerConfig.BboxColor(G=255)
    yield name, f'written as "{output}", drawn in RGB {colour.R}, {colour.G}, {colour.B}'
    yield "", _clustering(handler.clustering_config, "more than", handler.confidence_model == "mean_cov")


def _output(config: spec_pb2.BboxHandlerConfig) -> Iterator[Row]:
    lines = f"boxes in lines of {_count(max(config.overlay_linewidth, 1), 'pixel')}"
    yield "pictures", "none" if config.disable_overlay else lines
    yield "labels", "KITTI files of 16 columns" if config.kitti_dump else "none"


# ---- Dataset conversion ----------------------------------------------------------------------------------------------


def _conversion(spec: spec_pb2.DatasetExportConfig) -> Iterator[Section]:
    if spec.HasField("kitti_config"):
        yield "KITTI labels to TFRecords", _kitti(spec.kitti_config)
    else:
        yield "COCO annotations to TFRecords", _coco(spec.coco_config)
    yield "Which samples", _modifiers(spec.sample_modifier_config)


def _kitti(config: spec_pb2.KITTIConfig) -> Iterator[Row]:
    root = config.root_directory_path
    yield "images", f"{root}/{config.image_dir_name}/*{config.image_extension}"
    yield "labels", f"{root}/{config.label_dir_name}/*.txt"
    if config.partition_mode == "random":
        share = f"the first {config.val_split:g} % by name are fold 0 (validation), the others fold 1"
        yield "split", share if int(config.val_split) else "none: all images are in one fold"
    else:
        sequences = f"whole sequences of {config.kitti_sequence_to_frames_file}"
        yield "split", f"{sequences} over {_count(config.num_partitions, 'fold')}, longest first"
    yield "files", f"{_count(max(config.num_shards, 1), 'shard')} a fold"


def _coco(config: spec_pb2.COCOConfig) -> Iterator[Row]:
    shards = list(config.num_shards) * (config.num_partitions if len(config.num_shards) == 1 else 1)
    for index, (images, file) in enumerate(zip(config.img_dir_names, config.annotation_files, strict=True)):
        where = f"{config.root_directory_path}/{images}, annotations {config.root_directory_path}/{file}"
        yield f"fold {index}", f"images {where}; {_count(max(shards[index], 1), 'shard')}"


def _modifiers(config: spec_pb2.DatasetExportConfig.SampleModifierConfig) -> Iterator[Row]:
    for source, target in sorted(config.source_to_target_class_mapping.items()):
        yield "mapped", f"{source} counts as {target} below"
    if config.filter_samples_containing_only:
        yield "left out", f"images with nothing but {_listed(config.filter_samples_containing_only)}"
    if config.dominant_target_classes and config.num_duplicates:
        copies = f"{_count(config.num_duplicates, 'more copy')}".replace("copys", "copies")
        more = f"another class has more objects than {_listed(config.dominant_target_classes)}"
        yield "repeated", f"training images where {more}: {copies} of each"
        for name, ratio in sorted(config.minimum_target_class_imbalance.items()):
            yield "", f"for {name}: more than {ratio:g} times as many"
    if config.max_training_samples:
        yield "at most", f"{_count(config.max_training_samples, 'training image')}"
