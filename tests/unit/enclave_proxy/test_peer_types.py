# SPDX-License-Identifier: Apache-2.0
"""Metrics name peers by type, and by a bounded number of types."""

from __future__ import annotations

from collections import Counter

import pytest

from enclave_proxy.peer_types import ANONYMOUS, MAX_TYPES, OTHER, count_peer
from enclave_proxy.relay_config import Membership
from sds.identity import any_marble_prefix
from sds.resources import MarbleTypes
from tests.kit.pki import marble, odd_leaf, other_ca, shared_ca

NOBODY_ELSE = Membership()


def label(*uris: str, membership: Membership = NOBODY_ELSE) -> str:
    counts: Counter[str] = Counter()
    count_peer(counts, odd_leaf(shared_ca(), uris=uris).leaf, membership)
    (found,) = counts
    return found


def test_a_peer_counts_under_its_type_whichever_instance_it_is() -> None:
    counts: Counter[str] = Counter()
    for name in ("web", "web", "käse_1"):
        count_peer(counts, marble(shared_ca(), name).leaf, NOBODY_ELSE)
    assert counts == {"web": 2, "käse_1": 1}


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://example.org/gateway/edge",
        "https://example.org/marble/web/1",
        "spiffe://example.org/marble/web",
        "spiffe://example.org/marble/web/1/2",
        "spiffe://example.org/marble/_zz/1",
    ],
)
def test_whoever_is_no_marble_counts_among_the_others(uri: str) -> None:
    assert label(uri) == OTHER


def test_a_peer_without_certificate_counts_as_such() -> None:
    counts: Counter[str] = Counter()
    count_peer(counts, None, NOBODY_ELSE)
    assert counts == {ANONYMOUS: 1}


def test_a_marble_of_another_mesh_has_no_type_of_ours() -> None:
    ours = Membership(types=MarbleTypes(any_marble_prefix(shared_ca().trust_domain), frozenset({"web"})))
    assert label(str(marble(shared_ca(), "web").spiffe_id), membership=ours) == "web"
    assert label(str(marble(other_ca(), "web").spiffe_id), membership=ours) == OTHER


def test_names_are_bounded_whatever_peers_are_called() -> None:
    counts: Counter[str] = Counter({f"type-{n}": 1 for n in range(MAX_TYPES)})
    for name in ("one-more", "and-another", "type-7"):
        count_peer(counts, marble(shared_ca(), name).leaf, NOBODY_ELSE)
    assert len(counts) == MAX_TYPES + 1
    assert (counts[OTHER], counts["type-7"]) == (2, 2)
