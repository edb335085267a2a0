"""`detectnet_v2 spec check`: what a person reads of a spec."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from spec_texts import CONVERSION, FACENET_TAO_4_0, INFERENCE

from components.detectnet_v2 import spec_pb2
from components.detectnet_v2.spec import review
from components.detectnet_v2.spec_words import describe, parameter_count


def words(tmp_path: Path, text: str) -> str:
    """The description, every row on one line: label, then text."""
    file = tmp_path / "spec.txt"
    file.write_text(text)
    found = review(file)
    assert found.problems == ()
    return re.sub(r"\n {6,}(?=\S)", " ", describe(found))


def section(description: str, title: str) -> str:
    return next(block for block in description.split("\n\n") if block.startswith(f"{title}\n"))


def edited(old: str, new: str, text: str = FACENET_TAO_4_0) -> str:
    assert old in text
    return text.replace(old, new, 1)


def line_of(part: str, text: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), start=1) if part in line)


def test_facenet_spec_is_told_with_its_numbers(tmp_path):
    told = words(tmp_path, FACENET_TAO_4_0)
    assert "experiment spec, read by train, evaluate, prune and export" in told
    assert "/data/tfrecords/kitti_train-*" in section(told, "Data")
    assert "736 x 416 pixels" in section(told, "Input")
    assert "46 x 26 cells" in section(told, "Input")
    assert "0.56 to 1.4 times as large" in section(told, "Augmentation")
    assert "ResNet-18, batch norm" in section(told, "Network")
    assert "11,197,893" in section(told, "Network")
    assert "coverage to box 1 : 10" in section(told, "Targets and loss")
    training = section(told, "Training")
    assert "100 epochs, batches of 32 images" in training
    assert "from 5e-06 up to 0.0005 until epoch 10, held until epoch 70, down to 5e-06 at epoch 100" in training
    assert "3e-09 times the sum of the absolute weights" in training
    evaluation = section(told, "Evaluation")
    assert "after epoch 1, then every 10 epochs" in evaluation
    assert "from an IoU of 0.85 on" in evaluation
    assert "summed coverage of at least 0.9 and more than 4 pixels" in evaluation


def test_tao_5_is_told_apart_with_lines(tmp_path):
    told = words(tmp_path, FACENET_TAO_4_0)
    samples, threshold = (line_of(name, FACENET_TAO_4_0) for name in ("min_samples", "confidence_threshold"))
    assert re.search(
        rf"line {samples} +dbscan_min_samples is 0.03.*write 1", section(told, "Why TAO 5 refuses this spec")
    )
    otherwise = section(told, "Otherwise in TAO 5, and here with --compat tao5")
    assert re.search(
        rf"line {threshold} +dbscan_confidence_threshold is 0.9; TAO 5 .*nms_confidence_threshold.*\(0\)", otherwise
    )
    assert "(n-1)/n" in otherwise
    assert told.endswith("TAO 5 refuses this spec.\n")
    told = words(tmp_path, edited("min_samples: 0.03", "min_samples: 1"))
    assert "refuses" not in told
    assert told.endswith("TAO 3.x, 4.0 and 5.x can read this spec as well.\n")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (r"  spatial_augmentation \{[^}]*\}\n", "", "zoom_min is not set; TAO 5 wants more than 0"),
        ("load_graph: true", "freeze_blocks: 1", "freeze_blocks needs a pretrained_model_file"),
        (
            "  checkpoint_interval: 10",
            '  visualizer { wandb_config { project: "a" } }',
            "name is not set; TAO 5 requires",
        ),
        ("dbscan_eps: 0.15", "dbscan_eps: 0", "dbscan_eps is 0; TAO 5's DBSCAN must have more than 0"),
        ("dbscan_eps: 0.15", "", "dbscan_eps is not set; TAO 5's DBSCAN must have more than 0"),
    ],
)
def test_what_works_here_and_not_in_tao_5_is_told(old, new, expected, tmp_path):
    text = re.sub(old, new, edited("min_samples: 0.03", "min_samples: 1"))
    told = words(tmp_path, text)
    assert expected in section(told, "Why TAO 5 refuses this spec")
    assert told.endswith("TAO 5 refuses this spec.\n")


def test_a_float_of_nvidias_is_told_as_it_was_meant(tmp_path):
    told = words(tmp_path, edited("min_samples: 0.03", "min_samples: 0.0500000007451"))
    assert "dbscan_min_samples is 0.05, taken as written" in told
    assert "0.0500000007451" not in told


def test_min_samples_of_zero_are_one_in_tao_5(tmp_path):
    told = words(tmp_path, edited("min_samples: 0.03", "min_samples: 0"))
    assert "around cells in whose reach coverage sums to 0 or more" in told
    assert re.search(r"dbscan_min_samples is 0; TAO 5 takes 1", told)
    unset = words(tmp_path, edited("dbscan_min_samples: 0.03", ""))
    assert "around cells in whose reach coverage sums to 1 or more" in unset
    assert "dbscan_min_samples is" not in unset


@pytest.mark.parametrize("written", ["1.0", "0.05"])
def test_float_min_samples_are_refused_by_tao_5_even_where_whole(written, tmp_path):
    told = words(tmp_path, edited("min_samples: 1", f"min_samples: {written}", INFERENCE))
    assert f"dbscan_min_samples is {written}" in section(told, "Why TAO 5 refuses this spec")


def test_swapped_thresholds_are_no_difference_where_they_are_equal(tmp_path):
    text = edited("dbscan_confidence_threshold: 0.9", "dbscan_confidence_threshold: 0.9 nms_confidence_threshold: 0.9")
    assert "in its place" not in words(tmp_path, text)


def test_what_taos_nms_does_otherwise_is_told(tmp_path):
    otherwise = "Otherwise in TAO 5, and here with --compat tao5"
    told = section(words(tmp_path, edited("clustering_algorithm: DBSCAN", "clustering_algorithm: NMS")), otherwise)
    assert "clustering_algorithm is NMS, which in TAO 5 measures boxes a pixel larger" in told
    assert "nms_iou_threshold is not set, here 0.3; TAO 5 evaluates with 0" in told
    low = edited("dbscan_min_samples: 1", "dbscan_min_samples: 1.5 minimum_bounding_box_height: 9", INFERENCE)
    told = section(
        words(tmp_path, edited("clustering_algorithm: DBSCAN", "clustering_algorithm: HYBRID", low)), otherwise
    )
    assert "dbscan_min_samples is 1.5; TAO 5 takes its whole part" in told
    assert "minimum_bounding_box_height is 9; TAO 5's NMS takes no notice of it" in told


def test_zoom_is_told_as_it_looks_in_either_loader(tmp_path):
    text = edited('image_extension: "png"', 'image_extension: "png" dataloader_mode: DEFAULT')
    assert "0.7 to 1.8 times as large" in section(words(tmp_path, text), "Augmentation")


def test_rotation_is_told_in_degrees(tmp_path):
    text = edited("hflip_probability: 0.5", "rotate_rad_max: 0.1")
    augmentation = section(words(tmp_path, text), "Augmentation")
    assert "up to 5.73 degrees either way, with probability 1" in augmentation
    assert "mirrored" not in augmentation


def test_pretrained_frozen_and_stopped_training_is_told(tmp_path):
    text = edited(
        "load_graph: true", 'pretrained_model_file: "net.hdf5" freeze_blocks: [0, 2] freeze_pretrained_layers: true'
    )
    early = (
        "early_stopping_annealing_schedule { min_learning_rate: 1e-06 max_learning_rate: 1e-03 soft_start_epochs: 2 "
    )
    early += "annealing_epochs: 1 patience_steps: 12 }"
    text = re.sub(r"soft_start_annealing_schedule \{[^}]*\}", early, text)
    told = words(tmp_path, text)
    assert "layers of net.hdf5 where name and shape agree" in section(told, "Network")
    assert "the stem, block 2, the layers taken from the file" in section(told, "Network")
    assert "over 2 epochs, held until the validation cost has not fallen for 12 epochs" in section(told, "Training")
    assert "over 1 epoch;" in section(told, "Training")
    whole = words(tmp_path, edited("load_graph: true", 'load_graph: true pretrained_model_file: "pruned.safetensors"'))
    assert "as stored in pruned.safetensors" in section(whole, "Network")
    assert "parameters" not in section(whole, "Network")


def test_what_nvidias_program_refuses_is_told(tmp_path):
    told = words(tmp_path, FACENET_TAO_4_0 + "open_engine { fit: STRETCH }\n")
    assert "images of any size: they are stretched to it" in section(told, "Input")
    assert told.endswith("NVIDIA's program refuses this spec: it does not know open_engine.\n")


def test_several_sources_are_told_with_their_weights(tmp_path):
    second = 'data_sources { tfrecords_path: "/b/*" image_directory_path: "/b" source_weight: 0.25 }\n  data_sources'
    data = section(words(tmp_path, edited("data_sources", second)), "Data")
    assert re.search(r"training +/b/\*, images in /b \(\.png\); weight 0\.25", data)
    assert "/data/training (.png); weight 1" in data
    assert "every image once" in data


def test_inference_spec_is_told(tmp_path):
    text = edited(
        '"aggregate_cov"',
        '"mean_cov"',
        edited("dbscan_eps: 0.3", "dbscan_eps: 0.3 dbscan_confidence_threshold: 0.5", INFERENCE),
    )
    text = edited("clustering_algorithm: DBSCAN", "clustering_algorithm: HYBRID neighborhood_size: 2", text)
    told = words(tmp_path, edited("image_width: 736", "image_width: 736 gpu_index: 1", text))
    assert "model.safetensors" in section(told, "Model")
    classes = section(told, "Classes")
    assert 'written as "face", drawn in RGB 0, 255, 0' in classes
    assert "mean coverage of more than 0.5" in classes
    assert "IoU of more than 0.3 go (NMS); kept with a coverage of more than 0.1" in classes
    assert "lines of 2 pixels" in section(told, "Output")
    idle = section(told, "Without effect")
    assert re.search(r"line 3 +gpu_index has no effect: .*CUDA_VISIBLE_DEVICES", idle)
    assert "neighborhood_size has no effect" in idle


def test_conversion_specs_are_told(tmp_path):
    modifiers = """sample_modifier_config { dominant_target_classes: "car" num_duplicates: 2 max_training_samples: 900
      filter_samples_containing_only: "van" minimum_target_class_imbalance { key: "bus" value: 3 } }\n"""
    told = words(tmp_path, CONVERSION + modifiers)
    assert "/data/training/images/*.png" in section(told, "KITTI labels to TFRecords")
    assert "the first 10 % by name are fold 0" in told
    assert "10 shards a fold" in told
    samples = section(told, "Which samples")
    assert 'nothing but "van"' in samples
    assert 'more objects than "car": 2 more copies of each' in samples
    assert "for bus: more than 3 times as many" in samples
    assert "900 training images" in samples
    coco = 'coco_config { root_directory_path: "/c" img_dir_names: ["a", "b"] annotation_files: ["a.json", "b.json"] '
    told = words(tmp_path, coco + "num_partitions: 2 num_shards: 8 }")
    assert "fold 1 " in told
    assert "/c/b.json; 8 shards" in told


# Backbone's and heads' parameters for one class, moving statistics included.
@pytest.mark.parametrize(
    ("layers", "all_projections", "first_only"),
    [
        (10, 4_921_413, 4_921_413),
        (18, 11_550_853, 11_197_893),
        (34, 22_240_581, 21_317_189),
        (50, 38_203_269, 23_597_957),
    ],
)
def test_parameter_counts_are_those_of_tao(layers: int, all_projections: int, first_only: int):
    for wanted, expected in ((True, all_projections), (False, first_only)):
        model = spec_pb2.ModelConfig(num_layers=layers, use_batch_norm=True, all_projections=wanted)
        assert parameter_count(model, 1) == expected
    # Three classes need twice five more numbers for each channel and its bias.
    channels = 2048 if layers == 50 else 512
    assert parameter_count(model, 3) - expected == 10 * (channels + 1)


# ---- The command -----------------------------------------------------------------------------------------------------


def check(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = "from components.detectnet_v2.commands import main; main()"
    command = [sys.executable, "-c", program, "spec", "check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_check_tells_a_usable_spec_and_needs_no_torch(tmp_path):
    file = tmp_path / "train.txt"
    file.write_text(FACENET_TAO_4_0)
    begin = time.monotonic()
    program = (
        "import sys; from components.detectnet_v2 import commands, spec, spec_words;"
        f"print(spec_words.describe(spec.review(commands.Path({str(file)!r}))));"
        "assert not {'torch', 'cv2', 'numpy'} & set(sys.modules), 'too much is imported'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    done = check(file)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "ResNet-18" in done.stdout
    assert time.monotonic() - begin < 10  # about half a second; a loaded machine may take longer


def test_check_lists_every_problem_on_a_line_of_its_own(tmp_path):
    file = tmp_path / "train.txt"
    text = edited(
        "num_epochs: 100", "num_epochs: 0", edited('arch: "resnet"', 'arch: "vgg"', edited("scale: 35", "scale: 0"))
    )
    file.write_text(text)
    done = check(file)
    assert (done.returncode, done.stdout) == (2, "")
    *problems, summary = done.stderr.splitlines()
    lines = [line_of(part, text) for part in ("vgg", "scale: 0", "num_epochs: 0")]
    assert [problem.split(": ")[0] for problem in problems] == [f"{file}:{line}" for line in lines]
    assert "3 problems in this experiment spec" in summary


def test_check_says_that_values_wait_for_the_text(tmp_path):
    file = tmp_path / "train.txt"
    file.write_text(
        edited("num_epochs: 100", "num_epoch: 0", edited("random_seed: 42", "random_seed: ${NO_SUCH_SEED}"))
    )
    done = check(file)
    assert done.returncode == 2
    assert "${NO_SUCH_SEED} is not filled in" in done.stderr
    assert "did you mean 'num_epochs'?" in done.stderr
    assert "2 problems in this experiment spec; values are checked once the text itself is right" in done.stderr


@pytest.mark.parametrize(
    ("text", "expected"), [("", "no field tells what kind of spec this is"), ("a {", "is not closed")]
)
def test_check_of_what_is_no_spec_costs_one_line(text, expected, tmp_path):
    file = tmp_path / "train.txt"
    file.write_text(text)
    done = check(file)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert expected in done.stderr


def test_check_never_shows_a_key(tmp_path):
    wandb = 'visualizer { wandb_config { key: "abc123" project: "faces" } }'
    told = words(tmp_path, edited("  checkpoint_interval: 10", f"  {wandb}"))
    assert "key holds a secret" in told
    assert "key has no effect" in told
    assert "abc123" not in told
