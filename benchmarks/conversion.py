"""Images converted per second, against a plain one-process OpenCV loop.

Usage: python -m benchmarks.conversion [--data FOLDER] [--width 736] [--height 416] [--rounds 3]

The loop does what a reference converter does: `imread`, cubic resize into a black frame, `imwrite` of a PNG with
OpenCV's own compression, a label file. Both run on the same images, in turns, and the ratio is that of their medians.
Without a data set 200 synthetic images are drawn.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from components.formats.wider import WiderSource
from components.vision.threads import available_cores
from components.widerface.convert import Conversion, convert
from components.widerface.synthesize import synthesize


def plain_loop(source: Path, output: Path, width: int, height: int) -> None:
    """The reference: one process, files in, files out."""
    wider = WiderSource(source)
    for split, official in (("training", "train"), ("validation", "val")):
        images, labels = output / split / "images", output / split / "labels"
        images.mkdir(parents=True)
        labels.mkdir()
        for annotation in wider.images(split):
            image = cv2.imread(str(source / f"WIDER_{official}" / "images" / annotation.name))
            assert image is not None
            scale = min(width / image.shape[1], height / image.shape[0])
            w, h = int(image.shape[1] * scale), int(image.shape[0] * scale)
            dx, dy = (width - w) // 2, (height - h) // 2
            frame = np.zeros((height, width, 3), np.uint8)
            frame[dy : dy + h, dx : dx + w] = cv2.resize(image, (w, h), interpolation=cv2.INTER_CUBIC)
            name = Path(annotation.name).stem
            cv2.imwrite(str(images / f"{name}.png"), frame)
            lines = []
            for face in annotation.faces:
                x, y, fw, fh = face.box
                box = (
                    f"{dx + x * scale:.2f} {dy + y * scale:.2f} {dx + (x + fw) * scale:.2f} {dy + (y + fh) * scale:.2f}"
                )
                lines.append(f"face 0 {face.occlusion} 0 {box} 0 0 0 0 0 0 0\n")
            (labels / f"{name}.txt").write_text("".join(lines), encoding="utf-8")


def seconds(work: Callable[[Path, Path, int, int], object], source: Path, width: int, height: int) -> float:
    """Returns how long `work` takes, its output thrown away."""
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        work(source, Path(scratch) / "out", width, height)
        return time.perf_counter() - start


def product(source: Path, output: Path, width: int, height: int) -> None:
    convert(source, output, Conversion(width=width, height=height))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real = Path(os.environ.get("GRIDBOX_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "wider_face"
    parser.add_argument("--data", type=Path, default=real, help="folder in WIDER FACE's official layout")
    parser.add_argument("--width", type=int, default=736)
    parser.add_argument("--height", type=int, default=416)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    source = arguments.data
    drawn = Path(tempfile.mkdtemp())
    try:
        if not source.is_dir():
            print(f"{source} is absent: synthetic images are drawn")
            source = drawn / "set"
            synthesize(source, 180, 20, 1, 1024, 768)
        compare(source, arguments.width, arguments.height, arguments.rounds)
    finally:
        shutil.rmtree(drawn)


def compare(source: Path, width: int, height: int, rounds: int) -> None:
    """Times both in turns and prints their rates and the ratio."""
    count = sum(len(WiderSource(source).images(split)) for split in ("training", "validation"))
    times: dict[str, list[float]] = {"plain loop": [], "gridbox": []}
    for _ in range(rounds):
        times["plain loop"].append(seconds(plain_loop, source, width, height))
        times["gridbox"].append(seconds(product, source, width, height))
    for name, values in times.items():
        rates = ", ".join(f"{count / value:.0f}" for value in values)
        print(f"{name}: {count / statistics.median(values):.1f} images/s (rounds: {rates})")
    ratio = statistics.median(times["plain loop"]) / statistics.median(times["gridbox"])
    print(f"ratio: {ratio:.2f} with {available_cores()} cores, {count} images, {width}x{height}")


if __name__ == "__main__":
    main()
