# SPDX-License-Identifier: Apache-2.0
"""`MinTLSVersion` and `ALPN` of a manifest's entries mean the same to a real Envoy and to our relay, which both take
them from the same resources; OpenSSL's command and the standard library's TLS are at the other end."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import pytest

from enclave_proxy.relay import Relay
from enclave_proxy.route_parts import Local
from enclave_proxy.routes import Pushed, build
from sds.logs import get_logger
from sds.resources import BUNDLE_NAME, CLUSTER, ENDPOINT, IDENTITY_NAME, LISTENER, SECRET, read_secret
from tests.kit import hostile_servers as servers
from tests.kit.envoy import ads_bootstrap, running_envoy, until
from tests.kit.envoy_town import echo_app, serving, write_identity
from tests.kit.hostile_identities import Shown, good
from tests.kit.mesh import free_port
from tests.kit.openssl_judge import Handshake, s_client
from tests.kit.xds_mesh import Town, manifest
from xds_server.mesh import ActiveMarble

pytestmark = pytest.mark.e2e

TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
OPTIONS = {"MinTLSVersion": "1.2", "ALPN": ["h2", "http/1.1"]}


@dataclass(frozen=True)
class Ports:
    """Where it listens for peers, where for its app, and where its peers are; `open` has options, `plain` has none."""

    open: int
    plain: int
    app_open: int
    app_plain: int
    peer_open: int
    peer_plain: int


def town(ports: Ports) -> Town:
    web = {
        "Incoming": [{"Port": str(ports.open), **OPTIONS}, {"Port": str(ports.plain)}],
        "Outgoing": [
            {"Addr": "127.0.0.1", "Port": str(peer), "Peer": "db", "Listen": f"tcp:127.0.0.1:{listen}", **options}
            for peer, listen, options in (
                (ports.peer_open, ports.app_open, OPTIONS),
                (ports.peer_plain, ports.app_plain, {}),
            )
        ],
    }
    return Town(manifest({"web": web, "db": {}}, {"web": ["web"], "db": ["db"]}))


@asynccontextmanager
async def an_envoy(town: Town, web: ActiveMarble, directory: Path) -> AsyncIterator[None]:
    async with serving(town) as (_, port):
        files = write_identity(web.identity, town, directory)
        bootstrap = ads_bootstrap(xds_port=port, incremental=True, node_id="e", advertise="127.0.0.1", **files)
        async with running_envoy(bootstrap, directory) as envoy:
            assert await until(lambda: envoy.active_secrets() == {IDENTITY_NAME, BUNDLE_NAME}), envoy.log.read_text()
            assert await until(lambda: len(envoy.active_listeners()) == 4), envoy.log.read_text()[-2000:]
            assert envoy.rejected() == {}
            yield


@asynccontextmanager
async def a_relay(town: Town, web: ActiveMarble, directory: Path) -> AsyncIterator[None]:
    view = town.mesh.view(town.mesh.authenticate(web.identity.leaf))
    secrets = dict(read_secret(resource.body) for resource in view[SECRET].values())
    pushed = Pushed(Local(directory)).with_secrets({name: secrets[name] for name in (IDENTITY_NAME, BUNDLE_NAME)})  # type: ignore[dict-item]
    for kind in (CLUSTER, ENDPOINT, LISTENER):
        pushed = pushed.with_resources(kind, {name: r.body for name, r in view[kind].items()}, ())
    relay = Relay(get_logger("relay"))
    try:
        await relay.apply(build(pushed))
        yield
    finally:
        await relay.close()


DataPlane = Callable[[Town, ActiveMarble, Path], AbstractAsyncContextManager[None]]


@pytest.mark.parametrize("data_plane", [an_envoy, a_relay])
async def test_versions_and_protocols_are_those_of_the_manifest(data_plane: DataPlane, tmp_path: Path) -> None:
    ports = Ports(*(free_port() for _ in range(6)))
    made = town(ports)
    web = made.activate("web")
    client = tmp_path / "client.pem"
    with client.open("wb") as file:
        good(made.ca, "db").write(file)
    async with AsyncExitStack() as stack:
        for port in (ports.open, ports.plain):
            await stack.enter_async_context(echo_app(tmp_path / f"{port}.sock"))
        await stack.enter_async_context(data_plane(made, web, tmp_path))
        await incoming(ports, client)
        await outgoing(ports, good(made.ca, "db"))


async def incoming(ports: Ports, client: Path) -> None:
    async def ask(port: int, *flags: str) -> Handshake:
        return await s_client(port, "-cert", str(client), *flags)

    def agreed(handshake: Handshake) -> tuple[bool, str, str]:
        return handshake.ok, handshake.line("New, ").partition(",")[0], handshake.line("ALPN protocol: ")

    assert agreed(await ask(ports.open, "-tls1_2", "-alpn", "x,http/1.1,h2")) == (True, "TLSv1.2", "h2")
    assert agreed(await ask(ports.open, "-alpn", "http/1.1")) == (True, "TLSv1.3", "http/1.1")
    assert agreed(await ask(ports.open, "-alpn", "x")) == (True, "TLSv1.3", ""), "goes on without one"
    assert not (await ask(ports.open, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0")).ok
    assert not (await ask(ports.open, "-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA")).ok, "no authenticated encryption"
    assert not (await s_client(ports.open, "-tls1_2")).ok, "no certificate"
    assert agreed(await ask(ports.plain, "-alpn", "h2")) == (True, "TLSv1.3", "")
    assert not (await ask(ports.plain, "-tls1_2")).ok


async def outgoing(ports: Ports, peer: Shown) -> None:
    async def answer(port: int, listen: int, newest: ssl.TLSVersion, *alpn: str) -> bytes:
        async with servers.presenting(peer, alpn, newest)(port, bytearray()):
            reader, writer = await asyncio.open_connection("127.0.0.1", listen)
            try:
                writer.write(b"ping")
                async with asyncio.timeout(20):
                    return await reader.readuntil(b"ping")
            except (ConnectionError, asyncio.IncompleteReadError):
                return b""
            finally:
                writer.transport.abort()

    assert await answer(ports.peer_open, ports.app_open, TLS_1_2, "http/1.1") == b"http/1.1:ping"
    assert await answer(ports.peer_open, ports.app_open, TLS_1_3, "h2", "http/1.1") == b"h2:ping"
    assert await answer(ports.peer_plain, ports.app_plain, TLS_1_3, "h2") == b"None:ping"
    assert await answer(ports.peer_plain, ports.app_plain, TLS_1_2) == b""


@pytest.mark.parametrize("data_plane", [an_envoy, a_relay])
async def test_a_grpc_client_gets_through_where_the_manifest_names_its_protocol(
    data_plane: DataPlane, tmp_path: Path
) -> None:
    """gRPC's own libraries end a connection on which `h2` was not agreed upon."""
    ports = Ports(*(free_port() for _ in range(6)))
    made = town(ports)
    web, db = made.activate("web"), made.activate("db")
    credentials = grpc.ssl_channel_credentials(made.ca.bundle.pem, db.identity.key.pem, db.identity.chain)

    async def hello(port: int) -> bytes:
        async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
            return bytes(await channel.unary_unary("/town/Hello")(b"hello", timeout=20))

    async def answer(request: bytes, _: object) -> bytes:
        return request + b" to you"

    app = grpc.aio.server()
    handlers = {"Hello": grpc.unary_unary_rpc_method_handler(answer)}
    app.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("town", handlers),))
    for port in (ports.open, ports.plain):
        app.add_insecure_port(f"unix:{tmp_path}/{port}.sock")
    await app.start()
    try:
        async with data_plane(made, web, tmp_path):
            assert await hello(ports.open) == b"hello to you"
            with pytest.raises(grpc.aio.AioRpcError, match="ALPN"):
                await hello(ports.plain)
    finally:
        await app.stop(None)


