"""Encoded images through the Triton server against the same code from the model repository in one process.

Both get JPEG bytes and give boxes in the images' own pixels; client, encoding and decoding of messages included. The
one process tries both ways to use two cores (one network on two threads, two on one each); the better of them counts,
for each number of clients. They take turns within one run, some images each. Networks are untrained: only their speed
counts, and the coverage threshold lets as many cells through as a trained network does in a picture with some faces.
The load average is printed because neighbours on the machine cost speed.
Run: python benchmarks/serving.py [--network cpu|resnet18] [--clients N] [--rounds 5] [--images 48] [--protocol http]
Soak: python benchmarks/serving.py --minutes 10   (16 clients; errors, and memory of the server and its models)
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before any library starts its threads, as the server does

import argparse
import asyncio
import contextlib
import importlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import psutil
import torch

from components.decode.decoder import load_decoder
from components.decode.grid.clustering import Clustering
from components.decode.grid.decoder import COVERAGE, INPUT
from components.decode.grid.geometry import GridGeometry
from components.detectnet_v2.deepstream import TensorNames
from components.detectnet_v2.export import export_onnx
from components.detectnet_v2.network import GridNet, GridNetConfig
from components.formats.images import decode
from components.serve.local import local_settings
from components.serve.repository import REPOSITORY, build_repository
from components.serve.server import LocalServer
from components.serve.wheel import STUB
from components.step import read_manifest, write_manifest
from components.vision.inputs import InputSpec
from components.vision.network import count_parameters
from components.vision.predictor import load_predictor
from components.vision.resnet import ResNetConfig

CLIENTS = (1, 4, 16)
CORES = 2
# Images of a client before it is another side's turn; few, for the speed of a shared machine drifts.
TURN = 6
PICTURES, SIZE = 16, (1024, 683)
# As a trained network answers a picture with some faces: this many cells, with boxes of this size that agree.
CANDIDATES, EDGE = 60, 24.0
SETTLED_MINUTES = 3.0
GROWTH = 1.05
CLASS = "face"

Ask = Callable[[bytes], Awaitable[int]]


@dataclass(frozen=True)
class Network:
    """A network to serve, and the bounds: least share of throughput, most milliseconds of p50 added."""

    depth: int
    width: float
    geometry: GridGeometry
    share: float
    milliseconds: float


NETWORKS = {
    "cpu": Network(10, 0.25, GridGeometry(480, 272), 0.70, 6.0),
    "resnet18": Network(18, 1.0, GridGeometry(736, 416), 0.90, 8.0),
}


def pictures() -> list[bytes]:
    """Returns JPEG files of a camera's size, some 150 kB each."""
    random = np.random.default_rng(0)
    encoded = []
    for _ in range(PICTURES):
        coarse = random.integers(0, 256, (SIZE[1] // 24, SIZE[0] // 24, 3), np.uint8)
        image = cv2.resize(coarse, SIZE, interpolation=cv2.INTER_CUBIC).astype(np.int16)
        image = np.clip(image + random.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
        encoded.append(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
    return encoded


def export(folder: Path, network: Network, images: Sequence[bytes]) -> Path:
    """Writes an exported-model artifact whose threshold lets `CANDIDATES` cells of a picture through."""
    torch.manual_seed(0)
    backbone = ResNetConfig.of_width(network.depth, network.width)
    config = GridNetConfig(backbone, (CLASS,), network.geometry, {CLASS: Clustering()})
    model = GridNet(config)
    with torch.no_grad():
        model.output_bbox.get_parameter("bias").fill_(EDGE / network.geometry.scale)
    folder.mkdir()
    export_onnx(model, folder / "model.onnx")
    (folder / "labels.txt").write_text(f"{CLASS}\n")
    settings = {
        "class_names": [CLASS],
        "input": asdict(model.input),
        "decoder": model.decoder.settings(),
        "parameters": count_parameters(model),
        "tensors": asdict(TensorNames.of_tao()),
    }
    write_manifest(folder, "exported_model", {}, settings)
    inputs = np.stack([model.input.place(decode(content))[0] for content in images])
    coverage = load_predictor(folder)(inputs)[COVERAGE]
    threshold = float(np.sort(coverage.reshape(len(images), -1))[:, -CANDIDATES].mean())
    clustering = replace(config.clustering[CLASS], coverage_threshold=threshold, dbscan_eps=0.5, dbscan_min_samples=0)
    settings["decoder"] = replace(model.decoder, clustering={CLASS: clustering}).settings()
    write_manifest(folder, "exported_model", {}, settings)
    return folder


class InProcess:
    """The detector in this process: `workers` networks, each on `threads` threads."""

    def __init__(self, exported: Path, workers: int, threads: int) -> None:
        """Loads the network."""
        settings = read_manifest(exported, "exported_model")["settings"]
        self._input, self._decoder = InputSpec.from_json(settings["input"]), load_decoder(settings)
        self._pool = ThreadPoolExecutor(workers)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(exported / "model.onnx", options)

    async def ask(self, content: bytes) -> int:
        """Returns how many faces are found."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._detect, content)

    def _detect(self, content: bytes) -> int:
        pixels, placement = self._input.place(decode(content))
        names = self._decoder.tensors
        outputs = self._session.run(list(names), {INPUT: self._input.prepare([pixels])})
        return len(self._decoder(dict(zip(names, outputs, strict=True)))[0].to_source(placement))


class Served:
    """The detector behind Triton, asked by one asyncio client."""

    def __init__(self, protocol: str, url: str) -> None:
        """Connects; to be made where the loop runs."""
        self._module = importlib.import_module(f"tritonclient.{protocol}.aio")
        self._client = self._module.InferenceServerClient(url)

    async def ask(self, content: bytes) -> int:
        """Returns how many faces are found."""
        tensor = self._module.InferInput("input_image_data", [1, len(content)], "UINT8")
        tensor.set_data_from_numpy(np.frombuffer(content, np.uint8)[None])
        answer = await self._client.infer("facenet_ensemble", [tensor])
        count = int(answer.as_numpy("num_detections").reshape(-1)[0])
        return len(answer.as_numpy("true_boxes").reshape(-1, 4)[:count])

    async def close(self) -> None:
        """Closes the connection."""
        await self._client.close()


async def drive(ask: Ask, contents: Iterator[bytes], clients: int) -> tuple[list[float], float]:
    """Lets `clients` ask for the contents one after the other; returns the seconds of each, and of all."""
    seconds: list[float] = []

    async def client() -> None:
        for content in contents:
            begin = time.perf_counter()
            await ask(content)
            seconds.append(time.perf_counter() - begin)

    begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return seconds, time.perf_counter() - begin


@dataclass
class Times:
    """What one side took for one number of clients: seconds of each image, and images per second of each round."""

    latencies: list[float]
    rates: list[float]

    @property
    def p50(self) -> float:
        """Median of all images, milliseconds."""
        return statistics.median(self.latencies) * 1e3

    @property
    def rate(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.rates)


async def compare(
    sides: dict[str, Ask], images: Sequence[bytes], numbers: Sequence[int], rounds: int, count: int
) -> dict[tuple[str, int], Times]:
    """Lets all sides take short turns, of `count` images together in each round of each number of clients."""
    times = {(name, clients): Times([], []) for name in sides for clients in numbers}
    for ask in sides.values():
        await drive(ask, iter(images), 2)  # the first images make room in memory
    for round_, clients in itertools.product(range(rounds), numbers):
        length = min(count, TURN * clients)
        for turn, begin in enumerate(range(0, count, length), start=round_):
            for name, ask in list(sides.items())[:: 1 if turn % 2 else -1]:
                contents = itertools.islice(itertools.cycle(images), begin, begin + length)
                latencies, seconds = await drive(ask, contents, clients)
                times[name, clients].latencies += latencies
                times[name, clients].rates.append(length / seconds)
    return times


def report(network: Network, times: dict[tuple[str, int], Times]) -> None:
    print(f"ResNet-{network.depth}, width {network.width:g}, {network.geometry.width}x{network.geometry.height}")
    names = sorted({name for name, _ in times} - {"served"})
    for clients in sorted({clients for _, clients in times}):
        served = times["served", clients]
        rate, best = max((times[name, clients].rate, name) for name in names)
        p50 = min(times[name, clients].p50 for name in names)
        share, more = served.rate / rate, served.p50 - p50
        verdict = f"{'within' if share >= network.share else 'MISSES'} {network.share:.2f}"
        # With several clients an image waits for the others: then p50 says what throughput says.
        late = f" ({'within' if more <= network.milliseconds else 'MISSES'} {network.milliseconds:+.0f})"
        print(
            f"{clients:3} clients: served {served.rate:6.1f}/s, p50 {served.p50:6.1f} ms; here {rate:6.1f}/s ({best}), "
            f"p50 {p50:6.1f} ms; share {share:.2f} ({verdict}), {more:+6.1f} ms{late if clients == 1 else ''}"
        )


async def benchmark(
    network: Network, exported: Path, images: Sequence[bytes], options: argparse.Namespace, url: str
) -> None:
    served = Served(options.protocol, url)
    try:
        sides: dict[str, Ask] = {
            "served": served.ask,
            f"1 x {CORES} threads": InProcess(exported, 1, CORES).ask,
            f"{CORES} x 1 thread": InProcess(exported, CORES, 1).ask,
        }
        found = {name: [await ask(content) for content in images] for name, ask in sides.items()}
        if len({tuple(counts) for counts in found.values()}) > 1:
            raise SystemExit(f"the sides find different numbers of faces: {found}")
        print(f"{statistics.mean(found['served']):.1f} detections an image, load average {os.getloadavg()[0]:.1f}")
        report(network, await compare(sides, images, options.clients or CLIENTS, options.rounds, options.images))
    finally:
        await served.close()


async def soak(
    images: Sequence[bytes], options: argparse.Namespace, url: str, memory: Callable[[], dict[str, int]]
) -> None:
    """Keeps 16 clients asking, and watches the server's memory; another answer than the first one is an error.

    Raises:
        SystemExit: There were errors, or the memory has grown.
    """
    served, errors, done = Served(options.protocol, url), 0, 0
    begin, end = time.monotonic(), time.monotonic() + 60 * options.minutes
    settled = 0
    wanted = [await served.ask(content) for content in images]

    async def client() -> None:
        nonlocal errors, done
        for content, faces in itertools.cycle(zip(images, wanted, strict=True)):
            if time.monotonic() > end:
                return
            try:
                if (found := await served.ask(content)) != faces:
                    raise ValueError(f"{found} faces, at first {faces}")
                done += 1
            except Exception as error:
                errors += 1
                print(f"error: {error}", flush=True)
                await asyncio.sleep(0.1)

    clients = [asyncio.create_task(client()) for _ in range(CLIENTS[-1])]
    try:
        while (minutes := (time.monotonic() - begin) / 60) < options.minutes:
            now = memory()
            if minutes >= SETTLED_MINUTES and not settled:
                settled = sum(now.values())
            parts = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in sorted(now.items()))
            total = sum(now.values()) / 1e6
            print(f"{minutes:5.1f} min: {done} images, {errors} errors, {total:.0f} MB: {parts}", flush=True)
            await asyncio.sleep(min(15, 60 * options.minutes))
        last = sum(memory().values())
        await asyncio.gather(*clients)
    finally:
        await served.close()
    growth = last / settled if settled else 1.0
    verdict = "within" if growth <= GROWTH else "MISSES"
    print(f"{done} images, {errors} errors; memory {growth:.3f} of minute {SETTLED_MINUTES:g} ({verdict} {GROWTH})")
    if errors or growth > GROWTH:
        raise SystemExit(1)


@contextlib.contextmanager
def server(exported: Path, folder: Path) -> Iterator[LocalServer]:
    """Serves a model as `gridbox serve` does."""
    build_repository(exported, folder / "repository", local_settings())
    with LocalServer(folder / "repository" / REPOSITORY, folder / "server.log") as running:
        yield running


def resident(running: LocalServer) -> dict[str, int]:
    """Returns the memory of the server and of its models' processes, bytes, shared memory counted in each."""
    memory: dict[str, int] = {}
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            arguments = child.cmdline()
            program = Path(arguments[0]).name
            # A model's process is called as its model, its group and its number: facenet_0_0.
            name = {"tritonserver": "server", STUB: arguments[-2]}.get(program, "watchdog")
            memory[name] = child.memory_info().rss
    if running.repairs:
        raise SystemExit(f"the server had to be mended: {running.repairs}")
    return memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(NETWORKS), action="append")
    parser.add_argument("--protocol", choices=("grpc", "http"), default="grpc")
    parser.add_argument("--clients", type=int, action="append", help=f"by default {CLIENTS}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--minutes", type=float, default=0.0, help="soak for so long in place of comparing")
    options = parser.parse_args()
    images = pictures()
    for name in options.network or sorted(NETWORKS):
        with tempfile.TemporaryDirectory() as scratch:
            exported = export(Path(scratch, "exported"), NETWORKS[name], images)
            with server(exported, Path(scratch)) as running:
                url = f"127.0.0.1:{running.ports.grpc if options.protocol == 'grpc' else running.ports.http}"
                if options.minutes:
                    asyncio.run(soak(images, options, url, partial(resident, running)))
                else:
                    asyncio.run(benchmark(NETWORKS[name], exported, images, options, url))


if __name__ == "__main__":
    main()
