# SPDX-License-Identifier: Apache-2.0
"""Calls about the clients of a Coordinator's xDS port: who is connected, who has what, who rejected what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from marblemesh.client.answer import Answer, printable
from marblemesh.client.errors import BadAnswer
from marblemesh.client.transport import Transport


@dataclass(frozen=True, slots=True)
class XdsType:
    """One resource type on one stream. `state` is the worst of its resources': synced, not found, not sent, stale (on
    its way) or rejected; `reason` is what the client said when it rejected `rejected`."""

    type: str
    state: str
    resources: int
    synced: int
    last_push: datetime | None
    rejected: tuple[str, ...] = ()
    not_found: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class XdsStream:
    """One discovery stream. `client` (type/uuid, or a gateway) is who the certificate says; `node` and `agent` are what
    the client says of itself."""

    client: str
    role: str
    node: str
    agent: str
    method: str
    since: datetime | None
    types: tuple[XdsType, ...]


@dataclass(frozen=True, slots=True)
class XdsWithheld:
    """A secret that is not fit to be published, for `owners` instances of a Marble type. `last_good_stays`: they go on
    with its predecessor; otherwise they have none of that name."""

    type: str
    secret: str
    reason: str
    since: datetime | None
    owners: int
    last_good_stays: bool


@dataclass(frozen=True, slots=True)
class XdsStatus:
    """`total` streams are open; `streams` may be fewer, those in trouble first. `withheld`: of the whole mesh."""

    total: int
    streams: tuple[XdsStream, ...]
    withheld: tuple[XdsWithheld, ...] = ()


@dataclass(frozen=True, slots=True)
class XdsDump:
    """`total` streams are open; `streams` may be fewer: per stream its types, per type its resources, as JSON."""

    total: int
    streams: tuple[Mapping[str, object], ...]


async def get_status(transport: Transport, clients: Sequence[str]) -> XdsStatus:
    answer = await _ask(transport, "status", clients)
    return XdsStatus(
        answer.integer("total"),
        tuple(_stream(part) for part in _parts(answer, "streams")),
        tuple(_withheld(part) for part in _parts(answer, "withheld")),
    )


async def get_dump(transport: Transport, clients: Sequence[str]) -> XdsDump:
    answer = await _ask(transport, "dump", clients)
    streams = []
    for part in _parts(answer, "streams"):
        if not isinstance(part.data, dict):
            raise BadAnswer(f"{answer.request}: a stream in the answer is no object")
        streams.append(part.data)
    return XdsDump(answer.integer("total"), tuple(streams))


async def _ask(transport: Transport, what: str, clients: Sequence[str]) -> Answer:
    return await transport.request("GET", f"/api/v2/xds/{what}", query=[("client", client) for client in clients])


def _parts(answer: Answer, name: str) -> list[Answer]:
    found = answer.member(name)
    if not isinstance(found, list):
        raise BadAnswer(f"{answer.request}: the answer has no list {name!r}, so this is no Coordinator of this API")
    return [answer.inner(part) for part in found]


def _stream(answer: Answer) -> XdsStream:
    return XdsStream(
        client=printable(answer.text("client")),
        role=printable(answer.text("role")),
        node=printable(answer.text("node")),
        agent=printable(answer.text("agent")),
        method=printable(answer.text("method")),
        since=_time(answer, "since"),
        types=tuple(_type(part) for part in _parts(answer, "types")),
    )


def _withheld(answer: Answer) -> XdsWithheld:
    return XdsWithheld(
        type=printable(answer.text("type")),
        secret=printable(answer.text("secret")),
        reason=printable(answer.text("reason")),
        since=_time(answer, "since"),
        owners=answer.integer("owners"),
        last_good_stays=answer.member("lastGoodStays") is True,
    )


def _type(answer: Answer) -> XdsType:
    reason = answer.member("reason")
    return XdsType(
        type=printable(answer.text("type")),
        state=printable(answer.text("state")),
        resources=answer.integer("resources"),
        synced=answer.integer("synced"),
        last_push=_time(answer, "lastPush"),
        rejected=tuple(printable(name) for name in answer.texts("rejected")),
        not_found=tuple(printable(name) for name in answer.texts("notFound")),
        reason=printable(reason) if isinstance(reason, str) else "",
    )


def _time(answer: Answer, name: str) -> datetime | None:
    if answer.member(name) is None:
        return None
    try:
        return datetime.fromisoformat(answer.text(name))
    except ValueError:
        raise BadAnswer(f"{answer.request}: the answer's {name!r} is no time") from None
