# SPDX-License-Identifier: Apache-2.0
"""xDS resources as values, and the only place that builds or reads Secret messages.

A protobuf message prints its private key, so that no Secret leaves this module as a message: what travels is
`Resource`, whose body cannot be printed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from sds import discovery_wire
from sds.identity import IdentityError, SpiffeId, any_marble_prefix, encode_segment
from sds.keys import PrivateKey
from sds.material import Identity, MaterialError, TrustBundle
from sds.wire import envoy_pb2

LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
ROUTE = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
EXTENSION_CONFIG = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINT = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105 - a type's name

# What Istio and SPIRE users already write in their Envoy configurations.
IDENTITY_NAME = "default"
BUNDLE_NAME = "ROOTCA"
# Which instances were turned out; '|' stands in no name that a manifest may give to a secret of its own.
REVOKED_NAME = "revoked|instances"
TYPES_NAME = "marbles|types"
# How long after it last heard the Coordinator a worker may start without it; there only where the manifest allows it.
OFFLINE_NAME = "offline|start"

# An identity is about 4 KB, a bundle of 64 certificates 64 KB.
MAX_SECRET = 2 * 1024 * 1024 + 64 * 1024
# What a worker takes as one listener, cluster or endpoint list, and as names of peers in it: 4096 names of 200 bytes.
MAX_RESOURCE = 1024 * 1024
MAX_MATCHERS = 4096
# 10 000 revoked instances with names of usual length.
MAX_REVOKED = 1024 * 1024
# 10 000 Marble types with names of a hundred bytes.
MAX_TYPES = 1024 * 1024

_SECONDS = re.compile(rb"[1-9][0-9]{0,8}")
_TYPES = re.compile(rb"spiffe://[a-z0-9._-]{1,255}/marble/(?:\n[A-Za-z0-9._-]+)*")


@dataclass(frozen=True, slots=True)
class Resource:
    """One serialised resource. `body` is the message itself, without the Any around it; `version` names its content.

    `rank`: of what is due at the same time the lower goes first.
    """

    type_url: str
    name: str
    version: str
    body: bytes = field(repr=False)
    rank: int = field(default=1, compare=False)
    _in_state: bytes | None = field(default=None, init=False, repr=False, compare=False)
    _in_delta: bytes | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def in_state(self) -> bytes:
        """What stands before `body` in a state-of-the-world response; made once for all streams."""
        if (head := self._in_state) is None:
            head = discovery_wire.before_any(self.type_url, len(self.body))
            object.__setattr__(self, "_in_state", head)
        return head

    @property
    def in_delta(self) -> bytes:
        """What stands before `body` in an incremental response; made once for all streams."""
        if (head := self._in_delta) is None:
            head = discovery_wire.before_resource(self.type_url, self.name, self.version, len(self.body))
            object.__setattr__(self, "_in_delta", head)
        return head


@dataclass(frozen=True, slots=True)
class RevokedInstances:
    """The SPIFFE IDs of Marbles that nobody talks to any more, whatever their certificates say."""

    names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class MarbleTypes:
    """Which Marble types there are. `prefix` is what the SPIFFE IDs of all Marbles start with, `names` what follows."""

    prefix: str
    names: frozenset[str]

    def lacks(self, spiffe_id: str) -> bool:
        """Whether this is the name of a Marble of the mesh whose type the mesh does not have."""
        return spiffe_id.startswith(self.prefix) and spiffe_id[len(self.prefix) :].partition("/")[0] not in self.names


@dataclass(frozen=True, slots=True)
class OfflineStart:
    """A worker may start without the Coordinator for so long after it last heard it."""

    allowed: timedelta


def make_resource(type_url: str, name: str, message: Message, rank: int = 1) -> Resource:
    """Serialise once, deterministically, so that equal content has equal bytes and an equal version."""
    body = message.SerializeToString(deterministic=True)
    return Resource(type_url, name, hashlib.sha256(body).hexdigest()[:16], body, rank)


def identity_secret(name: str, identity: Identity) -> Resource:
    """A Secret with a certificate chain and its private key."""
    secret = envoy_pb2.Secret(
        name=name,
        tls_certificate=envoy_pb2.TlsCertificate(
            certificate_chain=envoy_pb2.DataSource(inline_bytes=identity.chain),
            private_key=envoy_pb2.DataSource(inline_bytes=identity.key.pem),
        ),
    )
    return make_resource(SECRET, name, secret)


def bundle_secret(name: str, bundle: TrustBundle) -> Resource:
    """A Secret with trusted certificates. Never without one: Envoy takes that as leave to trust everybody."""
    secret = envoy_pb2.Secret(
        name=name,
        validation_context=envoy_pb2.CertificateValidationContext(
            trusted_ca=envoy_pb2.DataSource(inline_bytes=bundle.pem)
        ),
    )
    # Before any identity, under whatever names: nobody shows a certificate before it knows the roots of that time.
    return make_resource(SECRET, name, secret, rank=0)


def revoked_secret(names: Iterable[str]) -> Resource:
    """A Secret that names revoked instances, the first ones first if there are more than fit."""
    lines: list[str] = []
    size = 0
    for name in names:
        size += len(name.encode()) + 1
        if size > MAX_REVOKED:
            break
        lines.append(name)
    text = envoy_pb2.DataSource(inline_bytes="\n".join(sorted(lines)).encode())
    secret = envoy_pb2.Secret(name=REVOKED_NAME, generic_secret=envoy_pb2.GenericSecret(secret=text))
    return make_resource(SECRET, REVOKED_NAME, secret, rank=0)


def types_secret(trust_domain: str, types: Iterable[str]) -> Resource:
    """A Secret that names all Marble types, as they stand in SPIFFE IDs. Raises MaterialError if they do not fit."""
    lines = [any_marble_prefix(trust_domain), *sorted(encode_segment(name) for name in types)]
    text = "\n".join(lines).encode("ascii")
    if len(text) > MAX_TYPES:
        raise MaterialError(f"names of {len(text)} bytes in all, at most {MAX_TYPES} can be told to Marbles")
    data = envoy_pb2.DataSource(inline_bytes=text)
    secret = envoy_pb2.Secret(name=TYPES_NAME, generic_secret=envoy_pb2.GenericSecret(secret=data))
    return make_resource(SECRET, TYPES_NAME, secret, rank=0)


def offline_secret(allowed: timedelta) -> Resource:
    """A Secret that lets workers start without the Coordinator: whole seconds, in decimal."""
    data = envoy_pb2.DataSource(inline_bytes=str(int(allowed.total_seconds())).encode("ascii"))
    secret = envoy_pb2.Secret(name=OFFLINE_NAME, generic_secret=envoy_pb2.GenericSecret(secret=data))
    return make_resource(SECRET, OFFLINE_NAME, secret)


def read_secret(body: bytes) -> tuple[str, Identity | TrustBundle | RevokedInstances | MarbleTypes | OfflineStart]:
    """The name and content of a Secret. Raises MaterialError for anything that is not fully understood: an unknown
    field may hold a restriction that would then not be enforced."""
    if len(body) > MAX_SECRET:
        raise MaterialError(f"secret of {len(body)} bytes, at most {MAX_SECRET} are accepted")
    secret = envoy_pb2.Secret()
    try:
        secret.ParseFromString(body)
    except DecodeError:
        raise MaterialError("secret is not a valid protobuf message") from None
    if unknown := unknown_field(secret):
        raise MaterialError(f"secret has the field {unknown}, which is not supported here")
    if not secret.name:
        raise MaterialError("secret has no name")
    match secret.WhichOneof("type"):
        case "tls_certificate":
            certificate = secret.tls_certificate
            key = PrivateKey(_inline(certificate.private_key, "private key"))
            return secret.name, Identity(_inline(certificate.certificate_chain, "certificate chain"), key)
        case "validation_context":
            if secret.validation_context.match_typed_subject_alt_names:
                raise MaterialError("secret restricts names in its validation context, expected them in the listener")
            return secret.name, TrustBundle(_inline(secret.validation_context.trusted_ca, "trusted CA"))
        case "generic_secret" if secret.name == REVOKED_NAME:
            return secret.name, RevokedInstances(_spiffe_ids(_inline(secret.generic_secret.secret, "list")))
        case "generic_secret" if secret.name == TYPES_NAME:
            return secret.name, _marble_types(_inline(secret.generic_secret.secret, "list"))
        case "generic_secret" if secret.name == OFFLINE_NAME:
            return secret.name, _offline_start(_inline(secret.generic_secret.secret, "duration"))
        case "generic_secret":
            raise MaterialError("secret is a generic one, which has no use here")
        case _:
            raise MaterialError("secret holds neither a TLS certificate nor a validation context")


def unknown_field(message: Message) -> str | None:
    """Where a message, or one inside it, holds a field that this build does not know; None if nowhere.

    Values packed into an Any are not looked into.
    """
    unknown = UnknownFieldSet(message)
    if len(unknown):
        return f"{message.DESCRIPTOR.name}.{unknown[0].field_number}"
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None or descriptor.message_type.GetOptions().map_entry:
            continue
        for inner in value if descriptor.is_repeated else (value,):
            if found := unknown_field(inner):
                return found
    return None


def _spiffe_ids(text: bytes) -> frozenset[str]:
    """Strict: a line that was not understood would be an instance that is still let in."""
    names = set()
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            names.add(str(SpiffeId.parse(line.decode("ascii"))))
        except (UnicodeError, IdentityError):
            # The line is not quoted: it came in a secret, and may be one.
            raise MaterialError(f"list of revoked instances: line {number} is not a SPIFFE ID") from None
    return frozenset(names)


def _marble_types(text: bytes) -> MarbleTypes:
    """Strict: in a list that was not understood nobody could be looked up."""
    if not _TYPES.fullmatch(text):
        raise MaterialError("list of Marble types is not a SPIFFE prefix followed by names")
    prefix, *names = text.decode("ascii").split("\n")
    return MarbleTypes(prefix, frozenset(names))


def _offline_start(text: bytes) -> OfflineStart:
    if not _SECONDS.fullmatch(text):
        raise MaterialError("duration is not a number of seconds")
    return OfflineStart(timedelta(seconds=int(text)))


def _inline(source: envoy_pb2.DataSource, what: str) -> bytes:
    kind = source.WhichOneof("specifier")
    if kind is None:
        raise MaterialError(f"secret has no {what}, expected inline bytes or an inline string")
    return source.inline_bytes if kind == "inline_bytes" else source.inline_string.encode()
