# SPDX-License-Identifier: Apache-2.0
"""A start without the Coordinator, where the manifest allows it: what is kept for that, and when it may be used.

    Coordinator connected ─► keep: seal, write ─── kill, power failure, ... ───► load: open, judge ─► start with that

Kept is only what the Coordinator has said itself, and the time that the manifest allows counts from when it was last
connected: a worker that started offline prolongs nothing. Used is it only if everything fits: this code, this machine,
this Marble, the same pin, a clock that has not gone back, an identity that peers accept. As soon as the Coordinator is
back its word counts; and if it takes the permission away, or turns the Marble out, what was kept is removed at once.

What cannot be noticed is that the host restores an older file of the same hours: a TEE alone has no memory that the
host cannot turn back. What it gains is bounded by the time that the manifest allows; peers that hear the Coordinator
refuse revoked instances whatever those believe themselves.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from enclave_proxy.apply import AppParameters
from enclave_proxy.identity_store import IdentityStore
from enclave_proxy.sealed_state import MAX_SEALED, OfflineState, Unsealable, seal, unseal
from enclave_proxy.session import Session
from sds.attestation.sealing_keys import SealingKeySource
from sds.material import MaterialError, check_bundle, check_identity

# Seconds between two looks whether something has changed; a crash in between loses no more than that. A stream that is
# two looks old has said what is new since the last one.
LOOK = 0.5
# How much of the allowed time may pass until the file says anew when the Coordinator was heard.
FRESH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineFile:
    """Where it lies and for whom. `keys` None: this TEE has no sealing keys, and nothing is ever kept."""

    path: Path
    marble_type: str
    uuid: str
    pin: str
    keys: SealingKeySource | None

    def load(self, now: datetime) -> OfflineState | None:
        """What may be used at `now` for a start; None if nothing is there. Raises Unsealable with the reason."""
        if self.keys is None or (data := _read(self.path)) is None:
            return None
        state = unseal(data, self.keys)
        if (state.marble_type, state.uuid) != (self.marble_type, self.uuid):
            raise Unsealable("it is that of another Marble")
        if state.pin != self.pin:
            raise Unsealable("it was sealed under another pin of the coordinator")
        if now < state.heard:
            raise Unsealable(f"the clock is behind: it was sealed at {state.heard:%Y-%m-%dT%H:%M:%SZ}")
        if now >= state.expires:
            raise Unsealable(f"it expired at {state.expires:%Y-%m-%dT%H:%M:%SZ}")
        try:
            check_bundle(state.credentials.bundle, now)
            check_identity(state.credentials.identity, state.credentials.bundle, now)
        except MaterialError as error:
            raise Unsealable(f"the identity in it cannot be used: {error}") from error
        return state

    def write(self, state: OfflineState) -> None:
        """Replace the file as a whole, or leave it; blocking. Raises Unsealable."""
        assert self.keys is not None
        data = seal(state, self.keys)
        if len(data) > MAX_SEALED:
            raise Unsealable(f"{len(data)} bytes are more than is kept, {MAX_SEALED}")
        temporary = self.path.with_name(f".{self.path.name}.new")
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self.path)
            _sync(self.path.parent)
        except OSError as error:
            raise Unsealable(f"cannot write {str(self.path)!r}: {error.strerror}") from error

    def remove(self) -> bool:
        """Forget what was kept; whether there was something. Raises Unsealable."""
        try:
            self.path.unlink()
            _sync(self.path.parent)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise Unsealable(f"cannot remove {str(self.path)!r}: {error.strerror}") from error
        return True


class Keeper:
    """Keeps the file as the Coordinator wants it. Run `run` beside the stream."""

    def __init__(
        self,
        file: OfflineFile,
        session: Session,
        store: IdentityStore,
        parameters: AppParameters,
        now: Callable[[], datetime],
        log: FilteringBoundLogger,
    ) -> None:
        self._file, self._session, self._store, self._parameters = file, session, store, parameters
        self._now, self._log = now, log
        self._written: tuple[int, datetime] | None = None
        self._removed = False
        self._connected = 0
        self._told = ""
        self._stepping = asyncio.Lock()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            await self.step()

    async def step(self) -> None:
        """Do what is due now. A file that cannot be written is told once and tried again: what is in force goes on."""
        async with self._stepping:
            try:
                await self._step()
            except Unsealable as error:
                self._tell(str(error))
            else:
                self._told = ""

    async def forget(self) -> None:
        """This Marble is none any more."""
        async with self._stepping:
            with suppress(Unsealable):  # what is left expires, and the Coordinator refuses whoever starts with it
                await asyncio.to_thread(self._file.remove)

    async def _step(self) -> None:
        session = self._session
        self._connected = self._connected + 1 if session.status.connected and session.configured else 0
        if self._connected < 2:
            return
        allowed = session.offline_start
        if allowed is None or self._file.keys is None:
            if allowed is not None:
                raise Unsealable("this platform has no sealing keys")
            if not self._removed and await asyncio.to_thread(self._file.remove):
                self._log.info("no start without the coordinator is allowed any more, what was kept is removed")
            self._written, self._removed = None, True
            return
        now, changes = self._now(), session.changes
        if self._written is not None and self._written[0] == changes and now - self._written[1] < allowed / FRESH:
            return
        await asyncio.to_thread(self._file.write, self._state(now, allowed))
        if self._written is None:
            self._log.info("kept sealed for a start without the coordinator", allowed_seconds=allowed.total_seconds())
        self._written, self._removed = (changes, now), False

    def _state(self, now: datetime, allowed: timedelta) -> OfflineState:
        return OfflineState(
            marble_type=self._file.marble_type,
            uuid=self._file.uuid,
            pin=self._file.pin,
            heard=now,
            allowed_until=now + allowed,
            credentials=self._store.credentials,
            parameters=self._parameters,
            resources=self._session.accepted(),
        )

    def _tell(self, reason: str) -> None:
        if reason != self._told:
            self._log.warning("nothing can be kept for a start without the coordinator", reason=reason)
        self._told = reason


def _read(path: Path) -> bytes | None:
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            data = file.read(MAX_SEALED + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unsealable(f"cannot read {str(path)!r}: {error.strerror}") from error
    if len(data) > MAX_SEALED:
        raise Unsealable(f"{str(path)!r} has more than {MAX_SEALED} bytes")
    return data


def _sync(directory: Path) -> None:
    """Make a rename durable, where the file system lets us say so."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # one that keeps directories its own way refuses
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
