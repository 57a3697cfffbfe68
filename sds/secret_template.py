# SPDX-License-Identifier: Apache-2.0
"""What a certificate secret shall say: a value, and the extensions that follow from it.

Numbers are Go's (`x509.KeyUsage`, `x509.ExtKeyUsage`), because manifests are written with them. Defaults are
MarbleRun's with one difference: without IsCA its default key usage would hold keyCertSign, which RFC 5280 (4.2.1.9)
forbids and strict verifiers (Python 3.13's default context) refuse: such a certificate gets digitalSignature alone.

A secret is not a Marble. Whoever writes a manifest may ask for any name but those that stand for something attested:
the mesh's own trust domain, and the Coordinator's reserved domain. A secret that is a CA cannot issue them either: its
name constraints (critical, RFC 5280, 4.2.1.10) exclude both.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from sds.csr import IPAddress
from sds.errors import SdsError
from sds.identity import RESERVED_DOMAIN, is_reserved_name

DEFAULT_VALID_FOR = 365
DEFAULT_NAME = "MarbleRun Generated Certificate"
DEFAULT_DNS_NAMES = ("localhost",)
DEFAULT_IP_ADDRESSES = (ip_address("127.0.0.1"), ip_address("::1"))

_DIGITAL_SIGNATURE, _CERT_SIGN = 1, 32
_KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
_EXT_KEY_USAGES = (
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
    ExtendedKeyUsageOID.SERVER_AUTH,
    ExtendedKeyUsageOID.CLIENT_AUTH,
    ExtendedKeyUsageOID.CODE_SIGNING,
    ExtendedKeyUsageOID.EMAIL_PROTECTION,
    x509.ObjectIdentifier("1.3.6.1.5.5.7.3.5"),  # IPSEC end system
    x509.ObjectIdentifier("1.3.6.1.5.5.7.3.6"),  # IPSEC tunnel
    x509.ObjectIdentifier("1.3.6.1.5.5.7.3.7"),  # IPSEC user
    ExtendedKeyUsageOID.TIME_STAMPING,
    ExtendedKeyUsageOID.OCSP_SIGNING,
    x509.ObjectIdentifier("1.3.6.1.4.1.311.10.3.3"),  # Microsoft server gated crypto
    x509.ObjectIdentifier("2.16.840.1.113730.4.1"),  # Netscape server gated crypto
    x509.ObjectIdentifier("1.3.6.1.4.1.311.2.1.22"),  # Microsoft commercial code signing
    x509.ObjectIdentifier("1.3.6.1.4.1.311.61.1.1"),  # Microsoft kernel code signing
)

Extension = tuple[x509.ExtensionType, bool]  # with its critical flag


class SecretError(SdsError):
    """A secret that cannot be generated as asked for. The text names what is wrong, never a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretTemplate:
    """Everything that a manifest can ask of a certificate; an empty member means its default.

    `subject` without a common name gets one; `not_after` None: `valid_for` days from now, 0 days: 365. `max_path_len`
    None: unlimited. `constraints` are the template's own; those that protect the mesh are added to them.
    `signature_algorithm` is Go's number, 0 for the one that fits the issuer's key.
    """

    subject: x509.Name = x509.Name([])  # noqa: RUF009 - immutable
    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[IPAddress, ...] = ()
    email_addresses: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()
    not_after: datetime | None = None
    valid_for: int = 0
    key_usage: int = 0
    ext_key_usage: tuple[int, ...] = ()
    unknown_ext_key_usage: tuple[x509.ObjectIdentifier, ...] = ()
    is_ca: bool = False
    max_path_len: int | None = None
    permitted: tuple[x509.GeneralName, ...] = ()
    excluded: tuple[x509.GeneralName, ...] = ()
    constraints_critical: bool = False
    crl_distribution_points: tuple[str, ...] = ()
    ocsp_servers: tuple[str, ...] = ()
    issuing_certificate_urls: tuple[str, ...] = ()
    policy_identifiers: tuple[x509.ObjectIdentifier, ...] = ()
    signature_algorithm: int = 0

    @property
    def effective_valid_for(self) -> int:
        """Days of life, as MarbleRun records them: 365 where neither a number nor an end is given."""
        return self.valid_for or (0 if self.not_after else DEFAULT_VALID_FOR)

    @property
    def effective_dns_names(self) -> tuple[str, ...]:
        return self.dns_names or DEFAULT_DNS_NAMES


def subject(template: SecretTemplate) -> x509.Name:
    """The subject, with a common name: the only DNS name, or MarbleRun's general one."""
    if template.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        return template.subject
    names = template.effective_dns_names
    common_name = x509.NameAttribute(NameOID.COMMON_NAME, names[0] if len(names) == 1 else DEFAULT_NAME)
    return x509.Name([*template.subject, common_name])


