# SPDX-License-Identifier: Apache-2.0
"""The Envoys' bootstraps, judged by Envoy itself."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from marblemesh.demo.envoy_binary import FLAGS, envoy_path
from marblemesh.demo.envoy_config import (
    Edge,
    Endpoint,
    Inside,
    Upstream,
    edge_bootstrap,
    inside_bootstrap,
)
from marblemesh.demo.gateway import make_gateway
from marblemesh.envoy import Config


@pytest.fixture
def inside(tmp_path: Path) -> Inside:
    return Inside(
        inbound=Endpoint("127.0.0.1", 18443),
        app=tmp_path / "app.sock",
        trust_domain="td",
        allowed=("vote-bot",),
        upstreams=(Upstream("emoji", tmp_path / "emoji.sock", Endpoint("127.0.0.1", 18444), "emoji"),),
        sds_socket=tmp_path / "sds.sock",
        admin_socket=tmp_path / "envoy.sock",
        stats=Endpoint("127.0.0.1", 18446),
    )


@pytest.fixture
def edge(tmp_path: Path) -> Edge:
    gateway = make_gateway(datetime.now(UTC), timedelta(days=1))
    for name, pem in (("certificate", gateway.certificate), ("key", gateway.key), ("root", gateway.certificate)):
        (tmp_path / f"{name}.pem").write_text(pem)
    return Edge(
        listen=Endpoint("127.0.0.1", 18440),
        marble_type="web",
        port=18443,
        xds=Endpoint("127.0.0.1", 18000),
        certificate=tmp_path / "certificate.pem",
        key=tmp_path / "key.pem",
        coordinator_root=tmp_path / "root.pem",
        admin=Endpoint("127.0.0.1", 18441),
    )


def validate(config: Config) -> None:
    command = (str(envoy_path()), *FLAGS, "--mode", "validate", "--config-yaml", json.dumps(config))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_envoy_accepts_the_configuration_inside_a_marble(inside: Inside) -> None:
    validate(inside_bootstrap(inside))


def test_envoy_accepts_the_configuration_at_the_edge(edge: Edge) -> None:
    validate(edge_bootstrap(edge))


def test_no_plaintext_hop_inside_is_tcp(inside: Inside) -> None:
    resources = inside_bootstrap(inside)["static_resources"]
    assert isinstance(resources, dict)
    for listener in resources["listeners"]:
        tls = "transport_socket" in listener["filter_chains"][0]
        assert ("socket_address" in listener["address"]) == (tls or listener["name"] == "stats")
    for cluster in resources["clusters"]:
        address = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
        assert ("socket_address" in address) == ("transport_socket" in cluster)


def test_the_edge_has_no_tls_on_the_data_path(edge: Edge) -> None:
    resources = edge_bootstrap(edge)["static_resources"]
    assert isinstance(resources, dict)
    assert [cluster["name"] for cluster in resources["clusters"]] == ["marblemesh-xds"]
    assert all("transport_socket" not in listener["filter_chains"][0] for listener in resources["listeners"])
