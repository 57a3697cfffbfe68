# SPDX-License-Identifier: Apache-2.0
"""A manifest's `Cert` object as the certificate template that the CA understands. Pure.

The manifest writes Go's `x509.Certificate` as JSON. What has an effect is read here; Issuer, SerialNumber, NotBefore
and BasicConstraintsValid have none, as in MarbleRun, and neither have the members that Go fills when it parses.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.x509.oid import NameOID

from manifests.model import CertificateTemplate, Gateway, Manifest, Secret
from sds.identity import uri_names
from sds.secret_certificates import SecretError
from sds.secret_template import SecretTemplate

# The order in which Go writes the parts of a name.
_NAME_LISTS = (
    ("Country", NameOID.COUNTRY_NAME),
    ("Organization", NameOID.ORGANIZATION_NAME),
    ("OrganizationalUnit", NameOID.ORGANIZATIONAL_UNIT_NAME),
    ("Locality", NameOID.LOCALITY_NAME),
    ("Province", NameOID.STATE_OR_PROVINCE_NAME),
    ("StreetAddress", NameOID.STREET_ADDRESS),
    ("PostalCode", NameOID.POSTAL_CODE),
)
_NAME_TEXTS = (("CommonName", NameOID.COMMON_NAME), ("SerialNumber", NameOID.SERIAL_NUMBER))


def template_of(secret: Secret, manifest: Manifest) -> SecretTemplate:
    """What `secret` asks for. Raises SecretError, naming the member."""
    cert = secret.cert or CertificateTemplate()
    raw = _folded(cert.raw)
    gateways = [uri for gateway in manifest.mesh.gateways.values() for uri in _gateway_uris(gateway)]
    uris = tuple(_uri(value) for value in cert.uris)
    if taken := set(uris) & set(gateways):
        raise SecretError(f"URIs: {min(taken)[:80]!r} is the name of a gateway")
    return SecretTemplate(
        subject=_name(_folded(cert.subject)),
        dns_names=cert.dns_names,
        ip_addresses=cert.ip_addresses,
        email_addresses=cert.email_addresses,
        uris=uris,
        not_after=cert.not_after,
        valid_for=secret.valid_for,
        key_usage=cert.key_usage,
        ext_key_usage=cert.ext_key_usage,
        unknown_ext_key_usage=tuple(_oids(raw, "UnknownExtKeyUsage")),
        is_ca=cert.is_ca,
        max_path_len=_max_path_len(cert),
        permitted=tuple(_constraints(raw, "Permitted")),
        # A CA among the secrets must not issue a gateway's name: ports that admit the gateway know it by that.
        excluded=(*_constraints(raw, "Excluded"), *(_hosts(gateways) if cert.is_ca else ())),
        constraints_critical=raw.get("permitteddnsdomainscritical") is True,
        crl_distribution_points=tuple(_texts(raw, "CRLDistributionPoints")),
        ocsp_servers=tuple(_texts(raw, "OCSPServer")),
        issuing_certificate_urls=tuple(_texts(raw, "IssuingCertificateURL")),
        policy_identifiers=tuple(_oids(raw, "PolicyIdentifiers")),
        signature_algorithm=_integer(raw, "SignatureAlgorithm"),
    )


def _folded(members: Mapping[str, object]) -> dict[str, object]:
    return {name.lower(): value for name, value in members.items()}


def _gateway_uris(gateway: Gateway) -> list[str]:
    return uri_names(gateway.certificate)


def _hosts(uris: list[str]) -> Iterator[x509.GeneralName]:
    for host in sorted({urlsplit(uri).hostname or "" for uri in uris} - {""}):
        yield x509.UniformResourceIdentifier(host)


def _max_path_len(cert: CertificateTemplate) -> int | None:
    # Go: 0 counts only if MaxPathLenZero says that it is meant, and -1 is "unset".
    if cert.max_path_len > 0 or (cert.max_path_len == 0 and cert.max_path_len_zero):
        return cert.max_path_len
    return None


def _name(members: Mapping[str, object]) -> x509.Name:
    attributes = []
    try:
        for member, oid in _NAME_LISTS:
            attributes += [x509.NameAttribute(oid, text) for text in _texts(members, member, "Subject.")]
        for member, oid in _NAME_TEXTS:
            if text := _text(members, member, "Subject."):
                attributes.append(x509.NameAttribute(oid, text))
    except ValueError as e:
        raise SecretError(f"Subject: {e}") from None
    return x509.Name(attributes)


def _uri(value: Mapping[str, object]) -> str:
    """Go's `url.URL` put together again. User information is not part of its JSON."""
    url = _folded(value)
    scheme, opaque, host = (_text(url, name, "URIs.") for name in ("Scheme", "Opaque", "Host"))
    path = _text(url, "RawPath", "URIs.") or _text(url, "Path", "URIs.")
    text = f"{scheme}:" if scheme else ""
    if opaque:
        text += opaque
    else:
        text += f"//{host}" if host or (scheme and path) else ""
        text += f"/{path}" if path and not path.startswith("/") and host else path
    query, fragment = _text(url, "RawQuery", "URIs."), _text(url, "Fragment", "URIs.")
    return text + (f"?{query}" if query else "") + (f"#{fragment}" if fragment else "")