def extensions(template: SecretTemplate, trust_domain: str) -> list[Extension]:
    """The certificate's extensions, without the key ids. Raises SecretError."""
    _check_names(template, trust_domain)
    if not template.is_ca and template.max_path_len is not None:
        raise SecretError("only CAs are allowed to specify MaxPathLen")
    found: list[Extension] = [
        (_key_usage(template), True),
        (_ext_key_usage(template), False),
        (x509.BasicConstraints(ca=template.is_ca, path_length=template.max_path_len), True),
        (_alternative_names(template), False),
    ]
    if (constraints := _name_constraints(template, trust_domain)) is not None:
        found.append((constraints, template.is_ca or template.constraints_critical))
    return found + _references(template)


def _check_names(template: SecretTemplate, trust_domain: str) -> None:
    own = f"spiffe://{trust_domain}"
    for uri in template.uris:
        # Case is ignored on the safe side: a verifier may fold scheme and host before it compares (RFC 3986, 6.2.2.1).
        folded = uri.lower()
        if folded == own or folded.startswith((f"{own}/", f"{own}:", f"{own}?", f"{own}#")):
            raise SecretError("URIs: a secret cannot have a name of this mesh's Marbles, which are attested")
    common_names = [str(a.value) for a in template.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    for name in (*template.dns_names, *common_names):
        if is_reserved_name(name):
            raise SecretError(f"DNSNames: {name[:80]!r} is reserved for the Coordinator")


def _key_usage(template: SecretTemplate) -> x509.KeyUsage:
    bits = template.key_usage or (_DIGITAL_SIGNATURE | _CERT_SIGN if template.is_ca else _DIGITAL_SIGNATURE)
    if bits < 0 or bits >= 1 << len(_KEY_USAGES):
        raise SecretError(f"KeyUsage: {bits} has bits that mean nothing, expected a sum of 1 to 256")
    try:
        return x509.KeyUsage(**{name: bool(bits >> place & 1) for place, name in enumerate(_KEY_USAGES)})
    except ValueError as e:
        raise SecretError(f"KeyUsage: {e}") from None


def _ext_key_usage(template: SecretTemplate) -> x509.ExtendedKeyUsage:
    numbers = template.ext_key_usage
    if any(not 0 <= number < len(_EXT_KEY_USAGES) for number in numbers):
        raise SecretError(
            f"ExtKeyUsage: unknown number among {list(numbers)}, expected 0 to {len(_EXT_KEY_USAGES) - 1}"
        )
    usages = [_EXT_KEY_USAGES[number] for number in numbers] + list(template.unknown_ext_key_usage)
    return x509.ExtendedKeyUsage(usages or [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])


def _alternative_names(template: SecretTemplate) -> x509.SubjectAlternativeName:
    try:
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in template.effective_dns_names]
        names += [x509.RFC822Name(address) for address in template.email_addresses]
        names += [x509.IPAddress(address) for address in template.ip_addresses or DEFAULT_IP_ADDRESSES]
        names += [x509.UniformResourceIdentifier(uri) for uri in template.uris]
    except ValueError as e:
        raise SecretError(f"certificate names: {e}") from None
    return x509.SubjectAlternativeName(names)


def _name_constraints(template: SecretTemplate, trust_domain: str) -> x509.NameConstraints | None:
    excluded = template.excluded
    if template.is_ca:
        excluded += (x509.UniformResourceIdentifier(trust_domain), x509.DNSName(RESERVED_DOMAIN))
    if not template.permitted and not excluded:
        return None
    return x509.NameConstraints(template.permitted or None, excluded or None)


def _references(template: SecretTemplate) -> list[Extension]:
    """Where to ask about the certificate, and under which policies it stands."""

    def uri(text: str) -> x509.UniformResourceIdentifier:
        try:
            return x509.UniformResourceIdentifier(text)
        except ValueError as e:
            raise SecretError(f"certificate references: {e}") from None

    found: list[Extension] = []
    if template.crl_distribution_points:
        points = [x509.DistributionPoint([uri(u)], None, None, None) for u in template.crl_distribution_points]
        found.append((x509.CRLDistributionPoints(points), False))
    access = AuthorityInformationAccessOID
    descriptions = [x509.AccessDescription(access.OCSP, uri(u)) for u in template.ocsp_servers]
    descriptions += [x509.AccessDescription(access.CA_ISSUERS, uri(u)) for u in template.issuing_certificate_urls]
    if descriptions:
        found.append((x509.AuthorityInformationAccess(descriptions), False))
    if template.policy_identifiers:
        policies = [x509.PolicyInformation(oid, None) for oid in template.policy_identifiers]
        found.append((x509.CertificatePolicies(policies), False))
    return found
