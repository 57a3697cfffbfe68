# SPDX-License-Identifier: Apache-2.0
"""The manifest's JSON shape, member by member, with Go's decoding rules. Nothing here outlives `parse`.

Two models, because they answer different questions. These pydantic classes say what the *file* looks like: member
names, JSON types, text not yet decoded. They yield the JSON Schema, and errors with the place of each wrong member.
`model.py` says what the rest of the program works with: plain frozen values, decoded and checked, that import no
validation library and cannot be built half-valid from JSON by mistake.

Go's rules, as `encoding/json` applies them to MarbleRun's manifests (Go clients send files that Go wrote again):
member names match in any case, an unknown member is ignored (here: kept, and named in a warning), null leaves the
default, an unsigned integer is written plainly (`1`; not `1.0`, `1e0`, `-0`, `"1"`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

# The two letters outside ASCII that Go's case folding maps into it: long s and the Kelvin sign.
_FOLD = str.maketrans({"\u017f": "s", "\u212a": "k"})


def fold(name: str) -> str:
    """The form in which member names are compared."""
    return name.translate(_FOLD).lower()


class Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True, hide_input_in_errors=True)

    # Members of Go's x509.Certificate are many and mostly without effect: no warning there.
    warn_unknown: ClassVar[bool] = True

    @classmethod
    @functools.cache
    def members(cls) -> Mapping[str, str]:
        """Folded name → name as documented."""
        return {fold(field.alias or name): field.alias or name for name, field in cls.model_fields.items()}

    @model_validator(mode="before")
    @classmethod
    def _as_go_decodes(cls, data: Any) -> Any:
        if data is None:
            return {}
        if not isinstance(data, dict):
            return data
        known = cls.members()
        result: dict[str, Any] = {}
        for name, value in data.items():
            member = known.get(fold(name), name)
            if member in result:
                raise PydanticCustomError("duplicate_member", "member {member} occurs twice", {"member": member})
            result[member] = value
        # Only now, so that `"TLS": null, "tls": {…}` counts as twice.
        names = known.values()
        return {name: value for name, value in result.items() if value is not None or name not in names}


def _empty_for_null(value: Any) -> Any:
    return "" if value is None else value


Text = Annotated[str, BeforeValidator(_empty_for_null)]
Uint = Annotated[int, Field(ge=0, le=2**64 - 1)]
Uint16 = Annotated[int, Field(ge=0, le=2**16 - 1)]
Int = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Hex = Annotated[Text, Field(json_schema_extra={"pattern": "^([0-9a-fA-F]{2})*$"})]
Port = Annotated[Text, Field(json_schema_extra={"pattern": "^[1-9][0-9]{0,4}$"})]


def _hex(alias: str, size: int, description: str) -> Any:
    return Field("", alias=alias, description=f"{description}; hex, {size} bytes.")


class TdxWire(Wire):
    """Measurements of a TDX guest."""

    mrtd: Hex = _hex("MRTD", 48, "Measurement of the guest's initial memory (its firmware); must be given")
    rtmr0: Hex = _hex("RTMR0", 48, "Runtime measurement 0: firmware configuration")
    rtmr1: Hex = _hex("RTMR1", 48, "Runtime measurement 1: boot loader and kernel")
    rtmr2: Hex = _hex("RTMR2", 48, "Runtime measurement 2: kernel command line, initrd")
    rtmr3: Hex = _hex("RTMR3", 48, "Runtime measurement 3: for the guest's own use")
    mrconfigid: Hex = _hex("MRCONFIGID", 48, "Configuration id that the host gave")
    mrowner: Hex = _hex("MROWNER", 48, "Owner id that the host gave")
    mrownerconfig: Hex = _hex("MROWNERCONFIG", 48, "Owner configuration that the host gave")
    mrseam: Hex = _hex("MRSEAM", 48, "Measurement of the TDX module")


class SnpWire(Wire):
    """Measurements of a SEV-SNP guest."""

    measurement: Hex = _hex("Measurement", 48, "Launch digest; must be given")
    host_data: Hex = _hex("HostData", 32, "Data that the host gave at launch")
    id_key_digest: Hex = _hex("IDKeyDigest", 48, "Digest of the key that signed the ID block")
    author_key_digest: Hex = _hex("AuthorKeyDigest", 48, "Digest of the author's key")
    family_id: Hex = _hex("FamilyID", 16, "Family id of the ID block")
    image_id: Hex = _hex("ImageID", 16, "Image id of the ID block")
    guest_svn: Uint | None = Field(None, alias="GuestSVN", description="Lowest security version of the guest.")


class PackageWire(Wire):
    """Which enclaves count as this software. SGX: either UniqueID alone, or SignerID, ProductID and SecurityVersion."""

    debug: bool = Field(False, alias="Debug", description="Accept debug enclaves (and no others). Never in production.")
    unique_id: Hex = _hex("UniqueID", 32, "SGX MRENCLAVE")
    signer_id: Hex = _hex("SignerID", 32, "SGX MRSIGNER")
    product_id: Uint | None = Field(None, alias="ProductID", description="SGX product id, must be equal.")
    security_version: Uint | None = Field(None, alias="SecurityVersion", description="Lowest SGX security version.")
    accepted_tcb_statuses: list[Text] = Field(
        [],
        alias="AcceptedTCBStatuses",
        description="TCB statuses accepted besides UpToDate (default SWHardeningNeeded).",
    )
    accepted_advisories: list[Text] = Field(
        [], alias="AcceptedAdvisories", description="If given, the only Intel advisories that may be open."
    )
    tdx: TdxWire | None = Field(None, alias="TDX", description="Measurements, when it runs in a TDX guest.")
    snp: SnpWire | None = Field(None, alias="SNP", description="Measurements, when it runs in a SEV-SNP guest.")


def _file_object(value: Any) -> Any:
    if isinstance(value, str):
        return {"Data": value}
    if isinstance(value, dict):
        return value
    # Go's own text for null is what MarbleRun answers; the others follow its form.
    got = "%!t(<nil>)" if value is None else json_kind(value)
    raise PydanticCustomError("file_value", "got: {got}, expected: string or interface", {"got": got})


class FileWire(Wire):
    """The content of a file or an environment variable; a plain string is short for {"Data": …}."""

    data: str = Field("", alias="Data", description="The content, in the form that Encoding names.")
    encoding: str = Field("", alias="Encoding", description='"string" (default), "base64" or "hex".')
    no_templates: bool = Field(False, alias="NoTemplates", description="Take `{{` as it stands.")


File = Annotated[
    FileWire,
    BeforeValidator(_file_object, json_schema_input_type=str | FileWire),
]


class ParametersWire(Wire):
    """What a Marble receives at activation."""

    files: dict[str, File] = Field({}, alias="Files", description="Path to content.")
    env: dict[str, File] = Field({}, alias="Env", description="Environment variable to value.")
    argv: list[Text] = Field([], alias="Argv", description="Arguments, the program's name first; never templated.")


class MarbleWire(Wire):
    """A service."""

    package: str = Field("", alias="Package", description="Name of the package that it runs.")
    max_activations: Uint = Field(0, alias="MaxActivations", description="0: unlimited.")
    parameters: ParametersWire = Field(
        default_factory=lambda: ParametersWire.model_validate({}), alias="Parameters", description="Files, Env, Argv."
    )
    tls: list[Text] = Field([], alias="TLS", description="Names of TLS tags.")
    disable_secret_binding: bool = Field(
        False, alias="DisableSecretBinding", description="Derive secrets as MarbleRun did before 1.6."
    )


class IncomingWire(Wire):
    """A port that the worker terminates mTLS on."""

    port: Port = Field("", alias="Port", description='Decimal port as a string: "8080".')
    cert: str = Field("", alias="Cert", description="A certificate secret to present instead of the Marble's identity.")
    disable_client_auth: bool = Field(False, alias="DisableClientAuth", description="Ask for no client certificate.")
    upstream: str = Field(
        "", alias="Upstream", description="Where the app listens: unix:<path>, or outside SGX tcp:127.0.0.1:<port>."
    )
    peers: list[Text] | None = Field(
        None, alias="Peers", description="Marble types and gateways that may connect; absent: any Marble."
    )
    min_tls: str = Field("", alias="MinTLSVersion", description='"1.3" (default) or "1.2".')
    alpn: list[Text] = Field([], alias="ALPN", description='Protocols that are taken, best first: "h2".')


class OutgoingWire(Wire):
    """A peer that the app reaches through its worker."""

    addr: str = Field("", alias="Addr", description="Marble type, host name or IP address.")
    port: Port = Field("", alias="Port", description='Decimal port as a string: "8080".')
    listen: str = Field(
        "", alias="Listen", description="Where the worker listens: unix:<path>, or outside SGX tcp:127.0.0.1:<port>."
    )
    peer: str = Field("", alias="Peer", description="The Marble type that must answer.")
    min_tls: str = Field("", alias="MinTLSVersion", description='"1.3" (default) or "1.2".')
    alpn: list[Text] = Field([], alias="ALPN", description='Protocols that are offered, best first: "h2".')


class TlsWire(Wire):
    """Connections that are mTLS."""

    incoming: list[IncomingWire] = Field([], alias="Incoming")
    outgoing: list[OutgoingWire] = Field([], alias="Outgoing")


class CertWire(Wire):
    """Go's x509.Certificate as JSON; these members have an effect."""

    warn_unknown: ClassVar[bool] = False

    subject: dict[str, Any] = Field({}, alias="Subject", description="CommonName, Organization[], Country[], …")
    dns_names: list[Text] = Field([], alias="DNSNames")
    ip_addresses: list[Text] = Field([], alias="IPAddresses")
    email_addresses: list[Text] = Field([], alias="EmailAddresses")
    uris: list[dict[str, Any] | None] = Field([], alias="URIs", description='Objects such as {"Scheme": …, "Host": …}.')
    not_after: str = Field("", alias="NotAfter", description="RFC 3339.")
    key_usage: Int = Field(0, alias="KeyUsage", description="Go's x509.KeyUsage bits.")
    ext_key_usage: list[Int] = Field([], alias="ExtKeyUsage", description="Go's x509.ExtKeyUsage numbers.")
    is_ca: bool = Field(False, alias="IsCA")
    max_path_len: Int = Field(0, alias="MaxPathLen")
    max_path_len_zero: bool = Field(False, alias="MaxPathLenZero")


