# SPDX-License-Identifier: Apache-2.0
"""The Coordinator as users meet it: a process, its ports, and the clients that exist in the world."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import uuid as uuids
from base64 import b64decode
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from sds.attestation.evidence import Evidence
from sds.attestation.simulated import SimulatedEnclave, SimulatedPlatform
from sds.keys import PrivateKey
from sds.material import Identity, TrustBundle, check_identity
from tests.kit.coordinator import APP, manifest
from tests.kit.coordinator_process import CoordinatorProcess, coordinator, outcome
from tests.kit.marble_client import MarbleCredentials, activate
from tests.kit.pki import now
from tests.kit.programs import program

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("platform")


@pytest.fixture(scope="module")
def platform(directory: Path) -> SimulatedPlatform:
    return SimulatedPlatform.open(directory, now())


@pytest.fixture
async def running(directory: Path) -> AsyncIterator[CoordinatorProcess]:
    async with coordinator(directory) as process:
        yield process


async def command(*words: str, send: bytes = b"") -> tuple[int, bytes, bytes]:
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(15):
        out, err = await process.communicate(send)
    return process.returncode or 0, out, err


async def test_from_start_to_an_activated_marble(running: CoordinatorProcess, platform: SimulatedPlatform) -> None:
    """The whole life: status, quote, manifest by curl, activation, metrics, events, renewal, end."""
    base = f"https://localhost:{running.port('client')}"
    quote = await running.get("/api/v2/quote")
    root = x509.load_pem_x509_certificates(quote["cert"].encode())[1]
    assert Evidence.parse(b64decode(quote["quote"])).tee == "sgx"
    assert quote["simulation"] is True
    status, out, err = await command(program("curl"), "-sS", "-k", f"{base}/api/v2/status")
    assert (status, err) == (0, b"")
    assert json.loads(out)["data"]["code"] == 2
    status, out, _ = await command(program("curl"), "-sSk", "--data-binary", "@-", f"{base}/manifest", send=manifest())
    assert json.loads(out) == {"status": "success", "data": None}

    uuid = str(uuids.uuid4())
    who = MarbleCredentials.make()
    parameters = await activate("127.0.0.1", running.port("mesh"), who, who.quote(platform.issuer(APP)), "web", uuid)
    env = parameters.env
    assert list(parameters.argv) == ["./web"]
    assert x509.load_pem_x509_certificate(env["MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"]) == root
    identity = Identity(
        env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"], PrivateKey(env["MARBLE_PREDEFINED_PRIVATE_KEY"])
    )
    check_identity(identity, TrustBundle(env["MARBLE_PREDEFINED_ROOT_CA"]), now())

    text = await running.metrics()
    assert f'coordinator_marble_activations_success_total{{type="web",uuid="{uuid}"}} 1.0' in text
    assert "coordinator_state 3.0" in text
    running.process.send_signal(signal.SIGHUP)
    assert (await running.logged("identities renewed"))["count"] == 1
    assert await running.stop() == 0
    assert all(line["simulation"] is True for line in running.lines if "level" in line)
    assert not [line for line in running.lines if "exception" in line]


async def test_openssl_sees_the_root_certificate_alone_and_can_verify_by_it(
    running: CoordinatorProcess, tmp_path: Path
) -> None:
    quote = await running.get("/quote")
    root = x509.load_pem_x509_certificates(quote["Cert"].encode())[1]
    pem = tmp_path / "root.pem"
    pem.write_bytes(root.public_bytes(Encoding.PEM))
    where = f"127.0.0.1:{running.port('client')}"
    _, out, _ = await command(
        program("openssl"), "s_client", "-connect", where, "-showcerts", "-servername", "localhost"
    )
    assert out.count(b"BEGIN CERTIFICATE") == 1
    assert root.public_bytes(Encoding.PEM) in out
    url = f"https://localhost:{running.port('client')}/status"
    status, out, _ = await command(program("curl"), "-sS", "--cacert", str(pem), url)
    assert status == 0
    assert b'"StatusCode":2' in out


async def test_a_forged_marble_gets_nothing_but_the_name_of_the_check(
    running: CoordinatorProcess, platform: SimulatedPlatform
) -> None:
    await running.set_manifest(manifest())
    who = MarbleCredentials.make()
    port = running.port("mesh")
    other = platform.issuer(SimulatedEnclave.default("something else"))
    for quote, text in (
        (who.quote(other), "expected: {product id: 7, security version: at least 3}"),
        (b"", "the Marble sent none"),
    ):
        with pytest.raises(GRPCError) as caught:
            await activate("127.0.0.1", port, who, quote, "web")
        assert caught.value.status is Status.PERMISSION_DENIED
        assert text in str(caught.value.message)
    stolen = MarbleCredentials.make().quote(platform.issuer(APP))
    with pytest.raises(GRPCError, match="bound to another certificate"):
        await activate("127.0.0.1", port, who, stolen, "web")
    text = await running.metrics()
    assert 'marblemesh_attestation_refused_total{reason="policy_violation"} 1.0' in text
    assert 'marblemesh_attestation_refused_total{reason="binding_mismatch"} 1.0' in text
    assert "activations_success_total{" not in text


async def test_before_a_manifest_marbles_are_told_to_wait(
    running: CoordinatorProcess, platform: SimulatedPlatform
) -> None:
    who = MarbleCredentials.make(expired=True)
    with pytest.raises(GRPCError) as caught:
        await activate("127.0.0.1", running.port("mesh"), who, b"", "web")
    assert caught.value.status is Status.FAILED_PRECONDITION


async def test_junk_on_every_port_leaves_the_coordinator_well(running: CoordinatorProcess) -> None:
    for name in ("client", "mesh", "xds", "prometheus"):
        for junk in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300)):
            _, writer = await asyncio.open_connection("127.0.0.1", running.port(name))
            writer.write(junk)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
    assert (await running.get("/status"))["StatusCode"] == 2
    await running.stop()
    assert not [line for line in running.lines if "exception" in line or "Traceback" in line["event"]]


async def test_a_startup_manifest_is_set_before_anybody_connects(directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    file.write_bytes(manifest())
    async with coordinator(directory, env={"EDG_STARTUP_MANIFEST": str(file)}) as process:
        assert (await process.get("/status"))["StatusCode"] == 3
    file.write_bytes(b"{}")
    code, _, err = await outcome(
        "--simulation", f"--simulated-platform={directory}", f"--startup-manifest={file}", *FREE
    )
    assert code == 1
    assert err.splitlines()[-1].startswith("marblemesh coordinator: checking manifest: no allowed packages defined")


FREE = ("--client-addr=127.0.0.1:0", "--mesh-addr=127.0.0.1:0", "--xds-addr=127.0.0.1:0")


@pytest.mark.parametrize("name", ["client", "mesh", "xds", "prometheus"])
async def test_a_taken_port_is_one_clear_line(name: str, directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        flags = [*FREE, "--simulation", f"--simulated-platform={directory}", f"--{name}-addr={address}"]
        code, out, err = await outcome(*flags)
    assert (code, out) == (1, "")
    assert err == (
        f"marblemesh coordinator: cannot listen on {address}: Address already in use; choose another address with "
        f"--{name}-addr (EDG_COORDINATOR_{name.upper()}_ADDR)\n"
    )


async def test_without_a_tee_it_does_not_pretend() -> None:
    code, out, err = await outcome(*FREE)
    assert (code, out) == (1, "")
    assert err.startswith("marblemesh coordinator: ")
    assert "--simulation" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--mesh-addr=x"], "want host:port or :port, got 'x'"),
        (["--simulated-enclave={}"], "is set without --simulation"),
        (["--no-such-flag"], "--no-such-flag"),
        (["stray"], "stray"),
    ],
)
async def test_a_wrong_flag_is_one_line_and_exit_status_2(flags: list[str], text: str) -> None:
    code, out, err = await outcome(*flags)
    assert (code, out) == (2, "")
    assert text in err
    assert len(err.splitlines()) == 1


async def test_help_teaches_the_variables() -> None:
    code, out, err = await outcome("--help")
    assert (code, err) == (0, "")
    for word in (
        "--simulation",
        "EDG_COORDINATOR_MESH_ADDR",
        "EDG_STARTUP_MANIFEST",
        "SIGHUP",
        "--insecure-no-attestation",
    ):
        assert word in out
