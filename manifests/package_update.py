# SPDX-License-Identifier: Apache-2.0
"""Package updates: a manifest that has nothing but packages, and of them nothing but higher security versions.

Such a file is no valid manifest (it has no Marbles), and is told apart from one by what it leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from manifests import wire
from manifests.json_text import load
from manifests.parse import shape


@dataclass(frozen=True, slots=True)
class PackageUpdate:
    """`versions`: the new SecurityVersion by package, None if it names none. `unupdatable`: packages with a member that
    this kind of update cannot change."""

    versions: Mapping[str, int | None]
    unupdatable: tuple[str, ...]


def package_update(raw: bytes) -> PackageUpdate | None:
    """The package update in `raw`, None if it is a whole manifest. Config decides nothing, as in MarbleRun.

    Raises ManifestSyntaxError or ManifestError for what is neither.
    """
    document = shape(load(raw))
    others = (
        document.marbles,
        document.users,
        document.recovery_keys,
        document.roles,
        document.secrets,
        document.tls,
        document.infrastructures,
        document.mesh.gateways,
        document.mesh.certificate_lifetime,
        document.mesh.offline_start,
    )
    if any(others):
        return None
    versions = {name: package.security_version for name, package in document.packages.items()}
    return PackageUpdate(versions, tuple(name for name, package in document.packages.items() if _beyond(package)))


def _beyond(package: wire.PackageWire) -> bool:
    identity = package.debug or package.unique_id or package.signer_id or package.product_id is not None
    platform = package.tdx is not None or package.snp is not None
    return bool(identity or platform or package.accepted_tcb_statuses or package.accepted_advisories)
