"""The Triton server of the `nvidia-pytriton` wheel: where it is, and its Python backend made ready for this Python."""

import importlib.metadata
import importlib.util
import shutil
import sys
import sysconfig
from ctypes.util import find_library
from pathlib import Path

from components.step import UserError

DISTRIBUTION = "nvidia-pytriton"
VERSION = "0.7.0"
INSTALL = f"pip install --no-deps {DISTRIBUTION}=={VERSION}"
_LIBRARIES = "nvidia_pytriton.libs"
STUB = "triton_python_backend_stub"
_HOME = Path("pytriton", "tritonserver")
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def server_program() -> Path:
    """Returns the server's program.

    Raises:
        UserError: The wheel is not installed in this Python's environment, is another version, or is incomplete.
    """
    try:
        version = importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"the local Triton server is not installed: {INSTALL}") from None
    if version != VERSION:
        raise UserError(f"{DISTRIBUTION} {version} is installed, its server may not fit; get {VERSION}: {INSTALL}")
    program = _site_packages() / _HOME / "bin" / "tritonserver"
    if not program.is_file():
        raise UserError(f"{program}: missing; install it again: {INSTALL} --force-reinstall")
    return program


def write_backends(folder: Path) -> Path:
    """Writes a backend directory with the Python backend for this Python.

    The wheel keeps the stubs of all Pythons elsewhere. Its layout is mirrored: the libraries are looked for relative to
    the file that needs them.

    Args:
        folder: An empty folder, which has to stay.

    Returns:
        What Triton calls the backend directory.

    Raises:
        UserError: The wheel has no stub for this Python, or there is no shared library of this Python.
    """
    site, home = _site_packages(), _site_packages() / _HOME
    stub = home / "python_backend_stubs" / _PYTHON / STUB
    if not stub.is_file():
        raise UserError(f"{DISTRIBUTION} {VERSION} does not run models in Python {_PYTHON}; use Python 3.11")
    if not (libpython_folder() or find_library(f"python{_PYTHON}")):
        raise UserError(f"no libpython{_PYTHON}.so on this machine; on Debian: apt install libpython{_PYTHON}")
    backends = folder / _HOME / "backends"
    shutil.copytree(home / "backends" / "python", backends / "python", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(stub, backends / "python")
    (folder / _LIBRARIES).symlink_to(site / _LIBRARIES)
    return backends


def libpython_folder() -> Path | None:
    """Returns where the shared library of this very Python lies; None when it was built without one."""
    folder = Path(sysconfig.get_config_var("LIBDIR") or "")
    return folder if (folder / f"libpython{_PYTHON}.so.1.0").is_file() else None


def _site_packages() -> Path:
    """Returns the folder that holds the wheel. `pytriton` itself is not imported: it wants what it depends on."""
    found = importlib.util.find_spec("pytriton")
    if found is None or found.origin is None:
        raise UserError(f"{DISTRIBUTION} is installed without its files; install it again: {INSTALL} --force-reinstall")
    return Path(found.origin).parent.parent
