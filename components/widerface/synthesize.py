"""Draws a labelled face-detection set in WIDER FACE's official layout. Everything in it is synthetic.

The set is the embedded default where no real images are available. It shows that a pipeline works; a detector trained
on it has never seen a human face.
"""

from collections import Counter
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np

from components.formats.wider import ANNOTATIONS, OFFICIAL_NAMES, Face, WiderImage, format_annotations
from components.progress import track
from components.step import UserError, publish, write_manifest
from components.widerface.scene import draw_scene
from components.widerface.workers import ordered_map

# Of every twenty pictures: crowds, a few people, and no faces.
BLOCK = (True,) * 6 + (False,) * 10 + (None,) * 4
EVENTS = {True: "1--Synthetic_Crowd", False: "2--Synthetic_Few", None: "0--Synthetic_Nobody"}
SMALLEST_SIDE = 96
# As of `acquire`, so that the conversion recognises a synthetic set.
KIND = "raw_faces"
NOTICE = "No data set was given: drawing a SYNTHETIC one. What is trained on it has never seen a human face."
JPEG_QUALITY = (72, 95)


def synthesize(
    output: Path, training_images: int, validation_images: int, seed: int, width: int, height: int, workers: int = 0
) -> dict[str, object]:
    """Writes a synthetic set: `WIDER_train/images`, `WIDER_val/images`, `wider_face_split`.

    The same arguments give the same bytes, whatever the number of workers.

    Args:
        output: The folder to make.
        training_images: Number of pictures for training, 1 or more.
        validation_images: Number of pictures for validation, 1 or more.
        seed: 0 or more.
        width: Width of the pictures, pixels.
        height: Height of the pictures, pixels.
        workers: Parallel processes; 0 means one for every core.

    Returns:
        Counts of images, faces, occluded faces, crowds and empty pictures, by split.

    Raises:
        UserError: A number is out of range.
    """
    amounts = {"training": training_images, "validation": validation_images}
    for split, amount in amounts.items():
        if amount < 1:
            raise UserError(f"--{split}-images {amount}: must be 1 or more")
    if seed < 0:
        raise UserError(f"--seed {seed}: must be 0 or more")
    for name, value in (("width", width), ("height", height)):
        if value < SMALLEST_SIDE:
            raise UserError(f"--image-{name} {value}: must be {SMALLEST_SIDE} or more")
    counts: dict[str, object] = {"synthetic": True}
    with publish(output) as scratch:
        (scratch / ANNOTATIONS).mkdir(parents=True)
        for event in EVENTS.values():
            for official in OFFICIAL_NAMES.values():
                (scratch / f"WIDER_{official}" / "images" / event).mkdir(parents=True)
        for split, amount in amounts.items():
            images = _draw_split(scratch, split, amount, seed, (width, height), workers)
            counts.update({f"{split}_{name}": count for name, count in _count(images).items()})
        write_manifest(scratch, KIND, counts, {"seed": seed, "image_width": width, "image_height": height})
    return counts


def _draw_split(
    scratch: Path, split: str, amount: int, seed: int, size: tuple[int, int], workers: int
) -> list[WiderImage]:
    official = OFFICIAL_NAMES[split]
    items = [(split, index, seed, size) for index in range(amount)]
    images = []
    with closing(ordered_map(_draw, items, workers, cv2.setNumThreads, (1,))) as drawn:
        for name, content, faces in track(drawn, amount, f"drawing synthetic {split}"):
            (scratch / f"WIDER_{official}" / "images" / name).write_bytes(content)
            images.append(WiderImage(name, faces))
    (scratch / ANNOTATIONS / f"wider_face_{official}_bbx_gt.txt").write_bytes(format_annotations(images))
    return images


def _draw(item: tuple[str, int, int, tuple[int, int]]) -> tuple[str, bytes, tuple[Face, ...]]:
    """Draws the picture number `index` of a split; it depends on seed, split and index alone."""
    split, index, seed, (width, height) = item
    stream = list(OFFICIAL_NAMES).index(split)
    crowd = np.random.default_rng((seed, stream, 0, index // len(BLOCK))).permutation(np.array(BLOCK, object))
    kind = crowd[index % len(BLOCK)]
    rng = np.random.default_rng((seed, stream, 1, index))
    picture, faces = draw_scene(rng, kind, width, height)
    quality = int(rng.integers(*JPEG_QUALITY))
    content = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    event = EVENTS[kind]
    return f"{event}/{event.replace('--', '_')}_{index:06d}.jpg", content, tuple(faces)


def _count(images: list[WiderImage]) -> dict[str, int]:
    counts = Counter(images=len(images))
    for image in images:
        counts["faces"] += len(image.faces)
        counts["occluded_faces"] += sum(face.occlusion > 0 for face in image.faces)
        counts["images_of_8_or_more_faces"] += len(image.faces) >= 8
        counts["images_without_faces"] += not image.faces
    return dict(counts)
