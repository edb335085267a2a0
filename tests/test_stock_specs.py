"""Specs as NVIDIA gives them away, from TLT 2.0 to TAO 5.x: which run here unchanged, and why the others do not.

The texts are our own. Each has the fields, spellings and numbers of a kind of spec that NVIDIA's notebooks, model cards
and source hold; paths and names are others.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest

from components.detectnet_v2 import experiment, inference
from components.detectnet_v2.spec import DATASET_EXPORT, EXPERIMENT, INFERENCE, Kind, review
from components.detectnet_v2.spec_words import describe

# ---- Parts -----------------------------------------------------------------------------------------------------------

DBSCAN_3 = "coverage_threshold: 0.00499999988824 dbscan_eps: 0.20000000298 dbscan_min_samples: 0.0500000007451"
DBSCAN_5 = "clustering_algorithm: DBSCAN dbscan_confidence_threshold: 0.9 coverage_threshold: 0.005 dbscan_eps: 0.2"
RAMP = """soft_start_annealing_schedule { min_learning_rate: 5e-06 max_learning_rate: 5e-04
      soft_start: 0.10000000149 annealing: 0.699999988079 }"""
EARLY = """early_stopping_annealing_schedule { min_learning_rate: 5e-06 max_learning_rate: 5e-04
      soft_start_epochs: 2 annealing_epochs: 5 patience_steps: 20 }"""
MONITORED = """visualizer { enabled: true num_images: 3 scalar_logging_frequency: 50 infrequent_logging_frequency: 5
      target_class_config { key: "car" value: { coverage_threshold: 0.005 } } %s }"""


def training(
    clustering: str = DBSCAN_5 + " dbscan_min_samples: 1 minimum_bounding_box_height: 20",
    model: str = 'pretrained_model_file: "/models/resnet18.hdf5" num_layers: 18',
    arch: str = "resnet",
    sources: str = "validation_fold: 0",
    channels: int = 3,
    rate: str = RAMP,
    regularizer: str = "type: L1 weight: 3.00000002618e-09",
    extra: str = "",
    classes: tuple[str, ...] = ("car", "pedestrian"),
) -> str:
    def each(template: str, names: tuple[str, ...] = classes) -> str:
        return "\n  ".join(template.replace("NAME", name) for name in names)

    return f"""\
