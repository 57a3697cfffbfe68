# SPDX-License-Identifier: Apache-2.0
"""The worker's relay against a stock Envoy: CPU per small request, per new mTLS connection and per GB, idle memory.

Both proxies run in the same rounds, one after the other, pinned to one core; load and app have the other. What counts
is the proxy's own CPU time per unit of work, so the load generator's speed matters little.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import ssl
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from bench.measure import Figure, cpu_seconds, resident_bytes, write_result
from bench.relay_peers import Place, free_port, make_place, settle, start_app, start_envoy, start_worker, wait_for
from sds.tls import client_context

MESSAGE = b"m" * 256
BLOCK = b"b" * 65536
PEERS = {"marblemesh": start_worker, "envoy": start_envoy}
Work = Callable[[int, ssl.SSLContext, int], Awaitable[None]]


async def _connect(port: int, tls: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname="localhost")


async def requests(port: int, tls: ssl.SSLContext, count: int) -> None:
    """`count` requests of 256 bytes, there and back, spread over 32 kept-alive connections."""

    async def one(share: int) -> None:
        reader, writer = await _connect(port, tls)
        for _ in range(share):
            writer.write(MESSAGE)
            await reader.readexactly(len(MESSAGE))
        writer.close()

    await asyncio.gather(*(one(count // 32) for _ in range(32)))


async def connections(port: int, tls: ssl.SSLContext, count: int) -> None:
    """`count` new mTLS connections with one request each, eight at a time."""

    async def some(share: int) -> None:
        for _ in range(share):
            reader, writer = await _connect(port, tls)
            writer.write(MESSAGE)
            await reader.readexactly(len(MESSAGE))
            writer.close()

    await asyncio.gather(*(some(count // 8) for _ in range(8)))


async def bulk(port: int, tls: ssl.SSLContext, megabytes: int) -> None:
    """`megabytes` in and the same out again, on four connections."""

    async def one(blocks: int) -> None:
        reader, writer = await _connect(port, tls)

        async def send() -> None:
            for _ in range(blocks):
                writer.write(BLOCK)
                await writer.drain()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            for _ in range(blocks):
                await reader.readexactly(len(BLOCK))
        writer.close()

    await asyncio.gather(*(one(megabytes * 16 // 4) for _ in range(4)))


# name: (what is done, how much of it per round, units per round to divide the CPU time by, unit's factor)
WORK: dict[str, tuple[Work, int, float]] = {
    "cpu_per_request": (requests, 8000, 8000 / 1e6),  # µs
    "cpu_per_connection": (connections, 400, 400 / 1e6),  # µs
    "cpu_per_gb": (bulk, 128, 2 * 128 / 1000),  # s per GB, both directions counted
}
UNITS = {"cpu_per_request": "µs", "cpu_per_connection": "µs", "cpu_per_gb": "s", "rss_idle": "bytes"}


async def run(place: Place, rounds: int, core: int) -> dict[str, dict[str, object]]:
    tls = client_context(place.identity("client"), place.bundle)
    samples: dict[str, dict[str, list[float]]] = {m: {p: [] for p in PEERS} for m in (*WORK, "rss_idle")}
    app = start_app(place)
    proxies: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
    try:
        wait_for(place, place.app, app)
        for name, start in PEERS.items():
            port = free_port()
            process = start(place, port)
            proxies[name] = process, port
            wait_for(place, port, process)
            os.sched_setaffinity(process.pid, {core})
        for name, (process, _) in proxies.items():
            samples["rss_idle"][name].append(resident_bytes(process.pid))
        for number in range(1, rounds + 1):
            for measure, (work, amount, unit) in WORK.items():
                for name, (process, port) in proxies.items():
                    before = cpu_seconds(process.pid)
                    await work(port, tls, amount)
                    await settle()
                    samples[measure][name].append((cpu_seconds(process.pid) - before) / unit)
            print(f"round {number} of {rounds} done", flush=True)
    finally:
        for process in (app, *(p for p, _ in proxies.values())):
            process.kill()
            process.wait()
    return {m: _compare(by_peer) for m, by_peer in samples.items()}


def _compare(by_peer: dict[str, list[float]]) -> dict[str, object]:
    figures = {name: Figure.of(values) for name, values in by_peer.items()}
    ours = figures["marblemesh"].median
    ratios = {name: round(ours / f.median, 3) if f.median else None for name, f in figures.items()}
    return {name: {"figure": f, "ratio": ratios[name]} for name, f in figures.items()}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make bench ARGS=relay", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    options = parser.parse_args(arguments)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, set(cores[1:]))
    with tempfile.TemporaryDirectory(prefix="mmb") as folder:
        result = uvloop.run(run(make_place(Path(folder)), options.rounds, cores[0]))
    for measure, by_peer in result.items():
        for name, entry in by_peer.items():
            figure = entry["figure"]  # type: ignore[index]
            ratio = entry["ratio"]  # type: ignore[index]
            spread = f"{figure.median:14.2f} {UNITS[measure]:5} ({figure.low:.2f} … {figure.high:.2f})"
            print(f"{measure:20} {name:12} {spread}  ours/{name}: {ratio}")
    print(f"written: {os.path.relpath(write_result('relay', dict(result)))}")
    return 0
