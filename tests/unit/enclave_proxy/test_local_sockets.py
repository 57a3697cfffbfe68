# SPDX-License-Identifier: Apache-2.0
"""Which sockets a worker has, and what its admin port says of them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from enclave_proxy.errors import ConfigError
from enclave_proxy.identity_store import IdentityStore
from enclave_proxy.local_counters import LocalCounters
from enclave_proxy.local_metrics import local_metrics
from enclave_proxy.local_path import Place
from enclave_proxy.local_peer import Access, Unwelcome
from enclave_proxy.local_server import LocalServer
from enclave_proxy.local_sockets import local_servers
from enclave_proxy.socket_settings import SocketSettings
from sds.logs import get_logger
from tests.kit.pki import now
from tests.unit.enclave_proxy.test_workload_api import new_store

SETTINGS = SocketSettings(sds=Path("/r/sds.sock"), workload=Path("/r/workload.sock"))


def servers(
    settings: SocketSettings, *, one_enclave: bool = False, store: IdentityStore | None = None
) -> dict[str, tuple[LocalServer, Place]]:
    made = local_servers(settings, store or new_store(), one_enclave=one_enclave, now=now, log=get_logger("test"))
    return {server.counters.socket: (server, place) for server, place in made}


def services(server: LocalServer) -> set[str]:
    return {path.split("/")[1] for path in server.shared.methods}


def test_the_workload_socket_serves_sds_too_as_a_spire_agents_does() -> None:
    made = servers(SETTINGS)
    sds = "envoy.service.secret.v3.SecretDiscoveryService"
    assert {name: services(server) for name, (server, _) in made.items()} == {
        "sds": {sds},
        "workload": {"SpiffeWorkloadAPI", sds},
    }


def test_a_socket_can_be_off_and_the_rest_of_the_settings_hold_for_both() -> None:
    assert set(servers(replace(SETTINGS, sds=None))) == {"workload"}
    assert servers(replace(SETTINGS, sds=None, workload=None)) == {}
    other = replace(SETTINGS, mode=0o660, owner=1, group=2)
    assert {place for _, place in servers(other).values()} == {
        Place(Path("/r/sds.sock"), 0o660, 1, 2),
        Place(Path("/r/workload.sock"), 0o660, 1, 2),
    }


def test_the_workers_own_user_may_always_connect_and_whom_the_lists_name() -> None:
    settings = replace(SETTINGS, allow_uids=frozenset({1000}), allow_gids=frozenset({7}), mode=0o666)
    for server, _ in servers(settings).values():
        assert server.access == Access(frozenset({os.geteuid(), 1000}), frozenset({7}), needs_credentials=True)


def test_under_sgx_everybody_in_the_enclave_may_connect_and_lists_are_refused() -> None:
    for server, _ in servers(SETTINGS, one_enclave=True).values():
        assert not server.access.needs_credentials
    with pytest.raises(ConfigError, match=r"--socket-allow-gids\): cannot be enforced under SGX"):
        servers(replace(SETTINGS, allow_gids=frozenset({7}), mode=0o660), one_enclave=True)


def test_metrics_name_socket_method_status_and_reason_and_nobody() -> None:
    numbers = LocalCounters("workload", accepted=3, active=2, nacks=1, missing=4)
    numbers.refused[Unwelcome.NOT_ALLOWED] = 5
    numbers.streams["FetchX509SVID"] = 1
    numbers.ended["FetchX509SVID", "PERMISSION_DENIED"] = 6
    numbers.sent["FetchX509SVID"] = 7

    class Sockets(Collector):
        def collect(self):  # type: ignore[no-untyped-def]
            return local_metrics([numbers])

    registry = CollectorRegistry()
    registry.register(Sockets())

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"marblemesh_worker_local_{name}", {"socket": "workload", **labels})

    assert value("connections_accepted_total") == 3
    assert value("connections_active") == 2
    assert value("connections_refused_total", reason="not_allowed") == 5
    assert value("calls_active", method="FetchX509SVID") == 1
    assert value("calls_ended_total", method="FetchX509SVID", status="PERMISSION_DENIED") == 6
    assert value("messages_sent_total", method="FetchX509SVID") == 7
    assert value("names_not_found_total") == 4
    assert value("nacks_total") == 1
