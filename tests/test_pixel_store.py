"""Decoded images on disk: mixed sizes, no room, and one copy for all processes of a machine."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from components.step import UserError
from components.vision.data.cache import PixelStore

SIZES = [(7, 5), (1, 1), (640, 480), (3, 200)]


def test_images_of_mixed_sizes_lie_one_behind_the_other():
    store = PixelStore(SIZES)
    for index, image in enumerate(store):
        assert image.shape == (*SIZES[index][::-1], 3)
        assert not image.any()
        image[:] = index + 1
    assert [np.unique(image).tolist() for image in store] == [[1], [2], [3], [4]]
    assert os.fstat(store._file.fileno()).st_size == sum(3 * width * height for width, height in SIZES)


def test_no_image_needs_no_file_and_images_of_one_size_stack():
    assert PixelStore([]).stacked().shape == (0, 1, 1, 3)
    stacked = PixelStore([(4, 3)] * 2)
    stacked[1][:] = 9
    assert stacked.stacked()[:, 0, 0, 0].tolist() == [0, 9]


def test_the_disk_is_taken_before_it_is_written_by_a_file_without_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = PixelStore([(4000, 3000)])
    assert os.fstat(store._file.fileno()).st_blocks * 512 >= 4000 * 3000 * 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_costs_one_line_that_says_how_much_where(tmp_path, monkeypatch, number):
    def full(*_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(
        UserError, match=rf"^{tmp_path}: the decoded images need 3\.0 GB of disk, .* in TMPDIR"
    ) as error:
        PixelStore([(10_000, 10_000)] * 10)
    assert "\n" not in str(error.value)


LIMITED = """
import resource
from components.vision.data.cache import PixelStore
resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
PixelStore([(1000, 1000)])
"""


def test_a_file_that_may_not_grow_so_large_is_no_signal_either():
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "UserError" in done.stderr.splitlines()[-1]
    assert "name a larger place in TMPDIR" in done.stderr


# ---- Several processes -----------------------------------------------------------------------------------------------

SHARED = """
import hashlib, os, sys
from pathlib import Path
import numpy as np
from components.decode.grid.geometry import GridGeometry
from components.detectnet_v2 import dataset
from components.detectnet_v2.dataset import LabelledImages, LabelMapping
from components.detectnet_v2.framing import Fitting
from components.detectnet_v2.records import Frame
from components.step import UserError
from components.vision.distributed import joined
from components.vision.inputs import InputSpec

folder = Path(sys.argv[1])
read, decoded = dataset.read_rgb, []
dataset.read_rgb = lambda *arguments: decoded.append(1) or read(*arguments)
files = sorted(folder.glob("*.png"))
names = [file.stem for file in files] + sys.argv[2:]
sizes = [tuple(map(int, name.split("_")[1].split("x"))) for name in names]
frames = [Frame(name, *size, ["face"], np.array([[1, 2, 9, 12]], np.float32)) for name, size in zip(names, sizes)]
with joined() as group:
    try:
        images = LabelledImages(
            frames, [folder / f"{name}.png" for name in names], LabelMapping({"face": 0}, frozenset()),
            GridGeometry(96, 64), Fitting(InputSpec(96, 64), largest_zoom=9.0), group=group,
        )
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    pixels = hashlib.sha256(b"".join(image.tobytes() for image, _ in map(images.stored, range(len(images)))))
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "(deleted)" in line]
    inodes = {line[4] for line in maps if "/tmp" in line[5]}
    report = f"{group.rank} {len(decoded)} {pixels.hexdigest()} {','.join(sorted(inodes))}"
    (folder / f"report{group.rank}").write_text(report)
"""


def pair(folder, *extra):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    command = [*launcher, sys.executable, "-c", SHARED, folder, *extra]
    scratch = folder / "tmp"
    scratch.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert not [file for file in scratch.rglob("*") if file.is_file() and file.stat().st_size > 10_000]
    return done


def test_two_processes_of_a_machine_decode_once_and_leave_nothing(tmp_path):
    for index, (width, height) in enumerate([(120, 80), (64, 200), (96, 64)]):
        pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{index}_{width}x{height}.png"), pixels)
    done = pair(tmp_path)
    assert done.returncode == 0, done.stderr
    (_, first, ours, mapped), (_, second, theirs, elsewhere) = (
        (tmp_path / f"report{rank}").read_text().split() for rank in range(2)
    )
    assert (first, second) == ("3", "0")
    assert ours == theirs
    assert mapped == elsewhere  # the very same file


def test_an_image_that_one_process_cannot_read_ends_both_with_one_line(tmp_path):
    done = pair(tmp_path, "gone_10x10")
    assert done.returncode != 0
    assert done.stderr.count("gone_10x10.png: No such file") == 1
    assert not list(Path(tmp_path).glob("report*"))
