"""Builds a TensorRT plan with `trtexec`, in the image of the Triton release and on the GPU that will serve it.

Runs in that image, whose Python is 3.12 and has few of our packages: standard library, `components.step`, and for half
precision `onnx`.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components import step
from components.decode.description import upgraded
from components.serve.release import TENSORRT_VERSION, TRITON_RELEASE
from components.step import StageError, UserError, publish, read_manifest, write_json, write_manifest

KIND = "tensorrt_plan"
PLAN_FILE, LOG_FILE, LABELS_FILE = "model.plan", "trtexec.log", "labels.txt"
PRECISIONS = ("fp32", "fp16", "int8")
# Where NVIDIA's images keep it.
TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
_ONNX_FILE = "model.onnx"
# NVIDIA's images say here which release they are.
_RELEASE_VARIABLE = "NVIDIA_TRITON_SERVER_VERSION"


@dataclass(frozen=True)
class Build:
    """How to build a plan.

    Attributes:
        precision: `fp32`, `fp16`, or `int8` for a model with explicit quantisation (QuantizeLinear nodes), whose layers
            that INT8 does not cover run in single precision.
        batches: Smallest, best and largest batch.
        workspace: MiB of GPU memory that kernels may use for themselves.
        timing_cache: File of kernel timings to read and write; a second build takes seconds with it.
    """

    precision: str = "fp16"
    batches: tuple[int, int, int] = (1, 16, 32)
    workspace: int = 4096
    timing_cache: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What `trtexec` says of its work.

    Attributes:
        passed: Whether it says that all went well.
        gpu: Name of the GPU.
        compute_capability: Of the GPU, for example 8.6.
        tensorrt_version: Of TensorRT, for example 11.1.0.
        reasons: Its errors, the first one first.
        latency: Milliseconds of a batch of the best size, by `min`, `max`, `mean`, `median` and percentiles.
        throughput: Batches a second.
    """

    passed: bool
    gpu: str
    compute_capability: str
    tensorrt_version: str
    reasons: tuple[str, ...]
    latency: Mapping[str, float]
    throughput: float | None


def command(onnx: Path, plan: Path, settings: Mapping[str, Any], build: Build, trtexec: str = TRTEXEC) -> list[str]:
    """Returns the command line.

    Args:
        onnx: The model, in the precision in which it shall run: TensorRT takes it as it is.
        plan: The file to write.
        settings: Of the exported model's manifest: tensor names and input size.
        build: How to build.
        trtexec: The program.

    Raises:
        UserError: The precision does not fit the model, or the batches make no sense.
    """
    quantization = settings.get("quantization")
    if build.precision not in PRECISIONS:
        raise UserError(f"precision {build.precision!r}: one of {', '.join(PRECISIONS)}")
    if build.precision == "int8" and not quantization:
        raise UserError("precision int8: the model is not quantised; convert it first (gridbox convert int8)")
    if build.precision != "int8" and quantization:
        raise UserError(
            f"precision {build.precision}: the model is quantised; build it as int8, or give the one before"
        )
    if quantization and quantization.get("runtime") != "tensorrt":
        raise UserError(
            f"the model is quantised for {quantization.get('runtime')}, which TensorRT cannot take; convert it with "
            "--runtime tensorrt"
        )
    low, best, high = build.batches
    if not 1 <= low <= best <= high:
        raise UserError(f"batches {low}, {best}, {high}: smallest, best and largest must ascend from 1")
    name, size = settings["tensors"]["input"], upgraded(settings)["input"]
    shapes = {
        option: f"{name}:{batch}x3x{int(size['height'])}x{int(size['width'])}"
        for option, batch in (("minShapes", low), ("optShapes", best), ("maxShapes", high), ("shapes", best))
    }
    return [
        trtexec,
        f"--onnx={onnx}",
        f"--saveEngine={plan}",
        *(f"--{option}={shape}" for option, shape in shapes.items()),
        f"--memPoolSize=workspace:{build.workspace}",
        *([f"--timingCacheFile={build.timing_cache}"] if build.timing_cache else []),
    ]


