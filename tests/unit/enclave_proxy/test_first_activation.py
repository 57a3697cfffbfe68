# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from enclave_proxy.bootstrap import Activation
from enclave_proxy.errors import ActivationRefused
from enclave_proxy.first_activation import first_activation
from enclave_proxy.offline import OfflineFile
from enclave_proxy.sealed_state import OfflineState
from sds.logs import get_logger
from tests.kit.pki import now
from tests.unit.enclave_proxy.test_sealed_state import KEYS, state

Persist = Callable[[], Awaitable[Activation]]
FRESH = Activation(state().credentials, state().parameters)


async def silence() -> Activation:
    await asyncio.sleep(3600)
    raise AssertionError


async def answer() -> Activation:
    return FRESH


async def refusal() -> Activation:
    raise ActivationRefused("PERMISSION_DENIED: not any more")


@pytest.fixture
def file(tmp_path: Path) -> OfflineFile:
    return OfflineFile(path=tmp_path / "offline", marble_type="web", uuid="u-u-i-d", pin="", keys=KEYS)


async def activated(persist: Persist, file: OfflineFile) -> tuple[Activation, OfflineState | None]:
    return await first_activation(persist, file, 0.01, now, get_logger("test"))


async def test_the_coordinators_answer_counts_before_anything_that_was_kept(file: OfflineFile) -> None:
    file.write(state())
    assert await activated(answer, file) == (FRESH, None)


async def test_its_silence_lets_the_worker_start_with_what_was_kept(file: OfflineFile) -> None:
    kept = state()
    file.write(kept)
    activation, found = await activated(silence, file)
    assert found == kept
    assert activation == Activation(kept.credentials, kept.parameters)


async def test_its_refusal_ends_the_worker_and_what_was_kept(file: OfflineFile) -> None:
    file.write(state())
    with pytest.raises(ActivationRefused):
        await activated(refusal, file)
    assert not file.path.exists()


@pytest.mark.parametrize("content", [None, b"spoiled"])
async def test_without_a_usable_file_the_worker_waits_for_ever(file: OfflineFile, content: bytes | None) -> None:
    if content is not None:
        file.path.write_bytes(content)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await activated(silence, file)
