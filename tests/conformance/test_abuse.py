# SPDX-License-Identifier: Apache-2.0
"""Whatever strangers send neither stops nor bloats a Coordinator; the limits stand in docs/limits.md.

A process of its own, so that its memory is its own: 91 MiB when it starts. Attackers come from 127.0.0.2, the honest
client from 127.0.0.1. `python -m tests.soak.abuse` is the hazards of the first test in full size.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.fuzz.fuzz_http2 import PING, frame
from tests.kit.client_api import HTTP1, HTTP2, RawH2, curl
from tests.kit.coordinator import manifest
from tests.kit.coordinator_process import CoordinatorProcess, coordinator
from tests.kit.programs import program
from tests.kit.tls_port import client_context
from tests.soak.abuse import HAZARDS, Size, run
from xds_server.h2_meter import CREDIT

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

# More than any of the attacks below was measured to take (70 MiB), less than what they would without limits.
GROWTH_MIB = 160
ATTACKER = ("127.0.0.2", 0)


# Less of what takes long: ports that all types share, and not the minutes until the last slow connection is ended.
SMALL = Size(own_tags=False, slow=40, until_cut=False)
# What is set stays, several times over: as it came, as a model, as the entries of the state and once more to be sealed.
GROWTH_OF = {"a manifest of 10 MB": 280}


@pytest.fixture(autouse=True)
def _curl() -> None:
    """Asked for first: in the middle of an attack is no place to find out."""
    program("curl")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("platform")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(directory: Path) -> AsyncIterator[CoordinatorProcess]:
    """Without a manifest, from the first test to the last."""
    async with coordinator(directory) as process:
        before = peak(process)
        yield process
        assert await status(process) == 2
        assert peak(process) - before < GROWTH_MIB
        assert not [line for line in process.lines if "exception" in line or "Traceback" in line["event"]]


def peak(process: CoordinatorProcess) -> int:
    """The most memory that it has had so far, MiB."""
    text = Path(f"/proc/{process.process.pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1]) // 1024


def url(process: CoordinatorProcess, path: str) -> str:
    return f"https://127.0.0.1:{process.port('client')}{path}"


async def status(process: CoordinatorProcess) -> int:
    return int((await curl(url(process, "/status"))).data["StatusCode"])


def marbles(count: int, **extra: object) -> bytes:
    return manifest(Marbles={f"m{n}": {"Package": "app"} | extra for n in range(count)})


def secrets(count: int, **secret: object) -> bytes:
    return manifest(Secrets={f"s{n}": secret for n in range(count)})


def large_file() -> bytes:
    file = {"Data": base64.b64encode(bytes(7_500_000)).decode(), "Encoding": "base64"}
    return marbles(1, Parameters={"Files": {"/f": file}})


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "10 MB of one string": (lambda: b'{"a":"' + b"x" * 10_000_000 + b'"}', "checking manifest: no allowed packages"),
    "10 MB of brackets": (lambda: b"[" * 10_000_000, "has too many values"),
    "10 MB of zeros": (lambda: bytes(10_000_000), "unmarshaling manifest: "),
    "a name of 5 MB": (lambda: manifest(Marbles={"x" * 5_000_000: {"Package": "?"}}), "at most 128 are allowed"),
    "a file of 7.5 MB": (large_file, "can be sent"),
    "10 001 types": (lambda: marbles(10_001), "10001 types, at most 10000 can be served"),
    "a day of RSA keys": (lambda: secrets(1000, Type="cert-rsa", Size=8192, Shared=True), "certificates take about"),
    "1 GB of keys": (
        lambda: secrets(1000, Type="symmetric-key", Size=8 * 2**20, Shared=True),
        "at most 16777216 are kept",
    ),
}


@pytest.mark.parametrize("hazard", HAZARDS)
async def test_others_are_served_meanwhile_a_marble_gets_in_and_memory_stays_bounded(hazard: str) -> None:
    seen = await run(hazard, SMALL)
    assert seen.asked > 1
    assert seen.growth < GROWTH_OF.get(hazard, GROWTH_MIB)


async def test_hostile_manifests_are_refused_and_everybody_else_is_served_meanwhile(
    running: CoordinatorProcess,
) -> None:
    for name, (make, text) in REFUSED.items():
        uploading = asyncio.get_running_loop().create_task(curl(url(running, "/manifest"), HTTP2, body=make()))
        while not uploading.done():
            assert await status(running) == 2
            await asyncio.wait((uploading,), timeout=0.1)
        answer = await uploading
        assert answer.status == 400, name
        assert text in answer.message, name
        assert len(answer.message) < 50_000, name


async def test_many_manifests_at_once_wait_for_each_other(running: CoordinatorProcess) -> None:
    async with asyncio.TaskGroup() as group:
        uploads = [group.create_task(curl(url(running, "/manifest"), body=marbles(10_001))) for _ in range(3)]
        assert await status(running) == 2
    assert {(await upload).status for upload in uploads} == {400}


@pytest.mark.parametrize("version", [HTTP1, HTTP2])
async def test_large_bodies_elsewhere_are_refused(running: CoordinatorProcess, version: str) -> None:
    body = bytes(5_000_000)
    answers = {
        path: (await curl(url(running, path), version, body=body)).status
        for path in (
            "/api/v2/recover", "/api/v2/secrets", "/api/v2/update", "/api/v2/update-manifest", "/api/v2/update-cancel",
            "/api/v2/sign-quote", "/api/v2/monotonic-counter", "/api/v2/status", "/recover", "/no/such/path",
        )
    }  # fmt: skip
    assert set(answers.values()) <= {400, 401, 403, 405, 410, 413}


async def test_a_body_of_values_is_not_parsed(running: CoordinatorProcess) -> None:
    body = b'{"manifest":"","x":[' + b"[]," * 5_000_000 + b"0]}"
    answer = await curl(url(running, "/api/v2/manifest"), body=body)
    assert (answer.status, answer.json["status"]) == (400, "fail")


async def attack(process: CoordinatorProcess, data: bytes, *, tls: bool) -> asyncio.StreamWriter | None:
    """A connection that sends this and then nothing; None if it is refused."""
    extra: dict[str, Any] = {"ssl": client_context()} if tls else {}
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", process.port("client"), local_addr=ATTACKER, **extra)
    except OSError:
        return None
    writer.write(data)
    return writer


@pytest.mark.parametrize(
    ("count", "data", "tls"),
    [
        (300, b"", False),
        (300, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", False),
        (280, b"GET /status HTTP/1.1\r\nHost:", True),
        (280, b"POST /manifest HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{", True),
    ],
    ids=["half open", "half a hello", "half a head", "half a body"],
)
async def test_one_machine_s_slow_connections_do_not_keep_others_out(
    running: CoordinatorProcess, count: int, data: bytes, tls: bool
) -> None:
    slow = [await attack(running, data, tls=tls) for _ in range(count)]
    for _ in range(3):
        assert await status(running) == 2
    for writer in slow:
        if writer is not None:
            writer.transport.abort()


async def test_floods_of_frames_end_with_their_connection(running: CoordinatorProcess) -> None:
    for flood in (
        frame(PING, 0, 0, bytes(8)),
        frame(4, 0, 0),
        frame(1, 4, 1, b"\x82\x84\x87") + frame(3, 0, 1, bytes(4)),
    ):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", running.port("client"), ssl=client_context(alpn="h2"), local_addr=ATTACKER
        )
        raw = RawH2(reader, writer)
        raw.flush()
        writer.write(flood * (CREDIT + 10))
        with suppress(ConnectionError):
            assert await raw.goaway() is not None
        raw.abort()
        assert await status(running) == 2


async def test_junk_in_json_is_a_400(running: CoordinatorProcess) -> None:
    junk = [b"[" * 90_000, b'{"a":' * 90_000, b'{"recoverySecret":' + b"9" * 19_000 + b"}", b'"' + b"\\" * 20_000]
    for body in junk:
        assert (await curl(url(running, "/api/v2/recover"), body=body)).status == 400
