"""The program that makes a task of TAO's a step: it travels in an artifact, since NVIDIA's image has no gridbox."""

import shutil
from pathlib import Path

from components.step import publish, write_manifest
from components.tao.rendering import FAMILIES

_MAIN = FAMILIES / "tao/__main__.py"


def write_program(family: str, target: Path) -> None:
    """Writes a folder that Python runs by its path, with what a family's stages import and its spec templates.

    Args:
        family: The family, for example `detectnet_v2`.
        target: The folder to write.

    Raises:
        UserError: Something that is not ours stands at `target`.
    """
    own = {Path(__file__).resolve(), _MAIN}
    names = ["__init__.py", "step.py", f"{family}/__init__.py", f"{family}/stage.py"]
    files = [*(FAMILIES / name for name in names), *set((FAMILIES / "tao").glob("*.py")) - own]
    files += (FAMILIES / family / "specs").glob("*/*.txt")
    with publish(target) as scratch:
        for file in files:
            copy = scratch / FAMILIES.name / file.relative_to(FAMILIES)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file), str(copy))
        shutil.copyfile(str(_MAIN), str(scratch / "__main__.py"))
        write_manifest(scratch, "program", {}, {})
