# SPDX-License-Identifier: Apache-2.0
"""Whose code is running: the worker's or the app's? In fused mode both call the same `socket` module.

The worker's code runs on its own thread, or on a helper thread that it has started in its own context
(`asyncio.to_thread` copies that). Everything else is the app.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar

_worker = ContextVar("marblemesh_worker", default=False)
_threads: set[int] = set()


def enter_worker() -> None:
    """This thread is the worker's from now on."""
    _worker.set(True)
    _threads.add(threading.get_ident())


def in_worker() -> bool:
    """Is the calling code the worker's? A callback that the app's thread has handed to the worker's loop runs in the
    app's context, but on the worker's thread: it counts as the worker's."""
    return threading.get_ident() in _threads or _worker.get()
