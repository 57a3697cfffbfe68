# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a manifest: one root, `ManifestError`, with every problem found and its place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to fix (or, among warnings, to look at).

    `path` is written as one would reach the member from the top: `Marbles.web.Package`, `TLS.web.Incoming[0].Port`.
    It is empty for a problem of the document as a whole.
    """

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.message} (at {self.path})" if self.path else self.message


class ManifestError(Exception):
    """The manifest is refused. `problems` holds everything that was found, the text the same in one line."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        super().__init__("; ".join(str(problem) for problem in problems))


class ManifestShapeError(ManifestError):
    """It is JSON, but members have other JSON types than a manifest's have."""


class ManifestSyntaxError(ManifestError):
    """The bytes are no JSON text. `line` and `column` count from 1."""

    def __init__(self, message: str, line: int, column: int) -> None:
        self.line = line
        self.column = column
        super().__init__((Problem("", f"line {line} column {column}: {message}"),))
