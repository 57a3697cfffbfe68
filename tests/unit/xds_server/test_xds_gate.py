# SPDX-License-Identifier: Apache-2.0
"""What every call passes before and while it is served."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry

from sds.discovery import ProtocolError
from sds.logs import get_logger
from xds_server.mesh import AccessDenied
from xds_server.rpc import Call, CallEnded, RpcError
from xds_server.xds_gate import Gate
from xds_server.xds_limits import XdsLimits
from xds_server.xds_metrics import XdsMetrics


@dataclass
class FakeCall:
    """A call whose client has sent these requests, and waits."""

    certificate_der: bytes | None = b"one"
    requests: list[bytes] = field(default_factory=list)
    method: str = "/a.Service/Method"
    peer: str = "127.0.0.1:1"

    async def read(self) -> bytes | None:
        return self.requests.pop(0) if self.requests else None

    async def write(self, body: bytes) -> None:
        raise CallEnded


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def gate(limits: XdsLimits | None = None, clock: Callable[[], float] | None = None) -> tuple[Gate, CollectorRegistry]:
    registry = CollectorRegistry()
    return Gate(limits or XdsLimits(), get_logger("test"), XdsMetrics(registry), clock or Clock()), registry


async def forever(_call: Call) -> None:
    await asyncio.Event().wait()


def failing(error: Exception) -> Callable[[Call], Awaitable[None]]:
    async def serve(_call: Call) -> None:
        raise error

    return serve


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (AccessDenied("PERMISSION_DENIED", "revoked", "revoked: why"), "PERMISSION_DENIED", "revoked: why"),
        (ProtocolError("INVALID_ARGUMENT", "no type"), "INVALID_ARGUMENT", "no type"),
        (RpcError("NOT_FOUND", "unknown service"), "NOT_FOUND", "unknown service"),
        (RuntimeError("secret=hunter2"), "INTERNAL", "internal error"),
    ],
)
async def test_a_client_hears_the_sentences_that_are_meant_for_it_and_nothing_of_a_bug(
    error: Exception, status: str, text: str
) -> None:
    handle = gate()[0].guard(failing(error))
    with pytest.raises(RpcError) as caught:
        await handle(FakeCall())
    assert (caught.value.status, str(caught.value), caught.value.__cause__) == (status, text, None)


async def test_a_call_without_certificate_is_refused_whatever_tls_let_through() -> None:
    with pytest.raises(RpcError) as caught:
        await gate()[0].guard(forever)(FakeCall(certificate_der=None))
    assert caught.value.status == "UNAUTHENTICATED"


async def test_one_client_has_so_many_calls_and_others_have_theirs() -> None:
    it, registry = gate(XdsLimits(streams_per_client=2))
    handle = it.guard(forever)
    running = [asyncio.ensure_future(handle(FakeCall(who))) for who in (b"one", b"one", b"two")]
    await asyncio.sleep(0)
    with pytest.raises(RpcError) as caught:
        await handle(FakeCall(b"one"))
    assert caught.value.status == "RESOURCE_EXHAUSTED"
    assert registry.get_sample_value("marblemesh_xds_denied_total", {"reason": "too_many_streams"}) == 1
    running[0].cancel()
    await asyncio.wait(running[:1])
    again = asyncio.ensure_future(handle(FakeCall(b"one")))
    await asyncio.sleep(0)
    assert not again.done()
    for task in (*running, again):
        task.cancel()
    await asyncio.wait([*running, again])


async def test_beyond_those_that_may_wait_a_client_is_told_when_to_come_back() -> None:
    it, registry = gate(XdsLimits(starts=2, starts_burst=1, waiting=1))
    handle = it.guard(forever)
    running = [asyncio.ensure_future(handle(FakeCall(who))) for who in (b"one", b"two")]
    await asyncio.sleep(0)
    assert it.waiting == 1
    with pytest.raises(RpcError, match=r"try again in \d+ s") as caught:
        await handle(FakeCall(b"three"))
    assert caught.value.status == "UNAVAILABLE"
    assert registry.get_sample_value("marblemesh_xds_denied_total", {"reason": "overloaded"}) == 1
    at_once = asyncio.ensure_future(it.guard(forever, at_once=True)(FakeCall(b"four")))
    await asyncio.sleep(0)
    assert not at_once.done()
    it.stop()
    (waited,) = await asyncio.gather(running[1], return_exceptions=True)
    assert isinstance(waited, RpcError)
    assert waited.status == "UNAVAILABLE"
    for task in (running[0], at_once):
        task.cancel()
    await asyncio.wait([running[0], at_once])


async def test_a_client_that_floods_requests_is_read_no_faster_than_its_share() -> None:
    clock = Clock()
    it, _ = gate(XdsLimits(requests=1000, requests_burst=4), clock)
    read: list[bytes] = []

    async def serve(call: Call) -> None:
        while (body := await call.read()) is not None:
            read.append(body)
        await asyncio.Event().wait()

    slow = asyncio.ensure_future(it.guard(serve)(FakeCall(b"one", [b"x"] * 4 + [bytes(4096 * 2000), b"late"])))
    fast = asyncio.ensure_future(it.guard(serve)(FakeCall(b"two", [b"y"])))
    for _ in range(20):
        await asyncio.sleep(0)
    assert (read.count(b"x"), read.count(b"y"), b"late" in read) == (4, 1, False)
    for task in (slow, fast):
        task.cancel()
    await asyncio.wait([slow, fast])


async def test_leaving_does_not_renew_a_share() -> None:
    clock = Clock()
    it, _ = gate(XdsLimits(requests=1, requests_burst=3), clock)
    read = 0

    async def serve(call: Call) -> None:
        nonlocal read
        while await call.read() is not None:
            read += 1

    await it.guard(serve)(FakeCall(b"one", [b"x"] * 3))
    it.prune()
    again = asyncio.ensure_future(it.guard(serve)(FakeCall(b"one", [b"x"] * 3)))
    await asyncio.sleep(0.01)
    assert read == 4, "one more, which is not paid for yet"
    again.cancel()
    await asyncio.wait([again])
    clock.now += 10
    it.prune()
    await it.guard(serve)(FakeCall(b"one", [b"x"] * 3))
    assert read == 7


async def test_a_service_beside_discovery_ends_in_good_order_with_age_and_when_we_stop() -> None:
    it, _ = gate(XdsLimits(age=0.01))
    await it.guard(it.for_a_while(forever))(FakeCall())
    longer, _ = gate()
    running = asyncio.ensure_future(longer.guard(longer.for_a_while(forever))(FakeCall()))
    await asyncio.sleep(0)
    longer.stop()
    with pytest.raises(RpcError, match="stopping"):
        await asyncio.wait_for(running, 10)


async def test_refusals_without_end_do_not_fill_the_log() -> None:
    clock, lines = Clock(), list[dict[str, object]]()

    class Log:
        def info(self, event: str, **fields: object) -> None:
            lines.append({"event": event, **fields})

        warning = error = info

    it = Gate(XdsLimits(), Log(), XdsMetrics(CollectorRegistry()), clock)
    handle = it.guard(failing(AccessDenied("PERMISSION_DENIED", "not_activated", "activate again")), at_once=True)
    for _ in range(1000):
        with pytest.raises(RpcError):
            await handle(FakeCall())
    assert len(lines) == 20
    clock.now += 1
    with pytest.raises(RpcError):
        await handle(FakeCall())
    assert lines[-1]["unsaid"] == 980
