# SPDX-License-Identifier: Apache-2.0
"""When an app that has ended is started again: a rule over exit statuses and times, no process and no clock in it.

    ended ─► does the policy want it again? ─► fewer than MAX_RESTARTS in WINDOW? ─► after a delay that grows
                    no: its status is ours          no: its status is ours

Giving up ends the worker with the app's status, so that whoever started the worker sees it and can start a fresh TEE.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import StrEnum

from enclave_proxy.backoff import Backoff

# Seconds. Ten failed starts take about two and a half minutes with these delays; an app that dies once an hour is
# never given up.
FIRST_DELAY = 0.5
LONGEST_DELAY = 30.0
MAX_RESTARTS = 10
WINDOW = 600.0
# An app that ran for this long has started well: the next delay is short again.
STEADY = 60.0


class RestartPolicy(StrEnum):
    """The values of `--restart`."""

    NEVER = "never"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


class Restarts:
    """One app's history. `random` gives numbers in [0, 1), for the jitter."""

    def __init__(self, policy: RestartPolicy, random: Callable[[], float]) -> None:
        self._policy = policy
        self._backoff = Backoff(random, initial=FIRST_DELAY, cap=LONGEST_DELAY, floor=FIRST_DELAY / 2)
        self._recent: deque[float] = deque()
        self.exhausted = False

    def after(self, status: int, *, ran: float, now: float) -> float | None:
        """Seconds to wait before the next start, or None: not again. `ran`: how long it lived; `now`: any steady clock
        in seconds. `exhausted` says whether the policy wanted it again, but too many starts have failed already."""
        if self._policy is RestartPolicy.NEVER or (self._policy is RestartPolicy.ON_FAILURE and status == 0):
            return None
        while self._recent and self._recent[0] <= now - WINDOW:
            self._recent.popleft()
        if len(self._recent) >= MAX_RESTARTS:
            self.exhausted = True
            return None
        self._recent.append(now)
        if ran >= STEADY:
            self._backoff.reset()
        return self._backoff.next()
