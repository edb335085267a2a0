# ruff: noqa: ARG001 - the arguments of a container component declare its interface
"""A pipeline of two stages with a stand-in for the program `gridbox`, for tests of the runner."""

import sys
from pathlib import Path

from kfp import compiler, dsl
from kfp.dsl import Dataset, Input, Metrics, Output

from components import step
from components.images import OPEN_ENGINE


def _task(name: str) -> dsl.ContainerSpec:
    placeholder = dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER
    return dsl.ContainerSpec(
        image=OPEN_ENGINE, command=["gridbox", "tiny", name], args=["--executor-input", placeholder]
    )


@dsl.container_component
def make(uri: str, size: int, mood: str, numbers: Output[Dataset]):
    return _task("make")


@dsl.container_component
def total(numbers: Input[Dataset], factor: float, result: Output[Dataset], metrics: Output[Metrics]):
    return _task("total")


@dsl.container_component
def conclude(status: dsl.PipelineTaskFinalStatus, told: Output[Dataset]):
    return _task("conclude")


@dsl.pipeline(name="tiny")
def tiny(data_uri: str = "", size: int = 3, mood: str = "", factor: float = 2.0):
    made = make(uri=data_uri, size=size, mood=mood)
    total(numbers=made.outputs["numbers"], factor=factor).set_display_name("add up")


@dsl.pipeline(name="guarded-part")
def guarded_part(numbers: Input[Dataset], factor: float):
    with dsl.ExitHandler(conclude(), name="guarded"):
        total(numbers=numbers, factor=factor)


@dsl.pipeline(name="tiny-with-exit-handler")
def guarded(size: int = 3, mood: str = "", factor: float = 2.0):
    """Where a stage fails decides whether the exit handler runs: it stands in a part, as in facedetect."""
    made = make(uri="", size=size, mood=mood)
    guarded_part(numbers=made.outputs["numbers"], factor=factor)


def compile_tiny(path: Path) -> Path:
    compiler.Compiler().compile(tiny, str(path))
    return path


# What the stand-in does when its parameter `mood` says so.
PROGRAM = """#!{python}
import json, os, signal, subprocess, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from components import step

def options(arguments):
    return dict(word.lstrip("-").split("=", 1) for word in arguments[2:])

def program(arguments):
    given, task = options(arguments), arguments[1]
    if task == "make":
        mood = given.get("mood", "")
        print("making in a mood of", mood or "joy", flush=True)
        names = ("OMP_NUM_THREADS", "GRIDBOX_STAGE_DIR", "PATH", "HOME")
        print("environment", json.dumps({{name: os.environ.get(name) for name in names}}), os.getcwd())
        if mood == "user error":
            raise step.UserError("size: must be 4; say --set size=4")
        if mood == "failure":
            for number in range(30):
                print("line", number)
            raise step.StageError("it broke")
        marker = Path(os.environ["GRIDBOX_STAGE_DIR"], "attempted")
        if mood == "serve":
            from components.serve import host
            print(host.ask(Path("/model")))
        if mood.startswith("hang") and not (mood == "hang once" and marker.exists()):
            marker.touch()
            # A child of its own in a session of its own, which no group kill reaches.
            child = subprocess.Popen(["sleep", "600"], start_new_session=True)
            pids = Path(os.environ["GRIDBOX_STAGE_DIR"], "pids")
            pids.with_suffix(".new").write_text("%d %d %d" % (os.getppid(), os.getpid(), child.pid))
            if mood == "hang deaf":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            pids.with_suffix(".new").rename(pids)
            time.sleep(600)
        with step.publish(Path(given["numbers"])) as scratch:
            scratch.mkdir()
            (scratch / "numbers.json").write_text(json.dumps(list(range(int(given["size"])))))
            step.write_manifest(scratch, "numbers", {{"count": int(given["size"])}}, {{}})
    elif task == "conclude":
        if "TINY_CONCLUDE_FAILS" in os.environ:
            raise step.StageError("nothing to undo")
        Path(given["told"]).write_text(given["status"])
    else:
        if float(given["factor"]) < 0:
            raise step.StageError("a negative factor")
        numbers = json.loads(Path(given["numbers"], "numbers.json").read_text())
        figures = {{"sum": sum(numbers) * float(given["factor"])}}
        Path(given["result"]).write_text(json.dumps(figures))
        Path(given["metrics"]).write_text(json.dumps(figures))

with open({calls!r}, "a") as calls:
    calls.write(sys.argv[2] + "\\n")
sys.exit(step.run(sys.argv[1:], program))
"""


def install_program(folder: Path, calls: Path) -> Path:
    """Writes the stand-in as `gridbox` into `folder`; every start adds its task's name to the file `calls`."""
    folder.mkdir()
    program = folder / "gridbox"
    root = str(Path(step.__file__).parent.parent)
    program.write_text(PROGRAM.format(python=sys.executable, root=root, calls=str(calls)))
    program.chmod(0o755)
    return folder
