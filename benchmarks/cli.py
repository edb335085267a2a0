"""How long a person waits for the command line: `gridbox --help`, and `gridbox compile` of each pipeline.

Bounds: a median of 0.4 s for the help and 2 s for compiling. `import kfp` alone, which compiling cannot do without and
the help must do without, alternates with them within one run: the ratios to it hold on slower machines, too. Files are
in the page cache after the first round, which does not count. Run: python benchmarks/cli.py
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.catalogue import WORKFLOWS

ROUNDS = 7
HELP_SECONDS, COMPILE_SECONDS = 0.4, 2.0
REFERENCE = "import kfp"
GRIDBOX = "from pipeline import cli; cli.main()"


def seconds(*words: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    """Returns 1 where a bound is passed, else 0."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "pipeline.yaml"))
        commands = {REFERENCE: (REFERENCE,), "gridbox --help": (GRIDBOX, "--help")}
        commands |= {f"gridbox compile {each}": (GRIDBOX, "compile", each, "-o", file) for each in WORKFLOWS}
        rounds = [{name: seconds(*words) for name, words in commands.items()} for _ in range(ROUNDS + 1)][1:]
    medians = {name: statistics.median(each[name] for each in rounds) for name in commands}
    passed = False
    for name, median in medians.items():
        bound = HELP_SECONDS if "--help" in name else COMPILE_SECONDS
        ratio = median / medians[REFERENCE]
        limit = "" if name == REFERENCE else f"  (bound {bound:.1f} s)"
        print(f"{name:<28} {median:.2f} s  {ratio:.2f} of {REFERENCE}{limit}")
        passed |= name != REFERENCE and median > bound
    print(f"load average {os.getloadavg()[0]:.1f}")
    return int(passed)


if __name__ == "__main__":
    sys.exit(main())
