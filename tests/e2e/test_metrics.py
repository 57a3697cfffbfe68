# SPDX-License-Identifier: Apache-2.0
"""docs/metrics.md is what alert rules are written by: all that real processes export, and nothing else."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.kit.mesh import ECHO, Json, MeshHarness, ask, free_port

pytestmark = pytest.mark.e2e

GUIDE = Path(__file__).parents[2] / "docs/metrics.md"
ROW = re.compile(r"^\| `([a-z_]+)` \| (counter|gauge|histogram) \| ([^|]*) \| [^|]+ \|$", re.MULTILINE)


@dataclass(frozen=True)
class Family:
    """A metric by the name that a query uses: with `_total` for counters, without `_bucket` and its like."""

    name: str
    kind: str
    labels: frozenset[str]


def documented(section: str) -> set[Family]:
    """The table below a heading of the guide."""
    _, _, rest = GUIDE.read_text().partition(f"\n## {section}\n")
    text = rest.partition("\n## ")[0]
    return {
        Family(name, kind, frozenset(re.findall(r"`([a-z_]+)`", labels))) for name, kind, labels in ROW.findall(text)
    }


def exported(page: str) -> tuple[set[Family], set[str]]:
    """What a process shows: families with samples, and the names of those that have none yet."""
    found, empty = set(), set()
    for family in text_string_to_metric_families(page):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if not family.samples:
            empty.add(name)
            continue
        labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
        found.add(Family(name, family.type, labels))
    return found, empty


def compare(section: str, page: str) -> None:
    rows = documented(section)
    found, empty = exported(page)
    assert found <= rows, f"not documented so: {sorted(map(str, found - rows))}"
    assert {row.name for row in rows} - {family.name for family in found} == empty, "documented, and not exported"


@pytest.fixture
async def mesh() -> AsyncIterator[MeshHarness]:
    with TemporaryDirectory(prefix="mm-") as directory:
        async with MeshHarness(Path(directory)) as harness:
            yield harness


async def page(address: str) -> str:
    async with aiohttp.ClientSession() as client, client.get(f"http://{address}/metrics") as reply:
        return await reply.text()


async def plaintext(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    await reader.read()
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def test_the_guide_names_every_metric_of_coordinator_and_worker_with_its_labels(mesh: MeshHarness) -> None:
    port, prometheus = free_port(), f"127.0.0.1:{free_port()}"
    await mesh.start_coordinator("--prometheus-addr", prometheus)
    tls: dict[str, Json] = {
        "web": {"Outgoing": [{"Addr": "db", "Port": str(port)}]},
        "db": {"Incoming": [{"Port": str(port), "Peers": ["web"]}]},
    }
    await mesh.set_manifest(mesh.manifest({"web": {}, "db": {}}, tls))
    web = await mesh.start_worker("web", "sleep", "60", flags=("--concurrency", "2"))
    db = await mesh.start_worker("db", *ECHO, "db", f"{port}.sock", "9")
    await db.logged("app listening")
    await web.ready()
    await ask(web.run_dir / f"db-{port}.sock", b"hello", b"db:hello")
    await plaintext(port)

    client = await web.admin_says("/metrics", lambda text: "peer_connections_total{" in text)
    server = await db.admin_says("/metrics", lambda text: 'reason="plaintext"' in text and 'peer="web"' in text)
    coordinator = await page(prometheus)
    compare("Worker", client)
    compare("Worker", server)
    compare("Coordinator", coordinator)
