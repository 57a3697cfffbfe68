# SPDX-License-Identifier: Apache-2.0
"""The client API as MarbleRun's clients expect it: transport, envelope, manifest, status, update log and quote.

Transport and envelope over both versions of HTTP, everything else over one or the other.
"""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from sds.attestation.evidence import Evidence
from sds.attestation.report_data import coordinator_report_data
from tests.kit import pki
from tests.kit.client_api import HTTP1, HTTP2, curl, shown
from tests.kit.coordinator import Bench, manifest
from tests.kit.deployment import ERROR, JSON, Api, World, b64
from tests.kit.marble_client import MarbleCredentials
from tests.kit.users import public_pem, recovery_key, user

ERROR_405 = b'{"status":"error","data":null}\n'
both = pytest.mark.parametrize("version", [HTTP1, HTTP2], ids=["http1", "http2"], indirect=True)


# --- 3.1 transport


@both
async def test_both_versions_of_http_are_spoken(fresh: Api) -> None:
    answer = await fresh.get("/api/v2/status")
    assert answer.version == {HTTP1: "HTTP/1.1", HTTP2: "HTTP/2"}[fresh.version]


@both
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/api/v2/status/"),
        ("GET", "/API/v2/status"),
        ("GET", "/api/v1/status"),
        ("POST", "/api/v2/status"),
        ("POST", "/quote"),
        ("GET", "/recover"),
        ("PUT", "/manifest"),
        ("OPTIONS", "/status"),
        ("DELETE", "/api/v2/secrets"),
    ],
)
async def test_what_is_no_route_is_a_405_with_one_body(fresh: Api, method: str, path: str) -> None:
    answer = await fresh.ask(path, method)
    assert (answer.status, answer.kind, answer.body) == (405, ERROR, ERROR_405)


@both
async def test_head_is_a_405_too(fresh: Api) -> None:
    assert (await curl(fresh.port.url("/status"), fresh.version, "--head")).status == 405


@both
@pytest.mark.parametrize(
    ("path", "location"),
    [("//status?a=b", "/status?a=b"), ("/a/../status", "/status"), ("/./api//v2/status", "/api/v2/status")],
)
async def test_a_path_that_needs_cleaning_is_redirected(fresh: Api, path: str, location: str) -> None:
    answer = await fresh.get(path)
    assert (answer.status, answer.headers["location"]) == (307, location)


@both
async def test_the_content_type_of_requests_is_ignored(fresh: Api) -> None:
    url, kind = fresh.port.url("/api/v2/manifest"), "Content-Type: image/png"
    body = json.dumps({"manifest": b64(manifest())}).encode()
    assert (await curl(url, fresh.version, "-H", kind, body=body)).status == 200


@both
async def test_requests_without_and_with_any_client_certificate_are_served(fresh: Api) -> None:
    expired = MarbleCredentials.make(expired=True)
    pem = expired.certificate.public_bytes(Encoding.PEM)
    flags = shown(fresh.directory, pem, pki.private_key(expired.key).pem)
    assert (await curl(fresh.port.url("/status"), fresh.version, *flags)).status == 200
    assert (await fresh.get("/status", user("nobody"))).status == 200


# --- 3.2 envelope


@both
async def test_success_is_json_with_a_newline(fresh: Api) -> None:
    answer = await fresh.get("/status")
    assert (answer.kind, "x-content-type-options" in answer.headers) == (JSON, False)
    assert answer.body == (
        b'{"status":"success","data":{"StatusCode":2,"StatusMessage":"Coordinator is ready to accept a manifest."}}\n'
    )


@both
async def test_errors_are_text_with_nosniff(fresh: Api) -> None:
    answer = await fresh.get("/api/v2/manifest")
    assert (answer.status, answer.kind) == (500, ERROR)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.body == b'{"status":"error","data":null,"message":"requested value not set"}\n'


@both
async def test_the_clients_mistakes_are_fails_in_json(fresh: Api) -> None:
    answer = await fresh.post("/api/v2/manifest", b"{")
    assert (answer.status, answer.kind) == (400, JSON)
    assert (answer.json["status"], answer.json["data"]) == ("fail", None)


@both
async def test_html_characters_are_escaped_as_by_go(api: Api) -> None:
    answer = await api.get("/api/v2/secrets?s=%3C%26%3E", user("alice"))
    assert b'"\\u003c\\u0026\\u003e":{"Type":"symmetric-key"' in answer.body


