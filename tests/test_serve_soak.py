"""A server that works for long: no error, and no memory that creeps."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from triton_server import needs_triton

BENCHMARK = Path(__file__).resolve().parent.parent / "benchmarks" / "serving.py"


@needs_triton
@pytest.mark.long
def test_ten_minutes_of_sixteen_clients_bring_no_error_and_no_growth():
    pytest.importorskip("tritonclient.grpc")
    command = [sys.executable, str(BENCHMARK), "--network", "cpu", "--minutes", "10"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
    printed = f"{done.stdout}exit code {done.returncode}"
    summary = re.search(r"^(\d+) images, (\d+) errors; memory ([\d.]+) of minute 3 ", printed, re.MULTILINE)
    assert summary, printed
    images, errors, growth = int(summary[1]), int(summary[2]), float(summary[3])
    assert images > 10_000, printed
    assert errors == 0, printed
    assert growth <= 1.05, printed
