# SPDX-License-Identifier: Apache-2.0
"""Secrets: generation, derivation, certificates, what an update does to them, uploads and their JSON.

The rules by themselves; what is stated of them is proven over the wire in tests/conformance.
"""

from __future__ import annotations

import base64
import json
import pickle
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from manifests.model import Manifest
from manifests.parse import parse
from sds.ca import CertificateAuthority, pem_of
from sds.secret_certificates import SecretError, generate_key, issue
from sds.secret_derivation import DerivationError, derive_symmetric
from sds.secret_template import SecretTemplate
from sds.secrets import Secret, SecretKind
from tests.kit.coordinator import PACKAGE
from tests.kit.programs import program
from xds_server.records import Records
from xds_server.secret_rules import (
    SecretsRefused,
    after_update,
    for_instance,
    generate_shared,
    parse_upload,
    regenerate_shared_certificates,
    to_json,
)
from xds_server.state import State

NOW = datetime.now(UTC).replace(microsecond=0)
UUID = "11111111-2222-3333-4444-555555555555"
ROOT_SECRET = b"\x42" * 32
SYMMETRIC = {"Type": "symmetric-key", "Size": 256}
ECDSA = {"Type": "cert-ecdsa", "Size": 256}
ALL = "{{ range .Secrets }}{{ end }}{{ range .Previous.Secrets }}{{ end }}"


@cache
def ca() -> CertificateAuthority:
    return CertificateAuthority.create(["localhost"], [], NOW - timedelta(hours=1))


def manifest(secrets: dict[str, object], *, template: str = ALL, config: object = None, **marble: object) -> Manifest:
    document = {
        "Packages": {"app": PACKAGE},
        "Marbles": {"backend": {"Package": "app", "Parameters": {"Files": {"f": template}}, **marble}},
        "Secrets": secrets,
        "Config": config,
    }
    return parse(json.dumps(document).encode())


def records(what: Manifest, **changes: object) -> Records:
    secrets = generate_shared(what, ca(), NOW)
    made = Records(
        State.ACCEPTING_MARBLES,
        ca(),
        ROOT_SECRET,
        b"\x43" * 32,
        manifest=what.raw,
        secrets=secrets,
        previous_secrets=secrets,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def certificate(**cert: object) -> x509.Certificate:
    """What a generated certificate looks like when the manifest asks for this."""
    secret = generate_shared(manifest({"c": {**ECDSA, "Shared": True, "Cert": cert}}), ca(), NOW)["c"]
    return x509.load_der_x509_certificate(secret.certificate or b"")


def refusal(**cert: object) -> str:
    with pytest.raises(SecretsRefused) as caught:
        certificate(**cert)
    return str(caught.value)


# --- derivation


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ("backend", "cd57713164d46ad99f09541e88e64301d0573aeacf0b6f953a08aa29014b7334"),
        ("", "43356dced0202b9372a5c94b08d9559e6a80d88c2afae03e618e344a93ceff2f"),
    ],
)
def test_the_derivation_vectors(info: str, expected: str) -> None:
    assert derive_symmetric(ROOT_SECRET, UUID, "mykey", info, 256).hex() == expected


@pytest.mark.parametrize("bits", [0, 12, 65288, -8])
def test_keys_that_cannot_be_derived(bits: int) -> None:
    with pytest.raises(DerivationError):
        derive_symmetric(ROOT_SECRET, UUID, "k", "t", bits)


def test_the_largest_derived_key() -> None:
    assert len(derive_symmetric(ROOT_SECRET, UUID, "k", "t", 65280)) == 8160


def test_an_instance_gets_the_derived_key_each_time() -> None:
    what = manifest({"mykey": SYMMETRIC})
    state = records(what)
    first, second = (for_instance(state, what, "backend", UUID, NOW)[0]["mykey"] for _ in range(2))
    assert first == second
    assert first.private.hex() == "cd57713164d46ad99f09541e88e64301d0573aeacf0b6f953a08aa29014b7334"
    assert first.public == first.private


def test_without_secret_binding_the_type_does_not_count() -> None:
    what = manifest({"mykey": SYMMETRIC}, DisableSecretBinding=True)
    key = for_instance(records(what), what, "backend", UUID, NOW)[0]["mykey"]
    assert key.private.hex() == "43356dced0202b9372a5c94b08d9559e6a80d88c2afae03e618e344a93ceff2f"


