# SPDX-License-Identifier: Apache-2.0
"""What one Marble gets from all of its TLS tags together: TCP only outside SGX, one meaning per port and per peer."""

from __future__ import annotations

from manifests.address import TcpAddress, parse_address
from manifests.places import Findings
from manifests.wire import IncomingWire, ManifestWire, MarbleWire, OutgoingWire, PackageWire

# A tag may be given to every Marble, so what is to be looked at grows with the product of both. Hundreds of Marbles
# with hundreds of connections each still fit.
MAX_CONNECTIONS = 100_000


def check_connections(document: ManifestWire, found: Findings) -> None:
    sizes = {tag: len(entry.incoming) + len(entry.outgoing) for tag, entry in document.tls.items()}
    number = sum(sizes.get(tag, 0) for marble in document.marbles.values() for tag in dict.fromkeys(marble.tls))
    if number > MAX_CONNECTIONS:
        found.error(f"the Marbles have {number} connections together, at most {MAX_CONNECTIONS} are allowed", "TLS")
        return
    for name, marble in document.marbles.items():
        connections = _Connections(name, marble, document.packages.get(marble.package), found)
        for tag in dict.fromkeys(marble.tls):
            entry = document.tls.get(tag)
            if entry is None:
                continue  # reported with the Marble
            for index, incoming in enumerate(entry.incoming):
                connections.incoming(tag, index, incoming)
            for index, outgoing in enumerate(entry.outgoing):
                connections.outgoing(tag, index, outgoing)


class _Connections:
    """Collects what the tags of one Marble say, and reports where they disagree."""

    def __init__(self, name: str, marble: MarbleWire, package: PackageWire | None, found: Findings) -> None:
        self._name = name
        self._package_name = marble.package
        self._sgx = package is not None and may_be_sgx(package)
        self._found = found
        self._ports: dict[str, tuple[str, IncomingWire]] = {}
        self._peers: dict[tuple[str, str], tuple[str, OutgoingWire]] = {}
        self._listens: dict[str, tuple[str, str]] = {}

    def incoming(self, tag: str, index: int, item: IncomingWire) -> None:
        at = ("TLS", tag, "Incoming", index)
        other_tag, other = self._ports.setdefault(item.port, (tag, item))
        if other != item:
            self._found.error(f"port {item.port} of Marble {self._name} is defined differently by {other_tag}", *at)
        self._no_tcp_under_sgx("Upstream", item.upstream, *at)

    def outgoing(self, tag: str, index: int, item: OutgoingWire) -> None:
        at = ("TLS", tag, "Outgoing", index)
        key = (item.addr, item.port)
        other_tag, other = self._peers.setdefault(key, (tag, item))
        if other != item:
            self._found.error(
                f"{item.addr}:{item.port} of Marble {self._name} is defined differently by {other_tag}", *at
            )
        listen = _normal(item.listen)
        if listen and self._listens.setdefault(listen, key) != key:
            self._found.error(f"Marble {self._name} listens on {listen} for another peer already", *at, "Listen")
        self._no_tcp_under_sgx("Listen", item.listen, *at)

    def _no_tcp_under_sgx(self, member: str, text: str, *at: str | int) -> None:
        if self._sgx and isinstance(_parsed(text), TcpAddress):
            self._found.error(
                f"{member} {text} is refused for Marble {self._name}: its package {self._package_name} runs under SGX, "
                "where every TCP byte is visible to the host, loopback included; use unix:<path>",
                *(*at, member),
            )


def may_be_sgx(package: PackageWire) -> bool:
    """As `model.Package.is_sgx`: whatever is not known to be a confidential VM is held to the stricter rules."""
    named = (package.unique_id or None, package.signer_id or None, package.product_id, package.security_version)
    return any(value is not None for value in named) or (package.tdx is None and package.snp is None)


def _parsed(text: str) -> object:
    try:
        return parse_address(text)
    except ValueError:
        return None  # reported where it is decoded


def _normal(text: str) -> str:
    return str(_parsed(text) or text)
