# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: a Secret resource as a worker receives it.

`python -m tests.fuzz.fuzz_secret` runs it under atheris, where that is installed; the unit tests run it over mutations.
"""

from __future__ import annotations

from sds.material import Identity, MaterialError, TrustBundle
from sds.resources import RevokedInstances, bundle_secret, identity_secret, read_secret, revoked_secret
from tests.fuzz.driver import run
from tests.kit.pki import marble, other_ca, shared_ca

IDENTITY = marble(shared_ca())
BUNDLES = TrustBundle(shared_ca().bundle.pem + other_ca().bundle.pem)
SEEDS = (
    identity_secret("default", IDENTITY).body,
    bundle_secret("ROOTCA", BUNDLES).body,
    revoked_secret(["spiffe://t.test/marble/web/1", "spiffe://t.test/marble/db/2"]).body,
)


def fuzz_one(data: bytes) -> None:
    """Any bytes are refused with a MaterialError that quotes no key, or become usable material."""
    try:
        _, material = read_secret(data)
    except MaterialError as e:
        if "PRIVATE" in str(e) or IDENTITY.key.pem[40:60].decode() in str(e):
            raise AssertionError("an error quotes the key") from e
        return
    match material:
        case Identity():
            if not material.key.matches(material.leaf.public_key()):
                raise AssertionError("an identity without its key")
        case TrustBundle():
            if not material.certificates:
                raise AssertionError("an empty bundle")
        case RevokedInstances():
            if not all(name.startswith("spiffe://") for name in material.names):
                raise AssertionError("a revoked instance that is no SPIFFE ID")


if __name__ == "__main__":
    run(fuzz_one, SEEDS)
