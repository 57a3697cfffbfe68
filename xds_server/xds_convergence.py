# SPDX-License-Identifier: Apache-2.0
"""How long a change takes until everybody has it: from the change itself to the last answer of those who were told."""

from __future__ import annotations

import time
from collections.abc import Callable


class Change:
    """One push of changes. `began` is the `time.monotonic()` of the first of them; `done` hears how long it took."""

    __slots__ = ("_began", "_done", "_told_all", "_waiting")

    def __init__(self, began: float, done: Callable[[float], None]) -> None:
        self._began = began
        self._done = done
        self._waiting = 0
        self._told_all = False

    def told(self) -> None:
        """One more client has to get there."""
        self._waiting += 1

    def all_told(self) -> None:
        """Nobody else will be told. A change that concerns nobody is none."""
        self._told_all = True

    def arrived(self) -> None:
        """One client has answered everything, or is gone."""
        self._waiting -= 1
        if not self._waiting and self._told_all:
            self._done(time.monotonic() - self._began)
