"""Runs a stage of TAO's by the folder that travels: `python3 -B <folder> <network> <task> --flag=value …`."""

import sys

from components.step import run
from components.tao.tasks import flags_of, run_task

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], run_task, flags_of=flags_of))
