# SPDX-License-Identifier: Apache-2.0
"""A control plane for Linkerd's proxies in a test's pods: identity, destination and policy over real gRPC.

Runs in the test itself, with a listener on loopback of each pod (a proxy takes plaintext gRPC only from there), and
serves the stand-in and the real linkerd2-proxy alike. What it says can be changed while they run.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from grpclib import GRPCError, Status
from grpclib.const import Cardinality, Handler
from grpclib.server import Server, Stream

from tests.kit.linkerd_rules import INBOUND
from tests.kit.linkerd_wire import (
    CERTIFY,
    GET_PROFILE,
    WATCH_OUTBOUND,
    WATCH_PORT,
    CertifyRequest,
    CertifyResponse,
    Endpoint,
    Profile,
    RawCodec,
    ServerPolicy,
    decode,
    number,
    text,
)

DOMAIN = "serviceaccount.identity.linkerd.cluster.local"
_SPARE = 60  # a renewal that is late on a busy machine breaks nothing
_ALLOWED = {"all-unauthenticated": "any", "all-authenticated": "authenticated", "deny": "none"}


@dataclass(slots=True)
class Workload:
    """A pod as Kubernetes would describe it. `detect_seconds`: how long its proxy waits for HTTP on a detect port."""

    name: str
    address: str
    opaque: set[int] = field(default_factory=set)
    skipped: set[int] = field(default_factory=set)
    default_policy: str = "all-unauthenticated"
    detect_seconds: int = 1

    @property
    def identity(self) -> str:
        return f"{self.name}.test.{DOMAIN}"

    def policy(self, port: int) -> ServerPolicy:
        protocol = "opaque" if port in self.opaque else "detect"
        return ServerPolicy(protocol, _ALLOWED[self.default_policy], self.detect_seconds, name=self.default_policy)


class ControlPlane:
    """`transport_header`: meshed traffic goes to the peer proxy's port with a header (Linkerd's default since 2025), or
    to the port itself (`transparent`). `lifetime`: seconds after which a certificate is to be renewed at the latest."""

    def __init__(self, *workloads: Workload, transport_header: bool = True, lifetime: float = 86400) -> None:
        self._workloads = {workload.address: workload for workload in workloads}
        self._names = {workload.name: workload for workload in workloads}
        self._header = transport_header
        self._lifetime = lifetime
        self._changed = asyncio.Event()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._root = _certificate(_name("root.linkerd.cluster.local"), None, self._key, self._key.public_key())
        self.certified: list[str] = []
        """The identities that were signed, in order."""
        self.asked: list[str] = []
        """The destinations whose profiles were asked for, in order."""

    @property
    def anchors(self) -> str:
        """The trust anchors, PEM."""
        return self._root.public_bytes(Encoding.PEM).decode()

    def change(self) -> None:
        """Tell every proxy what its workload says by now."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def server(self) -> Server:
        """A gRPC server that is yet to be started on a socket."""
        return Server([self], codec=RawCodec())

    def __mapping__(self) -> dict[str, Handler]:
        streams = {GET_PROFILE: self._get_profile, WATCH_PORT: self._watch_port, WATCH_OUTBOUND: self._watch_outbound}
        return {
            CERTIFY: Handler(self._certify, Cardinality.UNARY_UNARY, bytes, bytes),
            **{path: Handler(method, Cardinality.UNARY_STREAM, bytes, bytes) for path, method in streams.items()},
        }

    async def _certify(self, stream: Stream[bytes, bytes]) -> None:
        request = CertifyRequest.decode(await _received(stream))
        csr = x509.load_der_x509_csr(request.csr)
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if not csr.is_signature_valid or not request.token or list(names) != [x509.DNSName(request.identity)]:
            raise GRPCError(Status.INVALID_ARGUMENT, "not a request for this identity")
        public = csr.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        leaf = _certificate(csr.subject, names, self._key, public, self._root.subject, self._lifetime + _SPARE)
        self.certified.append(request.identity)
        until = int(time.time() + self._lifetime)
        await stream.send_message(CertifyResponse(leaf.public_bytes(Encoding.DER), (), until).encode())

    async def _get_profile(self, stream: Stream[bytes, bytes]) -> None:
        path = text(decode(await _received(stream)), 2)
        self.asked.append(path)
        await self._follow(stream, lambda: self._profile(path).encode())

    async def _watch_port(self, stream: Stream[bytes, bytes]) -> None:
        fields = decode(await _received(stream))
        workload = self._names[json.loads(text(fields, 1))["pod"]]
        port = number(fields, 2)
        await self._follow(stream, lambda: workload.policy(port).encode())

    async def _watch_outbound(self, stream: Stream[bytes, bytes]) -> None:
        await _received(stream)
        raise GRPCError(Status.NOT_FOUND, "no outbound policy")  # the profile alone counts

    async def _follow(self, stream: Stream[bytes, bytes], now: Callable[[], bytes]) -> None:
        said = None
        while True:
            changed = self._changed
            if (message := now()) != said:
                await stream.send_message(message)
                said = message
            await changed.wait()

    def _profile(self, path: str) -> Profile:
        address, _, port_text = path.rpartition(":")
        workload, port = self._workloads.get(address), int(port_text)
        if workload is None:
            return Profile()
        if port in workload.skipped:
            return Profile(endpoint=Endpoint(address, port))
        opaque = port in workload.opaque
        transport = INBOUND if self._header or opaque else None
        return Profile(opaque, Endpoint(address, port, workload.identity, opaque, transport))


async def _received(stream: Stream[bytes, bytes]) -> bytes:
    message = await stream.recv_message()
    assert message is not None
    return message


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _certificate(
    subject: x509.Name,
    names: x509.SubjectAlternativeName | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    public: ec.EllipticCurvePublicKey,
    issuer: x509.Name | None = None,
    lifetime: float = 86400,
) -> x509.Certificate:
    """A leaf for these names, or the root itself."""
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer or subject).public_key(public)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(seconds=20))
    builder = builder.not_valid_after(now + datetime.timedelta(seconds=lifetime))
    builder = builder.add_extension(x509.BasicConstraints(ca=names is None, path_length=None), critical=True)
    usage = dict.fromkeys(
        ("content_commitment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False
    )
    leaf = names is not None
    builder = builder.add_extension(
        x509.KeyUsage(
            digital_signature=leaf, key_encipherment=leaf, key_cert_sign=not leaf, crl_sign=not leaf, **usage
        ),
        critical=True,
    )
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False).add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
    )
    if names is not None:
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(names, critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    return builder.sign(issuer_key, SHA256())
