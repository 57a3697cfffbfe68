# SPDX-License-Identifier: Apache-2.0
"""The mesh comes up: Coordinator, attested by the data owner; manifest; edge; Marbles; Prometheus."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from marblemesh.client.client import Client
from marblemesh.client.errors import ClientError, Unreachable
from marblemesh.demo.envoy_config import edge_bootstrap
from marblemesh.demo.errors import DemoError
from marblemesh.demo.prometheus_config import prometheus_config
from marblemesh.demo.scrape import get_metrics, get_text
from marblemesh.demo.steps.world import Wish, World
from marblemesh.demo.topology import HOST, era_config
from sds.attestation.appraiser import Appraiser
from sds.attestation.era_config import EraConfig
from sds.attestation.simulated import SimulatedPlatform

# Each step takes a second or two here; a machine ten times slower is still no failure.
STEP_SECONDS = 30.0


async def start_mesh(world: World) -> None:
    """Everything but vote-bot runs and is ready. Raises DemoError that says which process or check failed."""
    client = await _attested_coordinator(world)
    await _set_manifest(world, client)
    await _start_edge(world, client.root)
    await _start_services(world)
    await _edge_knows_web(world)
    await _start_prometheus(world)


async def start_voting(world: World, wish: Wish) -> None:
    """vote-bot, behind a worker of its own, starts to vote as soon as it is attested."""
    await world.processes.start(world.topology.worker("vote-bot", wish.votes, wish.rate))
    await _worker_ready(world, "vote-bot")
    world.say("vote-bot is attested and voting through the edge")


async def _attested_coordinator(world: World) -> Client:
    """Start it, and find out as a data owner does that it is the code that the era config names."""
    paths = world.topology.paths
    paths.era_config.write_text(json.dumps(era_config()))
    policy = EraConfig.parse(paths.era_config.read_bytes()).policy
    # Making the platform's keys takes a moment and a lock on its files.
    platform = await asyncio.to_thread(SimulatedPlatform.open, paths.platform, datetime.now(UTC))
    appraiser = Appraiser(platform.verifier(), platform.collateral, lambda: datetime.now(UTC))
    await world.processes.start(world.topology.coordinator())
    address = f"{HOST}:{world.topology.ports.coordinator_client}"
    clients: list[Client] = []

    async def attested() -> bool:
        try:
            clients.append(await Client.attested(address, appraiser, policy))
        except Unreachable:
            return False
        except ClientError as error:
            raise DemoError(str(error)) from error
        return True

    await world.processes.until(attested, "coordinator does not answer", STEP_SECONDS)
    statement = clients[0].statement
    claims = statement.claims if statement else None
    measurement = claims.measurement.hex() if claims else "none"
    world.say(f"Coordinator attested: its quote is what the era config asks for, measurement {measurement[:16]}…")
    return clients[0]


async def _set_manifest(world: World, client: Client) -> None:
    try:
        await client.set_manifest(world.manifest)
        fingerprint = (await client.manifest()).fingerprint
    except ClientError as error:
        raise DemoError(str(error), world.processes["coordinator"].tail()) from error
    if fingerprint != world.topology.manifest_fingerprint:
        raise DemoError(f"the Coordinator has the manifest {fingerprint}, not the one that was set")
    world.say(f"manifest set, fingerprint {fingerprint[:16]}…")


async def _start_edge(world: World, root: x509.Certificate) -> None:
    edge = world.topology.edge_config()
    _write_private(edge.key, world.gateway.key)
    edge.certificate.write_text(world.gateway.certificate)
    edge.coordinator_root.write_bytes(root.public_bytes(Encoding.PEM))
    (edge.key.parent / "envoy.json").write_text(json.dumps(edge_bootstrap(edge)))
    await world.processes.start(world.topology.edge(world.envoy))


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


async def _start_services(world: World) -> None:
    for marble in ("emoji", "voting", "web"):
        await world.processes.start(world.topology.worker(marble))
    for marble in ("emoji", "voting", "web"):
        await _worker_ready(world, marble)
        await _app_listens(world, marble)
    world.say("emoji, voting and web attested; their workers have identities and connections")
    url = world.url(world.topology.ports.web_stats, "/ready")

    async def live() -> bool:
        return await get_text(world.http, url) is not None

    await world.processes.until(live, "web: the Envoy inside is not ready", STEP_SECONDS)
    world.say(f"Envoy {await envoy_version(world.envoy)} inside web carries its traffic, certificates over SDS")


async def _worker_ready(world: World, marble: str) -> None:
    url = world.url(world.topology.ports.admin(marble), "/readyz")

    async def ready() -> bool:
        return await get_text(world.http, url) is not None

    await world.processes.until(ready, f"{marble} is not ready", STEP_SECONDS)


async def _app_listens(world: World, marble: str) -> None:
    socket = world.topology.paths.marble(marble) / "app.sock"

    async def listens() -> bool:
        try:
            _, writer = await asyncio.open_unix_connection(socket)
        except OSError:
            return False
        writer.close()
        return True

    await world.processes.until(listens, f"{marble}: the app does not listen", STEP_SECONDS)


async def _edge_knows_web(world: World) -> None:
    cluster = world.topology.edge_config().cluster
    url = world.metrics_urls()["envoy-edge"]

    async def knows() -> bool:
        metrics = await get_metrics(world.http, url)
        return metrics.total("envoy_cluster_membership_healthy", envoy_cluster_name=cluster) > 0

    await world.processes.until(knows, f"edge has no endpoint of {cluster} from the Coordinator", STEP_SECONDS)
    world.say("Envoy at the edge has web's endpoints from the Coordinator, and no key to read what it carries")


async def _start_prometheus(world: World) -> None:
    if world.prometheus is None:
        world.say("Prometheus is not installed, so nothing is scraped (Debian: apt install prometheus)")
        return
    config = world.topology.paths.prometheus / "prometheus.yml"
    rules = str(files("manifests") / "prometheus" / "rules.yml")
    config.write_text(json.dumps(prometheus_config(world.topology.targets(), rules)))
    await world.processes.start(world.topology.prometheus(world.prometheus))
    url = world.url(world.topology.ports.prometheus, "")

    async def ready() -> bool:
        return await get_text(world.http, f"{url}/-/ready") is not None

    await world.processes.until(ready, "prometheus is not ready", STEP_SECONDS)
    world.say(f"Prometheus scrapes all of it: {url}")


async def envoy_version(envoy: Path) -> str:
    """The version of the Envoy binary: the second of the slash-separated parts that `envoy --version` prints."""
    asked = await asyncio.create_subprocess_exec(envoy, "--version", stdout=asyncio.subprocess.PIPE)
    said, _ = await asked.communicate()
    found = re.search(rb"version: [^/]*/([0-9][^/]*)/", said)
    return found[1].decode() if found else "of unknown version"
