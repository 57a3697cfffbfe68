# SPDX-License-Identifier: Apache-2.0
"""Strict reading of Envoy messages: whatever is not fully understood is an error that names resource and member.

A proxy that skips a field it does not know may skip the very field that restricts who comes in. So unknown fields,
unknown types and values that this worker cannot enforce are all refused, and the Coordinator hears why in the NACK.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message

from enclave_proxy.errors import RoutesError
from enclave_proxy.relay_config import Address, SanKind, SanMatcher, TcpAddress, TlsOptions, UnixAddress
from sds.resources import MAX_MATCHERS, MAX_RESOURCE, unknown_field
from sds.wire import envoy_pb2 as pb

M = TypeVar("M", bound=Message)

TCP_PROXY = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
DOWNSTREAM_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
UPSTREAM_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"

# sun_path: 108 bytes with the final NUL.
MAX_SOCKET_PATH = 107

_API_V3 = 2
_TLS_1_2, _TLS_1_3 = 3, 4
_TLS_VERSIONS_MINIMUM = (0, _TLS_1_2, _TLS_1_3)
_TLS_VERSIONS_MAXIMUM = (0, _TLS_1_3)
MAX_PROTOCOLS = 16
_DEFAULT = TlsOptions()
_SAN_KINDS: dict[int, SanKind] = {2: "dns", 3: "uri", 4: "ip"}


@dataclass(frozen=True, slots=True)
class TlsRules:
    """What a TLS context asks for, with secrets still by name."""

    identity: str
    bundle: str | None
    matchers: tuple[SanMatcher, ...]
    options: TlsOptions = _DEFAULT


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the members of one resource; every complaint carries its name."""

    resource: str

    def fail(self, member: str, problem: str) -> RoutesError:
        """The error to raise."""
        return RoutesError(self.resource, member, problem)

    def message(self, kind: type[M], body: bytes, member: str = "") -> M:
        """Parse `body`, refusing what is too long, malformed or holds a field that this worker does not know."""
        if len(body) > MAX_RESOURCE:
            raise self.fail(member, f"{len(body)} bytes, at most {MAX_RESOURCE} are accepted")
        message = kind()
        try:
            message.ParseFromString(body)
        except DecodeError:
            raise self.fail(member, f"not a valid {kind.DESCRIPTOR.name} message") from None
        if unknown := unknown_field(message):
            raise self.fail(member, f"has the field {unknown}, which this worker cannot enforce")
        return message

    def packed(self, kind: type[M], value: Any, type_url: str, member: str) -> M:
        """The one accepted message type out of an Any."""
        if value.type_url != type_url:
            raise self.fail(member, f"type {value.type_url!r} is not supported, expected {type_url!r}")
        return self.message(kind, value.value, member)

    def named(self, name: str, member: str = "name") -> str:
        """A resource's own name must be the one under which it came."""
        if name != self.resource:
            raise self.fail(member, f"is {name!r}, which is not the resource's name")
        return name

    def address(self, address: pb.Address, member: str, run_dir: Path) -> Address:
        """A TCP address, or a UNIX socket: relative paths lie in the run directory."""
        match address.WhichOneof("address"):
            case "socket_address":
                return self.tcp(address.socket_address, f"{member}.socket_address")
            case "pipe":
                mode = address.pipe.mode or 0o600
                if mode > 0o777:
                    raise self.fail(f"{member}.pipe.mode", f"is {mode:o}, expected at most 777")
                return UnixAddress(self._socket_path(address.pipe.path, f"{member}.pipe.path", run_dir), mode)
        raise self.fail(member, "is not set, expected socket_address or pipe")

    def tcp(self, address: pb.SocketAddress, member: str) -> TcpAddress:
        """A TCP address with a host (name or IP) and a port."""
        if address.protocol != 0:
            raise self.fail(f"{member}.protocol", f"is {address.protocol}, only TCP (0) is carried")
        if not 1 <= address.port_value <= 65535:
            raise self.fail(f"{member}.port_value", f"is {address.port_value}, expected 1..65535")
        if not address.address or len(address.address) > 253:
            raise self.fail(f"{member}.address", f"is {address.address[:80]!r}, expected an IP address or a name")
        return TcpAddress(address.address, address.port_value)

    def ip(self, address: Address, member: str) -> TcpAddress:
        """An address that must be TCP with a numeric host."""
        if isinstance(address, UnixAddress):
            raise self.fail(member, "is a UNIX socket, expected an IP address and port")
        try:
            ipaddress.ip_address(address.host)
        except ValueError:
            raise self.fail(member, f"host {address.host!r} is not an IP address") from None
        return address

    def _socket_path(self, path: str, member: str, run_dir: Path) -> str:
        # "@name" is Envoy's way to write an abstract socket, which has no owner and no mode: anybody may take it.
        if not path or "\0" in path or path.startswith("@") or ".." in Path(path).parts:
            raise self.fail(member, f"{path[:80]!r} is not a usable socket path")
        full = str(run_dir / path)
        if len(os.fsencode(full)) > MAX_SOCKET_PATH:
            raise self.fail(
                member, f"{full!r} is longer than {MAX_SOCKET_PATH} bytes: give the worker a shorter --run-dir"
            )
        return full

    def config_source(self, source: pb.ConfigSource, member: str) -> None:
        """Resources come over this very stream or not at all."""
        if not source.HasField("ads"):
            raise self.fail(member, "is not `ads`, this worker has no other source")
        if source.resource_api_version not in (0, _API_V3):
            raise self.fail(f"{member}.resource_api_version", f"is {source.resource_api_version}, expected V3")

    def common_tls(self, tls: pb.CommonTlsContext, member: str) -> TlsRules:
        """Identity, trust and names of a TLS context."""
        identities = tls.tls_certificate_sds_secret_configs
        if len(identities) != 1:
            raise self.fail(
                f"{member}.tls_certificate_sds_secret_configs", f"has {len(identities)} entries, expected exactly one"
            )
        identity = self._secret_name(identities[0], f"{member}.tls_certificate_sds_secret_configs")
        bundle, matchers = self._validation(tls, member)
        return TlsRules(identity, bundle, matchers, self._options(tls, member))

    def _options(self, tls: pb.CommonTlsContext, member: str) -> TlsOptions:
        """Versions and protocols. Without a minimum it is 1.3, which satisfies whatever the default is elsewhere."""
        minimum, maximum = tls.tls_params.tls_minimum_protocol_version, tls.tls_params.tls_maximum_protocol_version
        if minimum not in _TLS_VERSIONS_MINIMUM:
            raise self.fail(f"{member}.tls_params.tls_minimum_protocol_version", "is below TLS 1.2")
        if maximum not in _TLS_VERSIONS_MAXIMUM:
            raise self.fail(f"{member}.tls_params.tls_maximum_protocol_version", "excludes TLS 1.3, which is required")
        names = tuple(tls.alpn_protocols)
        # As for Envoy, which keeps them as one text with commas between.
        if len(names) > MAX_PROTOCOLS or not all(0 < len(n.encode()) < 256 and "," not in n for n in names):
            raise self.fail(
                f"{member}.alpn_protocols",
                f"expected at most {MAX_PROTOCOLS} names of 1 to 255 bytes, without commas",
            )
        return TlsOptions("1.2" if minimum == _TLS_1_2 else "1.3", names)

    def _validation(self, tls: pb.CommonTlsContext, member: str) -> tuple[str | None, tuple[SanMatcher, ...]]:
        match tls.WhichOneof("validation_context_type"):
            case None:
                return None, ()
            case "validation_context_sds_secret_config":
                at = f"{member}.validation_context_sds_secret_config"
                return self._secret_name(tls.validation_context_sds_secret_config, at), ()
        combined, at = tls.combined_validation_context, f"{member}.combined_validation_context"
        default = combined.default_validation_context
        if default.HasField("trusted_ca"):
            raise self.fail(f"{at}.default_validation_context.trusted_ca", "is set; trust comes from SDS alone")
        if len(default.match_typed_subject_alt_names) > MAX_MATCHERS:
            raise self.fail(f"{at}.default_validation_context", f"more than {MAX_MATCHERS} name matchers")
        matchers = tuple(self._matcher(m, at) for m in default.match_typed_subject_alt_names)
        if not combined.HasField("validation_context_sds_secret_config"):
            raise self.fail(f"{at}.validation_context_sds_secret_config", "is not set, so there is nothing to trust")
        name = self._secret_name(
            combined.validation_context_sds_secret_config, f"{at}.validation_context_sds_secret_config"
        )
        return name, matchers

    def _matcher(self, matcher: pb.SubjectAltNameMatcher, member: str) -> SanMatcher:
        at = f"{member}.match_typed_subject_alt_names"
        kind = _SAN_KINDS.get(matcher.san_type)
        if kind is None:
            raise self.fail(f"{at}.san_type", f"is {matcher.san_type}, expected DNS (2), URI (3) or IP_ADDRESS (4)")
        pattern = matcher.matcher.WhichOneof("match_pattern")
        text = getattr(matcher.matcher, pattern) if pattern else ""
        if not text:
            raise self.fail(f"{at}.matcher", "is empty: an empty pattern would let everybody in")
        if pattern == "exact":
            return SanMatcher(kind, exact=text, prefix=None)
        return SanMatcher(kind, exact=None, prefix=text)

    def _secret_name(self, config: pb.SdsSecretConfig, member: str) -> str:
        if not config.name:
            raise self.fail(f"{member}.name", "is empty")
        self.config_source(config.sds_config, f"{member}.sds_config")
        return config.name
