# SPDX-License-Identifier: Apache-2.0
"""Random data through two relays and back, hashed at both ends of each way, while their identities are replaced."""

from __future__ import annotations

import asyncio
import hashlib
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

from enclave_proxy.limits import Limits
from enclave_proxy.relay_config import RelayConfig, TcpAddress
from tests.kit.mesh_relay import App, inbound, outbound, port, relay
from tests.kit.pki import marble, shared_ca

BLOCK = 100_000  # no multiple of any buffer in between
_DIGEST = 32


@dataclass(frozen=True)
class Report:
    """What went through: bytes each way, configurations that took effect meanwhile, ways whose hashes differ."""

    bytes_each_way: int
    rotations: int
    damaged: int


async def send(writer: asyncio.StreamWriter, seed: int, size: int) -> None:
    """`size` random bytes, and nothing more."""
    source, digest, left = random.Random(seed), hashlib.sha256(), size
    while left:
        block = source.randbytes(min(BLOCK, left))
        digest.update(block)
        writer.write(block)
        await writer.drain()
        left -= len(block)
    writer.write(digest.digest())
    writer.write_eof()


async def intact(reader: asyncio.StreamReader, size: int) -> bool:
    """Whether exactly `size` bytes, the hash that belongs to them and the end come."""
    digest, left = hashlib.sha256(), size
    while left and (block := await reader.read(min(BLOCK, left))):
        digest.update(block)
        left -= len(block)
    return left == 0 and await reader.read(_DIGEST + 1) == digest.digest()


async def through_two_relays(connections: int, total: int, every: float) -> Report:
    """`total` bytes each way at the same time, shared by `connections`; a new identity on both sides `every` s."""
    ca, share, rotations = shared_ca(), total // connections, 0
    damaged: list[int] = []

    async def app(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(send(writer, 7, share))
            if not await intact(reader, share):
                damaged.append(1)

    async def client(path: Path, number: int) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        async with asyncio.TaskGroup() as group:
            group.create_task(send(writer, number, share))
            if not await intact(reader, share):
                damaged.append(number)
        writer.close()

    with tempfile.TemporaryDirectory(prefix="mm") as folder:
        out = Path(folder) / "out.sock"
        limits = Limits()
        async with App(Path(folder) / "a.sock", app) as behind, relay(limits) as server, relay(limits) as dialler:
            first = inbound(ca, behind)
            await server.apply(RelayConfig(inbound=(first,)))
            where = TcpAddress(first.bind.host, port(server, "in").port)
            await dialler.apply(RelayConfig(outbound=(outbound(ca, out, where),)))

            async def rotate() -> None:
                nonlocal rotations
                while True:
                    await asyncio.sleep(every)
                    await server.apply(RelayConfig(inbound=(inbound(ca, behind, identity=marble(ca, "backend")),)))
                    await dialler.apply(RelayConfig(outbound=(outbound(ca, out, where, identity=marble(ca, "web")),)))
                    rotations += 1

            async with asyncio.TaskGroup() as group:
                rotating = group.create_task(rotate())
                async with asyncio.TaskGroup() as clients:
                    for number in range(connections):
                        clients.create_task(client(out, 100 + number))
                rotating.cancel()
            await dialler.close(drain=10)
            await server.close(drain=10)
            for made, name in ((server, "in"), (dialler, "out")):
                counters = made.counters.of(name)
                damaged += [0] * (sum(counters.ended.values()) + sum(counters.refused.values()))
    return Report(share * connections, rotations, len(damaged))
