# SPDX-License-Identifier: Apache-2.0
"""Why something is not injected, and how what strangers have written is shown."""

from __future__ import annotations


class Refused(ValueError):
    """The pod cannot become a Marble as it is, or the text is not what can be edited safely. `str()` is one printable
    line that names the place and what is wrong with it."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split()), 600))


def printable(text: str, limit: int) -> str:
    """A stranger's text for a terminal: no control characters, and not a page of it."""
    return "".join(char if char.isprintable() else "?" for char in text[:limit])
