# SPDX-License-Identifier: Apache-2.0
"""What every benchmark needs: a process's CPU and memory, medians with spread, a result that says where it was made."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# MAKE_PROCESS_CPUCLOCK of the kernel (posix-timers.h): what clock_getcpuclockid(3) does.
_CPUCLOCK_SCHED = 2


@dataclass(frozen=True, slots=True)
class Figure:
    """The median of several rounds, and how far they lie apart."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Figure:
        return cls(statistics.median(rounds), min(rounds), max(rounds))


def cpu_seconds(pid: int) -> float:
    """User and system time of one process so far, all threads, from the kernel's clock of it (to the nanosecond;
    /proc/<pid>/stat counts in ticks of 10 ms)."""
    return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)


def pin(pid: int, core: int) -> None:
    """Keep all threads of a process on one core. A thread that begins later inherits that."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} shows no VmRSS: it has ended")


def write_result(name: str, figures: dict[str, object]) -> Path:
    """Write bench/results/<name>.json with the machine, the date and the commit beside the figures."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    system = f"Linux {platform.release()}, Python {platform.python_version()}"
    where = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {system}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or "unknown",
    }
    path = ROOT / "bench" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**where, **figures}, indent=2, default=lambda v: asdict(v)) + "\n")
    return path
