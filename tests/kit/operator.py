# SPDX-License-Identifier: Apache-2.0
"""An operator at the command line, in this process: what they type, what is printed, what lies in their home."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from marblemesh.cli.app import run
from tests.kit.fake_coordinator import FakeCoordinator
from tests.kit.users import user


@dataclass
class Result:
    status: int
    out: str
    err: str
    line: str = field(init=False)
    """The last line of stderr but for a hint: the error."""

    def __post_init__(self) -> None:
        lines = [line for line in self.err.splitlines() if not line.startswith("hint: ")]
        self.line = lines[-1] if lines else ""


@dataclass
class Operator:
    """Somebody with a home directory, a manifest and a Coordinator on the same simulated platform."""

    fake: FakeCoordinator
    home: Path
    capsys: pytest.CaptureFixture[str]

    async def call(self, *arguments: str | Path, simulation: bool = True) -> Result:
        flags = ["--simulation", "--simulated-platform", str(self.fake.directory / "platform")] if simulation else []
        words = [str(argument) for argument in arguments]
        # The verbs run an event loop of their own, and the fake needs this one.
        status = await asyncio.to_thread(run, [*words, *flags], {"XDG_CONFIG_HOME": str(self.home)})
        captured = self.capsys.readouterr()
        return Result(status, captured.out, captured.err)

    @property
    def here(self) -> Path:
        """The current directory."""
        return self.home.parent / "here"

    @property
    def kept(self) -> Path:
        return self.home / "marblerun" / "coordinator-cert.pem"

    async def as_user(self, *arguments: str | Path, name: str = "alice") -> Result:
        """The same with a user's certificate and key from files."""
        who = user(name)
        cert, key = self.write(f"{name}.pem", who.certificate), self.write(f"{name}.key", who.key)
        return await self.call(*arguments, "--cert", cert, "--key", key)

    def write(self, name: str, data: bytes) -> Path:
        path = self.home / name
        path.write_bytes(data)
        return path


@asynccontextmanager
async def operating(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Operator]:
    """An operator beside a Coordinator whose manifest names the users alice and bob."""
    (directory / "home").mkdir()
    (directory / "here").mkdir()
    monkeypatch.chdir(directory / "here")
    fake = FakeCoordinator(directory)
    fake.users.certificates = {name: user(name).der for name in ("alice", "bob")}
    async with fake.serving():
        yield Operator(fake, directory / "home", capsys)
