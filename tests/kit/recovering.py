# SPDX-License-Identifier: Apache-2.0
"""A deployment with owners of recovery keys, who hold what OpenSSL decrypted for them, and that has lost its key."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.kit.client_api import Answer
from tests.kit.coordinator import manifest
from tests.kit.key_owner import KeyOwner, key_owner
from tests.kit.outside import Outside
from tests.kit.site import Site
from tests.kit.users import user

# Each instance's own key, derived from the root secret: who has the same one has the same state.
MARBLE: dict[str, object] = {
    "Secrets": {"own": {"Type": "symmetric-key", "Size": 256}},
    "Marbles": {"web": {"Package": "app", "Parameters": {"Env": {"OWN": "{{ hex .Secrets.own }}"}}}},
}


def owned(keys: Mapping[str, KeyOwner], threshold: int = 0, **members: object) -> bytes:
    """A manifest with these owners, and alice who may update it alone."""
    who = {"alice": {"Certificate": user("alice").certificate.decode(), "Roles": ["update"]}}
    document: dict[str, object] = {
        **MARBLE,
        "RecoveryKeys": {name: owner.pem for name, owner in keys.items()},
        "Config": {"RecoveryThreshold": threshold} if threshold else {},
        "Users": who,
        "Roles": {"update": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]}},
    }
    return manifest(**(document | members))


def owners(directory: Path, names: str) -> dict[str, KeyOwner]:
    """An owner for each letter; a letter is always the same key."""
    return {name: key_owner(directory, "abcdef".index(name)) for name in names}


@dataclass
class Deployment:
    """`secrets`: the owners' shares in plain."""

    site: Site
    owners: dict[str, KeyOwner]
    secrets: dict[str, bytes]

    @property
    def outside(self) -> Outside:
        return self.site.outside

    async def lose_key(self, machine: str = "machine") -> Outside:
        """A restart without `sealed_key`, into recovery."""
        await self.site.stop()
        (self.site.state / "sealed_key").unlink()
        return await self.site.start(machine)

    async def upload(self, name: str, secret: bytes | None = None) -> Answer:
        """An owner's secret, or another one, with that owner's signature."""
        sent = self.secrets[name] if secret is None else secret
        return await self.outside.recover(sent, self.owners[name].sign(sent))

    async def upload_all(self, names: str) -> list[int]:
        """What each answer calls `remaining`."""
        return [int((await self.upload(name)).data["remaining"]) for name in names]

    async def update(self, raw: bytes, keys: Mapping[str, KeyOwner]) -> Mapping[str, bytes] | None:
        """Alice's update; the secrets that it hands out, decrypted."""
        data = (await self.outside.update(raw)).data
        return None if "recoverySecrets" not in data else decrypted(data["recoverySecrets"], keys)


def decrypted(secrets: Mapping[str, str], keys: Mapping[str, KeyOwner]) -> dict[str, bytes]:
    return {name: keys[name].decrypt(ciphertext) for name, ciphertext in secrets.items()}


@asynccontextmanager
async def deployment(home: Path, names: str, threshold: int = 0, **members: object) -> AsyncIterator[Deployment]:
    """Running, with an owner for each letter. Of what many tests begin with, each gets a copy."""
    keys = owners(home, names)
    running = Site(home)
    if members:
        secrets: Mapping[str, bytes] = await _set(running, keys, owned(keys, threshold, **members))
    else:
        if (names, threshold) not in _COPIES:
            _COPIES[names, threshold] = await _prepared(keys, threshold)
        directory, secrets = _COPIES[names, threshold]
        shutil.copytree(directory.name, home, dirs_exist_ok=True)
        await running.start()
    try:
        yield Deployment(running, keys, dict(secrets))
    finally:
        await running.stop()


_COPIES: dict[tuple[str, int], tuple[TemporaryDirectory[str], Mapping[str, bytes]]] = {}


async def _prepared(
    keys: Mapping[str, KeyOwner], threshold: int
) -> tuple[TemporaryDirectory[str], Mapping[str, bytes]]:
    directory = TemporaryDirectory(prefix="recovering-")
    running = Site(Path(directory.name))
    try:
        return directory, await _set(running, keys, owned(keys, threshold))
    finally:
        await running.stop()


async def _set(running: Site, keys: Mapping[str, KeyOwner], raw: bytes) -> dict[str, bytes]:
    outside = await running.start()
    return decrypted((await outside.set_manifest(raw)).data["RecoverySecrets"], keys)
