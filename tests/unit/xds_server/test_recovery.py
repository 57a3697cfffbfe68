# SPDX-License-Identifier: Apache-2.0
"""Recovery: who gets what, how it comes back, and what a stranger can do (nothing, and not often)."""

from __future__ import annotations

import functools
import hashlib
import json
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from tests.kit.records import Owner, owners
from xds_server.recovery import (
    NewRecovery,
    Progress,
    RecoveryError,
    RecoveryKeyRefused,
    RecoverySession,
    RecoveryTerms,
    SecretNotDecrypted,
    new_recovery,
)
from xds_server.recovery_keys import oaep
from xds_server.store_errors import StoreDamaged, WrongKey


class Case:
    """N owners and a threshold, with a state sealed by what they were given."""

    def __init__(self, count: int, threshold: int = 0) -> None:
        self.owners = dict(zip("abcd"[:count], owners(), strict=False))
        self.terms = RecoveryTerms({name: owner.pem for name, owner in self.owners.items()}, threshold)
        self.new = new_recovery(self.terms.keys, threshold, secrets.token_bytes)
        self.secrets = {name: owner.decrypt(self.new.encrypted[name]) for name, owner in self.owners.items()}
        self.time = 0.0

    def session(self) -> RecoverySession:
        return RecoverySession(self.new.recovery_data, self.open, lambda: self.time)

    def open(self, dek: bytes) -> RecoveryTerms:
        if dek != self.new.dek:
            raise WrongKey("no")
        return self.terms

    def offer(self, session: RecoverySession, name: str) -> Progress:
        return session.offer(self.secrets[name], self.owners[name].sign(self.secrets[name]))


def offer_all(case: Case, names: Sequence[str]) -> list[Progress]:
    session = case.session()
    return [case.offer(session, name) for name in names]


# --- what each owner gets


def test_without_owners_nobody_gets_anything() -> None:
    new = new_recovery({}, 0, secrets.token_bytes)
    assert (len(new.dek), new.recovery_data, dict(new.encrypted)) == (32, b"null", {})


@pytest.mark.parametrize(("count", "threshold", "size"), [(1, 0, 32), (2, 0, 32), (3, 3, 32), (3, 2, 33), (4, 3, 33)])
def test_each_owner_gets_a_share_of_its_own(count: int, threshold: int, size: int) -> None:
    case = Case(count, threshold)
    assert {len(secret) for secret in case.secrets.values()} == {size}
    assert len(set(case.secrets.values())) == count


def test_what_is_stored_in_clear_is_the_hash_of_each_share() -> None:
    case = Case(3, 2)
    hashes = {hashlib.sha256(secret).hexdigest(): True for secret in case.secrets.values()}
    assert json.loads(case.new.recovery_data) == hashes
    assert Case(1).new.recovery_data == b"null"


@pytest.mark.parametrize(
    ("pem", "text"),
    [
        ("nonsense", "given PEM data is not a public key"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "given PEM data is not a public key"),
        ("x" * 20_000, "given PEM data is not a public key"),
    ],
)
def test_a_recovery_key_that_is_none_is_refused_by_name(pem: str, text: str) -> None:
    with pytest.raises(RecoveryKeyRefused, match=f"recovery key bob: {text}"):
        new_recovery({"bob": pem}, 0, secrets.token_bytes)


def test_a_recovery_key_must_be_rsa_of_at_least_2048_bits() -> None:
    curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = curve.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    with pytest.raises(RecoveryKeyRefused, match="unsupported type of public key"):
        new_recovery({"bob": pem}, 0, secrets.token_bytes)
    with pytest.raises(RecoveryKeyRefused, match="1024 bits, expected 2048"):
        new_recovery({"bob": Owner(1024).pem}, 0, secrets.token_bytes)


@pytest.mark.parametrize(("count", "threshold"), [(2, 1), (2, 3), (0, 2), (256, 0)])
def test_impossible_numbers_are_refused(count: int, threshold: int) -> None:
    with pytest.raises(RecoveryKeyRefused):
        new_recovery(dict.fromkeys(map(str, range(count)), owners()[0].pem), threshold, secrets.token_bytes)


# --- how it comes back


def test_one_owner_brings_the_key_alone() -> None:
    case = Case(1)
    assert offer_all(case, "a") == [Progress(0, case.new.dek)]


def test_all_owners_bring_their_shares_in_any_order() -> None:
    case = Case(3)
    assert [progress.remaining for progress in offer_all(case, "cab")] == [2, 1, 0]
    assert offer_all(case, "bca")[-1].dek == case.new.dek


