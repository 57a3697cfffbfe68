# SPDX-License-Identifier: Apache-2.0
"""Rules for TLS tags, each taken by itself; what they amount to for one Marble is checks_connections.py's."""

from __future__ import annotations

from manifests.address import parse_port
from manifests.places import Findings
from manifests.wire import IncomingWire, ManifestWire, OutgoingWire

# A DNS name has at most 253 characters.
MAX_ADDR = 253


def check_tags(document: ManifestWire, found: Findings) -> None:
    for tag, entry in document.tls.items():
        for index, incoming in enumerate(entry.incoming):
            _check_incoming(document, tag, index, incoming, found)
        for index, outgoing in enumerate(entry.outgoing):
            _check_outgoing(document, tag, index, outgoing, found)


def _check_incoming(document: ManifestWire, tag: str, index: int, item: IncomingWire, found: Findings) -> None:
    at = ("TLS", tag, "Incoming", index)
    if not item.port:
        found.error(f"manifest misses Port in TLS.Incoming.{tag}", *at, "Port")
    else:
        with found.at(*at, "Port"):
            parse_port(item.port)
    if item.cert and item.cert not in document.secrets:
        found.error(f"TLS.Incoming.{tag} references undefined secret {item.cert}", *at, "Cert")
    if item.cert and not item.disable_client_auth:
        found.error(f"TLS.Incoming.{tag} defines Cert but does not disable client authentication", *at, "Cert")
    if item.disable_client_auth and not item.cert:
        found.error(f"TLS.Incoming.{tag} disables client authentication", *at, "DisableClientAuth")
    if item.peers is None:
        return
    if not item.peers:
        found.error("Peers is empty, so nobody could connect: name Marble types or leave it out", *at, "Peers")
    if item.disable_client_auth:
        found.error("Peers needs client certificates, but DisableClientAuth asks for none", *at, "Peers")
    for number, peer in enumerate(item.peers):
        if peer not in document.marbles and peer not in document.mesh.gateways:
            found.error(f"peer {peer!r} is neither a Marble type nor a gateway of this manifest", *at, "Peers", number)


def _check_outgoing(document: ManifestWire, tag: str, index: int, item: OutgoingWire, found: Findings) -> None:
    at = ("TLS", tag, "Outgoing", index)
    if not item.addr:
        found.error(f"manifest misses Addr in TLS.Outgoing.{tag}", *at, "Addr")
    elif not _is_addr(item.addr):
        found.error(
            f"invalid address {item.addr[:80]!r}: want a Marble type, host name or IP address, no '/', '|', blanks "
            "or templates",
            *(*at, "Addr"),
        )
    if not item.port:
        found.error(f"manifest misses Port in TLS.Outgoing.{tag}", *at, "Port")
    else:
        with found.at(*at, "Port"):
            parse_port(item.port)
    if not item.peer:
        return
    if item.peer not in document.marbles:
        found.error(f"peer {item.peer!r} is not a Marble type of this manifest", *at, "Peer")
    elif item.addr in document.marbles and item.addr != item.peer:
        found.error(
            f"Addr {item.addr!r} and Peer {item.peer!r} are different Marble types: the peer could never be right", *at
        )


def _is_addr(addr: str) -> bool:
    # The address becomes part of a resource name (outbound|<addr>|<port>) and of a file name (<addr>-<port>.sock):
    # '/' would leave the run directory. MarbleRun fills in templates in what it makes of addresses for its runtime's
    # TTLS; here a route must be known before there is an instance, and no secret may stand in its name.
    if len(addr) > MAX_ADDR or not addr.isprintable() or any(character in "/|\\ {}" for character in addr):
        return False
    return addr not in (".", "..")
