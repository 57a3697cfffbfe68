# SPDX-License-Identifier: Apache-2.0
"""Recovery in every mode, as owners do it: OpenSSL decrypts and signs, curl uploads, and the Marbles go on."""

from __future__ import annotations

import asyncio
import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from tests.conformance.recovery.conftest import Deploy
from tests.kit.key_owner import encrypted
from tests.kit.outside import Outside

# Owners, threshold, who comes in which order, and what each answer says remains: all owners less those who came.
MODES = {
    "one": ("a", 0, "a", [0]),
    "three": ("abc", 0, "cab", [2, 1, 0]),
    "a threshold of all": ("abc", 3, "bca", [2, 1, 0]),
    "two of three": ("abc", 2, "ca", [2, 0]),
}
ORDERS = {
    "two": ("ab", 0, "ab", [1, 0]),
    "two, the other way round": ("ab", 0, "ba", [1, 0]),
    "two of three, the first": ("abc", 2, "ab", [2, 0]),
    "two of three, the last": ("abc", 2, "bc", [2, 0]),
    "three of four": ("abcd", 3, "dba", [3, 2, 0]),
}


def message(remaining: int) -> str:
    if remaining:
        return f"Secret was processed successfully. Upload the next secret. Remaining secrets: {remaining}"
    return "Recovery successful."


@pytest.mark.parametrize("mode", MODES)
async def test_the_owners_bring_the_state_back_and_marbles_get_the_keys_that_they_had(
    deploy: Deploy, mode: str
) -> None:
    names, threshold, order, remaining = MODES[mode]
    made = await deploy(names, threshold)
    own, root = (await made.outside.activate())["OWN"], await made.outside.root()
    outside = await made.lose_key()
    assert (await outside.status(), await outside.root() == root) == (1, False)
    answers = [(await made.upload(name)).data for name in order]
    assert answers == [{"remaining": count, "message": message(count)} for count in remaining]
    assert (await outside.status(), await outside.root() == root) == (3, True)
    assert (await outside.activate())["OWN"] == own


@pytest.mark.parametrize("order", ORDERS)
async def test_enough_of_the_owners_come_in_any_order(lost: Deploy, order: str) -> None:
    names, threshold, come, remaining = ORDERS[order]
    made = await lost(names, threshold)
    assert await made.upload_all(come) == remaining


async def test_the_answer_is_exactly_this(lost: Deploy) -> None:
    answer = await (await lost("a")).upload("a")
    assert answer.body == b'{"status":"success","data":{"remaining":0,"message":"Recovery successful."}}\n'


async def test_all_owners_may_come_at_once(lost: Deploy) -> None:
    made = await lost("abc")
    answers = await asyncio.gather(*(made.upload(name) for name in "abc"))
    assert sorted(answer.data["remaining"] for answer in answers) == [0, 1, 2]
    assert await made.outside.status() == 3


async def test_in_recovery_status_says_what_to_do(lost: Deploy) -> None:
    made = await lost("a")
    assert (await made.outside.get("/api/v2/status")).data == {
        "code": 1,
        "message": (
            "Coordinator is in recovery mode. Either upload a key to unseal the saved state, or set a new manifest. "
            "For more information on how to proceed, consult the documentation."
        ),
        "simulation": True,
    }


# --- the ephemeral key


async def ephemeral(outside: Outside) -> bytes:
    """PKIX DER."""
    key = (await outside.get("/api/v2/recover/public-key")).data
    assert (list(key), key["algorithm"]) == (["algorithm", "ephemeralPublicKey"], "RSA")
    return base64.b64decode(key["ephemeralPublicKey"])


async def test_secrets_may_come_encrypted_to_the_ephemeral_key_of_4096_bits(lost: Deploy) -> None:
    """The signature is over the plain secret all the same. With the recovery the key is forgotten."""
    made = await lost("abc", 2)
    outside = made.outside
    der = await ephemeral(outside)
    key = load_der_public_key(der)
    assert isinstance(key, rsa.RSAPublicKey)
    assert key.key_size == 4096
    assert await ephemeral(outside) == der, "made once, and kept"
    file = made.site.home / "ephemeral.der"
    file.write_bytes(der)
    wrong = await outside.recover(encrypted(file, bytes(7)), b"")
    assert (wrong.status, wrong.message) == (500, "setting recovery key: invalid secret length")
    garbled = await outside.recover(bytes(512), b"")
    assert (garbled.status, garbled.json["status"]) == (400, "fail")
    assert garbled.message.startswith("failed to decrypt recovery secret: ")
    for name, remaining in (("a", 2), ("c", 0)):
        secret = made.secrets[name]
        answer = await outside.recover(encrypted(file, secret), made.owners[name].sign(secret))
        assert answer.data["remaining"] == remaining
    gone = await outside.get("/api/v2/recover/public-key")
    assert (gone.status, gone.message) == (500, "server is not in expected state")


@pytest.mark.parametrize("size", [0, 15, 17, 31, 34, 512])
async def test_what_has_no_secret_s_length_is_taken_for_a_ciphertext(lost: Deploy, size: int) -> None:
    made = await lost("a")
    answer = await made.outside.recover(bytes(size), b"")
    assert (answer.status, answer.json["status"]) == (400, "fail")
    assert answer.message == "failed to decrypt recovery secret: ephemeral secret key not set"


async def test_the_ephemeral_key_is_forgotten_by_a_restart(lost: Deploy) -> None:
    made = await lost("ab")
    await ephemeral(made.outside)
    outside = await made.site.restart()
    answer = await outside.recover(bytes(512), b"")
    assert answer.message == "failed to decrypt recovery secret: ephemeral secret key not set"
