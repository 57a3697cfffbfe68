# SPDX-License-Identifier: Apache-2.0
"""`marblemesh help` and `marblemesh completion`: the whole command line on one page, and in the shell."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.completion import get_completion_script, install  # type: ignore[attr-defined]

from marblemesh.cli.errors import CliError

PROGRAM = "marblemesh"
COMPLETE_VARIABLE = "_MARBLEMESH_COMPLETE"

_PAGE = """\
NAME
    marblemesh - a service mesh for confidential computing

SYNOPSIS
    marblemesh VERB [ARGUMENTS] [FLAGS]
    marblemesh VERB --help

VERBS
{verbs}

WHOM TO TRUST
    Verbs that talk to a Coordinator attest it first: by --era-config FILE (or an
    era-config.json in the current directory), by --simulation, or not at all by
    --insecure. manifest set and manifest verify keep its certificates; status,
    manifest log, manifest update and secret are content with those later on.

WHO YOU ARE
    manifest update and secret want a user of the manifest: --cert and --key, or
    --pkcs11-config with the id or label of key and certificate on a token.

FILES
    era-config.json
        the measurements that the Coordinator must have
    $XDG_CONFIG_HOME/marblerun/coordinator-cert.pem
        the Coordinator's certificates (~/.config without XDG_CONFIG_HOME)
    $XDG_STATE_HOME/marblemesh/simulated-platform
        the simulated platform (~/.local/state without XDG_STATE_HOME)

EXIT STATUS
    0   it worked, and the answer is good
    1   it failed, or the answer is no: one line on stderr
    2   the command line is wrong: one line on stderr
"""


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(help="bash, zsh or fish.")],
    install_it: Annotated[bool, typer.Option("--install", help="Add it to the shell's start-up file.")] = False,
) -> None:
    """Print the shell's completion script, or install it for every new shell."""
    if install_it:
        _, path = install(shell=shell.value, prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE)
        typer.echo(f"Completion installed in {path}: open a new shell", err=True)
        return
    script = get_completion_script(prog_name=PROGRAM, complete_var=COMPLETE_VARIABLE, shell=shell.value)
    typer.echo(script)


def help_(
    ctx: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="[VERB...]", help="A verb, as it is typed.")] = None,
) -> None:
    """Show the whole command line on one page, or the help of one verb."""
    root = ctx.find_root()
    if not words:
        verbs = "\n".join(f"    {name}\n{text}" for name, text in _verbs(root.command, ""))
        typer.echo(_PAGE.format(verbs=verbs), nl=False)
        return
    command, context, rest = root.command, root, list(words)
    while rest:
        resolve = getattr(command, "resolve_command", None)
        name = rest[0]
        known = resolve is not None and (" ".join(rest[:2]) in _names(command) or name in _names(command))
        if resolve is None or not known:
            raise CliError(f"there is no verb {' '.join(words)[:80]!r}: see 'marblemesh help'")
        found, command, rest = resolve(context, rest)
        context = type(context)(command, info_name=found, parent=context)
    typer.echo(command.get_help(context))


def _names(command: Any) -> frozenset[str]:
    return frozenset(getattr(command, "commands", ()))


def _verbs(command: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Every verb with its arguments, and what it does in a paragraph."""
    for name, inner in command.commands.items():
        if inner.hidden:
            continue
        if _names(inner):
            yield from _verbs(inner, f"{prefix}{name} ")
            continue
        arguments = [item.metavar or item.name.upper() for item in inner.params if item.param_type_name == "argument"]
        yield " ".join([f"{prefix}{name}", *arguments]), _summary(inner)


def _summary(command: Any) -> str:
    paragraph = " ".join((command.help or "").partition("\n\n")[0].split())
    return textwrap.fill(paragraph, 78, initial_indent=" " * 8, subsequent_indent=" " * 8)
