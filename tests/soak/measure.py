# SPDX-License-Identifier: Apache-2.0
"""What a process takes while it runs: memory and descriptors, and whether memory only grew at first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median


def resident(pid: int) -> int:
    """Resident memory in KiB."""
    return _status(pid, "VmRSS")


def descriptors(pid: int) -> int:
    """How many descriptors are open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def kinds_of_descriptors(pid: int) -> Counter[str]:
    """The same by what they are: sockets, pipes, files by name."""
    found: Counter[str] = Counter()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            found[str(link.readlink()).partition(":")[0]] += 1
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def command(pid: int) -> str:
    """A process's command line, for telling processes apart."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()


@dataclass(frozen=True, slots=True)
class Trend:
    """Memory over time: KiB."""

    first: float
    """median of the second quarter of the time: the first is for what is made once"""
    last: float
    """median of the last quarter"""
    slope: float
    """KiB a minute, by least squares over the last three quarters"""

    @property
    def growth(self) -> float:
        return self.last - self.first


def trend(samples: Sequence[tuple[float, int]]) -> Trend:
    """Of (seconds, KiB) in their order, at least four of them."""
    quarter = len(samples) // 4
    rest = samples[quarter:]
    middle_time, middle = fmean(time for time, _ in rest), fmean(value for _, value in rest)
    spread = sum((time - middle_time) ** 2 for time, _ in rest)
    slope = sum((time - middle_time) * (value - middle) for time, value in rest) / spread if spread else 0.0
    return Trend(
        median(value for _, value in samples[quarter : 2 * quarter]),
        median(value for _, value in samples[-quarter:]),
        slope * 60,
    )


def _status(pid: int, name: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1])
