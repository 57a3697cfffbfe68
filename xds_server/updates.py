# SPDX-License-Identifier: Apache-2.0
"""Updates of the manifest, as changes of the records. Pure: users, time and what was generated are arguments.

    package update    raises security versions; nobody else is asked
    full update       submit ─► wait for acknowledgements ─► apply        (submitting counts as one)
                                 └► cancel

Who may do which stands in `users`, except that an acknowledgement is by those who were asked when the update began.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType

from manifests.model import Action, Manifest
from manifests.package_update import PackageUpdate
from sds.ca import CertificateAuthority
from sds.secrets import Secret
from xds_server import update_log
from xds_server.errors import NotAllowed, NoUpdate, UpdateRefused
from xds_server.records import PendingUpdate, Records
from xds_server.users import check_may_raise, check_may_update, may, updaters

_IN_PROGRESS = "update already in progress. Acknowledge the update to apply it, or cancel it to start a new one"


def effective(manifest: Manifest, versions: Mapping[str, int]) -> Manifest:
    """The manifest with the security versions that package updates have raised."""
    if not versions:
        return manifest
    packages = {
        name: replace(package, security_version=versions.get(name, package.security_version))
        for name, package in manifest.packages.items()
    }
    return replace(manifest, packages=MappingProxyType(packages))


# --- package updates


def raise_versions(records: Records, manifest: Manifest, user: str, update: PackageUpdate, now: datetime) -> Records:
    """Raise what the update names; `manifest` is the effective one. Raises UpdateRefused or NotAllowed."""
    check_none_pending(records)
    versions = _checked(manifest, update)
    check_may_raise(manifest, user, tuple(versions))
    for name, version in versions.items():
        records = update_log.security_version_increased(records, now, user, name, version)
    return replace(records, security_versions=MappingProxyType({**records.security_versions, **versions}))


def _checked(manifest: Manifest, update: PackageUpdate) -> dict[str, int]:
    for name in update.versions:
        if name not in manifest.packages:
            raise UpdateRefused(f'loading current package "{name}" from store: requested value not set')
    step = "checking update manifest: "
    if not update.versions:
        raise UpdateRefused(f"{step}no packages defined")
    if update.unupdatable:
        raise UpdateRefused(f"{step}update manifest contains unupdatable values")
    found: dict[str, int] = {}
    for name, version in update.versions.items():
        if version is None:
            raise UpdateRefused(f"{step}update manifest does not specify a SecurityVersion to update")
        if version < (manifest.packages[name].security_version or 0):
            raise UpdateRefused(f"{step}update manifest tries to downgrade SecurityVersion of the original manifest")
        if not manifest.packages[name].is_sgx or manifest.packages[name].unique_id is not None:
            # A minimum beside a fixed measurement would make the package match nothing, or mean nothing.
            raise UpdateRefused(f"{step}package {name} is not identified by a SecurityVersion: it cannot be raised")
        found[name] = version
    return found


# --- full updates


def check_none_pending(records: Records) -> None:
    if records.pending_update is not None:
        raise UpdateRefused(_IN_PROGRESS)


def submit(records: Records, current: Manifest, user: str, wanted: Manifest, now: datetime) -> Records:
    """Records in which the update is pending; it is due at once if nobody else has to agree. Raises as above."""
    check_may_update(current, user)
    check_none_pending(records)
    asked = updaters(current)
    missing = max((current.config.update_threshold or len(asked)) - 1, 0)
    pending = PendingUpdate(wanted.raw, MappingProxyType({name: name == user for name in asked}), missing)
    records = replace(records, pending_update=pending)
    if missing == 0:
        return update_log.update_initiated(records, now, user, wanted.fingerprint)
    return update_log.update_waits(records, now, user, (missing, missing_users(pending)), wanted.fingerprint)


def pending(records: Records) -> PendingUpdate:
    """The update that waits; raises NoUpdate."""
    if records.pending_update is None:
        raise NoUpdate
    return records.pending_update


def acknowledge(records: Records, user: str, raw: bytes, fingerprint: str, now: datetime) -> Records:
    """One more user agrees, to exactly these bytes; a second time changes nothing. Raises NoUpdate, NotAllowed,
    UpdateRefused."""
    update = pending(records)
    if user not in update.acknowledged:
        raise NotAllowed(f"user {user} is not allowed to acknowledge manifest updates")
    if raw != update.raw:
        raise UpdateRefused("provided manifest does not match the pending manifest")
    if update.acknowledged[user]:
        return records
    update = replace(
        update,
        acknowledged=MappingProxyType({**update.acknowledged, user: True}),
        missing=max(update.missing - 1, 0),
    )
    records = replace(records, pending_update=update)
    return update_log.update_acknowledged(records, now, user, (update.missing, missing_users(update)), fingerprint)


def cancel(records: Records, current: Manifest, user: str, fingerprint: str, now: datetime) -> Records:
    """Any one user who may update may also call it off. Raises NoUpdate, NotAllowed."""
    pending(records)
    if not may(current, user, Action.UPDATE_MANIFEST):
        raise NotAllowed(f"user {user} is not allowed to cancel the manifest update")
    return update_log.update_cancelled(replace(records, pending_update=None), now, user, fingerprint)


@dataclass(frozen=True, slots=True)
class Generated:
    """What goes with a new manifest: all of it made before the records change."""

    ca: CertificateAuthority
    signature: bytes
    root_secret: bytes = field(repr=False)
    secrets: Mapping[str, Secret] = field(repr=False)
    previous_secrets: Mapping[str, Secret] = field(repr=False)


def apply(records: Records, old: Manifest, new: Manifest, made: Generated, now: datetime) -> Records:
    """The new manifest in force; `old` and `new` as written. Activations and counters stay.

    A raised security version stays with a package that is written as before: who writes the public file anew does not
    know it, and must not lower it unknowingly.
    """
    kept = {
        n: v
        for n, v in records.security_versions.items()
        if n in new.packages and new.packages[n] == old.packages.get(n)
    }
    rotated = made.root_secret != records.root_secret
    changed = replace(
        records,
        ca=made.ca,
        root_secret=made.root_secret,
        previous_root_secret=records.root_secret if rotated else records.previous_root_secret,
        manifest=new.raw,
        manifest_signature=made.signature,
        security_versions=MappingProxyType(kept),
        secrets=MappingProxyType(dict(made.secrets)),
        previous_secrets=MappingProxyType(dict(made.previous_secrets)),
        pending_update=None,
    )
    return update_log.update_applied(changed, now, new.fingerprint)


def abandon(records: Records, fingerprint: str, now: datetime) -> Records:
    """Applying failed: the update is gone, and the log says so."""
    return update_log.update_failed(replace(records, pending_update=None), now, fingerprint)


# --- what is said about it


def missing_users(update: PendingUpdate) -> tuple[str, ...]:
    """Who was asked and has not agreed yet. May be more than are needed."""
    return tuple(sorted(name for name, done in update.acknowledged.items() if not done))


def still_needed(update: PendingUpdate) -> str:
    if update.missing == 1:
        return "1 user still needs to acknowledge the update manifest"
    return f"{update.missing} users still need to acknowledge the update manifest"


def acknowledged_message(update: PendingUpdate | None) -> str:
    """The answer to an acknowledgement; None: nothing is pending any more. Tools read its first word."""
    if update is None:
        return "All users have acknowledged the update manifest. Update successfully applied"
    names = ", ".join(missing_users(update))
    return f"{still_needed(update)}.\nThe following users have not yet accepted: {names}"
