# SPDX-License-Identifier: Apache-2.0
"""Rules for gateways: a name and a certificate stand for one client only."""

from __future__ import annotations

from manifests.checks_packages import check_name
from manifests.places import Findings
from manifests.wire import ManifestWire


def check_mesh(document: ManifestWire, found: Findings) -> None:
    owners: dict[str, str] = {}
    for name, gateway in document.mesh.gateways.items():
        at = ("Mesh", "Gateways", name)
        check_name("gateway", name, found, *at)
        if name in document.marbles:
            found.error(f"{name!r} is a Marble type too: a name among Peers must mean one of them", *at)
        other = owners.setdefault("".join(gateway.certificate.split()), name)
        if other != name:
            found.error(f"gateways {other!r} and {name!r} have the same certificate", *at, "Certificate")
