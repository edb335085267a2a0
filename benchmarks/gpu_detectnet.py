"""What a GPU makes of the detector: training and inference of a ResNet-18 at 736x416.

Prints images per second of training with data (decode cache, augmentation on the device, targets) beside bare steps on
resident tensors, in float32, mixed precision and compiled, rounds of both alternating; then frames per second of
inference in float16 through CUDA graphs, beside the table of NVIDIA's model card; and, with `--data`, the average
precision of a training on real faces. Without a GPU it says so and measures nothing, unless `--smoke` is given, which
runs every line at a toy size on the CPU.
Run: python benchmarks/gpu_detectnet.py [--data DIR/wider_face --epochs 60] [--smoke]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain, count
from pathlib import Path

import torch
from training import AUGMENTATION, Rates, labelled_images

from components.decode.grid.encode import CoverageShape
from components.decode.grid.geometry import GridGeometry
from components.detectnet_v2.batches import BatchMaker
from components.detectnet_v2.network import GridNet, GridNetConfig
from components.vision.resnet import ResNetConfig

# Frames per second of the pruned INT8 model at 736x416, from the model card of NVIDIA's FaceDetect.
MODEL_CARD = {"Jetson Nano": 16, "Jetson Xavier NX": 329, "Jetson AGX Xavier": 537, "T4": 1703}
ROUNDS, SECONDS = 5, 3.0
VARIANTS = (("float32", False, False), ("mixed precision", True, False), ("mixed precision, compiled", True, True))


def training(device: torch.device, geometry: GridGeometry, width: float, batch_size: int, compile_too: bool) -> None:
    """Prints the rates of training with data and of bare steps."""
    with tempfile.TemporaryDirectory() as folder:
        data = labelled_images(Path(folder), geometry)
    maker = BatchMaker(data, geometry, (CoverageShape(),), 0.67, AUGMENTATION, 0.0, True, batch_size, 0, on_device=True)
    config = GridNetConfig(ResNetConfig.of_width(18, width), ("face",), geometry, {})
    for name, mixed_precision, compiled in VARIANTS[: 3 if compile_too else 2]:
        rates = Rates(config, batch_size, device, mixed_precision, compiled)
        batches = chain.from_iterable(maker.epoch(epoch) for epoch in count())
        resident = next(batches).to_tensors(device)
        rates.bare(resident)  # warms up, and compiles
        bare, full = [], []
        for _ in range(ROUNDS):
            bare.append(rates.bare(resident))
            full.append(rates.with_data(batches))
        share = statistics.median(one / other for one, other in zip(full, bare, strict=True))
        print(
            f"training, {name}: {statistics.median(full):.0f} images/s with data, {statistics.median(bare):.0f} bare, "
            f"share {share:.2f}"
        )


@torch.no_grad()
def inference(device: torch.device, geometry: GridGeometry, width: float, batch_size: int) -> float:
    """Returns frames per second of the network alone, float16 and CUDA graphs on a GPU."""
    config = GridNetConfig(ResNetConfig.of_width(18, width), ("face",), geometry, {})
    kind = torch.float16 if device.type == "cuda" else torch.float32
    network = GridNet(config).to(device, kind, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    images = torch.rand(batch_size, 3, geometry.height, geometry.width, device=device, dtype=kind)
    images = images.contiguous(memory_format=torch.channels_last)
    run = _graphed(network, images) if device.type == "cuda" else lambda: network(images)
    for _ in range(3):
        run()
    _wait(device)
    begin, frames = time.perf_counter(), 0
    while time.perf_counter() - begin < SECONDS:
        for _ in range(10):
            run()
        _wait(device)
        frames += 10 * batch_size
    return frames / (time.perf_counter() - begin)


def _graphed(network: GridNet, images: torch.Tensor) -> Callable[[], object]:
    """Records the network's kernels once; replaying them costs one launch."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            network(images)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        network(images)
    return graph.replay


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def real_faces(data: Path, epochs: int) -> None:
    """Trains and scores on real faces by the pipeline itself."""
    size = ["--set", "data_width=736", "--set", "data_height=416"]
    network = ["--set", "train_width=1.0", "--set", f"train_epochs={epochs}", "--set", "train_batch_size=16"]
    command = [Path(sys.executable).with_name("gridbox"), "run", "facedetect", "--data", data, "--profile", "cpu-real"]
    subprocess.run([*map(str, command), *size, *network], check=True)


def main() -> None:
    """Prints all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="WIDER FACE in its official layout, for the average precision")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--smoke", action="store_true", help="a toy size on the CPU: proves the script, not the engine")
    options = parser.parse_args()
    if not (torch.cuda.is_available() or options.smoke):
        print("no GPU here: nothing measured (--smoke runs the script at a toy size on the CPU)")
        return
    if torch.cuda.is_available():
        device, geometry, width, sizes = torch.device("cuda"), GridGeometry(736, 416), 1.0, (1, 32)
        print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, ResNet-18 at 736x416")
    else:
        device, geometry, width, sizes = torch.device("cpu"), GridGeometry(96, 64), 0.125, (1, 4)
        print("smoke test on the CPU, ResNet-18 of width 0.125 at 96x64")
    training(device, geometry, width, sizes[1], compile_too=device.type == "cuda")
    for batch_size in sizes:
        print(f"inference, batch {batch_size}: {inference(device, geometry, width, batch_size):.0f} frames/s")
    print("model card: " + ", ".join(f"{name} {rate}" for name, rate in MODEL_CARD.items()) + " frames/s")
    if options.data:
        real_faces(options.data, options.epochs)


if __name__ == "__main__":
    main()
