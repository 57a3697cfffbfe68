# SPDX-License-Identifier: Apache-2.0
"""The shared libraries of executables and extension modules, as the system's dynamic loader finds them.

The loader itself is asked (`ld.so --list`, which is what `ldd` does), because RPATH, RUNPATH and its cache are its
business. Nothing of the file is run.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from marblemesh.gramine.errors import GramineError

ELF = b"\x7fELF"
_PT_INTERP = 3
_LINE = re.compile(r"^\s*(\S+) => (.+?)(?: \(0x[0-9a-f]+\))?$")
_TIMEOUT = 30.0

# glibc's own libraries: in an enclave Gramine's build of them takes their place.
GLIBC = frozenset(
    f"{name}.so.{number}"
    for name, number in (
        ("libBrokenLocale", 1), ("libanl", 1), ("libc", 6), ("libdl", 2), ("libm", 6), ("libmvec", 1),
        ("libnss_compat", 2), ("libnss_dns", 2), ("libnss_files", 2), ("libpthread", 0), ("libresolv", 2),
        ("librt", 1), ("libthread_db", 1), ("libutil", 1),
    )
) | {"ld-linux-x86-64.so.2"}  # fmt: skip


def is_elf(path: Path) -> bool:
    """Is this an executable or a shared library?"""
    try:
        with path.open("rb") as file:
            return file.read(4) == ELF
    except OSError as error:
        raise GramineError(f"cannot read {str(path)!r}: {(error.strerror or 'error').lower()}") from None


def interpreter(executable: Path) -> Path:
    """The dynamic loader that a 64-bit executable names (its PT_INTERP segment)."""
    data = executable.read_bytes()
    if data[:6] != ELF + b"\x02\x01":
        raise GramineError(f"{str(executable)!r} is no 64-bit ELF executable for this machine")
    offset = int.from_bytes(data[32:40], "little")
    size, count = (int.from_bytes(data[at : at + 2], "little") for at in (54, 56))
    for index in range(count):
        header = data[offset + index * size : offset + (index + 1) * size]
        if int.from_bytes(header[:4], "little") == _PT_INTERP:
            start, length = (int.from_bytes(header[at : at + 8], "little") for at in (8, 32))
            return Path(os.fsdecode(data[start : start + length].rstrip(b"\0")))
    raise GramineError(
        f"{str(executable)!r} is linked statically: it makes system calls of its own, Gramine cannot run it"
    )


def libraries(loader: Path, files: Iterable[Path]) -> frozenset[Path]:
    """What these ELF files need, and what that needs, without glibc; under the names by which the loader opens them."""
    found: set[Path] = set()
    for file in files:
        found.update(_needed(loader, file))
    return frozenset(found)


def canonical(path: Path) -> Path:
    """The same file, with links of its folders resolved (/lib is /usr/lib), but not its own: a soname is a link."""
    return path.parent.resolve() / path.name


def _needed(loader: Path, file: Path) -> Iterable[Path]:
    done = subprocess.run(
        (str(loader), "--list", str(file)), capture_output=True, text=True, timeout=_TIMEOUT, check=False
    )
    if done.returncode != 0 and "statically linked" not in done.stderr + done.stdout:
        problem = " ".join((done.stderr or done.stdout).split())[:300]
        raise GramineError(f"the libraries of {str(file)!r} cannot be found: {problem}")
    for line in done.stdout.splitlines():
        if (match := _LINE.match(line)) is None:
            continue
        name, target = match.groups()
        if target == "not found":
            raise GramineError(f"{str(file)!r} needs {name!r}, which is not installed")
        if name not in GLIBC and target.startswith("/"):
            yield canonical(Path(target))