@both
@pytest.mark.parametrize(
    "body",
    [
        '{"MANIFEST":%s}',
        '{"manifest":"e30=","manifest":%s}',
        '{"manifest":"e30=","Manifest":%s}',
        '{"manifest":%s,"other":[1,{"x":null}]}',
    ],
)
async def test_json_is_read_as_go_reads_it(fresh: Api, body: str) -> None:
    raw = (body % json.dumps(b64(manifest()))).encode()
    assert (await fresh.post("/api/v2/manifest", raw)).status == 200


# --- 3.3 manifest


async def test_before_a_manifest_there_is_none(fresh: Api) -> None:
    v2, v1 = await fresh.get("/api/v2/manifest"), await fresh.get("/manifest")
    assert (v2.status, v2.message) == (500, "requested value not set")
    assert v1.body == (
        b'{"status":"success","data":{"ManifestSignatureRootECDSA":null,"ManifestSignature":"","Manifest":null}}\n'
    )


async def test_the_manifest_is_shown_byte_for_byte_with_fingerprint_and_signature(fresh: Api) -> None:
    raw = b" \n" + manifest() + b"\n\n"
    await fresh.set_manifest(raw)
    v2, v1 = (await fresh.get("/api/v2/manifest")).data, (await fresh.get("/manifest")).data
    assert list(v2) == ["manifestSignatureRootECDSA", "manifestFingerprint", "manifest"]
    assert list(v1) == ["ManifestSignatureRootECDSA", "ManifestSignature", "Manifest"]
    assert list(v2.values()) == list(v1.values())
    assert base64.b64decode(v2["manifest"]) == raw
    assert v2["manifestFingerprint"] == hashlib.sha256(raw).hexdigest()
    root = fresh.bench.coordinator.ca.root.public_key()
    assert isinstance(root, ec.EllipticCurvePublicKey)
    assert root.key_size == 384
    root.verify(base64.b64decode(v2["manifestSignatureRootECDSA"]), raw, ec.ECDSA(SHA256()))


async def test_setting_a_manifest_answers_with_recovery_secrets(fresh: Api) -> None:
    answer = await fresh.post("/api/v2/manifest", {"manifest": b64(manifest())})
    assert answer.body == b'{"status":"success","data":{"RecoverySecrets":{}}}\n'


async def test_setting_a_manifest_in_v1_without_recovery_keys_answers_null(fresh: Api) -> None:
    assert (await fresh.post("/manifest", manifest())).body == b'{"status":"success","data":null}\n'


@pytest.mark.parametrize("path", ["/api/v2/manifest", "/manifest"])
async def test_recovery_secrets_are_encrypted_to_their_owners(fresh: Api, path: str) -> None:
    keys = {f"key{n}": public_pem(recovery_key(n).public_key()).decode() for n in (1, 0)}
    raw = manifest(RecoveryKeys=keys)
    answer = await fresh.post(path, {"manifest": b64(raw)} if "v2" in path else raw)
    secrets = answer.data["RecoverySecrets"]
    assert list(secrets) == ["key0", "key1"]
    oaep = padding.OAEP(padding.MGF1(SHA256()), SHA256(), None)
    assert len(recovery_key(1).decrypt(base64.b64decode(secrets["key1"]), oaep)) == 32


async def test_a_manifest_is_set_once(plain: Api) -> None:
    v2 = await plain.post("/api/v2/manifest", {"manifest": b64(manifest())})
    assert (v2.status, v2.kind, v2.message) == (500, ERROR, "server is not in expected state")
    v1 = await plain.post("/manifest", manifest())
    assert (v1.status, v1.kind, v1.message) == (400, ERROR, "server is not in expected state")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"manifest":"?"}', b'{"manifest":1}', b'{"manifest":"YQ"}'])
async def test_a_malformed_request_is_a_400_fail(fresh: Api, body: bytes) -> None:
    answer = await fresh.post("/api/v2/manifest", body)
    assert (answer.status, answer.json["status"]) == (400, "fail")


