# SPDX-License-Identifier: Apache-2.0
"""A mesh of real processes for end-to-end tests: one Coordinator, any number of workers with their apps, in simulation.

    async with MeshHarness(tmp_path) as mesh:
        await mesh.start_coordinator()
        await mesh.set_manifest(mesh.manifest({"web": {...}}, tls))
        web = await mesh.start_worker("web", *ECHO, "web", "8080.sock")
        await web.ready()

Ports are free ones on loopback, logs are collected line by line and can be waited for, and whatever happens every
process is ended and reaped; if the test process itself dies, the kernel ends them.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import shutil
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import aiohttp

from sds.attestation.simulated import SimulatedEnclave

# Ends a process with us, by the kernel; see there.
_LEASH = Path(__file__).parents[2] / "enclave_proxy" / "exec_app.py"
ECHO = (sys.executable, "-I", str(Path(__file__).with_name("echo_app.py")))
# A process starts in 1-2 s on a busy machine; nothing here takes longer than a few of those.
PATIENCE = 30.0

Json = dict[str, Any]
R = TypeVar("R", bound="Running")


def free_port() -> int:
    """A port that nobody uses at this moment, from below those that the system gives to clients: such a port could be
    somebody's before it is listened on."""
    while True:
        port = random.SystemRandom().randrange(12000, 32000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port


def package(enclave: SimulatedEnclave) -> Json:
    """A manifest's package that allows exactly this enclave."""
    return {"UniqueID": enclave.unique_id.hex(), "Debug": enclave.debug}


@dataclass
class Running:
    """One process and what it has logged so far: JSON lines as they are, others as `{"event": line}`."""

    name: str
    process: Process
    lines: list[Json] = field(default_factory=list)
    _grown: asyncio.Condition = field(default_factory=asyncio.Condition)
    _reader: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    async def collect(self) -> None:
        """Read the log until it ends."""
        assert self.process.stderr is not None
        async for raw in self.process.stderr:
            text = raw.decode(errors="replace").rstrip()
            try:
                line = json.loads(text)
            except ValueError:
                line = text
            async with self._grown:
                self.lines.append(line if isinstance(line, dict) else {"event": text})
                self._grown.notify_all()
        async with self._grown:
            self.lines.append({"event": "<end of log>"})
            self._grown.notify_all()

    async def logged(self, event: str, after: int = 0, **fields: object) -> Json:
        """Wait for a line (from index `after`) whose event contains the text and whose fields are these."""

        def find() -> Json | None:
            for line in self.lines[after:]:
                if event in str(line.get("event")) and fields.items() <= line.items():
                    return line
                if line.get("event") == "<end of log>":
                    raise AssertionError(f"{self.name} ended without logging {event!r}:\n{self.text()}")
            return None

        try:
            async with asyncio.timeout(PATIENCE), self._grown:
                while (line := find()) is None:
                    await self._grown.wait()
                return line
        except TimeoutError:
            raise AssertionError(f"{self.name} did not log {event!r} in time:\n{self.text()}") from None

    def text(self) -> str:
        """The whole log, for failure messages."""
        return "\n".join(json.dumps(line) for line in self.lines[-80:])

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def wait(self) -> int:
        """The exit status, negative for death by signal; the log is complete then."""
        async with asyncio.timeout(PATIENCE):
            status = await self.process.wait()
            if self._reader is not None:
                await self._reader
            return status

    async def kill(self) -> None:
        """SIGKILL, and wait."""
        self.send(signal.SIGKILL)
        await self.wait()


@dataclass
class RunningWorker(Running):
    """A worker. `run_dir` holds its sockets; `admin` is the address of its admin port once it is known."""

    run_dir: Path = field(default_factory=Path)

    async def ready(self) -> None:
        """Configuration in force and app started."""
        await self.logged("app started")

    async def admin(self, path: str) -> tuple[int, str]:
        """GET from the admin port."""
        address = (await self.logged("admin listening"))["address"]
        async with aiohttp.ClientSession() as client, client.get(f"http://{address}{path}") as reply:
            return reply.status, await reply.text()

    async def admin_says(self, path: str, wanted: Callable[[str], bool]) -> str:
        """Ask until the answer is as wanted."""
        async with asyncio.timeout(PATIENCE):
            while True:  # the state of another process has no event to wait for
                if wanted(text := (await self.admin(path))[1]):
                    return text
                await asyncio.sleep(0.05)


class MeshHarness:
    """Starts and ends everything. `directory` must be short: UNIX sockets lie in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.platform = directory / "platform"
        self.state = directory / "state"
        self.coordinator: Running | None = None
        self.client_addr = ""
        self.mesh_addr = ""
        self.xds_addr = ""
        self.running: list[Running] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for running in self.running:
            running.send(signal.SIGTERM)
        for running in self.running:
            try:
                async with asyncio.timeout(5):
                    await running.process.wait()
            except TimeoutError:
                running.send(signal.SIGKILL)
                await running.process.wait()
        await asyncio.gather(*self._tasks)

    # ---- coordinator

    async def start_coordinator(self, *flags: str, env: Mapping[str, str] | None = None) -> Running:
        """Start it, the first time on free ports, later on the same ones; waits until it is ready."""
        addresses = (
            ("--client-addr", self.client_addr or "127.0.0.1:0"),
            ("--mesh-addr", self.mesh_addr or "127.0.0.1:0"),
            ("--xds-addr", self.xds_addr or f"127.0.0.1:{free_port()}"),
        )
        places = ("--simulated-platform", str(self.platform), "--seal-dir", str(self.state))
        command = ("coordinator", "--simulation", *places)
        arguments = [part for pair in addresses for part in pair]
        settings = {"EDG_COORDINATOR_DEV_MODE": "0", "EDG_DEBUG_LOGGING": "1", **(env or {})}
        process = await self._start((*command, *arguments, *flags), settings, self.directory)
        self.coordinator = await self._watch(Running("coordinator", process))
        ready = await self.coordinator.logged("coordinator ready")
        self.client_addr, self.mesh_addr = ready["client_addr"], ready["mesh_addr"]
        self.xds_addr = ready["xds_addr"]
        return self.coordinator

    async def kill_coordinator(self) -> None:
        """kill -9."""
        assert self.coordinator is not None
        await self.coordinator.kill()
        self.coordinator = None

    def lose_state(self) -> None:
        """Take the sealed state from a Coordinator that has ended: the next one is a new deployment."""
        shutil.rmtree(self.state)

    async def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
        """One call of the client API, unverified."""
        url = f"https://{self.client_addr}{path}"
        async with aiohttp.ClientSession() as client, client.request(method, url, data=body, ssl=False) as reply:
            return reply.status, await reply.text()

    async def set_manifest(self, manifest: Json) -> bytes:
        """Set it; gives the raw bytes that were set."""
        raw = json.dumps(manifest).encode()
        body = json.dumps({"manifest": base64.b64encode(raw).decode()}).encode()
        status, text = await self.request("POST", "/api/v2/manifest", body)
        assert status == 200, text
        return raw

    def manifest(self, marbles: Mapping[str, Json], tls: Mapping[str, Json], **members: Json) -> Json:
        """A manifest in which each Marble type is the simulated enclave, and has the TLS tag, of its name."""
        return {
            "Packages": {name: package(SimulatedEnclave.default(name)) for name in marbles},
            "Marbles": {
                name: {"Package": name, **({"TLS": [name]} if name in tls else {}), **rest}
                for name, rest in marbles.items()
            },
            "TLS": dict(tls),
            **members,
        }

    # ---- workers

    async def start_worker(
        self,
        marble_type: str,
        *command: str,
        name: str | None = None,
        flags: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
    ) -> RunningWorker:
        """Start one. `name` tells instances of a type apart; a second start with the same name is the same instance."""
        home = self.directory / (name or marble_type)
        home.mkdir(exist_ok=True)
        run_dir = home / "r"
        settings = {
            "EDG_MARBLE_TYPE": marble_type,
            "EDG_MARBLE_COORDINATOR_ADDR": self.mesh_addr,
            "EDG_MARBLE_XDS_ADDR": self.xds_addr,
            "EDG_COORDINATOR_CLIENT_ADDR": self.client_addr,
            "EDG_MARBLE_DNS_NAMES": "localhost",
            "EDG_MARBLE_ADVERTISE": "127.0.0.1",
            "EDG_MARBLE_RUN_DIR": str(run_dir),
            "EDG_MARBLE_ADMIN_ADDR": "127.0.0.1:0",
            "EDG_MARBLE_SIMULATION": "1",
            "EDG_SIMULATED_PLATFORM_DIR": str(self.platform),
            "EDG_LOG_FORMAT": "json",
            **(env or {}),
        }
        process = await self._start(("proxy", "run", *flags, "--", *command), settings, home)
        worker = RunningWorker(name or marble_type, process, run_dir=run_dir)
        await self._watch(worker)
        return worker

    def leashed(self, command: tuple[str, ...], env: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
        """Command line and environment of a `marblemesh` that ends with this process."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("EDG_", "MARBLE"))}  # noqa: TID251
        leash = [sys.executable, "-I", "-S", str(_LEASH), str(os.getpid()), sys.executable]
        argv = [*leash, sys.executable, "-m", "marblemesh", *command]
        return argv, {**inherited, "PYTHONUNBUFFERED": "1", **env}

    async def _start(self, command: tuple[str, ...], env: Mapping[str, str], cwd: Path) -> Process:
        argv, settings = self.leashed(command, env)
        return await asyncio.create_subprocess_exec(*argv, env=settings, cwd=cwd, stderr=PIPE)

    async def _watch(self, running: R) -> R:
        self.running.append(running)
        running._reader = asyncio.create_task(running.collect())  # noqa: TID251 - this harness is the owner
        self._tasks.append(running._reader)
        return running


async def ask(path: Path, payload: bytes, answer: bytes) -> None:
    """Connect to a UNIX socket, send, and expect exactly this answer; none means that the other side just closes."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_unix_connection(str(path))
        try:
            writer.write(payload)
            got = await reader.readexactly(len(answer) or 1)
        except asyncio.IncompleteReadError as error:
            got = error.partial
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
    assert got == answer
