# SPDX-License-Identifier: Apache-2.0
"""The manifest as the rest of the program sees it: frozen values, already checked.

`parse.parse` is the only maker. Names are those of the JSON members in Python's spelling; lengths, ranges and
cross-references have been checked, hex and base64 are bytes, certificates are parsed. Absent is None (or empty where
absent and empty mean the same). Mappings are read-only and keep the order of the file.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Literal

from cryptography import x509

from manifests.address import Address
from manifests.errors import Problem

_EMPTY: Mapping[str, object] = MappingProxyType({})

DEFAULT_CERTIFICATE_LIFETIME = timedelta(hours=24)
# Below a minute, clock differences and renewal at two thirds of the life leave no time; beyond 30 days a certificate
# that is simply not renewed (which is how one is revoked) would live on for too long.
MIN_CERTIFICATE_LIFETIME = timedelta(minutes=1)
MAX_CERTIFICATE_LIFETIME = timedelta(days=30)
MIN_OFFLINE_START = timedelta(minutes=1)
MAX_OFFLINE_START = timedelta(days=30)
TlsVersion = Literal["1.2", "1.3"]
TLS_VERSIONS: tuple[TlsVersion, ...] = ("1.2", "1.3")
MAX_PROTOCOLS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxPackage:
    """Measurements of a TDX guest, 48 bytes each; None is not compared, `mrtd` is always there.

    Without MRTD the other registers prove nothing: they are written by the firmware that MRTD measures.
    """

    mrtd: bytes
    rtmr0: bytes | None = None
    rtmr1: bytes | None = None
    rtmr2: bytes | None = None
    rtmr3: bytes | None = None
    mrconfigid: bytes | None = None
    mrowner: bytes | None = None
    mrownerconfig: bytes | None = None
    mrseam: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpPackage:
    """Measurements of a SEV-SNP guest. `measurement` 48 bytes (launch digest), always there; `host_data` 32;
    `id_key_digest` and `author_key_digest` 48; `family_id` and `image_id` 16; `guest_svn` is a minimum."""

    measurement: bytes
    host_data: bytes | None = None
    id_key_digest: bytes | None = None
    author_key_digest: bytes | None = None
    family_id: bytes | None = None
    image_id: bytes | None = None
    guest_svn: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """Which enclaves count as this software.

    SGX: `unique_id` (MRENCLAVE) and `signer_id` (MRSIGNER) 32 bytes; `product_id` equal; `security_version` a minimum.
    Empty `accepted_tcb_statuses` means MarbleRun's default (SWHardeningNeeded besides UpToDate); empty
    `accepted_advisories` means that advisories are not looked at.
    """

    debug: bool = False
    unique_id: bytes | None = None
    signer_id: bytes | None = None
    product_id: int | None = None
    security_version: int | None = None
    accepted_tcb_statuses: tuple[str, ...] = ()
    accepted_advisories: tuple[str, ...] = ()
    tdx: TdxPackage | None = None
    snp: SnpPackage | None = None

    @property
    def is_sgx(self) -> bool:
        """May an SGX enclave be this package? Also true for a (debug) package that names no measurement at all:
        what is not known to be a confidential VM is held to the stricter rules."""
        named = (self.unique_id, self.signer_id, self.product_id, self.security_version)
        return any(value is not None for value in named) or (self.tdx is None and self.snp is None)


@dataclass(frozen=True, slots=True)
class FileValue:
    """What a file or an environment variable holds. `templated`: `data` contains `{{` and has yet to be rendered."""

    data: bytes = field(repr=False)
    templated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What a Marble receives at activation. `argv` is never templated."""

    files: Mapping[str, FileValue] = field(default_factory=lambda: MappingProxyType({}))
    env: Mapping[str, FileValue] = field(default_factory=lambda: MappingProxyType({}))
    argv: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Marble:
    """A service: its package, parameters and TLS tags. `max_activations` 0 is unlimited."""

    package: str
    max_activations: int = 0
    parameters: Parameters = field(default_factory=Parameters)
    tls: tuple[str, ...] = ()
    disable_secret_binding: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """How TLS is spoken: the oldest version (1.3 is the newest), and the protocols of ALPN (RFC 7301), best first."""

    min_tls: TlsVersion = "1.3"
    alpn: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """A port that a worker terminates mTLS on.

    `cert` names a certificate secret to present instead of the Marble's identity ("" if none; then, and only then,
    clients are not asked for a certificate). `peers`: the Marble types and gateways that may connect; None is any
    Marble of the mesh; never empty. `upstream` None is the default, `<port>.sock` in the worker's run directory.
    """

    port: str
    cert: str = ""
    disable_client_auth: bool = False
    upstream: Address | None = None
    peers: tuple[str, ...] | None = None
    tls: ConnectionOptions = ConnectionOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A peer that the app reaches through its worker. `addr` is a Marble type or a host name or IP address.

    `listen` None is the default, `<addr>-<port>.sock` in the worker's run directory. `peer` is the Marble type that
    must answer; None means `addr` itself if that is a Marble type, else any Marble.
    """

    addr: str
    port: str
    listen: Address | None = None
    peer: str | None = None
    tls: ConnectionOptions = ConnectionOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsTag:
    incoming: tuple[Incoming, ...] = ()
    outgoing: tuple[Outgoing, ...] = ()


class SecretType(StrEnum):
    SYMMETRIC_KEY = "symmetric-key"
    CERT_RSA = "cert-rsa"
    CERT_ECDSA = "cert-ecdsa"
    CERT_ED25519 = "cert-ed25519"
    PLAIN = "plain"


IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateTemplate:
    """What the manifest asks of a generated certificate; the numbers are Go's (`x509.KeyUsage`, `x509.ExtKeyUsage`).

    `subject` and `uris` keep the JSON of Go's `pkix.Name` and `url.URL`; `raw` is the whole object as written.
    """

    subject: Mapping[str, object] = field(default_factory=lambda: _EMPTY)
    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[IpAddress, ...] = ()
    email_addresses: tuple[str, ...] = ()
    uris: tuple[Mapping[str, object], ...] = ()
    not_after: datetime | None = None
    key_usage: int = 0
    ext_key_usage: tuple[int, ...] = ()
    is_ca: bool = False
    max_path_len: int = 0
    max_path_len_zero: bool = False
    raw: Mapping[str, object] = field(default_factory=lambda: _EMPTY, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A secret to generate, or (`user_defined`) to receive later. `size` in bits, `valid_for` in days (0: default)."""

    type: SecretType
    size: int = 0
    shared: bool = False
    user_defined: bool = False
    valid_for: int = 0
    cert: CertificateTemplate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Whoever holds the key of this very certificate; issuer and dates are not looked at."""

    certificate: x509.Certificate
    roles: tuple[str, ...] = ()


class ResourceType(StrEnum):
    PACKAGES = "Packages"
    SECRETS = "Secrets"
    MANIFEST = "Manifest"


class Action(StrEnum):
    UPDATE_SECURITY_VERSION = "UpdateSecurityVersion"
    READ_SECRET = "ReadSecret"  # noqa: S105 - the name of a permission
    WRITE_SECRET = "WriteSecret"  # noqa: S105
    UPDATE_MANIFEST = "UpdateManifest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    resource_type: ResourceType
    resource_names: tuple[str, ...] = ()
    actions: tuple[Action, ...] = ()


class SealMode(StrEnum):
    DEFAULT = ""
    PRODUCT_KEY = "ProductKey"
    UNIQUE_KEY = "UniqueKey"
    DISABLED = "Disabled"


class FeatureGate(StrEnum):
    SIGN_QUOTE_ENDPOINT = "SignQuoteEndpoint"
    MONOTONIC_COUNTER = "MonotonicCounter"
    AZURE_HSM_SEALING = "AzureHSMSealing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The Coordinator's settings. `update_threshold` 0: every user who may update; `recovery_threshold` 0: unset."""

    seal_mode: SealMode = SealMode.DEFAULT
    feature_gates: frozenset[FeatureGate] = frozenset()
    update_threshold: int = 0
    recovery_threshold: int = 0
    rotate_root_secret: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Infrastructure:
    """A platform's identity; accepted for compatibility, as MarbleRun does, and not enforced."""

    cpusvn: bytes = b""
    qesvn: int = 0
    pcesvn: int = 0
    root_ca: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """An unattested xDS client (an edge Envoy): may read endpoints and clusters, never a secret.

    `certificate` is an end-entity certificate that it made itself; never a CA, since it is trusted as an anchor.
    """

    certificate: x509.Certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """Settings of the mesh. `offline_start`: for how long after it last heard the Coordinator a worker may start from
    what it has sealed; None: not at all."""

    certificate_lifetime: timedelta = DEFAULT_CERTIFICATE_LIFETIME
    offline_start: timedelta | None = None
    gateways: Mapping[str, Gateway] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What may run. `raw` is the file as it came, `fingerprint` the hex SHA-256 of exactly these bytes;
    `warnings` what is allowed but probably not meant (unknown members, rules that a debug package breaks)."""

    packages: Mapping[str, Package]
    marbles: Mapping[str, Marble]
    raw: bytes = field(repr=False)
    fingerprint: str
    tls: Mapping[str, TlsTag] = field(default_factory=lambda: MappingProxyType({}))
    secrets: Mapping[str, Secret] = field(default_factory=lambda: MappingProxyType({}))
    users: Mapping[str, User] = field(default_factory=lambda: MappingProxyType({}))
    roles: Mapping[str, Role] = field(default_factory=lambda: MappingProxyType({}))
    recovery_keys: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    infrastructures: Mapping[str, Infrastructure] = field(default_factory=lambda: MappingProxyType({}))
    config: Config = field(default_factory=Config)
    mesh: Mesh = field(default_factory=Mesh)
    warnings: tuple[Problem, ...] = ()
