# SPDX-License-Identifier: Apache-2.0
"""A stock Envoy beside a real worker takes its secrets from the local socket by every name that it may use for them."""

from __future__ import annotations

import asyncio
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe import WorkloadApiClient

from sds.keys import PrivateKey
from sds.material import Identity, TrustBundle
from sds.tls import client_context
from tests.kit.envoy import Envoy, grpc_cluster, running_envoy, until
from tests.kit.envoy_town import echo_app
from tests.kit.mesh import MeshHarness, RunningWorker, free_port
from tests.kit.pki import marble, other_ca

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]
SLEEP = ("sleep", "600")
PROXY = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
DOWNSTREAM = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"


@pytest.fixture
async def mesh() -> AsyncIterator[MeshHarness]:
    with TemporaryDirectory(prefix="mm-") as directory:  # short: sockets lie in it
        async with MeshHarness(Path(directory)) as harness:
            await harness.start_coordinator()
            yield harness


@dataclass(frozen=True, slots=True)
class Held:
    """What the worker holds now, as its Workload API says."""

    identity: Identity
    bundle: TrustBundle

    @classmethod
    async def by(cls, worker: RunningWorker) -> Held:
        return await asyncio.to_thread(cls._fetch, f"unix://{worker.run_dir}/workload.sock")

    @classmethod
    def _fetch(cls, endpoint: str) -> Held:
        client = WorkloadApiClient(endpoint, default_timeout=20)
        try:
            context = client.fetch_x509_context()
        finally:
            client.close()
        svid = context.default_svid
        key = svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (bundle,) = context.x509_bundle_set.bundles
        return cls(Identity(_pem(svid.cert_chain), PrivateKey(key)), TrustBundle(_pem(bundle.x509_authorities)))


def _pem(certificates: Any) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def listener(port: int, certificate: str, trust: str | None, source: dict[str, Any]) -> dict[str, Any]:
    common: dict[str, Any] = {"tls_certificate_sds_secret_configs": [{"name": certificate, "sds_config": source}]}
    if trust is not None:
        common["validation_context_sds_secret_config"] = {"name": trust, "sds_config": source}
    tls = {"@type": DOWNSTREAM, "require_client_certificate": trust is not None, "common_tls_context": common}
    proxy = {"@type": PROXY, "stat_prefix": "app", "cluster": "app"}
    chain = {
        "filters": [{"name": "tcp", "typed_config": proxy}],
        "transport_socket": {"name": "tls", "typed_config": tls},
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {"name": f"{certificate} {trust}", "address": address, "filter_chains": [chain]}


def bootstrap(socket: Path, names: dict[int, tuple[str, str | None]], *, incremental: bool) -> dict[str, Any]:
    api = {
        "api_type": "DELTA_GRPC" if incremental else "GRPC",
        "transport_api_version": "V3",
        "set_node_on_first_message_only": True,
        "grpc_services": [{"envoy_grpc": {"cluster_name": "worker"}}],
    }
    # Short, because Envoy opens no port before it has waited this long for the secret that does not exist.
    source = {"api_config_source": api, "resource_api_version": "V3", "initial_fetch_timeout": "1s"}
    app = grpc_cluster("app", {"pipe": {"path": "app.sock"}})
    del app["typed_extension_protocol_options"]
    return {
        "node": {"id": "local", "cluster": "test"},
        "static_resources": {
            "listeners": [listener(port, *name, source) for port, name in names.items()],
            "clusters": [grpc_cluster("worker", {"pipe": {"path": str(socket)}}), app],
        },
    }


async def answers(port: int, tls: ssl.SSLContext) -> x509.Certificate | None:
    """The server's certificate after a round trip through the app; None if it does not let us in."""
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
            try:
                writer.write(b"ping")
                if await reader.read(4) != b"ping":
                    return None
                return x509.load_der_x509_certificate(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
            finally:
                writer.close()
                await writer.wait_closed()
    except (ssl.SSLError, ConnectionError):
        return None


async def serves(port: int, tls: ssl.SSLContext, leaf: x509.Certificate) -> None:
    """Soon."""
    async with asyncio.timeout(15):
        while await answers(port, tls) != leaf:
            await asyncio.sleep(0.02)


async def test_every_spelling_serves_follows_and_refuses_alike(mesh: MeshHarness) -> None:
    """State of the world and incremental, over the SDS socket and over the one that SPIRE users know."""
    secret = {"Type": "cert-ecdsa", "Size": 256, "Shared": True, "Cert": {"DNSNames": ["shop.example"]}}
    tls = {"web": {"Incoming": [{"Port": str(free_port()), "Cert": "shop", "DisableClientAuth": True}]}}
    await mesh.set_manifest(mesh.manifest({"web": {}}, tls, Secrets={"shop": secret}))
    web = await mesh.start_worker("web", *SLEEP, flags=("--relay", "off"))
    await web.ready()
    await web.logged("new identity", secret="shop")
    held = await Held.by(web)
    own = held.identity.spiffe_id
    spellings = [("default", "ROOTCA"), (str(own), f"spiffe://{own.trust_domain}"), ("default", "ALL")]
    others = [("shop", None), ("nobody", "ROOTCA")]
    async with AsyncExitStack() as stack:
        envoys: list[tuple[Envoy, list[int]]] = []
        for incremental, socket in ((False, "sds.sock"), (True, "sds.sock"), (True, "workload.sock")):
            directory = mesh.directory / f"envoy{len(envoys)}"
            directory.mkdir()
            names = {free_port(): name for name in (*spellings, *others)}
            await stack.enter_async_context(echo_app(directory / "app.sock"))
            config = bootstrap(web.run_dir / socket, names, incremental=incremental)
            envoys.append((await stack.enter_async_context(running_envoy(config, directory)), list(names)))
        for _, ports in envoys:
            await each_serves(ports[:3], held)
            shop = await answers(ports[3], client_context(None, held.bundle))
            assert shop is not None
            san = shop.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert san.get_values_for_type(x509.DNSName) == ["shop.example"]
            assert await answers(ports[4], client_context(held.identity, held.bundle)) is None

        assert mesh.coordinator is not None
        after = len(web.lines)
        mesh.coordinator.send(signal.SIGHUP)
        await web.logged("new identity", after, secret="default")
        renewed = await Held.by(web)
        assert renewed.identity.leaf != held.identity.leaf
        for envoy, ports in envoys:
            await each_serves(ports[:3], renewed)
            assert envoy.rejected() == {}
            assert await until(lambda e=envoy: {"default", "ROOTCA", "ALL", "shop"} <= e.active_secrets())  # type: ignore[misc]
    assert 'marblemesh_worker_local_nacks_total{socket="sds"} 0.0' in (await web.admin("/metrics"))[1]


async def each_serves(ports: list[int], held: Held) -> None:
    """With this identity, to a client of this mesh, and to nobody else."""
    good = client_context(held.identity, held.bundle)
    foreign = client_context(marble(other_ca()), held.bundle)
    nameless = client_context(None, held.bundle)
    for port in ports:
        await serves(port, good, held.identity.leaf)
        assert await answers(port, foreign) is None
        assert await answers(port, nameless) is None
