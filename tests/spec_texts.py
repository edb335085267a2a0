"""Specs that pass every check, for tests to change."""

# The values of TAO's facenet training spec of release 4.0, with its float dbscan_min_samples.
FACENET_TAO_4_0 = """\
random_seed: 42
dataset_config {
  data_sources { tfrecords_path: "/data/tfrecords/kitti_train-*" image_directory_path: "/data/training" }
  image_extension: "png"
  target_class_mapping { key: "face" value: "face" }
  validation_data_source { tfrecords_path: "/data/tfrecords/kitti_val-*" image_directory_path: "/data/validation" }
}
augmentation_config {
  preprocessing {
    output_image_width: 736
    output_image_height: 416
    output_image_channel: 3
    min_bbox_width: 1.0
    min_bbox_height: 1.0
  }
  spatial_augmentation {
    hflip_probability: 0.5
    zoom_min: 0.7
    zoom_max: 1.8
    translate_max_x: 12.0
    translate_max_y: 12.0
  }
  color_augmentation { hue_rotation_max: 25.0 saturation_shift_max: 0.2 contrast_scale_max: 0.1 contrast_center: 0.5 }
}
postprocessing_config {
  target_class_config {
    key: "face"
    value {
      clustering_config {
        clustering_algorithm: DBSCAN
        coverage_threshold: 0.004
        dbscan_eps: 0.15
        dbscan_min_samples: 0.03
        dbscan_confidence_threshold: 0.9
        minimum_bounding_box_height: 4
      }
    }
  }
}
model_config {
  arch: "resnet"
  num_layers: 18
  load_graph: true
  use_batch_norm: true
  objective_set {
    bbox { scale: 35.0 offset: 0.5 }
    cov { }
  }
  training_precision { backend_floatx: FLOAT32 }
}
evaluation_config {
  validation_period_during_training: 10
  first_validation_epoch: 1
  minimum_detection_ground_truth_overlap { key: "face" value: 0.5 }
  evaluation_box_config {
    key: "face"
    value { minimum_height: 4 maximum_height: 9999 minimum_width: 4 maximum_width: 9999 }
  }
  average_precision_mode: INTEGRATE
}
cost_function_config {
  target_classes {
    name: "face"
    class_weight: 1.0
    coverage_foreground_weight: 0.05
    objectives { name: "cov" initial_weight: 1.0 weight_target: 1.0 }
    objectives { name: "bbox" initial_weight: 10.0 weight_target: 10.0 }
  }
  enable_autoweighting: true
  max_objective_weight: 0.9999
  min_objective_weight: 0.0001
}
training_config {
  batch_size_per_gpu: 32
  num_epochs: 100
  learning_rate {
    soft_start_annealing_schedule {
      min_learning_rate: 5e-06
      max_learning_rate: 5e-04
      soft_start: 0.1
      annealing: 0.7
    }
  }
  regularizer { type: L1 weight: 3e-09 }
  optimizer { adam { epsilon: 1e-08 beta1: 0.9 beta2: 0.999 } }
  cost_scaling { enabled: false initial_exponent: 20.0 increment: 0.005 decrement: 1.0 }
  checkpoint_interval: 10
}
bbox_rasterizer_config {
  target_class_config {
    key: "face"
    value { cov_center_x: 0.5 cov_center_y: 0.5 cov_radius_x: 1.0 cov_radius_y: 1.0 bbox_min_radius: 1.0 }
  }
  deadzone_radius: 0.67
}
"""

INFERENCE = """\
inferencer_config {
  target_classes: "face"
  image_width: 736
  image_height: 416
  image_channels: 3
  batch_size: 16
  tlt_config { model: "model.safetensors" }
}
bbox_handler_config {
  kitti_dump: true
  overlay_linewidth: 2
  classwise_bbox_handler_config {
    key: "face"
    value {
      confidence_model: "aggregate_cov"
      output_map: "face"
      bbox_color { R: 0 G: 255 B: 0 }
      clustering_config {
        clustering_algorithm: DBSCAN
        coverage_threshold: 0.005
        dbscan_eps: 0.3
        dbscan_min_samples: 1
      }
    }
  }
}
"""

CONVERSION = """\
kitti_config {
  root_directory_path: "/data/training"
  image_dir_name: "images"
  label_dir_name: "labels"
  partition_mode: "random"
  num_partitions: 2
  val_split: 10
  num_shards: 10
}
image_directory_path: "/data/training"
"""