@pytest.mark.parametrize("data_plane", [an_envoy, a_relay])
@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
async def test_no_session_is_resumed(data_plane: DataPlane, version: ssl.TLSVersion, tmp_path: Path) -> None:
    """A resumed session skips the certificate, and so could outlive what it was allowed by."""
    ports = Ports(*(free_port() for _ in range(6)))
    made = town(ports)
    web = made.activate("web")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = version
    good(made.ca, "db").load(context)

    def ask(session: ssl.SSLSession | None) -> tuple[bool | None, ssl.SSLSession | None]:
        with (
            socket.create_connection(("127.0.0.1", ports.open), timeout=20) as raw,
            context.wrap_socket(raw, session=session) as tls,
        ):
            tls.sendall(b"x")
            assert tls.recv(1) == b"x"
            return tls.session_reused, tls.session

    async with echo_app(tmp_path / f"{ports.open}.sock"), data_plane(made, web, tmp_path):
        _, session = await asyncio.to_thread(ask, None)
        assert session is not None
        assert (await asyncio.to_thread(ask, session))[0] is False
        assert await dialled(ports, good(made.ca, "db"), version) == [False, False]


async def dialled(ports: Ports, peer: Shown, version: ssl.TLSVersion) -> list[bool]:
    """Whether each of two connections to a peer, which would resume, was resumed."""
    resumed = list[bool]()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = version
    peer.load(context)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        resumed.append(writer.get_extra_info("ssl_object").session_reused)
        writer.write(await reader.read(1))
        await reader.read()
        writer.close()

    async with await asyncio.start_server(echo, "127.0.0.1", ports.peer_open, ssl=context):
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", ports.app_open)
            writer.write(b"x")
            async with asyncio.timeout(20):
                assert await reader.readexactly(1) == b"x"
            writer.close()
    return resumed
