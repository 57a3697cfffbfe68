# SPDX-License-Identifier: Apache-2.0
"""A Coordinator on a platform that makes no quotes: it ends, unless this is development."""

from __future__ import annotations

import asyncio
import re
import signal
from pathlib import Path

import aiohttp
import pytest
from grpclib import GRPCError

from tests.kit.coordinator import manifest
from tests.kit.coordinator_process import outcome, spawn
from tests.kit.marble_client import MarbleCredentials, activate

pytestmark = pytest.mark.e2e


@pytest.fixture
def platform(tmp_path: Path) -> list[str]:
    """Gramine without remote attestation, as its files show it."""
    for name, content in (("attestation_type", "none"), ("user_report_data", ""), ("quote", "")):
        (tmp_path / name).write_text(content)
    (tmp_path / "keys").mkdir()
    places = {"platform": f"gramine:{tmp_path}", "collateral-dir": tmp_path, "seal-dir": tmp_path / "s"}
    addresses = {f"{port}-addr": "127.0.0.1:0" for port in ("client", "mesh", "xds")}
    return [f"--{flag}={value}" for flag, value in {**places, **addresses}.items()]


async def test_without_a_quote_it_does_not_start(platform: list[str]) -> None:
    code, _, err = await outcome(*platform)
    assert code == 1
    assert 'set sgx.remote_attestation = "dcap" in the Gramine manifest' in err.splitlines()[-1]


async def test_in_development_mode_it_starts_but_says_so_has_no_quote_to_show_and_admits_nobody_unproven(
    platform: list[str],
) -> None:
    process = await spawn(*platform, "--dev-mode")
    assert process.stderr is not None
    try:
        log = ""
        async with asyncio.timeout(20):
            while "coordinator ready" not in log:
                line = await process.stderr.readline()
                assert line, log
                log += line.decode()
        assert "nobody can verify this Coordinator" in log
        client, mesh = (int(found) for found in re.findall(r"(?:client|mesh)_addr=127\.0\.0\.1:(\d+)", log))
        async with aiohttp.ClientSession(f"https://127.0.0.1:{client}") as session:
            async with session.get("/api/v2/quote", ssl=False) as reply:
                assert reply.status == 500
                assert "issuing quote" in await reply.text()
            async with session.post("/manifest", data=manifest(Config={"SealMode": "Disabled"}), ssl=False) as reply:
                assert reply.status == 200
        with pytest.raises(GRPCError, match="invalid quote"):
            await activate("127.0.0.1", mesh, MarbleCredentials.make(), b"", "web")
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.communicate()
