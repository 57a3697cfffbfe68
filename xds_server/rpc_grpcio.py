# SPDX-License-Identifier: Apache-2.0
"""The transport of the xDS port on grpcio: messages travel as raw bytes, nothing of an exception reaches a client."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import grpc
import grpc.aio

from sds.discovery import MAX_REQUEST_BYTES
from sds.logs import get_logger
from xds_server.rpc import CallEnded, Handler, RpcError
from xds_server.xds_credentials import ServerTls, TlsMaterial

# The default of 1000 pending requests turns a reconnecting mesh away; 20 000 streams are a Coordinator's whole fleet.
_MAX_PENDING = 20_000
OPTIONS = (
    ("grpc.server.max_pending_requests", _MAX_PENDING),
    ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 1000),
    ("grpc.so_reuseport", 0),  # a second Coordinator on the same port must fail, not share it
    # A dead peer is noticed after 50 s, and pings more often than every 10 s are refused.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)

_Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
_log = get_logger(__name__)


class GrpcioServer(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A `rpc.RpcServer`."""

    def __init__(self, handlers: Mapping[str, Handler], tls: ServerTls) -> None:
        self._methods = {
            # None as (de)serialiser: bytes in, bytes out.
            method: grpc.stream_stream_rpc_method_handler(_behaviour(method, handler), None, None)
            for method, handler in handlers.items()
        }
        self._tls = tls
        self._server: grpc.aio.Server | None = None

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """What serves a method; None: UNIMPLEMENTED."""
        return self._methods.get(handler_call_details.method)

    async def start(self, host: str, port: int) -> int:
        server = grpc.aio.server(options=OPTIONS)
        server.add_generic_rpc_handlers((self,))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = server.add_secure_port(address, _credentials(self._tls))
        except RuntimeError:
            bound = 0
        if not bound:
            raise OSError(f"cannot listen on {address} for xDS: is the address this host's, and the port free?")
        await server.start()
        self._server = server
        return int(bound)

    async def stop(self, grace: float) -> None:
        if self._server is not None:
            await self._server.stop(grace)
            self._server = None


class _Call:
    """A `rpc.Call`."""

    def __init__(self, method: str, context: _Context) -> None:
        self.method = method
        self._context = context

    @property
    def peer(self) -> str:
        return str(self._context.peer())

    @property
    def certificate_der(self) -> bytes | None:
        found = self._context.auth_context().get("x509_pem_cert", ())
        return ssl.PEM_cert_to_DER_cert(found[0].decode("ascii")) if found else None

    async def read(self) -> bytes | None:
        try:
            data = await self._context.read()
        except grpc.aio.UsageError:  # the client is gone
            return None
        return None if data is grpc.aio.EOF else bytes(data)

    async def write(self, body: bytes) -> None:
        try:
            await self._context.write(body)
        except grpc.aio.UsageError as e:
            raise CallEnded from e


def _behaviour(method: str, handler: Handler) -> Callable[[object, _Context], Awaitable[None]]:
    async def serve(_requests: object, context: _Context) -> None:
        try:
            await handler(_Call(method, context))
        except CallEnded:
            return
        except RpcError as e:
            await context.abort(grpc.StatusCode[e.status], str(e))
        except Exception:  # a bug: the client learns nothing of it, the log everything
            _log.exception("call failed", method=method)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error")

    return serve


def _credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Server credentials that follow `tls` by themselves."""
    served = tls.current

    def fetch() -> object:
        # Called in a thread of gRPC at each handshake; None: nothing new.
        nonlocal served
        if tls.current is served:
            return None
        served = tls.current
        return _configuration(served)

    first = _configuration(served)
    return grpc.dynamic_ssl_server_credentials(first, fetch, require_client_authentication=True)


def _configuration(material: TlsMaterial) -> object:
    pair = (material.identity.key.pem, material.identity.chain)
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=material.trusted)
