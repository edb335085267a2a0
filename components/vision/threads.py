"""How many cores a stage may use."""

import os
from pathlib import Path


def available_cores() -> int:
    """Returns the cores this process may use: its affinity, limited by the CPU quota of its cgroup (v1 or v2)."""
    cores = len(os.sched_getaffinity(0))
    quota = _cgroup_quota()
    return max(1, min(cores, int(quota))) if quota else cores


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    version2, quota1, period1 = root / "cpu.max", root / "cpu/cpu.cfs_quota_us", root / "cpu/cpu.cfs_period_us"
    try:
        if version2.is_file():
            quota, period = version2.read_text().split()
            return None if quota == "max" else int(quota) / int(period)
        if quota1.is_file():
            microseconds = int(quota1.read_text())
            return microseconds / int(period1.read_text()) if microseconds > 0 else None
    except (OSError, ValueError):
        return None
    return None
