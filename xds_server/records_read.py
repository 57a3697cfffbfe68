# SPDX-License-Identifier: Apache-2.0
"""MarbleRun's state → records. Takes any bytes: whoever brings a key to the sealed file can also have written it.

The raw manifest is the truth about packages, Marbles, TLS tags and users; of their own entries only a raised
SecurityVersion is read. Keys that are not known are left out, and named to the caller for the log, so that the state of
a newer MarbleRun can be used.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key

from manifests.errors import ManifestError, ManifestSyntaxError
from manifests.model import Manifest
from manifests.parse import parse
from sds.ca import CertificateAuthority
from sds.keys import PrivateKey
from sds.secrets import Secret, SecretKind
from xds_server.former_roots import NO_FORMER_ROOTS, FormerRoots
from xds_server.records import PendingUpdate, Records
from xds_server.records_json import (
    FORMER_ROOTS,
    INTERMEDIATE_CERT,
    INTERMEDIATE_KEY,
    MARBLE_ROOT_CERT,
    MAX_ENTRIES,
    MAX_STATE,
    ROOT_CERT,
    ROOT_KEY,
)
from xds_server.revocation import MAX_REVOKED_INSTANCES, Instance
from xds_server.rotation import MAX_DEPARTED, MAX_ROOTS, Departed
from xds_server.state import State
from xds_server.store_errors import StoreDamaged

_MAX_ENTRY_VALUES = 100_000  # bounds the memory of one entry's JSON; a Marble with as many files is refused elsewhere
_MAX_UINT64 = 2**64 - 1
_MAX_DIGITS = 20

_KNOWN = frozenset(
    {
        "state",
        "rootSecret",
        "previousRootSecret",
        "manifest",
        "manifestSignature",
        "updateLog",
        "pendingUpdate",
        FORMER_ROOTS,
        *(ROOT_CERT, INTERMEDIATE_CERT, MARBLE_ROOT_CERT, ROOT_KEY, INTERMEDIATE_KEY),
    }
)
_KINDS = (
    *("package", "infrastructure", "marble", "TLS", "user"),
    *("secret", "previousSecret", "activations", "monotonicCounter"),
)

# Of JSON, base64 and numbers; then what the cryptography library raises for certificates and keys that it cannot read.
_UNREADABLE = (
    *(ValueError, TypeError, KeyError, AttributeError, OverflowError),
    *(UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType),
)

_A = TypeVar("_A")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ReadState:
    """`manifest` is the parsed one of `records` (None if there is none yet); `unknown`: keys that were left out."""

    records: Records
    manifest: Manifest | None
    unknown: tuple[str, ...]


def read_records(data: bytes) -> ReadState:
    """State JSON → records; raises StoreDamaged naming the key that is wrong."""
    values = _load_state(data)
    ca = _read_ca(values)
    root_secret = values.get("rootSecret") or _scalar(ca.root_key)
    raw = values.get("manifest", b"")
    manifest = _read_manifest(raw) if raw else None
    named = _by_kind(values)
    pending = values.get("pendingUpdate")
    records = Records(
        state=_read("state", _state, values.get("state", b"")),
        ca=ca,
        root_secret=root_secret,
        previous_root_secret=values.get("previousRootSecret") or root_secret,
        manifest=raw,
        manifest_signature=values.get("manifestSignature", b""),
        security_versions=MappingProxyType(_raised(named["package"], manifest)),
        secrets=_each(named, "secret", _secret),
        previous_secrets=_each(named, "previousSecret", _secret),
        activations=_each(named, "activations", _hex_number),
        counters=_each(named, "monotonicCounter", _counter),
        update_log=_read("updateLog", _lines, values.get("updateLog", b"")),
        pending_update=None if pending is None else _read("pendingUpdate", _pending, pending),
        former=_former_roots(values[FORMER_ROOTS], ca) if FORMER_ROOTS in values else NO_FORMER_ROOTS,
    )
    if records.state is State.ACCEPTING_MARBLES and manifest is None:
        raise StoreDamaged("sealed state: state says that a manifest is set, but there is none")
    unknown = sorted(key for key in values if key not in _KNOWN and key.partition(":")[0] not in _KINDS)
    return ReadState(records, manifest, tuple(unknown))


def _load_state(data: bytes) -> dict[str, bytes]:
    if len(data) > MAX_STATE:
        raise StoreDamaged(f"sealed state has {len(data)} bytes, at most {MAX_STATE} are expected")
    return {key: _read(key, _base64, value) for key, value in _object("it", data, MAX_ENTRIES).items()}


def _object(what: str, data: bytes, limit: int) -> dict[str, object]:
    # Every value but the first follows one of these bytes: an upper bound that costs no parsing.
    if data.count(b",") + data.count(b"[") + data.count(b"{") > limit:
        raise StoreDamaged(f"sealed state: {what} has more than {limit} values")
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise StoreDamaged(f"sealed state: {what} is no JSON object")
    return value


def _read(key: str, read: Callable[[_A], _T], value: _A) -> _T:
    """Every way in which a value can be wrong, with its key. The value, and what a parser says of it, may be secret."""
    try:
        return read(value)
    except _UNREADABLE:
        raise StoreDamaged(f"sealed state: {key[:80]!a} does not hold what belongs there") from None


def _by_kind(values: Mapping[str, bytes]) -> dict[str, dict[str, bytes]]:
    """The entries of each kind, by the name after the first colon (counter ids have more of them)."""
    result: dict[str, dict[str, bytes]] = {kind: {} for kind in _KINDS}
    for key, value in values.items():
        kind, colon, name = key.partition(":")
        if colon and kind in result:
            result[kind][name] = value
    return result


def _each(named: Mapping[str, Mapping[str, bytes]], kind: str, read: Callable[[bytes], _T]) -> Mapping[str, _T]:
    return MappingProxyType({name: _read(f"{kind}:{name}", read, value) for name, value in named[kind].items()})


# --- the forms of values; each raises ValueError, TypeError or KeyError


def _base64(value: object) -> bytes:
    if value is None:  # Go's nil []byte
        return b""
    if not isinstance(value, str):
        raise TypeError
    return base64.b64decode(value, validate=True)


def _number(value: bytes, base: int) -> int:
    text = value.decode("ascii")
    if not text.isalnum() or len(text) > _MAX_DIGITS:
        raise ValueError
    return _uint(int(text, base))


def _state(value: bytes) -> State:
    return State(_number(value, 10))


def _hex_number(value: bytes) -> int:
    return _number(value, 16)


def _counter(value: bytes) -> int:
    if len(value) != 8:
        raise ValueError
    return int.from_bytes(value, "little")


def _lines(value: bytes) -> tuple[str, ...]:
    return tuple(line for line in value.decode("utf-8").split("\n") if line)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _uint(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_UINT64:
        raise ValueError
    return value


def _list(value: object, limit: int) -> list[Mapping[str, object]]:
    if not isinstance(value, list) or len(value) > limit or not all(isinstance(item, dict) for item in value):
        raise TypeError
    return value


def _time(value: object) -> datetime:
    time = datetime.fromisoformat(_text(value))
    if time.tzinfo is None:
        raise ValueError
    return time


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise TypeError
    return value


def _secret(value: bytes) -> Secret:
    members = _object("a secret", value, _MAX_ENTRY_VALUES)
    return Secret(
        kind=SecretKind(_text(members["Type"])),
        size=_uint(members.get("Size", 0)),
        shared=_flag(members.get("Shared", False)),
        user_defined=_flag(members.get("UserDefined", False)),
        valid_for=_uint(members.get("ValidFor", 0)),
        certificate=_base64(members.get("Cert")) or None,
        private=_base64(members.get("Private")),
        public=_base64(members.get("Public")),
    )


def _pending(value: bytes) -> PendingUpdate:
    members = _object("the pending update", value, _MAX_ENTRY_VALUES)
    users = members["requiredUsers"]
    if not isinstance(users, dict):
        raise TypeError
    return PendingUpdate(
        raw=_base64(members["manifestRaw"]),
        acknowledged=MappingProxyType({_text(name): _flag(done) for name, done in users.items()}),
        missing=_uint(members["missingAcknowledgments"]),
    )


def _security_version(value: bytes) -> int:
    version = _object("a package", value, _MAX_ENTRY_VALUES).get("SecurityVersion")
    return 0 if version is None else _uint(version)


# --- what several entries make together


def _read_manifest(raw: bytes) -> Manifest:
    try:
        return parse(raw)
    except (ManifestError, ManifestSyntaxError) as e:
        raise StoreDamaged(f"sealed state: this version does not accept its manifest: {e}") from e


def _raised(packages: Mapping[str, bytes], manifest: Manifest | None) -> dict[str, int]:
    """Security versions above the manifest's. A lower one is ignored: nothing lowers them."""
    result: dict[str, int] = {}
    for name, package in manifest.packages.items() if manifest else ():
        if name in packages and package.security_version is not None:
            version = _read(f"package:{name}", _security_version, packages[name])
            if version > package.security_version:
                result[name] = version
    return result


