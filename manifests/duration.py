# SPDX-License-Identifier: Apache-2.0
"""Durations as Go writes them: "24h", "1h30m", "1.5h", "90s"; units ns, us (µs), ms, s, m, h."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal

_NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
# Go counts nanoseconds in 64 bits: 292 years.
_MAX_NANOSECONDS = 2**63 - 1
# Longer than any sensible duration, short enough for arithmetic on whatever digits it holds.
_MAX_LENGTH = 64


def parse_duration(text: str) -> timedelta:
    """The non-negative duration that `text` names, to the microsecond. Raises ValueError with the expected form."""
    parts = list(_PART.finditer(text)) if len(text) <= _MAX_LENGTH else []
    if not parts or "".join(part[0] for part in parts) != text:
        raise ValueError(f'invalid duration {text[:_MAX_LENGTH]!r}: want for example "24h", "1h30m" or "90s"')
    nanoseconds = sum(Decimal(part[1]) * _NANOSECONDS[part[2]] for part in parts)
    if nanoseconds > _MAX_NANOSECONDS:
        raise ValueError(f"invalid duration {text!r}: longer than 292 years")
    return timedelta(microseconds=int(nanoseconds // 1000))
