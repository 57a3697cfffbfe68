# SPDX-License-Identifier: Apache-2.0
"""Spliced responses are the messages that protobuf would make, and what many clients share is encoded once."""

from __future__ import annotations

import gc
import tracemalloc
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sds import discovery_wire as wire
from sds.discovery import DeltaStream, SotwStream, Stream, View
from sds.resources import CLUSTER, ENDPOINT, LISTENER, SECRET, Resource
from sds.wire import discovery_pb2
from tests.kit.discovery import IncrementalClient, SotwClient, view

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # generated code, not ours to warn about
    from envoy_data_plane.envoy.service.discovery.v3 import DeltaDiscoveryResponse, DiscoveryResponse

texts = st.text(max_size=300)
resources = st.builds(Resource, texts, texts, texts, st.binary(max_size=40_000))


@given(texts, texts, texts, st.lists(resources, max_size=3))
def test_an_incremental_response_is_what_protobuf_makes(
    identifier: str, type_url: str, nonce: str, content: list[Resource]
) -> None:
    spliced = wire.delta_start(identifier, type_url) + wire.nonce(nonce)
    spliced += b"".join(resource.in_delta + resource.body for resource in content)
    expected = discovery_pb2.DeltaDiscoveryResponse(type_url=type_url, nonce=nonce)
    expected.control_plane.identifier = identifier
    for resource in content:
        added = expected.resources.add(name=resource.name, version=resource.version)
        added.resource.type_url, added.resource.value = resource.type_url, resource.body
    assert discovery_pb2.DeltaDiscoveryResponse.FromString(spliced) == expected


@given(texts, texts, texts, texts, st.lists(resources, max_size=3))
def test_a_state_of_the_world_response_is_what_protobuf_makes(
    identifier: str, type_url: str, nonce: str, version: str, content: list[Resource]
) -> None:
    spliced = wire.state_start(identifier, type_url) + wire.nonce(nonce) + wire.state_version(version)
    spliced += b"".join(resource.in_state + resource.body for resource in content)
    expected = discovery_pb2.DiscoveryResponse(type_url=type_url, nonce=nonce, version_info=version)
    expected.control_plane.identifier = identifier
    for resource in content:
        expected.resources.add(type_url=resource.type_url, value=resource.body)
    assert discovery_pb2.DiscoveryResponse.FromString(spliced) == expected


def test_envoys_own_definitions_read_a_response_and_find_no_time_to_live_in_it() -> None:
    """Secrets that expire together end an Envoy 1.40 on a state-of-the-world stream."""
    delta, state = IncrementalClient(view(SDS={"default": "1"})), SotwClient(view(SDS={"default": "1"}))
    for client in (delta, state):
        client.ask("SDS", "default", "missing")
    body = delta.stream.take()
    assert body is not None
    parsed = DeltaDiscoveryResponse.parse(body)
    (resource,) = parsed.resources
    assert (resource.name, resource.version, resource.ttl, resource.cache_control) == ("default", "1", None, None)
    assert (parsed.type_url, parsed.nonce, parsed.removed_resources) == (SECRET, "n1", ["missing"])
    assert parsed.control_plane.identifier == "test"
    body = state.stream.take()
    assert body is not None
    whole = DiscoveryResponse.parse(body)
    assert (whole.type_url, whole.nonce, whole.version_info, len(whole.resources)) == (SECRET, "n1", "1", 1)
    assert [error.resource_name.name for error in whole.resource_errors] == ["missing"]


def test_a_response_cannot_be_printed() -> None:
    client = IncrementalClient({SECRET: {"default": Resource(SECRET, "default", "1", b"-----BEGIN PRIVATE KEY-----")}})
    client.ask("SDS", "default")
    said = client.stream.take_response()
    assert said is not None
    assert b"BEGIN" in said.body
    assert "BEGIN" not in repr(said)
    assert "BEGIN" not in str(said)


# ---- what a change costs

