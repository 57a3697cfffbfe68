# SPDX-License-Identifier: Apache-2.0
"""`marblemesh manifest update …`: change the manifest of a running mesh, alone or by several users together."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from marblemesh.cli.files import write_file
from marblemesh.cli.key_options import Identified, with_identity
from marblemesh.cli.manifest_check import require_valid_update
from marblemesh.cli.manifest_file import NoCheck, read_manifest
from marblemesh.cli.output import Format, OutputFile, OutputFormat, print_json, target, wants_json
from marblemesh.cli.recovery_data import Handed, RecoveryDataFile
from marblemesh.cli.trust import connect_or_pinned
from marblemesh.cli.trust_options import Address, TrustOptions, with_trust
from marblemesh.client import Client, ClientIdentity, UpdateResult
from marblemesh.client.answer import printable

verbs = typer.Typer(no_args_is_help=True, help="Change the manifest in force. Needs users that it names.")

T = TypeVar("T")

UpdatePath = Annotated[Path, typer.Argument(metavar="FILE", help="The update: JSON, or YAML (.yaml, .yml).")]


@verbs.command(epilog="Example: marblemesh manifest update apply new.json coordinator:4433 -c alice.pem -k alice.key")
@with_trust()
@with_identity
def apply(
    file: UpdatePath,
    address: Address,
    trust: TrustOptions,
    identity: Identified,
    recoverydata: RecoveryDataFile = None,
    no_check: NoCheck = False,
    output: OutputFormat = Format.TEXT,
) -> None:
    """Upload an update: a whole new manifest, or one with Packages alone that raises their SecurityVersion.

    A whole one may have to wait until other users acknowledge it.
    """
    document = read_manifest(file)
    if not no_check:
        require_valid_update(document)
    result = _run(address, trust, identity(), lambda client: client.update_apply(document.raw))
    _report(result, recoverydata, output)


@verbs.command(
    epilog="Example: marblemesh manifest update acknowledge update.json coordinator:4433 -c bob.pem -k bob.key"
)
@with_trust()
@with_identity
def acknowledge(
    file: UpdatePath,
    address: Address,
    trust: TrustOptions,
    identity: Identified,
    recoverydata: RecoveryDataFile = None,
    output: OutputFormat = Format.TEXT,
) -> None:
    """Agree to the pending update. FILE must be the very same update: see 'marblemesh manifest update get'."""
    raw = read_manifest(file).raw
    result = _run(address, trust, identity(), lambda client: client.update_acknowledge(raw))
    _report(result, recoverydata, output)


@verbs.command(epilog="Example: marblemesh manifest update cancel coordinator:4433 -c alice.pem -k alice.key")
@with_trust()
@with_identity
def cancel(address: Address, trust: TrustOptions, identity: Identified, output: OutputFormat = Format.TEXT) -> None:
    """Drop the pending update."""
    message = _run(address, trust, identity(), lambda client: client.update_cancel())
    if output is Format.JSON:
        print_json({"message": message})
    else:
        typer.echo(message)


@verbs.command(epilog="Example: marblemesh manifest update get coordinator:4433 -o pending.json")
@with_trust()
def get(
    address: Address,
    trust: TrustOptions,
    output: OutputFile = None,
    missing: Annotated[
        bool, typer.Option("--missing", help="Print who still has to acknowledge it, instead of the update.")
    ] = False,
) -> None:
    """Read the update that waits for acknowledgements, byte for byte. Needs no user."""
    pending = _run(address, trust, None, lambda client: client.update_get())
    if wants_json(output):
        print_json(
            {
                "manifest": base64.b64encode(pending.raw).decode(),
                "message": pending.message,
                "missingUsers": list(pending.missing_users),
            }
        )
        return
    text = f"{pending.message}: {_names(pending.missing_users)}".removesuffix(": ").encode()
    data = text if missing else pending.raw
    path = target(output, None)
    if path is None:
        typer.echo(data)
    else:
        write_file(path, "the update", data)
        typer.echo(f"Update written to {path}", err=True)


def _run(
    address: str, trust: TrustOptions, identity: ClientIdentity | None, call: Callable[[Client], Awaitable[T]]
) -> T:
    async def asked() -> T:
        return await call(await connect_or_pinned(address, trust, identity))

    return asyncio.run(asked())


def _report(result: UpdateResult, recoverydata: Path | None, output: Format) -> None:
    handed = Handed(result.recovery_secrets, recoverydata)
    missing = result.missing_acknowledgments
    if output is Format.JSON:
        standing = {"missingAcknowledgments": missing, "missingUsers": list(result.missing_users)}
        print_json(standing | handed.printed)
    else:
        who = f" Not yet: {_names(result.missing_users)}" if result.missing_users else ""
        many = "1 acknowledgement is" if missing == 1 else f"{missing} acknowledgements are"
        typer.echo("Update applied" if missing == 0 else f"Update pending: {many} missing.{who}")
        if handed.line:
            typer.echo(handed.line)
    handed.raise_problem("the update is applied")


def _names(users: tuple[str, ...]) -> str:
    return printable(", ".join(users), 2000)
