"""A Docker daemon of the tests' own, and a base image made here: nothing is pulled, and nothing is left behind."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import docker

PR_SET_PDEATHSIG = 1
PROGRAMS = ("dockerd", "debootstrap")
START_SECONDS = 30.0
# As in python:3.11-slim-bookworm: pip, and the two names by which programs call Python.
PACKAGES = "python3,python3-pip,ca-certificates"


class NoDaemonError(Exception):
    """No daemon can run here; the text says why."""


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def running() -> Iterator[docker.DockerClient]:
    """Runs a daemon of its own, without networks, to which DOCKER_HOST leads meanwhile.

    Raises:
        NoDaemonError: A program or a right is missing, or the daemon does not start.
    """
    if os.geteuid() != 0:
        raise NoDaemonError("a Docker daemon of its own needs root")
    for program in PROGRAMS:
        if not shutil.which(program):
            raise NoDaemonError(f"{program} is missing: apt-get install docker.io iptables debootstrap")
    folder = Path(tempfile.mkdtemp(prefix="gridbox-docker-"))
    host, log = f"unix://{folder}/docker.sock", folder / "dockerd.log"
    options = ["--iptables=false", "--bridge=none", "--ip-forward=false", "--pidfile", f"{folder}/dockerd.pid"]
    roots = ["--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"]
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            ["dockerd", "--host", host, *options, *roots],
            stdout=output,
            stderr=output,
            preexec_fn=_end_with_parent,
        )
    try:
        with contextlib.closing(_connect(daemon, host, log)) as client, mock.patch.dict(os.environ, DOCKER_HOST=host):
            yield client
    finally:
        daemon.terminate()
        try:
            daemon.wait(60)
        finally:
            daemon.kill()
        shutil.rmtree(folder)


def _connect(daemon: subprocess.Popen[bytes], host: str, log: Path) -> docker.DockerClient:
    give_up = time.monotonic() + START_SECONDS
    while True:
        try:
            return docker.DockerClient(base_url=host)
        except (docker.errors.DockerException, OSError) as error:
            if daemon.poll() is not None or time.monotonic() > give_up:
                lines = log.read_text(errors="replace").splitlines() or [str(error)]
                raise NoDaemonError(f"dockerd does not start here: {lines[-1]}") from error
            time.sleep(0.1)


def import_stand_in(archive: Path, name: str) -> None:
    """Imports a small Debian with Python as an image; makes it first where `archive` is not there yet.

    Args:
        archive: The image's files, kept for the next time.
        name: What the image shall be called.
    """
    if not archive.is_file():
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
            root, packed = Path(scratch) / "root", Path(scratch) / "packed.tar"
            _run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root), *_mirror())
            (root / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink()
            (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
            _run("tar", "-C", str(root), "--exclude=./var/cache/apt/*", "-cf", str(packed), ".")
            packed.rename(archive)
    _run("docker", "import", str(archive), name)


def _mirror() -> list[str]:
    """Where this machine's own apt takes Debian from."""
    command = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]
    listed = subprocess.run(command, capture_output=True, text=True)
    return [site for site in listed.stdout.split() if site.rstrip("/").endswith("/debian")][:1]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command[0]}: {(done.stdout + done.stderr)[-2000:]}"
