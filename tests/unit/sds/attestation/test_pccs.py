# SPDX-License-Identifier: Apache-2.0
"""The PCCS client against a server on loopback that speaks the service's paths, headers and forms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from sds.attestation.collateral import CollateralKey
from sds.attestation.errors import CollateralUnavailable, Malformed
from sds.attestation.pccs import REFRESH_AFTER, RETRY_AFTER, PccsCollateral, cut_signed, read_crl
from sds.attestation.simulated.pki import FMSPC
from sds.attestation.tee import Tee
from sds.tls import server_context
from tests.kit.pki import make_ca, marble
from tests.kit.platform import NOW, Lab, lab

# The cryptography library warns of odd certificates (a negative serial, a country of 21 letters), but reads them.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SGX = CollateralKey(FMSPC, "platform", Tee.SGX)
TDX = CollateralKey(FMSPC, "platform", Tee.TDX)


@dataclass
class Pccs:
    """A caching service with one lab's collateral, and knobs."""

    lab: Lab
    asked: list[str] = field(default_factory=list)
    status: int = 200
    crl_form: str = "der"
    missing_header: str = ""
    body: bytes | None = None
    hold: asyncio.Event | None = None

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path_qs)
        if self.hold:
            await self.hold.wait()
        if self.status != 200:
            return web.Response(status=self.status)
        body, headers = self._document(request)
        headers = {name: quote(text) for name, text in headers.items() if name != self.missing_header}
        return web.Response(body=self.body if self.body is not None else body, headers=headers)

    def _document(self, request: web.Request) -> tuple[bytes, dict[str, str]]:
        qvl = self.lab.collateral(Tee.TDX if request.path.startswith("/tdx") else Tee.SGX).qvl
        match request.path.split("/certification/v4/")[1], dict(request.query):
            case "tcb", {"fmspc": "53494D550001"}:
                text = f'{{"tcbInfo":{qvl.tcb_info},"signature":"{qvl.tcb_info_signature.hex()}"}}'
                return text.encode(), {"TCB-Info-Issuer-Chain": qvl.tcb_info_issuer_chain}
            case "qe/identity", {}:
                text = f'{{"enclaveIdentity":{qvl.qe_identity},"signature":"{qvl.qe_identity_signature.hex()}"}}'
                return text.encode(), {"SGX-Enclave-Identity-Issuer-Chain": qvl.qe_identity_issuer_chain}
            case "pckcrl", {"ca": "platform", "encoding": "der"}:
                return self._crl(qvl.pck_crl), {"SGX-PCK-CRL-Issuer-Chain": qvl.pck_crl_issuer_chain}
            case "rootcacrl", {}:
                return qvl.root_ca_crl.hex().encode(), {}
        raise web.HTTPNotFound

    def _crl(self, der: bytes) -> bytes:
        return der if self.crl_form == "der" else der.hex().upper().encode()


@asynccontextmanager
async def serving(pccs: Pccs) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/{path:.*}", pccs.answer)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


@pytest.mark.parametrize("key", [SGX, TDX])
@pytest.mark.parametrize("crl_form", ["der", "hex"])
async def test_a_set_from_the_service_verifies_a_quote(key: CollateralKey, crl_form: str) -> None:
    async with serving(Pccs(lab(), crl_form=crl_form)) as url:
        collateral = await PccsCollateral(url + "/", now=lambda: NOW).get(key)
    evidence = lab().sgx() if key is SGX else lab().tdx()
    assert lab().verifier().verify(evidence, collateral, NOW).tcb_status == "UpToDate"


async def test_the_paths_are_the_services() -> None:
    pccs = Pccs(lab())
    async with serving(pccs) as url:
        await PccsCollateral(url, now=lambda: NOW).get(TDX)
    assert pccs.asked == [
        "/tdx/certification/v4/tcb?fmspc=53494D550001",
        "/tdx/certification/v4/qe/identity",
        "/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
        "/sgx/certification/v4/rootcacrl",
    ]


async def test_many_askers_cost_one_look_up() -> None:
    pccs = Pccs(lab(), hold=asyncio.Event())
    async with serving(pccs) as url:
        source = PccsCollateral(url, now=lambda: NOW)
        async with asyncio.TaskGroup() as group:
            askers = [group.create_task(source.get(SGX)) for _ in range(20)]
            assert pccs.hold
            pccs.hold.set()
    assert len(pccs.asked) == 4
    assert all(asker.result() is askers[0].result() for asker in askers)


async def test_a_set_is_asked_for_again_after_a_day() -> None:
    pccs, now = Pccs(lab()), NOW
    async with serving(pccs) as url:
        source = PccsCollateral(url, now=lambda: now)
        await source.get(SGX)
        now += REFRESH_AFTER / 2
        await source.get(SGX)
        assert len(pccs.asked) == 4
        now += REFRESH_AFTER / 2
        pccs.lab = lab().saying(evaluation_number=18)
        assert (await source.get(SGX)).tcb_info.evaluation_number == 18


