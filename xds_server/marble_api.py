# SPDX-License-Identifier: Apache-2.0
"""The Marble API on the wire: `/rpc.Marble/Activate`, from protobuf to the Coordinator's values and back.

The TLS client certificate is the identity here: the transport hands over the one whose key the client proved to hold,
and the quote must name its hash. Decisions are the Coordinator's; this file only translates.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError
from grpclib.const import Status

from sds.wire.marble_pb2 import ActivationRequest, ActivationResponse, Parameters
from xds_server.activation import ActivationAsk
from xds_server.coordinator import Coordinator
from xds_server.errors import ActivationRefused
from xds_server.grpc_unary import MAX_MESSAGE, UnaryService
from xds_server.metrics import CoordinatorMetrics
from xds_server.rpc import RpcError
from xds_server.tls_front import TlsTransport

ACTIVATE = b"/rpc.Marble/Activate"


class MarbleApi:
    """The handlers of the port."""

    def __init__(self, coordinator: Coordinator, metrics: CoordinatorMetrics) -> None:
        self._coordinator = coordinator
        self._metrics = metrics

    def service(self, timeout: float = 20.0) -> UnaryService:
        """What the TLS front puts behind each connection."""
        return UnaryService({ACTIVATE: self._activate}, self._finished, timeout=timeout)

    async def _activate(self, message: bytes, transport: TlsTransport) -> bytes:
        self._metrics.grpc_started.inc()
        try:
            request = ActivationRequest.FromString(message)
        except DecodeError:
            raise RpcError("INTERNAL", "request is no ActivationReq message") from None
        self._metrics.grpc_received.inc()
        ask = ActivationAsk(
            quote=request.quote,
            csr=request.csr,
            marble_type=request.marble_type,
            uuid=request.uuid,
            certificate_der=transport.peer_certificate_der,
        )
        try:
            grant = await self._coordinator.activate(ask)
        except ActivationRefused as refused:
            raise RpcError(refused.grpc_status.name, str(refused)) from None
        parameters = Parameters(files=grant.files, env=grant.env, argv=grant.argv)
        reply = ActivationResponse(parameters=parameters).SerializeToString()
        if len(reply) > MAX_MESSAGE:
            raise RpcError("INTERNAL", f"parameters of {len(reply)} bytes, clients accept {MAX_MESSAGE}")
        self._metrics.grpc_sent.inc()
        return reply

    def _finished(self, status: Status) -> None:
        self._metrics.grpc_handled(status)
