# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from enclave_proxy import relay_config
from enclave_proxy.counters import Refusal, RelayCounters
from enclave_proxy.limits import Limits
from enclave_proxy.relay_config import (
    DnsTarget,
    Inbound,
    Membership,
    Outbound,
    PeerRule,
    RelayConfig,
    SanMatcher,
    TcpAddress,
    UnixAddress,
)
from enclave_proxy.wire_values import WireError, decode, encode
from sds.resources import MarbleTypes
from tests.kit.mesh_relay import App, inbound, outbound
from tests.kit.pki import shared_ca


def config() -> RelayConfig:
    ca = shared_ca()
    app = App(Path("/app.sock"))
    by_name = dataclasses.replace(outbound(ca, TcpAddress("::1", 1)), endpoints=DnsTarget("db.test", 5432), name="dns")
    open_to_all = dataclasses.replace(inbound(ca, app), bundle=None, require_client_certificate=False, name="open")
    rule = PeerRule((SanMatcher("dns", exact="a.test"), SanMatcher("uri", prefix="spiffe://t/")))
    return RelayConfig(
        (inbound(ca, app, peers=rule), open_to_all),
        (outbound(ca, Path("/o.sock"), TcpAddress("10.0.0.1", 2), TcpAddress("10.0.0.2", 3)), by_name),
    )


def over_the_wire(value: object) -> object:
    return decode(type(value), json.loads(json.dumps(encode(value))))


def test_a_configuration_arrives_as_it_was_sent_keys_included() -> None:
    sent = config()
    received = over_the_wire(sent)
    assert received == sent
    assert isinstance(received, RelayConfig)
    assert received.inbound[0].identity.key.pem == sent.inbound[0].identity.key.pem
    assert received.inbound[0].identity.leaf == sent.inbound[0].identity.leaf


def test_every_kind_of_value_of_a_configuration_can_be_sent() -> None:
    """A new class in `relay_config` that this test does not send would be found out in production only."""
    kinds = [kind for kind in vars(relay_config).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    sent = json.dumps(encode(config())) + json.dumps(encode(Membership()))
    ours = {kind.__name__ for kind in kinds if kind.__module__ == relay_config.__name__}
    assert {name for name in ours if f'"#": "{name}"' not in sent} == set()


def test_who_is_in_the_mesh_arrives() -> None:
    types = MarbleTypes("spiffe://t/marble/", frozenset({"a", "b"}))
    for membership in (Membership(), Membership(frozenset({"spiffe://t/x"}), types)):
        assert over_the_wire(membership) == membership


def test_counters_and_limits_arrive() -> None:
    counters = RelayCounters(applied=3)
    counters.of("in").refused[Refusal.PLAINTEXT] = 7
    received = over_the_wire(counters)
    assert received == counters
    assert isinstance(received, RelayCounters)
    assert received.of("in").refused == Counter({Refusal.PLAINTEXT: 7})
    assert isinstance(next(iter(received.of("in").refused)), Refusal)
    assert over_the_wire(Limits(drain=1)) == Limits(drain=1)


def test_equal_identities_are_read_once() -> None:
    received = over_the_wire(config())
    assert isinstance(received, RelayConfig)
    sent = config().outbound[0]
    twice = over_the_wire(RelayConfig(outbound=(sent, dataclasses.replace(sent, name="again"))))
    assert isinstance(twice, RelayConfig)
    assert twice.outbound[0].identity is twice.outbound[1].identity


@pytest.mark.parametrize(
    "spoiled",
    [
        None,
        [],
        {},
        {"#": "Outbound"},
        {"#": "RelayConfig", "inbound": []},
        {"#": "RelayConfig", "inbound": [], "outbound": [], "more": 1},
        {"#": "RelayConfig", "inbound": {}, "outbound": []},
        {"#": "RelayConfig", "inbound": [{"#": "Membership", "revoked": [], "types": None}], "outbound": []},
    ],
)
def test_what_is_no_configuration_is_refused(spoiled: object) -> None:
    with pytest.raises(WireError, match="cannot read a RelayConfig"):
        decode(RelayConfig, spoiled)


@pytest.mark.parametrize(
    ("kind", "member", "value"),
    [
        (TcpAddress, "port", "80"),
        (TcpAddress, "port", True),
        (UnixAddress, "path", 1),
        (SanMatcher, "kind", "email"),
        (SanMatcher, "exact", []),
        (Inbound, "bind", {"#": "UnixAddress", "path": "/x", "mode": 0}),
        (Outbound, "endpoints", 3),
    ],
)
def test_a_member_of_another_kind_is_refused(kind: type[object], member: str, value: object) -> None:
    samples = (
        TcpAddress("h", 1),
        UnixAddress("/x"),
        SanMatcher("dns", exact="x"),
        *config().inbound,
        *config().outbound,
    )
    sample = encode(next(sample for sample in samples if isinstance(sample, kind)))
    decode(kind, sample)
    with pytest.raises(WireError):
        decode(kind, {**sample, member: value})


def test_an_error_quotes_no_value() -> None:
    with pytest.raises(WireError) as caught:
        decode(Limits, {"#": "Limits", "drain": "very secret"})
    assert "secret" not in str(caught.value)
