# SPDX-License-Identifier: Apache-2.0
"""Whatever is large, many or slow, against a real Coordinator process: it answers another client meanwhile, lets a
Marble in, and does not grow beyond a bound.

`python -m tests.soak.abuse` runs every hazard in full size and prints what each of them cost;
tests/conformance/test_abuse.py runs them with less of everything. Attackers come from 127.0.0.2, the honest client and
the honest Marble from 127.0.0.1.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import ssl
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from grpclib.const import Cardinality
from grpclib.exceptions import GRPCError

from enclave_proxy.bootstrap import Credentials
from enclave_proxy.config import HostPort
from enclave_proxy.grpc_channel import CHANNEL_ERRORS, SecureChannel
from enclave_proxy.xds_client import DELTA_ADS, check_coordinator
from sds.attestation.simulated import SimulatedEnclave, SimulatedPlatform
from sds.identity import COORDINATOR_DNS_NAME
from sds.tls import client_context
from tests.kit.client_api import HTTP1, HTTP2, curl
from tests.kit.marble_client import MarbleCredentials, activate
from tests.kit.mesh import Json, MeshHarness, Running
from tests.kit.tls_port import client_context as anonymous

ATTACKER = ("127.0.0.2", 0)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
# After this time every connection without a request was ended (docs/limits.md); 20 s for a busy machine.
LONGEST_SILENCE = 140.0
PATIENCE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    types: int = 10_000
    own_tags: bool = True
    """whether each type has ports of its own, or all of them the same"""
    secrets: int = 1_000
    slow: int = 250
    """connections of each kind on each port"""
    until_cut: bool = True
    """whether to wait until the Coordinator has ended all of them"""


@dataclass
class Seen:
    """What a hazard did to everybody else."""

    name: str
    answer: str = ""
    asked: int = 0
    slowest: float = 0.0
    """seconds until /status was answered"""
    growth: int = 0
    """MiB, at most, over what it had taken before"""

    def __str__(self) -> str:
        numbers = f"{self.asked:5} asked, slowest {self.slowest:5.2f} s, grew by {self.growth:4} MiB"
        return f"{self.name:42} {numbers}  {self.answer}"


def peak(process: Running) -> int:
    """The most memory that a process has had so far, MiB."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmHWM")).split()[1]) // 1024


