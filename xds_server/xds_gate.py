# SPDX-License-Identifier: Apache-2.0
"""What every call of the xDS port passes: how many one client may have, its turn, its share of requests, and what it
hears when things go wrong.

    transport ─► Gate ─ at most so many per certificate ─ admission ─► handler, reading no faster than it may

A client is its certificate here, so that nobody is looked up, and nothing is computed, before its turn has come. Nobody
hears more than the sentences of AccessDenied and ProtocolError.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable
from functools import partial

from sds.discovery import ProtocolError
from xds_server.mesh import AccessDenied
from xds_server.rpc import Call, CallEnded, Handler, Receiver, RpcError
from xds_server.xds_admission import Admission, Bucket, Overloaded
from xds_server.xds_limits import XdsLimits
from xds_server.xds_metrics import XdsMetrics
from xds_server.xds_passed import Passed
from xds_server.xds_record import Log

_GOODBYE_SECONDS = 0.2
# Of the log, for one reason: whoever is refused can come back at once, and again.
_LINES_PER_SECOND = 1.0
_LINES_AT_ONCE = 20


class Gate:
    """One per port."""

    def __init__(self, limits: XdsLimits, log: Log, metrics: XdsMetrics, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._log = log
        self._metrics = metrics
        self._clock = clock
        self._open: Counter[bytes] = Counter()
        self._shares: dict[bytes, Bucket] = {}
        self._admission = Admission(limits.starts, limits.starts_burst, limits.waiting, clock)
        self._timeouts: set[asyncio.Timeout] = set()
        self._stopping = False
        # Reasons and statuses are our own words, so there are few.
        self._room_for_lines: dict[str, Bucket] = {}
        self._unsaid: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """Calls that wait for admission."""
        return self._admission.waiting

    def stop(self) -> None:
        """From now on whoever comes, or waits, is told to come back; calls of `for_a_while` end in a moment."""
        self._stopping = True
        self._admission.close()
        end = asyncio.get_running_loop().time() + _GOODBYE_SECONDS
        for timeout in self._timeouts:
            timeout.reschedule(end)

    def for_a_while(self, serve: Handler) -> Handler:
        """A handler that ends in good order when it has run for as long as a stream lives, and when we stop."""

        async def handle(call: Call) -> None:
            timeout = asyncio.timeout(self._limits.age)
            self._timeouts.add(timeout)
            try:
                async with timeout:
                    await serve(call)
            except TimeoutError:
                if self._stopping:
                    raise stopping() from None
            finally:
                self._timeouts.discard(timeout)

        return handle

    def prune(self) -> None:
        """Forget the shares of those who left and have theirs whole again, so that leaving does not renew it."""
        now = self._clock()
        for who in [who for who, share in self._shares.items() if who not in self._open and share.is_full(now)]:
            del self._shares[who]

    def guard(self, serve: Handler, *, at_once: bool = False) -> Handler:
        """The handler that the transport gets. `at_once`: cheap enough never to wait."""

        async def handle(call: Call) -> Receiver | None:
            try:
                return await self._enter(call, serve, at_once=at_once)
            except Exception as e:
                raise self.judge(e, call) from None

        return handle

    def judge(self, error: Exception, call: Call) -> Exception:
        """What to raise for something that a service has raised: what the client may hear of it. Counted and logged."""
        if isinstance(error, AccessDenied):
            self._metrics.denied.labels(error.reason).inc()
            self._say("xds client denied", error.reason, call, error)
            return RpcError(error.status, str(error))
        if isinstance(error, ProtocolError):
            self._metrics.failures.labels(error.status.lower()).inc()
            if not self._stopping:
                self._say("xds stream ended", error.status.lower(), call, error)
            return RpcError(error.status, str(error))
        if isinstance(error, CallEnded | RpcError):
            return error
        # A bug: one stream ends, the others go on; its text stays here.
        self._metrics.failures.labels("internal").inc()
        self._log.error("xds stream failed", peer=call.peer, exc_info=error)
        return RpcError("INTERNAL", "internal error")

    def _say(self, event: str, reason: str, call: Call, error: Exception) -> None:
        """One line, unless there are very many: then a few, with the number of those that were left out."""
        now = self._clock()
        if (room := self._room_for_lines.get(reason)) is None:
            room = self._room_for_lines[reason] = Bucket(_LINES_PER_SECOND, _LINES_AT_ONCE, now)
        if not room.take(1, now):
            self._unsaid[reason] += 1
            return
        more = {"unsaid": left_out} if (left_out := self._unsaid.pop(reason, 0)) else {}
        self._log.info(event, reason=reason, peer=call.peer, error=str(error), **more)

    async def _enter(self, call: Call, serve: Handler, *, at_once: bool) -> Receiver | None:
        if call.certificate_der is None:
            raise AccessDenied("UNAUTHENTICATED", "no_certificate", "no usable client certificate")
        who = hashlib.sha256(call.certificate_der).digest()[:16]
        if self._open[who] >= self._limits.streams_per_client:
            raise AccessDenied("RESOURCE_EXHAUSTED", "too_many_streams", "too many streams of this client")
        self._open[who] += 1
        receiver = None
        try:
            if not at_once:
                await self._turn()
            if self._stopping:
                raise stopping()
            passed = Passed(call, self._share(who), self._clock, self.judge)
            receiver = await serve(passed)
        finally:
            if receiver is None:
                self._left(who)
        return None if receiver is None else passed.hand_over(receiver, partial(self._left, who))

    def _left(self, who: bytes) -> None:
        self._open[who] -= 1
        if not self._open[who]:
            del self._open[who]

    async def _turn(self) -> None:
        try:
            await self._admission.enter()
        except Overloaded as e:
            raise AccessDenied("UNAVAILABLE", "overloaded", str(e)) from None

    def _share(self, who: bytes) -> Bucket:
        if (share := self._shares.get(who)) is None:
            limits = self._limits
            share = self._shares[who] = Bucket(limits.requests, limits.requests_burst, self._clock())
        return share


def stopping() -> ProtocolError:
    """What ends streams when the Coordinator stops: the client comes back to whoever serves then."""
    return ProtocolError("UNAVAILABLE", "the coordinator is stopping: connect again")
