# SPDX-License-Identifier: Apache-2.0
"""The command lines of the two programs that stay: flags that each stand for one setting, and a command behind them.

The verbs that people type are built on typer. It loads pydantic to read a word: 8 MB of memory and a fifth of the time
that a worker takes to start, in every enclave, for text that the settings' own parsers check anyway.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NoReturn

USAGE_STATUS = 2
_COMMAND = "the command"  # no flag's key looks like this


@dataclass(frozen=True, slots=True)
class Flag:
    """`name` is with its dashes. Without `metavar` it takes no value and stands for "1"."""

    name: str
    key: str
    help: str
    metavar: str | None = None
    panel: str = "Options"


@dataclass(frozen=True, slots=True)
class Given:
    """What a command line says: text by the keys of its flags, and the words behind them."""

    values: dict[str, str]
    command: tuple[str, ...]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_STATUS, f"{self.prog}: {message.removeprefix('argument ')} (see {self.prog} --help)\n")


def read(program: str, about: str, flags: Sequence[Flag], arguments: Sequence[str], *, command: bool = False) -> Given:
    """Read `arguments`; `command`: a program and its own arguments may follow the flags.

    Raises SystemExit after --help (0, printed) and for wrong usage (2, one line on stderr).
    """
    parser = _parser(program, about, flags, command)
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.error(_unknown(unknown[0], [flag.name for flag in flags]))
    values = {key: value for key, value in vars(given).items() if value is not None}
    words: list[str] = values.pop(_COMMAND, [])
    return Given(values, tuple(words[1:] if words[:1] == ["--"] else words))


def _parser(program: str, about: str, flags: Sequence[Flag], command: bool) -> _Parser:
    width = min(shutil.get_terminal_size().columns - 2, 100)
    parser = _Parser(
        prog=program,
        usage=f"{program} [OPTIONS]{' [--] CMD...' if command else ''}",
        description="\n\n".join(textwrap.fill(" ".join(part.split()), width) for part in about.split("\n\n")),
        formatter_class=functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=32),
        add_help=False,
        allow_abbrev=False,
    )
    panels: dict[str, argparse._ArgumentGroup] = {}
    for flag in flags:
        if flag.panel not in panels:
            panels[flag.panel] = parser.add_argument_group(flag.panel)
        text = flag.help.replace("%", "%%")
        if flag.metavar is None:
            panels[flag.panel].add_argument(flag.name, dest=flag.key, help=text, action="store_const", const="1")
        else:
            panels[flag.panel].add_argument(flag.name, dest=flag.key, help=text, metavar=flag.metavar)
    panels[flags[-1].panel].add_argument("-h", "--help", action="help", help="Show this and exit.")
    if command:
        parser.add_argument(_COMMAND, nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _unknown(word: str, known: Sequence[str]) -> str:
    if not word.startswith("-"):
        return f"unexpected argument: {word}"
    name = word.partition("=")[0]
    near = get_close_matches(name, known, 1)
    return f"no such option: {name}" + (f"; did you mean {near[0]}?" if near else "")
