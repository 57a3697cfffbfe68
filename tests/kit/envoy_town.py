# SPDX-License-Identifier: Apache-2.0
"""A Town (see xds_mesh) behind a real xDS port, and what an Envoy needs to be one of its Marbles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sds.material import Identity
from sds.resources import BUNDLE_NAME, IDENTITY_NAME
from tests.kit.envoy import grpc_cluster
from tests.kit.xds_mesh import Town
from tests.kit.xds_port import xds_server
from xds_server.ads import XdsServer
from xds_server.xds_limits import XdsLimits


@asynccontextmanager
async def serving(town: Town, limits: XdsLimits | None = None) -> AsyncIterator[tuple[XdsServer, int]]:
    server = xds_server(town.mesh, limits=limits)
    port = await server.start("127.0.0.1", 0, town.ca)
    try:
        yield server, port
    finally:
        await server.stop()


@asynccontextmanager
async def echo_app(path: Path) -> AsyncIterator[None]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1024):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(echo, path)
    async with server:
        yield


def write_identity(identity: Identity, town: Town, directory: Path) -> dict[str, Path]:
    return write_pem(identity.chain, identity.key.pem, town, directory)


def write_pem(chain: bytes, key: bytes, town: Town, directory: Path) -> dict[str, Path]:
    files = {"certificate": chain, "key": key, "root": town.ca.chain_pem}
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return {name: directory / name for name in files}


async def plain_exchange(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"ping")
    assert await asyncio.wait_for(reader.readexactly(4), 10) == b"ping"
    writer.close()
    await writer.wait_closed()


def sds_bootstrap(port: int, *, incremental: bool) -> dict[str, Any]:
    """A TLS listener whose certificate and trust come over `sds.sock`; TCP to `app.sock`."""
    source = {
        "api_config_source": {
            "api_type": "DELTA_GRPC" if incremental else "GRPC",
            "transport_api_version": "V3",
            "set_node_on_first_message_only": True,
            "grpc_services": [{"envoy_grpc": {"cluster_name": "sds"}}],
        },
        "resource_api_version": "V3",
    }
    context = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {
            "tls_certificate_sds_secret_configs": [{"name": IDENTITY_NAME, "sds_config": source}],
            "validation_context_sds_secret_config": {"name": BUNDLE_NAME, "sds_config": source},
        },
    }
    proxy = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "app",
        "cluster": "app",
    }
    chain = {
        "filters": [{"name": "tcp", "typed_config": proxy}],
        "transport_socket": {"name": "tls", "typed_config": context},
    }
    listener = {
        "name": "in",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [chain],
    }
    app = grpc_cluster("app", {"pipe": {"path": "app.sock"}})
    del app["typed_extension_protocol_options"]
    return {
        "node": {"id": "local", "cluster": "test"},
        "static_resources": {
            "listeners": [listener],
            "clusters": [grpc_cluster("sds", {"pipe": {"path": "sds.sock"}}), app],
        },
    }
