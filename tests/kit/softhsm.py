# SPDX-License-Identifier: Apache-2.0
"""A PKCS#11 token in software: SoftHSM with keys and certificates of users and of recovery.

SoftHSM reads its configuration when it is first loaded into a process, so a process of tests has one, with one token.
Where SoftHSM or GnuTLS is missing the tests that need them are skipped; with CI=true they fail instead.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.kit.users import User, recovery_key, user

MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
PIN, LABEL = "4321", "operator"


@dataclass(frozen=True, slots=True)
class SoftHsm:
    """The token of this process. Objects: `alice` (P-256) and `bob` (RSA), keys and certificates by that id and label;
    `recovery`, an RSA key; `stray`, a P-256 key without certificate; `twice`, two of them."""

    module: str
    serial: str
    slot: int

    def config(self, **changes: object) -> bytes:
        """The PKCS#11 config as JSON; a member that is None is left out."""
        members: dict[str, object] = {"Path": self.module, "Pin": PIN, "TokenLabel": LABEL}
        return json.dumps({name: value for name, value in (members | changes).items() if value is not None}).encode()


def users_on_token() -> dict[str, User]:
    return {"alice": user("alice"), "bob": user("bob", key="RSA")}


def softhsm() -> SoftHsm:
    """The token, made at the first call in this process."""
    problem = _missing()
    if problem is not None:
        if os.environ.get("CI") == "true":  # noqa: TID251 - the rule of scripts/system-packages
            pytest.fail(f"missing: {problem} (CI=true: this is a failure)")
        pytest.skip(f"needs {problem}")
    return _token()


def _missing() -> str | None:
    if shutil.which("softhsm2-util") is None or not any(Path(module).exists() for module in MODULES):
        return "softhsm2"
    try:
        ctypes.CDLL("libgnutls.so.30")
    except OSError:
        return "libgnutls30"
    try:
        import pkcs11  # noqa: F401
    except ImportError:
        return "python-pkcs11"
    return None


@cache
def _token() -> SoftHsm:
    import pkcs11

    directory = Path(tempfile.mkdtemp(prefix="softhsm-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    (directory / "tokens").mkdir()
    config = directory / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {directory}/tokens\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(config)  # noqa: TID251 - read by the module, in C
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", LABEL, "--pin", PIN, "--so-pin", "9876"],
        check=True,
        capture_output=True,
    )
    module = next(path for path in MODULES if Path(path).exists())
    token = pkcs11.lib(module).get_token(token_label=LABEL)
    with token.open(user_pin=PIN, rw=True) as session:
        for name, owner in users_on_token().items():
            _store_key(session, name, load_pem_private_key(owner.key, None))
            _store_certificate(session, name, owner.der)
        _store_key(session, "recovery", recovery_key())
        for name in ("stray", "twice", "twice"):
            _store_key(session, name, ec.generate_private_key(ec.SECP256R1()))
    return SoftHsm(module, token.serial.decode().strip("\0 "), token.slot.slot_id)


def _store_key(session: object, name: str, key: object) -> None:
    from pkcs11 import Attribute, KeyType, ObjectClass
    from pkcs11.util.ec import encode_named_curve_parameters

    common = {
        Attribute.CLASS: ObjectClass.PRIVATE_KEY,
        Attribute.TOKEN: True,
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.ID: name.encode(),
        Attribute.LABEL: name,
        Attribute.SIGN: True,
    }
    if isinstance(key, ec.EllipticCurvePrivateKey):
        value = key.private_numbers().private_value.to_bytes((key.key_size + 7) // 8)
        parameters = encode_named_curve_parameters("secp256r1")
        own = {Attribute.KEY_TYPE: KeyType.EC, Attribute.EC_PARAMS: parameters, Attribute.VALUE: value}
    else:
        assert isinstance(key, rsa.RSAPrivateKey)
        numbers = key.private_numbers()
        members = {
            Attribute.MODULUS: numbers.public_numbers.n,
            Attribute.PUBLIC_EXPONENT: numbers.public_numbers.e,
            Attribute.PRIVATE_EXPONENT: numbers.d,
            Attribute.PRIME_1: numbers.p,
            Attribute.PRIME_2: numbers.q,
            Attribute.EXPONENT_1: numbers.dmp1,
            Attribute.EXPONENT_2: numbers.dmq1,
            Attribute.COEFFICIENT: numbers.iqmp,
        }
        own = {name: number.to_bytes((number.bit_length() + 7) // 8) for name, number in members.items()}
        own |= {Attribute.KEY_TYPE: KeyType.RSA, Attribute.DECRYPT: True}
    session.create_object(common | own)  # type: ignore[attr-defined]


def _store_certificate(session: object, name: str, der: bytes) -> None:
    from pkcs11 import Attribute, CertificateType, ObjectClass
    from pkcs11.util.x509 import decode_x509_certificate

    subject = decode_x509_certificate(der)[Attribute.SUBJECT]
    session.create_object(  # type: ignore[attr-defined]
        {
            Attribute.CLASS: ObjectClass.CERTIFICATE,
            Attribute.CERTIFICATE_TYPE: CertificateType.X_509,
            Attribute.TOKEN: True,
            Attribute.SUBJECT: subject,
            Attribute.ID: name.encode(),
            Attribute.LABEL: name,
            Attribute.VALUE: der,
        }
    )