def test_the_previous_generation_is_derived_from_the_previous_root_secret() -> None:
    what = manifest({"mykey": SYMMETRIC})
    previous = for_instance(records(what), what, "backend", UUID, NOW)[1]["mykey"]
    assert previous.private == derive_symmetric(b"\x43" * 32, UUID, "mykey", "backend", 256)


# --- generation


def test_a_shared_key_is_random_and_the_same_for_all() -> None:
    what = manifest({"k": {**SYMMETRIC, "Shared": True}})
    state = records(what)
    keys = {for_instance(state, what, "backend", str(n) * 36, NOW)[0]["k"].private for n in range(3)}
    assert keys == {state.secrets["k"].private}
    assert len(state.secrets["k"].private) == 32
    assert generate_shared(what, ca(), NOW)["k"].private not in keys


def test_a_shared_certificate_is_the_same_for_all() -> None:
    what = manifest({"c": {**ECDSA, "Shared": True}})
    state = records(what)
    assert for_instance(state, what, "backend", UUID, NOW)[0]["c"] == state.secrets["c"]


def test_a_certificate_per_marble_is_new_at_every_activation() -> None:
    what = manifest({"c": ECDSA})
    state = records(what)
    made = [for_instance(state, what, "backend", UUID, NOW)[generation]["c"] for generation in (0, 0, 1)]
    assert len({secret.private for secret in (*made, state.secrets["c"])}) == 4


def test_placeholders_stand_in_the_store_and_are_not_handed_out() -> None:
    what = manifest({"k": SYMMETRIC, "c": ECDSA})
    state = records(what)
    current, previous = for_instance(state, what, "backend", UUID, NOW)
    for name in ("k", "c"):
        assert state.secrets[name].kind is current[name].kind
        assert state.secrets[name].private not in (current[name].private, previous[name].private)


def test_secrets_that_a_marble_cannot_name_are_not_made_for_it() -> None:
    what = manifest({"k": SYMMETRIC, "c": {"Type": "cert-rsa", "Size": 4096}}, template="{{ hex .Secrets.k }}")
    state = replace(records(manifest({"k": SYMMETRIC})), manifest=what.raw)
    state = replace(state, secrets={**state.secrets, "c": Secret(SecretKind.CERT_RSA, 4096)})
    current, previous = for_instance(state, what, "backend", UUID, NOW)
    assert (set(current), set(previous)) == ({"k"}, set())


def test_a_user_defined_secret_begins_empty() -> None:
    secret = generate_shared(manifest({"u": {"Type": "plain", "UserDefined": True}}), ca(), NOW)["u"]
    assert (secret.private, secret.public, secret.certificate) == (b"", b"", None)


@pytest.mark.parametrize(
    ("kind", "size", "key_type"),
    [
        ("cert-rsa", 2048, rsa.RSAPrivateKey),
        ("cert-ecdsa", 224, ec.EllipticCurvePrivateKey),
        ("cert-ecdsa", 256, ec.EllipticCurvePrivateKey),
        ("cert-ecdsa", 384, ec.EllipticCurvePrivateKey),
        ("cert-ecdsa", 521, ec.EllipticCurvePrivateKey),
        ("cert-ed25519", 0, ed25519.Ed25519PrivateKey),
    ],
)
def test_every_kind_of_certificate(kind: str, size: int, key_type: type) -> None:
    secret = issue(SecretTemplate(), SecretKind(kind), size, ca(), NOW)
    key = load_der_private_key(secret.private, None)
    assert isinstance(key, key_type)
    assert getattr(key, "key_size", 0) == size
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    leaf = x509.load_der_x509_certificate(secret.certificate or b"")
    assert secret.public == public == leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    leaf.verify_directly_issued_by(ca().marble_root)
    leaf.verify_directly_issued_by(ca().intermediate)


@pytest.mark.parametrize(
    ("kind", "size"), [("cert-rsa", 512), ("cert-rsa", 16384), ("cert-ecdsa", 192), ("cert-ed25519", 256), ("plain", 8)]
)
def test_keys_that_are_not_generated(kind: str, size: int) -> None:
    with pytest.raises(SecretError):
        generate_key(SecretKind(kind), size)


