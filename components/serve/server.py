"""A Triton server on this machine: started, watched, mended and stopped, and nothing of it is left behind."""

import ctypes
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from components.serve import watchdog, wheel
from components.serve.task import ensemble_of
from components.step import StageError, UserError

HOST = "127.0.0.1"
PORT_ATTEMPTS = 3
START_SECONDS = 120.0
# Triton says that it is ready before it binds the port of the metrics.
SETTLE_SECONDS = 0.2
POLL_SECONDS = 0.05
WATCH_SECONDS = 0.25
EXIT_SECONDS = 5
# Something else on the port may never answer; loading a model takes a while.
ANSWER_SECONDS, LOAD_SECONDS = 2.0, 60.0
# A model that always crashes is not started for ever.
MOST_REPAIRS, REPAIRS_SECONDS = 5, 60.0
TAIL_LINES = 60
# Freed memory that the C library keeps; larger blocks, those of images above ten megapixels, are not kept.
KEPT_BYTES = 32 * 2**20
_PORT_TROUBLE = re.compile(r"already in use|failed to start")
_PR_SET_PDEATHSIG = 1
_SHARED_MEMORY = Path("/dev/shm")
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the server listens; 0 is a free port."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    @classmethod
    def free(cls) -> "Ports":
        """Returns ports of which any will do."""
        return cls(0, 0, 0)


