"""Trainings of equal processor time on real faces, for the comparisons in this folder.

Processor time on one thread, so that other work on the machine does not decide. Nothing is validated in between.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.detectnet_v2.stage import render_spec
from components.evaluate.detectors import Detected, detect_here
from components.evaluate.inputs import Findings, read_labelled
from components.evaluate.pictures import Pictures
from components.measure.dataset import Truth
from components.step import write_json
from components.tao.rendering import template_text
from components.tao.workplace import unpack
from components.vision.predictor import load_predictor
from components.widerface.convert import Conversion, convert
from pipeline.catalogue import definition

PROFILE = "cpu-real"
_PARTS = 10  # files that `dataset_convert` spreads the images over
PROGRAM = Path(sys.executable).with_name("detectnet_v2")


def prepare(raw: Path, folder: Path) -> Path:
    """Converts the raw set at its own resolution to `folder`, once; returns the folder."""
    if not (folder / "records").is_dir():
        convert(raw, folder / "kitti", Conversion(resolution="source", validation_share=0.05))
        images = unpack(folder / "kitti", "training", folder / "images")
        spec = folder / "convert.txt"
        text = render_spec(template_text("facedetect-cpu/convert"), {"root": images, "image_extension": "jpg"})
        spec.write_text(text.replace("num_shards: 1", f"num_shards: {_PARTS}"), encoding="utf-8")
        _call("dataset_convert", "-d", spec, "-o", folder / "records/training/kitti")
    return folder


@dataclass(frozen=True)
class Trial:
    """A training.

    Attributes:
        data: What `prepare` returned.
        folder: Where it is kept.
        minutes: Processor time of its epochs.
        size: Width and height of the network's input, pixels.
        width: Of the network's channels.
        seed: Of all draws.
        changes: Texts of the profile's spec, and what they become.
    """

    data: Path
    folder: Path
    minutes: float
    size: tuple[int, int] = (480, 272)
    width: float = 0.25
    seed: int = 42
    changes: Mapping[str, str] | None = None

    def run(self, epochs: int = 0) -> dict[str, float]:
        """Trains so many epochs, or as many as the time allows, once; returns them and the processor seconds."""
        file = self.folder / "figures.json"
        if not file.exists():
            epochs = epochs or self._affordable()
            seconds = self._train(self.folder / "train", epochs)
            write_json(file, {"epochs": epochs, "seconds": seconds})
        figures: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
        return figures

    def _affordable(self) -> int:
        # A part of the images tells what four epochs cost: three of small views and a whole one, where there are any.
        short, long = (self._train(self.folder / f"calibrate-{each}", each, part=True) for each in (4, 8))
        return max(1, round(60 * self.minutes / ((long - short) / 4 * _PARTS)))

    @property
    def model(self) -> Path:
        """The model artifact."""
        return self.folder / "train/weights"

    def _train(self, results: Path, epochs: int, *, part: bool = False) -> float:
        values = definition("facedetect").profile_values(PROFILE)
        rate = values["train_learning_rate"]
        text = render_spec(
            template_text(values["train_spec"]),
            {
                "seed": self.seed,
                "image_extension": "jpg",
                "training_records": self.data / "records/training",
                "validation_records": "unused",
                "images_training": self.data / "images/training",
                "images_validation": "unused",
                "image_width": self.size[0],
                "image_height": self.size[1],
                "minimum_height": 20,
                "batch_size": values["train_batch_size"],
                "epochs": epochs,
                "learning_rate": rate,
                "minimum_learning_rate": rate / 100,
                "pretrained_model": "",
            },
        )
        start = text.index("  validation_data_source {")
        text = text[:start] + text[text.index("}", start) + 1 :]
        if part:
            text = text.replace("/kitti-fold-*", "/kitti-fold-*-shard-00000-*")
        for old, new in (self.changes or {}).items():
            if old not in text:
                raise SystemExit(f"the spec has no {old!r}")
            text = text.replace(old, new)
        results.mkdir(parents=True)
        spec = results / "spec.txt"
        spec.write_text(text, encoding="utf-8")
        return _call("train", "-e", spec, "-r", results, "--width", self.width, "--threads", 1)


def detect(model: Path, raw: Path, *, stored_pixels: bool) -> tuple[Truth, Detected]:
    """Looks for faces in WIDER FACE's validation images; no face is ignored; see `detect_here`."""
    predictor = load_predictor(model)
    truth, _ = read_labelled(raw, "validation", predictor.decoder.class_names, wider=True, ignore_regions=False)
    pictures = Pictures(truth, raw, "validation")
    return truth, detect_here(predictor, "", pictures, truth, Findings(), stored_pixels=stored_pixels)


def _call(*arguments: Any) -> float:  # noqa: ANN401 - anything that becomes a word
    """Runs `detectnet_v2`; returns the processor seconds it took."""
    words = [str(PROGRAM), *map(str, arguments)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    # Of this process alone: others may run beside it.
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{shlex.join(words)} failed")
    return used.ru_utime + used.ru_stime