def _constraints(raw: Mapping[str, object], which: str) -> Iterator[x509.GeneralName]:
    try:
        for name in _texts(raw, f"{which}DNSDomains"):
            yield x509.DNSName(name)
        for network in _networks(raw, f"{which}IPRanges"):
            yield x509.IPAddress(network)
        for address in _texts(raw, f"{which}EmailAddresses"):
            yield x509.RFC822Name(address)
        for domain in _texts(raw, f"{which}URIDomains"):
            yield x509.UniformResourceIdentifier(domain)
    except ValueError as e:
        raise SecretError(f"name constraints: {e}") from None


def _networks(raw: Mapping[str, object], member: str) -> Iterator[IPv4Network | IPv6Network]:
    """Go's `net.IPNet`: an address as text, and its mask as base64."""
    for value in _list(raw, member, ""):
        if value is None:
            continue
        network = _folded(value) if isinstance(value, Mapping) else {}
        try:
            mask = base64.b64decode(_text(network, "Mask", f"{member}."), validate=True)
            ones = int.from_bytes(mask).bit_count()
            if int.from_bytes(mask) != ((1 << ones) - 1) << (8 * len(mask) - ones):
                raise ValueError("mask has holes")
            yield ip_network(f"{_text(network, 'IP', f'{member}.')}/{ones}", strict=False)
        except (ValueError, binascii.Error) as e:
            raise SecretError(f"{member}: {e}") from None


def _list(members: Mapping[str, object], name: str, at: str) -> list[object]:
    value = members.get(name.lower())
    if value is None:
        return []
    if not isinstance(value, list):
        raise SecretError(f"{at}{name}: want an array")
    return value


def _texts(members: Mapping[str, object], name: str, at: str = "") -> Iterator[str]:
    for value in _list(members, name, at):
        if not isinstance(value, str):
            raise SecretError(f"{at}{name}: want an array of strings")
        yield value


def _text(members: Mapping[str, object], name: str, at: str) -> str:
    value = members.get(name.lower())
    if value is not None and not isinstance(value, str):
        raise SecretError(f"{at}{name}: want a string")
    return value or ""


def _integer(members: Mapping[str, object], name: str) -> int:
    value = members.get(name.lower())
    if value is not None and type(value) is not int:
        raise SecretError(f"{name}: want an integer")
    return value or 0


def _oids(members: Mapping[str, object], name: str) -> Iterator[x509.ObjectIdentifier]:
    """Go's `asn1.ObjectIdentifier`: an array of arrays of numbers."""
    for value in _list(members, name, ""):
        if not isinstance(value, list) or not all(type(arc) is int for arc in value):
            raise SecretError(f"{name}: want arrays of numbers")
        try:
            yield x509.ObjectIdentifier(".".join(str(arc) for arc in value))
        except ValueError as e:
            raise SecretError(f"{name}: {e}") from None