@pytest.mark.parametrize("trouble", [{"status": 503}, {"body": b"<html>"}, {"missing_header": "TCB-Info-Issuer-Chain"}])
async def test_while_the_service_fails_a_set_in_date_goes_on_being_used(trouble: dict[str, object]) -> None:
    pccs, now = Pccs(lab()), NOW
    async with serving(pccs) as url:
        source = PccsCollateral(url, now=lambda: now)
        first = await source.get(SGX)
        for name, value in trouble.items():
            setattr(pccs, name, value)
        now += timedelta(days=29)
        assert await source.get(SGX) is first
        failures = len(pccs.asked)
        assert await source.get(SGX) is first
        assert len(pccs.asked) == failures  # not asked again at once
        now += timedelta(days=2)
        with pytest.raises(CollateralUnavailable, match="collateral for 53494d550001-platform-sgx from"):
            await source.get(SGX)


async def test_a_service_that_comes_back_is_used_again() -> None:
    pccs, now = Pccs(lab(), status=500), NOW
    async with serving(pccs) as url:
        source = PccsCollateral(url, now=lambda: now)
        with pytest.raises(CollateralUnavailable, match="tcb answered 500"):
            await source.get(SGX)
        pccs.status = 200
        with pytest.raises(CollateralUnavailable, match="tcb answered 500"):
            await source.get(SGX)
        now += RETRY_AFTER
        assert (await source.get(SGX)).fmspc == FMSPC


async def test_a_machine_that_the_service_does_not_know_is_unavailable() -> None:
    async with serving(Pccs(lab())) as url:
        with pytest.raises(CollateralUnavailable, match="tcb answered 404"):
            await PccsCollateral(url, now=lambda: NOW).get(CollateralKey(bytes(6), "platform", Tee.SGX))


async def test_a_silent_service_costs_no_more_than_the_timeout() -> None:
    pccs = Pccs(lab(), hold=asyncio.Event())
    async with serving(pccs) as url:
        source = PccsCollateral(url, timeout=0.05, now=lambda: NOW)
        answers = await asyncio.gather(*(source.get(SGX) for _ in range(5)), return_exceptions=True)
        assert pccs.hold
        pccs.hold.set()
    assert all(isinstance(answer, CollateralUnavailable) for answer in answers)
    assert len(pccs.asked) == 1


async def test_an_endless_answer_is_cut_off() -> None:
    async with serving(Pccs(lab(), body=b" " * (1024 * 1024 + 1))) as url:
        with pytest.raises(CollateralUnavailable, match="larger than 1048576 bytes"):
            await PccsCollateral(url, now=lambda: NOW).get(SGX)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense", "http://[", "ftp://x"])
async def test_an_address_without_a_service_is_unavailable(url: str) -> None:
    with pytest.raises(CollateralUnavailable, match="collateral for"):
        await PccsCollateral(url, now=lambda: NOW).get(SGX)


@pytest.mark.parametrize("known", [True, False])
async def test_the_service_must_be_one_that_the_machine_s_authorities_name(
    known: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ca = make_ca()
    anchors = tmp_path / "anchors.pem"
    anchors.write_bytes((ca if known else make_ca()).bundle.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(anchors))  # where OpenSSL looks for them
    app, pccs = web.Application(), Pccs(lab())
    app.router.add_get("/{path:.*}", pccs.answer)
    server = TestServer(app, scheme="https", skip_url_asserts=True)
    await server.start_server(ssl=server_context(marble(ca), None, require_client_certificate=False))
    try:
        asking = PccsCollateral(f"https://localhost:{server.port}", now=lambda: NOW).get(SGX)
        if known:
            await asking
        else:
            with pytest.raises(CollateralUnavailable, match="certificate verify failed"):
                await asking
    finally:
        await server.close()
    assert bool(pccs.asked) is known


def test_signed_json_is_cut_byte_for_byte() -> None:
    inner = '{"b": 1,  "a":"}\\"é" }'
    body = f' {{ "tcbInfo" :\t{inner} ,\n"signature":"{"ab" * 64}"}}\n'.encode()
    assert cut_signed(body, "tcbInfo") == (inner, b"\xab" * 64)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"{}",
        b'{"tcbInfo":[],"signature":"%s"}' % (b"ab" * 64),
        b'{"tcbInfo":{},"signature":"%s"}' % (b"ab" * 63),
        b'{"tcbInfo":{},"signature":"%s"}x' % (b"ab" * 64),
        b'{"tcbInfo":{},"x":1,"signature":"%s"}' % (b"ab" * 64),
        b'{"other":{},"signature":"%s"}' % (b"ab" * 64),
        b'{"tcbInfo":' + b'{"a":' * 100_000,
    ],
)
def test_other_forms_are_malformed(body: bytes) -> None:
    with pytest.raises(Malformed, match="tcbInfo"):
        cut_signed(body, "tcbInfo")


@given(st.binary(max_size=200))
def test_no_bytes_break_the_readers(body: bytes) -> None:
    with pytest.raises(Malformed):
        read_crl(body)
    with pytest.raises(Malformed):
        cut_signed(body, "tcbInfo")
