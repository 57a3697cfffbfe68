# SPDX-License-Identifier: Apache-2.0
"""Where discovery streams stand, as JSON for operators: rows of one stream each. Pure.

Content is given for listeners, clusters and endpoints, and for nothing else: what is not in that list, secrets above
all, goes by name, version and size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from functools import cache

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from sds.discovery import View
from sds.publish_gate import Owner, Withheld
from sds.resources import CLUSTER, ENDPOINT, LISTENER, Resource
from xds_server.descriptors import Descriptors
from xds_server.xds_metrics import short_type
from xds_server.xds_record import ClientStatus
from xds_server.xds_states import State, resource_states, worst

Json = dict[str, object]
SHOWN = frozenset({LISTENER, CLUSTER, ENDPOINT})
MAX_NAMES = 10
_PREFIX = "type.googleapis.com/"
_ORDER = tuple(State)


def status_row(status: ClientStatus) -> tuple[State, Json]:
    """One stream in short, and the worst state of anything on it."""
    types, states = [], []
    for type_url, kind in status.types.items():
        found = list(resource_states(kind))
        counts = Counter(resource.state for resource in found)
        state = worst(resource.state for resource in found)
        states.append(state)
        row: Json = {
            "type": short_type(type_url),
            "state": state.value,
            "resources": len(found),
            "synced": counts[State.SYNCED],
            "lastPush": _time(status.pushed.get(type_url)),
        }
        if rejected := [resource.name for resource in found if resource.state is State.REJECTED]:
            row |= {"rejected": rejected[:MAX_NAMES], "reason": kind.error}
        if missing := [resource.name for resource in found if resource.state is State.NOT_FOUND]:
            row["notFound"] = missing[:MAX_NAMES]
        types.append(row)
    return worst(iter(states)), {**_head(status), "types": types}


def dump_row(status: ClientStatus, view: View) -> Json:
    """One stream resource by resource."""
    types = []
    for type_url, kind in status.types.items():
        resources = view.get(type_url, {})
        types.append(
            {
                "type": short_type(type_url),
                "reason": kind.error,
                "lastPush": _time(status.pushed.get(type_url)),
                "resources": [
                    {
                        "name": resource.name,
                        "state": resource.state.value,
                        "version": resource.current,
                        "ackedVersion": resource.acked,
                        **({"rejectedVersion": resource.rejected} if resource.rejected else {}),
                        **_body(resources.get(resource.name)),
                    }
                    for resource in resource_states(kind)
                ],
            }
        )
    return {**_head(status), "types": types}


def withheld_rows(withheld: Iterable[tuple[Owner, Withheld]]) -> list[Json]:
    """Secrets that are not published, one row for all instances of a type that miss the same content."""
    found: dict[tuple[str, str, str], list[Withheld]] = {}
    for owner, entry in withheld:
        found.setdefault((owner[0], entry.name, entry.version or entry.reason), []).append(entry)
    return [
        {
            "type": marble_type,
            "secret": name,
            "reason": entries[0].reason,
            "since": _time(min(entry.since for entry in entries)),
            "owners": len(entries),
            "lastGoodStays": all(entry.kept for entry in entries),
        }
        for (marble_type, name, _), entries in sorted(found.items())
    ]


def severity(state: State) -> int:
    """Higher is worse."""
    return _ORDER.index(state)


def _head(status: ClientStatus) -> Json:
    return {
        "client": status.client,
        "role": status.role,
        "node": status.node,
        "agent": status.agent,
        "method": status.method,
        "since": _time(status.since),
    }


def _time(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="milliseconds")


def _body(resource: Resource | None) -> Json:
    if resource is None:
        return {}
    shown: Json = {"content": _content(resource)} if resource.type_url in SHOWN else {}
    return {"size": len(resource.body), **shown}


def _content(resource: Resource) -> Json:
    name = resource.type_url.removeprefix(_PREFIX)
    message = _message_class(name).FromString(resource.body)
    found: Json = MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=_pool())
    return found


@cache
def _message_class(name: str) -> type[Message]:
    return GetMessageClass(_pool().FindMessageTypeByName(name))


@cache
def _pool() -> DescriptorPool:
    """Our messages under Envoy's names, so that an Any says its type to JSON as it does to Envoy."""
    pool, known = DescriptorPool(), Descriptors({})
    for file in known.files.values():
        for needed in known.with_dependencies(file):
            pool.Add(needed)
    return pool
