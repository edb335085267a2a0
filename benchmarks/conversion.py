"""Images converted per second, and the room they take, against a plain one-process OpenCV loop.

Usage: python -m benchmarks.conversion [--data FOLDER] [--width 736] [--height 416] [--longest-side 1024] [--rounds 3]

The loop does what a reference converter does: `imread`, cubic resize into a black frame, `imwrite` of a PNG with
OpenCV's own compression, a label file. Against it stand a set at the network's input size and one at source resolution.
All run on the same images, in turns; the ratios are those of their medians. The processor time, that of worker
processes included, says what a conversion costs where something else runs on the machine.
Without a data set 200 synthetic images are drawn.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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


@dataclass
class Cost:
    """What a conversion took: seconds by the clock, seconds of processors, bytes written."""

    wall: float
    processor: float
    size: int


def cost(work: Callable[[Path], object]) -> Cost:
    """Runs a conversion into a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "out"
        before, start = os.times(), time.perf_counter()
        work(output)
        wall, after = time.perf_counter() - start, os.times()
        processor = sum(after[:4]) - sum(before[:4])  # user and system, of this process and of those it waited for
        size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
        return Cost(wall, processor, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    real = Path(os.environ.get("GRIDBOX_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "wider_face"
    parser.add_argument("--data", type=Path, default=real, help="folder in WIDER FACE's official layout")
    parser.add_argument("--width", type=int, default=736)
    parser.add_argument("--height", type=int, default=416)
    parser.add_argument("--longest-side", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    source = arguments.data
    size = {"width": arguments.width, "height": arguments.height}
    drawn = Path(tempfile.mkdtemp())
    try:
        if not source.is_dir():
            print(f"{source} is absent: synthetic images are drawn")
            source = drawn / "set"
            synthesize(source, 180, 20, 1, 1024, 768)
        at_source = Conversion(resolution="source", longest_side=arguments.longest_side)
        kinds: dict[str, Callable[[Path], object]] = {
            "plain loop": lambda output: plain_loop(source, output, **size),
            "input size, PNG": partial(_convert, source, Conversion(**size)),
            "source resolution, JPEG": partial(_convert, source, at_source),
        }
        compare(source, kinds, arguments.rounds)
    finally:
        shutil.rmtree(drawn)


def _convert(source: Path, conversion: Conversion, output: Path) -> None:
    convert(source, output, conversion)


def compare(source: Path, kinds: dict[str, Callable[[Path], object]], rounds: int) -> None:
    """Measures all in turns and prints their rates and sizes, and how they compare with the first."""
    count = sum(len(WiderSource(source).images(split)) for split in ("training", "validation"))
    costs: dict[str, list[Cost]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, work in kinds.items():
            costs[name].append(cost(work))
    medians = {
        name: Cost(
            statistics.median(each.wall for each in found),
            statistics.median(each.processor for each in found),
            found[0].size,
        )
        for name, found in costs.items()
    }
    first = next(iter(medians.values()))
    print(f"{count} images, {available_cores()} cores, median of {rounds} rounds in turns")
    for name, median in medians.items():
        rates = ", ".join(f"{count / each.wall:.0f}" for each in costs[name])
        print(f"{name}: {count / median.wall:.1f} images/s (rounds: {rates})")
        print(f"  {1e3 * median.processor / count:.1f} ms of processors an image, {median.size / 1e6:.0f} MB")
        ratios = first.wall / median.wall, first.processor / median.processor, median.size / first.size
        print("  ratio to the loop: {:.2f} by the clock, {:.2f} by processors; {:.2f} of its size".format(*ratios))


if __name__ == "__main__":
    main()
