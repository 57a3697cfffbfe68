# SPDX-License-Identifier: Apache-2.0
"""Signed quotes: an SGX quote is verified, and the root key vouches for its TCB status; OpenSSL checks that."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from sds.attestation.report_data import marble_report_data
from tests.kit.client_api import Answer
from tests.kit.coordinator import manifest
from tests.kit.deployment import ERROR, JSON, b64
from tests.kit.openssl_judge import openssl, signed
from tests.kit.platform import Lab, lab
from tests.kit.site import INSECURE, Site, site
from xds_server.attestation_choice import Attestation

ENABLED = manifest(Config={"FeatureGates": ["SignQuoteEndpoint"]})
OE_HEADER = 16
STATUSES = [
    *("UpToDate", "OutOfDate", "Revoked", "ConfigurationNeeded", "OutOfDateConfigurationNeeded"),
    *("SWHardeningNeeded", "ConfigurationAndSWHardeningNeeded"),
]


def judged_by(platform: Lab) -> Callable[[Attestation], Attestation]:
    return lambda attestation: replace(attestation, appraiser=platform.appraiser())


@asynccontextmanager
async def signing(home: Path, platform: Lab) -> AsyncIterator[Site]:
    """A Coordinator that judges quotes by what this platform's documents say."""
    running = Site(home, attested=judged_by(platform))
    await running.start()
    try:
        assert (await running.outside.set_manifest(ENABLED)).status == 200
        yield running
    finally:
        await running.stop()


def quote(platform: Lab) -> bytes:
    """Of code that no manifest here names, with OpenEnclave's header."""
    return platform.sgx(report_data=marble_report_data(b"whoever")).to_wire()


async def ask(running: Site, quote: bytes) -> Answer:
    return await running.outside.post("/api/v2/sign-quote", {"sgxQuote": b64(quote)})


@pytest.mark.parametrize("status", STATUSES)
async def test_a_genuine_quote_is_signed_with_its_tcb_status_however_bad_that_is(tmp_path: Path, status: str) -> None:
    platform = lab().saying(status=status)
    async with signing(tmp_path, platform) as running:
        answer = (await ask(running, quote(platform))).data
        assert (list(answer), answer["tcbStatus"]) == (["tcbStatus", "verificationSignature"], status)


async def test_a_platform_older_than_every_level_is_out_of_date(tmp_path: Path) -> None:
    platform = lab().saying(required_svn=200)
    async with signing(tmp_path, platform) as running:
        assert (await ask(running, quote(platform))).data["tcbStatus"] == "OutOfDate"


@pytest.mark.parametrize("header", [True, False], ids=["with OpenEnclave's header", "raw"])
async def test_the_root_key_signs_the_quote_as_it_was_sent_and_the_status(tmp_path: Path, header: bool) -> None:
    sent = quote(lab())[0 if header else OE_HEADER :]
    async with signing(tmp_path, lab()) as running:
        answer = (await ask(running, sent)).data
        root = openssl("x509", "-pubkey", "-noout", data=await running.outside.root())
        assert signed(root, base64.b64decode(answer["verificationSignature"]), b64(sent).encode() + b"UpToDate")


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda sent: sent[:200] + bytes([sent[200] ^ 1]) + sent[201:], id="one bit"),
        pytest.param(lambda sent: sent[:-100], id="cut"),
        pytest.param(lambda sent: b"quote", id="no quote"),
    ],
)
async def test_what_is_not_genuine_is_a_fail_that_names_the_reason(
    tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    async with signing(tmp_path, lab()) as running:
        answer = await ask(running, spoil(quote(lab())))
        assert (answer.status, answer.kind, answer.json["status"]) == (400, JSON, "fail")
        assert answer.message == "quote verification failed"
        assert answer.json["data"]["sgxQuote"].startswith("quote verification failed: ")


async def test_an_empty_quote_is_an_empty_report(tmp_path: Path) -> None:
    async with site(tmp_path, ENABLED) as running:
        answer = await ask(running, b"")
        assert (answer.status, answer.message) == (400, "quote verification failed")
        assert answer.json["data"] == {"sgxQuote": "quote verification failed: empty report"}


async def test_a_quote_of_another_tee_is_not_signed(tmp_path: Path) -> None:
    async with signing(tmp_path, lab()) as running:
        answer = await ask(running, lab().tdx().to_wire())
        assert answer.status == 400
        assert "expected an SGX quote" in answer.json["data"]["sgxQuote"]


@pytest.mark.parametrize("body", [b"", b"{", b'{"sgxQuote":1}', b'{"sgxQuote":"?"}'])
async def test_a_malformed_request_is_a_fail_of_its_member(tmp_path: Path, body: bytes) -> None:
    async with site(tmp_path, ENABLED) as running:
        answer = await running.outside.post("/api/v2/sign-quote", body)
        assert (answer.status, answer.kind, answer.json["status"]) == (400, JSON, "fail")
        assert answer.json["data"] == {"sgxQuote": "failed to parse JSON data"}
        assert answer.message.startswith("bad request: ")


@pytest.mark.parametrize("raw", [None, manifest(), manifest(Config={"FeatureGates": ["MonotonicCounter"]})])
async def test_without_its_gate_in_a_manifest_it_is_forbidden(tmp_path: Path, raw: bytes | None) -> None:
    async with site(tmp_path, raw) as running:
        answer = await ask(running, quote(lab()))
        assert (answer.status, answer.kind) == (403, ERROR)
        assert answer.message == "SignQuoteEndpoint feature is not enabled in the manifest"


async def test_the_gate_s_name_is_read_in_any_case(tmp_path: Path) -> None:
    async with site(tmp_path, manifest(Config={"FeatureGates": ["signQUOTEendpoint"]})) as running:
        assert (await ask(running, b"")).status == 400


async def test_without_attestation_nothing_can_be_verified(tmp_path: Path) -> None:
    async with site(tmp_path, ENABLED, **INSECURE) as running:
        answer = await ask(running, quote(lab()))
        assert (answer.status, answer.json["data"]) == (
            400,
            {"sgxQuote": "quote verification failed: OE_UNSUPPORTED"},
        )
