# SPDX-License-Identifier: Apache-2.0
"""Settings: defaults, empty is unset, and every wrong value named with its flag and its variable."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xds_server import config as settings
from xds_server.config import FLAGS, ConfigError, CoordinatorConfig, ListenAddress


def test_the_defaults_are_marbleruns() -> None:
    config = CoordinatorConfig.from_env({})
    assert [str(a) for a in (config.mesh_addr, config.client_addr, config.xds_addr)] == [":2001", ":4433", ":18000"]
    assert config.prometheus_addr is None
    assert config.dns_names == ("localhost",)
    assert not config.simulation
    assert config.http_error_log_level == "error"


def test_an_empty_value_counts_as_unset() -> None:
    assert CoordinatorConfig.from_env(dict.fromkeys(FLAGS, "")) == CoordinatorConfig.from_env({})


def test_everything_can_be_set() -> None:
    config = CoordinatorConfig.from_env(
        {
            settings.MESH_ADDR: "127.0.0.1:0",
            settings.CLIENT_ADDR: "[::1]:1",
            settings.XDS_ADDR: "host:65535",
            settings.PROMETHEUS_ADDR: ":9944",
            settings.DNS_NAMES: "a.test,10.0.0.1,::1",
            settings.STARTUP_MANIFEST: "/m.json",
            settings.DEV_MODE: "1",
            settings.SIMULATION: "1",
            settings.SIMULATED_ENCLAVE: '{"ProductID": 3}',
            settings.SIMULATED_PLATFORM: "/p",
            settings.HTTP_ERROR_LOG_LEVEL: "Debug",
            settings.PCCS_URL: "https://pccs.test",
        }
    )
    assert config.client_addr == ListenAddress("::1", 1)
    assert str(config.client_addr) == "[::1]:1"
    assert config.dns_names == ("a.test",)
    assert config.ip_addresses == (ip_address("10.0.0.1"), ip_address("::1"))
    assert config.startup_manifest == Path("/m.json")
    assert config.dev_mode
    assert config.http_error_log_level == "debug"


@pytest.mark.parametrize("address", ["4433", "host", ":", ":x", ":65536", ":-1", "::1:80", ":1 ", ":٣"])
def test_a_wrong_address_is_named_with_flag_and_variable(address: str) -> None:
    with pytest.raises(ConfigError, match=r"--mesh-addr \(EDG_COORDINATOR_MESH_ADDR\): want host:port or :port, got"):
        CoordinatorConfig.from_env({settings.MESH_ADDR: address})


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        (settings.DEV_MODE, "yes", "want 1 or 0, got 'yes'"),
        (settings.DNS_NAMES, "a, b", "without blanks"),
        (settings.DNS_NAMES, ",".join(["a"] * 65), "at most 64 names, got 65"),
        (settings.SIMULATED_ENCLAVE, "{", "not JSON"),
        (settings.PLATFORM, "sev", "want auto, gramine"),
        (settings.PCCS_URL, "pccs.test", "want https://host"),
        (settings.SIMULATED_ENCLAVE, "[]", "expected a JSON object"),
        (settings.SIMULATED_ENCLAVE, "{}", "is set without --simulation"),
        (settings.SIMULATED_PLATFORM, "/p", "is set without --simulation"),
        (settings.STARTUP_MANIFEST, "a\0b", "no NUL"),
    ],
)
def test_wrong_values_are_named(variable: str, value: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        CoordinatorConfig.from_env({variable: value})
    assert FLAGS[variable] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_sources_of_collateral_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        CoordinatorConfig.from_env({settings.PCCS_URL: "https://x", settings.COLLATERAL_DIR: "/c"})


def test_a_typo_in_the_level_of_handshake_errors_keeps_nobody_from_starting() -> None:
    assert CoordinatorConfig.from_env({settings.HTTP_ERROR_LOG_LEVEL: "loud"}).http_error_log_level == "error"


@given(st.sampled_from(sorted(FLAGS)), st.text(max_size=40))
def test_no_value_of_any_variable_raises_anything_else(variable: str, value: str) -> None:
    try:
        CoordinatorConfig.from_env({variable: value})
    except ConfigError as e:
        assert variable in str(e)  # noqa: PT017
