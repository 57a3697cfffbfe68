# SPDX-License-Identifier: Apache-2.0
"""The mesh that xds_scale measures: as many Marble types as give each about a hundred instances, each type in a ring
talking to the next three, every instance with two addresses of its own in its certificate. Pure, but for the CA."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address

from cryptography import x509

from manifests.model import Manifest
from manifests.parse import parse
from sds.attestation.claims import TdxClaims
from sds.ca import LeafTemplate
from sds.csr import CertificateRequest
from xds_server.certified import certified_claims

PER_TYPE = 100
PEERS = 3
MRTD = bytes([0x11]) * 48
LIFETIME = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Place:
    """One worker: what it is, and where it says that it can be reached."""

    number: int
    marble_type: str
    uuid: str
    addresses: tuple[str, str]
    endpoints: tuple[str, ...]  # names that it asks EDS for


def types_of(workers: int) -> int:
    return max(PEERS + 1, workers // PER_TYPE)


def _type(number: int) -> str:
    return f"service-{number}"


def _port(number: int) -> int:
    return 8000 + number


def manifest(workers: int) -> Manifest:
    count = types_of(workers)
    tls = {
        _type(n): {
            "Incoming": [{"Port": str(_port(n))}],
            "Outgoing": [
                {"Addr": _type(peer), "Port": str(_port(peer))} for peer in ((n + i) % count for i in _peers())
            ],
        }
        for n in range(count)
    }
    document = {
        "Packages": {"app": {"TDX": {"MRTD": MRTD.hex()}}},
        "Marbles": {name: {"Package": "app", "TLS": [name]} for name in tls},
        "TLS": tls,
    }
    return parse(json.dumps(document).encode())


def place(number: int, workers: int) -> Place:
    count = types_of(workers)
    kind = number % count
    address = int(IPv4Address("10.0.0.1")) + 2 * number
    return Place(
        number,
        _type(kind),
        str(uuid.UUID(int=number, version=4)),
        (str(IPv4Address(address)), str(IPv4Address(address + 1))),
        tuple(f"outbound|{_type(peer)}|{_port(peer)}" for peer in ((kind + i) % count for i in _peers())),
    )


def template(where: Place, fingerprint: str) -> tuple[LeafTemplate, TdxClaims]:
    """What the Coordinator certifies about one worker, and what it remembers of its quote."""
    claims = _claims(where.number)
    request = CertificateRequest(
        (f"{where.marble_type}-{where.number}.mesh.example",),
        tuple(IPv4Address(a) for a in where.addresses),
        x509.Name([]),
    )
    certified: Mapping[str, object] = certified_claims(claims, fingerprint)
    return LeafTemplate(where.marble_type, where.uuid, request, certified, LIFETIME), claims


def _peers() -> range:
    return range(1, PEERS + 1)


def _claims(number: int) -> TdxClaims:
    def register(size: int) -> bytes:
        return number.to_bytes(size, "big")

    return TdxClaims(
        report_data=register(64),
        tcb_status="UpToDate",
        advisories=(),
        tcb_evaluation_number=17,
        fmspc=register(6),
        platform_id=register(16),
        simulated=False,
        collateral_expires=datetime(2100, 1, 1, tzinfo=UTC),
        mrtd=bytes(MRTD),
        rtmr=(register(48), register(48), register(48), register(48)),
        mrconfigid=register(48),
        mrowner=register(48),
        mrownerconfig=register(48),
        mrseam=register(48),
        mrsignerseam=register(48),
        td_attributes=register(8),
        xfam=register(8),
        debug=False,
        tee_tcb_svn=register(16),
        mrservicetd=None,
    )
