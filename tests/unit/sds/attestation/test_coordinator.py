# SPDX-License-Identifier: Apache-2.0
"""Attesting a Coordinator over HTTPS: what the quote binds, and everything that must not be taken for one."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sds.attestation.coordinator import attest_coordinator, fetch_unverified
from sds.attestation.errors import (
    BindingMismatch,
    CoordinatorUnavailable,
    Malformed,
    PolicyViolation,
    Untrusted,
)
from sds.attestation.policy import SgxPolicy
from sds.attestation.report_data import coordinator_report_data
from sds.attestation.simulated.pki import Pki
from tests.kit.platform import ENCLAVE, lab

POLICY = SgxPolicy(unique_id=ENCLAVE.unique_id)
# Any two-level CA will do; a simulated platform's has one.
CA, OTHER_CA = Pki.create(), Pki.create()


@dataclass
class FakeCoordinator:
    """The quote endpoint of a Coordinator, with knobs for what a wrong one would answer."""

    ca: Pki = CA
    quoted: Pki = CA
    replay: bytes | None = None
    without_quote: bool = False
    answer: web.Response | None = None
    nonces: list[bytes] = field(default_factory=list)
    hold: asyncio.Event | None = None

    async def quote(self, request: web.Request) -> web.Response:
        nonce = base64.urlsafe_b64decode(request.query.get("nonce", ""))
        self.nonces.append(nonce)
        if self.hold:
            await self.hold.wait()
        if self.answer:
            return self.answer
        bound = coordinator_report_data(self.quoted.root_der, nonce if self.replay is None else self.replay)
        quote = None if self.without_quote else base64.b64encode(lab().sgx(report_data=bound).to_wire()).decode()
        data = {"cert": self.ca.platform_ca.pem + self.ca.root.pem, "quote": quote}
        return web.json_response({"status": "success", "data": data})


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    pair = CA.root
    key = pair.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "server.pem").write_bytes(pair.pem.encode() + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    return context


@asynccontextmanager
async def serving(coordinator: FakeCoordinator, tls: ssl.SSLContext) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/api/v2/quote", coordinator.quote)
    server = TestServer(app, scheme="https")
    await server.start_server(ssl=tls)
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        await server.close()


async def test_an_attested_coordinator_gives_its_certificates(tls: ssl.SSLContext) -> None:
    async with serving(FakeCoordinator(), tls) as address:
        statement = await attest_coordinator(address, lab().appraiser(), POLICY)
    assert statement.claims is not None
    assert statement.claims.measurement == ENCLAVE.unique_id
    assert (statement.root, statement.intermediate) == (CA.root.certificate, CA.platform_ca.certificate)
    assert statement.chain_pem.decode() == CA.platform_ca.pem + CA.root.pem


async def test_each_asker_has_a_nonce_of_its_own(tls: ssl.SSLContext) -> None:
    coordinator = FakeCoordinator()
    async with serving(coordinator, tls) as address:
        await attest_coordinator(address, lab().appraiser(), POLICY)
        await attest_coordinator(address, lab().appraiser(), POLICY)
        await attest_coordinator(address, lab().appraiser(), POLICY, nonce=b"mine")
        await attest_coordinator(address, lab().appraiser(), POLICY, nonce=b"")
    assert [len(nonce) for nonce in coordinator.nonces] == [32, 32, 4, 0]
    assert len(set(coordinator.nonces)) == 4


async def test_an_old_quote_is_refused(tls: ssl.SSLContext) -> None:
    async with serving(FakeCoordinator(replay=b"yesterday"), tls) as address:
        with pytest.raises(BindingMismatch, match="report data"):
            await attest_coordinator(address, lab().appraiser(), POLICY)


async def test_a_genuine_quote_beside_another_root_is_refused(tls: ssl.SSLContext) -> None:
    async with serving(FakeCoordinator(ca=OTHER_CA), tls) as address:
        with pytest.raises(BindingMismatch, match="report data"):
            await attest_coordinator(address, lab().appraiser(), POLICY)


async def test_an_intermediate_of_somebody_else_is_refused(tls: ssl.SSLContext) -> None:
    mixed = replace(CA, platform_ca=OTHER_CA.platform_ca)
    async with serving(FakeCoordinator(ca=mixed), tls) as address:
        with pytest.raises(Untrusted, match="not issued by the root after it"):
            await attest_coordinator(address, lab().appraiser(), POLICY)


async def test_other_code_is_refused(tls: ssl.SSLContext) -> None:
    async with serving(FakeCoordinator(), tls) as address:
        with pytest.raises(PolicyViolation, match="unique id"):
            await attest_coordinator(address, lab().appraiser(), SgxPolicy(unique_id=bytes(32)))


async def test_without_a_quote_nothing_is_proven(tls: ssl.SSLContext) -> None:
    async with serving(FakeCoordinator(without_quote=True), tls) as address:
        with pytest.raises(Untrusted, match="has none, so it runs outside a TEE"):
            await attest_coordinator(address, lab().appraiser(), POLICY)
        statement = await fetch_unverified(address)
    assert (statement.claims, statement.root) == (None, CA.root.certificate)


def answering(status: int, body: str) -> web.Response:
    return web.Response(status=status, text=body)


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (answering(500, '{"status":"error","data":null,"message":"no quote\x1b[2J yet"}'), "500"),
        (answering(500, '{"status":"error","message":"issuing \\u001b[31mquote"}'), r"500: issuing \?\[31mquote"),
        (answering(405, '{"status":"error","data":null}'), "405: no message"),
        (answering(200, '{"status":"fail","message":"bad nonce"}'), "200: bad nonce"),
        (answering(404, "<html>"), "404 with something other than a JSON object"),
        (answering(200, "[" * 60_000), "something other than a JSON object"),
    ],
)
async def test_an_error_is_passed_on_in_one_clean_line(tls: ssl.SSLContext, answer: web.Response, what: str) -> None:
    async with serving(FakeCoordinator(answer=answer), tls) as address:
        with pytest.raises(CoordinatorUnavailable, match=what) as refused:
            await attest_coordinator(address, lab().appraiser(), POLICY)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ({}, "expected the members cert"),
        ({"cert": 1, "quote": None}, "expected the members cert"),
        ({"cert": "", "quote": None}, "0 certificates"),
        ({"cert": CA.root.pem, "quote": None}, "1, expected 2"),
        ({"cert": CA.platform_ca.pem + CA.root.pem, "quote": 1}, "expected the members cert"),
        ({"cert": CA.platform_ca.pem + CA.root.pem, "quote": "?"}, "not base64"),
        ({"cert": CA.platform_ca.pem + CA.root.pem, "quote": "é"}, "not base64"),
        ({"cert": CA.platform_ca.pem + CA.root.pem, "quote": "A" * 40_000}, "40000 characters"),
        ({"cert": "\ud800", "quote": None}, "something other than PEM"),
        ({"cert": "x" * 100_000, "quote": None}, "larger than 65536"),
    ],
)
async def test_a_statement_in_another_form_is_malformed(tls: ssl.SSLContext, data: object, what: str) -> None:
    answer = web.json_response({"status": "success", "data": data})
    async with serving(FakeCoordinator(answer=answer), tls) as address:
        with pytest.raises(Malformed, match=what):
            await fetch_unverified(address)


async def test_a_root_in_the_intermediates_place_is_refused(tls: ssl.SSLContext) -> None:
    swapped = web.json_response(
        {"status": "success", "data": {"cert": CA.root.pem + CA.platform_ca.pem, "quote": None}}
    )
    async with serving(FakeCoordinator(answer=swapped), tls) as address:
        with pytest.raises(Untrusted, match="not issued by the root after it"):
            await fetch_unverified(address)


async def test_a_silent_coordinator_costs_no_more_than_the_timeout(tls: ssl.SSLContext) -> None:
    coordinator = FakeCoordinator(hold=asyncio.Event())
    async with serving(coordinator, tls) as address:
        with pytest.raises(CoordinatorUnavailable, match=r"no answer within 0\.2 s"):
            await attest_coordinator(address, lab().appraiser(), POLICY, timeout=0.2)
        assert coordinator.hold
        coordinator.hold.set()


async def test_nobody_there_is_unavailable() -> None:
    with pytest.raises(CoordinatorUnavailable, match=r"coordinator 127\.0\.0\.1:1"):
        await attest_coordinator("127.0.0.1:1", lab().appraiser(), POLICY)


@pytest.mark.parametrize(
    "address", ["", "host", "host:", "host:0", "host:70000", "a/b:1", "user@host:1", "h:1?x", "h:1\n"]
)
async def test_a_wrong_address_is_refused_before_anything_is_sent(address: str) -> None:
    with pytest.raises(Malformed, match="expected host:port"):
        await attest_coordinator(address, lab().appraiser(), POLICY)


async def test_a_nonce_of_more_than_a_kilobyte_is_refused() -> None:
    with pytest.raises(Malformed, match="nonce: 1025 bytes"):
        await attest_coordinator("localhost:1", lab().appraiser(), POLICY, nonce=bytes(1025))