def test_keys_can_be_made_elsewhere() -> None:
    """In a thread or another process: the slow part is a function of two small values."""
    function, arguments = pickle.loads(pickle.dumps((generate_key, (SecretKind.CERT_ECDSA, 256))))
    key = function(*arguments)
    assert issue(SecretTemplate(), SecretKind.CERT_ECDSA, 256, ca(), NOW, key=key).private == key


# --- certificate templates


def test_the_defaults_of_a_certificate() -> None:
    made = certificate()
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert list(made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    ]
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert made.subject.rfc4514_string() == "CN=localhost"
    assert made.issuer.rfc4514_string() == "CN=MarbleRun Coordinator - Intermediate CA"
    assert (made.not_valid_before_utc, made.not_valid_after_utc) == (NOW, NOW + timedelta(days=365))
    assert 0 < made.serial_number < 2**128


def test_the_default_key_usage_lets_only_a_ca_sign_certificates() -> None:
    """MarbleRun sets keyCertSign on all; strict verifiers refuse that on a certificate that is no CA."""
    for is_ca in (False, True):
        usage = certificate(IsCA=is_ca).extensions.get_extension_for_class(x509.KeyUsage)
        assert (usage.critical, usage.value.digital_signature, usage.value.key_cert_sign) == (True, True, is_ca)


def test_a_common_name_follows_from_a_single_dns_name() -> None:
    assert certificate(DNSNames=["a.example"]).subject.rfc4514_string() == "CN=a.example"
    several = certificate(DNSNames=["a.example", "b.example"])
    assert several.subject.rfc4514_string() == "CN=MarbleRun Generated Certificate"


def test_everything_useful_of_a_template() -> None:
    made = certificate(
        Subject={"CommonName": "cn", "Organization": ["o1", "o2"], "Country": ["DE"], "SerialNumber": "7"},
        DNSNames=["a.example"],
        IPAddresses=["10.0.0.1"],
        EmailAddresses=["a@example.com"],
        URIs=[{"Scheme": "https", "Host": "h.example", "Path": "/p", "RawQuery": "q=1"}],
        NotAfter="2099-01-02T03:04:05Z",
        KeyUsage=5,
        ExtKeyUsage=[0, 3, 9],
        CRLDistributionPoints=["http://crl.example/"],
        OCSPServer=["http://ocsp.example/"],
        IssuingCertificateURL=["http://ca.example/"],
        PolicyIdentifiers=[[1, 2, 3]],
    )
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == [
        "a.example",
        "a@example.com",
        "10.0.0.1",
        "https://h.example/p?q=1",
    ]
    assert [a.value for a in made.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)] == ["o1", "o2"]
    assert made.not_valid_after_utc == datetime(2099, 1, 2, 3, 4, 5, tzinfo=UTC)
    usage = made.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_encipherment, usage.key_cert_sign) == (True, True, False)
    assert [oid.dotted_string for oid in made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value] == [
        "2.5.29.37.0",
        "1.3.6.1.5.5.7.3.3",
        "1.3.6.1.5.5.7.3.9",
    ]
    for oid in (
        ExtensionOID.CRL_DISTRIBUTION_POINTS,
        ExtensionOID.AUTHORITY_INFORMATION_ACCESS,
        ExtensionOID.CERTIFICATE_POLICIES,
    ):
        made.extensions.get_extension_for_oid(oid)


def test_valid_for_counts_days_from_now() -> None:
    what = manifest({"c": {**ECDSA, "ValidFor": 7}})
    later = NOW + timedelta(days=100)
    secret = for_instance(records(what), what, "backend", UUID, later)[0]["c"]
    assert x509.load_der_x509_certificate(secret.certificate or b"").not_valid_after_utc == later + timedelta(days=7)


def test_a_life_beyond_the_issuer_ends_with_it() -> None:
    what = manifest({"c": {**ECDSA, "Shared": True, "ValidFor": 2**63}})
    made = x509.load_der_x509_certificate(generate_shared(what, ca(), NOW)["c"].certificate or b"")
    assert made.not_valid_after_utc <= ca().marble_root.not_valid_after_utc


