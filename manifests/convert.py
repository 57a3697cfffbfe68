# SPDX-License-Identifier: Apache-2.0
"""Wire shape → domain values: decodes hex, base64, PEM, durations and addresses.

Every function takes the `Findings` that it reports to and returns something in any case: after an error the value is a
stand-in that nobody sees, since `parse` then raises. So one run finds all errors. Rules between members are check.py's.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

from manifests import model, wire
from manifests.address import Address, parse_address
from manifests.convert_access import config, gateways, roles, users
from manifests.convert_secret import secret
from manifests.duration import parse_duration
from manifests.places import Findings

_W = TypeVar("_W")
_D = TypeVar("_D")


def convert(document: wire.ManifestWire, raw: bytes, found: Findings) -> model.Manifest:
    """The domain value of `document`; only to be used if `found.errors` is still empty afterwards."""
    return model.Manifest(
        raw=raw,
        fingerprint=hashlib.sha256(raw).hexdigest(),
        packages=_each(document.packages, lambda name, value: _package(value, found, "Packages", name)),
        marbles=_each(document.marbles, lambda name, value: _marble(value, found, "Marbles", name)),
        tls=_each(document.tls, lambda name, value: _tls(value, found, "TLS", name)),
        secrets=_each(document.secrets, lambda name, value: secret(value, found, "Secrets", name)),
        users=users(document.users, found),
        roles=roles(document.roles, found),
        recovery_keys=MappingProxyType(dict(document.recovery_keys)),
        config=config(document.config, found),
        infrastructures=_each(
            document.infrastructures, lambda name, value: _infrastructure(value, found, "Infrastructures", name)
        ),
        mesh=_mesh(document.mesh, found),
    )


def _each(items: Mapping[str, _W], make: Callable[[str, _W], _D]) -> Mapping[str, _D]:
    return MappingProxyType({name: make(name, value) for name, value in items.items()})


def _measurement(text: str, size: int, found: Findings, *path: str | int) -> bytes | None:
    """`size` bytes in hex; None if absent. SGX identities are compared in any case, so hex digits may be of either."""
    if not text:
        return None
    try:
        value = binascii.unhexlify(text)
    except ValueError:  # binascii.Error, and text outside ASCII
        found.error(f"not hexadecimal: want {2 * size} hex digits", *path)
        return None
    if len(value) != size:
        found.error(f"wrong length: {len(value)} bytes, want {size} ({2 * size} hex digits)", *path)
    return value


def _package(value: wire.PackageWire, found: Findings, *at: str) -> model.Package:
    return model.Package(
        debug=value.debug,
        unique_id=_measurement(value.unique_id, 32, found, *at, "UniqueID"),
        signer_id=_measurement(value.signer_id, 32, found, *at, "SignerID"),
        product_id=value.product_id,
        security_version=value.security_version,
        accepted_tcb_statuses=tuple(value.accepted_tcb_statuses),
        accepted_advisories=tuple(value.accepted_advisories),
        tdx=None if value.tdx is None else _tdx(value.tdx, found, *at, "TDX"),
        snp=None if value.snp is None else _snp(value.snp, found, *at, "SNP"),
    )


def _tdx(value: wire.TdxWire, found: Findings, *at: str) -> model.TdxPackage:
    def register(text: str, name: str) -> bytes | None:
        return _measurement(text, 48, found, *at, name)

    return model.TdxPackage(
        mrtd=register(value.mrtd, "MRTD") or b"",
        rtmr0=register(value.rtmr0, "RTMR0"),
        rtmr1=register(value.rtmr1, "RTMR1"),
        rtmr2=register(value.rtmr2, "RTMR2"),
        rtmr3=register(value.rtmr3, "RTMR3"),
        mrconfigid=register(value.mrconfigid, "MRCONFIGID"),
        mrowner=register(value.mrowner, "MROWNER"),
        mrownerconfig=register(value.mrownerconfig, "MROWNERCONFIG"),
        mrseam=register(value.mrseam, "MRSEAM"),
    )


def _snp(value: wire.SnpWire, found: Findings, *at: str) -> model.SnpPackage:
    return model.SnpPackage(
        measurement=_measurement(value.measurement, 48, found, *at, "Measurement") or b"",
        host_data=_measurement(value.host_data, 32, found, *at, "HostData"),
        id_key_digest=_measurement(value.id_key_digest, 48, found, *at, "IDKeyDigest"),
        author_key_digest=_measurement(value.author_key_digest, 48, found, *at, "AuthorKeyDigest"),
        family_id=_measurement(value.family_id, 16, found, *at, "FamilyID"),
        image_id=_measurement(value.image_id, 16, found, *at, "ImageID"),
        guest_svn=value.guest_svn,
    )


def _marble(value: wire.MarbleWire, found: Findings, *at: str) -> model.Marble:
    parameters = value.parameters
    return model.Marble(
        package=value.package,
        max_activations=value.max_activations,
        parameters=model.Parameters(
            files=_each(parameters.files, lambda name, file: _file(file, found, *at, "Parameters", "Files", name)),
            env=_each(parameters.env, lambda name, file: _variable(file, found, *at, "Parameters", "Env", name)),
            argv=tuple(parameters.argv),
        ),
        tls=tuple(value.tls),
        disable_secret_binding=value.disable_secret_binding,
    )


def _file(value: wire.FileWire, found: Findings, *at: str) -> model.FileValue:
    data = b""
    with found.at(*at, "Data"):
        match value.encoding.lower():
            case "" | "string":
                data = value.data.encode()
            case "base64":
                data = _base64(value.data)
            case "hex":
                data = _hex(value.data)
            case _:
                found.error(f"unknown encoding type: {value.encoding}", *at, "Encoding")
    return model.FileValue(data, templated=not value.no_templates and b"{{" in data)


def _variable(value: wire.FileWire, found: Findings, *at: str) -> model.FileValue:
    result = _file(value, found, *at)
    if b"\0" in result.data:
        found.error(f"in Marble {at[1]}: env variable: {at[-1]}: content contains null bytes", *at)
    return result


def _hex(text: str) -> bytes:
    try:
        return binascii.unhexlify(text)
    except ValueError:
        raise ValueError("illegal hex data: want an even number of hex digits") from None


def _base64(text: str) -> bytes:
    # Line breaks are allowed, as in Go; other characters outside the alphabet are not.
    try:
        return base64.b64decode(text.replace("\r", "").replace("\n", ""), validate=True)
    except ValueError:
        raise ValueError("illegal base64 data: want the standard alphabet with padding") from None


def _tls(value: wire.TlsWire, found: Findings, *at: str) -> model.TlsTag:
    return model.TlsTag(
        incoming=tuple(
            model.Incoming(
                port=item.port,
                cert=item.cert,
                disable_client_auth=item.disable_client_auth,
                upstream=_address(item.upstream, found, *at, "Incoming", index, "Upstream"),
                peers=None if item.peers is None else tuple(item.peers),
                tls=_tls_options(item, found, *at, "Incoming", index),
            )
            for index, item in enumerate(value.incoming)
        ),
        outgoing=tuple(
            model.Outgoing(
                addr=item.addr,
                port=item.port,
                listen=_address(item.listen, found, *at, "Outgoing", index, "Listen"),
                peer=item.peer or None,
                tls=_tls_options(item, found, *at, "Outgoing", index),
            )
            for index, item in enumerate(value.outgoing)
        ),
    )


def _tls_options(
    item: wire.IncomingWire | wire.OutgoingWire, found: Findings, *at: str | int
) -> model.ConnectionOptions:
    with found.at(*at, "MinTLSVersion"):
        if item.min_tls not in ("", *model.TLS_VERSIONS):
            raise ValueError(f'TLS {item.min_tls[:20]!r} cannot be the oldest version: want "1.3" or "1.2"')
    for number, name in enumerate(item.alpn):
        with found.at(*at, "ALPN", number):
            _check_protocol(name)
    with found.at(*at, "ALPN"):
        if len(item.alpn) > model.MAX_PROTOCOLS or len(set(item.alpn)) < len(item.alpn):
            raise ValueError(f"want at most {model.MAX_PROTOCOLS} protocols, each once")
    return model.ConnectionOptions(min_tls="1.2" if item.min_tls == "1.2" else "1.3", alpn=tuple(item.alpn))


def _check_protocol(name: str) -> None:
    # RFC 7301 allows any 255 bytes; Envoy keeps the names as one text with commas between them.
    if not 0 < len(name) < 256 or any(not "!" <= character <= "~" or character == "," for character in name):
        raise ValueError(f"{name[:40]!r} is no protocol name: want 1 to 255 ASCII characters without blank and comma")


def _address(text: str, found: Findings, *at: str | int) -> Address | None:
    with found.at(*at):
        return parse_address(text) if text else None
    return None


def _infrastructure(value: wire.InfrastructureWire, found: Findings, *at: str) -> model.Infrastructure:
    return model.Infrastructure(
        cpusvn=_go_bytes(value.cpusvn, found, *at, "CPUSVN"),
        qesvn=value.qesvn,
        pcesvn=value.pcesvn,
        root_ca=_go_bytes(value.root_ca, found, *at, "RootCA"),
    )


def _go_bytes(value: object, found: Findings, *at: str) -> bytes:
    """Go decodes []byte from base64 or from an array of numbers."""
    with found.at(*at):
        if isinstance(value, str):
            return _base64(value)
        if isinstance(value, list) and all(type(byte) is int and 0 <= byte <= 255 for byte in value):
            return bytes(value)
        raise ValueError(f"want base64 or an array of numbers from 0 to 255, got {wire.json_kind(value)}")
    return b""


def _mesh(value: wire.MeshWire, found: Findings) -> model.Mesh:
    lifetime = model.DEFAULT_CERTIFICATE_LIFETIME
    if value.certificate_lifetime:
        with found.at("Mesh", "CertificateLifetime"):
            lifetime = parse_duration(value.certificate_lifetime)
            if not model.MIN_CERTIFICATE_LIFETIME <= lifetime <= model.MAX_CERTIFICATE_LIFETIME:
                raise ValueError(
                    f'certificate lifetime {value.certificate_lifetime} is out of range: want "1m" to "720h" (30 days)'
                )
    offline = None
    if value.offline_start:
        with found.at("Mesh", "OfflineStart"):
            offline = parse_duration(value.offline_start)
            if not model.MIN_OFFLINE_START <= offline <= model.MAX_OFFLINE_START:
                raise ValueError(f'offline start {value.offline_start} is out of range: want "1m" to "720h" (30 days)')
    return model.Mesh(certificate_lifetime=lifetime, offline_start=offline, gateways=gateways(value.gateways, found))
