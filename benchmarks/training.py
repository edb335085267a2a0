"""Training with data (decode cache, augmentation, targets, transfer) against bare training steps on resident tensors.

Two loaders are measured: TAO's, on images of the input's size with TAO's network and losses; and the open engine's,
which crops images of 1024 pixels, with the network, losses and views of an experiment spec. Each and its bare steps run
the same network, loss, backward pass and optimiser step on the same shapes; rounds of all alternate within one run. The
bare steps choose their own best number of threads; training runs as `detectnet_v2 train` does. Last come the
milliseconds of processor time that each loader takes for an image, also for a crowd of 400 faces, and what the process
holds in memory beside the mapped images after the first and after the last round.
Run: python benchmarks/training.py [--width 0.25] [--size 480x272] [--rounds 5] [--spec facedetect-cpu/train]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, count, islice
from pathlib import Path

import cv2
import numpy as np
import torch
from google.protobuf import text_format

from components.decode.grid.encode import CoverageShape
from components.decode.grid.geometry import GridGeometry
from components.detectnet_v2 import experiment, sources, spec_pb2
from components.detectnet_v2.augment import AugmentSettings
from components.detectnet_v2.batches import Batch, BatchMaker, BatchTensors
from components.detectnet_v2.dataset import LabelledImages, LabelMapping
from components.detectnet_v2.losses import ClassCost, Objectives
from components.detectnet_v2.network import GridNet, GridNetConfig
from components.detectnet_v2.records import Frame
from components.tao.rendering import placeholders, render, template_text
from components.vision.distributed import Group
from components.vision.optimizer import Adam
from components.vision.resnet import ResNetConfig
from components.vision.task import Task
from components.vision.threads import available_cores
from components.vision.trainer import Trainer

IMAGES, BATCH, STEPS, FACES = 64, 8, 8, 6
SOURCE, SOURCE_FACES, CROWD = (1024, 683), 12, 400
_NEVER_WHOLE = 1_000_000  # epochs, of which this benchmark sees the first: all its views are small
CPU = torch.device("cpu")
AUGMENTATION = AugmentSettings(0.5, 0.7, 1.3, 12, 12, 0.0, 1.0, 0.1, 25, 0.2, 0.3, 0.5)


def labelled_images(folder: Path, geometry: GridGeometry) -> LabelledImages:
    """Writes random images with random faces and loads them as training does."""
    random = np.random.default_rng(0)
    frames, files = [], []
    for index in range(IMAGES):
        coarse = random.integers(0, 256, (geometry.height // 8, geometry.width // 8, 3), np.uint8)
        file = folder / f"{index}.png"
        cv2.imwrite(str(file), cv2.resize(coarse, (geometry.width, geometry.height)))
        corner = random.uniform((0, 0), (geometry.width * 0.8, geometry.height * 0.8), (FACES, 2))
        boxes = np.hstack([corner, corner + random.uniform(8, geometry.height * 0.5, (FACES, 1))]).astype(np.float32)
        frames.append(Frame(str(index), geometry.width, geometry.height, ["face"] * FACES, boxes))
        files.append(file)
    return LabelledImages(frames, files, LabelMapping({"face": 0}, frozenset()), geometry)


def source_images(folder: Path, spec: spec_pb2.Experiment, amount: int, faces: int) -> LabelledImages:
    """Writes random images of a photograph's size, most faces of them small, and loads them as the spec says."""
    random = np.random.default_rng(1)
    frames, files = [], []
    for index in range(amount):
        coarse = random.integers(0, 256, (SOURCE[1] // 8, SOURCE[0] // 8, 3), np.uint8)
        file = folder / f"{faces}-{index}.jpg"
        cv2.imwrite(str(file), cv2.resize(coarse, SOURCE))
        height = np.exp(random.uniform(np.log(10), np.log(250 if faces == SOURCE_FACES else 40), (faces, 1)))
        corner = random.uniform(0, 1, (faces, 2)) * (np.array(SOURCE) - height)
        boxes = np.hstack([corner, corner + height * (0.8, 1)]).astype(np.float32)
        frames.append(Frame(file.stem, *SOURCE, ["face"] * faces, boxes))
        files.append(file)
    mapping = sources.label_mapping(spec)
    return LabelledImages(frames, files, mapping, experiment.geometry(spec), sources.fitting(spec))


def experiment_spec(name: str, width: int, height: int) -> spec_pb2.Experiment:
    """Returns the spec of a template for an input of this size."""
    template = template_text(name)
    sized = {"image_width": width, "image_height": height, "batch_size": BATCH, "epochs": _NEVER_WHOLE, "seed": 0}
    return text_format.Parse(render(template, dict.fromkeys(placeholders(template), 1) | sized), spec_pb2.Experiment())


def memory() -> float:
    """Returns the megabytes that this process holds beside mapped files."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024


def endless(maker: BatchMaker) -> Iterator[Batch]:
    """Yields the batches of one epoch after the other."""
    return chain.from_iterable(maker.epoch(epoch) for epoch in count())


def cost(maker: BatchMaker) -> float:
    """Returns the milliseconds of processor time that an image takes to be made, without the training beside it."""
    plan = maker.order.own(0)
    begin = time.process_time()
    for step, numbers in enumerate(plan):
        maker.batch(0, step, numbers)
    return 1000 * (time.process_time() - begin) / plan.size


class Detection(Task[BatchTensors]):
    """A network and what a step needs of it."""

    def __init__(self, network: GridNet, objectives: Objectives) -> None:
        self.network = network
        self.optimizer = Adam(network.parameters(), 0.9, 0.999, 1e-8)
        self._weights = objectives

    def batches(self, epoch: int, first_step: int) -> Iterator[tuple[torch.Tensor, BatchTensors]]:
        """See `Task`; the rates are measured with batches of their own."""
        raise NotImplementedError

    def losses(self, outputs: tuple[torch.Tensor, torch.Tensor], targets: BatchTensors) -> torch.Tensor:
        """See `Task`."""
        return self._weights.costs(outputs, targets)

    def total(self, losses: torch.Tensor) -> torch.Tensor:
        """See `Task`."""
        return self._weights.total(losses)


class Rates:
    """A network with everything that a step needs, and how fast it trains."""

    def __init__(
        self,
        config: GridNetConfig,
        batch_size: int = BATCH,
        device: torch.device = CPU,
        mixed_precision: bool = False,
        compiled: bool = False,
        objectives: Objectives | None = None,
    ) -> None:
        torch.manual_seed(0)
        network = GridNet(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        taos = Objectives([ClassCost(1, 0.5, (1, 100), (1, 10))], False, 0.0001, 0.9999, device)
        task = Detection(network.train(), objectives or taos)
        self.trainer = Trainer(task, Group(), mixed_precision, compiled)
        self.device, self.images = device, STEPS * batch_size

    def with_data(self, batches: Iterator[Batch]) -> float:
        """Trains `STEPS` batches; returns images per second."""
        begin = time.perf_counter()
        for batch in islice(batches, STEPS):
            tensors = batch.to_tensors(self.device)
            loss = self.trainer.step(tensors.images, tensors, 1e-4)
        float(loss)  # a GPU has finished only when its result is there
        return self.images / (time.perf_counter() - begin)

    def bare(self, tensors: BatchTensors, threads: int = 0) -> float:
        """Repeats one step on resident tensors; returns images per second."""
        if threads:
            torch.set_num_threads(threads)
        begin = time.perf_counter()
        for _ in range(STEPS):
            loss = self.trainer.step(tensors.images, tensors, 1e-4)
        float(loss)
        return self.images / (time.perf_counter() - begin)


def main() -> None:
    """Prints both rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--size", default="480x272")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--spec", default="facedetect-cpu/train", help="a template, or the file of one")
    options = parser.parse_args()
    width, height = (int(edge) for edge in options.size.split("x"))
    name = Path(options.spec).read_text() if Path(options.spec).is_file() else options.spec
    spec, geometry = experiment_spec(name, width, height), GridGeometry(width, height)
    cores = available_cores()
    with tempfile.TemporaryDirectory() as folder:
        data = labelled_images(Path(folder), geometry)
        photographs = source_images(Path(folder), spec, IMAGES, SOURCE_FACES)
        crowds = source_images(Path(folder), spec, BATCH, CROWD)
    makers = {
        "TAO's loader": BatchMaker(data, geometry, (CoverageShape(),), 0.67, AUGMENTATION, 0.0, True, BATCH, 0),
        "crops": sources.batch_maker(spec, photographs),
    }
    streams = {kind: endless(maker) for kind, maker in makers.items()}
    backbone = ResNetConfig.of_width(10, options.width)
    rates = {
        "TAO's loader": Rates(GridNetConfig(backbone, ("face",), geometry, {})),
        "crops": Rates(experiment.network_config(spec, options.width), objectives=experiment.objectives(spec)),
    }
    resident = {kind: next(batches).to_tensors(CPU) for kind, batches in streams.items()}
    best = max(range(1, cores + 1), key=lambda threads: rates["crops"].bare(resident["crops"], threads))
    bare: dict[str, list[float]] = {kind: [] for kind in streams}
    full: dict[str, list[float]] = {kind: [] for kind in streams}
    held = []
    for _ in range(options.rounds):
        for kind, batches in streams.items():
            bare[kind].append(rates[kind].bare(resident[kind], best))
            torch.set_num_threads(cores)
            full[kind].append(rates[kind].with_data(batches))
        held.append(memory())
    print(f"ResNet-10 of width {options.width} at {options.size}, batch {BATCH}, {cores} cores, bare steps on {best}")
    for kind, wanted in (("TAO's loader", 0.85), ("crops", 0.9)):
        ratio = statistics.median(one / other for one, other in zip(full[kind], bare[kind], strict=True))
        height, width = resident[kind].images.shape[2:]
        print(
            f"{kind}, views of {width}x{height}: {statistics.median(full[kind]):.1f} images/s with data, "
            f"{statistics.median(bare[kind]):.1f} bare, ratio {ratio:.3f} (at least {wanted} wanted)"
        )
    crowd = sources.batch_maker(spec, crowds)
    for kind, maker in {**makers, f"crops of {CROWD} faces": crowd}.items():
        print(f"{kind}: {cost(maker):.2f} ms of processor time an image")
    print(f"memory: {held[0]:.0f} MB after the first round, {held[-1]:.0f} MB after the last")


if __name__ == "__main__":
    main()
