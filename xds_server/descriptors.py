# SPDX-License-Identifier: Apache-2.0
"""Our private messages under the names that the rest of the world knows them by, as protobuf descriptors.

`sds/wire` keeps its messages in packages of its own, so that nothing collides with a program's copy of Envoy's. On the
wire that makes no difference; to those who ask by name (reflection) and to JSON (an Any is resolved by its type URL) it
does. So the descriptors are copied here with their names put right: the same fields with the same numbers, a subset of
Envoy's. One file per package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from google.protobuf import any_pb2, duration_pb2, struct_pb2, timestamp_pb2, wrappers_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto

from sds.wire import csds_pb2, discovery_pb2, envoy_pb2, health_pb2, reflection_pb2

_CORE = "envoy.config.core.v3"
_DISCOVERY = "envoy.service.discovery.v3"
_MATCHER = "envoy.type.matcher.v3"

# Where the messages of a file are at home: package -> names, "*" for all others.
_HOMES: Sequence[tuple[FileDescriptor, Mapping[str, str]]] = (
    (discovery_pb2.DESCRIPTOR, {_CORE: "Locality Node ControlPlane", "google.rpc": "Status", _DISCOVERY: "*"}),
    (
        envoy_pb2.DESCRIPTOR,
        {
            _CORE: "SocketAddress Pipe Address DataSource AggregatedConfigSource ConfigSource TransportSocket",
            _MATCHER: "StringMatcher",
            "envoy.extensions.filters.network.tcp_proxy.v3": "TcpProxy",
            "envoy.config.listener.v3": "Filter FilterChain Listener",
            "envoy.config.endpoint.v3": "Endpoint LbEndpoint LocalityLbEndpoints ClusterLoadAssignment",
            "envoy.config.cluster.v3": "EdsClusterConfig Cluster",
            "envoy.extensions.transport_sockets.tls.v3": "*",
        },
    ),
    (
        csds_pb2.DESCRIPTOR,
        {_MATCHER: "NodeMatcher", "envoy.admin.v3": "UpdateFailureState", "envoy.service.status.v3": "*"},
    ),
    (health_pb2.DESCRIPTOR, {"grpc.health.v1": "*"}),
    (reflection_pb2.DESCRIPTOR, {"grpc.reflection.v1": "*"}),
    (reflection_pb2.DESCRIPTOR, {"grpc.reflection.v1alpha": "*"}),
)
_WELL_KNOWN = tuple(m.DESCRIPTOR for m in (any_pb2, duration_pb2, struct_pb2, timestamp_pb2, wrappers_pb2))


@dataclass(frozen=True, slots=True)
class Method:
    """A method of a service, with the full names of its messages; `asks`, `answers`: whether that side streams."""

    request: str
    response: str
    asks: bool = True
    answers: bool = True


def discovery_method(name: str) -> Method:
    """A `Stream…` or `Delta…` method."""
    kind = "Delta" if name.startswith("Delta") else ""
    return Method(f"{_DISCOVERY}.{kind}DiscoveryRequest", f"{_DISCOVERY}.{kind}DiscoveryResponse")


# Service -> method.
Services = Mapping[str, Mapping[str, Method]]


class Descriptors:
    """Files by name, and which one has which symbol."""

    def __init__(self, services: Services) -> None:
        self._files: dict[str, FileDescriptorProto] = {file.name: _proto(file) for file in _WELL_KNOWN}
        self._homes: dict[str, dict[str, str]] = {}
        for source, homes in _HOMES:
            self._take(_proto(source), {name: home for home, names in homes.items() for name in names.split()})
        for service, methods in services.items():
            self._serve(service, methods)
        self._symbols = MappingProxyType({s: file.name for file in self._files.values() for s in _symbols(file)})

    @property
    def files(self) -> Mapping[str, FileDescriptorProto]:
        return MappingProxyType(self._files)

    def file_of(self, symbol: str) -> FileDescriptorProto | None:
        """The file that defines a message, a service or a method."""
        name = self._symbols.get(symbol)
        return None if name is None else self._files[name]

    def with_dependencies(self, file: FileDescriptorProto) -> list[FileDescriptorProto]:
        """All that a file needs, each once and after what it needs itself; the file is the last."""
        found: dict[str, FileDescriptorProto] = {}
        for name in file.dependency:
            found |= {other.name: other for other in self.with_dependencies(self._files[name])}
        found[file.name] = file
        return list(found.values())

    def _take(self, source: FileDescriptorProto, homes: dict[str, str]) -> None:
        self._homes[source.package] = homes
        for message in source.message_type:
            file = self._file(_home(homes, message.name))
            copy = file.message_type.add()
            copy.CopyFrom(message)
            for field in _fields(copy):
                if field.type_name:
                    field.type_name = self._renamed(field.type_name)
                    self._need(file, field.type_name)

    def _serve(self, service: str, methods: Mapping[str, Method]) -> None:
        package, _, name = service.rpartition(".")
        file = self._file(package)
        added = file.service.add(name=name)
        for method_name, method in methods.items():
            added.method.add(
                name=method_name,
                input_type=f".{method.request}",
                output_type=f".{method.response}",
                client_streaming=method.asks,
                server_streaming=method.answers,
            )
            self._need(file, f".{method.request}")
            self._need(file, f".{method.response}")

    def _renamed(self, type_name: str) -> str:
        package, rest = _split(type_name)
        homes = self._homes.get(package)
        return type_name if homes is None else f".{_home(homes, rest.partition('.')[0])}.{rest}"

    def _file(self, package: str) -> FileDescriptorProto:
        name = f"{package.replace('.', '/')}.proto"
        if name not in self._files:
            self._files[name] = FileDescriptorProto(name=name, package=package, syntax="proto3")
        return self._files[name]

    def _need(self, file: FileDescriptorProto, type_name: str) -> None:
        """Import the file of a type, unless it is this one."""
        package, rest = _split(type_name)
        if package == "google.protobuf":
            name = next(f.name for f in _WELL_KNOWN if rest in f.message_types_by_name)
        else:
            name = self._file(package).name
        if name != file.name and name not in file.dependency:
            file.dependency.append(name)


def _proto(file: FileDescriptor) -> FileDescriptorProto:
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    return proto


def _home(homes: Mapping[str, str], name: str) -> str:
    return homes.get(name) or homes["*"]


def _split(type_name: str) -> tuple[str, str]:
    """`.a.b.Outer.Inner` is `a.b`, `Outer.Inner`: packages are lower case here, types are not."""
    parts = type_name[1:].split(".")
    first = next(index for index, part in enumerate(parts) if part[0].isupper())
    return ".".join(parts[:first]), ".".join(parts[first:])


def _fields(message: DescriptorProto) -> Iterator[FieldDescriptorProto]:
    yield from message.field
    for inner in message.nested_type:
        yield from _fields(inner)


def _symbols(file: FileDescriptorProto) -> Iterator[str]:
    for message in file.message_type:
        yield from _message_symbols(f"{file.package}.{message.name}", message)
    for service in file.service:
        yield f"{file.package}.{service.name}"
        yield from (f"{file.package}.{service.name}.{method.name}" for method in service.method)


def _message_symbols(name: str, message: DescriptorProto) -> Iterator[str]:
    yield name
    yield from (f"{name}.{enum.name}" for enum in message.enum_type)
    for inner in message.nested_type:
        yield from _message_symbols(f"{name}.{inner.name}", inner)
