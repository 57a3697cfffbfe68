# SPDX-License-Identifier: Apache-2.0
"""The mesh's certificate authority: MarbleRun's three CA certificates, and leaves made from templates.

Root → intermediate, and beside it the Marble root: the intermediate's key and name, self-signed. A leaf signed with
that key verifies under any of the three. `rotate` replaces all but the root. Leaves go template → sign → inspect: what
was signed is looked at again before it is handed out, so that a slip in the template or the signer never becomes
somebody's credential.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sds import profile
from sds.csr import CertificateRequest, IPAddress
from sds.errors import SdsError
from sds.identity import COORDINATOR_DNS_NAME, coordinator_spiffe_id, marble_spiffe_id, trust_domain, uri_names
from sds.keys import PrivateKey
from sds.material import Identity, MaterialError, TrustBundle, check_identity, check_issued_by

ROOT_NAME = "MarbleRun Coordinator"
INTERMEDIATE_NAME = "MarbleRun Coordinator - Intermediate CA"

# A leaf is valid from a little before it was made, so that a peer whose clock is behind accepts it at once. Kerberos
# tolerates five minutes too (RFC 4120); a leaf never begins before its CA, where no verifier would accept it anyway.
CLOCK_SKEW = timedelta(minutes=5)


class IssuanceError(SdsError):
    """A certificate was made that must not be handed out, or cannot be made. Always a bug or a bad template."""


@dataclass(frozen=True, slots=True)
class LeafTemplate:
    """What is to be certified about one Marble, after its quote was verified and appraised.

    `lifetime` None makes the activation leaf of MarbleRun's protocol (P-384, as long as the CA lives), a duration the
    leaf that goes out over SDS (P-256: in OpenSSL it signs a handshake about 20 times faster, with the same 128-bit
    strength as the key exchange) and is renewed.
    """

    marble_type: str
    uuid: str
    request: CertificateRequest
    claims: Mapping[str, object] | None
    lifetime: timedelta | None = None


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """The three CA certificates and their two keys; a value, replaced as a whole."""

    root: x509.Certificate
    intermediate: x509.Certificate
    marble_root: x509.Certificate
    root_key: PrivateKey = field(repr=False)
    intermediate_key: PrivateKey = field(repr=False)

    @classmethod
    def create(cls, dns_names: Sequence[str], ip_addresses: Sequence[str | IPAddress], now: datetime) -> Self:
        """New keys and certificates, valid from `now` (aware) for 2^63-1 ns; loopback addresses are always added."""
        addresses = (ip_address("127.0.0.1"), ip_address("::1"), *(ip_address(str(a)) for a in ip_addresses))
        alternative = tuple(dict.fromkeys(dns_names)), tuple(dict.fromkeys(addresses))
        root_key, key = PrivateKey.generate_p384(), PrivateKey.generate_p384()
        root = profile.ca_certificate(ROOT_NAME, root_key, alternative, now)
        intermediate = profile.ca_certificate(INTERMEDIATE_NAME, key, alternative, now, issuer=(root, root_key))
        marble_root = profile.ca_certificate(INTERMEDIATE_NAME, key, alternative, now)
        return cls(root, intermediate, marble_root, root_key, key)

    def rotate(self, now: datetime) -> Self:
        """The same root with a new key below it: new intermediate and Marble root, same names and addresses.

        They are valid from a little before `now`, but not from before the root: a worker whose clock is behind would
        reject the new root, and would then lose everybody who follows it.
        """
        names = self.root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        dns_names = tuple(names.get_values_for_type(x509.DNSName))
        addresses = (ip_address(str(a)) for a in names.get_values_for_type(x509.IPAddress))
        alternative = dns_names, tuple(addresses)
        start = max(now.astimezone(UTC) - CLOCK_SKEW, self.root.not_valid_before_utc)
        key = PrivateKey.generate_p384()
        issuer = self.root, self.root_key
        intermediate = profile.ca_certificate(INTERMEDIATE_NAME, key, alternative, start, issuer=issuer)
        marble_root = profile.ca_certificate(INTERMEDIATE_NAME, key, alternative, start)
        return replace(self, intermediate=intermediate, marble_root=marble_root, intermediate_key=key)

    @property
    def root_der(self) -> bytes:
        """What quotes are bound to and the trust domain is named after."""
        return self.root.public_bytes(Encoding.DER)

    @property
    def chain_pem(self) -> bytes:
        """Intermediate, then root: what the client API shows."""
        return pem_of(self.intermediate) + pem_of(self.root)

    @property
    def trust_domain(self) -> str:
        return trust_domain(self.root_der)

    @property
    def bundle(self) -> TrustBundle:
        """What Marbles trust: the Marble root alone, so that no certificate signed by the root itself is a Marble's."""
        return TrustBundle(pem_of(self.marble_root))

    def issue_marble(self, template: LeafTemplate, now: datetime) -> Identity:
        """A new key with its leaf, chain leaf + intermediate. Raises IssuanceError rather than hand out a bad one."""
        key = PrivateKey.generate_p384() if template.lifetime is None else PrivateKey.generate_p256()
        name = marble_spiffe_id(self.trust_domain, template.marble_type, template.uuid)
        leaf = profile.Leaf(
            subject=profile.marble_subject(template.request.subject, template.uuid),
            dns_names=template.request.dns_names,
            ip_addresses=template.request.ip_addresses,
            uri=name,
            key=key,
            not_before=self._not_before(now),
            not_after=self._not_after(now, template.lifetime),
            extensions=profile.marble_extensions(template.marble_type, template.claims),
        )
        return self._issue(leaf, now)

    def issue_coordinator(self, now: datetime) -> Identity:
        """The xDS port's server identity: chain leaf + intermediate, verifies under the root, lives as long as the CA
        (its key never leaves this process)."""
        leaf = profile.Leaf(
            subject=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, COORDINATOR_DNS_NAME)]),
            dns_names=(COORDINATOR_DNS_NAME,),
            ip_addresses=(),
            uri=coordinator_spiffe_id(self.trust_domain),
            key=PrivateKey.generate_p256(),
            not_before=self._not_before(now),
            not_after=self._not_after(now, None),
            extensions=(),
        )
        return self._issue(leaf, now)

    def _issue(self, leaf: profile.Leaf, now: datetime) -> Identity:
        try:
            certificate = profile.leaf_certificate(leaf, self.marble_root, self.intermediate_key)
        except ValueError as e:  # what the builder cannot express: names, or an end before the beginning
            raise IssuanceError(f"refusing to hand out a certificate for {leaf.uri}: {e}") from e
        self._inspect(certificate, leaf, now)
        identity = Identity(pem_of(certificate) + pem_of(self.intermediate), leaf.key)
        try:
            check_identity(identity, _checked(self.root, self.intermediate, self.marble_root), now)
        except MaterialError as e:
            raise IssuanceError(f"refusing to hand out a certificate for {leaf.uri}: {e}") from e
        return identity

    def _inspect(self, certificate: x509.Certificate, leaf: profile.Leaf, now: datetime) -> None:
        """The rules that a verifier cannot know: one name, the right one, and no life beyond the CA's."""
        faults = []
        if not self.root.not_valid_before_utc <= now <= self.root.not_valid_after_utc:
            faults.append("the root is expired or not valid yet")
        if uri_names(certificate) != [leaf.uri]:
            faults.append(f"URI names {uri_names(certificate)}, expected exactly {leaf.uri}")
        if certificate.not_valid_after_utc > self._end:
            faults.append(f"expires at {certificate.not_valid_after_utc}, after its CA at {self._end}")
        if certificate.not_valid_before_utc < self.marble_root.not_valid_before_utc:
            faults.append("begins before its CA")
        if certificate.not_valid_after_utc <= certificate.not_valid_before_utc:
            faults.append("has no life at all")
        if certificate.serial_number <= 0 or certificate.serial_number.bit_length() > 159:
            faults.append("serial number is not a positive integer of at most 20 bytes")
        if faults:
            raise IssuanceError(f"refusing to hand out a certificate for {leaf.uri}: {'; '.join(faults)}")

    @property
    def _end(self) -> datetime:
        # A rotated intermediate says that it outlives its root, as in MarbleRun.
        return min(c.not_valid_after_utc for c in (self.marble_root, self.intermediate, self.root))

    def _not_before(self, now: datetime) -> datetime:
        return max(now.astimezone(UTC) - CLOCK_SKEW, self.marble_root.not_valid_before_utc)

    def _not_after(self, now: datetime, lifetime: timedelta | None) -> datetime:
        # MarbleRun's activation leaf says now + 2^63-1 ns, which is later than its CA's end; nothing verifies then.
        return self._end if lifetime is None else min(now.astimezone(UTC) + lifetime, self._end)


@functools.lru_cache(maxsize=8)
def _checked(root: x509.Certificate, intermediate: x509.Certificate, marble_root: x509.Certificate) -> TrustBundle:
    """What every leaf of a CA has in common, checked once per CA: whatever the intermediate issued verifies under the
    root, and under the Marble root too, which is the same name and key. The bundle is the intermediate.

    Dates are no part of it, they are looked at for each leaf: the leaf ends with the first of the three to end.
    Checking this again cost 3 ms of CPU per leaf, two leaves per activation. Raises MaterialError.
    """
    check_issued_by(intermediate, root, intermediates=1)
    check_issued_by(marble_root, marble_root)
    same_key = intermediate.public_key() == marble_root.public_key()
    key_ids = {_key_id(intermediate), _key_id(marble_root)}
    if not same_key or intermediate.subject != marble_root.subject or len(key_ids) != 1:
        raise MaterialError("intermediate and Marble root are not the same CA")
    return TrustBundle(pem_of(intermediate))


def _key_id(certificate: x509.Certificate) -> bytes:
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


def pem_of(certificate: x509.Certificate) -> bytes:
    """One certificate in PEM."""
    return certificate.public_bytes(Encoding.PEM)
