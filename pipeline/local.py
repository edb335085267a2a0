"""Runs a compiled pipeline on this machine: every container component as plain processes, with a cache and resume.

`kfp.local` executes the pipeline and resolves its placeholders; it knows no way to run a container component without
Docker. Three of its module attributes are replaced while it runs. They are public but undocumented, so this works with
exactly one version of kfp, and a test fails loudly on any other.
"""

import contextlib
import fcntl
import importlib
import io
import json
import os
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from components.step import MANIFEST, UserError, foreign_entry, write_executor_output
from components.tao.workplace import STAGE_DIR
from components.vision.threads import available_cores
from pipeline import processes
from pipeline.cache import CODE, Key, Store, outputs_of, stage_key
from pipeline.catalogue import definition
from pipeline.compiled import CompiledPipeline, load
from pipeline.images import Images
from pipeline.progress import Progress, current_note
from pipeline.serving import RunServer

KFP_VERSION = "2.17.0"
# In a run's folder: what the stages print, and the server of a stage that deploys to this machine.
LOGS = "logs"
SERVER_LOG = "triton.log"
# In a run's folder: what runs, and with which values.
PIPELINE_FILE = "pipeline.yaml"
ARGUMENTS_FILE = "arguments.json"
# Names, one a line, what the run has made there; the rest is not the runner's to remove.
MADE_FILE, LOCK_FILE = ".made", ".lock"
STAGES_FOLDER, WORKSPACE_FOLDER = ".stages", ".workspace"
LOCK_SECONDS = 3.0
FAILURE_LINES = 20


class StageFailure(Exception):
    """A stage has failed; `code` is its exit code, the text says where its log lies."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class RunSettings:
    """How and where to run.

    Attributes:
        runs: The folder of all runs, with the cache in `.cache`.
        name: This run's name; its results go to `<runs>/<name>`.
        resume: Go on where an interrupted run of this name stopped.
        programs: A folder to be searched for programs first; tests put stand-ins there.
        has_double: Whether a double stands in for NVIDIA's program.
        images: What the images are called whose programs are installed here.
        code: The folder of the installed `components`.
        console: Where progress is shown.
    """

    runs: Path
    name: str
    resume: bool = False
    programs: Path | None = None
    has_double: bool = False
    images: Images = field(default_factory=Images)
    code: Path = CODE
    # Bound to the present stdout: kfp.local's output is silenced by redirecting `sys.stdout`.
    console: Console = field(default_factory=lambda: Console(file=sys.stdout))

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.runs / self.name


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Holds a run's lock and gives its descriptor; the lock frees itself when all its holders have ended.

    Raises:
        UserError: Another process writes to this run, or the folder is no run's.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / LOCK_FILE).is_file():
        raise UserError(f"{folder}: holds files that no run made; give --name another")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("w") as file:
        give_up = time.monotonic() + LOCK_SECONDS  # a killed runner's stages take a moment to end
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise UserError(f"{folder}: another gridbox is writing to this run; give --name another") from None
                time.sleep(0.1)
        yield file.fileno()


def run_pipeline(
    pipeline: Path, arguments: Mapping[str, Any], settings: RunSettings, lock: int, server: RunServer
) -> None:
    """Runs a compiled pipeline to its end.

    Args:
        pipeline: The compiled file.
        arguments: Values of pipeline parameters that differ from the file's defaults.
        settings: How and where to run; the caller holds the run's lock.
        lock: The lock's descriptor.
        server: Serves what a stage deploys to this machine.

    Raises:
        UserError: The file cannot run here.
        StageFailure: A stage has failed.
    """
    compiled = load(pipeline, settings.has_double, settings.images)
    _clear(settings)
    with Progress(list(compiled.stages.values()), settings.console) as progress:
        stages = Stages(compiled, settings, progress, lock, server)
        _walk(compiled, arguments, stages)
    _name_results(settings.folder, compiled)


def _clear(settings: RunSettings) -> None:
    """Removes what an earlier run of this name left; its finished stages are in the cache.

    Raises:
        UserError: Something lies there that no run made.
    """
    if found := _foreign(settings.folder):
        raise UserError(f"{found}: no run made this, and a new run would remove it; move it, or give --name another")
    keep = {LOCK_FILE, PIPELINE_FILE, ARGUMENTS_FILE, *([STAGES_FOLDER] if settings.resume else [])}
    # Their names last: a kill in between must not leave the rest without.
    for entry in sorted(settings.folder.iterdir(), key=lambda entry: entry.name == MADE_FILE):
        if entry.name in keep:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _foreign(folder: Path) -> Path | None:
    """Returns something in a run's folder that no run made, if there is any."""
    made = {LOCK_FILE, PIPELINE_FILE, ARGUMENTS_FILE, MADE_FILE, STAGES_FOLDER, WORKSPACE_FOLDER}
    if (folder / MADE_FILE).is_file():
        made.update((folder / MADE_FILE).read_text(encoding="utf-8").splitlines())
    waiting = list(folder.iterdir())
    for path in waiting:
        if path.relative_to(folder).as_posix() in made:
            if (path / MANIFEST).is_file() and (found := foreign_entry(path)):
                return path / found
        elif path.is_dir() and not path.is_symlink():
            waiting += path.iterdir()
        else:
            return path
    return None


