# SPDX-License-Identifier: Apache-2.0
"""What the steps of one demo share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import ClientSession

from marblemesh.demo.gateway import GatewayCredentials
from marblemesh.demo.processes import Processes
from marblemesh.demo.topology import HOST, Topology

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for. `votes` 0 is for ever; `rate` in votes a second, 0 as fast as they are answered."""

    votes: int
    rate: float


@dataclass(frozen=True, slots=True)
class World:
    """One demo that is being started or runs. `prometheus` is its binary, None when it is not installed."""

    topology: Topology
    processes: Processes
    http: ClientSession
    envoy: Path
    prometheus: str | None
    gateway: GatewayCredentials
    manifest: bytes
    say: Say

    def url(self, port: int, path: str) -> str:
        return f"http://{HOST}:{port}{path}"

    def metrics_urls(self) -> dict[str, str]:
        """Every process that shows metrics, by its job name."""
        return {target.name: f"http://{target.address}{target.path}" for target in self.topology.targets()}
