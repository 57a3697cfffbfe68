# SPDX-License-Identifier: Apache-2.0
"""Records of a Coordinator to store: small ones with knobs, and arbitrary ones."""

from __future__ import annotations

import functools
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import strategies as st

from sds.ca import CertificateAuthority
from sds.secrets import Secret, SecretKind
from tests.kit.manifests import manifest, raw
from xds_server.former_roots import FormerRoots
from xds_server.records import PendingUpdate, Records
from xds_server.recovery_keys import oaep
from xds_server.state import State

ROOT_SECRET = bytes(range(32))


@functools.cache
def ca() -> CertificateAuthority:
    return CertificateAuthority.create(["localhost"], [], datetime.now(UTC))


@functools.cache
def former_roots() -> FormerRoots:
    """In the middle of a rotation, after others."""
    now = datetime.now(UTC)
    old, older, oldest = (ca().rotate(now) for _ in range(3))
    departed = ((oldest.marble_root, now + timedelta(minutes=1)),)
    return FormerRoots((older, old), departed, (("web", "ad2ff5f2-0b2e-4ed5-9a3c-5bb0a5e2b6a1"),))


def manifest_bytes(**members: Any) -> bytes:
    return raw(manifest(**members))


def records(manifest: bytes = manifest_bytes(), **members: Any) -> Records:
    """Records of a Coordinator with a manifest; members replace."""
    defaults: dict[str, Any] = {
        "state": State.ACCEPTING_MARBLES,
        "ca": ca(),
        "root_secret": ROOT_SECRET,
        "previous_root_secret": ROOT_SECRET,
        "manifest": manifest,
        "manifest_signature": b"signature",
    }
    return Records(**(defaults | members))


class Owner:
    """Somebody with a recovery key."""

    def __init__(self, bits: int = 2048) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
        self.pem = self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def decrypt(self, ciphertext: bytes) -> bytes:
        return self.key.decrypt(ciphertext, oaep())

    def sign(self, secret: bytes) -> bytes:
        return self.key.sign(secret, PKCS1v15(), SHA256())


@functools.cache
def owners(count: int = 4) -> tuple[Owner, ...]:
    return tuple(Owner() for _ in range(count))


names = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1, max_size=12)
numbers = st.integers(0, 2**64 - 1)
blobs = st.binary(max_size=40)

secrets = st.builds(
    Secret,
    kind=st.sampled_from(SecretKind),
    size=numbers,
    shared=st.booleans(),
    user_defined=st.booleans(),
    valid_for=numbers,
    certificate=st.none() | st.binary(min_size=1, max_size=40),
    private=blobs,
    public=blobs,
)

arbitrary_records = st.builds(
    records,
    state=st.sampled_from(State),
    root_secret=st.binary(min_size=32, max_size=32),
    previous_root_secret=st.binary(min_size=32, max_size=32),
    manifest_signature=blobs,
    security_versions=st.dictionaries(st.just("p"), st.integers(2, 2**64 - 1)),
    secrets=st.dictionaries(names, secrets, max_size=3),
    previous_secrets=st.dictionaries(names, secrets, max_size=3),
    activations=st.dictionaries(names, numbers, max_size=3),
    counters=st.dictionaries(names, numbers, max_size=3),
    update_log=st.lists(names).map(tuple),
    former=st.builds(former_roots) | st.just(FormerRoots()),
    pending_update=st.none()
    | st.builds(PendingUpdate, raw=blobs, acknowledged=st.dictionaries(names, st.booleans()), missing=numbers),
)
