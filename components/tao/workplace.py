"""The folders of a TAO stage: scratch, results that outlive an attempt, data laid out as TAO wants it."""

import contextlib
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Iterator, Sequence

from components.step import StageError, UserError

STAGE_DIR = "GRIDBOX_STAGE_DIR"
# In a cluster: a mounted volume's folder of the stage, and the run, so that a retry on another node finds its work.
CHECKPOINTS, RUN_ID = "GRIDBOX_CHECKPOINTS", "GRIDBOX_RUN_ID"


class Workplace:
    """The folder in which a TAO stage works.

    Attributes:
        scratch: Emptied at every start.
        results: The program's results directory. Where it is kept it outlives an interrupted attempt, so that training
            resumes from its checkpoints.
    """

    def __init__(self, scratch: Path, results: Path, keep_results: bool) -> None:
        self.scratch, self.results = scratch, results
        for folder in [scratch] if keep_results else [scratch, results]:
            shutil.rmtree(str(folder), ignore_errors=True)
        scratch.mkdir(parents=True)
        results.mkdir(parents=True, exist_ok=True)

    def part(self, name: str) -> "Workplace":
        """Returns a workplace of its own for one of several calls of the program."""
        return Workplace(self.scratch / name, self.results / name, keep_results=False)

    def write_spec(self, text: str) -> Path:
        """Writes a filled spec into the scratch folder."""
        file = self.scratch / "spec.txt"
        file.write_text(text, encoding="utf-8")
        return file


@contextlib.contextmanager
def workplace(keep_results: bool = False) -> Iterator[Workplace]:
    """Gives a stage its folder: `GRIDBOX_STAGE_DIR` where set, else a temporary one that is removed.

    Results to be kept go below `GRIDBOX_CHECKPOINTS` where that is set, by run, and go when the stage has ended well.
    """
    kept, checkpoints = os.environ.get(STAGE_DIR), os.environ.get(CHECKPOINTS)
    if kept:
        yield Workplace(Path(kept, "scratch"), Path(kept, "results"), keep_results)
        return
    with tempfile.TemporaryDirectory(prefix="gridbox-") as temporary:
        if checkpoints and keep_results:
            run_id = os.environ.get(RUN_ID)
            if not run_id:
                raise UserError(f"{CHECKPOINTS}: set {RUN_ID}, too, so that no two runs share {checkpoints}")
            results = Path(checkpoints, run_id, "results")
            yield Workplace(Path(temporary, "scratch"), results, keep_results)
            shutil.rmtree(str(results), ignore_errors=True)
            with contextlib.suppress(OSError):  # it holds something else, which is not ours
                results.parent.rmdir()
        else:
            yield Workplace(Path(temporary, "scratch"), Path(temporary, "results"), keep_results)


def unpack(kitti_set: Path, split: str, target: Path) -> Path:
    """Lays out one split of a KITTI set as TAO's folders `images/` and `labels/`.

    Args:
        kitti_set: A KITTI-set artifact with tar shards, or a folder that is laid out already (then it is used as it
            stands and nothing is copied).
        split: `training`, `validation` or `test`.
        target: Where to unpack; `images` and `labels` are created in `target/<split>`.

    Returns:
        The folder that holds `images/` and `labels/`.

    Raises:
        UserError: Neither shards nor folders are there, or a shard is damaged or has an unsafe member.
    """
    source, folder = kitti_set / split, target / split
    shards = sorted(source.glob("shard-*.tar"))
    if not shards:
        if (source / "images").is_dir():
            return source
        raise UserError(f"{source}: no KITTI set here (neither shard-*.tar nor images/ and labels/)")
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for shard in shards:
        try:
            with tarfile.open(str(shard), "r:") as tar:
                for member in tar:
                    _unpack_member(tar, member, shard, folder)
        except tarfile.TarError as error:
            raise UserError(f"{shard}: not a readable tar shard: {error}") from error
    return folder


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: Path, folder: Path) -> None:
    parts = member.name.split("/")
    if not member.isfile() or len(parts) != 2 or parts[0] not in ("images", "labels") or parts[1] in ("", ".", ".."):
        raise UserError(f"{shard}: member {member.name!r} is refused; a set holds plain files images/* and labels/*")
    content = tar.extractfile(member)
    assert content is not None
    with (folder / parts[0] / parts[1]).open("xb") as file:
        shutil.copyfileobj(content, file)


def copy_results(results: Path, target: Path, names: Sequence[str], required: Sequence[str] = ()) -> None:
    """Copies files and folders that are there and not empty from a results directory.

    Raises:
        StageError: A required one is not.
    """
    for name in names:
        source = results / name
        if source.is_dir() and any(source.iterdir()):
            shutil.copytree(str(source), str(target / name))
        elif source.is_file():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(str(source), str(target / name))
        elif name in required:
            raise StageError(f"the program ended well but left no {name} in its results directory")
    target.mkdir(parents=True, exist_ok=True)
