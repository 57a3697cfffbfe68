# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with the demo, in words for whoever started it."""

from __future__ import annotations


class DemoError(Exception):
    """Root of what the demo raises: one clear line, and maybe the last lines of a log."""

    def __init__(self, message: str, log_lines: tuple[str, ...] = ()) -> None:
        self.log_lines = log_lines
        super().__init__(message)


class PortTakenError(DemoError):
    """A port that was free when it was chosen is taken: start again with others."""


class CheckFailedError(DemoError):
    """Everything ran, and what came out is not what must come out."""