def _note_made(folder: Path, *paths: Path) -> None:
    with (folder / MADE_FILE).open("a", encoding="utf-8") as file:
        file.writelines(f"{path.relative_to(folder).as_posix()}\n" for path in paths)


def _walk(compiled: CompiledPipeline, arguments: Mapping[str, Any], stages: "Stages") -> None:
    """Lets kfp.local execute the pipeline, without its output."""
    import kfp
    from kfp import components, local

    if kfp.__version__ != KFP_VERSION:
        raise UserError(f"kfp {kfp.__version__} is installed; running here needs exactly {KFP_VERSION}")
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(stages.settings.folder.absolute()),
        workspace_root=str((stages.settings.folder / WORKSPACE_FOLDER).absolute()),
        raise_on_error=True,
    )
    walk = components.load_component_from_file(str(compiled.path))
    spec = walk.component_spec.implementation.graph
    for component in (spec.root, *spec.components.values()):
        for task in component.dag.tasks.values():
            # Further attempts are for nodes that go away; here they would only wait minutes to fail again.
            task.ClearField("retry_policy")
    try:
        with _replaced(stages), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # of settings that mean nothing here: resources, display names
            walk(**arguments)
    except RuntimeError:
        if stages.failure is None:
            raise
    if stages.failure is not None:
        raise stages.failure


@contextlib.contextmanager
def _replaced(stages: "Stages") -> Iterator[None]:
    """Replaces the three attributes of kfp.local that make container components run as processes here."""
    from kfp.local import executor_input_utils, executor_output_utils, status, subprocess_task_handler

    original_handler = subprocess_task_handler.SubprocessTaskHandler
    original_input = executor_input_utils.construct_executor_input
    original_outputs = executor_output_utils.get_outputs_for_task

    class StageHandler(original_handler):  # type: ignore[misc, valid-type]
        def validate_image(self, image: str) -> None:
            """`pipeline.compiled` has judged the images."""

        def validate_not_container_component(self, full_command: list[str]) -> None:
            """They are what runs here."""

        def run(self) -> Any:  # noqa: ANN401 - kfp ships no types
            succeeded = stages.run(list(self.full_command), dict(self.env_vars))
            return status.Status.SUCCESS if succeeded else status.Status.FAILURE

    def construct_executor_input(
        component_spec: object, arguments: Mapping[str, Any], task_root: str, block_input_artifact: bool
    ) -> Any:  # noqa: ANN401
        # kfp.local names a task's folder after its component, below a folder with the time in its name.
        stage = stages.folder_of("comp-" + Path(task_root).name)
        told = {name: in_kubeflows_words(value) for name, value in arguments.items()}
        return original_input(component_spec, told, str(stage), block_input_artifact)

    def get_outputs_for_task(executor_input: Any, component_spec: object) -> dict[str, Any]:  # noqa: ANN401
        # The cluster's launcher registers declared artifacts that the program did not mention, too.
        declared = executor_input.outputs.artifacts.items()
        mentioned = original_outputs(executor_input=executor_input, component_spec=component_spec)
        to_artifact = executor_output_utils.runtime_artifact_to_dsl_artifact
        return {**{name: to_artifact(listed.artifacts[0]) for name, listed in declared}, **mentioned}

    replacements = (
        (subprocess_task_handler, "SubprocessTaskHandler", original_handler, StageHandler),
        (executor_input_utils, "construct_executor_input", original_input, construct_executor_input),
        (executor_output_utils, "get_outputs_for_task", original_outputs, get_outputs_for_task),
    )
    for module, name, _, replacement in replacements:
        setattr(module, name, replacement)
    try:
        yield
    finally:
        for module, name, original, _ in replacements:
            setattr(module, name, original)


