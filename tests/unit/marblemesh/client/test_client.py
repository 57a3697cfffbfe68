# SPDX-License-Identifier: Apache-2.0
"""Whom the client believes, and what it tells when it does not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from marblemesh.client import AddressError, BadAnswer, Client, NotTrusted, RequestRefused, Unreachable
from sds.attestation.appraiser import Appraiser
from sds.attestation.policy import SgxPolicy
from sds.attestation.simulated import SIMULATED_SIGNER, SimulatedEnclave
from sds.ca import CertificateAuthority, pem_of
from tests.kit.fake_coordinator import COORDINATOR, FakeCoordinator

POLICY = SgxPolicy(signer_id=SIMULATED_SIGNER, product_id=3, security_version=3)


def appraiser(fake: FakeCoordinator) -> Appraiser:
    return Appraiser(fake.platform.verifier(), fake.platform.collateral, lambda: datetime.now(UTC))


async def attested(fake: FakeCoordinator, policy: SgxPolicy = POLICY) -> Client:
    return await Client.attested(fake.address, appraiser(fake), policy)


async def test_an_attested_coordinator_takes_and_shows_a_manifest(tmp_path: Path) -> None:
    async with FakeCoordinator(tmp_path, recovery_secrets={"k": "c2VjcmV0"}).serving() as fake:
        client = await attested(fake)
        assert client.statement is not None
        assert client.statement.claims is not None
        assert client.statement.claims.measurement == COORDINATOR.unique_id
        assert (await client.status()).code == 2
        assert await client.set_manifest(b"{}") == {"k": "c2VjcmV0"}
        assert (await client.manifest()).raw == b"{}"
        assert (await client.status()).code == 3


@pytest.mark.parametrize(
    ("knobs", "policy", "reason"),
    [
        ({"without_quote": True}, POLICY, "has none, so it runs outside a TEE"),
        ({"replayed_quote": True}, POLICY, "another certificate or nonce"),
        ({"enclave": SimulatedEnclave(b"\1" * 32, b"\2" * 32, 3, 3)}, POLICY, "signer id: want"),
        (
            {},
            SgxPolicy(signer_id=SIMULATED_SIGNER, product_id=3, security_version=4),
            "security version: want at least 4",
        ),
        ({"enclave": SimulatedEnclave(b"\1" * 32, SIMULATED_SIGNER, 3, 3, debug=True)}, POLICY, "debug: want false"),
    ],
    ids=["no quote", "replayed", "signer", "version", "debug"],
)
async def test_a_coordinator_that_proves_something_else_is_not_trusted(
    tmp_path: Path, knobs: dict[str, object], policy: SgxPolicy, reason: str
) -> None:
    async with FakeCoordinator(tmp_path, **knobs).serving() as fake:  # type: ignore[arg-type]
        with pytest.raises(NotTrusted, match=reason):
            await attested(fake, policy)


async def test_a_quote_of_another_platform_s_root_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = FakeCoordinator(tmp_path / "other")
    async with FakeCoordinator(tmp_path).serving() as fake:
        with pytest.raises(NotTrusted, match="is not trusted"):
            await Client.attested(fake.address, appraiser(other), POLICY)


async def test_the_attested_root_must_be_the_server_s_own_certificate(tmp_path: Path) -> None:
    """A relay can fetch a genuine quote, but does not have the root's key."""
    relay = CertificateAuthority.create(["localhost"], [], datetime.now(UTC))
    async with FakeCoordinator(tmp_path).serving(presented=relay) as fake:
        client = await attested(fake)
        with pytest.raises(NotTrusted, match="it was set up anew, or this is not it"):
            await client.status()


async def test_a_certificate_below_the_root_is_not_the_root(tmp_path: Path) -> None:
    """The intermediate (and every Marble's leaf) chains to the root; whoever holds its key is not the Coordinator."""
    fake = FakeCoordinator(tmp_path)
    below = CertificateAuthority(
        fake.ca.intermediate, fake.ca.root, fake.ca.marble_root, fake.ca.intermediate_key, fake.ca.intermediate_key
    )
    below_chain = below.chain_pem
    assert below_chain.endswith(pem_of(fake.ca.intermediate))
    async with fake.serving(presented=below):
        client = Client(fake.address, root=fake.ca.chain_pem)
        with pytest.raises(NotTrusted, match="has another certificate"):
            await client.status()


