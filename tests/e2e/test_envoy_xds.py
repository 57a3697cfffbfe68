# SPDX-License-Identifier: Apache-2.0
"""A real Envoy takes what we serve: aggregated discovery over mutual TLS in both variants, SDS over a UNIX socket."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sds.discovery import View
from sds.keys import PrivateKey
from sds.latest import Latest
from sds.material import Identity
from sds.resources import BUNDLE_NAME, IDENTITY_NAME, SECRET, bundle_secret, identity_secret
from sds.tls import client_context
from tests.kit.envoy import ads_bootstrap, running_envoy, until
from tests.kit.envoy_town import echo_app, plain_exchange, sds_bootstrap, serving, write_identity, write_pem
from tests.kit.local_socket import sds, serving_on
from tests.kit.mesh import free_port
from tests.kit.xds_mesh import Town, gateway_certificate, manifest
from xds_server.ads import XdsServer
from xds_server.mesh import ActiveMarble

pytestmark = pytest.mark.e2e

ROTATIONS = 25


async def exchange(port: int, tls: ssl.SSLContext) -> x509.Certificate:
    """One new connection, one round trip through the app; the server's certificate."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    try:
        writer.write(b"ping")
        assert await asyncio.wait_for(reader.readexactly(4), 5) == b"ping"
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(der)
    finally:
        writer.close()
        await asyncio.wait_for(writer.wait_closed(), 5)


def village(inbound: int, outbound: int) -> Town:
    """`web` serves one port and calls `voting` and a host outside; its app calls on loopback TCP."""
    return Town(
        manifest(
            tls={
                "web": {
                    "Incoming": [{"Port": str(inbound), "Peers": ["voting"]}],
                    "Outgoing": [
                        {"Addr": "voting", "Port": "8081", "Listen": f"tcp:127.0.0.1:{outbound}"},
                        {"Addr": "localhost", "Port": "9"},
                    ],
                },
                "voting": {"Incoming": [{"Port": "8081"}]},
            },
            marbles={"web": ["web"], "voting": ["voting"]},
        )
    )


def next_identity(town: Town, marble: ActiveMarble) -> Identity:
    identity = town.identity(marble.marble_type, marble.uuid)
    town.mesh.replace_identities({(marble.marble_type, marble.uuid): identity})
    return identity


@pytest.mark.parametrize("incremental", [False, True], ids=["sotw", "delta"])
async def test_envoy_as_a_marble_takes_everything_and_rotates_without_a_failed_handshake(
    incremental: bool, tmp_path: Path
) -> None:
    inbound = free_port()
    town = village(inbound, free_port())
    web, voting = town.activate("web"), town.activate("voting")
    tls = client_context(voting.identity, town.ca.bundle)
    async with serving(town) as (server, port), echo_app(tmp_path / f"{inbound}.sock"):
        bootstrap = ads_bootstrap(
            xds_port=port,
            incremental=incremental,
            node_id="an-envoy",
            advertise="127.0.0.1",
            **write_identity(web.identity, town, tmp_path),
        )
        async with running_envoy(bootstrap, tmp_path) as envoy:
            listeners = {f"inbound|{inbound}", "outbound|voting|8081", "outbound|localhost|9"}
            assert await until(lambda: envoy.active_listeners() == listeners), envoy.log.read_text()[-3000:]
            assert await until(lambda: envoy.active_secrets() == {IDENTITY_NAME, BUNDLE_NAME})
            assert envoy.active_clusters() == {f"app|{inbound}", "outbound|voting|8081", "outbound|localhost|9"}
            await rotate_under_traffic(town, web, inbound, tls)
            assert envoy.rejected() == {}
            assert envoy.config("SecretsConfigDump").get("dynamic_warming_secrets") is None
            (status,) = server.status()
            assert (status.client, status.variant) == (f"web/{web.uuid}", "delta" if incremental else "sotw")
            assert await until(lambda: settled(server)), server.status()  # the last rotation's answer is on its way


def settled(server: XdsServer) -> bool:
    """Everything that was sent was accepted."""
    types = [kind for status in server.status() for kind in status.types.values()]
    return all(not kind.nacked and not kind.awaiting_ack and kind.sent == kind.acked for kind in types)


