# SPDX-License-Identifier: Apache-2.0
"""Recovery: how the data key is shared out among key owners, and how it comes back.

    owners            data key (DEK)     each owner gets          stored in clear
    none              random             -                        null
    one               random             the DEK                  null
    N, no threshold   XOR of all shares  a random 32-byte share   SHA-256 of each share
    N, threshold T    random             a 33-byte Shamir share   SHA-256 of each share

A false secret is always an error that says so, and changes nothing. Guessing 256 bits is hopeless; what is bounded is
the work that a stranger can cause, since anybody may upload: ten failed attempts at once, then one every two seconds.
An owner's right share in plain is taken all the same: recognising it costs one hash. There is no final lock-out, which
a stranger could bring about.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from xds_server import recovery_shares as shares
from xds_server.recovery_keys import (
    Offered,
    RecoveryError,
    RecoveryKeyRefused,
    RecoveryTerms,
    SecretNotDecrypted,
    check_owners,
    encrypt_to,
    oaep,
)
from xds_server.store_errors import StoreError, WrongKey

__all__ = [
    "NewRecovery",
    "Progress",
    "RecoveryError",
    "RecoveryKeyRefused",
    "RecoverySession",
    "RecoveryTerms",
    "SecretNotDecrypted",
    "new_recovery",
]

KEY_SIZE: Final = 32
_LEGACY_KEY_SIZE = 16  # MarbleRun before 1.9
_SHAMIR_SHARE_SIZE = KEY_SIZE + 1
_PLAIN_SIZES = (KEY_SIZE, _SHAMIR_SHARE_SIZE, _LEGACY_KEY_SIZE)
_EPHEMERAL_BITS = 4096

MAX_RECOVERY_DATA = 64 * 1024  # 255 entries of 72 bytes are 18 KiB
_HASH = re.compile("[0-9a-f]{64}")

_FAILURES_AT_ONCE = 10.0
_SECONDS_PER_FAILURE = 2.0


@dataclass(frozen=True, slots=True)
class NewRecovery:
    """`recovery_data` goes to the store; `encrypted`: recovery key name → RSA-OAEP ciphertext for its owner."""

    dek: bytes = field(repr=False)
    recovery_data: bytes = field(repr=False)
    encrypted: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Progress:
    """`remaining` as MarbleRun counts: all owners minus accepted secrets, 0 at the end. `dek` once it is complete and
    everybody's signature was right."""

    remaining: int
    dek: bytes | None = field(default=None, repr=False)


def _new_ephemeral_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=_EPHEMERAL_BITS)


def new_recovery(recovery_keys: Mapping[str, str], threshold: int, rng: Callable[[int], bytes]) -> NewRecovery:
    """A new data key, shared out to the owners of `recovery_keys` (name → PEM); `rng(n)` gives n random bytes.

    Raises RecoveryKeyRefused for a key or a threshold that cannot be used.
    """
    count = len(recovery_keys)
    if count > shares.MAX_SHARES:
        raise RecoveryKeyRefused(f"{count} recovery keys, at most {shares.MAX_SHARES} are possible")
    if threshold and not 2 <= threshold <= count:
        raise RecoveryKeyRefused(f"recovery threshold {threshold} is impossible with {count} recovery keys")
    if count < 2:
        dek = rng(KEY_SIZE)
        parts = [dek] * count
    elif threshold in (0, count):
        parts = [rng(KEY_SIZE) for _ in recovery_keys]
        dek = shares.xor(parts)
    else:
        dek = rng(KEY_SIZE)
        parts = shares.split(dek, count, threshold, rng)
    encrypted = {
        name: encrypt_to(name, pem, part) for (name, pem), part in zip(recovery_keys.items(), parts, strict=True)
    }
    return NewRecovery(dek, _write_hashes(parts if count > 1 else []), encrypted)


