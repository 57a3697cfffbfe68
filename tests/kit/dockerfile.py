# SPDX-License-Identifier: Apache-2.0
"""A Dockerfile's instructions, by stage."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

_FROM = re.compile(r"(?P<image>\S+)(?: AS (?P<name>[a-z]+))?")


@dataclass
class Stage:
    """`instructions` are the words of each, its lines joined; before the first FROM there is a stage without image."""

    name: str
    image: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, *names: str) -> list[str]:
        return [text for name, text in self.instructions if name in names]


def stages(path: Path) -> list[Stage]:
    """Raises AssertionError for what is no instruction."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    found = [Stage("", "")]
    for text in re.split(r"(?<!\\)\n", "\n".join(lines)):
        name, _, rest = text.replace("\\\n", " ").partition(" ")
        assert name in {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "RUN", "USER", "WORKDIR"}, text
        rest = " ".join(rest.split())
        if name == "FROM":
            match = _FROM.fullmatch(rest)
            assert match is not None, text
            found.append(Stage(match["name"], match["image"]))
        else:
            found[-1].instructions.append((name, rest))
    return found
