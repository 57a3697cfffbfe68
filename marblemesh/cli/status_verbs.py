# SPDX-License-Identifier: Apache-2.0
"""`marblemesh status`, `verify`, `version`: what a Coordinator is doing, and what it can prove."""

from __future__ import annotations

import asyncio
from importlib import metadata
from typing import Annotated

import typer
from cryptography.hazmat.primitives import hashes

from marblemesh.cli.errors import CliError
from marblemesh.cli.output import Format, OutputFormat, print_facts, print_json
from marblemesh.cli.trust import connect, connect_or_pinned, keep_certificate
from marblemesh.cli.trust_options import Address, TrustOptions, with_trust
from marblemesh.client import Client, RequestRefused
from marblemesh.client.calls_manifest import NO_MANIFEST
from sds.attestation.claims import Claims, SgxClaims


@with_trust()
def status(address: Address, trust: TrustOptions, output: OutputFormat = Format.TEXT) -> None:
    """Print what the Coordinator is doing, as `code: message`.

    1 it needs its state recovered, 2 it waits for a manifest, 3 it accepts Marbles. Without trust flags the
    certificate kept from an earlier attestation is enough.
    """
    asyncio.run(_status(address, trust, output))


@with_trust(insecure=False)
def verify(
    address: Address,
    trust: TrustOptions,
    keep_cert: Annotated[
        bool, typer.Option("--keep-cert", help="Keep the Coordinator's certificates for later verbs.")
    ] = False,
    output: OutputFormat = Format.TEXT,
) -> None:
    """Attest a Coordinator and print what was proven: TEE, measurement, signer, patch level, certificate, manifest.

    Exit status 1, and one line that names the check, if it proves anything else than the era config asks for.
    """
    asyncio.run(_verify(address, trust, output, keep_cert=keep_cert))


def version(output: OutputFormat = Format.TEXT) -> None:
    """Print the version of this program."""
    number = metadata.version("marblemesh")
    if output is Format.JSON:
        print_json({"version": number})
    else:
        typer.echo(f"marblemesh {number}")


async def _status(address: str, trust: TrustOptions, output: Format) -> None:
    client = await connect_or_pinned(address, trust)
    found = await client.status()
    if output is Format.JSON:
        print_json({"code": found.code, "message": found.message})
    else:
        typer.echo(f"{found.code}: {found.message}")


async def _verify(address: str, trust: TrustOptions, output: Format, *, keep_cert: bool) -> None:
    client = await connect(address, trust)
    claims = client.statement.claims if client.statement else None
    if claims is None:
        raise CliError("the Coordinator proved nothing")
    fingerprint = await _manifest_fingerprint(client)
    if keep_cert:
        keep_certificate(client, trust)
    if output is Format.JSON:
        print_json(
            {
                "claims": claims.to_json(),
                "rootCertificate": {
                    "sha256": client.root.fingerprint(hashes.SHA256()).hex(),
                    "notAfter": client.root.not_valid_after_utc.isoformat(),
                },
                "manifestFingerprint": fingerprint,
            }
        )
    else:
        print_facts(_facts(client, claims, fingerprint))


async def _manifest_fingerprint(client: Client) -> str | None:
    try:
        return (await client.manifest()).fingerprint
    except RequestRefused as error:
        if NO_MANIFEST in error.message:
            return None
        raise


def _facts(client: Client, claims: Claims, fingerprint: str | None) -> dict[str, object]:
    facts: dict[str, object] = {"TEE": claims.tee.value.upper()}
    if isinstance(claims, SgxClaims):
        facts |= {
            "UniqueID": claims.mrenclave.hex(),
            "SignerID": claims.mrsigner.hex(),
            "ProductID": claims.isv_prod_id,
            "SecurityVersion": claims.isv_svn,
        }
    else:
        facts |= {"MRTD": claims.mrtd.hex()}
        facts |= {f"RTMR{index}": register.hex() for index, register in enumerate(claims.rtmr)}
    return facts | {
        "Debug": "yes" if claims.debug else "no",
        "TCB status": claims.tcb_status,
        "Advisories": ", ".join(claims.advisories) or "none",
        "Hardware": "simulated, proves nothing about hardware" if claims.simulated else "genuine",
        "Root certificate": f"SHA-256 {client.root.fingerprint(hashes.SHA256()).hex()}",
        "Manifest": f"SHA-256 {fingerprint}" if fingerprint else "none set yet",
    }
