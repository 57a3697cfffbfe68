# SPDX-License-Identifier: Apache-2.0
"""Plays the client of a discovery stream in transcript tests: short ways to ask, to answer and to look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sds.discovery import DeltaStream, Receipt, SotwStream, View
from sds.resources import CLUSTER, ENDPOINT, EXTENSION_CONFIG, LISTENER, ROUTE, SECRET, Resource
from sds.wire import discovery_pb2

SHORT = {
    "LDS": LISTENER,
    "CDS": CLUSTER,
    "EDS": ENDPOINT,
    "SDS": SECRET,
    "RDS": ROUTE,
    "ECDS": EXTENSION_CONFIG,
    "?": "type.googleapis.com/nobody.knows.this.v3.Type",
}
LONG = {url: short for short, url in SHORT.items()}


def resource(type_url: str, name: str, version: str, mentions: str = "") -> Resource:
    return Resource(type_url, name, version, f"{name}@{version}<{mentions}>".encode())


def view(**types: Mapping[str, str]) -> View:
    """`view(SDS={"default": "v1"})`; a version "v1 names" also mentions the name `names` in its body."""
    made: dict[str, dict[str, Resource]] = {}
    for short, content in types.items():
        url = SHORT[short]
        made[url] = {n: resource(url, n, v.partition(" ")[0], v.partition(" ")[2]) for n, v in content.items()}
    return made


@dataclass(frozen=True, slots=True)
class Said:
    """A response as the client sees it: `content` name@version by the body, `removed`, `errors` name -> code."""

    type: str
    nonce: str
    version: str
    content: tuple[str, ...]
    removed: tuple[str, ...] = ()
    errors: tuple[tuple[str, int], ...] = ()


class SotwClient:
    def __init__(self, first_view: View, **options: object) -> None:
        self.stream = SotwStream(identifier="test", nonce_prefix="n", **options)  # type: ignore[arg-type]
        self.stream.update(first_view)

    def ask(self, kind: str, *names: str, nonce: str = "", version: str = "", error: str | None = None) -> Receipt:
        request = discovery_pb2.DiscoveryRequest(
            type_url=SHORT.get(kind, kind), resource_names=names, response_nonce=nonce, version_info=version
        )
        if error is not None:
            request.error_detail.code = 13
            request.error_detail.message = error
        return self.stream.receive_bytes(request.SerializeToString())

    def hear(self) -> Said | None:
        if (body := self.stream.take()) is None:
            return None
        response = discovery_pb2.DiscoveryResponse.FromString(body)
        content = tuple(_text(item.value) for item in response.resources)
        errors = tuple((e.resource_name.name, e.error_detail.code) for e in response.resource_errors)
        return Said(LONG[response.type_url], response.nonce, response.version_info, content, errors=errors)

    def hear_all(self) -> list[Said]:
        return list(iter(self.hear, None))


class IncrementalClient:
    def __init__(self, first_view: View, **options: object) -> None:
        self.stream = DeltaStream(identifier="test", nonce_prefix="n", **options)  # type: ignore[arg-type]
        self.stream.update(first_view)

    def ask(
        self,
        kind: str,
        *names: str,
        drop: Iterable[str] = (),
        holds: Mapping[str, str] | None = None,
        nonce: str = "",
        error: str | None = None,
    ) -> Receipt:
        request = discovery_pb2.DeltaDiscoveryRequest(
            type_url=SHORT.get(kind, kind),
            resource_names_subscribe=names,
            resource_names_unsubscribe=drop,
            initial_resource_versions=holds or {},
            response_nonce=nonce,
        )
        if error is not None:
            request.error_detail.code = 13
            request.error_detail.message = error
        return self.stream.receive_bytes(request.SerializeToString())

    def hear(self) -> Said | None:
        if (body := self.stream.take()) is None:
            return None
        response = discovery_pb2.DeltaDiscoveryResponse.FromString(body)
        return Said(
            LONG[response.type_url],
            response.nonce,
            "",
            tuple(f"{item.name}@{item.version}" for item in response.resources),
            tuple(response.removed_resources),
            tuple((e.resource_name.name, e.error_detail.code) for e in response.resource_errors),
        )

    def hear_all(self) -> list[Said]:
        return list(iter(self.hear, None))


def _text(body: bytes) -> str:
    return body.decode().partition("<")[0]
