# SPDX-License-Identifier: Apache-2.0
"""Bytes of request bodies that a port may hold at once, over all its connections and protocols."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ByteBudget:
    """Whoever takes gives back the same count."""

    limit: int
    used: int = 0

    def take(self, count: int) -> bool:
        """False, and nothing taken, if that would be more than `limit`."""
        if self.used + count > self.limit:
            return False
        self.used += count
        return True

    def give_back(self, count: int) -> None:
        self.used -= count
