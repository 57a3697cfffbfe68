# SPDX-License-Identifier: Apache-2.0
"""Reading what the processes say about themselves over plain HTTP on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from aiohttp import ClientError, ClientSession
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of an exposition."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Metrics:
    """One process's metrics at one time; empty when it did not answer."""

    samples: tuple[Sample, ...] = ()

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples of this name that have these labels; 0 when there is none."""
        return sum(s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items())


def parse_metrics(text: str) -> Metrics:
    """Read the Prometheus text format. Raises ValueError when it is none."""
    families = text_string_to_metric_families(text)
    return Metrics(
        tuple(Sample(s.name, MappingProxyType(s.labels), s.value) for family in families for s in family.samples)
    )


async def get_text(http: ClientSession, url: str) -> str | None:
    """The body of a 200 answer, None for anything else: whoever asks polls, and asks again."""
    try:
        async with http.get(url) as reply:
            return await reply.text() if reply.status == 200 else None
    except (ClientError, TimeoutError, UnicodeDecodeError):
        return None


async def get_metrics(http: ClientSession, url: str) -> Metrics:
    text = await get_text(http, url)
    return parse_metrics(text) if text is not None else Metrics()


async def get_all_metrics(http: ClientSession, urls: Mapping[str, str]) -> dict[str, Metrics]:
    """Of all targets at once, by name."""
    found = await asyncio.gather(*(get_metrics(http, url) for url in urls.values()))
    return dict(zip(urls, found, strict=True))
