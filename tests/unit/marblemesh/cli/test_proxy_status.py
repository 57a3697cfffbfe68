# SPDX-License-Identifier: Apache-2.0
"""`marblemesh proxy status` about a real admin port, whatever state the worker is in, and about what is no worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from enclave_proxy.admin import Admin
from enclave_proxy.config import HostPort
from enclave_proxy.counters import Refusal
from enclave_proxy.health import Health
from marblemesh.cli import proxy_pages
from marblemesh.cli.app import run
from sds.resources import SECRET, identity_secret
from tests.kit.pki import marble, now
from tests.unit.enclave_proxy.test_admin import running, starting

LOOPBACK = HostPort("127.0.0.1", 0)


@dataclass
class Shown:
    status: int
    out: str
    err: str


@dataclass
class Fleet:
    """Of three relay processes one lives, this one."""

    restarted: int = 4
    size: int = 3
    processes: dict[int, int] = field(default_factory=dict)


@asynccontextmanager
async def admin(health: Health, *, numbers_only: bool = False) -> AsyncIterator[str]:
    port = await Admin.start(health, LOOPBACK, numbers_only=numbers_only)
    try:
        yield str(port.address)
    finally:
        await port.stop()


async def ask(capsys: pytest.CaptureFixture[str], address: str, *flags: str) -> Shown:
    capsys.readouterr()
    code = await asyncio.to_thread(run, ["proxy", "status", "--admin-addr", address, *flags], {})
    out, err = capsys.readouterr()
    return Shown(code, out, err)


async def test_a_worker_that_is_ready_is_shown_with_what_it_has_done(capsys: pytest.CaptureFixture[str]) -> None:
    health, talk = await running()
    talk.session.status.connected = True
    async with admin(health) as address:
        shown = await ask(capsys, address)
    assert (shown.status, shown.err) == (0, "")
    lines = shown.out.splitlines()
    assert lines[0].split() == ["Marble:", "web", "u-u-i-d", "(simulation)"]
    assert lines[1].split() == ["Ready:", "yes"]
    assert any(line.startswith("Coordinator: connected, ") for line in lines)
    (row,) = [line for line in lines if line.startswith("inbound|8080")]
    assert "512 B" in row
    assert row.endswith("revoked 3, plaintext 2")


async def test_a_worker_that_is_not_ready_says_all_that_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    health, talk = await running()
    health.app.running, health.app.last_status, health.app.starts = False, 9, 3
    health.started_offline, health.fleet = now(), Fleet()
    talk.session.status.last_error = "connection refused"
    await talk.push(SECRET, [identity_secret("ROOTCA", marble(talk.ca))])
    async with admin(health) as address:
        shown = await ask(capsys, address)
        report = json.loads((await ask(capsys, address, "-o", "json")).out)
    assert shown.status == 1
    for text in (
        "NO: the app is not running: it ended with status 9",
        "NOT connected after 0 attempts: connection refused",
        "NOT running, 2 restarts, ended with status 9 before",
        f"WITHOUT the Coordinator, heard last {now():%Y-%m-%d}",
        "1 of 3 relay, 4 restarted",
        "expected a TrustBundle",
    ):
        assert text in shown.out
    assert "PRIVATE KEY" not in shown.out
    assert report["missing"] == ["the app is not running: it ended with status 9"]
    assert report["coordinator"]["nacks"] == {"Secret": 1}
    assert "expected a TrustBundle" in report["coordinator"]["last_nacks"]["Secret"]["reason"]
    assert report["app"] == {"running": False, "restarts": 2, "last_status": 9}
    assert report["processes"] == {"running": 1, "configured": 3, "restarts": 4, "cpu_seconds": 1.5}


async def test_a_worker_without_identity_is_shown_too(capsys: pytest.CaptureFixture[str]) -> None:
    async with admin(starting()) as address:
        shown = await ask(capsys, address)
    assert shown.status == 1
    assert "NO: no identity yet: waiting for the coordinator" in shown.out


async def test_where_only_numbers_are_served_they_are_shown_and_said_to_be_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    health, _ = await running()
    async with admin(health, numbers_only=True) as address:
        shown = await ask(capsys, address)
        report = json.loads((await ask(capsys, address, "-o", "json")).out)
    assert shown.status == 0
    assert "serves numbers only, as under SGX" in shown.out
    (listener,) = report["listeners"]
    assert (listener["name"], listener["listen"], listener["refused"]) == (
        "inbound|8080",
        None,
        {Refusal.PLAINTEXT.value: 2},
    )
    assert (report["numbers_only"], report["clusters"]) == (True, [])
    assert {entry["name"] for entry in report["certificates"]} == {"identity", "bundle"}


async def ok(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def too_much(_: web.Request) -> web.Response:
    return web.Response(text="x" * 1001)


async def senseless(_: web.Request) -> web.Response:
    return web.Response(text="marblemesh_worker_info 1\nnonsense{\n")


@asynccontextmanager
async def somebody(**pages: Callable[[web.Request], object]) -> AsyncIterator[str]:
    app = web.Application()
    for name, handler in pages.items():
        app.router.add_get(f"/{name}", handler)  # type: ignore[arg-type]
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("pages", "reason"),
    [
        ({}, "/readyz answers 404: no worker's admin port"),
        ({"readyz": ok}, "/metrics has no marblemesh_worker_info: no worker's admin port"),
        ({"readyz": too_much}, "/readyz has more than 1000 bytes"),
        ({"readyz": ok, "metrics": senseless}, "its pages are not those of this version's worker"),
        ({"readyz": ok, "metrics": senseless, "certs": ok}, "/certs is no JSON: no worker's admin port"),
    ],
)
async def test_what_is_no_worker_is_named_and_the_status_is_2(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    pages: dict[str, Callable[[web.Request], object]],
    reason: str,
) -> None:
    monkeypatch.setattr(proxy_pages, "MAX_PAGE", 1000)
    async with somebody(**pages) as address:
        shown = await ask(capsys, address)
    assert (shown.status, shown.out) == (2, "")
    assert reason in shown.err
    assert f"no worker at {address}" in shown.err
    assert len(shown.err.splitlines()) == 1


async def test_what_speaks_no_http_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    async def mumble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x15\x03\x03\x00\x02\x02\x0a\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(mumble, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        shown = await ask(capsys, f"{host}:{port}")
    assert shown.status == 2
    assert "what answers is no HTTP" in shown.err


@pytest.mark.parametrize("address", ["", "localhost", ":1", "a:0", "a:65536", "a:x"])
async def test_an_address_that_is_none_is_wrong_usage(capsys: pytest.CaptureFixture[str], address: str) -> None:
    shown = await ask(capsys, address)
    assert shown.status == 2
    assert "is not HOST:PORT" in shown.err