class LocalServer:
    """Triton with a model repository, on the loopback interface only. Use it as a context, or `start` and `stop` it.

    A model's process that dies is replaced (Triton alone would call the model ready and fail every request), and so is
    the server.

    Attributes:
        ports: Where it listens, once it has started.
        log: What it prints.
        repairs: What had to be mended since it started, in words.
    """

    def __init__(
        self, repository: Path, log: Path, ports: Ports | None = None, say: Callable[[str], None] | None = None
    ) -> None:
        """Takes what to serve; nothing is started yet.

        Args:
            repository: What Triton is given: a folder with a folder for each model. It is copied.
            log: File for the server's output; overwritten.
            ports: Where to listen; by default on free ports.
            say: Is told what had to be mended.
        """
        self.log, self.repairs = log, list[str]()
        self.ports = self._wanted = ports or Ports.free()
        self._repository, self._say = repository, say or (lambda _: None)
        self._id = f"gridbox-{uuid.uuid4().hex}"
        self._scratch = Path()
        self._command: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._stubs: dict[str, int] = {}
        self._repaired: deque[float] = deque(maxlen=MOST_REPAIRS)
        self._failure: Exception | None = None
        self._stopping, self._ended = threading.Event(), threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="triton", daemon=True)

    @property
    def ensemble(self) -> str:
        """The model that does everything; without one, what there is."""
        names = sorted(folder.name for folder in self._repository.iterdir() if folder.is_dir())
        return ", ".join([name for name in names if name.endswith(ensemble_of(""))] or names)

    @property
    def http_url(self) -> str:
        """Where it answers HTTP."""
        return f"http://{HOST}:{self.ports.http}"

    @property
    def grpc_url(self) -> str:
        """Where it answers gRPC."""
        return f"grpc://{HOST}:{self.ports.grpc}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus finds its metrics."""
        return f"http://{HOST}:{self.ports.metrics}/metrics"

    def start(self) -> None:
        """Starts the server and returns when all models are ready.

        Raises:
            UserError: The wheel is missing, or a port is taken.
            StageError: The server ends, or is not ready in time; the text has the end of its log.
        """
        program = wheel.server_program()
        self._scratch = Path(tempfile.mkdtemp(prefix="gridbox-serve-"))
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_bytes(b"")
        try:
            # Python would write its caches into the repository, which is an artifact.
            shutil.copytree(self._repository, self._scratch / "repository")
            backends = wheel.write_backends(self._scratch)
            self._command = [str(program), *self._flags(backends)]
            self._start_on_ports()
        except BaseException:
            self.stop()
            raise
        self._watcher.start()

    def wait(self) -> None:
        """Returns when the server is stopped.

        Raises:
            StageError: It failed and could not be mended.
        """
        self._ended.wait()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Ends the server and waits for it. Clients should be closed first: Triton waits for open connections."""
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join()
        self._end_process(signal.SIGTERM)
        if self._scratch != Path():
            shutil.rmtree(self._scratch, ignore_errors=True)
        self._ended.set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _flags(self, backends: Path) -> list[str]:
        return [
            f"--id={self._id}",
            f"--model-repository={self._scratch / 'repository'}",
            f"--backend-directory={backends}",
            "--disable-auto-complete-config",  # it would start every model twice
            "--model-control-mode=explicit",  # for reloading a model
            "--load-model=*",
            f"--backend-config=python,shm-region-prefix-name={self._id}_",
            "--allow-gpu-metrics=false",
            f"--exit-timeout-secs={EXIT_SECONDS}",
            *(f"--{service}-address={HOST}" for service in ("http", "grpc", "metrics")),
        ]

    def _start_on_ports(self) -> None:
        """Starts the server on the wanted ports; free ones may be taken by others before it binds them."""
        is_free = 0 in (self._wanted.http, self._wanted.grpc, self._wanted.metrics)
        for attempt in range(PORT_ATTEMPTS if is_free else 1):
            self.ports = _resolved(self._wanted)
            try:
                self._launch()
            except _PortTakenError:
                if attempt + 1 == PORT_ATTEMPTS or not is_free:
                    raise
            else:
                return

    def _launch(self) -> None:
        """Starts the server's process and waits until it is ready, this very one, on all its ports."""
        begin = self.log.stat().st_size
        ports = self.ports
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._command,
                    f"--http-port={ports.http}",
                    f"--grpc-port={ports.grpc}",
                    f"--metrics-port={ports.metrics}",
                ],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self._watchdog = subprocess.Popen(
            [sys.executable, "-I", "-S", watchdog.__file__, str(self._process.pid), f"{self._id}_"],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        give_up = time.monotonic() + START_SECONDS
        while not self._is_ready():
            self._check(begin, give_up)
            time.sleep(POLL_SECONDS)
        time.sleep(SETTLE_SECONDS)
        self._check(begin, give_up)
        self._stubs = _stubs(self._process.pid)

    def _check(self, begin: int, give_up: float) -> None:
        """Raises when the server that is being started has failed."""
        assert self._process is not None
        printed = self.log.read_bytes()[begin:].decode(errors="replace")
        ended = self._process.poll() is not None
        if trouble := _PORT_TROUBLE.search(printed):
            self._end_process(signal.SIGKILL)
            line = next(line for line in printed.splitlines() if trouble.group() in line)
            raise _PortTakenError(f"the server cannot listen: {line.strip()}")
        if ended or time.monotonic() > give_up:
            what = f"ended with exit code {self._process.returncode}" if ended else "is not ready"
            self._end_process(signal.SIGKILL)
            raise StageError(f"the Triton server {what}; the end of {self.log}:\n{_tail(printed)}")
        if self._stopping.is_set():
            raise StageError("the Triton server was stopped while it started")

    def _is_ready(self) -> bool:
        """Returns whether this server, and not another one on the same port, serves all its models."""
        try:
            if self._call("GET", "/v2/health/ready")[0] != 200:
                return False
            return bool(json.loads(self._call("GET", "/v2")[1])["name"] == self._id)
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return False

    def _call(self, method: str, path: str, seconds: float = ANSWER_SECONDS) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, self.ports.http, timeout=seconds)
        try:
            connection.request(method, path, "{}" if method == "POST" else None)
            give_up = time.monotonic() + seconds
            # The models' processes inherit the connection: it stays open when the server has died.
            while not select.select([connection.sock], [], [], POLL_SECONDS)[0]:
                if time.monotonic() > give_up or (self._process and self._process.poll() is not None):
                    raise TimeoutError(f"no answer from {self.http_url}")
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _watch(self) -> None:
        """Mends what breaks until the server is stopped, or cannot be mended."""
        while not self._stopping.wait(WATCH_SECONDS):
            try:
                self._mend()
            except Exception as error:
                if self._stopping.is_set():
                    return
                self._failure = error
                self._end_process(signal.SIGKILL)
                self._ended.set()
                return

    def _mend(self) -> None:
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            self._note(f"the server ended (exit code {code}); started again")
            self._restart()
            return
        if all(_is_alive(pid) for pid in self._stubs.values()):
            return
        alive = _stubs(self._process.pid)
        lost = self._stubs.keys() - alive.keys()
        try:
            for model in sorted({instance.rsplit("_", 2)[0] for instance in lost} & self._ready_models()):
                self._note(f"a process of {model} died; loaded the model again")
                self._reload(model)
            # What died meanwhile stays in it, and is found next time.
            self._stubs = alive | _stubs(self._process.pid)
        except (OSError, http.client.HTTPException):
            self._note("the server does not answer; started again")
            self._restart()

    def _reload(self, model: str) -> None:
        """Replaces a model's processes; requests to other models go on meanwhile.

        Raises:
            OSError: The server does not do it.
        """
        # Triton loads only what has changed.
        os.utime(self._scratch / "repository" / model / "config.pbtxt")
        status, said = self._call("POST", f"/v2/repository/models/{model}/load", LOAD_SECONDS)
        if status != 200:
            raise OSError(said.decode(errors="replace"))

    def _ready_models(self) -> set[str]:
        """Returns the models that should have processes: not those that were unloaded."""
        index = json.loads(self._call("POST", "/v2/repository/index", LOAD_SECONDS)[1])
        return {model["name"] for model in index if model.get("state") == "READY"}

    def _restart(self) -> None:
        self._end_process(signal.SIGKILL)
        self._launch()

    def _note(self, what: str) -> None:
        """Counts a repair.

        Raises:
            StageError: There were too many.
        """
        now = time.monotonic()
        if len(self._repaired) == MOST_REPAIRS and now - self._repaired[0] < REPAIRS_SECONDS:
            printed = self.log.read_text(encoding="utf-8", errors="replace")
            raise StageError(
                f"the Triton server keeps breaking ({MOST_REPAIRS} times within {REPAIRS_SECONDS:g} s); the end of "
                f"{self.log}:\n{_tail(printed)}"
            )
        self._repaired.append(now)
        self.repairs.append(what)
        self._say(what)

    def _end_process(self, signum: int) -> None:
        """Ends the server with its models' processes, and removes their shared memory."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signum)
        try:
            process.wait(3 * EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # The models' processes have the server's group.
            if _exists(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if self._watchdog is not None:
                self._watchdog.communicate()  # closes the pipe
        self._process = self._watchdog = None
        for region in _SHARED_MEMORY.glob(f"{self._id}_*"):
            region.unlink(missing_ok=True)


class _PortTakenError(UserError):
    """Another program listens there."""


def _resolved(ports: Ports) -> Ports:
    """Returns the ports with free ones in place of 0.

    Raises:
        UserError: A wanted port is taken.
    """
    sockets = []
    try:
        for service, port in (("http", ports.http), ("grpc", ports.grpc), ("metrics", ports.metrics)):
            probe = socket.socket()
            sockets.append(probe)
            # What a server leaves behind for a while after it has closed its connections does not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                raise _PortTakenError(
                    f"port {port} is taken ({error.strerror}); end who listens there, or give another --{service}-port"
                ) from error
        return Ports(*(probe.getsockname()[1] for probe in sockets))
    finally:
        for probe in sockets:
            probe.close()


def _environment() -> dict[str, str]:
    """Returns the server's whole environment: its models' Python is the first `python3` on PATH."""
    folder = wheel.libpython_folder()
    return {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", "/bin"]),
        "HOME": os.environ.get("HOME", "/"),
        "OMP_WAIT_POLICY": "PASSIVE",
        # Else each image's memory goes back to the kernel and is fetched again, page by page.
        "MALLOC_MMAP_THRESHOLD_": str(KEPT_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
        **({"LD_LIBRARY_PATH": str(folder)} if folder else {}),
    }


def _die_with_parent() -> None:
    """Runs in the new process: should this one be killed, the server ends, too."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _stubs(server: int) -> dict[str, int]:
    """Returns the models' live processes by the name of their instance, `<model>_<instance>_<number>`."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if _state(folder.name)[1] == str(server):
            arguments = _read(folder / "cmdline").split("\0")
            if arguments[0].endswith(f"/{wheel.STUB}") and _is_alive(int(folder.name)):
                found[arguments[-3]] = int(folder.name)
    return found


def _is_alive(pid: int) -> bool:
    return _state(str(pid))[0] not in "ZX"


def _state(pid: str) -> tuple[str, str]:
    """Returns a process's state and its parent; X when it has ended."""
    fields = _read(Path("/proc", pid, "stat")).rpartition(")")[2].split()
    return (fields[0], fields[1]) if fields else ("X", "")


def _exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _read(file: Path) -> str:
    """Returns a file of /proc; empty when its process has ended."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _tail(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines()[-TAIL_LINES:])
