# SPDX-License-Identifier: Apache-2.0
"""What the CA makes: MarbleRun's profile to the byte, and nothing that must not be handed out."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sds.ca import CertificateAuthority, IssuanceError, LeafTemplate, pem_of
from sds.claims_extension import CLAIMS_OID
from sds.csr import CertificateRequest
from sds.identity import COORDINATOR_DNS_NAME, MARBLE_TYPE_OID
from sds.keys import PrivateKey
from sds.material import MaterialError, TrustBundle, check_bundle, check_identity
from tests.kit.pki import marble, request, shared_ca

NOW = datetime(2026, 3, 1, 12, 0, 0, 999, tzinfo=UTC)
UUID = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"


@pytest.fixture(scope="module")
def ca() -> CertificateAuthority:
    return CertificateAuthority.create(["mesh.example", "localhost"], ["10.1.2.3"], NOW)


def extension_oids(certificate: x509.Certificate) -> list[str]:
    return [e.oid.dotted_string for e in certificate.extensions]


@pytest.mark.parametrize("which", ["root", "intermediate", "marble_root"])
def test_every_ca_certificate_has_marbleruns_profile(ca: CertificateAuthority, which: str) -> None:
    certificate: x509.Certificate = getattr(ca, which)
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP384R1)
    assert isinstance(certificate.signature_hash_algorithm, SHA384)
    assert 0 < certificate.serial_number < 1 << 128
    assert certificate.not_valid_before_utc == NOW.replace(microsecond=0)
    assert certificate.not_valid_after_utc == datetime(2318, 6, 11, 11, 47, 16, tzinfo=UTC)
    by_class = certificate.extensions.get_extension_for_class
    constraints = by_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value) == (True, x509.BasicConstraints(ca=True, path_length=None))
    usage = by_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert usage.value.key_cert_sign
    assert not usage.value.key_agreement
    assert not usage.value.crl_sign
    assert list(by_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    ]
    names = by_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["mesh.example", "localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [ip_address(a) for a in ("127.0.0.1", "::1", "10.1.2.3")]
    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert by_class(x509.SubjectKeyIdentifier).value.digest == hashlib.sha256(point).digest()[:20]


def test_the_three_certificates_hang_together(ca: CertificateAuthority) -> None:
    ca.root.verify_directly_issued_by(ca.root)
    ca.intermediate.verify_directly_issued_by(ca.root)
    ca.marble_root.verify_directly_issued_by(ca.marble_root)
    assert ca.marble_root.subject == ca.intermediate.subject
    assert ca.marble_root.public_key() == ca.intermediate.public_key()
    assert ca.root.subject.rfc4514_string() == "CN=MarbleRun Coordinator"
    assert ca.intermediate.subject.rfc4514_string() == "CN=MarbleRun Coordinator - Intermediate CA"
    authority = x509.AuthorityKeyIdentifier.oid.dotted_string
    assert authority in extension_oids(ca.intermediate)
    assert authority not in extension_oids(ca.root) + extension_oids(ca.marble_root)
    assert x509.load_pem_x509_certificates(ca.chain_pem) == [ca.intermediate, ca.root]


def test_a_leaf_verifies_under_each_of_the_three(ca: CertificateAuthority) -> None:
    identity = marble(ca, at=NOW)
    for anchor in (ca.root, ca.intermediate, ca.marble_root):
        check_identity(identity, TrustBundle(pem_of(anchor)), NOW)


def test_a_leaf_has_marbleruns_profile_and_our_two_additions(ca: CertificateAuthority) -> None:
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "whatever"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "dropped"),
            x509.NameAttribute(NameOID.EMAIL_ADDRESS, "dropped@example.org"),
            x509.NameAttribute(NameOID.LOCALITY_NAME, "Bochum"),
        ]
    )
    wish = CertificateRequest(("localhost",), (ip_address("127.0.0.1"),), subject)
    identity = ca.issue_marble(LeafTemplate("my web", UUID, wish, {"tee": "sgx"}), NOW)
    leaf = identity.leaf
    assert [(a.oid, a.value) for a in leaf.subject] == [
        (NameOID.LOCALITY_NAME, "Bochum"),
        (NameOID.COMMON_NAME, UUID),
    ]
    by_class = leaf.extensions.get_extension_for_class
    assert by_class(x509.BasicConstraints).value == x509.BasicConstraints(ca=False, path_length=None)
    usage = by_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_agreement, usage.key_cert_sign) == (True, True, False)
    assert len(list(by_class(x509.ExtendedKeyUsage).value)) == 2
    names = by_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("127.0.0.1")]
    uri = f"spiffe://{ca.trust_domain}/marble/my_20web/{UUID}"
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [uri]
    assert by_class(x509.AuthorityKeyIdentifier).value.key_identifier == (
        ca.marble_root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    )
    assert x509.SubjectKeyIdentifier.oid.dotted_string not in extension_oids(leaf)
    ours = {e.oid: e for e in leaf.extensions if isinstance(e.value, x509.UnrecognizedExtension)}
    assert set(ours) == {MARBLE_TYPE_OID, CLAIMS_OID}
    assert ours[MARBLE_TYPE_OID].value.public_bytes() == b"my web"
    assert not any(e.critical for e in ours.values())
    assert x509.load_pem_x509_certificates(identity.chain)[1:] == [ca.intermediate]


def test_an_activation_leaf_lives_as_long_as_its_ca(ca: CertificateAuthority) -> None:
    identity = marble(ca, lifetime=None, at=NOW + timedelta(days=30))
    assert identity.not_after == ca.marble_root.not_valid_after_utc
    assert identity.leaf.public_key().curve.name == "secp384r1"  # type: ignore[union-attr]


def test_a_short_lived_leaf_is_backdated_against_clock_skew_but_not_before_its_ca(ca: CertificateAuthority) -> None:
    later = NOW.replace(microsecond=0) + timedelta(hours=1)
    identity = marble(ca, lifetime=timedelta(hours=24), at=later)
    assert identity.not_before == later - timedelta(minutes=5)
    assert identity.not_after == later + timedelta(hours=24)
    assert marble(ca, at=NOW).not_before == ca.marble_root.not_valid_before_utc


def test_no_leaf_outlives_the_ca(ca: CertificateAuthority) -> None:
    end = ca.marble_root.not_valid_after_utc
    assert marble(ca, lifetime=timedelta(days=30), at=end - timedelta(days=1)).not_after == end


def test_the_coordinators_leaf_is_its_own(ca: CertificateAuthority) -> None:
    identity = ca.issue_coordinator(NOW)
    assert str(identity.spiffe_id) == f"spiffe://{ca.trust_domain}/coordinator"
    names = identity.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [COORDINATOR_DNS_NAME]
    check_identity(identity, TrustBundle(pem_of(ca.root)), NOW)


def test_every_leaf_has_its_own_key_and_serial_number(ca: CertificateAuthority) -> None:
    one, two = marble(ca, uuid=UUID, at=NOW), marble(ca, uuid=UUID, at=NOW)
    assert one.key != two.key
    assert one.leaf.serial_number != two.leaf.serial_number


@pytest.mark.parametrize("lifetime", [timedelta(0), timedelta(hours=-1), timedelta(days=-1)])
def test_a_leaf_without_life_is_not_handed_out(ca: CertificateAuthority, lifetime: timedelta) -> None:
    with pytest.raises(IssuanceError, match="refusing to hand out"):
        marble(ca, lifetime=lifetime, at=NOW + timedelta(days=2))


def test_a_ca_whose_key_is_another_ones_hands_out_nothing(ca: CertificateAuthority) -> None:
    """The signer is inspected by its product."""
    broken = replace(ca, intermediate_key=PrivateKey.generate_p384())
    with pytest.raises(IssuanceError, match="refusing to hand out"):
        broken.issue_marble(LeafTemplate("web", UUID, request(), None), NOW)


def test_an_expired_ca_hands_out_nothing(ca: CertificateAuthority) -> None:
    with pytest.raises(IssuanceError):
        ca.issue_marble(LeafTemplate("web", UUID, request(), None), ca.root.not_valid_after_utc + timedelta(days=1))


def test_keys_are_not_printed() -> None:
    ca = shared_ca()
    assert "PRIVATE" not in repr(ca) + repr(marble(ca)) + str(ca.root_key)


# ---- rotation

LATER = NOW + timedelta(days=3)


def names_of(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_a_rotation_keeps_the_root_and_replaces_everything_below(ca: CertificateAuthority) -> None:
    new = ca.rotate(LATER)
    assert (new.root, new.root_key, new.trust_domain) == (ca.root, ca.root_key, ca.trust_domain)
    assert new.intermediate_key != ca.intermediate_key
    assert new.intermediate.public_key() == new.marble_root.public_key() != ca.intermediate.public_key()
    for one, other in ((new.intermediate, ca.intermediate), (new.marble_root, ca.marble_root)):
        assert (one.subject, one.issuer, names_of(one)) == (other.subject, other.issuer, names_of(other))
        assert extension_oids(one) == extension_oids(other)
        assert one.serial_number != other.serial_number
    assert ip_address("10.1.2.3") in names_of(new.marble_root).get_values_for_type(x509.IPAddress)


def test_an_identity_of_a_rotated_ca_verifies_under_the_root_and_not_under_the_old_marble_root(
    ca: CertificateAuthority,
) -> None:
    new = ca.rotate(LATER)
    for identity in (marble(new, at=LATER), marble(new, lifetime=None, at=LATER), new.issue_coordinator(LATER)):
        check_identity(identity, new.bundle, LATER)
        check_identity(identity, TrustBundle(pem_of(ca.root)), LATER)
        check_identity(identity, TrustBundle(ca.bundle.pem + new.bundle.pem), LATER)
        with pytest.raises(MaterialError, match="does not end in the trust bundle"):
            check_identity(identity, ca.bundle, LATER)


def test_a_worker_whose_clock_is_a_little_behind_accepts_the_new_root(ca: CertificateAuthority) -> None:
    check_bundle(ca.rotate(LATER).bundle, LATER - timedelta(minutes=4))
    assert ca.rotate(NOW).marble_root.not_valid_before_utc == ca.root.not_valid_before_utc


def test_a_ca_can_be_rotated_many_times(ca: CertificateAuthority) -> None:
    for turn in range(20):
        ca = ca.rotate(LATER + timedelta(seconds=turn))
    check_identity(marble(ca, at=LATER + timedelta(minutes=1)), ca.bundle, LATER + timedelta(minutes=1))