@pytest.mark.parametrize(
    ("raw", "step"),
    [
        (b"", "unmarshaling manifest: "),
        (b"{", "unmarshaling manifest: "),
        (b"{}", "checking manifest: "),
        (
            manifest(Marbles={"web": {"Package": "app", "Parameters": {"Env": {"A": "{{ .No }}"}}}}),
            "running manifest template dry run: in Marble web: ",
        ),
    ],
)
async def test_a_refused_manifest_names_the_step(fresh: Api, raw: bytes, step: str) -> None:
    v2 = await fresh.post("/api/v2/manifest", {"manifest": b64(raw)})
    v1 = await fresh.post("/manifest", raw)
    assert (v2.status, v1.status) == (500, 400)
    assert v2.kind == v1.kind == ERROR
    assert v2.message == v1.message
    assert v2.message.startswith(step)
    assert (await fresh.get("/status")).data["StatusCode"] == 2


# --- 3.4 status, 3.5 update log


async def test_status_tells_code_and_message(plain: Api) -> None:
    v2, v1 = (await plain.get("/api/v2/status")).data, (await plain.get("/status")).data
    assert (v2["code"], v2["message"]) == (3, "Coordinator is running correctly and ready to accept marbles.")
    assert v1 == {"StatusCode": 3, "StatusMessage": v2["message"]}


async def test_simulation_says_so(fresh: Api) -> None:
    assert (await fresh.get("/api/v2/status")).data["simulation"] is True
    assert (await fresh.get("/api/v2/quote")).data["simulation"] is True


async def test_the_update_log_is_a_list_of_objects_or_their_lines(api: Api) -> None:
    await api.post("/secrets", {"mine": {"Key": "YQ=="}}, user("alice"))
    entries = (await api.get("/api/v2/update")).data["updateLog"]
    assert [json.loads(entry)["update"] for entry in entries] == ["Initial manifest set", "Secret set"]
    assert (await api.get("/update")).data == "".join(f"{entry}\n" for entry in entries)


@pytest.mark.parametrize("path", ["/update", "/api/v2/update"])
async def test_without_a_manifest_there_is_no_update_log(fresh: Api, path: str) -> None:
    answer = await fresh.get(path)
    assert (answer.status, answer.kind) == (500, ERROR)


# --- 3.6 quote


async def test_the_quote_comes_with_intermediate_and_root(fresh: Api) -> None:
    v2, v1 = (await fresh.get("/api/v2/quote")).data, (await fresh.get("/quote")).data
    assert (v2["cert"], v2["quote"]) == (v1["Cert"], v1["Quote"])
    intermediate, root = x509.load_pem_x509_certificates(v2["cert"].encode())
    intermediate.verify_directly_issued_by(root)
    root.verify_directly_issued_by(root)


@pytest.mark.parametrize("nonce", [b"", b"\xff\xfe nonce", bytes(64)])
async def test_a_quote_is_bound_to_root_and_nonce(fresh: Api, nonce: bytes) -> None:
    query = f"?nonce={base64.urlsafe_b64encode(nonce).decode()}" if nonce else ""
    quote = base64.b64decode((await fresh.get(f"/api/v2/quote{query}")).data["quote"])
    assert quote[:8] == (1).to_bytes(4, "little") + (2).to_bytes(4, "little")
    root = fresh.bench.coordinator.ca.root_der
    expected = hashlib.sha256(root + nonce).digest() + bytes(32)
    assert expected == coordinator_report_data(root, nonce)
    assert expected in Evidence.parse(quote).quote


@pytest.mark.parametrize(
    ("nonce", "at"), [("YQ", 0), ("YWJjZA", 4), ("YQ=", 3), ("Y%2BA=", 1), ("%2F%2F%2F%2F", 0), ("YQ==YQ==", 4)]
)
async def test_a_bad_nonce_is_a_fail_in_gos_words(fresh: Api, nonce: str, at: int) -> None:
    answer = await fresh.get(f"/api/v2/quote?nonce={nonce}")
    assert (answer.status, answer.json["status"]) == (400, "fail")
    assert answer.message == f"invalid query: bad nonce format: illegal base64 data at input byte {at}"


async def test_a_coordinator_without_attestation_has_a_null_quote(world: World) -> None:
    insecure = await world.serve(Bench.make(world.platform, insecure=True))
    for path in ("/api/v2/quote", "/api/v2/quote?nonce=YQ=="):
        assert (await insecure.get(path)).data["quote"] is None
    assert (await insecure.get("/quote")).data["Quote"] is None
