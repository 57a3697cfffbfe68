# SPDX-License-Identifier: Apache-2.0
"""The environment of a linkerd2-proxy, read by the stand-in as the real binary reads it: what matters to TCP."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.kit.linkerd_flow import Address

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True)
class Settings:
    """Names without `LINKERD2_PROXY_`. Durations in seconds."""

    control: Address  # one for identity, destination and policy
    workload: str
    directory: Path
    anchors: str
    token_file: Path
    identity: str
    inbound: Address
    outbound: Address
    admin: Address
    inbound_detect: float
    outbound_detect: float
    inbound_connect: float
    outbound_connect: float
    inbound_ips: frozenset[str]
    inbound_ports: tuple[int, ...]
    opaque_ports: frozenset[int]
    default_policy: str
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
    min_refresh: float

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Self:
        """Raises KeyError for a variable that has to be there."""
        mine = {
            name.removeprefix("LINKERD2_PROXY_"): value
            for name, value in environment.items()
            if name.startswith("LINKERD2_PROXY_")
        }
        return cls(
            control=_address(mine["DESTINATION_SVC_ADDR"]),
            workload=mine["POLICY_WORKLOAD"],
            directory=Path(mine["IDENTITY_DIR"]),
            anchors=mine["IDENTITY_TRUST_ANCHORS"],
            token_file=Path(mine["IDENTITY_TOKEN_FILE"]),
            identity=mine["IDENTITY_LOCAL_NAME"],
            inbound=_address(mine.get("INBOUND_LISTEN_ADDR", "0.0.0.0:4143")),
            outbound=_address(mine.get("OUTBOUND_LISTEN_ADDR", "127.0.0.1:4140")),
            admin=_address(mine.get("ADMIN_LISTEN_ADDR", "127.0.0.1:4191")),
            inbound_detect=_seconds(mine.get("INBOUND_DETECT_TIMEOUT", "10s")),
            outbound_detect=_seconds(mine.get("OUTBOUND_DETECT_TIMEOUT", "10s")),
            inbound_connect=_seconds(mine.get("INBOUND_CONNECT_TIMEOUT", "300ms")),
            outbound_connect=_seconds(mine.get("OUTBOUND_CONNECT_TIMEOUT", "1s")),
            inbound_ips=frozenset(_list(mine.get("INBOUND_IPS", ""))),
            inbound_ports=tuple(map(int, _list(mine.get("INBOUND_PORTS", "")))),
            opaque_ports=frozenset(map(int, _list(mine.get("INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION", "")))),
            default_policy=mine.get("INBOUND_DEFAULT_POLICY", "all-unauthenticated"),
            networks=tuple(map(ipaddress.ip_network, _list(mine.get("DESTINATION_PROFILE_NETWORKS", "")))),
            min_refresh=_seconds(mine.get("IDENTITY_MIN_REFRESH", "10s")),
        )


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _list(text: str) -> list[str]:
    return [item for item in text.split(",") if item]


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+)(ms|s|m|h|d)", text)
    if match is None:
        raise ValueError(f"{text!r} is no duration with a unit")
    return int(match[1]) * _SECONDS[match[2]]
