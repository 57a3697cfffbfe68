# SPDX-License-Identifier: Apache-2.0
"""Coming back: what was sealed on another machine is opened by the owners of the recovery keys.

Until then the Coordinator answers with a root certificate of its own making. With the recovered state come the old
root, which a new quote is issued for, the CA and the manifest; Marbles that run reconnect with their certificates.
"""

from __future__ import annotations

import asyncio

from manifests.errors import ManifestError
from manifests.model import Manifest
from manifests.parse import parse
from sds.logs import get_logger
from xds_server.answers import RecoveryAnswer
from xds_server.core import Core
from xds_server.errors import CoordinatorError, WrongState
from xds_server.records import Records
from xds_server.recovery import RecoveryError, RecoverySession
from xds_server.snapshot import Snapshot

_log = get_logger(__name__)


def _session(core: Core) -> RecoverySession:
    if core.recovery is None:
        raise WrongState
    return core.recovery


async def recovery_public_key(core: Core) -> bytes:
    """See Operations.recovery_public_key."""
    return await asyncio.to_thread(_session(core).public_key)


async def recover(core: Core, secret: bytes, signature: bytes) -> RecoveryAnswer:
    """See Operations.recover."""
    _session(core)
    return await core.exclusively(lambda: _recover(core, secret, signature))


async def _recover(core: Core, secret: bytes, signature: bytes) -> RecoveryAnswer:
    progress = await asyncio.to_thread(_session(core).offer, secret, signature)
    if progress.dek is None:
        return RecoveryAnswer(
            progress.remaining,
            f"Secret was processed successfully. Upload the next secret. Remaining secrets: {progress.remaining}",
        )
    try:
        records = await asyncio.to_thread(core.ports.store.unlock, progress.dek)
        written = await asyncio.to_thread(_readable, records)
        snapshot = await asyncio.to_thread(Snapshot, written, records.ca)
        if core.ports.own_quote is not None:
            await core.ports.own_quote.rebind(records.ca.root_der)
    except CoordinatorError:
        core.lock_again()
        raise
    try:
        # Sealed to this machine now. Where that fails the state is in force all the same: it is what is on disk.
        await asyncio.to_thread(core.ports.store.commit, records)
    except CoordinatorError as e:
        _log.error("recovered state could not be sealed to this machine, a restart needs recovery again", error=str(e))
    core.swap(records, written)
    core.recovery = None
    core.serve(snapshot)
    _log.info("Recovery successful.", manifestFingerprint=written.fingerprint)
    return RecoveryAnswer(0, "Recovery successful.")


def _readable(records: Records) -> Manifest:
    try:
        return parse(records.manifest)
    except ManifestError as e:
        raise RecoveryError(f"the recovered manifest is not accepted by this version: {e}") from e