random_seed: 42
dataset_config {{
  data_sources: {{ tfrecords_path: "/data/tfrecords/kitti_trainval/*" image_directory_path: "/data/training" }}
  image_extension: "png"
  {each('target_class_mapping { key: "NAME" value: "NAME" }')}
  target_class_mapping {{ key: "van" value: "{classes[0]}" }}
  {sources}
}}
augmentation_config {{
  preprocessing {{ output_image_width: 1248 output_image_height: 384 output_image_channel: {channels}
    min_bbox_width: 1.0 min_bbox_height: 1.0 }}
  spatial_augmentation {{ hflip_probability: 0.5 vflip_probability: 0.0 zoom_min: 1.0 zoom_max: 1.0
    translate_max_x: 8.0 translate_max_y: 8.0 }}
  color_augmentation {{ color_shift_stddev: 0.0 hue_rotation_max: 25.0 saturation_shift_max: 0.20000000298
    contrast_scale_max: 0.10000000149 contrast_center: 0.5 }}
}}
postprocessing_config {{
  {
        each(
            'target_class_config { key: "NAME" value: { clustering_config { ' + clustering + " } } }",
            (*classes, "cyclist"),
        )
    }
}}
model_config {{
  {model}
  use_batch_norm: true
  freeze_bn: False
  objective_set {{ bbox {{ scale: 35.0 offset: 0.5 }} cov {{ }} }}
  training_precision {{ backend_floatx: FLOAT32 }}
  arch: "{arch}"
}}
evaluation_config {{
  validation_period_during_training: 10
  first_validation_epoch: 110
  {each('minimum_detection_ground_truth_overlap { key: "NAME" value: 0.699999988079 }')}
  {
        each(
            '''evaluation_box_config { key: "NAME" value { minimum_height: 20 maximum_height: 9999
    minimum_width: 10 maximum_width: 9999 } }'''
        )
    }
  average_precision_mode: INTEGRATE
}}
cost_function_config {{
  {
        each('''target_classes { name: "NAME" class_weight: 1.0 coverage_foreground_weight: 0.0500000007451
    objectives { name: "cov" initial_weight: 1.0 weight_target: 1.0 }
    objectives { name: "bbox" initial_weight: 10.0 weight_target: 10.0 } }''')
    }
  enable_autoweighting: True
  max_objective_weight: 0.999899983406
  min_objective_weight: 9.99999974738e-05
}}
training_config {{
  batch_size_per_gpu: 4
  num_epochs: 120
  learning_rate {{ {rate} }}
  regularizer {{ {regularizer} }}
  optimizer {{ adam {{ epsilon: 9.99999993923e-09 beta1: 0.899999976158 beta2: 0.999000012875 }} }}
  cost_scaling {{ initial_exponent: 20.0 increment: 0.005 decrement: 1.0 }}
  checkpoint_interval: 10
  {extra}
}}
bbox_rasterizer_config {{
  {
        each('''target_class_config { key: "NAME" value: { cov_center_x: 0.5 cov_center_y: 0.5
    cov_radius_x: 0.40000000596 cov_radius_y: 0.40000000596 bbox_min_radius: 1.0 } }''')
    }
  deadzone_radius: 0.400000154972
}}
"""


TLT = 'tlt_config { model: "/models/resnet18_detector.tlt" }'
ETLT = """tensorrt_config { parser: ETLT etlt_model: "/models/detector.etlt" backend_data_type: INT8 save_engine: true
    trt_engine: "/models/detector.trt" calibrator_config { calibration_cache: "/models/cache.bin" n_batches: 10 } }"""
CAFFE = """tensorrt_config { parser: CAFFE prototxt: "/models/net.prototxt" caffemodel: "/models/net.caffemodel"
    backend_data_type: FP16 save_engine: true trt_engine: "/models/net.trt" }"""


def detecting(
    clustering: str = "coverage_threshold: 0.005 dbscan_eps: 0.3 dbscan_min_samples: 1 "
    "dbscan_confidence_threshold: 0.9 minimum_bounding_box_height: 4",
    model: str = TLT,
    handler: str = "",
    frame: str = "image_width: 1248 image_height: 384 image_channels: 3 batch_size: 16 gpu_index: 0",
) -> str:
    entry = 'confidence_model: "aggregate_cov"'
    drawn = f"bbox_color {{ R: 0 G: 255 B: 0 }} clustering_config {{ {clustering} }}"
    return f"""\
inferencer_config{{
  # in the order of the network's channels
  target_classes: "car"
  target_classes: "pedestrian"
  {frame}
  {model}
}}
bbox_handler_config{{
  kitti_dump: true
  disable_overlay: false
  overlay_linewidth: 2
  classwise_bbox_handler_config{{
    key:"car" value: {{ {entry} output_map: "car" {handler} {drawn} }}
  }}
  classwise_bbox_handler_config{{
    key:"default" value: {{ {entry} {drawn} }}
  }}
}}
"""


SEQUENCES = """kitti_config { root_directory_path: "/data/training" image_dir_name: "image_2" label_dir_name: "label_2"
  image_extension: '.png' kitti_sequence_to_frames_file: "sequences.json" partition_mode: "sequence"
  num_partitions: 5 num_shards: 0 }
image_directory_path: "/data/training"
"""
RANDOM = """kitti_config { root_directory_path: "/data/training" image_dir_name: "image_2" label_dir_name: "label_2"
  image_extension: ".png" partition_mode: "random" num_partitions: 2 val_split: 14 num_shards: 10 }
image_directory_path: "/data/training"
"""
COCO = """coco_config { root_directory_path: "/data" img_dir_names: ["val2017", "train2017"]
  annotation_files: ["annotations/val.json", "annotations/train.json"] num_partitions: 2 num_shards: [32, 256] }
