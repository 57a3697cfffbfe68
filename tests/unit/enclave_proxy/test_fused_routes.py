# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from enclave_proxy.app_addresses import app_addresses, server_settings
from enclave_proxy.fused_routes import MadeUpAddresses, Routes, Wrong
from enclave_proxy.relay_config import RelayConfig, TcpAddress, UnixAddress
from tests.kit.fused_lab import config

CONFIG = config(
    {"8080": "/r/8080.sock"}, {"db:5432": "/r/db.sock", "10.0.0.7:99": "/r/ip.sock", "x.org:80": "/r/x.sock"}
)
ROUTES = Routes.of(CONFIG)
OWN = UnixAddress("/r/8080.sock")


@pytest.mark.parametrize(
    ("host", "port", "target"),
    [
        ("db", 5432, UnixAddress("/r/db.sock")),
        ("DB.", 5432, UnixAddress("/r/db.sock")),
        ("10.0.0.7", 99, UnixAddress("/r/ip.sock")),
        ("::ffff:10.0.0.7", 99, UnixAddress("/r/ip.sock")),
        ("localhost", 8080, OWN),
        ("127.0.0.1", 8080, OWN),
        ("::1", 8080, OWN),
        ("0.0.0.0", 8080, OWN),
        ("10.1.1.1", 8080, None),
        ("localhost", 5432, None),
        ("db2", 5432, None),
    ],
)
def test_a_dialled_address_is_the_mesh_s_only_with_host_and_port(
    host: str, port: int, target: UnixAddress | None
) -> None:
    assert ROUTES.dial(host, port) == target


def test_another_port_of_a_peer_is_wrong() -> None:
    assert ROUTES.dial("db", 80) == Wrong("the manifest's Outgoing names db with port 5432, not 80")


def test_a_port_of_incoming_is_the_app_s_socket_and_others_are_not() -> None:
    assert (ROUTES.listen(8080), ROUTES.listen(8081)) == ("/r/8080.sock", None)


@pytest.mark.parametrize(
    ("host", "port", "known"), [("db", 5432, True), ("db", 0, True), ("db", 80, False), ("10.0.0.7", 99, False)]
)
def test_only_names_of_outgoing_with_their_ports_are_answered(host: str, port: int, known: bool) -> None:
    assert ROUTES.has_name(host, port) is known


def test_a_made_up_address_means_the_same_name_for_ever() -> None:
    made_up = MadeUpAddresses()
    first, second = made_up.address_of("db"), made_up.address_of("auth")
    assert (first, second) == ("127.93.0.1", "127.93.0.2")
    assert made_up.address_of("DB") == first
    assert [made_up.name_of(host) for host in (first, second, "127.93.0.3", "10.0.0.1")] == [
        *("db", "auth"),
        *("127.93.0.3", "10.0.0.1"),
    ]


def test_every_app_is_told_its_sockets_in_variables() -> None:
    assert app_addresses(CONFIG) == {
        "MARBLEMESH_LISTEN_8080": "unix:/r/8080.sock",
        "MARBLEMESH_DIAL_DB_5432": "unix:/r/db.sock",
        "MARBLEMESH_DIAL_10_0_0_7_99": "unix:/r/ip.sock",
        "MARBLEMESH_DIAL_X_ORG_80": "unix:/r/x.sock",
    }
    assert app_addresses(None) == {}


def test_two_peers_with_one_variable_s_name_have_none() -> None:
    assert app_addresses(config({}, {"a-b:1": "/1", "a.b:1": "/2", "c:1": "/3"})) == {"MARBLEMESH_DIAL_C_1": "unix:/3"}


def test_servers_with_settings_of_their_own_get_them_if_there_is_one_socket() -> None:
    assert server_settings(CONFIG) == {"GUNICORN_CMD_ARGS": "--bind=unix:/r/8080.sock", "UVICORN_UDS": "/r/8080.sock"}
    assert server_settings(config({"1": "/1", "2": "/2"}, {})) == {}
    assert server_settings(None) == {}


def test_a_port_where_the_worker_dials_tcp_is_left_alone() -> None:
    (route,) = config({"8080": "/x"}, {}).inbound
    plain = type(route)(route.name, route.bind, TcpAddress("127.0.0.1", 9000), route.identity, route.bundle)
    routes = Routes.of(RelayConfig((plain,)))
    assert (routes.listen(8080), routes.listen(9000)) == (None, None)
    assert (routes.dials_tcp(9000), routes.dials_tcp(8080)) == (True, False)
