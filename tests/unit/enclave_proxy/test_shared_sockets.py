# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import socket

from enclave_proxy.relay_config import TcpAddress
from enclave_proxy.shared_sockets import SharedSockets


def test_what_any_process_accepts_sends_small_messages_at_once_and_notices_that_a_peer_is_gone() -> None:
    sockets = SharedSockets(2)
    address = TcpAddress("127.0.0.1", 0)
    own = sockets.bind(address)
    try:
        for listening in (own, sockets.of(0, address), sockets.of(1, address)):
            listening.setblocking(True)
            with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    finally:
        own.close()
        sockets.retain(())
