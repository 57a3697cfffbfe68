# SPDX-License-Identifier: Apache-2.0
"""What the worker's local sockets may give: nothing that is not fit, the last good one in its place."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from enclave_proxy.bootstrap import Credentials
from enclave_proxy.identity_store import IdentityStore
from sds.material import MaterialError, TrustBundle
from sds.resources import SECRET, Resource
from tests.kit.pki import marble, now, odd_leaf, shared_ca

CA = shared_ca()
GOOD = Credentials(marble(CA), CA.bundle, TrustBundle(CA.chain_pem))


class Clock:
    def __init__(self) -> None:
        self.time = now()

    def __call__(self) -> datetime:
        return self.time


def given(store: IdentityStore) -> dict[str, Resource]:
    return dict(store.view.value[SECRET])


async def test_everything_good_is_given_and_nothing_withheld() -> None:
    store = IdentityStore(GOOD)
    assert {"default", "ROOTCA", "ALL", str(GOOD.identity.spiffe_id)} <= given(store).keys()
    assert store.withheld == ()


async def test_an_identity_that_has_expired_on_its_way_is_not_given_and_the_last_good_one_stays() -> None:
    clock = Clock()
    store = IdentityStore(GOOD, clock)
    before = given(store)
    short = marble(CA, uuid=GOOD.identity.spiffe_id.path[-1], lifetime=timedelta(minutes=10))
    clock.time += timedelta(minutes=30)
    await store.adopt(replace(GOOD, identity=short))
    assert given(store)["default"] == before["default"]
    assert {w.name for w in store.withheld} == {"default", str(short.spiffe_id)}
    assert all(w.kept for w in store.withheld if w.name == "default")


@pytest.mark.parametrize("odd", [{"not_after": now() - timedelta(minutes=1)}, {"usages": []}])
def test_a_certificate_of_the_manifest_that_no_client_would_take_is_refused(odd: dict[str, object]) -> None:
    with pytest.raises(MaterialError):
        IdentityStore(GOOD).check("front", odd_leaf(CA, **odd), now())  # type: ignore[arg-type]


async def test_a_marble_that_was_turned_out_gives_nothing_whatever_was_good_before() -> None:
    store = IdentityStore(GOOD)
    await store.withdraw()
    assert given(store) == {}
