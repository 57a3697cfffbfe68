# SPDX-License-Identifier: Apache-2.0
"""The Coordinator's xDS port in a process of its own: the real Mesh, CA and snapshot, told by xds_scale what to do.

python -m bench.xds_scale_server WORKERS IDENTITIES

A command is a line of JSON on standard input, its answer one on standard output. Instances do not come through the
Marble API (a quote each; bench.activation measures that); from there on everything is what the Coordinator runs.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import pickle
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from random import SystemRandom
from typing import Any

import prometheus_client
import structlog
import uvloop
from cryptography.hazmat.primitives.serialization import Encoding
from prometheus_client import CollectorRegistry

from bench.measure import resident_bytes
from bench.xds_scale_limits import raise_open_files
from bench.xds_scale_town import Place, manifest, place, template
from sds.ca import CertificateAuthority
from xds_server.ads import XdsServer
from xds_server.mesh import ActiveMarble, Mesh
from xds_server.renewal import Identities
from xds_server.rpc_server import RpcPort
from xds_server.xds_metrics import XdsMetrics

# Longer than the quiet time that a push waits for, and for an ACK on a busy machine.
SETTLE = 0.05

Answer = Mapping[str, object]


def _now() -> datetime:
    return datetime.now(UTC)


class Town:
    """The mesh and its port."""

    def __init__(self, workers: int, identities: Path) -> None:
        self._workers = workers
        self._file = identities
        self._registry = CollectorRegistry()
        self._manifest = manifest(workers)
        self._ca = CertificateAuthority.create(["localhost"], [], _now())
        self._mesh = Mesh(_now)
        self._mesh.configure(self._manifest, self._ca)
        self._identities = Identities(self._ca, SystemRandom().random)
        self._server = XdsServer(self._mesh, RpcPort, structlog.get_logger("bench"), XdsMetrics(self._registry))
        self._port = 0

    async def start(self) -> Answer:
        self._port = await self._server.start("127.0.0.1", 0, self._ca)
        return {"port": self._port, "root": self._ca.chain_pem.decode()}

    async def usage(self) -> Answer:
        """Memory after a collection of garbage, which would come by itself sooner or later."""
        gc.collect()
        return {"rss": resident_bytes(os.getpid()), "cpu": time.process_time()}

    async def cpu(self) -> Answer:
        return {"cpu": time.process_time()}

    async def counts(self) -> Answer:
        """The counters of the port, summed over their labels."""
        sums: dict[str, float] = {}
        for family in self._registry.collect():
            for sample in family.samples:
                if sample.name.endswith(("_total", "_streams")):
                    sums[sample.name] = sums.get(sample.name, 0) + sample.value
        identities = self._mesh.published.serialised
        shared = self._mesh.serialised - identities  # under the manifest of now
        return {**sums, "identities": identities, "shared": shared}

    async def activate(self) -> Answer:
        """Every instance gets its identity; their chains and keys go to the file that the workers read."""
        written = []
        for number in range(self._workers):
            where = place(number, self._workers)
            identity = self._admit(where)
            written.append((where, identity.leaf.public_bytes(Encoding.DER), identity.key.pem))
            await asyncio.sleep(0)
        self._file.write_bytes(pickle.dumps((self._ca.intermediate.public_bytes(Encoding.DER), written)))
        del written
        return await self.usage()

    def _admit(self, where: Place) -> Any:
        wanted, claims = template(where, self._manifest.fingerprint)
        identity = self._identities.issue(wanted, _now())
        self._mesh.activated(
            ActiveMarble(
                marble_type=where.marble_type,
                uuid=where.uuid,
                identity=identity,
                claims=claims,
                dns_names=wanted.request.dns_names,
                ip_addresses=wanted.request.ip_addresses,
            )
        )
        return identity

    async def rotate(self) -> Answer:
        """Another Marble root: everybody's bundle changes."""
        ca = self._ca.rotate(_now())
        gc.collect()
        before, start = time.process_time(), time.monotonic()
        self._mesh.update(self._manifest, ca, lambda _: True)
        self._ca = ca
        self._identities.use_ca(ca)
        return {"cpu": before, "time": start}

    async def renew(self, count: int, among: int) -> Answer:
        """The identity of one of the first workers after the other: CPU seconds for each, pushed and acknowledged."""
        keys = [place(number % among, self._workers) for number in range(count)]
        renewed = [((p.marble_type, p.uuid), self._identities.renew((p.marble_type, p.uuid), _now())) for p in keys]
        gc.collect()
        spent = []
        for key, identity in renewed:
            before = time.process_time()
            assert identity is not None
            self._mesh.replace_identities({key: identity})
            await asyncio.sleep(SETTLE)
            spent.append(time.process_time() - before)
        return {"cpu": spent, "seconds": SETTLE}

    async def idle(self, seconds: float) -> Answer:
        """CPU seconds of doing nothing for as long."""
        before = time.process_time()
        await asyncio.sleep(seconds)
        return {"cpu": time.process_time() - before}

    async def rest(self, count: int) -> Answer:
        """The same in pieces, each as long as a renewal is given."""
        spent = []
        for _ in range(count):
            before = time.process_time()
            await asyncio.sleep(SETTLE)
            spent.append(time.process_time() - before)
        return {"cpu": spent}

    async def stop(self) -> Answer:
        await self._server.stop()
        return {}


async def serve(town: Town) -> None:
    commands: dict[str, Callable[..., Awaitable[Answer]]] = {
        name: getattr(town, name)
        for name in ("start", "usage", "cpu", "counts", "activate", "rotate", "renew", "idle", "rest", "stop")
    }
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command = json.loads(line)
        answer = await commands[command.pop("do")](**command)
        print(json.dumps(answer), flush=True)


def main() -> None:
    raise_open_files()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    uvloop.run(serve(Town(int(sys.argv[1]), Path(sys.argv[2]))))


if __name__ == "__main__":
    main()
