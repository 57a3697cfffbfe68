# SPDX-License-Identifier: Apache-2.0
"""Whether what a start found is one of the states that it may find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

View = Mapping[str, object]
_SHOWN = 300


class Failed(Exception):
    """A start found what was never committed, or nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Other:
    """Stands for a value that cannot be foretold, only that it is not this one."""

    than: object


def differences(found: View, expected: View) -> list[str]:
    """The parts that are not as expected."""
    return sorted(part for part in found.keys() | expected.keys() if not _fits(found.get(part), expected.get(part)))


def must_be(found: View, allowed: Sequence[View], place: str) -> View:
    """Which of the views it is; raises Failed if it is none, or a mixture."""
    for view in allowed:
        if not differences(found, view):
            return view
    lines = [
        f"  {number}: {part}: expected {_shown(view.get(part))}, found {_shown(found.get(part))}"
        for number, view in enumerate(allowed, 1)
        for part in differences(found, view)
    ]
    raise Failed("\n".join([f"{place}: found a state that is none of the {len(allowed)} that it may be", *lines]))


def _fits(found: object, expected: object) -> bool:
    return found != expected.than if isinstance(expected, Other) else found == expected


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} … {text[-_SHOWN // 2 :]}"
