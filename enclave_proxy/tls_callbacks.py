# SPDX-License-Identifier: Apache-2.0
"""How OpenSSL asks back in the middle of a handshake: C callbacks, and who they are about.

A handshake enters itself under its `SSL *` for the time of its steps. Whatever goes wrong in here refuses the peer.
"""

from __future__ import annotations

from typing import Any, Protocol

from enclave_proxy.tls_library import ffi, lib


class Handshake(Protocol):
    """One handshake that is under way."""

    @property
    def protocols(self) -> bytes:
        """The ALPN names that it would take, in its order, as on the wire."""

    def judge(self, ok: bool, store: Any) -> bool:
        """Whether to go on; `ok` and `store` as in SSL_CTX_set_verify(3). Sets the error of `store` if not."""


_under_way: dict[int, Handshake] = {}
_INDEX = lib.SSL_get_ex_data_X509_STORE_CTX_idx()


def enter(ssl: Any, handshake: Handshake) -> int:
    """Make `handshake` the one to ask about `ssl`; the answer is for `leave`."""
    key = int(ffi.cast("uintptr_t", ssl))
    _under_way[key] = handshake
    return key


def leave(key: int) -> None:
    """Forget a handshake."""
    _under_way.pop(key, None)


def _verify_peer(ok: int, store: Any) -> int:
    ssl = lib.X509_STORE_CTX_get_ex_data(store, _INDEX)
    handshake = _under_way.get(int(ffi.cast("uintptr_t", ssl)))
    return int(handshake is not None and handshake.judge(bool(ok), store))


def _choose_protocol(ssl: Any, chosen: Any, size: Any, offered: Any, length: int, _: Any) -> int:
    """The first of ours that the client offers; without one the connection goes on without, as in Envoy."""
    handshake = _under_way.get(int(ffi.cast("uintptr_t", ssl)))
    theirs = _places(bytes(ffi.buffer(offered, length)))
    for name in () if handshake is None else _places(handshake.protocols):
        if name in theirs:
            chosen[0], size[0] = offered + theirs[name], len(name)  # in the client's own list, which outlives this
            return int(lib.SSL_TLSEXT_ERR_OK)
    return int(lib.SSL_TLSEXT_ERR_NOACK)


def _places(wire: bytes) -> dict[bytes, int]:
    """ALPN names and where each begins. OpenSSL has checked the lengths."""
    found: dict[bytes, int] = {}
    at = 0
    while at < len(wire):
        end = at + 1 + wire[at]
        found.setdefault(wire[at + 1 : end], at + 1)
        at = end
    return found


# An exception in one of them (there is none that we know of) refuses the peer.
verify_peer = ffi.callback("int(int, X509_STORE_CTX *)", _verify_peer, 0)
choose_protocol = ffi.callback(
    "int(SSL *, const unsigned char **, unsigned char *, const unsigned char *, unsigned int, void *)",
    _choose_protocol,
    lib.SSL_TLSEXT_ERR_ALERT_FATAL,
)
