# SPDX-License-Identifier: Apache-2.0
"""What a stock Envoy lives through, over each of the four ways that it can be served (see `tests.kit.envoy_matrix`).

`python -m tests.soak.envoy` runs the rotation for a minute and an outage of half a minute.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from sds.discovery import View
from sds.resources import IDENTITY_NAME, LISTENER, SECRET, Resource, make_resource
from sds.tls import client_context
from sds.wire.envoy_pb2 import DownstreamTlsContext, Listener, Secret
from tests.kit.envoy import Envoy, until
from tests.kit.envoy_matrix import REFUSED, VARIANTS, Scene, Traffic
from tests.kit.xds_mesh import manifest
from xds_server.rotation import Phase

pytestmark = pytest.mark.e2e

ROTATIONS = 30
EVERY_SECONDS = 0.1


@pytest.fixture(params=VARIANTS)
async def scene(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(VARIANTS[request.param], tmp_path, ports=2)
    async with scene.app():
        yield scene


async def test_cold_start_before_the_coordinator(scene: Scene) -> None:
    """Envoy waits for a Coordinator that is not there yet, and serves as soon as it is."""
    async with scene.envoy() as envoy:
        with pytest.raises(REFUSED):
            await scene.exchange()
        async with scene.served():
            assert await scene.reachable(wanted=scene.web.identity.leaf)
            assert await scene.settled()
            assert envoy.rejected() == {}


async def rotate(scene: Scene, envoy: Envoy, rotations: int) -> Traffic:
    """A new identity every 100 ms under traffic; what the traffic saw."""
    assert await scene.reachable()
    wanted = scene.web.identity.leaf
    async with Traffic(scene).flowing() as traffic:
        for _ in range(rotations):
            wanted = scene.next_identity().leaf
            await asyncio.sleep(EVERY_SECONDS)
        assert await scene.reachable(wanted=wanted)
    assert await scene.settled()
    assert envoy.rejected() == {}
    return traffic


async def test_an_identity_every_100_ms_drops_no_connection_and_fails_no_handshake(scene: Scene) -> None:
    async with scene.served(), scene.envoy() as envoy:
        traffic = await rotate(scene, envoy, ROTATIONS)
        assert traffic.faults == []
        assert traffic.requests > ROTATIONS
        assert len(traffic.seen) > ROTATIONS / 2  # a handshake falls into most generations, not into every one


async def test_listeners_come_change_and_go_and_leave_the_others_alone(scene: Scene) -> None:
    first, second = scene.ports
    async with scene.served(), scene.envoy() as envoy:
        assert await scene.reachable(first)
        async with Traffic(scene).flowing(4) as traffic:
            scene.serve_ports((first, second))
            assert await scene.reachable(second)
            scene.serve_ports((first,))
            assert await until(lambda: envoy.active_listeners() == {f"inbound|{first}"})
            with pytest.raises(REFUSED):
                await scene.exchange(second)
        assert traffic.faults == []
        assert envoy.rejected() == {}


async def test_a_changed_listener_is_never_without_its_certificate(scene: Scene) -> None:
    """Envoy subscribes anew, and in ADS without saying so, when a listener's source of secrets changes in any byte."""
    async with scene.served(), scene.envoy() as envoy:
        assert await scene.reachable()
        for seconds in (1, 2):
            _change_source(scene, seconds)
            assert await until(lambda s=seconds: f'"{s}s"' in envoy.get("/config_dump?resource=dynamic_listeners"))  # type: ignore[misc]
            # Longer than the listener waits for its secrets before it would go active without them.
            async with Traffic(scene).flowing(1) as traffic:
                await asyncio.sleep(seconds + 0.5)
                assert await scene.reachable(wanted=scene.next_identity().leaf)
            assert traffic.handshakes
            assert traffic.faults == []
        assert not envoy.stats("init_fetch_timeout")
        assert not envoy.stats("secrets_not_ready")


def _change_source(scene: Scene, seconds: int) -> None:
    """The same listener, except for how long it waits for its secrets."""
    if not scene.variant.aggregated:
        scene.timeout = f"{seconds}s"
        scene.write_listeners(scene.ports[:1])
        return

    def tamper(view: View) -> View:
        listeners = {}
        for name, resource in view.get(LISTENER, {}).items():
            listener = Listener.FromString(resource.body)
            for chain in listener.filter_chains:
                tls = DownstreamTlsContext.FromString(chain.transport_socket.typed_config.value)
                common = tls.common_tls_context
                combined = common.combined_validation_context.validation_context_sds_secret_config
                for config in (*common.tls_certificate_sds_secret_configs, combined):
                    config.sds_config.initial_fetch_timeout.CopyFrom(Duration(seconds=seconds))
                chain.transport_socket.typed_config.value = tls.SerializeToString()
            listeners[name] = make_resource(LISTENER, name, listener)
        return {**view, LISTENER: listeners}

    _tamper(scene, tamper)