class SecretWire(Wire):
    """A secret to generate or, if UserDefined, to upload later."""

    type: str = Field("", alias="Type", description="symmetric-key, cert-rsa, cert-ecdsa, cert-ed25519 or plain.")
    size: Uint = Field(0, alias="Size", description="Bits.")
    shared: bool = Field(False, alias="Shared", description="One for all Marbles.")
    user_defined: bool = Field(False, alias="UserDefined")
    valid_for: Uint = Field(0, alias="ValidFor", description="Days.")
    cert: CertWire | None = Field(None, alias="Cert", description="What a generated certificate should say.")
    # MarbleRun's structure has them, and Go writes them as null; a value would be overwritten.
    private: Any = Field(None, alias="Private", description="Without effect.")
    public: Any = Field(None, alias="Public", description="Without effect.")


class UserWire(Wire):
    """Who may read secrets or update the manifest."""

    certificate: str = Field("", alias="Certificate", description="PEM.")
    roles: list[Text] = Field([], alias="Roles")


class RoleWire(Wire):
    """Permissions on resources."""

    resource_type: str = Field("", alias="ResourceType", description="Packages, Secrets or Manifest.")
    resource_names: list[Text] = Field([], alias="ResourceNames")
    actions: list[Text] = Field(
        [], alias="Actions", description="UpdateSecurityVersion, ReadSecret, WriteSecret or UpdateManifest."
    )


