# SPDX-License-Identifier: Apache-2.0
"""How every program on typer answers wrong usage: one line on stderr that names the way out, and exit status 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import typer

from sds.flags import USAGE_STATUS


class _Usage(Protocol):
    def format_message(self) -> str: ...


# typer carries its own copy of click since 0.2x and used the real one before; in both this is click's UsageError.
UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])


def run(app: typer.Typer, arguments: Sequence[str], program: str) -> int:
    """Run a program's typer app and return its exit status."""
    try:
        result: object = app(args=list(arguments), prog_name=program, standalone_mode=False)
    except UsageError as error:
        text = cast(_Usage, error).format_message().strip()
        if not text or "\n" in text:  # called without a verb: rich has printed the help already, or the text is it
            typer.echo(text, err=True)
            return USAGE_STATUS
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else program
        text = text.replace("Value error, ", "").rstrip(".")
        typer.echo(f"{program}: {text[:1].lower()}{text[1:]} (see {command} --help)", err=True)
        return USAGE_STATUS
    except typer.Abort:
        return 1
    return result if isinstance(result, int) else 0
