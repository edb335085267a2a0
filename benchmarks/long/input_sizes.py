"""Which input size and which width of the network buy the most accuracy for the same training time?

Every configuration trains on real faces for the same processor time on one thread (processor time, so that other work
on the machine does not decide), with the specs of the `cpu-real` profile, and is scored on the original photographs:
heights are pixels of the original image, so that all configurations answer for the same faces.
Run: python benchmarks/long/input_sizes.py --data DIR/wider_face [--minutes 15] [320x192@0.25 480x272@0.25 …]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from components.detectnet_v2.stage import render_spec
from components.evaluate.detectors import detect_here
from components.evaluate.inputs import Findings, read_labelled
from components.evaluate.pictures import Pictures
from components.measure.average_precision import Measured
from components.measure.matching import HeightBand
from components.step import write_json
from components.tao.rendering import template_text
from components.tao.workplace import unpack
from components.vision.predictor import load_predictor
from components.widerface.convert import Conversion, convert
from pipeline.catalogue import definition

DEFAULT = ("320x192@0.25", "480x272@0.25", "640x368@0.25", "480x272@0.125", "480x272@0.5")
BANDS = tuple(HeightBand.parse(text) for text in ("0+", "40+", "20-40", "40-80", "80-160", "160+"))
PROGRAM = Path(sys.executable).with_name("detectnet_v2")


@dataclass(frozen=True)
class Configuration:
    """An input size in pixels and a width of the network's channels, written `480x272@0.25`."""

    text: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        width, height = self.text.partition("@")[0].split("x")
        return int(width), int(height)

    @property
    def channels(self) -> str:
        """What `--width` is given."""
        return self.text.partition("@")[2]


def prepare(raw: Path, folder: Path, size: tuple[int, int]) -> Path:
    """Converts the raw set to `folder`, once."""
    if (folder / "records").is_dir():
        return folder
    values = definition("facedetect").profile_values("cpu-real")
    conversion = Conversion(
        width=size[0],
        height=size[1],
        grayscale=False,
        min_face_height=values["data_min_face_height"],
        small_faces=values["data_small_faces"],
        invalid_faces=values["data_invalid_faces"],
        occluded_faces="keep",
        max_images=0,
    )
    convert(raw, folder / "kitti", conversion)
    for split in ("training", "validation"):
        images = unpack(folder / "kitti", split, folder / "images")
        spec = folder / f"{split}.txt"
        spec.write_text(
            render_spec(template_text("facedetect-cpu/convert"), {"root": images, "image_extension": "png"}),
            encoding="utf-8",
        )
        call("dataset_convert", "-d", spec, "-o", folder / "records" / split / "kitti")
    return folder


def call(*arguments: object) -> float:
    """Runs `detectnet_v2`; returns the processor seconds it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([PROGRAM, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def train(data: Path, results: Path, configuration: Configuration, epochs: int) -> float:
    """Trains without validation; returns the processor seconds."""
    values = definition("facedetect").profile_values("cpu-real")
    width, height = configuration.size
    text = render_spec(
        template_text("facedetect-cpu/train"),
        {
            "seed": 42,
            "image_extension": "png",
            "training_records": data / "records/training",
            "validation_records": data / "records/validation",
            "images_training": data / "images/training",
            "images_validation": data / "images/validation",
            "image_width": width,
            "image_height": height,
            "minimum_height": 20,
            "batch_size": values["train_batch_size"],
            "epochs": epochs,
            "learning_rate": values["train_learning_rate"],
            "minimum_learning_rate": values["train_learning_rate"] / 100,
            "pretrained_model": "",
        },
    )
    start = text.index("  validation_data_source {")
    text = text[:start] + text[text.index("}", start) + 1 :]
    results.mkdir(parents=True)
    spec = results / "spec.txt"
    spec.write_text(text, encoding="utf-8")
    return call("train", "-e", spec, "-r", results, "--width", configuration.channels, "--threads", 1)


def score(model: Path, raw: Path) -> dict[str, float]:
    """Returns average precision by height in pixels of the original photographs; no face is ignored."""
    predictor = load_predictor(model)
    truth, _ = read_labelled(raw, "validation", predictor.decoder.class_names, wider=True, ignore_regions=False)
    found = detect_here(predictor, "", Pictures(truth, raw, "validation"), truth, Findings())
    (matcher,) = Measured.of("", truth, found.predictions).matchers.values()
    return {band.name: matcher.match(band).curve().average_precision() for band in BANDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configurations", nargs="*", default=DEFAULT, help="WIDTHxHEIGHT@CHANNELS")
    parser.add_argument("--data", type=Path, required=True, help="WIDER FACE in its official layout")
    parser.add_argument("--minutes", type=float, default=15, help="processor time of each training")
    parser.add_argument("--folder", type=Path, default=Path("runs/input-sizes"), help="where everything is kept")
    options = parser.parse_args()
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    print(f"{'configuration':<14} {'epochs':>6} {'CPU min':>8}  AP by height: " + "  ".join(b.name for b in BANDS))
    for configuration in map(Configuration, options.configurations):
        folder = options.folder / configuration.text
        if not (folder / "scores.json").exists():
            data = prepare(options.data, options.folder / configuration.text.partition("@")[0], configuration.size)
            short, longer = (train(data, folder / f"calibrate-{n}", configuration, n) for n in (1, 3))
            epoch_seconds = (longer - short) / 2
            epochs = max(1, round((60 * options.minutes - (short - epoch_seconds)) / epoch_seconds))
            seconds = train(data, folder / "train", configuration, epochs)
            figures = {"epochs": epochs, "seconds": seconds, "ap": score(folder / "train/weights", options.data)}
            write_json(folder / "scores.json", figures)
        figures = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        values = "  ".join(f"{figures['ap'][band.name]:.3f}" for band in BANDS)
        print(f"{configuration.text:<14} {figures['epochs']:>6} {figures['seconds'] / 60:>8.1f}  {values}", flush=True)


if __name__ == "__main__":
    main()
