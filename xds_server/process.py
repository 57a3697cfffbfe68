# SPDX-License-Identifier: Apache-2.0
"""The Coordinator as a process: wired once, top to bottom, in start order.

    sockets ─► attestation ─► CA and own quote ─► xDS server ─► start-up manifest ─► serve ─► until told to stop

Sockets are bound first, so that a taken port is one clear line before anything is made. Nothing is accepted on them
until the Coordinator can answer.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sds.attestation.appraiser import Appraiser
from sds.attestation.collateral import CollateralSource, DirectoryCollateral
from sds.attestation.errors import AttestationError
from sds.attestation.issuer import Issuer
from sds.attestation.pccs import PccsCollateral
from sds.attestation.select import choose_issuer
from sds.attestation.simulated import SimulatedEnclave, SimulatedPlatform, default_platform_dir
from sds.attestation.verify import DcapVerifier
from sds.ca import CertificateAuthority
from sds.logs import get_logger
from xds_server import config as settings
from xds_server.ads import XdsServer
from xds_server.client_api import ClientApi
from xds_server.client_api_routes import routes
from xds_server.config import CoordinatorConfig, ListenAddress, named
from xds_server.coordinator import MAX_MANIFEST, Coordinator, Ports
from xds_server.errors import CoordinatorError
from xds_server.events import EventLog
from xds_server.marble_api import MarbleApi
from xds_server.mesh import Mesh
from xds_server.metrics import CoordinatorMetrics
from xds_server.metrics_listener import MetricsListener
from xds_server.own_quote import OwnQuote
from xds_server.tls_context import ServerCredential
from xds_server.tls_front import TlsFront, TlsFrontConfig
from xds_server.xds_metrics import XdsMetrics

GRACE = 5.0  # seconds for requests in flight when told to stop

_log = get_logger("xds_server")


class StartError(CoordinatorError):
    """The Coordinator cannot start; the text says what to change."""


@dataclass(frozen=True, slots=True)
class Attestation:
    """Who we are to others, and how we judge them."""

    issuer: Issuer
    appraiser: Appraiser


@dataclass(frozen=True, slots=True)
class Sockets:
    """Bound, not yet accepting."""

    client: socket.socket
    mesh: socket.socket
    prometheus: socket.socket | None


def now() -> datetime:
    return datetime.now(UTC)


async def run(config: CoordinatorConfig, env: Mapping[str, str], version: str) -> None:
    """Serve until SIGTERM or SIGINT; raises StartError."""
    with ExitStack() as stack:
        sockets = _bind_all(config, stack)
        attestation = choose_attestation(config, env)
        metrics = CoordinatorMetrics(version)
        events = EventLog()
        ca = CertificateAuthority.create(config.dns_names, config.ip_addresses, now())
        own_quote = OwnQuote(attestation.issuer, ca.root_der)
        stack.callback(own_quote.stop)
        mesh = Mesh(now)
        coordinator = Coordinator(
            ca,
            Ports(
                own_quote=own_quote,
                appraiser=attestation.appraiser,
                mesh=mesh,
                clock=now,
                jitter=random.SystemRandom().random,
                metrics=metrics,
                events=events,
            ),
            simulation=config.simulation,
        )
        _announce(config, version)
        try:
            await own_quote.start()
            _set_startup_manifest(coordinator, config.startup_manifest)
        except CoordinatorError as e:
            raise StartError(str(e)) from e
        await _serve(config, sockets, coordinator, (mesh, metrics, events))


def choose_attestation(config: CoordinatorConfig, env: Mapping[str, str]) -> Attestation:
    """The simulated platform if, and only if, it was asked for; else this machine's TEE. Raises StartError."""
    try:
        if config.simulation:
            return _simulated(config, env)
        issuer = choose_issuer(config.platform)
    except AttestationError as e:
        raise StartError(str(e)) from e
    return Attestation(issuer, Appraiser(DcapVerifier.intel(), _collateral(config), now))


def _simulated(config: CoordinatorConfig, env: Mapping[str, str]) -> Attestation:
    directory = config.simulated_platform or default_platform_dir(env)
    platform = SimulatedPlatform.open(directory, now(), now)
    default = SimulatedEnclave.default("coordinator")
    enclave = SimulatedEnclave(default.unique_id, default.signer_id, product_id=3, security_version=3)
    if config.simulated_enclave is not None:
        enclave = config.simulated_enclave
    return Attestation(platform.issuer(enclave), Appraiser(platform.verifier(), platform.collateral, now))


def _collateral(config: CoordinatorConfig) -> CollateralSource:
    if config.collateral_dir is not None:
        return DirectoryCollateral(config.collateral_dir)
    if config.pccs_url is not None:
        return PccsCollateral(config.pccs_url)
    raise StartError(
        "no source of attestation collateral, so no Marble could be verified: "
        f"give {named(settings.PCCS_URL)} or {named(settings.COLLATERAL_DIR)}"
    )


def _announce(config: CoordinatorConfig, version: str) -> None:
    _log.info("Starting coordinator", version=version, commit="", distributed=False)
    if config.simulation:
        _log.warning("SIMULATION MODE: attestation is simulated and proves nothing, use no real secrets")
    _log.warning(
        "state is in memory only: a restart forgets the manifest, the certificate authority and every Marble",
        ignored_seal_dir=str(config.seal_dir) if config.seal_dir else None,
    )


def _set_startup_manifest(coordinator: Coordinator, path: Path | None) -> None:
    if path is None:
        return
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_MANIFEST + 1)
    except OSError as e:
        raise StartError(f"{named(settings.STARTUP_MANIFEST)}: cannot read {path}: {e.strerror}") from e
    coordinator.set_manifest(raw)


async def _serve(
    config: CoordinatorConfig,
    sockets: Sockets,
    coordinator: Coordinator,
    parts: tuple[Mesh, CoordinatorMetrics, EventLog],
) -> None:
    mesh, metrics, events = parts
    ca = coordinator.ca
    root = ServerCredential((ca.root,), ca.root_key.load())
    marble_root = ServerCredential((ca.marble_root,), ca.intermediate_key.load())
    client_api = ClientApi(routes(coordinator), metrics)
    marble_api = MarbleApi(coordinator, metrics).service()
    client_front = TlsFront(
        TlsFrontConfig(alpn=(b"http/1.1",)),
        lambda: root,
        client_api.connect,
        _refused("client", config.http_error_log_level, metrics),
    )
    mesh_front = TlsFront(
        TlsFrontConfig(alpn=(b"h2",), alpn_required=True, require_client_certificate=True),
        lambda: marble_root,
        marble_api.connect,
        _refused("mesh", config.http_error_log_level, metrics),
    )
    metrics_listener = MetricsListener(metrics, events)
    xds = XdsServer(mesh, get_logger("xds_server.ads"), XdsMetrics(metrics.registry))
    try:
        xds_port = await xds.start(config.xds_addr.host or _everywhere(), config.xds_addr.port, ca)
    except OSError as e:
        raise _taken(settings.XDS_ADDR, config.xds_addr, e) from e
    try:
        await client_front.start(sockets.client)
        await mesh_front.start(sockets.mesh)
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
        client_front.stop_accepting()
        mesh_front.stop_accepting()
        marble_api.stop()
        await client_api.stop(GRACE)
        await asyncio.gather(client_front.stop(GRACE), mesh_front.stop(GRACE), metrics_listener.stop(), xds.stop())
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
        # gRPC binds its port itself and reports a taken one in the words of its C core: find out before.
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