@dataclass
class Scene:
    """A Coordinator, and the honest client beside whatever happens to it."""

    mesh: MeshHarness
    process: Running
    seen: Seen
    size: Size
    before: int = field(init=False)

    def __post_init__(self) -> None:
        self.before = peak(self.process)

    def url(self, path: str) -> str:
        return f"https://{self.mesh.client_addr}{path}"

    def port(self, name: str) -> int:
        ready = next(line for line in self.process.lines if line.get("event") == "coordinator ready")
        return int(str(ready[f"{name}_addr"]).rpartition(":")[2])

    async def ask(self) -> None:
        """/status as anybody may ask for it, on a connection of its own."""
        started = time.monotonic()
        status = (await curl(self.url("/status"))).status
        assert status == 200
        self.seen.asked += 1
        self.seen.slowest = max(self.seen.slowest, time.monotonic() - started)

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Ask again and again inside the block, once at least."""

        async def again() -> None:
            while True:
                await self.ask()
                await asyncio.sleep(0.1)

        async with asyncio.TaskGroup() as group:
            task = group.create_task(again())
            try:
                yield
            finally:
                task.cancel()
        await self.ask()
        self.seen.growth = peak(self.process) - self.before

    async def marble_gets_in(self, marble_type: str) -> None:
        """A worker is activated, configured and starts its app."""
        worker = await self.mesh.start_worker(marble_type, "sleep", "60", env=_as("app"))
        await worker.ready()


def _as(enclave: str) -> dict[str, str]:
    made = SimulatedEnclave.default(enclave)
    return {"EDG_SIMULATED_ENCLAVE": json.dumps({"UniqueID": made.unique_id.hex(), "SignerID": made.signer_id.hex()})}


# ---- manifests


def manifest(marbles: Json, **members: Json) -> bytes:
    package = {"UniqueID": SimulatedEnclave.default("app").unique_id.hex()}
    return json.dumps({"Packages": {"app": package}, "Marbles": marbles, **members}).encode()


def many_types(count: int, *, own_tags: bool) -> bytes:
    marbles = {f"m{n}": {"Package": "app", "TLS": [f"t{n}" if own_tags else "t"]} for n in range(count)}

    def tag(n: int) -> Json:
        after = (n + 1) % count
        return {
            "Incoming": [{"Port": str(1024 + n)}],
            "Outgoing": [{"Addr": f"m{after}", "Port": str(1024 + after)}],
        }

    return manifest(marbles, TLS={f"t{n}": tag(n) for n in range(count)} if own_tags else {"t": tag(0)})


def many_secrets(count: int) -> bytes:
    env = {"KEY": {"Encoding": "string", "Data": "{{ hex .Secrets.s0 }}"}}
    secret = {"Type": "symmetric-key", "Size": 128, "Shared": True}
    marbles = {"m0": {"Package": "app", "Parameters": {"Env": env}}}
    return manifest(marbles, Secrets={f"s{n}": secret for n in range(count)})


def ten_megabytes() -> bytes:
    """Of files, as large as a Marble may have them."""
    data = base64.b64encode(os.urandom(1_900_000)).decode()
    file = {"Data": data, "Encoding": "base64", "NoTemplates": True}
    return manifest({f"m{n}": {"Package": "app", "Parameters": {"Files": {"f": file}}} for n in range(4)})


# ---- hazards


async def taken(scene: Scene, raw: bytes) -> None:
    """The manifest is set, and a Marble of it gets in."""
    async with scene.asking():
        started = time.monotonic()
        answer = await curl(scene.url("/manifest"), HTTP2, "--max-time", "120", body=raw)
        assert answer.status == 200, answer.body[:500]
        took = time.monotonic() - started
        started = time.monotonic()
        await scene.marble_gets_in("m0")
        whole = f"{len(raw) / 1e6:.1f} MB set in {took:.1f} s"
        scene.seen.answer = f"{whole}, Marble ready after {time.monotonic() - started:.1f} s"


async def a_manifest_of_ten_megabytes(scene: Scene) -> None:
    await taken(scene, ten_megabytes())


async def many_marble_types(scene: Scene) -> None:
    await taken(scene, many_types(scene.size.types, own_tags=scene.size.own_tags))


async def a_thousand_secrets(scene: Scene) -> None:
    await taken(scene, many_secrets(scene.size.secrets))


async def bodies_of_five_megabytes(scene: Scene) -> None:
    """To everything that reads a body: the client API, the Marble API, the xDS port."""
    body = bytes(5_000_000)
    await scene.mesh.set_manifest(json.loads(manifest({"m0": {"Package": "app"}})))
    async with scene.asking():
        paths = ("manifest", "recover", "secrets", "update", "update-manifest", "sign-quote", "monotonic-counter")
        answers = [
            (await curl(scene.url(f"/api/v2/{path}"), version, body=body)).status
            for path in paths
            for version in (HTTP1, HTTP2)
        ]
        assert all(status >= 400 for status in answers), answers
        told = [await _large_activation(scene, body), await _large_discovery(scene, body)]
        scene.seen.answer = f"HTTP {sorted(set(answers))}, Marble API {told[0]}, xDS {told[1]}"


async def _large_activation(scene: Scene, body: bytes) -> str:
    who = MarbleCredentials.make()
    try:
        await activate("127.0.0.1", scene.port("mesh"), who, body, "m0")
    except GRPCError as refused:
        return refused.status.name
    raise AssertionError("a quote of 5 MB was taken")


async def _large_discovery(scene: Scene, body: bytes) -> str:
    who = MarbleCredentials.make()
    issuer = SimulatedPlatform.open(scene.mesh.platform, datetime.now(UTC)).issuer(SimulatedEnclave.default("app"))
    parameters = await activate("127.0.0.1", scene.port("mesh"), who, who.quote(issuer), "m0")
    credentials = Credentials.from_env(dict(parameters.env), datetime.now(UTC))
    context = client_context(credentials.identity, credentials.coordinator_root)
    context.set_alpn_protocols(["h2"])
    address = HostPort("127.0.0.1", scene.port("xds"))
    channel = SecureChannel(address, context, check_coordinator, sni=COORDINATOR_DNS_NAME, timeout=10)
    try:
        async with (
            asyncio.timeout(30),
            channel.request(DELTA_ADS, Cardinality.STREAM_STREAM, bytes, bytes) as stream,
        ):
            await stream.send_message(body)
            await stream.recv_message()
            await stream.recv_trailing_metadata()
    except GRPCError as refused:
        return refused.status.name
    except CHANNEL_ERRORS:
        return "disconnected"
    finally:
        channel.close()
    raise AssertionError("a discovery request of 5 MB was taken")


async def slow_and_half_open_connections(scene: Scene) -> None:
    """Silent ones, half a handshake, half a request, a byte now and then: all of them at once, on every port."""
    await scene.mesh.set_manifest(json.loads(manifest({"m0": {"Package": "app"}})))
    async with scene.asking(), asyncio.TaskGroup() as group:
        opening = [group.create_task(_hold(kind)) for kind in _slow_kinds(scene) for _ in range(scene.size.slow)]
        held = [one for task in opening if (one := await task) is not None]
        dribbling = group.create_task(_dribble(held))
        await scene.marble_gets_in("m0")
        await _metrics(scene)
        if scene.size.until_cut:
            await _all_cut(held)
        dribbling.cancel()
        scene.seen.answer = f"{len(held)} of {len(opening)} held{', all ended' if scene.size.until_cut else ''}"
    for one in held:
        one.writer.transport.abort()


@dataclass(frozen=True, slots=True)
class Kind:
    """A connection to this port that sends this, and then nothing; `tls` None: without TLS."""

    name: str
    port: int
    data: bytes
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class Held:
    kind: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


def _slow_kinds(scene: Scene) -> list[Kind]:
    client, mesh, xds, prometheus = (scene.port(name) for name in ("client", "mesh", "xds", "prometheus"))
    body = b"POST /manifest HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{"
    ports = {"client API": client, "Marble API": mesh, "xDS": xds}
    return [
        *(Kind(f"{name}, silent", port, b"") for name, port in ports.items()),
        *(Kind(f"{name}, half a hello", port, HALF_A_HELLO) for name, port in ports.items()),
        Kind("client API, half a head", client, b"GET /status HTTP/1.1\r\nHost:", anonymous()),
        Kind("client API, half a body", client, body, anonymous()),
        Kind("client API, a preface", client, PREFACE, anonymous(alpn="h2")),
        Kind("Marble API, a preface", mesh, PREFACE, MarbleCredentials.make().tls()),
        Kind("metrics, silent", prometheus, b""),
        Kind("metrics, half a head", prometheus, b"GET /metrics HTTP/1.1\r\nHost:"),
    ]


async def _hold(kind: Kind) -> Held | None:
    """None if it is refused."""
    try:
        async with asyncio.timeout(PATIENCE):
            streams = await asyncio.open_connection("127.0.0.1", kind.port, local_addr=ATTACKER, ssl=kind.tls)
    except (OSError, TimeoutError):
        return None
    streams[1].write(kind.data)
    return Held(kind.name, *streams)


async def _dribble(held: list[Held]) -> None:
    """One more byte for each second one, every second."""
    while True:
        for one in held[::2]:
            if not one.writer.is_closing():
                one.writer.write(b"x")
        await asyncio.sleep(1)


async def _all_cut(held: list[Held]) -> None:
    waiting = {asyncio.ensure_future(_end(one)): one for one in held}
    _, still = await asyncio.wait(waiting, timeout=LONGEST_SILENCE)
    for task in still:  # one that found the queue full was never the Coordinator's: it hears of that when it speaks
        waiting[task].writer.write(b"x")
    if still:
        _, still = await asyncio.wait(still, timeout=5)
    for task in still:
        task.cancel()
    kinds = Counter(waiting[task].kind for task in still)
    assert not still, f"not ended after {LONGEST_SILENCE:g} s: {dict(kinds)}"


async def _end(one: Held) -> None:
    with suppress(ConnectionError):
        while await one.reader.read(65536):
            pass


async def _metrics(scene: Scene) -> None:
    url = f"http://127.0.0.1:{scene.port('prometheus')}/metrics"
    assert (await curl(url)).status == 200


HAZARDS: dict[str, Callable[[Scene], Awaitable[None]]] = {
    "a manifest of 10 MB": a_manifest_of_ten_megabytes,
    "10 000 Marble types": many_marble_types,
    "1 000 secrets": a_thousand_secrets,
    "bodies of 5 MB": bodies_of_five_megabytes,
    "slow and half-open connections": slow_and_half_open_connections,
}


async def run(name: str, size: Size) -> Seen:
    """One hazard against a Coordinator of its own; raises AssertionError for whatever was not as it must be."""
    with TemporaryDirectory(prefix="mm-") as directory:  # short: sockets lie in it
        async with MeshHarness(Path(directory)) as mesh:
            process = await mesh.start_coordinator("--prometheus-addr", "127.0.0.1:0", env={"EDG_DEBUG_LOGGING": "0"})
            scene = Scene(mesh, process, Seen(name), size)
            await HAZARDS[name](scene)
            faults = [line for line in process.lines if "exception" in line or "Traceback" in str(line["event"])]
            assert not faults, faults[:3]
            return scene.seen


def main() -> None:
    parser = argparse.ArgumentParser(description="Large, many and slow things against a real Coordinator")
    parser.add_argument("--slow", type=int, default=Size().slow, help="connections of each kind on each port")
    parser.add_argument("--only", choices=HAZARDS, help="one hazard instead of all")
    arguments = parser.parse_args()
    size = Size(slow=arguments.slow)
    for name in [arguments.only] if arguments.only else HAZARDS:
        sys.stdout.write(f"{asyncio.run(run(name, size))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
