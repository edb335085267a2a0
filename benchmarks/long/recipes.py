"""What each part of the open engine's recipe brings, in trainings of equal processor time.

Each row is the `cpu-real` profile with one part changed, trained with two seeds. Heights are pixels of the network's
input, 480x272; the interval is that of the difference to the whole recipe over faces of at least 20 pixels (95 %,
bootstrap over the images, the same seed, then the mean of both seeds' limits).
Run: python benchmarks/long/recipes.py --data DIR/wider_face [--minutes 5] [--teacher MODEL] [recipe "stride 16" …]
"""

import argparse
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

from equal_time import Trial, detect, prepare

from components.measure.average_precision import Measured
from components.measure.matching import HeightBand
from components.measure.uncertainty import CurveOutcomes, paired_difference

BANDS = tuple(HeightBand.parse(text) for text in ("0+", "20+", "40+"))
SEEDS = (42, 43)
WHOLE = "recipe"
_TAO_SPACE = (
    "  spatial_augmentation { hflip_probability: 0.5 zoom_min: 0.7 zoom_max: 1.25 translate_max_x: 12 "
    "translate_max_y: 12 }\n  color_augmentation {"
)
_CROP = "  random_crop {"
_BALANCE = "  object_balance: 0.5\n"
_TAO_LOSSES = {
    "  coverage_loss: QUALITY_FOCAL\n": "",
    _BALANCE: "",
    "  box_loss: GIOU\n": "",
    'name: "bbox" initial_weight: 1.0': 'name: "bbox" initial_weight: 150.0',
}
_TAO_RATE = {
    "cosine_annealing_schedule": "soft_start_annealing_schedule",
    "warm_up: 0.02": "soft_start: 0.05 annealing: 0.5",
}
_WHOLE_ELLIPSE = {"cov_radius_x: 0.5 cov_radius_y: 0.5": "cov_radius_x: 1.0 cov_radius_y: 1.0"}
_FINE = {"  grid_stride: 8\n": ""}
_LARGE_BATCHES = {"batch_size_per_gpu: 8": "batch_size_per_gpu: 20", "rate: 0.006": "rate: 0.012"}


def variants(text: str, teacher: Path | None) -> dict[str, Mapping[str, str]]:
    """Returns by name what becomes of the spec `text`."""
    crops = text[text.index(_CROP) : text.index("  }\n", text.index(_CROP)) + 4]
    share, epochs, ema = (_line(text, name) for name in ("view_share", "view_epochs", "ema_decay"))
    without_crops = {crops: "", "  color_augmentation {": _TAO_SPACE}
    tao_rate = {ema: "", **_TAO_RATE}
    found: dict[str, Mapping[str, str]] = {
        WHOLE: {},
        "views of the whole input": {share: "", epochs: ""},
        "small views to the end": {epochs: ""},
        "batches of 20": _LARGE_BATCHES,
        "ellipses of the whole box": _WHOLE_ELLIPSE,
        "no balance of objects": {_BALANCE: ""},
        "TAO's losses": _TAO_LOSSES,
        "TAO's augmentation": without_crops,
        "TAO's schedule, no average": tao_rate,
        "stride 16": _FINE,
        "with mosaics": {share: share + "    mosaic_probability: 0.3\n"},
        "with pasted faces": {share: share + "    copy_paste_probability: 0.3\n"},
        "TAO's recipe": {**without_crops, **_TAO_LOSSES, **_WHOLE_ELLIPSE, **_FINE, **tao_rate},
    }
    if teacher:
        found["with a teacher"] = {ema: f'{ema}  teacher {{ model_file: "{teacher.resolve()}" weight: 0.5 }}\n'}
    return found


def _line(text: str, name: str) -> str:
    return next(line for line in text.splitlines(keepends=True) if name in line)


def outcomes(model: Path, raw: Path) -> dict[str, CurveOutcomes]:
    """Returns by height what each image contributed."""
    truth, found = detect(model, raw, stored_pixels=False)
    assert found.placements
    truth = truth.placed(found.placements.scales, found.placements.offsets)
    (matcher,) = Measured.of("", truth, found.predictions).matchers.values()
    return {band.name: CurveOutcomes.of(matcher, matcher.match(band)) for band in BANDS}


def main() -> None:
    from components.tao.rendering import template_text
    from pipeline.catalogue import definition

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", help="rows; all of them if left out")
    parser.add_argument("--data", type=Path, required=True, help="WIDER FACE in its official layout")
    parser.add_argument("--minutes", type=float, default=5, help="processor time of each training")
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time, each on one thread")
    parser.add_argument("--teacher", type=Path, help="a trained model of the same grid (.safetensors)")
    parser.add_argument("--folder", type=Path, default=Path("runs/recipes"), help="where everything is kept")
    options = parser.parse_args()
    data = prepare(options.data, options.folder / "data")
    values = definition("facedetect").profile_values("cpu-real")
    rows = variants(template_text(values["train_spec"]), options.teacher)
    names = [WHOLE, *(each for each in options.variants or rows if each != WHOLE)]

    def trained(name: str) -> tuple[dict[int, dict[str, CurveOutcomes]], float, float]:
        found, seconds, epochs = {}, [], 0
        for seed in SEEDS:
            trial = Trial(data, options.folder / f"{name}-{seed}", options.minutes, seed=seed, changes=rows[name])
            figures = trial.run(epochs)
            epochs = int(figures["epochs"])
            seconds.append(figures["seconds"])
            found[seed] = outcomes(trial.model, options.data)
        return found, epochs, fmean(seconds)

    print(f"{'':<28} {'epochs':>6} {'CPU min':>8}  AP: " + "    ".join(b.name for b in BANDS) + "    20+ to the recipe")
    whole: dict[int, CurveOutcomes] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for name, (found, epochs, seconds) in zip(names, pool.map(trained, names), strict=True):
            columns = " ".join(f"{fmean(each[band.name].value() for each in found.values()):>7.3f}" for band in BANDS)
            whole = whole or {seed: each["20+"] for seed, each in found.items()}
            pairs = [paired_difference(found[seed]["20+"], whole[seed]).interval for seed in SEEDS]
            low, value, high = (fmean(getattr(pair, edge) for pair in pairs) for edge in ("low", "value", "high"))
            change = "" if name == WHOLE else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
            print(f"{name:<28} {epochs:>6} {seconds / 60:>8.1f}  {columns}    {change}", flush=True)


if __name__ == "__main__":
    main()
