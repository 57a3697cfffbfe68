# SPDX-License-Identifier: Apache-2.0
"""Wire shape → domain values for secrets and the certificates that they ask for (Go's x509.Certificate as JSON)."""

from __future__ import annotations

import ipaddress
import re
from datetime import datetime
from types import MappingProxyType

from manifests import model, wire
from manifests.places import Findings

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)


def secret(value: wire.SecretWire, found: Findings, *at: str) -> model.Secret:
    kind = next((kind for kind in model.SecretType if kind == value.type), None)
    if kind is None:
        found.error(f"unknown type: {value.type} for secret: {at[-1]}", *at, "Type")
    return model.Secret(
        type=kind or model.SecretType.PLAIN,
        size=value.size,
        shared=value.shared,
        user_defined=value.user_defined,
        valid_for=value.valid_for,
        cert=None if value.cert is None else _template(value.cert, found, *at, "Cert"),
    )


def _template(value: wire.CertWire, found: Findings, *at: str) -> model.CertificateTemplate:
    addresses: list[model.IpAddress] = []
    for index, text in enumerate(value.ip_addresses):
        try:
            # Go writes an absent address as "", and knows no zones (fe80::1%eth0) here.
            if text:
                addresses.append(ipaddress.ip_address(text.replace("%", " ")))
        except ValueError:
            found.error(f"invalid IP address: {text}", *at, "IPAddresses", index)
    return model.CertificateTemplate(
        subject=MappingProxyType(value.subject),
        dns_names=tuple(value.dns_names),
        ip_addresses=tuple(addresses),
        email_addresses=tuple(value.email_addresses),
        uris=tuple(MappingProxyType(uri) for uri in value.uris if uri is not None),
        not_after=not_after(value.not_after, found, *at, "NotAfter"),
        key_usage=value.key_usage,
        ext_key_usage=tuple(value.ext_key_usage),
        is_ca=value.is_ca,
        max_path_len=value.max_path_len,
        max_path_len_zero=value.max_path_len_zero,
        raw=MappingProxyType(value.model_dump(by_alias=True, exclude_unset=True)),
    )


def not_after(text: str, found: Findings, *at: str) -> datetime | None:
    """An RFC 3339 time; None for absent, and for Go's zero time (year 1), which Go writes for absent."""
    if not text:
        return None
    with found.at(*at):
        try:
            if not _RFC3339.fullmatch(text):
                raise ValueError
            when = datetime.fromisoformat(text.upper())
        except ValueError:
            raise ValueError(f"invalid time {text[:64]!r}: want RFC 3339, such as 2030-01-31T12:00:00Z") from None
        return None if is_zero_time(text) else when
    return None


def is_zero_time(text: str) -> bool:
    """Is this how Go writes a time that was never set?"""
    return text in ("", "0001-01-01T00:00:00Z")
