# SPDX-License-Identifier: Apache-2.0
"""How a worker gets what it starts with: from the Coordinator, or, if that does not answer, from what it has sealed.

The Coordinator is always asked first. A refusal is its word: the worker ends, and what was kept is removed. Silence is
not: after a time (and only then) the sealed configuration is used, if there is one that may be used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

from structlog.typing import FilteringBoundLogger

from enclave_proxy.bootstrap import Activation
from enclave_proxy.errors import ActivationRefused
from enclave_proxy.offline import OfflineFile
from enclave_proxy.sealed_state import OfflineState, Unsealable


async def first_activation(
    persist: Callable[[], Awaitable[Activation]],
    file: OfflineFile,
    patience: float,
    now: Callable[[], datetime],
    log: FilteringBoundLogger,
) -> tuple[Activation, OfflineState | None]:
    """`persist` asks until it is answered; `patience`: for how many seconds at least. With a state: started without
    the Coordinator. Raises what `persist` raises."""
    try:
        if _load(file, now, log) is None:
            return await persist(), None
        try:
            async with asyncio.timeout(patience):
                return await persist(), None
        except TimeoutError:
            if (state := _load(file, now, log)) is None:
                return await persist(), None
    except ActivationRefused:
        _remove(file, log)
        raise
    log.warning(
        "starting without the coordinator, from what it said last; as soon as it answers its word counts",
        heard=state.heard.isoformat(timespec="seconds"),
        allowed_until=state.expires.isoformat(timespec="seconds"),
    )
    return Activation(state.credentials, state.parameters), state


def _load(file: OfflineFile, now: Callable[[], datetime], log: FilteringBoundLogger) -> OfflineState | None:
    try:
        return file.load(now())
    except Unsealable as error:
        log.warning("the sealed configuration is not used", file=str(file.path), reason=str(error))
        return None


def _remove(file: OfflineFile, log: FilteringBoundLogger) -> None:
    try:
        if file.remove():
            log.info("refused by the coordinator: the sealed configuration is removed")
    except Unsealable as error:
        log.error("the sealed configuration cannot be removed", reason=str(error))
