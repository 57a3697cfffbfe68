# SPDX-License-Identifier: Apache-2.0
"""The places where a stock Envoy can stand, and the bootstrap of each.

In a Marble's TEE, beside the worker (`proxy run --relay off`, or a worker that relays other ports):

- `Terminator` ends mutual TLS in front of the app, `Originator` starts it behind; certificate and trust come from the
  worker's SDS socket, the rest is in the file.
- `InMarble` has the same identity and takes listeners, clusters and endpoints from the Coordinator (ADS).

Outside: `Edge` picks a Marble by the name in the ClientHello and carries ciphertext. It has no TLS context on the data
path; its own certificate is what the manifest's `Mesh.Gateways` entry names, and only says who may read endpoints.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from marblemesh.envoy import parts
from marblemesh.envoy.parts import Address, Config, Peers, Tcp, Unix
from sds.identity import COORDINATOR_DNS_NAME

SDS_SOCKET = Unix("sds.sock")


@dataclass(frozen=True, slots=True)
class Terminator:
    """Mutual TLS from the mesh ends here; the app gets plaintext at `app`."""

    listen: Tcp
    app: Address
    peers: Peers = field(default_factory=Peers)
    sds_socket: Unix = SDS_SOCKET

    def bootstrap(self) -> Config:
        tls = parts.downstream_tls(self.peers)
        listener = parts.tcp_listener("inbound", self.listen, [parts.chain("app", tls=tls)])
        return _static("terminator", [listener], [parts.cluster("app", self.app), _sds(self.sds_socket)])


@dataclass(frozen=True, slots=True)
class Originator:
    """The app speaks plaintext to `listen`; mutual TLS to `to` starts here. `sni`: None sends the peer's host name."""

    listen: Address
    to: Tcp
    peers: Peers = field(default_factory=Peers)
    sni: str | None = None
    sds_socket: Unix = SDS_SOCKET

    def bootstrap(self) -> Config:
        # RFC 6066, section 3: no addresses in SNI.
        sni = self.sni or (None if self.to.is_ip else self.to.host)
        peer = parts.cluster("peer", self.to, tls=parts.upstream_tls(self.peers, sni))
        listener = parts.tcp_listener("outbound", self.listen, [parts.chain("peer")])
        return _static("originator", [listener], [peer, _sds(self.sds_socket)])


@dataclass(frozen=True, slots=True)
class InMarble:
    """Everything from the Coordinator, with the Marble's attested identity. `advertise`: where peers reach it."""

    marble_type: str
    coordinator: Tcp
    advertise: str | None = None
    sds_socket: Unix = SDS_SOCKET

    def bootstrap(self) -> Config:
        tls = parts.coordinator_tls(COORDINATOR_DNS_NAME)
        xds = parts.cluster(parts.XDS_CLUSTER, self.coordinator, tls=tls, http2=True)
        made = _static(self.marble_type, [], [xds, _sds(self.sds_socket)])
        if self.advertise is not None:
            made["node"] = {"id": self.marble_type, "cluster": "marblemesh", "metadata": {"ADVERTISE": self.advertise}}
        return made | _aggregated("cds_config", "lds_config")


@dataclass(frozen=True, slots=True)
class Route:
    """Connections with this name in their ClientHello (None: all others) go to that port of that Marble type."""

    server_name: str | None
    marble_type: str
    port: int


@dataclass(frozen=True, slots=True)
class Edge:
    """Ciphertext in, ciphertext out. `certificate`, `key` and `root` are paths of PEM files."""

    listen: Tcp
    coordinator: Tcp
    certificate: str
    key: str
    root: str
    routes: tuple[Route, ...]
    name: str = "edge"

    def bootstrap(self) -> Config:
        tls = parts.coordinator_tls(COORDINATOR_DNS_NAME, files=(self.certificate, self.key, self.root))
        xds = parts.cluster(parts.XDS_CLUSTER, self.coordinator, tls=tls, http2=True)
        chains = [_passthrough(route) for route in self.routes]
        peeks = any(route.server_name is not None for route in self.routes)
        listener = parts.tcp_listener("edge", self.listen, chains, peeks_at_sni=peeks)
        return _static(self.name, [listener], [xds]) | _aggregated("cds_config")


def _passthrough(route: Route) -> Config:
    names = () if route.server_name is None else (route.server_name,)
    return parts.chain(parts.marble_cluster(route.marble_type, route.port), server_names=names)


def _sds(socket: Unix) -> Config:
    return parts.cluster(parts.SDS_CLUSTER, socket, http2=True)


def _static(node: str, listeners: list[Config], clusters: list[Config]) -> Config:
    resources: Config = {"listeners": listeners, "clusters": clusters} if listeners else {"clusters": clusters}
    return {"node": {"id": node, "cluster": "marblemesh"}, "static_resources": resources}


def _aggregated(*kinds: str) -> Config:
    ads: Config = {"ads": {}, "resource_api_version": "V3"}
    return {"dynamic_resources": {"ads_config": parts.incremental(parts.XDS_CLUSTER), **dict.fromkeys(kinds, ads)}}
