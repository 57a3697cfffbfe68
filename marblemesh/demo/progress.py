# SPDX-License-Identifier: Apache-2.0
"""vote-bot's standard output: JSON lines, of which the last complete one tells where it is."""

from __future__ import annotations

import json
from pathlib import Path

# A line is below 4 KiB (ten errors, a leaderboard); progress lines are some 40 bytes.
_TAIL_BYTES = 16 * 1024


def last_line(out: Path) -> dict[str, object]:
    """The last complete line that is a JSON object; empty when there is none yet."""
    try:
        with out.open("rb") as file:
            file.seek(max(0, out.stat().st_size - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return {}
    for line in reversed(lines):
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return {}