def in_kubeflows_words(value: Any) -> Any:  # noqa: ANN401 - a parameter's value
    """Returns the final status that an exit handler gets as Kubeflow's driver writes it; any other value as it is."""
    if not (isinstance(value, dict) and {"state", "pipeline_task_name"} <= set(value)):
        return value
    return {
        "state": {"SUCCEEDED": "COMPLETE"}.get(value["state"], value["state"]),
        "pipelineJobResourceName": value["pipeline_job_resource_name"],
        "pipelineTaskName": value["pipeline_task_name"],
        "error": {},
    }


class Stages:
    """Runs the stages of one run, or takes their results from the cache."""

    def __init__(
        self, compiled: CompiledPipeline, settings: RunSettings, progress: Progress, lock: int, server: RunServer
    ) -> None:
        self.settings = settings
        self.failure: StageFailure | None = None
        self._compiled = compiled
        self._progress = progress
        self._lock = lock
        self._server = server
        self._store = Store(settings.runs / ".cache")
        self._threads = available_cores()
        # Where nothing calls NVIDIA's program this folder is never made.
        self._double = (settings.folder / STAGES_FOLDER / "tao-double").absolute()
        if compiled.of_tao:
            importlib.import_module(definition(compiled.name).double).install(self._double)
        # kfp.local may execute a loop with two threads; stages share the cores and run one at a time.
        self._turn = threading.Lock()

    def folder_of(self, component: str) -> Path:
        """Returns the folder of a component's stage: its outputs lie there by name."""
        return (self.settings.folder / self._compiled.stages[component]).absolute()

    def run(self, argv: list[str], environment: dict[str, str]) -> bool:
        """Runs a stage whose placeholders are resolved; returns whether it succeeded.

        Args:
            argv: The stage's command with `--executor-input JSON` in it.
            environment: Variables that the pipeline sets for it.
        """
        with self._turn:
            at = argv.index("--executor-input")
            executor_input = json.loads(argv[at + 1])
            output = Path(executor_input["outputs"]["outputFile"])
            folder = output.parent
            logs = self.settings.folder / LOGS
            _note_made(
                self.settings.folder.absolute(),
                output,
                *(path for _, path in outputs_of(executor_input)),
                *((logs / name).absolute() for name in (f"{folder.name}.log", SERVER_LOG)),
            )
            if folder.name in self._compiled.of_tao:
                environment = {**environment, "GRIDBOX_ENGINE": "tao-double"}  # part of the key
            key = stage_key(
                argv[:at] + argv[at + 2 :],
                environment,
                executor_input,
                self.settings.name,
                self._threads,
                self.settings.code,
            )
            may_be_restored = folder.name not in self._compiled.uncached and (key.is_pure or self.settings.resume)
            if may_be_restored and self._restored(key, executor_input, folder):
                return True
            return self._executed(argv, environment, executor_input, folder, key)

    def _restored(self, key: Key, executor_input: Mapping[str, Any], folder: Path) -> bool:
        seconds = self._store.restore(key, executor_input)
        if seconds is None:
            return False
        write_executor_output(executor_input)
        self._progress.finish(folder.name, "cached", seconds, _figures(executor_input))
        return True

    def _executed(
        self,
        argv: list[str],
        environment: dict[str, str],
        executor_input: Mapping[str, Any],
        folder: Path,
        key: Key,
    ) -> bool:
        stage, started = folder.name, time.monotonic()
        self._progress.start(stage)
        work = self._work_folder(stage, key)
        log = self.settings.folder / LOGS / f"{stage}.log"
        for parent in (folder, log.parent):
            parent.mkdir(parents=True, exist_ok=True)

        def while_running() -> None:
            self._server.attend()
            self._progress.note(stage, current_note(work, log))

        code = processes.run(
            [sys.executable if argv[0] in ("python", "python3") else argv[0], *argv[1:]],
            self._environment(work, environment, stage),
            work,
            log,
            self._lock,
            while_running,
        )
        seconds = time.monotonic() - started
        if code != 0:
            self._progress.finish(stage, "failed", seconds, {})
            self.failure = self.failure or StageFailure(_describe_failure(stage, code, log), code)
            return False
        if not Path(executor_input["outputs"]["outputFile"]).is_file():
            write_executor_output(executor_input)  # for a program that leaves that to its surroundings
        if stage not in self._compiled.uncached:
            self._store.keep(key, executor_input, seconds)
        shutil.rmtree(work)
        self._progress.finish(stage, "done", seconds, _figures(executor_input))
        return True

    def _work_folder(self, stage: str, key: Key) -> Path:
        """Gives a stage its working directory; one that an interrupted attempt at the very same work left is kept."""
        work = (self.settings.folder / STAGES_FOLDER / stage).absolute()
        mark = work.with_suffix(".key")
        if not (mark.is_file() and mark.read_text(encoding="utf-8") == key.digest):
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        mark.write_text(key.digest, encoding="utf-8")
        return work

    def _environment(self, work: Path, own: Mapping[str, str], stage: str) -> dict[str, str]:
        threads = str(self._threads)
        double = self._double if stage in self._compiled.of_tao else None
        programs = [str(folder) for folder in (double, self.settings.programs, Path(sys.executable).parent) if folder]
        return {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "PYTHONUNBUFFERED": "1",
            **self._server.environment,
            **own,
            STAGE_DIR: str(work),
            "PATH": os.pathsep.join([*programs, os.environ.get("PATH", os.defpath)]),
        }


