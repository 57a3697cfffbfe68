# SPDX-License-Identifier: Apache-2.0
"""What a Coordinator still knows after kill -9, and how its owners bring it back on another machine."""

from __future__ import annotations

import base64
import json
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sds.attestation.simulated import SimulatedPlatform
from tests.kit.coordinator import APP, manifest
from tests.kit.coordinator_process import CoordinatorProcess, coordinator, outcome
from tests.kit.marble_client import MarbleCredentials, activate
from tests.kit.mesh import ECHO, Json, MeshHarness, ask, free_port

OAEP = padding.OAEP(padding.MGF1(SHA256()), SHA256(), None)


@pytest.fixture
async def mesh() -> AsyncIterator[MeshHarness]:
    with TemporaryDirectory(prefix="mm") as directory:
        async with MeshHarness(Path(directory)) as harness:
            yield harness


async def chain(process: CoordinatorProcess) -> str:
    return str((await process.get("/api/v2/quote"))["cert"])


async def post(process: CoordinatorProcess, path: str, document: object) -> tuple[int, dict[str, object]]:
    url = f"https://127.0.0.1:{process.port('client')}{path}"
    async with aiohttp.ClientSession() as session, session.post(url, json=document, ssl=False) as reply:
        return reply.status, json.loads(await reply.read())


async def test_a_killed_coordinator_comes_back_with_root_manifest_and_budget(tmp_path: Path) -> None:
    platform, state = tmp_path / "platform", tmp_path / "state"
    raw = manifest(Marbles={"web": {"Package": "app", "MaxActivations": 2}})
    async with coordinator(platform, state=state) as first:
        await first.set_manifest(raw)
        before = await chain(first)
        await activated(first, platform)
        await first.stop(signal.SIGKILL)
    async with coordinator(platform, state=state) as second:
        assert (await second.get("/api/v2/status"))["code"] == 3
        assert await chain(second) == before
        assert base64.b64decode((await second.get("/api/v2/manifest"))["manifest"]) == raw
        assert len((await second.get("/api/v2/update"))["updateLog"]) == 1
        await activated(second, platform)
        with pytest.raises(Exception, match=r"reached max activations count \(2\)"):
            await activated(second, platform)


async def activated(process: CoordinatorProcess, platform: Path) -> None:
    who = MarbleCredentials.make()
    issuer = SimulatedPlatform.open(platform, who.certificate.not_valid_before_utc).issuer(APP)
    await activate("127.0.0.1", process.port("mesh"), who, who.quote(issuer), "web")


async def test_before_a_manifest_nothing_is_written_and_a_restart_makes_another_root(tmp_path: Path) -> None:
    platform, state = tmp_path / "platform", tmp_path / "state"
    async with coordinator(platform, state=state) as first:
        before = await chain(first)
    assert not (state / "sealed_data").exists()
    async with coordinator(platform, state=state) as second:
        assert await chain(second) != before


async def test_with_sealing_disabled_a_restart_forgets(tmp_path: Path) -> None:
    platform, state = tmp_path / "platform", tmp_path / "state"
    async with coordinator(platform, state=state) as first:
        await first.set_manifest(manifest(Config={"SealMode": "Disabled"}))
    assert not (state / "sealed_data").exists()
    async with coordinator(platform, state=state) as second:
        assert (await second.get("/api/v2/status"))["code"] == 2


async def test_a_startup_manifest_may_be_the_one_in_force_but_no_other(tmp_path: Path) -> None:
    platform, state, file = tmp_path / "platform", tmp_path / "state", tmp_path / "manifest.json"
    file.write_bytes(manifest())
    for _ in range(2):
        async with coordinator(platform, f"--startup-manifest={file}", state=state) as process:
            assert (await process.get("/api/v2/status"))["code"] == 3
    file.write_bytes(manifest(Marbles={"other": {"Package": "app"}}))
    free = [f"--{name}-addr=127.0.0.1:0" for name in ("client", "mesh", "xds")]
    flags = ["--simulation", f"--simulated-platform={platform}", f"--seal-dir={state}", f"--startup-manifest={file}"]
    code, _, err = await outcome(*free, *flags)
    assert code == 1
    assert "is another manifest than the one in force" in err


