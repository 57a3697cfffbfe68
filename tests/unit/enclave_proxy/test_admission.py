# SPDX-License-Identifier: Apache-2.0
"""The rules of admission, without a socket."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from enclave_proxy.admission import LogBudget, Refused, admit, failed_handshake
from enclave_proxy.counters import Refusal
from enclave_proxy.relay_config import Membership, PeerRule, SanMatcher, TcpAddress, UnixAddress
from sds.identity import any_marble_prefix, type_prefix
from sds.resources import MarbleTypes
from tests.kit.pki import marble, odd_leaf, shared_ca


def web_only() -> PeerRule:
    return PeerRule((SanMatcher("uri", prefix=type_prefix(shared_ca().trust_domain, "web")),))


def test_a_named_peer_is_admitted() -> None:
    admit(web_only(), marble(shared_ca(), "web").leaf.public_bytes(Encoding.DER))


def test_a_peer_of_another_name_is_refused_with_both_names() -> None:
    with pytest.raises(
        Refused, match=r"peer is uri spiffe://.*/marble/webs/.*, allowed: uri .*/marble/web/\*"
    ) as caught:
        admit(web_only(), marble(shared_ca(), "webs").leaf.public_bytes(Encoding.DER))
    assert caught.value.reason is Refusal.PEER_NOT_ALLOWED


def test_without_rule_any_verified_peer_is_admitted() -> None:
    admit(PeerRule(), marble(shared_ca()).leaf.public_bytes(Encoding.DER))
    admit(PeerRule(), None)


def test_without_certificate_no_rule_is_met() -> None:
    with pytest.raises(Refused, match="no certificate"):
        admit(web_only(), None)


def test_a_certificate_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(Refused, match="cannot be read"):
        admit(web_only(), b"junk")


@pytest.mark.parametrize(
    ("matcher", "allowed"),
    [
        (SanMatcher("dns", exact="Edge.Example"), True),
        (SanMatcher("dns", prefix="edge."), True),
        (SanMatcher("dns", exact="example"), False),
        (SanMatcher("uri", exact="spiffe://x/gw"), True),
        (SanMatcher("uri", exact="spiffe://x/g"), False),
        (SanMatcher("uri", prefix="SPIFFE://x/"), False),
        (SanMatcher("ip", exact="127.0.0.1"), False),
    ],
)
def test_names_match_by_kind(matcher: SanMatcher, allowed: bool) -> None:
    leaf = odd_leaf(shared_ca(), uris=["spiffe://x/gw"], dns_names=["edge.example"]).leaf
    assert (PeerRule((matcher,)).allows(leaf) is None) == allowed


def test_an_empty_matcher_cannot_be_made() -> None:
    """An empty prefix would match everybody."""
    for exact, prefix in ((None, None), ("", None), (None, ""), ("a", "b")):
        with pytest.raises(ValueError, match="either an exact name or a prefix"):
            SanMatcher("uri", exact, prefix)


@pytest.mark.parametrize(
    ("name", "alert", "reason"),
    [
        ("", None, Refusal.ABORTED),
        ("UNEXPECTED_EOF_WHILE_READING", None, Refusal.ABORTED),
        ("TLSV1_ALERT_UNKNOWN_CA", 48, Refusal.REFUSED_BY_PEER),
        ("HTTP_REQUEST", None, Refusal.PLAINTEXT),
        ("PEER_DID_NOT_RETURN_A_CERTIFICATE", None, Refusal.NO_CERTIFICATE),
        ("SOMETHING_NEW", None, Refusal.TLS_ERROR),
    ],
)
def test_every_failed_handshake_has_a_reason(name: str, alert: int | None, reason: Refusal) -> None:
    assert failed_handshake(name, alert).reason is reason


def test_log_lines_are_bounded_per_second() -> None:
    time = [0.0]
    budget = LogBudget(2, lambda: time[0])
    assert [budget.take() for _ in range(4)] == [True, True, False, False]
    time[0] = 1.5
    assert budget.take()


def test_addresses_print_as_people_write_them() -> None:
    assert [str(a) for a in (UnixAddress("/run/a.sock"), TcpAddress("::1", 80), TcpAddress("10.0.0.1", 80))] == [
        "unix:/run/a.sock",
        "[::1]:80",
        "10.0.0.1:80",
    ]


def test_an_instance_that_was_turned_out_may_not_talk_whatever_the_rule_says() -> None:
    bad, good = marble(shared_ca(), "web"), marble(shared_ca(), "web")
    revoked = Membership(revoked=frozenset({str(bad.spiffe_id)}))
    for rule in (web_only(), PeerRule()):
        admit(rule, good.leaf.public_bytes(Encoding.DER), revoked)
        with pytest.raises(Refused) as caught:
            admit(rule, bad.leaf.public_bytes(Encoding.DER), revoked)
        assert caught.value.reason is Refusal.REVOKED


def test_a_marble_of_a_type_that_the_mesh_does_not_have_may_not_talk_whatever_the_rule_says() -> None:
    der = marble(shared_ca(), "web").leaf.public_bytes(Encoding.DER)
    prefix = any_marble_prefix(shared_ca().trust_domain)
    for names, allowed in ((["web"], True), (["we", "web2", "Web"], False), ([], False)):
        members = Membership(types=MarbleTypes(prefix, frozenset(names)))
        for rule in (web_only(), PeerRule()):
            if allowed:
                admit(rule, der, members)
                continue
            with pytest.raises(Refused, match="of a type that the mesh does not have") as caught:
                admit(rule, der, members)
            assert caught.value.reason is Refusal.REVOKED


def test_names_of_other_meshes_are_not_looked_up_among_the_types() -> None:
    """A gateway's own name is no Marble's."""
    elsewhere = MarbleTypes(any_marble_prefix("edge.example"), frozenset())
    admit(PeerRule(), marble(shared_ca(), "web").leaf.public_bytes(Encoding.DER), Membership(types=elsewhere))
