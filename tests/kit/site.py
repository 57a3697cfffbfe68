# SPDX-License-Identifier: Apache-2.0
"""A whole Coordinator in this process: started as the program starts, on its two real ports, its state on disk.

Ended and started again it is what a restarted process is: everything is made anew but for the directory. What only a
process of its own can show (`kill -9`, exit codes, the log) is for `coordinator_process`.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from sds.attestation.simulated import SimulatedEnclave, SimulatedPlatform
from tests.kit.client_api import curl
from tests.kit.outside import Outside
from xds_server.attestation_choice import Attestation, choose_attestation, now
from xds_server.config import CoordinatorConfig, ListenAddress
from xds_server.core import Ports
from xds_server.events import EventLog
from xds_server.file_ops import SystemFiles
from xds_server.mesh import Mesh
from xds_server.metrics import CoordinatorMetrics
from xds_server.metrics_listener import MetricsListener
from xds_server.own_quote import OwnQuote
from xds_server.process import listen
from xds_server.public_ports import PublicPorts
from xds_server.startup import make_coordinator, open_state
from xds_server.store import Store

_ANY_PORT = ListenAddress("127.0.0.1", 0)
_ANY_PORTS = {f"EDG_COORDINATOR_{name}_ADDR": str(_ANY_PORT) for name in ("CLIENT", "MESH", "XDS")}

# Settings for a Coordinator that attests nothing, so that its data key lies on disk as it is.
INSECURE = {
    "EDG_COORDINATOR_INSECURE_NO_ATTESTATION": "1",
    "EDG_COORDINATOR_SIMULATION": "",
    "EDG_SIMULATED_PLATFORM_DIR": "",
}


@dataclass
class Site:
    """`home` holds everything: the state directory, machines, curl's files. `settings` are `EDG_*` variables."""

    home: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    attested: Callable[[Attestation], Attestation] = lambda attestation: attestation
    outside: Outside = field(init=False)
    _running: AsyncExitStack | None = None
    _metrics_port: int = 0

    @property
    def state(self) -> Path:
        return self.home / "state"

    def file(self, name: str = "sealed_data") -> bytes:
        """A file of the state directory."""
        return (self.state / name).read_bytes()

    async def metric(self, sample: str) -> float:
        """The value of a line of `/metrics`, by its name and labels; 0 if there is none."""
        text = (await curl(f"http://127.0.0.1:{self._metrics_port}/metrics")).body.decode()
        values = (line.rpartition(" ") for line in text.splitlines())
        return next((float(value) for name, _, value in values if name == sample), 0.0)

    async def restart(self, machine: str = "machine", **settings: str) -> Outside:
        """End it and start it again, maybe on another machine or with other settings."""
        await self.stop()
        return await self.start(machine, **settings)

    async def start(self, machine: str = "machine", **settings: str) -> Outside:
        platform = self.home / machine
        _buy(platform)
        env = {
            **_ANY_PORTS,
            "EDG_COORDINATOR_SEAL_DIR": str(self.state),
            "EDG_COORDINATOR_SIMULATION": "1",
            "EDG_SIMULATED_PLATFORM_DIR": str(platform),
            **self.settings,
            **settings,
        }
        config = CoordinatorConfig.from_env(env)
        async with AsyncExitStack() as stack:
            attestation = self.attested(choose_attestation(config, env))
            client_port, mesh_port, self._metrics_port = await _serve(config, attestation, stack)
            self._running = stack.pop_all()
        curls = self.home / "curl"
        curls.mkdir(exist_ok=True)
        self.outside = Outside(client_port, mesh_port, curls, SimulatedPlatform.open(platform, datetime.now(UTC)))
        return self.outside

    async def stop(self) -> None:
        if self._running is not None:
            await self._running.aclose()
            self._running = None


@asynccontextmanager
async def site(home: Path, manifest: bytes | None = None, **settings: str) -> AsyncIterator[Site]:
    """A running Coordinator until the block ends, with a manifest if one is given."""
    running = Site(home, settings)
    await running.start()
    try:
        if manifest is not None:
            assert (await running.outside.set_manifest(manifest)).status == 200
        yield running
    finally:
        await running.stop()


_MACHINE: list[TemporaryDirectory[str]] = []


def _buy(platform: Path) -> None:
    """A simulated machine takes a while to make: each test gets a copy of the same one, unless it wants several."""
    if platform.exists() or platform.name != "machine":
        return
    if not _MACHINE:
        _MACHINE.append(TemporaryDirectory(prefix="machine-"))
        SimulatedPlatform.open(Path(_MACHINE[0].name), datetime.now(UTC)).sealing_keys(SimulatedEnclave.default("any"))
    shutil.copytree(_MACHINE[0].name, platform)


async def _serve(config: CoordinatorConfig, attestation: Attestation, stack: AsyncExitStack) -> tuple[int, int, int]:
    """The ports of the client API, the Marble API and the metrics; everything ends with the stack."""
    metrics, events, own_quote = CoordinatorMetrics("1.2.3"), EventLog(), None
    opened = open_state(config, attestation, SystemFiles(), stack.enter_context(ExitStack()))
    if attestation.issuer is not None:
        own_quote = OwnQuote(attestation.issuer, opened.records.ca.root_der)
        stack.callback(own_quote.stop)

    def ports(store: Store) -> Ports:
        return Ports(
            own_quote=own_quote,
            appraiser=attestation.appraiser,
            store=store,
            mesh=Mesh(now),
            clock=now,
            jitter=random.random,
            metrics=metrics,
            events=events,
        )

    coordinator = await make_coordinator(config, opened, own_quote, ports)
    stack.push_async_callback(coordinator.close)
    client, mesh, prometheus = (listen(address) for address in (config.client_addr, config.mesh_addr, _ANY_PORT))
    public, listener = PublicPorts(coordinator, metrics, lambda _port: _ignore), MetricsListener(metrics, events)
    await public.start(client, mesh)
    stack.push_async_callback(public.stop, 0)
    await listener.start(prometheus)
    stack.push_async_callback(listener.stop)
    return client.getsockname()[1], mesh.getsockname()[1], prometheus.getsockname()[1]


def _ignore(_peer: str, _reason: str) -> None:
    """Connections that never got to a protocol are other tests' business."""
