# SPDX-License-Identifier: Apache-2.0
"""Whatever comes in, `parse` answers with a value or a reason."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifests.parse import parse
from manifests.wire import ManifestWire, Wire
from tests.fuzz.fuzz_manifest import fuzz_one
from tests.kit.manifests import certificate, manifest, raw

FULL = manifest(
    TLS={"t": {"Incoming": [{"Port": "80", "Peers": ["db"]}], "Outgoing": [{"Addr": "db", "Port": "1"}]}},
    Secrets={"s": {"Type": "cert-ed25519", "Cert": {"Subject": {"CommonName": "x"}, "IPAddresses": ["::1"]}}},
    Users={"u": {"Certificate": certificate(), "Roles": ["r"]}},
    Roles={"r": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]}},
    Config={"UpdateThreshold": 1},
    Mesh={"CertificateLifetime": "24h", "Gateways": {"g": {"Certificate": certificate()}}},
    Infrastructures={"i": {"CPUSVN": "AAAA"}},
)
SEED = raw(FULL)

# The quick ones of many runs; the fuzzer has the patience.
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _names() -> list[str]:
    names: set[str] = set()
    pending: list[type[Wire]] = [Wire]
    while pending:
        kind = pending.pop()
        names.update(kind.members().values())
        pending.extend(kind.__subclasses__())
    return sorted(names)


scalars = st.none() | st.booleans() | st.integers(-1, 300) | st.floats() | st.text(max_size=8) | st.just("web")
members = st.sampled_from([*_names(), "web", "p", "t"]) | st.text(max_size=4)
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(members, inner, max_size=5))


def _places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(place for key, value in items for place in _places(value, (*path, key)))]


PLACES = _places(FULL)[1:]


@quick
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    fuzz_one(data)


@quick
@given(st.integers(0, len(SEED) - 1), st.binary(max_size=4), st.integers(0, 4))
def test_a_valid_manifest_with_changed_bytes(place: int, insert: bytes, cut: int) -> None:
    fuzz_one(SEED[:place] + insert + SEED[place + cut :])


@quick
@given(st.sampled_from(PLACES), trees)
def test_a_valid_manifest_with_any_value_at_any_place(place: tuple[Any, ...], value: Any) -> None:
    changed = json.loads(SEED)
    node = changed
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    fuzz_one(raw(changed))


@quick
@given(trees)
def test_any_json(tree: Any) -> None:
    fuzz_one(raw(tree))


@quick
@given(st.randoms(use_true_random=False))
def test_the_case_of_member_names_and_the_layout_change_nothing(random: Any) -> None:
    known = {name.lower() for name in _names()}

    def mixed(node: Any) -> Any:
        if isinstance(node, list):
            return [mixed(item) for item in node]
        if not isinstance(node, dict):
            return node
        return {
            "".join(random.choice((c.lower(), c.upper())) for c in key) if key.lower() in known else key: mixed(value)
            for key, value in node.items()
        }

    # Names that the file gives (p, web, t) are no member names, so only members change.
    one, other = parse(SEED), parse(json.dumps(mixed(FULL), indent=random.choice((None, 1, 2))).encode())
    assert (one.packages, one.marbles, one.tls, one.users, one.mesh) == (
        other.packages,
        other.marbles,
        other.tls,
        other.users,
        other.mesh,
    )


def test_the_seed_is_valid_and_uses_every_top_level_member() -> None:
    assert parse(SEED).warnings == ()
    assert set(ManifestWire.members().values()) - set(FULL) == {"RecoveryKeys"}
