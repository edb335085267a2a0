"""Gathers what an image installs as wheels, for a build without a network.

python containers/wheelhouse.py cpu triton

Each target gets a folder of its own below build/wheelhouse, since `cpu` and `gpu` want different builds of PyTorch.
What a target installs is read from the Dockerfile, so that the two cannot disagree.
"""

import re
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# NVIDIA's image of the release has a Python of its own; every other target is built on Python 3.11.
PYTHON = {"triton": "3.12"}
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def requirements(target: str) -> Iterator[str]:
    """Yields what the Dockerfile's first `pip install` of a target asks for, with gridbox's extras spelt out.

    Raises:
        ValueError: There is no such target, or it installs nothing.
    """
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    stage = re.search(rf"^FROM \S+ AS {target}\n(.*?)(?=^FROM|\Z)", dockerfile, re.DOTALL | re.MULTILINE)
    install = stage and re.search(r"^RUN .*pip install(.*)$", stage[1], re.MULTILINE)
    if not install:
        raise ValueError(f"{target}: the Dockerfile has no such target that installs anything")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for word in re.findall(r'"([^"]+)"', install[1]):
        extras = re.fullmatch(r"/requirements\[(.*)\]", word)
        if not extras:
            yield word
            continue
        yield from project["build-system"]["requires"]
        yield from project["project"]["dependencies"]
        for extra in extras[1].split(","):
            yield from project["project"]["optional-dependencies"][extra]


def gather(target: str) -> Path:
    """Fills a target's folder and returns it. What has no wheel is built here, save for another Python than this."""
    folder = ROOT / "build/wheelhouse" / target
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if target in PYTHON:
        wanted = ["--python-version", PYTHON[target], "--only-binary", ":all:", "--dest", str(folder)]
        command = [*pip, "download", *wanted]
    else:
        command = [*pip, "wheel", "--wheel-dir", str(folder)]
    command += ["--constraint", str(ROOT / "requirements.lock")]
    subprocess.run([*command, *extra_index(target), *requirements(target)], check=True, cwd=ROOT)
    return folder


def extra_index(target: str) -> list[str]:
    """Returns pip's option for the index that has PyTorch without CUDA, for the one image that is better off so."""
    if target != "cpu":
        return []
    try:
        with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=4):
            return ["--extra-index-url", CPU_INDEX]
    except OSError as error:
        print(f"{CPU_INDEX} cannot be reached ({error}): PyTorch comes from pip's own indexes", file=sys.stderr)
        return []


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(gather(name))
