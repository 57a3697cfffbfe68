# SPDX-License-Identifier: Apache-2.0
"""`marblemesh envoy bootstrap`: what it prints, judged by Envoy itself, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from marblemesh.cli.app import run
from marblemesh.demo.envoy_binary import FLAGS, envoy_path
from marblemesh.demo.gateway import make_gateway
from marblemesh.envoy import Peers
from sds.identity import SpiffeId, encode_segment

TERMINATOR = ("terminator", "--listen", "127.0.0.1:8443", "--app", "unix:app.sock")
ORIGINATOR = ("originator", "--listen", "unix:db.sock", "--to", "db.example:5432")
IN_MARBLE = ("in-marble", "--marble-type", "web", "--coordinator", "coordinator.example:18000")
EDGE = (
    *("edge", "--listen", "127.0.0.1:8443", "--coordinator", "127.0.0.1:18000"),
    *("--certificate", "gateway.pem", "--key", "gateway.key", "--root", "root.pem"),
)
ROUTES = ("--route", "shop.example=web:443", "--route", "*=api:8443")
EVERY = [TERMINATOR, ORIGINATOR, IN_MARBLE, (*EDGE, *ROUTES)]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(("envoy", "bootstrap", *arguments), {}) == 0, capsys.readouterr().err
    config = yaml.safe_load(capsys.readouterr().out)
    assert isinstance(config, dict)
    return config


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(("envoy", "bootstrap", *arguments), {}) == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("arguments", EVERY, ids=lambda a: a[0])
def test_envoy_accepts_what_is_printed(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    gateway = make_gateway(datetime.now(UTC), timedelta(days=1))
    for name, pem in (
        ("gateway.pem", gateway.certificate),
        ("gateway.key", gateway.key),
        ("root.pem", gateway.certificate),
    ):
        Path(name).write_text(pem)
    config = printed(capsys, *arguments, "--admin", "127.0.0.1:9901")
    Path("envoy.yaml").write_text(yaml.safe_dump(config))
    command = (str(envoy_path()), *FLAGS, "--mode", "validate", "-c", "envoy.yaml")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", EVERY, ids=lambda a: a[0])
def test_json_and_yaml_say_the_same(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    config = printed(capsys, *arguments)
    assert run(("envoy", "bootstrap", *arguments, "-o", "json"), {}) == 0
    assert json.loads(capsys.readouterr().out) == config


@pytest.mark.parametrize("arguments", [TERMINATOR, ORIGINATOR], ids=lambda a: a[0])
def test_no_plaintext_leaves_the_tee(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    resources = printed(capsys, *arguments)["static_resources"]
    for listener in resources["listeners"]:
        assert ("socket_address" in listener["address"]) == ("transport_socket" in listener["filter_chains"][0])
    for cluster in resources["clusters"]:
        address = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
        assert ("socket_address" in address) == ("transport_socket" in cluster)


def test_no_session_with_a_peer_is_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    (listener,) = printed(capsys, *TERMINATOR)["static_resources"]["listeners"]
    served = listener["filter_chains"][0]["transport_socket"]["typed_config"]
    assert served["disable_stateless_session_resumption"] is served["disable_stateful_session_resumption"] is True
    clusters = printed(capsys, *ORIGINATOR)["static_resources"]["clusters"]
    dialled = [cluster["transport_socket"]["typed_config"] for cluster in clusters if "transport_socket" in cluster]
    assert [context["max_session_keys"] for context in dialled] == [0]


def test_an_edge_ends_no_tls_and_takes_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    config = printed(capsys, *EDGE, *ROUTES)
    (listener,) = config["static_resources"]["listeners"]
    assert [chain.get("transport_socket") for chain in listener["filter_chains"]] == [None, None]
    assert "sds_config" not in json.dumps(config)


def test_an_edge_chooses_by_the_name_in_the_client_hello(capsys: pytest.CaptureFixture[str]) -> None:
    (listener,) = printed(capsys, *EDGE, *ROUTES)["static_resources"]["listeners"]
    chosen = {
        tuple(chain.get("filter_chain_match", {}).get("server_names", ())): chain["filters"][0]["typed_config"][
            "cluster"
        ]
        for chain in listener["filter_chains"]
    }
    assert chosen == {("shop.example",): "outbound|web|443", (): "outbound|api|8443"}


def test_an_address_is_no_server_name(capsys: pytest.CaptureFixture[str]) -> None:
    clusters = printed(capsys, "originator", "--listen", "unix:x", "--to", "10.0.0.7:1")["static_resources"]["clusters"]
    assert "sni" not in clusters[0]["transport_socket"]["typed_config"]
    clusters = printed(capsys, *ORIGINATOR)["static_resources"]["clusters"]
    assert clusters[0]["transport_socket"]["typed_config"]["sni"] == "db.example"


@pytest.mark.parametrize("domain", [None, "td.example"])
@pytest.mark.parametrize(
    ("types", "other", "let_in"),
    [
        (("web",), "web", True),
        (("web",), "web-admin", False),
        (("web",), "db", False),
        (("web", "db"), "db", True),
        (("a.c",), "abc", False),
        (("über x",), "über x", True),
        ((), "anything", True),
    ],
)
def test_peers_are_whole_names_of_types(types: tuple[str, ...], other: str, let_in: bool, domain: str | None) -> None:
    name = str(SpiffeId("td.example", ("marble", encode_segment(other), "6f2c")))
    found = []
    for matcher in (entry["matcher"] for entry in Peers(types, domain).matchers()):
        assert isinstance(matcher, dict)
        if domain is None:
            found.append(re.fullmatch(matcher["safe_regex"]["regex"], name) is not None)
        else:
            found.append(name.startswith(matcher["prefix"]))
    assert any(found) == let_in


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("terminator", "--listen", "8443", "--app", "unix:a"), "'8443' is no address: want HOST:PORT"),
        (("terminator", "--listen", "web:8443", "--app", "unix:a"), "Envoy listens on an IP address"),
        (("terminator", "--listen", ":8443", "--app", "10.0.0.1:80"), "plaintext stays in the TEE"),
        (("terminator", "--listen", ":8443", "--app", "unix:"), "needs the path of a socket"),
        (("terminator", "--listen", "::1:8443", "--app", "unix:a"), "an IPv6 address needs brackets"),
        (("originator", "--listen", "0.0.0.0:1", "--to", "db:1"), "plaintext stays in the TEE"),
        (("originator", "--listen", "unix:a", "--to", "db:70000"), "invalid port '70000'"),
        (("originator", "--listen", "unix:a", "--to", "d b:1"), "'d b' is no IP address and no host name"),
        (("originator", "--listen", "unix:a", "--to", "db:1", "--peer", ""), "--peer"),
        ((*TERMINATOR, "--trust-domain", "A b"), "trust domain 'A b': expected 1 to 255 of a-z"),
        (("originator", "--listen", "unix:a", "--to", "db:"), "the port is missing"),
        (("originator", "--listen", "unix:a", "--to", ":5432"), "':5432' names nobody"),
        (("originator", "--listen", "unix:a", "--to", "db:1", "--sni", "d b"), "'d b' is no host name"),
        (("in-marble", "--marble-type", "web", "--coordinator", ":18000"), "':18000' names nobody"),
        ((*EDGE, "--route", "web:443"), "want SNI=TYPE:PORT"),
        ((*EDGE, "--route", "a=b:1", "--route", "a=c:1"), "two routes for 'a'"),
        (EDGE, "--route"),
    ],
)
def test_a_wrong_flag_is_named_with_what_is_wanted(
    arguments: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert text in refused(capsys, *arguments)
