# SPDX-License-Identifier: Apache-2.0
"""Every open discovery stream, found by what a change says, and pushed to in turn.

A change marks the streams that it concerns and puts them into a queue, each once, however much changes until its turn
comes. The queue is worked off in slices, so that handshakes, requests and answers have their turn in between: 5000
pushes are a quarter of a second, in which nobody else would be served.

Nothing here looks at every stream, unless a change concerns everybody; with the time, too, only those are looked at
whose time has come.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import count

from sds.resources import SECRET
from xds_server.mesh_changes import Concerned
from xds_server.mesh_clients import Client, Role
from xds_server.xds_convergence import Change
from xds_server.xds_session import Session

_SLICE = 0.004


class OpenStreams:
    """`ends(session, error)` ends a stream whose push raised something."""

    def __init__(self, ends: Callable[[Session, Exception], None]) -> None:
        self._ends = ends
        self._of: dict[Client, tuple[Session, ...]] = {}
        self._clients: dict[tuple[Role, str], dict[Client, None]] = {}
        self._count = 0
        # By number, so that the heap keeps no stream that is over.
        self._due: list[tuple[float, int]] = []
        self._looked_at: dict[int, Session] = {}
        self._numbers = count()
        self._queue: deque[Session] = deque()
        self._scheduled = False
        self._pushed = asyncio.Event()
        self._pushed.set()
        # Streams whose client does not (yet) trust as it was told; kept while roots change, see `xds_followers`.
        self.behind: set[Session] = set()
        self._unanswered: set[Session] = set()
        self._several: set[Client] = set()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Session]:
        for sessions in self._of.values():
            yield from sessions

    def of(self, client: Client) -> Collection[Session]:
        """The streams of one client."""
        return self._of.get(client, ())

    def add(self, session: Session) -> None:
        """A stream begins."""
        client = session.client
        sessions = self._of[client] = (*self._of.get(client, ()), session)
        if len(sessions) > 1:
            self._several.add(client)
        self._clients.setdefault((client.role, client.name), {})[client] = None
        self._count += 1

    def remove(self, session: Session) -> None:
        """A stream is over. Twice is once."""
        client = session.client
        before = self._of.get(client, ())
        rest = tuple(other for other in before if other is not session)
        if len(rest) == len(before):
            return
        self._count -= 1
        self.behind.discard(session)
        self._unanswered.discard(session)
        self._looked_at.pop(session.look_number, None)
        if len(rest) < 2:
            self._several.discard(client)
        if rest:
            self._of[client] = rest
            return
        del self._of[client]
        kind = client.role, client.name
        del self._clients[kind][client]
        if not self._clients[kind]:
            del self._clients[kind]

    def concerned(self, who: Concerned) -> Iterable[Session]:
        """The streams of those whom a change concerns, each once."""
        if who.everybody:
            return list(self)
        clients = {Client(Role.MARBLE, *instance): None for instance in who.instances}
        for name in who.callers:
            clients.update(self._clients.get((Role.MARBLE, name), {}))
        if who.gateways:
            for (role, _), gateways in self._clients.items():
                if role is Role.GATEWAY:
                    clients.update(gateways)
        return [session for client in clients for session in self._of.get(client, ())]

    # ---- pushes

    def tell(self, who: Concerned, change: Change, *, rotating: bool) -> None:
        """Push to whom a change concerns, soon. `rotating`: what they answer is waited for."""
        for session in self.concerned(who):
            session.changed(change)
            if rotating:
                self.behind.add(session)
            self.push(session)

    def push(self, session: Session) -> None:
        """Its turn to look what is due."""
        if not session.queued:
            session.queued = True
            self._queue.append(session)
            self._pushed.clear()
            self._schedule()

    async def all_pushed(self) -> None:
        """Wait until everybody who was told has had a turn."""
        await self._pushed.wait()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._some)

    def _some(self) -> None:
        self._scheduled = False
        end = time.monotonic() + _SLICE
        while self._queue:
            session = self._queue.popleft()
            session.queued = False
            try:
                session.push()
            except Exception as e:
                self._ends(session, e)
            if time.monotonic() >= end:
                break
        if self._queue:
            self._schedule()
        else:
            self._pushed.set()

    # ---- time

    def heard(self, session: Session) -> None:
        """Something happened on a stream; it may be over."""
        if session.over:
            self.remove(session)
            return
        if session.record.pending:
            self._unanswered.add(session)
        else:
            self._unanswered.discard(session)
        if session in self.behind and not session.record.awaits(SECRET) and session.trusts_as_told:
            self.behind.discard(session)
        if session.presses:
            self.look_at(session)

    def look_at(self, session: Session) -> None:
        """Call `look` when its time has come."""
        when = session.next_look(time.monotonic())
        if when < session.look_due:
            self._looked_at.pop(session.look_number, None)
            session.look_due, session.look_number = when, next(self._numbers)
            self._looked_at[session.look_number] = session
            heapq.heappush(self._due, (when, session.look_number))

    def look(self, now: float) -> None:
        """Look at the streams whose time has come."""
        while self._due and self._due[0][0] <= now:
            session = self._looked_at.pop(heapq.heappop(self._due)[1], None)
            if session is None:  # it is over, or was to be looked at earlier
                continue
            session.look_due = math.inf
            try:
                session.look(now)
            except Exception as e:
                self._ends(session, e)
            else:
                self.look_at(session)

    def silent(self, now: float, seconds: float) -> list[Session]:
        """Streams of which a response has not been answered for so long."""
        return [session for session in self._unanswered if session.record.unanswered_for(now) > seconds]

    def of_several(self) -> Iterator[tuple[Session, ...]]:
        """The streams of each client that has more than one."""
        return (self._of[client] for client in self._several)