async def test_a_pinned_root_is_enough_and_another_is_refused(tmp_path: Path) -> None:
    async with FakeCoordinator(tmp_path).serving() as fake:
        assert (await Client(fake.address, root=fake.ca.chain_pem).status()).code == 2
        fake.start_anew()
        stranger = Client(fake.address, root=fake.ca.chain_pem)
        with pytest.raises(NotTrusted, match="attest it again"):
            await stranger.status()


async def test_a_pin_out_of_date_is_named(tmp_path: Path) -> None:
    future = CertificateAuthority.create([], [], datetime(2999, 1, 1, tzinfo=UTC))
    with pytest.raises(NotTrusted, match=r"valid from 2999-01-01 00:00 to .* not now: attest the Coordinator again"):
        await Client("localhost:1", root=future.chain_pem).status()


@pytest.mark.parametrize("pem", [b"", b"\x7fELF", b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"])
def test_a_pin_must_be_a_certificate(pem: bytes) -> None:
    with pytest.raises(NotTrusted, match="holds no PEM certificate"):
        Client("localhost:1", root=pem)


def test_a_pin_must_be_a_root(tmp_path: Path) -> None:
    with pytest.raises(NotTrusted, match="no self-signed root"):
        Client("localhost:1", root=pem_of(FakeCoordinator(tmp_path).ca.intermediate))


async def test_the_manifest_must_be_signed_by_the_root(tmp_path: Path) -> None:
    async with FakeCoordinator(tmp_path, manifest=b"{}", signed_instead=b"[]").serving() as fake:
        with pytest.raises(BadAnswer, match="not signed by the Coordinator's root key"):
            await (await attested(fake)).manifest()
        fake.signed_instead, fake.stated_fingerprint = None, "00" * 32
        with pytest.raises(BadAnswer, match="the fingerprint is not that of the manifest"):
            await (await attested(fake)).manifest()


async def test_a_refusal_has_marblerun_s_form(tmp_path: Path) -> None:
    async with FakeCoordinator(tmp_path).serving() as fake:
        client = await Client.unverified(fake.address)
        with pytest.raises(RequestRefused) as caught:
            await client.manifest()
        assert str(caught.value) == (
            f"GET https://{fake.address}/api/v2/manifest: 500 Internal Server Error: error: requested value not set"
        )
        assert (caught.value.status, caught.value.message) == (500, "requested value not set")


@pytest.mark.parametrize("body", [b"hello", b"[]", b'{"status": 1}', b'{"status": "success"}', b"[" * 100_000])
async def test_an_answer_that_is_no_coordinator_s(tmp_path: Path, body: bytes) -> None:
    async with FakeCoordinator(tmp_path).serving() as fake:
        client = await attested(fake)
        fake.raw_answer = body
        with pytest.raises(BadAnswer):
            await client.status()


@pytest.mark.parametrize(
    "address", ["", "host", "host:", "host:0", "host:65536", "https://host:1", "a b:1", "[::1:1", "h:1/x"]
)
def test_an_address_is_host_and_port(address: str) -> None:
    with pytest.raises(AddressError, match="want host:port"):
        Client(address, root=b"")


@asynccontextmanager
async def server(answer: bytes | None) -> AsyncIterator[str]:
    """A TCP server that answers the first bytes with these, or never."""

    writers: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.read(100)
        if answer is not None:
            writer.write(answer)
            writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with listener:
        yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        for writer in writers:  # from Python 3.12 on, the listener is closed when its connections are
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH\r\n", b""])
async def test_a_server_that_speaks_no_https(answer: bytes) -> None:
    async with server(answer) as address:
        with pytest.raises(Unreachable, match="does not speak HTTPS"):
            await Client.unverified(address)


async def test_a_server_that_says_nothing() -> None:
    async with server(None) as address:
        with pytest.raises(Unreachable, match=r"no answer from .* within 0.2 s"):
            await Client.unverified(address, timeout=0.2)


async def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening
        with pytest.raises(Unreachable, match="refuses connections"):
            await Client.unverified(f"127.0.0.1:{taken.getsockname()[1]}")


async def test_no_such_host() -> None:
    with pytest.raises(Unreachable, match="cannot find the host"):
        await Client.unverified("no-such-host.invalid:4433")
