# SPDX-License-Identifier: Apache-2.0
"""What verbs print: text for people, JSON for programs; both on stdout, warnings and errors on stderr."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"


OutputFormat = Annotated[Format, typer.Option("--output", "-o", help="text, or json for programs.")]

# MarbleRun's -o names a file on these verbs. The word json alone is a format; a file of that name is ./json.
OutputFile = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE|json",
        help="Write to this file (- is stdout); the word json prints JSON instead (a file called json is ./json).",
    ),
]


def wants_json(output: str | None) -> bool:
    return output == "json"


def target(output: str | None, default: str | None) -> Path | None:
    """The file that `-o` names, or the default; None is stdout."""
    name = default if output is None else output
    return None if name is None or name == "-" else Path(name)


def print_json(value: object, *, err: bool = False) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False), err=err)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A row a line, columns aligned; the last column as long as it is."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        typer.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def print_facts(facts: Mapping[str, object]) -> None:
    """One fact a line, aligned; never wrapped, so that a fingerprint stays in one piece."""
    width = max(map(len, facts)) + 1
    for name, value in facts.items():
        typer.echo(f"{name + ':':<{width}} {value}")