def _read_ca(values: Mapping[str, bytes]) -> CertificateAuthority:
    root, intermediate, marble_root = (
        _read(key, _load_certificate, values.get(key, b"")) for key in (ROOT_CERT, INTERMEDIATE_CERT, MARBLE_ROOT_CERT)
    )
    return CertificateAuthority(
        root=root,
        intermediate=intermediate,
        marble_root=marble_root,
        root_key=_private_key(values, ROOT_KEY, root),
        intermediate_key=_private_key(values, INTERMEDIATE_KEY, intermediate, marble_root),
    )


def _private_key(values: Mapping[str, bytes], key: str, *certificates: x509.Certificate) -> PrivateKey:
    loaded = _read(key, _load_key, values.get(key, b""))
    if any(_read(key, x509.Certificate.public_key, one) != loaded.public_key() for one in certificates):
        raise StoreDamaged(f"sealed state: {key} does not belong to the certificate")
    return _pkcs8(loaded)


def _former_roots(value: bytes, ca: CertificateAuthority) -> FormerRoots:
    members = _object(FORMER_ROOTS, value, _MAX_ENTRY_VALUES)
    return FormerRoots(
        issuers=_read(FORMER_ROOTS, _issuers, (members, ca)),
        departed=_read(FORMER_ROOTS, _departed, members),
        revoked=_read(FORMER_ROOTS, _revoked, members),
    )


