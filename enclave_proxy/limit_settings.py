# SPDX-License-Identifier: Apache-2.0
"""The relay's bounds as an operator sets them: `handshake-timeout=5,connections=16000`, all others as they are.

One setting for all of them, since hardly anybody needs one. Whoever sets the environment (the host, maybe) can make
connections end early or wait, but let nobody in: no bound has to do with who may talk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from enclave_proxy.limits import Limits

# No timeout is of use beyond it, and a typing error is easily beyond it.
_WEEK = 7 * 86_400.0
_SHORTEST = 0.05


def parse_limits(text: str) -> Limits:
    """Names as in `Limits` with dashes for underscores, times in seconds. Raises ValueError."""
    given: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or name not in _PARSERS:
            raise ValueError(f"{part[:80]!r} is none of {', '.join(f'{known}=' for known in _PARSERS)}")
        if name in given:
            raise ValueError(f"{name} is given twice")
        try:
            given[name] = _PARSERS[name](value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return Limits(**{name.replace("-", "_"): value for name, value in given.items()})


def _seconds(lowest: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            seconds = float(text)
        except ValueError:
            raise ValueError(f"{text[:40]!r} is not a number of seconds") from None
        if not lowest <= seconds <= _WEEK:
            raise ValueError(f"{text[:40]} is not within {lowest:g}..{_WEEK:g} seconds")
        return seconds

    return parse


def _number(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or len(text) > 9 or not lowest <= int(text) <= highest:
            raise ValueError(f"{text[:40]!r} is not a number within {lowest}..{highest}")
        return int(text)

    return parse


_NUMBERS = {
    "connections": _number(1, 1_000_000),
    "listener_connections": _number(1, 1_000_000),
    "handshakes": _number(1, 100_000),
    "attempts": _number(1, 16),
    "log_lines": _number(0, 10_000),
}
# For which 0 means "for ever".
_ENDLESS = ("idle_timeout", "half_closed_timeout", "lifetime")
_PARSERS: Mapping[str, Callable[[str], float | int]] = {
    field.name.replace("_", "-"): _NUMBERS.get(field.name) or _seconds(0.0 if field.name in _ENDLESS else _SHORTEST)
    for field in fields(Limits)
    if field.name != "drain"  # a setting of its own
}