class ConfigWire(Wire):
    """Settings of the Coordinator."""

    seal_mode: str = Field("", alias="SealMode", description="ProductKey (default), UniqueKey or Disabled.")
    feature_gates: list[Text] = Field([], alias="FeatureGates", description="SignQuoteEndpoint, MonotonicCounter, …")
    update_threshold: Uint = Field(0, alias="UpdateThreshold", description="Users who must agree to an update; 0: all.")
    recovery_threshold: Uint = Field(0, alias="RecoveryThreshold", description="Keys needed to recover; 0: unset.")
    rotate_root_secret: bool = Field(False, alias="RotateRootSecret", description="Acts on updates only.")


# Decoded, and refused if it is neither, in convert.py: a union here would name the place of each failed branch.
GoBytes = Annotated[
    Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]})
]


class InfrastructureWire(Wire):
    """A platform's identity; accepted and not enforced."""

    cpusvn: GoBytes = Field("", alias="CPUSVN", description="Base64, or an array of numbers.")
    qesvn: Uint16 = Field(0, alias="QESVN")
    pcesvn: Uint16 = Field(0, alias="PCESVN")
    root_ca: GoBytes = Field("", alias="RootCA", description="Base64, or an array of numbers.")


class GatewayWire(Wire):
    """An unattested xDS client: may read endpoints and clusters, never a secret."""

    certificate: str = Field("", alias="Certificate", description="PEM of its own certificate, which is no CA.")


class MeshWire(Wire):
    """Settings of the mesh."""

    certificate_lifetime: str = Field(
        "",
        alias="CertificateLifetime",
        description='Life of a Marble\'s certificate: "24h" (default); 1 minute to 30 days.',
    )
    offline_start: str = Field(
        "",
        alias="OfflineStart",
        description="How long after it last heard the Coordinator a worker may start without it, from its sealed "
        'configuration: 1 minute to 30 days, as "24h"; absent: not at all.',
    )
    gateways: dict[str, GatewayWire] = Field({}, alias="Gateways")


class ManifestWire(Wire):
    """Which code may run in the mesh, with which parameters, secrets and connections."""

    packages: dict[str, PackageWire] = Field({}, alias="Packages", description="Software by name; at least one.")
    marbles: dict[str, MarbleWire] = Field({}, alias="Marbles", description="Services by type; at least one.")
    tls: dict[str, TlsWire] = Field({}, alias="TLS", description="Connections by tag.")
    secrets: dict[str, SecretWire] = Field({}, alias="Secrets")
    users: dict[str, UserWire] = Field({}, alias="Users")
    roles: dict[str, RoleWire] = Field({}, alias="Roles")
    recovery_keys: dict[str, Text] = Field({}, alias="RecoveryKeys", description="PEM of RSA public keys, by name.")
    config: ConfigWire = Field(default_factory=lambda: ConfigWire.model_validate({}), alias="Config")
    infrastructures: dict[str, InfrastructureWire] = Field({}, alias="Infrastructures")
    mesh: MeshWire = Field(default_factory=lambda: MeshWire.model_validate({}), alias="Mesh")


def json_kind(value: object) -> str:
    """What JSON calls this value, for messages."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"
