# SPDX-License-Identifier: Apache-2.0
"""Under SGX: what reaches the network past `socket.socket` ends here (`_socket` itself, datagrams, raw sockets).

An audit hook sees every call of Python's own socket module, whoever makes it. It sees nothing of libraries that call
the kernel themselves (libpq, libcurl, ZeroMQ): those are the app author's, and `docs/apps.md` says so.
"""

from __future__ import annotations

import errno
import socket
import sys

from enclave_proxy.fused_side import in_worker

_EVENTS = frozenset({"socket.bind", "socket.connect", "socket.sendto", "socket.sendmsg"})


def guard_sockets() -> None:
    """From now on, for the life of the process, the app's code reaches UNIX sockets only."""
    sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if event not in _EVENTS or in_worker():
        return
    family = getattr(arguments[0], "family", None)
    if family not in (socket.AF_UNIX, socket.AF_NETLINK) and (event != "socket.sendmsg" or arguments[1] is not None):
        raise PermissionError(
            errno.EACCES,
            f"{event} {arguments[1]!r}: under SGX the host would read it; what the manifest does not name is refused",
        )
