# SPDX-License-Identifier: Apache-2.0
"""A folder with the files that a Gramine manifest trusts, and nothing else: what is not in the list is not there.

A program runs in it by chroot, which takes root. It is no enclave: it shows that the list is complete.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from marblemesh.gramine.libraries import GLIBC

Json = dict[str, Any]
_HOST = Path("/usr/lib/x86_64-linux-gnu")
_LOADER = "ld-linux-x86-64.so.2"


def chroot_needed() -> None:
    """Skips the test where it may not change its root."""
    if os.geteuid() != 0:
        pytest.skip("chroot takes root")


def make_runtime(folder: Path) -> Path:
    """Stands for Gramine's build of glibc: the machine's own."""
    folder.mkdir()
    for name in GLIBC:
        if (_HOST / name).exists():
            shutil.copyfile(_HOST / name, folder / name)
            (folder / name).chmod(0o755)
    return folder


class EnclaveRoot:
    """The root folder, and the processes in it; a context manager that ends them."""

    def __init__(self, manifest: Json, folder: Path) -> None:
        self.folder = folder
        self.manifest = manifest
        self._processes: list[subprocess.Popen[bytes]] = []
        trusted = [entry.removeprefix("file:") for entry in manifest["sgx"]["trusted_files"]]
        for mount in manifest["fs"]["mounts"]:
            if mount.get("type") == "tmpfs":
                self.inside(mount["path"]).mkdir(parents=True, exist_ok=True)
                continue
            inside, outside = mount["path"], mount["uri"].removeprefix("file:")
            if f"file:{outside}/" in manifest["sgx"]["allowed_files"]:
                self.inside(inside).mkdir(parents=True)
            self._copy(inside, outside, trusted)
        # The kernel starts the loader by its own path; in an enclave it is Gramine that looks for it.
        (folder / "lib64").mkdir()
        shutil.copy(folder / "lib" / _LOADER, folder / "lib64" / _LOADER)
        (folder / "proc").mkdir()
        (folder / "dev").mkdir()
        for name, minor in (("null", 3), ("urandom", 9)):
            os.mknod(folder / "dev" / name, 0o20666, os.makedev(1, minor))

    def inside(self, path: str) -> Path:
        return self.folder / path.lstrip("/")

    def _copy(self, inside: str, outside: str, trusted: list[str]) -> None:
        for name in trusted:
            if name == outside or name.startswith(f"{outside}/"):
                target = self.inside(inside + name.removeprefix(outside))
                if name.endswith("/"):
                    shutil.copytree(name, target, dirs_exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(name, target)

    def environment(self, passed: Mapping[str, str]) -> dict[str, str]:
        """The manifest's variables, and from `passed` what the manifest lets through."""
        env = self.manifest["loader"]["env"]
        fixed = {name: value for name, value in env.items() if isinstance(value, str)}
        return fixed | {name: passed[name] for name, value in env.items() if isinstance(value, dict) and name in passed}

    def start(self, env: Mapping[str, str], *more: str, log: Path) -> subprocess.Popen[bytes]:
        """The manifest's program, with its arguments and `more` after them."""
        # Gramine has a /proc of its own. The mount is gone with the process.
        enter = '/usr/bin/mount -t proc proc "$0/proc" && exec /usr/sbin/chroot "$0" "$@"'
        program = [*self.manifest["loader"]["argv"], *more]
        argv = ["/usr/bin/unshare", "--mount", "/bin/sh", "-c", enter, str(self.folder), *program]
        with log.open("wb") as file:
            process = subprocess.Popen(
                argv, env=dict(env), stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )
        self._processes.append(process)
        return process

    def __enter__(self) -> EnclaveRoot:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=10)
