# SPDX-License-Identifier: Apache-2.0
"""`marblemesh manifest …`: check, fingerprint, set, get, verify; its log. Updates stand in update_verbs.py."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from manifests.errors import ManifestError, Problem
from manifests.model import Manifest
from manifests.schema import schema_text
from marblemesh.cli import update_verbs
from marblemesh.cli.errors import CliError, NegativeResult
from marblemesh.cli.files import write_file
from marblemesh.cli.manifest_check import checked, described, require_valid
from marblemesh.cli.manifest_file import ManifestFile, NoCheck, read_manifest
from marblemesh.cli.manifest_log import parsed_entry, with_security_versions
from marblemesh.cli.output import Format, OutputFile, OutputFormat, print_json, target, wants_json
from marblemesh.cli.recovery_data import Handed, RecoveryDataFile
from marblemesh.cli.trust import connect, connect_or_pinned, keep_certificate, warn
from marblemesh.cli.trust_options import Address, TrustOptions, with_trust
from marblemesh.client.answer import printable

verbs = typer.Typer(no_args_is_help=True, help="Check, set, read and verify the manifest: what may run in the mesh.")
verbs.add_typer(update_verbs.verbs, name="update")

ManifestPath = Annotated[Path, typer.Argument(metavar="FILE", help="The manifest: JSON, or YAML (.yaml, .yml).")]

_FINGERPRINT = re.compile(r"[0-9a-fA-F]{64}")


@verbs.command(epilog="Example: marblemesh manifest check manifest.json && echo fine")
def check(file: ManifestPath, output: OutputFormat = Format.TEXT) -> None:
    """Check a manifest here, without a Coordinator: its rules and templates, all problems at once.

    Problems and warnings go to stderr, one a line, each with its place. Exit status 1 if the manifest is refused.
    """
    document = read_manifest(file)
    try:
        manifest = checked(document.raw)
    except ManifestError as error:
        if output is Format.JSON:
            print_json({"valid": False, "problems": _problems(error.problems), "warnings": []})
            raise typer.Exit(1) from None
        for line in described(document, error):
            typer.echo(line, err=True)
        raise typer.Exit(1) from None
    _show_checked(document, manifest, output)


@verbs.command(epilog="Example: marblemesh manifest signature manifest.json")
def signature(file: ManifestPath, output: OutputFormat = Format.TEXT) -> None:
    """Print a manifest's fingerprint: the SHA-256 of its bytes, by which Marbles and data owners know it."""
    fingerprint = read_manifest(file).fingerprint
    if output is Format.JSON:
        print_json({"manifestFingerprint": fingerprint})
    else:
        typer.echo(fingerprint)


@verbs.command(epilog="Example: marblemesh manifest schema > manifest.schema.json")
def schema() -> None:
    """Print the manifest's JSON Schema, for editors that complete and check while you type."""
    typer.echo(schema_text(), nl=False)


@verbs.command(
    "set",
    epilog="Example: marblemesh manifest set manifest.json coordinator:4433 --era-config era.json -r recovery.json",
)
@with_trust()
def set_(
    file: ManifestPath,
    address: Address,
    trust: TrustOptions,
    recoverydata: RecoveryDataFile = None,
    no_check: NoCheck = False,
    output: OutputFormat = Format.TEXT,
) -> None:
    """Attest a Coordinator and give it its manifest. This can be done once; later changes need the users it names.

    Prints the fingerprint, and keeps the Coordinator's certificates for later verbs.
    """
    document = read_manifest(file)
    if not no_check:
        require_valid(document)
    secrets = asyncio.run(_set(document, address, trust))
    _report_set(document, secrets, recoverydata, output)


@verbs.command(epilog="Example: marblemesh manifest get coordinator:4433 --era-config era-config.json -o manifest.json")
@with_trust()
def get(
    address: Address,
    trust: TrustOptions,
    output: OutputFile = None,
    signature: Annotated[
        bool, typer.Option("--signature", "-s", help='Wrap it: {"ManifestSignature": …, "Manifest": …}.')
    ] = False,
    display_update: Annotated[
        bool,
        typer.Option(
            "--display-update", "-u", help="With the SecurityVersions that package updates have raised since."
        ),
    ] = False,
    keep_cert: Annotated[
        bool, typer.Option("--keep-cert", help="Keep the Coordinator's certificates for later verbs.")
    ] = False,
) -> None:
    """Attest a Coordinator and read the manifest in force, byte for byte; the root's signature over it is verified."""
    asyncio.run(_get(address, trust, output, _Shape(signature, display_update, keep_cert)))