def test_name_constraints_of_a_template() -> None:
    made = certificate(
        IsCA=True,
        MaxPathLen=0,
        MaxPathLenZero=True,
        PermittedDNSDomains=["example"],
        ExcludedIPRanges=[{"IP": "10.0.0.0", "Mask": "/wAAAA=="}],
    )
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    constraints = made.extensions.get_extension_for_class(x509.NameConstraints).value
    assert [name.value for name in constraints.permitted_subtrees or ()] == ["example"]
    assert "10.0.0.0/8" in [str(name.value) for name in constraints.excluded_subtrees or ()]


@pytest.mark.parametrize(
    ("cert", "expected"),
    [
        ({"ExtKeyUsage": [99]}, "ExtKeyUsage: unknown number"),
        ({"KeyUsage": 512}, "KeyUsage: 512"),
        ({"KeyUsage": 128}, "KeyUsage: encipher_only"),
        ({"MaxPathLen": 3}, "only CAs are allowed to specify MaxPathLen"),
        ({"SignatureAlgorithm": 4}, "requested SignatureAlgorithm does not match private key type"),
        ({"NotAfter": "2001-01-01T00:00:00Z"}, "creating certificate:"),
        ({"DNSNames": ["coordinator.marblemesh.internal"]}, "is reserved for the Coordinator"),
        ({"Subject": {"Country": ["Germany"]}}, "Subject: "),
        ({"Subject": {"Country": "DE"}}, "Subject.Country: want an array"),
        ({"PolicyIdentifiers": [["x"]]}, "PolicyIdentifiers: want arrays of numbers"),
    ],
)
def test_templates_that_cannot_be_met(cert: dict[str, object], expected: str) -> None:
    text = refusal(**cert)
    assert text.startswith("secret c: ")
    assert expected in text


def test_a_secret_cannot_have_a_marbles_name() -> None:
    uri = {"Scheme": "spiffe", "Host": ca().trust_domain, "Path": f"/marble/backend/{UUID}"}
    assert "a name of this mesh's Marbles" in refusal(URIs=[uri])
    assert "a name of this mesh's Marbles" in refusal(URIs=[{**uri, "Host": ca().trust_domain.upper()}])


def test_a_ca_among_the_secrets_cannot_issue_a_marbles_name(tmp_path: Path) -> None:
    """OpenSSL as the judge: the same leaf is fine under another name."""
    secret = issue(SecretTemplate(is_ca=True), SecretKind.CERT_ECDSA, 256, ca(), NOW)
    issuer = x509.load_der_x509_certificate(secret.certificate or b"")
    key = load_der_private_key(secret.private, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)

    def verified(uri: str) -> bool:
        leaf = (
            x509.CertificateBuilder(issuer.subject, x509.Name([]), key.public_key(), 7)
            .not_valid_before(NOW)
            .not_valid_after(NOW + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True)
            .sign(key, SHA256())
        )
        (tmp_path / "root.pem").write_bytes(pem_of(ca().marble_root))
        (tmp_path / "ca.pem").write_bytes(pem_of(issuer))
        (tmp_path / "leaf.pem").write_bytes(pem_of(leaf))
        command = [program("openssl"), "verify", "-CAfile", "root.pem", "-untrusted", "ca.pem", "leaf.pem"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=20).returncode == 0

    assert verified("spiffe://other.example/x")
    assert not verified(f"spiffe://{ca().trust_domain}/marble/backend/{UUID}")


# --- full updates


def updated(old: Manifest, new: Manifest) -> tuple[Records, dict[str, Secret], dict[str, Secret]]:
    state = records(old)
    state = replace(state, previous_secrets={name: replace(s, valid_for=999) for name, s in state.secrets.items()})
    current, previous = after_update(state, old, new, ca(), NOW)
    return state, current, previous


USER = {"Type": "plain", "UserDefined": True}


def test_a_user_defined_secret_is_kept() -> None:
    what = manifest({"u": USER})
    state = records(what)
    state = replace(state, secrets={"u": replace(state.secrets["u"], private=b"x", public=b"x")})
    assert after_update(state, what, what, ca(), NOW)[0]["u"].private == b"x"


def test_a_user_defined_secret_whose_definition_changed_is_reset() -> None:
    what = manifest({"u": USER})
    state = replace(records(what), secrets={"u": Secret(SecretKind.PLAIN, user_defined=True, private=b"x")})
    current, previous = after_update(state, what, manifest({"u": {**USER, "Shared": True}}), ca(), NOW)
    assert (current["u"].private, previous["u"].private) == (b"", b"")


