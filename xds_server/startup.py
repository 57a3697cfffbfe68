# SPDX-License-Identifier: Apache-2.0
"""From what the store had to a Coordinator that can answer.

    nothing            new CA, accepts a manifest; nothing is written before there is one
    readable           everything as it was: same root, same CA, same manifest; Marbles reconnect
    not to be opened   new CA in memory, state Recovery

The start-up manifest is set only where a manifest is accepted anyway. Unlike MarbleRun, which cannot restart with one,
a Coordinator that has this very manifest goes on with it; and a state that waits for recovery is never overwritten by
it, since that would give up what its owners can still open.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from manifests.errors import ManifestError, ManifestSyntaxError
from sds.logs import get_logger
from xds_server import config as settings
from xds_server.attestation_choice import Attestation, StartError, now
from xds_server.config import CoordinatorConfig, named
from xds_server.coordinator import Coordinator, fresh_records
from xds_server.core import Ports
from xds_server.errors import QuoteUnavailable
from xds_server.file_ops import FileOps
from xds_server.manifest_rules import MAX_MANIFEST
from xds_server.own_quote import OwnQuote
from xds_server.records import Records
from xds_server.state import State
from xds_server.store import Loaded, Locked, Store
from xds_server.store_errors import StoreError

_log = get_logger("xds_server")


@dataclass(frozen=True, slots=True)
class Opened:
    """What the start goes on with. `locked`: recovery data of a state that cannot be opened here."""

    store: Store
    records: Records
    locked: bytes | None


def open_state(config: CoordinatorConfig, attestation: Attestation, files: FileOps, stack: ExitStack) -> Opened:
    """Take the state directory and read what is in it; raises StartError."""
    try:
        store = stack.enter_context(Store.open(config.seal_dir, attestation.protection, files))
        found = store.load()
    except StoreError as e:
        raise StartError(f"cannot use the state in {config.seal_dir}: {e}") from e
    if isinstance(found, Loaded):
        _log.info("state loaded", directory=str(config.seal_dir), state=int(found.records.state))
        return Opened(store, found.records, None)
    fresh = fresh_records(config.dns_names, config.ip_addresses, now())
    if isinstance(found, Locked):
        _log.warning("state cannot be opened, going into recovery", directory=str(config.seal_dir), reason=found.reason)
        return Opened(store, fresh, found.recovery_data)
    return Opened(store, fresh, None)


async def make_coordinator(
    config: CoordinatorConfig, opened: Opened, own_quote: OwnQuote | None, ports: Callable[[Store], Ports]
) -> Coordinator:
    """The Coordinator, with its quote issued and its manifest set where it can be; raises CoordinatorError."""
    try:
        coordinator = Coordinator(
            opened.records, ports(opened.store), simulation=config.simulation, locked=opened.locked
        )
    except (ManifestError, ManifestSyntaxError) as e:
        raise StartError(f"the manifest in {config.seal_dir} is not accepted by this version: {e}") from e
    if own_quote is not None:
        await _issue(own_quote, config)
    if config.startup_manifest is not None:
        await _set_startup_manifest(coordinator, config.startup_manifest)
    return coordinator


async def _issue(own_quote: OwnQuote, config: CoordinatorConfig) -> None:
    """Without a quote nobody can verify this Coordinator, so it does not start; in development mode it does, as
    MarbleRun. Unlike there, Marbles have to prove themselves all the same."""
    try:
        await own_quote.start()
    except QuoteUnavailable as e:
        if not config.dev_mode:
            raise
        _log.error("no quote: nobody can verify this Coordinator, going on in development mode", error=str(e))


async def _set_startup_manifest(coordinator: Coordinator, path: Path) -> None:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_MANIFEST + 1)
    except OSError as e:
        raise StartError(f"{named(settings.STARTUP_MANIFEST)}: cannot read {path}: {e.strerror}") from e
    match coordinator.status().code:
        case State.RECOVERY:
            _log.warning("start-up manifest is not set: there is a sealed state, recover it or remove it")
        case State.ACCEPTING_MARBLES if coordinator.manifest().raw == raw:
            _log.info("start-up manifest is the one in force")
        case State.ACCEPTING_MARBLES:
            raise StartError(
                f"{named(settings.STARTUP_MANIFEST)}: {path} is another manifest than the one in force "
                f"({coordinator.manifest().fingerprint}): update by a user of that manifest, or start without it"
            )
        case _:
            await coordinator.set_manifest(raw)
