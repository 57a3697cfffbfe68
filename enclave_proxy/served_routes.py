# SPDX-License-Identifier: Apache-2.0
"""What the relay asks of a route: under which key it is known, what its TLS context is made from, and the context."""

from __future__ import annotations

from enclave_proxy.listener import Serving
from enclave_proxy.relay_config import Address, Inbound, Outbound, TcpAddress
from enclave_proxy.tls_context import TlsContext, accepting, dialling

Route = Inbound | Outbound
# A listener is known by what it is bound to; port 0 means a new port, so that the name has to tell two of them apart.
Key = tuple[Address, str]


def lacks_endpoint(serving: Serving) -> bool:
    return isinstance(serving.route, Outbound) and not serving.route.endpoints


def key_of(route: Route) -> Key:
    address = route.bind if isinstance(route, Inbound) else route.listen
    return address, route.name if isinstance(address, TcpAddress) and address.port == 0 else ""


def recipe_of(route: Route) -> object:
    """What a context is made from: equal recipes may share one."""
    if isinstance(route, Inbound):
        return "server", route.identity, route.bundle, route.tls, route.require_client_certificate
    return "client", route.identity, route.bundle, route.tls


def context_of(route: Route) -> TlsContext:
    if isinstance(route, Inbound):
        required = route.require_client_certificate
        return accepting(route.identity, route.bundle, route.tls, require_client_certificate=required)
    return dialling(route.identity, route.bundle, route.tls)