_STAMP = re.compile(r"^\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] (?:\[(?P<level>[VIWE])\] )?(?:\[TRT\] )?(?P<text>.*)$")
_FIGURE = re.compile(r"(min|max|mean|median|percentile\([\d.]+%\)) = ([\d.eE+-]+) ms")


def parse_log(text: str) -> Outcome:
    """Reads what `trtexec` printed; what it did not print is empty."""
    found = {"Selected Device": "", "Compute Capability": "", "TensorRT version": "", "Throughput": "", "Latency": ""}
    errors = []
    for line in text.splitlines():
        stamped = _STAMP.match(line)
        level, said = (stamped["level"], stamped["text"]) if stamped else ("", line)
        if level == "E":
            errors.append(said.strip())
        name, _, value = said.partition(": ")
        if name in found and not found[name]:
            found[name] = value.strip()
    banner = re.search(r"^&&&& (?:RUNNING|PASSED|FAILED) TensorRT\.trtexec \[TensorRT v(\d+)\]", text, re.MULTILINE)
    throughput = re.match(r"[\d.eE+]+", found["Throughput"])
    return Outcome(
        passed=bool(re.search(r"^&&&& PASSED TensorRT\.trtexec", text, re.MULTILINE)),
        gpu=re.sub(r" \(ID \d+\)$", "", found["Selected Device"]),
        compute_capability=found["Compute Capability"],
        tensorrt_version=found["TensorRT version"] or _version(banner[1] if banner else ""),
        reasons=tuple(dict.fromkeys(errors)),
        latency={name: float(value) for name, value in _FIGURE.findall(found["Latency"])},
        throughput=float(throughput[0]) if throughput else None,
    )


def _version(number: str) -> str:
    """The banner has two digits for minor and patch since TensorRT 10 (100500), before one and two (8601)."""
    if not number:
        return ""
    thousands = 10_000 if len(number) >= 6 else 1_000
    value = int(number)
    return f"{value // thousands}.{value % thousands // 100}.{value % 100}"


def build_plan(exported: Path, output: Path, build: Build, trtexec: str = TRTEXEC) -> Outcome:
    """Builds the plan of an exported model and writes it with what it is bound to.

    Args:
        exported: The exported-model artifact, quantised or not.
        output: The artifact to write: `model.plan`, the log, and in the manifest's settings those of the model with
            GPU, compute capability, TensorRT version and Triton release.
        build: How to build.
        trtexec: The program.

    Raises:
        UserError: Model and precision do not fit, there is no `trtexec` here, or this is the image of another release.
        StageError: `trtexec` fails, or is of another TensorRT than the Triton release's. Nothing is written.
    """
    settings = read_manifest(exported, "exported_model")["settings"]
    program = shutil.which(trtexec)
    if program is None:
        raise UserError(
            f"{trtexec}: not here; build in the image of Triton {TRITON_RELEASE}, on a node of the serving pool"
        )
    if os.environ.get(_RELEASE_VARIABLE, TRITON_RELEASE) != TRITON_RELEASE:
        raise UserError(
            f"this is the image of Triton {os.environ[_RELEASE_VARIABLE]}, and plans are served in {TRITON_RELEASE}; "
            "build in the image of that release"
        )
    with tempfile.TemporaryDirectory() as folder, publish(output) as scratch:
        plan, onnx = Path(folder) / PLAN_FILE, Path(folder) / _ONNX_FILE
        argv = command(onnx, plan, settings, build, program)
        if build.precision == "fp16":
            from components.serve.half_precision import write_half_precision

            write_half_precision(exported / _ONNX_FILE, onnx)
        else:
            shutil.copyfile(str(exported / _ONNX_FILE), str(onnx))
        log = _run(argv)
        outcome = parse_log(log)
        _refuse_failure(outcome, plan)
        scratch.mkdir()
        shutil.move(str(plan), str(scratch / PLAN_FILE))
        if (exported / LABELS_FILE).is_file():
            shutil.copyfile(str(exported / LABELS_FILE), str(scratch / LABELS_FILE))
        (scratch / LOG_FILE).write_text(log, encoding="utf-8")
        bound = {
            "gpu": outcome.gpu,
            "compute_capability": outcome.compute_capability,
            "tensorrt_version": outcome.tensorrt_version,
            "triton_release": TRITON_RELEASE,
            "precision": build.precision,
            "batches": list(build.batches),
        }
        counts = {"file_bytes": (scratch / PLAN_FILE).stat().st_size, **bound, **_figures(outcome)}
        del counts["batches"]
        write_manifest(scratch, KIND, counts, {**settings, **bound}, logs=(LOG_FILE,))
    return outcome


