# SPDX-License-Identifier: Apache-2.0
"""Certificates among the secrets: what a manifest may ask for with `Cert` and `ValidFor`, and what comes of it.

The manifest is set by curl, a Marble gets the certificates, OpenSSL says what is in them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from tests.kit.coordinator import Bench, manifest
from tests.kit.marble_deployment import MarbleDeployment, deployed, owned, waiting, web
from tests.kit.openssl_judge import extension, verifies, x509
from tests.kit.users import user

pytestmark = pytest.mark.asyncio(loop_scope="module")

ECDSA: dict[str, object] = {"Type": "cert-ecdsa", "Size": 256}
ALICE = user("alice")
HTTPS = {"Scheme": "https", "Host": "h.example", "Path": "/p", "RawQuery": "q=1"}
CERTS: dict[str, Mapping[str, object]] = {
    "default": {},
    "null": {"DNSNames": None, "IPAddresses": None, "Subject": None, "URIs": None, "ExtKeyUsage": None},
    "one name": {"DNSNames": ["a.example"]},
    "two names": {"DNSNames": ["a.example", "b.example"]},
    "own name": {"Subject": {"CommonName": "cn"}, "DNSNames": ["a.example"]},
    "subject": {
        "Subject": {
            "CommonName": "cn",
            "SerialNumber": "7",
            "Country": ["DE"],
            "Organization": ["o1", "o2"],
            "OrganizationalUnit": ["ou"],
            "Locality": ["l"],
            "Province": ["p"],
            "StreetAddress": ["s"],
            "PostalCode": ["10115"],
        }
    },
    "addresses": {"IPAddresses": ["10.0.0.1", "fd00::7"]},
    "other names": {"EmailAddresses": ["a@example.com"], "URIs": [HTTPS]},
    "end": {"NotAfter": "2099-01-02T03:04:05Z"},
    "end elsewhere": {"NotAfter": "2099-01-02T03:04:05+02:00"},
    "CA": {"IsCA": True},
    "CA without intermediates": {"IsCA": True, "MaxPathLen": 0, "MaxPathLenZero": True},
    "CA with 3": {"IsCA": True, "MaxPathLen": 3},
    "CA with 0 that is not meant": {"IsCA": True, "MaxPathLen": 0},
    "constrained CA": {
        "IsCA": True,
        "PermittedDNSDomains": ["example"],
        "ExcludedDNSDomains": ["no.example"],
        "PermittedIPRanges": [{"IP": "10.0.0.0", "Mask": "/wAAAA=="}],
        "ExcludedEmailAddresses": ["example.org"],
        "PermittedURIDomains": [".example.net"],
    },
    "references": {
        "CRLDistributionPoints": ["http://crl.example/"],
        "OCSPServer": ["http://ocsp.example/"],
        "IssuingCertificateURL": ["http://ca.example/"],
        "PolicyIdentifiers": [[1, 2, 3], [2, 23, 140, 1, 2, 1]],
    },
    "other usage": {"UnknownExtKeyUsage": [[1, 2, 3, 4]]},
    "no effect": {
        "Issuer": {"CommonName": "somebody"},
        "SerialNumber": 7,
        "NotBefore": "2001-01-01T00:00:00Z",
        "BasicConstraintsValid": False,
        "Version": 1,
        "Raw": "QUJD",
    },
    "SHA-256": {"SignatureAlgorithm": 10},
    "SHA-384": {"SignatureAlgorithm": 11},
    "SHA-512": {"SignatureAlgorithm": 12},
    "SHA-384 by 0": {"SignatureAlgorithm": 0},
}
USAGES = {
    1: "Digital Signature",
    2: "Non Repudiation",
    4: "Key Encipherment",
    8: "Data Encipherment",
    16: "Key Agreement",
    32: "Certificate Sign",
    64: "CRL Sign",
    16 + 128: "Key Agreement, Encipher Only",
    16 + 256: "Key Agreement, Decipher Only",
    1 + 4: "Digital Signature, Key Encipherment",
}
EXTENDED = {
    0: "Any Extended Key Usage",
    1: "TLS Web Server Authentication",
    2: "TLS Web Client Authentication",
    3: "Code Signing",
    4: "E-mail Protection",
    5: "IPSec End System",
    6: "IPSec Tunnel",
    7: "IPSec User",
    8: "Time Stamping",
    9: "OCSP Signing",
}
CERTS |= {f"usage {bits}": {"KeyUsage": bits} for bits in USAGES}
CERTS |= {f"extended {number}": {"ExtKeyUsage": [number]} for number in EXTENDED}
CERTS |= {"all extended": {"ExtKeyUsage": list(EXTENDED)}}


@dataclass(frozen=True)
class Made:
    """The certificates by name, PEM; and when they were asked for."""

    pem: Mapping[str, bytes]
    root: bytes
    now: datetime

    def line(self, name: str, extension_name: str) -> str:
        """What an extension says, without its heading; several lines in one."""
        return ", ".join(extension(self.pem[name], extension_name).splitlines()[1:])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Made]:
    secrets = {name: ECDSA | {"Shared": True, "Cert": cert} for name, cert in CERTS.items()}
    secrets |= {"no Cert": ECDSA, "null Cert": ECDSA | {"Cert": None}, "7 days": ECDSA | {"ValidFor": 7}}
    secrets |= {"for ever": ECDSA | {"ValidFor": 2**62}}
    env = {name: f'{{{{ pem (index .Secrets "{name}").Cert }}}}' for name in secrets}
    async with deployed(Bench.make(machine), tmp_path_factory.mktemp("made")) as town:
        await town.set_manifest(manifest(Secrets=secrets, Marbles=web(Env=env)))
        yield Made((await town.activate()).env, town.marble_root, town.bench.clock().replace(microsecond=0))


def end(pem: bytes) -> datetime:
    return datetime.strptime(x509(pem, "-enddate"), "notAfter=%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC)


def start(pem: bytes) -> datetime:
    return datetime.strptime(x509(pem, "-startdate"), "notBefore=%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC)


def subject(pem: bytes) -> list[str]:
    return x509(pem, "-subject", "-nameopt", "sep_multiline,sname").splitlines()[1:]


# --- defaults


DEFAULTS = ["default", "no Cert", "null Cert", "null"]


@pytest.mark.parametrize("name", DEFAULTS)
async def test_the_default_names_are_localhost_and_loopback(made: Made, name: str) -> None:
    names = "DNS:localhost, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1"
    assert made.line(name, "subjectAltName") == names
    assert subject(made.pem[name]) == ["CN=localhost"]


@pytest.mark.parametrize("name", DEFAULTS)
async def test_the_default_extended_usage_is_server_and_client(made: Made, name: str) -> None:
    usages = "TLS Web Server Authentication, TLS Web Client Authentication"
    assert made.line(name, "extendedKeyUsage") == usages


async def test_the_default_usage_is_digital_signature_and_for_a_ca_certificate_sign(made: Made) -> None:
    """MarbleRun gives both to all; strict verifiers refuse the second on a certificate that is no CA."""
    assert made.line("default", "keyUsage") == "Digital Signature"
    assert made.line("CA", "keyUsage") == "Digital Signature, Certificate Sign"
    assert verifies(made.pem["default"], made.root, "-x509_strict")


async def test_the_default_is_no_ca(made: Made) -> None:
    assert extension(made.pem["default"], "basicConstraints").endswith("CA:FALSE")


async def test_the_common_name_is_the_only_dns_name(made: Made) -> None:
    assert subject(made.pem["one name"]) == ["CN=a.example"]


async def test_with_several_dns_names_it_is_a_general_one(made: Made) -> None:
    assert subject(made.pem["two names"]) == ["CN=MarbleRun Generated Certificate"]


async def test_a_given_common_name_stays(made: Made) -> None:
    assert subject(made.pem["own name"]) == ["CN=cn"]


async def test_serial_numbers_are_random_with_at_most_128_bits(made: Made) -> None:
    serials = {int(x509(made.pem[name], "-serial").removeprefix("serial="), 16) for name in DEFAULTS}
    assert len(serials) == len(DEFAULTS)
    assert all(0 < serial < 2**128 for serial in serials)


# --- validity


async def test_a_certificate_begins_now(made: Made) -> None:
    assert start(made.pem["default"]) == made.now


async def test_without_a_validity_it_lives_365_days(made: Made) -> None:
    assert end(made.pem["default"]) == made.now + timedelta(days=365)


async def test_valid_for_counts_days(made: Made) -> None:
    assert end(made.pem["7 days"]) == made.now + timedelta(days=7)


async def test_an_end_is_taken_as_it_is(made: Made) -> None:
    assert end(made.pem["end"]) == datetime(2099, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert end(made.pem["end elsewhere"]) == datetime(2099, 1, 2, 1, 4, 5, tzinfo=UTC)


async def test_no_certificate_outlives_its_issuer(made: Made) -> None:
    """To the day, which is what ValidFor counts."""
    assert timedelta(0) <= end(made.root) - end(made.pem["for ever"]) < timedelta(days=1)


async def test_a_certificate_of_a_marble_counts_from_each_activation(machine: Path, tmp_path: Path) -> None:
    bench = Bench.make(machine)
    env = {"c": "{{ pem .Secrets.c.Cert }}"}
    async with deployed(bench, tmp_path) as town:
        await town.set_manifest(manifest(Secrets={"c": ECDSA | {"ValidFor": 7}}, Marbles=web(Env=env)))
        for hours in (0, 1):
            bench.clock.forward(timedelta(hours=hours))
            pem = (await town.activate()).env["c"]
            assert end(pem) == bench.clock().replace(microsecond=0) + timedelta(days=7)


@pytest.mark.parametrize("update", ["package", "whole"])
async def test_a_shared_certificate_keeps_its_end_in_a_package_update_and_begins_anew_in_a_whole_one(
    machine: Path, tmp_path: Path, update: str
) -> None:
    bench = Bench.make(machine)
    members: dict[str, object] = {
        "Secrets": {"c": ECDSA | {"Shared": True, "ValidFor": 7}},
        "Marbles": web(Env={"c": "{{ pem .Secrets.c.Cert }}"}),
    }
    raw = {
        "package": b'{"Packages":{"app":{"SecurityVersion":3}}}',
        "whole": owned(**members, Config={"FeatureGates": []}),
    }
    async with deployed(bench, tmp_path) as town:
        await town.set_manifest(owned(**members))
        before = (await town.activate()).env["c"]
        bench.clock.forward(timedelta(hours=1))
        await town.update(raw[update], ALICE)
        after = (await town.activate()).env["c"]
        assert verifies(after, town.marble_root, "-attime", str(int(bench.clock().timestamp())))
    assert after != before
    assert end(after) - end(before) == (timedelta(0) if update == "package" else timedelta(hours=1))


# --- what may be asked for


async def test_every_part_of_the_subject(made: Made) -> None:
    assert sorted(subject(made.pem["subject"])) == sorted(
        ["C=DE", "O=o1", "O=o2", "OU=ou", "L=l", "ST=p", "street=s", "postalCode=10115", "CN=cn", "serialNumber=7"]
    )


async def test_dns_names(made: Made) -> None:
    assert made.line("two names", "subjectAltName").startswith("DNS:a.example, DNS:b.example, ")


async def test_ip_addresses_replace_the_default(made: Made) -> None:
    assert made.line("addresses", "subjectAltName") == (
        "DNS:localhost, IP Address:10.0.0.1, IP Address:FD00:0:0:0:0:0:0:7"
    )


async def test_email_addresses_and_uris(made: Made) -> None:
    names = made.line("other names", "subjectAltName").split(", ")
    assert {"email:a@example.com", "URI:https://h.example/p?q=1"} < set(names)


@pytest.mark.parametrize(("bits", "text"), USAGES.items(), ids=lambda value: str(value))
async def test_each_bit_of_the_key_usage(made: Made, bits: int, text: str) -> None:
    assert made.line(f"usage {bits}", "keyUsage") == text


@pytest.mark.parametrize(("number", "text"), EXTENDED.items(), ids=lambda value: str(value))
async def test_each_extended_key_usage(made: Made, number: int, text: str) -> None:
    assert made.line(f"extended {number}", "extendedKeyUsage") == text


async def test_several_extended_key_usages_in_their_order(made: Made) -> None:
    assert made.line("all extended", "extendedKeyUsage") == ", ".join(EXTENDED.values())


async def test_extended_key_usages_without_a_number(made: Made) -> None:
    assert made.line("other usage", "extendedKeyUsage") == "1.2.3.4"


@pytest.mark.parametrize(
    ("name", "constraints"),
    [
        ("CA", "CA:TRUE"),
        ("CA without intermediates", "CA:TRUE, pathlen:0"),
        ("CA with 3", "CA:TRUE, pathlen:3"),
        ("CA with 0 that is not meant", "CA:TRUE"),
    ],
)
async def test_a_ca_with_its_path_length(made: Made, name: str, constraints: str) -> None:
    assert made.line(name, "basicConstraints") == constraints


async def test_name_constraints(made: Made) -> None:
    """Those of the template; and every CA excludes what stands for something attested."""
    text = extension(made.pem["constrained CA"], "nameConstraints")
    permitted, excluded = text.split("Excluded:")
    for line in ("DNS:example", "IP:10.0.0.0/255.0.0.0", "URI:.example.net"):
        assert line in permitted
    for line in ("DNS:no.example", "email:example.org", "DNS:marblemesh.internal"):
        assert line in excluded


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("crlDistributionPoints", "URI:http://crl.example/"),
        ("authorityInfoAccess", "OCSP - URI:http://ocsp.example/"),
        ("authorityInfoAccess", "CA Issuers - URI:http://ca.example/"),
        ("certificatePolicies", "Policy: 1.2.3"),
        ("certificatePolicies", "Policy: 2.23.140.1.2.1"),
    ],
)
async def test_references(made: Made, name: str, text: str) -> None:
    assert text in extension(made.pem["references"], name)


@pytest.mark.parametrize("name", ["SHA-256", "SHA-384", "SHA-512", "SHA-384 by 0"])
async def test_a_signature_algorithm_that_fits_the_issuer(made: Made, name: str) -> None:
    algorithm = name.removesuffix(" by 0").replace("-", "")
    assert f"Signature Algorithm: ecdsa-with-{algorithm}" in x509(made.pem[name], "-text")


async def test_issuer_serial_number_and_beginning_cannot_be_set(made: Made) -> None:
    pem = made.pem["no effect"]
    assert x509(pem, "-issuer") == "issuer=CN = MarbleRun Coordinator - Intermediate CA"
    assert x509(pem, "-serial") != "serial=07"
    assert start(pem) == made.now
    assert extension(pem, "basicConstraints").endswith("CA:FALSE")
    assert "Version: 3" in x509(pem, "-text")


@pytest.mark.parametrize("name", ["default", "references", "two names", "all extended"])
async def test_every_certificate_is_the_intermediates(made: Made, name: str) -> None:
    assert x509(made.pem[name], "-issuer") == "issuer=CN = MarbleRun Coordinator - Intermediate CA"
    assert verifies(made.pem[name], made.root)


# --- what may not


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def refusing(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MarbleDeployment]:
    async with waiting(machine, tmp_path_factory.mktemp("refusing")) as made:
        yield made


@pytest.mark.parametrize(
    ("cert", "text"),
    [
        ({"IPAddresses": ["10.0.0.256"]}, "invalid IP address: 10.0.0.256"),
        ({"IPAddresses": ["localhost"]}, "invalid IP address: localhost"),
        ({"ExtKeyUsage": [99]}, "ExtKeyUsage: unknown number"),
        ({"KeyUsage": 512}, "KeyUsage: 512"),
        ({"MaxPathLen": 3}, "only CAs are allowed to specify MaxPathLen"),
        ({"SignatureAlgorithm": 4}, "requested SignatureAlgorithm does not match private key type"),
        ({"NotAfter": "2001-01-01T00:00:00Z"}, "creating certificate:"),
        ({"NotAfter": "tomorrow"}, "invalid time 'tomorrow': want RFC 3339"),
        ({"DNSNames": ["coordinator.marblemesh.internal"]}, "is reserved for the Coordinator"),
        ({"Subject": {"Country": ["Germany"]}}, "Subject: "),
    ],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
async def test_what_cannot_be_met_is_refused_with_the_manifest(
    refusing: MarbleDeployment, cert: dict[str, object], text: str
) -> None:
    assert text in await refusing.manifest_refused(manifest(Secrets={"c": ECDSA | {"Shared": True, "Cert": cert}}))
