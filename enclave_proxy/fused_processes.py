# SPDX-License-Identifier: Apache-2.0
"""Child processes of a fused app.

Under SGX a process is an enclave of its own, with the attested one's memory to copy: refused. Elsewhere they work as
usual, without our signal mask. Replacing the process image (`os.exec*`) would replace the worker too: always refused.
"""

from __future__ import annotations

import errno
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

from enclave_proxy.fused_side import in_worker

_STARTING = ((os, "posix_spawn"), (os, "posix_spawnp"), (os, "system"), (subprocess, "_fork_exec"))
_FORKING = ((os, "fork"), (os, "forkpty"))
_REPLACING = ((os, "execv"), (os, "execve"))


def watch_processes(unblocked: Callable[[], AbstractContextManager[None]], *, refuse: bool) -> None:
    """Wrap what starts processes; `unblocked` is entered around each start. `refuse`: none may be started."""
    starting: list[tuple[ModuleType, str]] = [*_STARTING]
    if "_posixsubprocess" in sys.modules:
        starting.append((sys.modules["_posixsubprocess"], "fork_exec"))
    for module, name in starting:
        if (original := getattr(module, name, None)) is not None:
            setattr(module, name, _refused(name, original) if refuse else _started(original, unblocked))
    for module, name in _FORKING if refuse else ():
        setattr(module, name, _refused(name, getattr(module, name)))
    for module, name in _REPLACING:
        setattr(module, name, _not_replaced(name, getattr(module, name), os.getpid()))


def _started(original: Callable[..., Any], unblocked: Callable[[], AbstractContextManager[None]]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*arguments: Any, **options: Any) -> Any:
        with unblocked():
            return original(*arguments, **options)

    return call


def _refused(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*arguments: Any, **options: Any) -> Any:
        if in_worker():
            return original(*arguments, **options)
        raise PermissionError(
            errno.EPERM,
            f"{name}: under SGX a fused app starts no processes, each would be an enclave of its own",
        )

    return call


def _not_replaced(name: str, original: Callable[..., Any], own: int) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*arguments: Any, **options: Any) -> Any:
        if os.getpid() != own:  # a forked child becomes whatever it likes
            return original(*arguments, **options)
        raise PermissionError(
            errno.EPERM, f"{name}: a fused app cannot become another program, that would replace the worker too"
        )

    return call