LISTENERS = view(LDS={"inbound|8080": "1 default", "outbound|db|5432": "1 default"})[LISTENER]
CLUSTERS = view(CDS={"app|8080": "1", "outbound|db|5432": "1 outbound|db|5432"})[CLUSTER]
ENDPOINTS = view(EDS={"outbound|db|5432": "1"})[ENDPOINT]
NAMES = {
    CLUSTER: ["*"],
    LISTENER: ["*"],
    SECRET: ["ROOTCA", "default", "revoked|instances"],
    ENDPOINT: ["outbound|db|5432"],
}


def worker_view(secrets: View) -> View:
    return {LISTENER: LISTENERS, CLUSTER: CLUSTERS, ENDPOINT: ENDPOINTS, **secrets}


def worker(kind: type[Stream], secrets: View) -> Stream:
    """A worker's stream, at rest."""
    stream = kind(identifier="coordinator", nonce_prefix="7f3a0011-", entitled=frozenset(NAMES))
    stream.update(worker_view(secrets))
    for type_url, names in NAMES.items():
        ask(stream, type_url, names)
    push(stream)
    return stream


def ask(stream: Stream, type_url: str, names: list[str], nonce: str = "") -> None:
    if isinstance(stream, SotwStream):
        request = discovery_pb2.DiscoveryRequest(type_url=type_url, resource_names=names, response_nonce=nonce)
        stream.receive_bytes(request.SerializeToString())
    else:
        added = [] if nonce else names
        delta = discovery_pb2.DeltaDiscoveryRequest(
            type_url=type_url, resource_names_subscribe=added, response_nonce=nonce
        )
        stream.receive_bytes(delta.SerializeToString())


def push(stream: Stream) -> list[str]:
    """Everything that is due, each answered at once; the types."""
    pushed = []
    while (response := stream.take_response()) is not None:
        pushed.append(response.type_url)
        ask(stream, response.type_url, NAMES[response.type_url], response.nonce)
    return pushed


def secrets(version: str, body: bytes = b"x" * 2000) -> View:
    return {SECRET: {name: Resource(SECRET, name, version, body) for name in NAMES[SECRET]}}


@pytest.mark.parametrize("kind", [SotwStream, DeltaStream], ids=["sotw", "delta"])
def test_encodings_of_a_change_do_not_grow_with_the_streams_that_share_it(
    kind: type[Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    for name in ("before_any", "before_resource"):
        made = getattr(wire, name)
        monkeypatch.setattr(wire, name, lambda *args, made=made: (encoded.append(1), made(*args))[1])
    shared = secrets("1")
    streams = [worker(kind, shared) for _ in range(50)]
    encoded.clear()
    changed = {SECRET: {**shared[SECRET], "ROOTCA": Resource(SECRET, "ROOTCA", "2", b"y" * 2000)}}
    for stream in streams:
        stream.update(worker_view(changed))
        assert push(stream) == [SECRET]
    assert len(encoded) == 1


def test_a_type_in_which_nothing_changed_is_not_looked_at() -> None:
    class Untouchable(dict[str, Resource]):
        """Content that fails whoever looks for something in it."""

        armed = False

        def __getitem__(self, name: str) -> Resource:
            assert not self.armed
            return super().__getitem__(name)

        def __contains__(self, name: object) -> bool:
            assert not self.armed
            return super().__contains__(name)

        def __iter__(self) -> object:  # type: ignore[override]
            assert not self.armed
            return super().__iter__()

    clusters = Untouchable(CLUSTERS)
    stream = worker(DeltaStream, {**secrets("1"), CLUSTER: clusters})
    clusters.armed = True
    stream.update(worker_view({**secrets("2"), CLUSTER: clusters}))
    assert push(stream) == [SECRET] * 3


def test_a_worker_at_rest_takes_less_than_six_kilobytes_of_rules() -> None:
    shared = secrets("1")
    kept = [worker(DeltaStream, shared)]
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        kept += [worker(DeltaStream, shared) for _ in range(100)]
        gc.collect()
        each = (tracemalloc.get_traced_memory()[0] - before) / 100
    finally:
        tracemalloc.stop()
    assert each < 6000, f"{each:.0f} bytes"
