# SPDX-License-Identifier: Apache-2.0
"""`marblemesh secret …`: users of the manifest read secrets and set user-defined ones."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from marblemesh.cli.files import write_file
from marblemesh.cli.key_options import Identified, with_identity
from marblemesh.cli.output import OutputFile, print_facts, target, wants_json
from marblemesh.cli.secret_file import read_pem, read_secrets
from marblemesh.cli.trust import connect_or_pinned
from marblemesh.cli.trust_options import Address, TrustOptions, with_trust
from marblemesh.client import ClientIdentity, NewSecret, Secret

verbs = typer.Typer(no_args_is_help=True, help="Read secrets of the manifest, and set user-defined ones.")


@verbs.command(epilog="Example: marblemesh secret get api-key coordinator:4433 -c alice.pem -k alice.key -o key.json")
@with_trust()
@with_identity
def get(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of secrets as in the manifest.")],
    address: Address,
    trust: TrustOptions,
    identity: Identified,
    output: OutputFile = None,
) -> None:
    """Read secrets. Needs a user with the permission ReadSecret on each of them.

    With -o FILE they are written as JSON, readable by you alone.
    """
    secrets = asyncio.run(_get(address, trust, identity(), names))
    if not wants_json(output) and output is None:
        for name, secret in secrets.items():
            print_facts({"Name": name, **_facts(secret)})
        return
    text = json.dumps({name: _wire(secret) for name, secret in secrets.items()}, indent=2, ensure_ascii=False)
    path = None if wants_json(output) else target(output, None)
    if path is None:
        typer.echo(text)
    else:
        write_file(path, "the secrets", text.encode() + b"\n")
        typer.echo(f"Secrets written to {path}", err=True)


@verbs.command("set", epilog="Example: marblemesh secret set secrets.json coordinator:4433 -c alice.pem -k alice.key")
@with_trust()
@with_identity
def set_(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help='JSON: {"name": {"Key": "<base64>"}}, or Cert and Private.'),
    ],
    address: Address,
    trust: TrustOptions,
    identity: Identified,
    from_pem: Annotated[
        str | None,
        typer.Option("--from-pem", metavar="NAME", help="FILE is PEM: a certificate and its key, for this secret."),
    ] = None,
) -> None:
    """Set user-defined secrets: all that FILE names, or none if one is refused. Needs the permission WriteSecret."""
    secrets = read_secrets(file) if from_pem is None else {from_pem: read_pem(file)}
    asyncio.run(_set(address, trust, identity(), secrets))
    typer.echo("Secret set" if len(secrets) == 1 else f"{len(secrets)} secrets set")


async def _get(address: str, trust: TrustOptions, identity: ClientIdentity, names: list[str]) -> Mapping[str, Secret]:
    return await (await connect_or_pinned(address, trust, identity)).secret_get(names)


async def _set(address: str, trust: TrustOptions, identity: ClientIdentity, secrets: Mapping[str, NewSecret]) -> None:
    await (await connect_or_pinned(address, trust, identity)).secret_set(secrets)


def _facts(secret: Secret) -> dict[str, object]:
    """For people: a certificate in PEM, keys in base64."""
    facts: dict[str, object] = {"Type": secret.kind.value, "UserDefined": "yes" if secret.user_defined else "no"}
    if secret.size:
        facts["Size"] = f"{secret.size} bits"
    if not secret.kind.is_certificate:
        return facts | {"Key": _base64(secret.private) or "not set"}
    facts["Certificate"] = _pem(secret.certificate) if secret.certificate else "not set"
    return facts | {"Private": _base64(secret.private) or "not set"}


def _pem(der: bytes) -> str:
    try:
        return "\n" + x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode().rstrip()
    except (ValueError, x509.InvalidVersion):
        return _base64(der) or ""


def _wire(secret: Secret) -> dict[str, object]:
    """As the API gives it."""
    return {
        "Type": secret.kind.value,
        "Size": secret.size,
        "Shared": secret.shared,
        "UserDefined": secret.user_defined,
        "Cert": _base64(secret.certificate or b""),
        "ValidFor": secret.valid_for,
        "Private": _base64(secret.private),
        "Public": _base64(secret.public),
    }


def _base64(data: bytes) -> str | None:
    return base64.b64encode(data).decode() if data else None
