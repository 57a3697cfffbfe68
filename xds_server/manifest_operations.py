# SPDX-License-Identifier: Apache-2.0
"""Setting the first manifest, and what users may do with its secrets afterwards.

    set_manifest: parse, check ─► secrets ─► recovery key ─► dry run of all templates ─► commit ─► mesh
    set_secrets:  parse ─► dry run with the new values ─► permissions ─► commit

`set_manifest` needs no authentication, as in MarbleRun: whoever comes first owns a fresh Coordinator, and clients find
out who that was by the manifest's fingerprint.
"""

from __future__ import annotations

import asyncio
import secrets as random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from manifests.model import Manifest
from sds.logs import get_logger
from sds.secrets import Secret
from xds_server import update_log
from xds_server.core import Core
from xds_server.errors import CoordinatorError, ManifestRefused, WrongState
from xds_server.manifest_rules import accepted
from xds_server.parameters import ParametersError, dry_run
from xds_server.recovery import NewRecovery, RecoveryKeyRefused, new_recovery
from xds_server.secret_definitions import SecretsRefused
from xds_server.secret_rules import generate_shared, parse_upload
from xds_server.sign_quote import sign_with_root
from xds_server.snapshot import Snapshot
from xds_server.state import State
from xds_server.store_errors import StoreError
from xds_server.users import check_may_read, check_may_write, user_of

_ACCEPTING = (State.ACCEPTING_MANIFEST, State.RECOVERY)

_log = get_logger(__name__)


def check_accepts_manifest(core: Core) -> None:
    """In recovery a new manifest gives the old state up for good."""
    if core.state not in _ACCEPTING:
        raise WrongState


async def set_manifest(core: Core, raw: bytes) -> Mapping[str, bytes]:
    """Put a first manifest in force; the encrypted recovery secrets by key name. Raises WrongState, ManifestRefused."""
    check_accepts_manifest(core)
    manifest = await asyncio.to_thread(accepted, raw, core.ca)
    return await core.exclusively(lambda: _set(core, manifest))


async def _set(core: Core, manifest: Manifest) -> Mapping[str, bytes]:
    check_accepts_manifest(core)
    now = core.ports.clock()
    snapshot = await asyncio.to_thread(Snapshot, manifest, core.ca)
    secrets = await asyncio.to_thread(_generate, core, manifest)
    recovery = await asyncio.to_thread(share_out, manifest)
    try:
        await asyncio.to_thread(dry_run, manifest, secrets)
    except ParametersError as e:
        raise ManifestRefused(f"running manifest template dry run: {e}") from e
    fresh = replace(
        core.records,
        state=State.ACCEPTING_MARBLES,
        manifest=manifest.raw,
        manifest_signature=sign_with_root(core.ca, manifest.raw),
        secrets=MappingProxyType(secrets),
        previous_secrets=MappingProxyType(secrets),
    )
    core.ports.store.new_key(recovery.dek, recovery.recovery_data)
    try:
        await core.commit(update_log.manifest_set(fresh, now), manifest)
    except StoreError as e:
        raise ManifestRefused(f"sealing state: {e}") from e
    core.recovery = None
    core.ports.mesh.configure(manifest, core.ca, snapshot)
    say_what_matters(core, manifest)
    _log.info("Initial manifest set", manifestFingerprint=manifest.fingerprint)
    return recovery.encrypted


def _generate(core: Core, manifest: Manifest) -> dict[str, Secret]:
    """Every secret as the store holds it: shared ones themselves, for each Marble's own ones a placeholder."""
    own = {name: secret for name, secret in manifest.secrets.items() if not (secret.shared or secret.user_defined)}
    others = {name: secret for name, secret in manifest.secrets.items() if name not in own}
    found: dict[str, Secret] = {}
    for what, some in (("secrets", others), ("placeholder secrets", own)):
        try:
            part = replace(manifest, secrets=MappingProxyType(some))
            found |= generate_shared(part, core.ca, core.ports.clock())
        except CoordinatorError as e:
            raise ManifestRefused(f"generating {what} from manifest: {e}") from e
    return {name: found[name] for name in manifest.secrets}


def share_out(manifest: Manifest) -> NewRecovery:
    """A new data key for the manifest's recovery keys; raises ManifestRefused."""
    try:
        return new_recovery(manifest.recovery_keys, manifest.config.recovery_threshold, random.token_bytes)
    except RecoveryKeyRefused as e:
        raise ManifestRefused(f"generating recovery encryption key: {e}") from e


def say_what_matters(core: Core, manifest: Manifest) -> None:
    """In the log: what is allowed but probably not meant, and what will not outlive this process."""
    for warning in manifest.warnings:
        _log.warning("manifest warning", text=str(warning))
    for text in core.ports.store.warnings(manifest):
        _log.warning("manifest warning", text=text)
    if manifest.infrastructures:
        _log.warning("manifest warning", text="Infrastructures are accepted but not enforced")


# --- secrets of users


def get_secrets(core: Core, names: Sequence[str], certificates: Sequence[bytes]) -> Mapping[str, Secret]:
    """See Operations.secrets_get."""
    user = user_of(core.manifest, certificates)
    manifest = in_force(core)
    check_may_read(manifest, user, names)
    return {name: core.records.secrets[name] for name in names}


async def set_secrets(core: Core, payload: Mapping[str, object], certificates: Sequence[bytes]) -> None:
    """See Operations.secrets_set."""
    user_of(core.manifest, certificates)
    await core.exclusively(lambda: _set_secrets(core, payload, certificates))


async def _set_secrets(core: Core, payload: Mapping[str, object], certificates: Sequence[bytes]) -> None:
    user, manifest = user_of(core.manifest, certificates), in_force(core)
    try:
        uploaded = parse_upload(payload, manifest, core.records.secrets)
    except SecretsRefused as e:
        raise SecretsRefused(f"parsing new secrets: {e}") from e
    values = {**core.records.secrets, **uploaded}
    try:
        await asyncio.to_thread(dry_run, manifest, values)
    except ParametersError as e:
        raise SecretsRefused(f"running manifest template dry run: {e}") from e
    check_may_write(manifest, user, uploaded)
    now = core.ports.clock()
    records = replace(core.records, secrets=MappingProxyType(values))
    for name, secret in uploaded.items():
        records = update_log.secret_set(records, now, user, name, secret.kind.value)
    await core.commit(records)
    core.present_anew()


def in_force(core: Core) -> Manifest:
    """The effective manifest; raises WrongState before there is one."""
    if core.manifest is None:
        raise WrongState
    return core.manifest
