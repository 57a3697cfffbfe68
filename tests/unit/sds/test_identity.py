# SPDX-License-Identifier: Apache-2.0
"""Names of the mesh: canonical, injective, and read from certificates in one form only."""

from __future__ import annotations

import hashlib

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from sds.claims_extension import CLAIMS_OID, ClaimsError, read_claims, write_claims
from sds.identity import (
    MARBLE_TYPE_OID,
    IdentityError,
    SpiffeId,
    any_marble_prefix,
    decode_segment,
    encode_segment,
    is_reserved_name,
    marble_identity,
    marble_spiffe_id,
    spiffe_id_of,
    trust_domain,
    type_prefix,
)
from tests.kit.pki import marble, odd_leaf, shared_ca

UUID = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
TD = "example.org"
# Surrogates cannot stand in a JSON manifest that was decoded strictly, and have no UTF-8 form.
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=100)


@given(names)
def test_every_name_comes_back_from_its_segment(name: str) -> None:
    segment = encode_segment(name)
    assert decode_segment(segment) == name
    assert SpiffeId(TD, (segment,)).path == (segment,)


@given(names, names)
def test_no_type_is_taken_for_another(one: str, two: str) -> None:
    other = marble_spiffe_id(TD, two, UUID)
    assert other.startswith(type_prefix(TD, one)) == (one == two)


@given(st.text(max_size=60))
def test_a_segment_is_decoded_in_one_form_only(segment: str) -> None:
    try:
        name = decode_segment(segment)
    except IdentityError:
        return
    assert encode_segment(name) == segment


@pytest.mark.parametrize(
    ("name", "segment"),
    [("web", "web"), ("my_web", "my__web"), ("a/b", "a_2fb"), (".", "_2e"), ("..", "_2e."), ("é", "_c3_a9")],
)
def test_segments_stay_readable(name: str, segment: str) -> None:
    assert encode_segment(name) == segment


@given(st.text(max_size=80) | st.text(max_size=60).map("spiffe://".__add__))
def test_a_parsed_id_prints_as_it_was_written(text: str) -> None:
    try:
        parsed = SpiffeId.parse(text)
    except IdentityError:
        return
    assert str(parsed) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "SPIFFE://example.org/a",
        "spiffe://Example.org/a",
        "spiffe://example.org/",
        "spiffe://example.org//a",
        "spiffe://example.org/../a",
        "spiffe://example.org/a\n",
        "spiffe://example.org:80/a",
        "spiffe://user@example.org/a",
        "spiffe://example.org/a?b",
        "spiffe://example.org/a%20b",
        "https://example.org/a",
        "spiffe://example.org/" + "a" * 2048,
        "spiffe://" + "a" * 256,
    ],
)
def test_what_is_not_canonical_is_no_id(text: str) -> None:
    with pytest.raises(IdentityError):
        SpiffeId.parse(text)


@pytest.mark.parametrize("uuid", ["", "x", UUID.upper(), UUID.replace("-", ""), f"{{{UUID}}}", UUID + "\n"])
def test_a_uuid_has_one_form(uuid: str) -> None:
    with pytest.raises(IdentityError, match="UUID"):
        marble_spiffe_id(TD, "web", uuid)


def test_the_trust_domain_follows_from_the_root() -> None:
    assert trust_domain(b"root") == hashlib.sha256(b"root").hexdigest()[:32] + ".marblemesh.internal"
    assert SpiffeId(trust_domain(b"root")) != SpiffeId(trust_domain(b"other"))


@pytest.mark.parametrize("name", ["marblemesh.internal", "Coordinator.MarbleMesh.Internal.", "*.marblemesh.internal"])
def test_the_mesh_keeps_its_names(name: str) -> None:
    assert is_reserved_name(name)


@pytest.mark.parametrize("name", ["marblemesh.internal.example.org", "xmarblemesh.internal", "localhost"])
def test_other_names_are_free(name: str) -> None:
    assert not is_reserved_name(name)


def test_a_certificate_says_who_its_marble_is_and_what_was_attested() -> None:
    ca = shared_ca()
    identity = marble(ca, "my web", uuid=UUID, claims={"tee": "sgx", "svn": 3, "simulated": True})
    read = marble_identity(identity.leaf)
    assert (read.type, read.uuid) == ("my web", UUID)
    assert str(read.spiffe_id) == marble_spiffe_id(ca.trust_domain, "my web", UUID)
    assert str(read.spiffe_id).startswith(any_marble_prefix(ca.trust_domain))
    assert read.claims == {"v": 1, "tee": "sgx", "svn": 3, "simulated": True}


def test_a_certificate_without_claims_says_so() -> None:
    assert marble_identity(marble(shared_ca()).leaf).claims is None


@pytest.mark.parametrize("uris", [[], [f"spiffe://a/marble/web/{UUID}", f"spiffe://a/marble/db/{UUID}"]])
def test_exactly_one_name_is_an_identity(uris: list[str]) -> None:
    with pytest.raises(IdentityError, match="exactly one"):
        spiffe_id_of(odd_leaf(shared_ca(), uris=uris).leaf)


@pytest.mark.parametrize(
    "path", ["coordinator", "marble/web", f"marble/web/{UUID}/x", "marble/web/1", f"other/web/{UUID}"]
)
def test_other_names_are_no_marble(path: str) -> None:
    with pytest.raises(IdentityError):
        marble_identity(odd_leaf(shared_ca(), uris=[f"spiffe://a/{path}"]).leaf)


def test_two_types_in_one_certificate_are_refused() -> None:
    extension = x509.UnrecognizedExtension(MARBLE_TYPE_OID, b"db")
    leaf = odd_leaf(shared_ca(), uris=[f"spiffe://a/marble/web/{UUID}"], extensions=[extension]).leaf
    with pytest.raises(IdentityError, match="another one in its extension"):
        marble_identity(leaf)


def test_broken_claims_are_refused() -> None:
    extension = x509.UnrecognizedExtension(CLAIMS_OID, b"{}")
    leaf = odd_leaf(shared_ca(), uris=[f"spiffe://a/marble/web/{UUID}"], extensions=[extension]).leaf
    with pytest.raises(ClaimsError):
        marble_identity(leaf)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(names.filter(lambda n: n != "v"), json_values, max_size=8))
def test_claims_come_back_as_they_were_written(claims: dict[str, object]) -> None:
    assert read_claims(write_claims(claims)) == {"v": 1, **claims}


@given(st.binary(max_size=300))
def test_claims_are_read_in_one_form_only(value: bytes) -> None:
    with pytest.raises(ClaimsError):
        read_claims(value)


@pytest.mark.parametrize("text", ['{"v":1,"a":1,"a":2}', "[]", '{"v":2}', "{}", '{"v":1', "[" * 5000])
def test_claims_of_another_shape_are_refused(text: str) -> None:
    size = len(text).to_bytes(2, "big")
    header = bytes([0x0C, len(text)]) if len(text) < 128 else b"\x0c\x82" + size
    with pytest.raises(ClaimsError):
        read_claims(header + text.encode())


def test_claims_have_a_bound() -> None:
    with pytest.raises(ClaimsError, match="at most"):
        write_claims({"x": "y" * 9000})
