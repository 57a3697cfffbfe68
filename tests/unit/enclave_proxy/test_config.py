# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from enclave_proxy.config import HostPort, WorkerConfig
from enclave_proxy.errors import ConfigError
from enclave_proxy.socket_settings import SocketSettings

TYPE = {"EDG_MARBLE_TYPE": "web"}


def load(env: Mapping[str, str] = TYPE, flags: Mapping[str, str] | None = None, *command: str) -> WorkerConfig:
    return WorkerConfig.load(env, flags or {}, command, cwd=Path("/srv"), runtime_dir=Path("/run/marblemesh"))


def test_marbleruns_defaults_hold() -> None:
    config = load()
    assert config.coordinator == HostPort("localhost", 2001)
    assert config.dns_names == ("localhost",)
    assert config.ip_addresses == ("127.0.0.1", "::1")
    assert config.uuid_file == Path("/srv/uuid")
    assert config.run_dir == Path("/run/marblemesh/web")
    assert not config.simulation
    assert not config.pinned


def test_the_other_ports_are_on_the_coordinators_host() -> None:
    config = load(TYPE | {"EDG_MARBLE_COORDINATOR_ADDR": "coordinator.mesh:2001"})
    assert (str(config.xds), str(config.client_api)) == ("coordinator.mesh:18000", "coordinator.mesh:4433")


def test_a_flag_wins_and_an_empty_variable_is_not_set() -> None:
    env = TYPE | {"EDG_MARBLE_ADMIN_ADDR": "off", "EDG_MARBLE_COORDINATOR_ADDR": ""}
    config = load(env, {"admin-addr": "[::1]:0"})
    assert config.admin == HostPort("::1", 0)
    assert config.coordinator.port == 2001


