# SPDX-License-Identifier: Apache-2.0
"""The relay's bounds in time and number, with the reasons for their defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds are floats. Every default holds for one relay, that is for one Marble."""

    # A peer behind a 1 s round trip with two lost packets is done in 5 s; a silent one costs a socket for this long.
    handshake_timeout: float = 10.0
    connect_timeout: float = 5.0
    # A peer that has just been activated reaches us over xDS well within this; the app sees a slow connect, no error.
    endpoint_wait: float = 5.0
    # How long the last bytes of a closing connection may stand still before it is cut off.
    linger: float = 30.0
    # How long nothing may move on an open connection; 0: for ever. As Envoy.
    idle_timeout: float = 3600.0
    # The same once one side has said all that it has to say: an answer may take its time, a forgotten peer may not.
    half_closed_timeout: float = 300.0
    # How long a connection may live, whatever moves on it; 0: for ever.
    lifetime: float = 0.0
    # How long connections of a listener that is no longer there may go on.
    drain: float = 10.0
    # A connection costs two descriptors and about 60 KB with TLS: 8192 are 0.5 GB and 16 k descriptors at most.
    connections: int = 8192
    # The same for each listener, so that one of them can be kept from taking everything.
    listener_connections: int = 8192
    # One core does about 500 handshakes a second, so that more than 512 at once would only make each of them slower.
    # Further ones wait in the kernel's backlog.
    handshakes: int = 512
    # Endpoints tried for one connection: with more, an app would wait for the sum of their timeouts.
    attempts: int = 3
    # Refusals logged per second; all are counted.
    log_lines: int = 10
