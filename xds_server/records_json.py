# SPDX-License-Identifier: Apache-2.0
"""Records → MarbleRun's state: one JSON object, key → base64 of a value whose form the key decides.

    records_json.py   this way        records_read.py   and back        go_json.py   the entries that are Go structures

`Writer` keeps what the last manifest and CA look like, which change seldom, so that a commit encodes only what is new.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from manifests.model import Manifest
from sds.ca import CertificateAuthority
from sds.keys import PrivateKey
from xds_server import go_json
from xds_server.former_roots import NO_FORMER_ROOTS, FormerRoots
from xds_server.records import Records
from xds_server.store_errors import StoreError

# A manifest of 16 MiB, kept raw, as its entries and as a pending update, each in base64 of base64, stays below 100 MiB.
MAX_STATE = 128 * 1024 * 1024
# Ten thousand Marble types and a thousand secrets are 32 000 entries; the rest is for counters.
MAX_ENTRIES = 200_000

ROOT_CERT = "certificate:coordinatorRootCert"
INTERMEDIATE_CERT = "certificate:coordinatorIntermediateCert"
MARBLE_ROOT_CERT = "certificate:marbleRootCert"
ROOT_KEY = "privateKey:coordinatorRootKey"
INTERMEDIATE_KEY = "privateKey:coordinatorIntermediateKey"
# Not MarbleRun's, which ignores it; only there during a rotation of the Marble root and shortly after.
FORMER_ROOTS = "marblemesh:formerRoots"


@dataclass(slots=True)
class Writer:
    """Records → state JSON."""

    _ca: CertificateAuthority | None = None
    _ca_entries: Mapping[str, str] = field(default_factory=dict, repr=False)
    _manifest: Manifest | None = None
    _manifest_entries: Mapping[str, str] = field(default_factory=dict, repr=False)

    def write(self, records: Records, manifest: Manifest | None) -> bytes:
        """`manifest` is the parsed form of `records.manifest`, None if that is empty. Raises StoreError if these
        records could not be read again, because they have grown too large."""
        if records.ca is not self._ca:
            self._ca, self._ca_entries = records.ca, _encoded(_ca_entries(records.ca))
        if manifest is not self._manifest:
            self._manifest = manifest
            own: Iterable[tuple[str, bytes]] = () if manifest is None else _manifest_entries(manifest)
            self._manifest_entries = _encoded(own)
        state = {**self._ca_entries, **self._manifest_entries, **_encoded(_entries(records, manifest))}
        data = json.dumps(state, separators=(",", ":")).encode("ascii")
        if len(state) > MAX_ENTRIES or len(data) > MAX_STATE:
            raise StoreError(
                f"the state has {len(state)} entries and {len(data)} bytes, at most {MAX_ENTRIES} and {MAX_STATE}"
                " can be stored"
            )
        return data


def _encoded(entries: Iterable[tuple[str, bytes]]) -> dict[str, str]:
    return {key: go_json.base64_text(value) for key, value in entries}


def _ca_entries(ca: CertificateAuthority) -> Iterator[tuple[str, bytes]]:
    yield ROOT_CERT, ca.root.public_bytes(Encoding.DER)
    yield INTERMEDIATE_CERT, ca.intermediate.public_bytes(Encoding.DER)
    yield MARBLE_ROOT_CERT, ca.marble_root.public_bytes(Encoding.DER)
    yield ROOT_KEY, _sec1(ca.root_key)
    yield INTERMEDIATE_KEY, _sec1(ca.intermediate_key)


def _manifest_entries(manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    yield "manifest", manifest.raw
    for key, value in go_json.manifest_entries(manifest):
        yield key, _json(value)


def _entries(records: Records, manifest: Manifest | None) -> Iterator[tuple[str, bytes]]:
    yield "state", b"%d" % records.state
    yield "rootSecret", records.root_secret
    yield "previousRootSecret", records.previous_root_secret
    yield "manifestSignature", records.manifest_signature
    yield "updateLog", "\n".join(records.update_log).encode()
    for name, package in manifest.packages.items() if manifest else ():
        version = records.security_versions.get(name, package.security_version)
        yield f"package:{name}", _json(go_json.package(package, version))
    for name, secret in records.secrets.items():
        yield f"secret:{name}", _json(go_json.secret(secret))
    for name, secret in records.previous_secrets.items():
        yield f"previousSecret:{name}", _json(go_json.secret(secret))
    for name, count in records.activations.items():
        yield f"activations:{name}", b"%x" % count
    for name, counter in records.counters.items():
        yield f"monotonicCounter:{name}", struct.pack("<Q", counter)
    if records.former != NO_FORMER_ROOTS:
        yield FORMER_ROOTS, _json(_former_roots(records.former))
    if (pending := records.pending_update) is not None:
        yield (
            "pendingUpdate",
            _json(
                {
                    "manifestRaw": go_json.base64_text(pending.raw),
                    "requiredUsers": dict(pending.acknowledged),
                    "missingAcknowledgments": pending.missing,
                }
            ),
        )


def _former_roots(former: FormerRoots) -> go_json.Json:
    return {
        "Issuers": [
            {
                "Intermediate": _der(ca.intermediate),
                "MarbleRoot": _der(ca.marble_root),
                "PrivateKey": go_json.base64_text(_sec1(ca.intermediate_key)),
            }
            for ca in former.issuers
        ],
        "Departed": [{"MarbleRoot": _der(root), "Until": until.isoformat()} for root, until in former.departed],
        "Revoked": [{"Type": marble_type, "UUID": uuid} for marble_type, uuid in former.revoked],
    }


def _der(certificate: x509.Certificate) -> str:
    return go_json.base64_text(certificate.public_bytes(Encoding.DER))


def _json(value: go_json.Json) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _sec1(key: PrivateKey) -> bytes:
    loaded = key.load()
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise StoreError("the CA's keys are not elliptic-curve keys, no other kind can be stored")
    return loaded.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