def test_a_symmetric_key_is_kept() -> None:
    what = manifest({"k": {**SYMMETRIC, "Shared": True}})
    state, current, previous = updated(what, what)
    assert (current["k"], previous["k"]) == (state.secrets["k"], state.previous_secrets["k"])


def test_a_symmetric_key_is_new_after_rotation_and_the_old_one_previous() -> None:
    secrets: dict[str, object] = {"k": {**SYMMETRIC, "Shared": True}}
    state, current, previous = updated(manifest(secrets), manifest(secrets, config={"RotateRootSecret": True}))
    assert current["k"].private != state.secrets["k"].private
    assert previous["k"] == state.secrets["k"]


@pytest.mark.parametrize("definition", [ECDSA, {**ECDSA, "ValidFor": 9}, {**ECDSA, "Shared": True}])
def test_a_certificate_is_new_and_the_old_one_previous(definition: dict[str, object]) -> None:
    """Also without ValidFor, where MarbleRun takes its own 365 for a change."""
    what = manifest({"c": definition})
    state, current, previous = updated(what, what)
    assert current["c"].certificate != state.secrets["c"].certificate
    assert previous["c"] == state.secrets["c"]


@pytest.mark.parametrize(
    "change",
    [{"Size": 128}, {"Shared": True}, {"Type": "cert-ecdsa", "Size": 256}, {"Type": "plain", "UserDefined": True}],
)
def test_a_changed_definition_makes_a_new_secret_that_is_its_own_previous(change: dict[str, object]) -> None:
    state, current, previous = updated(manifest({"k": SYMMETRIC}), manifest({"k": {**SYMMETRIC, **change}}))
    assert current["k"] == previous["k"] != state.secrets["k"]


def test_new_and_removed_secrets() -> None:
    _, current, previous = updated(manifest({"old": SYMMETRIC}), manifest({"new": SYMMETRIC}))
    assert set(current) == set(previous) == {"new"}
    assert current["new"] == previous["new"]


def test_the_certificate_template_is_not_part_of_the_comparison() -> None:
    changed = manifest({"c": {**ECDSA, "Cert": {"DNSNames": ["other"]}}})
    state, current, previous = updated(manifest({"c": ECDSA}), changed)
    assert previous["c"] == state.secrets["c"]
    assert "other" in x509.load_der_x509_certificate(current["c"].certificate or b"").subject.rfc4514_string()


def test_a_definition_that_only_spells_out_365_days_is_unchanged() -> None:
    state, _, previous = updated(manifest({"c": ECDSA}), manifest({"c": {**ECDSA, "ValidFor": 365}}))
    assert previous["c"] == state.secrets["c"]


# --- package updates


def test_a_package_update_regenerates_shared_certificates_with_their_end() -> None:
    what = manifest({"c": {**ECDSA, "Shared": True}, "own": ECDSA, "k": {**SYMMETRIC, "Shared": True}})
    before = generate_shared(what, ca(), NOW)
    rotated = ca().rotate(NOW)
    after = regenerate_shared_certificates(before, what, rotated, NOW + timedelta(days=30))
    assert (after["own"], after["k"]) == (before["own"], before["k"])
    old, new = (x509.load_der_x509_certificate(s["c"].certificate or b"") for s in (before, after))
    assert after["c"].private != before["c"].private
    assert new.not_valid_after_utc == old.not_valid_after_utc
    assert after["c"].valid_for == 365
    new.verify_directly_issued_by(rotated.marble_root)


# --- upload


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


UPLOADABLE: dict[str, object] = {
    "sym": {"Type": "symmetric-key", "Size": 128, "UserDefined": True},
    "odd": {"Type": "symmetric-key", "UserDefined": True},
    "cert": {"Type": "cert-ecdsa", "UserDefined": True},
    "plain": USER,
    "made": SYMMETRIC,
}


def upload(payload: dict[str, object]) -> dict[str, Secret]:
    what = manifest(UPLOADABLE)
    return parse_upload(payload, what, generate_shared(what, ca(), NOW))


