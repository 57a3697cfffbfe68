# SPDX-License-Identifier: Apache-2.0
"""Fuzz target: the certificate request of a Marble that asks to be activated.

`python -m tests.fuzz.fuzz_csr` runs it under atheris, where that is installed; the unit tests run it over mutations.
"""

from __future__ import annotations

from ipaddress import ip_address

from cryptography import x509
from cryptography.x509.oid import NameOID

from sds.csr import CsrError, parse_csr
from sds.identity import is_reserved_name
from tests.fuzz.driver import run
from tests.kit.pki import csr

_NAMES = [x509.DNSName("a.example"), x509.DNSName("*.b.example"), x509.IPAddress(ip_address("::1"))]
_SUBJECT = x509.Name([x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"), x509.NameAttribute(NameOID.COMMON_NAME, "m")])
SEEDS = (csr(), csr(names=[]), csr(names=_NAMES, subject=_SUBJECT))


def fuzz_one(data: bytes) -> None:
    """Any bytes are refused with a CsrError, or become names that a certificate may carry."""
    try:
        request = parse_csr(data)
    except CsrError as e:
        if not str(e).startswith(("parsing CSR: ", "signature over CSR is invalid")):
            raise AssertionError(f"a text that no client knows: {e}") from e
        return
    if any(is_reserved_name(name) for name in request.dns_names):
        raise AssertionError("a reserved name got through")
    x509.SubjectAlternativeName([*map(x509.DNSName, request.dns_names), *map(x509.IPAddress, request.ip_addresses)])


if __name__ == "__main__":
    run(fuzz_one, SEEDS)
