# SPDX-License-Identifier: Apache-2.0
"""The client API for users of the manifest: who they are, and their secrets."""

from __future__ import annotations

import base64

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_public_key

from tests.kit.client_api import curl, shown
from tests.kit.deployment import ERROR, JSON, Api, b64, whole
from tests.kit.users import user

UNAUTHORIZED = "unauthorized user: client certificate did not match any MarbleRun users"


# --- 3.8 secrets


async def test_secrets_are_shown_to_their_readers(api: Api) -> None:
    v2 = (await api.get("/api/v2/secrets?s=mine&s=key&s=cert", user("alice"))).data
    assert list(v2) == ["secrets"]
    assert list(v2["secrets"]) == ["cert", "key", "mine"]
    assert v2["secrets"] == (await api.get("/secrets?s=mine&s=key&s=cert", user("alice"))).data
    key, cert = v2["secrets"]["key"], v2["secrets"]["cert"]
    assert list(key) == ["Type", "Size", "Shared", "UserDefined", "Cert", "ValidFor", "Private", "Public"]
    assert (key["Private"], len(base64.b64decode(key["Private"])), key["Cert"]) == (key["Public"], 16, None)
    leaf = x509.load_der_x509_certificate(base64.b64decode(cert["Cert"]))
    assert load_der_public_key(base64.b64decode(cert["Public"])) == leaf.public_key()


async def test_an_unset_secret_comes_back_with_nulls(api: Api) -> None:
    answer = await api.get("/secrets?s=mine", user("alice"))
    assert answer.body == (
        b'{"status":"success","data":{"mine":{"Type":"plain","Size":0,"Shared":false,"UserDefined":true,'
        b'"Cert":null,"ValidFor":0,"Private":null,"Public":null}}}\n'
    )


@pytest.mark.parametrize(("method", "path"), [("GET", "secrets?s=mine"), ("POST", "secrets")])
@pytest.mark.parametrize("who", [None, "mallory"])
async def test_who_is_no_user_is_told_so_before_anything_else(
    api: Api, method: str, path: str, who: str | None
) -> None:
    for prefix, kind, envelope in (("/api/v2/", JSON, "fail"), ("/", ERROR, "error")):
        stranger = None if who is None else user(who)
        request = api.get(prefix + path, stranger) if method == "GET" else api.post(prefix + path, b"{", stranger)
        answer = await request
        assert (answer.status, answer.kind, answer.json["status"]) == (401, kind, envelope)
        assert answer.message == UNAUTHORIZED


async def test_only_the_certificate_whose_key_is_proven_makes_a_user(api: Api) -> None:
    """A user's certificate is public: appended to a stranger's chain it proves nothing."""
    mallory, alice = user("mallory"), user("alice")
    flags = shown(api.directory, mallory.certificate + alice.certificate, mallory.key)
    assert (await curl(api.port.url("/api/v2/secrets?s=key"), api.version, *flags)).status == 401


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("", "invalid query: endpoint requires at least one query parameter"),
        ("?x=mine", "invalid query: endpoint requires at least one query parameter"),
        ("?s=", "malformed query string: empty query parameter"),
        ("?s=mine&s", "malformed query string: empty query parameter"),
    ],
)
async def test_a_query_without_names_is_a_400(api: Api, query: str, text: str) -> None:
    v2 = await api.get(f"/api/v2/secrets{query}", user("alice"))
    v1 = await api.get(f"/secrets{query}", user("alice"))
    assert (v2.status, v2.json["status"], v2.message) == (400, "fail", text)
    assert (v1.status, v1.json["status"], v1.message) == (400, "error", text)


async def test_reading_needs_permission_for_each(api: Api) -> None:
    text = "user alice is not allowed to read one or more secrets of: [mine hidden]"
    v2 = await api.get("/api/v2/secrets?s=mine&s=hidden", user("alice"))
    v1 = await api.get("/secrets?s=mine&s=hidden", user("alice"))
    assert (v2.status, v2.kind, v2.message) == (500, ERROR, text)
    assert (v1.status, v1.kind, v1.message) == (400, ERROR, text)


@pytest.mark.parametrize(("path", "wrap"), [("/api/v2/secrets", True), ("/secrets", False)])
async def test_secrets_are_set_by_their_writers(api: Api, path: str, wrap: bool) -> None:
    certificate = user("alice")
    new: dict[str, object] = {
        "mine": {"Key": "YWJj"},
        "<&>": {"KEY": b64(bytes(16)), "unknown": 1},
        "crt": {"Cert": b64(certificate.der), "Private": None},
    }
    answer = await api.post(path, {"secrets": new} if wrap else new, user("alice"))
    assert answer.body == b'{"status":"success","data":null}\n'
    read = (await api.get("/secrets?s=mine&s=crt", user("alice"))).data
    assert (read["mine"]["Private"], read["crt"]["Cert"]) == ("YWJj", b64(certificate.der))


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ({}, "parsing new secrets: no new secrets defined"),
        (
            {"other": {"Key": ""}},
            "parsing new secrets: secret manifest specifies a secret which the original manifest does not contain",
        ),
        ({"key": {"Key": b64(bytes(16))}}, "parsing new secrets: secret key is not writeable"),
        (
            {"<&>": {"Key": b64(bytes(15))}},
            "parsing new secrets: declared size and actual size don't match: <&>",
        ),
        (
            {"<&>": {"Cert": "YQ=="}},
            "parsing new secrets: secret <&> is set to be of type symmetric-key but specified values for a certificate",
        ),
        (
            {"crt": {"Key": "YQ=="}},
            "parsing new secrets: secret crt is set to be of type cert-ecdsa but specified values for a symmetric-key",
        ),
        ({"crt": {"Cert": "?"}}, "parsing new secrets: x509: unsupported public key type: <nil>"),
        ({"hidden": {"Key": "YQ=="}}, "user alice is not allowed to update secret: hidden"),
        ({"mine": {"Key": "YQ=="}, "hidden": {"Key": "YQ=="}}, "user alice is not allowed to update secret: hidden"),
    ],
)
async def test_secrets_that_do_not_fit_are_refused_all_together(
    api: Api, payload: dict[str, object], text: str
) -> None:
    v2 = await api.post("/api/v2/secrets", {"secrets": payload}, user("alice"))
    v1 = await api.post("/secrets", payload, user("alice"))
    assert (v2.status, v2.kind, v2.message) == (500, ERROR, text)
    assert (v1.status, v1.kind, v1.message) == (400, ERROR, text)
    assert (await api.get("/secrets?s=mine", user("alice"))).data["mine"]["Private"] is None


async def test_a_user_s_malformed_request_is_a_400_fail(api: Api) -> None:
    answer = await api.post("/api/v2/secrets", b"{", user("alice"))
    assert (answer.status, answer.json["status"]) == (400, "fail")


async def test_an_upload_that_breaks_a_template_is_refused_before_permissions_are_looked_at(fresh: Api) -> None:
    """A variable cannot hold a NUL. bob may not write at all."""
    await fresh.set_manifest(
        whole(Marbles={"web": {"Package": "app", "Parameters": {"Env": {"KEY": "{{ string .Secrets.mine }}"}}}})
    )
    for who in ("alice", "bob"):
        answer = await fresh.post("/secrets", {"mine": {"Key": "AAA="}}, user(who))
        assert (answer.status, answer.kind) == (400, ERROR)
        assert "in Marble web: env variable: KEY: " in answer.message
        assert "secret contains null bytes" in answer.message
    assert (await fresh.get("/secrets?s=mine", user("alice"))).data["mine"]["Private"] is None
