# SPDX-License-Identifier: Apache-2.0
"""gRPC server reflection, v1 and v1alpha: what this port serves, for grpcurl and its like."""

from __future__ import annotations

from functools import cached_property

from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message import DecodeError

from sds.wire.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from xds_server.descriptors import Descriptors, Method, Services
from xds_server.rpc import Call, Handler, RpcError

SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
_METHOD = "ServerReflectionInfo"
_NOT_FOUND = 5  # google.rpc.Code
_UNIMPLEMENTED = 12


def methods(service: str) -> dict[str, Method]:
    """The methods of one of SERVICES."""
    package = service.rpartition(".")[0]
    return {_METHOD: Method(f"{package}.ServerReflectionRequest", f"{package}.ServerReflectionResponse")}


class Reflection:
    """`services` are all of the port, this one included."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def handlers(self) -> dict[str, Handler]:
        """By full method path."""
        return {f"/{service}/{_METHOD}": self._serve for service in SERVICES}

    @cached_property
    def _descriptors(self) -> Descriptors:
        return Descriptors(self._services)

    async def _serve(self, call: Call) -> None:
        while (body := await call.read()) is not None:
            try:
                request = ServerReflectionRequest.FromString(body)
            except DecodeError:
                raise RpcError("INVALID_ARGUMENT", "request is not a valid reflection request") from None
            await call.write(self.answer(request).SerializeToString())

    def answer(self, request: ServerReflectionRequest) -> ServerReflectionResponse:
        """The response to one request."""
        response = ServerReflectionResponse(valid_host=request.host, original_request=request)
        match request.WhichOneof("message_request"):
            case "list_services":
                for name in sorted(self._services):
                    response.list_services_response.service.add(name=name)
            case "file_by_filename":
                self._give(response, self._descriptors.files.get(request.file_by_filename))
            case "file_containing_symbol":
                self._give(response, self._descriptors.file_of(request.file_containing_symbol))
            case "all_extension_numbers_of_type" if self._descriptors.file_of(request.all_extension_numbers_of_type):
                name = request.all_extension_numbers_of_type
                response.all_extension_numbers_response.base_type_name = name
            case "file_containing_extension" | "all_extension_numbers_of_type":  # proto3 knows none
                self._give(response, None)
            case _:
                response.error_response.error_code = _UNIMPLEMENTED
                response.error_response.error_message = "unknown kind of request"
        return response

    def _give(self, response: ServerReflectionResponse, file: FileDescriptorProto | None) -> None:
        if file is None:
            response.error_response.error_code = _NOT_FOUND
            response.error_response.error_message = "not found"
            return
        files = reversed(self._descriptors.with_dependencies(file))
        response.file_descriptor_response.file_descriptor_proto.extend(f.SerializeToString() for f in files)
