# SPDX-License-Identifier: Apache-2.0
"""Runs in the child, between the worker and the app: die with the worker, then become the app.

A file of its own, started by `python -I -S`, and not a function between fork and exec: the worker has threads, and
Python code after a fork of a threaded process may wait for ever for a lock that no living thread holds. It costs about
15 ms once. Usage: exec_app.py [--descriptors=N] [--user=UID:GID] WORKER_PID PROGRAM ARGV0 [ARG...].
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

DESCRIPTORS, USER = "--descriptors=", "--user="
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4


def main(arguments: list[str]) -> None:
    """Never returns: becomes the program, or ends with 126 (cannot execute) or 127 (not there)."""
    if arguments[0].startswith(DESCRIPTORS):
        _limit(int(arguments.pop(0).removeprefix(DESCRIPTORS)))
    if arguments[0].startswith(USER):
        _become(*map(int, arguments.pop(0).removeprefix(USER).split(":")))
    worker, program, *argv = arguments
    # Python ignores SIGPIPE and SIGXFSZ, and an ignored signal stays ignored over exec; apps expect the defaults.
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    # The kernel kills us if the worker dies, however it dies. Where prctl does not exist (Gramine), the worker is the
    # enclave's first process and the enclave ends with it. After `_become`, which would undo it.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(worker):  # it died before the call above
        sys.exit(1)
    try:
        os.execv(program, argv)  # noqa: S606 - becoming the app without a shell in between is the point
    except OSError as error:
        sys.stderr.write(f"marblemesh: cannot start {program!r}: {error.strerror}\n")
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


def _limit(descriptors: int) -> None:
    """How many there may be unless the app raises it, as it may."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))


def _become(uid: int, gid: int) -> None:
    """Another user for good: no other groups, no capability, and no set-user-id program gives any back."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    prctl = ctypes.CDLL(None).prctl
    # A worker that is not root has its capabilities as ambient ones, which go over to other users and programs.
    if prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) or prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        sys.exit("marblemesh: cannot give up the worker's privileges")


if __name__ == "__main__":
    main(sys.argv[1:])