class RecoverySession:
    """One recovery, from a locked state until its key is there. Blocking and thread-safe: call it in a thread."""

    def __init__(
        self,
        recovery_data: bytes,
        terms: Callable[[bytes], RecoveryTerms],
        monotonic: Callable[[], float],
        make_key: Callable[[], rsa.RSAPrivateKey] = _new_ephemeral_key,
    ) -> None:
        """`terms(dek)` opens the sealed state (Store.recovery_terms) and raises WrongKey if that is not its key;
        `monotonic()` is a clock in seconds. Raises RecoveryError for recovery data that cannot be read."""
        self._hashes = _read_hashes(recovery_data)
        self._terms = terms
        self._make_key = make_key
        self._lock = threading.Lock()
        self._failures = _Budget(monotonic)
        self._private_key: rsa.RSAPrivateKey | None = None
        self._offered: list[Offered] = []
        self._done = False

    def public_key(self) -> bytes:
        """The ephemeral RSA-4096 key to encrypt secrets to, PKIX DER. Made at the first call, which takes seconds."""
        with self._lock:
            self._check_open()
            if self._private_key is None:
                self._private_key = self._make_key()
            return self._private_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def offer(self, secret: bytes, signature: bytes) -> Progress:
        """One owner's secret, in plain or encrypted to `public_key`, with the owner's signature over the plain one.

        Raises RecoveryError (or SecretNotDecrypted, a kind of it), and StoreError if the state itself is damaged.
        """
        with self._lock:
            self._check_open()
            if not self._recognised(secret):
                self._failures.check()
            try:
                progress = self._take(Offered(self._plain(secret), signature))
            except RecoveryError:
                self._failures.spend()
                raise
            if progress.dek is not None:
                self._done = True
                self._private_key = None
                self._offered.clear()
            return progress

    def _check_open(self) -> None:
        if self._done:
            raise RecoveryError("recovery is already complete")

    def _recognised(self, secret: bytes) -> bool:
        return self._hashes is not None and self._unused(secret)

    def _plain(self, secret: bytes) -> bytes:
        if len(secret) in _PLAIN_SIZES:
            return secret
        if self._private_key is None:
            raise SecretNotDecrypted("ephemeral secret key not set")
        if len(secret) != _EPHEMERAL_BITS // 8:
            raise SecretNotDecrypted(
                f"{len(secret)} bytes are neither a secret nor a ciphertext of {_EPHEMERAL_BITS} bits"
            )
        try:
            return self._private_key.decrypt(secret, oaep())
        except ValueError:
            raise SecretNotDecrypted("it was not encrypted to this Coordinator's current ephemeral key") from None

    def _take(self, one: Offered) -> Progress:
        if len(one.secret) not in _PLAIN_SIZES:
            raise RecoveryError("invalid secret length")
        if self._hashes is None:
            return self._take_single(one)
        if not self._unused(one.secret):
            raise RecoveryError("uploaded an invalid or already used secret")
        if self._offered and len(one.secret) != len(self._offered[0].secret):
            raise RecoveryError("invalid secret length")
        self._offered.append(one)
        return self._combine(self._hashes)

    def _take_single(self, one: Offered) -> Progress:
        if len(one.secret) == _SHAMIR_SHARE_SIZE:
            raise RecoveryError("invalid secret length")
        if (terms := self._open(one.secret)) is None:
            raise RecoveryError("wrong recovery secret: it does not open the sealed state")
        check_owners(terms, [one])
        return Progress(0, one.secret)

    def _combine(self, hashes: frozenset[bytes]) -> Progress:
        remaining = len(hashes) - len(self._offered)
        parts = [one.secret for one in self._offered]
        if len(parts[0]) == _SHAMIR_SHARE_SIZE:
            # The threshold stands in the state that is still locked, so each number from two on is tried.
            dek = _combined(parts) if len(parts) > 1 else None
        else:
            dek = shares.xor(parts) if remaining == 0 else None
        terms = None if dek is None else self._open(dek)
        if terms is not None:
            try:
                check_owners(terms, self._offered)
            except RecoveryError:
                self._offered.clear()  # as MarbleRun does: everybody must upload again
                raise
            return Progress(0, dek)
        if remaining == 0:
            self._offered.clear()
            raise RecoveryError("the uploaded secrets together do not open the sealed state: upload all of them again")
        return Progress(remaining)

    def _open(self, dek: bytes) -> RecoveryTerms | None:
        try:
            return self._terms(dek)
        except WrongKey:
            return None
        except StoreError:
            self._offered.clear()
            raise

    def _unused(self, secret: bytes) -> bool:
        """Is this a share that has not come yet? Compares with all of them, in a time that says nothing."""
        digest = hashlib.sha256(secret).digest()
        known = [hmac.compare_digest(digest, entry) for entry in self._hashes or ()]
        used = [hmac.compare_digest(secret, one.secret) for one in self._offered]
        return any(known) and not any(used)


class _Budget:
    """Failed attempts: some at once, then one in a while."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._left = _FAILURES_AT_ONCE
        self._at = monotonic()

    def check(self) -> None:
        now = self._monotonic()
        self._left = min(_FAILURES_AT_ONCE, self._left + (now - self._at) / _SECONDS_PER_FAILURE)
        self._at = now
        if self._left < 1:
            wait = (1 - self._left) * _SECONDS_PER_FAILURE
            raise RecoveryError(f"too many failed recovery attempts: try again in {wait:.0f} s")

    def spend(self) -> None:
        self._left = max(0.0, self._left - 1)


def _combined(parts: list[bytes]) -> bytes | None:
    try:
        return shares.combine(parts)
    except ValueError:  # two accepted shares at one x: not made by us, and not usable together
        return None


def _write_hashes(parts: list[bytes]) -> bytes:
    """JSON as Go writes a map: null for none, else hex(SHA-256(share)) → true, sorted."""
    hashes = sorted(hashlib.sha256(part).hexdigest() for part in parts)
    return json.dumps(dict.fromkeys(hashes, True) or None, separators=(",", ":")).encode()


def _read_hashes(data: bytes) -> frozenset[bytes] | None:
    if len(data) > MAX_RECOVERY_DATA:
        raise RecoveryError(f"recovery data has {len(data)} bytes, at most {MAX_RECOVERY_DATA} are expected")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise RecoveryError("recovery data is not JSON: sealed_data is damaged") from None
    if value is None or value == {}:
        return None
    if not isinstance(value, dict) or not all(_HASH.fullmatch(name) for name in value):
        raise RecoveryError("recovery data is no list of hashes: sealed_data is damaged")
    if len(value) > shares.MAX_SHARES:
        raise RecoveryError(f"recovery data has {len(value)} entries, at most {shares.MAX_SHARES} are expected")
    return frozenset(bytes.fromhex(name) for name in value)
