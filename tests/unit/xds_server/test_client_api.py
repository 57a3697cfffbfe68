# SPDX-License-Identifier: Apache-2.0
"""The client API over real TLS: exact bodies, codes and headers, and bounds on whatever a stranger sends."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509

from sds.attestation.report_data import MAX_NONCE
from tests.kit.coordinator import Bench, manifest
from tests.kit.tls_port import TlsPort, client_context, tls_port
from xds_server.client_api import ClientApi, HttpLimits
from xds_server.client_api_routes import routes
from xds_server.tls_front import TlsFrontConfig

SMALL = HttpLimits(max_body=20_000, body_budget=30_000, body_timeout=0.3, keepalive=5)
FRONT = TlsFrontConfig(alpn=(b"http/1.1",), idle_timeout=0.5)
ERROR_405 = b'{"status":"error","data":null}\n'


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("platform")


class Api:
    def __init__(self, bench: Bench, port: TlsPort, session: aiohttp.ClientSession) -> None:
        self.bench, self.port, self.session = bench, port, session

    async def __call__(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str, bytes]:
        url = f"https://127.0.0.1:{self.port.port}{path}"
        async with self.session.request(method, url, data=body, ssl=client_context()) as reply:
            return reply.status, reply.headers.get("Content-Type", ""), await reply.read()

    async def data(self, path: str) -> dict[str, str]:
        status, _, body = await self("GET", path)
        assert status == 200
        found: dict[str, str] = json.loads(body)["data"]
        return found


@pytest.fixture
async def api(directory: Path) -> AsyncIterator[Api]:
    bench = Bench.make(directory)
    await bench.own_quote.start()
    http = ClientApi(routes(bench.coordinator), bench.metrics, SMALL)
    async with tls_port(http.connect, FRONT) as port, aiohttp.ClientSession() as session:
        yield Api(bench, port, session)
        await http.stop(1)
    assert http._buffered == 0
    bench.own_quote.stop()


async def test_status_in_both_forms(api: Api) -> None:
    assert await api("GET", "/api/v2/status") == (
        200,
        "application/json",
        b'{"status":"success","data":{"code":2,"message":"Coordinator is ready to accept a manifest."'
        b',"simulation":true}}\n',
    )
    assert (await api("GET", "/status"))[2] == (
        b'{"status":"success","data":{"StatusCode":2,"StatusMessage":"Coordinator is ready to accept a manifest."}}\n'
    )


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/api/v2/status/"),
        ("POST", "/api/v2/status"),
        ("PUT", "/manifest"),
        ("OPTIONS", "/status"),
        ("GET", "/api/v2/update"),
        ("POST", "/api/v2/secrets"),
        ("DELETE", "/status"),
    ],
)
async def test_what_is_no_route_is_a_405_with_one_body(api: Api, method: str, path: str) -> None:
    assert await api(method, path) == (405, "text/plain; charset=utf-8", ERROR_405)


async def test_head_is_a_405_too(api: Api) -> None:
    assert (await api("HEAD", "/status"))[0] == 405


async def test_quote_in_both_forms(api: Api) -> None:
    v2, v1 = await api.data("/api/v2/quote"), await api.data("/quote")
    assert v2["cert"] == v1["Cert"] == api.bench.coordinator.ca.chain_pem.decode()
    assert v2["quote"] == v1["Quote"]
    nonce = base64.urlsafe_b64encode(b"\xff\xfe nonce").decode()
    fresh = await api.data(f"/api/v2/quote?nonce={nonce}")
    assert fresh["quote"] != v2["quote"]
    intermediate, root = x509.load_pem_x509_certificates(v2["cert"].encode())
    intermediate.verify_directly_issued_by(root)


@pytest.mark.parametrize(
    ("nonce", "message"),
    [
        ("YQ", "invalid query: bad nonce format: illegal base64 data at input byte 0"),
        ("A" * 4 * (MAX_NONCE // 3 + 1), f"at most {MAX_NONCE}"),
        ("A" * 6000, "invalid query: nonce of 6000 characters"),
    ],
)
async def test_a_bad_nonce_is_a_fail(api: Api, nonce: str, message: str) -> None:
    status, kind, body = await api("GET", f"/api/v2/quote?nonce={nonce}")
    assert (status, kind) == (400, "application/json")
    answer = json.loads(body)
    assert (answer["status"], answer["data"]) == ("fail", None)
    assert message in answer["message"]


async def test_before_a_manifest_there_is_none(api: Api) -> None:
    status, kind, body = await api("GET", "/api/v2/manifest")
    assert (status, kind) == (500, "text/plain; charset=utf-8")
    assert body == b'{"status":"error","data":null,"message":"requested value not set"}\n'
    assert (await api("GET", "/manifest"))[2] == (
        b'{"status":"success","data":{"ManifestSignatureRootECDSA":null,"ManifestSignature":"","Manifest":null}}\n'
    )


async def test_v2_sets_a_manifest_once(api: Api) -> None:
    raw = manifest()
    body = json.dumps({"Manifest": base64.b64encode(raw).decode(), "other": None}).encode()
    assert (await api("POST", "/api/v2/manifest", body))[2] == b'{"status":"success","data":{"RecoverySecrets":{}}}\n'
    again = await api("POST", "/api/v2/manifest", body)
    assert again[0] == 500
    assert json.loads(again[2])["message"] == "server is not in expected state"
    v2, v1 = await api.data("/api/v2/manifest"), await api.data("/manifest")
    assert base64.b64decode(v2["manifest"]) == base64.b64decode(v1["Manifest"]) == raw
    assert v2["manifestFingerprint"] == v1["ManifestSignature"]


async def test_v1_sets_a_manifest_once(api: Api) -> None:
    assert await api("POST", "/manifest", manifest()) == (
        200,
        "application/json",
        b'{"status":"success","data":null}\n',
    )
    status, _, body = await api("POST", "/manifest", manifest())
    assert (status, json.loads(body)["message"]) == (400, "server is not in expected state")


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/api/v2/manifest", b"{", 400, "line 1 column 2"),
        ("/api/v2/manifest", b'{"manifest":"?"}', 400, "member manifest is not base64"),
        ("/api/v2/manifest", b'{"manifest":"e30="}', 500, "checking manifest: no allowed packages defined"),
        ("/api/v2/manifest", b'{"manifest":"Cns="}', 500, "unmarshaling manifest: line 2 column 2"),
        ("/manifest", b"\n{", 400, "unmarshaling manifest: line 2 column 2"),
    ],
)
async def test_bad_manifests_are_named(api: Api, path: str, body: bytes, status: int, message: str) -> None:
    got, _, text = await api("POST", path, body)
    assert got == status
    assert message in json.loads(text)["message"]


@pytest.mark.parametrize("path", ["/manifest", "/api/v2/manifest"])
async def test_a_body_that_is_too_large_is_refused_whether_announced_or_not(api: Api, path: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield bytes(1000)

    url = f"https://127.0.0.1:{api.port.port}{path}"
    for body in (bytes(30_000), chunks()):
        async with api.session.post(url, data=body, ssl=client_context()) as reply:
            assert reply.status == 413
            assert json.loads(await reply.read())["message"] == "request body larger than 20000 bytes"


async def raw(api: Api, request: bytes) -> bytes:
    reader, writer = await api.port.connect()
    writer.write(request)
    answer = await reader.read()
    writer.transport.abort()
    return answer


async def test_a_body_that_does_not_come_ends_in_time(api: Api) -> None:
    answer = await raw(api, b"POST /manifest HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
    assert b" 408 " in answer.split(b"\r\n")[0]
    assert b"did not arrive within 0.3 s" in answer


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /manifest HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnot a length\r\n",
        b"POST /manifest HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    ],
)
async def test_bad_framing_is_an_answer_or_an_end_and_no_trace(
    api: Api, request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert b" 400 " in await raw(api, request_) or b"5\r\n" in request_
    assert not caplog.records


async def test_a_client_that_leaves_in_the_middle_leaves_no_trace(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    _, writer = await api.port.connect()
    writer.write(b"POST /manifest HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
    (connection,) = api.port.front._connections
    assert (await api("GET", "/status"))[0] == 200
    writer.transport.abort()
    await asyncio.wait_for(connection.lost, 5)
    assert (await api("GET", "/status"))[0] == 200
    assert not caplog.records


async def test_a_request_head_that_does_not_come_ends_in_time(api: Api) -> None:
    assert await raw(api, b"GET /status HTTP/1.1\r\nHost:") == b""


async def test_all_bodies_together_are_bounded(api: Api) -> None:
    head = b"POST /manifest HTTP/1.1\r\nHost: x\r\nContent-Length: 20000\r\n\r\n"
    answers = await asyncio.gather(*(raw(api, head + bytes(19_999)) for _ in range(3)))
    assert sorted(answer.split(b" ")[1] for answer in answers) == [b"408", b"503", b"503"]


@pytest.mark.parametrize("junk", [b"\0\1\2\3\r\n\r\n", b"GET / HTTP/1.1\r\nbad\xff header\r\n\r\n", b"G" * 20_000])
async def test_what_is_no_http_gets_a_short_400(api: Api, junk: bytes, caplog: pytest.LogCaptureFixture) -> None:
    answer = await raw(api, junk)
    assert b"400 Bad Request" in answer
    assert len(answer) < 300
    assert not caplog.records


async def test_curl_is_told_to_go_on_before_a_large_body(api: Api) -> None:
    head = (
        b"POST /manifest HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    )
    reader, writer = await api.port.connect()
    writer.write(head)
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"{}")
    assert b"no allowed packages" in await reader.read()
    writer.transport.abort()


@pytest.mark.parametrize(
    ("path", "location"), [("//status?a=b", "/status?a=b"), ("/a/../status", "/status"), ("//evil.test/..", "/")]
)
async def test_unclean_paths_are_redirected_within_this_server(api: Api, path: str, location: str) -> None:
    answer = await raw(api, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 307 ")
    assert f"Location: {location}\r\n".encode() in answer


async def test_requests_are_counted_by_route_and_strangers_paths_are_not_labels(api: Api) -> None:
    await api("GET", "/api/v2/status")
    await api("GET", "/no/such/path")
    name = "server_client_api_http_request_total"
    assert api.bench.metric(name, {"path": "/api/v2/status", "code": "200", "method": "get"}) == 1
    assert api.bench.metric(name, {"path": "unknown", "code": "405", "method": "get"}) == 1
