# SPDX-License-Identifier: Apache-2.0
"""One current value with one writer and many readers: how rotated identities reach those who use them.

Readers never see a half-made value, and a slow reader skips to the newest one, so that nothing queues up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Latest(Generic[T]):
    """Holds the newest value and wakes those who wait for the next one."""

    def __init__(self, value: T) -> None:
        self._value = value
        self._version = 0
        self._changed = asyncio.Condition()

    @property
    def value(self) -> T:
        """The value published last."""
        return self._value

    async def publish(self, value: T) -> None:
        """Replace the value and wake every reader."""
        async with self._changed:
            self._value = value
            self._version += 1
            self._changed.notify_all()

    async def changes(self) -> AsyncIterator[T]:
        """The current value first, then each newer one; values that a slow reader missed are skipped."""
        seen = -1
        while True:
            async with self._changed:
                while self._version == seen:
                    await self._changed.wait()
                seen, value = self._version, self._value
            yield value
