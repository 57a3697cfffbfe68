# SPDX-License-Identifier: Apache-2.0
"""A mesh with a real CA and real certificates, and no sockets: manifest in, activated Marbles on demand."""

from __future__ import annotations

import asyncio
import json
import uuid as uuids
from collections.abc import Callable
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
from xds_server.rotation import Pace, Phase

NO_SUBJECT = x509.Name([])


def manifest(
    tls: dict[str, object],
    marbles: dict[str, list[str]],
    gateways: dict[str, x509.Certificate] | None = None,
    *,
    secrets: tuple[str, ...] = (),
) -> Manifest:
    """A manifest with these TLS tags, Marbles with the tags that they have, and certificates that users upload."""
    document = {
        "Packages": {"app": {"TDX": {"MRTD": "11" * 48}}},  # a confidential VM: loopback TCP is allowed
        "Marbles": {name: {"Package": "app", "TLS": tags} for name, tags in marbles.items()},
        "TLS": tls,
        "Secrets": {name: {"Type": "cert-ecdsa", "Size": 256, "UserDefined": True} for name in secrets},
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


# Phases of a rotation that go on as soon as everybody has answered, on a clock that stands still.
PROMPT = Pace(settle=timedelta(0), finish=timedelta(0))


class Town:
    """A Mesh with the CA that it is served under, and a clock that tests move (or, `live`, that moves by itself)."""

    def __init__(
        self,
        what: Manifest,
        ca: CertificateAuthority | None = None,
        *,
        pace: Pace = PROMPT,
        live: bool = False,
        mesh: Callable[..., Mesh] = Mesh,
    ) -> None:
        self._time = None if live else datetime.now(UTC)
        self.ca = ca or CertificateAuthority.create(["localhost"], [], self.time)
        self.mesh = mesh(lambda: self.time, pace=pace)
        self.manifest = what
        self.names: dict[tuple[str, str], tuple[str, str]] = {}
        self.mesh.configure(what, self.ca)

    @property
    def time(self) -> datetime:
        return datetime.now(UTC) if self._time is None else self._time

    @time.setter
    def time(self, value: datetime) -> None:
        self._time = value

    def identity(
        self, marble_type: str, uuid: str, *, ip: str = "127.0.0.1", dns: str = "localhost", hours: float = 24
    ) -> Identity:
        request = CertificateRequest((dns,), (ip_address(ip),), NO_SUBJECT)
        template = LeafTemplate(marble_type, uuid, request, None, timedelta(hours=hours))
        return self.ca.issue_marble(template, self.time)

    def activate(
        self, marble_type: str, *, ip: str = "127.0.0.1", dns: str = "localhost", uuid: str | None = None
    ) -> ActiveMarble:
        uuid = uuid or str(uuids.uuid4())
        marble = ActiveMarble(
            marble_type=marble_type,
            uuid=uuid,
            identity=self.identity(marble_type, uuid, ip=ip, dns=dns),
            dns_names=(dns,),
            ip_addresses=(ip,),
        )
        self.names[marble_type, uuid] = ip, dns
        self.mesh.activated(marble)
        return marble

    # ---- manifest updates

    def update(
        self, what: Manifest | None = None, allowed: Callable[[ActiveMarble], bool] = lambda _: True
    ) -> tuple[ActiveMarble, ...]:
        """What a Coordinator does on a manifest update; the ones that were turned out."""
        self.manifest = what or self.manifest
        self.ca = self.ca.rotate(self.time)
        return self.mesh.update(self.manifest, self.ca, allowed)

    def renew_when_asked(self) -> None:
        """Renew every identity when a rotation has come so far, as a Coordinator's renewer does."""
        self.mesh.renew_with(self.renew)

    def renew(self) -> None:
        self.mesh.replace_identities(
            {key: self.identity(*key, ip=ip, dns=dns) for key, (ip, dns) in self.names.items()}
        )

    async def settled(self) -> None:
        """Wait until the rotation is over; an XdsServer must drive it."""
        async with asyncio.timeout(30):
            while self.mesh.rotation.phase is not Phase.SETTLED:
                await asyncio.sleep(0.01)