async def rotate_under_traffic(town: Town, marble: ActiveMarble, port: int, tls: ssl.SSLContext) -> None:
    """A connection that stays, and new ones all the time; each new identity is seen, none fails."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    for _ in range(ROTATIONS):
        wanted = next_identity(town, marble).leaf
        async with asyncio.timeout(5):
            while await exchange(port, tls) != wanted:
                pass
        writer.write(b"stay")
        assert await asyncio.wait_for(reader.readexactly(4), 5) == b"stay"
    writer.close()
    await asyncio.wait_for(writer.wait_closed(), 5)


@pytest.mark.parametrize("incremental", [False, True], ids=["sotw", "delta"])
async def test_a_changed_manifest_reaches_envoy_without_a_rejected_update(incremental: bool, tmp_path: Path) -> None:
    """Listeners and clusters come and go, a listener keeps its certificate although its peers change."""
    inbound, second = free_port(), free_port()
    town = village(inbound, free_port())
    web, voting = town.activate("web"), town.activate("voting")
    tls = client_context(voting.identity, town.ca.bundle)
    apps = echo_app(tmp_path / f"{inbound}.sock"), echo_app(tmp_path / f"{second}.sock")
    async with serving(town) as (_, port), apps[0], apps[1]:
        files = write_identity(web.identity, town, tmp_path)
        bootstrap = ads_bootstrap(xds_port=port, incremental=incremental, node_id="e", advertise="127.0.0.1", **files)
        async with running_envoy(bootstrap, tmp_path) as envoy:
            assert await until(lambda: f"inbound|{inbound}" in envoy.active_listeners())
            await exchange(inbound, tls)
            town.mesh.configure(
                manifest(
                    tls={"web": {"Incoming": [{"Port": str(inbound)}, {"Port": str(second)}]}, "v": {}},
                    marbles={"web": ["web"], "voting": ["v"]},
                ),
                town.ca,
            )
            assert await until(lambda: envoy.active_clusters() == {f"app|{inbound}", f"app|{second}"})
            assert envoy.active_listeners() == {f"inbound|{inbound}", f"inbound|{second}"}
            await exchange(inbound, tls)
            await exchange(second, tls)
            assert envoy.rejected() == {}


@pytest.mark.parametrize("incremental", [False, True], ids=["sotw", "delta"])
async def test_two_envoys_meet_through_endpoints_and_a_gateway_carries_only_ciphertext(
    incremental: bool, tmp_path: Path
) -> None:
    """app → Envoy of `web` → mTLS → Envoy of `voting` → app; and a TLS client through a gateway that has no TLS."""
    inbound, outbound, edge_port = free_port(), free_port(), free_port()
    edge, edge_key = gateway_certificate(x509.UniformResourceIdentifier("spiffe://edge.example/gateway"))
    listen = f"tcp:127.0.0.1:{outbound}"
    town = Town(
        manifest(
            tls={
                "web": {"Outgoing": [{"Addr": "voting", "Port": str(inbound), "Listen": listen}]},
                "voting": {"Incoming": [{"Port": str(inbound), "Peers": ["web"]}]},
            },
            marbles={"web": ["web"], "voting": ["voting"], "other": []},
            gateways={"edge": edge},
        )
    )
    marbles = {name: town.activate(name) for name in ("web", "voting", "other")}
    folders = {name: tmp_path / name for name in (*marbles, "edge")}
    for folder in folders.values():
        folder.mkdir()

    def bootstrap(name: str, port: int) -> dict[str, Any]:
        files = write_identity(marbles[name].identity, town, folders[name])
        return ads_bootstrap(xds_port=port, incremental=incremental, node_id=name, advertise="127.0.0.1", **files)

    async with AsyncExitStack() as stack:
        _, port = await stack.enter_async_context(serving(town))
        await stack.enter_async_context(echo_app(folders["voting"] / f"{inbound}.sock"))
        files = write_pem(edge.public_bytes(Encoding.PEM), edge_key, town, folders["edge"])
        at_edge = ads_bootstrap(xds_port=port, incremental=incremental, node_id="edge", advertise=None, **files)
        del at_edge["dynamic_resources"]["lds_config"]
        at_edge["static_resources"]["listeners"] = [tcp_listener(edge_port, f"outbound|voting|{inbound}")]
        gateway = await stack.enter_async_context(running_envoy(at_edge, folders["edge"]))
        voting = await stack.enter_async_context(running_envoy(bootstrap("voting", port), folders["voting"]))
        web = await stack.enter_async_context(running_envoy(bootstrap("web", port), folders["web"]))
        assert await until(lambda: voting.active_listeners() and web.active_listeners())
        where = f"127.0.0.1:{inbound}"
        assert await until(lambda: where in web.get("/clusters") and where in gateway.get("/clusters"))
        await plain_exchange(outbound)
        seen = await exchange(edge_port, client_context(marbles["web"].identity, town.ca.bundle))
        assert seen == marbles["voting"].identity.leaf
        with pytest.raises((ssl.SSLError, asyncio.IncompleteReadError, ConnectionError)):
            await exchange(edge_port, client_context(marbles["other"].identity, town.ca.bundle))
        for envoy in (gateway, voting, web):
            assert envoy.rejected() == {}
        assert gateway.active_secrets() == set()
        assert gateway.active_clusters() == {f"outbound|voting|{inbound}"}


def tcp_listener(port: int, cluster: str) -> dict[str, Any]:
    proxy = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "edge",
        "cluster": cluster,
    }
    return {
        "name": "edge",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "tcp", "typed_config": proxy}]}],
    }


async def test_a_gateway_among_peers_is_let_in_by_its_own_certificate_and_nobody_else(tmp_path: Path) -> None:
    """Envoy takes the bundle with a pinned certificate that is no CA, and matches the gateway's exact name."""
    port = free_port()
    edge, edge_key = gateway_certificate(x509.UniformResourceIdentifier("spiffe://edge.example/gateway"))
    tls: dict[str, object] = {"web": {"Incoming": [{"Port": str(port), "Peers": ["edge"]}]}}
    town = Town(manifest(tls, {"web": ["web"], "other": []}, {"edge": edge}))
    web, other = town.activate("web"), town.activate("other")
    gateway = client_context(Identity(edge.public_bytes(Encoding.PEM), PrivateKey(edge_key)), town.ca.bundle)
    async with serving(town) as (_, xds), echo_app(tmp_path / f"{port}.sock"):
        files = write_identity(web.identity, town, tmp_path)
        bootstrap = ads_bootstrap(xds_port=xds, incremental=True, node_id="", advertise="127.0.0.1", **files)
        async with running_envoy({**bootstrap, "node": {"id": "w", "cluster": "c"}}, tmp_path) as envoy:
            assert await until(lambda: envoy.active_secrets() == {IDENTITY_NAME, f"{BUNDLE_NAME}|{port}"})
            assert await exchange(port, gateway) == web.identity.leaf
            with pytest.raises((ssl.SSLError, asyncio.IncompleteReadError, ConnectionError)):
                await exchange(port, client_context(other.identity, town.ca.bundle))
            assert envoy.rejected() == {}


