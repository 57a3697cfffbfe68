# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import base64
import hashlib
from dataclasses import dataclass, field

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from enclave_proxy.backoff import Backoff
from enclave_proxy.bootstrap import Activator, Credentials
from enclave_proxy.config import HostPort
from enclave_proxy.coordinator_pin import check_manifest
from enclave_proxy.errors import CoordinatorNotTrusted, ParametersError, StartError
from enclave_proxy.own_certificate import OwnCertificate
from enclave_proxy.xds_client import check_coordinator, is_disowned
from sds.attestation.errors import DeviceUnavailable
from sds.attestation.evidence import Evidence, Tee
from sds.attestation.report_data import marble_report_data
from sds.logs import get_logger
from tests.kit.pki import marble, now, other_ca, shared_ca
from tests.kit.platform import ENCLAVE, shared_platform

CHAIN, KEY = "MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN", "MARBLE_PREDEFINED_PRIVATE_KEY"
ROOT, COORDINATOR = "MARBLE_PREDEFINED_ROOT_CA", "MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"


def predefined() -> dict[str, bytes]:
    identity, ca = marble(shared_ca()), shared_ca()
    return {CHAIN: identity.chain, KEY: identity.key.pem, ROOT: ca.bundle.pem, COORDINATOR: ca.chain_pem}


def test_the_predefined_variables_are_credentials() -> None:
    credentials = Credentials.from_env(predefined(), now())
    assert credentials.bundle == shared_ca().bundle
    assert "PRIVATE" not in repr(credentials)


@pytest.mark.parametrize("name", [CHAIN, KEY, ROOT, COORDINATOR])
def test_a_missing_variable_is_named(name: str) -> None:
    env = predefined()
    del env[name]
    with pytest.raises(ParametersError, match=f"lacks {name}"):
        Credentials.from_env(env, now())


@pytest.mark.parametrize(
    "change",
    [{KEY: b"nonsense"}, {CHAIN: b""}, {ROOT: b""}, {KEY: marble(shared_ca()).key.pem}, {ROOT: other_ca().bundle.pem}],
)
def test_credentials_that_peers_would_refuse_are_refused(change: dict[str, bytes]) -> None:
    with pytest.raises(ParametersError, match="identity in the Coordinator's reply cannot be used") as caught:
        Credentials.from_env(predefined() | change, now())
    assert "PRIVATE" not in str(caught.value)


def test_our_own_certificate_is_as_marbleruns_peers_expect_it() -> None:
    own = OwnCertificate.create(("web.mesh",), ("127.0.0.1", "::1"), now())
    certificate = x509.load_der_x509_certificate(own.certificate)
    assert certificate.subject == certificate.issuer
    assert certificate.subject.rfc4514_string() == "CN=MarbleRun Marble"
    certificate.verify_directly_issued_by(certificate)
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP384R1)
    csr = x509.load_der_x509_csr(own.csr)
    assert csr.is_signature_valid
    assert len(csr.subject.rdns) == 0
    names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["web.mesh"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert own.key.matches(key)


@dataclass
class FakeIssuer:
    """Makes real simulated quotes; breaks while `broken`."""

    broken: bool = False
    asked: list[bytes] = field(default_factory=list)
    tee: Tee = Tee.SGX

    def issue(self, report_data: bytes) -> Evidence:
        self.asked.append(report_data)
        if self.broken:
            raise DeviceUnavailable("no device today")
        return shared_platform().issuer(ENCLAVE).issue(report_data)


def activator(issuer: FakeIssuer) -> Activator:
    return Activator(
        marble_type="web",
        uuid="u",
        coordinator=HostPort("127.0.0.1", 1),
        dns_names=("localhost",),
        ip_addresses=("127.0.0.1",),
        issuer=issuer,
        pin=None,
        now=now,
        log=get_logger("test"),
    )


async def test_the_quote_is_over_the_certificate_that_tls_will_show() -> None:
    issuer = FakeIssuer()
    own, quote = await activator(issuer).prepare()
    assert issuer.asked == [marble_report_data(own.certificate)]
    assert Evidence.parse(quote).tee is Tee.SGX


async def test_without_a_quote_there_is_nothing_to_say() -> None:
    with pytest.raises(StartError, match="cannot get a quote: no device today"):
        await activator(FakeIssuer(broken=True)).persist(Backoff(lambda: 0.0, initial=1, cap=1))


async def test_one_quote_serves_all_attempts() -> None:
    issuer = FakeIssuer()
    tries = 0

    def count() -> float:
        nonlocal tries
        tries += 1
        if tries == 3:
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        await activator(issuer).persist(Backoff(count, initial=1, cap=1))
    assert len(issuer.asked) == 1


def test_delays_double_up_to_the_cap_and_start_again() -> None:
    backoff = Backoff(lambda: 1.0, initial=0.5, cap=10, floor=0.25)
    assert [backoff.next() for _ in range(7)] == [0.5, 1, 2, 4, 8, 10, 10]
    backoff.reset()
    assert backoff.next() == 0.5
    assert Backoff(lambda: 0.0, initial=0.5, cap=10, floor=0.25).next() == 0.25


def signed(manifest: bytes, key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    signature = key.sign(manifest, ec.ECDSA(hashes.SHA256()))
    return {
        "manifest": base64.b64encode(manifest).decode(),
        "manifestSignatureRootECDSA": base64.b64encode(signature).decode(),
        "manifestFingerprint": "whatever it says",
    }


def test_only_the_pinned_manifest_signed_by_the_attested_root_passes() -> None:
    ca = shared_ca()
    key, stranger = ca.root_key.load(), other_ca().root_key.load()
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(stranger, ec.EllipticCurvePrivateKey)
    pin = hashlib.sha256(b"{}").hexdigest()
    check_manifest(signed(b"{}", key), ca.root, pin)
    with pytest.raises(CoordinatorNotTrusted, match="runs another manifest than the one pinned"):
        check_manifest(signed(b"{ }", key), ca.root, pin)
    with pytest.raises(CoordinatorNotTrusted, match="not signed by the attested root key"):
        check_manifest(signed(b"{}", stranger), ca.root, pin)
    for broken in ({}, {"manifest": "x"}, signed(b"{}", key) | {"manifest": "?"}):
        with pytest.raises(CoordinatorNotTrusted, match="lacks manifest or signature"):
            check_manifest(broken, ca.root, pin)


def test_a_marble_is_not_the_coordinator_although_it_chains_to_the_same_root() -> None:
    check_coordinator(shared_ca().issue_coordinator(now()).leaf)
    with pytest.raises(OSError, match="the server is not") as caught:
        check_coordinator(marble(shared_ca()).leaf)
    assert is_disowned(caught.value)


def test_a_broken_connection_is_no_reason_to_doubt_the_coordinator() -> None:
    assert not is_disowned(ConnectionResetError())
    assert not is_disowned(asyncio.IncompleteReadError(b"", 1))
