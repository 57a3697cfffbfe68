# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a template, and where. One root: TemplateError."""

from __future__ import annotations


class TemplateError(Exception):
    """A template that cannot be parsed or rendered; the text is Go's, with the place in front.

    `line` counts from 1, `column` in bytes from 0, as Go counts them. `unsupported`: Go could do it.
    """

    def __init__(self, message: str, line: int, column: int, *, unsupported: bool = False) -> None:
        self.line = line
        self.column = column
        self.unsupported = unsupported
        super().__init__(message)


class FunctionError(Exception):
    """A function of a template refuses its arguments; the renderer adds function and place."""


class Misplaced(Exception):
    """Something is wrong at a position of the text; `parse` makes it a TemplateError."""

    def __init__(self, message: str, position: int, *, unsupported: bool = False) -> None:
        self.message = message
        self.position = position
        self.unsupported = unsupported
        super().__init__(message)


def locate(text: str, position: int) -> tuple[int, int]:
    """Line (from 1) and column (bytes, from 0) of a position."""
    start = text.rfind("\n", 0, position) + 1
    return text.count("\n", 0, position) + 1, len(text[start:position].encode("utf-8", "surrogateescape"))
