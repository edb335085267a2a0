"""A conformance double of NVIDIA's `detectnet_v2` (TAO 5.0, TensorFlow 1): it checks as TAO does and learns nothing.

It takes exactly TAO's tasks and options, reads specs by TAO's schema and its validator's rules, demands the files that
TAO demands, leaves results in TAO's layout, and ends with TAO's exit codes, even where they mislead. So the TAO path of
a pipeline is tried without NVIDIA's image and without a GPU. Its figures mean nothing; each is marked by `double: 1`
beside it in `status.json`.

What happens on demand (`GRIDBOX_DOUBLE_FAIL`) is in `faults.py`. Source of the facts: `nvidia_tao_tf1` 5.0.0.01
(`cv/common/entrypoint/entrypoint.py`, `cv/detectnet_v2/scripts`, `cv/detectnet_v2/spec_handler`).
"""

import shlex
import sys
from pathlib import Path

PROGRAM = "detectnet_v2"


def install(folder: Path) -> Path:
    """Writes the double into a folder as an executable `detectnet_v2`.

    Args:
        folder: Created if need be. First on PATH, it takes the place of NVIDIA's program (and of the open engine).

    Returns:
        The executable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / PROGRAM
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {__name__} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    return program
