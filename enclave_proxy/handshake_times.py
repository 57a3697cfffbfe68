# SPDX-License-Identifier: Apache-2.0
"""How long handshakes took: a histogram of plain integers, cheap enough for every connection."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

# Upper edges in seconds. One that needs no round trip far away takes 2 to 5 ms; the default bound of one is 10 s.
EDGES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(slots=True)
class HandshakeTimes:
    """`counts`: how many ended within each edge and not within the one before it; the last is for those beyond all."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(EDGES) + 1))
    seconds: float = 0.0
    """the sum of all"""

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(EDGES, seconds)] += 1
        self.seconds += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus wants them: edge, and how many took that long or less."""
        edges = [*(str(edge) for edge in EDGES), "+Inf"]
        return [(edge, float(sum(self.counts[: index + 1]))) for index, edge in enumerate(edges)]
