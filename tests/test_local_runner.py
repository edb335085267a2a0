"""The process runner on a pipeline of two quick stages: results, failures, kills, locks, refusals."""

import inspect
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import kfp
import pytest
import tiny_pipeline
import yaml
from kfp import compiler, dsl
from rich.console import Console
from test_pipeline_contract import RECORDED

from components.images import OPEN_ENGINE
from components.serve.host import Served
from components.step import StageError, UserError
from components.vision.threads import available_cores
from pipeline import compiled, local
from pipeline.local import RunSettings, StageFailure, locked, run_pipeline
from pipeline.serving import RunServer

# `gridbox run` as a process, with the stand-in for the stages' program placed first on their PATH.
DRIVER = """
import functools, sys
from pathlib import Path
from pipeline import cli, local, processes
processes.GRACE_SECONDS = 1.0
local.LOCK_SECONDS = 0.2
local.RunSettings = functools.partial(local.RunSettings, programs=Path(sys.argv.pop(1)))
cli.main()
"""


class Bench:
    def __init__(self, root):
        self.root, self.runs, self.calls_file = root, root / "runs", root / "calls"
        self.yaml = tiny_pipeline.compile_tiny(root / "tiny.yaml")
        self.programs = tiny_pipeline.install_program(root / "bin", self.calls_file)
        self.screen = io.StringIO()

    def settings(self, **others):
        console = Console(file=self.screen, width=200)
        return RunSettings(**{"runs": self.runs, "name": "r", "programs": self.programs, "console": console, **others})

    def run(self, settings=None, **arguments):
        """Runs the pipeline in this process; returns the tasks whose program was started."""
        settings = settings or self.settings()
        self.calls_file.write_text("")
        with locked(settings.folder) as lock, RunServer(settings.folder / "logs/triton.log") as server:
            run_pipeline(self.yaml, arguments, settings, lock, server)
        return self.calls_file.read_text().split()

    def start(self, *arguments):
        """Starts `gridbox run` as a process."""
        command = [sys.executable, "-c", DRIVER, str(self.programs), "run", str(self.yaml), "--runs", str(self.runs)]
        return subprocess.Popen(
            [*command, "--name", "r", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def pids(self):
        """Waits until the stage hangs; returns its supervisor, its program and the program's child."""
        file = self.runs / "r/.stages/make/pids"
        wait_for(file.exists)
        return [int(word) for word in file.read_text().split()]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def wait_for(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def alive(pids):
    states = []
    for pid in pids:
        try:
            states.append(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
        except FileNotFoundError:
            continue
    return [state for state in states if state != "Z"]


def test_kfp_is_the_one_version_whose_insides_are_replaced():
    assert kfp.__version__ == local.KFP_VERSION, "check the three attributes that pipeline/local.py replaces"
    from kfp.local import executor_input_utils, executor_output_utils, subprocess_task_handler, task_dispatcher

    source = inspect.getsource(task_dispatcher)
    for call in (
        "subprocess_task_handler.SubprocessTaskHandler",
        "executor_input_utils.construct_executor_input(",
        "executor_output_utils.get_outputs_for_task(",
    ):
        assert call in source
    names = list(inspect.signature(executor_input_utils.construct_executor_input).parameters)
    assert names == ["component_spec", "arguments", "task_root", "block_input_artifact"]
    assert list(inspect.signature(executor_output_utils.get_outputs_for_task).parameters) == [
        "executor_input",
        "component_spec",
    ]
    assert hasattr(subprocess_task_handler.SubprocessTaskHandler, "validate_not_container_component")


def test_results_lie_under_the_stages_names(bench):
    assert bench.run(size=4) == ["make", "total"]
    run = bench.runs / "r"
    assert json.loads((run / "make/numbers/numbers.json").read_text()) == [0, 1, 2, 3]
    assert json.loads((run / "add-up/result").read_text())["sum"] == 12
    assert "making in a mood of joy" in (run / "logs/make.log").read_text()
    assert not (run / ".stages/make").exists()


def test_screen_says_what_ran_and_with_what_result(bench):
    bench.run()
    bench.run()
    screen = bench.screen.getvalue()
    assert "[ 1/2] make: running\n" in screen
    assert "[ 2/2] add-up: done in " in screen
    assert "[ 2/2] add-up: cached" in screen
    assert "sum 6.0" in screen
    assert "Streamed logs" not in screen  # kfp's own talk


def test_live_table_runs_on_a_terminal(bench):
    console = Console(file=bench.screen, force_terminal=True, width=100)
    bench.run(bench.settings(console=console))
    assert "add-up" in bench.screen.getvalue()


def test_parameters_reach_the_stages_with_their_types(bench):
    bench.run(factor=0.5, size=3)
    assert json.loads((bench.runs / "r/add-up/result").read_text())["sum"] == 1.5


def test_stage_gets_its_threads_its_folder_and_this_environments_programs(bench):
    bench.run()
    line = next(line for line in (bench.runs / "r/logs/make.log").read_text().splitlines() if "environment" in line)
    environment, end = json.JSONDecoder().raw_decode(line, len("environment "))
    assert environment["OMP_NUM_THREADS"] == str(available_cores())
    assert environment["PATH"].split(os.pathsep)[:2] == [str(bench.programs), str(Path(sys.executable).parent)]
    assert environment["HOME"] == os.environ.get("HOME")
    assert line[end:].strip() == environment["GRIDBOX_STAGE_DIR"] == str(bench.runs / "r/.stages/make")


def test_kfps_attributes_are_restored(bench):
    from kfp.local import executor_input_utils, subprocess_task_handler

    before = subprocess_task_handler.SubprocessTaskHandler, executor_input_utils.construct_executor_input
    with pytest.raises(StageFailure):
        bench.run(mood="failure")
    assert before == (subprocess_task_handler.SubprocessTaskHandler, executor_input_utils.construct_executor_input)


def test_failing_stage_shows_its_last_lines_and_where_the_log_is(bench):
    process = bench.start("--set", "mood=failure")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"stage make failed with exit code 1; the end of {bench.runs}/r/logs/make.log:" in errors
    assert "line 29" in errors
    assert "line 10\n" not in errors
    assert "Traceback" not in errors
    assert not (bench.runs / "r/make/numbers").exists()
    assert "total" not in bench.calls_file.read_text()


def test_users_mistake_in_a_stage_is_exit_code_2(bench):
    process = bench.start("--set", "mood=user error")
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert errors == (
        f"gridbox: stage make: size: must be 4; say --set size=4 (its log: {bench.runs}/r/logs/make.log)\n"
    )


def test_stage_that_writes_no_output_fails(bench):
    (bench.programs / "gridbox").write_text("#!/bin/sh\nexit 0\n")
    process = bench.start()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.startswith("gridbox: output numbers: the stage ended well but wrote nothing to ")


def test_program_that_is_not_installed_fails_with_a_line(bench):
    tiny = bench.yaml.read_text().replace("- gridbox\n", "- no-such-program\n")
    bench.yaml.write_text(tiny)
    with pytest.raises(StageFailure, match="no-such-program cannot be started"):
        bench.run()


def test_sigkill_of_the_runner_leaves_nothing_alive_and_frees_the_lock(bench):
    process = bench.start("--set", "mood=hang")
    pids = bench.pids()
    assert len(alive(pids)) == 3
    process.kill()
    process.communicate()
    # The supervisor shares the lock: whoever gets it finds nothing of the old run alive, deaf or in another session.
    with locked(bench.runs / "r"):
        assert not alive(pids[1:])
    wait_for(lambda: not alive(pids))


def test_killing_the_supervisor_does_not_leave_its_stage_alive(bench):
    process = bench.start("--set", "mood=hang")
    pids = bench.pids()
    os.kill(pids[0], signal.SIGKILL)
    process.communicate(timeout=10)
    assert process.returncode == 1
    wait_for(lambda: not alive(pids[:2]))
    subprocess.run(["kill", "-9", str(pids[2])], check=False, capture_output=True)  # nobody was left to do that


@pytest.mark.parametrize(
    ("mood", "number"), [("hang", signal.SIGINT), ("hang deaf", signal.SIGINT), ("hang", signal.SIGTERM)]
)
def test_interrupt_ends_the_stage_too_and_says_how_to_go_on(bench, mood, number):
    process = bench.start("--set", f"mood={mood}")
    pids = bench.pids()
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert not alive(pids)
    assert "Traceback" not in errors
    assert ("--resume" in errors) == (number == signal.SIGINT)


def test_second_writer_is_locked_out_in_one_line(bench):
    first = bench.start("--set", "mood=hang")
    try:
        bench.pids()
        second = bench.start()
        _, errors = second.communicate(timeout=20)
        assert second.returncode == 2
        assert errors.count("\n") == 1
        assert "another gridbox is writing to this run" in errors
        assert (bench.runs / "r/.stages/make/pids").exists()  # the first one's work is untouched
    finally:
        first.kill()
        first.communicate()


def test_resume_goes_on_in_the_folder_of_the_interrupted_stage(bench):
    process = bench.start("--set", "mood=hang once")
    bench.pids()
    process.kill()
    process.communicate()
    process = bench.start("--resume")  # the options of the interrupted run need not be repeated
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert bench.calls_file.read_text().split() == ["make", "make", "total"]


def test_without_resume_the_interrupted_stage_starts_afresh(bench):
    for _ in range(2):
        process = bench.start("--set", "mood=hang once")
        bench.pids()
        (bench.runs / "r/.stages/make/pids").unlink()
        process.kill()
        process.communicate()


def test_resume_with_other_parameters_does_not_go_on_in_the_old_folder(bench):
    process = bench.start("--set", "mood=hang once")
    bench.pids()
    process.kill()
    process.communicate()
    process = bench.start("--set", "mood=hang once", "--set", "size=9", "--resume")
    (bench.runs / "r/.stages/make/pids").unlink()
    bench.pids()
    process.kill()
    process.communicate()


def test_resume_takes_finished_stages_from_the_cache(bench):
    assert bench.run() == ["make", "total"]
    assert bench.run(bench.settings(resume=True)) == []


# --- exit handler ----------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(bench):
    """A pipeline with an exit handler round its second stage."""
    compiler.Compiler().compile(tiny_pipeline.guarded, str(bench.yaml))
    return bench


def final_status(bench):
    return json.loads((bench.runs / "r/conclude/told").read_text())


def test_exit_handler_is_told_of_success_in_kubeflows_words(guarded):
    assert guarded.run() == ["make", "total", "conclude"]
    recorded = json.loads(RECORDED["conclude"])["inputs"]["parameterValues"]["status"]
    told = final_status(guarded)
    assert set(told) == set(recorded)
    assert {name: told[name] for name in ("state", "error", "pipelineTaskName")} == {
        name: recorded[name] for name in ("state", "error", "pipelineTaskName")
    }
    assert told["state"] == "COMPLETE"


def test_exit_handler_is_told_of_a_failure_which_stays_the_runs(guarded):
    with pytest.raises(StageFailure, match="stage total failed with exit code 1") as caught:
        guarded.run(factor=-1.0)
    assert "a negative factor" in str(caught.value)
    assert guarded.calls_file.read_text().split() == ["make", "total", "conclude"]
    assert final_status(guarded)["state"] == "FAILED"
    assert final_status(guarded)["error"] == {}  # as it is on Kubeflow, whatever went wrong


def test_exit_handler_that_fails_too_does_not_hide_what_failed_first(guarded, monkeypatch):
    monkeypatch.setenv("TINY_CONCLUDE_FAILS", "1")
    with pytest.raises(StageFailure, match="stage total failed"):
        guarded.run(factor=-1.0)
    assert "conclude: failed" in guarded.screen.getvalue()
    with pytest.raises(StageFailure, match="stage conclude failed"):
        guarded.run()


def test_exit_handler_of_a_part_does_not_run_for_what_failed_before_it(guarded):
    with pytest.raises(StageFailure, match="stage make failed"):
        guarded.run(mood="failure")
    assert guarded.calls_file.read_text().split() == ["make"]


# --- refusals --------------------------------------------------------------------------------------------------------


def refused(bench, change=None, pipeline=None):
    if pipeline:
        compiler.Compiler().compile(pipeline, str(bench.yaml))
    if change:
        document = yaml.safe_load(bench.yaml.read_text())
        change(document)
        bench.yaml.write_text(yaml.safe_dump(document))
    with pytest.raises(UserError) as caught:
        compiled.load(bench.yaml)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@dsl.component(base_image="python:3.11")
def flip(text: str) -> str:
    return text


def test_python_function_component_is_refused(bench):
    @dsl.pipeline(name="p")
    def with_function():
        flip(text="x")

    assert "Python-function component" in refused(bench, pipeline=with_function)


def test_condition_on_a_tasks_output_is_refused(bench):
    @dsl.container_component
    def toss(coin: dsl.OutputPath(str)):
        placeholder = dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER
        return dsl.ContainerSpec(image=OPEN_ENGINE, command=["gridbox"], args=["--executor-input", placeholder, coin])

    @dsl.pipeline(name="p")
    def conditional():
        tossed = toss()
        with dsl.If(tossed.outputs["coin"] == "heads"):
            tiny_pipeline.make(uri="", size=1, mood="")

    assert "condition on a task's output" in refused(bench, pipeline=conditional)


def test_condition_on_a_parameter_is_followed(bench):
    @dsl.pipeline(name="p")
    def conditional(size: int = 1):
        with dsl.If(size == 1):
            tiny_pipeline.make(uri="", size=size, mood="")
        with dsl.If(size == 2):
            tiny_pipeline.make(uri="", size=size, mood="").set_display_name("other")

    compiler.Compiler().compile(conditional, str(bench.yaml))
    assert bench.run() == ["make"]
    assert (bench.runs / "r/make/numbers").exists()


@pytest.mark.parametrize(
    "image", ["docker.io/library/python:3.11", f"evil.example/{OPEN_ENGINE}", "ghcr.io/gridbox/other"]
)
def test_image_outside_the_allow_list_is_refused(bench, image):
    def change(document):
        document["deploymentSpec"]["executors"]["exec-make"]["container"]["image"] = image

    assert image in refused(bench, change)


@pytest.mark.parametrize("suffix", [":other-tag", "@sha256:" + "0" * 64, ":1@sha256:" + "0" * 64])
def test_any_tag_and_digest_of_the_engines_repository_is_allowed(bench, suffix):
    image = OPEN_ENGINE.rpartition(":")[0] + suffix
    bench.yaml.write_text(bench.yaml.read_text().replace(OPEN_ENGINE, image))
    assert compiled.load(bench.yaml).stages == {"comp-make": "make", "comp-total": "add-up"}


def test_stage_that_must_not_be_cached_runs_again_even_when_a_run_is_resumed(bench):
    assert compiled.load(bench.yaml).uncached == frozenset()
    document = yaml.safe_load(bench.yaml.read_text())
    document["root"]["dag"]["tasks"]["make"]["cachingOptions"] = {}
    bench.yaml.write_text(yaml.safe_dump(document))
    assert compiled.load(bench.yaml).uncached == {"make"}
    assert bench.run() == ["make", "total"]
    assert bench.run() == ["make"]
    assert bench.run(bench.settings(resume=True)) == ["make"]


def test_further_attempts_that_the_file_asks_for_are_not_made_here(bench):
    document = yaml.safe_load(bench.yaml.read_text())
    document["root"]["dag"]["tasks"]["make"]["retryPolicy"] = {"maxRetryCount": 2, "backoffDuration": "60s"}
    bench.yaml.write_text(yaml.safe_dump(document))
    begin = time.monotonic()
    with pytest.raises(StageFailure):
        bench.run(mood="failure")
    assert bench.calls_file.read_text().split() == ["make"]
    assert time.monotonic() - begin < 30


def test_server_that_a_stage_asks_for_is_the_runs_own(bench, monkeypatch):
    asked = []
    served = Served("http://127.0.0.1:1", "grpc://127.0.0.1:2")
    monkeypatch.setattr(RunServer, "_serve", lambda _, model: asked.append(model) or served)
    assert bench.run(mood="serve") == ["make", "total"]
    assert asked == [Path("/model")]
    assert str(served) in (bench.runs / "r/logs/make.log").read_text()


def test_server_that_cannot_start_fails_the_stage_that_asked(bench, monkeypatch):
    def fail(_, model):
        raise StageError(f"no server for {model}")

    monkeypatch.setattr(RunServer, "_serve", fail)
    with pytest.raises(StageFailure, match="no server for /model"):
        bench.run(mood="serve")


def test_stage_without_executor_input_is_refused_in_one_line_with_exit_code_2(bench):
    bench.yaml.write_text(bench.yaml.read_text().replace("'{{$}}'", "nothing"))
    process = bench.start()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "does not take --executor-input" in errors
    assert errors.count("\n") == 1
    assert not bench.calls_file.exists()


def test_two_stages_of_one_name_are_refused(bench):
    def change(document):
        document["root"]["dag"]["tasks"]["make"]["taskInfo"]["name"] = "Add Up"

    assert "two tasks are called add-up" in refused(bench, change)


@pytest.mark.parametrize("content", ["", "a: [", "a: b", "[1]", "\x00"])
def test_file_that_is_no_compiled_pipeline_is_refused(bench, content):
    bench.yaml.write_text(content)
    with pytest.raises(UserError, match="not a compiled pipeline"):
        compiled.load(bench.yaml)


def test_other_version_of_kfp_is_refused(bench, monkeypatch):
    monkeypatch.setattr(kfp, "__version__", "2.18.1")
    with pytest.raises(UserError, match=r"kfp 2.18.1 is installed; running here needs exactly 2.17.0"):
        bench.run()
