"""Which input size and which width of the network buy the most accuracy for the same training time?

Every configuration trains by the `cpu-real` profile and is scored on the original photographs: heights are pixels of
the original image, so that all configurations answer for the same faces.
Run: python benchmarks/long/input_sizes.py --data DIR/wider_face [--minutes 15] [320x192@0.25 480x272@0.25 …]
"""

import argparse
from pathlib import Path

from equal_time import Trial, detect, prepare

from components.measure.average_precision import Measured
from components.measure.matching import HeightBand

DEFAULT = ("320x192@0.25", "480x272@0.25", "640x368@0.25", "480x272@0.125", "480x272@0.5")
BANDS = tuple(HeightBand.parse(text) for text in ("0+", "40+", "20-40", "40-80", "80-160", "160+"))


def score(model: Path, raw: Path) -> dict[str, float]:
    """Returns average precision by height in pixels of the original photographs."""
    truth, found = detect(model, raw, stored_pixels=True)
    (matcher,) = Measured.of("", truth, found.predictions).matchers.values()
    return {band.name: matcher.match(band).curve().average_precision() for band in BANDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configurations", nargs="*", default=DEFAULT, help="WIDTHxHEIGHT@CHANNELS")
    parser.add_argument("--data", type=Path, required=True, help="WIDER FACE in its official layout")
    parser.add_argument("--minutes", type=float, default=15, help="processor time of each training")
    parser.add_argument("--folder", type=Path, default=Path("runs/input-sizes"), help="where everything is kept")
    options = parser.parse_args()
    data = prepare(options.data, options.folder / "data")
    print(f"{'configuration':<14} {'epochs':>6} {'CPU min':>8}  AP by height: " + "  ".join(b.name for b in BANDS))
    for text in options.configurations:
        size, _, channels = text.partition("@")
        width, height = map(int, size.split("x"))
        trial = Trial(data, options.folder / text, options.minutes, (width, height), float(channels))
        figures = trial.run()
        values = "  ".join(f"{value:.3f}" for value in score(trial.model, options.data).values())
        print(f"{text:<14} {figures['epochs']:>6} {figures['seconds'] / 60:>8.1f}  {values}", flush=True)


if __name__ == "__main__":
    main()
