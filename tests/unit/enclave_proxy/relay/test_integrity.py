# SPDX-License-Identifier: Apache-2.0
"""The app's data keeps its exact bytes. The long version: python -m tests.soak.integrity."""

from __future__ import annotations

import asyncio

import pytest

from tests.kit.integrity import intact, send, through_two_relays


@pytest.mark.parametrize("connections", [1, 10, 100])
async def test_random_data_each_way_arrives_as_it_was_sent_while_identities_are_replaced(connections: int) -> None:
    report = await through_two_relays(connections, 6_000_000, 0.1)
    assert (report.bytes_each_way, report.damaged) == (6_000_000, 0)


class Recorder:
    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data

    async def drain(self) -> None:
        return

    def write_eof(self) -> None:
        return


@pytest.mark.parametrize("damage", ["none", "lost", "changed", "swapped", "more"])
async def test_the_check_itself_notices_every_kind_of_damage(damage: str) -> None:
    recorder = Recorder()
    await send(recorder, 1, 1000)  # type: ignore[arg-type]
    sent = recorder.data
    reader = asyncio.StreamReader()
    reader.feed_data(
        {
            "none": sent,
            "lost": sent[:500] + sent[501:],
            "changed": sent[:500] + bytes([sent[500] ^ 1]) + sent[501:],
            "swapped": sent[100:200] + sent[:100] + sent[200:],
            "more": sent + b"x",
        }[damage]
    )
    reader.feed_eof()
    assert await intact(reader, 1000) == (damage == "none")
