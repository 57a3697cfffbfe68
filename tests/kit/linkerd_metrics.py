# SPDX-License-Identifier: Apache-2.0
"""Counters whose series differ in their very label names, as linkerd2-proxy's do: rendered and read back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

Labels = Mapping[str, str]
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
_LINE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class Metrics:
    """Counts; `render` is what `/metrics` answers."""

    def __init__(self) -> None:
        self._values: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()

    def add(self, name: str, labels: Labels, by: int = 1) -> None:
        self._values[name, tuple(labels.items())] += by

    def put(self, name: str, labels: Labels, value: int) -> None:
        self._values[name, tuple(labels.items())] = value

    def render(self) -> str:
        lines = []
        for (name, labels), value in sorted(self._values.items()):
            inner = ",".join(f'{key}="{text}"' for key, text in labels)
            lines.append(f"{name}{{{inner}}} {value}" if inner else f"{name} {value}")
        return "\n".join([*lines, ""])


def parsed(exposition: str) -> Series:
    """Every series of a text exposition with its value."""
    found: Series = {}
    for line in exposition.splitlines():
        if line and not line.startswith("#"):
            match = _LINE.fullmatch(line)
            assert match, line
            found[match[1], frozenset(_LABEL.findall(match[2] or ""))] = float(match[3])
    return found


def total(series: Series, name: str, **labels: str) -> float:
    """The sum of all series of this name that have these labels."""
    return sum(value for (found, have), value in series.items() if found == name and labels.items() <= set(have))


def label_names(series: Series, name: str, **labels: str) -> set[frozenset[str]]:
    """Which sets of label names the series of this name have, of those with these labels."""
    return {
        frozenset(key for key, _ in have) for found, have in series if found == name and labels.items() <= set(have)
    }
