# SPDX-License-Identifier: Apache-2.0
"""`marblemesh certificate …`: write a Coordinator's certificates to files, after attesting it again."""

from __future__ import annotations

import asyncio

import typer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from marblemesh.cli.errors import CliError
from marblemesh.cli.files import write_file
from marblemesh.cli.output import OutputFile, print_json, target, wants_json
from marblemesh.cli.trust import connect, require_same_as_kept
from marblemesh.cli.trust_options import Address, TrustOptions, with_trust

verbs = typer.Typer(no_args_is_help=True, help="Get the certificates that clients of the mesh verify it by.")


@verbs.command(epilog="Example: marblemesh certificate root coordinator:4433 --era-config era-config.json -o root.pem")
@with_trust()
def root(address: Address, trust: TrustOptions, output: OutputFile = None) -> None:
    """The root certificate: stays the same as long as the Coordinator's state does.

    Written to marblerunRootCA.crt unless -o names a file.
    """
    asyncio.run(_write(address, trust, output, "root", "marblerunRootCA.crt"))


@verbs.command(epilog="Example: marblemesh certificate intermediate coordinator:4433 -o -")
@with_trust()
def intermediate(address: Address, trust: TrustOptions, output: OutputFile = None) -> None:
    """The intermediate certificate: changes with every update of the manifest, so it stands for this very manifest.

    Written to marblerunIntermediateCA.crt unless -o names a file.
    """
    asyncio.run(_write(address, trust, output, "intermediate", "marblerunIntermediateCA.crt"))


@verbs.command(epilog="Example: marblemesh certificate chain coordinator:4433 -o json")
@with_trust()
def chain(address: Address, trust: TrustOptions, output: OutputFile = None) -> None:
    """Both: the intermediate certificate, then the root. Written to marblerunChainCA.crt unless -o names a file."""
    asyncio.run(_write(address, trust, output, "chain", "marblerunChainCA.crt"))


async def _write(address: str, trust: TrustOptions, output: str | None, which: str, default: str) -> None:
    client = await connect(address, trust)
    if not trust.insecure:
        require_same_as_kept(client, trust)
    statement = client.statement
    if statement is None:
        raise CliError("the Coordinator sent no certificates")
    certificates = {
        "root": (statement.root,),
        "intermediate": (statement.intermediate,),
        "chain": (statement.intermediate, statement.root),
    }[which]
    if wants_json(output):
        print_json({"certificates": [_described(certificate) for certificate in certificates]})
        return
    pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
    path = target(output, default)
    if path is None:
        typer.echo(pem, nl=False)
    else:
        write_file(path, "the certificate", pem)
        typer.echo(f"Certificate written to {path}", err=True)


def _described(certificate: x509.Certificate) -> dict[str, str]:
    return {
        "subject": certificate.subject.rfc4514_string(),
        "sha256": certificate.fingerprint(hashes.SHA256()).hex(),
        "notBefore": certificate.not_valid_before_utc.isoformat(),
        "notAfter": certificate.not_valid_after_utc.isoformat(),
        "pem": certificate.public_bytes(Encoding.PEM).decode(),
    }