def _issuers(of: tuple[Mapping[str, object], CertificateAuthority]) -> tuple[CertificateAuthority, ...]:
    members, ca = of
    return tuple(_issuer(item, ca) for item in _list(members["Issuers"], MAX_ROOTS))


def _issuer(item: Mapping[str, object], ca: CertificateAuthority) -> CertificateAuthority:
    key = _load_key(_base64(item["PrivateKey"]))
    intermediate, marble_root = (_load_certificate(_base64(item[name])) for name in ("Intermediate", "MarbleRoot"))
    if not key.public_key() == intermediate.public_key() == marble_root.public_key():
        raise ValueError
    return replace(ca, intermediate=intermediate, marble_root=marble_root, intermediate_key=_pkcs8(key))


def _departed(members: Mapping[str, object]) -> tuple[Departed, ...]:
    found = _list(members["Departed"], MAX_DEPARTED)
    return tuple((_load_certificate(_base64(item["MarbleRoot"])), _time(item["Until"])) for item in found)


def _revoked(members: Mapping[str, object]) -> tuple[Instance, ...]:
    found = _list(members["Revoked"], MAX_REVOKED_INSTANCES)
    return tuple((_text(item["Type"]), _text(item["UUID"])) for item in found)


def _load_certificate(der: bytes) -> x509.Certificate:
    certificate = x509.load_der_x509_certificate(der)
    # The library reads these only when asked, and a broken one would raise in the middle of something else.
    _ = (certificate.subject, certificate.issuer, certificate.public_key(), certificate.extensions)
    _ = (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    return certificate


def _pkcs8(key: ec.EllipticCurvePrivateKey) -> PrivateKey:
    return PrivateKey(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _load_key(der: bytes) -> ec.EllipticCurvePrivateKey:
    loaded = load_der_private_key(der, None)
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise TypeError
    return loaded


def _scalar(key: PrivateKey) -> bytes:
    """The root secret of states from before there was one: the root key's scalar, 48 bytes for P-384."""
    loaded = key.load()
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):  # _load_key has checked
        raise StoreDamaged(f"sealed state: {ROOT_KEY} is no elliptic-curve key")
    return loaded.private_numbers().private_value.to_bytes((loaded.key_size + 7) // 8)
