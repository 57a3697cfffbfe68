# SPDX-License-Identifier: Apache-2.0
"""One worker's life, top to bottom, in the order in which things start.

    run directory -> TEE -> admin -> UUID -> quote -> Activate -> files
        -> local SDS socket, stream to the Coordinator, relay -> app -> (its exit status)

The app starts when its sockets exist, that is when the first complete configuration is in force. If that does not
happen in time it starts all the same, with a warning: an app that waits for its peers is better than one that is not
there, and nothing is open that should not be.

A Marble that the Coordinator turns out of the mesh (a manifest update, which no longer allows it) is cut off at once:
listeners, connections, local socket. Its app is told to end (SIGTERM, after its grace SIGKILL): it could reach
nobody any more, and still holds secrets that the manifest no longer gives it. The worker then exits with 1, as one that
was refused at its activation does, so that a supervisor sees a failure and not an end.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from google.protobuf.struct_pb2 import Struct
from structlog.typing import FilteringBoundLogger

from enclave_proxy.access_log import AccessLog, access_log, refuse_unwritable
from enclave_proxy.admin import Admin
from enclave_proxy.app_addresses import app_addresses, server_settings
from enclave_proxy.apply import AppParameters, app_command, app_environment, write_files
from enclave_proxy.backoff import Backoff
from enclave_proxy.bootstrap import Activation, Activator, Credentials
from enclave_proxy.capture_relay import CapturingRelay
from enclave_proxy.capture_start import capturing_relay, check_here
from enclave_proxy.child import Child
from enclave_proxy.config import ACCESS_LOG, CONCURRENCY, ERA_CONFIG, WorkerConfig
from enclave_proxy.errors import ConfigError, ProxyError, Revoked, StartError
from enclave_proxy.first_activation import first_activation
from enclave_proxy.fused import Fused
from enclave_proxy.health import Health
from enclave_proxy.identity_store import IdentityStore
from enclave_proxy.instance import RunDirectory, load_or_create_uuid
from enclave_proxy.local_sockets import local_servers
from enclave_proxy.offline import Keeper, OfflineFile
from enclave_proxy.relay import Relay
from enclave_proxy.relay_config import RelayConfig
from enclave_proxy.relay_fleet import Fleet
from enclave_proxy.relay_process import Settings
from enclave_proxy.restarts import Restarts
from enclave_proxy.route_parts import Local
from enclave_proxy.sealed_state import OfflineState
from enclave_proxy.session import Session
from enclave_proxy.shutdown import Shutdown
from enclave_proxy.signals import Signals
from enclave_proxy.supervisor import Starter, Supervisor
from enclave_proxy.surroundings import Surroundings, look_around
from enclave_proxy.xds_client import XdsClient
from sds.material import MaterialError
from sds.wire.discovery_pb2 import Node

# How long the app waits for its sockets.
CONFIGURATION_TIMEOUT = 30.0
# What the app's last bytes may take on their way out after it has exited.
FLUSH = 2.0


def utc_now() -> datetime:
    """The clock, as everything here takes it."""
    return datetime.now(UTC)


@dataclass(slots=True)
class Worker:
    """`env` is the process's environment, which the app inherits in part; `descriptors`: how many it may have."""

    config: WorkerConfig
    env: Mapping[str, str]
    log: FilteringBoundLogger
    signals: Signals = field(default_factory=Signals)
    fused: Fused | None = None
    descriptors: int | None = None

    async def run(self) -> int:
        """Live; gives the status to exit with. Raises ProxyError if the worker itself cannot go on."""
        run_dir = RunDirectory.claim(self.config.run_dir)
        try:
            with self.signals.installed():
                return await self._live()
        except asyncio.CancelledError:
            if self.signals.early is None:
                raise
            self.log.info("ended before the app was started", signal=self.signals.early.name)
            return 128 + self.signals.early
        except ExceptionGroup as group:
            # Task groups wrap; what an operator must read is the one error inside.
            if (expected := group.subgroup(ProxyError)) is None:
                raise
            raise _first(expected) from group
        finally:
            run_dir.release()

    async def _live(self) -> int:
        config = self.config
        surroundings = look_around(config, self.env, utc_now)
        if config.concurrency > 1 and surroundings.loopback_is_public:
            raise ConfigError(
                f"{CONCURRENCY.names}: {config.concurrency} processes under SGX would be as many enclaves, each with "
                "its own copy of the keys and a host between them: leave it at 1"
            )
        if config.access_log is not None and surroundings.loopback_is_public:
            raise ConfigError(
                f"{ACCESS_LOG.names}: under SGX the host would read who talks to whom; leave it off, metrics count"
            )
        refuse_unwritable(config.access_log)
        check_here(config.capture, sgx=surroundings.loopback_is_public)
        uuid = load_or_create_uuid(config.uuid_file)
        health = Health(config.marble_type, uuid, config.simulation, utc_now)
        self._say_what_is_not_checked(surroundings)
        async with self._admin(health, surroundings):
            activator = self._activator(uuid, surroundings)
            started = time.monotonic()
            offline = self._offline(uuid, surroundings)
            activation, kept = await first_activation(
                lambda: activator.persist(Backoff(random.random, initial=0.5, cap=10.0, floor=0.25)),
                offline,
                config.lifecycle.offline_after,
                utc_now,
                self.log,
            )
            if kept is None:
                self.log.info("activated", marble_type=config.marble_type, uuid=uuid, seconds=_since(started))
            command = app_command(config.command, activation.parameters)
            write_files(activation.parameters.files, Path.cwd(), config.capture.app_user)
            return await self._serve(activator, _Start(activation, command, offline, kept), health, surroundings)

    async def _serve(self, activator: Activator, start: _Start, health: Health, surroundings: Surroundings) -> int:
        config, activation = self.config, start.activation
        store = health.store = IdentityStore(activation.credentials)
        async with self._relay(health) as relay, self._sockets(health, surroundings), asyncio.TaskGroup() as services:
            local = Local(config.run_dir, surroundings.loopback_is_public, config.capture.on)
            session = health.session = Session(self._node(activator.uuid), store, relay, local, utc_now, self.log)
            client = XdsClient(
                config.xds,
                store,
                session,
                Backoff(random.random, initial=0.5, cap=30.0),
                lambda: _credentials(activator),
                self.log,
                pinned=surroundings.pin is not None,
            )
            await self._restore(session, start.kept, health)
            keeper = Keeper(start.offline, session, store, activation.parameters, utc_now, self.log)
            keeping = services.create_task(keeper.run())
            serving = _Serving(relay, services.create_task(self._follow(client, store, relay, health, keeper)))
            try:
                if not session.configured:
                    await self._configured(client, serving)
                if isinstance(relay, CapturingRelay) and not health.revoked:
                    await relay.prove()
                status = 0
                if not health.revoked:
                    status = await self._run_app(start.command, activation.parameters, serving, session, health)
            finally:
                serving.stream.cancel()
                keeping.cancel()
        if health.revoked:
            raise Revoked(health.revoked)
        return status

    async def _restore(self, session: Session, kept: OfflineState | None, health: Health) -> None:
        """Before anything is served or the Coordinator is asked: what it said last. All of it, or the worker ends."""
        if kept is None:
            return
        try:
            await session.restore(kept.resources)
        except MaterialError as error:
            raise StartError(f"the sealed configuration cannot be used: {error}") from error
        health.started_offline = kept.heard

    async def _follow(
        self, client: XdsClient, store: IdentityStore, relay: Relay | Fleet | None, health: Health, keeper: Keeper
    ) -> None:
        """Do what the Coordinator says, until it says that this Marble is none any more."""
        await client.run()
        health.revoked = client.revoked
        self.log.error("turned out of the mesh: cut off, and the app is told to end", reason=client.revoked)
        await store.withdraw()
        if relay is not None:
            await relay.close()
        await keeper.forget()

    async def _run_app(
        self, command: tuple[str, ...], parameters: AppParameters, serving: _Serving, session: Session, health: Health
    ) -> int:
        lifecycle = self.config.lifecycle
        app = Supervisor(
            command=command,
            env=self._app_environment(parameters, session.applied),
            restarts=Restarts(lifecycle.restart, random.random),
            patience=lifecycle.app_timeout,
            config=lambda: session.applied,
            state=health.app,
            log=self.log,
            start=self._starter(session),
        )
        self.signals.attach(app)
        shutdown = Shutdown(
            signals=self.signals,
            app=app,
            relay=serving.relay,
            stream=serving.stream,
            health=health,
            drain=lifecycle.drain,
            grace=lifecycle.app_grace,
            log=self.log,
        )
        async with asyncio.TaskGroup() as group:
            watching = [group.create_task(shutdown.when_told()), group.create_task(shutdown.when_revoked())]
            status = await app.run()
            for task in watching:
                task.cancel()
        return status

    def _app_environment(self, parameters: AppParameters, applied: RelayConfig | None) -> dict[str, str]:
        config = self.config
        env = app_environment(self.env, parameters, config.run_dir, config.sockets, simulation=config.simulation)
        # A fused app finds its sockets anyway; these would only have it listen twice.
        return (server_settings(applied) if self.fused is None else {}) | env | app_addresses(applied)

    def _starter(self, session: Session) -> Starter:
        if self.fused is None:
            return partial(Child.start, user=self.config.capture.app_user, descriptors=self.descriptors)
        closed = session.pushed.local.refuse_plain_tcp
        return partial(self.fused.start, config=lambda: session.applied, closed=closed)

    async def _configured(self, client: XdsClient, serving: _Serving) -> None:
        """Wait for the first complete configuration, or the end of the stream."""
        started = time.monotonic()
        # Before that nothing is captured, so that an app which is to be captured waits for it.
        patience = None if self.config.capture.on else CONFIGURATION_TIMEOUT
        try:
            async with asyncio.timeout(patience), asyncio.TaskGroup() as group:
                progress = group.create_task(client.progress.wait())
                await asyncio.wait((progress, serving.stream), return_when=asyncio.FIRST_COMPLETED)
                progress.cancel()
        except TimeoutError:
            self.log.warning("no complete configuration in time, the app starts without", seconds=CONFIGURATION_TIMEOUT)
        else:
            self.log.debug("first configuration complete", seconds=_since(started))

    @asynccontextmanager
    async def _admin(self, health: Health, surroundings: Surroundings) -> AsyncIterator[None]:
        if self.config.admin is None:
            yield
            return
        admin = await Admin.start(health, self.config.admin, numbers_only=surroundings.loopback_is_public)
        self.log.info("admin listening", address=str(admin.address))
        try:
            yield
        finally:
            await admin.stop()

    @asynccontextmanager
    async def _relay(self, health: Health) -> AsyncIterator[Relay | Fleet | None]:
        if not self.config.relay:
            yield None
            return
        async with access_log(self.config.access_log, self.log) as lines:
            relay = health.relay = await self._make_relay(lines)
            health.capture = relay if isinstance(relay, CapturingRelay) else None
            health.clusters, health.fleet = relay.clusters, relay if isinstance(relay, Fleet) else None
            try:
                yield relay
            finally:
                await relay.close(min(FLUSH, self.config.lifecycle.drain))
                if isinstance(relay, CapturingRelay):
                    await relay.release()

    async def _make_relay(self, lines: AccessLog | None) -> Relay | Fleet:
        config = self.config
        limits = replace(config.limits, drain=config.lifecycle.drain)
        if config.capture.on:
            return await capturing_relay(self.log, limits, config.capture, lines)
        if config.concurrency == 1:
            return Relay(self.log, limits, access_log=lines)
        to = config.access_log
        others = [
            Settings(limits, config.log_level, config.log_format, config.simulation, config.marble_type, number, to)
            for number in range(2, config.concurrency + 1)
        ]
        fleet = Fleet(self.log, limits, others, self.env, lines)
        fleet.start()
        return fleet

    @asynccontextmanager
    async def _sockets(self, health: Health, surroundings: Surroundings) -> AsyncIterator[None]:
        assert health.store is not None
        one_enclave = surroundings.loopback_is_public
        servers = local_servers(self.config.sockets, health.store, one_enclave=one_enclave, now=utc_now, log=self.log)
        health.sockets = [server.counters for server, _ in servers]
        async with AsyncExitStack() as stack:
            for server, place in servers:
                stack.push_async_callback(server.stop)
                await server.start(place)
            yield

    def _activator(self, uuid: str, surroundings: Surroundings) -> Activator:
        config = self.config
        return Activator(
            marble_type=config.marble_type,
            uuid=uuid,
            coordinator=config.coordinator,
            dns_names=config.dns_names,
            ip_addresses=config.ip_addresses,
            issuer=surroundings.issuer,
            pin=surroundings.pin,
            now=utc_now,
            log=self.log,
        )

    def _offline(self, uuid: str, surroundings: Surroundings) -> OfflineFile:
        config = self.config
        pin = "" if config.era_config is None else hashlib.sha256(config.era_config.read_bytes()).hexdigest()
        return OfflineFile(
            path=config.offline_state,
            marble_type=config.marble_type,
            uuid=uuid,
            pin=f"{pin} {config.manifest_fingerprint or ''}".strip(),
            keys=surroundings.sealing,
        )

    def _node(self, uuid: str) -> Node:
        """How we introduce ourselves. For logs only: who we are is what our certificate says."""
        metadata = Struct()
        # Without a relay there are no listeners to acknowledge, which is what makes an instance an endpoint: say so.
        metadata.update({"ADVERTISE": self.config.advertise, "RELAY": "on" if self.config.relay else "off"})
        return Node(id=uuid, cluster=self.config.marble_type, metadata=metadata, user_agent_name="marblemesh-worker")

    def _say_what_is_not_checked(self, surroundings: Surroundings) -> None:
        if surroundings.pin is None:
            self.log.warning(
                "the coordinator is not attested: it is taken at its word; pin it to change that",
                setting=ERA_CONFIG.names,
            )
        if self.config.simulation:
            self.log.warning(
                "simulation: quotes prove nothing about hardware, and the app's environment is not cleaned"
            )


@dataclass(frozen=True, slots=True)
class _Start:
    """What the worker starts with. `kept`: not from the Coordinator, but from what it said last."""

    activation: Activation
    command: tuple[str, ...]
    offline: OfflineFile
    kept: OfflineState | None


@dataclass(frozen=True, slots=True)
class _Serving:
    """What runs beside the app. `relay` None: an Envoy carries the data."""

    relay: Relay | Fleet | None
    stream: asyncio.Task[None]


async def _credentials(activator: Activator) -> Credentials:
    own, quote = await activator.prepare()
    return (await activator.once(own, quote)).credentials


def _first(group: BaseExceptionGroup[ProxyError]) -> ProxyError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ProxyError)
    return error


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)
