# SPDX-License-Identifier: Apache-2.0
"""A secret under a second name has the same content, and no copy of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sds.alias import Alias
from sds.resources import identity_secret, read_secret
from tests.kit.pki import marble, shared_ca


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=300))
def test_an_alias_is_what_the_secret_would_be_under_that_name(name: str) -> None:
    identity = marble(shared_ca())
    alias = Alias(name, identity_secret("default", identity))
    made = identity_secret(name, identity)
    assert (alias.body, alias.name, alias.type_url, alias.rank) == (made.body, name, made.type_url, made.rank)
    assert read_secret(alias.body) == (name, identity)


def test_an_alias_changes_with_its_secret_and_is_sent_as_any_resource() -> None:
    one, other = (identity_secret("default", marble(shared_ca())) for _ in range(2))
    assert Alias("a", one) == Alias("a", one) != Alias("a", other)
    assert Alias("a", one).version == one.version
    assert Alias("default", one).in_delta == one.in_delta
    assert Alias("default", one).in_state == one.in_state
