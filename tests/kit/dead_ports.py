# SPDX-License-Identifier: Apache-2.0
"""Addresses that do not answer as a live peer does: one that refuses, and one that says nothing at all."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from enclave_proxy.relay_config import TcpAddress


@contextmanager
def refusing(host: str = "127.0.0.1") -> Iterator[TcpAddress]:
    """A port that stays ours and on which nobody listens."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as bound:
        bound.bind((host, 0))
        yield TcpAddress(host, bound.getsockname()[1])


@contextmanager
def silent(host: str = "127.0.0.1") -> Iterator[TcpAddress]:
    """A port that neither accepts nor refuses: its backlog is full, and Linux drops what comes then."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind((host, 0))
        listener.listen(0)
        sockets.enter_context(socket.create_connection(listener.getsockname()))
        yield TcpAddress(host, listener.getsockname()[1])


@contextmanager
def listening(host: str = "127.0.0.1", port: int = 0) -> Iterator[TcpAddress]:
    """A port that accepts and then says nothing."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.bind((host, port))
        listener.listen(64)
        yield TcpAddress(host, listener.getsockname()[1])


def need_ipv6() -> None:
    """Skip where the machine has none."""
    try:
        with listening("::1"):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6")
