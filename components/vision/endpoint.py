"""A trained detector behind a Triton server: encoded images in, boxes in the images' own pixels out."""

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Coroutine, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from components.decode.description import operating_point
from components.step import StageError, UserError
from components.vision.endpoint_connection import Address, Connection, Protocol, RefusedError, Regions

INPUT = "input_image_data"
BOXES, SCORES, CLASSES, COUNT, SIZE = (
    "true_boxes",
    "true_proba",
    "true_class",
    "num_detections",
    "true_image_size",
)
CLASS_NAMES = "class_names"
# A request's parameter, and one of a model's configuration.
MIN_SCORE = "min_score"
# How a model of the ensemble begins the error of an image that it cannot work on; all others mean that it fails.
IMAGE_ERROR = "image: "
IN_FLIGHT = 4
_NOT_WANTED = -1
TIMEOUT_SECONDS = 60.0

Key = TypeVar("Key")
Result = TypeVar("Result")
Detections = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the endpoint says of one image.

    Attributes:
        detections: By class name, [K, 5] x1, y1, x2, y2 in the image's own pixels (upright) and score, best first.
        width: Width of the image, pixels, upright.
        height: Height of the image, pixels, upright.
        seconds: From sending the image to having the answer.
        error: Why there is none, in one line; empty when there is one.
    """

    detections: Detections = field(default_factory=dict)
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    error: str = ""


class Endpoint:
    """A detector behind a Triton server. Several images are on their way at once; use it as a context, or close it.

    Attributes:
        class_names: What it detects.
        network_size: Width and height of its network's input, pixels, if the ensemble or one of its steps says so.
        parameters: Those of the ensemble's configuration and of its steps', JSON; the ensemble's win.
        in_flight: Images that may be on their way at once.
    """

    def __init__(
        self,
        url: str,
        model: str,
        protocol: Protocol = "http",
        shared_memory: bool = False,
        timeout: float = TIMEOUT_SECONDS,
        in_flight: int = IN_FLIGHT,
        host: str = "",
        certificates: Path | None = None,
        min_score: float | None = None,
    ) -> None:
        """Connects, and reads what the model is.

        Args:
            url: `host:port`, asked by `protocol`, or a URL of scheme http, https, grpc or grpcs.
            model: The ensemble.
            protocol: For a `url` without a scheme.
            shared_memory: Hand images over in shared memory, to a server on this machine.
            timeout: Seconds that an image may take.
            in_flight: Images that may be on their way at once.
            host: Name to ask for, where a gateway in front of several services needs it.
            certificates: PEM file of the authorities to trust in place of the system's, for https and grpcs.
            min_score: What scores less is not wanted; None leaves it to the server, which by default leaves out what
                scores less than the model's operating point.

        Raises:
            UserError: The client is not installed, nothing listens there, or the model is unknown or another kind.
            StageError: The server fails.
        """
        if in_flight < 1 or timeout <= 0:
            raise UserError(f"in_flight {in_flight}, timeout {timeout:g}: both have to be above 0")
        self._connection = Connection(Address.parse(url, protocol), host, certificates, timeout)
        self._model, self.in_flight, self._min_score = model, in_flight, min_score
        self._regions = Regions(self._connection) if shared_memory else None
        self.class_names: tuple[str, ...] = ()
        self.network_size: tuple[int, int] | None = None
        self.parameters: Mapping[str, Any] = {}
        try:
            _run(self._connection.open())
            self._understand(_run(self._configs()))
        except BaseException:
            self.close()
            raise

    def __str__(self) -> str:
        return f"{self._connection.address} {self._model}"

    async def _configs(self) -> list[dict[str, Any]]:
        """Returns the configurations of the ensemble and of its steps."""
        try:
            ensemble = await self._connection.model_config(self._model)
            steps = ensemble.get("ensemble_scheduling", {}).get("step", [])
            return [ensemble, *[await self._connection.model_config(step["model_name"]) for step in steps]]
        except RefusedError as error:
            raise UserError(f"{self}: {error}; `gridbox serve` prints the models it serves") from error

    def _understand(self, configs: Sequence[Mapping[str, Any]]) -> None:
        inputs, outputs = ([tensor["name"] for tensor in configs[0].get(side, [])] for side in ("input", "output"))
        missing = [name for name in (BOXES, SCORES, COUNT, SIZE) if name not in outputs]
        if inputs != [INPUT] or missing:
            raise UserError(
                f"{self}: this model takes {', '.join(inputs)} and gives {', '.join(outputs)}; a detector takes "
                f"{INPUT} and gives {BOXES}, {SCORES}, {COUNT} and {SIZE}: name the ensemble"
            )
        named = [dict(config.get("parameters", {})) for config in reversed(configs)]
        self.parameters = {name: _value(value["string_value"]) for config in named for name, value in config.items()}
        names = self.parameters.get(CLASS_NAMES)
        if not names or not isinstance(names, list):
            raise UserError(
                f"{self}: its configuration has no parameter {CLASS_NAMES}, a JSON list; make the repository again"
            )
        self.class_names = tuple(str(name) for name in names)
        if len(self.class_names) > 1 and CLASSES not in outputs:
            raise UserError(f"{self}: {len(self.class_names)} classes, but no output {CLASSES}; make it again")
        size = self.parameters.get("input_spec", self.parameters.get("geometry"))
        if isinstance(size, dict):
            self.network_size = int(size["width"]), int(size["height"])
            return
        for tensor in (tensor for config in configs for tensor in config.get("input", [])):
            dims = [int(size) for size in tensor["dims"]]
            if len(dims) == 3 and dims[0] == 3 and min(dims) > 0:
                self.network_size = dims[2], dims[1]

    @property
    def shown_from(self) -> dict[str, float]:
        """By class, from which score on the server shows objects of itself; empty where it does not say it."""
        if MIN_SCORE in self.parameters:
            return dict.fromkeys(self.class_names, float(self.parameters[MIN_SCORE]))
        return operating_point(self.parameters)

    def detect(self, images: Sequence[bytes]) -> list[Detections]:
        """Detects in encoded images.

        Returns:
            For each image, by class name, [K, 5] x1, y1, x2, y2 in its own pixels (upright) and score, best first.

        Raises:
            StageError: The server fails, or cannot work on some of the images, which are counted and named by number.
        """
        answers = [answer for _, answer in self.stream(enumerate(images))]
        failed = [index for index, answer in enumerate(answers) if answer.error]
        if failed:
            raise StageError(
                f"{self}: no detections for {len(failed)} of {len(images)} images, first for the one of index "
                f"{failed[0]}: {answers[failed[0]].error}"
            )
        return [answer.detections for answer in answers]

    def stream(self, images: Iterable[tuple[Key, bytes]]) -> Generator[tuple[Key, Answer], None, None]:
        """Yields each image's key and answer in the order of the images, which are taken as they are needed.

        While the caller works on an answer, those of the next images are under way.

        Args:
            images: Keys, which are handed back, and encoded images.

        Raises:
            StageError: The server fails. An image it cannot work on has an answer with an `error` instead.
        """
        waiting: deque[tuple[Key, Future[Answer]]] = deque()
        try:
            for key, content in images:
                waiting.append((key, _submit(self._answer(content))))
                while len(waiting) >= self.in_flight:
                    yield waiting[0][0], waiting.popleft()[1].result()
            while waiting:
                yield waiting[0][0], waiting.popleft()[1].result()
        finally:
            for _, future in waiting:
                future.cancel()

    async def _answer(self, content: bytes) -> Answer:
        if not content:
            return Answer(error="the file is empty")  # Triton takes no tensor without elements
        begin = time.perf_counter()
        try:
            result = await self._infer(content)
        except RefusedError as error:
            _, image_error, reason = str(error).partition(IMAGE_ERROR)
            if not image_error:
                raise StageError(f"{self}: {error}") from error
            return Answer(error=reason, seconds=time.perf_counter() - begin)
        return self._read(result, time.perf_counter() - begin)

    @property
    def _asked(self) -> dict[str, float]:
        return {} if self._min_score is None else {MIN_SCORE: self._min_score}

    async def _infer(self, content: bytes) -> Any:  # noqa: ANN401 - an untyped client's result
        if self._regions is None:
            return await self._connection.infer(self._model, INPUT, content, asked=self._asked)
        region = await self._regions.take(len(content))
        region.write(content)
        try:
            result = await self._connection.infer(self._model, INPUT, content, region, self._asked)
        except RefusedError:
            self._regions.give_back(region)
            raise
        self._regions.give_back(region)
        return result

    def _read(self, result: Any, seconds: float) -> Answer:  # noqa: ANN401 - an untyped client's result
        try:
            count = int(result.as_numpy(COUNT).reshape(-1)[0])
            boxes = result.as_numpy(BOXES).reshape(-1, 4)[:count]
            scores = result.as_numpy(SCORES).reshape(-1, 1)[:count]
            height, width = (int(value) for value in result.as_numpy(SIZE).reshape(-1)[:2])
            classes = np.zeros(count, np.int64)
            if len(self.class_names) > 1:
                classes = result.as_numpy(CLASSES).reshape(-1)[:count]
            rows = np.concatenate([boxes, scores], axis=1).astype(np.float32, copy=False)
            if len(rows) != count or len(classes) != count:
                raise ValueError(f"{count} detections are announced, {len(rows)} boxes came")
        except (AttributeError, IndexError, ValueError) as error:
            raise StageError(f"{self}: an answer that makes no sense: {error}") from error
        if self._min_score is not None:  # servers of other models do not know the parameter
            classes = np.where(rows[:, 4] >= self._min_score, classes, _NOT_WANTED)
        found = {name: rows[classes == index] for index, name in enumerate(self.class_names)}
        return Answer(found, width, height, seconds)

    def close(self) -> None:
        """Closes the connections; a server that is stopped would wait for them."""
        if self._regions is not None:
            _run(self._regions.close())
        _run(self._connection.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _value(text: str) -> Any:  # noqa: ANN401 - JSON, or what a backend of Triton's own wants
    try:
        return json.loads(text)
    except ValueError:
        return text


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Returns the loop on which all endpoints of this process work: gRPC's asyncio wants to be on one only."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="endpoint", daemon=True).start()
    return loop


def _submit(work: Coroutine[Any, Any, Result]) -> Future[Result]:
    return asyncio.run_coroutine_threadsafe(work, _loop())


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    return _submit(work).result()
