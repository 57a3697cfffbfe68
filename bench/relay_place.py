# SPDX-License-Identifier: Apache-2.0
"""Where one run of the relay benchmark keeps its files. Loads nothing that a relay does not: its memory is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sds.keys import PrivateKey
from sds.material import Identity, TrustBundle


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of one run: certificates, the app's socket, the peers' configurations and logs."""

    folder: Path

    @property
    def app(self) -> Path:
        return self.folder / "app.sock"

    def identity(self, name: str) -> Identity:
        key = PrivateKey((self.folder / f"{name}.key").read_bytes())
        return Identity((self.folder / f"{name}.pem").read_bytes(), key)

    @property
    def bundle(self) -> TrustBundle:
        return TrustBundle((self.folder / "ca.pem").read_bytes())

    @property
    def peer_prefix(self) -> str:
        return (self.folder / "prefix").read_text()
