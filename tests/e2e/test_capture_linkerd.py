# SPDX-License-Identifier: Apache-2.0
"""Capture in pods that Linkerd was injected into: app, our worker, Linkerd's proxy, the network, and back in turn."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from marblemesh.inject.linkerd_ports import COORDINATOR_PORTS
from tests.kit.capture_mesh import CLIENT, SERVER, SLEEP, CaptureMesh, plain_manifest
from tests.kit.linkerd_control import Workload
from tests.kit.linkerd_mesh import captured
from tests.kit.linkerd_metrics import total
from tests.kit.linkerd_pod import meshed
from tests.kit.linkerd_rules import OUTBOUND
from tests.kit.netns import namespaces_needed

pytestmark = pytest.mark.e2e
MARKER = b"marker-in-what-an-app-says-beside-linkerd"


async def test_our_mtls_lies_inside_linkerd_s_and_its_proxies_see_no_plaintext() -> None:
    namespaces_needed("nft", "iptables-nft-restore")
    # A port that is not opaque, without the transport header: Linkerd's proxies dial the app's very port, in their own
    # TLS, so that it matters who is first for it.
    ports = set(COORDINATOR_PORTS)
    with TemporaryDirectory(prefix="mm-") as directory:
        async with (
            meshed(
                Workload("a", CLIENT, opaque=ports), Workload("b", SERVER, opaque=ports), transport_header=False
            ) as town,
            CaptureMesh(Path(directory), town.a.namespace, town.b.namespace, town.links[0]) as mesh,
        ):
            await mesh.start_coordinator()
            await mesh.set_manifest(plain_manifest(mesh))
            await mesh.start_server("nft", 9000, 9100, 9200, 9300)
            client = await mesh.start_captured("client", "iptables", *SLEEP)
            await client.ready()
            with captured(town, MARKER) as seen:
                ask = partial(mesh.app, "client", SERVER, 9000, MARKER.decode())
                assert await asyncio.to_thread(ask) == f"server:{MARKER.decode()}"
            assert seen["a"].found[MARKER] == seen["b"].found[MARKER] == set()
            # On loopback: in a the app's hop to our worker, in b the worker's to the app. What goes to Linkerd's proxy
            # is our TLS on both sides.
            assert OUTBOUND not in seen["a lo"].found[MARKER]
            assert seen["a lo"].ciphertext[OUTBOUND] > 0
            assert 9000 in seen["b lo"].found[MARKER]
            carried = await town.b.metrics()
            assert total(carried, "tcp_open_total", direction="inbound", target_port="9000") > 0
