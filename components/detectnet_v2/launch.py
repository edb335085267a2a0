"""What TAO's entry point does for every task: choosing GPUs, starting a process for each, logging to a file."""

import os
import sys
from collections.abc import Sequence

from components.step import UserError

_PROGRAM = "from components.detectnet_v2.commands import main; main()"


def run_common_options(argv: Sequence[str]) -> list[str]:
    """Carries out the options that TAO's entry point takes for every task; returns the others.

    `train` declares them itself. The other tasks run as one process on one device: `--gpus`, `--num_processes`,
    `--mpirun-arg`, `--multi-node` and `--use_amp` change nothing there.
    """
    words = list(argv)
    if not words or words[0] == "train":
        return words
    kept: list[str] = []
    indices: list[int] = []
    while words:
        name, _, value = words.pop(0).partition("=")
        takes_one = name in ("--gpus", "-np", "--num_processes", "--log_file", "--mpirun-arg")
        if takes_one and not value and words:
            value = words.pop(0)
        if name == "--log_file" and value:
            log_to(value)
        elif name == "--gpu_index":
            numbers = [value] if value else []
            while words and words[0].isdigit():
                numbers.append(words.pop(0))
            indices = [int(number) for number in numbers]
        elif name == "--launch_cuda_blocking":
            block_launches()
        elif not takes_one and name not in ("--use_amp", "--multi-node"):
            kept.append(f"{name}={value}" if value else name)
    if indices:
        choose_gpus(1, indices)
    return kept


def block_launches() -> None:
    """Lets CUDA wait for every kernel, so that an error is raised where it arises."""
    os.environ["CUDA_LAUNCH_BLOCKING"] = "1"


def is_launched() -> bool:
    """Whether a launcher (torchrun, a Kubernetes training operator) has started this process as one of several."""
    return "LOCAL_RANK" in os.environ


def is_first() -> bool:
    """Whether this process is the one that writes files."""
    return os.environ.get("RANK", "0") == "0"


def choose_gpus(gpus: int, indices: Sequence[int]) -> None:
    """Makes the GPUs of `--gpu_index` the only visible ones.

    Raises:
        UserError: Fewer indices than GPUs, or this machine has too few.
    """
    if indices:
        if len(indices) < gpus:
            raise UserError(f"--gpu_index names {len(indices)} GPUs, --gpus {gpus} needs as many")
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, indices[:gpus]))
    import torch  # takes a second, which help and mistakes need not

    here = torch.cuda.device_count()
    if gpus > max(here, 1):
        raise UserError(f"--gpus {gpus}: this machine shows {here} GPUs; ask for fewer, or leave the option out")
    if indices and not here:
        print("warning: --gpu_index: no GPU here, running on the CPU", file=sys.stderr, flush=True)


def relaunch(gpus: int, argv: Sequence[str]) -> None:
    """Replaces this process by `gpus` processes with the same command line. Does not return."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
    os.execv(sys.executable, [*launcher, "--no-python", sys.executable, "-c", _PROGRAM, *argv])


def log_to(file: str) -> None:
    """Sends what this process and its children print to a file, as TAO's `--log_file` does."""
    stream = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(stream, descriptor)
    os.close(stream)
