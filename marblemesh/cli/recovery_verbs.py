# SPDX-License-Identifier: Apache-2.0
"""`marblemesh recover …`: give a Coordinator that cannot read its state the secrets of the recovery keys' owners.

`recover` does it all with one's own key. `recover-with-signature` is for owners who do not talk to the Coordinator:
they encrypt their secret for it (`encrypt-secret`) and sign it (`sign-secret`), and anybody may deliver both.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from marblemesh.cli.errors import CliError
from marblemesh.cli.files import read_file, write_file
from marblemesh.cli.key_options import RecoveryKeySource, with_recovery_key
from marblemesh.cli.output import Format, OutputFormat, print_json
from marblemesh.cli.trust import connect
from marblemesh.cli.trust_options import Address, TrustOptions, with_trust
from marblemesh.client import ClientError, RecoveryKey, decrypt_recovery_data, encrypt_recovery_secret, parse_public_key
from marblemesh.client.calls_more import Recovery
from marblemesh.client.recovery import PLAIN_SIZES

# A ciphertext of RSA-16384 has 2 KiB.
_MAX_SECRET = 64 * 1024

SecretFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="Your recovery secret as 'manifest set' handed it out, decoded from base64; or plain."
    ),
]
WrittenFile = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write it.")]


@with_trust()
@with_recovery_key
def recover(
    file: SecretFile,
    address: Address,
    trust: TrustOptions,
    key: RecoveryKeySource,
    output: OutputFormat = Format.TEXT,
) -> None:
    """Attest a Coordinator and give it your recovery secret: decrypted with your key unless plain, and signed by it."""
    data, owner = _secret(file), key()
    _report(asyncio.run(_recover(address, trust, data, owner)), output)


@with_trust()
def recover_with_signature(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A recovery secret: encrypted by 'encrypt-secret', or plain."),
    ],
    address: Address,
    trust: TrustOptions,
    signature: Annotated[
        Path, typer.Option("--signature", "-s", metavar="FILE", help="The owner's signature, by 'sign-secret'.")
    ],
    output: OutputFormat = Format.TEXT,
) -> None:
    """Attest a Coordinator and give it a recovery secret with the signature that its owner made over the plain one."""
    secret, signed = _secret(file), read_file(signature, "signature", _MAX_SECRET)
    _report(asyncio.run(_recover_with_signature(address, trust, secret, signed)), output)


@with_trust()
def public_key(
    address: Address,
    trust: TrustOptions,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write it (default: stdout).")
    ] = None,
) -> None:
    """Attest a Coordinator and get its ephemeral key, for which owners encrypt their secrets; PEM."""
    pem = asyncio.run(_public_key(address, trust))
    if output is None or str(output) == "-":
        typer.echo(pem, nl=False)
    else:
        write_file(output, "the public key", pem)
        typer.echo(f"Public key written to {output}", err=True)


@with_recovery_key
def encrypt_secret(
    file: SecretFile,
    key: RecoveryKeySource,
    coordinator_pub_key: Annotated[
        Path,
        typer.Option("--coordinator-pub-key", metavar="FILE", help="The Coordinator's key, by 'public-key'."),
    ],
    output: WrittenFile,
) -> None:
    """Encrypt your recovery secret for the Coordinator alone. Your key is only needed if the secret is not plain."""
    try:
        public = parse_public_key(read_file(coordinator_pub_key, "Coordinator key", _MAX_SECRET))
    except ClientError as error:
        raise CliError(f"{coordinator_pub_key}: {error}") from None
    data = _secret(file)
    secret = data if len(data) in PLAIN_SIZES else decrypt_recovery_data(data, key())
    write_file(output, "the encrypted secret", encrypt_recovery_secret(public, secret))
    typer.echo(f"Encrypted secret written to {output}", err=True)


@with_recovery_key
def sign_secret(file: SecretFile, key: RecoveryKeySource, output: WrittenFile) -> None:
    """Sign your recovery secret, which proves to the Coordinator that it is its owner who wants the recovery."""
    owner = key()
    write_file(output, "the signature", owner.sign(decrypt_recovery_data(_secret(file), owner)))
    typer.echo(f"Signature written to {output}", err=True)


async def _recover(address: str, trust: TrustOptions, data: bytes, key: RecoveryKey) -> Recovery:
    return await (await connect(address, trust)).recover(data, key)


async def _recover_with_signature(address: str, trust: TrustOptions, secret: bytes, signature: bytes) -> Recovery:
    return await (await connect(address, trust)).recover_with_signature(secret, signature)


async def _public_key(address: str, trust: TrustOptions) -> bytes:
    key = await (await connect(address, trust)).recovery_public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _secret(path: Path) -> bytes:
    data = read_file(path, "recovery secret", _MAX_SECRET)
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return data
    raise CliError(
        f"{str(path)!r} is JSON: want one secret of it alone, decoded, as by "
        "'jq -r .RecoverySecrets.NAME FILE | base64 -d'"
    )


def _report(recovery: Recovery, output: Format) -> None:
    if output is Format.JSON:
        print_json({"remaining": recovery.remaining, "message": recovery.message})
    else:
        typer.echo(recovery.message)
