# SPDX-License-Identifier: Apache-2.0
"""The Coordinator as a process: wired once, top to bottom, in start order.

    sockets ─► attestation ─► state ─► own quote ─► start-up manifest ─► xDS server ─► serve ─► until told to stop

Sockets are bound first, so that a taken port is one clear line before anything is made. Nothing is accepted on them
until the Coordinator can answer.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial

from sds.logs import get_logger
from xds_server import config as settings
from xds_server.ads import XdsServer
from xds_server.attestation_choice import StartError, choose_attestation, now
from xds_server.config import CoordinatorConfig, ListenAddress, named
from xds_server.coordinator import Coordinator
from xds_server.core import Ports
from xds_server.errors import CoordinatorError
from xds_server.events import EventLog
from xds_server.file_ops import FileOps
from xds_server.mesh import Mesh
from xds_server.metrics import CoordinatorMetrics
from xds_server.metrics_listener import MetricsListener
from xds_server.own_quote import OwnQuote
from xds_server.public_ports import PublicPorts
from xds_server.rpc_server import RpcPort
from xds_server.startup import make_coordinator, open_state
from xds_server.store import Store
from xds_server.xds_metrics import XdsMetrics

GRACE = 5.0  # seconds for requests in flight when told to stop

_log = get_logger("xds_server")


@dataclass(frozen=True, slots=True)
class Sockets:
    """Bound, not yet accepting."""

    client: socket.socket
    mesh: socket.socket
    prometheus: socket.socket | None


async def run(config: CoordinatorConfig, env: Mapping[str, str], version: str, files: FileOps) -> None:
    """Serve until SIGTERM or SIGINT, with the state written by `files`; raises StartError."""
    _allow_connections()
    with ExitStack() as stack:
        sockets = _bind_all(config, stack)
        attestation = choose_attestation(config, env)
        _announce(config, version)
        opened = open_state(config, attestation, files, stack)
        own_quote = None
        if attestation.issuer is not None:
            own_quote = OwnQuote(attestation.issuer, opened.records.ca.root_der)
            stack.callback(own_quote.stop)
        metrics, events, mesh = CoordinatorMetrics(version), EventLog(), Mesh(now)

        def ports(store: Store) -> Ports:
            return Ports(
                own_quote=own_quote,
                appraiser=attestation.appraiser,
                store=store,
                mesh=mesh,
                clock=now,
                jitter=random.SystemRandom().random,
                metrics=metrics,
                events=events,
            )

        try:
            coordinator = await make_coordinator(config, opened, own_quote, ports)
        except CoordinatorError as e:
            raise StartError(str(e)) from e
        await _serve(config, sockets, coordinator, (mesh, metrics, events))


def _allow_connections() -> None:
    """A descriptor for every worker: the soft limit is 1024 on most machines, for programs that call select()."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # the kernel's own limit may be lower than what is said to be allowed
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _announce(config: CoordinatorConfig, version: str) -> None:
    _log.info("Starting coordinator", version=version, commit="", distributed=False)
    if config.simulation:
        _log.warning("SIMULATION MODE: attestation is simulated and proves nothing, use no real secrets")
    if config.insecure:
        _log.warning(
            "INSECURE: NO ATTESTATION AT ALL. Any program that reaches the Marble API is a Marble, this Coordinator "
            "proves nothing about itself, and its state is on disk with the key beside it. Use no real secrets"
        )


async def _serve(
    config: CoordinatorConfig,
    sockets: Sockets,
    coordinator: Coordinator,
    parts: tuple[Mesh, CoordinatorMetrics, EventLog],
) -> None:
    mesh, metrics, events = parts
    refused = _refused("xds", config.http_error_log_level, metrics)
    transport = partial(RpcPort, refused=refused)
    xds = XdsServer(mesh, transport, get_logger("xds_server.ads"), XdsMetrics(metrics.registry))
    public = PublicPorts(coordinator, metrics, lambda port: _refused(port, config.http_error_log_level, metrics), xds)
    metrics_listener = MetricsListener(metrics, events)
    try:
        xds_port = await xds.start(config.xds_addr.host or _everywhere(), config.xds_addr.port, coordinator.ca)
    except OSError as e:
        raise _taken(settings.XDS_ADDR, config.xds_addr, e) from e
    try:
        await public.start(sockets.client, sockets.mesh)
        if sockets.prometheus is not None:
            await metrics_listener.start(sockets.prometheus)
        _log.info(
            "coordinator ready",
            client_addr=_address(sockets.client),
            mesh_addr=_address(sockets.mesh),
            xds_addr=str(ListenAddress(config.xds_addr.host or _everywhere(), xds_port)),
            prometheus_addr=_address(sockets.prometheus) if sockets.prometheus else None,
        )
        await _until_stopped(coordinator)
    finally:
        await asyncio.gather(public.stop(GRACE), metrics_listener.stop(), xds.stop())
        await coordinator.close()
        _log.info("coordinator stopped")


async def _until_stopped(coordinator: Coordinator) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, coordinator.renewer.rotate_all)
    async with asyncio.TaskGroup() as services:
        renewal = services.create_task(coordinator.renewer.run())
        await stop.wait()
        _log.info("coordinator stops")
        renewal.cancel()


def _refused(port: str, level: str, metrics: CoordinatorMetrics) -> Callable[[str, str], None]:
    counter = metrics.tls_refused.labels(port)
    write = {"debug": _log.debug, "info": _log.info, "warn": _log.warning}.get(level, _log.error)

    def refused(peer: str, reason: str) -> None:
        counter.inc()
        write("TLS handshake failed", port=port, peer=peer, error=reason)

    return refused


# --- sockets


def _bind_all(config: CoordinatorConfig, stack: ExitStack) -> Sockets:
    def bind(variable: str, address: ListenAddress) -> socket.socket:
        try:
            return stack.enter_context(listen(address))
        except OSError as e:
            raise _taken(variable, address, e) from e

    if config.xds_addr.port:
        # Opened when there is somebody to answer; whether it is free is found out now.
        bind(settings.XDS_ADDR, config.xds_addr).close()
    return Sockets(
        bind(settings.CLIENT_ADDR, config.client_addr),
        bind(settings.MESH_ADDR, config.mesh_addr),
        bind(settings.PROMETHEUS_ADDR, config.prometheus_addr) if config.prometheus_addr else None,
    )


def listen(address: ListenAddress) -> socket.socket:
    """A bound and listening TCP socket; an empty host means IPv6 and IPv4 where the machine has both."""
    if not address.host and socket.has_dualstack_ipv6():
        return socket.create_server(("::", address.port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
    if not address.host:
        return socket.create_server(("0.0.0.0", address.port), backlog=512)
    family, _, _, _, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(where[:2], family=family, backlog=512)


def _everywhere() -> str:
    return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"


def _taken(variable: str, address: ListenAddress, error: OSError) -> StartError:
    why = os.strerror(error.errno) if error.errno else str(error)  # asyncio and socket add the address again
    return StartError(f"cannot listen on {address}: {why}; choose another address with {named(variable)}")


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return str(ListenAddress(host, port))