def test_uploads_of_every_kind() -> None:
    made = issue(SecretTemplate(), SecretKind.CERT_ECDSA, 256, ca(), NOW)
    found = upload(
        {
            "sym": {"Key": b64(b"k" * 16)},
            "plain": {"key": b64(b"any"), "Cert": None, "Private": None, "Other": 1},
            "cert": {"Cert": b64(made.certificate or b""), "Private": b64(made.private)},
        }
    )
    assert (found["sym"].private, found["sym"].public) == (b"k" * 16, b"k" * 16)
    assert found["plain"].public == b"any"
    assert (found["cert"].certificate, found["cert"].private, found["cert"].public) == (
        made.certificate,
        made.private,
        made.public,
    )
    assert all(secret.user_defined for secret in found.values())


def test_the_private_key_of_a_certificate_may_be_missing() -> None:
    found = upload({"cert": {"Cert": b64(pem_to_der(ca().marble_root))}})
    assert found["cert"].private == b""


def pem_to_der(of: x509.Certificate) -> bytes:
    return of.public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({}, "no new secrets defined"),
        ({"nope": {}}, "secret manifest specifies a secret which the original manifest does not contain"),
        ({"made": {"Key": "QQ=="}}, "secret made is not writeable"),
        ({"odd": {"Key": "QQ=="}}, "invalid secret size: odd"),
        ({"sym": {"Key": "QQ=="}}, "declared size and actual size don't match: sym"),
        (
            {"sym": {"Cert": "QQ=="}},
            "secret sym is set to be of type symmetric-key but specified values for a certificate",
        ),
        (
            {"sym": {"Private": "QQ=="}},
            "secret sym is set to be of type symmetric-key but specified values for a certificate",
        ),
        (
            {"cert": {"Key": "QQ=="}},
            "secret cert is set to be of type cert-ecdsa but specified values for a symmetric-key",
        ),
        ({"cert": {"Cert": "no base64!"}}, "x509: unsupported public key type: <nil>"),
        ({"cert": {}}, "x509: unsupported public key type: <nil>"),
        ({"plain": {"Cert": "QQ=="}}, "secret plain is set to be of type plain but specified values for a certificate"),
        ({"plain": {"Key": "?"}}, "secret plain: member Key is not base64 with padding"),
        ({"plain": {"Key": 3}}, "secret plain: member Key must be a base64 string"),
        ({"plain": "text"}, "secret plain: want an object with Key, or Cert and Private"),
    ],
)
def test_uploads_that_are_refused(payload: dict[str, object], expected: str) -> None:
    with pytest.raises(SecretsRefused) as caught:
        upload(payload)
    assert str(caught.value) == expected


def test_an_upload_with_an_unparsable_certificate() -> None:
    with pytest.raises(SecretsRefused, match=r"^secret cert: x509: malformed certificate"):
        upload({"cert": {"Cert": "QQ=="}})


def test_an_upload_is_all_or_nothing() -> None:
    with pytest.raises(SecretsRefused):
        upload({"plain": {"Key": "QQ=="}, "made": {"Key": "QQ=="}})


# --- JSON


def test_the_json_of_an_unset_plain_secret() -> None:
    secret = generate_shared(manifest({"u": USER}), ca(), NOW)["u"]
    assert json.dumps(to_json(secret), separators=(",", ":")) == (
        '{"Type":"plain","Size":0,"Shared":false,"UserDefined":true,"Cert":null,"ValidFor":0,'
        '"Private":null,"Public":null}'
    )


def test_the_json_of_generated_secrets() -> None:
    made = generate_shared(manifest({"k": {**SYMMETRIC, "Shared": True}, "c": ECDSA}), ca(), NOW)
    assert to_json(made["k"]) == {
        "Type": "symmetric-key",
        "Size": 256,
        "Shared": True,
        "UserDefined": False,
        "Cert": None,
        "ValidFor": 0,
        "Private": b64(made["k"].private),
        "Public": b64(made["k"].private),
    }
    shown = to_json(made["c"])
    assert (shown["Cert"], shown["ValidFor"]) == (b64(made["c"].certificate or b""), 365)


def test_values_do_not_stand_in_the_repr() -> None:
    made = generate_shared(manifest({"k": {**SYMMETRIC, "Shared": True}}), ca(), NOW)["k"]
    assert repr(made.private) not in repr(made)