@verbs.command(epilog="Example: marblemesh manifest log coordinator:4433 -o json")
@with_trust()
def log(address: Address, trust: TrustOptions, output: OutputFile = None) -> None:
    """Print what was done to the manifest and its secrets since it was set, one JSON object a line.

    Without trust flags the certificate kept from an earlier attestation is enough.
    """
    entries = asyncio.run(_log(address, trust))
    if wants_json(output):
        print_json([parsed_entry(entry) for entry in entries])
        return
    # An entry is the Coordinator's text: JSON escapes control characters, an impostor need not.
    data = "".join(printable(entry, len(entry)) + "\n" for entry in entries)
    path = target(output, None)
    if path is None:
        typer.echo(data, nl=False)
    else:
        write_file(path, "the update log", data.encode())
        typer.echo(f"Update log written to {path}", err=True)


@verbs.command(epilog="Example: marblemesh manifest verify manifest.json coordinator:4433 --era-config era-config.json")
@with_trust()
def verify(
    manifest: Annotated[str, typer.Argument(metavar="FILE|FINGERPRINT", help="The manifest, or its fingerprint.")],
    address: Address,
    trust: TrustOptions,
    output: OutputFormat = Format.TEXT,
) -> None:
    """Attest a Coordinator and check that exactly this manifest is in force. Exit status 1 if not.

    Prints OK, and keeps the Coordinator's certificates for later verbs.
    """
    wanted = _wanted(manifest)
    asyncio.run(_verify(wanted, address, trust, output))


def _show_checked(document: ManifestFile, manifest: Manifest, output: Format) -> None:
    if output is Format.JSON:
        print_json(
            {
                "valid": True,
                "manifestFingerprint": manifest.fingerprint,
                "problems": [],
                "warnings": _problems(manifest.warnings),
            }
        )
        return
    for warning in manifest.warnings:
        warn(f"{document.path}: {warning}")
    typer.echo(f"OK, fingerprint {manifest.fingerprint}")


def _problems(problems: tuple[Problem, ...]) -> list[dict[str, str]]:
    return [{"path": problem.path, "message": problem.message} for problem in problems]


async def _set(document: ManifestFile, address: str, trust: TrustOptions) -> Mapping[str, str]:
    client = await connect(address, trust)
    secrets = await client.set_manifest(document.raw)
    keep_certificate(client, trust)
    return secrets


def _report_set(document: ManifestFile, secrets: Mapping[str, str], path: Path | None, output: Format) -> None:
    handed = Handed(secrets, path)
    if output is Format.JSON:
        print_json({"manifestFingerprint": document.fingerprint, **handed.printed})
    else:
        typer.echo(f"Manifest fingerprint: {document.fingerprint}")
        if handed.line:
            typer.echo(handed.line)
    handed.raise_problem("the manifest is set")


@dataclass(frozen=True, slots=True)
class _Shape:
    """How `get` shows the manifest."""

    signature: bool
    updated: bool
    keep_cert: bool


async def _get(address: str, trust: TrustOptions, output: str | None, shape: _Shape) -> None:
    client = await connect(address, trust)
    statement = await client.manifest()
    entries = await client.manifest_log() if shape.updated else ()
    if shape.keep_cert:
        keep_certificate(client, trust)
    document = with_security_versions(statement.raw, entries) if shape.signature or shape.updated else None
    if wants_json(output):
        print_json(
            {
                "manifestFingerprint": statement.fingerprint,
                "manifestSignatureRootECDSA": base64.b64encode(statement.signature).decode(),
                "manifest": base64.b64encode(statement.raw).decode(),
                **({"updatedManifest": document} if shape.updated else {}),
            }
        )
        return
    data = statement.raw
    if document is not None:
        wrapped = {"ManifestSignature": statement.fingerprint, "Manifest": document}
        data = json.dumps(wrapped if shape.signature else document, indent=2, ensure_ascii=False).encode()
    path = target(output, None)
    if path is None:
        typer.echo(data)
    else:
        write_file(path, "the manifest", data)
        typer.echo(f"Manifest written to {path}", err=True)


async def _log(address: str, trust: TrustOptions) -> tuple[str, ...]:
    return await (await connect_or_pinned(address, trust)).manifest_log()


def _wanted(manifest: str) -> str:
    """The fingerprint that the argument is, or that of the file that it names."""
    path = Path(manifest)
    if _FINGERPRINT.fullmatch(manifest) and not path.exists():
        return manifest.lower()
    if not path.exists():
        raise CliError(f"{manifest[:200]!r} is neither a file nor a fingerprint (64 hex digits)")
    return read_manifest(path).fingerprint


async def _verify(wanted: str, address: str, trust: TrustOptions, output: Format) -> None:
    client = await connect(address, trust)
    found = (await client.manifest()).fingerprint
    matches = found == wanted
    if output is Format.JSON:
        print_json({"match": matches, "manifestFingerprint": found, "expectedFingerprint": wanted})
    if not matches:
        raise NegativeResult(
            f"another manifest is in force at {address}: its fingerprint is {found}, expected {wanted}"
        )
    keep_certificate(client, trust)
    if output is Format.TEXT:
        typer.echo("OK")
