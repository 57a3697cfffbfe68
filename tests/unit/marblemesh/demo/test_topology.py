# SPDX-License-Identifier: Apache-2.0
"""Which processes the demo is made of."""

from __future__ import annotations

import json
import re
from dataclasses import astuple
from importlib.resources import files
from pathlib import Path

import pytest

from marblemesh.demo.errors import DemoError
from marblemesh.demo.topology import (
    EXAMPLE_PORTS,
    MARBLES,
    Paths,
    Ports,
    Topology,
    base_environment,
    demo_manifest,
    era_config,
    simulated_enclave,
)

PORTS = Ports.of(list(range(20_001, 20_001 + Ports.count())))
EXAMPLE = (files("manifests") / "examples/emojivoto.json").read_text()


@pytest.fixture
def topology() -> Topology:
    return Topology(PORTS, Paths(Path("/s")), "/usr/bin/python3", {"PATH": "/bin"}, "f" * 64)


def test_the_example_ports_stand_in_the_example_and_nowhere_in_the_demos_manifest() -> None:
    manifest = demo_manifest(EXAMPLE, PORTS, "PEM")
    for old in EXAMPLE_PORTS.values():
        assert re.search(rf"\b{old}\b", EXAMPLE)
        assert not re.search(rf"\b{old}\b", manifest)
    assert json.loads(manifest)["TLS"]["web"]["Incoming"][0]["Port"] == str(PORTS.web)


def test_two_ports_that_swap_places_are_each_replaced_once() -> None:
    swapped = Ports.of([EXAMPLE_PORTS["voting"] if p == PORTS.emoji else p for p in astuple(PORTS)])
    manifest = json.loads(demo_manifest(EXAMPLE, swapped, "PEM"))
    assert manifest["TLS"]["emoji"]["Incoming"][0]["Port"] == str(EXAMPLE_PORTS["voting"])
    assert manifest["TLS"]["voting"]["Incoming"][0]["Port"] == str(PORTS.voting)


def test_the_gateways_certificate_is_put_in_as_it_is() -> None:
    certificate = f"-----BEGIN CERTIFICATE-----\n{EXAMPLE_PORTS['web']}/x\n"
    manifest = json.loads(demo_manifest(EXAMPLE, PORTS, certificate))
    assert manifest["Mesh"]["Gateways"]["edge"]["Certificate"] == certificate


def test_every_marble_of_the_manifest_runs_and_its_enclave_is_its_package() -> None:
    manifest = json.loads(EXAMPLE)
    assert set(MARBLES) == set(manifest["Marbles"])
    for marble in MARBLES:
        enclave, package = simulated_enclave(marble), manifest["Packages"][manifest["Marbles"][marble]["Package"]]
        assert {name: enclave[name] for name in package} == package


def test_web_carries_its_traffic_through_envoy_and_the_others_through_the_relay(topology: Topology) -> None:
    assert [m for m in MARBLES if "off" in topology.worker(m).argv] == ["web"]


def test_a_process_inherits_only_what_it_needs() -> None:
    inherited = base_environment({"PATH": "/bin", "EDG_MARBLE_TYPE": "x", "SOME_TOKEN": "hush"})
    assert inherited == {"PATH": "/bin", "PYTHONUNBUFFERED": "1"}


def test_the_whole_demo_lies_below_the_state_directory(topology: Topology) -> None:
    commands = [topology.coordinator(), topology.edge(Path("/envoy")), topology.prometheus("/prometheus")]
    commands += [topology.worker(marble) for marble in MARBLES]
    assert all(command.cwd.is_relative_to("/s/run") for command in commands)


def test_the_era_config_has_what_a_pin_without_unique_id_needs() -> None:
    assert {"SignerID", "ProductID", "SecurityVersion"} <= era_config().keys()


def test_a_state_directory_too_deep_for_sockets_is_refused_by_naming_the_option() -> None:
    Paths(Path("/" + "d" * 70)).check_socket_lengths()
    with pytest.raises(DemoError, match="--state-dir"):
        Paths(Path("/" + "d" * 90)).check_socket_lengths()
