"""A small set of drawn discs in TAO's folders, and specs for it: quick to learn, sure to be judged."""

import re

import cv2
import numpy as np

from components import program
from components.detectnet_v2.commands import app
from components.formats.kitti import Label, format_label
from components.tao.rendering import placeholders, render, template_text

WIDTH, HEIGHT = 96, 64


def detectnet_v2(*arguments):
    """Runs the program in this process; returns its exit code."""
    return program.run(app, [str(argument) for argument in arguments], "detectnet_v2")


def write_kitti(root):
    """Bright discs on a dark ground: 8 images to train, 4 to validate."""
    random = np.random.default_rng(0)
    for split, amount in (("training", 8), ("validation", 4)):
        for folder in ("images", "labels"):
            (root / split / folder).mkdir(parents=True)
        for index in range(amount):
            image = random.integers(0, 60, (HEIGHT, WIDTH, 3), np.uint8)
            x, y, radius = int(random.integers(24, 72)), int(random.integers(22, 42)), int(random.integers(12, 20))
            cv2.circle(image, (x, y), radius, (120, 180, 230), -1)
            label = Label("face", 0.0, 0, (x - radius, y - radius, x + radius, y + radius))
            cv2.imwrite(str(root / split / "images" / f"{index:03d}.png"), image)
            (root / split / "labels" / f"{index:03d}.txt").write_text(format_label(label) + "\n")
    return root


def write_records(folder, kitti):
    for split in ("training", "validation"):
        spec = write_spec(folder, "convert", root=kitti / split)
        assert detectnet_v2("dataset_convert", "-d", spec, "-o", folder / split / "kitti", "-r", folder / "r") == 0
    return folder


def write_spec(folder, name, **values):
    """Writes one of the CPU profile's specs with these values filled in."""
    template = template_text(f"facedetect-cpu/{name}")
    defaults = dict.fromkeys(placeholders(template), "unused") | {"image_extension": "png"}
    file = folder / f"{name}.txt"
    file.write_text(render(template, {**defaults, **values}))
    return file


def experiment_spec(folder, kitti, records, name="train", pretrained="", epochs=12, batch_size=4):
    file = write_spec(
        folder, name, training_records=records / "training", validation_records=records / "validation",
        images_training=kitti / "training", images_validation=kitti / "validation",
        pretrained_model=pretrained, image_width=WIDTH, image_height=HEIGHT, epochs=epochs, batch_size=batch_size,
        learning_rate=0.01, minimum_learning_rate=0.0001, seed=1, minimum_height=4,
    )  # fmt: skip
    file.write_text(re.sub(r'pretrained_model_file: ""\n', "", file.read_text()))
    return file


def edit(spec, *replacements):
    """Replaces texts in a spec; each must be there."""
    text = spec.read_text()
    for old, new in replacements:
        assert re.search(old, text), old
        text = re.sub(old, new, text, count=1)
    spec.write_text(text)
    return spec