def _tamper(scene: Scene, tamper: object) -> None:
    scene.mesh.tamper = tamper  # type: ignore[assignment]
    scene.mesh.replace_identities({("web", scene.web.uuid): scene.web.identity})  # whatever it is: a change


async def outage(scene: Scene, seconds: float) -> None:
    """The Coordinator goes, traffic goes on; it comes back, and the next identity arrives."""
    async with AsyncExitStack() as first, scene.envoy() as envoy:
        await first.enter_async_context(scene.served())
        assert await scene.reachable()
        async with Traffic(scene).flowing(4) as traffic:
            await first.aclose()
            await asyncio.sleep(seconds)
            wanted = scene.next_identity().leaf
            async with scene.served():
                assert await scene.reachable(wanted=wanted)
                assert await scene.settled()
        assert traffic.faults == []
        assert envoy.rejected() == {}


async def test_a_coordinator_that_comes_back_finds_envoy_serving(scene: Scene) -> None:
    await outage(scene, 1.0)


async def test_envoy_restarts_and_has_the_newest_at_once(scene: Scene) -> None:
    async with scene.served():
        async with scene.envoy():
            assert await scene.reachable()
        with pytest.raises(REFUSED):
            await scene.exchange()
        wanted = scene.next_identity().leaf
        async with scene.envoy() as envoy:
            assert await scene.reachable(wanted=wanted)
            assert await scene.settled()
            assert envoy.rejected() == {}


async def test_what_envoy_rejects_is_known_not_repeated_and_healed_by_the_next_push(scene: Scene) -> None:
    """A certificate that does not fit its key: Envoy keeps the one before."""
    async with scene.served() as server, scene.envoy() as envoy:
        assert await scene.reachable()
        bad = _mismatched(scene)
        _tamper(scene, lambda view: {**view, SECRET: {**view.get(SECRET, {}), IDENTITY_NAME: bad}})
        assert await until(lambda: any(k.nacked for s in server.status() for k in s.types.values()))
        (kind,) = (k for s in server.status() for k in s.types.values() if k.nacked)
        assert kind.nacked == {IDENTITY_NAME: bad.version}
        assert kind.error
        assert "PRIVATE KEY" not in kind.error
        assert await scene.exchange() == scene.web.identity.leaf
        await asyncio.sleep(0.5)
        assert envoy.rejected()[f"sds.{IDENTITY_NAME}.update_rejected"] == 1
        scene.mesh.tamper = lambda view: view
        assert await scene.reachable(wanted=scene.next_identity().leaf)
        assert await scene.settled()


def _mismatched(scene: Scene) -> Resource:
    """Made by hand: our own types refuse to hold such a pair."""
    secret = Secret(name=IDENTITY_NAME)
    secret.tls_certificate.certificate_chain.inline_bytes = scene.web.identity.chain
    secret.tls_certificate.private_key.inline_bytes = scene.voting.identity.key.pem
    return make_resource(SECRET, IDENTITY_NAME, secret)


async def test_a_secret_that_is_not_there_yet_heals_the_listener_when_it_comes(scene: Scene) -> None:
    def without(view: View) -> View:
        secrets = {name: r for name, r in view.get(SECRET, {}).items() if name != IDENTITY_NAME}
        return {**view, SECRET: secrets}

    scene.mesh.tamper = without
    async with scene.served() as server, scene.envoy() as envoy:
        assert await until(
            lambda: any(IDENTITY_NAME in k.missing for s in server.status() for k in s.types.values())
        ), server.status()
        with pytest.raises(REFUSED):
            await scene.exchange()
        scene.mesh.tamper = lambda view: view
        assert await scene.reachable(wanted=scene.next_identity().leaf)
        assert envoy.rejected() == {}


async def test_a_marble_that_an_update_turns_out_may_connect_no_more(scene: Scene) -> None:
    """`voting` is gone from the new manifest: its certificate is worth nothing to Envoy within five seconds, and all
    others go on."""
    other = scene.town.activate("web")
    scene.town.renew_when_asked()
    async with scene.served(), scene.envoy() as envoy:
        assert await scene.reachable()
        turned_out = scene.client
        ports: dict[str, object] = {"web": {"Incoming": [{"Port": str(scene.ports[0])}]}}
        scene.town.update(manifest(tls=ports, marbles={"web": ["web"]}))
        async with asyncio.timeout(5):
            while await _accepted(scene, turned_out):
                await asyncio.sleep(0.05)
        assert await until(lambda: scene.mesh.rotation.phase is Phase.SETTLED)
        allowed = next(m for m in scene.mesh.marbles if m.uuid == other.uuid)
        await scene.exchange(tls=client_context(allowed.identity, scene.town.ca.bundle))
        assert envoy.rejected() == {}


async def _accepted(scene: Scene, tls: object) -> bool:
    try:
        await scene.exchange(tls=tls)  # type: ignore[arg-type]
    except REFUSED:
        return False
    return True
