# SPDX-License-Identifier: Apache-2.0
"""An XdsServer as the Coordinator builds it, for a Mesh of a test."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from sds.logs import get_logger
from xds_server.ads import XdsServer
from xds_server.mesh import Mesh
from xds_server.rpc_grpcio import GrpcioServer
from xds_server.xds_metrics import XdsMetrics


def xds_server(mesh: Mesh, registry: CollectorRegistry | None = None) -> XdsServer:
    return XdsServer(mesh, GrpcioServer, get_logger("test"), XdsMetrics(registry or CollectorRegistry()))