def _figures(executor_input: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metadata of a stage's outputs as it wrote them, Metrics last (they count most)."""
    outputs = executor_input["outputs"]
    written = json.loads(Path(outputs["outputFile"]).read_text(encoding="utf-8")).get("artifacts", {})
    figures: dict[str, Any] = {}
    for name in sorted(written, key=lambda name: name == "metrics"):
        figures |= written[name]["artifacts"][0].get("metadata", {})
    return figures


def _describe_failure(stage: str, code: int, log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-FAILURE_LINES:]
    if code == 2 and lines:  # a mistake of the user, told in one line
        return f"stage {stage}: {lines[-1].partition(': ')[2] or lines[-1]} (its log: {log})"
    shown = "\n".join(f"  {line}" for line in lines)
    return f"stage {stage} failed with exit code {code}; the end of {log}:\n{shown}"


def _name_results(folder: Path, compiled: CompiledPipeline) -> None:
    """Puts what a person looks for first on top of the run's folder: the model to use, and each stage's report."""
    for stage in compiled.stages.values():
        for manifest in sorted((folder / stage).glob(f"*/{MANIFEST}")):
            output = manifest.parent
            if json.loads(manifest.read_text(encoding="utf-8"))["kind"] == "exported_model":
                _point(folder / "model", output)
            if (output / "report.html").is_file():
                _point(folder / f"{stage}.html", output / "report.html")


def _point(link: Path, target: Path) -> None:
    _note_made(link.parent, link)
    link.unlink(missing_ok=True)
    link.symlink_to(target.relative_to(link.parent))
