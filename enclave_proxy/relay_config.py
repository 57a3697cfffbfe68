# SPDX-License-Identifier: Apache-2.0
"""What the relay is told: listeners, where their bytes go, and which peers may talk. Pure values, compared by content.

Whoever moves bytes knows nothing of xDS, and whoever speaks xDS does not know how bytes move: between them stand these.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cryptography import x509

from sds.material import Identity, TrustBundle
from sds.resources import MarbleTypes
from sds.x509_errors import X509_ERRORS

SanKind = Literal["uri", "dns", "ip"]


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A UNIX socket by its path. `mode` is what the socket file gets when the relay listens there."""

    path: str
    mode: int = field(default=0o600, compare=False)

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP address: an IP address to bind to; an IP address or name to dial."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Address = UnixAddress | TcpAddress


@dataclass(frozen=True, slots=True)
class DnsTarget:
    """An endpoint named by DNS, resolved anew for each dial."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class SanMatcher:
    """One subject alternative name that is accepted: exactly `exact`, or anything that starts with `prefix`."""

    kind: SanKind
    exact: str | None = None
    prefix: str | None = None

    def __post_init__(self) -> None:
        if (self.exact is None) == (self.prefix is None) or not (self.exact or self.prefix):
            raise ValueError("a name matcher needs either an exact name or a prefix, and it must not be empty")

    def __str__(self) -> str:
        return f"{self.kind} {self.exact}" if self.exact is not None else f"{self.kind} {self.prefix}*"

    def matches(self, name: str) -> bool:
        """Whether a name of this matcher's kind is accepted. DNS names ignore case, wildcards match nothing."""
        if self.kind == "dns":
            name = name.lower()
        wish = self.exact if self.exact is not None else self.prefix or ""
        if self.kind == "dns":
            wish = wish.lower()
        return name == wish if self.exact is not None else name.startswith(wish)


@dataclass(frozen=True, slots=True)
class PeerRule:
    """Which verified certificates may talk: one that carries any of the names. No matcher: any of the trust bundle."""

    matchers: tuple[SanMatcher, ...] = ()

    def allows(self, certificate: x509.Certificate) -> str | None:
        """None if the peer may talk, else the reason why not. The chain must have been verified before."""
        if not self.matchers:
            return None
        names = _names(certificate)
        if any(m.matches(name) for m in self.matchers for name in names.get(m.kind, ())):
            return None
        shown = ", ".join(f"{kind} {name}" for kind, values in names.items() for name in values[:4]) or "no name"
        return f"peer is {shown[:512]}, allowed: {', '.join(map(str, self.matchers[:8]))}"


@dataclass(frozen=True, slots=True)
class Membership:
    """Who is not in the mesh, whatever certificates and rules say: instances that were turned out (`revoked`, SPIFFE
    IDs), and Marbles of types that the mesh does not have (any more). `types` None: the Coordinator has not said yet.
    """

    revoked: frozenset[str] = frozenset()
    types: MarbleTypes | None = None


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """How TLS is spoken: the oldest version that is accepted (the newest is 1.3), and the protocols that are offered
    or taken, best first (RFC 7301). Without any, none is negotiated."""

    minimum: Literal["1.2", "1.3"] = "1.3"
    alpn: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Inbound:
    """Accept mTLS from peers at `bind`, hand plaintext to the app at `upstream`."""

    name: str
    bind: TcpAddress
    upstream: Address
    identity: Identity
    bundle: TrustBundle | None
    require_client_certificate: bool = True
    peers: PeerRule = PeerRule()
    tls: TlsOptions = TlsOptions()


@dataclass(frozen=True, slots=True)
class Outbound:
    """Accept plaintext from the app at `listen`, dial a peer with mTLS. No endpoints: wait a bounded time for some."""

    name: str
    listen: Address
    endpoints: tuple[TcpAddress, ...] | DnsTarget
    identity: Identity
    bundle: TrustBundle
    peer: PeerRule
    sni: str = ""
    tls: TlsOptions = TlsOptions()


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """Everything that one relay does."""

    inbound: tuple[Inbound, ...] = ()
    outbound: tuple[Outbound, ...] = ()


def uris_of(certificate: x509.Certificate) -> list[str]:
    """All URI names of a certificate; none if they cannot be read, and then no rule matches it either."""
    return _names(certificate).get("uri", [])


# Every connection asks for the names of its peer, and every change of the rules for those of all that are open. They
# are kept by the certificate's id, because hashing one takes all of its bytes; an entry holds it: the id stays its own.
_REMEMBERED = 2048
_known: dict[int, tuple[x509.Certificate, dict[SanKind, list[str]]]] = {}


def _names(certificate: x509.Certificate) -> dict[SanKind, list[str]]:
    found = _known.get(id(certificate))
    if found is None:
        if len(_known) >= _REMEMBERED:
            del _known[next(iter(_known))]
        found = _known[id(certificate)] = certificate, _read_names(certificate)
    return found[1]


def _read_names(certificate: x509.Certificate) -> dict[SanKind, list[str]]:
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *X509_ERRORS):
        return {}  # names that cannot be read match nothing
    return {
        "uri": san.get_values_for_type(x509.UniformResourceIdentifier),
        "dns": san.get_values_for_type(x509.DNSName),
        "ip": [str(a) for a in san.get_values_for_type(x509.IPAddress)],
    }
