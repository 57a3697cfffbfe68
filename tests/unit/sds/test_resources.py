# SPDX-License-Identifier: Apache-2.0
"""Secrets as resources: equal content has equal bytes, keys cannot be printed, nothing half-understood is read."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sds.material import Identity, MaterialError, TrustBundle
from sds.resources import (
    BUNDLE_NAME,
    IDENTITY_NAME,
    MAX_REVOKED,
    MAX_TYPES,
    OFFLINE_NAME,
    REVOKED_NAME,
    SECRET,
    TYPES_NAME,
    MarbleTypes,
    OfflineStart,
    RevokedInstances,
    bundle_secret,
    identity_secret,
    make_resource,
    offline_secret,
    read_secret,
    revoked_secret,
    types_secret,
)
from sds.wire import envoy_pb2
from tests.kit.pki import marble, shared_ca


def secret(**members: object) -> bytes:
    return envoy_pb2.Secret(name="x", **members).SerializeToString()  # type: ignore[arg-type]


def chain_and_key(identity: Identity) -> envoy_pb2.TlsCertificate:
    return envoy_pb2.TlsCertificate(
        certificate_chain=envoy_pb2.DataSource(inline_string=identity.chain.decode()),
        private_key=envoy_pb2.DataSource(inline_bytes=identity.key.pem),
    )


def test_an_identity_comes_back_from_its_secret() -> None:
    identity = marble(shared_ca())
    resource = identity_secret(IDENTITY_NAME, identity)
    assert (resource.type_url, resource.name) == (SECRET, "default")
    assert read_secret(resource.body) == ("default", identity)


def test_a_bundle_comes_back_from_its_secret() -> None:
    bundle = shared_ca().bundle
    assert read_secret(bundle_secret(BUNDLE_NAME, bundle).body) == ("ROOTCA", bundle)


def test_inline_strings_are_read_as_well() -> None:
    identity = marble(shared_ca())
    assert read_secret(secret(tls_certificate=chain_and_key(identity))) == ("x", identity)


def test_the_version_names_the_content() -> None:
    one, two = marble(shared_ca()), marble(shared_ca())
    assert identity_secret("a", one) == identity_secret("a", one)
    assert identity_secret("a", one).version != identity_secret("a", two).version
    assert len(make_resource(SECRET, "x", envoy_pb2.Secret(name="x")).version) == 16


def test_a_resource_does_not_print_its_body() -> None:
    resource = identity_secret("a", marble(shared_ca()))
    assert "BEGIN" not in f"{resource!r} {resource} {[resource]}"
    assert resource.version in repr(resource)


REFUSED = {
    "name": envoy_pb2.Secret().SerializeToString(),
    "neither": secret(),
    "no private key": secret(
        tls_certificate=envoy_pb2.TlsCertificate(certificate_chain=envoy_pb2.DataSource(inline_bytes=b"x"))
    ),
    "no trusted CA": secret(validation_context=envoy_pb2.CertificateValidationContext()),
    "trust bundle is empty": secret(
        validation_context=envoy_pb2.CertificateValidationContext(trusted_ca=envoy_pb2.DataSource(inline_bytes=b""))
    ),
    "restricts names": secret(
        validation_context=envoy_pb2.CertificateValidationContext(
            match_typed_subject_alt_names=[envoy_pb2.SubjectAltNameMatcher(san_type=3)]
        )
    ),
    "not a valid protobuf": b"\x0a\xff",
    # Field 3, session_ticket_keys, of Envoy's own Secret; and field 7, crl, of its validation context.
    r"Secret\.3": secret() + b"\x1a\x00",
    r"CertificateValidationContext\.7": secret() + b"\x22\x02\x3a\x00",
    "at most": bytes(3 * 1024 * 1024),
    "generic": secret(generic_secret=envoy_pb2.GenericSecret()),
    "list of revoked instances": envoy_pb2.Secret(
        name=REVOKED_NAME,
        generic_secret=envoy_pb2.GenericSecret(secret=envoy_pb2.DataSource(inline_bytes=b"*")),
    ).SerializeToString(),
}


@pytest.mark.parametrize(("why", "body"), REFUSED.items())
def test_what_is_not_fully_understood_is_refused(why: str, body: bytes) -> None:
    with pytest.raises(MaterialError, match=why):
        read_secret(body)


def test_a_key_that_does_not_fit_is_refused() -> None:
    message = chain_and_key(marble(shared_ca()))
    message.private_key.inline_bytes = marble(shared_ca()).key.pem
    with pytest.raises(MaterialError, match="does not belong"):
        read_secret(secret(tls_certificate=message))


def test_an_empty_bundle_cannot_even_be_made() -> None:
    """Envoy accepts a validation context without CA and then trusts everybody."""
    with pytest.raises(MaterialError, match="empty"):
        bundle_secret("ROOTCA", TrustBundle(b""))


def test_revoked_instances_are_read_back_and_nobody_is_a_list_too() -> None:
    names = ["spiffe://t.test/marble/web/2", "spiffe://t.test/marble/db/1"]
    assert read_secret(revoked_secret(names).body) == (REVOKED_NAME, RevokedInstances(frozenset(names)))
    assert read_secret(revoked_secret([]).body) == (REVOKED_NAME, RevokedInstances())
    assert revoked_secret(names) == revoked_secret(reversed(names))


def test_a_list_of_revoked_instances_is_bounded_and_keeps_the_first_ones() -> None:
    names = [f"spiffe://t.test/marble/web/{n:0100}" for n in range(MAX_REVOKED // 100)]
    resource = revoked_secret(names)
    assert len(resource.body) < MAX_REVOKED + 100
    _, kept = read_secret(resource.body)
    assert isinstance(kept, RevokedInstances)
    assert names[0] in kept.names
    assert names[-1] not in kept.names


def test_a_list_of_revoked_instances_that_is_something_else_is_not_quoted() -> None:
    """It came as a secret, and may be one. Found by fuzzing."""
    key = b"-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49"
    body = revoked_secret(["spiffe://t.test/marble/web/1"]).body
    secret = envoy_pb2.Secret.FromString(body)
    secret.generic_secret.secret.inline_bytes = key
    with pytest.raises(MaterialError, match=r"line 1 is not a SPIFFE ID$"):
        read_secret(secret.SerializeToString())


def test_marble_types_are_read_back_as_they_stand_in_spiffe_ids() -> None:
    resource = types_secret("t.test", ["web", "a b"])
    known = MarbleTypes("spiffe://t.test/marble/", frozenset({"web", "a_20b"}))
    assert read_secret(resource.body) == (TYPES_NAME, known)
    assert read_secret(types_secret("t.test", []).body) == (TYPES_NAME, MarbleTypes(known.prefix, frozenset()))
    assert types_secret("t.test", ["a b", "web"]) == resource
    for name, lacking in (("marble/web/1", False), ("marble/web", False), ("marble/we/1", True), ("marble", False)):
        assert known.lacks(f"spiffe://t.test/{name}") is lacking
    assert not known.lacks("spiffe://other.test/marble/db/1")


@pytest.mark.parametrize("text", [b"", b"web", b"spiffe://t.test/marble/\n", b"spiffe://t.test/marble/\na b"])
def test_a_list_of_types_that_is_something_else_is_refused(text: bytes) -> None:
    data = envoy_pb2.GenericSecret(secret=envoy_pb2.DataSource(inline_bytes=text))
    with pytest.raises(MaterialError, match="list of Marble types"):
        read_secret(envoy_pb2.Secret(name=TYPES_NAME, generic_secret=data).SerializeToString())


def test_types_that_do_not_fit_are_refused_and_none_is_left_out() -> None:
    with pytest.raises(MaterialError, match="at most 1048576 can be told"):
        types_secret("t.test", [f"{n:0100}" for n in range(MAX_TYPES // 100)])


def test_how_long_a_worker_may_start_offline_is_whole_seconds() -> None:
    resource = offline_secret(timedelta(hours=24, milliseconds=1))
    assert read_secret(resource.body) == (OFFLINE_NAME, OfflineStart(timedelta(hours=24)))


@pytest.mark.parametrize("text", [b"", b"0", b"-1", b"1.5", b"24h", b" 1", b"1" * 10])
def test_a_duration_that_is_none_lets_nobody_start_offline(text: bytes) -> None:
    data = envoy_pb2.GenericSecret(secret=envoy_pb2.DataSource(inline_bytes=text))
    with pytest.raises(MaterialError, match="not a number of seconds"):
        read_secret(envoy_pb2.Secret(name=OFFLINE_NAME, generic_secret=data).SerializeToString())
