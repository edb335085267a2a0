"""Fixtures shared by all tests."""

import os
import signal
from pathlib import Path

# Two workers share the cores: threads that spin while they wait would take them from each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest

# Started in the background of a shell, pytest inherits an ignored SIGINT, and so would the programs interrupted here.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("GRIDBOX_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder} (set GRIDBOX_DATA to a folder that holds them)")
    return folder


@pytest.fixture(scope="session")
def kitti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of discs; see `tests/discs.py`."""
    import discs

    return discs.write_kitti(tmp_path_factory.mktemp("kitti"))


@pytest.fixture(scope="session")
def records(kitti: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of the discs."""
    import discs

    return discs.write_records(tmp_path_factory.mktemp("records"), kitti)