image_directory_path: "/data"
"""
RENAMING = (
    RANDOM + 'target_class_mapping { key: "car" value: "car" } target_class_mapping { key: "van" value: "car" }\n'
)


# ---- The table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stock:
    """A structure and its verdict.

    Attributes:
        kind: Which spec it is.
        text: A text of this structure.
        refused: What the one problem says; empty where it runs.
        warned: A part of each warning, in the order of the lines.
        tao5: A part of each reason for which TAO 5 refuses it.
    """

    kind: Kind
    text: str
    refused: str = ""
    warned: tuple[str, ...] = ()
    tao5: tuple[str, ...] = ()


FLOATS = ("dbscan_min_samples is 0.05",) * 3
STOCK = {
    # Training
    "TLT 2.0 and TAO 3.x: KITTI, ResNet-18, float min_samples": Stock(
        EXPERIMENT, training(DBSCAN_3 + " minimum_bounding_box_height: 20"), warned=FLOATS, tao5=FLOATS
    ),
    "TAO 3.x: retraining of a pruned graph": Stock(
        EXPERIMENT,
        training(
            DBSCAN_3,
            'pretrained_model_file: "/m/pruned.tlt" num_layers: 18 load_graph: true',
            regularizer="type: NO_REG",
        ),
        warned=FLOATS,
        tao5=FLOATS,
    ),
    "TAO 3.x: quantisation-aware retraining": Stock(
        EXPERIMENT, training(extra="enable_qat: true"), "quantise after training: set it false"
    ),
    "TAO 3.x: early stopping": Stock(EXPERIMENT, training(rate=EARLY)),
    "TAO 3.x: PeopleNet, ResNet-34, three classes": Stock(
        EXPERIMENT,
        training(
            model='pretrained_model_file: "/m/peoplenet.hdf5" num_layers: 34 all_projections: true',
            classes=("person", "bag", "face"),
        ),
    ),
    "TAO 3.x: two records, validation of its own": Stock(
        EXPERIMENT,
        training(
            sources='data_sources { tfrecords_path: "/b/*" image_directory_path: "/b" } validation_data_source: '
            '{ tfrecords_path: "/data/val/*" image_directory_path: "/data/val" }'
        ),
    ),
    "TAO 4.0: Weights & Biases and ClearML": Stock(
        EXPERIMENT,
        training(
            extra=MONITORED % 'wandb_config { enabled: true project: "kitti" name: "run" tags: "a" tags: "b" } '
            'clearml_config { project: "kitti" task: "train" tags: "a" reuse_last_task_id: false }'
        ),
        warned=("not to Weights & Biases", "not to ClearML"),
    ),
    "TAO 5.x: the notebooks' own, with Weights & Biases named and not enabled": Stock(
        EXPERIMENT,
        training(
            extra=MONITORED % 'clearml_config{ project: "demo" task: "resnet18" tags: "a" tags: "b" } '
            'wandb_config{ project: "demo" name: "resnet18" tags: "a" tags: "b" }'
        ),
        warned=("not to ClearML",),
    ),
    "TAO 5.x: whole min_samples, monitored by TensorBoard": Stock(EXPERIMENT, training(extra=MONITORED % "")),
    "TAO 5.x: COCO, an early first validation": Stock(
        EXPERIMENT, training(sources="validation_fold: 0 sampling_mode: USER_DEFINED").replace("epoch: 110", "epoch: 1")
    ),
    "one field given twice": Stock(
        EXPERIMENT,
        training(DBSCAN_5 + " dbscan_min_samples: 1 minimum_bounding_box_height: 20 minimum_bounding_box_height: 4"),
        warned=("minimum_bounding_box_height is given twice, first on line",) * 3,
    ),
    "NMS": Stock(
        EXPERIMENT,
        training(
            "clustering_algorithm: NMS nms_iou_threshold: 0.2 nms_confidence_threshold: 0.5 coverage_threshold: 0.005"
        ),
    ),
    "grey images": Stock(EXPERIMENT, training(channels=1), "the networks read three channels"),
    **{
        f"another architecture: {arch}": Stock(
            EXPERIMENT, training(model="num_layers: 18", arch=arch), "which this engine does not train; use arch"
        )
        for arch in ("darknet", "vgg", "mobilenet_v1", "mobilenet_v2", "squeezenet", "googlenet", "efficientnet_b0")
    },
    "blocks of a pretrained file frozen": Stock(
        EXPERIMENT,
        training(model='pretrained_model_file: "/m/a.hdf5" num_layers: 18 freeze_blocks: 0 freeze_blocks: 1'),
    ),
    # Inference
    "TLT 2.0: a confidence_threshold beside the clustering": Stock(
        INFERENCE,
        detecting(handler="confidence_threshold: 0.9"),
        "no field 'confidence_threshold'; it is clustering_config.dbscan_confidence_threshold now",
    ),
    "TAO 3.x: an entry default without output_map": Stock(INFERENCE, detecting()),
    "TAO 3.x: float min_samples": Stock(
        INFERENCE,
        detecting("coverage_threshold: 0.00 dbscan_eps: 0.3 dbscan_min_samples: 0.05 minimum_bounding_box_height: 4"),
        tao5=("dbscan_min_samples is 0.05",) * 2,
    ),
    "TAO 3.x: without sizes": Stock(
        INFERENCE,
        detecting(frame="gpu_index: 0"),
        warned=("image_width", "image_height", "image_channels", "batch_size"),
        tao5=("image_width", "image_height", "image_channels", "batch_size"),
    ),
    "TAO 3.x: ETLT": Stock(INFERENCE, detecting(model=ETLT), "give the model file or the exported ONNX model"),
    "TLT 2.0: Caffe": Stock(INFERENCE, detecting(model=CAFFE), "give the model file or the exported ONNX model"),
    "TAO 3.x: NMS": Stock(
        INFERENCE,
        detecting(
            "clustering_algorithm: NMS coverage_threshold: 0.005 nms_iou_threshold: 0.3 nms_confidence_threshold: 0.2"
        ),
    ),
    "TAO 3.x: HYBRID": Stock(
        INFERENCE,
        detecting(
            "clustering_algorithm: HYBRID nms_iou_threshold: 0.3 nms_confidence_threshold: 0.2 "
            "coverage_threshold: 0.005 dbscan_confidence_threshold: 0.9 dbscan_eps: 0.3 dbscan_min_samples: 1"
        ),
    ),
    "TAO 5.x: thresholds for sums of coverage above 1": Stock(
        INFERENCE,
        detecting("coverage_threshold: 0.005 dbscan_eps: 0.3 dbscan_min_samples: 2 dbscan_confidence_threshold: 1.5"),
    ),
    "TAO 5.x: overlays to Weights & Biases": Stock(
        INFERENCE,
        detecting().replace("overlay_linewidth: 2", 'wandb_config { enabled: true name: "run" } overlay_linewidth: 2'),
        warned=("not to Weights & Biases",),
    ),
    # Conversion
    "KITTI by sequences": Stock(DATASET_EXPORT, SEQUENCES),
    "KITTI at random": Stock(DATASET_EXPORT, RANDOM),
    "COCO": Stock(DATASET_EXPORT, COCO),
    "KITTI with a class mapping": Stock(DATASET_EXPORT, RENAMING, warned=("does not change the records",)),
}


@pytest.mark.parametrize("name", STOCK)
def test_a_stock_spec_runs_unchanged_or_is_refused_for_what_breaks(name: str, tmp_path: Path):
    stock, file = STOCK[name], tmp_path / "spec.txt"
    file.write_text(stock.text)
    found = review(file)
    assert found.kind is stock.kind
    if stock.refused:
        assert {stock.refused in problem.message for problem in found.problems} == {True}, found.problems
        return
    assert found.problems == ()
    for said, expected in ((found.warnings, stock.warned), (found.refused_by_tao5, stock.tao5)):
        assert len(said) == len(expected), said
        assert all(part in problem.message for problem, part in zip(said, expected, strict=True)), said
    assert ("TAO 5 refuses this spec" in describe(found)) == bool(stock.tao5)
    if stock.kind is EXPERIMENT:  # whatever the engine makes of a spec before it needs data
        experiment.network_config(found.message, 0.1)
        experiment.objectives(found.message)
        experiment.schedule(found.message, 10)
    elif stock.kind is INFERENCE:
        for target in found.message.inferencer_config.target_classes:
            experiment.inference_clustering(inference._handler(found.message, target)[1])
            assert inference._drawing(found.message, target).output_name == target


def test_the_last_of_a_field_given_twice_counts(tmp_path: Path):
    file = tmp_path / "spec.txt"
    file.write_text(STOCK["one field given twice"].text)
    assert experiment.clustering(review(file).message)["car"].minimum_height == 4
