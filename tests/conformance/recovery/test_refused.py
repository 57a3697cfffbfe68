# SPDX-License-Identifier: Apache-2.0
"""What a recovery does not take: false, repeated and unsigned secrets; and that this spoils nothing for the owners."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.recovery.conftest import Deploy
from tests.kit.client_api import Answer
from tests.kit.deployment import ERROR, JSON, b64
from tests.kit.key_owner import key_owner
from tests.kit.outside import Outside
from tests.kit.recovering import Deployment, owned, owners
from tests.kit.sealed import join, parts
from tests.kit.site import INSECURE, Site, site

Sign = Callable[[Deployment, bytes], bytes]

USED = "uploaded an invalid or already used secret"
WRONG = "wrong recovery secret: it does not open the sealed state"
MATCH = "recovery keys in manifest do not match the keys used for recovery"


def assert_error(answer: Answer, text: str) -> None:
    assert (answer.status, answer.kind, answer.json["status"]) == (500, ERROR, "error")
    assert answer.message == f"setting recovery key: {text}"


# --- one owner


@pytest.mark.parametrize("size", [16, 32])
async def test_a_wrong_secret_says_so_and_the_right_one_still_recovers(lost: Deploy, size: int) -> None:
    """Where MarbleRun answers that the next secret is awaited, and then refuses the right one."""
    made = await lost("a")
    assert_error(await made.upload("a", bytes(size)), WRONG)
    assert await made.outside.status() == 1
    assert await made.upload_all("a") == [0]


async def test_a_shamir_share_cannot_recover_a_state_without_recovery_data(lost: Deploy) -> None:
    made = await lost("a")
    assert_error(await made.upload("a", bytes(33)), "invalid secret length")


async def test_the_owner_s_secret_without_the_owner_s_signature_recovers_nothing(lost: Deploy) -> None:
    made = await lost("a")
    answer = await made.outside.recover(made.secrets["a"], b"")
    assert_error(answer, 'no matching recovery key found for recovery public key "a"')
    assert await made.outside.status() == 1
    assert await made.upload_all("a") == [0]


# --- several owners


@pytest.mark.parametrize(("names", "threshold"), [("ab", 0), ("abc", 2)], ids=["all", "threshold"])
async def test_the_same_share_twice_and_a_false_one_say_so_and_spoil_nothing(
    lost: Deploy, names: str, threshold: int
) -> None:
    made = await lost(names, threshold)
    (first,) = await made.upload_all("a")
    assert first == len(names) - 1
    assert_error(await made.upload("a"), USED)
    assert_error(await made.upload("b", bytes(len(made.secrets["b"]))), USED)
    assert_error(await made.upload("b", bytes(16)), USED)
    assert await made.upload_all("b") == [0]


async def test_one_changed_bit_makes_a_share_a_false_one(lost: Deploy) -> None:
    made = await lost("abc", 2)
    share = made.secrets["a"]
    assert_error(await made.upload("a", share[:-1] + bytes([share[-1] ^ 1])), USED)


@pytest.mark.parametrize(("names", "threshold", "left"), [("ab", 0, [1]), ("abc", 2, [2, 1])], ids=["all", "threshold"])
async def test_shares_that_together_open_nothing_are_refused_when_all_have_come(
    deploy: Deploy, names: str, threshold: int, left: list[int]
) -> None:
    """The state was damaged; the hashes in clear were not."""
    made = await deploy(names, threshold)
    await made.site.stop()
    data = made.site.file()
    (made.site.state / "sealed_data").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    await made.site.start()
    assert await made.upload_all(names[:-1]) == left
    text = "the uploaded secrets together do not open the sealed state: upload all of them again"
    assert_error(await made.upload(names[-1]), text)
    assert await made.upload_all(names[:-1]) == left, "all of them again"


async def test_shares_from_before_the_keys_were_changed_are_worthless(deploy: Deploy) -> None:
    made = await deploy("abc", 2)
    assert await made.update(owned(made.owners), made.owners) is not None
    await made.lose_key()
    assert_error(await made.upload("a"), USED)


# --- signatures: RSASSA-PKCS1-v1_5 with SHA-256 over the plain secret, by the key whose public half is in the manifest


def unsigned(made: Deployment, secret: bytes) -> bytes:
    return b""


def by_somebody_else(made: Deployment, secret: bytes) -> bytes:
    return made.owners["a"].sign(secret)


def over_something_else(made: Deployment, secret: bytes) -> bytes:
    return made.owners["b"].sign(secret + b"\0")


def with_sha512(made: Deployment, secret: bytes) -> bytes:
    return made.owners["b"].sign(secret, "-sha512")


def with_pss(made: Deployment, secret: bytes) -> bytes:
    return made.owners["b"].sign(secret, "-sha256", "-sigopt", "rsa_padding_mode:pss")


@pytest.mark.parametrize("sign", [unsigned, by_somebody_else, over_something_else, with_sha512, with_pss])
async def test_where_all_are_needed_a_signature_that_is_not_the_owner_s_is_named_and_all_upload_again(
    lost: Deploy, sign: Sign
) -> None:
    made = await lost("ab")
    await made.upload("a")
    signature = sign(made, made.secrets["b"])
    answer = await made.outside.recover(made.secrets["b"], signature)
    assert_error(answer, 'no matching recovery key found for recovery public key "b"')
    assert await made.outside.status() == 1
    assert await made.upload_all("ba") == [1, 0]


@pytest.mark.parametrize("sign", [unsigned, by_somebody_else])
async def test_below_that_each_signature_must_be_of_another_owner(lost: Deploy, sign: Sign) -> None:
    made = await lost("abc", 2)
    await made.upload("a")
    signature = sign(made, made.secrets["b"])
    answer = await made.outside.recover(made.secrets["b"], signature)
    assert_error(answer, "no matching recovery public key found for recovery key")
    assert await made.outside.status() == 1
    assert await made.upload_all("cb") == [2, 0]


async def test_one_signature_does_not_count_for_two_recovery_keys_that_are_the_same(tmp_path: Path) -> None:
    owner = key_owner(tmp_path)
    async with site(tmp_path) as running:
        answer = await running.outside.set_manifest(owned({"a": owner, "b": owner}))
        secrets = [owner.decrypt(text) for text in answer.data["RecoverySecrets"].values()]
        await running.stop()
        (running.state / "sealed_key").unlink()
        outside = await running.start()
        await outside.recover(secrets[0], owner.sign(secrets[0]))
        refused = await outside.recover(secrets[1], b"")
        assert_error(refused, 'no matching recovery key found for recovery public key "b"')
        answers = [await outside.recover(secret, owner.sign(secret)) for secret in secrets]
        assert [answer.data["remaining"] for answer in answers] == [1, 0]


async def test_a_false_signature_is_found_when_the_key_is_complete(lost: Deploy) -> None:
    """Whose signature is which is known only from the manifest, which is sealed until then."""
    made = await lost("ab")
    assert (await made.outside.recover(made.secrets["a"], b"")).data["remaining"] == 1
    assert_error(await made.upload("b"), 'no matching recovery key found for recovery public key "a"')


# --- what the sealed manifest says about numbers, for those who hold the data key itself


async def locked_with_its_key(running: Site, recovery_data: bytes | None = None) -> tuple[Outside, bytes]:
    """Without attestation the data key lies beside the state; here somebody has taken it away, and lost the hashes."""
    await running.stop()
    dek, (clear, sealed) = running.file("sealed_key"), parts(running.file())
    (running.state / "sealed_data").write_bytes(join(clear if recovery_data is None else recovery_data, sealed))
    (running.state / "sealed_key").unlink()
    return await running.start(), dek


async def test_a_manifest_without_recovery_keys_cannot_be_recovered(tmp_path: Path) -> None:
    async with site(tmp_path, owned({}), **INSECURE) as running:
        outside, dek = await locked_with_its_key(running)
        assert_error(await outside.recover(dek, b""), f"{MATCH}: expected 0, got 1")


async def test_a_manifest_with_two_keys_needs_two_secrets(tmp_path: Path) -> None:
    keys = owners(tmp_path, "ab")
    async with site(tmp_path, owned(keys), **INSECURE) as running:
        outside, dek = await locked_with_its_key(running, b"null")
        assert_error(await outside.recover(dek, keys["a"].sign(dek)), f"{MATCH}: expected 2, got 1")


async def test_a_manifest_with_a_threshold_needs_exactly_so_many_secrets(tmp_path: Path) -> None:
    keys = owners(tmp_path, "abc")
    async with site(tmp_path, owned(keys, 2), **INSECURE) as running:
        outside, dek = await locked_with_its_key(running, b"null")
        text = "recovery threshold in manifest does not match the number of keys used for recovery: expected 2, got 1"
        assert_error(await outside.recover(dek, keys["a"].sign(dek)), text)


async def test_shares_of_a_threshold_are_useless_when_the_hashes_in_clear_are_lost(deploy: Deploy) -> None:
    made = await deploy("abc", 2)
    await made.site.stop()
    _, sealed = parts(made.site.file())
    (made.site.state / "sealed_data").write_bytes(join(b"null", sealed))
    await made.lose_key()
    assert_error(await made.upload("a"), "invalid secret length")


# --- bounds


async def exhausted(made: Deployment, size: int) -> int:
    """False secrets until the Coordinator has had enough; how many it judged."""
    for count in range(50):
        answer = await made.outside.recover(bytes([count]) * size, b"")
        if "too many failed recovery attempts: try again in " in answer.message:
            assert (answer.status, answer.message[-1]) == (500, "s")
            return count
    raise AssertionError("attempts are not bounded")


async def test_false_attempts_are_bounded_and_the_owner_of_a_share_is_not_kept_out(lost: Deploy) -> None:
    made = await lost("ab")
    assert await exhausted(made, 32) >= 10
    assert await made.upload_all("ab") == [1, 0]


async def test_false_attempts_are_counted_in_the_metrics(lost: Deploy) -> None:
    made = await lost("a")
    for number in range(3):
        await made.upload("a", bytes([number]) * 32)
    counter = 'server_client_api_http_request_total{code="500",method="post",path="/api/v2/recover"}'
    assert await made.site.metric(counter) == 3


async def test_where_shares_cannot_be_told_apart_the_owner_waits_a_moment_and_is_not_locked_out(lost: Deploy) -> None:
    made = await lost("a")
    assert await exhausted(made, 32) >= 10
    while (answer := await made.upload("a")).status == 500:
        assert "too many failed recovery attempts" in answer.message
        await asyncio.sleep(0.3)
    assert answer.data["remaining"] == 0


async def test_outside_recovery_nothing_is_taken(deploy: Deploy) -> None:
    made = await deploy("a")
    answer = await made.upload("a")
    assert (answer.status, answer.message) == (500, "server is not in expected state")


# --- requests


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"recoverySecret":"?"}', b'{"recoverySecret":1}', b'{"recoverySecret":"YQ"}']
)
async def test_a_malformed_request_is_a_fail(lost: Deploy, body: bytes) -> None:
    answer = await (await lost("a")).outside.post("/api/v2/recover", body)
    assert (answer.status, answer.kind, answer.json["status"]) == (400, JSON, "fail")


async def test_no_more_than_20480_bytes_are_read(lost: Deploy) -> None:
    """What is cut off there is JSON that does not end."""
    made = await lost("a")
    answers = []
    for size in (20_480, 20_481):
        body = json.dumps({"recoverySecret": b64(bytes(32))}).encode()
        answers.append(await made.outside.post("/api/v2/recover", body[:-1] + b" " * (size - len(body)) + body[-1:]))
    assert_error(answers[0], WRONG)
    assert (answers[1].status, answers[1].json["status"]) == (400, "fail")


async def test_recovery_in_version_1_is_gone(lost: Deploy) -> None:
    made = await lost("a")
    answer = await made.outside.post("/recover", made.secrets["a"])
    assert (answer.status, answer.kind) == (410, ERROR)
    assert answer.message == (
        "Recovering the Coordinator using the /recover API endpoint has been disabled. "
        "Use the /api/v2/recover endpoint instead."
    )
