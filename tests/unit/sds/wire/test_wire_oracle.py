# SPDX-License-Identifier: Apache-2.0
"""Our private messages against Envoy's own definitions: same field numbers, compatible types, same bytes."""

from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2 as grpc_health_pb2
from grpc_reflection.v1alpha import reflection_pb2 as grpc_reflection_pb2

from sds.wire import csds_pb2, discovery_pb2, envoy_pb2, health_pb2, marble_pb2, reflection_pb2, secret_pb2

WIRE = Path(__file__).resolve().parents[4] / "sds" / "wire"
CORE = "envoy.config.core.v3"
TLS = "envoy.extensions.transport_sockets.tls.v3"
DISCOVERY = "envoy.service.discovery.v3"
ENDPOINT = "envoy.config.endpoint.v3"
LISTENER = "envoy.config.listener.v3"
CLUSTER = "envoy.config.cluster.v3"

HOMES = {
    CORE: (
        "SocketAddress Pipe Address DataSource AggregatedConfigSource ConfigSource TransportSocket Locality Node "
        "ControlPlane TypedExtensionConfig"
    ),
    "envoy.type.matcher.v3": "StringMatcher NodeMatcher",
    TLS: (
        "TlsParameters TlsCertificate SubjectAltNameMatcher CertificateValidationContext SdsSecretConfig "
        "CommonTlsContext DownstreamTlsContext UpstreamTlsContext GenericSecret Secret "
        "TlsSessionTicketKeys SpiffeCertValidatorConfig"
    ),
    "envoy.extensions.filters.network.tcp_proxy.v3": "TcpProxy",
    LISTENER: "Filter FilterChain Listener",
    ENDPOINT: "Endpoint LbEndpoint LocalityLbEndpoints ClusterLoadAssignment",
    CLUSTER: "Cluster",
    DISCOVERY: (
        "ResourceName ResourceError DiscoveryRequest DiscoveryResponse DeltaDiscoveryRequest Resource "
        "DeltaDiscoveryResponse"
    ),
    "google.rpc": "Status",
    "envoy.service.status.v3": "ClientStatusRequest ClientConfig ClientStatusResponse",
    "envoy.admin.v3": "UpdateFailureState",
}
RENAMED = {
    "CombinedCertificateValidationContext": (TLS, "CommonTlsContextCombinedCertificateValidationContext"),
    "TrustDomain": (TLS, "SpiffeCertValidatorConfigTrustDomain"),
    "EdsClusterConfig": (CLUSTER, "ClusterEdsClusterConfig"),
    "GenericXdsConfig": ("envoy.service.status.v3", "ClientConfigGenericXdsConfig"),
}
WHERE = {name: (module, name) for module, names in HOMES.items() for name in names.split()} | RENAMED

# betterproto's names of types by protobuf's numbers of ours. An enum is an int32 on the wire.
KINDS = {
    FieldDescriptor.TYPE_STRING: {"string"},
    FieldDescriptor.TYPE_BYTES: {"bytes"},
    FieldDescriptor.TYPE_UINT32: {"uint32"},
    FieldDescriptor.TYPE_INT32: {"int32", "enum"},
    FieldDescriptor.TYPE_BOOL: {"bool"},
    FieldDescriptor.TYPE_MESSAGE: {"message", "map"},
}


def theirs(name: str) -> Any:
    module, theirs = WHERE[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # generated code, not ours to warn about
        return getattr(importlib.import_module(f"envoy_data_plane.{module}"), theirs)


def messages() -> Iterator[Descriptor]:
    for file in (discovery_pb2, envoy_pb2, csds_pb2, secret_pb2):
        yield from file.DESCRIPTOR.message_types_by_name.values()


def test_every_message_has_a_counterpart() -> None:
    assert sorted(m.name for m in messages() if m.name not in WHERE) == []


@pytest.mark.parametrize("message", list(messages()), ids=lambda m: m.full_name)
def test_fields_have_the_numbers_and_types_of_envoys_own(message: Descriptor) -> None:
    known = {f.name: f.metadata["betterproto"] for f in dataclasses.fields(theirs(message.name))}
    for field in message.fields:
        meta = known[field.name]
        assert meta.number == field.number, field.name
        assert str(getattr(meta.proto_type, "value", meta.proto_type)).lower() in KINDS[field.type], field.name
        if field.message_type is None or not field.message_type.GetOptions().map_entry:
            assert bool(meta.repeated) == field.is_repeated, field.name


@pytest.mark.parametrize("name", sorted(path.stem for path in WIRE.glob("*.proto")))
def test_the_checked_in_code_is_what_the_compiler_makes_of_the_definitions(name: str, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[4]
    arguments = ["-I.", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", f"sds/wire/{name}.proto"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], cwd=root, check=True, timeout=60)
    for suffix in ("_pb2.py", "_pb2.pyi"):
        made = (tmp_path / "sds" / "wire" / f"{name}{suffix}").read_text()
        kept = (root / "sds" / "wire" / f"{name}{suffix}").read_text()
        assert _without_versions(made) == _without_versions(kept)


def _without_versions(text: str) -> str:
    """Comments and the check of the run time's version name the compiler's own release."""
    text = re.sub(r"ValidateProtobufRuntimeVersion\([^)]*\)", "", text)
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def filled(message: Message, depth: int = 0) -> Message:
    """Every field set to something, of a oneof the last member."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, field.name)["key"] = "value"
        elif field.message_type is not None and depth < 6:
            child = getattr(message, field.name)
            filled(child.add() if field.is_repeated else child, depth + 1)
            if not field.is_repeated:
                child.SetInParent()
        elif field.message_type is None:
            value: Any = {"string": "text", "bytes": b"bytes"}.get(_kind(field.type), 1)
            if _kind(field.type) == "bool":
                value = True
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)
    return message


def _kind(number: int) -> str:
    return {
        FieldDescriptor.TYPE_STRING: "string",
        FieldDescriptor.TYPE_BYTES: "bytes",
        FieldDescriptor.TYPE_BOOL: "bool",
    }.get(number, "number")


@pytest.mark.parametrize("name", ["Secret", "TlsParameters", "SocketAddress", "SubjectAltNameMatcher", "ResourceError"])
def test_envoys_definitions_read_our_bytes_and_write_them_back(name: str) -> None:
    ours = getattr(envoy_pb2, name, None) or getattr(discovery_pb2, name)
    body = filled(ours()).SerializeToString(deterministic=True)
    parsed = theirs(name).parse(body)
    again = ours.FromString(bytes(parsed))
    assert again == ours.FromString(body)


def test_no_marble_message_is_without_fields() -> None:
    assert all(m.fields for m in marble_pb2.DESCRIPTOR.message_types_by_name.values())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(health_pb2, grpc_health_pb2), (reflection_pb2, grpc_reflection_pb2)],
    ids=["health", "reflection"],
)
def test_grpcs_own_services_have_the_fields_of_grpcs_own_definitions(ours: Any, theirs: Any) -> None:
    known = theirs.DESCRIPTOR.message_types_by_name
    for name, message in ours.DESCRIPTOR.message_types_by_name.items():
        assert _shape(message) == _shape(known[name])


def _shape(message: Descriptor) -> list[tuple[str, int, int, bool]]:
    return [(field.name, field.number, field.type, field.is_repeated) for field in message.fields]
