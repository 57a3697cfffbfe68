# SPDX-License-Identifier: Apache-2.0
"""Network namespaces that a test makes for itself: "pods" with links, redirection rules and users of their own.

A namespace lives as long as one process in it (a sleeping holder that dies with the test), so that nothing is left
behind, whatever happens to the test. It has no name on the machine and tests can run side by side.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
_links = count()


def namespaces_needed(*programs: str) -> None:
    """Skips the test where it may not make namespaces (no root) or a program is missing; fails it where CI=true."""
    lacking = [name for name in ("unshare", "nsenter", "setpriv", "ip", *programs) if shutil.which(name) is None]
    if lacking:
        text = f"{', '.join(lacking)} not installed"
    elif os.geteuid() != 0:
        text = "network namespaces take root"
    elif subprocess.run(["unshare", "--net", "true"], capture_output=True, timeout=30).returncode != 0:
        text = "this machine allows no network namespaces"
    else:
        return
    if os.environ.get("CI") == "true" and os.geteuid() == 0:  # noqa: TID251 - a test's own environment
        pytest.fail(text)
    pytest.skip(text)


class Namespace:
    """A network namespace with its loopback up. A context manager; everything started in it ends with it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._holder: subprocess.Popen[bytes] | None = None
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Namespace:
        # Without --fork, unshare becomes the sleep itself: the holder's PID is the namespace's.
        argv = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            "--net",
            "sh",
            "-c",
            "ip link set lo up && echo up && exec sleep infinity",
        ]
        self._holder = subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"up\n", f"namespace {self.name} did not come up"
        return self

    def __exit__(self, *exc: object) -> None:
        for child in reversed(self._children):
            kill_group(child)
        assert self._holder is not None
        self._holder.kill()
        self._holder.wait(10)
        if self._holder.stdout is not None:
            self._holder.stdout.close()

    @property
    def pid(self) -> int:
        assert self._holder is not None, "enter the namespace first"
        return self._holder.pid

    def argv(self, *command: str, uid: int | None = None) -> list[str]:
        """The command line that runs a command in here, as another user if named (no groups, no capabilities)."""
        user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--bounding-set=-all"] if uid else []
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *user, *command]

    def run(self, *command: str, uid: int | None = None, stdin: str | None = None) -> str:
        """Runs a command to its end, at most 60 s. Returns its output; raises with its errors if it fails."""
        done = subprocess.run(self.argv(*command, uid=uid), input=stdin, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{self.name}: {' '.join(command)}: {done.stderr or done.stdout}"
        return done.stdout

    def start(
        self, *command: str, uid: int | None = None, env: dict[str, str] | None = None, log: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts a process (a group of its own) that ends with the namespace. `log` gets what it prints."""
        out = log.open("ab") if log else subprocess.DEVNULL
        try:
            child = subprocess.Popen(
                self.argv(*command, uid=uid),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=env,
                start_new_session=True,
            )
        finally:
            if not isinstance(out, int):
                out.close()
        self._children.append(child)
        return child

    def call(self, function: Callable[[], T]) -> T:
        """Calls a function on a thread inside the namespace. Sockets that it makes stay there, whoever uses them."""
        result: list[T] = []
        failure: list[BaseException] = []

        def inside() -> None:
            try:
                _enter(self.pid)
                result.append(function())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=inside, daemon=True)
        thread.start()
        thread.join(60)
        if failure:
            raise failure[0]
        assert result, f"{self.name}: the call did not return within 60 s"
        return result[0]

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A fresh socket that belongs to the namespace."""
        return self.call(lambda: socket.socket(family, kind))

    def processes(self) -> Iterator[int]:
        """PIDs of the processes in here, without the holder."""
        own = os.stat(f"/proc/{self.pid}/ns/net").st_ino  # noqa: PTH116 - the link's target, not a file
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.pid:
                try:
                    if os.stat(entry / "ns/net").st_ino == own:  # noqa: PTH116
                        yield int(entry.name)
                except OSError:
                    continue


def link(
    left: Namespace, right: Namespace, left_addresses: Sequence[str], right_addresses: Sequence[str]
) -> tuple[str, str]:
    """Joins two namespaces by a virtual cable. Addresses as `10.77.0.1/24`. Returns the two interfaces' names."""
    number = next(_links)
    names = f"mm{number}l", f"mm{number}r"
    left.run("ip", "link", "add", names[0], "type", "veth", "peer", "name", names[1], "netns", str(right.pid))
    for side, name, addresses in ((left, names[0], left_addresses), (right, names[1], right_addresses)):
        for address in addresses:
            nodad = ["nodad"] if ":" in address else []  # an address is to be usable at once
            side.run("ip", "address", "add", address, "dev", name, *nodad)
        side.run("ip", "link", "set", name, "up")
    return names


@contextmanager
def pods(*names: str) -> Iterator[list[Namespace]]:
    """Several namespaces, ended together."""
    with ExitStack() as stack:
        yield [stack.enter_context(Namespace(name)) for name in names]


def kill_group(child: subprocess.Popen[bytes]) -> None:
    """Ends a process group that `start` made, at once."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait(10)


def _enter(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)