def _run(argv: Sequence[str]) -> str:
    """Runs `trtexec`, shows its log and returns it; how it ended is told by the log."""
    print(json.dumps(list(argv)), flush=True)
    lines: list[str] = []
    child = subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        assert child.stdout is not None
        for line in child.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
        code = child.wait()
    finally:  # a signal comes as SystemExit or KeyboardInterrupt
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if code and not any(line.startswith("&&&& FAILED") for line in lines):
        end = f"exit code {code}" if code > 0 else f"signal {-code}"
        tail = "".join(f"\n  {line}" for line in lines[-5:])
        raise StageError(f"trtexec ended with {end} (out of memory?); its last lines:{tail}")
    return "\n".join(lines) + "\n"


def _refuse_failure(outcome: Outcome, plan: Path) -> None:
    if not outcome.passed or not plan.is_file():
        reasons = "".join(f"\n  {reason}" for reason in outcome.reasons[:5]) or " it gives no reason"
        raise StageError(f"trtexec could not build the plan:{reasons}")
    missing = [name for name in ("gpu", "compute_capability", "tensorrt_version") if not getattr(outcome, name)]
    if missing:
        raise StageError(
            f"trtexec's log does not tell {' and '.join(missing)}, to which the plan is bound; report its log"
        )
    if outcome.tensorrt_version.partition(".")[0] != TENSORRT_VERSION:
        raise StageError(
            f"this is TensorRT {outcome.tensorrt_version}, Triton {TRITON_RELEASE} has {TENSORRT_VERSION}; build in "
            "the image of that release"
        )


def _figures(outcome: Outcome) -> dict[str, float]:
    figures = {f"latency_{name}_milliseconds": value for name, value in outcome.latency.items()}
    return {**figures, **({} if outcome.throughput is None else {"batches_per_second": outcome.throughput})}


def parse(argv: list[str]) -> argparse.Namespace:
    """Reads `build --exported DIR --plan DIR …`; flags are the component's inputs, parameters and outputs."""
    parser = step.OneLineParser(prog="tensorrt", allow_abbrev=False, description=__doc__)
    parser.add_argument("task", choices=["build"])
    parser.add_argument("--exported", type=Path, required=True, help="Exported-model artifact.")
    parser.add_argument("--plan", type=Path, required=True, help="Artifact to write.")
    parser.add_argument("--metrics", type=Path, help="Flat JSON of numbers to write.")
    parser.add_argument("--precision", choices=PRECISIONS, default=Build.precision)
    parser.add_argument("--best-batch", type=int, default=Build.batches[1], help="The batch to optimise for.")
    parser.add_argument("--largest-batch", type=int, default=Build.batches[2])
    parser.add_argument("--workspace", type=int, default=Build.workspace, help="MiB of GPU memory for kernels.")
    parser.add_argument("--timing-cache", type=Path, help="File of kernel timings to read and write.")
    parser.add_argument("--trtexec", default=TRTEXEC, help="The program.")
    return parser.parse_args(argv)


# What a stage writes; Kubeflow adds outputs of its own.
OUTPUT_FLAGS = frozenset({"--plan", "--metrics"})


def main(argv: list[str]) -> None:
    """Runs the command that `parse` reads."""
    options = parse(argv)
    batches = (1, options.best_batch, options.largest_batch)
    build = Build(options.precision, batches, options.workspace, options.timing_cache)
    outcome = build_plan(options.exported, options.plan, build, options.trtexec)
    if options.metrics:
        write_json(options.metrics, _figures(outcome))
    print(
        f"{options.plan}: for {outcome.gpu}, TensorRT {outcome.tensorrt_version}; {json.dumps(dict(outcome.latency))}"
    )


if __name__ == "__main__":
    sys.exit(step.run(sys.argv[1:], main, "gridbox serve tensorrt", lambda _: OUTPUT_FLAGS))
