# SPDX-License-Identifier: Apache-2.0
"""What the demo looks like now: read from the workers' admin ports, the Coordinator's metrics and vote-bot's output."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime

from aiohttp import ClientSession

from marblemesh.demo.progress import last_line
from marblemesh.demo.scrape import Metrics, get_all_metrics, get_text
from marblemesh.demo.steps.world import World
from marblemesh.demo.topology import MARBLES
from sds.identity import SpiffeId


@dataclass(frozen=True, slots=True)
class Certificate:
    """The certificate that a worker shows now, and what was attested of its Marble. Times are in UTC."""

    serial: str
    uuid: str
    spiffe_id: str
    measurement: str
    simulated: bool
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class MarbleNow:
    """One Marble. `certificate` None: it is not attested (yet), or its worker does not answer."""

    type: str
    certificate: Certificate | None = None
    active: int = 0
    established: int = 0
    refused: int = 0
    control_plane: bool = False


@dataclass(frozen=True, slots=True)
class Now:
    """The whole demo at one time."""

    at: datetime
    marbles: tuple[MarbleNow, ...]
    coordinator: str
    renewals: int
    votes: int
    failures: int
    edge_active: int
    prometheus: str


# Why Envoy refuses a connection, in its words; the text format's parser gives every counter the suffix `_total`.
_ENVOY_REFUSALS = ("connection_error", "fail_verify_no_cert", "fail_verify_error", "fail_verify_san")
# What the Coordinator's `coordinator_state` means.
_STATES = {1: "recovering", 2: "waits for a manifest", 3: "accepts Marbles"}


async def certificate_of(world: World, marble: str) -> Certificate | None:
    """The certificate that the Marble's worker holds now; None while it has none or does not answer."""
    return await _certificate(world.http, world.url(world.topology.ports.admin(marble), "/certs"))


async def _certificate(http: ClientSession, url: str) -> Certificate | None:
    match json.loads(await get_text(http, url) or "{}"):
        case {"identity": [{"serial": str(serial), "uris": [str(uri)], **rest}, *_], "attested": dict(claims)}:
            spiffe_id = SpiffeId.parse(uri)
            return Certificate(
                serial=serial,
                uuid=spiffe_id.path[-1],
                spiffe_id=uri,
                measurement=str(claims.get("measurement", "")),
                simulated=claims.get("simulated") is True,
                not_before=datetime.fromisoformat(str(rest["not_before"])),
                not_after=datetime.fromisoformat(str(rest["not_after"])),
            )
    return None


async def observe(world: World) -> Now:
    """Look at everything once; what does not answer is shown as away."""
    metrics = await get_all_metrics(world.http, world.metrics_urls())
    certificates = await asyncio.gather(*(certificate_of(world, marble) for marble in MARBLES))
    said = last_line(world.topology.paths.logs / "vote-bot.out")
    coordinator, edge = metrics["coordinator"], metrics["envoy-edge"]
    state = _STATES.get(int(coordinator.total("coordinator_state")), "away")
    return Now(
        at=datetime.now(UTC),
        marbles=tuple(
            _marble(marble, certificate, metrics) for marble, certificate in zip(MARBLES, certificates, strict=True)
        ),
        coordinator=state,
        renewals=int(coordinator.total("marblemesh_identity_renewals_total")),
        votes=_number(said.get("votes")),
        failures=_number(said.get("failures")),
        edge_active=int(edge.total("envoy_cluster_upstream_cx_active", envoy_cluster_name=_edge_cluster(world))),
        prometheus=world.url(world.topology.ports.prometheus, "") if world.prometheus else "not installed",
    )


def _marble(marble: str, certificate: Certificate | None, metrics: dict[str, Metrics]) -> MarbleNow:
    worker = metrics[f"worker-{marble}"]
    prefix = "marblemesh_worker_"
    active = worker.total(f"{prefix}connections_active")
    established = worker.total(f"{prefix}connections_established_total")
    refused = worker.total(f"{prefix}connections_refused_total")
    if marble == "web":  # its worker does not relay: the Envoy inside does
        envoy = metrics["envoy-web"]
        active = envoy.total("envoy_cluster_upstream_cx_active", envoy_cluster_name="app")
        established = envoy.total("envoy_cluster_upstream_cx_total", envoy_cluster_name="app")
        refused = sum(envoy.total(f"envoy_listener_ssl_{reason}_total") for reason in _ENVOY_REFUSALS)
    connected = worker.total(f"{prefix}control_plane_connected") > 0
    return MarbleNow(marble, certificate, int(active), int(established), int(refused), connected)


def envoy_certificate_updates(metrics: Metrics) -> int:
    """How many certificates the Envoy inside web has put in use on its mTLS port, told by its worker over SDS."""
    return int(metrics.total("envoy_listener_server_ssl_socket_factory_ssl_context_update_by_sds_total"))


def _edge_cluster(world: World) -> str:
    return world.topology.edge_config().cluster


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
