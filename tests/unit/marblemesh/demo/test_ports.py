# SPDX-License-Identifier: Apache-2.0
"""Free ports."""

from __future__ import annotations

import random
import socket

from marblemesh.demo.ports import LOW, _first_ephemeral, free_ports


def test_ports_are_different_and_below_the_range_of_outgoing_connections() -> None:
    ports = free_ports(20, "127.0.0.1", random.Random(1))
    assert len(set(ports)) == 20
    assert all(LOW <= port < _first_ephemeral() for port in ports)


def test_a_taken_port_is_passed_over() -> None:
    [first] = free_ports(1, "127.0.0.1", random.Random(2))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        assert free_ports(1, "127.0.0.1", random.Random(2)) != [first]
