# SPDX-License-Identifier: Apache-2.0
"""Which peer a captured connection means, and which of the manifest's ports the app has itself."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from enclave_proxy.capture_choice import entries_of, known_addresses, pick, ports_of
from enclave_proxy.capture_relay import is_captured, moved
from enclave_proxy.listener import RelayError
from enclave_proxy.original_destination import original_destination
from enclave_proxy.relay_config import DnsTarget, Inbound, RelayConfig, TcpAddress, UnixAddress
from enclave_proxy.route_parts import Local
from enclave_proxy.routes import upstream_of
from tests.kit.mesh_relay import outbound
from tests.kit.pki import marble, shared_ca

HERE = Path("/run/x")
DB = outbound(shared_ca(), HERE, TcpAddress("10.0.0.1", 5432), name="outbound|db|5432")
LOGS = outbound(shared_ca(), HERE, TcpAddress("fd00::2", 5432), name="outbound|logs|5432")
WEB = outbound(shared_ca(), HERE, name="outbound|web|80")
OWN = replace(WEB, name="of somebody's own making")
ROUTES = (DB, LOGS, WEB, OWN)


def test_the_only_entry_of_a_port_is_meant_whatever_the_address() -> None:
    entries = entries_of(ROUTES, 80)
    assert entries == {"outbound|web|80": "web"}
    assert pick(TcpAddress("203.0.113.9", 80), entries, {}) == "outbound|web|80"


@pytest.mark.parametrize(
    ("host", "name"),
    [("10.0.0.1", "outbound|db|5432"), ("::ffff:10.0.0.1", "outbound|db|5432"), ("fd00::0:2", "outbound|logs|5432")],
)
def test_of_several_the_one_whose_address_it_is(host: str, name: str) -> None:
    addresses = {route.name: known_addresses(route) for route in ROUTES}
    assert pick(TcpAddress(host, 5432), entries_of(ROUTES, 5432), addresses) == name


def test_nobody_is_guessed_where_none_or_two_have_the_address_or_the_port_is_not_the_mesh_s() -> None:
    entries = entries_of(ROUTES, 5432)
    with pytest.raises(LookupError, match=r"to 203.0.113.9:5432, the address of none of db, logs, which share port"):
        pick(TcpAddress("203.0.113.9", 5432), entries, {})
    both = dict.fromkeys(entries, frozenset({"10.0.0.9"}))
    with pytest.raises(LookupError, match="of more than one of db, logs"):
        pick(TcpAddress("10.0.0.9", 5432), entries, both)
    with pytest.raises(LookupError, match="which is no port of the manifest's Outgoing"):
        pick(TcpAddress("10.0.0.1", 22), entries_of(ROUTES, 22), {})


def test_ports_are_those_of_outgoing_and_names_are_not_addresses() -> None:
    assert ports_of(ROUTES) == {5432, 80}
    assert known_addresses(replace(DB, endpoints=DnsTarget("db.example", 5432))) == frozenset()


def app_on(port: int, host: str = "0.0.0.0") -> Inbound:
    return Inbound("inbound|8080", TcpAddress(host, 8080), TcpAddress("127.0.0.1", port), marble(shared_ca()), None)


def test_an_app_that_is_captured_listens_on_the_port_unless_the_manifest_says_where() -> None:
    captured = Local(HERE, capture=True)
    default, named = UnixAddress("/run/x/8080.sock"), UnixAddress("/run/x/mine.sock")
    assert upstream_of(captured, 8080, default) == TcpAddress("127.0.0.1", 8080)
    assert upstream_of(captured, 8080, named) == named
    assert upstream_of(captured, 8080, TcpAddress("::1", 8080)) == TcpAddress("::1", 8080)
    assert upstream_of(Local(HERE), 8080, default) == default


def test_where_the_app_has_the_port_itself_the_worker_listens_on_a_free_one() -> None:
    assert is_captured(app_on(8080))
    assert not is_captured(app_on(9000))
    config = moved(RelayConfig(inbound=(app_on(8080), replace(app_on(9000), name="other"))))
    assert [route.bind for route in config.inbound] == [TcpAddress("::", 0), TcpAddress("0.0.0.0", 8080)]


def test_peers_on_the_same_machine_cannot_be_captured() -> None:
    with pytest.raises(RelayError, match=r"dial 127.0.0.1, where nothing is captured: set EDG_MARBLE_ADVERTISE"):
        moved(RelayConfig(inbound=(app_on(8080, "127.0.0.1"),)))


def test_a_connection_that_was_not_redirected_is_told_from_one_that_was() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        accepted, _ = server.accept()
        with accepted:
            try:
                found = original_destination(accepted)
            except OSError:  # nothing is tracked on this machine
                return
            assert (found.host, found.port) == accepted.getsockname()
