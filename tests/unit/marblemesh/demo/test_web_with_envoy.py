# SPDX-License-Identifier: Apache-2.0
"""The program of web's Marble: its settings come from the manifest, its trust domain from its certificate."""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from marblemesh.demo.errors import DemoError
from marblemesh.demo.web_with_envoy.__main__ import run_both
from marblemesh.demo.web_with_envoy.settings import inside_settings
from tests.kit.pki import marble, shared_ca

EXAMPLE = json.loads((files("manifests") / "examples/emojivoto.json").read_text())


@pytest.fixture
def env() -> dict[str, str]:
    env: dict[str, str] = EXAMPLE["Marbles"]["web"]["Parameters"]["Env"]
    chain = marble(shared_ca(), "web").chain.decode()
    added = {"MARBLEMESH_RUN_DIR": "/run/web", "MARBLEMESH_SDS_SOCKET": "/run/web/sds.sock"}
    return env | added | {"MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN": chain}


def test_envoy_enforces_what_the_manifest_says_of_peers(env: dict[str, str]) -> None:
    inside = inside_settings(env)
    tls = EXAMPLE["TLS"]["web"]
    assert inside.trust_domain == shared_ca().trust_domain
    assert inside.allowed == tuple(tls["Incoming"][0]["Peers"])
    assert str(inside.inbound.port) == tls["Incoming"][0]["Port"]
    assert [(u.name, str(u.endpoint.port), u.peer) for u in inside.upstreams] == [
        (outgoing["Addr"], outgoing["Port"], outgoing["Addr"]) for outgoing in tls["Outgoing"]
    ]


def test_sockets_lie_in_the_run_directory(env: dict[str, str]) -> None:
    inside = inside_settings(env)
    assert inside.app == Path("/run/web/app.sock")
    assert [u.listen for u in inside.upstreams] == [Path("/run/web/emoji.sock"), Path("/run/web/voting.sock")]


@pytest.mark.parametrize("name", ["ENVOY_INBOUND", "ENVOY_ALLOW", "LISTEN", "EMOJI", "MARBLEMESH_SDS_SOCKET"])
def test_a_setting_that_is_missing_is_named(env: dict[str, str], name: str) -> None:
    del env[name]
    with pytest.raises(DemoError, match=f"{name} is not set"):
        inside_settings(env)


@pytest.mark.parametrize(("name", "value"), [("ENVOY_INBOUND", "8080"), ("ENVOY_STATS", "x:y"), ("LISTEN", "tcp:1")])
def test_a_setting_that_is_wrong_is_named_with_what_is_expected(env: dict[str, str], name: str, value: str) -> None:
    with pytest.raises(DemoError, match=rf"{name}.*{value}.*expected"):
        inside_settings(env | {name: value})


async def test_when_one_of_the_two_ends_the_other_is_ended_and_its_status_is_told() -> None:
    sleeper = (sys.executable, "-c", "import time; time.sleep(99)")
    assert await run_both([sleeper, (sys.executable, "-c", "raise SystemExit(7)")]) == 7