@pytest.mark.parametrize("names", list(combinations("abc", 2)))
def test_any_two_of_three_are_enough_and_the_count_is_of_all_owners(names: tuple[str, str]) -> None:
    case = Case(3, 2)
    assert offer_all(case, names) == [Progress(2), Progress(0, case.new.dek)]


def test_three_of_four_need_a_third() -> None:
    case = Case(4, 3)
    assert [progress.remaining for progress in offer_all(case, "dba")] == [3, 2, 0]


@pytest.mark.parametrize("case", [Case(1), Case(2), Case(3, 2)], ids=["one", "all", "threshold"])
def test_secrets_may_be_encrypted_to_the_ephemeral_key(case: Case) -> None:
    session = fast_session(case)
    key = load_der_public_key(session.public_key())
    assert isinstance(key, rsa.RSAPublicKey)
    progress = Progress(9)
    for name in list(case.owners)[:2]:
        secret = case.secrets[name]
        progress = session.offer(key.encrypt(secret, oaep()), case.owners[name].sign(secret))
    assert progress == Progress(0, case.new.dek)


def test_the_ephemeral_key_has_4096_bits_and_is_made_once() -> None:
    session = Case(1).session()
    with ThreadPoolExecutor(4) as pool:
        ones = set(pool.map(lambda _: session.public_key(), range(4)))
    (der,) = ones
    key = load_der_public_key(der)
    assert isinstance(key, rsa.RSAPublicKey)
    assert key.key_size == 4096


def test_after_the_end_the_session_takes_nothing() -> None:
    case = Case(1)
    session = case.session()
    case.offer(session, "a")
    for ask in (session.public_key, functools.partial(case.offer, session, "a")):
        with pytest.raises(RecoveryError, match="already complete"):
            ask()


# --- what is refused


def test_a_wrong_single_secret_says_so_and_spoils_nothing() -> None:
    case = Case(1)
    session = case.session()
    for _ in range(3):
        with pytest.raises(RecoveryError, match="wrong recovery secret: it does not open the sealed state"):
            session.offer(secrets.token_bytes(32), b"")
    assert case.offer(session, "a").dek == case.new.dek


@pytest.mark.parametrize("case", [Case(2), Case(3, 2)], ids=["all", "threshold"])
def test_a_false_or_repeated_share_says_so_and_spoils_nothing(case: Case) -> None:
    session = case.session()
    case.offer(session, "a")
    for secret in (case.secrets["a"], secrets.token_bytes(32), secrets.token_bytes(33), bytes(16)):
        with pytest.raises(RecoveryError, match="uploaded an invalid or already used secret"):
            session.offer(secret, b"")
    assert case.offer(session, "b").dek == case.new.dek


def test_a_share_cannot_recover_a_state_with_one_owner() -> None:
    with pytest.raises(RecoveryError, match="invalid secret length"):
        Case(1).session().offer(bytes(33), b"")


@pytest.mark.parametrize("size", [0, 1, 31, 34, 511, 512, 513])
def test_a_ciphertext_before_the_public_key_was_asked_for_is_refused(size: int) -> None:
    with pytest.raises(SecretNotDecrypted, match="failed to decrypt recovery secret: ephemeral secret key not set"):
        Case(1).session().offer(bytes(size), b"")


def test_a_ciphertext_for_another_key_or_of_a_wrong_secret_is_refused() -> None:
    case = Case(1)
    session = fast_session(case)
    key = load_der_public_key(session.public_key())
    assert isinstance(key, rsa.RSAPublicKey)
    for ciphertext in (b"", bytes(511), bytes(512), b"\xff" * 512):
        with pytest.raises(SecretNotDecrypted, match="failed to decrypt recovery secret: "):
            session.offer(ciphertext, b"")
    with pytest.raises(RecoveryError, match="invalid secret length"):
        session.offer(key.encrypt(bytes(31), oaep()), b"")


def test_every_owner_must_have_signed_the_secret_that_it_sent() -> None:
    case = Case(2)
    session = case.session()
    case.offer(session, "a")
    with pytest.raises(RecoveryError, match='no matching recovery key found for recovery public key "b"'):
        session.offer(case.secrets["b"], case.owners["a"].sign(case.secrets["b"]))
    assert case.offer(session, "a").remaining == 1, "everybody must upload again"


