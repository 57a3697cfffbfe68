# SPDX-License-Identifier: Apache-2.0
"""Starts whole Coordinators for the crash test: each is a fork of this process, which has imported all and run nothing.

    test ── which state, which deadly operation, where to log ──► this process ── fork ──► the Coordinator's own `serve`
         ◄── its process id, and later how it ended ──────────────┘

A fork is ready to serve after 30 ms, a new interpreter after more than a second. There is no event loop, no thread and
no open port here, so the fork is a Coordinator like any other, but for one thing: the operations by which it writes its
state may end it. Usage: `python -m tests.crash.coordinator SOCKET PARENT`; it ends when the other end of the socket is
closed, and the kernel ends all of them with whoever started them.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any

from tests.crash.deadly_files import DeadlyFiles
from xds_server.__main__ import serve
from xds_server.file_ops import SystemFiles

_PR_SET_PDEATHSIG = 1
_MAX_ORDER = 65536


def main() -> None:
    orders = socket.socket(fileno=int(sys.argv[1]))
    _end_with(int(sys.argv[2]))
    gc.freeze()  # children share what is there, instead of copying it when they collect garbage
    while True:
        message, descriptors, _, _ = socket.recv_fds(orders, _MAX_ORDER, 1)
        if not message:
            return
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            orders.close()
            _end_with(parent)
            os.dup2(descriptors[0], 2)
            os.close(descriptors[0])
            _become(json.loads(message))
        os.close(descriptors[0])
        orders.send(json.dumps({"pid": child}).encode())
        # It stays a zombie until the other end knows, so that nobody kills who has its number next.
        end = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert end is not None
        status = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
        orders.send(json.dumps({"ended": status}).encode())
        orders.recv(1)
        os.waitpid(child, 0)


def _become(order: Mapping[str, Any]) -> None:
    """Never returns."""
    status = 1
    try:
        status = serve(order["env"], SystemFiles() if order["deadly"] is None else DeadlyFiles(order["deadly"]))
    finally:
        os._exit(status)


def _end_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the call above
        os._exit(1)


if __name__ == "__main__":
    main()
