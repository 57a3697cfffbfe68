# SPDX-License-Identifier: Apache-2.0
"""Users are certificates, compared byte by byte; roles say what they may do, and several add up."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from tests.kit.client_api import Answer
from tests.kit.coordinator import PACKAGE, manifest
from tests.kit.deployment import b64
from tests.kit.outside import Outside
from tests.kit.parties import raising
from tests.kit.site import site
from tests.kit.users import User, recovery_key, user

SECRETS = {
    "one": {"Type": "symmetric-key", "Size": 128, "Shared": True},
    "two": {"Type": "symmetric-key", "Size": 128, "Shared": True},
    "mine": {"Type": "plain", "UserDefined": True},
    "yours": {"Type": "plain", "UserDefined": True},
}
ROLES = {
    "reads one": {"ResourceType": "Secrets", "ResourceNames": ["one"], "Actions": ["ReadSecret"]},
    "reads two": {"ResourceType": "Secrets", "ResourceNames": ["two"], "Actions": ["readsecret"]},
    "writes": {"ResourceType": "Secrets", "ResourceNames": ["mine"], "Actions": ["WRITESECRET"]},
    "reads and writes": {
        "ResourceType": "Secrets",
        "ResourceNames": ["mine", "yours"],
        "Actions": ["ReadSecret", "WriteSecret"],
    },
    "raises app": {"ResourceType": "Packages", "ResourceNames": ["app"], "Actions": ["UpdateSecurityVersion"]},
    "raises lib": {"ResourceType": "Packages", "ResourceNames": ["lib"], "Actions": ["updatesecurityversion"]},
    "updates": {"ResourceType": "Manifest", "Actions": ["UPDATEMANIFEST"]},
    "nothing": {"ResourceType": "Manifest"},
}
MEMBERS: dict[str, object] = {"Secrets": SECRETS, "Roles": ROLES, "Packages": {"app": PACKAGE, "lib": PACKAGE}}


def allowing(*roles: str, who: User | None = None) -> bytes:
    one = who or user("alice")
    return manifest(**MEMBERS, Users={"alice": {"Certificate": one.certificate.decode(), "Roles": list(roles)}})


async def write(outside: Outside, *names: str) -> Answer:
    return await outside.post("/api/v2/secrets", {"secrets": {name: {"Key": b64(b"x")} for name in names}}, "alice")


# --- what a role allows


@pytest.mark.parametrize(
    ("roles", "names", "status"),
    [
        (["reads one"], ["one"], 200),
        (["reads one"], ["two"], 500),
        (["reads one"], ["one", "two"], 500),
        (["reads one", "reads two"], ["one", "two"], 200),
        (["writes"], ["mine"], 500),
        (["reads and writes"], ["mine", "yours"], 200),
        (["updates", "raises app", "nothing"], ["one"], 500),
        ([], ["one"], 500),
    ],
)
async def test_secrets_are_read_by_who_may_read_each_of_them(
    tmp_path: Path, roles: list[str], names: list[str], status: int
) -> None:
    async with site(tmp_path, allowing(*roles)) as running:
        query = "&".join(f"s={name}" for name in names)
        answer = await running.outside.get(f"/api/v2/secrets?{query}", "alice")
        assert answer.status == status
        if status == 500:
            text = f"user alice is not allowed to read one or more secrets of: [{' '.join(names)}]"
            assert answer.message == text


@pytest.mark.parametrize(
    ("roles", "names", "refused"),
    [
        (["writes"], ["mine"], None),
        (["reads one", "writes"], ["mine"], None),
        (["reads and writes"], ["mine", "yours"], None),
        (["writes"], ["mine", "yours"], "yours"),
        (["reads one"], ["mine"], "mine"),
        ([], ["mine"], "mine"),
    ],
)
async def test_secrets_are_written_by_who_may_write_each_of_them(
    tmp_path: Path, roles: list[str], names: list[str], refused: str | None
) -> None:
    async with site(tmp_path, allowing(*roles)) as running:
        before = running.file()
        answer = await write(running.outside, *names)
        if refused is None:
            assert answer.status == 200
        else:
            assert (answer.status, running.file()) == (500, before)
            assert answer.message == f"user alice is not allowed to update secret: {refused}"


@pytest.mark.parametrize(
    ("roles", "packages", "allowed"),
    [
        (["raises app"], ["app"], True),
        (["raises app"], ["app", "lib"], False),
        (["raises app", "raises lib"], ["app", "lib"], True),
        (["updates"], ["app"], False),
        (["nothing"], ["app"], False),
    ],
)
async def test_packages_are_raised_by_who_may_raise_each_of_them(
    tmp_path: Path, roles: list[str], packages: list[str], allowed: bool
) -> None:
    async with site(tmp_path, allowing(*roles)) as running:
        answer = await running.outside.update(raising(**dict.fromkeys(packages, 4)))
        assert answer.status == (200 if allowed else 500)
        if not allowed:
            text = f"user alice is not allowed to update one or more packages of [{' '.join(packages)}]"
            assert answer.message == text


@pytest.mark.parametrize(("roles", "allowed"), [(["updates"], True), (["raises app"], False), (["nothing"], False)])
async def test_the_manifest_is_updated_by_who_may_update_it(tmp_path: Path, roles: list[str], allowed: bool) -> None:
    async with site(tmp_path, allowing(*roles)) as running:
        answer = await running.outside.update(allowing("updates"))
        assert answer.status == (200 if allowed else 500)


# --- who a user is


def certified(
    subject: str,
    signer: ec.EllipticCurvePrivateKey | None = None,
    *,
    days: int = 1,
    key: PrivateKeyTypes | None = None,
) -> User:
    """A certificate with another life, issuer or kind of key than other tests' users have."""
    now, name = datetime.now(UTC), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    key = key or ec.generate_private_key(ec.SECP521R1())
    assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    certificate = (
        x509.CertificateBuilder(name if signer is None else x509.Name([]), name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days) - timedelta(days=2))
        .not_valid_after(now + timedelta(days=days))
        .sign(signer or key, SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return User(certificate.public_bytes(Encoding.PEM), pem, certificate.public_bytes(Encoding.DER))


@pytest.mark.parametrize(
    "who",
    [
        pytest.param(lambda: certified("alice", days=-1), id="expired"),
        pytest.param(lambda: certified("alice", days=9), id="not valid yet"),
        pytest.param(lambda: certified("alice", ec.generate_private_key(ec.SECP256R1())), id="of a CA"),
        pytest.param(lambda: certified("somebody else"), id="of another name"),
        pytest.param(lambda: certified("alice", key=recovery_key()), id="RSA"),
    ],
)
async def test_issuer_subject_and_dates_of_a_user_s_certificate_mean_nothing(
    tmp_path: Path, who: Callable[[], User]
) -> None:
    alice = who()
    async with site(tmp_path, allowing("reads one", who=alice)) as running:
        assert await running.outside.secrets("one", who=alice)


async def test_another_certificate_of_the_same_key_and_name_is_nobody(tmp_path: Path) -> None:
    alice = certified("alice")
    again = certified("alice", key=load_pem_private_key(alice.key, None))
    assert (again.key, again.der == alice.der) == (alice.key, False)
    async with site(tmp_path, allowing("reads one", who=alice)) as running:
        assert (await running.outside.get("/api/v2/secrets?s=one", again)).status == 401
        assert (await running.outside.get("/api/v2/secrets?s=one", alice)).status == 200


async def test_before_a_manifest_nobody_is_a_user(tmp_path: Path) -> None:
    async with site(tmp_path) as running:
        for path in ("secrets", "update", "update-manifest", "update-cancel"):
            assert (await running.outside.post(f"/api/v2/{path}", b"{}", "alice")).status == 401


async def test_two_users_may_not_have_one_certificate(tmp_path: Path) -> None:
    members = json.loads(allowing("updates"))
    members["Users"]["bob"] = members["Users"]["alice"]
    async with site(tmp_path) as running:
        answer = await running.outside.set_manifest(json.dumps(members).encode())
        text = "checking manifest: manifest contains the same certificate for users alice and bob"
        assert answer.message.startswith(text)