def test_one_owner_cannot_stand_for_two_of_a_threshold() -> None:
    case = Case(3, 2)
    session = case.session()
    session.offer(case.secrets["a"], case.owners["a"].sign(case.secrets["a"]))
    with pytest.raises(RecoveryError, match=r"no matching recovery public key found for recovery key$"):
        session.offer(case.secrets["b"], case.owners["a"].sign(case.secrets["b"]))


def test_a_single_secret_needs_a_signature_too() -> None:
    case = Case(1)
    with pytest.raises(RecoveryError, match='no matching recovery key found for recovery public key "a"'):
        case.session().offer(case.secrets["a"], b"")


@pytest.mark.parametrize(
    ("terms", "text"),
    [
        (RecoveryTerms({}, 0), "recovery keys in manifest do not match the keys used for recovery: expected 0, got 1"),
        (
            RecoveryTerms({"a": owners()[0].pem, "b": owners()[1].pem}, 0),
            "recovery keys in manifest do not match the keys used for recovery: expected 2, got 1",
        ),
        (
            RecoveryTerms({name: owners()[0].pem for name in "abc"}, 2),
            "recovery threshold in manifest does not match the number of keys used for recovery: expected 2, got 1",
        ),
    ],
)
def test_the_sealed_manifest_decides_how_many_owners_it_takes(terms: RecoveryTerms, text: str) -> None:
    """Recovery data lies in clear: whoever replaces it by null does not get by with one owner."""
    case = Case(1)
    case.terms = terms
    with pytest.raises(RecoveryError, match=text):
        offer_all(case, "a")


def test_shares_that_do_not_open_the_state_are_refused_when_all_have_come() -> None:
    case = Case(2)
    case.new = NewRecovery(bytes(32), case.new.recovery_data, case.new.encrypted)
    session = case.session()
    case.offer(session, "a")
    with pytest.raises(RecoveryError, match="together do not open the sealed state"):
        case.offer(session, "b")
    assert case.offer(session, "a").remaining == 1


def test_damage_to_the_state_is_no_wrong_secret() -> None:
    def damaged(_: bytes) -> RecoveryTerms:
        raise StoreDamaged("sealed state: it is no JSON object")

    with pytest.raises(StoreDamaged):
        RecoverySession(b"null", damaged, lambda: 0.0).offer(bytes(32), b"")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b'{"x":true}',
        b'{"' + b"A" * 64 + b'":true}',
        b"1",
        b"[" * 60_000,
        b" " * 70_000,
        json.dumps({f"{number:064x}": True for number in range(256)}).encode(),
    ],
)
def test_recovery_data_that_cannot_be_read_is_refused(data: bytes) -> None:
    with pytest.raises(RecoveryError, match="recovery data"):
        RecoverySession(data, Case(1).open, lambda: 0.0)


# --- how often


@pytest.mark.parametrize("case", [Case(1), Case(2)], ids=["one", "all"])
def test_failed_attempts_are_bounded(case: Case) -> None:
    session = case.session()
    for _ in range(10):
        with pytest.raises(RecoveryError, match=r"wrong|invalid"):
            session.offer(secrets.token_bytes(32), b"")
    with pytest.raises(RecoveryError, match="too many failed recovery attempts: try again in 2 s"):
        session.offer(secrets.token_bytes(32), b"")
    case.time += 2
    with pytest.raises(RecoveryError, match=r"wrong|invalid"):
        session.offer(secrets.token_bytes(32), b"")
    with pytest.raises(RecoveryError, match="too many"):
        session.offer(secrets.token_bytes(32), b"")


def test_a_right_share_is_taken_whatever_strangers_do() -> None:
    case = Case(2)
    session = case.session()
    for _ in range(12):
        with pytest.raises(RecoveryError):
            session.offer(secrets.token_bytes(32), b"")
    assert [case.offer(session, name).remaining for name in "ab"] == [1, 0]


def test_no_secret_is_in_any_text() -> None:
    case = Case(1)
    secret = case.secrets["a"]
    session = case.session()
    progress = case.offer(session, "a")
    for text in (repr(case.new), repr(progress), repr(session), str(vars(session))):
        assert secret.hex() not in text
        assert repr(secret) not in text


@functools.cache
def _ephemeral() -> rsa.RSAPrivateKey:
    """RSA-4096 takes seconds: one for all tests of this process."""
    return rsa.generate_private_key(public_exponent=65537, key_size=4096)


def fast_session(case: Case) -> RecoverySession:
    return RecoverySession(case.new.recovery_data, case.open, lambda: case.time, make_key=_ephemeral)
