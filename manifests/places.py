# SPDX-License-Identifier: Apache-2.0
"""Paths of members, and the list that collects problems with them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from manifests.errors import Problem

_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
# Names come from the file; paths and messages are read by people, on terminals and in logs: short and printable. A
# plain name is whole as far as names may be long.
_MAX_PLAIN = 128
_MAX_NAME = 80
_MAX_MESSAGE = 500

# Enough to mend a file with. A hostile one has a million things wrong, and each costs time to describe.
MAX_PROBLEMS = 50


def member_path(*parts: str | int) -> str:
    """`("Marbles", "web", "TLS", 0)` → `Marbles.web.TLS[0]`; other names are quoted: `Packages["a b"]`."""
    path = ""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _PLAIN.fullmatch(part):
            shown = part if len(part) <= _MAX_PLAIN else f"{part[:_MAX_PLAIN]}…"
            path += f".{shown}" if path else shown
        else:
            path += '["' + printable(part, _MAX_NAME).replace('"', '\\"') + '"]'
    return path


def printable(text: str, limit: int = _MAX_MESSAGE) -> str:
    """`text` without anything that could steer a terminal or break a log line, cut at `limit` characters."""
    cut = text if len(text) <= limit else text[:limit] + "…"
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in cut)


class TooManyProblems(Exception):
    """There is no point in looking further."""


class Findings:
    """What the checks found so far: `errors` refuse the manifest, `warnings` travel with it."""

    def __init__(self) -> None:
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []

    def error(self, message: str, *path: str | int) -> None:
        """Report what refuses the manifest. Raises TooManyProblems when this is enough."""
        if len(self.errors) >= MAX_PROBLEMS:
            self.errors.append(Problem("", f"and more: only the first {MAX_PROBLEMS} problems are shown"))
            raise TooManyProblems
        self.errors.append(Problem(member_path(*path), printable(message)))

    def warn(self, message: str, *path: str | int) -> None:
        if len(self.warnings) < MAX_PROBLEMS:
            self.warnings.append(Problem(member_path(*path), printable(message)))

    @contextmanager
    def at(self, *path: str | int) -> Iterator[None]:
        """A ValueError raised inside becomes an error at `path`, with its text."""
        try:
            yield
        except ValueError as error:
            self.error(str(error), *path)