def secrets_view(identity: Identity, town: Town) -> View:
    resources = (identity_secret(IDENTITY_NAME, identity), bundle_secret(BUNDLE_NAME, town.ca.bundle))
    return {SECRET: {resource.name: resource for resource in resources}}


@pytest.mark.parametrize("incremental", [False, True], ids=["sotw", "delta"])
async def test_envoy_takes_and_follows_secrets_from_the_workers_socket(incremental: bool, tmp_path: Path) -> None:
    port = free_port()
    town = village(free_port(), free_port())
    web, voting = town.activate("web"), town.activate("voting")
    tls = client_context(voting.identity, town.ca.bundle)
    views: Latest[View] = Latest(secrets_view(web.identity, town))
    async with serving_on(tmp_path / "sds.sock", sds(views)):
        bootstrap = sds_bootstrap(port, incremental=incremental)
        async with echo_app(tmp_path / "app.sock"), running_envoy(bootstrap, tmp_path) as envoy:
            assert await until(lambda: envoy.active_secrets() == {IDENTITY_NAME, BUNDLE_NAME})
            for _ in range(5):
                identity = town.identity("web", web.uuid)
                await views.publish(secrets_view(identity, town))
                async with asyncio.timeout(5):
                    while await exchange(port, tls) != identity.leaf:
                        pass
            assert envoy.rejected() == {}
