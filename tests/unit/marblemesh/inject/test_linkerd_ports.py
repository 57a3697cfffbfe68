# SPDX-License-Identifier: Apache-2.0
"""Which ports Linkerd is told to leave alone."""

from __future__ import annotations

import json

import pytest

from manifests.parse import parse
from marblemesh.inject.linkerd_ports import (
    LinkerdMode,
    MeshPorts,
    UnknownMarble,
    mesh_ports,
    pod_annotations,
    service_annotations,
)

MANIFEST = parse(
    json.dumps(
        {
            "Packages": {"p": {"SignerID": "87" * 32, "ProductID": 1, "SecurityVersion": 1}},
            "Marbles": {
                "web": {"Package": "p", "TLS": ["front", "back"]},
                "bot": {"Package": "p", "TLS": ["back"]},
                "idle": {"Package": "p"},
            },
            "TLS": {
                "front": {"Incoming": [{"Port": "10443"}, {"Port": "8443"}]},
                "back": {
                    "Outgoing": [{"Addr": "web", "Port": "8443"}, {"Addr": "idle", "Port": "2001"}],
                    "Incoming": [{"Port": "8443"}],
                },
            },
        }
    ).encode()
)


def test_the_ports_of_all_tags_of_a_marble_count_once_in_ascending_order() -> None:
    assert mesh_ports(MANIFEST, "web") == MeshPorts((8443, 10443), (2001, 8443))
    assert mesh_ports(MANIFEST, "idle") == MeshPorts((), ())


def test_a_marble_that_the_manifest_does_not_have_is_refused_with_those_that_it_has() -> None:
    with pytest.raises(UnknownMarble, match=r"no Marble 'emoji'; it has bot, idle, web"):
        mesh_ports(MANIFEST, "emoji")


def test_opaque_marks_where_tls_of_the_mesh_arrives() -> None:
    assert pod_annotations(mesh_ports(MANIFEST, "web"), LinkerdMode.OPAQUE) == {
        "config.linkerd.io/opaque-ports": "8443,10443"
    }
    assert pod_annotations(mesh_ports(MANIFEST, "idle"), LinkerdMode.OPAQUE) == {}


def test_skip_names_the_coordinator_s_ports_and_linkerd_s_own_defaults_too() -> None:
    """An annotation replaces Linkerd's default list, so the default stands in it."""
    assert pod_annotations(mesh_ports(MANIFEST, "web"), LinkerdMode.SKIP) == {
        "config.linkerd.io/skip-inbound-ports": "4567,4568,8443,10443",
        "config.linkerd.io/skip-outbound-ports": "2001,4433,4567,4568,8443,18000",
    }
    assert pod_annotations(mesh_ports(MANIFEST, "idle"), LinkerdMode.SKIP) == {
        "config.linkerd.io/skip-outbound-ports": "2001,4433,4567,4568,18000"
    }


def test_a_service_is_marked_by_its_own_port_numbers_and_only_as_opaque() -> None:
    assert service_annotations((443,), LinkerdMode.OPAQUE) == {"config.linkerd.io/opaque-ports": "443"}
    assert service_annotations((), LinkerdMode.OPAQUE) == {}
    assert service_annotations((443,), LinkerdMode.SKIP) == {}
