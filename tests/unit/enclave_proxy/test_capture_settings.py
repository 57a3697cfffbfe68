# SPDX-License-Identifier: Apache-2.0
"""Who may capture: what is refused at the start, with the reason and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from enclave_proxy.capture_settings import AppUser, CaptureSettings, capabilities, check_privileges
from enclave_proxy.config import WorkerConfig
from enclave_proxy.errors import ConfigError

ALL = "Name:\tx\nCapEff:\t000001ffffffffff\n"
ON = CaptureSettings(mode="nft", app_user=AppUser(1000, 1000))


def load(tmp_path: Path, **flags: str) -> CaptureSettings:
    given = {"marble-type": "web", **{name.replace("_", "-"): value for name, value in flags.items()}}
    return WorkerConfig.load({}, given, (), cwd=tmp_path, runtime_dir=tmp_path).capture


def test_by_default_nothing_is_captured_and_the_app_has_the_worker_s_user(tmp_path: Path) -> None:
    assert load(tmp_path) == CaptureSettings(mode="off", app_user=None, proxies=frozenset({2102}))


def test_flags_and_variables_say_how_and_whom(tmp_path: Path) -> None:
    found = load(tmp_path, capture="auto", app_user="1000:50", capture_proxies="2102,2103")
    assert found == CaptureSettings(mode="auto", app_user=AppUser(1000, 50), proxies=frozenset({2102, 2103}))
    assert load(tmp_path, app_user="1000").app_user == AppUser(1000, 1000)
    assert load(tmp_path, capture_proxies="none").proxies == frozenset()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"capture": "netlink"}, "'netlink' is not one of off, nft, iptables, auto"),
        ({"app_user": "www-data"}, "'www-data' is not the number of a user or group"),
        ({"capture": "nft"}, "needs EDG_MARBLE_APP_USER (--app-user)"),
        ({"capture": "nft", "app_user": "0"}, "needs an app that is not root"),
        ({"capture": "nft", "app_user": "2102"}, "would never see an app of user 2102"),
        ({"capture": "nft", "app_user": "1000", "relay": "off"}, "has no use with --relay off"),
        ({"capture": "nft", "app_user": "1000", "concurrency": "2"}, "cannot be with --concurrency 2"),
        ({"capture": "nft", "app_user": "1000", "fused": "on"}, "cannot be with --fused"),
        ({"app_user": "1000", "fused": "on"}, "cannot be with --fused"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path: Path, flags: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, **flags)
    assert says in str(refused.value)


def test_with_every_capability_it_may() -> None:
    check_privileges(ON, ALL, 0, sgx=False)
    check_privileges(CaptureSettings(), "", 0, sgx=True)


@pytest.mark.parametrize(
    ("status", "uid", "sgx", "says"),
    [
        (ALL, 0, True, "under SGX the network is the host's"),
        (ALL, 1000, False, "the app would run as user 1000, as the worker does"),
        ("CapEff:\t000001ffffffefff\n", 0, False, "needs CAP_NET_ADMIN in its network namespace"),
        ("CapEff:\t0000000000001000\n", 7, False, "needs CAP_SETUID, CAP_SETGID, CAP_KILL, CAP_CHOWN to start the app"),
        ("", 0, False, "needs CAP_NET_ADMIN"),
    ],
)
def test_what_is_lacking_is_named_with_the_way_out(status: str, uid: int, sgx: bool, says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_privileges(ON, status, uid, sgx=sgx)
    assert says in str(refused.value)


def test_the_effective_capabilities_are_read_from_proc() -> None:
    assert capabilities("CapPrm:\t01\nCapEff:\t0000000000001000\n") == 1 << 12
