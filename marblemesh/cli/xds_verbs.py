# SPDX-License-Identifier: Apache-2.0
"""`marblemesh xds …`: the clients of the Coordinator's xDS port, workers and Envoys, for users of the manifest."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from marblemesh.cli.key_options import Identified, with_identity
from marblemesh.cli.output import Format, OutputFormat, print_json, print_table
from marblemesh.cli.trust import connect_or_pinned
from marblemesh.cli.trust_options import Address, TrustOptions, with_trust
from marblemesh.client import ClientIdentity, XdsDump, XdsStatus, XdsType, XdsWithheld
from marblemesh.client.answer import printable

verbs = typer.Typer(no_args_is_help=True, help="Who is connected to the xDS port, who has what, who rejected what.")

_SHOWN = ("name", "state", "version", "size")

Only = Annotated[
    list[str] | None,
    typer.Option("--client", metavar="NAME", help="Only this Marble type, type/uuid or gateway; may repeat."),
]


@verbs.command(epilog="Example: marblemesh xds status coordinator:4433 -c alice.pem -k alice.key --client web")
@with_trust()
@with_identity
def status(
    address: Address,
    trust: TrustOptions,
    identity: Identified,
    client: Only = None,
    output: OutputFormat = Format.TEXT,
) -> None:
    """List every discovery stream, those in trouble first: per resource type its state, how many resources the client
    has as they are now, the last push, and why it rejected one; before them the secrets that are withheld because they
    are not fit to be published. Needs any user of the manifest."""
    found = asyncio.run(_status(address, trust, identity(), client or []))
    if output is Format.JSON:
        streams, withheld = ([_plain(asdict(row)) for row in rows] for rows in (found.streams, found.withheld))
        print_json({"total": found.total, "streams": streams, "withheld": withheld})
        return
    rows = [(entry.type, "secret", "withheld", "-", _time(entry.since), _refused(entry)) for entry in found.withheld]
    rows += [
        (stream.client, kind.type, kind.state, f"{kind.synced}/{kind.resources}", _time(kind.last_push), _why(kind))
        for stream in found.streams
        for kind in stream.types
    ]
    print_table(("CLIENT", "TYPE", "STATE", "SYNCED", "LAST PUSH", "WHY"), rows)
    _say_what_was_cut(found.total, len(found.streams))


@verbs.command(epilog="Example: marblemesh xds dump coordinator:4433 -c alice.pem -k alice.key --client web -o json")
@with_trust()
@with_identity
def dump(
    address: Address,
    trust: TrustOptions,
    identity: Identified,
    client: Only = None,
    output: OutputFormat = Format.TEXT,
) -> None:
    """List every resource of every stream with its versions; with -o json also the content of listeners, clusters and
    endpoints (of secrets never). Needs any user of the manifest."""
    found = asyncio.run(_dump(address, trust, identity(), client or []))
    if output is Format.JSON:
        print_json({"total": found.total, "streams": list(found.streams)})
        return
    print_table(("CLIENT", "TYPE", "NAME", "STATE", "VERSION", "SIZE"), _resources(found))
    _say_what_was_cut(found.total, len(found.streams))


async def _status(address: str, trust: TrustOptions, identity: ClientIdentity, clients: list[str]) -> XdsStatus:
    return await (await connect_or_pinned(address, trust, identity)).xds_status(clients)


async def _dump(address: str, trust: TrustOptions, identity: ClientIdentity, clients: list[str]) -> XdsDump:
    return await (await connect_or_pinned(address, trust, identity)).xds_dump(clients)


def _resources(found: XdsDump) -> list[tuple[str, ...]]:
    return [
        (_text(stream, "client"), _text(kind, "type"), *(_text(resource, name) for name in _SHOWN))
        for stream in found.streams
        for kind in _objects(stream, "types")
        for resource in _objects(kind, "resources")
    ]


def _objects(parent: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    found = parent.get(name)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _text(parent: Mapping[str, object], name: str) -> str:
    return printable(str(parent.get(name, ""))) or "-"


def _why(kind: XdsType) -> str:
    parts = []
    if kind.rejected:
        parts.append(f"{', '.join(kind.rejected)}: {kind.reason}")
    if kind.not_found:
        parts.append(f"not found: {', '.join(kind.not_found)}")
    return "; ".join(parts)


def _refused(entry: XdsWithheld) -> str:
    instead = "the last good one stays" if entry.last_good_stays else "there is no other"
    return f"{entry.secret}: {entry.reason}; {instead}"


def _time(at: datetime | None) -> str:
    return "never" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _plain(value: object) -> object:
    """For JSON: times as text, members spelled as the API spells them."""
    match value:
        case datetime():
            return value.isoformat()
        case dict():
            return {_camel(name): _plain(member) for name, member in value.items()}
        case list() | tuple():
            return [_plain(member) for member in value]
    return value


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


def _say_what_was_cut(total: int, shown: int) -> None:
    if shown < total:
        typer.echo(f"{shown} of {total} streams shown: name the clients that you want to see with --client", err=True)
