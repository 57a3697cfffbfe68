# SPDX-License-Identifier: Apache-2.0
"""Updates of the manifest in force: what is generated for them, in which order, and who hears of it.

rules (updates) ─► new CA, secrets, recovery keys ─► dry run ─► commit ─► mesh: new CA to running Marbles,
                                                                 and those that are no longer allowed are revoked
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from manifests.errors import ManifestError, ManifestSyntaxError
from manifests.model import Manifest
from manifests.package_update import PackageUpdate, package_update
from manifests.parse import parse
from sds.ca import CertificateAuthority
from sds.errors import SdsError
from sds.logs import get_logger
from xds_server import updates
from xds_server.answers import AcknowledgeAnswer, PendingAnswer, UpdateAnswer
from xds_server.certified import still_allowed
from xds_server.core import Core
from xds_server.errors import CoordinatorError, ManifestRefused, UpdateRefused
from xds_server.former_roots import FormerRoots
from xds_server.manifest_operations import in_force, say_what_matters, share_out
from xds_server.manifest_rules import accepted
from xds_server.mesh import ActiveMarble
from xds_server.mesh_clients import turned_out
from xds_server.parameters import ParametersError, dry_run
from xds_server.records import PendingUpdate, Records
from xds_server.secret_rules import after_update, new_root_secret, regenerate_shared_certificates
from xds_server.sign_quote import sign_with_root
from xds_server.snapshot import Snapshot
from xds_server.users import check_may_update, user_of

_log = get_logger(__name__)

_DONE = UpdateAnswer(0, None)


async def apply_update(core: Core, raw: bytes, certificates: Sequence[bytes]) -> UpdateAnswer:
    """See Operations.update_apply."""
    user_of(core.manifest, certificates)
    try:
        packages = await asyncio.to_thread(package_update, raw)
    except ManifestSyntaxError as e:
        raise UpdateRefused(f"unmarshaling manifest: {e}") from e
    except ManifestError as e:
        raise UpdateRefused(f"invalid manifest: {e}") from e
    if packages is not None:
        await core.exclusively(lambda: _update_packages(core, packages, certificates))
        return _DONE
    return await core.exclusively(lambda: _submit(core, raw, certificates))


def get_pending(core: Core) -> PendingAnswer:
    """See Operations.update_get."""
    update = updates.pending(core.records)
    return PendingAnswer(updates.still_needed(update), updates.missing_users(update), update.raw)


async def acknowledge_update(core: Core, raw: bytes, certificates: Sequence[bytes]) -> AcknowledgeAnswer:
    """See Operations.update_acknowledge."""
    user_of(core.manifest, certificates)
    return await core.exclusively(lambda: _acknowledge(core, raw, certificates))


async def cancel_update(core: Core, certificates: Sequence[bytes]) -> str:
    """See Operations.update_cancel."""
    user_of(core.manifest, certificates)
    return await core.exclusively(lambda: _cancel(core, certificates))


# --- package update


async def _update_packages(core: Core, update: PackageUpdate, certificates: Sequence[bytes]) -> None:
    user, manifest = user_of(core.manifest, certificates), in_force(core)
    now = core.ports.clock()
    records = updates.raise_versions(core.records, manifest, user, update, now)
    ca = await asyncio.to_thread(core.ca.rotate, now)
    snapshot = await asyncio.to_thread(Snapshot, manifest, ca)
    secrets = await asyncio.to_thread(regenerate_shared_certificates, core.records.secrets, manifest, ca, now)
    former = _former(core, updates.effective(core.written or manifest, records.security_versions))
    await core.commit(replace(records, ca=ca, secrets=MappingProxyType(secrets), former=former))
    _put_in_force(core, snapshot)
    _log.info("SecurityVersion increased", user=user, packages=list(update.versions))


# --- full update


async def _submit(core: Core, raw: bytes, certificates: Sequence[bytes]) -> UpdateAnswer:
    user, manifest = user_of(core.manifest, certificates), in_force(core)
    check_may_update(manifest, user)
    wanted = await asyncio.to_thread(_valid, raw, core.ca)
    records = updates.submit(core.records, manifest, user, wanted, core.ports.clock())
    return await _apply_if_due(core, records, wanted)


async def _acknowledge(core: Core, raw: bytes, certificates: Sequence[bytes]) -> AcknowledgeAnswer:
    user = user_of(core.manifest, certificates)
    wanted = await asyncio.to_thread(parse, updates.pending(core.records).raw)
    records = updates.acknowledge(core.records, user, raw, wanted.fingerprint, core.ports.clock())
    answer = await _apply_if_due(core, records, wanted)
    return AcknowledgeAnswer(answer, updates.acknowledged_message(core.records.pending_update))


async def _cancel(core: Core, certificates: Sequence[bytes]) -> str:
    user, manifest = user_of(core.manifest, certificates), in_force(core)
    fingerprint = parse(updates.pending(core.records).raw).fingerprint
    await core.commit(updates.cancel(core.records, manifest, user, fingerprint, core.ports.clock()))
    _log.info("Complete Manifest update cancelled by user", user=user)
    return "Update successfully cancelled"


async def _apply_if_due(core: Core, records: Records, wanted: Manifest) -> UpdateAnswer:
    update = updates.pending(records)
    if update.missing:
        if records is not core.records:
            await core.commit(records)
        return _waiting(update)
    try:
        return UpdateAnswer(0, None, await _apply(core, records, wanted))
    except (CoordinatorError, SdsError) as e:
        if core.records.pending_update is not None:
            await core.commit(updates.abandon(core.records, wanted.fingerprint, core.ports.clock()))
        _log.warning("manifest update failed", manifestFingerprint=wanted.fingerprint, error=str(e))
        raise UpdateRefused(str(e)) from e


async def _apply(core: Core, records: Records, wanted: Manifest) -> Mapping[str, bytes] | None:
    """Put the update in force; the recovery secrets, if they are new ones."""
    now, old = core.ports.clock(), in_force(core)
    written = core.written or old
    made = await asyncio.to_thread(_generate, core, records, wanted)
    snapshot = await asyncio.to_thread(Snapshot, wanted, made.ca)
    try:
        await asyncio.to_thread(dry_run, wanted, made.secrets)
    except ParametersError as e:
        raise UpdateRefused(f"running manifest template dry run: {e}") from e
    recovery, updated = None, updates.apply(records, written, wanted, made, now)
    updated = replace(updated, former=_former(core, updates.effective(wanted, updated.security_versions)))
    if (old.recovery_keys, old.config.recovery_threshold) != (wanted.recovery_keys, wanted.config.recovery_threshold):
        recovery = await asyncio.to_thread(share_out, wanted)
        # The very next commit takes the key: nothing may fail between the two.
        core.ports.store.new_key(recovery.dek, recovery.recovery_data)
    await core.commit(updated, wanted)
    _put_in_force(core, snapshot)
    say_what_matters(core, wanted)
    _log.info("Complete Manifest updated", manifestFingerprint=wanted.fingerprint)
    return None if recovery is None else recovery.encrypted


def _generate(core: Core, records: Records, wanted: Manifest) -> updates.Generated:
    now = core.ports.clock()
    ca = core.ca.rotate(now)
    secrets, previous = after_update(records, core.written or wanted, wanted, ca, now)
    root_secret = new_root_secret() if wanted.config.rotate_root_secret else records.root_secret
    return updates.Generated(ca, sign_with_root(ca, wanted.raw), root_secret, secrets, previous)


def _valid(raw: bytes, ca: CertificateAuthority) -> Manifest:
    try:
        return accepted(raw, ca)
    except ManifestRefused as e:
        raise UpdateRefused(f"invalid manifest: {e}") from e


def _waiting(update: PendingUpdate) -> UpdateAnswer:
    return UpdateAnswer(update.missing, updates.missing_users(update))


def _former(core: Core, manifest: Manifest) -> FormerRoots:
    """What a start has to know, should this process end before everybody has followed to the new root: the old one, and
    whom this (effective) manifest turns out."""
    gone = turned_out(core.ports.mesh.marbles, manifest, _allowed(core, manifest))
    return core.records.former.replaced(core.ca, gone, core.ports.clock())


def _allowed(core: Core, manifest: Manifest) -> Callable[[ActiveMarble], bool]:
    return lambda marble: still_allowed(manifest, marble.marble_type, marble.claims, insecure=core.insecure)


def _put_in_force(core: Core, snapshot: Snapshot) -> None:
    """Tell the mesh of manifest and CA in the records; Marbles that they no longer allow are revoked."""
    manifest = in_force(core)
    core.identities.use_ca(core.ca)
    for marble in core.ports.mesh.update(manifest, core.ca, _allowed(core, manifest), snapshot):
        core.identities.forget((marble.marble_type, marble.uuid))
        _log.info("instance revoked", MarbleType=marble.marble_type, UUID=marble.uuid)
    core.identities.adopt(manifest.fingerprint, manifest.mesh.certificate_lifetime)
    core.present_anew()
    for told in core.on_ca:
        told(core.ca)
