# SPDX-License-Identifier: Apache-2.0
"""What is known of the app, for health, metrics and dumps: written by its supervisor, read by the admin port."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class AppState:
    """`starts` counts every start; `last_status` is how the one before ended, None if none has."""

    running: bool = False
    starts: int = 0
    last_status: int | None = None
    restart_delay: float | None = None
    """seconds from its end to its next start, while it waits for that"""
    silent: tuple[str, ...] = ()
    """where it should listen and nobody answers yet; empty once all of it answers, or it was waited for long enough"""

    def not_ready(self) -> str | None:
        """Why the app cannot serve, or None."""
        if not self.running:
            ended = "" if self.last_status is None else f": it ended with status {self.last_status}"
            if self.restart_delay is not None:
                ended += f" and is started again after {self.restart_delay:.1f} s"
            return f"the app is not running{ended}"
        return f"the app does not listen yet: {', '.join(self.silent)}" if self.silent else None
