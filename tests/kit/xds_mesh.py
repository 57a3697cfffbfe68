# SPDX-License-Identifier: Apache-2.0
"""A mesh with a real CA and real certificates, and no sockets: manifest in, activated Marbles on demand."""

from __future__ import annotations

import json
import uuid as uuids
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from manifests.model import Manifest
from manifests.parse import parse
from sds.ca import CertificateAuthority, LeafTemplate
from sds.csr import CertificateRequest
from sds.material import Identity
from xds_server.mesh import ActiveMarble, Mesh

NO_SUBJECT = x509.Name([])


def manifest(
    tls: dict[str, object], marbles: dict[str, list[str]], gateways: dict[str, x509.Certificate] | None = None
) -> Manifest:
    """A manifest with these TLS tags, and Marbles with the tags that they have."""
    document = {
        "Packages": {"app": {"TDX": {"MRTD": "11" * 48}}},  # a confidential VM: loopback TCP is allowed
        "Marbles": {name: {"Package": "app", "TLS": tags} for name, tags in marbles.items()},
        "TLS": tls,
        "Mesh": {
            "Gateways": {
                name: {"Certificate": certificate.public_bytes(Encoding.PEM).decode()}
                for name, certificate in (gateways or {}).items()
            }
        },
    }
    return parse(json.dumps(document).encode())


def gateway_certificate(*names: x509.GeneralName, ca: bool = False) -> tuple[x509.Certificate, bytes]:
    """A self-signed certificate with these SANs, and its key in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "edge")])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(key, SHA256())
    return certificate, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Town:
    """A Mesh with the CA that it is served under, and a clock that tests move."""

    def __init__(self, what: Manifest, ca: CertificateAuthority | None = None) -> None:
        self.time = datetime.now(UTC)
        self.ca = ca or CertificateAuthority.create(["localhost"], [], self.time)
        self.mesh = Mesh(lambda: self.time)
        self.manifest = what
        self.mesh.configure(what, self.ca)

    def identity(
        self, marble_type: str, uuid: str, *, ip: str = "127.0.0.1", dns: str = "localhost", hours: float = 24
    ) -> Identity:
        request = CertificateRequest((dns,), (ip_address(ip),), NO_SUBJECT)
        template = LeafTemplate(marble_type, uuid, request, None, timedelta(hours=hours))
        return self.ca.issue_marble(template, self.time)

    def activate(self, marble_type: str, *, ip: str = "127.0.0.1", dns: str = "localhost") -> ActiveMarble:
        uuid = str(uuids.uuid4())
        marble = ActiveMarble(
            marble_type=marble_type,
            uuid=uuid,
            identity=self.identity(marble_type, uuid, ip=ip, dns=dns),
            dns_names=(dns,),
            ip_addresses=(ip,),
        )
        self.mesh.activated(marble)
        return marble
