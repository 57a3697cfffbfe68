# SPDX-License-Identifier: Apache-2.0
"""The tree of verbs, and the one place where an error becomes a line on stderr and an exit status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import typer
from typer.completion import completion_init  # type: ignore[attr-defined]
from typer.core import TyperGroup

from manifests.errors import ManifestError
from marblemesh.cli.errors import CliError
from marblemesh.cli.verbs import register
from marblemesh.client import ClientError, RequestRefused
from sds.attestation.errors import AttestationError


class _Verbs(TyperGroup):
    """Verbs of two words, such as `recover-with-signature sign-secret`, beside one of the first word alone."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        both = " ".join(args[:2])
        if len(args) > 1 and both in self.commands:
            return both, self.commands[both], args[2:]
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        # A shell would quote the blank.
        return [item for item in super().shell_complete(ctx, incomplete) if " " not in str(item.value)]


# The Coordinator says these in MarbleRun's words, whatever was asked of it.
_HINTS = {
    "requested value not set": "no manifest is in force; 'marblemesh status' says whether one can be set, or has to be "
    "recovered",
    "server is not in expected state": "'marblemesh status' says what the Coordinator is ready for; once a manifest is "
    "set, 'marblemesh manifest update apply' changes it",
    "no update in progress": "it may have been applied, cancelled or found impossible; 'marblemesh manifest log' says",
}


def _no_verb() -> None:
    pass


def _tree(words: Sequence[str]) -> typer.Typer:
    """The verbs that a command line may mean; others are not loaded, because their libraries take time."""
    app = typer.Typer(
        name="marblemesh",
        cls=_Verbs,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
        help="A service mesh for confidential computing: mTLS ends inside the enclave, and one attestation statement "
        "proves the whole app.",
        epilog="Try it: marblemesh demo  ·  Then: marblemesh manifest check FILE, marblemesh coordinator --simulation, "
        "marblemesh manifest set FILE localhost:4433 --simulation",
    )
    app.callback()(_no_verb)  # with one verb loaded it is still a tree
    register(app, words[0] if words else "")
    return app


class _Usage(Protocol):
    def format_message(self) -> str: ...


# typer carries its own copy of click since 0.2x and used the real one before; in both this is click's UsageError.
_UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])


def run(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Carry out one command line and return its exit status: 0 good, 1 failed or the answer is no, 2 wrong usage."""
    completion_init()  # in the shell's completion the arguments come by environment, and click answers
    try:
        result: Any = _tree(arguments)(
            args=list(arguments), prog_name="marblemesh", standalone_mode=False, obj=environment
        )
    except _UsageError as error:
        return _usage(error)
    except RequestRefused as error:
        return _fail(str(error), 1, _HINTS.get(error.message))
    except (CliError, ClientError, AttestationError, ManifestError) as error:
        return _fail(str(error), 1)
    except typer.Abort:
        return _fail("aborted", 1)
    except BrokenPipeError:
        return 1  # the reader (head, less) has seen enough
    except OSError as error:
        return _fail(f"{error.strerror or type(error).__name__}".lower(), 1)
    return result if isinstance(result, int) else 0


def _usage(error: Exception) -> int:
    text = cast(_Usage, error).format_message()
    # Called without a verb: the text is the help, or rich has printed it already.
    if not text or "\n" in text.strip():
        typer.echo(text.rstrip(), err=True)
        return 2
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "marblemesh"
    text = text.replace("Value error, ", "").removeprefix("Invalid value: ")
    return _fail(f"{_lower(text.strip().rstrip('.'))} (see {command} --help)", 2)


def _fail(text: str, status: int, hint: str | None = None) -> int:
    line = " ".join(text.split())
    typer.secho(f"marblemesh: {line}", fg=typer.colors.RED, err=True)
    if hint is not None:
        typer.echo(f"hint: {hint}", err=True)
    return status


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
