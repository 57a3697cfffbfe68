# SPDX-License-Identifier: Apache-2.0
"""What the operator decides for all pods alike; a pod's own labels and annotations decide the rest."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum

from manifests.model import Manifest
from marblemesh.inject.linkerd_ports import LinkerdMode
from marblemesh.inject.sgx import INTEL, SgxResources

_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9.]{0,251}[A-Za-z0-9])?")


class Advertise(StrEnum):
    """Under which name peers find an instance: the Marble type, which a Service stands for, or the pod's IP address."""

    SERVICE = "service"
    POD_IP = "pod-ip"


@dataclass(frozen=True, slots=True)
class AdminAddress:
    """Where the worker's admin port listens; `host` is an IP address, and not loopback: kubelets come from outside."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`sgx` None: no SGX (TDX, simulation). `admin` None: no admin port, and so no probes. `linkerd` needs a
    `manifest`, which says what the ports are."""

    coordinator: str = "coordinator-mesh-api.marblerun:2001"
    cluster_domain: str = "cluster.local"
    sgx: SgxResources | None = INTEL
    worker: bool = True
    wrap: bool = False
    simulation: bool = False
    admin: AdminAddress | None = AdminAddress("0.0.0.0", 15090)
    advertise: Advertise = Advertise.SERVICE
    linkerd: LinkerdMode | None = None
    manifest: Manifest | None = None


def parse_coordinator(text: str) -> str:
    """`host:port`, IPv6 in brackets, as it goes into a variable. Raises ValueError."""
    host, _, port = text.rpartition(":")
    if not _is_port(port):
        raise ValueError(f"{text[:120]!r} is not host:port")
    if host.startswith("[") and host.endswith("]"):
        ipaddress.IPv6Address(host[1:-1])
    elif not _NAME.fullmatch(host):
        raise ValueError(f"{host[:120]!r} is not a host name or IP address (write IPv6 as [::1]:{port})")
    return text


def parse_admin(text: str) -> AdminAddress | None:
    """`IP:port` or `off`. Raises ValueError."""
    if text == "off":
        return None
    host, _, port = text.rpartition(":")
    if not _is_port(port):
        raise ValueError(f"{text[:120]!r} is not IP:port, or off")
    address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    if address.is_loopback:
        raise ValueError(f"{text!r} is loopback: the kubelet's probes come from outside, give 0.0.0.0:{port} or off")
    return AdminAddress(str(address), int(port))


def parse_domain(text: str) -> str:
    """A DNS domain. Raises ValueError."""
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text[:120]!r} is not a DNS domain")
    return text


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535
