# SPDX-License-Identifier: Apache-2.0
"""What one client, and all of them together, may take of the xDS port."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class XdsLimits:
    """Counts, rates per second, seconds.

    `streams_per_client`: an Envoy without ADS opens one stream per secret that it names; more is a client gone wild.
    `names_per_client`: what it may ask for over all its streams, looked at every `look`; what a stream may ask for is
    bounded by `sds.discovery_types`, and how fast a client can ask for more by `requests`.
    `starts`, `starts_burst`, `waiting`: a stream costs a millisecond to begin with, so of a whole mesh that reconnects
    500 per second are taken, in the order in which they came, and what runs already goes on meanwhile. 20 000 that wait
    are more than one Coordinator's whole fleet.
    `requests`, `requests_burst`: of one client over all its streams; a request counts one, and one more per 4 KiB. An
    Envoy with 1000 secrets acknowledges each of them in a burst.
    `age`, `age_jitter`: how long a stream lives (plus or minus that part of it), so that after a change in the number
    of Coordinators clients spread over them again.
    `patience`: how long a write may take, and a stream without its first request. HTTP/2's flow control stops us when
    the client does not read; no pause of a living client is that long.
    `answer`: how long the answer to a response may take. Envoy and our worker answer within milliseconds.
    """

    streams_per_client: int = 64
    names_per_client: int = 16_384
    starts: float = 500.0
    starts_burst: int = 500
    waiting: int = 20_000
    requests: float = 500.0
    requests_burst: int = 5_000
    age: float = 30 * 60.0
    age_jitter: float = 0.2
    patience: float = 30.0
    answer: float = 60.0
    look: float = 5.0
