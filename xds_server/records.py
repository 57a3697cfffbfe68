# SPDX-License-Identifier: Apache-2.0
"""Everything that the Coordinator must not forget, as one frozen value.

Each change makes a new value, the store writes it as a whole, and only then does the Coordinator act on it: so what is
on disk, what is in memory and what Marbles were told never disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from sds.ca import CertificateAuthority
from sds.secrets import Secret
from xds_server.former_roots import NO_FORMER_ROOTS, FormerRoots
from xds_server.state import State

_NONE: Mapping[str, int] = MappingProxyType({})
_NO_SECRETS: Mapping[str, Secret] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class PendingUpdate:
    """A full update that waits for acknowledgements. `acknowledged`: every required user, and whether they did."""

    raw: bytes = field(repr=False)
    acknowledged: Mapping[str, bool]
    missing: int


@dataclass(frozen=True, slots=True)
class Records:
    """The persistent state. `security_versions` are the packages' effective ones, raised by package updates beyond
    what the raw manifest says; `activations` per Marble type; `counters` by MarbleRun's counter id; `former` are the
    Marble roots before that of `ca`, as long as somebody may have an identity of them."""

    state: State
    ca: CertificateAuthority
    root_secret: bytes = field(repr=False)
    previous_root_secret: bytes = field(repr=False)
    manifest: bytes = field(default=b"", repr=False)
    manifest_signature: bytes = b""
    security_versions: Mapping[str, int] = field(default_factory=lambda: _NONE)
    secrets: Mapping[str, Secret] = field(default_factory=lambda: _NO_SECRETS, repr=False)
    previous_secrets: Mapping[str, Secret] = field(default_factory=lambda: _NO_SECRETS, repr=False)
    activations: Mapping[str, int] = field(default_factory=lambda: _NONE)
    counters: Mapping[str, int] = field(default_factory=lambda: _NONE)
    update_log: tuple[str, ...] = ()
    pending_update: PendingUpdate | None = None
    former: FormerRoots = NO_FORMER_ROOTS
