# SPDX-License-Identifier: Apache-2.0
"""The client API for users of the manifest: secrets, updates and their acknowledgement."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_public_key

from tests.kit.client_api import Answer, curl, shown
from tests.kit.deployment import ERROR, JSON, Api, b64, whole
from tests.kit.users import public_pem, recovery_key, user

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


USER_ENDPOINTS = [
    ("GET", "secrets?s=mine"),
    ("POST", "secrets"),
    ("POST", "update"),
    ("POST", "update-manifest"),
    ("POST", "update-cancel"),
]


@pytest.mark.parametrize(("method", "path"), USER_ENDPOINTS)
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


@pytest.mark.parametrize("path", ["/api/v2/secrets", "/api/v2/update", "/api/v2/update-manifest"])
async def test_a_user_s_malformed_request_is_a_400_fail(api: Api, path: str) -> None:
    answer = await api.post(path, b"{", user("alice"))
    assert (answer.status, answer.json["status"]) == (400, "fail")


# --- 3.9 updating


def package_update(**package: object) -> bytes:
    return json.dumps({"Packages": {"app": package}}).encode()


async def test_a_package_update_raises_the_version_and_keeps_the_manifest(api: Api) -> None:
    before = (await api.get("/api/v2/manifest")).data
    answer = await api.post("/api/v2/update", {"manifest": b64(package_update(SecurityVersion=4))}, user("alice"))
    assert answer.body == b'{"status":"success","data":{"missingAcknowledgments":0,"missingUsers":null}}\n'
    assert (await api.get("/api/v2/manifest")).data == before
    v1 = await api.post("/update", package_update(SecurityVersion=4), user("alice"))
    assert v1.body == b'{"status":"success","data":null}\n'


@pytest.mark.parametrize(
    ("raw", "who", "text"),
    [
        (package_update(SecurityVersion=2), "alice", "tries to downgrade SecurityVersion of the original manifest"),
        (package_update(SecurityVersion=5, Debug=True), "alice", "update manifest contains unupdatable values"),
        (package_update(), "alice", "update manifest does not specify a SecurityVersion to update"),
        (b"{}", "alice", "no packages defined"),
        (package_update(SecurityVersion=5), "bob", "user bob is not allowed to update one or more packages of [app]"),
        (whole(), "carol", "user carol is not allowed to update the complete manifest"),
    ],
)
async def test_an_update_that_is_refused_says_why(api: Api, raw: bytes, who: str, text: str) -> None:
    v2 = await api.post("/api/v2/update", {"manifest": b64(raw)}, user(who))
    v1 = await api.post("/update", raw, user(who))
    assert (v2.status, v2.kind) == (500, ERROR)
    assert (v1.status, v1.kind) == (400, ERROR)
    assert v1.message == v2.message
    assert text in v2.message


async def submitted(api: Api, raw: bytes) -> Answer:
    return await api.post("/api/v2/update", {"manifest": b64(raw)}, user("alice"))


NEXT = whole(Marbles={"web": {"Package": "app", "Parameters": {"Argv": ["./next"]}}})


async def test_a_full_update_waits_for_everybody_who_may_update(api: Api) -> None:
    answer = await submitted(api, NEXT)
    assert answer.data == {"missingAcknowledgments": 1, "missingUsers": ["bob"]}
    again = await submitted(api, NEXT)
    assert again.status == 500
    assert again.message.endswith(
        "update already in progress. Acknowledge the update to apply it, or cancel it to start a new one"
    )


async def test_recovery_secrets_come_with_the_call_that_changes_the_keys(fresh: Api) -> None:
    config = {"UpdateThreshold": 1}
    await fresh.set_manifest(whole(Config=config))
    keys = {"owner": public_pem(recovery_key().public_key()).decode()}
    answer = await submitted(fresh, whole(Config=config, RecoveryKeys=keys))
    assert list(answer.data) == ["missingAcknowledgments", "missingUsers", "recoverySecrets"]
    assert list(answer.data["recoverySecrets"]) == ["owner"]
    removed = await submitted(fresh, whole(Config=config))
    assert removed.body == (
        b'{"status":"success","data":{"missingAcknowledgments":0,"missingUsers":null,"recoverySecrets":{}}}\n'
    )


# --- 3.10 pending update


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "update-manifest"), ("POST", "update-manifest"), ("POST", "update-cancel")]
)
async def test_without_an_update_there_is_none(api: Api, method: str, path: str) -> None:
    for prefix in ("/api/v2/", "/"):
        body: dict[str, object] = {"manifest": b64(NEXT)}
        request = api.get(prefix + path) if method == "GET" else api.post(prefix + path, body, user("alice"))
        answer = await request
        assert (answer.status, answer.kind, answer.message) == (404, ERROR, "no update in progress")


async def test_everybody_sees_the_pending_update(api: Api) -> None:
    await submitted(api, NEXT)
    v2, v1 = await api.get("/api/v2/update-manifest"), await api.get("/update-manifest")
    assert v2.body == v1.body
    assert v2.data == {
        "manifest": b64(NEXT),
        "message": "1 user still needs to acknowledge the update manifest",
        "missingUsers": ["bob"],
    }


async def test_the_last_acknowledgement_puts_it_in_force(api: Api) -> None:
    await submitted(api, NEXT)
    answer = await api.post("/api/v2/update-manifest", {"manifest": b64(NEXT)}, user("bob"))
    assert answer.body == (
        b'{"status":"success","data":{"message":"All users have acknowledged the update manifest. '
        b'Update successfully applied","missingUsers":null,"missingAcknowledgments":0}}\n'
    )
    assert (await api.get("/manifest")).data["Manifest"] == b64(NEXT)


async def test_acknowledging_twice_changes_nothing(api: Api) -> None:
    await submitted(api, NEXT)
    message = "1 user still needs to acknowledge the update manifest.\nThe following users have not yet accepted: bob"
    v2 = await api.post("/api/v2/update-manifest", {"manifest": b64(NEXT)}, user("alice"))
    assert v2.data == {"message": message, "missingUsers": ["bob"], "missingAcknowledgments": 1}
    assert (await api.post("/update-manifest", NEXT, user("alice"))).data == message


@pytest.mark.parametrize(
    ("who", "raw", "text"),
    [
        ("carol", NEXT, "user carol is not allowed to acknowledge manifest updates"),
        ("bob", NEXT + b" ", "provided manifest does not match the pending manifest"),
    ],
)
async def test_an_acknowledgement_that_is_refused_is_a_500(api: Api, who: str, raw: bytes, text: str) -> None:
    await submitted(api, NEXT)
    v2 = await api.post("/api/v2/update-manifest", {"manifest": b64(raw)}, user(who))
    v1 = await api.post("/update-manifest", raw, user(who))
    assert (v2.status, v2.message) == (v1.status, v1.message) == (500, text)


async def test_any_updater_cancels(api: Api) -> None:
    await submitted(api, NEXT)
    refused = await api.post("/api/v2/update-cancel", b"", user("carol"))
    assert (refused.status, refused.message) == (500, "user carol is not allowed to cancel the manifest update")
    v2 = await api.post("/api/v2/update-cancel", b"", user("bob"))
    assert v2.data == {"message": "Update successfully cancelled"}
    await submitted(api, NEXT)
    assert (await api.post("/update-cancel", b"", user("alice"))).data == "Update successfully cancelled"