async def test_running_workers_reconnect_to_a_restarted_coordinator_without_activating_again(mesh: MeshHarness) -> None:
    await mesh.start_coordinator()
    port = free_port()
    tls: dict[str, Json] = {
        "server": {"Incoming": [{"Port": str(port), "Upstream": "unix:app.sock", "Peers": ["client"]}]},
        "client": {"Outgoing": [{"Addr": "server", "Port": str(port), "Listen": "unix:server.sock"}]},
    }
    await mesh.set_manifest(mesh.manifest({"server": {}, "client": {}}, tls))
    server = await mesh.start_worker("server", *ECHO, "server", "app.sock")
    client = await mesh.start_worker("client", *ECHO, "client", "unused.sock")
    await server.ready()
    await client.ready()
    await mesh.kill_coordinator()
    restarted = await mesh.start_coordinator()
    for kind in ("server", "client"):
        await restarted.logged("instance readmitted", MarbleType=kind)
    assert not [line for line in restarted.lines if line.get("event") == "Successfully activated new Marble"]
    third = await mesh.start_worker("client", *ECHO, "client2", "unused.sock", name="client2")
    await third.ready()
    await ask(third.run_dir / "server.sock", b"hello", b"server:hello")


async def test_on_another_machine_the_owner_of_the_recovery_key_brings_the_state_back(tmp_path: Path) -> None:
    owner, state = rsa.generate_private_key(65537, 2048), tmp_path / "state"
    pem = owner.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    async with coordinator(tmp_path / "machine1", state=state) as first:
        answer = await first.set_manifest(manifest(RecoveryKeys={"owner": pem}))
        before = await chain(first)
    secret = owner.decrypt(base64.b64decode(answer["RecoverySecrets"]["owner"]), OAEP)
    signature = owner.sign(secret, padding.PKCS1v15(), SHA256())
    async with coordinator(tmp_path / "machine2", state=state) as second:
        assert (await second.get("/api/v2/status"))["code"] == 1
        assert await chain(second) != before
        wrong = {"recoverySecret": b64(bytes(32)), "recoverySecretSignature": b64(signature)}
        status, _ = await post(second, "/api/v2/recover", wrong)
        assert status in (400, 500)
        right = {"recoverySecret": b64(secret), "recoverySecretSignature": b64(signature)}
        assert await post(second, "/api/v2/recover", right) == (
            200,
            {"status": "success", "data": {"remaining": 0, "message": "Recovery successful."}},
        )
        assert (await second.get("/api/v2/status"))["code"] == 3
        assert await chain(second) == before
        assert ssl.get_server_certificate(("127.0.0.1", second.port("client"))).strip() in before
        await second.stop(signal.SIGKILL)
    async with coordinator(tmp_path / "machine2", state=state) as third:  # sealed to this machine now
        assert (await third.get("/api/v2/status"))["code"] == 3


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


async def test_without_attestation_everything_says_so(tmp_path: Path) -> None:
    async with coordinator(None, "--insecure-no-attestation", state=tmp_path / "state") as process:
        status = await process.get("/api/v2/status")
        assert status["insecure"] is True
        assert (await process.get("/api/v2/quote"))["quote"] is None
        await process.set_manifest(manifest())
        who = MarbleCredentials.make()
        await activate("127.0.0.1", process.port("mesh"), who, b"", "web")
        assert len((tmp_path / "state" / "sealed_key").read_bytes()) == 32
    assert all(line["insecure"] is True for line in process.lines if "level" in line)
    assert any("NO ATTESTATION" in line["event"] for line in process.lines)
    code, _, err = await outcome("--insecure-no-attestation", "--simulation")
    assert (code, "exclude each other" in err) == (2, True)
