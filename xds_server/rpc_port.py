# SPDX-License-Identifier: Apache-2.0
"""What a connection and the port that accepted it know of each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from xds_server.byte_budget import ByteBudget
from xds_server.rpc_call import RpcCall
from xds_server.rpc_h2 import H2Limits
from xds_server.rpc_poll import Poller
from xds_server.rpc_stream import Stream
from xds_server.rpc_tls import Tls

if TYPE_CHECKING:
    from xds_server.rpc_link import Link


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkTimes:
    """Seconds: for a handshake, and until its turn comes; for a socket that takes nothing; for a connection without a
    call; between two pings of a silent peer, and for the answer (a peer whose host is gone is noticed by TCP, this is
    for one that hangs); and how exactly all that is measured."""

    handshake: float = 30.0
    turn: float = 300.0
    write: float = 30.0
    idle: float = 60.0
    ping: float = 120.0
    pong: float = 30.0
    tick: float = 1.0


class Port(Protocol):
    """What a link needs of the port that accepted it."""

    tls: Tls
    poller: Poller
    limits: H2Limits
    budget: ByteBudget
    times: LinkTimes

    @property
    def now(self) -> float:
        """The loop's clock."""

    def queue(self, link: Link) -> None:
        """The client has spoken: `shake` when it is its turn."""

    def shaken(self, link: Link) -> str | None:
        """The handshake is done; why the connection is not taken, if it is not."""

    def begin(self, link: Link, stream: Stream) -> RpcCall:
        """A call begins."""

    def call_ended(self) -> None:
        """One of its calls is over."""

    def dirty(self, link: Link) -> None:
        """`flush` soon."""

    def refused(self, link: Link, reason: str) -> None:
        """It never got to speak HTTP/2."""

    def gone(self, link: Link) -> None:
        """The connection is closed."""