def test_a_missing_type_is_named_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"EDG_MARBLE_TYPE \(--marble-type\): is not set; give"):
        load({})


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("EDG_MARBLE_COORDINATOR_ADDR", "nowhere", "not host:port"),
        ("EDG_MARBLE_COORDINATOR_ADDR", "h:0", "not within 1..65535"),
        ("EDG_MARBLE_COORDINATOR_ADDR", "::1:2001", "write IPv6 as"),
        ("EDG_MARBLE_DNS_NAMES", "a b", "not a DNS name"),
        ("EDG_MARBLE_DNS_NAMES", ",", "names nobody"),
        ("EDG_MARBLE_ERA_CONFIG", "/not/there", "is not a file"),
        ("EDG_MARBLE_MANIFEST_FINGERPRINT", "abc", "64 hexadecimal"),
        ("EDG_MARBLE_ADVERTISE", "elsewhere", "not among this Marble's own names"),
        ("EDG_MARBLE_RUN_DIR", "/" + "x" * 100, "longer than"),
        ("EDG_MARBLE_LIMITS", "handshake-timeout=0", "handshake-timeout: 0 is not within"),
        ("EDG_MARBLE_SDS_SOCKET", "x" * 108, "longer than 107"),
        ("EDG_MARBLE_SDS_SOCKET", "/run/marblemesh/web/workload.sock", "set this one to `off`"),
        ("EDG_MARBLE_SOCKET_MODE", "666x", "not the mode of a socket"),
        ("EDG_MARBLE_SOCKET_MODE", "0066", "rw for the owner"),
        ("EDG_MARBLE_SOCKET_OWNER", "root", "not the number of a user"),
        ("EDG_MARBLE_SOCKET_GROUP", "4294967295", "not the number of a user or group"),
        ("EDG_MARBLE_SOCKET_ALLOW_UIDS", "1000,65534", "every user or group that is unknown here"),
        ("EDG_MARBLE_SOCKET_ALLOW_UIDS", "1000", "users that mode 0600 keeps out"),
        ("EDG_MARBLE_SOCKET_ALLOW_GIDS", ",".join(map(str, range(300))), "at most 256"),
        ("EDG_MARBLE_RELAY", "perhaps", "neither on nor off"),
        ("EDG_MARBLE_DRAIN", "-1", "not within"),
        ("EDG_MARBLE_DRAIN", "soon", "could not convert"),
        ("EDG_MARBLE_APP_GRACE", "nan", "not within"),
        ("EDG_MARBLE_APP_TIMEOUT", "3601", "not within"),
        ("EDG_MARBLE_OFFLINE_AFTER", "-0.1", "not within"),
        ("EDG_MARBLE_RESTART", "maybe", "not one of never, on-failure, always"),
        ("EDG_MARBLE_CONCURRENCY", "0", "not a number of processes within 1..64"),
        ("EDG_MARBLE_CONCURRENCY", "65", "not a number of processes"),
        ("EDG_SIMULATED_ENCLAVE", "{}", r"is set without EDG_MARBLE_SIMULATION \(--simulation\)"),
        ("EDG_LOG_FORMAT", "xml", "not one of json, text"),
        ("EDG_LOG_LEVEL", "loud", "not one of debug"),
    ],
)
def test_a_wrong_value_is_named_with_its_variable(name: str, value: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        load(TYPE | {name: value})
    assert name in str(caught.value)


def test_without_a_relay_its_settings_are_of_no_use() -> None:
    with pytest.raises(ConfigError) as caught:
        load(flags={"relay": "off", "concurrency": "2", "access-log": "-"})
    for name in ("EDG_MARBLE_CONCURRENCY (--concurrency)", "EDG_MARBLE_ACCESS_LOG (--access-log)"):
        assert f"{name}: has no use with EDG_MARBLE_RELAY (--relay) off: there is nothing to relay" in str(caught.value)


def test_sockets_lie_in_the_run_directory_unless_told_otherwise() -> None:
    assert load().sockets == SocketSettings(
        sds=Path("/run/marblemesh/web/sds.sock"), workload=Path("/run/marblemesh/web/workload.sock")
    )
    flags = {
        "sds-socket": "off",
        "workload-socket": "/run/spire/agent.sock",
        "socket-mode": "0660",
        "socket-owner": "1",
        "socket-group": "2",
        "socket-allow-uids": "1000, 1001",
        "socket-allow-gids": "2",
    }
    assert load(flags=flags).sockets == SocketSettings(
        sds=None,
        workload=Path("/run/spire/agent.sock"),
        mode=0o660,
        owner=1,
        group=2,
        allow_uids=frozenset({1000, 1001}),
        allow_gids=frozenset({2}),
    )


def test_all_errors_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load({"EDG_MARBLE_RELAY": "x", "EDG_MARBLE_ADMIN_ADDR": "y"})
    assert [n for n in ("MARBLE_TYPE", "RELAY", "ADMIN_ADDR") if n in str(caught.value)] == [
        "MARBLE_TYPE",
        "RELAY",
        "ADMIN_ADDR",
    ]


def test_a_fingerprint_alone_proves_nothing_and_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs EDG_MARBLE_ERA_CONFIG"):
        load(TYPE | {"EDG_MARBLE_MANIFEST_FINGERPRINT": "0" * 64})


def test_a_pin_needs_collateral_outside_simulation(tmp_path: Path) -> None:
    era = tmp_path / "era-config.json"
    era.write_text("{}")
    pinned = TYPE | {"EDG_MARBLE_ERA_CONFIG": str(era)}
    with pytest.raises(ConfigError, match="needs collateral"):
        load(pinned)
    assert load(pinned | {"EDG_MARBLE_SIMULATION": "1"}).pinned
    assert load(pinned | {"EDG_PCCS_URL": "https://pccs:8081"}).pinned


def test_an_ip_among_the_names_becomes_an_address_and_may_be_advertised() -> None:
    config = load(TYPE | {"EDG_MARBLE_DNS_NAMES": "*.mesh, web.mesh,10.0.0.7", "EDG_MARBLE_ADVERTISE": "10.0.0.7"})
    assert config.dns_names == ("*.mesh", "web.mesh")
    assert config.ip_addresses == ("127.0.0.1", "::1", "10.0.0.7")
    assert load(TYPE | {"EDG_MARBLE_DNS_NAMES": "*.mesh,web.mesh"}).advertise == "web.mesh"
