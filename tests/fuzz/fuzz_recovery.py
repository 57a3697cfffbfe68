# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: what a stranger uploads in recovery, and recovery data from the disk.

`python -m tests.fuzz.fuzz_recovery` runs it under atheris, where that is installed; the unit tests run it over
mutations. The input: a length byte and that much of a signature, then the secret; or after 255, recovery data.
"""

from __future__ import annotations

import functools

from cryptography.hazmat.primitives.asymmetric import rsa

from tests.fuzz.driver import run
from tests.kit.records import owners
from xds_server.recovery import RecoveryError, RecoverySession, RecoveryTerms, new_recovery
from xds_server.store_errors import WrongKey

_DATA = 255
TERMS = RecoveryTerms({name: owner.pem for name, owner in zip("abc", owners(), strict=False)}, 2)
NEW = new_recovery(TERMS.keys, 2, lambda count: bytes(range(count)))
SHARES = tuple(owner.decrypt(NEW.encrypted[name]) for name, owner in zip("abc", owners(), strict=False))
SEEDS = (
    bytes([0]) + SHARES[0],
    bytes([200]) + owners()[1].sign(SHARES[1])[:200] + SHARES[1],
    bytes([0]) + bytes(512),
    bytes([0]) + NEW.dek,
    bytes([_DATA]) + NEW.recovery_data,
    bytes([_DATA]) + b"null",
)


def fuzz_one(data: bytes) -> None:
    """Any upload is refused with a RecoveryError, or it is a share that was given out; none recovers alone."""
    first, rest = data[:1] or b"\0", data[1:]
    try:
        if first[0] == _DATA:
            RecoverySession(rest, _terms, lambda: 0.0)
            return
        signature, secret = rest[: first[0]], rest[first[0] :]
        session = RecoverySession(NEW.recovery_data, _terms, lambda: 0.0, make_key=_ephemeral)
        session.public_key()
        progress = session.offer(secret, signature)
    except RecoveryError:
        return
    if progress.dek is not None or secret not in SHARES:
        raise AssertionError("a secret was accepted that nobody gave out")


def _terms(dek: bytes) -> RecoveryTerms:
    if dek != NEW.dek:
        raise WrongKey("no")
    return TERMS


@functools.cache
def _ephemeral() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=4096)


if __name__ == "__main__":
    run(fuzz_one, SEEDS)
